"""Layers of an image onto a directory (OCI image specification 1.1, layer.md).

All that is in a layer is hostile. Every place is opened by the kernel as it leads from the
directory, never out of it (openat2(2), RESOLVE_IN_ROOT), and what is opened is worked on by
descriptor, so that no link of an earlier member leads a later one elsewhere.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import stat
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

from substrate_services.world.beneath import open_in_root
from substrate_services.world.images.bounded import each, members
from substrate_services.world.images.errors import ImageInvalid, ImageTooLarge

_WHITEOUT, _OPAQUE = b".wh.", b".wh..wh..opq"
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY
_BLOCK_BYTES = 1 << 20
_DEPTH_LIMIT = 256
_IDS = 65_536  # what a world maps
_XATTR = "SCHILY.xattr."
_XATTRS_LIMIT_BYTES = 3_072  # of one entry: what any file system has room for
_KEPT_LIMIT_BYTES = 64 << 20  # of all directories together, which are dressed at the end
_WRONG_HERE = (errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.ENOENT, errno.EINVAL)


@dataclass(frozen=True, slots=True)
class _Dress:
    """What an entry is beside its content."""

    mode: int
    owner: tuple[int, int] | None  # None: ours
    when_ns: int
    xattrs: tuple[tuple[str, bytes], ...]

    @property
    def size_bytes(self) -> int:
        return sum(len(name) + len(value) for name, value in self.xattrs)


class Unpacker:
    """Puts layers into a directory, lowest first.

    Args:
        root_fd: the directory, empty and nobody else's.
        owners: give entries the owners that the layers name, which takes root; else all are ours.
        entries_limit: members of all layers together.
        size_limit_bytes: content of all of them together; holes count.
    """

    def __init__(
        self, root_fd: int, *, owners: bool, entries_limit: int, size_limit_bytes: int
    ) -> None:
        self._root_fd = root_fd
        self._owners = owners
        self._entries_limit = entries_limit
        self._directories: dict[bytes, _Dress] = {}
        self._kept_bytes = 0
        self._made: set[int] = set()  # inodes that this layer brought
        self._seen = 0
        self._size_limit_bytes = size_limit_bytes
        self.size_bytes = 0
        self.left_out = 0  # devices: a world has its own

    def layer(self, stream: IO[bytes]) -> None:
        """Put one layer on top.

        Raises:
            ImageInvalid: a member that cannot be, or that would lead out.
            ImageTooLarge: too many members.
            OSError: of the file system.
        """
        self._made = set()
        with members(stream) as archive:
            for member in each(archive):
                self._seen += 1
                if self._seen > self._entries_limit:
                    raise ImageTooLarge(f"the image has more than {self._entries_limit} entries")
                path = _normal(os.fsencode(member.name))
                try:
                    self._member(archive, member, path)
                except OSError as error:
                    if error.errno in _WRONG_HERE:
                        raise ImageInvalid(f"{os.fsdecode(path)}: {error.strerror}") from error
                    raise
                except RecursionError as error:
                    raise ImageInvalid("directories in directories without end") from error

    def finish(self) -> None:
        """Give directories their modes and times, which unpacking into them would have changed."""
        for path in sorted(self._directories, reverse=True):
            try:
                fd = open_in_root(self._root_fd, path or b".", _DIRECTORY | os.O_NOFOLLOW)
            except OSError:
                continue  # a later layer has something else there
            try:
                _dress(fd, self._directories[path])
            finally:
                os.close(fd)

    # -- members ---------------------------------------------------------------------------------

    def _member(self, archive: tarfile.TarFile, member: tarfile.TarInfo, path: bytes) -> None:
        if not path:
            if member.isdir():
                self._dress_later(b"", member)
            return
        above, name = os.path.split(path)
        with self._parent(above) as parent:
            if name == _OPAQUE:
                self._clear(parent)
                return
            if name.startswith(_WHITEOUT):
                _remove(parent, _checked(name.removeprefix(_WHITEOUT)))
                return
            if member.isdir():
                self._directory(parent, name)
                self._dress_later(path, member)
            elif member.isreg():
                _remove(parent, name)
                self._file(archive, member, parent, name)
            elif member.issym():
                _remove(parent, name)
                os.symlink(os.fsencode(member.linkname), name, dir_fd=parent)
                self._dress_link(parent, name, member)
            elif member.islnk():
                self._hard_link(parent, name, _normal(os.fsencode(member.linkname)))
            elif member.isfifo():
                _remove(parent, name)
                os.mkfifo(name, 0o600, dir_fd=parent)
                self._dress_link(parent, name, member)
                os.chmod(name, member.mode & 0o777, dir_fd=parent)
            elif member.ischr() or member.isblk():
                self.left_out += 1
                return
            else:
                raise ImageInvalid(f"{os.fsdecode(path)}: an entry of unknown type")
            self._made.add(os.lstat(name, dir_fd=parent).st_ino)

    @contextlib.contextmanager
    def _parent(self, above: bytes) -> Iterator[int]:
        """The directory at a path, made where it is missing; links lead inside the tree only."""
        fd = self._open_or_make(above)
        try:
            yield fd
        finally:
            os.close(fd)

    def _open_or_make(self, above: bytes) -> int:
        with contextlib.suppress(FileNotFoundError):
            return open_in_root(self._root_fd, above or b".", _DIRECTORY)
        outer, name = os.path.split(above)
        fd = self._open_or_make(outer)
        try:
            self._directory(fd, name)
        finally:
            os.close(fd)
        # Once more from the top: a link that leads to nothing is no directory.
        return open_in_root(self._root_fd, above, _DIRECTORY)

    def _directory(self, parent: int, name: bytes) -> None:
        try:
            if stat.S_ISDIR(os.lstat(name, dir_fd=parent).st_mode):
                return
            os.unlink(name, dir_fd=parent)
        except FileNotFoundError:
            pass
        os.mkdir(name, 0o755, dir_fd=parent)

    def _file(
        self, archive: tarfile.TarFile, member: tarfile.TarInfo, parent: int, name: bytes
    ) -> None:
        self._require_room(member.size)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(name, flags, 0o600, dir_fd=parent)
        try:
            source = archive.extractfile(member)
            while source is not None and (data := source.read(_BLOCK_BYTES)):
                self.size_bytes += len(data)
                if self.size_bytes > self._size_limit_bytes:
                    raise ImageTooLarge(
                        f"the image unpacks to more than {self._size_limit_bytes} bytes"
                    )
                left = memoryview(data)
                while left:
                    left = left[os.write(fd, left) :]
            _dress(fd, self._dress_of(member))
        finally:
            os.close(fd)

    def _require_room(self, size_bytes: int) -> None:
        """Refuse at once what would not fit: a hole of terabytes takes a line to say."""
        if self.size_bytes + size_bytes > self._size_limit_bytes:
            raise ImageTooLarge(f"the image unpacks to more than {self._size_limit_bytes} bytes")
        if size_bytes > _BLOCK_BYTES:
            disk = os.fstatvfs(self._root_fd)
            if size_bytes > disk.f_bavail * disk.f_frsize:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _hard_link(self, parent: int, name: bytes, target: bytes) -> None:
        above, target_name = os.path.split(target)
        try:
            fd = open_in_root(self._root_fd, above or b".", _DIRECTORY)
            try:
                there = os.lstat(_checked(target_name), dir_fd=fd)
                if stat.S_ISDIR(there.st_mode):
                    raise ImageInvalid(f"{os.fsdecode(name)}: a hard link to a directory")
                with contextlib.suppress(FileNotFoundError):
                    if os.path.samestat(os.lstat(name, dir_fd=parent), there):
                        return
                _remove(parent, name)
                os.link(target_name, name, src_dir_fd=fd, dst_dir_fd=parent, follow_symlinks=False)
            finally:
                os.close(fd)
        except FileNotFoundError as error:
            raise ImageInvalid(
                f"{os.fsdecode(name)}: a hard link to {os.fsdecode(target)}, which is not there"
            ) from error

    def _clear(self, directory: int) -> None:
        """Remove what lower layers had in a directory; what this one brought stays."""
        with os.scandir(directory) as entries:
            found = [(os.fsencode(entry.name), entry.inode()) for entry in entries]
        for name, inode in found:
            if inode not in self._made:
                _remove(directory, name)
            elif stat.S_ISDIR(os.lstat(name, dir_fd=directory).st_mode):
                fd = os.open(name, _DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
                try:
                    self._clear(fd)
                finally:
                    os.close(fd)

    # -- owners, modes, times ----------------------------------------------------------------------

    def _dress_of(self, member: tarfile.TarInfo) -> _Dress:
        xattrs = []
        for name, value in member.pax_headers.items():
            attribute = name.removeprefix(_XATTR)
            # No other kind means anything in a world, and overlayfs's own would be believed.
            if attribute == name or not attribute.startswith("user."):
                continue
            if not attribute.startswith("user.overlay."):
                xattrs.append((attribute, value.encode("utf-8", "surrogateescape")))
        dress = _Dress(
            # Set-id bits do nothing in a world (no_new_privs), and nobody here is to find any.
            mode=member.mode & (0o1777 if member.isdir() else 0o777),
            owner=_owner(member) if self._owners else None,
            when_ns=_time_ns(member),
            xattrs=tuple(xattrs),
        )
        if dress.size_bytes > _XATTRS_LIMIT_BYTES:
            raise ImageInvalid(f"{member.name!r} has {dress.size_bytes} bytes of attributes")
        return dress

    def _dress_later(self, path: bytes, member: tarfile.TarInfo) -> None:
        dress = self._dress_of(member)
        self._kept_bytes += dress.size_bytes
        if self._kept_bytes > _KEPT_LIMIT_BYTES:
            raise ImageTooLarge(f"directories have more than {_KEPT_LIMIT_BYTES} attribute bytes")
        self._directories[path] = dress

    def _dress_link(self, parent: int, name: bytes, member: tarfile.TarInfo) -> None:
        if self._owners:
            os.chown(name, *_owner(member), dir_fd=parent, follow_symlinks=False)
        when_ns = _time_ns(member)
        os.utime(name, ns=(when_ns, when_ns), dir_fd=parent, follow_symlinks=False)


def _dress(fd: int, dress: _Dress) -> None:
    if dress.owner is not None:
        os.fchown(fd, *dress.owner)
    for name, value in dress.xattrs:
        try:
            os.setxattr(fd, name, value)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise ImageInvalid(f"attribute {name!r} cannot be set: {error.strerror}") from error
    os.fchmod(fd, dress.mode)
    os.utime(fd, ns=(dress.when_ns, dress.when_ns))


def _normal(path: bytes) -> bytes:
    """A member's name from the root of the tree. Raises ImageInvalid where it leads out."""
    names = [name for name in path.split(b"/") if name not in (b"", b".")]
    if b".." in names or b"\0" in path:
        raise ImageInvalid(f"{os.fsdecode(path)!r} leads out of the image")
    if len(names) > _DEPTH_LIMIT:
        raise ImageInvalid(f"an entry {len(names)} directories deep")
    return b"/".join(names)


