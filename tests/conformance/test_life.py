"""Limits, time, pausing, crashes and the end of worlds."""

from __future__ import annotations

from pathlib import Path

import pytest

from substrate_sdk import World
from substrate_sdk.errors import InvalidArgument, SubstrateError, WorldNotFound, WorldPaused
from substrate_sdk.types import Limits
from tests.conformance.clauses import Place, clause, rules, said
from tests.conformance.modes import Mode
from tests.leaks import LeakChecker, processes
from tests.users import eventually, kill_and_wait, read_some

MIB = 1 << 20
HOG = "import sys; kept = bytearray(int(sys.argv[1]))"


def running(mark: str) -> bool:
    """Whether a process of this machine has the mark in its command line."""
    for pid in processes():
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if mark.encode() in words:
            return True
    return False


@clause(
    "limits: want of memory has a reason of its own, and may be raised", needs=("limits.memory",)
)
def test_memory(place: Place, project: Path) -> None:
    hog = [place.python, "-c", HOG, str(200 * MIB)]
    with place.sub.world(project=project, limits=Limits(memory_bytes=64 * MIB)) as world:
        killed = world.run(hog)
        assert (killed.termination_reason, rules(killed)) == ("OOM", {"memory_bytes"})
        world.update(limits=Limits(memory_bytes=512 * MIB))
        assert world.run(hog).ok


@clause("limits: processes are bounded")
def test_pids(place: Place, project: Path) -> None:
    forks = (
        "import os, signal, sys\n"
        "for n in range(9999):\n"
        "  try: pid = os.fork()\n"
        "  except OSError as error: os.write(1, error.strerror.encode()); break\n"
        "  if not pid: signal.pause()\n"
        "os.killpg(0, signal.SIGKILL)"
    )
    with place.sub.world(project=project, limits=Limits(pids=30)) as world:
        result = world.run([place.python, "-c", forks], timeout_s=20)
        assert result.stdout == "Resource temporarily unavailable"
        if place.capabilities["limits.pids"].state == "works":
            assert "pids" in rules(result)


@clause("limits: disk ends where its limit is", needs=("limits.disk",))
def test_disk(place: Place, project: Path) -> None:
    with place.sub.world(project=project, limits=Limits(disk_bytes=32 * MIB)) as world:
        result = world.run("dd if=/dev/zero of=/tmp/big bs=1M count=64")
        assert (result.ok, "disk_bytes" in rules(result)) == (False, True)


@clause("limits: output beyond its limit is cut, and running time ends the command")
def test_output_and_runtime(place: Place, project: Path) -> None:
    limits = Limits(output_bytes=10_000, runtime_s=1)
    with place.sub.world(project=project, limits=limits) as world:
        flood = world.run("head -c 100000 /dev/zero")
        assert (flood.truncated, len(flood.stdout_bytes)) == (True, 10_000)
        assert rules(flood) == {"output_bytes"}
        long = world.run("sleep 1000")
        assert (long.termination_reason, rules(long)) == ("LIMIT", {"runtime"})


@clause("limits: one that the host cannot enforce, or that makes no sense, is refused")
def test_refused(place: Place, project: Path) -> None:
    with pytest.raises(InvalidArgument, match="memory_bytes"):
        place.sub.world(project=project, limits=Limits(memory_bytes=1))
    for feature, limits in (
        ("limits.memory", Limits(memory_bytes=64 * MIB)),
        ("limits.disk", Limits(disk_bytes=64 * MIB)),
    ):
        if place.capabilities[feature].state == "missing":
            with pytest.raises(SubstrateError) as refused:
                place.sub.world(project=project, limits=limits)
            assert refused.value.reason == "LIMIT_UNAVAILABLE"


@clause("life: a world goes when its time has come, and is told of until then")
def test_time(place: Place, project: Path) -> None:
    world = place.sub.world(project=project, keep=True, ttl_s=300, labels={"a": "b"})
    info = next(info for info in place.sub.worlds() if info.world_id == world.world_id)
    assert (info.state, info.labels, info.project) == ("ready", {"a": "b"}, bytes(project))
    world.update(ttl_s=0.1)
    eventually(
        lambda: world.world_id not in {info.world_id for info in place.sub.worlds()},
        "the world went",
        timeout_s=20,
    )


@clause("life: paused, nothing runs or begins; resumed, it goes on", needs=("pause",))
def test_pause(world: World) -> None:
    ticks = world.exec("while :; do echo x >> /tmp/ticks; done")
    eventually(lambda: world.files.exists("/tmp/ticks"), "it ticks")
    world.pause()
    assert world.refresh().state == "paused"
    with pytest.raises(WorldPaused):
        world.run("true")
    world.resume()
    size = world.files.stat("/tmp/ticks").size_bytes
    eventually(lambda: world.files.stat("/tmp/ticks").size_bytes > size, "it ticks on")
    ticks.kill()
    assert ticks.wait(20).termination_reason == "KILLED_BY_USER"


@clause("life: a removed world leaves no process, and is not found")
def test_removal(place: Place, project: Path) -> None:
    world = place.sub.world(project=project)
    said(world, "setsid sleep 86397 > /dev/null 2>&1 &")
    assert running("86397")
    world.remove()
    world.remove()
    assert not running("86397")
    with pytest.raises(WorldNotFound):
        place.sub.connect(world.world_id)


@clause("recovery: worlds and commands outlive the host process; the next adopts them")
@pytest.mark.timeout(90)
def test_recovery(mode: Mode, project: Path, leak_check: LeakChecker) -> None:
    with mode.opened() as user:
        leak_check.add_directory(user.home)
        with user.client() as sub:
            world = sub.world(project=project, cwd=project, keep=True)
            proc = world.exec("echo up; read x; echo got $x > made; echo got $x")
            assert read_some(proc) == b"up\n"
        kill_and_wait(user.host_pid())
        user.up()
        with user.client() as sub:
            world = sub.connect(world.world_id)
            proc = world.exec("true", exec_id=proc.exec_id)
            proc.feed(b"it\n")
            result = proc.wait(20)
            assert (result.exit_code, result.stdout) == (0, "up\ngot it\n")
            assert [Path(c.path).name for c in result.changes] == ["made"]
            lost = world.exec("echo up; sleep 86396")
            assert read_some(lost) == b"up\n"
            mode.end_boxes(user)
            assert lost.wait(20).termination_reason == "AGENT_LOST"
            assert not running("86396")
            # What it was given is on record, and new worlds can be made.
            with sub.fork(result) as fork:
                assert said(fork, "cat made") == "got it\n"
