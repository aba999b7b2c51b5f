"""A world's tree after a step, kept so that it can be had again, on this host or another.

A snapshot is one object, canonical JSON::

    {"format":"substrate.snapshot.v1","base":DIGEST,"layers":[LAYER,…]}

``base`` names the object that says what the layers lay on (:class:`BaseRecord`), and in each LAYER
``layer_id``, ``mount_point``, ``root`` (a tree entry whose digest is the directory object of the
upper). A step writes only the directory objects that it changed; the store drops the others.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from substrate_services.journal import bytesjson
from substrate_services.journal.jsontypes import Fields, JsonValue, canonical_bytes
from substrate_services.journal.parts import (
    file_fingerprint_from_json,
    file_fingerprints_text,
    opt_bytes,
)
from substrate_services.journal.schema import FileFingerprint, FileState
from substrate_services.objects.store import ObjectStore
from substrate_services.objects.tree import (
    TreeEntry,
    encode_entry,
    encode_state,
    entry_from_json,
    entry_to_json,
    get_dir,
    put_encoded,
)
from substrate_services.world.layers import Layer, UpperNode
from substrate_services.world.project import Project, project_from_json, project_to_json

_SNAPSHOT_FORMAT = "substrate.snapshot.v1"
_BASE_FORMAT = "substrate.base.v1"
_ROOT = b"upper"
_BLOCK_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class BaseRecord:
    """What a world's layers lay on: enough to make the same again, or to say what differs.

    Attributes:
        mounts: mount point, file system type and device of each mount of the base.
        project: the project, if there is one.
        home: the world's home.
        login_home: the home that the user database names.
        home_skeleton: directory object of what the empty home begins with.
        fingerprints: digest of the object that lists the project's files.
        per_directory: each top-level directory has an overlay of its own.
        base: the root, where it is not the host's own: see ``bases.Base.text``.
    """

    mounts: tuple[tuple[bytes, str, str], ...]
    project: Project | None
    home: bytes
    login_home: bytes
    home_skeleton: str
    fingerprints: str | None
    per_directory: bool
    base: bytes = b""


@dataclass(frozen=True, slots=True)
class SnapshotLayer:
    """One layer's upper in a snapshot."""

    layer_id: str
    mount_point: bytes
    root: TreeEntry


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A decoded snapshot."""

    base: str
    layers: tuple[SnapshotLayer, ...]


def put_snapshot(
    store: ObjectStore, base: str, layers: tuple[Layer, ...], walks: Mapping[str, UpperNode]
) -> str:
    """Keep the walked layers; returns the snapshot's id."""
    encoded: list[JsonValue] = []
    for layer in layers:
        walk = walks[layer.layer_id]
        root = _put_node(store, _ROOT, walk, _hard_links(walk))
        encoded.append(
            {
                "layer_id": layer.layer_id,
                "mount_point": bytesjson.encode(layer.mount_point),
                "root": entry_to_json(root),
            }
        )
    return store.put(canonical_bytes({"format": _SNAPSHOT_FORMAT, "base": base, "layers": encoded}))


def get_snapshot(store: ObjectStore, snapshot_id: str) -> Snapshot:
    """Read a snapshot. Raises ObjectMissing, ObjectCorrupt, or LineError where it is none."""
    fields = Fields(json.loads(store.get(snapshot_id)), "snapshot")
    if fields.text("format") != _SNAPSHOT_FORMAT:
        raise fields.wrong("format", _SNAPSHOT_FORMAT)
    layers = []
    for item in fields.items("layers"):
        layer = Fields(item, "snapshot layer")
        layers.append(
            SnapshotLayer(
                layer.text("layer_id"),
                opt_bytes(layer, "mount_point") or b"/",
                entry_from_json(layer.child("root").value),
            )
        )
    return Snapshot(fields.text("base"), tuple(layers))


def put_base(store: ObjectStore, base: BaseRecord) -> str:
    """Keep a base record as an object; returns its digest."""
    return store.put(
        canonical_bytes(
            {
                "format": _BASE_FORMAT,
                "mounts": [
                    {"mount_point": bytesjson.encode(point), "fs_type": fs_type, "device": device}
                    for point, fs_type, device in base.mounts
                ],
                "project": project_to_json(base.project),
                "home": bytesjson.encode(base.home),
                "login_home": bytesjson.encode(base.login_home),
                "home_skeleton": base.home_skeleton,
                "fingerprints": base.fingerprints,
                "per_directory": base.per_directory,
                **({"base": bytesjson.encode(base.base)} if base.base else {}),
            }
        )
    )


