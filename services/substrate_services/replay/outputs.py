"""Where two byte streams part ways: line by line, in constant memory."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import BinaryIO, Protocol

from substrate_services.replay.divergence import Cause
from substrate_services.replay.normalise import MAX_LINE_BYTES

EXCERPT_BYTES = 240
_CHUNK_BYTES = 1 << 18
_REORDER_BYTES = 4 << 20  # how much of the rest is read to see whether it is only reordered


class LineRule(Protocol):
    """When two lines count as the same."""

    def same(self, recorded: bytes, replayed: bytes) -> bool:
        """Whether the lines are the same."""
        ...

    def forms(self, recorded: bytes, replayed: bytes) -> tuple[bytes, bytes]:
        """Both lines as they are compared."""
        ...


class ExactLines:
    """Bytes are the same when they are equal."""

    def same(self, recorded: bytes, replayed: bytes) -> bool:
        """Whether the lines are equal."""
        return recorded == replayed

    def forms(self, recorded: bytes, replayed: bytes) -> tuple[bytes, bytes]:
        """The lines themselves."""
        return recorded, replayed


@dataclass(frozen=True, slots=True)
class OutputDifference:
    """The first line that differs."""

    cause: Cause
    line: int  # from 1
    offset: int  # bytes from the start of the recording to the difference
    expected: bytes | None  # excerpt of the line; None: the recording has no such line
    actual: bytes | None


@dataclass(frozen=True, slots=True)
class OutputResult:
    """The outcome of comparing two streams."""

    difference: OutputDifference | None
    cut_short: bool  # nothing was said about what lies beyond the shorter, cut, stream


def compare_streams(
    recorded: BinaryIO,
    replayed: BinaryIO,
    rule: LineRule,
    *,
    recorded_cut: bool = False,
    replayed_cut: bool = False,
) -> OutputResult:
    """Find the first line in which two streams differ.

    A stream that was cut says nothing about what follows its last whole line: there the
    comparison ends without a difference.
    """
    old, new = _Lines(recorded, cut=recorded_cut), _Lines(replayed, cut=replayed_cut)
    while True:
        before, after = old.take(), new.take()
        if before is None or after is None:
            if (before is None and recorded_cut) or (after is None and replayed_cut):
                return OutputResult(None, cut_short=True)
            if before is None and after is None:
                return OutputResult(None, cut_short=False)
            cause: Cause = "ends_early" if after is None else "extra_output"
            return OutputResult(_difference(cause, old, before, after), cut_short=False)
        if before == after:
            continue
        if not (old.within_long_line or new.within_long_line) and rule.same(before, after):
            continue
        difference = _difference("line_differs", old, before, after, rule)
        if _reordered(old, new, before, after, rule):
            difference = replace(difference, cause="reordered")
        return OutputResult(difference, cut_short=False)


class _Lines:
    """Reads lines with their ends, and lines above the limit in pieces."""

    def __init__(self, stream: BinaryIO, *, cut: bool) -> None:
        self._stream = stream
        self._cut = cut
        self._buffer = b""
        self._at = 0
        self._ended = False
        self.line = 0  # number of the line last taken
        self.offset = 0  # where it, or its piece, begins
        self.end_offset = 0  # where it ends
        self.within_long_line = False
        self._whole = True

    def take(self) -> bytes | None:
        """The next line or piece; None at the end."""
        end = self._find_end()
        piece = self._buffer[self._at : end]
        if not piece:
            return None
        if self._cut and self._ended and end == len(self._buffer) and piece[-1:] != b"\n":
            return None
        self._at = end
        if self._whole:
            self.line += 1
        self.offset = self.end_offset
        self.end_offset += len(piece)
        ends_line = piece[-1:] == b"\n" or len(piece) <= MAX_LINE_BYTES
        self.within_long_line = not self._whole or not ends_line
        self._whole = ends_line
        return piece

    def _find_end(self) -> int:
        searched = self._at
        # One byte more than is normalised, so that the normaliser leaves the piece alone.
        while (end := self._buffer.find(b"\n", searched, self._at + MAX_LINE_BYTES + 1)) < 0:
            held = len(self._buffer) - self._at
            if held > MAX_LINE_BYTES:
                return self._at + MAX_LINE_BYTES + 1
            chunk = b"" if self._ended else self._stream.read(_CHUNK_BYTES)
            if not chunk:
                self._ended = True
                return len(self._buffer)
            self._buffer = self._buffer[self._at :] + chunk
            self._at, searched = 0, held
        return end + 1

    def rest(self, limit_bytes: int) -> list[bytes] | None:
        """What follows, as lines; None when it is longer than the limit."""
        lines: list[bytes] = []
        left = limit_bytes
        while (line := self.take()) is not None:
            left -= len(line)
            if left < 0:
                return None
            lines.append(line)
        return lines


def _difference(
    cause: Cause,
    old: _Lines,
    before: bytes | None,
    after: bytes | None,
    rule: LineRule | None = None,
) -> OutputDifference:
    if before is None or after is None:
        ended = before is None
        return OutputDifference(
            cause,
            old.line + 1 if ended else old.line,
            old.end_offset if ended else old.offset,
            _excerpt(before, 0),
            _excerpt(after, 0),
        )
    column = _common_prefix(before, after)
    shown = column
    if rule is not None:
        # The first byte that differs may belong to a time that was set aside.
        forms = rule.forms(before, after)
        shown = max(column, _common_prefix(*forms)) if forms[0] != forms[1] else column
    return OutputDifference(
        cause, old.line, old.offset + column, _excerpt(before, shown), _excerpt(after, shown)
    )


def _reordered(old: _Lines, new: _Lines, before: bytes, after: bytes, rule: LineRule) -> bool:
    here = rule.forms(before, after)
    if here[0] == here[1]:  # they differ in what the forms do not show, not in their place
        return False
    rest_old, rest_new = old.rest(_REORDER_BYTES), new.rest(_REORDER_BYTES)
    if rest_old is None or rest_new is None or len(rest_old) != len(rest_new):
        return False
    counts: Counter[bytes] = Counter()
    for recorded, replayed in zip((before, *rest_old), (after, *rest_new), strict=True):
        forms = rule.forms(recorded, replayed)
        counts[forms[0]] += 1
        counts[forms[1]] -= 1
    return not any(counts.values())


def _common_prefix(a: bytes, b: bytes) -> int:
    """How many bytes at the start are equal; by bisection, as comparing slices is fast."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _excerpt(line: bytes | None, column: int) -> bytes | None:
    if line is None:
        return None
    if len(line) <= EXCERPT_BYTES:
        return line
    start = max(0, min(column - EXCERPT_BYTES // 3, len(line) - EXCERPT_BYTES))
    return line[start : start + EXCERPT_BYTES]
