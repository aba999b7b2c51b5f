"""A world, asynchronous: commands, files and changes in it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self, Unpack

from substrate_sdk._facts import Change
from substrate_sdk._pb.substrate.world.v1alpha1 import commits_pb2, worlds_pb2
from substrate_sdk._results import CommandFailed, Result
from substrate_sdk.client import commits, methods, requests
from substrate_sdk.client.connection import Connection
from substrate_sdk.client.execs import AsyncExec, OutputCallback, run_to_end
from substrate_sdk.client.files import AsyncFiles
from substrate_sdk.client.ports import AsyncPorts
from substrate_sdk.client.requests import CommandLike, PathLike, WorldChanges
from substrate_sdk.client.shells import AsyncShell, open_shell
from substrate_sdk.errors import SubstrateError

if TYPE_CHECKING:
    from substrate_sdk.client.substrate import SpanLike
    from substrate_sdk.types import Applied, Snapshot, WorldInfo


class AsyncDiff:
    """What a world or a step changed.

    Attributes:
        changes: by path.
    """

    def __init__(
        self, connection: Connection, *, world_id: str, span_id: str, changes: tuple[Change, ...]
    ) -> None:
        self._connection = connection
        self._world_id = world_id
        self._span_id = span_id
        self.changes = changes

    async def patch(self) -> bytes:
        """The changes as a patch that ``git apply`` and ``patch -p1`` take."""
        return b"".join([piece async for piece in self.patch_pieces()])

    async def patch_pieces(self) -> AsyncIterator[bytes]:
        """The patch in pieces, for one too large to hold."""
        request = diff_request(self._world_id, self._span_id)
        request.format = commits_pb2.DIFF_FORMAT_PATCH
        answers = self._connection.stream(methods.GET_DIFF, lambda: request, resumable=False)
        try:
            async for answer in answers:
                yield answer.patch
        finally:
            await answers.close()


def diff_request(world_id: str, span_id: str) -> commits_pb2.GetDiffRequest:
    """Asks for the changes of a world, or where there is a span, of that."""
    if span_id:
        return commits_pb2.GetDiffRequest(span_id=span_id)
    return commits_pb2.GetDiffRequest(world_id=world_id)


async def read_diff(connection: Connection, *, world_id: str = "", span_id: str = "") -> AsyncDiff:
    """Read the changes of a world, or of a step."""
    request = diff_request(world_id, span_id)
    answers = connection.stream(methods.GET_DIFF, lambda: request, resumable=False)
    try:
        changes = [Change.from_proto(answer.change) async for answer in answers]
    finally:
        await answers.close()
    return AsyncDiff(connection, world_id=world_id, span_id=span_id, changes=tuple(changes))


class AsyncWorld:
    """An isolated place to run commands in. Made by ``AsyncSubstrate.world`` or ``connect``.

    As a context manager it is removed at the end, unless it is to be kept.

    Attributes:
        files: its files.
        ports: its servers, for the host to reach.
    """

    def __init__(
        self, connection: Connection, proto: worlds_pb2.World, *, agent_id: str, remove: bool
    ) -> None:
        self._connection = connection
        self._proto = proto
        self._info: WorldInfo | None = None  # the same, made when somebody looks
        self._agent_id = agent_id
        self._remove_at_exit = remove
        self.files = AsyncFiles(connection, proto.world_id)
        self.ports = AsyncPorts(connection, proto.world_id)

    @property
    def world_id(self) -> str:
        """Its id."""
        return self._proto.world_id

    @property
    def session_id(self) -> str:
        """The session that its steps belong to."""
        return self._proto.session_id

    @property
    def info(self) -> WorldInfo:
        """What the host said of it last; :meth:`refresh` asks again."""
        if self._info is None:
            from substrate_sdk.types import WorldInfo

            self._info = WorldInfo.from_proto(self._proto)
        return self._info

    async def refresh(self) -> WorldInfo:
        """Ask the host what it knows of the world now."""
        answer = await self._connection.unary(
            methods.GET_WORLD, worlds_pb2.GetWorldRequest(world_id=self.world_id)
        )
        return self._now(answer.world)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._remove_at_exit:
            return
        if error is None:
            await self.remove()
        else:
            # What went wrong in the block matters more than that tidying up failed too.
            with contextlib.suppress(SubstrateError):
                await self.remove()

    async def exec(
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
    ) -> AsyncExec:
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
        request = requests.start_exec(
            command,
            world_id=self.world_id,
            env=env,
            cwd=cwd,
            user=user,
            umask=umask,
            stdin=stdin,
            pty=(24, 80) if pty is True else (pty or None),
            timeout_s=timeout_s,
            agent_id=self._agent_id,
            on_ask=on_ask,
            exec_id=exec_id,
        )
        # A question to a person takes as long as it takes.
        call_s = None if on_ask == "wait" else 120.0
        answer = await self._connection.unary(methods.START_EXEC, request, timeout_s=call_s)
        return AsyncExec(self._connection, answer.exec)

    async def run(
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
        results. Interrupting the call (Ctrl-C, or cancelling the task) ends the command.

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
        if stdin is None:
            request = requests.start_exec(
                command,
                world_id=self.world_id,
                env=env,
                cwd=cwd,
                user=user,
                umask=umask,
                stdin=False,
                pty=None,
                timeout_s=timeout_s,
                agent_id=self._agent_id,
                on_ask=on_ask,
                exec_id=None,
            )
            result = await run_to_end(self._connection, request, on_output)
        else:
            proc = await self.exec(
                command,
                timeout_s=timeout_s,
                env=env,
                cwd=cwd,
                user=user,
                umask=umask,
                on_ask=on_ask,
            )
            result = await _feed_to_end(proc, stdin, on_output)
        if check and not result.ok:
            raise CommandFailed(result)
        return result

    async def shell(
        self,
        *,
        env: Mapping[str, str] | None = None,
        cwd: PathLike | None = None,
        shell_id: str | None = None,
    ) -> AsyncShell:
        """Open a shell that keeps its directory, variables and functions between commands.

        Args:
            env: set over the world's environment.
            cwd: where it starts, in the world; the world's own when None.
            shell_id: names the shell, so that it can be found again; made up when None.

        Raises:
            ShellEnded: there was such a shell, and it has ended.
            WorldNotFound: the world was removed.
        """
        return await open_shell(
            self._connection,
            self.world_id,
            shell_id=shell_id,
            env=env,
            cwd=cwd,
            agent_id=self._agent_id,
        )

    async def diff(self) -> AsyncDiff:
        """All that the world changed since it was made."""
        return await read_diff(self._connection, world_id=self.world_id)

    async def snapshot(self) -> Snapshot:
        """Keep its tree as it is now; no step.

        ``sub.world(base=f"snapshot:{snapshot.snapshot_id}")`` makes a world of it.
        """
        return await commits.snapshot(self._connection, self.world_id)

    async def fork(self, at: SpanLike, *, keep: bool = False) -> AsyncWorld:
        """Make a world with the tree that this one had after a step; files only.

        Args:
            at: the step: a result, a span, its id or a prefix of it.
            keep: it stays at the end of a with block.

        Raises:
            SpanNotFound: there is no such step.
            NotRestorable: parts of the tree cannot be had any more; the message names them.
        """
        made = await commits.fork(self._connection, at)
        return AsyncWorld(self._connection, made, agent_id=self._agent_id, remove=not keep)

    async def rollback(self, to: SpanLike, *, kill: bool = False) -> int:
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
        return await commits.rollback(self._connection, self.world_id, to, kill=kill)

    async def discard(self, *paths: PathLike) -> Result:
        """Forget what it changed since it was made: all of it, or some paths. A step itself.

        Args:
            paths: absolute, or relative to the world's cwd; each with all that is below it.

        Raises:
            TreeInUse: processes hold files in the tree.
        """
        return await commits.discard(self._connection, self.world_id, paths)

    async def apply(
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
        return await commits.apply(
            self._connection, self.world_id, paths, dry_run=dry_run, consent=consent
        )

    async def pause(self) -> None:
        """Stop everything in it, until :meth:`resume`; time-outs do not run meanwhile. Idempotent.

        Raises:
            NotPaused: a process of it cannot be stopped now; all go on.
        """
        await self._connection.unary(
            methods.PAUSE_WORLD, worlds_pb2.PauseWorldRequest(world_id=self.world_id)
        )

    async def resume(self) -> None:
        """Let everything in it go on. Idempotent."""
        await self._connection.unary(
            methods.RESUME_WORLD, worlds_pb2.ResumeWorldRequest(world_id=self.world_id)
        )

    async def update(self, **changes: Unpack[WorldChanges]) -> WorldInfo:
        """Change what bounds it; what is not named stays.

        Args:
            limits: its limits from now on, all of them; disk and inodes stay as they are.
            ttl_s: seconds from now after which it is removed; None for never.
            idle_s: seconds of idleness after which it is removed; None for the host's default.
            labels: all its labels.
            keep: it stays when its client goes.
            network: all its rules from now on; what they do not open any more is cut.

        Raises:
            InvalidArgument: a value cannot be used, or the disk was to change.
            LimitUnavailable: the host cannot enforce a limit, or the world uses more than that.
        """
        request = requests.update_world(self.world_id, self.info, changes)
        answer = await self._connection.unary(methods.UPDATE_WORLD, request)
        return self._now(answer.world)

    def _now(self, proto: worlds_pb2.World) -> WorldInfo:
        self._proto, self._info = proto, None
        return self.info

    async def remove(self) -> None:
        """End everything in it and take it down; its records stay. Idempotent."""
        await self._connection.unary(
            methods.REMOVE_WORLD, worlds_pb2.RemoveWorldRequest(world_id=self.world_id)
        )
        self._remove_at_exit = False


async def _feed_to_end(
    proc: AsyncExec, stdin: bytes | str, on_output: OutputCallback | None
) -> Result:
    try:
        if proc.result is None:
            await proc.feed(stdin.encode("utf-8") if isinstance(stdin, str) else stdin)
        return await proc.wait(on_output=on_output)
    except SubstrateError:
        raise
    except BaseException:
        # Ctrl-C or a cancelled task: like subprocess.run, leave nothing running behind.
        with contextlib.suppress(SubstrateError):
            await proc.kill()
        raise
