from __future__ import annotations

import io
from dataclasses import dataclass, field, replace
from typing import BinaryIO, cast

import blake3
import pytest

from substrate_services.journal.schema import (
    Action,
    Change,
    Command,
    Coverage,
    Decision,
    FileState,
    Process,
    SpanRecord,
    TerminationReason,
)
from substrate_services.replay.compare import CompareOptions, Comparison, compare
from substrate_services.replay.divergence import Divergence
from substrate_services.replay.normalise import MAX_LINE_BYTES, RunFacts
from substrate_services.replay.observed import (
    FileRead,
    Observed,
    Stream,
    Unavailable,
    observe,
)

FULL = Coverage("full", processes=1, covered=1)


@dataclass
class Objects:
    """An object store in memory; `opened` shows what was read."""

    held: dict[str, bytes] = field(default_factory=dict)
    opened: list[str] = field(default_factory=list)

    def put(self, data: bytes) -> str:
        digest = blake3.blake3(data).hexdigest()
        self.held[digest] = data
        return digest

    def has(self, digest: str) -> bool:
        return digest in self.held

    def open(self, digest: str) -> BinaryIO:
        self.opened.append(digest)
        return io.BytesIO(self.held[digest])


def run(out: bytes = b"", err: bytes = b"", *changes: Change) -> Observed:
    return Observed(
        termination_reason="EXITED",
        exit_code=0,
        signal=None,
        stdout=Stream.of(out),
        stderr=Stream.of(err),
        changes=changes,
        coverage=FULL,
        files_read=(),
        endpoints=(),
    )


def created(path: bytes, state: FileState | None = None, *, outside: bool = False) -> Change:
    after = state or FileState("file", 0o644, size=3, digest="aa")
    return Change(path, "created", "outside" if outside else "project", None, after)


def causes(found: Comparison) -> list[tuple[str, str]]:
    return [(item.dimension, item.cause) for item in found.divergences]


def reasons(found: Comparison) -> dict[str, str]:
    return {item.dimension: item.reason for item in found.not_compared}


def only(found: Comparison) -> Divergence:
    assert len(found.divergences) == 1, found.divergences
    assert found.first is not None
    return found.first


def test_equal_runs_are_equal_in_everything_that_was_seen() -> None:
    found = compare(run(b"a\n", b"b\n", created(b"/w/x")), run(b"a\n", b"b\n", created(b"/w/x")))
    assert found.divergences == found.observations == ()
    assert found.first is None
    assert found.compared == (
        "exit",
        "changes",
        "stdout",
        "stderr",
        "processes",
        "files_read",
        "endpoints",
    )
    assert set(reasons(found)) == {"mtime", "duration"}


@pytest.mark.parametrize(
    ("changed", "cause", "expected", "actual"),
    [
        ({"exit_code": 3}, "exit_code", b"exited 0", b"exited 3"),
        (
            {"exit_code": None, "signal": "SIGSEGV", "termination_reason": "SIGNALED"},
            "termination",
            b"exited 0",
            b"killed by SIGSEGV",
        ),
        (
            {"exit_code": None, "termination_reason": "TIMEOUT"},
            "termination",
            b"exited 0",
            b"timed out",
        ),
    ],
)
def test_another_end_diverges(
    changed: dict[str, object], cause: str, expected: bytes, actual: bytes
) -> None:
    found = only(compare(run(), replace(run(), **changed)))  # type: ignore[arg-type]
    assert (found.dimension, found.cause) == ("exit", cause)
    assert (found.expected, found.actual) == (expected, actual)


def test_another_signal_diverges() -> None:
    killed = replace(run(), exit_code=None, signal="SIGKILL", termination_reason="SIGNALED")
    found = only(compare(killed, replace(killed, signal="SIGTERM")))
    assert (found.cause, found.actual) == ("signal", b"killed by SIGTERM")


