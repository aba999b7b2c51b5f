"""The Files RPCs of WorldService."""

from __future__ import annotations

import os
from collections.abc import AsyncIterable, AsyncIterator, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, TypeVar

from substrate_sdk._pb.substrate.common.v1alpha1 import types_pb2
from substrate_sdk._pb.substrate.world.v1alpha1 import files_pb2, world_service_pb2_grpc
from substrate_services.errors import InvalidField, ServiceError
from substrate_services.journal.schema import Change, SpanRecord
from substrate_services.objects.store import ObjectStore
from substrate_services.wire import validation
from substrate_services.wire.convert import change_to_proto, file_state_to_proto, result_to_proto
from substrate_services.world import file_steps
from substrate_services.world.base_mounts import is_below
from substrate_services.world.execs import Execs
from substrate_services.world.file_content import checked_tar, keep_content
from substrate_services.world.file_entries import Notice
from substrate_services.world.file_listing import ENTRIES_PAGE, FileReader, file_error
from substrate_services.world.looks import Looks
from substrate_services.world.steps import ExecRequest
from substrate_services.world.worlds import World, Worlds

if TYPE_CHECKING:
    from substrate_services.wire.errors import Context

_OFFSET_LIMIT = 1 << 63
_CANNOT_START = (126, 127)  # as a shell says it; no errno of a file operation

PartT = TypeVar("PartT", files_pb2.WriteFileRequest, files_pb2.UploadTreeRequest)


