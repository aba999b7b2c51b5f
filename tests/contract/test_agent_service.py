"""AgentService over a real socket, on a real journal, with a WorldService behind another socket.

That WorldService keeps no worlds: what is looked at is what the agent asks of it, and what becomes
of its answers. tests/integration has both for real.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from substrate_sdk import errors
from substrate_sdk._pb.substrate.agent.v1alpha1 import agent_pb2, agent_pb2_grpc
from substrate_sdk._pb.substrate.common.v1alpha1 import types_pb2
from substrate_sdk._pb.substrate.world.v1alpha1 import (
    execs_pb2,
    world_service_pb2_grpc,
    worlds_pb2,
)
from substrate_services.agent.server import AgentServicer
from substrate_services.agent.sessions import Sessions
from substrate_services.errors import ServiceError
from substrate_services.journal.codec import span_to_line
from substrate_services.journal.errors import JournalFull
from substrate_services.journal.reader import JournalReader
from substrate_services.journal.writer import Journal
from substrate_services.wire.errors import Context
from substrate_services.world.ids import new_id
from tests.contract import records
from tests.contract.harness import failure, serving

if TYPE_CHECKING:
    import grpc.aio

AsyncStub = agent_pb2_grpc.AgentServiceStub
TRACEPARENT = f"00-{'4b' * 16}-{'00f0' * 4}-01"


class Worlds(world_service_pb2_grpc.WorldServiceServicer):
    """Remembers what it was asked; makes and forgets worlds; streams what it is told to."""

    def __init__(self) -> None:
        self.worlds: dict[str, worlds_pb2.World] = {}
        self.traceparents: list[str] = []
        self.refuse: Callable[[], ServiceError] | None = None
        self.pieces: list[execs_pb2.StreamExecResponse] = []
        self.stuck = asyncio.Event()
        self.left = asyncio.Event()

    async def CreateWorld(
        self, request: worlds_pb2.CreateWorldRequest, context: Context
    ) -> worlds_pb2.CreateWorldResponse:
        if self.refuse is not None:
            raise self.refuse()
        metadata = context.invocation_metadata() or ()
        self.traceparents += [str(value) for key, value in metadata if key == "traceparent"]
        for world in self.worlds.values():
            if request.request_id and world.hostname == request.request_id:
                return worlds_pb2.CreateWorldResponse(world=world)
        world = worlds_pb2.World(
            world_id=new_id("wld"),
            session_id=request.session_id,
            keep=request.keep,
            hostname=request.request_id,
        )
        self.worlds[world.world_id] = world
        return worlds_pb2.CreateWorldResponse(world=world, missing=[b"/gone\xff"])

    async def ListWorlds(
        self, request: worlds_pb2.ListWorldsRequest, context: Context
    ) -> worlds_pb2.ListWorldsResponse:
        found = [w for w in self.worlds.values() if w.session_id == request.session_id]
        start = int(request.page_token or "0")
        more = start + 1 < len(found)  # one a page, so that pages are followed
        return worlds_pb2.ListWorldsResponse(
            worlds=found[start : start + 1], next_page_token=str(start + 1) if more else ""
        )

    async def RemoveWorld(
        self, request: worlds_pb2.RemoveWorldRequest, context: Context
    ) -> worlds_pb2.RemoveWorldResponse:
        self.worlds.pop(request.world_id, None)
        return worlds_pb2.RemoveWorldResponse()

    async def StartExec(
        self, request: execs_pb2.StartExecRequest, context: Context
    ) -> execs_pb2.StartExecResponse:
        if request.world_id not in self.worlds:
            raise ServiceError("WORLD_NOT_FOUND", f"world {request.world_id} is not here")
        return execs_pb2.StartExecResponse(exec=execs_pb2.Exec(exec_id=request.exec_id, pid=7))

    async def StreamExec(
        self, request: execs_pb2.StreamExecRequest, context: Context
    ) -> AsyncIterator[execs_pb2.StreamExecResponse]:
        assert request.follow
        assert request.offset == 0
        try:
            for piece in self.pieces:
                yield piece
            if not self.pieces[-1].HasField("finished"):
                self.stuck.set()
                await asyncio.Event().wait()
        finally:
            self.left.set()


@dataclass
class Host:
    path: Path
    journal: Journal
    worlds: Worlds = field(default_factory=Worlds)

    @contextlib.asynccontextmanager
    async def served(self) -> AsyncIterator[agent_pb2_grpc.AgentServiceAsyncStub]:
        """A host that has just started: what it knows, it has from the journal."""
        await self.journal.flush()
        with JournalReader(self.journal.path) as reader:
            async with serving(self.path / "world" / "host.sock", self.worlds) as worlds:
                agent = AgentServicer(Sessions(self.journal), reader, worlds)
                await agent.load()
                async with serving(self.path / "agent" / "host.sock", agent) as channel:
                    yield AsyncStub(channel)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    journal = Journal(tmp_path / "trace.jsonl")
    yield Host(tmp_path, journal)
    journal.close()


async def _created(stub: agent_pb2_grpc.AgentServiceAsyncStub, **values: str) -> agent_pb2.Session:
    request = agent_pb2.CreateSessionRequest(
        request_id=values.get("request_id", ""),
        agent_id=values.get("agent_id", "claude"),
        metadata=[types_pb2.Label(key="task", value="fix ü")],
        traceparent=values.get("traceparent", ""),
    )
    return (await stub.CreateSession(request)).session


def test_a_session_survives_a_restart_of_the_host(host: Host) -> None:
    async def scenario() -> None:
        async with host.served() as stub:
            session = await _created(stub, traceparent=TRACEPARENT, request_id="r1")
            assert session.trace_id == "4b" * 16
            assert session.agent_id == "claude"
            assert not session.HasField("ended_at")
            made = await stub.CreateWorld(
                agent_pb2.CreateWorldRequest(
                    world=worlds_pb2.CreateWorldRequest(session_id=session.session_id, keep=True)
                )
            )
            assert list(made.missing) == [b"/gone\xff"]
            record = records.step("1" * 16, session_id=session.session_id)
            record = replace(record, start_time=session.created_at.ToNanoseconds() / 1e9 + 1)
            host.journal.append(span_to_line(record))
            other = records.step("2" * 16, start_time=record.start_time)
            host.journal.append(span_to_line(other))
            await host.journal.flush()
            before = await _got(stub, session.session_id)
            assert list(before.world_ids) == [made.world.world_id]
            assert before.steps == 1
            ended = await _created(stub, request_id="r2")
            await stub.EndSession(agent_pb2.EndSessionRequest(session_id=ended.session_id))
            ended = await _got(stub, ended.session_id)
            assert ended.HasField("ended_at")
        async with host.served() as stub:
            assert await _got(stub, before.session_id) == before
            assert await _got(stub, ended.session_id) == ended
            again = await _created(stub, traceparent=TRACEPARENT, request_id="r1")
            assert again.session_id == before.session_id

    asyncio.run(scenario())


async def _got(stub: agent_pb2_grpc.AgentServiceAsyncStub, session_id: str) -> agent_pb2.Session:
    return (await stub.GetSession(agent_pb2.GetSessionRequest(session_id=session_id))).session


def test_a_repeated_request_makes_one_session_also_side_by_side(host: Host) -> None:
    async def scenario() -> None:
        async with host.served() as stub:
            sessions = await asyncio.gather(*(_created(stub, request_id="r") for _ in range(5)))
            assert len({session.session_id for session in sessions}) == 1
            assert (await _created(stub)).session_id != (await _created(stub)).session_id
            error = await failure(_created(stub, request_id="r", agent_id="another"))
            assert isinstance(error, errors.AlreadyExists)
            assert "'r'" in str(error)

    asyncio.run(scenario())


def test_sessions_are_listed_newest_first_in_stable_pages(host: Host) -> None:
    async def scenario() -> None:
        async with host.served() as stub:
            made = [(await _created(stub)).session_id for _ in range(5)]
            listed: list[str] = []
            token = ""
            while True:
                page = await stub.ListSessions(
                    agent_pb2.ListSessionsRequest(page_size=2, page_token=token)
                )
                listed += [session.session_id for session in page.sessions]
                token = page.next_page_token
                if not token:
                    break
                await _created(stub)  # newer ones do not move the pages
            assert listed == made[::-1]

    asyncio.run(scenario())


def test_what_cannot_be_used_is_named_with_its_value(host: Host) -> None:
    create = agent_pb2.CreateSessionRequest
    requests = [
        (create(traceparent="00-xyz"), "traceparent is '00-xyz'"),
        (create(traceparent=f"00-{'0' * 32}-{'1' * 16}-01"), "traceparent is '00-000"),
        (create(request_id="a b"), "request_id is 'a b'"),
        (create(agent_id="a\nb"), "agent_id is 'a\\nb'"),
        (create(metadata=[types_pb2.Label(value="x")]), "metadata[0].key is ''"),
    ]

    async def scenario() -> None:
        async with host.served() as stub:
            for request, text in requests:
                error = await failure(stub.CreateSession(request))
                assert isinstance(error, errors.InvalidArgument)
                assert str(error).startswith(text)
                assert error.violations[0].field == text.split(" is ", maxsplit=1)[0]
            get = agent_pb2.GetSessionRequest
            bad = await failure(stub.GetSession(get(session_id="ses_?")))
            assert isinstance(bad, errors.InvalidArgument)
            unknown = await failure(stub.GetSession(get(session_id="ses_" + "q" * 26)))
            assert isinstance(unknown, errors.SessionNotFound)
            run = await failure(stub.RunExec(agent_pb2.RunExecRequest()))
            assert isinstance(run, errors.InvalidArgument)

    asyncio.run(scenario())


def test_ending_a_session_removes_its_worlds_but_those_to_be_kept(host: Host) -> None:
    async def scenario() -> None:
        async with host.served() as stub:
            session = await _created(stub)
            for keep in (False, True, False):
                world = worlds_pb2.CreateWorldRequest(session_id=session.session_id, keep=keep)
                await stub.CreateWorld(agent_pb2.CreateWorldRequest(world=world))
            end = agent_pb2.EndSessionRequest(session_id=session.session_id)
            first = (await stub.EndSession(end)).session
            assert [world.keep for world in host.worlds.worlds.values()] == [True]
            assert len(first.world_ids) == 3
            assert (await stub.EndSession(end)).session == first
            late = agent_pb2.CreateWorldRequest(
                world=worlds_pb2.CreateWorldRequest(session_id=session.session_id)
            )
            assert isinstance(await failure(stub.CreateWorld(late)), errors.SessionEnded)

    asyncio.run(scenario())


def test_a_world_without_a_session_gets_one_and_its_trace(host: Host) -> None:
    async def scenario() -> None:
        async with host.served() as stub:
            request = agent_pb2.CreateWorldRequest(
                request_id="w1", world=worlds_pb2.CreateWorldRequest(agent_id="me")
            )
            first = (await stub.CreateWorld(request)).world
            again = (await stub.CreateWorld(request)).world
            assert first == again
            session = await _got(stub, first.session_id)
            assert session.agent_id == "me"
            assert list(session.world_ids) == [first.world_id]
            traces = {value.split("-")[1] for value in host.worlds.traceparents}
            assert traces == {session.trace_id}
            elsewhere = agent_pb2.CreateWorldRequest(host="other")
            assert isinstance(await failure(stub.CreateWorld(elsewhere)), errors.NotBuilt)
            await stub.RemoveWorld(agent_pb2.RemoveWorldRequest(world_id=first.world_id))
            assert not host.worlds.worlds

    asyncio.run(scenario())


def test_what_the_world_service_refuses_is_heard_as_it_was_said(host: Host) -> None:
    host.worlds.refuse = lambda: ServiceError(
        "NO_NAMESPACES", "no user namespaces: sysctl …", {"a": "b"}
    )

    async def scenario() -> errors.SubstrateError:
        async with host.served() as stub:
            return await failure(stub.CreateWorld(agent_pb2.CreateWorldRequest()))

    error = asyncio.run(scenario())
    assert isinstance(error, errors.NoNamespaces)
    assert str(error) == "no user namespaces: sysctl …"
    assert error.metadata == {"a": "b"}


def test_a_command_in_one_call_is_started_output_finished_in_order(host: Host) -> None:
    pieces = [
        execs_pb2.StreamExecResponse(
            output=execs_pb2.Output(data=b"%d\xff" % number, next_offset=number)
        )
        for number in range(200)
    ]
    pieces.insert(50, execs_pb2.StreamExecResponse(keepalive=execs_pb2.Keepalive()))
    result = types_pb2.ExecResult(exit_code=3, exec_id="e")
    host.worlds.pieces = [*pieces, execs_pb2.StreamExecResponse(finished=result)]

    async def scenario() -> None:
        async with host.served() as stub:
            world = (await stub.CreateWorld(agent_pb2.CreateWorldRequest())).world
            request = _run(world.world_id)
            answers = [answer async for answer in stub.RunExec(request)]
            assert answers[0].started.pid == 7
            assert [a.output.data for a in answers if a.HasField("output")] == [
                piece.output.data for piece in pieces if piece.HasField("output")
            ]
            assert answers[51].HasField("keepalive")
            assert answers[-1].finished == result
            unknown = await failure(stub.RunExec(_run("wld_" + "q" * 26)))
            assert isinstance(unknown, errors.WorldNotFound)

    asyncio.run(scenario())


def _run(world_id: str) -> agent_pb2.RunExecRequest:
    return agent_pb2.RunExecRequest(
        exec=execs_pb2.StartExecRequest(world_id=world_id, exec_id="e", shell=b"true")
    )


def test_cancelling_a_command_in_one_call_ends_its_stream_alone(host: Host) -> None:
    host.worlds.pieces = [execs_pb2.StreamExecResponse(output=execs_pb2.Output(data=b"x"))]

    async def scenario() -> None:
        async with host.served() as stub:
            world = (await stub.CreateWorld(agent_pb2.CreateWorldRequest())).world
            call = stub.RunExec(_run(world.world_id))
            assert (await _next(call)).HasField("started")
            assert (await _next(call)).output.data == b"x"
            await host.worlds.stuck.wait()
            call.cancel()
            await host.worlds.left.wait()
            assert world.world_id in host.worlds.worlds

    asyncio.run(scenario())


async def _next(
    call: grpc.aio.UnaryStreamCall[agent_pb2.RunExecRequest, agent_pb2.RunExecResponse],
) -> agent_pb2.RunExecResponse:
    answer = await call.read()
    assert isinstance(answer, agent_pb2.RunExecResponse)
    return answer


def test_a_full_disk_is_said_and_the_same_request_works_when_there_is_space(host: Host) -> None:
    class Full:
        """A journal whose disk is full when it is told so."""

        def __init__(self, journal: Journal) -> None:
            self.append = journal.append
            self.journal = journal
            self.full = True

        async def flush(self) -> None:
            if self.full:
                raise JournalFull(self.journal.path, "no space left")
            await self.journal.flush()

    async def scenario() -> None:
        sink = Full(host.journal)
        with JournalReader(host.journal.path) as reader:
            async with (
                serving(host.path / "world" / "host.sock", host.worlds) as worlds,
                serving(
                    host.path / "agent" / "host.sock",
                    AgentServicer(Sessions(sink), reader, worlds),
                ) as channel,
            ):
                stub = AsyncStub(channel)
                error = await failure(_created(stub, request_id="r"))
                assert isinstance(error, errors.DiskFull)
                assert error.retryable
                assert "free space" in str(error)
                sink.full = False
                session = await _created(stub, request_id="r")
                starts = [line.value for line in reader if line.event_type == "agent_event"]
                assert [line["session_id"] for line in starts] == [session.session_id]

    asyncio.run(scenario())


def test_a_line_that_cannot_be_read_hides_no_other_session(host: Host) -> None:
    async def scenario() -> None:
        async with host.served() as stub:
            session = await _created(stub)
        host.journal.append({"event_type": "agent_event", "kind": "session_start"})
        host.journal.append({"event_type": "agent_event", "kind": "pty_data"})
        async with host.served() as stub:
            assert (await _got(stub, session.session_id)).session_id == session.session_id

    asyncio.run(scenario())
