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

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from substrate_services.journal.schema import FileKind, FileState

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


@dataclass(slots=True)
class UpperNode:
    """One entry of an upper directory as a walk found it, or as a snapshot kept it.

    ``state`` is what a process in the world sees; None stands for a whiteout.
    """

    state: FileState | None
    identity: Identity | None = None
    opaque: bool = False
    redirect: bytes | None = None
    children: dict[bytes, UpperNode] = field(default_factory=dict)

    @property
    def kind(self) -> FileKind | None:
        """What it is; None for a whiteout."""
        return self.state.kind if self.state is not None else None

    def find(self, relative: bytes) -> UpperNode | None:
        """The entry at ``relative`` below this one."""
        node: UpperNode | None = self
        for name in relative.split(b"/"):
            if name:
                node = node.children.get(name) if node is not None else None
        return node


class LowerView:
    """What lies below the upper at one path, through all lower directories and their whiteouts."""

    __slots__ = ("_layer", "_paths", "_relative", "_status")

    def __init__(self, layer: Layer, relative: bytes, paths: tuple[bytes, ...]) -> None:
        self._layer = layer
        self._relative = relative
        self._paths = paths  # directories that merge here, or the one entry that shows
        self._status = os.lstat(paths[0])

    @classmethod
    def root(cls, layer: Layer) -> LowerView:
        """The view of the layer's root."""
        return cls(layer, b"", layer.lowers)

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
            try:
                status = os.lstat(path)
            except (FileNotFoundError, NotADirectoryError):
                continue
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
        return LowerView(self._layer, os.path.join(self._relative, name), tuple(found))

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

    def state(self, hash_file: HashFile | None) -> FileState:
        """What shows here; the content is hashed only when ``hash_file`` is given."""
        kind = self.kind
        digest = None
        if kind == "file" and hash_file is not None:
            digest = hash_file(self.host_path, self._status)
        target = os.readlink(self.host_path) if kind == "symlink" else None
        return file_state(kind, self._status, digest, target)


def walk_upper(layer: Layer, hash_file: HashFile, previous: UpperNode | None = None) -> UpperNode:
    """Read a layer's whole upper directory: the oracle that faster ways are held against.

    Args:
        layer: the layer; it may be mounted, and may change while it is read.
        hash_file: gives the digest of a regular file.
        previous: an earlier walk; the digest of a file whose inode, size, mtime and ctime are
            unchanged is taken from it.
    """
    root = _node(layer.upper, layer, hash_file, previous)
    if root is None:
        raise FileNotFoundError(f"layer {layer.layer_id} has no upper directory")
    return root


def walk_directory(directory: bytes, hash_file: HashFile) -> UpperNode:
    """Read a plain directory, of no layer, as :func:`walk_upper` reads an upper."""
    root = _node(directory, Layer("", b"/", (), Path()), hash_file, None)
    if root is None:
        raise FileNotFoundError(f"no directory {os.fsdecode(directory)}")
    return root


def _node(
    path: bytes, layer: Layer, hash_file: HashFile, previous: UpperNode | None
) -> UpperNode | None:
    try:
        status = os.lstat(path)
        if is_whiteout(status):
            return UpperNode(state=None)
        kind = kind_of(status.st_mode)
        digest = target = None
        identity = (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        if kind == "file":
            if previous is not None and previous.state and previous.identity == identity:
                digest = previous.state.digest
            digest = digest or hash_file(path, status)
        elif kind == "symlink":
            target = os.readlink(path)
        node = UpperNode(file_state(kind, status, digest, target), identity)
        if kind == "dir":
            node.opaque = is_opaque(path, layer)
            node.redirect = _xattr(path, layer.xattr("redirect"))
            with os.scandir(path) as entries:
                names = sorted(entry.name for entry in entries)
            for name in names:
                before = previous.children.get(name) if previous is not None else None
                child = _node(os.path.join(path, name), layer, hash_file, before)
                if child is not None:
                    node.children[name] = child
        return node
    except FileNotFoundError:
        return None  # gone since its directory was listed


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


def _xattr(path: bytes, name: str) -> bytes | None:
    try:
        return os.getxattr(path, name, follow_symlinks=False)
    except OSError:  # absent, or the file system has none
        return None
