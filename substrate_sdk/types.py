"""What the SDK gives back: immutable values, each made from its message by ``from_proto``.

``to_json`` of each gives the object that the command's ``--json`` prints. Paths, arguments and
environment are bytes in a world; their JSON form is a string, or ``{"b64": …}`` where they are
not UTF-8.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal, cast

from substrate_sdk._jsonform import (
    JsonObject,
    JsonValue,
    bytes_form,
    optional_bytes_form,
    time_form,
)
from substrate_sdk.errors import SubstrateError

if TYPE_CHECKING:
    from google.protobuf.duration_pb2 import Duration
    from google.protobuf.timestamp_pb2 import Timestamp

    from substrate_sdk._pb.substrate.common.v1alpha1 import types_pb2
    from substrate_sdk._pb.substrate.world.v1alpha1 import execs_pb2, worlds_pb2

__all__ = [
    "Blocked",
    "Capability",
    "Change",
    "CommandFailed",
    "Coverage",
    "Decision",
    "FileState",
    "Limits",
    "Output",
    "Process",
    "Result",
    "WorldInfo",
]

FileKind = Literal["file", "dir", "symlink", "fifo", "socket", "char", "block", "unknown"]
ChangeKind = Literal["created", "modified", "deleted", "renamed", "metadata", "unknown"]
ChangeScope = Literal["project", "outside", "unknown"]
CoverageState = Literal["full", "partial", "none", "unknown"]
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
_DECISION_ACTIONS: tuple[DecisionAction, ...] = ("unknown", "allow", "ask", "deny")
_POLICY_MODES: tuple[PolicyMode, ...] = ("unknown", "disabled", "observe", "enforce")
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
_WORLD_STATES = ("unknown", "ready", "paused", "lost", "removing")
_OUTPUT_STREAMS: tuple[OutputStream, ...] = ("stdout", "stdout", "stderr", "pty")


def named(names: tuple[str, ...], number: int) -> str:
    """The name of an enum's number; the first, "unknown", for one that is not known here."""
    return names[number] if 0 <= number < len(names) else names[0]


