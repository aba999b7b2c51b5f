"""The decoder: counts per file, peer and source; sockets, threads, libraries; what was written."""

from __future__ import annotations

import errno
import os
import socket
import struct
from pathlib import Path

import pytest

from substrate_services.telemetry.coverage import coverage_of
from substrate_services.telemetry.decode import DecodeLimits
from substrate_services.telemetry.segments import prepare_directory
from tests.native import segment_files as sf
from tests.native.recording import Event, decode
from tests.native.segment_files import AT_FDCWD, Segment


@pytest.fixture
def segments(tmp_path: Path) -> Path:
    directory = tmp_path / "seg"
    prepare_directory(directory)
    return directory


def _ipv4(address: str, port: int) -> bytes:
    packed = socket.inet_aton(address)
    return struct.pack("<H", socket.AF_INET) + struct.pack(">H", port) + packed + bytes(8)


def _unix(path: bytes) -> bytes:
    return struct.pack("<H", socket.AF_UNIX) + path + b"\0"


def _moved(
    *, reads: int = 0, read: int = 0, writes: int = 0, written: int = 0, last: int = 9
) -> tuple[int, bytes]:
    return sf.TRANSFER_COUNTS, struct.pack("<5Q", reads, read, writes, written, last)


def _stats(calls: int, failed: int = 0, last: int = 9) -> tuple[int, bytes]:
    return sf.STAT_COUNTS, struct.pack("<3Q", calls, failed, last)


def _of(events: list[Event], kind: str) -> list[Event]:
    return [event for event in events if event["event_type"] == kind]


def _pick(event: Event, *keys: str) -> tuple[object, ...]:
    return tuple(event.get(key) for key in keys)


def _fd(number: int) -> tuple[int, int, int, int]:
    return (number, 0, 0, 0)


def test_stats_and_transfers_of_a_file_become_one_line(segments: Path) -> None:
    segment = Segment(10).hello(cwd=b"/work")
    segment.call(sf.STAT, "stat", (sf.PATH, b"a.txt"), _stats(4, 1))
    segment.open(b"a.txt", result=3)
    segment.call(sf.TRANSFER, "read", _moved(reads=2, read=300), arg=_fd(3))
    segment.call(sf.STAT, "lstat", (sf.PATH, b"/work/./a.txt"), _stats(1))
    segment.call(sf.STAT, "fstat", _stats(5), arg=_fd(3))
    segment.call(sf.TRANSFER, "write", _moved(writes=1, written=7), arg=_fd(3))
    segment.write(segments)
    summary, events = decode(segments)
    (line,) = _of(events, "file_summary")
    assert _pick(line, "path", "stat_calls", "stat_failed") == ("/work/a.txt", 10, 1)
    assert _pick(line, "read_calls", "read_bytes", "write_calls", "write_bytes") == (2, 300, 1, 7)
    assert line["process_span"] == summary.processes[0].span_id
    counts = dict(summary.counts)
    assert (counts["stat"], counts["stat_failed"]) == (10, 1)
    assert (counts["transfer_read_bytes"], counts["transfer_write_bytes"]) == (300, 7)
    assert (counts["transfer_read_calls"], counts["transfer_write_calls"]) == (2, 1)
    assert summary.events_total == 1  # the open: sums are no events


def test_short_records_of_looks_are_sums_like_the_whole_ones(segments: Path) -> None:
    segment = Segment(10).hello(cwd=b"/work")
    segment.look(b"a.txt", calls=3, failed=1, last=7).look(b"/work/./a.txt")
    segment.call(sf.STAT, "stat", (sf.PATH, b"a.txt"), _stats(4))
    segment.call(
        sf.STAT, "fstatat", (sf.PATH, b"b"), (sf.DIRECTORY, b"/d"),
        (sf.DIRECTORY_ID, struct.pack("<Q", 6)), _stats(1), arg=_fd(5),
    )  # fmt: skip
    segment.look(b"b", dirfd=5).look(b"no/where", dirfd=9).open(b"/x").write(segments)
    summary, events = decode(segments)
    lines = {line.get("path"): line for line in _of(events, "file_summary")}
    assert _pick(lines["/work/a.txt"], "stat_calls", "stat_failed") == (8, 1)
    assert _pick(lines["/d/b"], "stat_calls", "stat_failed") == (2, 0)
    assert dict(summary.counts)["stat"] == 11
    assert (summary.processes[0].coverage, summary.events_total) == ("full", 1)


