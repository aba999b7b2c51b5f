"""The OpenTelemetry projection, received by real OTLP servers over gRPC and HTTP."""

from __future__ import annotations

import contextlib
import gzip
import http.server
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as wire
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as wire_grpc
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from substrate_services.journal import codec
from substrate_services.journal.jsontypes import JsonObject
from substrate_services.journal.schema import (
    Action,
    Blocked,
    Command,
    Coverage,
    Decision,
    Process,
    SpanRecord,
)
from substrate_services.telemetry.otel import OtelProjection, otlp_protocol

if TYPE_CHECKING:
    from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
    from opentelemetry.sdk.trace import ReadableSpan

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
STEP = "00f067aa0ba902b7"
START = 1_700_000_000.25
OFFSET_NS = 1_600_000_000_000_000_000
BOOT_NS = 100_000_000_250_000_000


def process(number: int, parent: str, **changes: object) -> Process:
    made = Process(
        span_id=f"{number:016x}",
        parent_span_id=parent,
        pid=number,
        ppid=number - 1,
        exec_no=1,
        start_ns=BOOT_NS + number * 1_000_000,
        end_ns=BOOT_NS + number * 2_000_000,
        argv=(b"prog", b"secret-token"),
        exe=b"/usr/bin/prog%d" % number,
        cwd=b"/work",
        exit_code=0,
        signal=None,
    )
    return replace(made, **changes)  # type: ignore[arg-type]


PROCESSES = (
    process(2, STEP),
    process(3, f"{2:016x}", exit_code=1),
    process(4, f"{3:016x}", exit_code=None, signal=9, end_ns=None, exe=b"/opt/\xff"),
)


def make_span(**changes: object) -> SpanRecord:
    record = SpanRecord(
        span_id=STEP,
        trace_id=TRACE,
        session_id="ses_a",
        world_id="wld_a",
        exec_id="exe_a",
        kind="exec",
        agent_id="claude",
        parent_span="00000000000000aa",
        start_time=START,
        duration_ms=1500.5,
        action=Action(
            command=Command((b"/bin/bash", b"-lc", b"curl -H secret-token")),
            cwd=b"/work",
            env=((b"TOKEN", b"secret-token"),),
            umask=0o22,
            user="agent",
            stdin_digest=None,
            snapshot_id="before",
            timeout_s=None,
            first_pid=2,
        ),
        decision=Decision("allow", "rule-7", "because", "enforce", "p1"),
        termination_reason="EXITED",
        exit_code=3,
        signal=None,
        stdout_digest=None,
        stderr_digest=None,
        output_digest=None,
        stdout_bytes=11,
        stderr_bytes=0,
        truncated=False,
        changes=(),
        changes_truncated=2,
        changes_digest=None,
        blocked=(Blocked("connect example.org:443", "network", "none", "--net"),),
        coverage=Coverage("partial", ("static",), 3, 2, 10, 0),
        processes=PROCESSES,
        processes_truncated=0,
        events_digest=None,
        event_counts=(),
        snapshot_after="after",
        inputs_digest=None,
        replay_of="00000000000000bb",
        replay_of_trace="0" * 30 + "cc",
        labels=(("team", "a"),),
        utc_offset_ns=OFFSET_NS,
    )
    return replace(record, **changes)  # type: ignore[arg-type]


def event(syscall: str, number: int, **changes: object) -> JsonObject:
    line = codec.syscall_line(
        span_id=STEP,
        parent_span=None,
        session_id="ses_a",
        world_id="wld_a",
        time_s=START + number / 1000,
        syscall=syscall,
        args=[],
        result=0,
        error=None,
        pid=3,
        process_span=f"{3:016x}",
        path=b"/work/%d" % number,
    )
    line.update(changes)  # type: ignore[arg-type]
    return line


# --- receivers ---------------------------------------------------------------------------------


@dataclass
class Received:
    """What a receiver got, and a way to wait for it."""

    requests: list[wire.ExportTraceServiceRequest] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    arrived: threading.Condition = field(default_factory=threading.Condition)

    def add(self, request: wire.ExportTraceServiceRequest, headers: dict[str, str]) -> None:
        with self.arrived:
            self.requests.append(request)
            self.headers.append(headers)
            self.arrived.notify_all()

    def spans(self) -> list[Span]:
        return [
            span
            for request in self.requests
            for of_resource in request.resource_spans
            for of_scope in of_resource.scope_spans
            for span in of_scope.spans
        ]

    def wait(self, count: int) -> list[Span]:
        with self.arrived:
            assert self.arrived.wait_for(lambda: len(self.spans()) >= count, 20)
        return self.spans()


