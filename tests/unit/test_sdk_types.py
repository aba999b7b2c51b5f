"""Messages become values, and values the documented JSON."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import cast

import pytest

from substrate_sdk import CommandFailed, Report, Result, Span, SubstrateError
from substrate_sdk._pb.substrate.broker.v1alpha1 import broker_pb2
from substrate_sdk._pb.substrate.common.v1alpha1 import types_pb2
from substrate_sdk._pb.substrate.replay.v1alpha1 import replay_pb2
from substrate_sdk._pb.substrate.trace.v1alpha1 import trace_pb2
from substrate_sdk._pb.substrate.world.v1alpha1 import worlds_pb2
from substrate_sdk.records import Explanation, PolicyCheck, Verification
from substrate_sdk.types import Capability, Change, Limits, WorldInfo


def full_result() -> types_pb2.ExecResult:
    """One of everything."""
    proto = types_pb2.ExecResult(
        exit_code=3,
        termination_reason=types_pb2.TERMINATION_REASON_EXITED,
        changes_total=2,
        blocked=[types_pb2.Blocked(what="w", layer="profile", rule="r", fix="f")],
        coverage=types_pb2.Coverage(
            state=types_pb2.COVERAGE_STATE_PARTIAL, reasons=["static"], processes=2, covered=1
        ),
        decision=types_pb2.Decision(
            action=types_pb2.DECISION_ACTION_ALLOW,
            rule_id="default",
            mode=types_pb2.POLICY_MODE_OBSERVE,
            enforced=True,
        ),
        span_id="00112233445566aa",
        trace_id="0" * 32,
        session_id="ses_x",
        world_id="wld_x",
        exec_id="exe_x",
        truncated=True,
        stdout_digest="ab" * 32,
        event_counts={"open": 4, "exec": 1},
        hosts=["example.org"],
    )
    proto.duration.FromNanoseconds(1_500_000)
    proto.started_at.FromDatetime(datetime(2026, 1, 2, 3, 4, 5, 678_000, UTC))
    proto.changes.add(
        path=b"/p/\xff",
        kind=types_pb2.CHANGE_KIND_CREATED,
        scope=types_pb2.CHANGE_SCOPE_PROJECT,
        after=types_pb2.FileState(
            kind=types_pb2.FILE_KIND_FILE, mode=0o644, size_bytes=3, digest="cd" * 32
        ),
    )
    proto.changes.add(
        path=b"/p/link",
        kind=types_pb2.CHANGE_KIND_DELETED,
        scope=types_pb2.CHANGE_SCOPE_OUTSIDE,
        before=types_pb2.FileState(kind=types_pb2.FILE_KIND_SYMLINK, mode=0o777, target=b"t"),
    )
    proto.processes.add(
        span_id="a", pid=2, argv=[b"sh"], start_ns=1_000_000, end_ns=3_500_000, exit_code=0,
        coverage=types_pb2.COVERAGE_STATE_FULL,
    )  # fmt: skip
    return proto


def test_a_result_has_the_documented_names() -> None:
    result = Result.from_proto(full_result(), b"out\n", b"\xff!")
    assert (result.exit_code, result.signal, result.ok) == (3, None, False)
    assert (result.stdout, result.stderr, result.stderr_bytes) == ("out\n", "\ufffd!", b"\xff!")
    assert result.duration_ms == 1.5
    shown = json.loads(json.dumps(result.to_json()))
    for name in [
        "exit_code",
        "signal",
        "stdout",
        "stderr",
        "termination_reason",
        "changes",
        "blocked",
        "coverage",
        "decision",
        "span_id",
        "session_id",
        "world_id",
        "duration_ms",
    ]:
        assert name in shown
    assert shown["termination_reason"] == "EXITED"
    assert shown["changes"][0] == {
        "path": {"b64": "L3Av/w=="},
        "kind": "created",
        "scope": "project",
        "before": None,
        "after": {
            "kind": "file",
            "mode": "0644",
            "size_bytes": 3,
            "digest": "cd" * 32,
            "target": None,
            "uid": 0,
            "gid": 0,
        },
        "renamed_from": None,
    }
    assert shown["changes"][1]["before"]["target"] == "t"
    assert shown["blocked"] == [{"what": "w", "layer": "profile", "rule": "r", "fix": "f"}]
    assert shown["coverage"]["state"] == "partial"
    assert (shown["decision"]["action"], shown["decision"]["rule"]) == ("allow", "default")
    assert shown["started_at"] == "2026-01-02T03:04:05.678000Z"
    assert shown["processes"][0]["duration_ms"] == 2.5
    assert (shown["stderr"], shown["stderr_b64"]) == ("\ufffd!", "/yE=")
    assert "stdout_b64" not in shown


def test_a_path_that_is_not_utf8_survives() -> None:
    change = Change.from_proto(full_result().changes[0])
    assert change.path.encode("utf-8", "surrogateescape") == b"/p/\xff" == change.path_bytes


def test_what_a_newer_host_says_reads_as_unknown() -> None:
    proto = types_pb2.ExecResult(
        termination_reason=cast("types_pb2.TerminationReason.ValueType", 99)
    )
    proto.changes.add(kind=cast("types_pb2.ChangeKind.ValueType", 77))
    result = Result.from_proto(proto)
    assert result.termination_reason == "UNKNOWN"
    assert result.changes[0].kind == "unknown"
    assert result.exit_code is None


@pytest.mark.parametrize(
    ("proto", "words"),
    [
        (
            types_pb2.ExecResult(
                exit_code=3, termination_reason=types_pb2.TERMINATION_REASON_EXITED
            ),
            "exited with 3",
        ),
        (
            types_pb2.ExecResult(
                signal="SIGKILL", termination_reason=types_pb2.TERMINATION_REASON_OOM
            ),
            "SIGKILL: OOM",
        ),
        (
            types_pb2.ExecResult(termination_reason=types_pb2.TERMINATION_REASON_TIMEOUT),
            "time was over",
        ),
        (
            types_pb2.ExecResult(
                exit_code=126,
                termination_reason=types_pb2.TERMINATION_REASON_DENIED,
                decision=types_pb2.Decision(rule_id="no-rm", reason="Do not."),
            ),
            r"denied the command: Do not\. \(rule no-rm\)",
        ),
    ],
)
def test_a_failed_command_says_how_it_failed(proto: types_pb2.ExecResult, words: str) -> None:
    result = Result.from_proto(proto)
    with pytest.raises(SubstrateError, match=words) as caught:
        raise CommandFailed(result)
    assert isinstance(caught.value, CommandFailed)
    assert caught.value.result is result


def test_a_span_shows_what_was_asked_and_no_output() -> None:
    proto = trace_pb2.Span(
        result=full_result(),
        kind="exec",
        command=types_pb2.Command(argv=[b"sh", b"-c", b"x"], shell=b"x"),
        cwd=b"/p",
        env=[types_pb2.EnvVar(name=b"A", value=b"\xfe")],
        umask=0o22,
        replay_of="f" * 16,
    )
    shown = json.loads(json.dumps(Span.from_proto(proto).to_json()))
    assert shown["command"] == {"argv": ["sh", "-c", "x"], "shell": "x"}
    assert shown["env"] == [["A", {"b64": "/g=="}]]
    assert (shown["umask"], shown["replay_of"]) == ("0022", "f" * 16)
    assert "stdout" not in shown
    assert shown["span_id"] == "00112233445566aa"


def test_a_report_has_the_documented_names() -> None:
    divergence = replay_pb2.Divergence(dimension="stdout", expected=b"1", actual=b"2", run=1)
    proto = replay_pb2.Report(
        verdict=replay_pb2.VERDICT_DIVERGED,
        divergences=[divergence],
        first=divergence,
        compared=["exit", "stdout"],
        not_compared=[replay_pb2.NotCompared(dimension="mtime", reason="not asked for")],
        runs=[replay_pb2.Run(number=1, verdict=replay_pb2.VERDICT_DIVERGED)],
    )
    shown = json.loads(json.dumps(Report.from_proto(proto).to_json()))
    assert shown["verdict"] == "diverged"
    assert shown["first"] == shown["divergences"][0]
    assert shown["first"]["dimension"] == "stdout"
    assert "cause" in shown["first"]
    assert shown["compared"] == ["exit", "stdout"]
    assert shown["not_compared"] == [{"dimension": "mtime", "reason": "not asked for"}]
    assert Report.from_proto(replay_pb2.Report()).first is None


def test_limits_survive_the_wire() -> None:
    limits = Limits(memory_bytes=1 << 30, cpus=1.5, runtime_s=2.5)
    assert Limits.from_proto(limits.to_proto()) == limits
    assert Limits.from_proto(Limits().to_proto()) == Limits()


def test_the_rest_can_be_printed() -> None:
    world = worlds_pb2.World(world_id="wld_x", state=worlds_pb2.WORLD_STATE_LOST, cwd=b"/")
    shown = WorldInfo.from_proto(world).to_json()
    assert (shown["world_id"], shown["state"], shown["project"]) == ("wld_x", "lost", None)
    for value in (
        Capability.from_proto(worlds_pb2.Capability(feature="f", state="works")),
        PolicyCheck.from_proto(
            broker_pb2.CheckResponse(problems=[broker_pb2.PolicyProblem(source="a:1")])
        ),
        Explanation.from_proto(
            broker_pb2.ExplainResponse(rules=[broker_pb2.RuleTrace()], commands=[b"\xff"])
        ),
        Verification.from_proto(
            trace_pb2.VerifyResponse(findings=[trace_pb2.JournalFinding(line=3)])
        ),
    ):
        assert json.dumps(value.to_json())
