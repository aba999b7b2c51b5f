"""Files of a world: asynchronous. A write is a step: decided, recorded, replayed in order."""

from __future__ import annotations

import functools
import os
from collections.abc import AsyncIterator, Callable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO, Self, TypeVar

from substrate_sdk._facts import FileState
from substrate_sdk._pb.substrate.world.v1alpha1 import files_pb2
from substrate_sdk._results import Result
from substrate_sdk.client import methods
from substrate_sdk.client.connection import Answers, Connection
from substrate_sdk.client.requests import DOWNLOAD_LIMIT_BYTES, PathLike, new_id
from substrate_sdk.errors import CallCancelled, SubstrateError, WorldFileNotFound

if TYPE_CHECKING:
    from substrate_sdk.types import Download, FileEntry, FileEvent

_PIECE = 256 << 10
_ALL_LEVELS = (1 << 32) - 1

PartT = TypeVar("PartT")
_WatchAnswers = Answers[files_pb2.WatchFilesRequest, files_pb2.WatchFilesResponse]


class AsyncFileWatch:
    """What happens in a directory of a world, from the call on. Iterate, and close it.

    A reader that is slow loses changes and is told how many; see ``lost`` of the events. It ends by
    itself when the directory goes.
    """

    def __init__(self, answers: _WatchAnswers) -> None:
        self._answers = answers

    def __aiter__(self) -> AsyncIterator[FileEvent]:
        return self

    async def __anext__(self) -> FileEvent:
        from substrate_sdk.types import FileEvent

        return FileEvent.from_proto(await anext(self._answers))

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
        """Stop watching. Idempotent."""
        await self._answers.close()