class GrpcReceiver(wire_grpc.TraceServiceServicer):
    def __init__(self, received: Received) -> None:
        self._received = received

    def Export(  # noqa: N802 - the method's name on the wire
        self,
        request: wire.ExportTraceServiceRequest,
        context: grpc.ServicerContext,
    ) -> wire.ExportTraceServiceResponse:
        headers = {key: str(value) for key, value in context.invocation_metadata()}
        self._received.add(request, headers)
        return wire.ExportTraceServiceResponse()


@contextlib.contextmanager
def grpc_receiver(port: int = 0) -> Iterator[tuple[Received, int]]:
    received = Received()
    server = grpc.server(futures.ThreadPoolExecutor(2))
    add = wire_grpc.add_TraceServiceServicer_to_server
    add(GrpcReceiver(received), server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    try:
        yield received, port
    finally:
        server.stop(None).wait(10)


@contextlib.contextmanager
def http_receiver() -> Iterator[tuple[Received, int]]:
    received = Received()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            request = wire.ExportTraceServiceRequest.FromString(body)
            headers = {name.lower(): value for name, value in self.headers.items()}
            received.add(request, {**headers, ":path": self.path})
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - inherited name
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield received, server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


RECEIVERS: dict[str, Callable[[], contextlib.AbstractContextManager[tuple[Received, int]]]] = {
    "grpc": grpc_receiver,
    "http/protobuf": http_receiver,
}


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:

    for name in list(os.environ):
        if name.startswith("OTEL_"):
            monkeypatch.delenv(name)


def plain(value: AnyValue) -> object:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [plain(item) for item in value.array_value.values]
    return None if kind is None else getattr(value, kind)


def attributes(pairs: Sequence[KeyValue]) -> dict[str, object]:
    return {pair.key: plain(pair.value) for pair in pairs}


# --- the tree ----------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", list(RECEIVERS))
def test_a_step_arrives_with_its_tree_ids_times_attributes_and_link(
    protocol: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with RECEIVERS[protocol]() as (received, port):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-team=blue")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")
        monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
        projection = OtelProjection.from_environment("host-1", "0.1.0")
        assert projection is not None
        with projection:
            projection.export(make_span(), [event("openat", 5), event("unlinkat", 6)])
            spans = {span.span_id.hex(): span for span in received.wait(4)}
            assert projection.flush(10)
        assert projection.stats().exported_spans == 4

    assert received.headers[0]["x-team"] == "blue"
    if protocol == "http/protobuf":
        assert received.headers[0][":path"] == "/v1/traces"
        assert received.headers[0]["content-encoding"] == "gzip"
    (of_resource,) = received.requests[0].resource_spans
    resource = attributes(of_resource.resource.attributes)
    assert resource["service.name"] == "substrate"
    assert resource["service.instance.id"] == resource["host.id"] == "host-1"
    assert resource["service.version"] == "0.1.0"
    assert resource["deployment.environment.name"] == "test"
    assert of_resource.schema_url.startswith("https://opentelemetry.io/schemas/1.")
    (of_scope,) = of_resource.scope_spans
    assert (of_scope.scope.name, of_scope.scope.version) == ("substrate", "0.1.0")
    assert of_scope.schema_url == of_resource.schema_url

    assert {span.trace_id.hex() for span in spans.values()} == {TRACE}
    assert {key: span.parent_span_id.hex() for key, span in spans.items()} == {
        STEP: "00000000000000aa",
        f"{2:016x}": STEP,
        f"{3:016x}": f"{2:016x}",
        f"{4:016x}": f"{3:016x}",
    }
    step = spans[STEP]
    assert (step.name, step.kind) == ("bash", Span.SPAN_KIND_CLIENT)
    assert step.start_time_unix_nano == 1_700_000_000_250_000_000
    assert step.end_time_unix_nano == 1_700_000_001_750_500_000
    assert (step.status.code, step.status.message) == (Status.STATUS_CODE_ERROR, "3")
    found = attributes(step.attributes)
    assert found["process.exit.code"] == 3
    assert found["error.type"] == "3"
    assert found["process.executable.name"] == "bash"
    assert found["process.executable.path"] == "/bin/bash"
    assert found["process.working_directory"] == "/work"
    assert found["substrate.session.id"] == "ses_a"
    assert found["substrate.decision.rule"] == "rule-7"
    assert found["substrate.coverage.state"] == "partial"
    assert found["substrate.coverage.reasons"] == ["static"]
    assert found["substrate.changes.count"] == 2
    assert found["substrate.blocked"] == ["connect example.org:443"]
    assert found["substrate.label.team"] == "a"
    (link,) = step.links
    assert (link.trace_id.hex(), link.span_id.hex()) == ("0" * 30 + "cc", "00000000000000bb")

    middle = spans[f"{3:016x}"]
    assert (middle.name, middle.kind) == ("prog3", Span.SPAN_KIND_INTERNAL)
    assert middle.start_time_unix_nano == OFFSET_NS + BOOT_NS + 3_000_000
    assert middle.end_time_unix_nano == OFFSET_NS + BOOT_NS + 6_000_000
    assert middle.status.code == Status.STATUS_CODE_ERROR
    found = attributes(middle.attributes)
    assert found["process.vpid"] == 3
    assert found["process.parent_pid"] == 2
    assert found["process.creation.time"] == "2023-11-14T22:13:20.253000Z"
    assert [item.name for item in middle.events] == [
        "substrate.syscall.openat",
        "substrate.syscall.unlinkat",
    ]
    assert middle.events[0].time_unix_nano == 1_700_000_000_255_000_000
    assert attributes(middle.events[0].attributes)["file.path"] == "/work/5"

    assert spans[f"{2:016x}"].status.code == Status.STATUS_CODE_UNSET
    killed = spans[f"{4:016x}"]
    assert attributes(killed.attributes)["error.type"] == "SIGKILL"
    assert killed.end_time_unix_nano == step.end_time_unix_nano
    # Arguments and environment hold secrets; they stay in the journal.
    assert b"secret-token" not in b"".join(r.SerializeToString() for r in received.requests)


# --- mapping -----------------------------------------------------------------------------------


class Keeping:
    """A sink that keeps spans, and can be told to hold or refuse them."""

    def __init__(self) -> None:
        self.spans: list[ReadableSpan] = []
        self.taking = True
        self.open = threading.Event()
        self.open.set()
        self.entered = threading.Event()

    def send(self, spans: Sequence[ReadableSpan]) -> bool:
        self.entered.set()
        self.open.wait(30)
        if self.taking:
            self.spans += spans
        return self.taking

    def close(self) -> None:
        self.open.set()


def mapped(record: SpanRecord, events: Sequence[JsonObject] = ()) -> list[ReadableSpan]:
    sink = Keeping()
    with OtelProjection("h", "0", sink=sink) as projection:
        projection.export(record, events)
        assert projection.flush(10)
    return sink.spans


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"exit_code": 0}, None),
        ({"exit_code": 1}, "1"),
        ({"exit_code": None, "termination_reason": "SIGNALED", "signal": "SIGKILL"}, "SIGKILL"),
        ({"exit_code": None, "termination_reason": "TIMEOUT"}, "TIMEOUT"),
        ({"exit_code": 126, "termination_reason": "DENIED"}, "DENIED"),
    ],
)
def test_a_step_is_an_error_only_where_it_failed(
    changes: dict[str, object], error: str | None
) -> None:
    step = mapped(make_span(**changes))[0]
    assert step.status.is_unset is (error is None)
    assert (step.attributes or {}).get("error.type") == error


