"""Reading files of a world: states, entries, content, trees, notices."""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Final

from substrate_services.errors import ServiceError
from substrate_services.world.file_entries import (
    Entry,
    Garbled,
    Notice,
    read_entries,
    read_notices,
)
from substrate_services.world.init_client import InitGone, StartFailed
from substrate_services.world.looks import Look, LookKilled, Looks
from substrate_services.world.worlds import World

ENTRIES_PAGE: Final = 1_000
_DEPTH_LIMIT = 1 << 20  # more than PATH_MAX allows

_REASONS = {
    errno.ENOENT: "FILE_NOT_FOUND",
    errno.ENOTDIR: "FILE_NOT_FOUND",
    errno.EISDIR: "IS_A_DIRECTORY",
    errno.EEXIST: "FILE_EXISTS",
    errno.ENOSPC: "DISK_FULL",
    errno.EDQUOT: "DISK_FULL",
}


def file_error(verb: str, path: bytes, number: int, *, directory: bool = False) -> ServiceError:
    """What an errno of the world's init means to who asked.

    Args:
        verb: what was to be done.
        path: to what.
        number: the errno.
        directory: a directory was asked for, so that ENOTDIR says that there is something else.
    """
    reason = _REASONS.get(number, "FILE_DENIED")
    if directory and number == errno.ENOTDIR:
        reason = "NOT_A_DIRECTORY"
    return ServiceError(reason, f"cannot {verb} {os.fsdecode(path)}: {os.strerror(number)}")


class FileReader:
    """Reads what is in worlds; nothing of it is a step.

    Args:
        looks: does the reading.
    """

    def __init__(self, looks: Looks) -> None:
        self._looks = looks

    async def stat(self, world: World, path: bytes) -> Entry:
        """What a path holds; a symbolic link is not followed.

        Raises:
            ServiceError: FILE_NOT_FOUND, FILE_DENIED, WORLD_LOST.
        """
        async with self._open(world, "stat", path, b"0") as look:
            found = await read_entries(look.output(), limit=1)
            await _check(look, "stat", path)
        if not found:
            raise Garbled("no entry")
        return found[0]

    async def list(
        self, world: World, path: bytes, *, depth: int, after: bytes, limit: int
    ) -> list[Entry]:
        """Entries below a directory, by name, a directory before what is in it.

        Args:
            world: the world.
            path: the directory.
            depth: 1 for its own entries.
            after: the entry that the page before ended with; empty for the first.
            limit: how many at most.

        Raises:
            ServiceError: FILE_NOT_FOUND, NOT_A_DIRECTORY, FILE_DENIED, WORLD_LOST.
        """
        arguments = (b"%d" % min(depth, _DEPTH_LIMIT), after, b"%d" % limit)
        async with self._open(world, "list", path, *arguments) as look:
            found = await read_entries(look.output(), limit=limit)
            await _check(look, "list", path, directory=True)
        return found

    async def read(
        self, world: World, path: bytes, *, offset: int, length: int | None
    ) -> AsyncGenerator[bytes, None]:
        """A regular file's content, in constant memory.

        Raises:
            ServiceError: FILE_NOT_FOUND, IS_A_DIRECTORY, FILE_DENIED, WORLD_LOST.
        """
        size = b"-1" if length is None else b"%d" % length
        async with (
            self._open(world, "read", path, b"%d" % offset, size) as look,
            aclosing(look.output()) as pieces,
        ):
            async for piece in pieces:
                yield piece
            await _check(look, "read", path)

    async def tree(self, world: World, path: bytes) -> AsyncGenerator[bytes, None]:
        """What is below a directory, as a tar stream.

        Raises:
            ServiceError: FILE_NOT_FOUND, NOT_A_DIRECTORY, FILE_DENIED, WORLD_LOST.
        """
        async with (
            self._open(world, "tar", path) as look,
            aclosing(look.output()) as pieces,
        ):
            async for piece in pieces:
                yield piece
            number = await _result(look, "download", path)
        if number == errno.ESTALE:
            raise ServiceError(
                "FILE_DENIED",
                f"cannot download {os.fsdecode(path)}: a file in it became shorter while it was "
                "read; try again when nothing writes to it",
            )
        if number:
            raise file_error("download", path, number, directory=True)

    async def watch(
        self, world: World, path: bytes, *, recursive: bool
    ) -> AsyncGenerator[Notice, None]:
        """What happens in a directory, from the first notice (which says "ready") on.

        Ends when the directory itself goes.

        Raises:
            ServiceError: FILE_NOT_FOUND, NOT_A_DIRECTORY, FILE_DENIED, WORLD_LOST.
        """
        flag = b"1" if recursive else b"0"
        async with (
            self._open(world, "watch", path, flag) as look,
            aclosing(look.output()) as pieces,
        ):
            async for notice in read_notices(pieces):
                yield notice
            number = await _result(look, "watch", path)
        if number in (errno.ENOSPC, errno.EMFILE):
            # inotify(7) says so where a limit of the kernel's is reached; no disk is full.
            raise ServiceError(
                "FILE_DENIED",
                f"cannot watch {os.fsdecode(path)}: too many directories are watched; watch fewer, "
                "or raise fs.inotify.max_user_watches and max_user_instances",
            )
        if number:
            raise file_error("watch", path, number, directory=True)

    @asynccontextmanager
    async def _open(self, world: World, operation: str, *arguments: bytes) -> AsyncIterator[Look]:
        words = (operation.encode(), *arguments)
        try:
            async with self._looks.open(world, words) as look:
                yield look
        except InitGone as error:
            raise _world_ended(world) from error
        except StartFailed as error:
            raise ServiceError(
                "FILE_DENIED", f"the world cannot {operation} files now: {error}"
            ) from error
        except Garbled as error:
            if world.lost or world.removing:
                raise _world_ended(world) from error
            raise ServiceError(
                "FILE_DENIED", f"the world's answer to {operation} is not to be used: {error}"
            ) from error


async def _result(look: Look, verb: str, path: bytes) -> int:
    try:
        return await look.result()
    except LookKilled as error:
        raise ServiceError(
            "FILE_DENIED", f"cannot {verb} {os.fsdecode(path)}: {error}; try again"
        ) from error


async def _check(look: Look, verb: str, path: bytes, *, directory: bool = False) -> None:
    number = await _result(look, verb, path)
    if number:
        raise file_error(verb, path, number, directory=directory)


def _world_ended(world: World) -> ServiceError:
    world_id = world.spec.world_id
    if world.removing:
        return ServiceError("WORLD_NOT_FOUND", f"world {world_id} was removed meanwhile")
    return ServiceError("WORLD_LOST", f"world {world_id} ended unexpectedly; make another")
