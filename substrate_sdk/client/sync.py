"""The same without ``await``: every method runs its asynchronous twin over blocking calls.

There is no logic here, and no event loop either; ``transport.drive`` says how that works.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self, Unpack

from substrate_sdk._facts import Output
from substrate_sdk.client.execs import (
    AsyncByteStream,
    AsyncExec,
    AsyncOutputReader,
    AsyncStdin,
    OutputCallback,
)
from substrate_sdk.client.ports import Ports
from substrate_sdk.client.requests import CommandLike, PathLike, WorldChanges, WorldOptions
from substrate_sdk.client.shells import AsyncShell
from substrate_sdk.client.substrate import (
    AsyncSession,
    AsyncSubstrate,
    create_world,
    open_connection,
)
from substrate_sdk.client.sync_files import Files, Iteration
from substrate_sdk.client.transport import BlockingRuntime, drive
from substrate_sdk.client.worlds import AsyncDiff, AsyncWorld
from substrate_sdk.config import Endpoint

if TYPE_CHECKING:
    from datetime import datetime

    from substrate_sdk._jsonform import JsonObject
    from substrate_sdk.client.images import Images
    from substrate_sdk.client.replays import OnProgress
    from substrate_sdk.client.substrate import SpanLike
    from substrate_sdk.records import Explanation, PolicyCheck, Report, Span, Verification
    from substrate_sdk.types import (
        Applied,
        Capability,
        Change,
        Decision,
        Result,
        Snapshot,
        WorldInfo,
    )


class Stdin:
    """The standard input of an exec."""

    def __init__(self, inner: AsyncStdin) -> None:
        self._inner = inner

    def write(self, data: bytes) -> None:
        """Write all of it; returns when the world has it.

        Raises:
            StdinClosed: the command has closed it or is over (a BrokenPipeError).
        """
        drive(self._inner.write(data))

    def close(self) -> None:
        """Say that no more will come. Idempotent."""
        drive(self._inner.close())


class OutputReader(Iteration[Output]):
    """The output of an exec, live, from the start of its log; ends with the command.

    Every reader reads by itself, at its own pace, from the first byte on.
    """

    def __init__(self, inner: AsyncOutputReader) -> None:
        super().__init__(inner)
        self._inner = inner

    def close(self) -> None:
        """Stop reading. The command goes on."""
        drive(self._inner.close())


class ByteStream(Iteration[bytes]):
    """One of the streams of an exec: iterating gives its bytes as they come."""

    def __init__(self, inner: AsyncByteStream) -> None:
        super().__init__(inner)
        self._inner = inner

    def read(self) -> bytes:
        """All of it that was not read yet, to the end of the command."""
        return drive(self._inner.read())

    def close(self) -> None:
        """Stop reading."""
        drive(self._inner.close())


class Exec:
    """A command in a world. Losing this handle does not end the command.

    Attributes:
        stdin: its standard input.
        stdout: its standard output, or what it writes to its terminal.
        stderr: its standard error.
    """

    def __init__(self, inner: AsyncExec) -> None:
        self._inner = inner
        self.stdin = Stdin(inner.stdin)
        self.stdout = ByteStream(inner.stdout)
        self.stderr = ByteStream(inner.stderr)

    @property
    def exec_id(self) -> str:
        """Its id in the world."""
        return self._inner.exec_id

    @property
    def world_id(self) -> str:
        """Its world."""
        return self._inner.world_id

    @property
    def session_id(self) -> str:
        """Its session."""
        return self._inner.session_id

    @property
    def span_id(self) -> str:
        """Its span, 16 hex digits."""
        return self._inner.span_id

    @property
    def pid(self) -> int:
        """Its first process, in the world; 0 where it never ran."""
        return self._inner.pid

    @property
    def decision(self) -> Decision:
        """What policy said."""
        return self._inner.decision

    @property
    def result(self) -> Result | None:
        """The outcome; None before :meth:`wait` returned."""
        return self._inner.result

    def output(self, *, timeout_s: float | None = None) -> OutputReader:
        """A reader of both streams, in order, from the first byte on."""
        return OutputReader(self._inner.output(timeout_s=timeout_s))

    def wait(
        self,
        timeout_s: float | None = None,
        *,
        on_output: OutputCallback | None = None,
        keep_output: bool = True,
        hang_up: bool = False,
    ) -> Result:
        """Wait for the end of the command and its records.

        Args:
            timeout_s: seconds to wait at most; the command goes on afterwards.
            on_output: called with each piece of output as it comes.
            keep_output: False leaves it out of the result, for output too large to hold.
            hang_up: the command ends some seconds after this process does, should it be killed.

        Raises:
            CallTimeout: it is not over (a TimeoutError).
        """
        return drive(
            self._inner.wait(
                timeout_s, on_output=on_output, keep_output=keep_output, hang_up=hang_up
            )
        )

    def feed(self, data: bytes) -> None:
        """Write all of standard input and close it; a command need not read it."""
        drive(self._inner.feed(data))

    def signal(self, name: str, *, whole_tree: bool = True) -> None:
        """Send a signal, by name: INT, SIGTERM. A finished command takes it as well, in silence.

        Args:
            name: with or without SIG.
            whole_tree: to everything that the command started, else to its first process.
        """
        drive(self._inner.signal(name, whole_tree=whole_tree))

    def kill(self) -> None:
        """End it and all it started, at once."""
        drive(self._inner.kill())

    def resize(self, rows: int, columns: int) -> None:
        """Change the size of its terminal."""
        drive(self._inner.resize(rows, columns))


class Shell:
    """A bash (or sh, where there is none) that lives from one command to the next.

    It keeps its directory, variables, functions, aliases, options and traps. Each command is a
    step of its own, with its own output, changes and record; one runs at a time, those that are
    given meanwhile wait. Made by ``World.shell``; as a context manager it is closed at the end.
    """

    def __init__(self, inner: AsyncShell) -> None:
        self._inner = inner

    @property
    def shell_id(self) -> str:
        """Its id in the world."""
        return self._inner.shell_id

    @property
    def world_id(self) -> str:
        """Its world."""
        return self._inner.world_id

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        drive(self._inner.__aexit__(kind, error, trace))

    def run(
        self,
        command: str | bytes,
        *,
        timeout_s: float | None = None,
        stdin: bytes | str | None = None,
        check: bool = False,
        on_output: OutputCallback | None = None,
    ) -> Result:
        """Run a command in it, to its end, after those that were given before.

        A non-zero exit, an interrupt and a time-out are results, and the shell goes on. A command
        that ends the shell (``exit 3``) has the shell's exit code; the next one is refused.
        Interrupting the call (Ctrl-C) interrupts the command.

        Args:
            command: any text that the shell understands, of any number of lines.
            timeout_s: seconds after which the command and what it started are ended. The shell
                stays, unless it does not come back.
            stdin: what it reads; nothing when None. Text is sent as UTF-8.
            check: raise when the command does not exit with 0.
            on_output: called with each piece of output as it comes.

        Raises:
            ShellEnded: the shell is not there any more; the message says why.
            CommandFailed: with ``check``; it carries the result.
        """
        return drive(
            self._inner.run(
                command, timeout_s=timeout_s, stdin=stdin, check=check, on_output=on_output
            )
        )

    def interrupt(self) -> None:
        """Interrupt the command that runs, as Ctrl-C does; nothing where none runs.

        For another thread than the one that runs it.
        """
        drive(self._inner.interrupt())

    def restart(self) -> None:
        """End it, with all that runs in it, and open it anew: as it was at first."""
        drive(self._inner.restart())

    def close(self) -> None:
        """End it and all that runs in it. Idempotent."""
        drive(self._inner.close())


class Diff:
    """What a world or a step changed."""

    def __init__(self, inner: AsyncDiff) -> None:
        self._inner = inner

    @property
    def changes(self) -> tuple[Change, ...]:
        """The changes, by path."""
        return self._inner.changes

    def patch(self) -> bytes:
        """The changes as a patch that ``git apply`` and ``patch -p1`` take."""
        return drive(self._inner.patch())

    def patch_pieces(self) -> Iterator[bytes]:
        """The patch in pieces, for one too large to hold."""
        return Iteration(self._inner.patch_pieces())


class World:
    """An isolated place to run commands in. Made by ``Substrate.world`` or ``connect``.

    As a context manager it is removed at the end, unless it is to be kept.

    Attributes:
        files: its files.
        ports: its servers, for the host to reach.
    """

    def __init__(self, inner: AsyncWorld) -> None:
        self._inner = inner
        self.files = Files(inner.files)
        self.ports = Ports(inner.ports)

    @property
    def world_id(self) -> str:
        """Its id."""
        return self._inner.world_id

    @property
    def session_id(self) -> str:
        """The session that its steps belong to."""
        return self._inner.session_id

    @property
    def info(self) -> WorldInfo:
        """What the host said of it last; :meth:`refresh` asks again."""
        return self._inner.info

    def refresh(self) -> WorldInfo:
        """Ask the host what it knows of the world now."""
        return drive(self._inner.refresh())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        drive(self._inner.__aexit__(kind, error, trace))

    def exec(
        self,
        command: CommandLike,
        *,
        timeout_s: float | None = None,
        env: Mapping[str, str] | None = None,
        cwd: PathLike | None = None,
        user: str = "",
        umask: int | None = None,
        stdin: bool = True,
        pty: bool | tuple[int, int] = False,
        on_ask: str = "deny",
        exec_id: str | None = None,
    ) -> Exec:
        """Start a command and give a live handle to it.

        Args:
            command: a string for the shell (bash, or sh where there is none), or exact arguments.
            timeout_s: seconds after which the command and all it started are ended.
            env: set over the world's environment.
            cwd: where to start, in the world; the world's own when None.
            user: in the world; the world's own when empty.
            umask: file mode creation mask; 0o022 when None.
            stdin: with a standard input to write to; without, it reads nothing.
            pty: with a terminal: True, or its (rows, columns).
            on_ask: where policy wants a person to be asked: "deny", or "wait" for the answer.
            exec_id: names the step, so that it can be asked for again; made up when None.

        Raises:
            InvalidArgument: the command is empty or has a null byte in it.
            WorldNotFound: the world was removed.
            WorldLost: its init is gone.
        """
        return Exec(
            drive(
                self._inner.exec(
                    command,
                    timeout_s=timeout_s,
                    env=env,
                    cwd=cwd,
                    user=user,
                    umask=umask,
                    stdin=stdin,
                    pty=pty,
                    on_ask=on_ask,
                    exec_id=exec_id,
                )
            )
        )

    def run(
        self,
        command: CommandLike,
        *,
        timeout_s: float | None = None,
        env: Mapping[str, str] | None = None,
        cwd: PathLike | None = None,
        stdin: bytes | str | None = None,
        check: bool = False,
        user: str = "",
        umask: int | None = None,
        on_ask: str = "deny",
        on_output: OutputCallback | None = None,
    ) -> Result:
        """Run a command to its end.

        A non-zero exit, a signal, a time-out (with the output until then) and a denial are
        results. Interrupting the call (Ctrl-C) ends the command.

        Args:
            command: a string for the shell (bash, or sh where there is none), or exact arguments.
            timeout_s: seconds after which the command and all it started are ended.
            env: set over the world's environment.
            cwd: where to start, in the world; the world's own when None.
            stdin: what it reads; nothing when None. Text is sent as UTF-8.
            check: raise when the command does not exit with 0.
            user: in the world; the world's own when empty.
            umask: file mode creation mask; 0o022 when None.
            on_ask: where policy wants a person to be asked: "deny", or "wait" for the answer.
            on_output: called with each piece of output as it comes.

        Raises:
            CommandFailed: with ``check``; it carries the result.
            SubstrateError: Substrate itself could not do what was asked.
        """
        return drive(
            self._inner.run(
                command,
                timeout_s=timeout_s,
                env=env,
                cwd=cwd,
                stdin=stdin,
                check=check,
                user=user,
                umask=umask,
                on_ask=on_ask,
                on_output=on_output,
            )
        )

    def shell(
        self,
        *,
        env: Mapping[str, str] | None = None,
        cwd: PathLike | None = None,
        shell_id: str | None = None,
    ) -> Shell:
        """Open a shell that keeps its directory, variables and functions between commands.

        Args:
            env: set over the world's environment.
            cwd: where it starts, in the world; the world's own when None.
            shell_id: names the shell, so that it can be found again; made up when None.

        Raises:
            ShellEnded: there was such a shell, and it has ended.
            WorldNotFound: the world was removed.
        """
        return Shell(drive(self._inner.shell(env=env, cwd=cwd, shell_id=shell_id)))

    def diff(self) -> Diff:
        """All that the world changed since it was made."""
        return Diff(drive(self._inner.diff()))

    def snapshot(self) -> Snapshot:
        """Keep its tree as it is now; no step.

        ``sub.world(base=f"snapshot:{snapshot.snapshot_id}")`` makes a world of it.
        """
        return drive(self._inner.snapshot())

    def fork(self, at: SpanLike, *, keep: bool = False) -> World:
        """Make a world with the tree that this one had after a step; files only.

        Args:
            at: the step: a result, a span, its id or a prefix of it.
            keep: it stays at the end of a with block.

        Raises:
            SpanNotFound: there is no such step.
            NotRestorable: parts of the tree cannot be had any more; the message names them.
        """
        return World(drive(self._inner.fork(at, keep=keep)))

    def rollback(self, to: SpanLike, *, kill: bool = False) -> int:
        """Set its tree to that after a step of its own; files only. A step itself.

        Args:
            to: the step: a result, a span, its id or a prefix of it.
            kill: end what runs in it, which otherwise is a reason to refuse.

        Returns:
            The world's new generation.

        Raises:
            TreeInUse: processes hold files in the tree; ``metadata["held_by"]`` lists them.
            SpanNotFound: there is no such step of this world.
        """
        return drive(self._inner.rollback(to, kill=kill))

    def discard(self, *paths: PathLike) -> Result:
        """Forget what it changed since it was made: all of it, or some paths. A step itself.

        Args:
            paths: absolute, or relative to the world's cwd; each with all that is below it.

        Raises:
            TreeInUse: processes hold files in the tree.
        """
        return drive(self._inner.discard(*paths))

    def apply(
        self, *paths: PathLike, dry_run: bool = False, consent: Sequence[PathLike] = ()
    ) -> Applied:
        """Write its changes to the project on the host, all or nothing. A step itself.

        Args:
            paths: absolute, or relative to the world's cwd, each with all that is below it; none
                means all of the project.
            dry_run: only say what would happen.
            consent: paths that execute later on the host (git hooks, CI and editor tasks) and may
                be written all the same, each by name.

        Raises:
            Conflict: the host's files are not those that the world was made from.
            ConsentNeeded: paths that execute later on the host were not agreed to.
            PolicyDenied: policy does not let it.
        """
        return drive(self._inner.apply(*paths, dry_run=dry_run, consent=consent))

    def pause(self) -> None:
        """Stop everything in it, until :meth:`resume`; time-outs do not run meanwhile. Idempotent.

        Raises:
            NotPaused: a process of it cannot be stopped now; all go on.
        """
        drive(self._inner.pause())

    def resume(self) -> None:
        """Let everything in it go on. Idempotent."""
        drive(self._inner.resume())

    def update(self, **changes: Unpack[WorldChanges]) -> WorldInfo:
        """Change what bounds it; see :meth:`AsyncWorld.update`."""
        return drive(self._inner.update(**changes))

    def remove(self) -> None:
        """End everything in it and take it down; its records stay. Idempotent."""
        drive(self._inner.remove())


class Session:
    """An agent's ordered steps over one or more worlds: the unit of sequential replay.

    As a context manager it ends itself, and with it its worlds that are not to be kept.
    """

    def __init__(self, inner: AsyncSession) -> None:
        self._inner = inner

    @property
    def session_id(self) -> str:
        """Its id."""
        return self._inner.session_id

    @property
    def trace_id(self) -> str:
        """Its trace, 32 hex digits."""
        return self._inner.trace_id

    @property
    def agent_id(self) -> str:
        """Who works in it."""
        return self._inner.agent_id

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        drive(self._inner.__aexit__(kind, error, trace))

    def world(self, **options: Unpack[WorldOptions]) -> World:
        """Make a world in this session; see :class:`WorldOptions`."""
        return World(drive(self._inner.make_world(options)))

    def end(self) -> None:
        """End it. Idempotent."""
        drive(self._inner.end())


class Substrate:
    """A client of one host: safe between threads, after a fork, and inside a running event loop.

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
        self._connection = open_connection(BlockingRuntime(), endpoint, home)
        self._inner = AsyncSubstrate.over(self._connection)

    @property
    def images(self) -> Images:
        """The host's images."""
        from substrate_sdk.client.images import Images

        return Images(self._inner.images)

    @property
    def endpoint(self) -> Endpoint:
        """Where the host listens."""
        return self._connection.endpoint

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the connection up. Worlds and commands go on; a later call connects again."""
        drive(self._inner.close())

    def connect_host(self) -> None:
        """Find the host, or start the embedded one."""
        drive(self._inner.connect_host())

    # --- worlds and sessions ----------------------------------------------------------------

    def world(self, **options: Unpack[WorldOptions]) -> World:
        """Make a world, in a session of its own; see :class:`WorldOptions`.

        ``with sub.world() as world`` removes it at the end.

        Raises:
            ProjectRefused: the directory cannot be a project.
            NoNamespaces: the host cannot make worlds; the message has the fix.
            NotBuilt: an option that this host does not know yet.
            PolicyInvalid: the policy file has mistakes.
        """
        return World(drive(create_world(self._connection, "", options)))

    def session(self, *, agent_id: str = "", metadata: Mapping[str, str] | None = None) -> Session:
        """Begin a session.

        Args:
            agent_id: who works in it.
            metadata: free labels.
        """
        return Session(drive(self._inner.begin_session(agent_id, metadata)))

    def connect(self, world_id: str, *, agent_id: str = "") -> World:
        """A world that is there. It is not removed at the end of a with block.

        Raises:
            WorldNotFound: there is no such world.
        """
        return World(drive(self._inner.connect(world_id, agent_id=agent_id)))

    def worlds(self, *, session_id: str = "") -> list[WorldInfo]:
        """The worlds of the host, oldest first.

        Args:
            session_id: only those of this session.
        """
        return drive(self._inner.worlds(session_id=session_id))

    def fork(self, at: SpanLike, *, keep: bool = False) -> World:
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
        return World(drive(self._inner.make_fork(at, keep=keep)))

    def apply(
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
        return drive(self._inner.apply(span, *paths, dry_run=dry_run, consent=consent))

    def remove_world(self, world_id: str) -> None:
        """End everything in a world and take it down. Idempotent."""
        drive(self._inner.remove_world(world_id))

    def capabilities(self) -> list[Capability]:
        """What the host can do."""
        return drive(self._inner.capabilities())

    # --- what was recorded ------------------------------------------------------------------

    def span(self, span: SpanLike) -> Span:
        """One recorded step.

        Args:
            span: its id, an unambiguous prefix of it, ``@last``, or a result.

        Raises:
            SpanNotFound: there is no such step.
            SpanAmbiguous: the prefix fits several.
        """
        return drive(self._inner.span(span))

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
    ) -> Iterator[Span]:
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
        return Iteration(
            self._inner.spans(
                limit=limit,
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
        )

    def events(self, span: SpanLike, *, bounded: bool = False) -> Iterator[JsonObject]:
        """The events of a step, as the journal writes them.

        Args:
            span: its id, a prefix, ``@last``, or a result.
            bounded: only the bounded lines that are in the journal itself.
        """
        return Iteration(self._inner.events(span, bounded=bounded))

    def event_lines(self, span: SpanLike, *, bounded: bool = False) -> Iterator[bytes]:
        """As :meth:`events`, each as the JSON line that it is, with its newline."""
        return Iteration(self._inner.event_lines(span, bounded=bounded))

    def object(self, digest: str) -> Iterator[bytes]:
        """The bytes of an object, in pieces: output, a file's content, an event batch.

        Raises:
            ObjectMissing: there is no such object.
            ObjectCorrupt: it does not hold what its digest names.
        """
        return Iteration(self._inner.object(digest))

    def diff(self, what: SpanLike) -> Diff:
        """What a step changed, also after its world is gone; or all that a world did.

        Args:
            what: a span as for :meth:`span`, or a world's id.
        """
        return Diff(drive(self._inner.diff(what)))

    def verify(self) -> Verification:
        """Check the journal's chain."""
        return drive(self._inner.verify())

    def replay(
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
        return drive(
            self._inner.replay(
                span,
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
        )

    # --- policy -----------------------------------------------------------------------------

    def policy_check(self, *files: PathLike) -> PolicyCheck:
        """Look for mistakes in policy files on the host; without any, in those in force."""
        return drive(self._inner.policy_check(*files))

    def policy_explain(
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
        return drive(
            self._inner.policy_explain(
                command,
                project=project,
                cwd=cwd,
                profile=profile,
                agent_id=agent_id,
                policy=policy,
            )
        )
