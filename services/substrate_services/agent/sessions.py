"""Sessions: an agent's ordered steps over one or more worlds.

A session is made by a journal line, ended by another, and is otherwise in memory only: what a
host knew is read back from the journal when it starts. Both lines are ``agent_event`` lines,
``session_start`` and ``session_end`` by their ``kind``.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from substrate_services.errors import ServiceError
from substrate_services.journal.codec import lifecycle_line, timestamp
from substrate_services.journal.jsontypes import Fields, JsonObject, JsonValue, LineError
from substrate_services.journal.parts import pairs_to_json, text_pairs
from substrate_services.world.ids import new_id, new_trace_id

_log = logging.getLogger(__name__)

_EVENT = "agent_event"
_START = "session_start"
_END = "session_end"


class JournalSink(Protocol):
    """What sessions need of the journal."""

    def append(self, line: Mapping[str, JsonValue], /) -> int:
        """Takes a line; raises JournalFull where there is no space."""
        ...

    async def flush(self) -> None:
        """Returns when everything appended before is on disk."""
        ...


@dataclass(frozen=True, slots=True)
class Session:
    """One session, as it stands."""

    session_id: str
    trace_id: str
    agent_id: str
    metadata: tuple[tuple[str, str], ...]
    created_at: float  # seconds since the epoch
    request_id: str = ""
    parent_span: str | None = None  # the agent's own span, of its traceparent
    ended_at: float | None = None
    world_ids: tuple[str, ...] = ()  # as far as they were made through this service


@dataclass(frozen=True, slots=True)
class SessionRequest:
    """What a client asks for."""

    agent_id: str = ""
    metadata: tuple[tuple[str, str], ...] = ()
    request_id: str = ""
    trace_id: str | None = None  # of the agent's own trace
    parent_span: str | None = None


class Sessions:
    """The sessions of one host. Used from one event loop.

    Args:
        journal: where they are recorded.
        clock: seconds since the epoch.
    """

    def __init__(self, journal: JournalSink, *, clock: Callable[[], float] = time.time) -> None:
        self._journal = journal
        self._clock = clock
        self._sessions: dict[str, Session] = {}  # in the order in which they were made
        self._by_request: dict[str, str] = {}

    def load(self, lines: Iterable[JsonObject]) -> None:
        """Takes in what the journal says, oldest line first; lines of other kinds are passed by.

        Sessions that are known already stay as they are, so it may run beside other calls.
        """
        found: dict[str, Session] = {}
        for line in lines:
            try:
                _fold(found, line)
            except LineError as error:
                _log.warning("a session's line cannot be read and is passed by: %s", str(error))
        known = self._sessions
        self._sessions = {**found, **known}
        self._by_request = {
            session.request_id: session.session_id
            for session in self._sessions.values()
            if session.request_id
        }

    async def create(self, request: SessionRequest) -> Session:
        """Makes a session and returns once it is on disk; see :meth:`begin`.

        Raises:
            JournalFull: no space; the same request may be tried again.
        """
        session = self.begin(request)
        await self.keep()
        return session

    async def keep(self) -> None:
        """Returns once all sessions that have begun are on disk. Raises JournalFull."""
        # Also for a repeated request: the first may have failed here, for want of space.
        await self._journal.flush()

    def begin(self, request: SessionRequest) -> Session:
        """Makes a session; nobody is to hear of it before :meth:`keep` has returned.

        With a request id that was used before, it is that session again.

        Raises:
            ServiceError: ID_REUSED where the id stood for another request.
        """
        known = self._by_request.get(request.request_id) if request.request_id else None
        if known is not None:
            session = self._sessions[known]
            if not _is_same(session, request):
                raise ServiceError(
                    "ID_REUSED",
                    f"request_id {request.request_id!r} made session {known} with other values; "
                    "choose another",
                )
        else:
            session = Session(
                session_id=new_id("ses"),
                trace_id=request.trace_id or new_trace_id(),
                agent_id=request.agent_id,
                metadata=request.metadata,
                created_at=self._clock(),
                request_id=request.request_id,
                parent_span=request.parent_span,
            )
            self._journal.append(_start_line(session))
            self._sessions[session.session_id] = session
            if request.request_id:
                self._by_request[request.request_id] = session.session_id
        return session

    def get(self, session_id: str) -> Session:
        """The session. Raises ServiceError SESSION_NOT_FOUND."""
        session = self._sessions.get(session_id)
        if session is None:
            raise ServiceError(
                "SESSION_NOT_FOUND", f"session {session_id} is not known on this host"
            )
        return session

    def open(self, session_id: str) -> Session:
        """The session, which has not ended. Raises ServiceError SESSION_ENDED too."""
        session = self.get(session_id)
        if session.ended_at is not None:
            raise ServiceError("SESSION_ENDED", f"session {session_id} has ended; make another one")
        return session

    def newest(self, before: int | None, limit: int) -> tuple[list[Session], int]:
        """Up to ``limit`` sessions, newest first, older than position ``before``.

        Also the position to go on from, 0 when there are no more. Positions are stable while the
        host runs: sessions are only ever added.
        """
        end = len(self._sessions) if before is None else min(before, len(self._sessions))
        start = max(end - limit, 0)
        return list(self._sessions.values())[start:end][::-1], start

    def add_world(self, session_id: str, world_id: str) -> None:
        """Notes a world of the session."""
        session = self.get(session_id)
        if world_id not in session.world_ids:
            self._sessions[session_id] = replace(session, world_ids=(*session.world_ids, world_id))

    async def end(self, session_id: str) -> Session:
        """Ends a session and returns once that is on disk. Idempotent. Raises JournalFull."""
        session = self.get(session_id)
        if session.ended_at is None:
            session = replace(session, ended_at=self._clock())
            self._journal.append(_end_line(session))
            self._sessions[session_id] = session
        await self._journal.flush()
        return session


def _is_same(session: Session, request: SessionRequest) -> bool:
    return (
        session.agent_id == request.agent_id
        and session.metadata == request.metadata
        and session.parent_span == request.parent_span
        and request.trace_id in {None, session.trace_id}
    )


def _start_line(session: Session) -> JsonObject:
    return {
        **_line(session, _START, session.created_at),
        "detail": {
            "metadata": pairs_to_json(session.metadata),
            "request_id": session.request_id,
            "created_at": session.created_at,
            "parent_span": session.parent_span,
        },
    }


def _end_line(session: Session) -> JsonObject:
    assert session.ended_at is not None
    return {
        **_line(session, _END, session.ended_at),
        "detail": {"ended_at": session.ended_at, "world_ids": list(session.world_ids)},
    }


def _line(session: Session, kind: str, time_s: float) -> JsonObject:
    return {
        **lifecycle_line(
            _EVENT, session_id=session.session_id, agent_id=session.agent_id, component="agent"
        ),
        "ts": timestamp(time_s),
        "kind": kind,
        "trace_id": session.trace_id,
    }


def _fold(found: dict[str, Session], line: JsonObject) -> None:
    """Takes one journal line into account."""
    match line.get("event_type"), line.get("kind"):
        case "agent_event", "session_start":
            session = _session_from_line(line)
            found[session.session_id] = session
        case "agent_event", "session_end":
            fields = Fields(line, _END)
            known = found.get(fields.text("session_id"))
            if known is not None:
                ended_at = fields.child("detail").number("ended_at")
                found[known.session_id] = replace(known, ended_at=ended_at)
        case "world_created", _:
            fields = Fields(line, "world_created")
            known = found.get(fields.text("session_id"))
            world_id = fields.text("world_id")
            if known is not None and world_id not in known.world_ids:
                found[known.session_id] = replace(known, world_ids=(*known.world_ids, world_id))
        case _:
            pass


def _session_from_line(line: JsonObject) -> Session:
    fields = Fields(line, _START)
    detail = fields.child("detail")
    return Session(
        session_id=fields.text("session_id"),
        trace_id=fields.text("trace_id"),
        agent_id=fields.text("agent_id"),
        metadata=text_pairs(detail, "metadata"),
        created_at=detail.number("created_at"),
        request_id=detail.text("request_id"),
        parent_span=detail.opt_text("parent_span"),
    )
