"""A world's copy-on-write layers, and how to read them from the outside.

A layer is one overlay mount: lower directories (topmost first) and an upper one. The kernel's
format of uppers is that of Documentation/filesystems/overlayfs.rst: a character device 0:0 is a
whiteout, ``trusted.overlay.opaque=y`` on a directory hides what is below it, and
``trusted.overlay.redirect`` says under which name to look below. Mounts made inside a user
namespace keep these attributes in ``user.overlay.*``.

Reading a layer never goes through the world's mounts, so nothing that runs in the world can
answer for it.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from substrate_services.journal.schema import FileKind, FileState
from substrate_services.objects.errors import ObjectTooLarge
from substrate_services.world.beneath import open_beneath

# Of a file of the base, by its path on the host.
HashFile = Callable[[bytes, os.stat_result], str]
# Of a file in an upper layer, by a descriptor; raises ObjectTooLarge if it has grown meanwhile.
KeepFile = Callable[[int, os.stat_result], str]

# What lies deeper in an upper is not looked at: programs can only get there step by step, and the
# host must be able to name it (PATH_MAX is 4096) below the layer's own directory.
PATH_LIMIT_BYTES = 3584
# A file of terabytes costs its maker nothing but would cost the host its reading.
HOLES_LIMIT_BYTES = 1 << 30

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_ATTEMPTS = 3
_KINDS: dict[int, FileKind] = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "dir",
    stat.S_IFLNK: "symlink",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "char",
    stat.S_IFBLK: "block",
}


@dataclass(frozen=True, slots=True)
class Layer:
    """One overlay of a world. ``directory`` holds ``upper`` and ``work``."""

    layer_id: str
    mount_point: bytes  # absolute, in the world
    lowers: tuple[bytes, ...]
    directory: Path
    user_xattrs: bool = False

    @property
    def upper(self) -> bytes:
        """The directory that holds what the world wrote."""
        return os.fsencode(self.directory / "upper")

    @property
    def work(self) -> bytes:
        """The kernel's own directory beside the upper."""
        return os.fsencode(self.directory / "work")

    def path_in_world(self, relative: bytes) -> bytes:
        """The world's name for ``relative``; ``b""`` is the layer's root."""
        if not relative:
            return self.mount_point
        return os.path.join(self.mount_point, relative)

    def xattr(self, name: str) -> str:
        """The full name of an overlay attribute in this layer."""
        return f"{'user' if self.user_xattrs else 'trusted'}.overlay.{name}"


# (inode, size, mtime, ctime): while these hold, a file's content has not changed.
Identity = tuple[int, int, int, int]
# Names and values of attributes in the user's namespace (xattr(7)), sorted by name.
Xattrs = tuple[tuple[bytes, bytes], ...]


@dataclass(frozen=True, slots=True)
class Below:
    """What all that is below a directory comes to.

    Attributes:
        linked: there are files with several names.
        unread: there is something that could not be read.
    """

    linked: bool
    unread: bool


@dataclass(slots=True)
class UpperNode:
    """One entry of an upper directory as a walk found it, or as a snapshot kept it.

    ``state`` is what a process in the world sees; None stands for a whiteout. ``unread`` says why
    a file has no digest or a directory no children here, though there may be some.

    Walks share the nodes of what has not changed between them, so a node that a walk has returned
    stays as it is, but for what is noted down of it: what is :attr:`below`, and as which object its
    directory is :attr:`kept`.
    """

    state: FileState | None
    identity: Identity | None = None
    opaque: bool = False
    redirect: bytes | None = None
    children: dict[bytes, UpperNode] = field(default_factory=dict)
    unread: str = ""
    xattrs: Xattrs = ()  # of the user's namespace, by name
    linked: bool = False  # a file with several names
    below: Below | None = field(default=None, compare=False)
    kept: str = field(default="", compare=False)

    @property
    def kind(self) -> FileKind | None:
        """What it is; None for a whiteout."""
        return self.state.kind if self.state is not None else None

    def all_unread(self) -> Iterator[tuple[bytes, str]]:
        """What below this directory could not be kept: its path, and why."""
        pending = [(b"", self)]
        while pending:
            path, node = pending.pop()
            if node.unread:
                yield path, node.unread
            if node.below is not None and not node.below.unread:
                continue
            pending += [(os.path.join(path, name), child) for name, child in node.children.items()]

    def find(self, relative: bytes) -> UpperNode | None:
        """The entry at ``relative`` below this one."""
        node: UpperNode | None = self
        for name in relative.split(b"/"):
            if name:
                node = node.children.get(name) if node is not None else None
        return node


