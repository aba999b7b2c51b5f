"""Writing to the host's project: each operation checked before and after, and undone if need be.

Every path is resolved beneath the project's own directory, through no link (``beneath``), and
nothing is overwritten: what is put in place is exchanged for what was there (renameat2(2)), which
then is looked at. Was it not what was expected, because somebody saved a file just then, it goes
back.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from substrate_services.world.beneath import (
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    Caller,
    open_beneath,
    rename,
    sync_filesystem,
)
from substrate_services.world.layers import Xattrs, user_xattrs
from substrate_services.world.removal import remove_tree
from substrate_services.world.undo_log import Entry, Operation, UndoLog

_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EXDEV)


class Moved(Exception):
    """The host's entry is not what it was when the apply was planned."""

    def __init__(self, path: bytes) -> None:
        super().__init__(f"{os.fsdecode(path)} changed on the host meanwhile")
        self.path = path


class HostTree:
    """The directories of a project on the host, open.

    Args:
        roots: the project's directories.
        caller: for whom they are read and written.

    Raises:
        OSError: one cannot be opened.
    """

    def __init__(self, roots: tuple[bytes, ...], caller: Caller) -> None:
        self.roots = roots
        self.caller = caller
        self._stack = contextlib.ExitStack()
        self._fds: list[int] = []
        with caller.acting():
            for root in roots:
                flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
                self._fds.append(descriptor := os.open(root, flags))
                self._stack.callback(os.close, descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._stack.close()

    # -- looking -------------------------------------------------------------------------------

    def locate(self, path: bytes) -> tuple[int, bytes] | None:
        """The number of the root that a path is in, and the path from there; None for neither."""
        for number, root in enumerate(self.roots):
            if path == root:
                return number, b"."
            if path.startswith(root + b"/"):
                return number, path[len(root) + 1 :]
        return None

    def absolute(self, root: int, path: bytes) -> bytes:
        """The host's name of a path in a root."""
        return self.roots[root] if path == b"." else os.path.join(self.roots[root], path)

    def status(self, root: int, path: bytes) -> os.stat_result | None:
        """The entry at a path; None where there is none, or a link leads there."""
        try:
            with self._entry(root, path) as descriptor:
                return os.fstat(descriptor)
        except OSError as error:
            if error.errno in _GONE:
                return None
            raise

    def link_target(self, root: int, path: bytes) -> bytes:
        """Where a symbolic link points."""
        with self._parent(root, path) as (parent, name):
            return os.readlink(name, dir_fd=parent)

    def names(self, root: int, path: bytes) -> list[bytes]:
        """The names in a directory."""
        with self.caller.acting():
            descriptor = open_beneath(
                self._fds[root], path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
            )
            try:
                return sorted(map(os.fsencode, os.listdir(descriptor)))
            finally:
                os.close(descriptor)

    @contextlib.contextmanager
    def reading(self, root: int, path: bytes) -> Iterator[int]:
        """A regular file, open for reading."""
        with self.caller.acting():
            flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW
            descriptor = open_beneath(self._fds[root], path, flags)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise OSError(errno.EINVAL, "not a regular file", os.fsdecode(path))
            yield descriptor
        finally:
            os.close(descriptor)

    def xattrs(self, root: int, path: bytes) -> Xattrs:
        """The attributes of an entry in the user's namespace."""
        with self._entry(root, path) as descriptor:
            if stat.S_IFMT(os.fstat(descriptor).st_mode) not in (stat.S_IFREG, stat.S_IFDIR):
                return ()
            return user_xattrs(b"/proc/self/fd/%d" % descriptor)

    @contextlib.contextmanager
    def _entry(self, root: int, path: bytes) -> Iterator[int]:
        """An entry by itself, not opened for anything (O_PATH)."""
        with self._parent(root, path) as (parent, name):
            descriptor = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
            try:
                yield descriptor
            finally:
                os.close(descriptor)

    @contextlib.contextmanager
    def _parent(self, root: int, path: bytes) -> Iterator[tuple[int, bytes]]:
        """The directory that an entry is in, and its name there, as the caller."""
        directory, name = os.path.split(path)
        with self.caller.acting():
            flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW
            parent = open_beneath(self._fds[root], directory or b".", flags)
            try:
                yield parent, name
            finally:
                os.close(parent)

    # -- staging -------------------------------------------------------------------------------

    def make_staging(self, log: UndoLog) -> None:
        """Make the staging directory of each root."""
        with self.caller.acting():
            for descriptor in self._fds:
                os.mkdir(log.staging_name, 0o700, dir_fd=descriptor)

    @contextlib.contextmanager
    def staged_parent(self, log: UndoLog, root: int, path: bytes) -> Iterator[int]:
        """The directory that an entry of the staging directory is in; the caller acts."""
        directory = os.path.join(log.staging_name, os.path.dirname(path)).rstrip(b"/")
        with self.caller.acting():
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
            descriptor = open_beneath(self._fds[root], directory, flags)
            try:
                yield descriptor
            finally:
                os.close(descriptor)

    def remove_staging(self, log: UndoLog) -> None:
        """Remove the staging directories, with what was there before in them."""
        with self.caller.acting():
            for root in self.roots:
                remove_tree(Path(os.fsdecode(os.path.join(root, log.staging_name))))

    def sync(self) -> None:
        """Bring what was written to the disk."""
        for descriptor in self._fds:
            sync_filesystem(descriptor)

    # -- writing -------------------------------------------------------------------------------

    def do(self, log: UndoLog, operation: Operation) -> None:
        """Carry one operation out.

        Raises:
            Moved: the host's entry is another by now; it is as it was.
            OSError: the caller may not.
        """
        path = self.absolute(operation.root, operation.path)
        try:
            if operation.kind == "attributes":
                self._set_attributes(operation, path)
                return
            with (
                self.staged_parent(log, operation.root, operation.slot) as staging,
                self._parent(operation.root, operation.path) as (parent, name),
            ):
                if operation.kind == "put" and operation.old is None:
                    rename(staging, operation.slot, parent, name, RENAME_NOREPLACE)
                    return
                _require(_lstat(name, parent), operation.old, path)
                put = operation.kind == "put"
                if put:
                    rename(staging, operation.slot, parent, name, RENAME_EXCHANGE)
                else:
                    rename(parent, name, staging, operation.slot, RENAME_NOREPLACE)
                try:
                    _require(_lstat(operation.slot, staging), operation.old, path)
                    _require_empty(staging, operation.slot, path)
                except (Moved, OSError):
                    if put:
                        rename(staging, operation.slot, parent, name, RENAME_EXCHANGE)
                    else:
                        rename(staging, operation.slot, parent, name, RENAME_NOREPLACE)
                    raise
        except OSError as error:
            if error.errno in (*_GONE, errno.EEXIST):
                raise Moved(path) from error
            raise

    def undo(self, log: UndoLog, operation: Operation) -> bool:
        """Take one operation back if it was done; False where the host has moved on since."""
        try:
            return self._undo(log, operation)
        except OSError as error:
            if error.errno in (*_GONE, errno.EEXIST):
                return False
            raise

    def _undo(self, log: UndoLog, operation: Operation) -> bool:
        if operation.kind == "attributes":
            return self._unset_attributes(operation)
        with (
            self.staged_parent(log, operation.root, operation.slot) as staging,
            self._parent(operation.root, operation.path) as (parent, name),
        ):
            here, aside = _lstat(name, parent), _lstat(operation.slot, staging)
            old_ino = operation.old.ino if operation.old is not None else None
            if operation.kind == "take":
                if aside is None:
                    return True  # not done
                if here is not None:
                    return False
                rename(staging, operation.slot, parent, name, RENAME_NOREPLACE)
            elif here is None or here.st_ino != operation.new_ino:
                return aside is not None and aside.st_ino == operation.new_ino
            elif old_ino is None:
                rename(parent, name, staging, operation.slot, RENAME_NOREPLACE)
            elif aside is not None and aside.st_ino == old_ino:
                rename(staging, operation.slot, parent, name, RENAME_EXCHANGE)
            return True

    def _set_attributes(self, operation: Operation, path: bytes) -> None:
        with self._entry(operation.root, operation.path) as descriptor:
            _require(os.fstat(descriptor), operation.old, path)
            place = b"/proc/self/fd/%d" % descriptor
            _change_xattrs(place, operation.old_xattrs, operation.xattrs)
            if operation.owner is not None:
                os.chown(place, *operation.owner)
            os.chmod(place, operation.mode)

    def _unset_attributes(self, operation: Operation) -> bool:
        old = operation.old
        assert old is not None
        with self._entry(operation.root, operation.path) as descriptor:
            status = os.fstat(descriptor)
            current = stat.S_IMODE(status.st_mode)
            if status.st_ino != old.ino or current not in (operation.mode, stat.S_IMODE(old.mode)):
                return False
            place = b"/proc/self/fd/%d" % descriptor
            if operation.owner is not None:
                os.chown(place, old.uid, old.gid)
            os.chmod(place, stat.S_IMODE(old.mode))
            with contextlib.suppress(PermissionError):  # not writable before: none were set
                _change_xattrs(place, user_xattrs(place), operation.old_xattrs)
            return True


def _change_xattrs(place: bytes, before: Xattrs, after: Xattrs) -> None:
    if before == after:
        return
    names = {name for name, _value in after}
    for name, _value in before:
        if name not in names:
            os.removexattr(place, name)
    for name, value in after:
        os.setxattr(place, name, value)


def _lstat(name: bytes, directory: int) -> os.stat_result | None:
    try:
        return os.lstat(name, dir_fd=directory)
    except FileNotFoundError:
        return None


def _require(status: os.stat_result | None, expected: Entry | None, path: bytes) -> None:
    """Raise Moved where an entry is not the expected one."""
    if status is None or expected is None:
        raise Moved(path)
    found = Entry.of(status)
    if stat.S_ISDIR(found.mode):
        same = (found.ino, found.mode, found.uid, found.gid) == (
            expected.ino,
            expected.mode,
            expected.uid,
            expected.gid,
        )
    else:
        same = found == expected
    if not same:
        raise Moved(path)


def _require_empty(directory: int, name: bytes, path: bytes) -> None:
    """Raise Moved where a directory that was taken away is not empty."""
    status = os.lstat(name, dir_fd=directory)
    if not stat.S_ISDIR(status.st_mode):
        return
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(name, flags, dir_fd=directory)
    try:
        if os.listdir(descriptor):
            raise Moved(path)
    finally:
        os.close(descriptor)