def get_base(store: ObjectStore, digest: str) -> BaseRecord:
    """Read a base record. Raises as :func:`get_snapshot` does."""
    fields = Fields(json.loads(store.get(digest)), "base")
    if fields.text("format") != _BASE_FORMAT:
        raise fields.wrong("format", _BASE_FORMAT)
    mounts = []
    for item in fields.items("mounts"):
        mount = Fields(item, "mount")
        mounts.append(
            (opt_bytes(mount, "mount_point") or b"/", mount.text("fs_type"), mount.text("device"))
        )
    return BaseRecord(
        mounts=tuple(mounts),
        project=project_from_json(fields, "project"),
        home=opt_bytes(fields, "home") or b"/",
        login_home=opt_bytes(fields, "login_home") or b"/",
        home_skeleton=fields.text("home_skeleton"),
        fingerprints=fields.opt_text("fingerprints"),
        per_directory=fields.flag("per_directory"),
        base=(opt_bytes(fields, "base") if fields.has("base") else None) or b"",
    )


def put_fingerprints(store: ObjectStore, fingerprints: tuple[FileFingerprint, ...]) -> str:
    """Keep the project's fingerprints as one object."""
    return store.put(file_fingerprints_text(fingerprints))


def get_fingerprints(store: ObjectStore, digest: str) -> dict[bytes, FileFingerprint]:
    """The project's fingerprints by path. Raises as :func:`get_snapshot` does."""
    value = json.loads(store.get(digest))
    assert isinstance(value, list)
    found = (file_fingerprint_from_json(item) for item in value)
    return {fingerprint.path: fingerprint for fingerprint in found}


def put_directory(store: ObjectStore, node: UpperNode) -> str:
    """Keep a walked directory; returns the digest of its directory object."""
    return _put_node(store, _ROOT, node, {}).digest or ""


def _hard_links(root: UpperNode) -> dict[int, bytes]:
    """Of files with several names, all but one: id of the node → the name that stands for it."""
    names: dict[int, bytes] = {}  # inode → the first name met
    links: dict[int, bytes] = {}
    pending = [(b"", root)]
    while pending:
        path, node = pending.pop()
        if node.below is not None and not node.below.linked:
            continue
        for name, child in node.children.items():
            below = os.path.join(path, name)
            if child.kind == "dir":
                pending.append((below, child))
            elif child.kind == "file" and child.identity is not None:
                first = names.setdefault(child.identity[0], below)
                if first != below:
                    links[id(child)] = first
    return links


def _put_node(
    store: ObjectStore, name: bytes, node: UpperNode, links: Mapping[int, bytes]
) -> TreeEntry:
    # A stack of its own: a world may nest directories deeper than calls may nest here.
    above: list[tuple[bytes, UpperNode, Iterator[tuple[bytes, UpperNode]], list[str]]] = []
    while True:
        link = None
        if node.kept:  # part of the snapshot before, which is whole
            digest: str | None = node.kept
        elif node.kind == "dir" and not node.unread:
            above.append((name, node, iter(sorted(node.children.items())), []))
            digest = None
        else:
            digest = node.state.digest if node.state is not None else None
            link = links.get(id(node))
        if not above:
            return _entry_of(name, node, digest, link)
        if above[-1][1] is not node:
            above[-1][3].append(_encoded(name, node, digest, link))
        while (following := next(above[-1][2], None)) is None:
            name, node, _names, entries = above.pop()
            digest = put_encoded(store, entries)
            if node.below is not None and not node.below.linked:
                node.kept = digest  # of itself alone: where its files have no other names
            if not above:
                return _entry_of(name, node, digest)
            above[-1][3].append(_encoded(name, node, digest))
        name, node = following


def _encoded(name: bytes, node: UpperNode, digest: str | None, link: bytes | None = None) -> str:
    state = node.state
    more = node.opaque or node.redirect is not None or node.xattrs or link is not None
    if state is not None and state.kind in ("file", "dir") and not more:
        encoded = encode_state(name, state, digest)
        if encoded is not None:
            return encoded
    return encode_entry(_entry_of(name, node, digest, link))


def _entry_of(
    name: bytes, node: UpperNode, digest: str | None, link: bytes | None = None
) -> TreeEntry:
    state = node.state
    if state is None:
        return TreeEntry(name, "whiteout")
    return TreeEntry(
        name=name,
        kind=state.kind,
        mode=state.mode,
        uid=state.uid,
        gid=state.gid,
        size=state.size,
        mtime_ns=state.mtime_ns,
        digest=digest,
        target=state.target,
        rdev=state.rdev,
        opaque=node.opaque,
        redirect=node.redirect,
        xattrs=node.xattrs,
        link=link,
    )


def is_unread(entry: TreeEntry) -> bool:
    """Whether a snapshot lacks the content of an entry, because it could not be read."""
    return entry.kind in ("file", "dir") and entry.digest is None


