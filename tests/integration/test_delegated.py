"""A user without privilege whom a part of cgroup version 2 was handed, as Delegate=yes does it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from substrate_sdk.types import Limits
from tests.leaks import cgroup2_mount
from tests.user_fixtures import UID, rootless_user
from tests.users import User

pytestmark = [pytest.mark.root]

MIB = 1 << 20
CONTROLLERS = ("memory", "cpu", "pids")
HOG = "import sys; kept = bytearray(int(sys.argv[1])); print(len(kept))"
_ENTER = 'echo $$ >"$0/cgroup.procs" && exec "$@"'


@pytest.fixture(scope="module")
def handed() -> Iterator[Path]:
    """A cgroup of the user's own, with the controllers that this machine has in version 2."""
    mount = cgroup2_mount()
    if mount is None:
        pytest.skip("cgroup version 2 is not mounted")
    for name in CONTROLLERS:
        with contextlib.suppress(OSError):  # it may be in version 1
            (mount / "cgroup.subtree_control").write_text(f"+{name}")
    made = mount / f"handed-{os.getpid()}"
    made.mkdir()
    for path in (made, *(made / f"cgroup.{name}" for name in ("procs", "threads"))):
        os.chown(path, UID, UID)
    os.chown(made / "cgroup.subtree_control", UID, UID)
    try:
        yield made
    finally:
        for directory, _, _ in os.walk(made, topdown=False):
            os.rmdir(directory)


@pytest.fixture(scope="module")
def someone(handed: Path) -> Iterator[User]:
    """A user whose host was started there."""
    with rootless_user(("sh", "-c", _ENTER, str(handed))) as made:
        yield made


def test_trees_of_processes_are_ended_and_stopped_by_the_kernel(someone: User) -> None:
    with someone.client() as sub:
        rows = {row.feature: row for row in sub.capabilities()}
        assert (rows["kill"].mode, rows["pause"].mode) == ("cgroup.kill", "cgroup.freeze")
        with sub.world() as world:
            world.pause()
            world.resume()
            assert world.run("setsid sleep 600 & echo done").stdout == "done\n"


def test_the_controllers_that_were_handed_over_bound_worlds(someone: User, handed: Path) -> None:
    if set(CONTROLLERS) - set((handed / "cgroup.controllers").read_text().split()):
        pytest.skip("this machine has its controllers in cgroup version 1")
    with someone.client() as sub:
        rows = {row.feature: row for row in sub.capabilities()}
        for name in CONTROLLERS:
            assert (rows[f"limits.{name}"].state, rows[f"limits.{name}"].mode[:9]) == (
                "works",
                "cgroup v2",
            )
        # Who was in it has made room: a cgroup has processes, or controllers for those below.
        assert (handed / "cgroup.procs").read_text() == ""
        inside = (handed / "substrate-host/cgroup.procs").read_text().split()
        assert str(someone.host_pid()) in inside
        with sub.world(limits=Limits(memory_bytes=64 * MIB, pids=20, cpus=0.5)) as world:
            hog = world.run(["python3", "-c", HOG, str(200 * MIB)])
            assert (hog.termination_reason, hog.signal) == ("OOM", "SIGKILL")
            many = world.run("for i in $(seq 40); do sleep 600 & done; wait")
            assert "pids" in {entry.rule for entry in many.blocked}
            world.update(limits=Limits(memory_bytes=512 * MIB))
            assert world.run(["python3", "-c", HOG, str(200 * MIB)]).exit_code == 0
