"""The journal's writer: order, durability, one writer, full disks, crashes, rotation."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import json
import os
import random
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from substrate_services.journal.errors import (
    JournalBroken,
    JournalBusy,
    JournalClosed,
    JournalForeign,
    JournalFull,
)
from substrate_services.journal.jsontypes import JsonObject
from substrate_services.journal.reader import JournalLine, JournalReader
from substrate_services.journal.segments import rotated_segments
from substrate_services.journal.verify import VerifyReport, verify
from substrate_services.journal.writer import Journal

WRITER = Path(__file__).with_name("journal_writer.py")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "home" / "trace.jsonl"


def recorded(path: Path) -> list[JournalLine]:
    """What callers appended, without the writer's own lines."""
    with JournalReader(path) as reader:
        lines = [line for line in reader.lines() if not line.event_type.startswith("journal_")]
        assert reader.bad_lines == 0
    return lines


def kinds(report: VerifyReport) -> list[str]:
    return [finding.kind for finding in report.findings]


# --- lines -------------------------------------------------------------------------------------


def test_lines_come_back_in_order_with_seq_version_and_time(path: Path) -> None:
    with Journal(path) as journal:
        assert journal.append({"event_type": "world_created", "world_id": "wld_a"}) == 1
        assert journal.append({"event_type": "syscall", "ts": "2026-01-01T00:00:00Z"}) == 2
        journal.flush_sync()
        assert journal.durable_seq == 2
    lines = recorded(path)
    assert [(line.seq, line.event_type) for line in lines] == [
        (1, "world_created"),
        (2, "syscall"),
    ]
    assert lines[0].value["v"] == "1.0"
    assert str(lines[0].value["ts"]).endswith("Z")
    assert lines[1].value["ts"] == "2026-01-01T00:00:00Z"


def test_sequence_and_chain_go_on_after_reopening(path: Path) -> None:
    for expected in range(1, 6):
        with Journal(path) as journal:
            assert journal.append({"event_type": "x"}) == expected
    report = verify(path)
    assert report.ok
    assert report.last_seq == 5
    assert kinds(report) == ["unanchored"]


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.dictionaries(
            st.text(max_size=5).filter(lambda name: name not in {"seq", "v", "ts", "span_id"}),
            st.recursive(
                st.none()
                | st.booleans()
                | st.integers()
                | st.floats(allow_nan=False, allow_infinity=False)
                | st.text(),
                lambda inner: (
                    st.lists(inner, max_size=3)
                    | st.dictionaries(st.text(max_size=3), inner, max_size=3)
                ),
                max_leaves=6,
            ),
            max_size=4,
        ),
        max_size=6,
    )
)
def test_any_json_survives(
    tmp_path_factory: pytest.TempPathFactory, bodies: list[JsonObject]
) -> None:
    path = tmp_path_factory.mktemp("journal") / "trace.jsonl"
    with Journal(path) as journal:
        for body in bodies:
            journal.append({**body, "event_type": "any"})
    values = [line.value for line in recorded(path)]
    for value in values:
        for name in ("seq", "v", "ts"):
            del value[name]
    assert values == [{**body, "event_type": "any"} for body in bodies]
    assert verify(path).ok


@pytest.mark.parametrize(
    "line",
    [
        {},
        {"event_type": ""},
        {"event_type": 3},
        {"event_type": 'a"b'},
        {"event_type": "journal_commit"},
        {"event_type": "x", "seq": 1},
        {"event_type": "x", "v": "1.0"},
        {"event_type": "x", "ts": 12},
        {"event_type": "x", "span_id": 12},
        {"event_type": "x", "value": float("nan")},
        {"event_type": "x", "value": "\ud800"},
        {"event_type": "x", "value": "y" * 2000},
    ],
)
def test_a_line_that_cannot_be_recorded_is_refused_and_harms_nothing(
    path: Path, line: JsonObject
) -> None:
    with Journal(path, line_limit_bytes=1000) as journal:
        with pytest.raises(ValueError):  # noqa: PT011 - each case has its own words
            journal.append(line)
        journal.append({"event_type": "x"})
    assert len(recorded(path)) == 1


def test_files_are_private(path: Path) -> None:
    umask = os.umask(0)
    try:
        with Journal(path, segment_limit_bytes=100) as journal:
            journal.append({"event_type": "x"})
            journal.flush_sync()
            journal.append({"event_type": "x"})
    finally:
        os.umask(umask)
    assert path.parent.stat().st_mode & 0o777 == 0o700
    for file in path.parent.iterdir():
        assert file.stat().st_mode & 0o777 == 0o600, file