def test_what_matters_most_comes_first() -> None:
    recorded = run(b"a\n", b"a\n", created(b"/w/x"), created(b"/etc/a", outside=True))
    replayed = replace(run(b"b\n", b"b\n"), exit_code=1)
    found = compare(recorded, replayed)
    assert [(item.dimension, item.place) for item in found.divergences] == [
        ("exit", "exit"),
        ("changes", "/w/x"),
        ("changes", "/etc/a"),
        ("stdout", "stdout, line 1"),
        ("stderr", "stderr, line 1"),
    ]


# --- changes -------------------------------------------------------------------------------------

FILE = FileState("file", 0o644, size=3, digest="aa", mtime_ns=1)


@pytest.mark.parametrize(
    ("other", "found"),
    [
        (replace(FILE, mode=0o755), ["mode"]),
        (replace(FILE, digest="bb"), ["content"]),
        (replace(FILE, digest="bb", mode=0o600, uid=5), ["content", "mode", "owner"]),
        (FileState("dir", 0o644), ["file_type"]),
        (FileState("symlink", 0o777, target=b"t"), ["file_type"]),
        (replace(FILE, mtime_ns=2), []),
        # A directory's size says nothing about what is in it.
        (replace(FILE, size=4), []),
    ],
)
def test_each_property_of_a_changed_path_counts(other: FileState, found: list[str]) -> None:
    comparison = compare(
        run(b"", b"", created(b"/w/x", FILE)), run(b"", b"", created(b"/w/x", other))
    )
    assert [cause for _, cause in causes(comparison)] == found


def test_links_are_compared_by_their_target() -> None:
    one, two = (FileState("symlink", 0o777, target=target) for target in (b"a", b"b\xff"))
    found = only(
        compare(run(b"", b"", created(b"/w/l", one)), run(b"", b"", created(b"/w/l", two)))
    )
    assert (found.cause, found.expected, found.actual) == ("link_target", b"a", b"b\xff")


def test_modification_times_count_when_asked_for() -> None:
    runs = [run(b"", b"", created(b"/w/x", replace(FILE, mtime_ns=ns))) for ns in (1, 2)]
    found = compare(*runs, options=CompareOptions(mtime=True))
    assert causes(found) == [("mtime", "mtime")]
    assert "mtime" in found.compared
    assert causes(compare(*runs)) == []


def test_changes_that_only_one_run_made_diverge() -> None:
    deleted = Change(b"/w/README.md", "deleted", "project", FILE, None)
    found = compare(run(b"", b"", deleted), run(b"", b"", created(b"/w/\xff")))
    assert [(item.cause, item.path) for item in found.divergences] == [
        ("change_missing", b"/w/README.md"),
        ("change_extra", b"/w/\xff"),
    ]
    assert found.divergences[0].expected == b"deleted"


def test_a_deletion_is_not_a_modification() -> None:
    deleted = Change(b"/w/x", "deleted", "project", FILE, None)
    modified = Change(b"/w/x", "modified", "project", FILE, replace(FILE, digest="bb"))
    assert causes(compare(run(b"", b"", deleted), run(b"", b"", modified))) == [
        ("changes", "change_kind")
    ]


def test_a_replay_that_began_elsewhere_is_never_called_identical() -> None:
    # The checkout's own file was edited after the recording: equal ends do not make it equal.
    old = Change(b"/w/x", "modified", "project", FILE, replace(FILE, digest="cc"))
    new = replace(old, before=replace(FILE, digest="bb"))
    assert causes(compare(run(b"", b"", old), run(b"", b"", new))) == [
        ("changes", "different_start")
    ]
    gone = Change(b"/w/x", "deleted", "project", FILE, None)
    assert causes(
        compare(
            run(b"", b"", gone), run(b"", b"", replace(gone, before=replace(FILE, digest="bb")))
        )
    ) == [("changes", "different_start")]


def test_a_renamed_file_came_from_somewhere() -> None:
    old = Change(b"/w/b", "renamed", "project", FILE, FILE, renamed_from=b"/w/a")
    new = replace(old, renamed_from=b"/w/c")
    assert causes(compare(run(b"", b"", old), run(b"", b"", new))) == [("changes", "renamed_from")]


