"""Spans in OpenTelemetry's words, from the record of a step.

One CLIENT span for an exec (the conventions' caller of a command line), one INTERNAL span per
process with its real parent, ids and times as recorded; other steps are one INTERNAL span. Spans
are built as finished ``ReadableSpan`` values with their own context, because the SDK's tracer
makes up ids and times; the SDK's exporters then do the transport (docs/adr/0003).

Conventions: https://opentelemetry.io/docs/specs/semconv/cli/cli-spans/ and the process registry.
"""

from __future__ import annotations

import os
import platform
import signal
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from substrate_services.journal.action import action_digest
from substrate_services.journal.bytesjson import display
from substrate_services.journal.codec import boottime_to_utc_ns
from substrate_services.journal.jsontypes import JsonObject, JsonValue
from substrate_services.journal.schema import Process, SpanRecord
from substrate_services.telemetry.otel import OtlpProtocol, Sink

if TYPE_CHECKING:
    from opentelemetry.util.types import AttributeValue

SCHEMA_URL = "https://opentelemetry.io/schemas/1.44.0"
_SCOPE = "substrate"
_TEXT_LIMIT = 1024  # characters of one attribute

_DENIALS = frozenset({"EACCES", "EPERM", "EROFS"})
_MUTATIONS = (
    "unlink",
    "rename",
    "mkdir",
    "rmdir",
    "link",
    "symlink",
    "mknod",
    "chmod",
    "chown",
    "truncate",
    "creat",
    "write",
)
# Fields of an event line that have an attribute of their own, or say nothing beside the span.
_EVENT_NAMES = {"path": "file.path", "error": "error.type", "pid": "process.pid"}
_EVENT_SKIP = frozenset(
    {"seq", "v", "ts", "event_type", "span_id", "parent_span", "session_id", "world_id"}
    | {"component", "process_span", "trace_id"}
)


class SpanMapper:
    """Makes the spans of steps.

    Args:
        host_id: becomes ``host.id`` and ``service.instance.id``.
        version: becomes ``service.version`` and the scope's version.
        process_limit: process spans per step; the rest is counted in an attribute.
        event_limit: span events per step, the most telling first (denials, mutations, connects).
    """

    def __init__(
        self, host_id: str, version: str, *, process_limit: int = 256, event_limit: int = 64
    ) -> None:
        attributes: dict[str, AttributeValue] = {
            "service.name": "substrate",
            "service.instance.id": host_id,
            "service.version": version,
            "host.id": host_id,
            "host.name": platform.node(),
        }
        # OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES are the operator's and win.
        attributes.update(OTELResourceDetector().detect().attributes)
        self._resource = Resource.create(attributes, SCHEMA_URL)
        self._scope = InstrumentationScope(_SCOPE, version, SCHEMA_URL)
        self._process_limit = process_limit
        self._event_limit = event_limit

    def spans(self, record: SpanRecord, events: Sequence[JsonObject]) -> list[ReadableSpan]:
        """The step's span, then those of its processes, parents before children.

        Raises ValueError where the record's ids are not OpenTelemetry's.
        """
        trace_id = _hex_id(record.trace_id, 32)
        exec_id = _hex_id(record.span_id, 16)
        start_ns = round(record.start_time * 1e6) * 1000
        end_ns = start_ns + round(record.duration_ms * 1e6)
        processes = _parents_first(record.processes)[: self._process_limit]
        known = {record.span_id, *(process.span_id for process in processes)}
        events_of = self._events_by_span(record, events, known, end_ns)

        attributes = _exec_attributes(record)
        omitted = len(record.processes) - len(processes) + record.processes_truncated
        if omitted:
            attributes["substrate.processes.omitted"] = omitted
        if len(events) > self._event_limit:
            attributes["substrate.events.omitted"] = len(events) - self._event_limit
        parent = None
        if record.parent_span is not None:
            parent = _context(trace_id, _hex_id(record.parent_span, 16), remote=True)
        made = [
            ReadableSpan(
                name=_exec_name(record),
                context=_context(trace_id, exec_id),
                parent=parent,
                resource=self._resource,
                attributes=attributes,
                events=events_of.get(record.span_id, ()),
                links=_links(record),
                kind=SpanKind.CLIENT if record.kind == "exec" else SpanKind.INTERNAL,
                status=_status(_exec_error(record)),
                start_time=start_ns,
                end_time=end_ns,
                instrumentation_scope=self._scope,
            )
        ]
        for process in processes:
            parent_id = process.parent_span_id
            process_attributes = _process_attributes(record, process)
            if parent_id not in known:
                process_attributes["substrate.process.parent_span"] = parent_id
                parent_id = record.span_id
            made.append(
                ReadableSpan(
                    name=_base_name(process.exe) or _base_name(b"".join(process.argv[:1])) or "?",
                    context=_context(trace_id, _hex_id(process.span_id, 16)),
                    parent=_context(trace_id, _hex_id(parent_id, 16)),
                    resource=self._resource,
                    attributes=process_attributes,
                    events=events_of.get(process.span_id, ()),
                    kind=SpanKind.INTERNAL,
                    status=_status(_process_error(process)),
                    start_time=boottime_to_utc_ns(record, process.start_ns),
                    end_time=end_ns
                    if process.end_ns is None
                    else boottime_to_utc_ns(record, process.end_ns),
                    instrumentation_scope=self._scope,
                )
            )
        return made

    def _events_by_span(
        self,
        record: SpanRecord,
        events: Sequence[JsonObject],
        known: set[str],
        end_ns: int,
    ) -> dict[str, list[Event]]:
        """The step's most telling events, by the span they belong to, in order of time."""
        chosen = sorted(events, key=_rank)[: self._event_limit]
        by_span: dict[str, list[Event]] = {}
        for line in chosen:
            owner = line.get("process_span")
            span_id = owner if isinstance(owner, str) and owner in known else record.span_id
            by_span.setdefault(span_id, []).append(_event(line, end_ns))
        for found in by_span.values():
            found.sort(key=lambda event: event.timestamp)
        return by_span