def test_looks_come_after_the_record_in_front_of_them(segments: Path) -> None:
    created = 1_000_000
    Segment(10).hello(cwd=b"/").open(b"/1", at=created + 10).look(b"before").write(segments)
    other = Segment(10, chain=1)
    other.call(sf.CHDIR, "chdir", (sf.PATH, b"/w"), at=created + 100)
    other.look(b"after").write(segments)
    _, events = decode(segments)
    assert {line["path"] for line in _of(events, "file_summary")} == {"/before", "/w/after"}


def test_looks_count_among_the_records_of_a_chain(segments: Path) -> None:
    first = Segment(10, state=sf.CONTINUED).hello()
    for _ in range(40):
        first.look(b"/x")
    first.write(segments)
    Segment(10, index=1, first_sequence=41).look(b"/y").write(segments)
    summary, _ = decode(segments)
    assert (summary.processes[0].coverage, summary.lost) == ("full", 0)


def test_segments_of_the_version_before_are_read(segments: Path) -> None:
    segment = Segment(10, version=1).hello(cwd=b"/work").open(b"/x")
    segment.call(sf.STAT, "stat", (sf.PATH, b"a.txt"), _stats(4)).write(segments)
    Segment(11, version=3).hello().open(b"/of-the-next").write(segments)
    summary, events = decode(segments)
    assert [line["path"] for line in _of(events, "file_summary")] == ["/work/a.txt"]
    assert (summary.events_total, summary.foreign_files) == (1, 1)


def test_sums_follow_descriptors_through_time(segments: Path) -> None:
    segment = Segment(10).hello()
    segment.call(sf.TRANSFER, "write", _moved(writes=1, written=1), arg=_fd(1))
    segment.open(b"/first", result=3)
    segment.call(sf.TRANSFER, "read", _moved(reads=1, read=10), arg=_fd(3))
    segment.call(sf.DUP, "dup", arg=_fd(3), result=4)
    segment.open(b"/second", result=3)
    segment.call(sf.TRANSFER, "read", _moved(reads=1, read=20), arg=_fd(3))
    segment.call(sf.TRANSFER, "read", _moved(reads=1, read=40), arg=_fd(4))
    # Closed, and made anew by a call that is not recorded: the old path says nothing any more.
    segment.call(sf.TRANSFER, "read", _moved(reads=1, read=80), arg=_fd(4), flags=sf.UNNAMED)
    segment.call(sf.DUP, "dup2", arg=_fd(9), result=-1, error=errno.EBADF)
    segment.write(segments)
    _, events = decode(segments)
    lines = _of(events, "file_summary")
    assert {line.get("path", line.get("fd")): line["read_bytes"] for line in lines} == {
        "/first": 50, "/second": 20, 1: 0, 4: 80,
    }  # fmt: skip
    assert next(line for line in lines if line.get("fd") == 1)["write_bytes"] == 1


def test_descriptors_of_one_image_say_nothing_about_another(segments: Path) -> None:
    Segment(10, created=100).hello().open(b"/secret", result=3).write(segments)
    other = Segment(11, created=200).hello()
    other.call(sf.TRANSFER, "read", _moved(reads=1, read=1), arg=_fd(3)).write(segments)
    _, events = decode(segments)
    (line,) = _of(events, "file_summary")
    assert (line["pid"], line.get("fd"), "path" in line) == (11, 3, False)