# --- flushing ----------------------------------------------------------------------------------


def test_flush_answers_when_the_lines_are_in_the_file(path: Path) -> None:
    async def scenario() -> None:
        with Journal(path, commit_interval_s=60) as journal:
            for count in range(1, 4):
                journal.append({"event_type": "x"})
                await journal.flush()
                assert len(recorded(path)) == count
            await journal.flush()  # nothing to do

    asyncio.run(scenario())


def test_lines_are_committed_without_a_flush_after_the_interval(path: Path) -> None:
    with Journal(path, commit_interval_s=0.01) as journal:
        journal.append({"event_type": "x"})
        assert _until(lambda: journal.durable_seq == 1)


def test_many_flushes_share_commits(path: Path) -> None:
    async def scenario(journal: Journal) -> None:
        async def one() -> None:
            journal.append({"event_type": "x"})
            await journal.flush()

        await asyncio.gather(*(one() for _ in range(200)))

    with Journal(path) as journal:
        asyncio.run(scenario(journal))
        stats = journal.stats()
    assert stats.lines == 200
    assert stats.batches < 100


def test_a_cancelled_flush_harms_nobody(path: Path) -> None:
    async def scenario(journal: Journal) -> None:
        journal.append({"event_type": "x"})
        task = asyncio.create_task(journal.flush())
        await asyncio.sleep(0)  # let it register
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        journal.append({"event_type": "x"})
        await journal.flush()

    with Journal(path) as journal:
        asyncio.run(scenario(journal))
    assert len(recorded(path)) == 2


def test_threads_append_at_once_and_each_keeps_its_order(path: Path) -> None:
    def work(name: int) -> None:
        for count in range(300):
            journal.append({"event_type": "x", "thread": name, "count": count})
        journal.flush_sync()

    with Journal(path, segment_limit_bytes=20_000) as journal:
        threads = [threading.Thread(target=work, args=(name,)) for name in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    lines = recorded(path)
    assert [line.seq for line in lines] == list(range(1, 1801))
    for name in range(6):
        counts = [line.value["count"] for line in lines if line.value["thread"] == name]
        assert counts == list(range(300))
    assert verify(path).ok


def test_append_waits_for_room_and_loses_nothing(path: Path) -> None:
    with Journal(path, queue_limit_bytes=4000, line_limit_bytes=1000) as journal:
        for count in range(500):
            journal.append({"event_type": "x", "count": count, "pad": "y" * 300})
            assert journal.stats().queued_bytes <= 4000 + 100  # seq and version are not foreseen
        asyncio.run(journal.room())
        assert journal.stats().queued_bytes <= 2000
    assert len(recorded(path)) == 500


def test_a_closed_journal_takes_nothing(path: Path) -> None:
    journal = Journal(path)
    journal.append({"event_type": "x"})
    journal.close()
    journal.close()
    assert len(recorded(path)) == 1
    with pytest.raises(JournalClosed):
        journal.append({"event_type": "x"})
    journal.flush_sync()  # everything appended is on disk


# --- one writer --------------------------------------------------------------------------------


def test_a_second_writer_is_told_who_has_the_journal(path: Path) -> None:
    with Journal(path):
        with pytest.raises(JournalBusy, match=f"process {os.getpid()}"):
            Journal(path)
        code = (
            "import sys; from pathlib import Path;"
            "from substrate_services.journal.writer import Journal;"
            "Journal(Path(sys.argv[1]))"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, str(path)],
            check=False,
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
            timeout=60,
        )
        assert f"process {os.getpid()} has it open" in done.stderr
    Journal(path).close()


def test_a_symbolic_link_is_followed_so_that_both_names_are_one_journal(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "home").mkdir()
    link = tmp_path / "home" / "trace.jsonl"
    link.symlink_to(tmp_path / "disk" / "trace.jsonl")
    with Journal(link, segment_limit_bytes=100) as journal:
        with pytest.raises(JournalBusy):
            Journal(tmp_path / "disk" / "trace.jsonl")
        for _ in range(3):
            journal.append({"event_type": "x"})
            journal.flush_sync()
    assert link.is_symlink()
    assert len(recorded(link)) == 3


