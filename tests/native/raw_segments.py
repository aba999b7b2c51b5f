"""Reading segments record by record, as the preload library wrote them.

The decoder draws conclusions; tests of the library look at what it got. Layouts, names and numbers
come from native/include/events.h.
"""

from __future__ import annotations

import functools
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.native.segment_files import FIELD, HEADER, LOOK, LOOK_HEAD, MAGIC, RECORD

_EVENTS = Path(__file__).resolve().parents[2] / "native" / "include" / "events.h"

PATH, PATH2, DIRECTORY, ADDRESS, NAME, SERVICE = 1, 2, 3, 11, 12, 13
DIRECTORY_ID, LIBRARIES, STAT_COUNTS, TRANSFER_COUNTS, SOURCE_COUNTS = 16, 18, 19, 20, 21
FLAG_VFORK_CHILD, FLAG_FAULT, FLAG_DIRECTORY, FLAG_UNNAMED = 1, 4, 8, 16
SOURCES = ("clock", "monotonic", "random", "pid", "directory_order")


@functools.cache
def operations() -> tuple[str, ...]:
    """The names of SUB_OPERATIONS, by number."""
    return tuple(re.findall(r"^ {4}X\((\w+)\)", _EVENTS.read_text(), re.MULTILINE))


@functools.cache
def record_types() -> dict[int, str]:
    """Number to name, without the prefix and in lower case, of enum sub_record_type."""
    text = _EVENTS.read_text()
    body = text[text.index("enum sub_record_type {") :]
    found = re.findall(r"^ {4}SUB_(\w+) = (\d+),", body[: body.index("};")], re.MULTILINE)
    return {int(number): name.lower() for name, number in found}


@dataclass(frozen=True)
class Record:
    """One record with its fields."""

    type: str
    op: str
    result: int
    error: int
    flags: int
    tid: int
    pid: int
    start_ns: int
    elapsed_ns: int
    arg: tuple[int, int, int, int]
    fields: tuple[tuple[int, bytes], ...] = field(repr=False)

    def all(self, tag: int) -> list[bytes]:
        """The values of a tag."""
        return [value for found, value in self.fields if found == tag]

    def one(self, tag: int) -> bytes | None:
        """The first value of a tag."""
        return next(iter(self.all(tag)), None)

    @property
    def path(self) -> str | None:
        """SUB_TAG_PATH."""
        value = self.one(PATH)
        return None if value is None else value.decode(errors="surrogateescape")

    def counts(self, tag: int) -> tuple[int, ...]:
        """The words of a sum."""
        value = self.one(tag)
        assert value is not None
        return struct.unpack(f"<{len(value) // 8}Q", value)