def otlp_sink(protocol: OtlpProtocol) -> Sink:
    """The SDK's OTLP exporter for the protocol, configured by the standard variables."""
    # Each brings its transport along; only the one that is used is loaded.
    if protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import (  # noqa: PLC0415
            OTLPSpanExporter as GrpcExporter,
        )

        return _ExporterSink(GrpcExporter())
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # noqa: PLC0415
        OTLPSpanExporter as HttpExporter,
    )

    return _ExporterSink(HttpExporter())


class _ExporterSink:
    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter

    def send(self, spans: Sequence[ReadableSpan]) -> bool:
        return self._exporter.export(spans) is SpanExportResult.SUCCESS

    def close(self) -> None:
        self._exporter.shutdown()


# --- ids, names, states ------------------------------------------------------------------------


def _hex_id(text: str, digits: int) -> int:
    if len(text) != digits:
        raise ValueError(f"id {text!r} is not {digits} hex digits")
    value = int(text, 16)
    if value == 0:
        raise ValueError(f"id {text!r} is all zeros, which OpenTelemetry calls invalid")
    return value


def _context(trace_id: int, span_id: int, *, remote: bool = False) -> SpanContext:
    return SpanContext(trace_id, span_id, remote, TraceFlags(TraceFlags.SAMPLED))


def _links(record: SpanRecord) -> tuple[Link, ...]:
    if record.replay_of is None or record.replay_of_trace is None:
        return ()
    original = _context(
        _hex_id(record.replay_of_trace, 32), _hex_id(record.replay_of, 16), remote=True
    )
    return (Link(original, {"substrate.link": "replay_of"}),)


def _exec_name(record: SpanRecord) -> str:
    # Names stay few: the executable's, never the command line.
    if record.kind != "exec":
        return record.kind
    return _base_name(b"".join(record.action.command.argv[:1])) or "exec"


def _base_name(path: bytes) -> str:
    return display(os.path.basename(path))[:_TEXT_LIMIT]


def _exec_error(record: SpanRecord) -> str | None:
    """What goes into ``error.type``: one of few values, None for success."""
    if record.termination_reason == "SIGNALED":
        return record.signal or "SIGNALED"
    if record.termination_reason != "EXITED":
        return record.termination_reason
    return None if record.exit_code in {0, None} else str(record.exit_code)


def _process_error(process: Process) -> str | None:
    if process.signal is not None:
        try:
            return signal.Signals(process.signal).name
        except ValueError:
            return f"signal {process.signal}"  # a real-time signal
    return str(process.exit_code) if process.exit_code else None


def _status(error: str | None) -> Status:
    return Status(StatusCode.UNSET) if error is None else Status(StatusCode.ERROR, error)


def _parents_first(processes: Sequence[Process]) -> list[Process]:
    """In order of start, so that a limit cuts off leaves and never a parent of what is kept."""
    return sorted(processes, key=lambda process: (process.start_ns, process.exec_no))


# --- attributes --------------------------------------------------------------------------------


