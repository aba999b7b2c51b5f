"""The ground floor's values as protobuf messages: what every server says alike.

``x_to_proto`` builds the message of :mod:`substrate_services.journal.schema`'s ``X``;
:func:`decision_from_proto` is the one way back, because one service asks another for decisions.
"""

from __future__ import annotations

from typing import Final

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from substrate_sdk._pb.substrate.common.v1alpha1 import types_pb2
from substrate_sdk._pb.substrate.trace.v1alpha1 import trace_pb2
from substrate_services.errors import InvalidField
from substrate_services.journal.schema import (
    Blocked,
    Change,
    ChangeKind,
    ChangeScope,
    Command,
    Coverage,
    CoverageState,
    Decision,
    DecisionAction,
    FileKind,
    FileState,
    LedgerSource,
    PolicyMode,
    Process,
    SpanRecord,
    TerminationReason,
)

_FIRST_SECOND: Final = -62_135_596_800  # 0001-01-01, the range of google.protobuf.Timestamp
_LAST_SECOND: Final = 253_402_300_799  # 9999-12-31
_NS: Final = 1_000_000_000

FILE_KINDS: Final[dict[FileKind, types_pb2.FileKind.ValueType]] = {
    "file": types_pb2.FILE_KIND_FILE,
    "dir": types_pb2.FILE_KIND_DIRECTORY,
    "symlink": types_pb2.FILE_KIND_SYMLINK,
    "fifo": types_pb2.FILE_KIND_FIFO,
    "socket": types_pb2.FILE_KIND_SOCKET,
    "char": types_pb2.FILE_KIND_CHARACTER_DEVICE,
    "block": types_pb2.FILE_KIND_BLOCK_DEVICE,
}
CHANGE_KINDS: Final[dict[ChangeKind, types_pb2.ChangeKind.ValueType]] = {
    "created": types_pb2.CHANGE_KIND_CREATED,
    "modified": types_pb2.CHANGE_KIND_MODIFIED,
    "deleted": types_pb2.CHANGE_KIND_DELETED,
    "renamed": types_pb2.CHANGE_KIND_RENAMED,
    "metadata": types_pb2.CHANGE_KIND_METADATA,
}
CHANGE_SCOPES: Final[dict[ChangeScope, types_pb2.ChangeScope.ValueType]] = {
    "project": types_pb2.CHANGE_SCOPE_PROJECT,
    "outside": types_pb2.CHANGE_SCOPE_OUTSIDE,
}
DECISION_ACTIONS: Final[dict[DecisionAction, types_pb2.DecisionAction.ValueType]] = {
    "allow": types_pb2.DECISION_ACTION_ALLOW,
    "ask": types_pb2.DECISION_ACTION_ASK,
    "deny": types_pb2.DECISION_ACTION_DENY,
}
POLICY_MODES: Final[dict[PolicyMode, types_pb2.PolicyMode.ValueType]] = {
    "disabled": types_pb2.POLICY_MODE_DISABLED,
    "observe": types_pb2.POLICY_MODE_OBSERVE,
    "enforce": types_pb2.POLICY_MODE_ENFORCE,
}
COVERAGE_STATES: Final[dict[CoverageState, types_pb2.CoverageState.ValueType]] = {
    "full": types_pb2.COVERAGE_STATE_FULL,
    "partial": types_pb2.COVERAGE_STATE_PARTIAL,
    "none": types_pb2.COVERAGE_STATE_NONE,
}
LEDGER_SOURCES: Final[dict[LedgerSource | None, types_pb2.LedgerSource.ValueType]] = {
    None: types_pb2.LEDGER_SOURCE_UNSPECIFIED,
    "bpf": types_pb2.LEDGER_SOURCE_BPF,
    "proc_connector": types_pb2.LEDGER_SOURCE_PROC_CONNECTOR,
    "none": types_pb2.LEDGER_SOURCE_NONE,
}
TERMINATION_REASONS: Final[dict[TerminationReason, types_pb2.TerminationReason.ValueType]] = {
    "EXITED": types_pb2.TERMINATION_REASON_EXITED,
    "SIGNALED": types_pb2.TERMINATION_REASON_SIGNALED,
    "TIMEOUT": types_pb2.TERMINATION_REASON_TIMEOUT,
    "OOM": types_pb2.TERMINATION_REASON_OOM,
    "LIMIT": types_pb2.TERMINATION_REASON_LIMIT,
    "KILLED_BY_USER": types_pb2.TERMINATION_REASON_KILLED_BY_USER,
    "WORLD_REMOVED": types_pb2.TERMINATION_REASON_WORLD_REMOVED,
    "DENIED": types_pb2.TERMINATION_REASON_DENIED,
    "AGENT_LOST": types_pb2.TERMINATION_REASON_AGENT_LOST,
}


