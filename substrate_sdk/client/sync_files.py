"""Files of a world without ``await``: each method runs its asynchronous twin, blocking."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO, Generic, Self, TypeVar

from substrate_sdk.client.files import AsyncFiles, AsyncFileWatch
from substrate_sdk.client.requests import DOWNLOAD_LIMIT_BYTES, PathLike
from substrate_sdk.client.transport import drive

if TYPE_CHECKING:
    from substrate_sdk.types import (
        Download,
        FileEntry,
        FileEvent,  # noqa: F401 # named in a string below
        FileState,
        Result,
    )

ItemT = TypeVar("ItemT")


class Iteration(Generic[ItemT]):
    """An asynchronous iterator of the blocking client, as an iterator."""

    def __init__(self, items: AsyncIterator[ItemT]) -> None:
        self._items = items

    def __iter__(self) -> Iterator[ItemT]:
        return self

    def __next__(self) -> ItemT:
        try:
            return drive(_next(self._items))
        except StopAsyncIteration:
            raise StopIteration from None


async def _next(items: AsyncIterator[ItemT]) -> ItemT:
    return await anext(items)


class FileWatch(Iteration["FileEvent"]):
    """What happens in a directory of a world, from the call on. Iterate, and close it.

    A reader that is slow loses changes and is told how many; see ``lost`` of the events. It ends by
    itself when the directory goes.
    """

    def __init__(self, inner: AsyncFileWatch) -> None:
        super().__init__(inner)
        self._inner = inner

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop watching. Idempotent."""
        drive(self._inner.close())


class Files:
    """Reads and writes files as the world's user may. Relative paths start at the world's cwd.

    Paths are resolved in the world, whose links lead nowhere else.
    """

    def __init__(self, inner: AsyncFiles) -> None:
        self._inner = inner

    def stat(self, path: PathLike) -> FileState:
        """What a path holds. A symbolic link is not followed; ``digest`` is not told.

        Raises:
            WorldFileNotFound: there is nothing (a FileNotFoundError).
            WorldFileDenied: the world's user may not look there (a PermissionError).
        """
        return drive(self._inner.stat(path))

    def exists(self, path: PathLike) -> bool:
        """Whether a path holds anything, be it a link that leads nowhere.

        Raises:
            WorldFileDenied: the world's user may not look there.
        """
        return drive(self._inner.exists(path))

    def list(self, path: PathLike = ".", *, depth: int | None = 1) -> tuple[FileEntry, ...]:
        """The entries of a directory, by name, a directory before what is in it.

        Args:
            path: the directory.
            depth: how many levels; 1 is its own entries, None all.

        Raises:
            WorldFileNotFound: there is no such directory.
            WorldNotADirectory: it is something else (a NotADirectoryError).
        """
        return drive(self._inner.list(path, depth=depth))

    def read(self, path: PathLike, *, offset: int = 0, length: int | None = None) -> bytes:
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
        return drive(self._inner.read(path, offset=offset, length=length))

    def read_pieces(
        self, path: PathLike, *, offset: int = 0, length: int | None = None
    ) -> Iterator[bytes]:
        """The same in pieces, for content too large to hold. Raises as :meth:`read`."""
        return Iteration(self._inner.read_pieces(path, offset=offset, length=length))

    def read_text(self, path: PathLike) -> str:
        """The content of a file as UTF-8.

        Raises:
            UnicodeDecodeError: it is not.
        """
        return drive(self._inner.read_text(path))

    def download_dir(
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
        return drive(self._inner.download_dir(path, target, limit_bytes=limit_bytes))

    def watch(self, path: PathLike = ".", *, recursive: bool = False) -> FileWatch:
        """Be told what happens in a directory; everything that does once this has returned.

        Args:
            path: the directory.
            recursive: also in all that is below it, directories that are made later too.

        Raises:
            WorldFileNotFound: there is no such directory.
            WorldNotADirectory: it is something else.
        """
        return FileWatch(drive(self._inner.watch(path, recursive=recursive)))

    def write(
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
        return drive(self._inner.write(path, data, mode=mode, make_parents=make_parents))

    def remove(self, path: PathLike, *, recursive: bool = False) -> Result:
        """Remove an entry; of a link, the link.

        Args:
            path: the entry.
            recursive: with everything in it.

        Raises:
            WorldFileNotFound: there is none.
            WorldFileDenied: the world's user may not, or it is a directory with something in it.
        """
        return drive(self._inner.remove(path, recursive=recursive))

    def rename(self, path: PathLike, to: PathLike) -> Result:
        """Give an entry another name or place; a file or empty directory of that name is replaced.

        Args:
            path: its present name.
            to: its new name, not a directory to put it into.

        Raises:
            WorldFileNotFound: there is none, or no directory to put it into.
            WorldFileDenied: the world's user may not, or what is there cannot be replaced.
        """
        return drive(self._inner.rename(path, to))

    def mkdir(
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
        return drive(self._inner.mkdir(path, mode=mode, make_parents=make_parents))

    def chmod(self, path: PathLike, mode: int) -> Result:
        """Set permission bits; of a link, those of what it leads to.

        Raises:
            WorldFileNotFound: there is no such entry.
            WorldFileDenied: it is not the world's user's.
        """
        return drive(self._inner.chmod(path, mode))

    def symlink(self, path: PathLike, target: PathLike) -> Result:
        """Make a symbolic link.

        Args:
            path: where the link is.
            target: where it points; it need not be there.

        Raises:
            WorldFileExists: there is something.
        """
        return drive(self._inner.symlink(path, target))

    def upload_dir(self, source: PathLike, path: PathLike) -> Result:
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
        return drive(self._inner.upload_dir(source, path))
