"""The way in, asynchronous: worlds and sessions of one host, and what it recorded."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeAlias, Unpack

from substrate_sdk._pb.substrate.world.v1alpha1 import worlds_pb2
from substrate_sdk.client import commits, methods, requests
from substrate_sdk.client.connection import Connection
from substrate_sdk.client.opening import Opening
from substrate_sdk.client.requests import CommandLike, PathLike, WorldOptions
from substrate_sdk.client.transport import Runtime
from substrate_sdk.client.worlds import AsyncDiff, AsyncWorld, read_diff
from substrate_sdk.config import Endpoint, HostPaths, endpoint_from_env, parse_endpoint
from substrate_sdk.errors import SubstrateError

if TYPE_CHECKING:
    from datetime import datetime

    from substrate_sdk._jsonform import JsonObject
    from substrate_sdk.client.images import AsyncImages
    from substrate_sdk.client.replays import OnProgress
    from substrate_sdk.records import Explanation, PolicyCheck, Report, Span, Verification
    from substrate_sdk.types import Applied, Capability, Result, WorldInfo

    SpanLike: TypeAlias = str | Result | Span


class AsyncSession:
    """An agent's ordered steps over one or more worlds: the unit of sequential replay.

    As a context manager it ends itself, and with it its worlds that are not to be kept.

    Attributes:
        session_id: its id.
        trace_id: its trace, 32 hex digits.
        agent_id: who works in it.
    """

    def __init__(
        self, connection: Connection, *, session_id: str, trace_id: str, agent_id: str
    ) -> None:
        self._connection = connection
        self.session_id = session_id
        self.trace_id = trace_id
        self.agent_id = agent_id

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            await self.end()
        except SubstrateError:
            if error is None:
                raise

    def world(self, **options: Unpack[WorldOptions]) -> Opening[AsyncWorld]:
        """Make a world in this session; see :class:`WorldOptions`."""
        return Opening(lambda: self.make_world(options))

    async def make_world(self, options: WorldOptions) -> AsyncWorld:
        """As :meth:`world`."""
        options.setdefault("agent_id", self.agent_id)
        return await create_world(self._connection, self.session_id, options)

    async def end(self) -> None:
        """End it. Idempotent."""
        from substrate_sdk._pb.substrate.agent.v1alpha1 import agent_pb2
        from substrate_sdk.client.record_methods import END_SESSION

        await self._connection.unary(
            END_SESSION, agent_pb2.EndSessionRequest(session_id=self.session_id)
        )


async def create_world(
    connection: Connection, session_id: str, options: WorldOptions
) -> AsyncWorld:
    """Make a world, in a session or in a new one."""
    # Connecting first: an embedded host must be there before anything is sent about this process.
    await connection.transport()
    request = requests.create_world(connection.endpoint, session_id, options)
    answer = await connection.unary(methods.CREATE_WORLD, request)
    return AsyncWorld(connection, answer.world, agent_id=request.agent_id, remove=not request.keep)


class AsyncSubstrate:
    """A client of one host. ``Substrate`` is the same without ``await``.

    Args:
        endpoint: ``unix:///path`` or ``host:port``; when None, what ``SUBSTRATE_ENDPOINT`` names,
            else an embedded host of your own, started if it does not run and shared by all who
            use the same home.
        home: the embedded host's home; when None, what ``SUBSTRATE_HOME`` names, else
            ``~/.substrate``.

    Raises:
        InvalidArgument: the endpoint is malformed.
    """

    def __init__(
        self, endpoint: str | None = None, *, home: str | os.PathLike[str] | None = None
    ) -> None:
        from substrate_sdk.client.aio_runtime import AioRuntime

        self._connection = open_connection(AioRuntime(), endpoint, home)

    @property
    def images(self) -> AsyncImages:
        """The host's images."""
        from substrate_sdk.client.images import AsyncImages

        return AsyncImages(self._connection)

    @classmethod
    def over(cls, connection: Connection) -> Self:
        """A client over a connection that is there."""
        made = cls.__new__(cls)
        made._connection = connection  # noqa: SLF001 # its own
        return made

    @property
    def endpoint(self) -> Endpoint:
        """Where the host listens."""
        return self._connection.endpoint

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Give the connection up. Worlds and commands go on; a later call connects again."""
        await self._connection.close()

    async def connect_host(self) -> None:
        """Find the host, or start the embedded one."""
        await self._connection.transport()

    # --- worlds and sessions ----------------------------------------------------------------

    def world(self, **options: Unpack[WorldOptions]) -> Opening[AsyncWorld]:
        """Make a world, in a session of its own; see :class:`WorldOptions`.

        ``async with sub.world() as world`` removes it at the end, ``await sub.world()`` does not.

        Raises:
            ProjectRefused: the directory cannot be a project.
            NoNamespaces: the host cannot make worlds; the message has the fix.
            NotBuilt: an option that this host does not know yet.
            PolicyInvalid: the policy file has mistakes.
        """
        return Opening(lambda: create_world(self._connection, "", options))

    def session(
        self, *, agent_id: str = "", metadata: Mapping[str, str] | None = None
    ) -> Opening[AsyncSession]:
        """Begin a session.

        Args:
            agent_id: who works in it.
            metadata: free labels.
        """
        return Opening(lambda: self.begin_session(agent_id, metadata))

    async def begin_session(
        self, agent_id: str, metadata: Mapping[str, str] | None
    ) -> AsyncSession:
        """As :meth:`session`."""
        from substrate_sdk._pb.substrate.agent.v1alpha1 import agent_pb2
        from substrate_sdk.client.record_methods import CREATE_SESSION

        answer = await self._connection.unary(
            CREATE_SESSION,
            agent_pb2.CreateSessionRequest(
                request_id=requests.new_id("req_"),
                agent_id=agent_id,
                metadata=requests.labels(metadata),
                traceparent=requests.traceparent(),
            ),
        )
        session = answer.session
        return AsyncSession(
            self._connection,
            session_id=session.session_id,
            trace_id=session.trace_id,
            agent_id=session.agent_id,
        )

    async def connect(self, world_id: str, *, agent_id: str = "") -> AsyncWorld:
        """A world that is there. It is not removed at the end of a with block.

        Raises:
            WorldNotFound: there is no such world.
        """
        answer = await self._connection.unary(
            methods.GET_WORLD, worlds_pb2.GetWorldRequest(world_id=world_id)
        )
        return AsyncWorld(self._connection, answer.world, agent_id=agent_id, remove=False)

    async def worlds(self, *, session_id: str = "") -> list[WorldInfo]:
        """The worlds of the host, oldest first.

        Args:
            session_id: only those of this session.
        """
        from substrate_sdk.types import WorldInfo

        found: list[WorldInfo] = []
        token = ""
        while True:
            answer = await self._connection.unary(
                methods.LIST_WORLDS,
                worlds_pb2.ListWorldsRequest(session_id=session_id, page_token=token),
            )
            found += [WorldInfo.from_proto(world) for world in answer.worlds]
            token = answer.next_page_token
            if not token:
                return found

    def fork(self, at: SpanLike, *, keep: bool = False) -> Opening[AsyncWorld]:
        """Make a world with the tree after a step, also when the step's world is gone.

        It is like the step's world, and belongs to its session. Where that is gone it stays until
        it is removed; here it is removed at the end of a with block, unless it is to be kept.

        Args:
            at: a span as for :meth:`span`.
            keep: it stays at the end of a with block.

        Raises:
            SpanNotFound: there is no such step.
            NotRestorable: parts of the tree cannot be had any more; the message names them.
        """
        return Opening(lambda: self.make_fork(at, keep=keep))

    async def make_fork(self, at: SpanLike, *, keep: bool) -> AsyncWorld:
        """As :meth:`fork`."""
        made = await commits.fork(self._connection, at)
        return AsyncWorld(self._connection, made, agent_id="", remove=not keep)

    async def apply(
        self,
        span: SpanLike,
        *paths: PathLike,
        dry_run: bool = False,
        consent: Sequence[PathLike] = (),
    ) -> Applied:
        """Write what a step's world had changed by then to the project on the host.

        A fork of the step is made for that and removed again, so that the step's world, which may
        be gone, stays as it is. For the arguments see ``World.apply``.
        """
        async with self.fork(span) as made:
            return await made.apply(*paths, dry_run=dry_run, consent=consent)

    async def remove_world(self, world_id: str) -> None:
        """End everything in a world and take it down. Idempotent."""
        await self._connection.unary(
            methods.REMOVE_WORLD, worlds_pb2.RemoveWorldRequest(world_id=world_id)
        )

    async def capabilities(self) -> list[Capability]:
        """What the host can do."""
        from substrate_sdk.types import Capability

        answer = await self._connection.unary(
            methods.GET_CAPABILITIES, worlds_pb2.GetCapabilitiesRequest()
        )
        return [Capability.from_proto(item) for item in answer.capabilities]

    # --- what was recorded ------------------------------------------------------------------

    async def span(self, span: SpanLike) -> Span:
        """One recorded step.

        Args:
            span: its id, an unambiguous prefix of it, ``@last``, or a result.

        Raises:
            SpanNotFound: there is no such step.
            SpanAmbiguous: the prefix fits several.
        """
        from substrate_sdk.client import records

        return await records.get_span(self._connection, span)

    def spans(
        self,
        *,
        limit: int | None = None,
        session_id: str = "",
        world_id: str = "",
        kind: str = "",
        text: str = "",
        exit_code: int | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        path: PathLike | None = None,
        host: str = "",
    ) -> AsyncIterator[Span]:
        """Recorded steps, newest first, without their processes.

        Args:
            limit: at most this many.
            session_id: only of this session.
            world_id: only of this world.
            kind: only of this kind: exec, files.write.
            text: only commands that contain this.
            exit_code: only with this exit code.
            since: only from then on.
            until: only until then.
            path: only those that changed this path.
            host: only those that contacted this host.
        """
        from substrate_sdk.client import records

        return records.list_spans(
            self._connection,
            limit,
            session_id=session_id,
            world_id=world_id,
            kind=kind,
            text=text,
            exit_code=exit_code,
            since=since,
            until=until,
            path=path,
            host=host,
        )

    def events(self, span: SpanLike, *, bounded: bool = False) -> AsyncIterator[JsonObject]:
        """The events of a step, as the journal writes them.

        Args:
            span: its id, a prefix, ``@last``, or a result.
            bounded: only the bounded lines that are in the journal itself.
        """
        from substrate_sdk.client import records

        return records.stream_events(self._connection, span, bounded=bounded)

    def event_lines(self, span: SpanLike, *, bounded: bool = False) -> AsyncIterator[bytes]:
        """As :meth:`events`, each as the JSON line that it is, with its newline."""
        from substrate_sdk.client import records

        return records.event_lines(self._connection, span, bounded=bounded)

    def object(self, digest: str) -> AsyncIterator[bytes]:
        """The bytes of an object, in pieces: output, a file's content, an event batch.

        Raises:
            ObjectMissing: there is no such object.
            ObjectCorrupt: it does not hold what its digest names.
        """
        from substrate_sdk.client import records

        return records.read_object(self._connection, digest)

    async def diff(self, what: SpanLike) -> AsyncDiff:
        """What a step changed, also after its world is gone; or all that a world did.

        Args:
            what: a span as for :meth:`span`, or a world's id.
        """
        if isinstance(what, str) and what.startswith("wld_"):
            return await read_diff(self._connection, world_id=what)
        span = await self.span(what)
        return await read_diff(self._connection, span_id=span.span_id)

    async def verify(self) -> Verification:
        """Check the journal's chain."""
        from substrate_sdk.client import records

        return await records.verify(self._connection)

    async def replay(
        self,
        span: SpanLike | None = None,
        *,
        session: str | None = None,
        runs: int = 1,
        use_host_base: bool = False,
        keep_worlds: bool = False,
        compare_mtime: bool = False,
        against: PathLike | None = None,
        variations: tuple[str, ...] = (),
        hosts: tuple[str, ...] = (),
        agent_id: str = "",
        on_progress: OnProgress | None = None,
    ) -> Report:
        """Run a recorded step or session again, in fresh worlds, and say whether it did the same.

        Args:
            span: a step: its id, a prefix, ``@last``, or a result.
            session: a session's id, instead of a step.
            runs: how often.
            use_host_base: use the host's base for what cannot be restored.
            keep_worlds: keep the worlds of the replay.
            compare_mtime: compare modification times too.
            against: a directory of the host to run as well, and compare.
            variations: what to vary: environment, time, hostname and so on.
            hosts: hosts to use; none means this one.
            agent_id: who asks, for records.
            on_progress: called with each stage as it begins.

        Raises:
            SpanNotFound: there is no such step.
            NotBuilt: a way of replaying that this host does not know yet.
        """
        from substrate_sdk.client import replays

        return await replays.replay(
            self._connection,
            span=None if span is None else (await self.span(span)).span_id,
            session=session,
            runs=runs,
            use_host_base=use_host_base,
            keep_worlds=keep_worlds,
            compare_mtime=compare_mtime,
            against=against,
            variations=variations,
            hosts=hosts,
            agent_id=agent_id,
            on_progress=on_progress,
        )

    # --- policy -----------------------------------------------------------------------------

    async def policy_check(self, *files: PathLike) -> PolicyCheck:
        """Look for mistakes in policy files on the host; without any, in those in force."""
        from substrate_sdk.client import records

        return await records.policy_check(self._connection, files)

    async def policy_explain(
        self,
        command: CommandLike,
        *,
        project: PathLike | None = None,
        cwd: PathLike | None = None,
        profile: str = "",
        agent_id: str = "",
        policy: PathLike | None = None,
    ) -> Explanation:
        """Say what policy would answer about a command, and how it comes to that.

        Args:
            command: a string for the shell, or exact arguments.
            project: a directory of the host whose own policy counts too.
            cwd: where the command would start.
            profile: of the world.
            agent_id: who would ask.
            policy: a further policy file on the host.
        """
        from substrate_sdk.client import records

        return await records.policy_explain(
            self._connection,
            command,
            project=project,
            cwd=cwd,
            profile=profile,
            agent_id=agent_id,
            policy=policy,
        )


def open_connection(
    runtime: Runtime, endpoint: str | None, home: str | os.PathLike[str] | None
) -> Connection:
    """The connection that the arguments and the environment ask for; nothing is sent yet."""
    if endpoint is not None:
        chosen: Endpoint | None = parse_endpoint(endpoint)
    else:
        # A home that is named in so many words is meant, whatever the environment says.
        chosen = endpoint_from_env() if home is None else None
    return Connection(runtime, chosen, HostPaths(home))