def test_a_step_that_is_no_exec_is_internal_and_named_for_its_kind() -> None:
    step = mapped(make_span(kind="files.write", processes=(), replay_of=None))[0]
    assert (step.name, step.kind.name, list(step.links)) == ("files.write", "INTERNAL", [])


def test_process_spans_are_capped_and_the_rest_counted() -> None:
    many = tuple(process(number, f"{number - 1:016x}") for number in range(2, 602))
    spans = mapped(make_span(processes=many, processes_truncated=5))
    assert len(spans) == 1 + 256
    assert (spans[0].attributes or {})["substrate.processes.omitted"] == 344 + 5
    ids = {span.context.span_id for span in spans if span.context}
    assert all(span.parent and span.parent.span_id in ids for span in spans[1:])


def test_a_process_whose_parent_is_unknown_hangs_on_the_step() -> None:
    spans = mapped(make_span(processes=(process(9, "00000000000000ee"),)))
    parent = spans[1].parent
    assert parent is not None
    assert f"{parent.span_id:016x}" == STEP
    assert (spans[1].attributes or {})["substrate.process.parent_span"] == "00000000000000ee"


def test_the_most_telling_events_are_kept() -> None:
    lines = [event("openat", number) for number in range(200)]
    lines += [
        event("connect", 300),
        event("unlinkat", 301),
        event("openat", 302, error="EACCES", process_span="unknown"),
    ]
    spans = mapped(make_span(), lines)
    events = [item for span in spans for item in span.events]
    assert len(events) == 64
    assert (spans[0].attributes or {})["substrate.events.omitted"] == 203 - 64
    names = [item.name for item in spans[2].events]
    assert names[-2:] == ["substrate.syscall.connect", "substrate.syscall.unlinkat"]
    (denied,) = spans[0].events
    assert (denied.attributes or {})["error.type"] == "EACCES"