@pytest.mark.parametrize(
    "content", ["hello\n", '{"event_type":"syscall"}\n', '{"v":"9.0"}\n', "[]"]
)
def test_a_file_that_is_no_journal_is_left_alone(path: Path, content: str) -> None:
    path.parent.mkdir()
    path.write_text(content)
    with pytest.raises(JournalForeign, match="name another file"):
        Journal(path)
    assert path.read_text() == content


def test_a_journal_of_a_newer_version_is_left_alone(path: Path) -> None:
    Journal(path).close()
    content = path.read_bytes().replace(b'"v":"1.0"', b'"v":"2.0"')
    path.write_bytes(content)
    with pytest.raises(JournalForeign, match="upgrade"):
        Journal(path)
    assert path.read_bytes() == content


def test_an_empty_file_becomes_a_journal(path: Path) -> None:
    path.parent.mkdir()
    path.touch()
    with Journal(path) as journal:
        journal.append({"event_type": "x"})
    assert len(recorded(path)) == 1


# --- rotation ----------------------------------------------------------------------------------


def fill(path: Path, lines: int, **options: int) -> None:
    with Journal(path, **options) as journal:
        for count in range(lines):
            journal.append({"event_type": "x", "count": count, "pad": "y" * 50})
            if count % 5 == 4:
                journal.flush_sync()


def test_rotated_segments_are_compressed_and_sorted_and_chained(path: Path) -> None:
    fill(path, 200, segment_limit_bytes=4000)
    names = [segment.path.name for segment in rotated_segments(path)]
    assert len(names) > 3
    assert names == sorted(names)
    assert names[0] == "trace-00000001.jsonl.zst"
    assert sorted(os.listdir(path.parent)) == [*names, "trace.jsonl", "trace.lock"]
    assert [line.seq for line in recorded(path)] == list(range(1, 201))
    report = verify(path)
    assert report.ok
    assert report.segments == len(names) + 1
    assert report.lines == 200


def test_a_segment_opens_with_the_head_of_the_one_before(path: Path) -> None:
    with Journal(path, segment_limit_bytes=10) as journal:
        journal.append({"event_type": "x"})
        journal.flush_sync()
        head = journal.head
        journal.append({"event_type": "x"})
        journal.flush_sync()
    first = json.loads(path.read_text().splitlines()[0])
    assert first["event_type"] == "journal_segment"
    assert first["prev"] != "0" * 64
    assert first["segment"] >= 2
    assert verify(path).ok
    assert head in {
        json.loads(line)["digest"]
        for line in _texts(path)
        if '"event_type":"journal_commit"' in line
    }


def _texts(path: Path) -> Iterator[str]:
    with JournalReader(path) as reader:
        for line in reader.lines():
            yield json.dumps(line.value, separators=(",", ":"))


@pytest.mark.parametrize("cut", ["between the renames", "before the renames", "uncompressed"])
def test_a_rotation_that_a_crash_cut_is_finished(path: Path, cut: str) -> None:
    fill(path, 20, segment_limit_bytes=10**9)
    with Journal(path, segment_limit_bytes=10) as journal:
        journal.append({"event_type": "x"})  # rotates first, then writes
    live = path.read_bytes()
    (segment,) = rotated_segments(path)
    if cut == "between the renames":
        # The new segment's first batch only: what the pending file holds at that point.
        pending = b"".join(live.splitlines(keepends=True)[:2])
        path.unlink()
        path.with_name("trace.jsonl.next").write_bytes(pending)
    elif cut == "before the renames":
        path.with_name("trace.jsonl.next").write_bytes(b"half a li")
    else:
        with open(segment.path, "rb") as file:
            text = zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True).read()
        segment.path.unlink()
        segment.path.with_suffix("").write_bytes(text)
        segment.path.with_name(segment.path.name + ".tmp").write_bytes(b"half")
    before = len(recorded(path))
    with Journal(path) as journal:
        journal.append({"event_type": "x"})
    assert len(recorded(path)) == before + 1
    report = verify(path)
    assert report.ok, report
    assert not path.with_name("trace.jsonl.next").exists()
    assert [segment.compressed for segment in rotated_segments(path)] == [True]


def test_a_deleted_live_file_is_followed_by_a_new_segment(path: Path) -> None:
    fill(path, 100, segment_limit_bytes=4000)
    last = recorded(path)
    path.unlink()
    left = recorded(path)
    assert left == last[: len(left)]
    with Journal(path) as journal:
        assert journal.append({"event_type": "x"}) == left[-1].seq + 1
    assert verify(path).ok


