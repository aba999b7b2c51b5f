"""Persistent shells in worlds: opened, given commands one at a time, interrupted, closed.

A shell lives in the world's init, as its commands do (native/init/shells.c), and so outlives this
process. Each command is a step of its own: decided, started, recorded as any exec, except that the
shell is what runs it. A shell that has ended stays known, with how, until it is closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import re
import secrets
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from substrate_services.errors import InvalidField, ServiceError
from substrate_services.journal.schema import ShellStep
from substrate_services.world.actions import with_first_pid
from substrate_services.world.ended import Ended, signal_name
from substrate_services.world.execs import Execs
from substrate_services.world.init_client import (
    ExecStart,
    ExecState,
    InitError,
    InitGone,
    Phase,
    Scope,
    ShellRun,
    StartFailed,
)
from substrate_services.world.shell_state import Shell, load_shells, shells_directory
from substrate_services.world.shell_text import (
    OWN_ENV,
    command_text,
    dialect,
    dialect_of,
    trailer_text,
)
from substrate_services.world.starting import process_limits
from substrate_services.world.steps import STDIN_FILE, Exec, ExecRequest
from substrate_services.world.worlds import World, Worlds

log = logging.getLogger(__name__)

_SHELL_ID = re.compile(r"[A-Za-z0-9_.-]{1,48}")
_SHELLS_MAX = 256
COMMAND_LIMIT_BYTES = 16 << 20
STDIN_LIMIT_BYTES = 16 << 20
#: For a shell to run its EXIT trap when it is closed; what is left then is killed.
_FAREWELL_S = 2.0
#: For what is killed to be gone: it may hang in the kernel, or its world be frozen.
_END_S = 10.0


@dataclass(frozen=True, slots=True)
class OpenRequest:
    """What a client asks for; see OpenShellRequest in the contract."""

    shell_id: str
    env: Mapping[bytes, bytes]
    cwd: bytes | None


@dataclass(slots=True)
class _Handle:
    """What only this process has of a shell."""

    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    dying: bool = False  # its command has told of its end, which is still to be heard of itself
    interrupted: str = ""  # the exec id of a command that had not been given to the shell yet


class Shells:
    """The shells of one host; a :class:`~substrate_services.world.worlds.Listener` for them.

    Args:
        worlds: the host's worlds.
        execs: starts and records commands.
    """

    def __init__(self, *, worlds: Worlds, execs: Execs) -> None:
        self._worlds = worlds
        self._execs = execs
        self._handles: dict[tuple[str, str], _Handle] = {}
        self._releases: set[asyncio.Task[None]] = set()
        self._left: dict[str, dict[str, ExecState]] = {}  # by world, while it is taken over

    # -- opening -------------------------------------------------------------------------------

    async def open(self, world: World, request: OpenRequest) -> Shell:
        """Open a shell; the same shell_id gives the shell that is there.

        Raises:
            InvalidField: the id or the directory cannot be used.
            ServiceError: WORLD_LOST, SHELL_ENDED it was there and has ended, TOO_LARGE.
        """
        if _SHELL_ID.fullmatch(request.shell_id) is None:
            raise InvalidField("shell_id", request.shell_id, "expected 1 to 48 of [A-Za-z0-9_.-]")
        if world.lost:
            raise ServiceError("WORLD_LOST", f"world {world.spec.world_id} ended unexpectedly")
        _require_there(world)
        world.require_running()
        known = world.shells.get(request.shell_id)
        if known is not None:
            return _living(known)  # its turn may be a command's, that a rollback is to end
        if len(world.shells) >= _SHELLS_MAX:
            raise ServiceError("TOO_LARGE", f"a world has at most {_SHELLS_MAX} shells; close some")
        async with world.gate.shared(), self._handle(world, request.shell_id).turn:
            known = world.shells.get(request.shell_id)
            if known is not None:
                return _living(known)
            shell = self._new(world, request)
            await self._start(world, shell)
            return shell

    def _new(self, world: World, request: OpenRequest) -> Shell:
        spec = world.spec
        cwd = request.cwd if request.cwd is not None else spec.cwd
        cwd = os.path.normpath(os.path.join(spec.cwd, cwd))
        directory = shells_directory(world.directory)
        directory.mkdir(mode=0o700, exist_ok=True)
        return Shell(
            shell_id=request.shell_id,
            path=directory / f"{request.shell_id}.json",
            argv=dialect(world.spec.shell).argv,
            env=dict(request.env),
            cwd=cwd,
        )

    async def _start(self, world: World, shell: Shell) -> None:
        how = dialect_of(shell.argv)
        env = {**dict(world.spec.env), **shell.env, b"PWD": shell.cwd, **OWN_ENV}
        env.pop(b"ENV", None)  # read by an interactive sh
        nothing = os.open(os.devnull, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        try:
            started = await world.init.start(
                ExecStart(
                    exec_id=shell.init_id,
                    argv=shell.argv,
                    env=tuple(name + b"=" + value for name, value in sorted(env.items())),
                    cwd=shell.cwd,
                    user=world.spec.user,
                    stdin=True,
                    shell_fd=how.first_fd,
                    rlimits=process_limits(world.spec.limits),
                ),
                nothing,
            )
        except StartFailed as error:
            raise ServiceError("SHELL_ENDED", f"the shell could not be started: {error}") from error
        except InitGone as error:
            raise ServiceError("WORLD_LOST", f"world {world.spec.world_id} has ended") from error
        finally:
            os.close(nothing)
        shell.pid, shell.started_ns = started.pid, started.start_mono_ns
        shell.save()
        world.shells[shell.shell_id] = shell
        world.touch()

    # -- running -------------------------------------------------------------------------------

    async def run(
        self, world: World, shell_id: str, request: ExecRequest, stdin: bytes = b""
    ) -> Exec:
        """Give a shell a command, after those before it; the same exec_id gives the same step.

        Raises:
            ServiceError: SHELL_NOT_FOUND, SHELL_ENDED, and as :meth:`Execs.start`.
        """
        shell = self.get(world, shell_id)
        if (known := self._execs.find(world, request.exec_id)) is not None:
            return known
        turn = self._handle(world, shell_id).turn
        await turn.acquire()
        # A client that goes now leaves a step that is being decided about: the turn is still its.
        return await asyncio.shield(
            asyncio.create_task(self._take_turn(world, shell, request, stdin, turn))
        )

    async def _take_turn(
        self, world: World, shell: Shell, request: ExecRequest, stdin: bytes, turn: asyncio.Lock
    ) -> Exec:
        try:
            if (known := self._execs.find(world, request.exec_id)) is not None:
                turn.release()
                return known
            _require_there(world)  # it was, when this command began to wait for its turn
            exec_ = await self._run(world, _living(shell), request, stdin)
        except BaseException:
            if turn.locked():
                turn.release()
            raise
        release = asyncio.create_task(self._release(shell, exec_, turn))
        self._releases.add(release)
        release.add_done_callback(self._releases.discard)
        return exec_

    async def _run(self, world: World, shell: Shell, request: ExecRequest, stdin: bytes) -> Exec:
        shell.running = request.exec_id

        async def begin(exec_: Exec, identity: Mapping[bytes, bytes]) -> Ended | None:
            if self._handle(world, shell.shell_id).interrupted == exec_.exec_id:
                shell.status = 128 + signal.SIGINT
                return Ended.interrupted()
            return await _give(world, shell, exec_, identity, stdin)

        return await self._execs.start(
            world,
            _in_shell(request, shell),
            begin,
        )

    @staticmethod
    async def _release(shell: Shell, exec_: Exec, turn: asyncio.Lock) -> None:
        """Let the next command come when one is recorded."""
        await exec_.done.wait()
        shell.running = ""
        turn.release()

    async def interrupt(self, world: World, shell_id: str) -> None:
        """Interrupt what a shell runs, as Ctrl-C does; nothing where it runs nothing."""
        shell = self.get(world, shell_id)
        running = shell.running
        if not running:
            return
        try:
            await world.init.signal(running, signal.SIGINT, scope=Scope.GROUP)
        except InitError as error:
            if error.error == errno.ENOENT:  # the broker still thinks about it, or it has ended
                self._handle(world, shell_id).interrupted = running
        except InitGone:
            pass

    async def close(self, world: World, shell_id: str) -> None:
        """End a shell and all that runs in it, and forget it. Raises ServiceError."""
        shell = self.get(world, shell_id)
        if not shell.ended:
            await self._end(world, shell)
        elif (handle := self._handle(world, shell_id)).dying:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(handle.gone.wait(), _END_S)
        with contextlib.suppress(InitError, InitGone):
            await world.init.forget(shell.init_id)
        world.shells.pop(shell_id, None)
        self._handles.pop((world.spec.world_id, shell_id), None)
        shell.path.unlink(missing_ok=True)

    async def _end(self, world: World, shell: Shell) -> None:
        gone = self._handle(world, shell.shell_id).gone
        try:
            if not shell.running:
                await world.init.write_stdin(shell.init_id, b"", eof=True)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(gone.wait(), _FAREWELL_S)
            with contextlib.suppress(InitError):
                await world.init.kill(shell.init_id)
            await asyncio.wait_for(gone.wait(), _END_S)
        except TimeoutError:
            log.warning("shell %s is killed and has not ended", shell.shell_id)
        except InitGone:
            pass

    async def forget(self, world: World) -> None:
        """Drop what is kept of the shells of a world that is taken down."""
        for key in [key for key in self._handles if key[0] == world.spec.world_id]:
            del self._handles[key]

    # -- finding -------------------------------------------------------------------------------

    def get(self, world: World, shell_id: str) -> Shell:
        """The shell. Raises ServiceError SHELL_NOT_FOUND."""
        shell = world.shells.get(shell_id)
        if shell is None:
            raise ServiceError(
                "SHELL_NOT_FOUND", f"world {world.spec.world_id} has no shell {shell_id!r}"
            )
        return shell

    def _handle(self, world: World, shell_id: str) -> _Handle:
        return self._handles.setdefault((world.spec.world_id, shell_id), _Handle())

    async def recover(self, worlds: list[World]) -> None:
        """Take over the shells that an earlier host process opened; before its execs."""
        for world in worlds:
            states: dict[str, ExecState] = {}
            if not world.lost:
                states = {state.exec_id: state for state in await world.init.status()}
            self._left[world.spec.world_id] = states
            for shell in load_shells(world.directory):
                world.shells[shell.shell_id] = shell
                state = states.get(shell.init_id)
                if state is None:
                    self._note_end(world, shell, "was lost with what ran it")
                else:
                    shell.pid, shell.started_ns = state.pid, state.start_mono_ns
                    if state.phase is Phase.EXITED:
                        self._note_end(world, shell, _how(state))

    async def resume(self, worlds: list[World]) -> None:
        """Let shells wait for the commands that an earlier host process gave them."""
        for world in worlds:
            for exec_ in self._execs.all(world):
                step = exec_.start.shell
                shell = world.shells.get(step.shell_id) if step is not None else None
                if shell is None:
                    continue
                state = self._left[world.spec.world_id].get(exec_.exec_id)
                if state is not None and state.phase is Phase.EXITED:
                    _came_back(shell, state)  # while no host was there
                if exec_.phase == "finished":
                    continue
                shell.running = exec_.exec_id
                turn = self._handle(world, shell.shell_id).turn
                await turn.acquire()
                release = asyncio.create_task(self._release(shell, exec_, turn))
                self._releases.add(release)
                release.add_done_callback(self._releases.discard)
        self._left.clear()

    # -- hearing -------------------------------------------------------------------------------

    def output_grew(self, world: World, exec_id: str) -> None:
        """See :class:`Listener`."""

    def exec_exited(self, world: World, state: ExecState) -> None:
        """See :class:`Listener`."""
        for shell in world.shells.values():
            if state.exec_id == shell.init_id:
                self._note_end(world, shell, _how(state))
            elif state.exec_id == shell.running:
                _came_back(shell, state)
                if state.shell_ended:
                    # Its own end is heard later: what it left is waited for, no command may be.
                    self._handle(world, shell.shell_id).dying = True
                    self._keep_end(shell, _how(state))

    def world_lost(self, world: World) -> None:
        """See :class:`Listener`."""
        for shell in world.shells.values():
            self._note_end(world, shell, "was lost with its world")

    def _note_end(self, world: World, shell: Shell, how: str) -> None:
        self._keep_end(shell, how)
        self._handle(world, shell.shell_id).gone.set()

    @staticmethod
    def _keep_end(shell: Shell, how: str) -> None:
        if not shell.ended:
            shell.ended = how
            with contextlib.suppress(OSError):  # the world's directory goes, or the disk is full
                shell.save()


def _came_back(shell: Shell, state: ExecState) -> None:
    """Note where a shell's command has left it."""
    shell.cwd = state.directory or shell.cwd
    shell.status = state.exit_code if state.exit_code is not None else 0
    with contextlib.suppress(OSError):  # the disk is full; the command's end is still to be heard
        shell.save()


