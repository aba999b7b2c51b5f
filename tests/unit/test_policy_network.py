"""Policy rules about what a world's network opens."""

from __future__ import annotations

import pytest

from substrate_services.broker.decide import StepRequest, decide
from substrate_services.broker.policy import BUILTIN_FILE, merge_layers
from substrate_services.broker.policy_file import Layer, parse_policy, read_policy_file


def decided(wanted: str, text: str, layer: Layer = "host") -> tuple[str, str]:
    read, problems = parse_policy(f"version: 1\n{text}".encode(), layer, "p.yaml")
    assert problems == []
    request = StepRequest(reach=frozenset(["network"]), network=tuple(wanted.split()))
    builtin, _ = read_policy_file(BUILTIN_FILE, "builtin")
    decision = decide(merge_layers([builtin, read]), request)
    return decision.action, decision.rule_id


@pytest.mark.parametrize(
    ("pattern", "wanted", "concerned"),
    [
        ("full", "full", True),
        ("full", "example.org", False),
        ("10.0.0.0/8", "full", True),
        ("host", "full", False),
        ("host", "host:5432", True),
        ("host:22", "host:5432", False),
        ("10.0.0.0/8", "10.1.0.0/16:443", True),
        ("10.1.0.0/16", "10.0.0.0/8", True),
        ("10.0.0.0/8:22", "10.1.0.0/16:443", False),
        ("10.0.0.0/8", "192.168.0.0/16", False),
        ("0.0.0.0/0", "[::/0]", False),
        ("full", "0.0.0.0/0", True),
        ("full", "[2000::/3]:443", True),
        ("full", "0.0.0.0/1 128.0.0.0/1", True),
        ("full", " ".join(f"{first}.0.0.0/8" for first in range(224)), True),
        ("full", "10.0.0.0/8 192.168.0.0/16", False),
        ("evil.example", "0.0.0.0/0:443", True),
        ("evil.example", "192.0.2.0/24", False),
        ("host", "0.0.0.0/0", False),
        ("*.example.org", "a.example.org", True),
        ("a.example.org", "*.example.org", True),
        ("*.example.org", "example.org", False),
        ("*.example.org", "*.b.example.org:443", True),
        ("example.org", "example.org.evil.net", False),
        ("*.npmjs.org", "@python @npm", True),
        ("@npm", "registry.npmjs.org", True),
        ("@npm", "registry.npmjs.org:80", False),
    ],
)
def test_what_restricts_counts_where_any_of_it_is_asked_for(
    pattern: str, wanted: str, concerned: bool
) -> None:
    rules = (
        f"rules: [{{action: deny, network: '{pattern}', id: kept}}]\ndefaults: {{network: allow}}"
    )
    assert decided(wanted, rules) == (("deny", "kept") if concerned else ("allow", "default"))


@pytest.mark.parametrize(
    ("wanted", "covered"),
    [
        ("@python", True),
        ("pypi.org:443 10.1.0.0/16", True),
        ("pypi.org", False),
        ("@python example.org", False),
        ("10.0.0.0/7", False),
        ("full", False),
    ],
)
def test_what_allows_lifts_the_default_where_nothing_else_is_asked_for(
    wanted: str, covered: bool
) -> None:
    rules = "rules: [{action: allow, network: ['@python', 10.0.0.0/8], id: may}]\n"
    assert decided(wanted, rules + "defaults: {network: deny}") == (
        ("allow", "may") if covered else ("deny", "default")
    )


def test_a_project_can_only_tighten() -> None:
    allow = "rules: [{action: allow, network: full, id: may}]\n"
    assert decided("full", allow, "project")[0] == "ask"
    assert (
        decided("full", "rules: [{action: deny, network: full, id: kept}]", "project")[1] == "kept"
    )
