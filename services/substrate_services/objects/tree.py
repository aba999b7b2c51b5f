"""Directories as objects: a Merkle tree, in which a step writes only what it changed.

A directory object is canonical JSON (sorted keys, no white space, UTF-8)::

    {"entries":[ENTRY,…],"format":"substrate.dir.v1"}

with the entries sorted by the bytes of their names, and in each ENTRY

    name, kind, mode, uid, gid, mtime_ns   always
    size, digest                           of files: bytes, and the content's object
    digest                                 of directories: the directory object
    target                                 of symbolic links
    rdev                                   of devices
    opaque                                 true where the overlay hides the lower directory
    redirect                               the overlay's redirect, where there is one
    xattrs                                 [[name, value], …] sorted by name, where there are any
    link                                   of files that have another name: that name, from the root

Names, targets and xattrs are bytes in JSON (journal/bytesjson.py). What holds its default is left
out, so equal directories have equal bytes and one digest.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

from substrate_services.journal import bytesjson, parts
from substrate_services.journal.jsontypes import (
    Fields,
    JsonObject,
    JsonValue,
    LineError,
    canonical_bytes,
)
from substrate_services.journal.schema import FileState
from substrate_services.objects.errors import ObjectCorrupt

EntryKind = Literal["file", "dir", "symlink", "whiteout", "fifo", "socket", "char", "block"]

_FORMAT = "substrate.dir.v1"
_quoted = json.encoder.encode_basestring  # as canonical_bytes has strings
_KINDS: tuple[EntryKind, ...] = get_args(EntryKind)


@dataclass(frozen=True, slots=True)
class TreeEntry:
    """One name in a directory of one overlay layer."""

    name: bytes
    kind: EntryKind
    mode: int = 0  # permission bits, 0o7777
    uid: int = 0  # as the world sees it
    gid: int = 0
    size: int = 0  # bytes, of files
    mtime_ns: int = 0
    digest: str | None = None  # of a file: its content; of a directory: its directory object
    target: bytes | None = None  # of a symbolic link
    rdev: int = 0  # of a device
    opaque: bool = False  # the directory hides the one below it
    redirect: bytes | None = None  # value of the overlay's redirect xattr
    xattrs: tuple[tuple[bytes, bytes], ...] = ()  # sorted by name
    link: bytes | None = None  # another name of the same file, relative to the tree's root


class Blobs(Protocol):
    """What a tree needs of the object store."""

    def put(self, data: bytes) -> str:
        """Stores bytes; returns their digest."""

    def get(self, digest: str) -> bytes:
        """The bytes of a digest, verified."""


def put_dir(blobs: Blobs, entries: Sequence[TreeEntry]) -> str:
    """Stores a directory; returns its digest. The order of ``entries`` does not matter.

    Raises ValueError for a name twice, or one that no directory can hold.
    """
    return blobs.put(encode_dir(entries))


def get_dir(blobs: Blobs, digest: str) -> tuple[TreeEntry, ...]:
    """A directory's entries, sorted by name. Raises ObjectMissing or ObjectCorrupt."""
    data = blobs.get(digest)
    try:
        return decode_dir(data)
    except ValueError as error:
        raise ObjectCorrupt(digest, f"not a directory: {error}") from error


def walk(blobs: Blobs, root: str) -> Iterator[tuple[bytes, TreeEntry]]:
    """Every entry below a directory: (path relative to it, entry), parents before children.

    Raises ObjectMissing or ObjectCorrupt.
    """
    stack = [(b"", iter(get_dir(blobs, root)))]
    while stack:
        prefix, entries = stack[-1]
        entry = next(entries, None)
        if entry is None:
            stack.pop()
            continue
        path = prefix + entry.name
        yield path, entry
        if entry.kind == "dir" and entry.digest is not None:
            stack.append((path + b"/", iter(get_dir(blobs, entry.digest))))


def put_encoded(blobs: Blobs, entries: Sequence[str]) -> str:
    """As :func:`put_dir`, of entries from :func:`encode_entry` in the order of their names."""
    return blobs.put(_encoded(entries))


