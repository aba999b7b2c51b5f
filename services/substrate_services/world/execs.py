"""Commands in worlds: decided, started, followed, and recorded when they end.

The order of a step: the broker decides, ``command_start`` is journalled and the exec's own file
written, the world's init starts it, its output goes to the output log; when it has ended, output
and changed files become objects, telemetry is decoded, and ``command_complete`` is journalled and
on disk before anybody is told.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import resource
import shutil
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, Protocol

from substrate_services.errors import InvalidField, ServiceError
from substrate_services.journal.codec import (
    SpanStart,
    start_from_line,
    start_to_line,
)
from substrate_services.journal.jsontypes import compact_bytes
from substrate_services.journal.reader import JournalReader
from substrate_services.journal.schema import (
    Action,
    Command,
    Decision,
    SpanRecord,
)
from substrate_services.journal.writer import Journal
from substrate_services.objects.store import ObjectStore
from substrate_services.world.ended import Ended
from substrate_services.world.file_kinds import FILES_KINDS, FilesKind
from substrate_services.world.ids import EXEC_ID, LOOK_PREFIX, new_span_id
from substrate_services.world.init_client import (
    ExecStart,
    ExecState,
    InitError,
    InitGone,
    Phase,
    Rlimit,
    Scope,
    StartFailed,
)
from substrate_services.world.output_log import OutputFollower, Stream, encode_frame
from substrate_services.world.recording import Attempt, Recorder
from substrate_services.world.worlds import World, Worlds

log = logging.getLogger(__name__)

StepKind = Literal["exec", FilesKind, "apply", "discard", "rollback"]
#: Steps that the host itself does, without the world's init.
HOST_KINDS = ("apply", "discard", "rollback")
DEFAULT_UMASK = 0o022
OUTPUT_LIMIT_BYTES = 256 << 20
# Until worlds have limits of their own (cgroups): each has its own range of ids, so this counts
# the processes and threads of one world, and a fork bomb in it leaves the host usable.
PROCESS_LIMIT = 4_096
FILES_PROGRAM = b"substrate-files"  # argv[0] of a recorded Files step
_EXEC_FILE = "exec.json"
_STDIN_FILE = "stdin"
_OUTCOME_FILE = "outcome"
_FEED_BYTES = 256 << 10


@dataclass(frozen=True, slots=True)
class ExecRequest:
    """What a client asks for; see StartExecRequest in the contract.

    Exactly one of ``argv``, ``shell`` and ``recorded_span_id`` is given.
    """

    exec_id: str
    argv: tuple[bytes, ...] = ()
    shell: bytes | None = None
    recorded_span_id: str | None = None
    kind: StepKind = "exec"
    env: Mapping[bytes, bytes] = field(default_factory=dict)
    cwd: bytes | None = None
    user: str = ""
    umask: int | None = None
    stdin_pipe: bool = False
    stdin_digest: str | None = None
    pty: tuple[int, int] | None = None  # rows, columns
    timeout_s: float | None = None
    session_id: str = ""
    agent_id: str = ""
    traceparent: str = ""


@dataclass(slots=True)
class Exec:
    """A step that this host process knows."""

    start: SpanStart
    directory: Path
    phase: Literal["running", "recording", "finished"] = "running"
    pid: int = 0
    record: SpanRecord | None = None
    failure: Exception | None = None  # why there is no record
    ended: Ended | None = None
    attempt: Attempt | None = None
    shared: bool = False  # something else ran in the world meanwhile
    stdin_pipe: bool = False
    stdin_received: int = 0
    killed_by_user: bool = False
    recording: asyncio.Lock = field(default_factory=asyncio.Lock)
    done: asyncio.Event = field(default_factory=asyncio.Event)
    output: OutputFollower = field(init=False)

    def __post_init__(self) -> None:
        self.output = OutputFollower(self.output_log)

    @property
    def exec_id(self) -> str:
        """As the client chose it."""
        return self.start.exec_id

    @property
    def output_log(self) -> Path:
        """The framed output log."""
        return self.directory / "output.log"


class Decider(Protocol):
    """Asks the broker."""

    async def decide(self, world: World, action: Action, kind: StepKind) -> Decision:
        """The broker's answer. Raises ServiceError where it cannot be had."""


