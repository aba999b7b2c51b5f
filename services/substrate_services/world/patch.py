"""Changes as a patch that ``git apply`` and ``patch -p1`` take.

The format is that of git-diff(1), "Generating patch text with -p". Paths in the project are
relative to it; changes outside the project are listed as comments before the patch, because a
patch of a project cannot carry them.
"""

from __future__ import annotations

import base64
import difflib
import hashlib
import os
import zlib
from collections.abc import Callable, Iterable, Iterator

from substrate_services.journal.schema import Change, FileState

ReadObject = Callable[[str], bytes]

_BINARY_LINE_BYTES = 52  # of git's binary patches; its length is one letter, A-Za-z
# difflib takes quadratic time in the worst case; a larger text is shown as replaced as a whole.
_DIFF_LIMIT_LINES = 10_000
_TEXT_LIMIT_BYTES = 4 << 20
_TYPE_BITS = {"file": 0o100000, "symlink": 0o120000}
_NO_FILE = b"/dev/null"


def patch(changes: Iterable[Change], project: bytes | None, read: ReadObject) -> Iterator[bytes]:
    """The patch, piece by piece.

    Args:
        changes: what a step or a world changed.
        project: the directory that the patch is relative to.
        read: gives the content of an object; raises ``ObjectMissing`` where it is not kept.
    """
    inside = []
    for change in changes:
        if project is not None and change.scope == "project":
            inside.append(change)
        else:
            yield b"# outside the project: %s %s\n" % (change.kind.encode(), change.path)
    for change in inside:
        assert project is not None
        yield from _file_patch(change, _relative(change.path, project), project, read)


def _relative(path: bytes, project: bytes) -> bytes:
    return os.path.relpath(path, project)


def _file_patch(change: Change, name: bytes, project: bytes, read: ReadObject) -> Iterator[bytes]:
    before, after = _representable(change.before), _representable(change.after)
    if before is None and after is None:
        return  # directories and special files have no place in a patch
    if before is not None and after is not None and before.kind != after.kind:
        # A file that became a link, or the reverse: git shows a deletion and a creation.
        yield from _entry(name, name, before, None, read)
        yield from _entry(name, name, None, after, read)
        return
    old_name = _relative(change.renamed_from, project) if change.renamed_from else name
    yield from _entry(old_name, name, before, after, read)


def _entry(
    old_name: bytes,
    name: bytes,
    before: FileState | None,
    after: FileState | None,
    read: ReadObject,
) -> Iterator[bytes]:
    yield b"diff --git %s %s\n" % (_quote(b"a/" + old_name), _quote(b"b/" + name))
    if before is None and after is not None:
        yield b"new file mode %06o\n" % _git_mode(after)
    elif after is None and before is not None:
        yield b"deleted file mode %06o\n" % _git_mode(before)
    elif before is not None and after is not None and _git_mode(before) != _git_mode(after):
        yield b"old mode %06o\nnew mode %06o\n" % (_git_mode(before), _git_mode(after))
    if old_name != name:
        yield b"rename from %s\nrename to %s\n" % (_quote(old_name), _quote(name))
    old_label = _quote(b"a/" + old_name) if before is not None else _NO_FILE
    new_label = _quote(b"b/" + name) if after is not None else _NO_FILE
    old, new = _content(before, read), _content(after, read)
    if old == new:
        return
    if _is_binary(old) or _is_binary(new):
        yield from _binary(None if before is None else old, None if after is None else new)
        return
    yield b"--- %s\n+++ %s\n" % (old_label, new_label)
    yield from _hunks(_lines(old), _lines(new))


def _hunks(old: list[bytes], new: list[bytes]) -> Iterator[bytes]:
    if max(len(old), len(new)) > _DIFF_LIMIT_LINES:
        yield b"@@ -%s +%s @@\n" % (_range(0, len(old)), _range(0, len(new)))
        yield from (_line(b"-", line) for line in old)
        yield from (_line(b"+", line) for line in new)
        return
    matcher = difflib.SequenceMatcher(None, old, new, autojunk=False)
    for group in matcher.get_grouped_opcodes(3):
        first, last = group[0], group[-1]
        yield b"@@ -%s +%s @@\n" % (_range(first[1], last[2]), _range(first[3], last[4]))
        for tag, old_start, old_end, new_start, new_end in group:
            if tag == "equal":
                yield from (_line(b" ", line) for line in old[old_start:old_end])
                continue
            yield from (_line(b"-", line) for line in old[old_start:old_end])
            yield from (_line(b"+", line) for line in new[new_start:new_end])


def _binary(old: bytes | None, new: bytes | None) -> Iterator[bytes]:
    """Both contents in full, as ``git diff --binary`` writes them; None where there is no file.

    ``git apply`` takes such a patch only with both object names, and only onto exactly ``old``.
    """
    yield b"index %s..%s\n" % (_blob_name(old), _blob_name(new))
    yield b"GIT binary patch\n"
    for content in (new or b"", old or b""):  # forth, and back for ``git apply -R``
        yield b"literal %d\n" % len(content)
        packed = zlib.compress(content)
        for start in range(0, len(packed), _BINARY_LINE_BYTES):
            piece = packed[start : start + _BINARY_LINE_BYTES]
            length = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"[len(piece) - 1]
            # b85encode has git's alphabet, and pads as git does.
            yield b"%c%s\n" % (length, base64.b85encode(piece, pad=True))
        yield b"\n"


def _blob_name(content: bytes | None) -> bytes:
    """How git names content (a SHA-1 that identifies and protects nothing)."""
    if content is None:
        return b"0" * 40
    header = b"blob %d\0" % len(content)
    return hashlib.sha1(header + content, usedforsecurity=False).hexdigest().encode()


def _range(start: int, stop: int) -> bytes:
    length = stop - start
    if length == 1:
        return b"%d" % (start + 1)
    return b"%d,%d" % (start if length == 0 else start + 1, length)


def _line(mark: bytes, line: bytes) -> bytes:
    if line.endswith(b"\n"):
        return mark + line
    return mark + line + b"\n\\ No newline at end of file\n"


def _lines(text: bytes) -> list[bytes]:
    lines = text.split(b"\n")
    rest = lines.pop()
    return [line + b"\n" for line in lines] + ([rest] if rest else [])


def _content(state: FileState | None, read: ReadObject) -> bytes:
    if state is None:
        return b""
    if state.kind == "symlink":
        return state.target or b""
    return read(state.digest) if state.digest is not None else b""


def _is_binary(text: bytes) -> bool:
    return b"\0" in text[:8192] or len(text) > _TEXT_LIMIT_BYTES


def _representable(state: FileState | None) -> FileState | None:
    return state if state is not None and state.kind in _TYPE_BITS else None


def _git_mode(state: FileState) -> int:
    if state.kind == "symlink":
        return _TYPE_BITS["symlink"]
    return _TYPE_BITS["file"] | (0o755 if state.mode & 0o100 else 0o644)


def _quote(name: bytes) -> bytes:
    """Names with unusual bytes as git quotes them (core.quotePath)."""
    if all(0x20 <= byte < 0x7F and byte not in b'"\\' for byte in name):
        return name
    quoted = b"".join(_quoted_byte(byte) for byte in name)
    return b'"' + quoted + b'"'


def _quoted_byte(byte: int) -> bytes:
    known = {0x09: b"\\t", 0x0A: b"\\n", 0x22: b'\\"', 0x5C: b"\\\\"}
    if byte in known:
        return known[byte]
    if 0x20 <= byte < 0x7F:
        return bytes([byte])
    return b"\\%03o" % byte
