"""Images that cannot speak: silent children, segments that are gone or never came to be."""

from __future__ import annotations

from pathlib import Path

import pytest

from substrate_services.telemetry.coverage import coverage_of
from substrate_services.telemetry.decode import DecodeSummary
from substrate_services.telemetry.segments import prepare_directory
from tests.native import ledger_files as lf
from tests.native import segment_files as sf
from tests.native.ledger_files import Ledger
from tests.native.recording import ROOT, Event, Recorder, compile_c, decode, small_file_system
from tests.native.segment_files import Segment

_EXECS = r"""
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
int main(int count, char **arguments) {
    char left[20];
    if (atoi(arguments[1]) == 0)
        return 7;
    sprintf(left, "%d", atoi(arguments[1]) - 1);
    execl(arguments[0], arguments[0], left, (char *)0);
    return 1;
}
"""
_SILENT = r"""
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>
int main(void) {
    int status;
    pid_t child = fork();
    if (child == 0)
        for (;;)
            __asm__ volatile("");
    kill(child, SIGKILL);
    return waitpid(child, &status, 0) == child && WTERMSIG(status) == SIGKILL ? 0 : 1;
}
"""


@pytest.fixture
def segments(tmp_path: Path) -> Path:
    directory = tmp_path / "seg"
    prepare_directory(directory)
    return directory


def _decode(segments: Path, ledger: Ledger) -> tuple[DecodeSummary, list[Event]]:
    path = ledger.write(segments.parent / "ledger")
    summary, events = decode(segments, root_pid=10, ledger=path)
    assert summary.failure == ""
    return summary, events


def _root() -> Ledger:
    ledger = Ledger(attested=True).fork(10, 1, 100).run(10, 110, b"/bin/prog")
    return ledger.made(10, 120, "10-1000-1-0-0")


def test_a_silent_child_of_a_covered_program_is_listed_and_covered(segments: Path) -> None:
    Segment(10, created=150).hello().open(b"/a").write(segments)
    ledger = _root().fork(11, 10, 300).exit(11, 400, 9).fork(12, 11, 350).exit(12, 500)
    summary, events = _decode(segments, ledger.exit(10, 600))
    root, child, grandchild = summary.processes
    assert (child.pid, child.coverage, child.signal, child.events) == (11, "full", 9, 0)
    assert (child.parent_span_id, grandchild.parent_span_id) == (root.span_id, child.span_id)
    assert (summary.processes_total, summary.processes_covered) == (3, 3)
    assert coverage_of(summary).state == "full"
    started = [e["pid"] for e in events if e["event_type"] == "world_process_start"]
    assert started == [10, 11, 12]


def test_a_silent_child_is_listed_where_only_its_parent_tells_of_it(
    tmp_path: Path, segments: Path
) -> None:
    program = compile_c(_SILENT, tmp_path / "silent")
    recording = Recorder(segments).run([program])
    assert recording.returncode == 0
    parent, child = recording.summary.processes
    assert (child.coverage, child.signal, child.ppid) == ("full", 9, parent.pid)
    assert child.parent_span_id == parent.span_id
    assert recording.summary.processes_covered == 2


@pytest.mark.parametrize("known", [True, False])
def test_an_empty_segment_says_that_there_was_no_room(segments: Path, known: bool) -> None:
    parent = Segment(10, created=150).hello()
    parent.call(sf.SPAWN, "posix_spawn", (sf.PATH, b"/bin/x"), at=250, arg=(11, 0, 2, 0))
    parent.write(segments)
    (segments / "11-1000-1-0-0").touch()
    ledger = _root().fork(11, 10, 300).run(11, 310, b"/bin/x").made(11, 320, "11-1000-1-0-0")
    summary = _decode(segments, ledger)[0] if known else decode(segments, root_pid=10)[0]
    _, child = summary.processes
    assert child.coverage == "none"
    assert child.coverage_reason == "no room for its segment: their file system is full"
    assert (summary.foreign_files, summary.lost) == (0, 0)


def test_programs_without_room_are_told_one_by_one(segments: Path) -> None:
    Segment(10, exec_number=2, created=350).hello().write(segments)
    ledger = Ledger(attested=True).fork(10, 1, 100)
    for number, at in ((1, 110), (2, 310), (3, 510), (4, 710)):
        ledger.run(10, at, b"/bin/%d" % number).made(10, at + 10, f"10-1000-{number}-0-0")
    (segments / "10-1000-1-0-0").touch()
    (segments / "10-1000-4-0-0").write_bytes(bytes(8192))
    ledger.removed(10, 600, "10-1000-3-0-0")
    summary, _ = _decode(segments, ledger)
    assert [(p.coverage, p.coverage_reason) for p in summary.processes] == [
        ("none", "no room for its segment: their file system is full"),
        ("full", ""),
        ("none", "1 of its segments were removed"),
        ("none", "it ended before it had said hello"),
    ]


