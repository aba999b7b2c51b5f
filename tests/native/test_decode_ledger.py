"""The decoder, holding what programs say of themselves against what the kernel says."""

from __future__ import annotations

import signal
import struct
from pathlib import Path

import pytest

from substrate_services.telemetry.coverage import coverage_of
from substrate_services.telemetry.decode import DecodeSummary
from substrate_services.telemetry.segments import prepare_directory
from tests.native import ledger_files as lf
from tests.native import segment_files as sf
from tests.native.ledger_files import Ledger
from tests.native.recording import Event, decode
from tests.native.segment_files import Segment

NS = 4026531836


@pytest.fixture
def segments(tmp_path: Path) -> Path:
    directory = tmp_path / "seg"
    prepare_directory(directory)
    return directory


def _decode(
    segments: Path, ledger: Ledger, *, root: int | None = 10, after: int = 0
) -> tuple[DecodeSummary, list[Event]]:
    path = ledger.write(segments.parent / "ledger")
    summary, events = decode(segments, root_pid=root, root_after_ns=after, ledger=path)
    assert summary.failure == ""
    return summary, events


def _root(ledger: Ledger, *, made: bool = False) -> Ledger:
    """The step's first process, 10, started by init at 100."""
    ledger.fork(10, 1, 100).run(10, 110, b"/bin/prog")
    if made:
        ledger.made(10, 120, "10-1000-1-0-0")
    return ledger


def _opened(events: list[Event]) -> list[str]:
    return [event["path"] for event in events if event.get("syscall") == "open"]


def test_processes_that_the_kernel_and_they_themselves_tell_of_are_covered(segments: Path) -> None:
    Segment(10, created=150).hello().open(b"/a").write(segments)
    Segment(11, created=350).hello(ppid=10).open(b"/b").write(segments)
    ledger = _root(Ledger()).fork(11, 10, 300).run(11, 310, b"/bin/child")
    ledger.exit(11, 2_000_000, 3 << 8).exit(10, 3_000_000)
    summary, events = _decode(segments, ledger)
    root, child = summary.processes
    assert (child.coverage, child.exit_code, child.parent_span_id) == ("full", 3, root.span_id)
    assert not any(segment.open for segment in summary.segments)  # the kernel saw them end
    assert coverage_of(summary).state == "full"
    use = summary.ledger
    assert (use.used, use.source, use.processes, use.uncovered) == (True, "bpf", 2, 0)
    ends = [event for event in events if event["event_type"] == "world_process_exit"]
    assert [(e["pid"], e["exit_code"], e["source"]) for e in ends] == [
        (10, 0, "kernel"), (11, 3, "kernel"),
    ]  # fmt: skip


def test_a_program_without_a_hello_is_told_by_the_kernel(segments: Path) -> None:
    Segment(10, created=150).hello().write(segments)
    ledger = _root(Ledger()).fork(11, 10, 300).run(11, 310, b"/opt/static")
    ledger.exit(11, 400, signal.SIGKILL)
    summary, events = _decode(segments, ledger)
    root, silent = summary.processes
    assert (silent.pid, silent.ppid, silent.exec_no, silent.exe) == (11, 10, 1, b"/opt/static")
    assert (silent.coverage, silent.signal) == ("none", signal.SIGKILL)
    assert silent.parent_span_id == root.span_id
    assert (summary.ledger.uncovered, summary.processes_covered) == (1, 1)
    start = next(e for e in events if e.get("coverage") == "none")
    assert (start["source"], start["component"], start["pid"]) == ("kernel", "ledger", 11)
    assert coverage_of(summary).state == "partial"


def test_what_its_parent_said_of_a_silent_program_is_kept(segments: Path) -> None:
    parent = Segment(10, created=150).hello(cwd=b"/work")
    parent.call(sf.CHDIR, "chdir", (sf.PATH, b"sub"), at=200, arg=(0, 0, 0, 0))
    parent.call(
        sf.SPAWN, "posix_spawn", (sf.PATH, b"./static"), (sf.ARGV, b"static\0-x\0"), at=250,
        arg=(11, 0, 2, 0),
    ).write(segments)  # fmt: skip
    ledger = _root(Ledger()).fork(11, 10, 300).run(11, 310, b"./static")
    summary, _ = _decode(segments, ledger)
    (_, silent) = summary.processes
    assert (silent.argv, silent.exe) == ((b"static", b"-x"), b"/work/sub/static")


