"""Reading output logs: framed records that init appends and anybody may read by offset.

A record is ``{u64 monotonic ns, u8 stream, u8[3] zero, u32 length}``, little-endian, then the
bytes. Offsets are byte offsets in the log file; the end of any record is a place to go on from.
The log may be growing: a last record that is not complete yet is not an error.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import struct
import tempfile
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import BinaryIO

_HEAD = struct.Struct("<QB3xI")
#: Init writes at most 64 KiB at once; anything much larger is not a record.
FRAME_MAX = 1 << 20
_READ = 256 << 10


class Stream(IntEnum):
    """Where the bytes were written."""

    STDOUT = 1
    STDERR = 2
    PTY = 3


@dataclass(frozen=True, slots=True)
class Frame:
    """One record. ``end`` is the offset behind it."""

    mono_ns: int
    stream: Stream
    data: bytes
    end: int


class OutputLogCorrupt(ValueError):
    """The bytes at an offset are no record; the text says where."""


@dataclass(frozen=True, slots=True)
class OutputSizes:
    """Bytes of output by stream, and the offset behind the last whole record."""

    stdout: int
    stderr: int
    pty: int
    end: int


def encode_frame(mono_ns: int, stream: Stream, data: bytes) -> bytes:
    """A record as init writes it."""
    return _HEAD.pack(mono_ns, stream, len(data)) + data


def read_frames(path: Path, offset: int = 0) -> Iterator[Frame]:
    """Yield the whole records from ``offset`` on, in constant memory.

    Args:
        path: the log.
        offset: 0, or the ``end`` of a frame.

    Raises:
        FileNotFoundError: there is no such log.
        OutputLogCorrupt: ``offset`` is not the start of a record.
    """
    with path.open("rb") as file:
        yield from _frames_from(file.fileno(), offset)


def read_kept(kept: BinaryIO, offset: int = 0) -> Iterator[Frame]:
    """The same of a log that was kept elsewhere."""
    with tempfile.TemporaryFile() as file:
        shutil.copyfileobj(kept, file)
        file.flush()
        yield from _frames_from(file.fileno(), offset)


def _frames_from(fd: int, offset: int) -> Iterator[Frame]:
    buffer = b""
    at = offset  # of buffer[0]
    while chunk := os.pread(fd, _READ, at + len(buffer)):
        buffer += chunk
        used = 0
        while len(buffer) - used >= _HEAD.size:
            mono_ns, stream, length = _HEAD.unpack_from(buffer, used)
            if stream not in (1, 2, 3) or length > FRAME_MAX:
                raise OutputLogCorrupt(f"no record at offset {at + used} of the output log")
            end = used + _HEAD.size + length
            if end > len(buffer):
                break
            yield Frame(mono_ns, Stream(stream), buffer[used + _HEAD.size : end], at + end)
            used = end
        buffer = buffer[used:]
        at += used


def read_stream(path: Path, stream: Stream, *, limit_bytes: int | None = None) -> bytes:
    """All bytes of one stream, at most ``limit_bytes``."""
    parts: list[bytes] = []
    left = limit_bytes
    for frame in read_frames(path):
        if frame.stream is stream:
            data = frame.data if left is None else frame.data[:left]
            parts.append(data)
            if left is not None:
                left -= len(data)
                if left == 0:
                    break
    return b"".join(parts)


def measure(path: Path) -> OutputSizes:
    """How much each stream has, and where the last whole record ends."""
    sizes = dict.fromkeys(Stream, 0)
    end = 0
    for frame in read_frames(path):
        sizes[frame.stream] += len(frame.data)
        end = frame.end
    return OutputSizes(sizes[Stream.STDOUT], sizes[Stream.STDERR], sizes[Stream.PTY], end)


class OutputFollower:
    """Wakes the readers of a log that grows.

    One per exec; whoever hears of growth or of the end (``InitClient`` events) calls
    :meth:`grew` or :meth:`finish`; any number of readers iterate :meth:`frames`. Readers keep their
    own offsets, so a slow one holds nobody up and costs no memory.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._finished = False
        self._changed = asyncio.Event()

    @property
    def finished(self) -> bool:
        """Whether nothing more will come."""
        return self._finished

    def grew(self) -> None:
        """The log has grown."""
        self._changed.set()
        self._changed = asyncio.Event()

    def finish(self) -> None:
        """Nothing more will come; readers end after what is there."""
        self._finished = True
        self.grew()

    async def frames(self, offset: int = 0) -> AsyncGenerator[Frame, None]:
        """Yield records from ``offset`` on, waiting for more until the end.

        Raises:
            FileNotFoundError: there is no such log.
            OutputLogCorrupt: ``offset`` is not the start of a record.
        """
        with self._path.open("rb") as file:
            while True:
                changed, finished = self._changed, self._finished
                for frame in _frames_from(file.fileno(), offset):
                    offset = frame.end
                    yield frame
                if finished:
                    return
                await changed.wait()
