"""Issue 4, done when 5: what network rules let a world reach, held against real servers."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from substrate_sdk import Substrate
from substrate_sdk.client.sync import World
from tests.internet import FETCH, V4, V6, Internet, make_internet
from tests.users import PYTHON, User, new_user

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(shutil.which("nft") is None, reason="nft is not installed (nftables)"),
    pytest.mark.skipif(shutil.which("pasta") is None, reason="pasta is not installed (passt)"),
]


@pytest.fixture(scope="module")
def internet() -> Iterator[Internet]:
    with make_internet() as made:
        yield made


@pytest.fixture(scope="module")
def online(internet: Internet) -> Iterator[User]:
    """A user whose host is on that internet."""
    with new_user(internet.as_host, variables=(("SUBSTRATE_DNS", "9.9.9.9"),)) as made:
        made.up()
        yield made


@pytest.fixture
def sub(online: User) -> Iterator[Substrate]:
    with online.client() as made:
        yield made


def fetch(world: World, *urls: str) -> list[str]:
    result = world.run([PYTHON, "-c", FETCH, *urls], timeout_s=30)
    assert result.exit_code == 0, result.stderr
    return result.stdout.splitlines()


def test_an_allowed_name_is_reached_and_others_are_not(
    sub: Substrate, internet: Internet, git_checkout: Path
) -> None:
    internet.name("site.example", V4)
    internet.name("other.example", V4)
    with sub.world(project=git_checkout, network=["site.example"]) as world:
        found = fetch(world, "http://site.example/a", "http://other.example/", f"http://{V6}/")
        print(world.run("cat /etc/resolv.conf").stdout)
    assert found[0] == f"200 {V4} /a"
    assert found[1].startswith("error"), found