# --- crashes -----------------------------------------------------------------------------------


def _until(condition: object) -> bool:
    """Polls a condition of another thread; True as soon as it holds, False after 10 s."""
    assert callable(condition)
    event = threading.Event()
    return any(condition() or event.wait(0.002) for _ in range(5000))


def test_what_was_acknowledged_survives_kill_9_at_any_point(path: Path) -> None:
    choice = random.Random(7)
    acknowledged = 0
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    for round_number in range(50):
        with subprocess.Popen(
            [sys.executable, str(WRITER), str(path), str(round_number)],
            stdout=subprocess.PIPE,
            env=environment,
        ) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == b"ready\n"
            # After so many acknowledgements, and then at any point in the work on the next.
            for _ in range(choice.randrange(1, 6)):
                acknowledged = int(writer.stdout.readline())
            select.select([writer.stdout], [], [], choice.random() * 0.002)
            writer.send_signal(signal.SIGKILL)
            rest = writer.stdout.read().split(b"\n")
            acknowledged = max([acknowledged, *(int(line) for line in rest[:-1])])
        report = verify(path)
        assert report.ok, report
        assert report.last_seq >= acknowledged
    with Journal(path):
        pass
    seqs = [line.seq for line in recorded(path)]
    assert seqs == list(range(1, len(seqs) + 1))
    assert len(seqs) >= acknowledged
    assert verify(path).ok


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.binary(max_size=40))
def test_a_tail_torn_at_any_byte_is_kept_aside_and_named(
    tmp_path_factory: pytest.TempPathFactory, seed: int, junk: bytes
) -> None:
    path = tmp_path_factory.mktemp("journal") / "trace.jsonl"
    with Journal(path) as journal:
        journal.append({"event_type": "kept"})
        journal.flush_sync()
        sealed = path.stat().st_size
        for _ in range(3):
            journal.append({"event_type": "torn", "pad": "y" * 30})
    whole = path.read_bytes()
    cut = random.Random(seed).randrange(sealed, len(whole))
    path.write_bytes(whole[:cut] + junk)
    torn = whole[sealed:cut] + junk

    if torn and path.read_bytes() != whole:
        assert kinds(verify(path)) == ["unsealed_tail", "unanchored"]
    assert [line.event_type for line in recorded(path)] == ["kept"]
    with Journal(path) as journal:
        assert journal.append({"event_type": "after"}) == 2
    assert [line.event_type for line in recorded(path)] == ["kept", "after"]
    report = verify(path)
    assert report.ok
    if torn:
        assert kinds(report) == ["repaired_tear", "unanchored"]
        assert report.findings[0].offset == sealed
        (kept,) = path.parent.glob("*.torn-*")
        assert kept.read_bytes() == torn


def test_a_last_batch_with_holes_is_a_tear(path: Path) -> None:
    """After a power cut a file may have its length and not all of its pages."""
    with Journal(path) as journal:
        journal.append({"event_type": "kept"})
        journal.flush_sync()
        sealed = path.stat().st_size
        journal.append({"event_type": "torn", "pad": "y" * 9000})
    data = bytearray(path.read_bytes())
    data[sealed + 100 : sealed + 4096] = bytes(3996)
    path.write_bytes(data)
    with Journal(path) as journal:
        assert journal.append({"event_type": "after"}) == 2
    assert [line.event_type for line in recorded(path)] == ["kept", "after"]
    assert kinds(verify(path)) == ["repaired_tear", "unanchored"]


def test_damage_before_the_last_batch_is_not_taken_for_a_tear(path: Path) -> None:
    with Journal(path) as journal:
        for name in ("one", "two", "three", "four"):
            journal.append({"event_type": name, "pad": "y" * 30})
            journal.flush_sync()
    data = path.read_bytes()
    path.write_bytes(data.replace(b'"event_type":"two"', b'"event_type":"TWO"'))
    with Journal(path) as journal:
        journal.append({"event_type": "five"})
    assert [line.event_type for line in recorded(path)] == ["one", "TWO", "three", "four", "five"]
    assert kinds(verify(path)) == ["changed_batch", "unanchored"]
    assert not list(path.parent.glob("*.torn-*"))


