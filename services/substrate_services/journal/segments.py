"""The files of a journal: the live one, and the rotated ones beside it.

``trace.jsonl`` is live. A full one becomes ``trace-00000001.jsonl`` and, soon after,
``trace-00000001.jsonl.zst``, so rotated names sort by age. The compressed form is a row of
independent zstd frames of 1 MiB of text each: ``zstdcat`` reads it as one stream, and a reader
that wants one line decompresses one or two frames.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import blake3
import zstandard

FRAME_BYTES = 1 << 20
_READ_BYTES = 1 << 18
_LEVEL = 3


@dataclass(frozen=True, slots=True)
class Segment:
    """One rotated file of a journal."""

    number: int  # 1 is the oldest
    path: Path
    compressed: bool


def live_pending_path(path: Path) -> Path:
    """Where the next live file is prepared before it takes the live name."""
    return path.with_name(path.name + ".next")


def lock_path(path: Path) -> Path:
    """The file whose lock makes a process the journal's one writer: ``trace.lock``."""
    return path.with_suffix(".lock")


def rotated_path(path: Path, number: int, *, compressed: bool) -> Path:
    """The name of the journal's ``number``-th segment once it is rotated."""
    return path.with_name(f"{path.stem}-{number:08d}{path.suffix}{'.zst' if compressed else ''}")


def rotated_segments(path: Path) -> list[Segment]:
    """The rotated segments, oldest first; of one that is being compressed, the finished form."""
    pattern = re.compile(
        re.escape(path.stem) + r"-(\d{8,})" + re.escape(path.suffix) + r"(\.zst)?\Z"
    )
    found: dict[int, Segment] = {}
    try:
        names = os.listdir(path.parent)
    except FileNotFoundError:
        return []
    for name in names:
        match = pattern.match(name)
        if match is None:
            continue
        number, compressed = int(match[1]), match[2] is not None
        # The compressed file gets its name only when it is complete, so it is as good.
        if compressed or number not in found:
            found[number] = Segment(number, path.with_name(name), compressed)
    return [found[number] for number in sorted(found)]


def open_segment(segment: Segment) -> tuple[int, bool]:
    """A descriptor of the segment's file, and whether it is compressed.

    The uncompressed file may have been replaced by the compressed one since it was listed.
    Raises FileNotFoundError when neither is there (retention took it).
    """
    try:
        return os.open(segment.path, os.O_RDONLY | os.O_CLOEXEC), segment.compressed
    except FileNotFoundError:
        if segment.compressed:
            raise
        compressed_path = segment.path.with_name(segment.path.name + ".zst")
        return os.open(compressed_path, os.O_RDONLY | os.O_CLOEXEC), True


@dataclass(frozen=True, slots=True)
class Frame:
    """A stretch of a segment's text that can be read without what stands before it."""

    text_offset: int  # where it begins in the uncompressed text
    file_offset: int  # where it begins in the file
    file_bytes: int


def read_frames(fd: int) -> Iterator[tuple[Frame, bytes]]:
    """The frames of a compressed segment with their text, in order.

    A frame that is cut off or damaged ends the iteration with zstandard.ZstdError.
    """
    text_offset = file_offset = position = 0
    pending = b""
    while True:
        decompressor = zstandard.ZstdDecompressor().decompressobj()
        pieces: list[bytes] = []
        consumed = 0
        while not decompressor.eof:
            if not pending:
                pending = os.pread(fd, _READ_BYTES, position)
                position += len(pending)
                if not pending:
                    if consumed:
                        raise zstandard.ZstdError(f"frame at byte {file_offset} is cut off")
                    return
            pieces.append(decompressor.decompress(pending))
            unused = decompressor.unused_data
            consumed += len(pending) - len(unused)
            pending = unused
        text = b"".join(pieces)
        yield Frame(text_offset, file_offset, consumed), text
        text_offset += len(text)
        file_offset += consumed


def read_frame(fd: int, frame: Frame) -> bytes:
    """The text of one frame."""
    data = os.pread(fd, frame.file_bytes, frame.file_offset)
    return zstandard.ZstdDecompressor().decompressobj().decompress(data)


def read_chunks(fd: int, start: int, end: int | None = None) -> Iterator[bytes]:
    """The bytes of an uncompressed segment from ``start`` up to ``end`` (default: its end)."""
    position = start
    while end is None or position < end:
        size = FRAME_BYTES if end is None else min(FRAME_BYTES, end - position)
        chunk = os.pread(fd, size, position)
        if not chunk:
            return
        yield chunk
        position += len(chunk)


def compress_segment(segment: Segment) -> None:
    """Replaces a rotated file by its compressed form, which is read back before the swap.

    Raises OSError; the uncompressed file is then still there and nothing is lost.
    """
    target = segment.path.with_name(segment.path.name + ".zst")
    scratch = target.with_name(target.name + ".tmp")
    compressor = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True)
    source_hash, copy_hash = blake3.blake3(), blake3.blake3()
    source = os.open(segment.path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        copy = os.open(scratch, flags, 0o600)
        try:
            for chunk in read_chunks(source, 0):
                source_hash.update(chunk)
                write_all(copy, compressor.compress(chunk))
            os.fsync(copy)
            for _, text in read_frames(copy):
                copy_hash.update(text)
        finally:
            os.close(copy)
        if source_hash.digest() != copy_hash.digest():
            raise OSError(f"{scratch} does not read back as {segment.path}; kept uncompressed")
        os.rename(scratch, target)
        sync_directory(target.parent)
        os.unlink(segment.path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(scratch)
        raise
    finally:
        os.close(source)


def write_all(fd: int, data: bytes) -> None:
    """Writes all of ``data``, however often the kernel takes only a part."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def sync_directory(path: Path) -> None:
    """Makes renames and creations in a directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
