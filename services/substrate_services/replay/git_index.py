"""Git's index without what it remembers of files' status (gitformat-index(5)).

For each file the index has times, device, inode number, owner and size, so that git can tell at a
glance which files have changed. No restored tree has the same ones, so ``git status`` writes the
index anew, and ``git add`` writes others: that says nothing about what the command did. Names,
modes, flags, content and all extensions that hold no status stay.
"""

from __future__ import annotations

import hashlib
import struct

LIMIT_BYTES = 64 << 20

_HEAD = struct.Struct(">4sII")
_MODE_AT, _ID_AT = 24, 40  # in an entry; all else up to the id is status
_EXTENDED = 0x4000
_WITH_STATUS = (b"UNTR", b"FSMN")  # untracked cache, file system monitor


def is_git_index(path: bytes) -> bool:
    """Whether a path is where git keeps an index, of a work tree or a submodule too."""
    return path.endswith(b"/index") and b"/.git/" in path


def without_status(data: bytes) -> bytes | None:
    """What of an index is not status; None where this is no index that we can read."""
    try:
        return _without_status(data)
    except (struct.error, IndexError, ValueError):
        return None


def _without_status(data: bytes) -> bytes | None:
    signature, version, count = _HEAD.unpack_from(data)
    if signature != b"DIRC" or version not in (2, 3, 4):
        return None
    for name, size in (("sha1", 20), ("sha256", 32)):
        body, checksum = data[:-size], data[-size:]
        # All zero where index.skipHash is set.
        if checksum in (hashlib.new(name, body, usedforsecurity=False).digest(), bytes(size)):
            return _entries(body, version, count, size)
    return None


def _entries(body: bytes, version: int, count: int, id_size: int) -> bytes | None:
    kept = [body[: _HEAD.size]]
    at = _HEAD.size
    for _ in range(count):
        flags_at = at + _ID_AT + id_size
        (flags,) = struct.unpack_from(">H", body, flags_at)
        name_at = flags_at + (4 if version >= 3 and flags & _EXTENDED else 2)
        search_at = name_at
        if version == 4:  # how many bytes to drop from the name before, as a varint
            while body[search_at] & 0x80:
                search_at += 1
            search_at += 1
        end = body.index(b"\0", search_at) + 1
        kept += (body[at + _MODE_AT : at + _MODE_AT + 4], body[at + _ID_AT : end])
        # Entries of versions 2 and 3 are padded to eights, with one NUL at least.
        at = end if version == 4 else at + (end - at + 7) // 8 * 8
    while at < len(body):
        (size,) = struct.unpack_from(">I", body, at + 4)
        if body[at : at + 4] not in _WITH_STATUS:
            kept.append(body[at : at + 8 + size])
        at += 8 + size
    return b"".join(kept) if at == len(body) else None
