"""Limits of a box, enforced by the kernel: memory, processor, processes; and freezing."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from substrate_services.world.backends.base import BackendError, BoxLimits
from substrate_services.world.backends.native import NativeBackend
from substrate_services.world.init_client import Phase, Reason
from tests.native.boxes import Guest, guest, launcher

pytestmark = [pytest.mark.root]

HOG = "import sys; kept = bytearray(int(sys.argv[1])); print(len(kept))"


def needs(backend: NativeBackend, *names: str) -> None:
    """Skip where this machine cannot enforce a limit at all."""
    found = backend.capabilities().limits
    missing = [name for name in names if found.get(name, "none") == "none"]
    if missing:
        pytest.skip(f"no cgroup controller here: {', '.join(missing)}")


def test_kills_what_takes_too_much_memory_and_says_that_it_did(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with launcher(tmp_path) as backend:
            needs(backend, "memory")
            async with guest(
                tmp_path, backend=backend, limits=BoxLimits(memory_bytes=64 << 20)
            ) as box:
                hog = await box.run("python3", "-c", HOG, str(200 << 20))
                assert (hog.state.reason, hog.state.signal) == (Reason.SIGNALED, signal.SIGKILL)
                assert hog.state.oom_kills == 1
                child = await box.sh(f"python3 -c '{HOG}' {200 << 20}; echo then $?")
                assert (child.code, child.out) == (0, b"then 137\n")
                assert child.state.oom_kills == 1
                fits = await box.run("python3", "-c", HOG, str(20 << 20))
                assert (fits.code, fits.state.oom_kills) == (0, 0)

    asyncio.run(scenario())


def test_counts_memory_kills_for_the_exec_that_they_hit(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with launcher(tmp_path) as backend:
            needs(backend, "memory")
            async with guest(
                tmp_path, backend=backend, limits=BoxLimits(memory_bytes=96 << 20)
            ) as box:
                beside = await box.start(box.command("cat", exec_id="beside", stdin=True))
                hog = await box.run("python3", "-c", HOG, str(300 << 20))
                await box.client.write_stdin("beside", b"", offset=0, eof=True)
                quiet = await box.end(beside)
                assert hog.state.oom_kills == 1
                assert (quiet.code, quiet.state.oom_kills) == (0, 0)

    asyncio.run(scenario())


def test_keeps_the_init_where_many_small_processes_take_all_memory(tmp_path: Path) -> None:
    """None of them is larger than the init: what is killed must be below the limit, not largest."""

    async def scenario() -> None:
        async with launcher(tmp_path) as backend:
            needs(backend, "memory", "pids")
            limits = BoxLimits(memory_bytes=8 << 20, pids=2_000)
            async with guest(tmp_path, backend=backend, limits=limits) as box:
                script = "while :; do sleep 1000 & done 2>/dev/null"
                await box.sh(script, timeout_s=20.0, uid=1000)
                after = await box.sh("echo alive")
                assert after.out == b"alive\n"

    asyncio.run(scenario())


def test_refuses_processes_beyond_the_limit_and_counts_them(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with launcher(tmp_path) as backend:
            needs(backend, "pids")
            async with guest(tmp_path, backend=backend, limits=BoxLimits(pids=20)) as box:
                program = (
                    "import os, signal\n"
                    "made = []\n"
                    "try:\n"
                    "    while len(made) < 100:\n"
                    "        pid = os.fork()\n"
                    "        if not pid: signal.pause()\n"
                    "        made.append(pid)\n"
                    "except BlockingIOError: print(len(made))\n"
                    "for pid in made: os.kill(pid, 9); os.wait()\n"
                )
                forks = await box.run("python3", "-c", program)
                assert forks.out == b"19\n"
                assert forks.state.pids_refused >= 1
                quiet = await box.sh("true")
                assert quiet.state.pids_refused == 0

    asyncio.run(scenario())


def test_holds_a_world_to_its_share_of_a_processor(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with launcher(tmp_path) as backend:
            needs(backend, "cpu")
            async with guest(tmp_path, backend=backend, limits=BoxLimits(cpus=0.2)) as box:
                # Without the interpreter's start, which takes a slow machine a second.
                burn = (
                    "import time\n"
                    "end, before = time.monotonic() + 1, time.process_time()\n"
                    "while time.monotonic() < end: pass\n"
                    "print(time.process_time() - before)\n"
                )
                used_s = float((await box.run("python3", "-c", burn)).out)
                # A fifth, and two periods of 100 ms at the ends.
                assert used_s < 0.45

    asyncio.run(scenario())


def test_refuses_a_limit_of_memory_below_what_is_used_and_ends_nobody(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with launcher(tmp_path) as backend:
            needs(backend, "memory")
            async with guest(tmp_path, backend=backend) as box:
                hold = f"kept = b'x' * {100 << 20}; print(1, flush=True); input()"
                command = box.command("python3", "-c", hold, exec_id="holds", stdin=True)
                holds = await box.start(command)
                await box.until("holds", b"1\n")
                with pytest.raises(BackendError, match="uses more than this limit of memory"):
                    await backend.limit("wld_test", BoxLimits(memory_bytes=32 << 20))
                await backend.limit("wld_test", BoxLimits(memory_bytes=400 << 20))
                await box.client.write_stdin("holds", b"\n", offset=0, eof=True)
                ended = await box.end(holds)
                assert (ended.code, ended.state.oom_kills) == (0, 0)

    asyncio.run(scenario())


def test_changes_the_limits_of_a_living_box(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with launcher(tmp_path) as backend:
            needs(backend, "memory")
            async with guest(
                tmp_path, backend=backend, limits=BoxLimits(memory_bytes=48 << 20)
            ) as box:
                first = await box.run("python3", "-c", HOG, str(100 << 20))
                await backend.limit("wld_test", BoxLimits(memory_bytes=256 << 20))
                second = await box.run("python3", "-c", HOG, str(100 << 20))
                await backend.limit("wld_test", BoxLimits())
                third = await box.run("python3", "-c", HOG, str(300 << 20))
                assert [first.state.oom_kills, second.code, third.code] == [1, 0, 0]
                with pytest.raises(BackendError, match="wld_other"):
                    await backend.limit("wld_other", BoxLimits(memory_bytes=1 << 30))

    asyncio.run(scenario())


def test_freezes_everything_and_lets_it_go_on(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with guest(tmp_path) as box:
            ticking = "n=0; while :; do n=$((n+1)); echo $n; done"
            started = await box.start(box.command("sh", "-c", ticking, timeout_s=600.0))
            await box.until(started.exec_id, b"1000\n")
            await box.client.freeze(frozen=True)
            await box.client.freeze(frozen=True)
            before = processor_time(box)
            await asyncio.sleep(0.2)  # nothing can be waited for: nothing is to happen
            assert processor_time(box) == before
            await box.client.freeze(frozen=False)
            await box.until(started.exec_id, b"1000\n")
            mark = box.log(started.exec_id).stat().st_size
            async for frame in box.follow(started.exec_id).frames():
                if frame.end > mark:
                    break
            await box.client.signal(started.exec_id, signal.SIGKILL)
            await box.end(started)

    asyncio.run(scenario())


def test_a_frozen_execs_time_does_not_run(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with guest(tmp_path) as box:
            started = await box.start(box.command("sleep", "100", timeout_s=0.5))
            await box.client.freeze(frozen=True)
            frozen_s = 1.0
            await asyncio.sleep(frozen_s)
            (state,) = await box.client.status()
            assert state.phase is Phase.RUNNING
            await box.client.freeze(frozen=False)
            ended = await box.end(started)
            assert ended.state.reason is Reason.TIMEOUT
            lived_s = (ended.state.end_mono_ns - ended.state.start_mono_ns) / 1e9
            assert lived_s >= frozen_s + 0.4

    asyncio.run(scenario())


def test_a_frozen_box_can_be_removed(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with launcher(tmp_path) as backend, guest(tmp_path, backend=backend) as box:
            await box.start(box.command("sleep", "1000"))
            await box.client.freeze(frozen=True)
            async with asyncio.timeout(5):
                await backend.remove("wld_test")

    asyncio.run(scenario())


def test_the_worlds_root_cannot_offer_its_init_to_the_kernel(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with guest(tmp_path) as box:
            script = (
                "for f in oom_score_adj task/1/oom_score_adj; do"
                " echo 1000 > /proc/1/$f && echo written; done 2>/dev/null; id -u"
            )
            tried = await box.sh(script, uid=0, gid=0)
            assert tried.out == b"0\n"
            assert score_of(box.box.init_pid) == score_of(os.getpid())

    asyncio.run(scenario())


def score_of(pid: int) -> int:
    """How gladly the kernel would end a process for want of memory."""
    return int(Path(f"/proc/{pid}/oom_score_adj").read_text())


def processor_time(box: Guest) -> int:
    """Ticks that the processes of execs have used."""
    total = 0
    for directory in os.listdir("/proc"):
        if directory.isdigit():
            try:
                stat = Path("/proc", directory, "stat").read_bytes()
                if os.readlink(f"/proc/{directory}/ns/pid") != os.readlink(
                    f"/proc/{box.box.init_pid}/ns/pid"
                ):
                    continue
            except OSError:
                continue
            if int(directory) != box.box.init_pid:
                fields = stat[stat.rindex(b")") + 2 :].split()
                total += int(fields[11]) + int(fields[12])
    return total