class LowerView:
    """What lies below the upper at one path, through all lower directories and their whiteouts."""

    __slots__ = ("_hidden", "_layer", "_paths", "_relative", "_status")

    def __init__(
        self,
        layer: Layer,
        relative: bytes,
        paths: tuple[bytes, ...],
        hidden: Callable[[bytes], bool] | None,
    ) -> None:
        self._layer = layer
        self._hidden = hidden
        self._relative = relative
        self._paths = paths  # directories that merge here, or the one entry that shows
        self._status = os.lstat(paths[0])

    @classmethod
    def root(cls, layer: Layer, hidden: Callable[[bytes], bool] | None = None) -> LowerView:
        """The view of the layer's root.

        Args:
            layer: the layer.
            hidden: says which host paths the world does not show; they are left out here too.
        """
        return cls(layer, b"", layer.lowers, hidden)

    @property
    def key(self) -> tuple[bytes, ...]:
        """Equal for two views of the same place."""
        return self._paths

    @property
    def host_path(self) -> bytes:
        """The host's file that shows here."""
        return self._paths[0]

    @property
    def status(self) -> os.stat_result:
        """The host's lstat of it."""
        return self._status

    @property
    def kind(self) -> FileKind:
        """What it is."""
        return kind_of(self._status.st_mode)

    def child(self, name: bytes) -> LowerView | None:
        """The entry ``name`` below this directory, or None."""
        if self.kind != "dir":
            return None
        found: list[bytes] = []
        for directory in self._paths:
            path = os.path.join(directory, name)
            if self._hidden is not None and self._hidden(path):
                continue
            try:
                status = os.lstat(path)
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                if error.errno == errno.ENAMETOOLONG:
                    continue  # the world made it, below what the base has
                raise
            if is_whiteout(status):
                break
            if not stat.S_ISDIR(status.st_mode):
                if not found:
                    found.append(path)
                break
            found.append(path)
            if is_opaque(path, self._layer):
                break
        if not found:
            return None
        relative = os.path.join(self._relative, name)
        return LowerView(self._layer, relative, tuple(found), self._hidden)

    def lookup(self, relative: bytes) -> LowerView | None:
        """The entry at ``relative`` below this one; symbolic links are not followed."""
        view: LowerView | None = self
        for name in relative.split(b"/"):
            if not name:
                continue
            view = view.child(name) if view is not None else None
        return view

    def names(self) -> Iterator[bytes]:
        """The names below this directory, each once."""
        if self.kind != "dir":
            return
        seen: set[bytes] = set()
        for directory in self._paths:
            with os.scandir(directory) as entries:
                names = sorted(entry.name for entry in entries)
            for name in names:
                if name not in seen:
                    seen.add(name)
                    if self.child(name) is not None:
                        yield name

    def xattrs(self) -> Xattrs:
        """Its attributes in the user's namespace."""
        if self.kind not in ("file", "dir"):
            return ()  # others cannot have any
        return user_xattrs(self.host_path)

    def state(self, hash_file: HashFile | None) -> FileState:
        """What shows here; the content is hashed only when ``hash_file`` is given."""
        kind = self.kind
        digest = None
        if kind == "file" and hash_file is not None:
            digest = hash_file(self.host_path, self._status)
        target = os.readlink(self.host_path) if kind == "symlink" else None
        return file_state(kind, self._status, digest, target)


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
    return _Walk(layer.upper, layer, keep).run(previous)


def walk_directory(directory: bytes, keep: KeepFile) -> UpperNode:
    """Read a plain directory, of no layer, as :func:`walk_upper` reads an upper."""
    return _Walk(directory, Layer("", b"/", (), Path()), keep).run(None)