def _fields(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + FIELD.size <= len(data):
        tag, _, length = FIELD.unpack_from(data, at)
        at += FIELD.size
        assert at + length <= len(data), "a field that is longer than its record"
        yield tag, data[at : at + length]
        at += (length + 7) & ~7


def _look(data: bytes, pid: int, at_ns: int) -> Record:
    """A short record as the whole one that it stands for."""
    _, _, path_bytes, calls, failed, dirfd, _ = LOOK_HEAD.unpack_from(data)
    path = data[LOOK_HEAD.size : LOOK_HEAD.size + path_bytes]
    assert not any(data[LOOK_HEAD.size + path_bytes :]), "padding that is not zeros"
    counts = struct.pack("<3Q", calls, failed, at_ns)
    return Record(
        "stat", "none", 0, 0, 0, 0, pid, at_ns, 0, (dirfd, 0, 0, 0),
        ((STAT_COUNTS, counts), (PATH, path)),
    )  # fmt: skip


def read_records(directory: Path) -> list[Record]:
    """All records of all segments in a directory, by time."""
    found = []
    for path in directory.iterdir():
        if path.name == "filtered":  # SUB_FILTER_MARK
            continue
        data = path.read_bytes()
        head = HEADER.unpack_from(data)
        assert head[0] == MAGIC
        at, pid, ended_ns = head[2], head[7], head[11]
        while at + LOOK_HEAD.size <= len(data):
            word, kind = struct.unpack_from("<IH", data, at)
            if kind == LOOK:
                if not word >> 31:
                    found.append(_look(data[at : at + word], pid, ended_ns))
                at += word & 0x7FFFFFFF
                continue
            if word == 0:
                break
            length, kind, op, start, elapsed, result, _, tid, error, flags, *arg = (
                RECORD.unpack_from(data, at)
            )
            pending, length = length >> 31, length & 0x7FFFFFFF
            if not pending:
                ended_ns = start + elapsed
                fields = tuple(_fields(data[at + RECORD.size : at + length]))
                found.append(
                    Record(
                        record_types()[kind], operations()[op], result, error, flags, tid, pid,
                        start, elapsed, (arg[0], arg[1], arg[2], arg[3]), fields,
                    )
                )  # fmt: skip
            at += length
    return sorted(found, key=lambda record: record.start_ns)


@dataclass
class Sums:
    """What a run's sums add up to."""

    stats: dict[str | int, tuple[int, int]]  #: path or descriptor to (calls, failed)
    transfers: dict[int, tuple[int, int, int, int]]  #: read calls, bytes, write calls, bytes
    sources: dict[str, int]


def add_up(records: list[Record]) -> Sums:
    """Add the sums of the records, by what they are of."""
    sums = Sums({}, {}, dict.fromkeys(SOURCES, 0))
    for record in records:
        if record.type == "stat":
            calls, failed, last = record.counts(STAT_COUNTS)
            assert last >= record.start_ns
            key = record.path if record.path is not None else record.arg[0]
            before = sums.stats.get(key, (0, 0))
            sums.stats[key] = (before[0] + calls, before[1] + failed)
        elif record.type == "transfer":
            *counts, last = record.counts(TRANSFER_COUNTS)
            assert last >= record.start_ns
            old = sums.transfers.get(record.arg[0], (0, 0, 0, 0))
            sums.transfers[record.arg[0]] = (
                old[0] + counts[0], old[1] + counts[1], old[2] + counts[2], old[3] + counts[3],
            )  # fmt: skip
        elif record.type == "sources":
            for name, count in zip(SOURCES, record.counts(SOURCE_COUNTS), strict=False):
                sums.sources[name] += count
    return sums


def bytes_by_path(records: list[Record]) -> dict[str, tuple[int, int, int, int]]:
    """Transfers (read calls, bytes, write calls, bytes) by what their descriptor led to.

    A descriptor leads to what the last open or copy that was over by then gave it. Pipes and other
    things without a name count as "?".
    """
    moments = sorted(records, key=lambda record: record.start_ns + record.elapsed_ns)
    tables: dict[int, dict[int, str]] = {}
    totals: dict[str, tuple[int, int, int, int]] = {}
    for record in moments:
        if record.pid not in tables:  # the hello comes after what a forked child did first
            forks = (r for r in records if r.type == "fork" and r.result == record.pid)
            tables[record.pid] = dict(tables.get(next(iter(f.pid for f in forks), 0), {}))
        table = tables[record.pid]
        if record.type == "open" and record.result >= 0:
            table[record.result] = record.path or "?"
        elif record.type == "dup":
            table[record.result] = table.get(record.arg[0], "?")
        elif record.type == "transfer":
            unnamed = record.flags & FLAG_UNNAMED
            path = "?" if unnamed else table.get(record.arg[0], "?")
            read_calls, read, write_calls, written, _ = record.counts(TRANSFER_COUNTS)
            old = totals.get(path, (0, 0, 0, 0))
            totals[path] = (
                old[0] + read_calls, old[1] + read, old[2] + write_calls, old[3] + written,
            )  # fmt: skip
    return totals