class AsyncFiles:
    """Reads and writes files as the world's user may. Relative paths start at the world's cwd.

    Paths are resolved in the world, whose links lead nowhere else.
    """

    def __init__(self, connection: Connection, world_id: str) -> None:
        self._connection = connection
        self._world_id = world_id

    # -- reading -------------------------------------------------------------------------------

    async def stat(self, path: PathLike) -> FileState:
        """What a path holds. A symbolic link is not followed; ``digest`` is not told.

        Raises:
            WorldFileNotFound: there is nothing (a FileNotFoundError).
            WorldFileDenied: the world's user may not look there (a PermissionError).
        """
        answer = await self._connection.unary(
            methods.STAT_FILE,
            files_pb2.StatFileRequest(world_id=self._world_id, path=os.fsencode(path)),
        )
        return FileState.from_proto(answer.state)

    async def exists(self, path: PathLike) -> bool:
        """Whether a path holds anything, be it a link that leads nowhere.

        Raises:
            WorldFileDenied: the world's user may not look there.
        """
        try:
            await self.stat(path)
        except WorldFileNotFound:
            return False
        return True

    async def list(self, path: PathLike = ".", *, depth: int | None = 1) -> tuple[FileEntry, ...]:
        """The entries of a directory, by name, a directory before what is in it.

        Args:
            path: the directory.
            depth: how many levels; 1 is its own entries, None all.

        Raises:
            WorldFileNotFound: there is no such directory.
            WorldNotADirectory: it is something else (a NotADirectoryError).
        """
        request = files_pb2.ListFilesRequest(
            world_id=self._world_id,
            path=os.fsencode(path),
            depth=_ALL_LEVELS if depth is None else max(1, min(depth, _ALL_LEVELS)),
        )
        from substrate_sdk.types import FileEntry

        found: list[FileEntry] = []
        while True:
            answer = await self._connection.unary(methods.LIST_FILES, request)
            found.extend(FileEntry.from_proto(entry) for entry in answer.entries)
            request.page_token = answer.next_page_token
            if not answer.next_page_token:
                return tuple(found)

    async def read(self, path: PathLike, *, offset: int = 0, length: int | None = None) -> bytes:
        """The content of a file, or a part of it.

        Args:
            path: absolute, or relative to the world's cwd.
            offset: of the first byte.
            length: bytes at most; None means to the end.

        Raises:
            WorldFileNotFound: there is no such file (a FileNotFoundError).
            WorldFileDenied: the world's user may not read it (a PermissionError), or it is no file.
            WorldIsADirectory: it is a directory (an IsADirectoryError).
        """
        pieces = self.read_pieces(path, offset=offset, length=length)
        return b"".join([piece async for piece in pieces])

    async def read_pieces(
        self, path: PathLike, *, offset: int = 0, length: int | None = None
    ) -> AsyncIterator[bytes]:
        """The same in pieces, for content too large to hold. Raises as :meth:`read`."""
        taken = 0

        def request() -> files_pb2.ReadFileRequest:
            return files_pb2.ReadFileRequest(
                world_id=self._world_id,
                path=os.fsencode(path),
                offset=offset + taken,
                length=0 if length is None else length - taken,
            )

        if length == 0:
            return
        answers = self._connection.stream(methods.READ_FILE, request)
        try:
            async for answer in answers:
                taken += len(answer.data)
                yield answer.data
                if length is not None and taken >= length:
                    break
        finally:
            await answers.close()

    async def read_text(self, path: PathLike) -> str:
        """The content of a file as UTF-8.

        Raises:
            UnicodeDecodeError: it is not.
        """
        return (await self.read(path)).decode("utf-8")

    async def download_dir(
        self,
        path: PathLike,
        target: PathLike,
        *,
        limit_bytes: int = DOWNLOAD_LIMIT_BYTES,
    ) -> Download:
        """Copy what is below a directory of the world into one here.

        Files, directories, symbolic links (as they are) and hard links, with permission bits and
        times, are written below ``target`` and nowhere else; what is there already is replaced,
        and the rest of it stays. Sockets, fifos and devices are left out. What was written until
        a failure stays.

        Args:
            path: the directory in the world.
            target: the directory here; made where it is missing.
            limit_bytes: of content, at most.

        Raises:
            WorldFileNotFound: there is no such directory in the world.
            WorldFileDenied: the world's user may not read all of it.
            UnsafeTree: it has a set-id file, a name that leads out of it, or goes through a link
                that is here already.
            TooLarge: there is more than ``limit_bytes``.
        """
        from substrate_sdk.client import trees

        request = files_pb2.DownloadTreeRequest(world_id=self._world_id, path=os.fsencode(path))
        answers = self._connection.stream(methods.DOWNLOAD_TREE, lambda: request, resumable=False)
        in_thread = self._connection.runtime.in_thread
        writer = await in_thread(lambda: trees.TreeWriter(target, limit_bytes=limit_bytes))
        try:
            async for answer in answers:
                await in_thread(functools.partial(writer.feed, answer.tar))
            return await in_thread(writer.finish)
        finally:
            writer.close()
            await answers.close()

    async def watch(self, path: PathLike = ".", *, recursive: bool = False) -> AsyncFileWatch:
        """Be told what happens in a directory; everything that does once this has returned.

        Args:
            path: the directory.
            recursive: also in all that is below it, directories that are made later too.

        Raises:
            WorldFileNotFound: there is no such directory.
            WorldNotADirectory: it is something else.
        """
        request = files_pb2.WatchFilesRequest(
            world_id=self._world_id, path=os.fsencode(path), recursive=recursive
        )
        answers = self._connection.stream(methods.WATCH_FILES, lambda: request, resumable=False)
        try:
            await anext(answers)  # says that all is watched now
        except StopAsyncIteration as error:
            raise CallCancelled("the host ended the watch before it began") from error
        except BaseException:
            await answers.close()
            raise
        return AsyncFileWatch(answers)

    # -- changing: each a step with a span of its own ------------------------------------------

    async def write(
        self,
        path: PathLike,
        data: bytes | str | BinaryIO,
        *,
        mode: int | None = None,
        make_parents: bool = False,
    ) -> Result:
        """Write a whole file.

        Args:
            path: absolute, or relative to the world's cwd.
            data: the content; text is written as UTF-8. A file that is open for reading in binary
                is read from where it stands, in constant memory; it has to be seekable.
            mode: permission bits of a new file; 0o644 when None.
            make_parents: make missing directories.

        Raises:
            WorldFileNotFound: a directory above it is missing.
            WorldFileDenied: the world's user may not write there.
            WorldIsADirectory: there is a directory.
        """
        header = files_pb2.WriteFileHeader(
            world_id=self._world_id,
            exec_id=new_id("exe_"),
            path=os.fsencode(path),
            mode=mode,
            make_parents=make_parents,
        )
        first = files_pb2.WriteFileRequest(header=header)
        open_pieces = _pieces_of(data)
        failures: list[Exception] = []

        def requests() -> Iterator[files_pb2.WriteFileRequest]:
            yield first
            parts = (files_pb2.WriteFileRequest(data=piece) for piece in open_pieces())
            # A second header is refused: what was sent until a failure is not to pass for the file.
            yield from _until_failure(parts, failures, first)

        try:
            answer = await self._connection.upload(methods.WRITE_FILE, requests, timeout_s=None)
        except SubstrateError as error:
            raise (failures[0] if failures else error) from None
        return Result.from_proto(answer.result)

    async def remove(self, path: PathLike, *, recursive: bool = False) -> Result:
        """Remove an entry; of a link, the link.

        Args:
            path: the entry.
            recursive: with everything in it.

        Raises:
            WorldFileNotFound: there is none.
            WorldFileDenied: the world's user may not, or it is a directory with something in it.
        """
        request = files_pb2.RemoveFileRequest(
            world_id=self._world_id,
            exec_id=new_id("exe_"),
            path=os.fsencode(path),
            recursive=recursive,
        )
        answer = await self._connection.unary(methods.REMOVE_FILE, request)
        return Result.from_proto(answer.result)

    async def rename(self, path: PathLike, to: PathLike) -> Result:
        """Give an entry another name or place; a file or empty directory of that name is replaced.

        Args:
            path: its present name.
            to: its new name, not a directory to put it into.

        Raises:
            WorldFileNotFound: there is none, or no directory to put it into.
            WorldFileDenied: the world's user may not, or what is there cannot be replaced.
        """
        request = files_pb2.RenameFileRequest(
            world_id=self._world_id, exec_id=new_id("exe_"), to=os.fsencode(to)
        )
        setattr(request, "from", os.fsencode(path))
        answer = await self._connection.unary(methods.RENAME_FILE, request)
        return Result.from_proto(answer.result)

    async def mkdir(
        self, path: PathLike, *, mode: int | None = None, make_parents: bool = False
    ) -> Result:
        """Make a directory.

        Args:
            path: the directory.
            mode: its permission bits; 0o755 when None.
            make_parents: make missing directories above it.

        Raises:
            WorldFileExists: there is something (a FileExistsError).
            WorldFileNotFound: a directory above it is missing.
        """
        request = files_pb2.MakeDirectoryRequest(
            world_id=self._world_id,
            exec_id=new_id("exe_"),
            path=os.fsencode(path),
            mode=mode,
            make_parents=make_parents,
        )
        answer = await self._connection.unary(methods.MAKE_DIRECTORY, request)
        return Result.from_proto(answer.result)

    async def chmod(self, path: PathLike, mode: int) -> Result:
        """Set permission bits; of a link, those of what it leads to.

        Raises:
            WorldFileNotFound: there is no such entry.
            WorldFileDenied: it is not the world's user's.
        """
        request = files_pb2.ChangeModeRequest(
            world_id=self._world_id, exec_id=new_id("exe_"), path=os.fsencode(path), mode=mode
        )
        answer = await self._connection.unary(methods.CHANGE_MODE, request)
        return Result.from_proto(answer.result)

    async def symlink(self, path: PathLike, target: PathLike) -> Result:
        """Make a symbolic link.

        Args:
            path: where the link is.
            target: where it points; it need not be there.

        Raises:
            WorldFileExists: there is something.
        """
        request = files_pb2.MakeSymlinkRequest(
            world_id=self._world_id,
            exec_id=new_id("exe_"),
            path=os.fsencode(path),
            target=os.fsencode(target),
        )
        answer = await self._connection.unary(methods.MAKE_SYMLINK, request)
        return Result.from_proto(answer.result)

    async def upload_dir(self, source: PathLike, path: PathLike) -> Result:
        """Copy what is below a directory here into one of the world.

        Files, directories, symbolic links (as they are) and hard links, with permission bits and
        times; sockets, fifos and devices are left out. Files that are there are replaced, and the
        rest of what is there stays.

        Args:
            source: the directory here.
            path: the directory in the world; made where it is missing.

        Raises:
            OSError: something here cannot be read.
            WorldFileDenied: the world's user may not write there.
            WorldNotADirectory: there is something else.
        """
        header = files_pb2.UploadTreeHeader(
            world_id=self._world_id, exec_id=new_id("exe_"), path=os.fsencode(path)
        )
        failures: list[Exception] = []

        from substrate_sdk.client import trees

        def requests() -> Iterator[files_pb2.UploadTreeRequest]:
            first = files_pb2.UploadTreeRequest(header=header)
            yield first
            parts = (files_pb2.UploadTreeRequest(tar=piece) for piece in trees.pack(source))
            yield from _until_failure(parts, failures, first)

        try:
            answer = await self._connection.upload(methods.UPLOAD_TREE, requests, timeout_s=None)
        except SubstrateError as error:
            raise (failures[0] if failures else error) from None
        return Result.from_proto(answer.result)


def _pieces_of(data: bytes | str | BinaryIO) -> Callable[[], Iterator[bytes]]:
    """Gives the content in pieces, as often as it is asked."""
    if isinstance(data, str):
        data = data.encode("utf-8")
    if isinstance(data, (bytes, bytearray, memoryview)):
        content = memoryview(data)

        def cut() -> Iterator[bytes]:
            for start in range(0, len(content), _PIECE):
                yield bytes(content[start : start + _PIECE])

        return cut
    file, start = data, data.tell()

    def read() -> Iterator[bytes]:
        file.seek(start)
        while piece := file.read(_PIECE):
            yield piece

    return read


def _until_failure(
    parts: Iterator[PartT], failures: list[Exception], last: PartT
) -> Iterator[PartT]:
    """The parts; where making them fails, ``last`` in place of the rest.

    A transport would take the failure for one of the call's, and try that again.
    """
    del failures[:]
    try:
        yield from parts
    except Exception as error:  # noqa: BLE001 # whoever asked for the call raises it again
        failures.append(error)
        yield last
