"""WorldService on the wire."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import TYPE_CHECKING

from substrate_sdk._pb.substrate.world.v1alpha1 import (
    commits_pb2,
    execs_pb2,
    worlds_pb2,
)
from substrate_services.errors import InvalidField, ServiceError
from substrate_services.journal.parts import change_from_json
from substrate_services.journal.reader import JournalReader
from substrate_services.journal.schema import Change, SpanRecord
from substrate_services.objects.errors import ObjectMissing
from substrate_services.objects.store import ObjectStore
from substrate_services.wire import validation
from substrate_services.wire.convert import change_to_proto, result_to_proto
from substrate_services.world.apply import Applies
from substrate_services.world.availability import Availability
from substrate_services.world.broker_client import BrokerClient
from substrate_services.world.commit_rpcs import CommitRpcs
from substrate_services.world.execs import Execs
from substrate_services.world.file_rpcs import FileRpcs
from substrate_services.world.following import followed
from substrate_services.world.hanging_up import HangUps
from substrate_services.world.image_rpcs import ImageRpcs
from substrate_services.world.images.importing import Images
from substrate_services.world.looks import Looks
from substrate_services.world.messages import (
    capabilities_to_proto,
    exec_request,
    exec_to_proto,
    output_to_proto,
    signal_number,
    world_request,
    world_to_proto,
)
from substrate_services.world.output_log import Frame, OutputLogCorrupt, read_frames, read_kept
from substrate_services.world.patch import patch
from substrate_services.world.pool_row import pool_row
from substrate_services.world.port_rpcs import PortRpcs
from substrate_services.world.ports import Ports
from substrate_services.world.project import Project
from substrate_services.world.rollback import Rollbacks
from substrate_services.world.shell_rpcs import ShellRpcs
from substrate_services.world.shells import Shells
from substrate_services.world.snapshots import get_base, get_snapshot
from substrate_services.world.steps import Exec
from substrate_services.world.updating import Updates
from substrate_services.world.updating_rpcs import UpdatingRpcs
from substrate_services.world.worlds import World, Worlds

if TYPE_CHECKING:
    from substrate_services.wire.errors import Context


class WorldServicer(ImageRpcs, CommitRpcs, ShellRpcs, UpdatingRpcs, PortRpcs, FileRpcs):
    """Serves the worlds of one host.

    Args:
        availability: whether worlds can be made here.
        worlds: makes and keeps them.
        execs: runs commands in them.
        shells: keeps shells in them.
        looks: reads files in them.
        rollbacks: sets their trees back.
        applies: writes their changes to the host.
        ports: makes their servers reachable.
        updates: changes them, pauses them.
        images: keeps roots for them.
        broker: says what worlds record whose creator does not.
        reader: reads the journal.
        store: the host's objects.
        version: of Substrate.
    """

    def __init__(
        self,
        *,
        availability: Availability,
        worlds: Worlds,
        execs: Execs,
        shells: Shells,
        looks: Looks,
        rollbacks: Rollbacks,
        applies: Applies,
        ports: Ports,
        updates: Updates,
        images: Images,
        broker: BrokerClient,
        reader: JournalReader,
        store: ObjectStore,
        version: str,
    ) -> None:
        super().__init__(worlds=worlds, execs=execs, looks=looks, store=store)
        self._availability = availability
        self._looks = looks
        self._shells = shells
        self._hang_ups = HangUps(execs)
        self._rollbacks = rollbacks
        self._applies = applies
        self._ports = ports
        self._updates = updates
        self._images = images
        self._snapshots = {}
        self._broker = broker
        self._reader = reader
        self._version = version

    # -- worlds --------------------------------------------------------------------------------

    async def CreateWorld(
        self, request: worlds_pb2.CreateWorldRequest, context: Context
    ) -> worlds_pb2.CreateWorldResponse:
        """See the contract."""
        wanted = world_request(request, _trace_of(context))
        await self._availability.require()
        if not wanted.telemetry:
            wanted = replace(wanted, telemetry=await self._broker.telemetry_classes())
        world = await self._worlds.create(wanted)
        return worlds_pb2.CreateWorldResponse(
            world=world_to_proto(world), missing=[entry.path for entry in world.missing]
        )

    async def GetWorld(
        self, request: worlds_pb2.GetWorldRequest, context: Context
    ) -> worlds_pb2.GetWorldResponse:
        """See the contract."""
        world = self._worlds.get(request.world_id)
        moved = await asyncio.to_thread(world.tree.moved_base)
        return worlds_pb2.GetWorldResponse(world=world_to_proto(world, moved_base=moved))

    async def ListWorlds(
        self, request: worlds_pb2.ListWorldsRequest, context: Context
    ) -> worlds_pb2.ListWorldsResponse:
        """See the contract."""
        size = validation.page_size(request.page_size)
        query = {"session_id": request.session_id}
        start = validation.page_position(request.page_token, query) or ""
        found = [
            world
            for world in self._worlds.all()
            if not request.session_id or world.spec.session_id == request.session_id
        ]
        ids = [world.spec.world_id for world in found]
        begin = ids.index(start) if start in ids else 0
        page = found[begin : begin + size]
        more = found[begin + size : begin + size + 1]
        return worlds_pb2.ListWorldsResponse(
            worlds=[world_to_proto(world) for world in page],
            next_page_token=validation.page_token(more[0].spec.world_id, query) if more else "",
        )

    async def RemoveWorld(
        self, request: worlds_pb2.RemoveWorldRequest, context: Context
    ) -> worlds_pb2.RemoveWorldResponse:
        """See the contract."""
        validation.required_text("world_id", request.world_id)
        await self._worlds.remove(request.world_id, self._end_all)
        return worlds_pb2.RemoveWorldResponse()

    async def _end_all(self, world: World) -> None:
        self._looks.world_lost(world)
        await self._execs.end_all(world)

    async def GetCapabilities(
        self, request: worlds_pb2.GetCapabilitiesRequest, context: Context
    ) -> worlds_pb2.GetCapabilitiesResponse:
        """See the contract."""
        found, problem, fix = await self._availability.look()
        return worlds_pb2.GetCapabilitiesResponse(
            capabilities=[
                *capabilities_to_proto(found, problem, fix),
                pool_row(self._worlds.pool.counts()),
            ],
            version=self._version,
        )

    # -- execs ---------------------------------------------------------------------------------

    async def StartExec(
        self, request: execs_pb2.StartExecRequest, context: Context
    ) -> execs_pb2.StartExecResponse:
        """See the contract."""
        world = self._worlds.get(request.world_id)
        exec_ = await self._execs.start(world, exec_request(request))
        return execs_pb2.StartExecResponse(exec=exec_to_proto(exec_))

    async def StreamExec(
        self, request: execs_pb2.StreamExecRequest, context: Context
    ) -> AsyncIterator[execs_pb2.StreamExecResponse]:
        """See the contract."""
        gone = self._execs.removed(request.world_id, request.exec_id)
        if gone is not None:
            async for answer in self._streamed_after(gone, request):
                yield answer
            return
        world = self._worlds.get(request.world_id)
        if request.HasField("start"):
            if (request.start.world_id, request.start.exec_id) != (
                request.world_id,
                request.exec_id,
            ):
                raise InvalidField(
                    "start.exec_id", request.start.exec_id, "expected the exec that is streamed"
                )
            exec_ = await self._execs.start(world, exec_request(request.start))
        else:
            exec_ = self._execs.get(world, request.exec_id)
        async with contextlib.AsyncExitStack() as stack:
            if request.hang_up:
                await stack.enter_async_context(self._hang_ups.waiting(world, exec_))
            async for answer in self._streamed(world, exec_, request):
                yield answer

    async def _streamed_after(
        self, record: SpanRecord, request: execs_pb2.StreamExecRequest
    ) -> AsyncIterator[execs_pb2.StreamExecResponse]:
        """What an exec of a removed world has left, from the record."""
        if record.output_digest is not None:
            with self._store.open(record.output_digest) as kept:
                frames = read_kept(kept, request.offset)
                while batch := await asyncio.to_thread(lambda: list(itertools.islice(frames, 64))):
                    for frame in batch:
                        yield _streamed(frame)
        if request.follow:
            yield execs_pb2.StreamExecResponse(finished=result_to_proto(record))

    async def _streamed(
        self, world: World, exec_: Exec, request: execs_pb2.StreamExecRequest
    ) -> AsyncIterator[execs_pb2.StreamExecResponse]:
        size = exec_.output_log.stat().st_size if exec_.output_log.exists() else 0
        if request.offset > size:
            raise ServiceError(
                "OFFSET_BEYOND_END",
                f"offset {request.offset} is beyond the {size} bytes of output",
            )
        try:
            if request.follow and exec_.output_log.exists():
                async for frame in followed(exec_, request.offset):
                    yield _streamed(frame)
            elif size:
                for frame in read_frames(exec_.output_log, request.offset):
                    yield execs_pb2.StreamExecResponse(output=output_to_proto(frame))
        except OutputLogCorrupt as error:
            raise ServiceError("OFFSET_BEYOND_END", str(error)) from error
        if request.follow:
            record = await self._execs.wait(world, exec_)
            yield execs_pb2.StreamExecResponse(finished=result_to_proto(record))

    async def WriteStdin(
        self, request: execs_pb2.WriteStdinRequest, context: Context
    ) -> execs_pb2.WriteStdinResponse:
        """See the contract."""
        world = self._worlds.get(request.world_id)
        offset = await self._execs.write_stdin(
            world, request.exec_id, request.offset, request.data, eof=request.eof
        )
        return execs_pb2.WriteStdinResponse(offset=offset)

    async def ResizePty(
        self, request: execs_pb2.ResizePtyRequest, context: Context
    ) -> execs_pb2.ResizePtyResponse:
        """See the contract."""
        world = self._worlds.get(request.world_id)
        size = request.size
        await self._execs.resize(world, request.exec_id, size.rows, size.columns)
        return execs_pb2.ResizePtyResponse()

    async def SignalExec(
        self, request: execs_pb2.SignalExecRequest, context: Context
    ) -> execs_pb2.SignalExecResponse:
        """See the contract."""
        number = signal_number(request.signal)
        world = self._worlds.get(request.world_id)
        await self._execs.signal(world, request.exec_id, number, tree=request.whole_tree)
        return execs_pb2.SignalExecResponse()

    async def WaitExec(
        self, request: execs_pb2.WaitExecRequest, context: Context
    ) -> execs_pb2.WaitExecResponse:
        """See the contract."""
        record = self._execs.removed(request.world_id, request.exec_id)
        if record is None:
            world = self._worlds.get(request.world_id)
            record = await self._execs.wait(world, self._execs.get(world, request.exec_id))
        return execs_pb2.WaitExecResponse(result=result_to_proto(record))

    async def GetExec(
        self, request: execs_pb2.GetExecRequest, context: Context
    ) -> execs_pb2.GetExecResponse:
        """See the contract."""
        world = self._worlds.get(request.world_id)
        return execs_pb2.GetExecResponse(
            exec=exec_to_proto(self._execs.get(world, request.exec_id))
        )

    async def ListExecs(
        self, request: execs_pb2.ListExecsRequest, context: Context
    ) -> execs_pb2.ListExecsResponse:
        """See the contract."""
        world = self._worlds.get(request.world_id)
        size = validation.page_size(request.page_size)
        query = {"world_id": request.world_id}
        start = validation.page_offset(request.page_token, query)
        found = self._execs.all(world)
        more = start + size < len(found)
        return execs_pb2.ListExecsResponse(
            execs=[
                exec_to_proto(exec_, with_result=False) for exec_ in found[start : start + size]
            ],
            next_page_token=validation.page_token(str(start + size), query) if more else "",
        )

    # -- changes -------------------------------------------------------------------------------

    async def GetDiff(
        self, request: commits_pb2.GetDiffRequest, context: Context
    ) -> AsyncIterator[commits_pb2.GetDiffResponse]:
        """See the contract."""
        of = request.WhichOneof("of")
        if of == "world_id":
            world = self._worlds.get(request.world_id)
            changes = await asyncio.to_thread(world.tree.all_changes)
            project = world.spec.project
        elif of == "span_id":
            changes, project = await asyncio.to_thread(self._changes_of, request.span_id)
        else:
            raise InvalidField("of", "nothing", "name a world or a span")
        if request.format == commits_pb2.DIFF_FORMAT_PATCH:
            pieces = patch(changes, project.root if project else None, self._read_object)
            while batch := await asyncio.to_thread(lambda: b"".join(itertools.islice(pieces, 512))):
                yield commits_pb2.GetDiffResponse(patch=batch)
            return
        for change in changes:
            yield commits_pb2.GetDiffResponse(change=change_to_proto(change))

    def _changes_of(self, span_id: str) -> tuple[tuple[Change, ...], Project | None]:
        record = self._reader.find_span(span_id)
        if record is None:
            raise ServiceError(
                "SPAN_NOT_FOUND",
                f"no span {span_id!r} is recorded here; `substrate trace ls` shows them",
            )
        project = None
        if record.action.snapshot_id is not None:
            snapshot = get_snapshot(self._store, record.action.snapshot_id)
            project = get_base(self._store, snapshot.base).project
        if not record.changes_truncated or record.changes_digest is None:
            return record.changes, project
        listed = json.loads(self._store.get(record.changes_digest))
        return tuple(change_from_json(item) for item in listed), project

    def _read_object(self, digest: str) -> bytes:
        try:
            return self._store.get(digest)
        except ObjectMissing as error:
            raise ServiceError(
                "OBJECT_MISSING", str(error), {"digest": digest}, code="DATA_LOSS"
            ) from error


def _trace_of(context: Context) -> str:
    """The trace that the caller works in, from its traceparent metadata; empty without one."""
    for key, value in context.invocation_metadata() or ():
        if key == "traceparent":
            return validation.traceparent("traceparent", str(value)).trace_id
    return ""


def _streamed(frame: Frame | None) -> execs_pb2.StreamExecResponse:
    if frame is None:
        return execs_pb2.StreamExecResponse(keepalive=execs_pb2.Keepalive())
    return execs_pb2.StreamExecResponse(output=output_to_proto(frame))