class _Walk:
    def __init__(self, directory: bytes, layer: Layer, keep: KeepFile) -> None:
        self._directory = directory
        self._layer = layer
        self._keep = keep
        self._root_fd = -1

    def run(self, previous: UpperNode | None) -> UpperNode:
        self._root_fd = os.open(self._directory, _DIRECTORY)
        try:
            root = UpperNode(file_state("dir", os.fstat(self._root_fd), None, None))
            return self._whole(root, previous)
        finally:
            os.close(self._root_fd)

    def _whole(self, root: UpperNode, previous: UpperNode | None) -> UpperNode:
        """All that there is. What is as it was is the very node of the walk before."""
        top = {b"": root}
        # Every directory with where it hangs, those above before those below.
        found = [(top, b"", root, previous)]
        pending = [(b"", root, previous)]
        while pending:
            path, node, before = pending.pop()
            for name, child in self._fill(path, node, before):
                earlier = before.children.get(name) if before is not None else None
                found.append((node.children, name, child, earlier))
                pending.append((os.path.join(path, name), child, earlier))
        for siblings, name, node, before in reversed(found):
            siblings[name] = _settled(node, before)
        return top[b""]

    def _fill(
        self, relative: bytes, node: UpperNode, before: UpperNode | None
    ) -> list[tuple[bytes, UpperNode]]:
        """Read one directory into its node; returns the directories found in it."""
        try:
            if len(relative) > PATH_LIMIT_BYTES:
                raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
            # From the root each time: a descriptor for each level would be more than there are.
            fd = open_beneath(self._root_fd, relative or b".", _DIRECTORY)
        except OSError as error:
            node.unread = _why_unread(error)
            return []
        try:
            self._describe(fd, node)
            with os.scandir(fd) as entries:
                names = sorted(os.fsencode(entry.name) for entry in entries)
            directories = []
            for name in names:
                child = self._entry(fd, name, before.children.get(name) if before else None)
                if child is not None:
                    node.children[name] = child
                    if child.kind == "dir":
                        directories.append((name, child))
            return directories
        finally:
            os.close(fd)

    def _describe(self, fd: int, node: UpperNode) -> None:
        """Note down what a directory itself is."""
        status = os.fstat(fd)
        node.state = file_state("dir", status, None, None)
        node.identity = _identity(status)
        node.opaque = _xattr(fd, self._layer.xattr("opaque")) == b"y"
        node.redirect = _xattr(fd, self._layer.xattr("redirect"))
        node.xattrs = user_xattrs(fd)

    def _entry(self, directory_fd: int, name: bytes, before: UpperNode | None) -> UpperNode | None:
        """Read one entry; None if it has gone since its directory was listed."""
        unread = ""
        status = None
        for _attempt in range(_ATTEMPTS):
            try:
                status = os.lstat(name, dir_fd=directory_fd)
                if is_whiteout(status):
                    is_known = before is not None and before.state is None
                    return before if is_known else UpperNode(state=None)
                kind = kind_of(status.st_mode)
                if kind == "file":
                    known = _known(status, before)
                    return known or self._file(directory_fd, name)
                if kind != "dir" and before is not None and _is_same(before, kind, status):
                    return before
                target = os.readlink(name, dir_fd=directory_fd) if kind == "symlink" else None
                return UpperNode(file_state(kind, status, None, target), _identity(status))
            except FileNotFoundError:
                return None
            except (ObjectTooLarge, _Swapped):
                unread = "it changed while it was read"  # look again
            except PermissionError as error:
                unread = _why_unread(error)
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
    return before.kind == kind and before.identity == _identity(status)


def _settled(node: UpperNode, before: UpperNode | None) -> UpperNode:
    """A directory all of whose entries are known; the earlier node where it is as it was."""
    if before is not None and _shares_all(node, before):
        return before
    children = node.children.values()
    node.below = Below(
        linked=any(c.linked or (c.below is not None and c.below.linked) for c in children),
        unread=any(c.unread or (c.below is not None and c.below.unread) for c in children),
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


def _why_unread(error: OSError) -> str:
    if error.errno == errno.ENAMETOOLONG:
        return "its path is too long"
    if isinstance(error, PermissionError):
        return "the host may not read it"
    if error.errno in (errno.ENOENT, errno.ELOOP, errno.ENOTDIR, errno.EXDEV, errno.EAGAIN):
        return "it changed while it was read"
    raise error


def kind_of(st_mode: int) -> FileKind:
    """The kind that the type bits of a mode say."""
    return _KINDS[stat.S_IFMT(st_mode)]


def file_state(
    kind: FileKind, status: os.stat_result, digest: str | None, target: bytes | None
) -> FileState:
    """What a process sees of an entry, from its lstat and what was read of it."""
    return FileState(
        kind=kind,
        mode=stat.S_IMODE(status.st_mode),
        size=status.st_size if kind == "file" else 0,
        digest=digest,
        target=target,
        uid=status.st_uid,
        gid=status.st_gid,
        mtime_ns=status.st_mtime_ns,
        rdev=status.st_rdev if kind in ("char", "block") else 0,
    )


def is_whiteout(status: os.stat_result) -> bool:
    """Whether an upper entry says that there is nothing."""
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def is_opaque(path: bytes, layer: Layer) -> bool:
    """Whether a directory hides what lies below it."""
    return _xattr(path, layer.xattr("opaque")) == b"y"


def _xattr(place: bytes | int, name: str) -> bytes | None:
    try:
        if isinstance(place, int):
            return os.getxattr(place, name)
        return os.getxattr(place, name, follow_symlinks=False)
    except OSError:  # absent, or the file system has none
        return None


def user_xattrs(place: bytes | int) -> Xattrs:
    """The attributes of a file in the user's namespace, without overlayfs's own; () for none.

    Args:
        place: a path, whose last link is followed, or a descriptor.
    """
    try:
        return tuple(
            sorted(
                (os.fsencode(name), os.getxattr(place, name))
                for name in os.listxattr(place)
                if name.startswith("user.") and not name.startswith("user.overlay.")
            )
        )
    except OSError:  # the file system has none, or the file may not be looked at, or is gone
        return ()
