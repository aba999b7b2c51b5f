"""Tar streams as the Files calls carry them: POSIX.1-2001 (pax), read and written as they pass.

Reading takes what comes in pieces and trusts none of it: names, numbers and the sizes of extended
headers are checked before anything is made of them, and memory stays small whatever the stream
says. Only files, directories, symbolic and hard links are taken. GNU's long names are understood,
because that is what other tools write by default.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

BLOCK: Final = 512
PATH_LIMIT_BYTES: Final = 4095  # PATH_MAX, without its NUL
NAME_LIMIT_BYTES: Final = 255  # NAME_MAX
ENTRIES_LIMIT: Final = 4_000_000
_EXTENDED_LIMIT = 64 << 10  # two paths and some numbers; init takes no more either
_OCTAL_SIZE_LIMIT = 0o77777777777
_END = b"\0" * BLOCK

EntryKind = Literal["file", "dir", "symlink", "hardlink"]
_KINDS: dict[int, EntryKind] = {
    ord("0"): "file",
    0: "file",
    ord("7"): "file",  # contiguous: a file to everybody
    ord("1"): "hardlink",
    ord("2"): "symlink",
    ord("5"): "dir",
}
_TYPES: dict[EntryKind, bytes] = {"file": b"0", "hardlink": b"1", "symlink": b"2", "dir": b"5"}
_REFUSED = {ord("3"): "a device", ord("4"): "a device", ord("6"): "a fifo", ord("S"): "sparse"}


class BadTar(ValueError):
    """The stream is not what it should be, or brings what is not taken; the text says which."""


@dataclass(frozen=True, slots=True)
class TarEntry:
    """One entry of a stream.

    Attributes:
        path: relative, without ``.``, ``..`` and empty names; empty for the directory itself.
        kind: what it is.
        mode: permission bits, 0o7777.
        size: bytes of content of a file.
        mtime: seconds since the epoch.
        target: where a symbolic link points, as it is; of a hard link the other name, as ``path``.
    """

    path: bytes
    kind: EntryKind
    mode: int = 0o644
    size: int = 0
    mtime: int = 0
    target: bytes = b""


@dataclass(slots=True)
class _Extended:
    """What an extended header says of the next entry."""

    path: bytes | None = None
    target: bytes | None = None
    size: int | None = None
    mtime: int | None = None


class TarReader:
    """Reads a stream piece by piece: entries, and behind each file's its content.

    Args:
        limit_entries: more than so many are refused.
    """

    def __init__(self, *, limit_entries: int = ENTRIES_LIMIT) -> None:
        self._limit_entries = limit_entries
        self._entries = 0
        self._buffer = bytearray()  # of a block, or of an extended header
        self._wanted = BLOCK
        self._special = 0  # type of the extended header that is being read
        self._special_size = 0
        self._extended = _Extended()
        self._content = 0  # bytes of content still to come
        self._skip = 0  # bytes of padding still to come
        self._ended = False

    def feed(self, data: bytes) -> Iterator[TarEntry | bytes]:
        """Take the next piece of the stream: yields entries and pieces of content.

        Raises:
            BadTar: nothing that comes after is read.
        """
        view = memoryview(data)
        while view and not self._ended:
            if self._content:
                piece = view[: self._content]
                self._content -= len(piece)
                view = view[len(piece) :]
                yield bytes(piece)
            elif self._skip:
                passed = min(self._skip, len(view))
                self._skip -= passed
                view = view[passed:]
            else:
                missing = self._wanted - len(self._buffer)
                self._buffer += view[:missing]
                view = view[missing:]
                if len(self._buffer) == self._wanted:
                    block = bytes(self._buffer)
                    self._buffer.clear()
                    if self._special:
                        self._take_special(block)
                    elif (entry := self._take(block)) is not None:
                        yield entry

    def finish(self) -> None:
        """Say that the stream is over. Raises BadTar where it should go on."""
        if not self._ended:
            raise BadTar("the tar stream ends early")

    def _take(self, block: bytes) -> TarEntry | None:
        if block == _END:
            self._ended = True
            return None
        if _number(block[148:156], "checksum") != sum(block) - sum(block[148:156]) + 8 * 32:
            raise BadTar("no tar header: its checksum is wrong")
        kind, size = block[156], _number(block[124:136], "size")
        if kind in b"xgLK" and kind:
            if size > _EXTENDED_LIMIT:
                raise BadTar(f"an extended tar header of {size} bytes is too large")
            self._special, self._special_size = kind, size
            self._wanted = max(BLOCK, -(-size // BLOCK) * BLOCK)
            if size == 0:
                self._special, self._wanted = 0, BLOCK
            return None
        self._entries += 1
        if self._entries > self._limit_entries:
            raise BadTar(f"more than {self._limit_entries} entries")
        return self._entry(block, kind, size)

    def _entry(self, block: bytes, kind: int, size: int) -> TarEntry:
        extended, self._extended = self._extended, _Extended()
        path = block[:100].partition(b"\0")[0]
        prefix = block[345:500].partition(b"\0")[0] if block[257:262] == b"ustar" else b""
        path = (
            extended.path if extended.path is not None else b"/".join(filter(None, (prefix, path)))
        )
        if kind not in _KINDS:
            what = _REFUSED.get(kind, f"an entry of type {chr(kind)!r}")
            raise BadTar(f"{path!r} is {what}; only files, directories and links are taken")
        target = extended.target
        if target is None:
            target = block[157:257].partition(b"\0")[0]
        if extended.size is not None:
            size = extended.size
        found = _KINDS[kind]
        if found == "file" and path.endswith(b"/"):
            found = "dir"  # as before POSIX.1-1988
        if found in ("symlink", "hardlink") or (found == "dir" and not size):
            size = 0
        mtime = extended.mtime
        entry = TarEntry(
            path=_clean(path),
            kind=found,
            mode=_number(block[100:108], "mode") & 0o7777,
            size=size if found == "file" else 0,
            mtime=_number(block[136:148], "mtime") if mtime is None else mtime,
            target=_checked_target(found, target, path),
        )
        if not entry.path and entry.kind != "dir":
            raise BadTar(f"{path!r} names no file")
        self._content = entry.size
        self._skip = (size if found == "dir" else 0) + -size % BLOCK
        return entry

    def _take_special(self, block: bytes) -> None:
        kind, self._special, self._wanted = self._special, 0, BLOCK
        content = block[: self._special_size]
        if kind == ord("x"):
            self._read_records(content)
        elif kind == ord("L"):
            self._extended.path = content.partition(b"\0")[0]
        elif kind == ord("K"):
            self._extended.target = content.partition(b"\0")[0]

    def _read_records(self, content: bytes) -> None:
        while content:
            length, space, _ = content.partition(b" ")
            if not space or not length.isdigit() or len(length) > 6:
                raise BadTar("an extended tar header is damaged")
            record = content[len(length) + 1 : int(length)]
            key, equals, value = record[:-1].partition(b"=")
            if len(record) + len(length) + 1 != int(length) or not equals or record[-1:] != b"\n":
                raise BadTar("an extended tar header is damaged")
            content = content[int(length) :]
            if key in (b"path", b"linkpath") and b"\0" in value:
                raise BadTar(f"{value!r} has a NUL byte in it")
            if key == b"path":
                self._extended.path = value
            elif key == b"linkpath":
                self._extended.target = value
            elif key == b"size":
                self._extended.size = _decimal(value)
            elif key == b"mtime":
                self._extended.mtime = _decimal(value.partition(b".")[0])


def _decimal(text: bytes) -> int:
    if not text.removeprefix(b"-").isdigit() or len(text) > 18:
        raise BadTar(f"{text!r} in an extended tar header is no number")
    return max(0, int(text))


def _number(field: bytes, what: str) -> int:
    """Octal digits, or where the first bit is set (GNU) a binary number."""
    if field[0] & 0x80:
        value = int.from_bytes(field[1:], "big")
        if field[0] != 0x80 or value >= 1 << 62:
            raise BadTar(f"no tar header: {what} {field!r} is no number")
        return value
    digits = field.strip(b" \0")
    try:
        return int(digits or b"0", 8)
    except ValueError:
        raise BadTar(f"no tar header: {what} {field!r} is no number") from None


def _clean(path: bytes) -> bytes:
    """A path that stays where it is unpacked, in its shortest form."""
    if path.startswith(b"/"):
        raise BadTar(f"{path!r} is an absolute path")
    names = [name for name in path.split(b"/") if name not in (b"", b".")]
    if b".." in names:
        raise BadTar(f"{path!r} leads out of the tree")
    if len(path) > PATH_LIMIT_BYTES or any(len(name) > NAME_LIMIT_BYTES for name in names):
        raise BadTar(f"{path[:80]!r}… is too long a path")
    return b"/".join(names)


def _checked_target(kind: EntryKind, target: bytes, path: bytes) -> bytes:
    if kind == "hardlink":
        cleaned = _clean(target)
        if not cleaned:
            raise BadTar(f"{path!r} is a hard link to nothing")
        return cleaned
    if kind != "symlink":
        return b""
    if not target or len(target) > PATH_LIMIT_BYTES:
        raise BadTar(f"{path!r} is a link with no target, or too long a one")
    return target


# --- writing -----------------------------------------------------------------------------------


def tar_header(entry: TarEntry) -> bytes:
    """What comes before an entry's content, which is to be padded to whole blocks."""
    path = entry.path + b"/" if entry.kind == "dir" else entry.path
    records = b""
    if len(path) > 100:
        records += _record(b"path", path)
    if len(entry.target) > 100:
        records += _record(b"linkpath", entry.target)
    if entry.size > _OCTAL_SIZE_LIMIT:
        records += _record(b"size", b"%d" % entry.size)
    block = _block(
        path,
        _TYPES[entry.kind],
        mode=entry.mode,
        size=0 if entry.size > _OCTAL_SIZE_LIMIT else entry.size,
        mtime=entry.mtime,
        target=entry.target,
    )
    if not records:
        return block
    head = _block(b"././@PaxHeader", b"x", mode=0o644, size=len(records))
    return head + records + padding(len(records)) + block


def padding(size: int) -> bytes:
    """What fills content of so many bytes up to whole blocks."""
    return bytes(-size % BLOCK)


def tar_end() -> bytes:
    """What ends a stream."""
    return _END * 2


def _record(key: bytes, value: bytes) -> bytes:
    rest = len(key) + len(value) + 3
    length = rest
    while (longer := rest + len(b"%d" % length)) != length:
        length = longer
    return b"%d %s=%s\n" % (length, key, value)


def _block(
    path: bytes, kind: bytes, *, mode: int, size: int, mtime: int = 0, target: bytes = b""
) -> bytes:
    mtime = min(max(0, mtime), _OCTAL_SIZE_LIMIT)
    block = bytearray(
        b"%s%07o\0%07o\0%07o\0%011o\0%011o\0%s%s%s%s%s"
        % (
            path[:100].ljust(100, b"\0"),
            mode & 0o7777,
            0,
            0,
            size,
            mtime,
            b" " * 8,
            kind,
            target[:100].ljust(100, b"\0"),
            b"ustar\x0000",
            bytes(BLOCK - 265),
        )
    )
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)
