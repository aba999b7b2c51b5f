"""Reading the journal back, also damaged, and saying what is wrong with it."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from substrate_services.journal import codec
from substrate_services.journal.reader import AmbiguousSpan, JournalReader
from substrate_services.journal.schema import (
    Action,
    Command,
    Coverage,
    Decision,
    SpanRecord,
)
from substrate_services.journal.segments import rotated_segments
from substrate_services.journal.verify import VerifyReport, verify
from substrate_services.journal.writer import Journal

ACTION = Action(
    command=Command((b"true",)),
    cwd=b"/",
    env=(),
    umask=0o22,
    user="agent",
    stdin_digest=None,
    snapshot_id=None,
    timeout_s=None,
)
DECISION = Decision("allow", "default", "no rule matched", "enforce", "p")


def make_span(number: int, **changes: object) -> SpanRecord:
    record = SpanRecord(
        span_id=f"{number:016x}",
        trace_id=f"{number:032x}",
        session_id=f"ses_{number % 2}",
        world_id=f"wld_{number % 3}",
        exec_id=f"exe_{number}",
        kind="exec",
        agent_id="",
        parent_span=None,
        start_time=1_700_000_000.0 + number,
        duration_ms=10.0,
        action=replace(ACTION, command=Command((b"echo", b"number %d" % number))),
        decision=DECISION,
        termination_reason="EXITED",
        exit_code=0,
        signal=None,
        stdout_digest=None,
        stderr_digest=None,
        output_digest=None,
        stdout_bytes=0,
        stderr_bytes=0,
        truncated=False,
        changes=(),
        changes_truncated=0,
        changes_digest=None,
        blocked=(),
        coverage=Coverage("full"),
        processes=(),
        processes_truncated=0,
        events_digest=None,
        event_counts=(),
        snapshot_after=None,
        inputs_digest=None,
    )
    return replace(record, **changes)  # type: ignore[arg-type]


def make_start(record: SpanRecord) -> codec.SpanStart:
    return codec.SpanStart(
        span_id=record.span_id,
        trace_id=record.trace_id,
        session_id=record.session_id,
        world_id=record.world_id,
        exec_id=record.exec_id,
        kind=record.kind,
        agent_id=record.agent_id,
        parent_span=record.parent_span,
        start_time=record.start_time,
        action=record.action,
        decision=record.decision,
    )


def record_step(journal: Journal, record: SpanRecord, events: int = 3) -> None:
    journal.append(codec.start_to_line(make_start(record)))
    for number in range(events):
        journal.append(
            codec.syscall_line(
                span_id=record.span_id,
                parent_span=None,
                session_id=record.session_id,
                world_id=record.world_id,
                time_s=record.start_time,
                syscall="openat",
                args=[number],
                result=3,
                error=None,
                pid=2,
                process_span="f" * 16,
                path=b"/etc/passwd",
            )
        )
    journal.append(codec.span_to_line(record))
    journal.flush_sync()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "trace.jsonl"


def ids(spans: tuple[SpanRecord, ...]) -> list[int]:
    return [int(span.span_id, 16) for span in spans]


# --- steps -------------------------------------------------------------------------------------


@pytest.mark.parametrize("segment_limit_bytes", [3000, 20_000, 10**9])
def test_steps_are_found_across_segments(path: Path, segment_limit_bytes: int) -> None:
    with Journal(path, segment_limit_bytes=segment_limit_bytes) as journal:
        for number in range(40):
            record_step(journal, make_span(number))
    with JournalReader(path) as reader:
        for number in (39, 20, 0, 7):
            record = make_span(number)
            assert reader.find_span(record.span_id) == record
            assert reader.start_line(record.span_id) == make_start(record)
            assert [event["args"] for event in reader.bounded_events(record.span_id)] == [
                [0],
                [1],
                [2],
            ]
        assert reader.find_span("f" * 16) is None
        assert reader.start_line("f" * 16) is None
        assert reader.bounded_events("f" * 16) == ()
        assert reader.bad_lines == 0


def test_a_reader_follows_the_writer_through_rotation_and_compression(path: Path) -> None:
    with JournalReader(path) as reader:
        assert reader.last_span() is None
        with Journal(path, segment_limit_bytes=6000) as journal:
            for number in range(60):
                record_step(journal, make_span(number))
                assert reader.last_span() == make_span(number)
                assert reader.find_span(f"{number // 2:016x}") == make_span(number // 2)
                assert len(reader.bounded_events(f"{number // 2:016x}")) == 3
        assert ids(reader.list_spans(limit=1000).spans) == list(range(59, -1, -1))
        open_files = [
            os.readlink(f"/proc/self/fd/{fd}")
            for fd in os.listdir("/proc/self/fd")
            if os.path.lexists(f"/proc/self/fd/{fd}")
        ]
        assert sum("trace" in name for name in open_files) == 1  # the live file's, no more


def test_an_unfinished_step_has_a_start_and_no_record(path: Path) -> None:
    with Journal(path) as journal, JournalReader(path) as reader:
        record = make_span(5)
        journal.append(codec.start_to_line(make_start(record)))
        journal.flush_sync()
        assert reader.find_span(record.span_id) is None
        assert reader.start_line(record.span_id) == make_start(record)
        journal.append(codec.span_to_line(record))
        journal.flush_sync()
        assert reader.find_span(record.span_id) == record


def test_a_prefix_stands_for_the_only_step_that_has_it(path: Path) -> None:
    with Journal(path, segment_limit_bytes=4000) as journal:
        for span_id in ("aaaa000000000001", "aaab000000000002", "bbbb000000000003"):
            record_step(journal, make_span(1, span_id=span_id))
    with JournalReader(path) as reader:
        found = reader.find_span("b")
        assert found is not None
        assert found.span_id == "bbbb000000000003"
        assert len(reader.bounded_events("aaab")) == 3
        assert reader.find_span("c") is None
        with pytest.raises(AmbiguousSpan, match="aaaa000000000001, aaab000000000002"):
            reader.find_span("aaa")


def test_lists_filter_and_page(path: Path) -> None:
    with Journal(path, segment_limit_bytes=9000) as journal:
        for number in range(30):
            kind = "files.write" if number % 10 == 9 else "exec"
            record_step(journal, make_span(number, kind=kind), events=1)
    with JournalReader(path) as reader:
        assert ids(reader.list_spans(session_id="ses_1", world_id="wld_0").spans) == [
            27, 21, 15, 9, 3,
        ]  # fmt: skip
        assert ids(reader.list_spans(kind="files.write").spans) == [29, 19, 9]
        assert ids(reader.list_spans(text="NUMBER 1", kind="files.write").spans) == [19]
        assert ids(reader.list_spans(since=1_700_000_027.0).spans) == [29, 28, 27]
        last = reader.last_span()
        assert last is not None
        assert ids((last,)) == [28]
        any_kind = reader.last_span(kind=None)
        assert any_kind is not None
        assert ids((any_kind,)) == [29]

        pages, token = [], ""
        while True:
            page = reader.list_spans(limit=7, page_token=token)
            pages.append(ids(page.spans))
            token = page.next_page_token
            if not token:
                break
        assert [len(page) for page in pages] == [7, 7, 7, 7, 2]
        assert [number for page in pages for number in page] == list(range(29, -1, -1))
        with pytest.raises(ValueError, match="page_token"):
            reader.list_spans(page_token="junk")


def test_a_step_recorded_twice_counts_as_it_was_recorded_last(path: Path) -> None:
    with Journal(path) as journal:
        record_step(journal, make_span(1))
        record_step(journal, make_span(2))
        record_step(journal, make_span(1, exit_code=4))
    with JournalReader(path) as reader:
        found = reader.find_span(f"{1:016x}")
        assert found is not None
        assert found.exit_code == 4
        assert ids(reader.list_spans().spans) == [1, 2]


def test_lines_can_start_at_a_sequence_number(path: Path) -> None:
    with Journal(path, segment_limit_bytes=300) as journal:
        for _ in range(9):
            journal.append({"event_type": "x"})
            journal.flush_sync()
    with JournalReader(path) as reader:
        seqs = [line.seq for line in reader.lines(since_seq=6) if line.event_type == "x"]
    assert seqs == [6, 7, 8, 9]


def test_what_no_commit_stands_behind_is_not_read(path: Path) -> None:
    with Journal(path) as journal:
        record_step(journal, make_span(1))
    with open(path, "ab") as file:
        line = {"seq": 9, "v": "1.0", **codec.span_to_line(make_span(2))}
        file.write(json.dumps(line, separators=(",", ":")).encode() + b"\n" + b'{"seq":10,')
    with JournalReader(path) as reader:
        assert reader.find_span(f"{2:016x}") is None
        assert ids(reader.list_spans().spans) == [1]
        assert max(line.seq for line in reader.lines()) == 5
        assert reader.bad_lines == 0


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 2**32), st.binary(min_size=1, max_size=30))
def test_damage_never_raises_and_never_takes_a_good_neighbour(
    tmp_path_factory: pytest.TempPathFactory, seed: int, junk: bytes
) -> None:
    path = tmp_path_factory.mktemp("journal") / "trace.jsonl"
    with Journal(path) as journal:
        for number in range(6):
            record_step(journal, make_span(number))
    choice = random.Random(seed)
    lines = path.read_bytes().splitlines(keepends=True)
    # Anywhere but in the last batch, which a tear may take.
    victim = choice.randrange(2, len(lines) - 7)
    at = choice.randrange(len(lines[victim]))
    damaged = lines[victim][:at] + junk + lines[victim][at + choice.randrange(9) :]
    path.write_bytes(b"".join([*lines[:victim], damaged, *lines[victim + 1 :]]))
    with JournalReader(path) as reader:
        seen = {line.offset for line in reader.lines()}
        offset = 0
        for number, line in enumerate(lines):
            if number < victim:
                assert offset in seen
            if number > victim + 1:  # the next one may have been glued to the victim
                assert offset + len(damaged) - len(lines[victim]) in seen
            offset += len(line)
        reader.list_spans()
        reader.bounded_events(f"{1:016x}")
    if b"".join(lines) != path.read_bytes():
        assert not verify(path).ok


# --- verify ------------------------------------------------------------------------------------


def kinds(report: VerifyReport) -> list[str]:
    return [finding.kind for finding in report.findings if finding.kind != "unanchored"]


def five_batches(path: Path) -> list[bytes]:
    """A journal of five lines in five batches; its lines as they are in the file."""
    with Journal(path) as journal:
        for number in range(5):
            journal.append({"event_type": "x", "number": number})
            journal.flush_sync()
    return path.read_bytes().splitlines(keepends=True)


def test_an_intact_journal_is_ok_and_says_what_it_cannot_prove(path: Path) -> None:
    lines = five_batches(path)
    report = verify(path)
    assert report.ok
    assert (report.lines, report.batches, report.last_seq) == (5, 6, 5)
    assert report.head == json.loads(lines[-1])["digest"]
    (finding,) = report.findings
    assert (finding.kind, finding.severity) == ("unanchored", "info")


def swap(lines: list[bytes]) -> list[bytes]:
    return [*lines[:4], *lines[6:8], *lines[4:6], *lines[8:]]


@pytest.mark.parametrize(
    ("damage", "expected", "words"),
    [
        (lambda x: [*x[:4], x[4].replace(b'"number":1', b'"number":7'), *x[5:]],
         ["changed_batch"], "bytes were changed"),
        (lambda x: [*x[:4], b"#" + x[4][1:], *x[5:]], ["changed_batch"], "not JSON"),
        (lambda x: [*x[:4], *x[5:]], ["changed_batch"], "line 2 missing"),
        (lambda x: [*x[:4], *x[6:]], ["broken_link"], "removed"),
        (swap, ["broken_link"] * 3, "swapped"),
        (lambda x: [*x[:6], x[4], *x[6:]], ["changed_batch"], "line 2 does not belong"),
        (lambda x: [*x[:5], x[5].replace(b'"lines":1', b'"lines":2'), *x[6:]],
         ["changed_batch"], "bytes were changed"),
        (lambda x: [*x[:5], x[5].replace(b"commit", b"committ"), *x[6:]],
         ["broken_link", "changed_batch"], "line 3"),
        (lambda x: [*x[:5], x[5][:-9] + b"\n", *x[6:]],
         ["broken_link", "changed_batch"], "a damaged commit line"),
        (lambda x: x[:-1], ["unsealed_tail"], "no commit line"),
    ],
)  # fmt: skip
def test_damage_is_told_as_what_it_is_with_its_place(
    path: Path, damage: Callable[[list[bytes]], list[bytes]], expected: list[str], words: str
) -> None:
    lines = five_batches(path)
    path.write_bytes(b"".join(damage(lines)))
    report = verify(path)
    assert kinds(report) == expected
    assert any(words in finding.detail for finding in report.findings)
    places = {sum(map(len, lines[:number])) for number in range(len(lines) + 1)}
    for finding in report.findings:
        if finding.kind not in {"unanchored", "broken_link"}:
            assert finding.offset in places


def test_any_flipped_bit_is_noticed(path: Path) -> None:
    five_batches(path)
    whole = path.read_bytes()
    choice = random.Random(3)
    for _ in range(400):
        data = bytearray(whole)
        at = choice.randrange(len(data))
        data[at] ^= 1 << choice.randrange(8)
        path.write_bytes(data)
        report = verify(path)
        assert kinds(report) != [], f"bit in byte {at}: {whole[max(0, at - 20) : at + 20]!r}"


@pytest.mark.parametrize(
    ("removed", "expected", "ok"),
    [(0, "missing_history", True), (1, "missing_segment", False), (-1, "missing_segment", False)],
)
def test_a_missing_segment_is_named(path: Path, removed: int, expected: str, ok: bool) -> None:
    with Journal(path, segment_limit_bytes=500) as journal:
        for _ in range(20):
            journal.append({"event_type": "x"})
            journal.flush_sync()
    segment = rotated_segments(path)[removed]
    segment.path.unlink()
    report = verify(path)
    assert report.ok is ok
    assert kinds(report) == [expected]
    assert str(segment.number) in report.findings[0].detail


def test_a_damaged_compressed_segment_is_named_and_the_others_are_checked(path: Path) -> None:
    with Journal(path, segment_limit_bytes=500) as journal:
        for _ in range(20):
            journal.append({"event_type": "x"})
            journal.flush_sync()
    victim = rotated_segments(path)[1]
    data = bytearray(victim.path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    victim.path.write_bytes(data)
    report = verify(path)
    assert kinds(report) == ["unreadable_segment"]
    assert report.findings[0].segment == victim.number
    with JournalReader(path) as reader:
        seqs = {line.seq for line in reader.lines() if line.event_type == "x"}
        assert reader.bad_lines == 1
    assert {1, 20} <= seqs


def test_without_a_journal_verify_says_so(path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no journal"):
        verify(path)