class FileRpcs(world_service_pb2_grpc.WorldServiceServicer):
    """The part of WorldService that is about files.

    Args:
        worlds: the host's worlds.
        execs: does and records what changes them.
        looks: reads in them.
        store: the host's objects.
    """

    def __init__(self, *, worlds: Worlds, execs: Execs, looks: Looks, store: ObjectStore) -> None:
        self._worlds = worlds
        self._execs = execs
        self._store = store
        self._files = FileReader(looks)

    # -- reading -------------------------------------------------------------------------------

    async def StatFile(
        self, request: files_pb2.StatFileRequest, context: Context
    ) -> files_pb2.StatFileResponse:
        """See the contract."""
        world, path = self._place(request.world_id, request.path)
        entry = await self._files.stat(world, path)
        return files_pb2.StatFileResponse(state=file_state_to_proto(entry.state))

    async def ListFiles(
        self, request: files_pb2.ListFilesRequest, context: Context
    ) -> files_pb2.ListFilesResponse:
        """See the contract."""
        world, path = self._place(request.world_id, request.path)
        if request.page_size < 0:
            raise InvalidField("page_size", request.page_size, "expected 0 or more")
        size = min(request.page_size or ENTRIES_PAGE, ENTRIES_PAGE)
        query = {"world_id": request.world_id, "path": path, "depth": request.depth}
        position = validation.page_position(request.page_token, query)
        found = await self._files.list(
            world,
            path,
            depth=max(1, request.depth),
            after=_entry_of(request.page_token, position),
            limit=size + 1,  # one more, to know whether there is another page
        )
        token = ""
        if len(found) > size:
            found.pop()
            token = validation.page_token(found[-1].path.hex(), query)
        return files_pb2.ListFilesResponse(
            entries=[
                files_pb2.FileEntry(path=entry.path, state=file_state_to_proto(entry.state))
                for entry in found
            ],
            next_page_token=token,
        )

    async def ReadFile(
        self, request: files_pb2.ReadFileRequest, context: Context
    ) -> AsyncIterator[files_pb2.ReadFileResponse]:
        """See the contract."""
        world, path = self._place(request.world_id, request.path)
        for field, value in (("offset", request.offset), ("length", request.length)):
            if value >= _OFFSET_LIMIT:
                raise InvalidField(field, value, f"expected less than {_OFFSET_LIMIT}")
        pieces = self._files.read(world, path, offset=request.offset, length=request.length or None)
        async with aclosing(pieces):
            async for data in pieces:
                yield files_pb2.ReadFileResponse(data=data)

    async def DownloadTree(
        self, request: files_pb2.DownloadTreeRequest, context: Context
    ) -> AsyncIterator[files_pb2.DownloadTreeResponse]:
        """See the contract."""
        world, path = self._place(request.world_id, request.path)
        async with aclosing(self._files.tree(world, path)) as pieces:
            async for data in pieces:
                yield files_pb2.DownloadTreeResponse(tar=data)

    async def WatchFiles(
        self, request: files_pb2.WatchFilesRequest, context: Context
    ) -> AsyncIterator[files_pb2.WatchFilesResponse]:
        """See the contract."""
        world, path = self._place(request.world_id, request.path)
        async with aclosing(self._files.watch(world, path, recursive=request.recursive)) as notices:
            async for notice in notices:
                yield _notice_to_proto(world, notice)

    # -- changing ------------------------------------------------------------------------------

    async def WriteFile(
        self, request_iterator: AsyncIterable[files_pb2.WriteFileRequest], context: Context
    ) -> files_pb2.WriteFileResponse:
        """See the contract."""
        header, parts = await _begin(aiter(request_iterator))
        world = self._worlds.get(header.header.world_id)
        file_steps.write_step(header.header, world.spec.cwd, "")  # before anything is kept
        digest = await keep_content(self._store, _rest(parts, lambda part: part.data))
        step = file_steps.write_step(header.header, world.spec.cwd, digest)
        return files_pb2.WriteFileResponse(result=await self._step(world, step, "write"))

    async def UploadTree(
        self, request_iterator: AsyncIterable[files_pb2.UploadTreeRequest], context: Context
    ) -> files_pb2.UploadTreeResponse:
        """See the contract."""
        header, parts = await _begin(aiter(request_iterator))
        world = self._worlds.get(header.header.world_id)
        file_steps.upload_step(header.header, world.spec.cwd, "")
        tar = checked_tar(_rest(parts, lambda part: part.tar))
        digest = await keep_content(self._store, tar)
        step = file_steps.upload_step(header.header, world.spec.cwd, digest)
        return files_pb2.UploadTreeResponse(result=await self._step(world, step, "upload to"))

    async def RemoveFile(
        self, request: files_pb2.RemoveFileRequest, context: Context
    ) -> files_pb2.RemoveFileResponse:
        """See the contract."""
        world = self._worlds.get(request.world_id)
        step = file_steps.remove_step(request, world.spec.cwd)
        return files_pb2.RemoveFileResponse(result=await self._step(world, step, "remove"))

    async def RenameFile(
        self, request: files_pb2.RenameFileRequest, context: Context
    ) -> files_pb2.RenameFileResponse:
        """See the contract."""
        world = self._worlds.get(request.world_id)
        step = file_steps.rename_step(request, world.spec.cwd)
        return files_pb2.RenameFileResponse(result=await self._step(world, step, "rename"))

    async def MakeDirectory(
        self, request: files_pb2.MakeDirectoryRequest, context: Context
    ) -> files_pb2.MakeDirectoryResponse:
        """See the contract."""
        world = self._worlds.get(request.world_id)
        step = file_steps.mkdir_step(request, world.spec.cwd)
        return files_pb2.MakeDirectoryResponse(result=await self._step(world, step, "make"))

    async def ChangeMode(
        self, request: files_pb2.ChangeModeRequest, context: Context
    ) -> files_pb2.ChangeModeResponse:
        """See the contract."""
        world = self._worlds.get(request.world_id)
        step = file_steps.chmod_step(request, world.spec.cwd)
        return files_pb2.ChangeModeResponse(result=await self._step(world, step, "change"))

    async def MakeSymlink(
        self, request: files_pb2.MakeSymlinkRequest, context: Context
    ) -> files_pb2.MakeSymlinkResponse:
        """See the contract."""
        world = self._worlds.get(request.world_id)
        step = file_steps.symlink_step(request, world.spec.cwd)
        return files_pb2.MakeSymlinkResponse(result=await self._step(world, step, "make"))

    # -- parts ---------------------------------------------------------------------------------

    def _place(self, world_id: str, path: bytes) -> tuple[World, bytes]:
        world = self._worlds.get(world_id)
        return world, file_steps.world_path("path", path, world.spec.cwd)

    async def _step(self, world: World, request: ExecRequest, verb: str) -> types_pb2.ExecResult:
        """Do a step, and give its result; what keeps it from being done is an error."""
        exec_ = await self._execs.start(world, request)
        action = exec_.start.action
        if action.command.argv != request.argv or action.stdin_digest != request.stdin_digest:
            raise ServiceError(
                "ID_REUSED",
                f"exec {request.exec_id} of this world is another step; use another exec_id",
            )
        record = await self._execs.wait(world, exec_)
        path = file_steps.paths_of(request.argv)[0]
        _check_done(world, record, verb, path, directory=request.kind == "files.upload")
        return result_to_proto(record)


