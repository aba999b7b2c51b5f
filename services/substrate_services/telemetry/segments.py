"""The directory that programs in a world write their segments to, and its upkeep.

Only names are handled here; what is in the files is read by ``substrate-decode`` alone, in a
process without rights. The layout of both is defined in ``native/include/events.h``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

__all__ = [
    "SEGMENT_DIRECTORY",
    "SEGMENT_VARIABLE",
    "SegmentName",
    "prepare_directory",
    "remove_dead_segments",
    "remove_segments",
]

#: Where the preload library looks, in the world (SUB_SEGMENT_DIRECTORY).
SEGMENT_DIRECTORY = "/run/substrate/seg"
#: Environment variable that names another directory (SUB_SEGMENT_VARIABLE).
SEGMENT_VARIABLE = "SUBSTRATE_SEGMENTS"

#: Bits of ``start_ticks`` that say that it is a pidfd's inode, or a clock's time.
_NOT_TICKS = 1 << 62 | 1 << 63

_NAME = re.compile(r"(\d{1,10})-(\d{1,20})-(\d{1,10})-(\d{1,10})-(\d{1,10})")


@dataclass(frozen=True, slots=True)
class SegmentName:
    """What a segment's name says: whose it is, and its place in that image's chains."""

    pid: int  # in the world's pid namespace
    start_ticks: int  # as in struct sub_identity: what tells processes of one pid apart
    exec_no: int
    chain: int
    index: int

    @classmethod
    def parse(cls, name: str) -> SegmentName | None:
        """The parts of ``name``, or None when no segment is called that."""
        match = _NAME.fullmatch(name)
        return cls(*(int(part) for part in match.groups())) if match else None


def prepare_directory(path: Path) -> None:
    """Make a directory that programs of any uid can write segments to, and the decoder read.

    Args:
        path: created with its parents when missing.

    Raises:
        OSError: it cannot be made, or belongs to somebody else.
    """
    path.mkdir(parents=True, exist_ok=True)
    # As /tmp: whoever made a segment may remove it, nobody else's.
    path.chmod(0o1777)


def remove_segments(segments_fd: int, names: Iterable[str]) -> int:
    """Remove segments that were decoded and whose processes have ended.

    Args:
        segments_fd: descriptor of the segment directory.
        names: file names as the decoder reported them; anything else is passed over, because a
            name that came from a world could be a way out of the directory.

    Returns:
        How many were removed.
    """
    removed = 0
    for name in names:
        if SegmentName.parse(name) is None:
            continue
        try:
            os.unlink(name, dir_fd=segments_fd)
        except OSError:
            continue  # gone already, or replaced by what a program made there
        removed += 1
    return removed


def remove_dead_segments(segments_fd: int, proc_fd: int) -> int:
    """Remove the segments of processes that no longer exist, however they ended.

    Where the kernel numbers pidfds (6.9), a segment's name holds such a number, which nothing in
    /proc shows. There a segment is kept for as long as its pid is anybody's: until that process,
    which is rarely another, ends as well.

    Args:
        segments_fd: descriptor of the segment directory.
        proc_fd: descriptor of a /proc of the world's pid namespace.

    Returns:
        How many were removed.
    """
    dead = [
        name
        for name in os.listdir(segments_fd)
        if (parsed := SegmentName.parse(name)) is not None and not _is_alive(parsed, proc_fd)
    ]
    return remove_segments(segments_fd, dead)


def _is_alive(name: SegmentName, proc_fd: int) -> bool:
    try:
        fd = os.open(f"{name.pid}/stat", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc_fd)
    except FileNotFoundError:
        return False
    except OSError:
        return True  # hidden from us: not known to be dead
    if name.start_ticks & _NOT_TICKS:
        os.close(fd)
        return True
    try:
        stat = os.read(fd, 4096)
    except ProcessLookupError:
        return False
    finally:
        os.close(fd)
    # The command, in brackets, may hold anything; after it come state (3rd), ..., start (22nd).
    fields = stat.rpartition(b")")[2].split()
    return len(fields) < 20 or int(fields[19]) == name.start_ticks
