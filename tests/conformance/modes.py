"""The backends and the modes in which they can run. A new one is a line in :data:`MODES`."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

import pytest

from tests.user_fixtures import rootless_user
from tests.users import User, kill_and_wait, new_user


@dataclass(frozen=True, slots=True)
class Mode:
    """A backend in one way of running it.

    Attributes:
        name: as the table names it.
        opened: a user whose host, on that backend, runs; it skips where there can be none.
        end_boxes: ends what keeps the boxes, as its crash would, from outside.
    """

    name: str
    opened: Callable[[], AbstractContextManager[User]]
    end_boxes: Callable[[User], None]


@contextlib.contextmanager
def _native_root() -> Iterator[User]:
    if os.geteuid() != 0:
        pytest.skip("not root")
    with new_user() as user:
        user.up()
        yield user


@contextlib.contextmanager
def _native_rootless() -> Iterator[User]:
    if os.geteuid() == 0:
        with rootless_user() as user:
            yield user
    else:
        with new_user() as user:
            user.up()
            yield user


def _kill_launcher(user: User) -> None:
    kill_and_wait(user.launcher_pid())


MODES = (
    Mode("native-root", _native_root, _kill_launcher),
    Mode("native-rootless", _native_rootless, _kill_launcher),
)
