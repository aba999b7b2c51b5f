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

# Of a file of the base, by its path on the host.
HashFile = Callable[[bytes, os.stat_result], str]

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
        entries: how many there are.
    """

    linked: bool
    unread: bool
    entries: int


@dataclass(slots=True)
class UpperNode:
    """One entry of an upper directory as a walk found it, or as a snapshot kept it.

    ``state`` is what a process in the world sees; None stands for a whiteout. ``unread`` says why
    a file has no digest or a directory no children here, though there may be some.

    Walks share the nodes of what has not changed between them, so a node that a walk has returned
    stays as it is, but for what is noted down of it: what is :attr:`below`, as which object its
    directory is :attr:`kept`, and whether it is still :attr:`fresh`.

    ``fresh``: it was read within the tick of the clock in which it was last changed. Another change
    in that tick has the same times, so its identity tells nothing yet.
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
    fresh: bool = field(default=False, compare=False)

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
    return xattr_of(path, layer.xattr("opaque")) == b"y"


def xattr_of(place: bytes | int, name: str) -> bytes | None:
    """An attribute of a file; None where it has none of that name."""
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