def _datetime(value: Timestamp) -> datetime:
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
    """

    kind: FileKind
    mode: int
    size_bytes: int = 0
    digest: str | None = None
    target: bytes | None = None
    uid: int = 0
    gid: int = 0

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
    """

    state: CoverageState
    reasons: tuple[str, ...] = ()
    processes: int = 0
    covered: int = 0
    events: int = 0
    lost: int = 0

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
            started_at=_datetime(proto.started_at) if proto.HasField("started_at") else None,
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
        counts: dict[str, JsonValue] = dict(sorted(self.event_counts.items()))
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


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds that are enforced on a world; None leaves the host's default.

    Attributes:
        memory_bytes: of all processes together.
        cpus: processors: 1.5 is one and a half.
        pids: processes and threads.
        disk_bytes: of the upper layers.
        inodes: of the upper layers.
        output_bytes: kept of one exec; what comes after is cut.
        runtime_s: the longest that one exec may run.
    """

    memory_bytes: int | None = None
    cpus: float | None = None
    pids: int | None = None
    disk_bytes: int | None = None
    inodes: int | None = None
    output_bytes: int | None = None
    runtime_s: float | None = None

    def to_proto(self) -> types_pb2.Limits:
        """Write the message."""
        from substrate_sdk._pb.substrate.common.v1alpha1 import types_pb2 as pb

        proto = pb.Limits(
            memory_bytes=self.memory_bytes,
            cpus=self.cpus,
            pids=self.pids,
            disk_bytes=self.disk_bytes,
            inodes=self.inodes,
            output_bytes=self.output_bytes,
        )
        if self.runtime_s is not None:
            proto.runtime.FromNanoseconds(round(self.runtime_s * 1e9))
        return proto

    @classmethod
    def from_proto(cls, proto: types_pb2.Limits) -> Limits:
        """Read the message."""
        return cls(
            memory_bytes=proto.memory_bytes if proto.HasField("memory_bytes") else None,
            cpus=proto.cpus if proto.HasField("cpus") else None,
            pids=proto.pids if proto.HasField("pids") else None,
            disk_bytes=proto.disk_bytes if proto.HasField("disk_bytes") else None,
            inodes=proto.inodes if proto.HasField("inodes") else None,
            output_bytes=proto.output_bytes if proto.HasField("output_bytes") else None,
            runtime_s=milliseconds(proto.runtime) / 1000 if proto.HasField("runtime") else None,
        )

    def to_json(self) -> JsonObject:
        """The object that ``--json`` prints."""
        return {
            "memory_bytes": self.memory_bytes,
            "cpus": self.cpus,
            "pids": self.pids,
            "disk_bytes": self.disk_bytes,
            "inodes": self.inodes,
            "output_bytes": self.output_bytes,
            "runtime_s": self.runtime_s,
        }


@dataclass(frozen=True, slots=True)
class WorldInfo:
    """What a host knows of a world.

    Attributes:
        world_id: its id.
        session_id: the session that it belongs to.
        state: ready, paused, lost or removing.
        profile: how much of the host it shows.
        project: its project's directory; None where there is none.
        cwd: where commands start.
        network: its network rules; none means no network.
        limits: its limits.
        created_at: when it was made.
        expires_at: when it is removed at the latest.
        keep: it stays when its client goes.
        steps: steps recorded.
        running: execs that run now.
        generation: counts rollbacks.
        labels: free labels.
        snapshot_id: the tree as of the last step.
        moved_base: files of the project that the host changed since the world was made.
    """

    world_id: str
    session_id: str
    state: str
    profile: str
    project: bytes | None
    cwd: bytes
    network: tuple[str, ...]
    limits: Limits
    created_at: datetime | None
    expires_at: datetime | None
    keep: bool
    steps: int
    running: int
    generation: int
    labels: Mapping[str, str]
    snapshot_id: str | None
    moved_base: tuple[bytes, ...]

    @classmethod
    def from_proto(cls, proto: worlds_pb2.World) -> WorldInfo:
        """Read the message."""
        return cls(
            world_id=proto.world_id,
            session_id=proto.session_id,
            state=named(_WORLD_STATES, proto.state),
            profile=proto.profile,
            project=proto.project if proto.HasField("project") else None,
            cwd=proto.cwd,
            network=tuple(proto.network),
            limits=Limits.from_proto(proto.limits),
            created_at=_datetime(proto.created_at) if proto.HasField("created_at") else None,
            expires_at=_datetime(proto.expires_at) if proto.HasField("expires_at") else None,
            keep=proto.keep,
            steps=proto.steps,
            running=proto.running,
            generation=proto.generation,
            labels={label.key: label.value for label in proto.labels},
            snapshot_id=proto.snapshot_id if proto.HasField("snapshot_id") else None,
            moved_base=tuple(proto.moved_base),
        )

    def to_json(self) -> JsonObject:
        """The object that ``--json`` prints."""
        labels: dict[str, JsonValue] = dict(self.labels)
        return {
            "world_id": self.world_id,
            "session_id": self.session_id,
            "state": self.state,
            "profile": self.profile,
            "project": optional_bytes_form(self.project),
            "cwd": bytes_form(self.cwd),
            "network": list(self.network),
            "limits": self.limits.to_json(),
            "created_at": time_form(self.created_at),
            "expires_at": time_form(self.expires_at),
            "keep": self.keep,
            "steps": self.steps,
            "running": self.running,
            "generation": self.generation,
            "labels": labels,
            "snapshot_id": self.snapshot_id,
            "moved_base": [bytes_form(path) for path in self.moved_base],
        }


@dataclass(frozen=True, slots=True)
class Capability:
    """One feature of a host.

    Attributes:
        feature: its name: user_namespaces, overlay, id_mapping, cgroup, telemetry.
        state: works, degraded or missing.
        mode: how it is done there.
        consequence: what follows where it does not work.
        fix: what to change.
    """

    feature: str
    state: str
    mode: str
    consequence: str
    fix: str

    @classmethod
    def from_proto(cls, proto: worlds_pb2.Capability) -> Capability:
        """Read the message."""
        return cls(
            feature=proto.feature,
            state=proto.state,
            mode=proto.mode,
            consequence=proto.consequence,
            fix=proto.fix,
        )

    def to_json(self) -> JsonObject:
        """The object that ``--json`` prints."""
        return {
            "feature": self.feature,
            "state": self.state,
            "mode": self.mode,
            "consequence": self.consequence,
            "fix": self.fix,
        }
