"""Commands in worlds: decided, started, followed, and recorded when they end.

The order of a step: the broker decides, ``command_start`` is journalled and the exec's own file
written, the world's init starts it, its output goes to the output log; when it has ended, output
and changed files become objects, telemetry is decoded, and ``command_complete`` is journalled and
on disk before anybody is told.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import time
from collections.abc import Callable, Coroutine

from substrate_services.errors import InvalidField, ServiceError
from substrate_services.journal.codec import start_to_line
from substrate_services.journal.reader import JournalReader
from substrate_services.journal.schema import Action, Decision, SpanRecord
from substrate_services.journal.writer import Journal
from substrate_services.objects.store import ObjectStore
from substrate_services.world.actions import Actions, identity_env, span_start, with_first_pid
from substrate_services.world.ended import Ended
from substrate_services.world.feeding import feed_object, write_stdin
from substrate_services.world.file_kinds import FILES_KINDS
from substrate_services.world.ids import EXEC_ID, LOOK_PREFIX
from substrate_services.world.init_client import ExecState, InitError, InitGone, Phase, Scope
from substrate_services.world.left_steps import read_execs
from substrate_services.world.limited import with_limits
from substrate_services.world.output_log import Stream, encode_frame
from substrate_services.world.recording import Attempt, Recorder
from substrate_services.world.shell_state import SHELL_PREFIX
from substrate_services.world.starting import mark_shared, start_in_box
from substrate_services.world.steps import (
    HOST_KINDS,
    STDIN_FILE,
    Begin,
    Decider,
    Exec,
    ExecRequest,
    StepKind,
    is_denied,
    outcome_of,
    was_never_told,
    write_exec_file,
)
from substrate_services.world.worlds import World, Worlds

log = logging.getLogger(__name__)

_REMEMBERED = 1_024  # execs of removed worlds


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
        self._actions = Actions(reader)
        self._decider = decider
        self._recorder = recorder
        self._execs: dict[str, dict[str, Exec]] = {}
        self._unfinished: dict[str, dict[str, Exec]] = {}  # those of them that are not recorded
        self._removed: dict[tuple[str, str], SpanRecord] = {}
        self._starting: dict[tuple[str, str], asyncio.Task[Exec]] = {}
        self._recording: set[asyncio.Task[None]] = set()

    # -- starting ------------------------------------------------------------------------------

    async def start(self, world: World, request: ExecRequest, begin: Begin | None = None) -> Exec:
        """Decide about a command and start it; the same exec_id gives the same exec.

        Args:
            world: where.
            request: what.
            begin: starts it instead of the world's init.

        Raises:
            InvalidField: a field of the request cannot be used.
            ServiceError: WORLD_LOST, SPAN_NOT_FOUND, OBJECT_MISSING, DISK_FULL.
        """
        if EXEC_ID.fullmatch(request.exec_id) is None:
            raise InvalidField("exec_id", request.exec_id, "expected 1 to 64 of [A-Za-z0-9_.-]")
        for prefix in (LOOK_PREFIX, SHELL_PREFIX):
            if request.exec_id.startswith(prefix):
                raise InvalidField("exec_id", request.exec_id, f"{prefix}… is taken; use another")
        known = self._find(world, request.exec_id)
        if known is not None:
            return known
        key = (world.spec.world_id, request.exec_id)
        task = self._starting.get(key)
        if task is None:
            task = asyncio.create_task(self._start(world, request, begin))
            self._starting[key] = task
            task.add_done_callback(lambda _done: self._starting.pop(key, None))
        return await asyncio.shield(task)

    async def _start(self, world: World, request: ExecRequest, begin: Begin | None) -> Exec:
        if world.lost:
            raise ServiceError(
                "WORLD_LOST",
                f"world {world.spec.world_id} ended unexpectedly; its records are kept, "
                "make another world",
            )
        # A rollback is not to find a command that is about to start.
        async with world.gate.shared():
            world.require_running()
            return await self._decide_and_start(world, request, begin)

    async def _decide_and_start(
        self, world: World, request: ExecRequest, begin: Begin | None
    ) -> Exec:
        world.touch()
        action, replay_of, kind = self._actions.resolve(world, request)
        decision = await self._decider.decide(world, action, kind)
        exec_ = self._begin(world, request, kind, action, decision=decision, replay_of=replay_of)
        try:
            if is_denied(decision):
                await self._finish(world, exec_, Ended.denied(decision))
                return exec_
            await self._start_in_box(world, exec_, request, begin)
        except BaseException:
            self._drop(exec_)
            raise
        return exec_

    def _drop(self, exec_: Exec) -> None:
        """Forget an exec that did not begin."""
        for known in (self._execs, self._unfinished):
            known.get(exec_.start.world_id, {}).pop(exec_.exec_id, None)

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
        start = span_start(world, request, kind, action, decision=decision, replay_of=replay_of)
        exec_ = Exec(start, world.directory / "execs" / request.exec_id)
        exec_.stdin_pipe = request.stdin_pipe
        exec_.directory.mkdir(mode=0o700, exist_ok=True)
        if request.stdin_pipe:
            (exec_.directory / STDIN_FILE).touch()  # the next host process feeds it further
        self._execs.setdefault(world.spec.world_id, {})[request.exec_id] = exec_
        self._unfinished.setdefault(world.spec.world_id, {})[request.exec_id] = exec_
        try:
            line = start_to_line(start)
            self._journal.append(line)
            write_exec_file(exec_.directory, line)
        except BaseException:
            self._drop(exec_)
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
        action, _replay_of, kind = self._actions.resolve(world, request)
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

    async def _start_in_box(
        self, world: World, exec_: Exec, request: ExecRequest, begin: Begin | None
    ) -> None:
        action = exec_.start.action
        # A replayed terminal hears what was typed, or at once that nothing more will be.
        fed = action.stdin_digest is not None or (action.pty and not request.stdin_pipe)
        identity = identity_env(self._actions.original(exec_.start))
        await mark_shared(world, exec_, self._unfinished[world.spec.world_id].values())
        world.running += 1
        try:
            if begin is not None:
                ended = await begin(exec_, identity)
            else:
                stdin = fed or request.stdin_pipe
                ended = await start_in_box(world, exec_, identity, stdin=stdin)
        except BaseException:
            world.running -= 1
            raise
        if ended is not None:
            if ended.never_ran:
                world.running -= 1
            await self._finish(world, exec_, ended)
        elif fed:
            self._track(feed_object(self._store, world, exec_, action.stdin_digest))

    # -- while it runs -------------------------------------------------------------------------

    async def write_stdin(
        self, world: World, exec_id: str, offset: int, data: bytes, *, eof: bool
    ) -> int:
        """Write to an exec's standard input; returns the bytes taken so far.

        Raises:
            ServiceError: EXEC_NOT_FOUND, STDIN_CLOSED, OFFSET_BEYOND_END.
        """
        return await write_stdin(world, self.get(world, exec_id), offset, data, eof=eof)

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
            ended = _ended(world, exec_, state)
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
        self._unfinished.pop(world.spec.world_id, None)
        for exec_id, exec_ in self._execs.pop(world.spec.world_id, {}).items():
            if exec_.record is not None:
                self._removed[world.spec.world_id, exec_id] = exec_.record
        while len(self._removed) > _REMEMBERED:
            del self._removed[next(iter(self._removed))]

    def removed(self, world_id: str, exec_id: str) -> SpanRecord | None:
        """The record of an exec whose world was removed lately, for those who still ask."""
        return self._removed.get((world_id, exec_id))

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
            self._unfinished.get(world.spec.world_id, {}).pop(exec_.exec_id, None)
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
            for exec_ in read_execs(self._reader, world.directory):
                state = states.get(exec_.exec_id)
                if state is None and not world.lost and was_never_told(exec_):
                    # Nobody was told that it began: whoever asked asks again, and it begins then.
                    shutil.rmtree(exec_.directory)
                    continue
                self._execs.setdefault(world.spec.world_id, {})[exec_.exec_id] = exec_
                if exec_.phase == "finished":
                    if state is not None and state.phase is Phase.EXITED:
                        await world.init.forget(exec_.exec_id)
                    continue
                self._unfinished.setdefault(world.spec.world_id, {})[exec_.exec_id] = exec_
                world.running += 1
                if state is not None:
                    exec_.start = with_first_pid(exec_.start, state.pid)
                if state is None:
                    self._track(self._finish(world, exec_, outcome_of(exec_)))
                elif state.phase is Phase.EXITED:
                    self._track(self._finish(world, exec_, _ended(world, exec_, state)))
                else:
                    exec_.pid = state.pid
                    if exec_.stdin_pipe and exec_.start.shell is None:
                        # What was noted and not handed on, its writer was never told was taken.
                        exec_.stdin_received = state.stdin_received
                        os.truncate(exec_.directory / STDIN_FILE, state.stdin_received)
                    digest = exec_.start.action.stdin_digest
                    if exec_.start.kind in FILES_KINDS and digest is not None:
                        # Nobody but us ever feeds it: without the rest it would wait for ever.
                        taken = state.stdin_received
                        self._track(feed_object(self._store, world, exec_, digest, taken=taken))


def _report(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("recording a step failed", exc_info=error)


def _ended(world: World, exec_: Exec, state: ExecState) -> Ended:
    ended = Ended.of(state, killed_by_user=exec_.killed_by_user)
    return with_limits(ended, state, world.spec.limits, exec_.start.action)
