"""Facts about a step, each made from its message by ``from_proto``."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal, cast

from substrate_sdk._jsonform import JsonObject, bytes_form, optional_bytes_form

if TYPE_CHECKING:
    from google.protobuf.duration_pb2 import Duration
    from google.protobuf.timestamp_pb2 import Timestamp

    from substrate_sdk._pb.substrate.common.v1alpha1 import types_pb2
    from substrate_sdk._pb.substrate.world.v1alpha1 import execs_pb2

FileKind = Literal["file", "dir", "symlink", "fifo", "socket", "char", "block", "unknown"]
ChangeKind = Literal["created", "modified", "deleted", "renamed", "metadata", "unknown"]
ChangeScope = Literal["project", "outside", "unknown"]
CoverageState = Literal["full", "partial", "none", "unknown"]
LedgerSource = Literal["bpf", "proc_connector", "none", "unknown"]
DecisionAction = Literal["allow", "ask", "deny", "unknown"]
PolicyMode = Literal["disabled", "observe", "enforce", "unknown"]
TerminationReason = Literal[
    "EXITED",
    "SIGNALED",
    "TIMEOUT",
    "OOM",
    "LIMIT",
    "KILLED_BY_USER",
    "WORLD_REMOVED",
    "DENIED",
    "AGENT_LOST",
    "UNKNOWN",
]
OutputStream = Literal["stdout", "stderr", "pty"]

# By the enums' numbers. A number that a newer host knows and this SDK does not is "unknown":
# reading a record must not fail for it.
_FILE_KINDS: tuple[FileKind, ...] = (
    "unknown",
    "file",
    "dir",
    "symlink",
    "fifo",
    "socket",
    "char",
    "block",
)
_CHANGE_KINDS: tuple[ChangeKind, ...] = (
    "unknown",
    "created",
    "modified",
    "deleted",
    "renamed",
    "metadata",
)
_CHANGE_SCOPES: tuple[ChangeScope, ...] = ("unknown", "project", "outside")
_COVERAGE_STATES: tuple[CoverageState, ...] = ("unknown", "full", "partial", "none")
_LEDGER_SOURCES: tuple[LedgerSource, ...] = ("unknown", "bpf", "proc_connector", "none")
_DECISION_ACTIONS: tuple[DecisionAction, ...] = ("unknown", "allow", "ask", "deny")
_POLICY_MODES: tuple[PolicyMode, ...] = ("unknown", "disabled", "observe", "enforce")
_OUTPUT_STREAMS: tuple[OutputStream, ...] = ("stdout", "stdout", "stderr", "pty")


def named(names: tuple[str, ...], number: int) -> str:
    """The name of an enum's number; the first, "unknown", for one that is not known here."""
    return names[number] if 0 <= number < len(names) else names[0]


