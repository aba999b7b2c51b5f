"""The decoder: processes, spans, attribution, what is kept, and what a caller is told."""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path

import pytest

from substrate_services.telemetry import decode as decode_module
from substrate_services.telemetry.coverage import RootProcess, coverage_of, why_uncovered
from substrate_services.telemetry.decode import (
    ClockOffsets,
    DecodeLimits,
    DecodeSummary,
    decode_segments,
)
from substrate_services.telemetry.segments import (
    SegmentName,
    prepare_directory,
    remove_dead_segments,
    remove_segments,
)
from tests.native import segment_files as sf
from tests.native.recording import IDS, Recorder, compile_c, decode
from tests.native.segment_files import Segment


@pytest.fixture
def segments(tmp_path: Path) -> Path:
    directory = tmp_path / "seg"
    prepare_directory(directory)
    return directory


def test_times_and_ids_come_from_the_caller(segments: Path) -> None:
    Segment(7, created=5_000_000_000).hello().open(b"/x", at=6_000_000_000).write(segments)
    summary, events = decode(segments, offsets=ClockOffsets(utc_ns=10**18, boot_ns=7))
    event = next(e for e in events if e.get("syscall") == "open")
    assert event["ts"] == "2001-09-09T01:46:46.000000Z"
    assert (event["session_id"], event["world_id"]) == (IDS.session_id, IDS.world_id)
    assert event["parent_span"] == IDS.span_id
    assert event["elapsed_us"] == 0.01
    assert event["source"] == "self_reported"
    assert event["component"] == "preload"
    (process,) = summary.processes
    assert process.start_ns == 5_000_000_007
    assert event["span_id"] == IDS.span_id  # of the step: what a reader looks for
    assert event["process_span"] == process.span_id
    assert process.parent_span_id == IDS.span_id


def test_decoding_twice_gives_the_same(segments: Path) -> None:
    for pid in (5, 6, 9):
        Segment(pid, created=pid * 1000).hello(ppid=5).open(b"/x").write(segments)
    assert decode(segments) == decode(segments)


def test_span_ids_are_a_digest_of_the_identity(segments: Path) -> None:
    import hashlib  # noqa: PLC0415

    Segment(7, start=123, exec_number=2, namespace=99).hello().write(segments)
    summary, _ = decode(segments)
    text = f"{IDS.span_id}:99:7:123:2".encode()
    assert summary.processes[0].span_id == hashlib.sha256(text).hexdigest()[:16]


def test_only_descendants_of_the_root_are_decoded(segments: Path) -> None:
    Segment(10, created=100).hello(ppid=1).open(b"/root").write(segments)
    Segment(11, created=200).hello(ppid=10).open(b"/child").write(segments)
    Segment(12, created=300).hello(ppid=11).open(b"/grandchild").write(segments)
    Segment(20, created=150).hello(ppid=1).open(b"/stranger").write(segments)
    # Reparented before it spoke, but forked from 11, as its memory says.
    orphan = Segment(13, exec_number=0, created=400)
    orphan.hello(ppid=1, parent=(4026531836, 1000, 11, 1)).open(b"/orphan").write(segments)
    summary, events = decode(segments, root_pid=10)
    assert {e["path"] for e in events if "path" in e} == {
        "/root",
        "/child",
        "/grandchild",
        "/orphan",
    }
    assert summary.root_seen
    assert summary.unattributed == 1
    by_pid = {p.pid: p for p in summary.processes}
    assert by_pid[13].parent_span_id == by_pid[11].span_id
    assert by_pid[13].argv == (b"prog",)
    assert {s.name for s in summary.segments} == {
        "10-1000-1-0-0", "11-1000-1-0-0", "12-1000-1-0-0", "13-1000-0-0-0",
    }  # fmt: skip


