"""The broker is asked before a world has a network, and before a living one has another."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from substrate_sdk.errors import PolicyDenied
from tests.users import Json, User

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(shutil.which("nft") is None, reason="nft is not installed (nftables)"),
    pytest.mark.skipif(shutil.which("pasta") is None, reason="pasta is not installed (passt)"),
]

POLICY = """
version: 1
rules:
  - id: not-inside
    action: deny
    network: [10.0.0.0/8, host]
    reason: Ask for a public name.
"""


def decisions(user: User) -> list[tuple[str, str, str]]:
    """What was answered about networks: action, rule, decider."""
    found: list[Json] = [
        line["policy_decision"]
        for line in user.lines()
        if line["event_type"] == "policy_decision" and line["span_id"] is None
    ]
    return [(one["action"], one["rule_id"], one["decider"]) for one in found]


def test_policy_keeps_a_network_from_being_opened_and_from_being_changed(
    lone_user: User, git_checkout: Path
) -> None:
    policies = lone_user.substrate_home / "policies"
    policies.mkdir(parents=True)
    (policies / "host.yaml").write_text(POLICY)
    lone_user.up()
    with lone_user.client() as sub:
        with pytest.raises(PolicyDenied, match=r"Ask for a public name.*not-inside"):
            sub.world(project=git_checkout, network=["example.org", "host:5432"])
        assert sub.worlds() == []
        with sub.world(project=git_checkout) as world:
            with pytest.raises(PolicyDenied, match="not-inside"):
                world.update(network=["10.1.0.0/16"], labels={"a": "b"})
            assert (list(world.refresh().network), world.info.labels) == ([], {})
            # What the built-in policy asks about, its owner answers by asking for it.
            world.update(network=["example.org"])
            assert world.run("grep -c eth0 /proc/net/dev").stdout == "1\n"
            # The rules that a project brings along can only tighten.
            own = git_checkout / ".substrate"
            own.mkdir()
            (own / "policy.yaml").write_text("version: 1\ndefaults: {network: deny}\n")
            with pytest.raises(PolicyDenied, match="default"):
                world.update(network=["other.example"])
            world.update(network=["none"])
    assert decisions(lone_user) == [
        ("deny", "not-inside", "policy"),
        ("deny", "not-inside", "policy"),
        ("allow", "default", "owner"),
        ("deny", "default", "policy"),
    ]


def test_a_run_that_policy_keeps_offline_says_why_in_one_line(
    lone_user: User, git_checkout: Path
) -> None:
    policies = lone_user.substrate_home / "policies"
    policies.mkdir(parents=True)
    (policies / "host.yaml").write_text("version: 1\ndefaults: {network: ask}\n")
    done = lone_user.run("run", "--net", "example.org", "--", "true", cwd=git_checkout)
    assert done.code in (125, 126)
    assert "--net example.org" in done.error_line
    assert "approval" in done.error_line
    assert lone_user.run("run", "--", "/bin/true", cwd=git_checkout).code == 0