def test_connections_are_summed_by_peer_and_direction(segments: Path) -> None:
    segment = Segment(10).hello()
    peer, client = _ipv4("192.0.2.1", 443), _ipv4("192.0.2.9", 51000)
    segment.call(sf.CONNECT, "connect", (sf.ADDRESS, peer), arg=_fd(3))
    segment.call(sf.TRANSFER, "send", _moved(writes=1, written=5, reads=2, read=70), arg=_fd(3))
    segment.call(
        sf.CONNECT, "connect", (sf.ADDRESS, peer), arg=_fd(4), result=-1, error=errno.EINPROGRESS
    )
    segment.call(sf.TRANSFER, "write", _moved(writes=1, written=6), arg=_fd(4))
    segment.call(sf.BIND, "bind", (sf.ADDRESS, _ipv4("0.0.0.0", 8080)), arg=_fd(5))
    segment.call(sf.LISTEN, "listen", arg=(5, 128, 0, 0))
    segment.call(sf.ACCEPT, "accept4", (sf.ADDRESS, client), arg=_fd(5), result=6)
    segment.call(sf.TRANSFER, "recv", _moved(reads=1, read=9), arg=_fd(6))
    segment.call(
        sf.TRANSFER, "sendto", _moved(writes=1, written=3), (sf.ADDRESS, client), arg=_fd(7)
    )
    segment.call(sf.CONNECT, "connect", (sf.ADDRESS, _unix(b"/run/s")), arg=_fd(8))
    segment.call(sf.TRANSFER, "write", _moved(writes=1, written=2), arg=_fd(8))
    segment.write(segments)
    summary, events = decode(segments)
    assert [
        _pick(line, "family", "address", "port", "direction", "sent_bytes", "received_bytes")
        for line in _of(events, "connection_summary")
    ] == [
        ("AF_INET", "192.0.2.1", 443, "outbound", 11, 70),
        ("AF_INET", "192.0.2.9", 51000, "inbound", 0, 9),
        ("AF_INET", "192.0.2.9", 51000, "outbound", 3, 0),
        ("AF_UNIX", "/run/s", None, "outbound", 2, 0),
    ]
    calls = {event["syscall"]: event for event in events if "syscall" in event}
    assert _pick(calls["bind"], "address", "port", "args") == ("0.0.0.0", 8080, ["5"])
    assert calls["listen"]["args"] == ["5", "128"]
    assert _pick(calls["accept4"], "address", "port", "result") == ("192.0.2.9", 51000, 6)
    counts = dict(summary.counts)
    assert (counts["bind"], counts["listen"], counts["accept"], counts["connect"]) == (1, 1, 1, 3)
    assert (counts["sent_bytes"], counts["received_bytes"]) == (16, 79)


def test_sources_of_nondeterminism_are_summed_per_image(segments: Path) -> None:
    segment = Segment(10).hello()
    for _ in range(2):
        segment.call(
            sf.SOURCES, "time", (sf.SOURCE_COUNTS, struct.pack("<8Q", 1, 2, 3, 4, 5, 6, 7, 8))
        )
    segment.write(segments)
    summary, events = decode(segments)
    (line,) = _of(events, "nondeterminism")
    names = ("clock", "monotonic", "random", "process_id", "directory_order")
    totals = ("clock", "monotonic", "random", "pid", "directory_order")
    assert _pick(line, "pid", *names) == (10, 2, 4, 6, 8, 10)
    assert [dict(summary.counts)[f"source_{name}"] for name in totals] == [2, 4, 6, 8, 10]


def test_counts_that_a_program_invents_stay_numbers_that_all_can_hold(segments: Path) -> None:
    segment = Segment(10).hello()
    for _ in range(3):
        segment.call(sf.STAT, "stat", (sf.PATH, b"/x"), _stats(2**64 - 1))
    segment.write(segments)
    summary, events = decode(segments)
    assert _of(events, "file_summary")[0]["stat_calls"] == 2**63 - 1
    assert dict(summary.counts)["stat"] == 2**63 - 1


def test_more_files_than_are_summed_at_once_lose_no_count(segments: Path) -> None:
    for pid in range(10, 12):
        segment = Segment(pid).hello()
        for i in range(18_000):
            segment.call(sf.STAT, "stat", (sf.PATH, b"/%d" % (i % 17_000)), _stats(1))
        segment.write(segments, 4 << 20)
    chains = [Segment(12, chain=c).hello() if c == 0 else Segment(12, chain=c) for c in range(4)]
    for chain in chains:
        for i in range(17_000):
            chain.call(sf.STAT, "stat", (sf.PATH, b"/%d-%d" % (chain.chain, i)), _stats(1))
        chain.write(segments, 4 << 20)
    summary, events = decode(segments)
    lines = _of(events, "file_summary")
    assert sum(line["stat_calls"] for line in lines) == 2 * 18_000 + 4 * 17_000
    assert dict(summary.counts)["stat"] == 2 * 18_000 + 4 * 17_000
    assert len([line for line in lines if line["pid"] == 10]) == 17_000


