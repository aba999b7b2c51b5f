"""What the world's init says of files, read as the untrusted text it is.

Entries and notices are fields, each ended by NUL; native/init/builtin.c has the grammar. The
process that writes them runs in the world, so every number is checked and every field is bounded.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Literal

from substrate_services.journal.schema import ChangeKind, FileKind, FileState

_FIELD_LIMIT = 8 << 10  # two paths of PATH_MAX would be too much already
_KINDS: dict[bytes, FileKind] = {
    b"f": "file",
    b"d": "dir",
    b"l": "symlink",
    b"p": "fifo",
    b"s": "socket",
    b"c": "char",
    b"b": "block",
}
_ID_LIMIT = 1 << 32
_NUMBER_LIMIT = 1 << 63
_NOTICES: dict[bytes, ChangeKind] = {
    b"+": "created",
    b"~": "modified",
    b"m": "metadata",
    b"-": "deleted",
    b">": "renamed",
}


class Garbled(ValueError):
    """What came from the world is not what its init says."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A path and what it holds."""

    path: bytes
    state: FileState


@dataclass(frozen=True, slots=True)
class Notice:
    """Something that a watch tells.

    Attributes:
        kind: what happened; "ready" once everything is told from here on, "lost" where notices
            are missing.
        path: absolute.
        state: of the path now, where it is there.
        renamed_from: where a renamed entry was.
        lost: how many are missing.
    """

    kind: ChangeKind | Literal["ready", "lost"]
    path: bytes = b""
    state: FileState | None = None
    renamed_from: bytes | None = None
    lost: int = 0


async def read_entries(pieces: AsyncIterator[bytes], *, limit: int) -> list[Entry]:
    """At most ``limit`` entries. Raises Garbled where there are more, or something else."""
    found: list[Entry] = []
    async for head, path, target in _records(pieces, 3):
        if len(found) >= limit:
            raise Garbled("more entries than were asked for")
        found.append(Entry(path, _state(head, target)))
    return found


async def read_notices(pieces: AsyncIterator[bytes]) -> AsyncIterator[Notice]:
    """The notices of a watch as they come. Raises Garbled."""
    async for what, head, path, target, former in _records(pieces, 5):
        if what == b".":
            yield Notice("ready", path)
        elif what == b"!":
            yield Notice("lost", lost=_number(path, _NUMBER_LIMIT))
        elif what in _NOTICES and path.startswith(b"/"):
            kind = _NOTICES[what]
            state = _state(head, target) if head else None
            yield Notice(kind, path, state, former if kind == "renamed" else None)
        else:
            raise Garbled(f"a notice {what[:20]!r} of {path[:80]!r}")


async def _records(pieces: AsyncIterator[bytes], size: int) -> AsyncIterator[list[bytes]]:
    rest = b""
    fields: list[bytes] = []
    async for piece in pieces:
        *whole, rest = (rest + piece).split(b"\0")
        if len(rest) > _FIELD_LIMIT:
            raise Garbled(f"a field of more than {_FIELD_LIMIT} bytes")
        for field in whole:
            if len(field) > _FIELD_LIMIT:
                raise Garbled(f"a field of {len(field)} bytes")
            fields.append(field)
            if len(fields) == size:
                yield fields
                fields = []
    if rest or fields:
        raise Garbled("the last record is not whole")


def _state(head: bytes, target: bytes) -> FileState:
    words = head.split(b" ")
    if len(words) != 8 or words[0] not in _KINDS:
        raise Garbled(f"{head[:80]!r} is no entry")
    kind = _KINDS[words[0]]
    mtime = words[5].removeprefix(b"-")
    sign = -1 if len(mtime) < len(words[5]) else 1
    return FileState(
        kind=kind,
        mode=_number(words[1], 0o10000, base=8),
        size=_number(words[4], _NUMBER_LIMIT) if kind == "file" else 0,
        target=target if kind == "symlink" else None,
        uid=_number(words[2], _ID_LIMIT),
        gid=_number(words[3], _ID_LIMIT),
        mtime_ns=sign * _number(mtime, _NUMBER_LIMIT),
    )


def _number(text: bytes, limit: int, *, base: int = 10) -> int:
    if not text.isdigit() or len(text) > 20:
        raise Garbled(f"{text[:40]!r} is no number")
    try:
        value = int(text, base)
    except ValueError as error:
        raise Garbled(f"{text[:40]!r} is no number") from error
    if value >= limit:
        raise Garbled(f"{text[:40]!r} is too large")
    return value