def encode_dir(entries: Sequence[TreeEntry]) -> bytes:
    """A directory's canonical bytes. Raises ValueError as :func:`put_dir` does."""
    ordered = sorted(entries, key=lambda entry: entry.name)
    for entry, following in itertools.pairwise(ordered):
        if entry.name == following.name:
            raise ValueError(f"name {entry.name!r} is twice in one directory")
    return _encoded([encode_entry(entry) for entry in ordered])


def encode_entry(entry: TreeEntry) -> str:
    """The canonical form of one entry, as a directory has it."""
    return canonical_bytes(entry_to_json(entry)).decode()


def encode_state(name: bytes, state: FileState, digest: str | None) -> str | None:
    """As :func:`encode_entry`, for a file or directory of which there is no more to say.

    A directory is written anew when one of its entries changes, and may have thousands.

    Returns:
        None where the name is not UTF-8.
    """
    try:
        text = _quoted(name.decode())
    except UnicodeDecodeError:
        return None
    said = f'"digest":"{digest}",' if digest is not None else ""
    size = f'"size":{state.size},' if state.size else ""
    return (
        f'{{{said}"gid":{state.gid},"kind":"{state.kind}","mode":{state.mode},'
        f'"mtime_ns":{state.mtime_ns},"name":{text},{size}"uid":{state.uid}}}'
    )


def _encoded(entries: Sequence[str]) -> bytes:
    return f'{{"entries":[{",".join(entries)}],"format":"{_FORMAT}"}}'.encode()


def decode_dir(data: bytes) -> tuple[TreeEntry, ...]:
    """The entries in a directory's bytes. Raises ValueError where they are none."""
    try:
        fields = Fields(json.loads(data), "directory")
    except RecursionError as error:
        raise LineError("directory is nested too deep") from error
    if fields.text("format") != _FORMAT:
        raise fields.wrong("format", _FORMAT)
    entries = tuple(entry_from_json(item) for item in fields.items("entries"))
    for entry, following in itertools.pairwise(entries):
        if entry.name >= following.name:
            raise LineError(f"names {entry.name!r} and {following.name!r} are not in order")
    return entries


def entry_to_json(entry: TreeEntry) -> JsonObject:
    """One entry, also outside a directory: a snapshot's root, for example."""
    _require_name(entry.name)
    out: JsonObject = {
        "name": bytesjson.encode(entry.name),
        "kind": entry.kind,
        "mode": entry.mode,
        "uid": entry.uid,
        "gid": entry.gid,
        "mtime_ns": entry.mtime_ns,
    }
    if entry.size:
        out["size"] = entry.size
    if entry.digest is not None:
        out["digest"] = entry.digest
    if entry.target is not None:
        out["target"] = bytesjson.encode(entry.target)
    if entry.rdev:
        out["rdev"] = entry.rdev
    if entry.opaque:
        out["opaque"] = True
    if entry.redirect is not None:
        out["redirect"] = bytesjson.encode(entry.redirect)
    if entry.link is not None:
        out["link"] = bytesjson.encode(entry.link)
    if entry.xattrs:
        out["xattrs"] = [
            [bytesjson.encode(name), bytesjson.encode(value)]
            for name, value in sorted(entry.xattrs)
        ]
    return out


def entry_from_json(value: JsonValue, where: str = "entry") -> TreeEntry:
    """The entry that :func:`entry_to_json` wrote. Raises ValueError."""
    fields = Fields(value, where)
    name = bytesjson.decode(fields.value.get("name"), fields.where("name"))
    _require_name(name)
    return TreeEntry(
        name=name,
        kind=parts.choice(fields, "kind", _KINDS),
        mode=fields.integer("mode"),
        uid=fields.integer("uid"),
        gid=fields.integer("gid"),
        size=fields.integer("size", 0),
        mtime_ns=fields.integer("mtime_ns"),
        digest=fields.opt_text("digest"),
        target=parts.opt_bytes(fields, "target"),
        rdev=fields.integer("rdev", 0),
        opaque=fields.flag("opaque", False),
        redirect=parts.opt_bytes(fields, "redirect"),
        xattrs=parts.env_from_json(fields, "xattrs"),
        link=parts.opt_bytes(fields, "link"),
    )


def _require_name(name: bytes) -> None:
    # Trees are restored into file systems: a name must never lead out of its directory.
    if name in {b"", b".", b".."} or b"/" in name or b"\0" in name:
        raise ValueError(f"{name!r} cannot be a name in a directory")