def read_walk(store: ObjectStore, entry: TreeEntry) -> UpperNode:
    """The walk that a snapshot was made from, as far as comparing needs it."""
    root = _node_of(entry)
    pending = [(root, entry)]
    while pending:
        node, directory = pending.pop()
        if directory.kind == "dir" and directory.digest is not None:
            for child in get_dir(store, directory.digest):
                node.children[child.name] = _node_of(child)
                pending.append((node.children[child.name], child))
    return root


def _node_of(entry: TreeEntry) -> UpperNode:
    if entry.kind == "whiteout":
        return UpperNode(state=None)
    return UpperNode(
        FileState(
            kind=entry.kind,
            mode=entry.mode,
            size=entry.size,
            digest=entry.digest if entry.kind == "file" else None,
            target=entry.target,
            uid=entry.uid,
            gid=entry.gid,
            mtime_ns=entry.mtime_ns,
            rdev=entry.rdev,
        ),
        opaque=entry.opaque,
        redirect=entry.redirect,
        xattrs=entry.xattrs,
        unread="it was not kept" if is_unread(entry) else "",
    )


def materialise(
    store: ObjectStore, entry: TreeEntry, target: Path, xattr: Callable[[str], str]
) -> None:
    """Write a kept upper directory to ``target``, which exists and is not mounted.

    What is there already stays where the kept directory says nothing of it.

    Args:
        store: where the content is.
        entry: the directory.
        target: the directory to fill.
        xattr: the full name of an overlay attribute (:meth:`Layer.xattr`).

    Raises:
        ObjectMissing: content that is not kept.
        OSError: the file system refuses; device nodes need privileges.
    """
    root = os.fsencode(target)
    pending = [(root, entry)]
    directories: list[tuple[bytes, TreeEntry]] = []
    links: list[tuple[bytes, TreeEntry]] = []
    while pending:
        path, directory = pending.pop()
        directories.append((path, directory))
        if directory.digest is None:
            continue
        for child in get_dir(store, directory.digest):
            below = os.path.join(path, child.name)
            _make_room(below, child)
            if child.kind == "dir":
                os.makedirs(below, exist_ok=True)
                pending.append((below, child))
            elif child.link is not None:
                links.append((below, child))
            else:
                _materialise_entry(store, child, below, xattr)
    for path, linked in links:
        os.link(os.path.join(root, linked.link or b""), path)
    # Last, because entries change the times of the directory they are made in; deepest first,
    # because a directory may be closed to its own owner.
    for path, directory in reversed(directories):
        _set_attributes(path, directory, xattr)


def _materialise_entry(
    store: ObjectStore, entry: TreeEntry, path: bytes, xattr: Callable[[str], str]
) -> None:
    if entry.kind == "file":
        write_object(store, entry.digest, path)
    elif entry.kind == "symlink":
        os.symlink(entry.target or b"", path)
    elif entry.kind == "whiteout":
        os.mknod(path, 0o020000, 0)
        return
    elif entry.kind == "fifo":
        os.mkfifo(path)
    else:
        types = {"socket": 0o140000, "char": 0o020000, "block": 0o060000}
        os.mknod(path, types[entry.kind], entry.rdev)
    _set_attributes(path, entry, xattr)


def _make_room(path: bytes, entry: TreeEntry) -> None:
    """Take away what an entry replaces; directories merge, unless they hide what is below."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(status.st_mode):
        os.unlink(path)
    elif entry.kind != "dir" or entry.opaque or entry.redirect is not None:
        shutil.rmtree(path)


def write_object(store: ObjectStore, digest: str | None, path: bytes) -> None:
    """Write an object's bytes to a new file; an empty one where content was not kept."""
    if digest is None:
        os.mknod(path, stat.S_IFREG | 0o600)
        return
    with store.open(digest) as source, open(path, "xb") as target:
        copy_sparse(source, target.fileno())


def copy_sparse(source: BinaryIO, target: int) -> int:
    """Copy bytes to a new file, leaving holes where there are only zeros; returns how many."""
    size = 0
    while chunk := source.read(_BLOCK_BYTES):
        if chunk.count(0) != len(chunk):
            view = memoryview(chunk)
            while view:
                view = view[os.pwrite(target, view, size + len(chunk) - len(view)) :]
        size += len(chunk)
    os.ftruncate(target, size)
    return size


def _set_attributes(path: bytes, entry: TreeEntry, xattr: Callable[[str], str]) -> None:
    if os.geteuid() == 0:
        os.chown(path, entry.uid, entry.gid, follow_symlinks=False)
    if entry.opaque:
        os.setxattr(path, xattr("opaque"), b"y")
    if entry.redirect is not None:
        os.setxattr(path, xattr("redirect"), entry.redirect)
    for name, value in entry.xattrs:
        os.setxattr(path, name, value, follow_symlinks=False)
    # After those, which need an entry that its owner may write.
    if entry.kind != "symlink":
        os.chmod(path, entry.mode)
    os.utime(path, ns=(entry.mtime_ns, entry.mtime_ns), follow_symlinks=False)