def test_all_programs_of_a_process_count_and_hellos_find_theirs_by_time(segments: Path) -> None:
    # The preload counts hellos: its second is the kernel's third program.
    Segment(10, created=150).hello(argv=b"one\0").write(segments)
    Segment(10, exec_number=2, created=450).hello(argv=b"three\0").open(b"/3").write(segments)
    ledger = _root(Ledger()).run(10, 300, b"/two").run(10, 400, b"/three").run(10, 500, b"/four")
    summary, _ = _decode(segments, ledger.exit(10, 900))
    assert [(p.exec_no, p.exe, p.coverage) for p in summary.processes] == [
        (1, b"/bin/prog", "full"), (2, b"/two", "none"),
        (3, b"/bin/prog", "full"), (4, b"/four", "none"),
    ]  # fmt: skip
    assert [p.exit_code for p in summary.processes] == [None, None, None, 0]
    assert len({p.span_id for p in summary.processes}) == 4
    assert len({p.parent_span_id for p in summary.processes}) == 1


def test_children_of_silent_programs_are_known(segments: Path) -> None:
    ledger = _root(Ledger()).fork(11, 10, 300).fork(12, 11, 400).run(12, 410, b"/bin/covered")
    Segment(12, created=450).hello(ppid=1).open(b"/x").write(segments)
    summary, events = _decode(segments, ledger)
    by_pid = {process.pid: process for process in summary.processes}
    assert [by_pid[pid].coverage for pid in (10, 11, 12)] == ["none", "none", "full"]
    assert by_pid[11].coverage_reason == "forked by a program that is not covered"
    assert by_pid[12].parent_span_id == by_pid[11].span_id
    assert by_pid[11].parent_span_id == by_pid[10].span_id
    assert summary.root_seen  # among the processes, with its reason
    assert _opened(events) == ["/x"]


def test_the_kernel_tells_what_belongs_to_the_step(segments: Path) -> None:
    Segment(10, created=150).hello().open(b"/root").write(segments)
    # Reparented, and silent about who forked it.
    Segment(11, created=350).hello(ppid=1).open(b"/orphan").write(segments)
    # Says that it is a child of the root, which it is not.
    Segment(20, created=360).hello(ppid=10, parent=(NS, 1000, 10, 1)).open(b"/no").write(segments)
    ledger = _root(Ledger()).fork(11, 10, 300).run(11, 310, b"/bin/child")
    ledger.fork(20, 1, 320).run(20, 330, b"/bin/other").exit(20, 2_000_000)
    summary, events = _decode(segments, ledger)
    assert _opened(events) == ["/root", "/orphan"]
    assert [process.pid for process in summary.processes] == [10, 11]
    assert summary.ledger.unknown_processes == 0


def test_a_process_that_the_kernel_does_not_know_is_none(segments: Path) -> None:
    Segment(10, created=150).hello().open(b"/root").write(segments)
    Segment(99, created=400).hello(ppid=10).open(b"/invented").write(segments)
    summary, events = _decode(segments, _root(Ledger()).exit(10, 5000))
    assert _opened(events) == ["/root"]
    assert [process.pid for process in summary.processes] == [10]
    assert summary.ledger.unknown_processes == 1
    assert "not known to the kernel" in coverage_of(summary).reasons[0]


def test_where_records_were_lost_programs_are_believed(segments: Path) -> None:
    Segment(10, created=150).hello().open(b"/root").write(segments)
    Segment(99, created=400).hello(ppid=10).open(b"/child").write(segments)
    summary, events = _decode(segments, _root(Ledger()).lost(4, 300).exit(10, 5000))
    assert _opened(events) == ["/root", "/child"]
    assert (summary.ledger.lost, summary.ledger.unknown_processes) == (4, 0)
    assert coverage_of(summary).state == "partial"
    summary, _ = _decode(segments, _root(Ledger().lost(4, 50)), after=90)
    assert summary.ledger.lost == 0  # before the step


def test_a_segment_that_speaks_of_another_than_its_maker_is_left_out(segments: Path) -> None:
    Segment(10, created=150).hello().open(b"/true").write(segments)
    forged = Segment(10, chain=1, created=500).open(b"/false").open(b"/false")
    forged.write(segments)
    ledger = _root(Ledger(attested=True), made=True)
    ledger.fork(11, 10, 300).run(11, 310, b"/bin/liar").made(11, 400, forged.name)
    summary, events = _decode(segments, ledger.exit(10, 5000))
    assert _opened(events) == ["/true"]
    use = summary.ledger
    assert (use.forged_segments, use.forged_events, use.attested) == (1, 2, True)
    assert forged.name not in {segment.name for segment in summary.segments}
    assert any(
        "speak of others than who made them" in reason for reason in coverage_of(summary).reasons
    )


