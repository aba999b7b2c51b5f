"""Reading what lies in a layer's upper directory, whatever those who write there do meanwhile."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from substrate_services.journal.schema import FileKind
from substrate_services.objects.errors import ObjectTooLarge
from substrate_services.world.beneath import open_beneath
from substrate_services.world.layers import (
    Below,
    Identity,
    Layer,
    UpperNode,
    file_state,
    is_whiteout,
    kind_of,
    user_xattrs,
    xattr_of,
)

# Of a file in an upper layer, by a descriptor; raises ObjectTooLarge if it has grown meanwhile.
KeepFile = Callable[[int, os.stat_result], str]

# What lies deeper in an upper is not looked at: programs can only get there step by step, and the
# host must be able to name it (PATH_MAX is 4096) below the layer's own directory.
PATH_LIMIT_BYTES = 3584
# A file of terabytes costs its maker nothing but would cost the host its reading.
HOLES_LIMIT_BYTES = 1 << 30

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_ATTEMPTS = 3
# Of what inodes' times are read from (inode_set_ctime_current()); Python has no name for it.
_CLOCK_REALTIME_COARSE = 5


def walk_upper(layer: Layer, keep: KeepFile, previous: UpperNode | None = None) -> UpperNode:
    """Read a layer's whole upper directory: the oracle that faster ways are held against.

    What runs in the world may move things about meanwhile: nothing is reached but what lies in the
    upper, no link is followed, and nothing is opened but regular files and directories.

    Args:
        layer: the layer; it may be mounted, and may change while it is read.
        keep: gives the digest of a regular file.
        previous: an earlier walk; files whose inode, size, mtime and ctime are unchanged are not
            read again, and nodes of what is as it was are shared with it.
    """
    return Walk(layer.upper, layer, keep).run(previous)


def walk_directory(directory: bytes, keep: KeepFile) -> UpperNode:
    """Read a plain directory, of no layer, as :func:`walk_upper` reads an upper."""
    return Walk(directory, Layer("", b"/", (), Path()), keep).run(None)


class Walk:
    """One reading of a directory, of a layer's upper as a rule."""

    def __init__(self, directory: bytes, layer: Layer, keep: KeepFile) -> None:
        self._directory = directory
        self._layer = layer
        self._keep = keep
        self._root_fd = -1

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """While this lasts, there is something to read."""
        self._root_fd = os.open(self._directory, _DIRECTORY)
        try:
            yield
        finally:
            os.close(self._root_fd)

    def run(self, previous: UpperNode | None) -> UpperNode:
        """Read all that there is."""
        with self.opened():
            root = UpperNode(file_state("dir", os.fstat(self._root_fd), None, None))
            return self.whole(b"", root, previous)

    def whole(self, relative: bytes, root: UpperNode, previous: UpperNode | None) -> UpperNode:
        """Read all below a directory. What is as it was is the very node of the walk before."""
        top = {b"": root}
        # Every directory with where it hangs, those above before those below.
        found = [(top, b"", root, previous)]
        pending = [(relative, root, previous)]
        while pending:
            path, node, before = pending.pop()
            for name, child in self._fill(path, node, before):
                earlier = before.children.get(name) if before is not None else None
                found.append((node.children, name, child, earlier))
                pending.append((os.path.join(path, name), child, earlier))
        for siblings, name, node, before in reversed(found):
            siblings[name] = settled(node, before)
        return top[b""]

    def open_directory(self, relative: bytes) -> int:
        """Open a directory below the root."""
        if len(relative) > PATH_LIMIT_BYTES:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        # From the root each time: a descriptor for each level would be more than there are.
        return open_beneath(self._root_fd, relative or b".", _DIRECTORY)

    def _fill(
        self, relative: bytes, node: UpperNode, before: UpperNode | None
    ) -> list[tuple[bytes, UpperNode]]:
        """Read one directory into its node; returns the directories found in it."""
        try:
            fd = self.open_directory(relative)
        except OSError as error:
            node.unread = why_unread(error)
            return []
        try:
            self.describe(fd, node)
            with os.scandir(fd) as entries:
                names = sorted(os.fsencode(entry.name) for entry in entries)
            directories = []
            for name in names:
                child = self.entry(fd, name, before.children.get(name) if before else None)
                if child is not None:
                    node.children[name] = child
                    if child.kind == "dir":
                        directories.append((name, child))
            return directories
        finally:
            os.close(fd)

    def describe(self, fd: int, node: UpperNode) -> None:
        """Note down what a directory itself is."""
        status = os.fstat(fd)
        node.state = file_state("dir", status, None, None)
        node.identity = _identity(status)
        node.opaque = xattr_of(fd, self._layer.xattr("opaque")) == b"y"
        node.redirect = xattr_of(fd, self._layer.xattr("redirect"))
        node.xattrs = user_xattrs(fd)

    def entry(self, directory_fd: int, name: bytes, before: UpperNode | None) -> UpperNode | None:
        """Read one entry; None if it has gone since its directory was listed."""
        unread = ""
        status = None
        for _attempt in range(_ATTEMPTS):
            try:
                now = _now_ns()
                status = os.lstat(name, dir_fd=directory_fd)
                if is_whiteout(status):
                    is_known = before is not None and before.state is None
                    return before if is_known else UpperNode(state=None)
                kind = kind_of(status.st_mode)
                if kind == "file":
                    known = _known(status, before)
                    return known or _looked_again(self._file(directory_fd, name), before)
                if kind != "dir" and before is not None and _is_same(before, kind, status):
                    return before
                target = os.readlink(name, dir_fd=directory_fd) if kind == "symlink" else None
                node = UpperNode(file_state(kind, status, None, target), _identity(status))
                node.fresh = kind != "dir" and status.st_ctime_ns >= now
                return _looked_again(node, before)
            except FileNotFoundError:
                return None
            except (ObjectTooLarge, _Swapped):
                unread = "it changed while it was read"  # look again
            except PermissionError as error:
                unread = why_unread(error)
                break
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.ELOOP, errno.ENOTDIR):
                    raise
                unread = "it changed while it was read"
        if status is None or not stat.S_ISREG(status.st_mode):
            return None  # never twice the same
        state = file_state("file", status, None, None)
        return UpperNode(state, _identity(status), unread=unread)

    def _file(self, directory_fd: int, name: bytes) -> UpperNode:
        # By path only, which opens nothing: a device or FIFO in its place never notices.
        place = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory_fd)
        try:
            now = _now_ns()
            status = os.fstat(place)
            if not stat.S_ISREG(status.st_mode):
                raise _Swapped
            node = UpperNode(None, _identity(status), linked=status.st_nlink > 1)
            node.xattrs = user_xattrs(b"/proc/self/fd/%d" % place)
            if status.st_size - status.st_blocks * 512 > HOLES_LIMIT_BYTES:
                # Content that nobody has written and everybody would have to read.
                digest, node.unread = None, "a sparse file with more holes than are worth reading"
            else:
                fd = os.open(b"/proc/self/fd/%d" % place, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    digest = self._keep(fd, status)
                finally:
                    os.close(fd)
            node.state = file_state("file", status, digest, None)
            node.fresh = status.st_ctime_ns >= now
            return node
        finally:
            os.close(place)


class _Swapped(Exception):
    """Something else is in the place of what was there a moment ago."""


def _identity(status: os.stat_result) -> Identity:
    return (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _known(status: os.stat_result, before: UpperNode | None) -> UpperNode | None:
    """A file that is what it was when it was read."""
    if before is None or before.state is None or before.state.digest is None:
        return None  # or it could not be read then
    return before if _is_same(before, "file", status) else None  # setting xattrs changes the ctime


def _is_same(before: UpperNode, kind: FileKind, status: os.stat_result) -> bool:
    return not before.fresh and before.kind == kind and before.identity == _identity(status)


def _looked_again(node: UpperNode, before: UpperNode | None) -> UpperNode:
    """An entry as just read; the earlier node where that was fresh, and tells the same."""
    if before is None or not before.fresh or node != before:
        return node
    before.fresh = node.fresh
    return before


def _now_ns() -> int:
    """What the kernel gives as its time to what is changed now, or an instant later."""
    return time.clock_gettime_ns(_CLOCK_REALTIME_COARSE)


def settled(node: UpperNode, before: UpperNode | None) -> UpperNode:
    """A directory all of whose entries are known; the earlier node where it is as it was."""
    if before is not None and _shares_all(node, before):
        return before
    children = node.children.values()
    node.below = Below(
        linked=any(c.linked or (c.below is not None and c.below.linked) for c in children),
        unread=any(c.unread or (c.below is not None and c.below.unread) for c in children),
        entries=len(children) + sum(c.below.entries for c in children if c.below is not None),
    )
    return node


def _shares_all(node: UpperNode, before: UpperNode) -> bool:
    return (
        before.below is not None
        and (node.identity, node.state, node.opaque, node.redirect, node.xattrs, node.unread)
        == (
            before.identity,
            before.state,
            before.opaque,
            before.redirect,
            before.xattrs,
            before.unread,
        )
        and len(node.children) == len(before.children)
        and all(before.children.get(name) is child for name, child in node.children.items())
    )


def why_unread(error: OSError) -> str:
    """In words, why an entry could not be read; raises what should not happen."""
    if error.errno == errno.ENAMETOOLONG:
        return "its path is too long"
    if isinstance(error, PermissionError):
        return "the host may not read it"
    if error.errno in (errno.ENOENT, errno.ELOOP, errno.ENOTDIR, errno.EXDEV, errno.EAGAIN):
        return "it changed while it was read"
    raise error
