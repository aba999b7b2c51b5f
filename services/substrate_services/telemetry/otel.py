"""OpenTelemetry: a projection of the journal, sent from a thread of its own.

The journal is the truth and this a copy for viewers: nothing here may hold up or fail a recording.
What does not fit the queue, or what the collector does not take, is counted and left out; it can be
sent again from the journal.

Configured by the standard variables (``OTEL_EXPORTER_OTLP_ENDPOINT``, ``…_PROTOCOL``,
``…_HEADERS``, ``…_COMPRESSION``, ``…_CERTIFICATE``, ``…_TIMEOUT`` and their ``…_TRACES_…`` forms,
``OTEL_SERVICE_NAME``, ``OTEL_RESOURCE_ATTRIBUTES``, ``OTEL_SDK_DISABLED``,
``OTEL_TRACES_EXPORTER``). The SDK is imported only when it is asked for: a host without a
collector does not pay for it.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Protocol, Self
from urllib.parse import urlsplit

from substrate_services.journal.jsontypes import JsonObject
from substrate_services.journal.schema import SpanRecord

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan

_log = logging.getLogger(__name__)

OtlpProtocol = Literal["grpc", "http/protobuf"]

_SPANS_PER_REQUEST = 512
_GRPC_PORT = 4317  # what collectors listen on; 4318 is OTLP over HTTP


class Sink(Protocol):
    """Where spans go."""

    def send(self, spans: Sequence[ReadableSpan]) -> bool:
        """Sends spans, with retries; False where they were not taken."""

    def close(self) -> None:
        """Ends a send in progress, from another thread, and gives up the connection."""


@dataclass(frozen=True, slots=True)
class OtelStats:
    """What became of the steps and spans so far."""

    queued_steps: int
    exported_spans: int
    failed_spans: int  # the collector did not take them
    dropped_steps: int  # the queue was full, or the step could not be mapped


def otlp_protocol(environ: Mapping[str, str]) -> OtlpProtocol | None:
    """The protocol that the environment asks for; None where no export is wanted.

    Where no protocol is named the port decides: 4317 is gRPC's, all else is HTTP, the default of
    the specification.

    Raises ValueError for a protocol that is not built in.
    """
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return None
    exporters = environ.get("OTEL_TRACES_EXPORTER", "otlp").split(",")
    if "otlp" not in {name.strip() for name in exporters}:
        return None
    endpoint = environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or environ.get(
        "OTEL_EXPORTER_OTLP_ENDPOINT", ""
    )
    if not endpoint.strip():
        return None
    protocol = environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or environ.get(
        "OTEL_EXPORTER_OTLP_PROTOCOL", ""
    )
    match protocol.strip():
        case "grpc":
            return "grpc"
        case "http/protobuf":
            return "http/protobuf"
        case "":
            address = endpoint if "//" in endpoint else f"//{endpoint}"
            return "grpc" if urlsplit(address).port == _GRPC_PORT else "http/protobuf"
        case other:
            raise ValueError(
                f"OTEL_EXPORTER_OTLP_PROTOCOL is {other!r}; expected grpc or http/protobuf"
            )


class OtelProjection:
    """Turns finished steps into spans and sends them off the hot path.

    Args:
        host_id: becomes ``host.id`` and ``service.instance.id``.
        version: of Substrate; becomes ``service.version`` and the scope's version.
        sink: where spans go; by default the OTLP exporter that the environment describes.
        queue_limit: steps that may wait; more are dropped and counted.

    Raises ValueError where the environment names no collector or an unknown protocol.
    """

    def __init__(
        self, host_id: str, version: str, *, sink: Sink | None = None, queue_limit: int = 1024
    ) -> None:
        # Here and not above, because importing the SDK costs a tenth of a second.
        from substrate_services.telemetry.otel_spans import (  # noqa: PLC0415
            SpanMapper,
            otlp_sink,
        )

        if sink is None:
            protocol = otlp_protocol(os.environ)
            if protocol is None:
                raise ValueError("no collector is named: set OTEL_EXPORTER_OTLP_ENDPOINT")
            sink = otlp_sink(protocol)
        self._sink = sink
        self._mapper = SpanMapper(host_id, version)
        self._queue_limit = queue_limit
        self._wake = threading.Condition()
        self._queue: deque[tuple[SpanRecord, tuple[JsonObject, ...]]] = deque()
        self._busy = False
        self._closing = False
        self._exported = self._failed = self._dropped = 0
        self._thread = threading.Thread(target=self._run, name="otel-projection", daemon=True)
        self._thread.start()

    @classmethod
    def from_environment(cls, host_id: str, version: str) -> OtelProjection | None:
        """A projection where the environment names a collector, else None. Raises ValueError."""
        return None if otlp_protocol(os.environ) is None else cls(host_id, version)

    def export(self, record: SpanRecord, events: Sequence[JsonObject] = ()) -> None:
        """Queues a finished step with its bounded event lines. Never blocks and never raises."""
        with self._wake:
            if self._closing or len(self._queue) >= self._queue_limit:
                self._dropped += 1
                return
            self._queue.append((record, tuple(events)))
            self._wake.notify_all()

    def flush(self, timeout_s: float) -> bool:
        """Waits until nothing is queued or being sent; False when the time was not enough."""
        with self._wake:
            return self._wake.wait_for(lambda: not (self._queue or self._busy), timeout_s)

    def stats(self) -> OtelStats:
        """Counters, for metrics and ``doctor``."""
        with self._wake:
            return OtelStats(len(self._queue), self._exported, self._failed, self._dropped)

    def close(self, timeout_s: float = 5.0) -> None:
        """Sends what is queued, for at most about ``timeout_s``, and ends the thread.

        What could not be sent in time is counted as dropped.
        """
        with self._wake:
            self._closing = True
            self._wake.notify_all()
        deadline = time.monotonic() + timeout_s
        self._thread.join(max(0.0, timeout_s))
        with self._wake:
            self._dropped += len(self._queue)
            self._queue.clear()
        self._sink.close()
        # A request in flight ends by its own time-out; the thread is a daemon, so at worst it is
        # left to that.
        self._thread.join(max(1.0, deadline - time.monotonic()))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _run(self) -> None:
        while True:
            with self._wake:
                self._busy = False
                self._wake.notify_all()
                self._wake.wait_for(lambda: self._queue or self._closing)
                if not self._queue:
                    return
                self._busy = True
            self._send(self._collect())

    def _collect(self) -> list[ReadableSpan]:
        """Spans of queued steps, up to about one request's worth."""
        spans: list[ReadableSpan] = []
        while len(spans) < _SPANS_PER_REQUEST:
            with self._wake:
                if not self._queue:
                    break
                record, events = self._queue.popleft()
            try:
                spans += self._mapper.spans(record, events)
            except Exception as error:  # noqa: BLE001 - the thread's root: go on with the next step
                _log.warning("span %s cannot be exported: %s", record.span_id, error)
                with self._wake:
                    self._dropped += 1
        return spans

    def _send(self, spans: list[ReadableSpan]) -> None:
        for start in range(0, len(spans), _SPANS_PER_REQUEST):
            batch = spans[start : start + _SPANS_PER_REQUEST]
            try:
                taken = self._sink.send(batch)
            except Exception as error:  # noqa: BLE001 - the thread's root: an exporter may raise anything
                _log.warning("exporting %d spans failed: %s", len(batch), error)
                taken = False
            with self._wake:
                if taken:
                    self._exported += len(batch)
                else:
                    self._failed += len(batch)