def _exec_attributes(record: SpanRecord) -> dict[str, AttributeValue]:
    found: dict[str, AttributeValue | None] = {
        "substrate.step.kind": record.kind,
        "substrate.session.id": record.session_id,
        "substrate.world.id": record.world_id,
        "substrate.exec.id": record.exec_id,
        "substrate.agent.id": record.agent_id or None,
        "substrate.action.digest": action_digest(record.action),
        "substrate.termination_reason": record.termination_reason,
        "substrate.decision.action": record.decision.action,
        "substrate.decision.rule": record.decision.rule_id,
        "substrate.decision.mode": record.decision.mode,
        "substrate.decision.enforced": record.decision.enforced,
        "substrate.policy.hash": record.decision.policy_hash or None,
        "substrate.coverage.state": record.coverage.state,
        "substrate.coverage.reasons": record.coverage.reasons or None,
        "substrate.coverage.lost": record.coverage.lost,
        "substrate.changes.count": len(record.changes) + record.changes_truncated,
        "substrate.blocked": tuple(item.what[:_TEXT_LIMIT] for item in record.blocked) or None,
        "substrate.stdout.bytes": record.stdout_bytes,
        "substrate.stderr.bytes": record.stderr_bytes,
        "substrate.output.truncated": record.truncated,
        "substrate.snapshot.before": record.action.snapshot_id,
        "substrate.snapshot.after": record.snapshot_after,
        "substrate.replay_of": record.replay_of,
        "process.working_directory": _text(record.action.cwd),
        "process.exit.code": record.exit_code,
        "error.type": _exec_error(record),
    }
    if record.kind == "exec":
        executable = b"".join(record.action.command.argv[:1])
        found["process.executable.name"] = _base_name(executable) or None
        found["process.executable.path"] = _text(executable) if b"/" in executable else None
        found["process.pid"] = found["process.vpid"] = record.action.first_pid
    for name, value in record.labels:
        found[f"substrate.label.{name}"] = value[:_TEXT_LIMIT]
    return {name: value for name, value in found.items() if value is not None}


def _process_attributes(record: SpanRecord, process: Process) -> dict[str, AttributeValue]:
    # Pids are those in the world's pid namespace: the recorder knows no others.
    found: dict[str, AttributeValue | None] = {
        "process.pid": process.pid,
        "process.vpid": process.pid,
        "process.parent_pid": process.ppid,
        "process.executable.name": _base_name(process.exe) or None,
        "process.executable.path": _text(process.exe) or None,
        "process.working_directory": _text(process.cwd) or None,
        "process.creation.time": _iso(boottime_to_utc_ns(record, process.start_ns)),
        "process.exit.time": None
        if process.end_ns is None
        else _iso(boottime_to_utc_ns(record, process.end_ns)),
        "process.exit.code": process.exit_code,
        "error.type": _process_error(process),
        "substrate.process.exec_no": process.exec_no,
        "substrate.process.signal": process.signal,
        "substrate.process.events": process.events,
        "substrate.coverage.state": process.coverage,
        "substrate.coverage.reasons": (process.coverage_reason,)
        if process.coverage_reason
        else None,
        "substrate.session.id": record.session_id,
        "substrate.world.id": record.world_id,
    }
    return {name: value for name, value in found.items() if value is not None}


def _text(value: bytes) -> str:
    return display(value)[:_TEXT_LIMIT]


def _iso(epoch_ns: int) -> str:
    moment = datetime.fromtimestamp(epoch_ns / 1e9, UTC)
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


# --- events ------------------------------------------------------------------------------------


def _rank(line: JsonObject) -> int:
    """How soon an event is chosen: denials, mutations, connects, execs, then the rest."""
    what = line.get("syscall")
    name = what if isinstance(what, str) else str(line.get("event_type"))
    if line.get("error") in _DENIALS or "denied" in name or "policy" in name:
        return 0
    if name.startswith(_MUTATIONS):
        return 1
    if name.startswith("connect"):
        return 2
    if name.startswith(("exec", "posix_spawn", "world_process_start")):
        return 3
    return 4


def _event(line: JsonObject, fallback_ns: int) -> Event:
    event_type, syscall = line.get("event_type"), line.get("syscall")
    name = f"substrate.{event_type}"
    if isinstance(syscall, str):
        name += f".{syscall}"
    return Event(name, dict(_event_attributes(line)), _event_time_ns(line, fallback_ns))


def _event_time_ns(line: Mapping[str, JsonValue], fallback_ns: int) -> int:
    ts = line.get("ts")
    try:
        moment = datetime.fromisoformat(ts if isinstance(ts, str) else "")
    except ValueError:
        return fallback_ns
    return round(moment.timestamp() * 1e6) * 1000


def _event_attributes(line: JsonObject) -> Iterator[tuple[str, AttributeValue]]:
    for name, value in line.items():
        if name in _EVENT_SKIP or value is None:
            continue
        attribute = _EVENT_NAMES.get(name, f"substrate.{name}")
        if isinstance(value, (bool, int, float)):
            yield attribute, value
        elif isinstance(value, str):
            yield attribute, value[:_TEXT_LIMIT]
        elif isinstance(value, dict) and isinstance(value.get("b64"), str):
            yield f"{attribute}.b64", str(value["b64"])[:_TEXT_LIMIT]
