"""Fixtures of an internet in namespaces of its own; tests/internet.py makes it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.internet import DNS, Internet, make_internet
from tests.users import User, new_user


@pytest.fixture(scope="module")
def internet() -> Iterator[Internet]:
    with make_internet() as made:
        yield made


@pytest.fixture(scope="module")
def online(internet: Internet) -> Iterator[User]:
    """A user whose host is on that internet."""
    with new_user(internet.as_host, variables=(("SUBSTRATE_DNS", DNS),)) as made:
        made.up()
        # One world that stays, so that the helper is nobody's leak and is started once.
        made.run("world", "create", "--net", "stays.example", cwd=Path("/"))
        yield made
