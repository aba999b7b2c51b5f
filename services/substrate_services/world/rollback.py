"""Setting a world's tree to that after an earlier step (DESIGN §5).

Upper layers are never edited while they are mounted: the recorded tree is written to fresh layers,
and the world goes on in a new box on those, under the same id and with the next generation.
Processes cannot come along, so none may be there. What lies below the layers is the host's, and is
not rolled back.

The way of a rollback on disk, so that it can be cut short anywhere: ``exchange.json`` in the
world's directory names the new generation; its layers are filled; everything in the old box ends;
the world's file names the new generation; the new box is made; the step's outcome is noted, and
then it is recorded. A host that finds ``exchange.json`` goes on from there if the old box is gone,
and forgets it if it is not.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import signal
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from substrate_services.errors import InvalidField, ServiceError
from substrate_services.journal.jsontypes import Fields, compact_bytes
from substrate_services.journal.reader import JournalReader
from substrate_services.journal.schema import Decision, SpanRecord
from substrate_services.world.ended import Ended
from substrate_services.world.execs import Execs
from substrate_services.world.ids import EXEC_ID
from substrate_services.world.init_client import InitGone
from substrate_services.world.sources import find_record, snapshot_after
from substrate_services.world.spec import layers_directory
from substrate_services.world.steps import Exec, ExecRequest, is_denied, note_outcome
from substrate_services.world.worlds import World, Worlds

log = logging.getLogger(__name__)

_FILE = "exchange.json"
_NAMED_PIDS = 16


@dataclass(frozen=True, slots=True)
class CommitRequest:
    """What a client asks for; see RollbackRequest and DiscardRequest in the contract."""

    exec_id: str
    kill: bool = False
    agent_id: str = ""
    traceparent: str = ""


class TreeInUse(ServiceError):
    """Processes of the world hold its tree: each has its program and its cwd in it."""

    def __init__(self, world_id: str, pids: tuple[int, ...]) -> None:
        named = ", ".join(map(str, pids[:_NAMED_PIDS]))
        more = f" and {len(pids) - _NAMED_PIDS} more" if len(pids) > _NAMED_PIDS else ""
        super().__init__(
            "TREE_IN_USE",
            f"processes {named}{more} of world {world_id} hold its tree; wait for them, end them, "
            "or ask for that with kill",
            {"held_by": ",".join(map(str, pids))},
        )
        self.pids = pids


@dataclass(frozen=True, slots=True)
class _Exchange:
    """A change of layers under way."""

    exec_id: str
    snapshot_id: str
    generation: int


class Rollbacks:
    """Rolls the worlds of one host back.

    Args:
        worlds: the host's worlds.
        execs: records steps.
        reader: reads the host's journal.
    """

    def __init__(self, *, worlds: Worlds, execs: Execs, reader: JournalReader) -> None:
        self._worlds = worlds
        self._execs = execs
        self._reader = reader

    async def rollback(self, world: World, request: CommitRequest, span_id: str) -> SpanRecord:
        """Set a world's tree to that after a step of its own; the same exec_id does it once.

        Raises:
            ServiceError: SPAN_NOT_FOUND, TREE_IN_USE, NOT_RESTORABLE, WORLD_LOST, WORLD_NOT_MADE.
            ObjectMissing, ObjectCorrupt: the recorded tree is not whole.
        """

        def target() -> str:
            record = find_record(self._reader, span_id)
            if record.world_id != world.spec.world_id:
                raise ServiceError(
                    "SPAN_NOT_FOUND",
                    f"span {span_id} is no step of world {world.spec.world_id}, but of "
                    f"{record.world_id}; fork it instead",
                )
            return snapshot_after(record)

        argv = (b"substrate-rollback", span_id.encode())
        step = ExecRequest(exec_id=request.exec_id, kind="rollback", argv=argv)
        return await self._exchange(world, request, step, target)

    async def discard(
        self, world: World, request: CommitRequest, paths: tuple[bytes, ...]
    ) -> SpanRecord:
        """Set a world's tree, or some paths of it, to what they were when it was made.

        Raises:
            InvalidField: a path that cannot be set back by itself.
            ServiceError: as :meth:`rollback`.
        """

        def target() -> str:
            return world.tree.without_changes(paths) if paths else world.state.first_snapshot

        argv = (b"substrate-discard", *paths)
        step = ExecRequest(exec_id=request.exec_id, kind="discard", argv=argv)
        return await self._exchange(world, request, step, target)

    async def _exchange(
        self,
        world: World,
        request: CommitRequest,
        step: ExecRequest,
        target: Callable[[], str],
    ) -> SpanRecord:
        if EXEC_ID.fullmatch(request.exec_id) is None:
            raise InvalidField("exec_id", request.exec_id, "expected 1 to 64 of [A-Za-z0-9_.-]")
        step = replace(step, agent_id=request.agent_id, traceparent=request.traceparent)
        # Not given up half-way because a client went away.
        work = self._exchange_alone(world, request, step, target)
        return await asyncio.shield(asyncio.ensure_future(work))

    async def _exchange_alone(
        self,
        world: World,
        request: CommitRequest,
        step: ExecRequest,
        target: Callable[[], str],
    ) -> SpanRecord:
        async with world.exchanging, world.gate.alone():
            known = self._execs.find(world, step.exec_id)
            if known is not None:
                return await self._execs.wait(world, known)
            if world.lost or world.removing:
                raise ServiceError(
                    "WORLD_LOST", f"world {world.spec.world_id} has ended; fork the step instead"
                )
            world.require_running()
            snapshot_id = await asyncio.to_thread(target)
            if not request.kill:
                await self.refuse_if_held(world)
            exec_ = await self._execs.begin_host_step(world, step, _as_decided)
            if is_denied(exec_.start.decision):
                return await self._execs.wait(world, exec_)
            exchange = _Exchange(step.exec_id, snapshot_id, world.state.generation + 1)
            try:
                await self._carry_out(world, exec_, exchange, kill=request.kill)
            except BaseException as error:
                ended = Ended("EXITED", 1, duration_ns=0, message=f"{error}\n".encode())
                await self._execs.end_host_step(world, exec_, ended)
                raise
            return await self._end(world, exec_)

    async def _carry_out(
        self, world: World, exec_: Exec, exchange: _Exchange, *, kill: bool
    ) -> None:
        _write_exchange(world.directory, exchange)
        try:
            if kill:
                # Nothing is to happen any more in what is to be forgotten.
                await world.init.freeze(frozen=True)
            layout = await asyncio.to_thread(
                self._worlds.preparer.next_generation,
                world.spec,
                layers_directory(world.directory, exchange.generation),
                exchange.snapshot_id,
            )
            if kill:
                await self._free(world)
            else:
                await self.refuse_if_held(world)  # something may look at files by now
        except BaseException:
            with contextlib.suppress(InitGone):
                await world.init.freeze(frozen=False)
            await asyncio.to_thread(self._worlds.forget_generation, world, exchange.generation)
            _forget_exchange(world.directory)
            raise
        tree = await asyncio.to_thread(self._worlds.tree_on, world, layout)
        await self._worlds.exchange_layers(world, layout, tree, exchange.generation)
        note_outcome(exec_)

    async def _end(self, world: World, exec_: Exec) -> SpanRecord:
        record = await self._execs.end_host_step(world, exec_, note_outcome(exec_))
        _forget_exchange(world.directory)
        return record

    async def renew(self, world: World, exec_id: str, paths: tuple[bytes, ...]) -> None:
        """Put a world on layers without some paths, which its base has as well by now.

        Args:
            world: the world, which the caller has alone and nothing runs in.
            exec_id: the step that this is a part of.
            paths: absolute; parents before what is below them.
        """
        snapshot_id = await asyncio.to_thread(world.tree.without_changes, paths)
        exchange = _Exchange(exec_id, snapshot_id, world.state.generation + 1)
        _write_exchange(world.directory, exchange)
        await self._go_on(world, exchange)
        _forget_exchange(world.directory)

    # -- what holds a tree ---------------------------------------------------------------------

    async def refuse_if_held(self, world: World) -> None:
        """Raise TreeInUse where processes are in a world; else wait until all is recorded."""
        processes = await world.init.processes()
        pids = tuple(sorted(process.pid for process in processes if process.pid != 1))
        if pids:
            raise TreeInUse(world.spec.world_id, pids)
        await self._wait_for_records(world)

    async def _free(self, world: World) -> None:
        """End the commands of a world, and wait until they are recorded.

        What commands that are over have left behind ends with the box.
        """
        for exec_ in self._execs.all(world):
            if exec_.phase == "running" and exec_.pid:
                await self._execs.signal(world, exec_.exec_id, signal.SIGKILL, tree=True)
        await self._wait_for_records(world)

    async def _wait_for_records(self, world: World) -> None:
        for exec_ in self._execs.all(world):
            if exec_.pid:
                await exec_.done.wait()

    # -- finding again -------------------------------------------------------------------------

    async def recover(self, worlds: list[World]) -> None:
        """Finish, or forget, what an earlier host process was about; before execs are recovered."""
        for world in worlds:
            exchange = _read_exchange(world.directory)
            if exchange is None:
                continue
            try:
                await self._recover(world, exchange)
            except Exception:
                # The world is lost, as it is without its box; its records are there.
                log.exception("the rollback of world %s cannot be finished", world.spec.world_id)

    async def _recover(self, world: World, exchange: _Exchange) -> None:
        done = world.state.generation == exchange.generation
        if not done and not world.lost:
            # It had not begun to end the world: nothing has happened.
            await asyncio.to_thread(self._worlds.forget_generation, world, exchange.generation)
        elif world.lost:
            await self._go_on(world, exchange)
            done = True
        await self._worlds.forget_other_generations(world)
        if done:
            (world.directory / "execs" / exchange.exec_id / "outcome").touch()
        _forget_exchange(world.directory)

    async def _go_on(self, world: World, exchange: _Exchange) -> None:
        layout = await asyncio.to_thread(
            self._worlds.preparer.next_generation,
            world.spec,
            layers_directory(world.directory, exchange.generation),
            exchange.snapshot_id,
        )
        tree = await asyncio.to_thread(self._worlds.tree_on, world, layout)
        world.lost = False
        await self._worlds.exchange_layers(world, layout, tree, exchange.generation)


def _as_decided(decision: Decision) -> Decision:
    return decision


def _write_exchange(directory: Path, exchange: _Exchange) -> None:
    scratch = directory / f"{_FILE}.new"
    scratch.write_bytes(
        compact_bytes(
            {
                "exec_id": exchange.exec_id,
                "snapshot_id": exchange.snapshot_id,
                "generation": exchange.generation,
            }
        )
    )
    scratch.replace(directory / _FILE)


def _read_exchange(directory: Path) -> _Exchange | None:
    try:
        fields = Fields(json.loads((directory / _FILE).read_bytes()), _FILE)
    except FileNotFoundError:
        return None
    return _Exchange(
        fields.text("exec_id"), fields.text("snapshot_id"), fields.integer("generation")
    )


def _forget_exchange(directory: Path) -> None:
    (directory / _FILE).unlink(missing_ok=True)