def test_threads_libraries_and_copies_are_events(segments: Path) -> None:
    segment = Segment(10).hello()
    segment.call(sf.THREAD, "pthread_create", result=0)
    segment.call(sf.LOAD, "__libc_start_main", (sf.LIBRARIES, b"/lib/a.so\0/lib/b.so\0"))
    segment.call(
        sf.LOAD, "dlopen", (sf.PATH, b"b.so"), (sf.LIBRARIES, b"/lib/b.so\0"), arg=(0, 0, 0, 0)
    )
    segment.call(sf.LOAD, "dlopen", (sf.PATH, b"./c.so"), result=-1, arg=(0, 0, 0, 0))
    segment.call(sf.DUP, "fcntl", arg=_fd(3), result=10)
    segment.write(segments)
    summary, events = decode(segments)
    loads = [event for event in events if "libraries" in event]
    assert [event["libraries"] for event in loads] == [["/lib/a.so", "/lib/b.so"], ["/lib/b.so"]]
    dlopens = [event for event in events if event.get("syscall") == "dlopen"]
    assert [event.get("path") for event in dlopens] == [None, "/work/c.so"]
    assert dlopens[0]["args"] == ["b.so"]
    assert next(e for e in events if e.get("syscall") == "fcntl")["args"] == ["3"]
    counts = dict(summary.counts)
    assert (counts["thread"], counts["load"], counts["dup"]) == (1, 3, 1)


# --- what may have changed -----------------------------------------------------------------------


def test_all_that_may_have_changed_is_named(segments: Path) -> None:
    made = os.O_CREAT | os.O_WRONLY
    segment = Segment(10).hello(cwd=b"/work")
    segment.open(b"read").open(b"new", flags=made, result=3).open(b"both", flags=os.O_RDWR)
    segment.open(b"denied", flags=made, result=-1, error=errno.EACCES)
    segment.call(sf.MUTATE, "rename", (sf.PATH, b"old"), (sf.PATH2, b"/new/place"))
    segment.call(sf.MUTATE, "symlink", (sf.PATH, b"link"), (sf.PATH2, b"target"))
    segment.call(sf.MUTATE, "unlink", (sf.PATH, b"gone"), result=-1, error=errno.ENOENT)
    segment.call(sf.MUTATE, "fchmod", arg=(3, 0, 0o644, AT_FDCWD))
    segment.call(sf.OPEN, "shm_open", (sf.PATH, b"/shared"), result=5, arg=(AT_FDCWD, made, 0, 0))
    segment.call(sf.OPEN, "memfd_create", (sf.PATH, b"name"), result=6, arg=(AT_FDCWD, made, 0, 0))
    segment.call(sf.BIND, "bind", (sf.ADDRESS, _unix(b"sock")), arg=_fd(7))
    key = (sf.KEY, b"12345678")
    segment.call(7, "posix_spawn_file_actions_addopen", key, (sf.PATH, b"out"), arg=(1, 1, made, 0))
    segment.call(
        7, "posix_spawn_file_actions_addchdir_np", key, (sf.PATH, b"sub"), arg=(4, -1, 0, 0)
    )
    segment.call(7, "posix_spawn_file_actions_addopen", key, (sf.PATH, b"out"), arg=(1, 2, made, 0))
    segment.write(segments)
    summary, _ = decode(segments)
    assert summary.writes == (
        b"/dev/shm/shared",
        b"/new/place", b"/work/both", b"/work/link", b"/work/new", b"/work/old", b"/work/out",
        b"/work/sock", b"/work/sub/out",
    )  # fmt: skip
    assert summary.writes_complete


def test_writes_are_bounded_and_what_is_not_known_is_counted(segments: Path) -> None:
    segment = Segment(10).hello()
    for i in range(30):
        segment.call(sf.MUTATE, "unlink", (sf.PATH, b"/f%d" % (i % 20)))
    segment.call(sf.MUTATE, "ftruncate", arg=(77, 0, 0, AT_FDCWD))
    segment.write(segments)
    summary, _ = decode(segments, limits=DecodeLimits(writes=10))
    assert len(summary.writes) == 10
    assert (summary.writes_beyond, summary.writes_unknown) == (10, 1)
    assert not summary.writes_complete