# --- time --------------------------------------------------------------------------------------


def timestamp_from_ns(nanoseconds: int) -> Timestamp:
    """Nanoseconds since the epoch; times that a Timestamp cannot hold are its nearest."""
    seconds, nanos = divmod(nanoseconds, _NS)
    if not _FIRST_SECOND <= seconds <= _LAST_SECOND:
        # Files may bear any time; an impossible one must not make a whole record unreadable.
        return Timestamp(seconds=_FIRST_SECOND if seconds < 0 else _LAST_SECOND)
    return Timestamp(seconds=seconds, nanos=nanos)


def timestamp_to_proto(seconds: float) -> Timestamp:
    """Seconds since the epoch, to the microsecond: a float of that size holds no more."""
    return timestamp_from_ns(round(seconds * 1_000_000) * 1_000)


def duration_to_proto(seconds: float) -> Duration:
    """A duration in seconds, not negative."""
    whole, nanos = divmod(round(seconds * _NS), _NS)
    return Duration(seconds=whole, nanos=nanos)


# --- parts of a step ---------------------------------------------------------------------------


def file_state_to_proto(state: FileState) -> types_pb2.FileState:
    """What one path held. A device's number has no place on the wire."""
    return types_pb2.FileState(
        kind=FILE_KINDS[state.kind],
        mode=state.mode,
        size_bytes=state.size,
        digest=state.digest,
        target=state.target,
        uid=state.uid,
        gid=state.gid,
        modified_at=timestamp_from_ns(state.mtime_ns),
    )


def change_to_proto(change: Change) -> types_pb2.Change:
    """One difference that a step made."""
    return types_pb2.Change(
        path=change.path,
        kind=CHANGE_KINDS[change.kind],
        scope=CHANGE_SCOPES[change.scope],
        before=None if change.before is None else file_state_to_proto(change.before),
        after=None if change.after is None else file_state_to_proto(change.after),
        renamed_from=change.renamed_from,
    )


def command_to_proto(command: Command) -> types_pb2.Command:
    """A command, exactly."""
    return types_pb2.Command(argv=command.argv, shell=command.shell)


def environment_to_proto(env: tuple[tuple[bytes, bytes], ...]) -> list[types_pb2.EnvVar]:
    """An environment, exactly."""
    return [types_pb2.EnvVar(name=name, value=value) for name, value in env]


def decision_to_proto(decision: Decision) -> types_pb2.Decision:
    """The broker's answer."""
    return types_pb2.Decision(
        action=DECISION_ACTIONS[decision.action],
        rule_id=_text(decision.rule_id),
        reason=_text(decision.reason),
        mode=POLICY_MODES[decision.mode],
        policy_hash=decision.policy_hash,
        source=_text(decision.source),
        decider=_text(decision.decider),
        enforced=decision.enforced,
    )


def decision_from_proto(message: types_pb2.Decision) -> Decision:
    """The broker's answer as another service of the host received it.

    Raises InvalidField where it has no action or mode: a decision must never be guessed.
    """
    actions = {value: name for name, value in DECISION_ACTIONS.items()}
    modes = {value: name for name, value in POLICY_MODES.items()}
    if message.action not in actions:
        raise InvalidField("decision.action", message.action, "expected allow, ask or deny")
    if message.mode not in modes:
        raise InvalidField("decision.mode", message.mode, "expected a policy mode")
    return Decision(
        action=actions[message.action],
        rule_id=message.rule_id,
        reason=message.reason,
        mode=modes[message.mode],
        policy_hash=message.policy_hash,
        source=message.source,
        decider=message.decider,
        enforced=message.enforced,
    )


