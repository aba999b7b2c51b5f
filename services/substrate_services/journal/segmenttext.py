"""The text of one segment by offset, whether it is live, rotated or compressed."""

from __future__ import annotations

import bisect
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import zstandard

from substrate_services.journal.chain import COMMIT_MARK, parse_commit
from substrate_services.journal.index import SegmentIndex
from substrate_services.journal.jsontypes import Fields
from substrate_services.journal.recovery import inspect_tail
from substrate_services.journal.segments import (
    Frame,
    Segment,
    open_segment,
    read_chunks,
    read_frame,
    read_frames,
)

_BACK_BYTES = 1 << 20


class SegmentText(Protocol):
    """A segment that can be searched for steps and read by place."""

    index: SegmentIndex

    def extend_back(self) -> bool:
        """Indexes an older stretch; False when the segment is indexed down to its start."""

    def read(self, offset: int, length: int) -> bytes:
        """A stretch of the text. Raises OSError or zstandard.ZstdError where it is gone."""

    def chunks(self) -> Iterator[bytes]:
        """The sealed text from its start, in pieces."""

    def close(self) -> None:
        """Gives up the descriptor, where one is held."""


class PlainText:
    """An uncompressed segment behind a descriptor, which this object owns."""

    def __init__(self, fd: int, sealed_end: int) -> None:
        self._fd = fd
        self.index = SegmentIndex(sealed_end, sealed_end)

    def extend_back(self) -> bool:
        """Indexes up to 1 MiB more, towards the start; False when there is no more."""
        low, size = self.index.low, _BACK_BYTES
        while low > 0:
            base = max(0, low - size)
            text = os.pread(self._fd, low - base, base)
            # The stretch begins in the middle of a line, unless it begins the file.
            cut = 0 if base == 0 else text.find(b"\n", 0, len(text) - 1) + 1
            if cut or base == 0:
                self.index.add(text[cut:], base + cut)
                return True
            size *= 4
        return False

    def extend_forward(self) -> None:
        """Indexes what was committed since; an unfinished batch waits for its commit line."""
        start = position = self.index.high
        text = b""
        for chunk in read_chunks(self._fd, start):
            text += chunk
            position += len(chunk)
            end = _sealed_length(text)
            if end:
                self.index.add(text[:end], start)
                start, text = start + end, text[end:]

    def shrunk(self) -> bool:
        """Whether the file is shorter than what was indexed: a failed batch was taken back."""
        return os.fstat(self._fd).st_size < self.index.high

    def identity(self) -> tuple[int, int]:
        """Device and inode, to tell whether a path still leads to this file."""
        status = os.fstat(self._fd)
        return status.st_dev, status.st_ino

    def read(self, offset: int, length: int) -> bytes:
        """A stretch of the text."""
        return os.pread(self._fd, length, offset)

    def chunks(self) -> Iterator[bytes]:
        """The sealed text from its start, in pieces."""
        return read_chunks(self._fd, 0, self.index.high)

    def close(self) -> None:
        """Closes the descriptor."""
        os.close(self._fd)


class FramedText:
    """A compressed segment. Opened for each use, so that old segments hold no descriptors."""

    def __init__(self, segment: Segment) -> None:
        self._segment = segment
        self._frames: list[Frame] = []
        self._cached: tuple[int, bytes] = (-1, b"")
        self._scanned = False
        self.index = SegmentIndex(0, 0)

    def extend_back(self) -> bool:
        """Indexes the whole segment, the first time; False after that."""
        if self._scanned:
            return False
        self._scanned = True
        rest = b""
        for text in self.chunks(collect=True):
            whole = rest + text
            end = whole.rfind(b"\n") + 1
            self.index.add(whole[:end], self.index.high)
            rest = whole[end:]
        return True

    def read(self, offset: int, length: int) -> bytes:
        """A stretch of the text, from the one or two frames that hold it."""
        starts = [frame.text_offset for frame in self._frames]
        number = bisect.bisect_right(starts, offset) - 1
        out = b""
        while len(out) < length and number < len(self._frames):
            text = self._frame(number)
            begin = offset + len(out) - self._frames[number].text_offset
            out += text[begin : begin + length - len(out)]
            number += 1
        return out

    def chunks(self, *, collect: bool = False) -> Iterator[bytes]:
        """The text from its start; ``collect`` notes where its frames stand."""
        fd, _ = open_segment(self._segment)
        try:
            for frame, text in read_frames(fd):
                if collect:
                    self._frames.append(frame)
                yield text
        finally:
            os.close(fd)

    def close(self) -> None:
        """Forgets the frame read last; no descriptor is held."""
        self._cached = (-1, b"")

    def _frame(self, number: int) -> bytes:
        if self._cached[0] != number:
            fd, _ = open_segment(self._segment)
            try:
                self._cached = (number, read_frame(fd, self._frames[number]))
            finally:
                os.close(fd)
        return self._cached[1]


def open_live(path: Path) -> tuple[int, PlainText] | None:
    """Number and text of the live segment, as far as it is sealed; None where there is none."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    tail = inspect_tail(fd)
    number = _segment_number(fd)
    if tail is None or number is None:
        os.close(fd)
        return None
    return number, PlainText(fd, tail.good_end)


def open_rotated(segment: Segment) -> PlainText | FramedText:
    """The text of a rotated segment. Raises FileNotFoundError when retention took it."""
    fd, compressed = open_segment(segment)
    if not compressed:
        return PlainText(fd, os.fstat(fd).st_size)
    os.close(fd)
    path = (
        segment.path if segment.compressed else segment.path.with_name(segment.path.name + ".zst")
    )
    return FramedText(Segment(segment.number, path, True))


def _sealed_length(text: bytes) -> int:
    """Length of ``text`` up to the end of its last commit line; 0 where there is none."""
    found = len(text)
    while (found := text.rfind(COMMIT_MARK, 0, found)) >= 0:
        start = text.rfind(b"\n", 0, found) + 1
        end = text.find(b"\n", found) + 1
        if end and parse_commit(text[start:end]) is not None:
            return end
    return 0


def _segment_number(fd: int) -> int | None:
    try:
        fields = Fields(json.loads(os.pread(fd, 4096, 0).partition(b"\n")[0]), "journal_segment")
        return fields.integer("segment")
    except (ValueError, RecursionError):
        return None


# What reading a segment may raise where it is damaged or gone.
DAMAGE = (OSError, zstandard.ZstdError)