# --- outages -----------------------------------------------------------------------------------


def test_a_full_queue_drops_and_counts_and_never_blocks() -> None:
    sink = Keeping()
    sink.open.clear()
    with OtelProjection("h", "0", sink=sink, queue_limit=3) as projection:
        projection.export(make_span())
        assert sink.entered.wait(10)
        for _ in range(10):
            projection.export(make_span())
        stats = projection.stats()
        assert (stats.queued_steps, stats.dropped_steps) == (3, 7)
        sink.open.set()
        assert projection.flush(10)
        assert projection.stats().exported_spans == 4 * 4


def test_refused_spans_and_impossible_ids_are_counted_and_the_next_go_on() -> None:
    sink = Keeping()
    with OtelProjection("h", "0", sink=sink) as projection:
        sink.taking = False
        projection.export(make_span())
        assert projection.flush(10)
        sink.taking = True
        projection.export(make_span(trace_id="not hex"))
        projection.export(make_span(span_id="0" * 16))
        projection.export(make_span())
        assert projection.flush(10)
        stats = projection.stats()
    assert (stats.failed_spans, stats.dropped_steps, stats.exported_spans) == (4, 2, 4)
    projection.export(make_span())  # after close: counted, not raised
    assert projection.stats().dropped_steps == 3


@pytest.mark.parametrize("protocol", list(RECEIVERS))
def test_a_collector_that_is_away_costs_nothing_but_its_spans(
    protocol: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, "opentelemetry")
    with socket.socket() as unused:  # bound and not listening: connections are refused
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setenv(
            "OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{unused.getsockname()[1]}"
        )
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
        projection = OtelProjection("h", "0")
        for _ in range(20):
            projection.export(make_span())
        began = time.monotonic()
        projection.close(0.1)
        assert time.monotonic() - began < 15  # its retries alone would take longer
    stats = projection.stats()
    assert stats.exported_spans == 0
    assert stats.failed_spans + 4 * stats.dropped_steps == 80


def test_export_goes_on_when_the_collector_comes_back(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, "opentelemetry")
    with grpc_receiver() as (_, port):
        pass
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    with OtelProjection("h", "0") as projection:
        projection.export(make_span())
        with grpc_receiver(port) as (received, _):
            projection.export(make_span())
            received.wait(8)
            assert projection.flush(10)


# --- configuration -----------------------------------------------------------------------------

HERE = "OTEL_EXPORTER_OTLP_ENDPOINT"
PROTOCOL = "OTEL_EXPORTER_OTLP_PROTOCOL"


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, None),
        ({HERE: ""}, None),
        ({HERE: "http://c:4317"}, "grpc"),
        ({HERE: "c:4317"}, "grpc"),
        ({HERE: "http://c:4318"}, "http/protobuf"),
        ({HERE: "https://c/otlp"}, "http/protobuf"),
        ({HERE: "http://c:4317", PROTOCOL: "http/protobuf"}, "http/protobuf"),
        ({HERE: "http://c:4318", PROTOCOL: "grpc"}, "grpc"),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4318/v1/traces"}, "http/protobuf"),
        ({HERE: "http://c", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "grpc"}, "grpc"),
        ({HERE: "http://c", "OTEL_SDK_DISABLED": "true"}, None),
        ({HERE: "http://c", "OTEL_TRACES_EXPORTER": "none"}, None),
    ],
)
def test_the_standard_variables_decide(environ: dict[str, str], expected: str | None) -> None:
    assert otlp_protocol(environ) == expected


def test_an_unknown_protocol_is_named() -> None:
    with pytest.raises(ValueError, match=r"'http/json'.*expected grpc or http/protobuf"):
        otlp_protocol({HERE: "http://c", PROTOCOL: "http/json"})


def test_without_a_collector_there_is_no_projection_and_no_sdk() -> None:
    assert OtelProjection.from_environment("h", "0") is None
    with pytest.raises(ValueError, match="set OTEL_EXPORTER_OTLP_ENDPOINT"):
        OtelProjection("h", "0")
    code = (
        "import sys; from substrate_services.telemetry.otel import OtelProjection;"
        "assert OtelProjection.from_environment('h', '0') is None;"
        "sys.exit(any(name.startswith('opentelemetry.sdk') for name in sys.modules))"
    )
    path = ":".join(entry for entry in sys.path if entry)
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": path}, timeout=60)
