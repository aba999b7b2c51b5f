"""Lines of the journal from the facts, and back.

One function per kind of line. Field names are those of the original format where the meaning is
the same (``cmd``, ``exit``, ``fs_diff``, ``replay_context``, …), so that jq habits carry over;
the exact facts stand beside them (``action``, ``fs_diff.changes``, …) and only those are read
back. docs/TRACE.md lists every field.

Only the writer adds ``seq`` and ``v``; ``ts`` is added by the writer where a line has none.
"""

from __future__ import annotations

import functools
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import get_args

import blake3

from substrate_services.journal import bytesjson, parts
from substrate_services.journal.action import action_digest
from substrate_services.journal.jsontypes import (
    Fields,
    JsonObject,
    JsonValue,
    LineError,
    canonical_bytes,
)
from substrate_services.journal.schema import (
    Action,
    Change,
    Command,
    Decision,
    EventSource,
    Process,
    ShellStep,
    SpanRecord,
    TerminationReason,
)

SCHEMA_MAJOR = 1
SCHEMA_VERSION = "1.0"

_TERMINATION_REASONS: tuple[TerminationReason, ...] = get_args(TerminationReason)
_LOCALE_NAMES = (b"LC_ALL", b"LC_CTYPE", b"LANG")  # in the order the C library asks


@dataclass(frozen=True, slots=True)
class Origin:
    """How a step came to the host; written for readers, not part of the record."""

    component: str = "world"
    transport: str = "grpc"
    execution_origin: str = "world"  # "host" when SUBSTRATE_WORLD=disabled
    scopes_used: tuple[str, ...] = ()
    fs_strategy: str = "overlay"


DEFAULT_ORIGIN = Origin()


@dataclass(frozen=True, slots=True)
class SpanStart:
    """A step that began: the content of a ``command_start`` line.

    What a host needs to finish the record of an exec that outlived the process which started it.
    """

    span_id: str
    trace_id: str
    session_id: str
    world_id: str
    exec_id: str
    kind: str
    agent_id: str
    parent_span: str | None
    start_time: float  # seconds since the epoch
    action: Action
    decision: Decision
    replay_of: str | None = None
    labels: tuple[tuple[str, str], ...] = ()
    replay_of_trace: str | None = None
    utc_offset_ns: int | None = None
    project: bytes | None = None
    shell: ShellStep | None = None