def test_a_segment_that_nobody_made_is_left_out(segments: Path) -> None:
    Segment(10, created=150).hello().open(b"/true").write(segments)
    Segment(10, chain=1, created=500).open(b"/linked").write(segments)
    Segment(10, chain=2, created=9_000_000).open(b"/late").write(segments)
    summary, events = _decode(segments, _root(Ledger(attested=True), made=True).exit(10, 5000))
    assert _opened(events) == ["/true"]
    assert (summary.ledger.forged_segments, summary.ledger.late_segments) == (1, 0)
    summary, _ = _decode(segments, _root(Ledger(attested=True), made=True).exit(12, 5000))
    assert (summary.ledger.forged_segments, summary.ledger.late_segments) == (1, 1)


def test_a_vfork_child_may_make_its_parents_next_segment(segments: Path) -> None:
    Segment(10, created=150, state=sf.CONTINUED).hello().open(b"/a").write(segments)
    Segment(10, index=1, created=450, first_sequence=2).open(b"/b").write(segments)
    ledger = _root(Ledger(attested=True), made=True).fork(11, 10, 300)
    ledger.made(11, 400, "10-1000-1-0-1").run(11, 500, b"/bin/x").exit(11, 600)
    _, events = _decode(segments, ledger)
    assert _opened(events) == ["/a", "/b"]
    # But no program that it runs may.
    ledger = _root(Ledger(attested=True), made=True).fork(11, 10, 300)
    ledger.run(11, 390, b"/bin/x").made(11, 400, "10-1000-1-0-1").exit(11, 600)
    summary, events = _decode(segments, ledger)
    assert _opened(events) == ["/a"]
    assert summary.ledger.forged_segments == 1


def test_in_a_pid_namespace_of_its_own_a_process_is_who_made_its_first_segment(
    segments: Path,
) -> None:
    inner = 4026532000
    Segment(10, created=150).hello().write(segments)
    Segment(1, namespace=inner, created=350).hello(ppid=0).open(b"/inner").write(segments)
    Segment(1, namespace=inner, chain=1, created=450).open(b"/false").write(segments)
    ledger = _root(Ledger(attested=True), made=True).fork(11, 10, 300).run(11, 310, b"/bin/prog")
    ledger.made(11, 320, "1-1000-1-0-0").fork(12, 10, 330).run(12, 340, b"/bin/liar")
    ledger.made(12, 400, "1-1000-1-1-0").exit(11, 5000, 7 << 8)
    summary, events = _decode(segments, ledger)
    assert _opened(events) == ["/inner"]
    assert next(p for p in summary.processes if p.pid == 1).exit_code == 7
    assert summary.ledger.forged_segments == 1


def test_removed_segments_are_told_of_their_process(segments: Path) -> None:
    Segment(10, created=150, state=sf.CONTINUED).hello().open(b"/a").write(segments)
    ledger = _root(Ledger(attested=True), made=True)
    ledger.made(10, 200, "10-1000-1-0-1").removed(10, 300, "10-1000-1-0-1")
    ledger.fork(11, 10, 400).run(11, 410, b"/bin/shy").made(11, 420, "11-1000-1-0-0")
    ledger.removed(11, 430, "11-1000-1-0-0")
    ledger.fork(12, 10, 500).made(12, 520, "12-1000-0-0-0").removed(12, 530, "12-1000-0-0-0")
    summary, _ = _decode(segments, ledger)
    told = [(p.pid, p.coverage, p.coverage_reason) for p in summary.processes]
    assert told == [
        (10, "partial", "1 of its segments were removed"),
        (11, "none", "1 of its segments were removed"),
        (12, "none", "1 of its segments were removed"),
    ]


def test_a_pid_that_was_used_before_is_told_apart_by_time(segments: Path) -> None:
    Segment(10, start=1, created=150).hello().open(b"/old").write(segments)
    Segment(10, start=2, created=950).hello().open(b"/new").write(segments)
    ledger = _root(Ledger()).exit(10, 200).fork(10, 1, 900).run(10, 910, b"/bin/prog")
    summary, events = _decode(segments, ledger, after=500)
    assert _opened(events) == ["/new"]
    assert (summary.processes_total, summary.ledger.unknown_processes) == (1, 0)


