"""Helpers that end just after their command do not make its coverage partial."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from substrate_sdk.client.sync import World
from tests.users import User

_POOL = """
import multiprocessing
from multiprocessing import shared_memory

if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    block = shared_memory.SharedMemory(create=True, size=64)  # starts the resource tracker
    with multiprocessing.Pool(2) as pool:
        print(sum(pool.map(abs, range(-50, 50))))
        pool.close()  # leaving the block alone would kill them, maybe amid a record
        pool.join()
    block.close()
    block.unlink()
"""


@pytest.fixture
def world(user: User, git_checkout: Path) -> Iterator[World]:
    (git_checkout / "pool.py").write_text(_POOL)
    with user.client() as sub, sub.world(project=git_checkout, cwd=git_checkout) as made:
        yield made


def _python() -> str:
    return "/usr/bin/python3"


def test_a_pool_of_processes_is_seen_in_full(world: World) -> None:
    for _ in range(3):
        result = world.run([_python(), "pool.py"])
        assert (result.exit_code, result.stdout) == (0, "2500\n"), result.stderr
        assert result.coverage.state == "full", result.coverage.reasons


def test_what_lingers_for_some_milliseconds_is_waited_for(world: World) -> None:
    result = world.run("( exec sleep 0.01 ) & exit 3")
    assert result.exit_code == 3
    assert result.coverage.state == "full", result.coverage.reasons


def test_what_stays_in_the_background_is_told(world: World) -> None:
    result = world.run("sleep 60 >/dev/null 2>&1 & echo begun")
    assert result.stdout == "begun\n"
    assert "1 processes went on after the command ended" in result.coverage.reasons