def timestamp(epoch_s: float) -> str:
    """RFC 3339 in UTC with microseconds, as every ``ts`` is written."""
    moment = datetime.fromtimestamp(epoch_s, UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def display_command(command: Command) -> str:
    """The command as a person would type it. For reading only: never run what this returns."""
    if command.shell is not None:
        return bytesjson.display(command.shell)
    return shlex.join(bytesjson.display(argument) for argument in command.argv)


def require_readable(fields: Fields) -> None:
    """Raises LineError where the line was written by a newer major version of the schema."""
    version = fields.text("v", SCHEMA_VERSION)
    major, _, _ = version.partition(".")
    if not major.isascii() or not major.isdigit() or int(major) > SCHEMA_MAJOR:
        raise LineError(
            f"line has schema version {version!r}; this reader knows up to {SCHEMA_MAJOR}.x: "
            "upgrade substrate-recorder"
        )


# --- steps -------------------------------------------------------------------------------------


def start_to_line(start: SpanStart, origin: Origin = DEFAULT_ORIGIN) -> JsonObject:
    """The ``command_start`` line."""
    line: JsonObject = {
        "event_type": "command_start",
        "ts": timestamp(start.start_time),
        **_identity(start),
        "component": origin.component,
        **_asked(start.action, start.decision, origin),
        "start_time": start.start_time,
        "graph_edges": _graph_edges(start),
        "labels": parts.pairs_to_json(start.labels),
    }
    return line


def start_from_line(line: JsonObject) -> SpanStart:
    """The step that a ``command_start`` line tells of. Raises LineError."""
    fields = Fields(line, "command_start")
    require_readable(fields)
    if fields.text("event_type") != "command_start":
        raise fields.wrong("event_type", "command_start")
    return SpanStart(
        span_id=fields.text("span_id"),
        trace_id=fields.text("trace_id"),
        session_id=fields.text("session_id"),
        world_id=fields.text("world_id"),
        exec_id=fields.text("exec_id"),
        kind=fields.text("kind"),
        agent_id=fields.text("agent_id"),
        parent_span=fields.opt_text("parent_span"),
        start_time=fields.number("start_time"),
        action=parts.action_from_json(fields.value.get("action")),
        decision=parts.decision_from_json(fields.value.get("policy_decision")),
        replay_of=fields.opt_text("replay_of"),
        labels=parts.text_pairs(fields, "labels"),
        replay_of_trace=fields.opt_text("replay_of_trace"),
        utc_offset_ns=fields.opt_integer("utc_offset_ns"),
        project=parts.opt_bytes(fields, "project"),
        shell=parts.shell_step_from_json(fields),
    )


def span_to_line(record: SpanRecord, origin: Origin = DEFAULT_ORIGIN) -> JsonObject:
    """The ``command_complete`` line."""
    line: JsonObject = {
        "event_type": "command_complete",
        "ts": timestamp(record.start_time + record.duration_ms / 1000),
        **_identity(record),
        "component": origin.component,
        **_asked(record.action, record.decision, origin),
        "start_time": record.start_time,
        "duration_ms": record.duration_ms,
        "exit": record.exit_code,
        "signal": record.signal,
        "termination_reason": record.termination_reason,
        "outcome": _outcome(record),
        "fs_diff": _fs_diff(record),
        "stdout_digest": record.stdout_digest,
        "stdout_bytes": record.stdout_bytes,
        "stderr_digest": record.stderr_digest,
        "stderr_bytes": record.stderr_bytes,
        "output_digest": record.output_digest,
        "truncated": record.truncated,
        "blocked": [parts.blocked_to_json(item) for item in record.blocked],
        "coverage": parts.coverage_to_json(record.coverage),
        "processes": [parts.process_to_json(process) for process in record.processes],
        "processes_truncated": record.processes_truncated,
        "events_digest": record.events_digest,
        "event_counts": parts.pairs_to_json(record.event_counts),
        "snapshot_after": record.snapshot_after,
        "inputs_digest": record.inputs_digest,
        "hosts": parts.text_list(record.hosts),
        "shared": record.shared,
        "graph_edges": _graph_edges(record),
        "labels": parts.pairs_to_json(record.labels),
        "world_fs_strategy_primary": origin.fs_strategy,
        "world_fs_strategy_final": origin.fs_strategy,
    }
    return line


def span_from_line(line: JsonObject) -> SpanRecord:
    """The step that a ``command_complete`` line records. Raises LineError."""
    fields = Fields(line, "command_complete")
    require_readable(fields)
    if fields.text("event_type") != "command_complete":
        raise fields.wrong("event_type", "command_complete")
    diff = fields.child("fs_diff")
    return SpanRecord(
        span_id=fields.text("span_id"),
        trace_id=fields.text("trace_id"),
        session_id=fields.text("session_id"),
        world_id=fields.text("world_id"),
        exec_id=fields.text("exec_id"),
        kind=fields.text("kind"),
        agent_id=fields.text("agent_id"),
        parent_span=fields.opt_text("parent_span"),
        start_time=fields.number("start_time"),
        duration_ms=fields.number("duration_ms"),
        action=parts.action_from_json(fields.value.get("action")),
        decision=parts.decision_from_json(fields.value.get("policy_decision")),
        termination_reason=parts.choice(fields, "termination_reason", _TERMINATION_REASONS),
        exit_code=fields.opt_integer("exit"),
        signal=fields.opt_text("signal"),
        stdout_digest=fields.opt_text("stdout_digest"),
        stderr_digest=fields.opt_text("stderr_digest"),
        output_digest=fields.opt_text("output_digest"),
        stdout_bytes=fields.integer("stdout_bytes"),
        stderr_bytes=fields.integer("stderr_bytes"),
        truncated=fields.flag("truncated"),
        changes=tuple(parts.change_from_json(item) for item in diff.items("changes")),
        changes_truncated=diff.integer("changes_truncated"),
        changes_digest=diff.opt_text("changes_digest"),
        blocked=tuple(parts.blocked_from_json(item) for item in fields.items("blocked")),
        coverage=parts.coverage_from_json(fields.value.get("coverage")),
        processes=tuple(parts.process_from_json(item) for item in fields.items("processes")),
        processes_truncated=fields.integer("processes_truncated"),
        events_digest=fields.opt_text("events_digest"),
        event_counts=parts.int_pairs(fields, "event_counts"),
        snapshot_after=fields.opt_text("snapshot_after"),
        inputs_digest=fields.opt_text("inputs_digest"),
        replay_of=fields.opt_text("replay_of"),
        labels=parts.text_pairs(fields, "labels"),
        replay_of_trace=fields.opt_text("replay_of_trace"),
        utc_offset_ns=fields.opt_integer("utc_offset_ns"),
        project=parts.opt_bytes(fields, "project"),
        hosts=parts.texts(fields, "hosts"),
        shell=parts.shell_step_from_json(fields),
        shared=fields.flag("shared", False),
    )


def _identity(step: SpanRecord | SpanStart) -> JsonObject:
    return {
        "span_id": step.span_id,
        "trace_id": step.trace_id,
        "parent_span": step.parent_span,
        "session_id": step.session_id,
        "world_id": step.world_id,
        "exec_id": step.exec_id,
        "kind": step.kind,
        "agent_id": step.agent_id,
        "policy_id": step.action.policy_hash,
        "replay_of": step.replay_of,
        "replay_of_trace": step.replay_of_trace,
        "utc_offset_ns": step.utc_offset_ns,
        "project": bytesjson.encode(step.project) if step.project is not None else None,
        **parts.shell_step_to_json(step.shell),
    }


def _asked(action: Action, decision: Decision, origin: Origin) -> JsonObject:
    return {
        "cmd": display_command(action.command),
        "cwd": bytesjson.encode(action.cwd),
        "transport": origin.transport,
        "execution_origin": origin.execution_origin,
        "scopes_used": parts.text_list(origin.scopes_used),
        "policy_decision": parts.decision_to_json(decision),
        "action_digest": action_digest(action),
        "action": parts.action_to_json(action),
        "replay_context": _replay_context(action, origin),
    }


@functools.lru_cache(maxsize=256)
def _env_hash(env: tuple[tuple[bytes, bytes], ...]) -> str:
    return blake3.blake3(canonical_bytes([parts.env_to_json(env)])).hexdigest()


def _replay_context(action: Action, origin: Origin) -> JsonObject:
    env = dict(action.env)

    def variable(name: bytes) -> JsonValue:
        value = env.get(name)
        return None if value is None else bytesjson.encode(value)

    locale = next((env[name] for name in _LOCALE_NAMES if env.get(name)), None)
    return {
        "path": variable(b"PATH"),
        "env_hash": _env_hash(action.env),
        "umask": action.umask,
        "locale": None if locale is None else bytesjson.encode(locale),
        "cwd": bytesjson.encode(action.cwd),
        "policy_id": action.policy_hash,
        "user": action.user,
        "shell": variable(b"SHELL"),
        "term": variable(b"TERM"),
        "execution_origin": origin.execution_origin,
        "transport": origin.transport,
        "caged": origin.execution_origin == "world",
        "world_fs_mode": origin.fs_strategy,
    }


def _outcome(record: SpanRecord) -> str:
    if record.termination_reason == "EXITED":
        return "success" if record.exit_code == 0 else "failure"
    return record.termination_reason.lower()


def _graph_edges(step: SpanRecord | SpanStart) -> list[JsonValue]:
    edges: list[JsonValue] = []
    if step.parent_span is not None:
        edges.append(_edge("parent_child", step.parent_span, step.span_id))
    if step.replay_of is not None:
        edges.append(_edge("caused_by", step.span_id, step.replay_of, reason="replay"))
    return edges


def _edge(edge_type: str, from_span: str, to_span: str, **metadata: JsonValue) -> JsonObject:
    return {
        "edge_type": edge_type,
        "from_span": from_span,
        "to_span": to_span,
        "metadata": dict(metadata),
    }


def _fs_diff(record: SpanRecord) -> JsonObject:
    changes = record.changes
    return {
        "writes": _paths(changes, "created"),
        "mods": _paths(changes, "modified", "metadata"),
        "deletes": _paths(changes, "deleted"),
        "renames": [
            {
                "from": None if c.renamed_from is None else bytesjson.encode(c.renamed_from),
                "to": bytesjson.encode(c.path),
            }
            for c in changes
            if c.kind == "renamed"
        ],
        "truncated": record.changes_truncated > 0,
        "tree_hash": record.snapshot_after,
        "summary": _summary(changes, record.changes_truncated),
        "changes": [parts.change_to_json(change) for change in changes],
        "changes_truncated": record.changes_truncated,
        "changes_digest": record.changes_digest,
    }


def _paths(changes: Sequence[Change], *kinds: str) -> list[JsonValue]:
    return [bytesjson.encode(change.path) for change in changes if change.kind in kinds]


def _summary(changes: Sequence[Change], more: int) -> str:
    counts: dict[str, int] = {}
    for change in changes:
        counts[change.kind] = counts.get(change.kind, 0) + 1
    words = [f"{count} {kind}" for kind, count in counts.items()]
    if more:
        words.append(f"{more} more")
    return ", ".join(words) or "no changes"


# --- what happens around and inside steps ------------------------------------------------------


def lifecycle_line(
    event_type: str,
    *,
    session_id: str,
    world_id: str | None = None,
    agent_id: str | None = None,
    component: str = "world",
    detail: Mapping[str, JsonValue] | None = None,
) -> JsonObject:
    """A line of a world's or a session's life (``world_created``, ``session_ended``).

    ``detail`` holds what is particular to the event, under its own name so that it can never
    overwrite an identity.
    """
    return {
        "event_type": event_type,
        "session_id": session_id,
        "world_id": world_id,
        "agent_id": agent_id,
        "component": component,
        "detail": dict(detail or {}),
    }


def decision_line(
    decision: Decision,
    *,
    span_id: str | None,
    session_id: str,
    world_id: str | None,
    agent_id: str,
    command: Command | None = None,
    action_digest: str | None = None,
) -> JsonObject:
    """A ``policy_decision`` line: what the broker answered, also where nothing ran for it."""
    return {
        "event_type": "policy_decision",
        "span_id": span_id,
        "session_id": session_id,
        "world_id": world_id,
        "agent_id": agent_id,
        "component": "broker",
        "cmd": None if command is None else display_command(command),
        "command": None if command is None else parts.command_to_json(command),
        "action_digest": action_digest,
        "policy_id": decision.policy_hash,
        "policy_decision": parts.decision_to_json(decision),
    }


def syscall_line(
    *,
    span_id: str,
    parent_span: str | None,
    session_id: str,
    world_id: str,
    time_s: float,
    syscall: str,
    args: Sequence[JsonValue],
    result: int | None,
    error: str | None,
    pid: int,
    process_span: str,
    path: bytes | None = None,
    elapsed_us: float | None = None,
    source: EventSource = "self_reported",
    extra: Mapping[str, JsonValue] | None = None,
) -> JsonObject:
    """A ``syscall`` line, one of the bounded set of a step.

    ``span_id`` is the step's, ``process_span`` the process's; ``path`` is absolute in the world;
    ``error`` is the errno's name. ``extra`` adds fields and cannot replace one of these.
    """
    line: JsonObject = dict(extra or {})
    line.update(
        {
            "event_type": "syscall",
            "ts": timestamp(time_s),
            "span_id": span_id,
            "parent_span": parent_span,
            "session_id": session_id,
            "world_id": world_id,
            "component": "preload" if source == "self_reported" else "ledger",
            "source": source,
            "process_span": process_span,
            "pid": pid,
            "syscall": syscall,
            "args": list(args),
            "path": None if path is None else bytesjson.encode(path),
            "result": result,
            "error": error,
            "elapsed_us": elapsed_us,
        }
    )
    return line


def process_start_line(record: SpanRecord, process: Process) -> JsonObject:
    """A ``world_process_start`` line."""
    return {
        **_process_line("world_process_start", record, process, process.start_ns),
        "argv": parts.byte_list(process.argv),
        "exe": bytesjson.encode(process.exe),
        "cwd": bytesjson.encode(process.cwd),
    }


def process_exit_line(record: SpanRecord, process: Process) -> JsonObject:
    """A ``world_process_exit`` line. The process must have ended (``end_ns``)."""
    if process.end_ns is None:
        raise ValueError(f"process {process.pid} of span {record.span_id} has not ended")
    return {
        **_process_line("world_process_exit", record, process, process.end_ns),
        "exe": bytesjson.encode(process.exe),
        "exit_code": process.exit_code,
        "signal": process.signal,
        "duration_ms": (process.end_ns - process.start_ns) / 1e6,
    }


def _process_line(
    event_type: str, record: SpanRecord, process: Process, boottime_ns: int
) -> JsonObject:
    return {
        "event_type": event_type,
        "ts": timestamp(boottime_to_utc_ns(record, boottime_ns) / 1e9),
        "span_id": record.span_id,
        "session_id": record.session_id,
        "world_id": record.world_id,
        "component": "preload",
        "process_span": process.span_id,
        "parent_span": process.parent_span_id,
        "pid": process.pid,
        "ppid": process.ppid,
        "exec_no": process.exec_no,
    }


def boottime_to_utc_ns(record: SpanRecord, boottime_ns: int) -> int:
    """When a process of the step started or ended, in nanoseconds since the epoch.

    Without a recorded offset the earliest process is taken to have started with the step, which
    errs by the time between the decision and the fork (milliseconds).
    """
    if record.utc_offset_ns is not None:
        return boottime_ns + record.utc_offset_ns
    first_ns = min((process.start_ns for process in record.processes), default=boottime_ns)
    # A float holds the time of day to about 240 ns, so microseconds are what is known.
    return round(record.start_time * 1e6) * 1000 + (boottime_ns - first_ns)