def test_a_segment_that_its_killed_maker_never_began_is_nobody_else_s(segments: Path) -> None:
    Segment(10, created=150).hello().write(segments)
    (segments / "11-1000-1-0-0").write_bytes(bytes(8192))
    ledger = _root().fork(11, 10, 300).run(11, 310, b"/bin/x").made(11, 320, "11-1000-1-0-0")
    summary, _ = _decode(segments, ledger.exit(11, 330, 9))
    assert summary.foreign_files == 0
    assert summary.processes[1].coverage_reason == "it ended before it had said hello"


def test_libraries_that_the_loader_opened_are_among_the_files_read(segments: Path) -> None:
    made = Segment(10).hello()
    made.call(sf.LOAD, "none", (sf.LIBRARIES, b"/lib/a.so\0/lib/../b.so\0relative\0"))
    made.open(b"/opened").write(segments)
    summary, _ = decode(segments, root_pid=10)
    assert summary.reads == (b"/b.so", b"/lib/a.so", b"/opened")


def test_images_of_one_pid_are_found_however_many_there_are(segments: Path) -> None:
    for number in range(1, 1501):
        Segment(10, exec_number=number, created=1000 * number).hello().write(segments, 512)
    Segment(11, created=1_499_500).hello(ppid=10).write(segments)
    summary, _ = decode(segments, root_pid=10)
    by_number = {p.exec_no: p for p in summary.processes if p.pid == 10}
    (child,) = (p for p in summary.processes if p.pid == 11)
    assert child.parent_span_id == by_number[1499].span_id


def test_a_process_may_run_any_number_of_programs(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "seg")
    recording = recorder.run([compile_c(_EXECS, tmp_path / "execs"), "600"])
    assert recording.returncode == 7
    summary = recording.summary
    assert (summary.processes_total, summary.processes_covered) == (601, 601)
    assert {p.exec_no for p in summary.processes} == set(range(1, 602))
    assert coverage_of(summary).state == "full"


def test_removals_by_the_thousand_do_not_take_forever(segments: Path) -> None:
    Segment(10, created=150).hello().write(segments)
    ledger = _root()
    for number in range(2, 60_000):
        at, name = 1000 + 10 * number, f"10-1000-{number}-0-0"
        ledger.run(10, at, b"/bin/next").made(10, at + 1, name).removed(10, at + 2, name)
    summary, _ = _decode(segments, ledger)
    assert (summary.processes_total, summary.processes_covered) == (59_999, 1)


@pytest.mark.parametrize(("flags", "forged"), [(0, 0), (lf.SHARED, 0), (lf.SEPARATE, 1)])
def test_only_a_child_on_its_parents_memory_may_make_its_parents_segment(
    segments: Path, flags: int, forged: int
) -> None:
    Segment(10, created=150, state=sf.CONTINUED).hello().open(b"/a").write(segments)
    Segment(10, index=1, created=450, first_sequence=2).open(b"/b").write(segments)
    ledger = _root().fork(11, 10, 300, flags=flags).made(11, 400, "10-1000-1-0-1")
    summary, events = _decode(segments, ledger.run(11, 500, b"/bin/x").exit(11, 600))
    assert summary.ledger.forged_segments == forged
    paths = [event["path"] for event in events if event.get("syscall") == "open"]
    assert paths == (["/a"] if forged else ["/a", "/b"])


@pytest.mark.root
def test_a_program_without_room_says_so_and_not_that_it_is_static(tmp_path: Path) -> None:
    program = compile_c(ROOT / "native" / "tests" / "full.c", tmp_path / "full")
    with small_file_system("48k") as directory:
        recording = Recorder(directory).run(["sh", "-c", f"{program}; {program}; exit 4"])
        assert recording.returncode == 4
        reasons = [process.coverage_reason for process in recording.summary.processes]
        assert "no room for its segment: their file system is full" in reasons
        assert recording.summary.foreign_files == 0
        empty = [path for path in directory.iterdir() if path.stat().st_size == 0]
        assert 0 < len(empty) <= 2