def test_what_lies_below_a_renamed_directory_has_its_new_name(segments: Path) -> None:
    ident = (sf.DIRECTORY_ID, b"abcdefgh")
    below = (9, os.O_RDONLY, 0, 0)
    segment = Segment(10).hello(cwd=b"/work/dir/sub")
    segment.call(
        sf.OPEN, "openat", (sf.PATH, b"a"), (sf.DIRECTORY, b"/work/dir"), ident, arg=below, result=3
    )
    segment.call(sf.MUTATE, "rename", (sf.PATH, b"/work/dir"), (sf.PATH2, b"/work/moved"))
    segment.call(sf.OPEN, "openat", (sf.PATH, b"b"), ident, arg=below, result=3)
    segment.open(b"c")
    segment.call(
        sf.MUTATE, "renameat2", (sf.PATH, b"/work/moved"), (sf.PATH2, b"/other"),
        arg=(AT_FDCWD, 2, 0, AT_FDCWD),
    )  # fmt: skip
    segment.call(sf.OPEN, "openat", (sf.PATH, b"d"), ident, arg=below, result=3)
    segment.call(
        sf.MUTATE, "rename", (sf.PATH, b"/other"), (sf.PATH2, b"/x"), result=-1, error=errno.EXDEV
    )
    segment.call(sf.OPEN, "openat", (sf.PATH, b"e"), ident, arg=below, result=3)
    segment.write(segments)
    _, events = decode(segments)
    opens = [event["path"] for event in events if event.get("syscall") in ("open", "openat")]
    assert opens == [
        "/work/dir/a", "/work/moved/b", "/work/moved/sub/c", "/other/d", "/other/e",
    ]  # fmt: skip


# --- what is missing -----------------------------------------------------------------------------


def test_a_program_is_absolute_however_it_was_called(segments: Path) -> None:
    Segment(10).hello(cwd=b"/work/a", exe=b"../bin/./prog").write(segments)
    Segment(11).hello(cwd=b"/work", exe=b"/usr//bin/../sbin/prog").write(segments)
    summary, _ = decode(segments)
    assert [process.exe for process in summary.processes] == [b"/work/bin/prog", b"/usr/sbin/prog"]


def test_a_segment_that_goes_on_in_one_that_is_gone_is_told(segments: Path) -> None:
    Segment(10, state=sf.CONTINUED).hello().open(b"/x").write(segments)
    summary, _ = decode(segments)
    (process,) = summary.processes
    assert (process.coverage, process.coverage_reason) == ("partial", "1 of its segments are gone")


def test_records_that_are_gone_between_two_segments_are_counted(segments: Path) -> None:
    Segment(10, state=sf.CONTINUED).hello().open(b"/x").write(segments)
    Segment(10, index=3, first_sequence=110).open(b"/y").write(segments)
    summary, _ = decode(segments)
    (process,) = summary.processes
    # 108 are missing; up to 8 may be tries of the writer that found no room.
    assert process.coverage_reason == "2 of its segments are gone; 100 records are gone, or more"
    assert summary.lost == 100
    assert coverage_of(summary).lost == 100


def test_a_chain_whose_numbers_fit_is_full(segments: Path) -> None:
    Segment(10, state=sf.CONTINUED).hello().open(b"/x").write(segments)
    Segment(10, index=1, first_sequence=4).open(b"/y").write(segments)  # two tries at the end
    summary, _ = decode(segments)
    assert summary.processes[0].coverage == "full"


def test_recording_that_was_switched_off_inside_is_told(segments: Path) -> None:
    wanted = sf.ALL_CLASSES & ~8
    Segment(10, classes_off=8).hello().open(b"/x").write(segments)
    Segment(11, classes_off=8 | 2).hello().open(b"/x").write(segments)
    summary, _ = decode(segments, classes=wanted)
    assert [process.coverage_reason for process in summary.processes] == [
        "", "recording was switched off inside the world",
    ]  # fmt: skip
    assert coverage_of(summary).state == "partial"
    summary, _ = decode(segments)
    assert [process.coverage for process in summary.processes] == ["full", "full"]
