"""The outcome of a step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, cast

from substrate_sdk._facts import (
    Blocked,
    Change,
    Coverage,
    Decision,
    Process,
    TerminationReason,
    milliseconds,
    named,
    to_datetime,
)
from substrate_sdk._jsonform import JsonObject, bytes_form, time_form
from substrate_sdk.errors import SubstrateError

if TYPE_CHECKING:
    from substrate_sdk._pb.substrate.common.v1alpha1 import types_pb2

_TERMINATION_REASONS: tuple[TerminationReason, ...] = (
    "UNKNOWN",
    "EXITED",
    "SIGNALED",
    "TIMEOUT",
    "OOM",
    "LIMIT",
    "KILLED_BY_USER",
    "WORLD_REMOVED",
    "DENIED",
    "AGENT_LOST",
)


@dataclass(frozen=True, slots=True)
class Result:
    """The outcome of a step. A command that fails is a result, not an error.

    Attributes:
        exit_code: None when a signal ended it, or it never ran to an end.
        signal: the signal that ended it, by name: SIGKILL.
        termination_reason: how it ended.
        stdout_bytes: what it wrote to standard output; of a terminal, everything it wrote.
        stderr_bytes: what it wrote to standard error.
        changes: what it changed, bounded; :attr:`changes_total` says how many there are.
        changes_total: all changes.
        blocked: what was kept from it.
        coverage: how completely it was seen.
        decision: what policy said.
        span_id: its span, 16 hex digits.
        trace_id: its trace, 32 hex digits.
        session_id: its session.
        world_id: its world.
        exec_id: its id, as the client chose it.
        duration_ms: from start to end of the command.
        started_at: when it started.
        truncated: output beyond the limit was cut.
        stdout_digest: object with its standard output; None where there was none.
        stderr_digest: as stdout_digest.
        snapshot_before: the tree before it.
        snapshot_after: the tree after it.
        event_counts: events by class.
        processes: its processes, bounded.
        processes_truncated: processes beyond those listed.
        hosts: hosts that it connected to, or tried to.
    """

    exit_code: int | None
    signal: str | None
    termination_reason: TerminationReason
    stdout_bytes: bytes
    stderr_bytes: bytes
    changes: tuple[Change, ...]
    changes_total: int
    blocked: tuple[Blocked, ...]
    coverage: Coverage
    decision: Decision
    span_id: str
    trace_id: str
    session_id: str
    world_id: str
    exec_id: str
    duration_ms: float
    started_at: datetime | None = None
    truncated: bool = False
    stdout_digest: str | None = None
    stderr_digest: str | None = None
    snapshot_before: str | None = None
    snapshot_after: str | None = None
    event_counts: Mapping[str, int] = field(default_factory=dict)
    processes: tuple[Process, ...] = ()
    processes_truncated: int = 0
    hosts: tuple[str, ...] = ()

    @property
    def stdout(self) -> str:
        """Standard output as UTF-8; what is not becomes U+FFFD."""
        return self.stdout_bytes.decode("utf-8", errors="replace")

    @property
    def stderr(self) -> str:
        """Standard error as UTF-8; what is not becomes U+FFFD."""
        return self.stderr_bytes.decode("utf-8", errors="replace")

    @property
    def ok(self) -> bool:
        """The command ran and exited with 0."""
        return self.exit_code == 0

    @classmethod
    def from_proto(
        cls, proto: types_pb2.ExecResult, stdout: bytes = b"", stderr: bytes = b""
    ) -> Result:
        """Read the message; output comes apart from it."""
        return cls(
            exit_code=proto.exit_code if proto.HasField("exit_code") else None,
            signal=proto.signal if proto.HasField("signal") else None,
            termination_reason=cast(
                "TerminationReason", named(_TERMINATION_REASONS, proto.termination_reason)
            ),
            stdout_bytes=stdout,
            stderr_bytes=stderr,
            changes=tuple(Change.from_proto(item) for item in proto.changes),
            changes_total=max(proto.changes_total, len(proto.changes)),
            blocked=tuple(Blocked.from_proto(item) for item in proto.blocked),
            coverage=Coverage.from_proto(proto.coverage),
            decision=Decision.from_proto(proto.decision),
            span_id=proto.span_id,
            trace_id=proto.trace_id,
            session_id=proto.session_id,
            world_id=proto.world_id,
            exec_id=proto.exec_id,
            duration_ms=milliseconds(proto.duration),
            started_at=to_datetime(proto.started_at) if proto.HasField("started_at") else None,
            truncated=proto.truncated,
            stdout_digest=proto.stdout_digest if proto.HasField("stdout_digest") else None,
            stderr_digest=proto.stderr_digest if proto.HasField("stderr_digest") else None,
            snapshot_before=proto.snapshot_before if proto.HasField("snapshot_before") else None,
            snapshot_after=proto.snapshot_after if proto.HasField("snapshot_after") else None,
            event_counts=dict(proto.event_counts),
            processes=tuple(Process.from_proto(item) for item in proto.processes),
            processes_truncated=proto.processes_truncated,
            hosts=tuple(proto.hosts),
        )

    def to_json(self, *, output: bool = True) -> JsonObject:
        """The object that ``substrate run --json`` prints.

        Args:
            output: with ``stdout`` and ``stderr``. A stream that is not UTF-8 is there a second
                time, exactly, as ``stdout_b64`` or ``stderr_b64``.
        """
        shown: JsonObject = {}
        if output:
            for name, data in (("stdout", self.stdout_bytes), ("stderr", self.stderr_bytes)):
                shown[name] = data.decode("utf-8", errors="replace")
                exact = bytes_form(data)
                if isinstance(exact, dict):
                    shown[f"{name}_b64"] = exact["b64"]
        counts: JsonObject = dict(sorted(self.event_counts.items()))
        return {
            "exit_code": self.exit_code,
            "signal": self.signal,
            "termination_reason": self.termination_reason,
            **shown,
            "changes": [change.to_json() for change in self.changes],
            "changes_total": self.changes_total,
            "blocked": [item.to_json() for item in self.blocked],
            "coverage": self.coverage.to_json(),
            "decision": self.decision.to_json(),
            "span_id": self.span_id,
            "trace_id": self.trace_id,
            "session_id": self.session_id,
            "world_id": self.world_id,
            "exec_id": self.exec_id,
            "duration_ms": self.duration_ms,
            "started_at": time_form(self.started_at),
            "truncated": self.truncated,
            "stdout_digest": self.stdout_digest,
            "stderr_digest": self.stderr_digest,
            "snapshot_before": self.snapshot_before,
            "snapshot_after": self.snapshot_after,
            "event_counts": counts,
            "processes": [process.to_json() for process in self.processes],
            "processes_truncated": self.processes_truncated,
            "hosts": list(self.hosts),
        }


class CommandFailed(SubstrateError):
    """A command did not exit with 0, and ``check=True`` asked for that to be an error.

    Attributes:
        result: everything about the command, its output included.
    """

    default_reason = "COMMAND_FAILED"

    def __init__(self, result: Result) -> None:
        self.result = result
        super().__init__(
            f"{_how_it_ended(result)} (span {result.span_id})", trace_id=result.trace_id or None
        )


def _how_it_ended(result: Result) -> str:
    match result.termination_reason:
        case "EXITED":
            return f"the command exited with {result.exit_code}"
        case "DENIED":
            rule, reason = result.decision.rule, result.decision.reason
            return f"policy denied the command: {reason} (rule {rule})"
        case "TIMEOUT":
            return f"the command's time was over after {result.duration_ms / 1000:.1f} s"
        case other:
            by = f" by {result.signal}" if result.signal else ""
            return f"the command was ended{by}: {other}"
