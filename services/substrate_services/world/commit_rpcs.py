"""The commits of WorldService on the wire: snapshots, forks, rollbacks."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable

from substrate_sdk._pb.substrate.world.v1alpha1 import commits_pb2
from substrate_services.errors import InvalidField, ServiceError
from substrate_services.journal.reader import JournalReader
from substrate_services.journal.schema import SpanRecord
from substrate_services.wire import validation
from substrate_services.wire.convert import change_to_proto, result_to_proto
from substrate_services.wire.errors import Context
from substrate_services.world.apply import Applies, ApplyRequest
from substrate_services.world.availability import Availability
from substrate_services.world.fork import fork_request
from substrate_services.world.holders import writes_files
from substrate_services.world.ids import new_id
from substrate_services.world.rollback import CommitRequest, Rollbacks
from substrate_services.world.sources import find_record
from substrate_services.world.worlds import World, Worlds


class CommitRpcs:
    """A part of :class:`~substrate_services.world.server.WorldServicer`."""

    _availability: Availability
    _worlds: Worlds
    _rollbacks: Rollbacks
    _applies: Applies
    _reader: JournalReader
    _snapshots: dict[tuple[str, str], asyncio.Task[commits_pb2.SnapshotResponse]]

    async def Snapshot(
        self, request: commits_pb2.SnapshotRequest, context: Context
    ) -> commits_pb2.SnapshotResponse:
        """See the contract."""
        world = self._worlds.get(request.world_id)
        if not request.request_id:
            return await _snapshot(world)
        validation.request_id("request_id", request.request_id)
        key = (request.world_id, request.request_id)
        task = self._snapshots.get(key)
        if task is None or task.cancelled() or (task.done() and task.exception() is not None):
            task = self._snapshots[key] = asyncio.create_task(_snapshot(world))
            while len(self._snapshots) > _REMEMBERED:
                self._snapshots.pop(next(iter(self._snapshots)))
        return await asyncio.shield(task)

    async def Fork(
        self, request: commits_pb2.ForkRequest, context: Context
    ) -> commits_pb2.ForkResponse:
        """See the contract."""
        if request.request_id:
            validation.request_id("request_id", request.request_id)
        validation.required_text("span_id", request.span_id)
        record = await asyncio.to_thread(find_record, self._reader, request.span_id)
        await self._availability.require()
        origin = next(
            (world for world in self._worlds.all() if world.spec.world_id == record.world_id), None
        )
        world = await self._worlds.create(fork_request(record, origin, request.request_id))
        return commits_pb2.ForkResponse(world_id=world.spec.world_id)

    async def Rollback(
        self, request: commits_pb2.RollbackRequest, context: Context
    ) -> commits_pb2.RollbackResponse:
        """See the contract."""
        world = self._worlds.get(request.world_id)
        validation.required_text("span_id", request.span_id)
        step = CommitRequest(validation.exec_id("exec_id", request.exec_id), kill=request.kill)
        _require_allowed(await self._rollbacks.rollback(world, step, request.span_id))
        return commits_pb2.RollbackResponse(generation=world.state.generation)

    async def Apply(
        self, request: commits_pb2.ApplyRequest, context: Context
    ) -> commits_pb2.ApplyResponse:
        """See the contract."""
        world = self._worlds.get(request.world_id)
        name = request.request_id or new_id("apl")
        applied = await self._applies.apply(
            world,
            ApplyRequest(
                exec_id=validation.exec_id("request_id", name),
                paths=paths_in(world, request.paths),
                dry_run=request.dry_run,
                consent=frozenset(paths_in(world, request.consent)),
            ),
        )
        return commits_pb2.ApplyResponse(
            applied=[change_to_proto(change) for change in applied.changes],
            conflicts=applied.conflicts,
            needs_consent=applied.needs_consent,
        )

    async def Discard(
        self, request: commits_pb2.DiscardRequest, context: Context
    ) -> commits_pb2.DiscardResponse:
        """See the contract."""
        world = self._worlds.get(request.world_id)
        step = CommitRequest(validation.exec_id("exec_id", request.exec_id))
        record = await self._rollbacks.discard(world, step, paths_in(world, request.paths))
        _require_allowed(record)
        return commits_pb2.DiscardResponse(result=result_to_proto(record))


_REMEMBERED = 1_024  # snapshots whose requests may come again


async def _snapshot(world: World) -> commits_pb2.SnapshotResponse:
    if world.box is None:
        raise ServiceError("WORLD_LOST", f"world {world.spec.world_id} has ended")
    before = await asyncio.to_thread(writes_files, world.box.init_pid)
    async with world.tree.recording:  # with all steps that are over, and none by half
        snapshot_id = await asyncio.to_thread(world.tree.keep_snapshot)
    unclean = before or await asyncio.to_thread(writes_files, world.box.init_pid)
    world.touch()
    return commits_pb2.SnapshotResponse(snapshot_id=snapshot_id, unclean=unclean)


def paths_in(world: World, paths: Iterable[bytes]) -> tuple[bytes, ...]:
    """Paths of a request as absolute ones of the world.

    Raises:
        InvalidField: one is empty, or has a NUL byte.
    """
    found = []
    for index, path in enumerate(paths):
        if not path or b"\0" in path:
            raise InvalidField(f"paths[{index}]", os.fsdecode(path), "expected a path")
        # By name only: nothing of a path is looked up where it leads.
        found.append(os.path.normpath(os.path.join(world.spec.cwd, path)))
    return tuple(dict.fromkeys(found))


def _require_allowed(record: SpanRecord) -> None:
    if record.termination_reason == "DENIED":
        raise ServiceError(
            "POLICY_DENIED", f"{record.decision.reason} (rule {record.decision.rule_id})"
        )
    if record.exit_code != 0:
        raise ServiceError("WORLD_LOST", f"step {record.exec_id} did not come to its end")