def test_children_of_a_root_that_cannot_be_seen_are_found(segments: Path) -> None:
    Segment(11, created=200).hello(ppid=10).open(b"/child").write(segments)
    summary, events = decode(segments, root_pid=10)
    assert not summary.root_seen
    assert [e["path"] for e in events if "path" in e] == ["/child"]
    assert summary.processes[0].parent_span_id == IDS.span_id


def test_a_root_pid_that_was_used_before_is_told_apart_by_time(segments: Path) -> None:
    Segment(10, start=1, created=100).hello().open(b"/old").write(segments)
    Segment(10, start=2, created=9000).hello().open(b"/new").write(segments)
    _, events = decode(segments, root_pid=10, root_after_ns=5000)
    assert [e["path"] for e in events if "path" in e] == ["/new"]


def test_a_started_program_that_never_says_hello_is_named(segments: Path) -> None:
    parent = Segment(10).hello()
    parent.add(
        sf.record(
            sf.SPAWN, sf.OP_SPAWN, at=1_000_500, tid=10, arg=(11, 0, 2, 0),
            fields=sf.text(sf.PATH, b"/bin/static") + sf.text(sf.ARGV, b"static\0-x\0"),
        )
    )  # fmt: skip
    parent.add(sf.record(sf.WAIT, 32, at=1_000_600, tid=10, result=11, arg=(3 << 8, 0, 0, 0)))
    parent.write(segments)
    summary, events = decode(segments)
    uncovered = summary.processes[1]
    assert (uncovered.coverage, uncovered.argv) == ("none", (b"static", b"-x"))
    assert (uncovered.pid, uncovered.ppid, uncovered.exit_code) == (11, 10, 3)
    assert (summary.processes_total, summary.processes_covered) == (2, 1)
    coverage = coverage_of(summary)
    assert coverage.state == "partial"
    assert "static" in coverage.reasons[0]
    assert any(e.get("coverage") == "none" for e in events)


def test_alarms_and_watched_paths_are_kept_first(segments: Path) -> None:
    segment = Segment(10).hello()
    for i in range(100):
        segment.open(b"/usr/lib/%d" % i)
    segment.open(b"/secret/../etc/shadow", result=-1, error=errno.EACCES)
    segment.open(b"/home/u/.ssh/id_rsa")
    segment.open(b"/home/u/.sshd")
    segment.open(b"/tmp/made", flags=os.O_CREAT | os.O_WRONLY)
    segment.write(segments, 1 << 16)
    summary, events = decode(segments, watch=[b"/home/u/.ssh/"], max_events=3)
    assert [e["path"] for e in summary.events] == [
        "/etc/shadow",
        "/home/u/.ssh/id_rsa",
        "/tmp/made",
    ]
    assert summary.events_not_kept == 101
    assert summary.events_total == 104
    assert len(events) == 105
    counts = dict(summary.counts)
    assert (counts["open_read"], counts["open_write"], counts["open_failed"]) == (102, 1, 1)
    assert b"/home/u/.ssh/id_rsa" in summary.reads
    assert b"/etc/shadow" not in summary.reads


def test_reads_are_bounded_and_counted_beyond(segments: Path) -> None:
    segment = Segment(10).hello()
    for i in range(60):
        segment.open(b"/lib/%d" % (i % 30))
    segment.write(segments, 1 << 16)
    summary, _ = decode(segments, limits=DecodeLimits(reads=10))
    assert len(summary.reads) == 10
    assert summary.reads_beyond == 40  # each time, not each path: the rest is not remembered


def test_relative_paths_hang_on_the_directory_of_the_moment(segments: Path) -> None:
    segment = Segment(10).hello(cwd=b"/a/b")
    segment.open(b"x").open(b"./y//z/").open(b"../../../up")
    segment.add(
        sf.record(
            14, 0, at=1_001_000, tid=10, fields=sf.text(sf.PATH, b"c") + sf.text(sf.CWD, b"/q")
        )
    )
    segment.open(b"w", at=1_002_000)
    segment.write(segments)
    _, events = decode(segments)
    assert [e["path"] for e in events if e.get("syscall") == "open"] == [
        "/a/b/x", "/a/b/y/z", "/up", "/q/w",
    ]  # fmt: skip