def _check_done(
    world: World, record: SpanRecord, verb: str, path: bytes, *, directory: bool
) -> None:
    reason = record.termination_reason
    what = f"cannot {verb} {os.fsdecode(path)}"
    if reason == "DENIED":
        rule = f"{record.decision.reason} (rule {record.decision.rule_id})"
        raise ServiceError("POLICY_DENIED", rule)
    if reason == "WORLD_REMOVED":
        raise ServiceError("WORLD_NOT_FOUND", f"{what}: the world was removed meanwhile")
    if reason == "AGENT_LOST" and (world.lost or world.removing):
        raise ServiceError("WORLD_LOST", f"{what}: the world ended meanwhile; host.log says how")
    if reason == "AGENT_LOST":
        raise ServiceError("FILE_DENIED", f"{what}: what did it was killed from inside the world")
    if record.exit_code is None:
        raise ServiceError("FILE_DENIED", f"{what}: {record.signal} ended it before it was done")
    if record.exit_code in _CANNOT_START:
        raise ServiceError("FILE_DENIED", f"{what}: the world's user cannot be had")
    if record.exit_code:
        raise file_error(verb, path, record.exit_code, directory=directory)


async def _begin(parts: AsyncIterator[PartT]) -> tuple[PartT, AsyncIterator[PartT]]:
    """The header, which comes first, and what comes behind it."""
    first = await anext(parts, None)
    if first is None or first.WhichOneof("part") != "header":
        raise InvalidField("header", "none", "send it before the data")
    return first, parts


async def _rest(
    parts: AsyncIterator[PartT], content: Callable[[PartT], bytes]
) -> AsyncIterator[bytes]:
    async for part in parts:
        if part.WhichOneof("part") == "header":
            raise InvalidField("header", "a second one", "send it once, first")
        yield content(part)


def _entry_of(token: str, position: str | None) -> bytes:
    """The entry that a page ended with; empty for the first page."""
    try:
        entry = bytes.fromhex(position or "")
    except ValueError:
        entry = b"\0"
    if b"\0" in entry:
        raise InvalidField("page_token", token, "expected next_page_token of an earlier answer")
    return entry


def _notice_to_proto(world: World, notice: Notice) -> files_pb2.WatchFilesResponse:
    if notice.kind == "ready" or notice.kind == "lost":  # noqa: PLR1714 # mypy narrows this
        return files_pb2.WatchFilesResponse(lost=notice.lost)
    project = world.spec.project
    inside = project is not None and is_below(notice.path, project.roots)
    change = Change(
        notice.path,
        notice.kind,
        "project" if inside else "outside",
        None,
        notice.state,
        notice.renamed_from,
    )
    return files_pb2.WatchFilesResponse(change=change_to_proto(change))