def test_the_line_that_differs_in_a_changed_file_is_shown() -> None:
    objects = Objects()
    old, new = (
        FileState("file", 0o644, size=len(text), digest=objects.put(text))
        for text in (b"one\ntwo\nthree\n", b"one\ntwo!\nthree\n")
    )
    found = only(
        compare(
            run(b"", b"", created(b"/w/x", old)),
            run(b"", b"", created(b"/w/x", new)),
            objects=objects,
        )
    )
    assert (found.place, found.line, found.offset) == ("/w/x, line 2", 2, 7)
    assert (found.expected, found.actual) == (b"two\n", b"two!\n")
    assert found.detail == "14 bytes became 15"


def test_times_in_files_are_content() -> None:
    objects = Objects()
    old, new = (
        FileState("file", 0o644, size=9, digest=objects.put(text))
        for text in (b"took 0.1s", b"took 0.2s")
    )
    found = compare(
        run(b"", b"", created(b"/w/x", old)), run(b"", b"", created(b"/w/x", new)), objects=objects
    )
    assert causes(found) == [("changes", "content")]


def test_binary_content_and_lost_objects_are_reported_without_lines() -> None:
    objects = Objects()
    old = FileState("file", 0o644, size=2, digest=objects.put(b"\0a"))
    new = replace(old, digest=objects.put(b"\0b"))
    lost = replace(old, digest="ff" * 32)
    for other in (new, lost):
        found = only(
            compare(
                run(b"", b"", created(b"/w/x", old)),
                run(b"", b"", created(b"/w/x", other)),
                objects=objects,
            )
        )
        assert found.line is None
        assert found.cause == "content"
        assert found.expected is not None
        assert found.expected.startswith(b"file 0644, 2 bytes, ")


def test_content_without_a_digest_is_not_said_to_be_equal() -> None:
    unhashed = replace(FILE, digest=None)
    found = compare(
        run(b"", b"", created(b"/w/x", FILE)), run(b"", b"", created(b"/w/x", unhashed))
    )
    assert found.divergences == ()
    assert "changes" not in found.compared
    assert "1 file" in reasons(found)["changes"]


def test_lists_of_changes_that_are_not_complete_are_compared_where_both_have_the_path() -> None:
    old = replace(run(b"", b"", created(b"/w/a"), created(b"/w/b")), changes_omitted=7)
    new = run(b"", b"", created(b"/w/a", replace(FILE, digest="bb")))
    found = compare(old, new)
    assert causes(found) == [("changes", "content")]
    assert "changes" not in found.compared
    assert reasons(found)["changes"] == "7 changes of the recording are not listed"


def test_recorded_temporary_names_are_the_same_path() -> None:
    def left(name: bytes, *digests: str) -> Observed:
        base = b"/tmp/" + name
        return replace(
            run(
                b"kept " + name + b"\n",
                b"",
                created(base, FileState("dir", 0o700), outside=True),
                *(
                    created(base + b"/%d" % number, replace(FILE, digest=digest), outside=True)
                    for number, digest in enumerate(digests)
                ),
            ),
            facts=RunFacts(temp_names=(name,)),
        )

    found = compare(left(b"tmp.aaaaaaaaaa", "aa", "bb"), left(b"tmp.bbbbbbbbbb", "aa", "bb"))
    assert found.divergences == ()
    assert found.normalisation == {"temp_name": 4}
    found = compare(left(b"tmp.aaaaaaaaaa", "aa", "bb"), left(b"tmp.bbbbbbbbbb", "aa", "cc"))
    assert [(item.cause, item.path) for item in found.divergences] == [
        ("content", b"/tmp/tmp.aaaaaaaaaa/1")
    ]


def test_thousands_of_divergences_are_counted_and_not_all_listed() -> None:
    many = tuple(created(b"/w/%05d" % number) for number in range(2500))
    found = compare(run(b"", b"", *many), run())
    assert (len(found.divergences), found.omitted) == (1000, 1500)


