"""Limits of a world, from the SDK to the kernel and back into results; changing and pausing it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from substrate_sdk import errors
from substrate_sdk.client.sync import Substrate, World
from substrate_sdk.types import Limits, Result
from tests.users import User, eventually, kill_and_wait

MIB = 1 << 20
HOG = "import sys; kept = bytearray(int(sys.argv[1]))"


@pytest.fixture(autouse=True)
def _project(git_checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Worlds of these tests have a small project."""
    monkeypatch.chdir(git_checkout)


@pytest.fixture
def sub(user: User) -> Iterator[Substrate]:
    """A client of a host that can bound memory and processors."""
    with user.client() as client:
        states = {row.feature: row for row in client.capabilities()}
        for feature in ("limits.memory", "limits.cpu"):
            if states[feature].state != "works":
                pytest.skip(f"{feature}: {states[feature].mode}")
        yield client


def rules(result: Result) -> set[str]:
    """What of the limits the result says it met."""
    return {entry.rule for entry in result.blocked if entry.layer == "limits"}


def hog(world: World, size: int) -> Result:
    """Take so many bytes."""
    return world.run(["python3", "-c", HOG, str(size)])


@pytest.mark.root
def test_want_of_memory_is_a_reason_of_its_own(sub: Substrate) -> None:
    with sub.world(limits=Limits(memory_bytes=64 * MIB)) as world:
        assert world.info.limits == Limits(memory_bytes=64 * MIB)
        killed = hog(world, 200 * MIB)
        assert (killed.termination_reason, killed.exit_code, killed.signal) == (
            "OOM",
            None,
            "SIGKILL",
        )
        (blocked,) = [entry for entry in killed.blocked if entry.layer == "limits"]
        assert (blocked.rule, "--memory" in blocked.fix) == ("memory_bytes", True)
        through_a_shell = world.run(f"python3 -c '{HOG}' {200 * MIB}; exit $?")
        assert (through_a_shell.termination_reason, through_a_shell.exit_code) == ("OOM", 137)
        went_on = world.run(f"python3 -c '{HOG}' {200 * MIB} || echo went on")
        assert (went_on.termination_reason, went_on.exit_code) == ("EXITED", 0)
        assert rules(went_on) == {"memory_bytes"}
        with world.shell() as shell:
            in_shell = shell.run(f"python3 -c '{HOG}' {200 * MIB}")
            assert (in_shell.termination_reason, in_shell.exit_code) == ("OOM", 137)
            assert shell.run("true").termination_reason == "EXITED"
        plain = world.run("kill -9 $$")
        assert (plain.termination_reason, rules(plain)) == ("SIGNALED", set())


@pytest.mark.root
def test_processes_output_and_time_are_bounded_and_said(sub: Substrate) -> None:
    with sub.world(limits=Limits(pids=30, cpus=1.5)) as world:
        bomb = world.run(["python3", "-c", "import os\nwhile True: os.fork()"], timeout_s=1)
        assert "pids" in rules(bomb)
    with sub.world(limits=Limits(output_bytes=10_000, runtime_s=1.5)) as world:
        flood = world.run("head -c 100000 /dev/zero; head -c 100000 /dev/zero >&2")
        assert flood.truncated
        assert len(flood.stdout_bytes) + len(flood.stderr_bytes) == 10_000
        assert rules(flood) == {"output_bytes"}
        long = world.run("sleep 60", timeout_s=30)
        assert (long.termination_reason, rules(long)) == ("LIMIT", {"runtime"})
        asked = world.run("sleep 60", timeout_s=0.2)
        assert (asked.termination_reason, rules(asked)) == ("TIMEOUT", set())


@pytest.mark.root
def test_limits_are_a_part_of_the_action_and_of_what_is_made_from_it(
    sub: Substrate, user: User
) -> None:
    limits = Limits(memory_bytes=128 * MIB, pids=100)
    with sub.world(limits=limits) as world:
        result = world.run("true")
        lines = [line for line in user.lines() if line.get("span_id") == result.span_id]
        (complete,) = [line for line in lines if line["event_type"] == "command_complete"]
        assert complete["action"]["limits"] == {"memory_bytes": 128 * MIB, "pids": 100}
        with world.fork(at=result) as fork:
            assert fork.refresh().limits == limits
        report = sub.replay(result)
        assert report.verdict == "identical"


@pytest.mark.root
def test_bad_limits_are_refused_in_one_line(sub: Substrate) -> None:
    for limits, field in (
        (Limits(memory_bytes=1), "limits.memory_bytes"),
        (Limits(cpus=0.001), "limits.cpus"),
        (Limits(pids=1), "limits.pids"),
        (Limits(inodes=3), "limits.inodes"),
        (Limits(runtime_s=1e12), "limits.runtime"),
    ):
        with pytest.raises(errors.InvalidArgument, match=field) as refused:
            sub.world(limits=limits)
        assert "\n" not in str(refused.value)
    assert sub.worlds() == []


@pytest.mark.root
def test_a_living_world_is_changed(sub: Substrate, user: User) -> None:
    with sub.world(limits=Limits(memory_bytes=48 * MIB)) as world:
        assert hog(world, 100 * MIB).termination_reason == "OOM"
        info = world.update(limits=Limits(memory_bytes=256 * MIB), labels={"a": "b"}, idle_s=77)
        assert (info.limits.memory_bytes, info.labels, info.idle_s) == (256 * MIB, {"a": "b"}, 77.0)
        assert hog(world, 100 * MIB).ok
        with pytest.raises(errors.InvalidArgument, match=r"world\.limits\.disk_bytes"):
            world.update(limits=Limits(disk_bytes=64 * MIB))
        assert world.refresh().limits.memory_bytes == 256 * MIB
        (told,) = [line for line in user.lines() if line["event_type"] == "world_updated"]
        assert told["detail"] == {
            "limits": {"memory_bytes": 256 * MIB},
            "labels": {"a": "b"},
            "idle_timeout_s": 77.0,
        }