class Execs:
    """Starts and records the execs of one host.

    Args:
        worlds: the host's worlds.
        store: the host's objects.
        journal: the host's journal.
        reader: reads the same journal.
        decider: asks the broker.
        recorder: turns an ended exec into a record.
    """

    def __init__(
        self,
        *,
        worlds: Worlds,
        store: ObjectStore,
        journal: Journal,
        reader: JournalReader,
        decider: Decider,
        recorder: Recorder,
    ) -> None:
        self._worlds = worlds
        self._store = store
        self._journal = journal
        self._reader = reader
        self._decider = decider
        self._recorder = recorder
        self._execs: dict[str, dict[str, Exec]] = {}
        self._starting: dict[tuple[str, str], asyncio.Task[Exec]] = {}
        self._recording: set[asyncio.Task[None]] = set()

    # -- starting ------------------------------------------------------------------------------

    async def start(self, world: World, request: ExecRequest) -> Exec:
        """Decide about a command and start it; the same exec_id gives the same exec.

        Raises:
            InvalidField: a field of the request cannot be used.
            ServiceError: WORLD_LOST, SPAN_NOT_FOUND, OBJECT_MISSING, DISK_FULL.
        """
        if EXEC_ID.fullmatch(request.exec_id) is None:
            raise InvalidField("exec_id", request.exec_id, "expected 1 to 64 of [A-Za-z0-9_.-]")
        if request.exec_id.startswith(LOOK_PREFIX):
            raise InvalidField("exec_id", request.exec_id, f"{LOOK_PREFIX}… is taken; use another")
        known = self._find(world, request.exec_id)
        if known is not None:
            return known
        key = (world.spec.world_id, request.exec_id)
        task = self._starting.get(key)
        if task is None:
            task = asyncio.create_task(self._start(world, request))
            self._starting[key] = task
            task.add_done_callback(lambda _done: self._starting.pop(key, None))
        return await asyncio.shield(task)

    async def _start(self, world: World, request: ExecRequest) -> Exec:
        if world.lost:
            raise ServiceError(
                "WORLD_LOST",
                f"world {world.spec.world_id} ended unexpectedly; its records are kept, "
                "make another world",
            )
        # A rollback is not to find a command that is about to start.
        async with world.gate.shared():
            return await self._decide_and_start(world, request)

    async def _decide_and_start(self, world: World, request: ExecRequest) -> Exec:
        world.touch()
        action, replay_of, kind = self._resolve(world, request)
        decision = await self._decider.decide(world, action, kind)
        exec_ = self._begin(world, request, kind, action, decision=decision, replay_of=replay_of)
        try:
            if is_denied(decision):
                await self._finish(world, exec_, Ended.denied(decision))
                return exec_
            await self._start_in_box(world, exec_, request)
        except BaseException:
            self._execs[world.spec.world_id].pop(request.exec_id, None)
            raise
        return exec_

    def _begin(
        self,
        world: World,
        request: ExecRequest,
        kind: StepKind,
        action: Action,
        *,
        decision: Decision,
        replay_of: SpanRecord | None = None,
    ) -> Exec:
        """Journal that a step begins."""
        action = replace(action, policy_hash=decision.policy_hash)
        caller_trace, caller_span = _caller(request.traceparent)
        start = SpanStart(
            span_id=new_span_id(),
            trace_id=caller_trace or world.spec.trace_id,
            session_id=request.session_id or world.spec.session_id,
            world_id=world.spec.world_id,
            exec_id=request.exec_id,
            kind=kind,
            agent_id=request.agent_id or world.spec.agent_id,
            parent_span=caller_span,
            start_time=time.time(),
            action=action,
            decision=decision,
            replay_of=replay_of.span_id if replay_of is not None else None,
            replay_of_trace=replay_of.trace_id if replay_of is not None else None,
            labels=world.spec.labels,
            utc_offset_ns=_boot_to_utc_ns(),
            project=world.spec.project.root if world.spec.project is not None else None,
        )
        exec_ = Exec(start, world.directory / "execs" / request.exec_id)
        exec_.stdin_pipe = request.stdin_pipe
        exec_.directory.mkdir(mode=0o700, exist_ok=True)
        self._execs.setdefault(world.spec.world_id, {})[request.exec_id] = exec_
        try:
            self._journal.append(start_to_line(start))
            _write_exec_file(exec_.directory, start)
        except BaseException:
            self._execs[world.spec.world_id].pop(request.exec_id, None)
            raise
        return exec_

    # -- steps that the host does itself -------------------------------------------------------

    async def begin_host_step(
        self, world: World, request: ExecRequest, answer: Callable[[Decision], Decision]
    ) -> Exec:
        """Decide about a step that needs no init, and journal that it begins.

        Args:
            world: where it belongs.
            request: its id, kind, and as argv its words.
            answer: what becomes of the broker's answer, as the person who asks may answer it.

        Returns:
            The step: finished where it was denied, else to be ended by :meth:`end_host_step`.
        """
        world.touch()
        action, _replay_of, kind = self._resolve(world, request)
        decision = answer(await self._decider.decide(world, action, kind))
        exec_ = self._begin(world, request, kind, action, decision=decision)
        if is_denied(decision):
            await self._finish(world, exec_, Ended.denied(decision))
        else:
            world.running += 1
        return exec_

    async def end_host_step(self, world: World, exec_: Exec, ended: Ended) -> SpanRecord:
        """Record a step of :meth:`begin_host_step`."""
        await self._finish(world, exec_, ended)
        return await self.wait(world, exec_)

    def find(self, world: World, exec_id: str) -> Exec | None:
        """The exec; None where there is none."""
        return self._find(world, exec_id)

    async def _start_in_box(self, world: World, exec_: Exec, request: ExecRequest) -> None:
        action = exec_.start.action
        argv = action.command.argv
        builtin = exec_.start.kind in FILES_KINDS
        # A replayed terminal hears what was typed, or at once that nothing more will be.
        fed = action.stdin_digest is not None or (action.pty and not request.stdin_pipe)
        env = dict(_identity_env(self._original(exec_.start)))
        env.update(action.env)
        log_fd = os.open(
            exec_.output_log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600
        )
        await self._mark_shared(world, exec_)
        world.running += 1
        try:
            started = await world.init.start(
                ExecStart(
                    exec_id=exec_.exec_id,
                    argv=argv[1:] if builtin else argv,
                    env=tuple(name + b"=" + value for name, value in sorted(env.items())),
                    cwd=action.cwd,
                    umask=action.umask,
                    user=action.user,
                    timeout_s=action.timeout_s,
                    pty=action.pty_size,
                    stdin=fed or request.stdin_pipe,
                    builtin=builtin,
                    output_limit_bytes=OUTPUT_LIMIT_BYTES,
                    rlimits=(Rlimit(resource.RLIMIT_NPROC, PROCESS_LIMIT, PROCESS_LIMIT),),
                    last_pid=action.first_pid - 1 if action.first_pid is not None else None,
                ),
                log_fd,
            )
        except StartFailed as error:
            world.running -= 1
            await self._finish(world, exec_, Ended.not_started(error))
            return
        except InitGone:
            await self._finish(world, exec_, Ended.lost())
            return
        finally:
            os.close(log_fd)
        exec_.pid = started.pid
        exec_.start = _with_first_pid(exec_.start, started.pid)
        if fed:
            self._track(self._feed(world, exec_, action.stdin_digest))

    async def _mark_shared(self, world: World, exec_: Exec) -> None:
        """Say of all that runs in the world at the same time that it does.

        The changes of a step are what differs between two walks, so they are the step's own only
        if nothing else was at work.
        """
        others = [
            other
            for other in self._execs.get(world.spec.world_id, {}).values()
            if other is not exec_ and other.phase != "finished" and other.pid
        ]
        for other in others:
            other.shared = True
        left_running = False
        if world.has_background:
            # What an earlier command left behind may have ended by now.
            running = {other.exec_id for other in others}
            processes = await world.init.processes()
            left_running = any(
                process.exec_id
                and process.exec_id not in running
                and not process.exec_id.startswith(LOOK_PREFIX)
                for process in processes
            )
            world.has_background = left_running
        exec_.shared = bool(others) or left_running

    def _resolve(
        self, world: World, request: ExecRequest
    ) -> tuple[Action, SpanRecord | None, StepKind]:
        """Everything that determines the exec, from the request or from a recording."""
        if request.recorded_span_id is not None:
            record = self._reader.find_span(request.recorded_span_id)
            if record is None:
                raise ServiceError(
                    "SPAN_NOT_FOUND", f"no span {request.recorded_span_id!r} is recorded here"
                )
            action = replace(record.action, snapshot_id=world.tree.snapshot_id)
            return action, record, FILES_KINDS.get(record.kind, "exec")
        spec = world.spec
        command = _command(request)
        env = dict(spec.env)
        env.update(request.env)
        cwd = request.cwd if request.cwd is not None else spec.cwd
        if not cwd.startswith(b"/"):
            cwd = os.path.normpath(os.path.join(spec.cwd, cwd))
        env[b"PWD"] = cwd
        action = Action(
            command=command,
            cwd=cwd,
            env=tuple(sorted(env.items())),
            umask=DEFAULT_UMASK if request.umask is None else request.umask,
            user=request.user or spec.user,
            stdin_digest=request.stdin_digest,
            snapshot_id=world.tree.snapshot_id,
            timeout_s=request.timeout_s,
            pty=request.pty is not None,
            pty_size=request.pty,
            profile=spec.profile,
            network=spec.network,
        )
        return action, None, request.kind

    def _original(self, start: SpanStart) -> SpanStart | SpanRecord:
        """The step whose place in the trace the command is told; a replay is told the recorded."""
        step: SpanStart | SpanRecord = start
        while step.replay_of is not None:
            recorded = self._reader.find_span(step.replay_of)
            if recorded is None:
                break
            step = recorded
        return step

    # -- while it runs -------------------------------------------------------------------------

    async def _feed(self, world: World, exec_: Exec, digest: str | None, *, taken: int = 0) -> None:
        """Give a recorded standard input to a command; None is an empty one.

        ``taken`` bytes of it the world's init has already, from an earlier host process.
        """
        offset = 0
        if digest is not None:
            with await asyncio.to_thread(self._store.open, digest) as source:
                while chunk := await asyncio.to_thread(source.read, _FEED_BYTES):
                    begin, offset = offset, offset + len(chunk)
                    if offset <= taken:
                        continue
                    sent = await world.init.write_stdin(exec_.exec_id, chunk, offset=begin)
                    if sent < offset:
                        return  # closed by the command
        await world.init.write_stdin(exec_.exec_id, b"", offset=offset, eof=True)

    async def write_stdin(
        self, world: World, exec_id: str, offset: int, data: bytes, *, eof: bool
    ) -> int:
        """Write to an exec's standard input; returns the bytes taken so far.

        Raises:
            ServiceError: EXEC_NOT_FOUND, STDIN_CLOSED, OFFSET_BEYOND_END.
        """
        exec_ = self.get(world, exec_id)
        if not exec_.stdin_pipe:
            raise ServiceError(
                "STDIN_CLOSED",
                f"exec {exec_id} was started without a standard input; ask for STDIN_MODE_PIPE",
            )
        if offset > exec_.stdin_received:
            raise ServiceError(
                "OFFSET_BEYOND_END",
                f"offset {offset} of standard input is beyond the {exec_.stdin_received} bytes "
                "received; send the bytes between first",
            )
        fresh = data[exec_.stdin_received - offset :]
        if exec_.phase != "running":
            if not fresh:
                return exec_.stdin_received  # closing what is closed changes nothing
            raise ServiceError("STDIN_CLOSED", f"exec {exec_id} has ended")
        if fresh:
            with (exec_.directory / _STDIN_FILE).open("ab") as kept:
                kept.write(fresh)
        begin = exec_.stdin_received
        exec_.stdin_received += len(fresh)
        try:
            await world.init.write_stdin(exec_id, fresh, offset=begin, eof=eof)
        except InitGone as error:
            raise ServiceError("STDIN_CLOSED", f"exec {exec_id} has ended") from error
        return exec_.stdin_received

    async def signal(self, world: World, exec_id: str, number: int, *, tree: bool) -> None:
        """Signal an exec; one that has ended is left alone. Raises ServiceError EXEC_NOT_FOUND."""
        exec_ = self.get(world, exec_id)
        if exec_.phase == "running":
            exec_.killed_by_user = True
            scope = Scope.TREE if tree else Scope.MAIN
            with contextlib.suppress(InitError, InitGone):  # it has ended meanwhile
                await world.init.signal(exec_id, number, scope=scope)

    async def resize(self, world: World, exec_id: str, rows: int, columns: int) -> None:
        """Change the size of an exec's terminal. Raises ServiceError EXEC_NOT_FOUND, NO_PTY."""
        exec_ = self.get(world, exec_id)
        if not exec_.start.action.pty:
            raise ServiceError("NO_PTY", f"exec {exec_id} has no terminal; start it with one")
        if exec_.phase == "running":
            await world.init.resize(exec_id, rows, columns)

    # -- finding -------------------------------------------------------------------------------

    def get(self, world: World, exec_id: str) -> Exec:
        """The exec. Raises ServiceError EXEC_NOT_FOUND."""
        exec_ = self._find(world, exec_id)
        if exec_ is None:
            raise ServiceError(
                "EXEC_NOT_FOUND", f"world {world.spec.world_id} has no exec {exec_id!r}"
            )
        return exec_

    def all(self, world: World) -> list[Exec]:
        """The execs of a world, oldest first."""
        known = self._execs.get(world.spec.world_id, {}).values()
        return sorted(known, key=lambda exec_: exec_.start.start_time)

    def _find(self, world: World, exec_id: str) -> Exec | None:
        return self._execs.get(world.spec.world_id, {}).get(exec_id)

    # -- ending --------------------------------------------------------------------------------

    def output_grew(self, world: World, exec_id: str) -> None:
        """See :class:`~substrate_services.world.worlds.Listener`."""
        exec_ = self._find(world, exec_id)
        if exec_ is not None:
            exec_.output.grew()

    def exec_exited(self, world: World, state: ExecState) -> None:
        """See :class:`Listener`."""
        exec_ = self._find(world, state.exec_id)
        if exec_ is not None and exec_.phase == "running":
            ended = Ended.of(state, killed_by_user=exec_.killed_by_user)
            self._track(self._finish(world, exec_, ended))

    def world_lost(self, world: World) -> None:
        """The world's init is gone: its execs have ended, and nobody saw how."""
        for exec_ in self.all(world):
            if exec_.phase == "running" and exec_.start.kind not in HOST_KINDS:
                self._track(self._finish(world, exec_, Ended.lost()))

    async def end_all(self, world: World) -> None:
        """Record the execs that a removal of the world has ended."""
        for exec_ in self.all(world):
            if exec_.phase == "running" and exec_.start.kind not in HOST_KINDS:
                await self._finish(world, exec_, Ended.removed())
            await exec_.done.wait()
        self._execs.pop(world.spec.world_id, None)

    async def wait(self, world: World, exec_: Exec) -> SpanRecord:
        """Wait for the end of an exec and its record.

        Raises what made recording fail; the next call tries again.
        """
        await exec_.done.wait()
        if exec_.record is None and exec_.ended is not None:
            await self._finish(world, exec_, exec_.ended)
        if exec_.record is None:
            raise exec_.failure or InitGone(f"exec {exec_.exec_id} was lost")
        return exec_.record

    async def _finish(self, world: World, exec_: Exec, ended: Ended) -> None:
        """Record an exec that has ended. Only one call at a time may be under way."""
        again = exec_.ended is not None
        exec_.phase = "recording"
        exec_.ended = ended
        world.has_background = world.has_background or ended.remaining > 0
        if ended.message and not again:
            # There was no program to say it; clients hear it where the program's words would be.
            with exec_.output_log.open("ab") as log:
                log.write(encode_frame(time.monotonic_ns(), Stream.STDERR, ended.message))
        exec_.output.finish()
        if exec_.attempt is None:
            exec_.attempt = Attempt(exec_.start, exec_.directory, shared=exec_.shared)
        try:
            async with exec_.recording:
                if exec_.record is None:
                    exec_.record = await self._recorder.record(world, exec_.attempt, ended)
        except Exception as error:
            exec_.failure = error
            raise
        finally:
            if not again and not ended.never_ran:
                world.running -= 1
            exec_.phase = "finished"
            exec_.done.set()
            world.touch()
        by_init = exec_.start.kind not in HOST_KINDS
        if by_init and not ended.never_ran and not world.lost and not world.removing:
            with contextlib.suppress(InitGone):
                await world.init.forget(exec_.exec_id)

    def _track(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._recording.add(task)
        task.add_done_callback(self._recording.discard)
        task.add_done_callback(_report)

    async def drain(self) -> None:
        """Wait until everything that has ended is recorded."""
        while self._recording:
            await asyncio.gather(*self._recording, return_exceptions=True)

    # -- finding again -------------------------------------------------------------------------

    async def recover(self, worlds: list[World]) -> None:
        """Take over the execs that an earlier host process left, and record those that ended.

        Of a world whose init is gone, all have ended.
        """
        for world in worlds:
            states: dict[str, ExecState] = {}
            if not world.lost:
                states = {state.exec_id: state for state in await world.init.status()}
            for exec_ in self._read_execs(world.directory):
                state = states.get(exec_.exec_id)
                if state is None and not world.lost and _was_never_told(exec_):
                    # Nobody was told that it began: whoever asked asks again, and it begins then.
                    shutil.rmtree(exec_.directory)
                    continue
                self._execs.setdefault(world.spec.world_id, {})[exec_.exec_id] = exec_
                if exec_.phase == "finished":
                    if state is not None and state.phase is Phase.EXITED:
                        await world.init.forget(exec_.exec_id)
                    continue
                world.running += 1
                if state is not None:
                    exec_.start = _with_first_pid(exec_.start, state.pid)
                if state is None:
                    self._track(self._finish(world, exec_, outcome_of(exec_)))
                elif state.phase is Phase.EXITED:
                    self._track(self._finish(world, exec_, Ended.of(state, killed_by_user=False)))
                else:
                    exec_.pid = state.pid
                    digest = exec_.start.action.stdin_digest
                    if exec_.start.kind in FILES_KINDS and digest is not None:
                        # Nobody but us ever feeds it: without the rest it would wait for ever.
                        taken = state.stdin_received
                        self._track(self._feed(world, exec_, digest, taken=taken))

    def _read_execs(self, directory: Path) -> list[Exec]:
        found = []
        try:
            listed = sorted((directory / "execs").iterdir())
        except FileNotFoundError:
            return []  # half removed: there is nothing left to record
        for exec_directory in listed:
            if not exec_directory.is_dir():
                continue  # what a look left behind
            try:
                line = json.loads((exec_directory / _EXEC_FILE).read_bytes())
                exec_ = Exec(start_from_line(line), exec_directory)
            except (OSError, ValueError) as error:
                log.warning("exec %s was not started (%s)", exec_directory.name, error)
                continue
            exec_.record = self._reader.find_span(exec_.start.span_id)
            if exec_.record is not None:
                exec_.phase = "finished"
                exec_.done.set()
            stdin = exec_directory / _STDIN_FILE
            if stdin.exists():
                exec_.stdin_pipe = True
                exec_.stdin_received = stdin.stat().st_size
            found.append(exec_)
        return found


def _was_never_told(exec_: Exec) -> bool:
    """Whether a host ended between noting a step down and having a living init begin it."""
    return (
        exec_.phase != "finished"
        and exec_.start.kind not in HOST_KINDS
        and not (exec_.directory / _OUTCOME_FILE).exists()
    )


def note_outcome(exec_: Exec, message: bytes = b"") -> Ended:
    """Keep on disk that a step of the host's own is done, before its record is made."""
    scratch = exec_.directory / f"{_OUTCOME_FILE}.new"
    scratch.write_bytes(message)
    scratch.replace(exec_.directory / _OUTCOME_FILE)
    return outcome_of(exec_)


def outcome_of(exec_: Exec) -> Ended:
    """How a step ended whose end this process has not seen."""
    try:
        message = (exec_.directory / _OUTCOME_FILE).read_bytes()
    except FileNotFoundError:
        return Ended.lost()
    took_ns = max(0, time.time_ns() - round(exec_.start.start_time * 1e9))
    return Ended("EXITED", 0, duration_ns=took_ns, message=message)


def is_denied(decision: Decision) -> bool:
    """Whether a step may not go on."""
    return decision.enforced and decision.action != "allow"


def _command(request: ExecRequest) -> Command:
    if request.shell is not None:
        shell = b"/bin/bash" if os.path.exists("/bin/bash") else b"/bin/sh"
        return Command((shell, b"-c", request.shell), request.shell)
    if not request.argv or not request.argv[0]:
        raise InvalidField("argv", list(request.argv), "expected a program and its arguments")
    return Command(request.argv)


def _with_first_pid(start: SpanStart, pid: int) -> SpanStart:
    """Known only once it runs; a host that takes over hears it from the world's init."""
    return replace(start, action=replace(start.action, first_pid=pid))


def _identity_env(step: SpanStart | SpanRecord) -> dict[bytes, bytes]:
    """The command's own place in the trace, for its environment.

    W3C traceparent as the OpenTelemetry environment carriers put it; the SUBSTRATE_ names are
    those of the original format. No part of the action: two runs of one command are one action.
    """
    return {
        b"TRACEPARENT": f"00-{step.trace_id}-{step.span_id}-01".encode(),
        b"SUBSTRATE_SESSION_ID": step.session_id.encode(),
        b"SUBSTRATE_PARENT_SPAN": step.span_id.encode(),
        b"SUBSTRATE_WORLD_ID": step.world_id.encode(),
    }


def _caller(traceparent: str) -> tuple[str | None, str | None]:
    """Trace and span of the caller, from a traceparent that the edge has checked."""
    parts = traceparent.split("-")
    return (parts[1], parts[2]) if len(parts) >= 4 else (None, None)


def _boot_to_utc_ns() -> int:
    return time.time_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def _write_exec_file(directory: Path, start: SpanStart) -> None:
    scratch = directory / f"{_EXEC_FILE}.new"
    scratch.write_bytes(compact_bytes(start_to_line(start)) + b"\n")
    scratch.replace(directory / _EXEC_FILE)


def _report(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("recording a step failed", exc_info=error)