def _require_there(world: World) -> None:
    if world.removing:
        raise ServiceError("WORLD_NOT_FOUND", f"world {world.spec.world_id} was removed meanwhile")


def _living(shell: Shell) -> Shell:
    if shell.ended:
        raise ServiceError(
            "SHELL_ENDED",
            f"shell {shell.shell_id} {shell.ended}; restart it, or close it and open another",
            {"shell_id": shell.shell_id},
        )
    return shell


def _how(state: ExecState) -> str:
    if state.spoiled:
        return "was ended: a command wrote to the pipe that the shell reports on"
    if state.exit_code is not None:
        return f"ended with exit code {state.exit_code}"
    if state.signal is not None:
        return f"was ended by {signal_name(state.signal)}"
    return "ended"


def _in_shell(request: ExecRequest, shell: Shell) -> ExecRequest:
    """The command as a step: where the shell is, with what it was opened with."""
    return replace(
        request,
        env=shell.env,
        cwd=shell.cwd,
        in_shell=ShellStep(shell.shell_id, shell.number + 1),
    )


async def _give(
    world: World, shell: Shell, exec_: Exec, identity: Mapping[bytes, bytes], stdin: bytes
) -> Ended | None:
    """Let the world's init give a command to a shell; how it ended where it does not run."""
    how = dialect_of(shell.argv)
    word = secrets.token_hex(16)
    text = exec_.start.action.command.shell
    assert text is not None
    if stdin:
        (exec_.directory / STDIN_FILE).write_bytes(stdin)
    log_fd = os.open(exec_.output_log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        await world.init.run_in_shell(
            ShellRun(
                shell_id=shell.init_id,
                exec_id=exec_.exec_id,
                word=word,
                text=command_text(
                    how, text, env=identity, status=shell.status, has_stdin=bool(stdin)
                ),
                trailer=trailer_text(how, word),
                stdin=stdin,
                timeout_s=world.spec.limits.timeout_s(exec_.start.action.timeout_s),
                output_limit_bytes=world.spec.limits.output_limit_bytes,
            ),
            log_fd,
        )
    except StartFailed as error:
        busy = "is still at the command before, which cannot be ended"
        return Ended.in_lost_shell(
            shell.ended or ("has ended" if error.error == errno.ESRCH else busy)
        )
    except InitGone:
        return Ended.lost()
    finally:
        os.close(log_fd)
    shell.number += 1
    with contextlib.suppress(OSError):  # it runs, and its end is to be heard
        shell.save()
    exec_.pid = shell.pid
    exec_.start = with_first_pid(exec_.start, shell.pid)
    return None
