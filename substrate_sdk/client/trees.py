"""Directory trees on this side: packed to go into a world, and written as they come out of one.

What comes out of a world is hostile. It is written below one directory and nowhere else: every
path is walked name by name from that directory's descriptor, through no symbolic link (what
openat2's RESOLVE_BENEATH and RESOLVE_NO_SYMLINKS do, and as portable as this package); new files
are made under another name and renamed into place, so that nothing is ever written through a link
that is there; devices, fifos and set-id bits are not taken.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from typing import BinaryIO

from substrate_sdk._tar import BadTar, TarEntry, TarReader, padding, tar_end, tar_header
from substrate_sdk.client.requests import PathLike
from substrate_sdk.errors import InvalidArgument, TooLarge, UnsafeTree
from substrate_sdk.types import Download

_PIECE_BYTES = 256 << 10
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_NOCTTY | os.O_CLOEXEC
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


# --- packing -----------------------------------------------------------------------------------


def pack(source: PathLike) -> Iterator[bytes]:
    """What is below a directory, as pieces of a tar stream, in constant memory.

    Files, directories, symbolic and hard links; sockets, fifos and devices are left out.

    Raises:
        OSError: something cannot be read.
        InvalidArgument: a file became shorter while it was read.
    """
    root = os.open(os.fsencode(source), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield from _joined(_pack_below(root, b"", {}))
        yield tar_end()
    finally:
        os.close(root)


def _joined(parts: Iterator[bytes]) -> Iterator[bytes]:
    """The same bytes in pieces worth a message each."""
    waiting: list[bytes] = []
    size = 0
    for part in parts:
        waiting.append(part)
        size += len(part)
        if size >= _PIECE_BYTES:
            yield b"".join(waiting)
            waiting, size = [], 0
    yield b"".join(waiting)


def _pack_below(
    directory: int, above: bytes, links: dict[tuple[int, int], bytes]
) -> Iterator[bytes]:
    for name in sorted(os.fsencode(found) for found in os.listdir(directory)):
        path = above + name
        try:
            status = os.stat(name, dir_fd=directory, follow_symlinks=False)
        except FileNotFoundError:
            continue  # gone since it was listed
        mode, mtime = stat.S_IMODE(status.st_mode), int(status.st_mtime)
        if stat.S_ISLNK(status.st_mode):
            target = os.readlink(name, dir_fd=directory)
            yield tar_header(TarEntry(path, "symlink", mode, mtime=mtime, target=target))
        elif stat.S_ISDIR(status.st_mode):
            yield tar_header(TarEntry(path, "dir", mode, mtime=mtime))
            below = os.open(name, _DIRECTORY, dir_fd=directory)
            try:
                yield from _pack_below(below, path + b"/", links)
            finally:
                os.close(below)
        elif stat.S_ISREG(status.st_mode):
            yield from _pack_file(directory, name, path, links)


def _pack_file(
    directory: int, name: bytes, path: bytes, links: dict[tuple[int, int], bytes]
) -> Iterator[bytes]:
    with os.fdopen(os.open(name, _READ, dir_fd=directory), "rb", buffering=0) as file:
        status = os.fstat(file.fileno())
        mode, mtime = stat.S_IMODE(status.st_mode), int(status.st_mtime)
        if not stat.S_ISREG(status.st_mode):
            return  # it was one a moment ago
        if status.st_nlink > 1:
            known = links.setdefault((status.st_dev, status.st_ino), path)
            if known != path:
                yield tar_header(TarEntry(path, "hardlink", mode, mtime=mtime, target=known))
                return
        yield tar_header(TarEntry(path, "file", mode, status.st_size, mtime))
        left = status.st_size
        while left:
            piece = file.read(min(left, _PIECE_BYTES))
            if not piece:
                shown = os.fsdecode(path)
                raise InvalidArgument(f"{shown} became shorter while it was read; try again")
            left -= len(piece)
            yield piece
        yield padding(status.st_size)


# --- writing -----------------------------------------------------------------------------------


class TreeWriter:
    """Writes a tar stream below a directory, piece by piece.

    Args:
        target: the directory; made, with its parents, where it is missing.
        limit_bytes: more content than this is refused.
    """

    def __init__(self, target: PathLike, *, limit_bytes: int) -> None:
        path = os.fsencode(target)
        os.makedirs(path, exist_ok=True)
        self._root = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._limit_bytes = limit_bytes
        self._reader = TarReader()
        self._entries = 0
        self._size_bytes = 0
        self._scratch = b".substrate-%s" % os.urandom(8).hex().encode()
        self._file: BinaryIO | None = None
        self._entry = TarEntry(b"", "dir")
        self._left = 0
        self._parent = (b"", os.dup(self._root))  # where the last entry lies
        self._directories: list[tuple[bytes, int, int]] = []

    def feed(self, piece: bytes) -> None:
        """Take the next piece of the stream.

        Raises:
            UnsafeTree: there is something in it that is not taken.
            TooLarge: it is more than was allowed.
            OSError: something cannot be written.
        """
        try:
            for part in self._reader.feed(piece):
                if isinstance(part, bytes):
                    self._take_content(part)
                else:
                    self._take_entry(part)
        except BadTar as error:
            raise UnsafeTree(f"the world's tree is refused: {error}") from error

    def finish(self) -> Download:
        """Say that the stream is over: directories get their modes. Raises as :meth:`feed`."""
        try:
            self._reader.finish()
        except BadTar as error:
            raise UnsafeTree(f"the world's tree is refused: {error}") from error
        for path, mode, mtime in reversed(self._directories):
            name = self._open_parent(path)
            descriptor = self._open_directory(name, path)
            try:
                os.fchmod(descriptor, mode)
                os.utime(descriptor, (mtime, mtime))
            finally:
                os.close(descriptor)
        return Download(self._entries, self._size_bytes)

    def close(self) -> None:
        """Give up what is held; a file that is not whole goes. Idempotent."""
        if self._file is not None:
            self._file.close()
            self._file = None
            with contextlib.suppress(OSError):
                os.unlink(self._scratch, dir_fd=self._parent[1])
        for descriptor in (self._parent[1], self._root):
            if descriptor >= 0:
                os.close(descriptor)
        self._parent = (b"", -1)
        self._root = -1

    def _take_entry(self, entry: TarEntry) -> None:
        self._entries += 1
        self._size_bytes += entry.size
        if self._size_bytes > self._limit_bytes:
            raise TooLarge(f"the world's tree is larger than {self._limit_bytes} bytes")
        if not entry.path:
            return  # the directory itself: it is the caller's
        name = self._open_parent(entry.path)
        if entry.kind == "dir":
            self._make_directory(name, entry)
        elif entry.kind == "file":
            self._begin_file(entry)
        else:
            self._make_link(name, entry)

    def _make_directory(self, name: bytes, entry: TarEntry) -> None:
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=self._parent[1])
        os.close(self._open_directory(name, entry.path))
        self._directories.append((entry.path, entry.mode & 0o777, entry.mtime))

    def _begin_file(self, entry: TarEntry) -> None:
        if entry.mode & (stat.S_ISUID | stat.S_ISGID):
            shown = os.fsdecode(entry.path)
            raise UnsafeTree(f"the world's tree is refused: {shown} has a set-id bit")
        descriptor = os.open(self._scratch, _CREATE, 0o600, dir_fd=self._parent[1])
        self._file = os.fdopen(descriptor, "wb", buffering=0)
        self._entry, self._left = entry, entry.size
        if not self._left:
            self._end_file()

    def _take_content(self, piece: bytes) -> None:
        assert self._file is not None
        view = memoryview(piece)
        while view:
            view = view[self._file.write(view) :]
        self._left -= len(piece)
        if not self._left:
            self._end_file()

    def _end_file(self) -> None:
        assert self._file is not None
        os.fchmod(self._file.fileno(), self._entry.mode & 0o777)
        os.utime(self._file.fileno(), (self._entry.mtime, self._entry.mtime))
        parent = self._parent[1]
        os.replace(
            self._scratch, os.path.basename(self._entry.path), src_dir_fd=parent, dst_dir_fd=parent
        )
        self._file.close()
        self._file = None

    def _make_link(self, name: bytes, entry: TarEntry) -> None:
        if entry.kind == "symlink":
            # As it is: where it leads is of concern to whoever follows it, and nobody here does.
            os.symlink(entry.target, self._scratch, dir_fd=self._parent[1])
        else:
            self._make_hard_link(entry)
        parent = self._parent[1]
        os.replace(self._scratch, name, src_dir_fd=parent, dst_dir_fd=parent)
        with contextlib.suppress(FileNotFoundError):
            # rename(2) does nothing where both are names of one file.
            os.unlink(self._scratch, dir_fd=parent)

    def _make_hard_link(self, entry: TarEntry) -> None:
        above, _, source = entry.target.rpartition(b"/")
        origin = self._walk(above)
        try:
            os.link(
                source,
                self._scratch,
                src_dir_fd=origin,
                dst_dir_fd=self._parent[1],
                follow_symlinks=False,
            )
        except FileNotFoundError as error:
            raise UnsafeTree(
                f"the world's tree is refused: {os.fsdecode(entry.path)} is a hard link to "
                f"{os.fsdecode(entry.target)}, which is not there"
            ) from error
        finally:
            os.close(origin)

    def _open_parent(self, path: bytes) -> bytes:
        """Have the directory of ``path`` at hand; returns the last name."""
        above, _, name = path.rpartition(b"/")
        known, descriptor = self._parent
        if above != known:
            self._parent = (above, self._walk(above, make=True))
            os.close(descriptor)
        return name

    def _walk(self, path: bytes, *, make: bool = False) -> int:
        descriptor = os.dup(self._root)
        for name in path.split(b"/") if path else ():
            try:
                if make:
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(name, 0o755, dir_fd=descriptor)
                below = os.open(name, _DIRECTORY, dir_fd=descriptor)
            except OSError as error:
                raise _not_a_directory(path, error) from error
            finally:
                os.close(descriptor)
            descriptor = below
        return descriptor

    def _open_directory(self, name: bytes, path: bytes) -> int:
        try:
            return os.open(name, _DIRECTORY, dir_fd=self._parent[1])
        except OSError as error:
            raise _not_a_directory(path, error) from error


def _not_a_directory(path: bytes, error: OSError) -> UnsafeTree:
    return UnsafeTree(
        f"the world's tree is refused: {os.fsdecode(path)} is to be a directory, and what is there "
        f"is not used as one: {error.strerror}"
    )
