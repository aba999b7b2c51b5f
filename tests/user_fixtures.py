"""Fixtures of users, for the layers of tests that drive the whole; tests/users.py is the rest."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.leaks import LeakChecker
from tests.users import User, new_user


@pytest.fixture(scope="module")
def user() -> Iterator[User]:
    """A user whose host runs and is shared by the tests of a module."""
    with new_user() as made:
        # Started before any test's leak check looks, so that it is nobody's leak.
        made.up()
        yield made


@pytest.fixture
def lone_user(leak_check: LeakChecker | None) -> Iterator[User]:
    """A user of one test only, whose host does not run yet."""
    with new_user() as made:
        if leak_check is not None:
            leak_check.add_directory(made.home)
        yield made
