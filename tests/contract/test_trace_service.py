"""TraceService over a real socket, on a real journal and object store."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from substrate_sdk import errors
from substrate_sdk._pb.substrate.common.v1alpha1 import types_pb2
from substrate_sdk._pb.substrate.trace.v1alpha1 import trace_pb2, trace_pb2_grpc
from substrate_services.errors import InvalidField
from substrate_services.journal.codec import SpanStart, span_to_line, start_to_line, syscall_line
from substrate_services.journal.jsontypes import JsonObject, canonical_bytes
from substrate_services.journal.parts import change_to_json
from substrate_services.journal.reader import JournalReader
from substrate_services.journal.schema import Change, Coverage
from substrate_services.journal.writer import Journal
from substrate_services.objects.store import ObjectStore
from substrate_services.trace.server import CHUNK_BYTES, TraceServicer
from substrate_services.wire.convert import (
    decision_from_proto,
    decision_to_proto,
    timestamp_from_ns,
)
from tests.contract import records
from tests.contract.harness import failure, serving

Stub = trace_pb2_grpc.TraceServiceStub


@dataclass(frozen=True)
class Home:
    path: Path
    journal: Journal
    objects: ObjectStore

    @contextlib.asynccontextmanager
    async def served(self) -> AsyncIterator[trace_pb2_grpc.TraceServiceAsyncStub]:
        await self.journal.flush()
        with JournalReader(self.journal.path) as reader:
            servicer = TraceServicer(reader, self.objects, host_id="h", version="0")
            async with serving(self.path / "run" / "host.sock", servicer) as channel:
                yield Stub(channel)


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    journal = Journal(tmp_path / "trace.jsonl")
    objects = ObjectStore(tmp_path / "objects")
    yield Home(tmp_path, journal, objects)
    journal.close()
    objects.close()


def _span_id(number: int) -> str:
    return f"{number:016x}"


def test_a_span_arrives_exactly_as_it_was_recorded(home: Home) -> None:
    record = records.step(_span_id(0xABC))
    home.journal.append(span_to_line(record))

    async def scenario() -> list[trace_pb2.Span]:
        async with home.served() as stub:
            asked = [_span_id(0xABC), _span_id(0xABC)[:15], "@last"]
            return [
                (await stub.GetSpan(trace_pb2.GetSpanRequest(span_id=span_id))).span
                for span_id in asked
            ]

    spans = asyncio.run(scenario())
    assert spans[0] == spans[1] == spans[2]
    span, result = spans[0], spans[0].result
    assert list(span.command.argv) == [b"bash", b"-c", b"cat '\xff'"]
    assert span.command.shell == b"cat '\xff'"
    assert span.cwd == b"/work/\xfe"
    assert [(item.name, item.value) for item in span.env] == [(b"PATH", b"/bin"), (b"X", b"\xff")]
    assert (span.umask, span.user, span.kind) == (0o22, "1000", "exec")
    assert not span.HasField("stdin_digest")
    assert result.exit_code == 0
    assert not result.HasField("signal")
    assert result.termination_reason == types_pb2.TERMINATION_REASON_EXITED
    assert result.duration.ToMilliseconds() == 1500
    assert result.started_at.ToJsonString() == "2023-11-14T22:13:20.250Z"
    assert result.changes_total == 1
    change = result.changes[0]
    assert (change.path, change.renamed_from) == (b"/work/new\xff", b"/work/old")
    assert change.before.digest == records.DIGEST
    assert change.after.target == b"\xfe"
    assert change.after.modified_at.ToNanoseconds() == -1
    assert not change.after.HasField("digest")
    assert list(result.processes[0].argv) == [b"cat", b"\xff\n"]
    assert not result.processes[0].HasField("signal")
    assert result.processes_truncated == 2
    assert dict(result.event_counts) == {"open": 7}
    assert result.snapshot_before == records.DIGEST
    assert not result.HasField("snapshot_after")
    assert result.blocked[0].fix == "add --net x"


def test_a_span_that_is_not_there_is_told_from_one_that_is_running(home: Home) -> None:
    for number in (0x1A << 56, 0x1B << 56):
        home.journal.append(span_to_line(records.step(_span_id(number))))
    record = records.step("f" * 16)
    running = SpanStart(
        span_id=record.span_id,
        trace_id=record.trace_id,
        session_id=record.session_id,
        world_id=record.world_id,
        exec_id=record.exec_id,
        kind=record.kind,
        agent_id=record.agent_id,
        parent_span=None,
        start_time=record.start_time,
        action=record.action,
        decision=record.decision,
    )
    home.journal.append(start_to_line(running))

    async def scenario() -> dict[str, errors.SubstrateError]:
        async with home.served() as stub:
            asked = ["1", "2", "f" * 16, "", "XYZ", "a" * 17]
            return {
                span_id: await failure(stub.GetSpan(trace_pb2.GetSpanRequest(span_id=span_id)))
                for span_id in asked
            }

    heard = asyncio.run(scenario())
    assert isinstance(heard["1"], errors.SpanAmbiguous)
    assert "1a00000000000000" in str(heard["1"])
    assert isinstance(heard["2"], errors.SpanNotFound)
    assert isinstance(heard["f" * 16], errors.SpanNotFound)
    assert "not finished" in str(heard["f" * 16])
    for bad in ("", "XYZ", "a" * 17):
        assert isinstance(heard[bad], errors.InvalidArgument)
        assert str(heard[bad]).startswith(f"span_id is {bad!r}; expected")


def test_nothing_recorded_yet_is_said_so(home: Home) -> None:
    async def scenario() -> tuple[errors.SubstrateError, int]:
        async with home.served() as stub:
            last = await failure(stub.GetSpan(trace_pb2.GetSpanRequest(span_id="@last")))
            listed = await stub.ListSpans(trace_pb2.ListSpansRequest())
            return last, len(listed.spans)

    last, count = asyncio.run(scenario())
    assert isinstance(last, errors.SpanNotFound)
    assert count == 0


def test_pages_hold_every_span_once_newest_first(home: Home) -> None:
    for number in range(1, 8):
        home.journal.append(span_to_line(records.step(_span_id(number), exit_code=number % 2)))

    async def listed(
        stub: trace_pb2_grpc.TraceServiceAsyncStub, exit_code: int | None = None
    ) -> list[list[str]]:
        pages, token = [], ""
        while True:
            answer = await stub.ListSpans(
                trace_pb2.ListSpansRequest(page_size=2, page_token=token, exit_code=exit_code)
            )
            pages.append([span.result.span_id.lstrip("0") for span in answer.spans])
            assert all(not span.result.processes for span in answer.spans)
            assert all(span.result.processes_truncated == 3 for span in answer.spans)
            token = answer.next_page_token
            if not token:
                return pages

    async def scenario() -> None:
        async with home.served() as stub:
            assert await listed(stub) == [["7", "6"], ["5", "4"], ["3", "2"], ["1"]]
            assert await listed(stub, exit_code=0) == [["6", "4"], ["2"]]
            page = await stub.ListSpans(trace_pb2.ListSpansRequest(page_size=2))
            token = page.next_page_token
            for request in (
                trace_pb2.ListSpansRequest(page_token=token, exit_code=0),
                trace_pb2.ListSpansRequest(page_token="garbage"),
                trace_pb2.ListSpansRequest(page_token="é"),
                trace_pb2.ListSpansRequest(page_size=-1),
            ):
                assert isinstance(await failure(stub.ListSpans(request)), errors.InvalidArgument)

    asyncio.run(scenario())


def test_each_filter_finds_what_it_says(home: Home) -> None:
    hidden = Change(path=b"/work/hidden", kind="created", scope="project")
    changes = home.objects.put(canonical_bytes([change_to_json(hidden)]))
    deny = replace(records.DECISION, action="deny")
    steps = {
        1: records.step(_span_id(1), shell=b"make test", start_time=100.0),
        2: records.step(_span_id(2), session_id="ses_" + "c" * 26, start_time=200.0),
        3: records.step(_span_id(3), world_id="wld_" + "c" * 26, start_time=300.0),
        4: records.step(_span_id(4), kind="files.write", start_time=400.0, decision=deny),
        5: records.step(
            _span_id(5),
            start_time=500.0,
            exit_code=None,
            coverage=Coverage("none"),
            changes=(),
            changes_truncated=1,
            changes_digest=changes,
        ),
    }
    for record in steps.values():
        home.journal.append(span_to_line(record))
    requests: list[tuple[trace_pb2.ListSpansRequest, str]] = [
        (trace_pb2.ListSpansRequest(text="MAKE"), "1"),
        (trace_pb2.ListSpansRequest(session_id="ses_" + "c" * 26), "2"),
        (trace_pb2.ListSpansRequest(world_id="wld_" + "c" * 26), "3"),
        (trace_pb2.ListSpansRequest(kind="files.write"), "4"),
        (trace_pb2.ListSpansRequest(decision=types_pb2.DECISION_ACTION_DENY), "4"),
        (trace_pb2.ListSpansRequest(coverage=types_pb2.COVERAGE_STATE_NONE), "5"),
        (trace_pb2.ListSpansRequest(path=b"/work/./hidden"), "5"),
        (trace_pb2.ListSpansRequest(path=b"/work/old", kind="exec"), "321"),
        (trace_pb2.ListSpansRequest(exit_code=0, kind="exec"), "321"),
        (trace_pb2.ListSpansRequest(until=Timestamp(seconds=200)), "21"),
        (trace_pb2.ListSpansRequest(since=Timestamp(seconds=400)), "54"),
    ]

    async def scenario() -> None:
        async with home.served() as stub:
            for request, expected in requests:
                answer = await stub.ListSpans(request)
                found = "".join(span.result.span_id.lstrip("0") for span in answer.spans)
                assert found == expected, request
            refused = [
                (trace_pb2.ListSpansRequest(host="example.org"), "host is 'example.org'"),
                (trace_pb2.ListSpansRequest(session_id="x y"), "session_id is 'x y'"),
                (trace_pb2.ListSpansRequest(world_id="../x"), "world_id is '../x'"),
                (trace_pb2.ListSpansRequest(path=b"a"), "path is b'a'"),
                (trace_pb2.ListSpansRequest(since=Timestamp(seconds=1 << 60)), "since is"),
            ]
            for request, text in refused:
                error = await failure(stub.ListSpans(request))
                assert isinstance(error, errors.InvalidArgument)
                assert text in str(error)

    asyncio.run(scenario())


def test_all_events_of_a_step_come_as_whole_lines(home: Home) -> None:
    lines = b"".join(
        json.dumps({"n": number, "pad": "x" * (number % 900)}).encode() + b"\n"
        for number in range(2_000)
    )
    assert len(lines) > 3 * CHUNK_BYTES
    record = records.step(_span_id(1), events_digest=home.objects.put(lines))
    home.journal.append(_event(1))
    home.journal.append(span_to_line(record))

    async def scenario() -> tuple[list[bytes], list[bytes]]:
        async with home.served() as stub:
            every = [
                answer.json_lines
                async for answer in stub.StreamEvents(
                    trace_pb2.StreamEventsRequest(span_id=_span_id(1))
                )
            ]
            bounded = [
                answer.json_lines
                async for answer in stub.StreamEvents(
                    trace_pb2.StreamEventsRequest(span_id=_span_id(1), bounded=True)
                )
            ]
            return every, bounded

    every, bounded = asyncio.run(scenario())
    assert b"".join(every) == lines
    assert len(every) > 1
    assert all(piece.endswith(b"\n") for piece in every)
    assert [json.loads(line)["syscall"] for line in b"".join(bounded).splitlines()] == ["openat"]


def _event(number: int) -> JsonObject:
    return syscall_line(
        span_id=_span_id(number),
        parent_span=None,
        session_id=records.SESSION,
        world_id=records.WORLD,
        time_s=1.0,
        syscall="openat",
        args=[],
        result=3,
        error=None,
        pid=3,
        process_span=records.PROCESS.span_id,
    )


def test_events_that_are_gone_are_a_loss_and_the_bounded_ones_remain(home: Home) -> None:
    record = records.step(_span_id(1), events_digest="ee" * 32)
    home.journal.append(span_to_line(record))

    async def scenario() -> tuple[errors.SubstrateError, errors.SubstrateError]:
        async with home.served() as stub:
            request = trace_pb2.StreamEventsRequest(span_id=_span_id(1))
            gone = await failure(stub.StreamEvents(request))
            follow = await failure(stub.StreamEvents(trace_pb2.StreamEventsRequest(follow=True)))
            return gone, follow

    gone, follow = asyncio.run(scenario())
    assert gone.code == "DATA_LOSS"
    assert isinstance(gone, errors.ObjectMissing)
    assert isinstance(follow, errors.NotBuilt)


def test_an_object_is_streamed_in_pieces_and_a_damaged_one_is_found_out(home: Home) -> None:
    data = os.urandom(3 * CHUNK_BYTES + 17)
    digest = home.objects.put(data)
    other = home.objects.put(os.urandom(10))
    empty = home.objects.put(b"")
    path = home.objects.path(digest)
    damaged = "00" * 32
    home.objects.path(damaged).parent.mkdir(exist_ok=True)
    home.objects.path(damaged).write_bytes(home.objects.path(other).read_bytes())
    assert path.exists()

    async def scenario() -> None:
        async with home.served() as stub:
            pieces = [
                answer.data
                async for answer in stub.GetObject(trace_pb2.GetObjectRequest(digest=digest))
            ]
            assert b"".join(pieces) == data
            assert max(map(len, pieces)) <= CHUNK_BYTES
            nothing = stub.GetObject(trace_pb2.GetObjectRequest(digest=empty))
            assert [answer.data async for answer in nothing] == []
            for asked, cls, code in (
                ("ff" * 32, errors.ObjectMissing, "NOT_FOUND"),
                (damaged, errors.ObjectCorrupt, "DATA_LOSS"),
                ("../../etc/passwd", errors.InvalidArgument, "INVALID_ARGUMENT"),
            ):
                error = await failure(stub.GetObject(trace_pb2.GetObjectRequest(digest=asked)))
                assert type(error) is cls
                assert error.code == code
                assert asked in str(error)

    asyncio.run(scenario())


def test_a_reader_that_goes_away_leaves_nothing_open(home: Home) -> None:
    digest = home.objects.put(os.urandom(64 * CHUNK_BYTES))

    async def scenario() -> None:
        async with home.served() as stub:
            call = stub.GetObject(trace_pb2.GetObjectRequest(digest=digest))
            await call.read()
            call.cancel()
            await stub.Verify(trace_pb2.VerifyRequest())

    asyncio.run(scenario())  # the leak check looks for the object's descriptor


def test_a_tampered_journal_is_told_from_an_intact_one(home: Home) -> None:
    for number in range(1, 4):
        home.journal.append(span_to_line(records.step(_span_id(number))))

    async def verified() -> trace_pb2.VerifyResponse:
        async with home.served() as stub:
            return await stub.Verify(trace_pb2.VerifyRequest())

    intact = asyncio.run(verified())
    assert intact.intact
    assert intact.lines == 3
    assert not any(finding.tampering for finding in intact.findings)

    home.journal.close()
    text = home.journal.path.read_bytes()
    assert b'"umask":18' in text
    home.journal.path.write_bytes(text.replace(b'"umask":18', b'"umask":19', 1))

    async def verified_again() -> trace_pb2.VerifyResponse:
        with JournalReader(home.journal.path) as reader:
            servicer = TraceServicer(reader, home.objects)
            async with serving(home.path / "run" / "host.sock", servicer) as channel:
                return await Stub(channel).Verify(trace_pb2.VerifyRequest())

    tampered = asyncio.run(verified_again())
    assert not tampered.intact
    assert any(finding.tampering for finding in tampered.findings)


def test_a_session_is_exported_oldest_first_as_otlp(home: Home) -> None:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (  # noqa: PLC0415
        ExportTraceServiceRequest,
    )

    for number in (0x11, 0x22):
        home.journal.append(span_to_line(records.step(_span_id(number))))

    async def scenario() -> list[bytes]:
        async with home.served() as stub:
            assert isinstance(
                await failure(stub.Export(trace_pb2.ExportRequest())), errors.InvalidArgument
            )
            none = trace_pb2.ExportRequest(session_id="ses_" + "z" * 26)
            assert isinstance(await failure(stub.Export(none)), errors.SessionNotFound)
            request = trace_pb2.ExportRequest(session_id=records.SESSION)
            return [answer.otlp async for answer in stub.Export(request)]

    exported = [ExportTraceServiceRequest.FromString(otlp) for otlp in asyncio.run(scenario())]
    found = [
        {span.span_id.hex() for span in request.resource_spans[0].scope_spans[0].spans}
        for request in exported
    ]
    assert [_span_id(0x11) in found[0], _span_id(0x22) in found[1]] == [True, True]


def test_a_decision_goes_there_and_back_and_is_never_guessed() -> None:
    decision = replace(records.DECISION, action="ask", mode="observe", enforced=False)
    assert decision_from_proto(decision_to_proto(decision)) == decision
    with pytest.raises(InvalidField, match=r"decision\.action"):
        decision_from_proto(types_pb2.Decision(mode=types_pb2.POLICY_MODE_ENFORCE))


@pytest.mark.parametrize("nanoseconds", [0, -1, 1 << 90, -(1 << 90), 1_700_000_000_123_456_789])
def test_any_file_time_can_be_told(nanoseconds: int) -> None:
    told = timestamp_from_ns(nanoseconds)
    told.ToJsonString()  # raises for what the type cannot hold
    if abs(nanoseconds) < 1 << 62:
        assert told.ToNanoseconds() == nanoseconds