def _checked(name: bytes) -> bytes:
    if name in (b"", b".", b".."):
        raise ImageInvalid(f"{os.fsdecode(name)!r} is no name of an entry")
    return name


def _owner(member: tarfile.TarInfo) -> tuple[int, int]:
    if not (0 <= member.uid < _IDS and 0 <= member.gid < _IDS):
        raise ImageInvalid(
            f"{member.name!r} belongs to {member.uid}:{member.gid}; worlds have ids below {_IDS}"
        )
    return member.uid, member.gid


def _time_ns(member: tarfile.TarInfo) -> int:
    if not math.isfinite(member.mtime):
        raise ImageInvalid(f"{member.name!r} has no time that there is")
    return min(max(int(member.mtime * 1_000_000_000), 0), 1 << 62)


def _remove(parent: int, name: bytes) -> None:
    """Remove an entry with all that is below it; there need not be one."""
    try:
        os.unlink(name, dir_fd=parent)
    except FileNotFoundError:
        return
    except IsADirectoryError:
        # Opened, never named from outside: nobody else works here, and a link is not followed.
        fd = os.open(name, _DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
        try:
            for below in os.listdir(fd):
                _remove(fd, os.fsencode(below))
        finally:
            os.close(fd)
        os.rmdir(name, dir_fd=parent)
