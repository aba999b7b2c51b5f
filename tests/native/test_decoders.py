"""The decoder that stands by: one child without rights for each request, and nobody else's loss."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from substrate_services.telemetry.decode import DecodeLimits, DecodeSummary, decode_segments
from substrate_services.telemetry.decoders import Decoders, Decoding, DecodingNotTaken
from substrate_services.telemetry.segments import prepare_directory
from tests.native.recording import IDS, decode
from tests.native.segment_files import Segment
from tests.users import eventually

MANY = 4_000  # events: more than a pipe holds


@pytest.fixture
def segments(tmp_path: Path) -> Path:
    directory = tmp_path / "seg"
    prepare_directory(directory)
    return directory


def fill(directory: Path, events: int, name: bytes = b"/x") -> None:
    segment = Segment(7, created=1_000).hello()
    for number in range(events):
        segment.open(b"%b%d" % (name, number), at=2_000 + number)
    segment.write(directory)


async def served(
    decoders: Decoders,
    directory: Path,
    sink: Callable[[bytes], None],
    limits: DecodeLimits | None = None,
) -> DecodeSummary:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return await decode_segments(
            segments_fd=fd, ids=IDS, root_pid=None, sink=sink, limits=limits, decoders=decoders
        )
    finally:
        os.close(fd)


def standing_by() -> int:
    """The pid of our one decoder that stands by."""
    (pid,) = decoders_of_ours()
    return pid


def decoders_of_ours() -> list[int]:
    """Among what else is a child of a test run: it adopts what other tests left to be reaped."""
    return [
        child
        for child in children(os.getpid())
        if Path(f"/proc/{child}/comm").read_text() == "substrate-decod\n"
        and status_of(child)["State"][0] != "Z"
    ]


def children(pid: int) -> list[int]:
    return [
        int(word)
        for task in Path(f"/proc/{pid}/task").iterdir()
        for word in (task / "children").read_text().split()
    ]


def status_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def test_it_says_what_a_program_of_its_own_says(segments: Path) -> None:
    fill(segments, MANY)
    summary, events = decode(segments)

    async def main() -> list[tuple[DecodeSummary, bytes]]:
        decoders = Decoders()
        results = []
        for _ in range(3):
            chunks: list[bytes] = []
            found = await served(decoders, segments, chunks.append)
            results.append((found, b"".join(chunks)))
        await decoders.close()
        return results

    for found, lines in asyncio.run(main()):
        assert found == summary
        assert lines.count(b"\n") == len(events)


def test_what_reads_segments_has_no_rights_and_sees_nobody_elses(segments: Path) -> None:
    fill(segments, MANY)
    seen: list[tuple[dict[str, str], dict[str, str], str]] = []

    async def main() -> None:
        decoders = Decoders()

        def look(_chunk: bytes) -> None:
            # It still has lines to write, and the pipe is full or nearly so.
            found = children(standing_by())
            if found and not seen:
                directory = Path(f"/proc/{found[0]}")
                open_files = {link.name: os.readlink(link) for link in (directory / "fd").iterdir()}
                seen.append((status_of(found[0]), open_files, os.readlink(directory / "root")))

        await served(decoders, segments, look)
        await decoders.close()

    asyncio.run(main())
    ((status, open_files, root),) = seen
    assert (status["Seccomp"], status["NoNewPrivs"]) == ("2", "1")
    assert int(status["CapEff"], 16) == 0
    assert not any("socket" in file for file in open_files.values()), open_files
    assert open_files.keys() <= {"0", "1", "2", "3", "4", "5"}
    if os.geteuid() == 0:
        assert status["Uid"].split() == ["65534"] * 4
        assert root == os.path.realpath(segments)


def test_one_that_takes_too_long_ends_alone(tmp_path: Path) -> None:
    slow, quick = tmp_path / "slow", tmp_path / "quick"
    for directory, events in ((slow, MANY), (quick, 10)):
        prepare_directory(directory)
        fill(directory, events)
    ended: list[DecodeSummary] = []

    async def main() -> None:
        decoders = Decoders()

        is_stopped = asyncio.Event()

        def stop(_chunk: bytes) -> None:
            (child,) = children(standing_by())
            os.kill(child, signal.SIGSTOP)  # as one that loops: it never ends by itself
            is_stopped.set()

        stopped = asyncio.create_task(
            served(decoders, slow, once(stop), DecodeLimits(timeout_s=1.0))
        )
        await is_stopped.wait()
        ended.append(await served(decoders, quick, lambda _chunk: None))
        ended.append(await stopped)
        ended.append(await served(decoders, quick, lambda _chunk: None))
        # It was told to kill it before the last request; that it has died comes when it comes.
        await asyncio.to_thread(
            eventually, lambda: children(standing_by()) == [] or None, "the slow child is gone"
        )
        await decoders.close()

    asyncio.run(main())
    first, stopped, last = ended
    assert first.failure == last.failure == ""
    assert first.events_total == last.events_total > 0
    assert "not done after 1 s" in stopped.failure


def once(action: Callable[[bytes], None]) -> Callable[[bytes], None]:
    done = False

    def take(chunk: bytes) -> None:
        nonlocal done
        if not done:
            done = True
            action(chunk)

    return take


def test_a_child_that_crashes_says_so_and_harms_nobody(segments: Path) -> None:
    fill(segments, MANY)

    async def main() -> tuple[DecodeSummary, DecodeSummary]:
        decoders = Decoders()

        def kill(_chunk: bytes) -> None:
            for child in children(standing_by()):
                os.kill(child, signal.SIGSEGV)

        crashed = await served(decoders, segments, once(kill))
        after = await served(decoders, segments, lambda _chunk: None)
        await decoders.close()
        return crashed, after

    crashed, after = asyncio.run(main())
    assert "ended with -11" in crashed.failure
    assert (after.failure, after.events_total > MANY - 1) == ("", True)


def test_another_stands_by_where_one_was_killed(segments: Path) -> None:
    fill(segments, 10)

    async def main() -> tuple[DecodeSummary, DecodeSummary, int, int]:
        decoders = Decoders()
        before = await served(decoders, segments, lambda _chunk: None)
        first = standing_by()
        os.kill(first, signal.SIGKILL)
        # With a request in its socket when it dies, it says so; else a program does that one.
        await served(decoders, segments, lambda _chunk: None)
        after = await served(decoders, segments, lambda _chunk: None)
        second = standing_by()
        await decoders.close()
        return before, after, first, second

    before, after, first, second = asyncio.run(main())
    assert before == after
    assert first != second


def test_one_that_does_not_end_holds_nobody_up(segments: Path) -> None:
    fill(segments, 10)

    async def main() -> None:
        decoders = Decoders()
        await served(decoders, segments, lambda _chunk: None)
        slow = standing_by()
        os.kill(slow, signal.SIGSTOP)
        decoders._lose()
        assert (await served(decoders, segments, lambda _chunk: None)).failure == ""
        os.kill(slow, signal.SIGCONT)
        await decoders.close()

    asyncio.run(main())
    assert decoders_of_ours() == []


def test_a_request_whose_descriptors_do_not_arrive_is_refused_at_once(segments: Path) -> None:
    fill(segments, 10)

    async def main() -> None:
        decoders = Decoders()
        await served(decoders, segments, lambda _chunk: None)
        resource.prlimit(standing_by(), resource.RLIMIT_NOFILE, (3, 3))
        decoding = Decoding(options=(), segments_fd=0, summary_fd=0, ledger_fd=None, timeout_s=10)
        with pytest.raises(DecodingNotTaken):
            await decoders.run(decoding, lambda _chunk: None)
        await decoders.close()

    asyncio.run(main())


def test_what_the_caller_raises_ends_it_and_leaves_no_child(segments: Path) -> None:
    fill(segments, MANY)

    class Full(Exception):
        pass

    def full(_chunk: bytes) -> None:
        raise Full

    async def main() -> None:
        decoders = Decoders()
        with pytest.raises(Full):
            await served(decoders, segments, full)
        # The next answer comes after the child before has been told to end.
        assert (await served(decoders, segments, lambda _chunk: None)).failure == ""
        await decoders.close()

    asyncio.run(main())
    assert decoders_of_ours() == []
