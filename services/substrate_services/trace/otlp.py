"""Recorded steps as serialised OTLP requests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from substrate_services.journal.jsontypes import JsonObject
from substrate_services.journal.schema import SpanRecord

#: Turns a step and its bounded event lines into an ExportTraceServiceRequest's bytes.
Encoder: TypeAlias = Callable[[SpanRecord, Sequence[JsonObject]], bytes]


def make_encoder(host_id: str, version: str) -> Encoder:
    """An encoder that maps as the host's own export does.

    Args:
        host_id: becomes ``host.id``.
        version: of Substrate.
    """
    # Here, because importing OpenTelemetry's SDK costs a tenth of a second.
    from opentelemetry.exporter.otlp.proto.common.trace_encoder import (  # noqa: PLC0415
        encode_spans,
    )

    from substrate_services.telemetry.otel_spans import SpanMapper  # noqa: PLC0415

    mapper = SpanMapper(host_id, version)

    def encode(record: SpanRecord, events: Sequence[JsonObject]) -> bytes:
        return encode_spans(mapper.spans(record, events)).SerializeToString()

    return encode
