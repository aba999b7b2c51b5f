"""The kernel's ledger: what the launcher writes down of a world's processes and segments."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from substrate_services.journal.schema import LedgerSource
from substrate_services.world.backends.base import BackendError
from substrate_services.world.wire import LauncherType, string
from tests.native.boxes import Guest, box_spec, guest, launcher, let_go, make_backend, talk
from tests.native.ledgers import Kind, Ledger, read_ledger

pytestmark = pytest.mark.root


async def _ledger(box: Guest, from_ns: int = 0) -> Ledger:
    await box.backend.sync_ledger(box.box.world_id, from_ns)
    return read_ledger(box.box.ledger_fd)


def _sources() -> list[LedgerSource]:
    return ["bpf", "proc_connector"]


def _need(box: Guest, source: LedgerSource) -> None:
    if box.backend.capabilities().ledger != source:
        pytest.skip(f"no {source} here: {box.backend.capabilities().ledger_problem}")


@pytest.mark.parametrize("source", _sources())
def test_each_process_is_told_with_parent_program_and_end(
    source: LedgerSource, tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with (
            launcher(tmp_path, ledger=source) as backend,
            guest(tmp_path, backend=backend) as box,
        ):
            _need(box, source)
            done = await box.sh("(sleep 0.05; exit 3) & wait; sleep 5 & kill -9 $!; exec sleep 0.1")
            ledger = await _ledger(box)
            assert ledger.source == (1 if source == "bpf" else 2)
            namespace = os.stat(f"/proc/{box.box.init_pid}/ns/pid").st_ino
            assert ledger.pid_namespace == namespace
            root = done.started.pid
            forks = {entry.pid: entry.parent for entry in ledger.of(Kind.FORK)}
            assert forks[root] == 1
            sub, killed = (pid for pid, parent in forks.items() if parent == root)
            ends = {entry.pid: entry.status for entry in ledger.of(Kind.EXIT)}
            assert ends[root] == 0
            assert os.waitstatus_to_exitcode(ends[sub]) == 3
            assert os.waitstatus_to_exitcode(ends[killed]) == -signal.SIGKILL
            names = [entry.name for entry in ledger.of(Kind.EXEC) if entry.pid == root]
            shell, sleep = (os.path.basename(name) for name in names)
            assert sleep == b"sleep"
            assert shell in (b"sh", b"dash")
            times = [entry.time_ns for entry in ledger.entries]
            assert max(times) < time.clock_gettime_ns(time.CLOCK_MONOTONIC)

    asyncio.run(scenario())


_SHARING = """
import os
os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0)
if os.fork() == 0:
    os._exit(0)
