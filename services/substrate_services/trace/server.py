"""TraceService on the wire: recorded steps, their events, objects, and the journal's chain.

Everything here reads files, so everything runs in threads.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from typing import TYPE_CHECKING, BinaryIO, Final

from substrate_sdk._pb.substrate.trace.v1alpha1 import trace_pb2, trace_pb2_grpc
from substrate_services.errors import InvalidField, ServiceError
from substrate_services.journal.jsontypes import JsonObject, compact_bytes
from substrate_services.journal.parts import change_from_json
from substrate_services.journal.reader import AmbiguousSpan, JournalReader
from substrate_services.journal.schema import SpanRecord
from substrate_services.journal.verify import verify
from substrate_services.objects.errors import ObjectMissing
from substrate_services.objects.store import ObjectStore
from substrate_services.trace.otlp import Encoder, make_encoder
from substrate_services.wire import validation
from substrate_services.wire.convert import COVERAGE_STATES, DECISION_ACTIONS, span_to_proto

if TYPE_CHECKING:
    from substrate_services.wire.errors import Context

CHUNK_BYTES: Final = 64 << 10
_LAST: Final = "@last"
_PREFIX = re.compile(r"[0-9a-f]{1,16}")


class TraceServicer(trace_pb2_grpc.TraceServiceServicer):
    """Serves what one host recorded.

    Args:
        reader: of the host's journal.
        objects: the host's object store.
        host_id: names the host in exports.
        version: of Substrate, in exports.
    """

    def __init__(
        self, reader: JournalReader, objects: ObjectStore, *, host_id: str = "", version: str = ""
    ) -> None:
        self._reader = reader
        self._objects = objects
        self._encoder: Callable[[], Encoder] = functools.cache(
            lambda: make_encoder(host_id, version)
        )

    async def GetSpan(
        self, request: trace_pb2.GetSpanRequest, context: Context
    ) -> trace_pb2.GetSpanResponse:
        """See the contract."""
        record = await asyncio.to_thread(self._find, request.span_id)
        return trace_pb2.GetSpanResponse(span=span_to_proto(record))

    async def ListSpans(
        self, request: trace_pb2.ListSpansRequest, context: Context
    ) -> trace_pb2.ListSpansResponse:
        """See the contract."""
        return await asyncio.to_thread(self._list, request)

    async def StreamEvents(
        self, request: trace_pb2.StreamEventsRequest, context: Context
    ) -> AsyncIterator[trace_pb2.StreamEventsResponse]:
        """See the contract."""
        if request.follow:
            raise ServiceError("NOT_BUILT", "following the journal is not built yet; name a span")
        record = await asyncio.to_thread(self._find, request.span_id)
        if request.bounded or record.events_digest is None:
            events = await asyncio.to_thread(self._reader.bounded_events, record.span_id)
            for lines in _grouped(events):
                yield trace_pb2.StreamEventsResponse(json_lines=lines)
            return
        rest = b""
        stream = await asyncio.to_thread(self._open_recorded, record.events_digest)
        async with contextlib.aclosing(_read(stream)) as pieces:
            async for data in pieces:
                whole, newline, rest = (rest + data).rpartition(b"\n")
                if newline:
                    yield trace_pb2.StreamEventsResponse(json_lines=whole + newline)
        if rest:
            yield trace_pb2.StreamEventsResponse(json_lines=rest + b"\n")

    async def GetObject(
        self, request: trace_pb2.GetObjectRequest, context: Context
    ) -> AsyncIterator[trace_pb2.GetObjectResponse]:
        """See the contract. A damaged object is known to be so only at its end."""
        digest = validation.digest("digest", request.digest)
        stream = await asyncio.to_thread(self._objects.open, digest)
        async with contextlib.aclosing(_read(stream)) as pieces:
            async for data in pieces:
                yield trace_pb2.GetObjectResponse(data=data)

    async def Export(
        self, request: trace_pb2.ExportRequest, context: Context
    ) -> AsyncIterator[trace_pb2.ExportResponse]:
        """See the contract. One request of OTLP a step."""
        match request.WhichOneof("what"):
            case "span_id":
                span_ids = [(await asyncio.to_thread(self._find, request.span_id)).span_id]
            case "session_id":
                session_id = validation.session_id("session_id", request.session_id)
                span_ids = await asyncio.to_thread(self._session_spans, session_id)
            case _:
                raise InvalidField("span_id", "", "name a span or a session to export")
        for span_id in span_ids:
            yield trace_pb2.ExportResponse(otlp=await asyncio.to_thread(self._encode, span_id))

    async def Verify(
        self, request: trace_pb2.VerifyRequest, context: Context
    ) -> trace_pb2.VerifyResponse:
        """See the contract."""
        return await asyncio.to_thread(self._verify)

    # --- in a thread -----------------------------------------------------------------------

    def _find(self, span_id: str) -> SpanRecord:
        if span_id == _LAST:
            last = self._reader.last_span()
            if last is None:
                raise ServiceError("SPAN_NOT_FOUND", "nothing has been recorded yet")
            return last
        if _PREFIX.fullmatch(span_id) is None:
            raise InvalidField(
                "span_id", span_id, "expected up to 16 hex digits in lower case, or @last"
            )
        try:
            record = self._reader.find_span(span_id)
            if record is not None:
                return record
            running = self._reader.start_line(span_id) is not None
        except AmbiguousSpan as error:
            matches = {"matches": " ".join(error.matches)}
            raise ServiceError("SPAN_AMBIGUOUS", str(error), matches) from error
        if running:
            raise ServiceError("SPAN_NOT_FOUND", f"span {span_id} is not finished; wait for it")
        raise ServiceError(
            "SPAN_NOT_FOUND", f"span {span_id} is not recorded here (substrate trace ls)"
        )

    def _list(self, request: trace_pb2.ListSpansRequest) -> trace_pb2.ListSpansResponse:
        if request.host:
            # The record of a step counts its connections; whereto stands in its events alone.
            raise InvalidField(
                "host", request.host, "listing by host is not built yet; leave it empty"
            )
        size = validation.page_size(request.page_size)
        query = {
            field.name: value
            for field, value in request.ListFields()
            if field.name not in {"page_size", "page_token"}
        }
        page = self._reader.list_spans(
            session_id=_optional(validation.session_id, "session_id", request.session_id),
            world_id=_optional(validation.world_id, "world_id", request.world_id),
            since=validation.timestamp_s("since", request.since)
            if request.HasField("since")
            else None,
            text=request.text or None,
            kind=request.kind or None,
            matching=self._matching(request),
            limit=size,
            page_token=str(validation.page_offset(request.page_token, query) or ""),
        )
        return trace_pb2.ListSpansResponse(
            spans=[span_to_proto(record, with_processes=False) for record in page.spans],
            next_page_token=validation.page_token(page.next_page_token, query)
            if page.next_page_token
            else "",
        )

    def _matching(self, request: trace_pb2.ListSpansRequest) -> Callable[[SpanRecord], bool]:
        until = (
            validation.timestamp_s("until", request.until) if request.HasField("until") else None
        )
        exit_code = request.exit_code if request.HasField("exit_code") else None
        path = validation.normal_path("path", request.path) if request.path else None

        def matches(record: SpanRecord) -> bool:
            return (
                (until is None or record.start_time <= until)
                and (exit_code is None or record.exit_code == exit_code)
                and (
                    not request.decision
                    or DECISION_ACTIONS[record.decision.action] == request.decision
                )
                and (
                    not request.coverage
                    or COVERAGE_STATES[record.coverage.state] == request.coverage
                )
                and (path is None or self._changed(record, path))
            )

        return matches

    def _changed(self, record: SpanRecord, path: bytes) -> bool:
        changes: Iterable[tuple[bytes, bytes | None]] = (
            (change.path, change.renamed_from) for change in record.changes
        )
        if any(path in pair for pair in changes):
            return True
        if not record.changes_truncated or record.changes_digest is None:
            return False
        with contextlib.suppress(ObjectMissing):
            listed = json.loads(self._objects.get(record.changes_digest))
            rest = (change_from_json(item) for item in listed)
            return any(path in (change.path, change.renamed_from) for change in rest)
        return False

    def _session_spans(self, session_id: str) -> list[str]:
        span_ids: list[str] = []
        token = ""
        while True:
            page = self._reader.list_spans(session_id=session_id, limit=1000, page_token=token)
            span_ids += [record.span_id for record in page.spans]
            token = page.next_page_token
            if not token:
                break
        if not span_ids:
            raise ServiceError("SESSION_NOT_FOUND", f"session {session_id} has no recorded step")
        return span_ids[::-1]

    def _encode(self, span_id: str) -> bytes:
        record = self._find(span_id)
        return self._encoder()(record, self._reader.bounded_events(span_id))

    def _verify(self) -> trace_pb2.VerifyResponse:
        try:
            report = verify(self._reader.path)
        except FileNotFoundError as error:
            lost = trace_pb2.JournalFinding(kind="no_journal", detail=str(error))
            return trace_pb2.VerifyResponse(intact=False, findings=[lost])
        return trace_pb2.VerifyResponse(
            intact=report.ok,
            lines=report.lines,
            batches=report.batches,
            findings=[
                trace_pb2.JournalFinding(
                    kind=finding.kind,
                    segment=str(finding.segment),
                    detail=finding.detail
                    if finding.offset is None
                    else f"at byte {finding.offset}: {finding.detail}",
                    tampering=finding.severity == "error",
                )
                for finding in report.findings
            ],
        )

    def _open_recorded(self, digest: str) -> BinaryIO:
        """An object that a record rests on: when it is gone, something recorded is lost."""
        try:
            return self._objects.open(digest)
        except ObjectMissing as error:
            raise ServiceError(
                "OBJECT_MISSING",
                f"the step's events are gone: {error}; ask for the bounded ones",
                {"digest": digest},
                code="DATA_LOSS",
            ) from error


async def _read(stream: BinaryIO) -> AsyncGenerator[bytes, None]:
    try:
        while data := await asyncio.to_thread(stream.read, CHUNK_BYTES):
            yield data
    finally:
        # Not in a thread: a cancelled call must not wait, and closing does not block.
        stream.close()


def _grouped(events: Iterable[JsonObject]) -> list[bytes]:
    """Lines in groups of about a chunk: a message for each would cost more than the lines."""
    groups: list[bytes] = []
    group = bytearray()
    for event in events:
        group += compact_bytes(event) + b"\n"
        if len(group) >= CHUNK_BYTES:
            groups.append(bytes(group))
            group.clear()
    if group:
        groups.append(bytes(group))
    return groups


def _optional(check: Callable[[str, str], str], field: str, value: str) -> str | None:
    return check(field, value) if value else None