def test_worlds_whose_time_passed_without_a_host_go_with_the_next(lone_user: User) -> None:
    lone_user.up()
    with lone_user.client() as sub:
        world_id = sub.world(keep=True, ttl_s=1.5).world_id
        stays = sub.world(keep=True).world_id
        expires = time.monotonic() + 1.5
    kill_and_wait(lone_user.host_pid())
    while time.monotonic() < expires:
        time.sleep(0.05)  # nobody is there who could tell
    lone_user.up()
    with lone_user.client() as sub:
        left = [world.world_id for world in sub.worlds()]
        assert world_id not in left
        assert left == [stays]
        sub.remove_world(stays)


def test_pausing_stops_everything_until_resumed(user: User) -> None:
    with user.client() as sub, sub.world() as world:
        assert world.run("touch /tmp/ticks").ok
        ticks = world.exec("while :; do date +%s%N >> /tmp/ticks; done", timeout_s=300)
        eventually(lambda: world.files.read("/tmp/ticks"), "it ticks")
        world.pause()
        world.pause()
        assert world.refresh().state == "paused"
        for blocked in (lambda: world.run("true"), lambda: world.files.read("/tmp/ticks")):
            with pytest.raises(errors.WorldPaused, match="resume"):
                blocked()
        world.resume()
        assert world.refresh().state == "ready"
        size = len(world.files.read("/tmp/ticks"))
        eventually(lambda: len(world.files.read("/tmp/ticks")) > size, "it ticks on")
        ticks.kill()
        ticks.wait()


def test_a_paused_world_survives_its_host_and_can_be_removed(lone_user: User) -> None:
    lone_user.up()
    with lone_user.client() as sub:
        world = sub.world(keep=True)
        running = world.exec("sleep 1000", timeout_s=900)
        world.pause()
        world_id, exec_id = world.world_id, running.exec_id
    kill_and_wait(lone_user.host_pid())
    lone_user.up()
    with lone_user.client() as sub:
        world = sub.connect(world_id)
        assert world.info.state == "paused"
        with pytest.raises(errors.WorldPaused):
            world.run("true")
        world.resume()
        assert world.run("true").ok
        world.pause()
        world.remove()
        spans = list(sub.spans(world_id=world_id))
        (span,) = [span for span in spans if span.result.exec_id == exec_id]
        assert span.result.termination_reason == "WORLD_REMOVED"


@pytest.mark.root
def test_the_disk_of_a_world_ends_where_its_limit_is(sub: Substrate) -> None:
    before = loops()
    with sub.world(limits=Limits(disk_bytes=32 * MIB, inodes=2_000)) as world:
        assert loops() - before
        small = world.run("echo small > ~/small && cat ~/small")
        assert (small.stdout, rules(small)) == ("small\n", set())
        assert [str(c.path) for c in small.changes if str(c.path).endswith("/small")]
        filler = world.run("dd if=/dev/zero of=/tmp/big bs=1M count=100 2>&1 | tail -1")
        assert "disk_bytes" in rules(filler)
        size = int(world.run("stat -c %s /tmp/big").stdout)
        assert 24 * MIB < size <= 33 * MIB
        world.run("rm /tmp/big")
        assert world.run("dd if=/dev/zero of=/tmp/again bs=1M count=20 2>/dev/null").ok
        names = world.run("rm /tmp/again; i=0; while : > ~/f$i; do i=$((i+1)); done 2>/dev/null")
        assert "inodes" in rules(names)
        world.run("rm -rf ~/f*")
        assert world.rollback(to=small) == 1
        assert world.run("cat ~/small").stdout == "small\n"
        again = world.run("dd if=/dev/zero of=/tmp/big bs=1M count=100 2>/dev/null")
        assert "disk_bytes" in rules(again)
        assert again.exit_code != 0
    assert loops() == before


def loops() -> set[str]:
    """Loop devices in use."""
    return {path.parent.parent.name for path in Path("/sys/block").glob("loop*/loop/backing_file")}


@pytest.mark.root
def test_the_command_line_takes_limits(user: User) -> None:
    here = Path.cwd()
    done = user.run("run", "--json", "--memory", "64M", "--pids", "50", "--", "true", cwd=here)
    assert done.code == 0, done.err
    made = user.run("world", "create", "--json", "--memory", "64M", "--cpus", "0.5", cwd=here)
    limits, world_id = made.json["limits"], made.json["world_id"]
    assert (limits["memory_bytes"], limits["cpus"]) == (64 * MIB, 0.5)
    assert user.run("world", "pause", world_id, cwd=here).code == 0
    listed = user.run("world", "list", "--json", cwd=here).json["worlds"]
    assert [world["state"] for world in listed] == ["paused"]
    assert user.run("world", "resume", world_id, cwd=here).code == 0
    change = ("--memory", "128M", "--ttl", "never", world_id)
    limits = user.run("world", "update", "--json", *change, cwd=here).json["limits"]
    assert (limits["memory_bytes"], limits["cpus"]) == (128 * MIB, 0.5)
    bad = user.run("run", "--memory", "lots", "--", "true", cwd=here)
    assert bad.code == 2
    assert "512M" in bad.error_line
    assert user.run("world", "rm", world_id, cwd=here).code == 0