# --- output --------------------------------------------------------------------------------------


def test_the_first_line_that_differs_is_named_with_its_place() -> None:
    found = only(compare(run(b"a\ntook 1ms\nb\xff\nc\n"), run(b"a\ntook 22ms\nb\xfe\nd\n")))
    assert (found.dimension, found.cause, found.line, found.offset) == (
        "stdout",
        "line_differs",
        3,
        len(b"a\ntook 1ms\nb"),
    )
    assert (found.expected, found.actual) == (b"b\xff\n", b"b\xfe\n")


def test_random_counters_and_unseen_pids_in_the_output_diverge() -> None:
    # What `date +%s%N`, `echo $RANDOM` and `echo $$` print: issue 2, Done-when 1.
    facts = RunFacts(started_at=1732279380.0, duration_s=1)
    later = RunFacts(started_at=1732279480.0, duration_s=1)
    for old, new in (
        (b"1732279380123456789\n", b"1732279480123456789\n"),
        (b"4711\n", b"815\n"),
        (b"pid 4711\n", b"pid 815\n"),
    ):
        found = compare(replace(run(old), facts=facts), replace(run(new), facts=later))
        assert causes(found) == [("stdout", "line_differs")]


@pytest.mark.parametrize(
    ("recorded", "replayed", "cause", "line", "lines"),
    [
        (b"a\nb\n", b"a\n", "ends_early", 2, (b"b\n", None)),
        (b"a\n", b"a\nb\n", "extra_output", 2, (None, b"b\n")),
        (b"", b"b", "extra_output", 1, (None, b"b")),
        (b"a\n", b"a", "line_differs", 1, (b"a\n", b"a")),
        (b"x\na 1ms\nb\n", b"x\nb\na 2ms\n", "reordered", 2, (b"a 1ms\n", b"b\n")),
        (b"a\r\n", b"a\n", "line_differs", 1, (b"a\r\n", b"a\n")),
    ],
)
def test_outputs_part_ways_in_different_manners(
    recorded: bytes,
    replayed: bytes,
    cause: str,
    line: int,
    lines: tuple[bytes | None, bytes | None],
) -> None:
    found = only(compare(run(recorded), run(replayed)))
    assert (found.cause, found.line) == (cause, line)
    assert (found.expected, found.actual) == lines


def test_a_cut_output_is_compared_as_far_as_it_goes() -> None:
    cut = replace(run(), stdout=Stream.of(b"a\nb\nc", cut=True))
    found = compare(cut, run(b"a\nb\nd\ne\n"))
    assert found.divergences == ()
    assert "stdout" not in found.compared
    assert (
        reasons(found)["stdout"] == "compared up to byte 5, where the output was cut at its limit"
    )
    assert causes(compare(cut, run(b"a\nX\n"))) == [("stdout", "line_differs")]
    # A whole output that is shorter than a cut one has lost something.
    assert causes(compare(cut, run(b"a\n"))) == [("stdout", "ends_early")]


def test_output_that_is_gone_is_not_compared() -> None:
    gone = replace(run(), stdout=Unavailable("stdout was not kept"))
    found = compare(gone, run(b"x"))
    assert found.divergences == ()
    assert "stdout" not in found.compared
    assert reasons(found)["stdout"] == "recording: stdout was not kept"


def test_a_terminal_has_one_stream() -> None:
    found = compare(replace(run(b"a\r\n"), pty=True), replace(run(b"a\r\n"), pty=True))
    assert found.divergences == ()
    assert "stdout" in found.compared
    assert "stderr" not in found.compared
    assert "one stream" in reasons(found)["stderr"]
    mixed = compare(replace(run(b"a\r\n"), pty=True), run(b"a\n"))
    assert not {"stdout", "stderr"} & set(mixed.compared)


