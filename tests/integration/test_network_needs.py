"""A world with network rules on a host that lacks what enforces them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from substrate_sdk.errors import SubstrateError
from substrate_sdk.types import Limits
from tests.internet import FETCH, OTHER_V4, V4, make_internet
from tests.users import PYTHON, new_user

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(shutil.which("nft") is None, reason="nft is not installed (nftables)"),
    pytest.mark.skipif(shutil.which("pasta") is None, reason="pasta is not installed (passt)"),
]


def path_without(directory: Path, *names: str) -> tuple[tuple[str, str], ...]:
    """A search path with all programs of this one but some."""
    directory.mkdir()
    for part in os.environ["PATH"].split(os.pathsep):
        if os.path.isdir(part):
            for name in os.listdir(part):
                link = directory / name
                if name not in names and not link.is_symlink():
                    link.symlink_to(os.path.join(part, name))
    return (("PATH", str(directory)),)


@pytest.mark.parametrize(
    ("missing", "package"), [(("nft",), "nftables"), (("pasta", "slirp4netns"), "passt")]
)
def test_a_world_is_refused_with_the_fix_and_never_unfiltered(
    tmp_path: Path, git_checkout: Path, missing: tuple[str, ...], package: str
) -> None:
    with new_user(variables=path_without(tmp_path / "bin", *missing)) as user:
        done = user.run("run", "--net", "full", "--", "true", cwd=git_checkout)
        assert done.code == 125
        assert f"sudo apt-get install {package}" in done.err
        assert len(done.err.strip().splitlines()) == 1
        assert user.run("run", "--", "/bin/true", cwd=git_checkout).code == 0
        rows = user.run("doctor", "--json", cwd=git_checkout).json["capabilities"]
        assert [row["fix"] for row in rows if row["state"] == "missing" and package in row["fix"]]


def test_an_update_that_is_refused_changes_nothing(tmp_path: Path, git_checkout: Path) -> None:
    with new_user(variables=path_without(tmp_path / "bin", "nft")) as user:
        user.up()
        with user.client() as sub, sub.world(project=git_checkout) as world:
            with pytest.raises(SubstrateError, match="nftables"):
                world.update(limits=Limits(pids=4), network=["full"], labels={"a": "b"})
            info = world.refresh()
            assert (info.limits, list(info.network), info.labels) == (Limits(), [], {})
            many = "for i in 1 2 3 4 5 6 7 8; do sleep 30 & done && echo begun; kill $(jobs -p)"
            result = world.run(["/bin/bash", "-c", many])
            assert (result.stdout, list(result.blocked)) == ("begun\n", [])


@pytest.mark.skipif(shutil.which("slirp4netns") is None, reason="slirp4netns is not installed")
def test_slirp4netns_carries_packets_where_pasta_is_missing(
    tmp_path: Path, git_checkout: Path
) -> None:
    with make_internet() as internet:
        internet.name("site.example", V4)
        variables = (*path_without(tmp_path / "bin", "pasta"), ("SUBSTRATE_DNS", "9.9.9.9"))
        with new_user(internet.as_host, variables=variables) as user:
            command = (PYTHON, "-c", FETCH, "http://site.example/", f"http://{OTHER_V4}/")
            done = user.run(
                "run", "--json", "--net", "site.example", "--", *command, cwd=git_checkout
            )
            lines = done.json["stdout"].splitlines()
            assert lines[0] == f"200 {V4} /", done.json
            assert lines[1].startswith("error")