def to_datetime(value: Timestamp) -> datetime:
    """A timestamp as an aware datetime in UTC."""
    return datetime.fromtimestamp(value.seconds, UTC).replace(microsecond=value.nanos // 1000)


def milliseconds(value: Duration) -> float:
    """A duration as milliseconds."""
    return value.seconds * 1000 + value.nanos / 1e6


@dataclass(frozen=True, slots=True)
class FileState:
    """The state of one path.

    Attributes:
        kind: what it is.
        mode: permission bits.
        size_bytes: of a regular file's content.
        digest: BLAKE3 of a regular file's content, 64 hex digits.
        target: where a symbolic link points.
        uid: owner, as the world sees it.
        gid: group, as the world sees it.
        modified_at: of the content, in UTC.
    """

    kind: FileKind
    mode: int
    size_bytes: int = 0
    digest: str | None = None
    target: bytes | None = None
    uid: int = 0
    gid: int = 0
    modified_at: datetime | None = None

    @classmethod
    def from_proto(cls, proto: types_pb2.FileState) -> FileState:
        """Read the message."""
        return cls(
            kind=cast("FileKind", named(_FILE_KINDS, proto.kind)),
            mode=proto.mode,
            size_bytes=proto.size_bytes,
            digest=proto.digest if proto.HasField("digest") else None,
            target=proto.target if proto.HasField("target") else None,
            uid=proto.uid,
            gid=proto.gid,
            modified_at=to_datetime(proto.modified_at) if proto.HasField("modified_at") else None,
        )

    def to_json(self) -> JsonObject:
        """The object that ``--json`` prints."""
        return {
            "kind": self.kind,
            "mode": f"{self.mode:04o}",
            "size_bytes": self.size_bytes,
            "digest": self.digest,
            "target": optional_bytes_form(self.target),
            "uid": self.uid,
            "gid": self.gid,
        }


@dataclass(frozen=True, slots=True)
class Change:
    """One difference that a step made to the tree.

    Attributes:
        path_bytes: absolute path in the world; :attr:`path` is it as text.
        kind: what happened to it.
        scope: whether it lies in the project.
        before: the state before; None when created.
        after: the state after; None when deleted.
        renamed_from: where a renamed entry was.
    """

    path_bytes: bytes
    kind: ChangeKind
    scope: ChangeScope
    before: FileState | None = None
    after: FileState | None = None
    renamed_from: bytes | None = None

    @property
    def path(self) -> str:
        """The path as Python gives paths: ``os.fsencode`` takes it back to the bytes."""
        return os.fsdecode(self.path_bytes)

    @classmethod
    def from_proto(cls, proto: types_pb2.Change) -> Change:
        """Read the message."""
        return cls(
            path_bytes=proto.path,
            kind=cast("ChangeKind", named(_CHANGE_KINDS, proto.kind)),
            scope=cast("ChangeScope", named(_CHANGE_SCOPES, proto.scope)),
            before=FileState.from_proto(proto.before) if proto.HasField("before") else None,
            after=FileState.from_proto(proto.after) if proto.HasField("after") else None,
            renamed_from=proto.renamed_from if proto.HasField("renamed_from") else None,
        )

    def to_json(self) -> JsonObject:
        """The object that ``--json`` prints."""
        return {
            "path": bytes_form(self.path_bytes),
            "kind": self.kind,
            "scope": self.scope,
            "before": None if self.before is None else self.before.to_json(),
            "after": None if self.after is None else self.after.to_json(),
            "renamed_from": optional_bytes_form(self.renamed_from),
        }


@dataclass(frozen=True, slots=True)
class Blocked:
    """Something that the boundary kept from the command.

    Attributes:
        what: what was tried.
        layer: what kept it: profile, network, capabilities, limits, policy or kernel.
        rule: the rule that says so.
        fix: what to do, if the command may have it.
    """

    what: str
    layer: str
    rule: str
    fix: str

    @classmethod
    def from_proto(cls, proto: types_pb2.Blocked) -> Blocked:
        """Read the message."""
        return cls(what=proto.what, layer=proto.layer, rule=proto.rule, fix=proto.fix)

    def to_json(self) -> JsonObject:
        """The object that ``--json`` prints."""
        return {"what": self.what, "layer": self.layer, "rule": self.rule, "fix": self.fix}


@dataclass(frozen=True, slots=True)
class Coverage:
    """How completely telemetry saw a step.

    Attributes:
        state: of the whole step.
        reasons: why it is not full.
        processes: processes known.
        covered: processes that reported.
        events: events read.
        lost: events known to be lost.
        ledger: where the kernel's own account of its processes came from; without one, "full" rests
            on the word of programs. "unknown" of steps that are no commands.
        classes_off: classes of events that were switched off.
    """

    state: CoverageState
    reasons: tuple[str, ...] = ()
    processes: int = 0
    covered: int = 0
    events: int = 0
    lost: int = 0
    ledger: LedgerSource = "unknown"
    classes_off: tuple[str, ...] = ()

    @classmethod
    def from_proto(cls, proto: types_pb2.Coverage) -> Coverage:
        """Read the message."""
        return cls(
            state=cast("CoverageState", named(_COVERAGE_STATES, proto.state)),
            reasons=tuple(proto.reasons),
            processes=proto.processes,
            covered=proto.covered,
            events=proto.events,
            lost=proto.lost,
            ledger=cast("LedgerSource", named(_LEDGER_SOURCES, proto.ledger)),
            classes_off=tuple(proto.classes_off),
        )

    def to_json(self) -> JsonObject:
        """The object that ``--json`` prints."""
        return {
            "state": self.state,
            "reasons": list(self.reasons),
            "processes": self.processes,
            "covered": self.covered,
            "events": self.events,
            "lost": self.lost,
            "ledger": self.ledger,
            "classes_off": list(self.classes_off),
        }


@dataclass(frozen=True, slots=True)
class Decision:
    """What policy said about a step.

    Attributes:
        action: the answer.
        rule: id of the rule that made it; "default" when none matched.
        reason: one sentence that a model can act on.
        mode: how policy was applied.
        source: file:line of the rule.
        decider: policy, or a person's name.
        enforced: False where the answer was recorded and not acted upon.
        policy_hash: version of the policy, 64 hex digits.
        approval_id: the approval that was asked for, or "".
    """

    action: DecisionAction
    rule: str
    reason: str
    mode: PolicyMode
    source: str = ""
    decider: str = "policy"
    enforced: bool = True
    policy_hash: str = ""
    approval_id: str = ""

    @classmethod
    def from_proto(cls, proto: types_pb2.Decision) -> Decision:
        """Read the message."""
        return cls(
            action=cast("DecisionAction", named(_DECISION_ACTIONS, proto.action)),
            rule=proto.rule_id,
            reason=proto.reason,
            mode=cast("PolicyMode", named(_POLICY_MODES, proto.mode)),
            source=proto.source,
            decider=proto.decider,
            enforced=proto.enforced,
            policy_hash=proto.policy_hash,
            approval_id=proto.approval_id,
        )

    def to_json(self) -> JsonObject:
        """The object that ``--json`` prints."""
        return {
            "action": self.action,
            "rule": self.rule,
            "reason": self.reason,
            "mode": self.mode,
            "source": self.source,
            "decider": self.decider,
            "enforced": self.enforced,
            "policy_hash": self.policy_hash,
            "approval_id": self.approval_id or None,
        }


@dataclass(frozen=True, slots=True)
class Process:
    """One process image seen inside a step.

    Attributes:
        span_id: its span, 16 hex digits.
        parent_span_id: of the parent process, or of the step.
        pid: in the world.
        ppid: in the world.
        exec_number: how often this pid had called exec.
        argv: its arguments.
        exe: its program.
        cwd: its working directory at the start.
        duration_ms: None while it runs, or where its end is not known.
        exit_code: None where it is not known, or a signal ended it.
        signal: number of the signal that ended it.
        coverage: whether it reported.
        coverage_reason: why not.
        events: events that it reported.
    """

    span_id: str
    parent_span_id: str
    pid: int
    ppid: int
    exec_number: int
    argv: tuple[bytes, ...]
    exe: bytes
    cwd: bytes
    duration_ms: float | None
    exit_code: int | None
    signal: int | None
    coverage: CoverageState
    coverage_reason: str
    events: int

    @classmethod
    def from_proto(cls, proto: types_pb2.Process) -> Process:
        """Read the message."""
        ended = proto.HasField("end_ns")
        return cls(
            span_id=proto.span_id,
            parent_span_id=proto.parent_span_id,
            pid=proto.pid,
            ppid=proto.ppid,
            exec_number=proto.exec_number,
            argv=tuple(proto.argv),
            exe=proto.exe,
            cwd=proto.cwd,
            duration_ms=(proto.end_ns - proto.start_ns) / 1e6 if ended else None,
            exit_code=proto.exit_code if proto.HasField("exit_code") else None,
            signal=proto.signal if proto.HasField("signal") else None,
            coverage=cast("CoverageState", named(_COVERAGE_STATES, proto.coverage)),
            coverage_reason=proto.coverage_reason,
            events=proto.events,
        )

    def to_json(self) -> JsonObject:
        """The object that ``--json`` prints."""
        return {
            "span_id": self.span_id,
            "parent_span_id": self.parent_span_id,
            "pid": self.pid,
            "ppid": self.ppid,
            "exec_number": self.exec_number,
            "argv": [bytes_form(item) for item in self.argv],
            "exe": bytes_form(self.exe),
            "cwd": bytes_form(self.cwd),
            "duration_ms": self.duration_ms,
            "exit_code": self.exit_code,
            "signal": self.signal,
            "coverage": self.coverage,
            "coverage_reason": self.coverage_reason,
            "events": self.events,
        }


@dataclass(frozen=True, slots=True)
class Output:
    """Some output of a command.

    Attributes:
        stream: where it was written.
        data: the bytes.
        next_offset: where the output log goes on after them.
        monotonic_ns: when it was written, on the world's monotonic clock.
    """

    stream: OutputStream
    data: bytes
    next_offset: int
    monotonic_ns: int

    @classmethod
    def from_proto(cls, proto: execs_pb2.Output) -> Output:
        """Read the message."""
        return cls(
            stream=cast("OutputStream", named(_OUTPUT_STREAMS, proto.stream)),
            data=proto.data,
            next_offset=proto.next_offset,
            monotonic_ns=proto.monotonic_ns,
        )