@pytest.mark.parametrize("reason", ["KILLED_BY_USER", "WORLD_REMOVED", "AGENT_LOST"])
def test_a_run_that_was_ended_from_outside_has_no_end_to_compare(reason: str) -> None:
    ended = replace(
        run(b"a\nb"), termination_reason=cast("TerminationReason", reason), exit_code=None
    )
    found = compare(ended, run(b"a\nbc\nd\n", b"", created(b"/w/x")))
    assert found.divergences == ()
    assert not {"exit", "changes", "stdout"} & set(found.compared)
    assert causes(compare(ended, run(b"X\n"))) == [("stdout", "line_differs")]


def test_two_runs_that_timed_out_are_compared_as_far_as_both_came() -> None:
    def timed_out(out: bytes) -> Observed:
        return replace(run(out), termination_reason="TIMEOUT", exit_code=None, signal="SIGKILL")

    found = compare(timed_out(b"1\n2\n3\n"), timed_out(b"1\n2\n"))
    assert found.divergences == ()
    assert "exit" in found.compared
    assert "stopped with its run" in reasons(found)["stdout"]


def test_equal_digests_spare_reading_the_output() -> None:
    objects = Objects()
    digest = objects.put(b"x" * 100)
    stream = Stream(lambda: objects.open(digest), 100, digest)
    found = compare(replace(run(), stdout=stream), replace(run(), stdout=stream))
    assert "stdout" in found.compared
    assert objects.opened == []