os.wait()
"""


def test_children_on_their_parents_memory_are_told_apart(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with (
            launcher(tmp_path, ledger="bpf") as backend,
            guest(tmp_path, backend=backend) as box,
        ):
            _need(box, "bpf")
            (tmp_path / "sharing.py").write_text(_SHARING)
            done = await box.sh(f"exec /usr/bin/python3 -S {tmp_path}/sharing.py")
            ledger = await _ledger(box)
            root = done.started.pid
            told = [entry.flags for entry in ledger.of(Kind.FORK) if entry.parent == root]
            assert told == [2, 4]  # SUB_LEDGER_SHARED, SUB_LEDGER_SEPARATE

    asyncio.run(scenario())


def test_threads_are_left_out_and_a_group_ends_once(tmp_path: Path) -> None:
    script = (
        "import threading\n"
        "threads = [threading.Thread(target=lambda: None) for _ in range(50)]\n"
        "[t.start() for t in threads]; [t.join() for t in threads]\n"
    )

    async def scenario() -> None:
        async with guest(tmp_path) as box:
            _need(box, "bpf")
            done = await box.run("python3", "-c", script)
            assert done.code == 0, done.err
            ledger = await _ledger(box)
            assert [entry.pid for entry in ledger.of(Kind.FORK)] == [done.started.pid]
            assert [e.pid for e in ledger.of(Kind.EXIT)] == [done.started.pid]

    asyncio.run(scenario())


def test_long_paths_keep_their_end(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with guest(tmp_path) as box:
            _need(box, "bpf")
            directory = "/tmp/" + "d" * 200
            await box.sh(f"mkdir -p {directory}; cp /bin/true {directory}/mine; {directory}/mine")
            ledger = await _ledger(box)
            (entry,) = [e for e in ledger.of(Kind.EXEC) if e.name.endswith(b"/mine")]
            assert entry.cut
            assert entry.name == f"{directory}/mine".encode()[-75:]

    asyncio.run(scenario())


def test_what_another_world_or_the_host_does_is_not_told(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with launcher(tmp_path) as backend, guest(tmp_path, backend=backend) as one:
            _need(one, "bpf")
            box = await backend.create(box_spec(tmp_path, "wld_other"))
            other = talk(backend, box, tmp_path)
            await other.client.connect()
            await other.sh("sleep 0.01; sleep 0.01")
            await asyncio.to_thread(subprocess.run, ["true"], check=True)
            quiet, busy = await _ledger(one), await _ledger(other)
            assert [e.comm for e in quiet.of(Kind.EXEC)] == [b"memfd:subst"]
            assert quiet.of(Kind.FORK) == []
            assert len(busy.of(Kind.FORK)) == 3
            let_go(other)

    asyncio.run(scenario())


@pytest.mark.parametrize("source", _sources())
def test_a_burst_of_forks_is_kept_or_its_losses_are_counted(
    source: LedgerSource, tmp_path: Path
) -> None:
    script = (
        "import os\n"
        "for _ in range(5000):\n"
        "    pid = os.fork()\n"
        "    if not pid: os._exit(7)\n"
        "    os.waitpid(pid, 0)\n"
    )

    async def scenario() -> None:
        async with (
            launcher(tmp_path, ledger=source) as backend,
            guest(tmp_path, backend=backend) as box,
        ):
            _need(box, source)
            done = await box.run("python3", "-S", "-c", script)
            assert done.code == 0, done.err
            ledger = await _ledger(box)
            lost = sum(entry.value for entry in ledger.of(Kind.LOST))
            told = len(ledger.of(Kind.FORK)) + len(ledger.of(Kind.EXIT))
            if source == "bpf":
                assert told + lost == 2 * 5001
                assert lost == 0
            else:
                assert told == 2 * 5001 or lost

    asyncio.run(scenario())


def test_a_storm_of_forks_does_not_hold_up_the_launcher(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with launcher(tmp_path) as backend, guest(tmp_path, backend=backend) as box:
            _need(box, "bpf")
            # Not without bound: what is looked at is the ledger, not a machine without a processor.
            bomb = "import os\nfor _ in range(4): os.fork()\n"
            bomb += "while True:\n  p = os.fork()\n  os.waitpid(p, 0) if p else os._exit(0)\n"
            start = box.command("python3", "-S", "-c", bomb)
            await box.start(start)
            async with asyncio.timeout(60):
                await asyncio.sleep(1)  # it is the load that is wanted, not an event
                made = await backend.create(box_spec(tmp_path, "wld_beside"))
                os.close(made.channel_fd)
                made.close()
                await backend.remove("wld_beside")
                ledger = await _ledger(box)
                assert ledger.of(Kind.FORK)
                await backend.remove("wld_test")

    asyncio.run(scenario())


def test_what_nobody_needs_is_forgotten_and_what_is_needed_stays(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with guest(tmp_path) as box:
            _need(box, "bpf")
            await box.run("true")
            middle = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
            second = await box.run("true")
            ledger = await _ledger(box, middle)
            assert ledger.first > 64
            assert [e.pid for e in ledger.of(Kind.FORK)] == [second.started.pid]
            again = await _ledger(box)
            assert again == ledger

    asyncio.run(scenario())


def test_the_ledger_outlives_the_host_process(tmp_path: Path) -> None:
    async def scenario() -> None:
        first = make_backend(tmp_path)
        await first.start()
        box = await first.create(box_spec(tmp_path))
        before = talk(first, box, tmp_path)
        await before.client.connect()
        _need(before, "bpf")
        await before.start(before.command("sh", "-c", "sleep 0.3; exit 4"))
        let_go(before)
        await first.close()
        async with launcher(tmp_path) as backend:
            (found,) = await backend.adopt()
            after = talk(backend, found, tmp_path)
            await after.client.connect()
            await asyncio.sleep(0.5)  # the command ends while nobody listens
            ledger = await _ledger(after)
            assert 4 in [os.waitstatus_to_exitcode(e.status) for e in ledger.of(Kind.EXIT)]
            let_go(after)

    asyncio.run(scenario())


def test_who_makes_and_removes_segments_is_told(tmp_path: Path) -> None:
    script = (
        "cd /run/substrate/seg; echo a >one; mv one two; rm two; mkdir d; echo x >d/three;"
        "head -c 300 /dev/zero | tr '\\0' n | xargs -I{} sh -c 'echo >$(echo {} | cut -c-200)'"
    )

    async def scenario() -> None:
        async with guest(tmp_path) as box:
            if not box.backend.capabilities().segments_attested:
                pytest.skip(box.backend.capabilities().segments_problem)
            done = await box.sh(script, env=(b"PATH=/usr/bin:/bin", b"LC_ALL=C"))
            ledger = await _ledger(box)
            assert ledger.attested
            root = done.started.pid
            made = {entry.name: entry for entry in ledger.of(Kind.SEGMENT)}
            assert made[b"one"].pid == root
            # Whoever renames a file makes the new name, and removes the old one.
            assert made[b"two"].pid not in (0, root)
            assert b"three" not in made, "a file in a directory is nobody's segment"
            assert made[b"n" * 75].cut
            names = [entry.name for entry in ledger.of(Kind.REMOVED)]
            assert b"one" in names
            assert b"two" in names

    asyncio.run(scenario())


def test_what_the_host_removes_is_not_held_against_anybody(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with guest(tmp_path) as box:
            if not box.backend.capabilities().segments_attested:
                pytest.skip(box.backend.capabilities().segments_problem)
            await box.sh("echo >/run/substrate/seg/read")
            await _ledger(box)
            os.unlink("read", dir_fd=box.box.segments_fd)
            assert (await _ledger(box)).of(Kind.REMOVED) == []

    asyncio.run(scenario())


def test_a_host_that_does_not_ask_gets_no_ledger(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with guest(tmp_path) as box:
            client = box.backend._client
            assert client is not None
            packet = await client._ask(LauncherType.ATTACH, string(b"wld_test"), LauncherType.BOX)
            assert len(packet.fds) == 3
            packet.close_fds()

    asyncio.run(scenario())


def test_the_ledger_cannot_be_written_through_the_host_s_descriptor(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with guest(tmp_path) as box:
            assert box.box.ledger_fd is not None
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.pwrite(box.box.ledger_fd, b"x", 0)
            with pytest.raises(BackendError, match="ledger of world"):
                await box.backend.sync_ledger("wld_none", 0)

    asyncio.run(scenario())


def test_without_a_source_worlds_work_and_have_no_ledger(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with (
            launcher(tmp_path, ledger="none") as backend,
            guest(tmp_path, backend=backend) as box,
        ):
            assert (await box.run("true")).code == 0
            assert box.box.ledger_fd is None
            assert backend.capabilities().ledger == "none"
            assert "switched off" in backend.capabilities().ledger_problem

    asyncio.run(scenario())