def coverage_to_proto(coverage: Coverage) -> types_pb2.Coverage:
    """How completely telemetry saw a step."""
    return types_pb2.Coverage(
        state=COVERAGE_STATES[coverage.state],
        reasons=[_text(reason) for reason in coverage.reasons],
        processes=coverage.processes,
        covered=coverage.covered,
        events=coverage.events,
        lost=coverage.lost,
        ledger=LEDGER_SOURCES[coverage.ledger],
        classes_off=coverage.classes_off,
    )


def blocked_to_proto(blocked: Blocked) -> types_pb2.Blocked:
    """Something that was kept from the command."""
    return types_pb2.Blocked(
        what=_text(blocked.what),
        layer=blocked.layer,
        rule=_text(blocked.rule),
        fix=_text(blocked.fix),
    )


def process_to_proto(process: Process) -> types_pb2.Process:
    """One process image inside a step."""
    return types_pb2.Process(
        span_id=process.span_id,
        parent_span_id=process.parent_span_id,
        pid=process.pid,
        ppid=process.ppid,
        exec_number=process.exec_no,
        start_ns=process.start_ns,
        end_ns=process.end_ns,
        argv=process.argv,
        exe=process.exe,
        cwd=process.cwd,
        exit_code=process.exit_code,
        signal=process.signal,
        coverage=COVERAGE_STATES[process.coverage],
        coverage_reason=_text(process.coverage_reason),
        events=process.events,
    )


# --- steps -------------------------------------------------------------------------------------


def result_to_proto(record: SpanRecord, *, with_processes: bool = True) -> types_pb2.ExecResult:
    """The outcome of a finished step."""
    return types_pb2.ExecResult(
        exit_code=record.exit_code,
        signal=record.signal,
        termination_reason=TERMINATION_REASONS[record.termination_reason],
        changes=[change_to_proto(change) for change in record.changes],
        changes_total=len(record.changes) + record.changes_truncated,
        blocked=[blocked_to_proto(blocked) for blocked in record.blocked],
        coverage=coverage_to_proto(record.coverage),
        decision=decision_to_proto(record.decision),
        span_id=record.span_id,
        trace_id=record.trace_id,
        session_id=record.session_id,
        world_id=record.world_id,
        exec_id=record.exec_id,
        duration=duration_to_proto(record.duration_ms / 1000),
        started_at=timestamp_to_proto(record.start_time),
        stdout_digest=record.stdout_digest,
        stderr_digest=record.stderr_digest,
        stdout_bytes=record.stdout_bytes,
        stderr_bytes=record.stderr_bytes,
        truncated=record.truncated,
        snapshot_before=record.action.snapshot_id,
        snapshot_after=record.snapshot_after,
        event_counts=dict(record.event_counts),
        processes=[process_to_proto(process) for process in record.processes]
        if with_processes
        else [],
        processes_truncated=record.processes_truncated
        if with_processes
        else record.processes_truncated + len(record.processes),
        hosts=[_text(host) for host in record.hosts],
    )


def span_to_proto(record: SpanRecord, *, with_processes: bool = True) -> trace_pb2.Span:
    """A finished step with everything that determined it."""
    action = record.action
    return trace_pb2.Span(
        result=result_to_proto(record, with_processes=with_processes),
        kind=record.kind,
        command=command_to_proto(action.command),
        cwd=action.cwd,
        env=environment_to_proto(action.env),
        umask=action.umask,
        user=action.user,
        stdin_digest=action.stdin_digest,
        pty=action.pty,
        agent_id=_text(record.agent_id),
        parent_span_id=record.parent_span,
        events_digest=record.events_digest,
        changes_digest=record.changes_digest,
        inputs_digest=record.inputs_digest,
        replay_of=record.replay_of,
        project=record.project,
    )


def _text(value: str) -> str:
    """A protobuf string: lone surrogates, which it cannot hold, are replaced."""
    return value if value.isascii() else value.encode(errors="replace").decode()
