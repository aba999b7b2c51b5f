"""Writing segments by hand: what a program could leave, honest or not.

The layout is that of native/include/events.h; a change there shows here as failing tests.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, field
from pathlib import Path

HEADER = struct.Struct("<QHHIQ QQiI IIQII Q I 156x")
RECORD = struct.Struct("<IHHQQqIIiI4i")
FIELD = struct.Struct("<HHI")
LOOK_HEAD = struct.Struct("<IHHIIiI")
HELLO = struct.Struct("<QQiI iIQQII")
MAGIC = 0x3147455342555353

HELLO_TYPE, FORK, EXEC, SPAWN, EXIT, WAIT, OPEN, MUTATE = 1, 2, 4, 6, 8, 9, 10, 11
CONNECT, CHDIR, BIND, LISTEN, ACCEPT, THREAD, LOAD, DUP = 12, 14, 15, 16, 17, 18, 19, 20
STAT, TRANSFER, SOURCES, LOOK = 21, 22, 23, 24
PATH, PATH2, DIRECTORY, CWD, ARGV, EXE, HELLO_TAG, ADDRESS = 1, 2, 3, 5, 6, 7, 10, 11
KEY, DIRECTORY_ID, LIBRARIES, STAT_COUNTS, TRANSFER_COUNTS, SOURCE_COUNTS = 15, 16, 18, 19, 20, 21
UNNAMED = 16  # a flag of records
CONTINUED = 1  # a state of segments
ALL_CLASSES = 127
AT_FDCWD = -100


def _operations() -> dict[str, int]:
    """Numbers of the operations, read from events.h."""
    header = Path(__file__).resolve().parents[2] / "native" / "include" / "events.h"
    names = re.findall(r"^    X\((\w+)\)", header.read_text(), re.MULTILINE)
    return {name: number for number, name in enumerate(names)}


OPERATIONS = _operations()
OP_FORK, OP_OPEN, OP_UNLINK = OPERATIONS["fork"], OPERATIONS["open"], OPERATIONS["unlink"]
OP_EXECVE, OP_SPAWN = OPERATIONS["execve"], OPERATIONS["posix_spawn"]


def text(tag: int, value: bytes) -> bytes:
    """One field."""
    return FIELD.pack(tag, 0, len(value)) + value + bytes(-len(value) % 8)


def record(
    kind: int,
    op: int,
    *,
    at: int,
    fields: bytes = b"",
    result: int = 0,
    error: int = 0,
    tid: int = 0,
    flags: int = 0,
    arg: tuple[int, int, int, int] = (0, 0, 0, 0),
    sequence: int = 0,
) -> bytes:
    """One record."""
    length = RECORD.size + len(fields)
    head = RECORD.pack(length, kind, op, at, 10, result, sequence, tid, error, flags, *arg)
    return head + fields


@dataclass
class Segment:
    """A segment of an image's first chain."""

    pid: int
    start: int = 1000
    exec_number: int = 1
    chain: int = 0
    index: int = 0
    namespace: int = 4026531836
    created: int = 1_000_000
    records: list[bytes] = field(default_factory=list)
    state: int = 0
    lost: int = 0
    first_sequence: int = 0
    classes_off: int = 0
    version: int = 2

    def hello(
        self,
        argv: bytes = b"prog\0",
        *,
        ppid: int = 1,
        cwd: bytes = b"/work",
        parent: tuple[int, int, int, int] = (0, 0, 0, 0),
        exe: bytes = b"/bin/prog",
    ) -> Segment:
        """Add the first record; ``parent`` is (namespace, start, pid, exec number)."""
        body = HELLO.pack(*parent, ppid, 0o22, 2_000_000_000_000_000_000, self.created, 0, 1)
        fields = text(HELLO_TAG, body) + text(CWD, cwd) + text(ARGV, argv) + text(EXE, exe)
        self.records.append(record(HELLO_TYPE, 0, at=self.created, fields=fields, tid=self.pid))
        return self

    def open(
        self, path: bytes, *, at: int = 0, result: int = 3, error: int = 0, flags: int = 0
    ) -> Segment:
        """Add an open."""
        self.records.append(
            record(
                OPEN,
                OP_OPEN,
                at=at or self.created + 100 * (len(self.records) + 1),
                fields=text(PATH, path),
                result=result,
                error=error,
                tid=self.pid,
                arg=(AT_FDCWD, flags, 0, 0),
            )
        )
        return self

    def call(
        self,
        kind: int,
        op: str,
        *fields: tuple[int, bytes],
        at: int = 0,
        result: int = 0,
        error: int = 0,
        flags: int = 0,
        arg: tuple[int, int, int, int] = (AT_FDCWD, 0, 0, AT_FDCWD),
    ) -> Segment:
        """Add any record, with its operation by name."""
        return self.add(
            record(
                kind,
                OPERATIONS[op],
                at=at or self.created + 100 * (len(self.records) + 1),
                fields=b"".join(text(tag, value) for tag, value in fields),
                result=result,
                error=error,
                tid=self.pid,
                flags=flags,
                arg=arg,
            )
        )

    def look(
        self, path: bytes, *, calls: int = 1, failed: int = 0, dirfd: int = AT_FDCWD, last: int = 0
    ) -> Segment:
        """Add a sum of look-ups as a short record."""
        padded = path + bytes(-len(path) % 8)
        length = LOOK_HEAD.size + len(padded)
        head = LOOK_HEAD.pack(length, LOOK, len(path), calls, failed, dirfd, last)
        return self.add(head + padded)

    def add(self, data: bytes) -> Segment:
        """Add bytes as they are."""
        self.records.append(data)
        return self

    @property
    def name(self) -> str:
        """The file's name."""
        return f"{self.pid}-{self.start}-{self.exec_number}-{self.chain}-{self.index}"

    def data(self, size: int = 8192) -> bytes:
        """The file's content, padded with zeros."""
        # The writer's count of its claims, which it goes on with in the next segment.
        body = b"".join(
            data[:32] + struct.pack("<I", self.first_sequence + number) + data[36:]
            if len(data) >= RECORD.size and data[4:6] != struct.pack("<H", LOOK)
            else data
            for number, data in enumerate(self.records)
        )
        head = HEADER.pack(
            MAGIC, self.version, HEADER.size, 0, size, self.namespace, self.start, self.pid,
            self.exec_number, self.chain, self.index, self.created, self.first_sequence, self.state,
            self.lost, self.classes_off,
        )  # fmt: skip
        return (head + body).ljust(size, b"\0")

    def write(self, directory: Path, size: int = 8192) -> Path:
        """Make the file."""
        path = directory / self.name
        path.write_bytes(self.data(size))
        return path