def test_records_may_stand_out_of_order_by_a_little(segments: Path) -> None:
    Segment(11, created=350).hello().write(segments)
    ledger = Ledger().run(11, 310, b"/bin/child").fork(11, 10, 300).run(10, 110, b"/a")
    summary, _ = _decode(segments, ledger.fork(10, 1, 100))
    assert [(p.pid, p.coverage) for p in summary.processes] == [(10, "none"), (11, "full")]


def test_processes_without_a_pid_leave_programs_believed(segments: Path) -> None:
    Segment(10, created=150).hello().write(segments)
    Segment(11, created=350).hello(ppid=10).open(b"/x").write(segments)
    ledger = _root(Ledger(source=lf.PROC_CONNECTOR))
    ledger.add(lf.FORK, 300, 0, parent=10, host_pid=777).add(lf.EXIT, 400, 0, host_pid=777)
    summary, events = _decode(segments, ledger)
    assert _opened(events) == ["/x"]
    use = summary.ledger
    assert (use.source, use.nameless, use.unknown_processes) == ("proc_connector", 1, 0)


def test_what_lies_before_the_first_record_that_matters_is_skipped(segments: Path) -> None:
    Segment(10, created=150).hello().write(segments)
    ledger = Ledger(first=lf.HEADER.size + 2 * lf.RECORD.size)
    ledger.records += [bytes(lf.RECORD.size), b"\xff" * lf.RECORD.size]
    summary, _ = _decode(segments, _root(ledger))
    assert (summary.ledger.used, summary.processes_total) == (True, 1)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "too short"),
        (b"x" * 64, "another format"),
        (Ledger().data()[:-8] + b"x" * 8, "first process"),
        (Ledger(first=100).data(), "between two records"),
        (Ledger(first=2**63 + 64).data(), "between two records"),
        (Ledger().fork(77, 1, 5).data(), "first process"),
        (_root(Ledger()).data()[:-100], ""),
    ],
)
def test_a_ledger_that_makes_no_sense_is_not_used_and_that_is_told(
    segments: Path, data: bytes, why: str
) -> None:
    Segment(10, created=150).hello().open(b"/x").write(segments)
    path = segments.parent / "ledger"
    path.write_bytes(data)
    summary, events = decode(segments, root_pid=10, ledger=path)
    assert summary.failure == ""
    assert _opened(events) == ["/x"]
    assert why in summary.ledger.why
    assert (why == "") == summary.ledger.used
    state = coverage_of(summary).state
    assert state == ("full" if why == "" else "partial")


def test_endless_ledgers_end(segments: Path) -> None:
    Segment(10, created=150).hello().write(segments)
    path = _root(Ledger()).write(segments.parent / "ledger")
    with path.open("r+b") as file:
        file.truncate(1 << 32)  # a hole reads as records of type 0
    summary, _ = decode(segments, root_pid=10, ledger=path)
    assert summary.failure == ""
    assert summary.ledger.lost > 0
    assert summary.processes_total == 1


def test_a_hundred_thousand_processes_do_not_take_forever(segments: Path) -> None:
    Segment(10, created=150).hello().write(segments)
    ledger = _root(Ledger())
    pack, comm = lf.RECORD.pack, b"true"
    for i in range(50_000):
        pid, at = 100 + i % 30_000, 1000 + 10 * i
        host = lf.HOST + pid
        ledger.records += [
            pack(lf.FORK, 0, 0, at, pid, 10, host, lf.HOST + 10, 0, comm, b""),
            pack(lf.EXEC, 0, 0, at + 1, pid, 0, host, 0, 0, comm, b"/bin/true"),
            pack(lf.EXIT, 0, 0, at + 2, pid, 0, host, 0, 0, comm, b""),
        ]
    for i in range(50_000):  # and one that runs program after program
        ledger.run(10, 10_000_000 + i, b"/bin/next")
    summary, _ = _decode(segments, ledger)
    assert summary.ledger.uncovered == 100_000
    assert summary.processes_total == 100_001
    assert len(summary.processes) == 4096


def test_the_records_of_this_file_are_those_of_the_header() -> None:
    text = (Path(__file__).resolve().parents[2] / "native" / "include" / "ledger.h").read_text()
    assert f"sizeof(struct sub_ledger_record) == {lf.RECORD.size}" in text
    assert f"sizeof(struct sub_ledger_header) == {lf.HEADER.size}" in text
    assert struct.pack("<Q", lf.MAGIC) in Ledger().data()
