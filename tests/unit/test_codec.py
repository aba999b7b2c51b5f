"""Lines of the journal: exact both ways, with the original's names."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import replace
from typing import get_args

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from substrate_services.journal import bytesjson, codec, parts
from substrate_services.journal.action import action_digest
from substrate_services.journal.jsontypes import (
    JsonObject,
    LineError,
    canonical_bytes,
    compact_bytes,
)
from substrate_services.journal.schema import (
    Action,
    Blocked,
    Change,
    ChangeKind,
    ChangeScope,
    Command,
    Coverage,
    CoverageState,
    Decision,
    DecisionAction,
    FileFingerprint,
    FileKind,
    FileState,
    PolicyMode,
    Process,
    SpanRecord,
    TerminationReason,
)

AWKWARD = [
    b"",
    b"plain",
    b"with space",
    b"\"quoted\" and 'single'",
    b"line\nbreak\r\n\ttab",
    b"nul\x00inside",
    b"\xff\xfe not utf-8",
    b"\xed\xa0\x80",  # how CESU-8 writes a lone surrogate
    b"\xed\xb2\x80",
    b"\xc0\xaf",  # an over-long slash
    "ünïcödé 🚀 \u2028".encode(),
    b'{"b64": "AAAA"}',
    b"\\u0000",
]

data = st.one_of(st.sampled_from(AWKWARD), st.binary(max_size=12))
text = st.text(max_size=12)
digest = st.from_regex(r"[0-9a-f]{64}", fullmatch=True)
opt_digest = st.none() | digest
span_id = st.from_regex(r"[0-9a-f]{16}", fullmatch=True)
whole = st.integers(-(2**63), 2**64)


def tuples(strategy: st.SearchStrategy[object]) -> st.SearchStrategy[tuple[object, ...]]:
    return st.lists(strategy, max_size=3).map(tuple)


file_state = st.builds(
    FileState,
    kind=st.sampled_from(get_args(FileKind)),
    mode=st.integers(0, 0o7777),
    size=whole,
    digest=opt_digest,
    target=st.none() | data,
    uid=whole,
    gid=whole,
    mtime_ns=whole,
    rdev=whole,
)
change = st.builds(
    Change,
    path=data,
    kind=st.sampled_from(get_args(ChangeKind)),
    scope=st.sampled_from(get_args(ChangeScope)),
    before=st.none() | file_state,
    after=st.none() | file_state,
    renamed_from=st.none() | data,
)
action = st.builds(
    Action,
    command=st.builds(Command, argv=tuples(data), shell=st.none() | data),
    cwd=data,
    env=tuples(st.tuples(data, data)),
    umask=st.integers(0, 0o777),
    user=text,
    stdin_digest=opt_digest,
    snapshot_id=opt_digest,
    timeout_s=st.none() | st.floats(0, 1e9) | st.integers(0, 10**6),
    pty=st.booleans(),
    pty_size=st.none() | st.tuples(whole, whole),
    profile=text,
    network=tuples(text),
    limits=tuples(st.tuples(text, whole)),
    policy_hash=text,
    first_pid=st.none() | whole,
)
decision = st.builds(
    Decision,
    action=st.sampled_from(get_args(DecisionAction)),
    rule_id=text,
    reason=text,
    mode=st.sampled_from(get_args(PolicyMode)),
    policy_hash=text,
    source=text,
    decider=text,
    enforced=st.booleans(),
)
process = st.builds(
    Process,
    span_id=span_id,
    parent_span_id=span_id,
    pid=whole,
    ppid=whole,
    exec_no=whole,
    start_ns=whole,
    end_ns=st.none() | whole,
    argv=tuples(data),
    exe=data,
    cwd=data,
    exit_code=st.none() | whole,
    signal=st.none() | whole,
    coverage=st.sampled_from(get_args(CoverageState)),
    coverage_reason=text,
    events=whole,
)
moment = st.floats(0, 4e9, allow_nan=False)
span = st.builds(
    SpanRecord,
    span_id=span_id,
    trace_id=st.from_regex(r"[0-9a-f]{32}", fullmatch=True),
    session_id=text,
    world_id=text,
    exec_id=text,
    kind=text,
    agent_id=text,
    parent_span=st.none() | span_id,
    start_time=moment,
    duration_ms=st.floats(0, 1e9, allow_nan=False),
    action=action,
    decision=decision,
    termination_reason=st.sampled_from(get_args(TerminationReason)),
    exit_code=st.none() | whole,
    signal=st.none() | text,
    stdout_digest=opt_digest,
    stderr_digest=opt_digest,
    output_digest=opt_digest,
    stdout_bytes=whole,
    stderr_bytes=whole,
    truncated=st.booleans(),
    changes=tuples(change),
    changes_truncated=st.integers(0, 10**9),
    changes_digest=opt_digest,
    blocked=tuples(st.builds(Blocked, what=text, layer=text, rule=text, fix=text)),
    coverage=st.builds(
        Coverage,
        state=st.sampled_from(get_args(CoverageState)),
        reasons=tuples(text),
        processes=whole,
        covered=whole,
        events=whole,
        lost=whole,
    ),
    processes=tuples(process),
    processes_truncated=whole,
    events_digest=opt_digest,
    event_counts=tuples(st.tuples(text, whole)),
    snapshot_after=opt_digest,
    inputs_digest=opt_digest,
    replay_of=st.none() | span_id,
    labels=tuples(st.tuples(text, text)),
    replay_of_trace=st.none() | text,
    utc_offset_ns=st.none() | whole,
    hosts=tuples(text),
    shared=st.booleans(),
    project=st.none() | st.binary(max_size=20),
)


def through_the_file(line: JsonObject) -> JsonObject:
    raw = compact_bytes({"seq": 1, "v": codec.SCHEMA_VERSION, **line})
    assert b"\n" not in raw
    value = json.loads(raw)
    assert isinstance(value, dict)
    return value


@given(st.binary())
@example(b"\xed\xa0\x80")
@example(b"\xff\n\"'")
def test_bytes_come_back_as_they_were(value: bytes) -> None:
    raw = json.dumps(bytesjson.encode(value))
    assert bytesjson.decode(json.loads(raw)) == value


def test_utf8_bytes_read_as_text_and_others_as_base64() -> None:
    assert bytesjson.encode("grüße".encode()) == "grüße"
    assert bytesjson.encode(b"\xff") == {"b64": "/w=="}


@pytest.mark.parametrize("value", [None, 3, [], {}, {"b64": 4}, {"b64": "%%"}, "\ud800"])
def test_what_is_not_bytes_is_refused_with_the_field_named(value: object) -> None:
    with pytest.raises(LineError, match=r"action\.cwd"):
        bytesjson.decode(value, "action.cwd")  # type: ignore[arg-type]


@settings(max_examples=300, deadline=None)
@given(span)
def test_every_span_comes_back_equal(record: SpanRecord) -> None:
    line = through_the_file(codec.span_to_line(record))
    assert codec.span_from_line(line) == record


@settings(max_examples=100, deadline=None)
@given(span)
def test_every_start_comes_back_equal(record: SpanRecord) -> None:
    start = codec.SpanStart(
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
        replay_of=record.replay_of,
        labels=record.labels,
        replay_of_trace=record.replay_of_trace,
        utc_offset_ns=record.utc_offset_ns,
        project=record.project,
    )
    assert codec.start_from_line(through_the_file(codec.start_to_line(start))) == start


@settings(max_examples=100, deadline=None)
@given(action)
def test_an_action_has_the_same_digest_after_the_journal(value: Action) -> None:
    line = through_the_file({"action": parts.action_to_json(value)})
    back = parts.action_from_json(line["action"])
    assert back == value
    assert action_digest(back) == action_digest(value)


@given(st.binary(max_size=9), whole)
def test_a_fingerprint_comes_back_equal(path: bytes, value: int) -> None:
    fingerprint = FileFingerprint(path, value, value, value, value, value, value, value, path)
    line = through_the_file({"x": parts.file_fingerprint_to_json(fingerprint)})
    assert parts.file_fingerprint_from_json(line["x"]) == fingerprint
    without = replace(fingerprint, target=None)
    listed = [parts.file_fingerprint_to_json(item) for item in (fingerprint, without)]
    assert parts.file_fingerprints_text((fingerprint, without)) == canonical_bytes(listed)


def make_span(**changes: object) -> SpanRecord:
    record = SpanRecord(
        span_id="00f067aa0ba902b7",
        trace_id="4bf92f3577b34da6a3ce929d0e0e4736",
        session_id="ses_a",
        world_id="wld_a",
        exec_id="exe_a",
        kind="exec",
        agent_id="claude",
        parent_span=None,
        start_time=1_700_000_000.25,
        duration_ms=1500.5,
        action=Action(
            command=Command((b"bash", b"-lc", b"exit 3")),
            cwd=b"/work",
            env=((b"LANG", b"C.UTF-8"), (b"PATH", b"/bin"), (b"TERM", b"xterm")),
            umask=0o22,
            user="agent",
            stdin_digest=None,
            snapshot_id=None,
            timeout_s=None,
            policy_hash="p1",
        ),
        decision=Decision("allow", "default", "no rule matched", "enforce", "p1"),
        termination_reason="EXITED",
        exit_code=3,
        signal=None,
        stdout_digest=None,
        stderr_digest=None,
        output_digest=None,
        stdout_bytes=0,
        stderr_bytes=0,
        truncated=False,
        changes=(
            Change(b"/work/made.txt", "created", "project", None, FileState("file", 0o644, 3)),
            Change(b"/work/README.md", "deleted", "project", FileState("file", 0o644, 9), None),
            Change(b"/work/new", "renamed", "project", renamed_from=b"/work/old"),
        ),
        changes_truncated=0,
        changes_digest=None,
        blocked=(),
        coverage=Coverage("full"),
        processes=(),
        processes_truncated=0,
        events_digest=None,
        event_counts=(("open", 12),),
        snapshot_after="s1",
        inputs_digest=None,
    )
    return replace(record, **changes)  # type: ignore[arg-type]


def test_names_of_the_original_format_are_kept() -> None:
    line = codec.span_to_line(make_span())
    assert line["event_type"] == "command_complete"
    assert line["ts"] == "2023-11-14T22:13:21.750500Z"
    assert line["cmd"] == "bash -lc 'exit 3'"
    assert line["cwd"] == "/work"
    assert line["exit"] == 3
    assert line["outcome"] == "failure"
    diff = line["fs_diff"]
    assert isinstance(diff, dict)
    assert diff["writes"] == ["/work/made.txt"]
    assert diff["deletes"] == ["/work/README.md"]
    assert diff["renames"] == [{"from": "/work/old", "to": "/work/new"}]
    assert diff["tree_hash"] == "s1"
    assert diff["summary"] == "1 created, 1 deleted, 1 renamed"
    context = line["replay_context"]
    assert isinstance(context, dict)
    assert context["path"] == "/bin"
    assert context["umask"] == 0o22
    assert context["locale"] == "C.UTF-8"
    assert context["term"] == "xterm"
    for name in ("session_id", "span_id", "parent_span", "component", "world_id", "policy_id"):
        assert name in line
    for name in ("agent_id", "scopes_used", "transport", "execution_origin", "duration_ms"):
        assert name in line
    verdict = line["policy_decision"]
    assert isinstance(verdict, dict)
    assert set(verdict) >= {"action", "reason", "restrictions", "rule_id", "decider"}


def test_a_shell_string_is_shown_as_it_was_written() -> None:
    command = Command((b"sh", b"-c", b"echo  'a b'"), shell=b"echo  'a b'")
    record = make_span(action=replace(make_span().action, command=command))
    assert codec.span_to_line(record)["cmd"] == "echo  'a b'"


def test_fields_of_a_newer_minor_version_are_ignored() -> None:
    record = make_span()
    line = through_the_file(codec.span_to_line(record))
    line["v"] = "1.9"
    line["novelty"] = {"deep": [1]}
    for name in ("action", "fs_diff", "coverage", "policy_decision"):
        part = line[name]
        assert isinstance(part, dict)
        part["novelty"] = 1
    assert codec.span_from_line(line) == record


@pytest.mark.parametrize("version", ["2.0", "10", "x", ""])
def test_a_newer_major_version_is_refused(version: str) -> None:
    line = through_the_file(codec.span_to_line(make_span()))
    line["v"] = version
    with pytest.raises(LineError, match="schema version"):
        codec.span_from_line(line)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("exit", "3"),
        ("duration_ms", None),
        ("termination_reason", "EXPLODED"),
        ("action", None),
        ("processes", {}),
        ("truncated", 1),
        ("span_id", 7),
    ],
)
def test_a_field_of_the_wrong_type_is_named(field: str, value: object) -> None:
    line = through_the_file(codec.span_to_line(make_span()))
    line[field] = value  # type: ignore[assignment]
    with pytest.raises(LineError, match=field):
        codec.span_from_line(line)


def test_a_process_without_an_offset_is_dated_from_the_start_of_the_step() -> None:
    first = Process("a" * 16, "b" * 16, 1, 0, 1, 5_000, 9_000, (b"x",), b"/x", b"/", 0, None)
    later = replace(first, start_ns=1_005_000, end_ns=None)
    record = make_span(processes=(first, later))
    assert codec.process_start_line(record, first)["ts"] == codec.timestamp(record.start_time)
    assert codec.boottime_to_utc_ns(record, later.start_ns) == 1_700_000_000_251_000_000
    dated = replace(record, utc_offset_ns=10**18)
    assert codec.boottime_to_utc_ns(dated, later.start_ns) == 10**18 + 1_005_000
    with pytest.raises(ValueError, match="has not ended"):
        codec.process_exit_line(record, later)


@pytest.mark.needs_jq
def test_jq_reads_a_line() -> None:
    raw = compact_bytes(codec.span_to_line(make_span()))
    jq = shutil.which("jq")
    assert jq is not None
    done = subprocess.run(
        [jq, "-r", 'select(.event_type == "command_complete") | .fs_diff.writes[]'],
        input=raw,
        capture_output=True,
        check=True,
        timeout=20,
    )
    assert done.stdout == b"/work/made.txt\n"


def test_coverage_keeps_the_ledger_and_reads_lines_from_before_it() -> None:
    coverage = Coverage("partial", ("static",), 2, 1, 5, 0, "bpf", ("stat",))
    line = parts.coverage_to_json(coverage)
    assert parts.coverage_from_json(line) == coverage
    older = {key: value for key, value in line.items() if key not in ("ledger", "classes_off")}
    assert parts.coverage_from_json(older).ledger is None
    assert parts.coverage_to_json(parts.coverage_from_json(older)) == older