def test_losses_are_told(segments: Path) -> None:
    Segment(10, lost=5).hello().write(segments)
    summary, _ = decode(segments)
    assert summary.lost == 5
    coverage = coverage_of(summary)
    assert (coverage.state, coverage.lost) == ("partial", 5)


def test_a_process_whose_first_segment_is_gone_makes_the_step_partial(segments: Path) -> None:
    Segment(10, index=1).open(b"/x").write(segments)
    summary, _ = decode(segments)
    coverage = coverage_of(summary)
    assert coverage.state == "partial"
    assert "its first segment is gone" in coverage.reasons[0]


def test_a_step_with_nothing_missing_is_full(segments: Path) -> None:
    Segment(10).hello().open(b"/x").write(segments)
    summary, _ = decode(segments, root_pid=10)
    coverage = coverage_of(summary, root=RootProcess(10, (b"prog",), b"/bin/prog"))
    assert (coverage.state, coverage.reasons, coverage.processes) == ("full", (), 1)


def test_a_root_that_never_said_hello_is_none_with_the_reason(
    segments: Path, tmp_path: Path
) -> None:
    program = compile_c("int main(void) { return 0; }", tmp_path / "static", "-static")
    summary, _ = decode(segments, root_pid=10)
    root = RootProcess(10, (b"./static",), os.fsencode(program))
    coverage = coverage_of(summary, root=root, open_program=lambda p: os.open(p, os.O_RDONLY))
    assert coverage.state == "none"
    assert coverage.reasons == ("./static (pid 10): static program",)
    assert (coverage.processes, coverage.covered) == (1, 0)


def test_programs_say_why_they_cannot_be_covered(tmp_path: Path) -> None:
    def reason(path: Path) -> str:
        return why_uncovered(os.fsencode(path), lambda p: os.open(p, os.O_RDONLY))

    dynamic = compile_c("int main(void) { return 0; }", tmp_path / "dynamic")
    static = compile_c("int main(void) { return 0; }", tmp_path / "static", "-static")
    script = tmp_path / "script"
    script.write_text(f"#! {static} -x\n")
    loop = tmp_path / "loop"
    loop.write_text(f"#!{loop}\n")
    data = bytearray(dynamic.read_bytes())
    data[4] = 1
    (tmp_path / "small").write_bytes(data)
    musl = dynamic.read_bytes().replace(b"/ld-linux", b"/ld-musl-")
    (tmp_path / "musl").write_bytes(musl)
    (tmp_path / "cut").write_bytes(dynamic.read_bytes()[:40])
    assert reason(dynamic) == ""
    assert reason(static) == "static program"
    assert reason(script) == "static program"
    assert reason(tmp_path / "small") == "32-bit program"
    assert reason(tmp_path / "musl") == "musl program"
    assert reason(loop) == reason(tmp_path / "cut") == reason(tmp_path / "absent") == ""
    os.chmod(dynamic, 0o4755)
    assert reason(dynamic) == "set-id program"


# --- failures ------------------------------------------------------------------------------------


def _failing(monkeypatch: pytest.MonkeyPatch, program: Path, segments: Path) -> DecodeSummary:
    monkeypatch.setattr(decode_module, "native_path", lambda _: program)
    return decode(segments, limits=DecodeLimits(timeout_s=2))[0]


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("#!/bin/sh\nkill -SEGV $$\n", "-11"),
        ("#!/bin/sh\necho oops >&2; exit 3\n", "oops"),
        ("#!/bin/sh\nexit 0\n", "makes no sense"),
        ("#!/bin/sh\nexec sleep 60\n", "not done after 2 s"),
    ],
)
def test_a_failing_decoder_makes_coverage_partial(
    monkeypatch: pytest.MonkeyPatch, segments: Path, tmp_path: Path, script: str, expected: str
) -> None:
    program = tmp_path / "decoder"
    program.write_text(script)
    program.chmod(0o755)
    summary = _failing(monkeypatch, program, segments)
    assert expected in summary.failure
    coverage = coverage_of(summary)
    assert coverage.state == "partial"
    assert expected in coverage.reasons[0]