def test_long_lines_are_compared_as_they_are_and_shown_around_the_difference() -> None:
    line = b"took 0.1s " * (MAX_LINE_BYTES // 5)
    found = only(compare(run(b"a\n" + line + b"X\n"), run(b"a\n" + line + b"Y\n")))
    assert (found.line, found.offset) == (2, 2 + len(line))
    assert found.expected is not None
    assert len(found.expected) <= 240
    assert b"X" in found.expected
    # Where a piece of a long line begins is chance; nothing is set aside in it.
    other = line[:-10] + b"took 0.2s "
    assert causes(compare(run(line), run(other))) == [("stdout", "line_differs")]
    assert compare(run(line), run(line)).divergences == ()


def test_a_stream_may_be_read_in_any_pieces() -> None:
    class Slow(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            return super().read(min(3, size or 3))

    text = b"".join(b"line %d took 1ms\n" % number for number in range(50))
    slow = replace(run(), stdout=Stream(lambda: Slow(text.replace(b"1ms", b"2ms")), len(text)))
    found = compare(run(text), slow)
    assert found.divergences == ()
    assert found.normalisation == {"duration": 50}


# --- what telemetry saw --------------------------------------------------------------------------


def process(name: str, parent: str, argv: bytes, exit_code: int | None = 0) -> Process:
    return Process(name, parent, 5, 1, 1, 0, 1, (argv,), b"/bin/x", b"/", exit_code, None)


TREE = (process("a", "step", b"make"), process("b", "a", b"cc"), process("c", "a", b"ld"))


def test_processes_are_compared_by_lineage_and_not_by_order() -> None:
    shuffled = (
        process("z", "y", b"ld"),
        process("x", "y", b"cc"),
        process("y", "other-step", b"make"),
    )
    found = compare(replace(run(), processes=TREE), replace(run(), processes=shuffled))
    assert found.observations == ()
    assert "processes" in found.compared


def test_a_different_process_tree_is_an_observation_and_no_divergence() -> None:
    other = (TREE[0], process("b", "a", b"cc", 1), process("c", "b", b"ld"))
    found = compare(replace(run(), processes=TREE), replace(run(), processes=other))
    assert found.divergences == ()
    assert [(item.cause, item.place) for item in found.observations] == [
        ("process_missing", "cc, exit 0"),
        ("process_missing", "ld, exit 0"),
        ("process_extra", "cc, exit 1"),
        ("process_extra", "ld, exit 0"),
    ]
    # What differs is not among what was found equal.
    assert "processes" not in found.compared
    assert "do not decide the verdict" in reasons(found)["processes"]


def test_a_circle_in_the_process_tree_ends() -> None:
    circle = (process("a", "b", b"x"), process("b", "a", b"y"))
    assert compare(replace(run(), processes=circle), replace(run(), processes=circle)).compared


def test_look_ups_count_with_their_outcome() -> None:
    old = replace(run(), files_read=(FileRead(b"/etc/a"), FileRead(b"/etc/b", found=False)))
    new = replace(run(), files_read=(FileRead(b"/etc/a"), FileRead(b"/etc/b")))
    found = compare(old, new)
    assert [(item.cause, item.place) for item in found.observations] == [
        ("file_missing", "/etc/b (not found)"),
        ("file_extra", "/etc/b"),
    ]


def test_endpoints_are_compared() -> None:
    old = replace(run(), endpoints=("pypi.org:443", "a:1"))
    found = compare(old, replace(run(), endpoints=("a:1",)))
    assert [item.place for item in found.observations] == ["pypi.org:443"]


def test_partial_coverage_is_no_ground_to_compare_processes_on() -> None:
    partial = replace(run(), coverage=Coverage("partial", ("1 static process",)))
    found = compare(run(), partial)
    assert found.divergences == ()
    assert found.compared == ("exit", "changes", "stdout", "stderr")
    assert reasons(found)["processes"] == "coverage of the replay is partial: 1 static process"
    assert {"processes", "files_read", "endpoints"} <= set(reasons(found))


def test_what_was_not_read_from_the_events_is_not_compared() -> None:
    found = compare(replace(run(), files_read=None, endpoints=None), run())
    assert "files_read" not in found.compared
    assert "endpoints" not in found.compared
    omitted = compare(replace(run(), processes_omitted=3), run())
    assert reasons(omitted)["processes"] == "not all processes are listed"


# --- from a span's record ------------------------------------------------------------------------


def span(objects: Objects, out: bytes, span_id: str, pid: int) -> SpanRecord:
    action = Action(Command((b"x",)), b"/", (), 0o22, "0", None, None, None)
    return SpanRecord(
        span_id=span_id,
        trace_id=span_id * 2,
        session_id="ses_" + span_id,
        world_id="wld_" + span_id,
        exec_id="exe_" + span_id,
        kind="exec",
        agent_id="",
        parent_span=None,
        start_time=1732279380.0,
        duration_ms=1500.0,
        action=action,
        decision=Decision("allow", "default", "", "enforce", ""),
        termination_reason="EXITED",
        exit_code=0,
        signal=None,
        stdout_digest=objects.put(out),
        stderr_digest=None,
        output_digest=None,
        stdout_bytes=len(out),
        stderr_bytes=0,
        truncated=False,
        changes=(created(b"/tmp/tmp." + span_id[:10].encode()),),
        changes_truncated=0,
        changes_digest=None,
        blocked=(),
        coverage=FULL,
        processes=(replace(process("p" + span_id, span_id, b"x"), pid=pid),),
        processes_truncated=0,
        events_digest=None,
        event_counts=(),
        snapshot_after=None,
        inputs_digest=None,
    )


def test_a_spans_record_carries_the_facts_that_are_set_aside() -> None:
    objects = Objects()
    runs = [
        observe(
            span(
                objects,
                f"pid {pid} in wld_{span_id} of {span_id}: /tmp/tmp.{span_id[:10]}\n".encode(),
                span_id,
                pid,
            ),
            objects,
        )
        for span_id, pid in (("0123456789abcdef", 7), ("fedcba9876543210", 9))
    ]
    found = compare(*runs, objects=objects)
    assert found.divergences == ()
    assert found.normalisation == {"pid": 1, "world_id": 1, "span_id": 1, "temp_name": 2}
    assert "stderr" in found.compared


def test_a_spans_output_may_be_lost() -> None:
    objects = Objects()
    record = span(objects, b"x", "0123456789abcdef", 7)
    objects.held.clear()
    lost = observe(record, objects).stdout
    assert isinstance(lost, Unavailable)
    assert "no longer in the object store" in lost.reason
    unkept = observe(replace(record, stdout_digest=None), objects).stdout
    assert unkept == Unavailable("stdout was not kept")