# --- full disks --------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small tmpfs needs root")
    libc = ctypes.CDLL(None, use_errno=True)
    disk = tmp_path / "disk"
    disk.mkdir()
    if libc.mount(b"tmpfs", os.fsencode(disk), b"tmpfs", 0, b"size=256k") != 0:
        pytest.skip(f"cannot mount a tmpfs: {os.strerror(ctypes.get_errno())}")
    try:
        yield disk
    finally:
        assert libc.umount2(os.fsencode(disk), 0) == 0


def fill_up(disk: Path) -> Path:
    ballast = disk / "ballast"
    with open(ballast, "ab", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(512))
    return ballast


@pytest.mark.root
def test_a_full_disk_loses_nothing_recorded_and_recording_goes_on_later(small_disk: Path) -> None:
    path = small_disk / "trace.jsonl"
    with Journal(path) as journal:
        journal.append({"event_type": "before"})
        journal.flush_sync()
        ballast = fill_up(small_disk)
        journal.append({"event_type": "waiting", "pad": "y" * 9000})
        with pytest.raises(JournalFull, match="free space"):
            journal.flush_sync()
        with pytest.raises(JournalFull):
            asyncio.run(journal.flush())
        assert journal.stats().full
        assert verify(path).ok
        assert [line.event_type for line in recorded(path)] == ["before"]

        ballast.unlink()
        journal.flush_sync()
        assert not journal.stats().full
        journal.append({"event_type": "after"})
        journal.flush_sync()
    assert [line.event_type for line in recorded(path)] == ["before", "waiting", "after"]
    assert kinds(verify(path)) == ["unanchored"]


@pytest.mark.root
def test_a_full_queue_on_a_full_disk_refuses_lines_until_there_is_space(small_disk: Path) -> None:
    path = small_disk / "trace.jsonl"
    journal = Journal(path, queue_limit_bytes=20_000, line_limit_bytes=10_000)
    ballast = fill_up(small_disk)
    taken = 0

    def append_for_ever() -> None:
        nonlocal taken
        while True:
            journal.append({"event_type": "x", "pad": "y" * 5000})
            taken += 1

    with pytest.raises(JournalFull):
        append_for_ever()
    assert 0 < taken < 20
    ballast.unlink()
    assert journal.append({"event_type": "x"}) == taken + 1
    journal.close()
    assert len(recorded(path)) == taken + 1
    assert verify(path).ok


@pytest.mark.root
def test_rotation_on_a_full_disk_keeps_the_old_segment(small_disk: Path) -> None:
    path = small_disk / "trace.jsonl"
    with Journal(path, segment_limit_bytes=10_000) as journal:
        for _ in range(20):
            journal.append({"event_type": "x", "pad": "y" * 600})
        journal.flush_sync()
        ballast = fill_up(small_disk)
        journal.append({"event_type": "x", "pad": "y" * 9000})
        with pytest.raises(JournalFull):
            journal.flush_sync()
        ballast.unlink()
        journal.flush_sync()
        assert journal.stats().rotations == 1
    assert [line.seq for line in recorded(path)] == list(range(1, 22))
    assert verify(path).ok


@pytest.mark.root
def test_closing_on_a_full_disk_says_what_is_lost(small_disk: Path) -> None:
    path = small_disk / "trace.jsonl"
    journal = Journal(path, commit_interval_s=60)
    fill_up(small_disk)
    journal.append({"event_type": "x", "pad": "y" * 9000})
    with pytest.raises(JournalFull, match="1 line"):
        journal.close()
    assert verify(path).ok


@pytest.mark.root
def test_a_journal_that_cannot_start_for_want_of_space_says_so(small_disk: Path) -> None:
    fill_up(small_disk)
    with pytest.raises(JournalFull, match="free space"):
        Journal(small_disk / "new" / "trace.jsonl")


def test_a_broken_disk_is_reported_to_all_and_for_good(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(path, commit_interval_s=60)
    journal.append({"event_type": "kept"})
    journal.flush_sync()

    def fail(_fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fdatasync", fail)
    journal.append({"event_type": "lost"})
    with pytest.raises(JournalBroken, match="check the disk"):
        journal.flush_sync()
    monkeypatch.undo()
    with pytest.raises(JournalBroken):
        journal.append({"event_type": "refused"})
    with pytest.raises(JournalBroken):
        journal.close()
    assert [line.event_type for line in recorded(path)] == ["kept"]