def test_a_missing_decoder_makes_coverage_partial(
    monkeypatch: pytest.MonkeyPatch, segments: Path, tmp_path: Path
) -> None:
    assert "cannot run" in _failing(monkeypatch, tmp_path / "absent", segments).failure


def test_events_beyond_the_limit_are_counted_though_not_kept(segments: Path) -> None:
    segment = Segment(10).hello()
    for i in range(20_000):
        segment.open(b"/x%d" % i)
    segment.write(segments, 4 << 20)
    summary, events = decode(segments, limits=DecodeLimits(output_bytes=1 << 20))
    assert summary.failure == ""
    assert summary.events_total == 20_000
    assert 0 < len(events) < 20_000
    assert summary.output_beyond > 1 << 20
    coverage = coverage_of(summary)
    assert coverage.state == "partial"
    assert "too many to keep" in coverage.reasons[0]


def test_an_error_of_the_sink_reaches_the_caller_and_leaves_no_process(segments: Path) -> None:
    Segment(10).hello().open(b"/x").write(segments)

    def full(_: bytes) -> None:
        raise OSError(errno.ENOSPC, "full")

    fd = os.open(segments, os.O_RDONLY)
    try:
        with pytest.raises(OSError, match="full"):
            asyncio.run(decode_segments(segments_fd=fd, ids=IDS, root_pid=None, sink=full))
    finally:
        os.close(fd)


# --- files ---------------------------------------------------------------------------------------


def test_segments_of_ended_processes_can_be_removed(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "seg")
    recording = recorder.run(["sh", "-c", "ls / >/dev/null; true"])
    assert recording.summary.segments
    assert not any(s.open for s in recording.summary.segments)
    fd = os.open(recorder.segments, os.O_RDONLY)
    try:
        removed = remove_segments(fd, [s.name for s in recording.summary.segments])
    finally:
        os.close(fd)
    assert removed == len(recording.summary.segments)
    assert list(recorder.segments.iterdir()) == []


def test_only_segments_are_removed(segments: Path, tmp_path: Path) -> None:
    victim = tmp_path / "1-1-1-1-1"
    victim.write_text("")
    (segments / "notes").write_text("")
    fd = os.open(segments, os.O_RDONLY)
    try:
        assert remove_segments(fd, ["../1-1-1-1-1", "notes", str(victim), "9-9-9-9-9"]) == 0
    finally:
        os.close(fd)
    assert victim.exists()
    assert (segments / "notes").exists()


def test_segments_of_dead_processes_are_found_by_pid_and_start(segments: Path) -> None:
    stat = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    alive = Segment(os.getpid(), start=int(stat[19])).write(segments)
    reused = Segment(os.getpid(), start=int(stat[19]) - 1).write(segments)
    dead = Segment(2**22 + 5).write(segments)
    fd, proc = os.open(segments, os.O_RDONLY), os.open("/proc", os.O_RDONLY)
    try:
        assert remove_dead_segments(fd, proc) == 2
    finally:
        os.close(fd)
        os.close(proc)
    assert alive.exists()
    assert not reused.exists()
    assert not dead.exists()


def test_names_of_segments_are_parsed_strictly() -> None:
    assert SegmentName.parse("12-34-1-0-2") == SegmentName(12, 34, 1, 0, 2)
    for name in ("12-34-1-0", "12-34-1-0-2/..", "a-1-1-1-1", "12-34-1-0-2\n", "-1-1-1-1-1"):
        assert SegmentName.parse(name) is None
