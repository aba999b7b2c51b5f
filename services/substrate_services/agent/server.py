"""AgentService on the wire: sessions, worlds by proxy, and a command in one call.

Worlds are another service, spoken to over gRPC like anybody's: what it refuses, the caller hears
as it was said (:mod:`substrate_services.wire.errors` passes it on).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection
from typing import TYPE_CHECKING, TypeAlias

from substrate_sdk._pb.substrate.agent.v1alpha1 import agent_pb2, agent_pb2_grpc
from substrate_sdk._pb.substrate.common.v1alpha1 import types_pb2
from substrate_sdk._pb.substrate.world.v1alpha1 import (
    execs_pb2,
    world_service_pb2_grpc,
    worlds_pb2,
)
from substrate_services.agent.sessions import Session, SessionRequest, Sessions
from substrate_services.errors import InvalidField, ServiceError
from substrate_services.journal.jsontypes import JsonObject
from substrate_services.journal.reader import JournalReader
from substrate_services.wire import validation
from substrate_services.wire.convert import timestamp_to_proto
from substrate_services.world.ids import new_span_id

if TYPE_CHECKING:
    import grpc.aio

    from substrate_services.wire.errors import Context

_METADATA_LIMIT = 64
_PAGE = 1000

_RunStream: TypeAlias = (
    "grpc.aio.UnaryStreamCall[execs_pb2.StreamExecRequest, execs_pb2.StreamExecResponse]"
)


class AgentServicer(agent_pb2_grpc.AgentServiceServicer):
    """Serves the agents of one host.

    Args:
        sessions: makes and remembers them. Its :meth:`Sessions.load` is called by
            :meth:`load`.
        reader: of the host's journal, to read sessions back and count steps.
        world: where the WorldService answers.
    """

    def __init__(self, sessions: Sessions, reader: JournalReader, world: grpc.aio.Channel) -> None:
        self._sessions = sessions
        self._reader = reader
        self._world = world_service_pb2_grpc.WorldServiceStub(world)

    async def load(self) -> None:
        """Reads sessions back from the journal. To be awaited before the service is served."""
        lines = await asyncio.to_thread(self._session_lines)
        self._sessions.load(lines)

    # --- sessions --------------------------------------------------------------------------

    async def CreateSession(
        self, request: agent_pb2.CreateSessionRequest, context: Context
    ) -> agent_pb2.CreateSessionResponse:
        """See the contract."""
        if request.request_id:
            validation.request_id("request_id", request.request_id)
        session = await self._sessions.create(_session_request(request))
        steps = await self._steps([session])  # some, where the request is a repeated one
        return agent_pb2.CreateSessionResponse(
            session=_to_proto(session, session.world_ids, steps[session.session_id])
        )

    async def GetSession(
        self, request: agent_pb2.GetSessionRequest, context: Context
    ) -> agent_pb2.GetSessionResponse:
        """See the contract."""
        session = self._sessions.get(validation.session_id("session_id", request.session_id))
        return agent_pb2.GetSessionResponse(session=await self._full(session))

    async def ListSessions(
        self, request: agent_pb2.ListSessionsRequest, context: Context
    ) -> agent_pb2.ListSessionsResponse:
        """See the contract."""
        size = validation.page_size(request.page_size)
        before = validation.page_offset(request.page_token, {}) or None
        page, position = self._sessions.newest(before, size)
        steps = await self._steps(page)
        return agent_pb2.ListSessionsResponse(
            sessions=[
                _to_proto(session, session.world_ids, steps[session.session_id]) for session in page
            ],
            next_page_token=validation.page_token(str(position), {}) if position else "",
        )

    async def EndSession(
        self, request: agent_pb2.EndSessionRequest, context: Context
    ) -> agent_pb2.EndSessionResponse:
        """See the contract."""
        session_id = validation.session_id("session_id", request.session_id)
        self._sessions.get(session_id)
        for world in await self._worlds_of(session_id):
            self._sessions.add_world(session_id, world.world_id)
            if not world.keep:
                await self._world.RemoveWorld(
                    worlds_pb2.RemoveWorldRequest(world_id=world.world_id)
                )
        session = await self._sessions.end(session_id)
        return agent_pb2.EndSessionResponse(session=await self._full(session))

    # --- worlds and execs ------------------------------------------------------------------

    async def CreateWorld(
        self, request: agent_pb2.CreateWorldRequest, context: Context
    ) -> agent_pb2.CreateWorldResponse:
        """See the contract."""
        if request.host:
            raise ServiceError(
                "NOT_BUILT", f"host {request.host!r}: worlds on other hosts are not built yet"
            )
        world = worlds_pb2.CreateWorldRequest()
        world.CopyFrom(request.world)
        world.request_id = world.request_id or request.request_id
        session = self._session_for(world)
        world.session_id = session.session_id
        # The disk is waited for while the world is made.
        kept = asyncio.create_task(self._sessions.keep())
        try:
            answer = await self._world.CreateWorld(
                world, metadata=(("traceparent", _traceparent(session)),), timeout=_left(context)
            )
        finally:
            await asyncio.wait([kept])
        world_id = answer.world.world_id
        if kept.exception() is not None:
            await self._world.RemoveWorld(worlds_pb2.RemoveWorldRequest(world_id=world_id))
            kept.result()
        self._sessions.add_world(session.session_id, world_id)
        if self._sessions.get(session.session_id).ended_at is not None and not world.keep:
            # It ended meanwhile, and with it all its worlds but this one.
            await self._world.RemoveWorld(worlds_pb2.RemoveWorldRequest(world_id=world_id))
            self._sessions.open(session.session_id)
        return agent_pb2.CreateWorldResponse(world=answer.world, missing=answer.missing)

    async def RemoveWorld(
        self, request: agent_pb2.RemoveWorldRequest, context: Context
    ) -> agent_pb2.RemoveWorldResponse:
        """See the contract."""
        await self._world.RemoveWorld(
            worlds_pb2.RemoveWorldRequest(world_id=request.world_id), timeout=_left(context)
        )
        return agent_pb2.RemoveWorldResponse()

    async def RunExec(
        self, request: agent_pb2.RunExecRequest, context: Context
    ) -> AsyncIterator[agent_pb2.RunExecResponse]:
        """See the contract."""
        if not request.HasField("exec"):
            raise InvalidField("exec", None, "say what to run where")
        started = await self._world.StartExec(request.exec, timeout=_left(context))
        yield agent_pb2.RunExecResponse(started=started.exec)
        call: _RunStream = self._world.StreamExec(
            execs_pb2.StreamExecRequest(
                world_id=request.exec.world_id, exec_id=request.exec.exec_id, follow=True
            )
        )
        try:
            async for piece in call:
                yield _relayed(piece)
        finally:
            call.cancel()  # nothing where it is over; the command goes on in any case

    # --- inside ----------------------------------------------------------------------------

    def _session_lines(self) -> list[JsonObject]:
        kinds = {"agent_event", "world_created"}
        return [line.value for line in self._reader.lines() if line.event_type in kinds]

    def _session_for(self, world: worlds_pb2.CreateWorldRequest) -> Session:
        if world.session_id:
            return self._sessions.open(validation.session_id("world.session_id", world.session_id))
        # A repeated request must find the session that the first one made.
        request_id = f"world:{world.request_id}" if world.request_id else ""
        return self._sessions.begin(SessionRequest(agent_id=world.agent_id, request_id=request_id))

    async def _worlds_of(self, session_id: str) -> list[worlds_pb2.World]:
        worlds: list[worlds_pb2.World] = []
        token = ""
        while True:
            answer = await self._world.ListWorlds(
                worlds_pb2.ListWorldsRequest(
                    session_id=session_id, page_size=_PAGE, page_token=token
                )
            )
            worlds += answer.worlds
            token = answer.next_page_token
            if not token:
                return worlds

    async def _full(self, session: Session) -> agent_pb2.Session:
        """With its worlds, also those made by others than this service, and its steps."""
        living = [world.world_id for world in await self._worlds_of(session.session_id)]
        world_ids = tuple(dict.fromkeys((*session.world_ids, *living)))
        steps = await self._steps([session])
        return _to_proto(session, world_ids, steps[session.session_id])

    async def _steps(self, sessions: Collection[Session]) -> dict[str, int]:
        return await asyncio.to_thread(self._count_steps, sessions)

    def _count_steps(self, sessions: Collection[Session]) -> dict[str, int]:
        counts = {session.session_id: 0 for session in sessions}
        if not counts:
            return counts
        since = min(session.created_at for session in sessions)
        token = ""
        while True:
            page = self._reader.list_spans(since=since, limit=_PAGE, page_token=token)
            for record in page.spans:
                if record.session_id in counts:
                    counts[record.session_id] += 1
            token = page.next_page_token
            if not token:
                return counts


def _session_request(request: agent_pb2.CreateSessionRequest) -> SessionRequest:
    parent = (
        validation.traceparent("traceparent", request.traceparent) if request.traceparent else None
    )
    if len(request.metadata) > _METADATA_LIMIT:
        raise InvalidField("metadata", len(request.metadata), "expected at most 64 labels")
    metadata = tuple(
        (
            validation.required_text(
                f"metadata[{index}].key",
                validation.bounded_text(f"metadata[{index}].key", label.key),
            ),
            validation.bounded_text(f"metadata[{index}].value", label.value, limit_chars=4096),
        )
        for index, label in enumerate(request.metadata)
    )
    return SessionRequest(
        agent_id=validation.bounded_text("agent_id", request.agent_id),
        metadata=metadata,
        request_id=request.request_id,
        trace_id=parent.trace_id if parent else None,
        parent_span=parent.span_id if parent else None,
    )


def _to_proto(session: Session, world_ids: Collection[str], steps: int) -> agent_pb2.Session:
    return agent_pb2.Session(
        session_id=session.session_id,
        trace_id=session.trace_id,
        agent_id=session.agent_id,
        metadata=[types_pb2.Label(key=key, value=value) for key, value in session.metadata],
        created_at=timestamp_to_proto(session.created_at),
        ended_at=None if session.ended_at is None else timestamp_to_proto(session.ended_at),
        world_ids=world_ids,
        steps=steps,
    )


def _relayed(piece: execs_pb2.StreamExecResponse) -> agent_pb2.RunExecResponse:
    match piece.WhichOneof("event"):
        case "output":
            return agent_pb2.RunExecResponse(output=piece.output)
        case "finished":
            return agent_pb2.RunExecResponse(finished=piece.finished)
        case _:
            return agent_pb2.RunExecResponse(keepalive=execs_pb2.Keepalive())


def _traceparent(session: Session) -> str:
    """How the World learns the session's trace: as the W3C has callers say it."""
    return f"00-{session.trace_id}-{session.parent_span or new_span_id()}-01"


def _left(context: Context) -> float | None:
    """Seconds until the caller gives up; None where it set no deadline."""
    left: float | None = context.time_remaining()
    return left
