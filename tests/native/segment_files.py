"""Writing segments by hand: what a program could leave, honest or not.

The layout is that of native/include/events.h; a change there shows here as failing tests.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from pathlib import Path

HEADER = struct.Struct("<QHHIQ QQiI IIQII Q 160x")
RECORD = struct.Struct("<IHHQQqIIiI4i")
FIELD = struct.Struct("<HHI")
HELLO = struct.Struct("<QQiI iIQQII")
MAGIC = 0x3147455342555353

HELLO_TYPE, FORK, EXEC, SPAWN, EXIT, WAIT, OPEN, MUTATE = 1, 2, 4, 6, 8, 9, 10, 11
PATH, CWD, ARGV, EXE, HELLO_TAG = 1, 5, 6, 7, 10
OP_FORK, OP_OPEN, OP_UNLINK, OP_EXECVE, OP_SPAWN = 22, 40, 79, 1, 10
AT_FDCWD = -100


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

    def hello(
        self,
        argv: bytes = b"prog\0",
        *,
        ppid: int = 1,
        cwd: bytes = b"/work",
        parent: tuple[int, int, int, int] = (0, 0, 0, 0),
    ) -> Segment:
        """Add the first record; ``parent`` is (namespace, start, pid, exec number)."""
        body = HELLO.pack(*parent, ppid, 0o22, 2_000_000_000_000_000_000, self.created, 0, 1)
        fields = text(HELLO_TAG, body) + text(CWD, cwd) + text(ARGV, argv) + text(EXE, b"/bin/prog")
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
        body = b"".join(self.records)
        head = HEADER.pack(
            MAGIC, 1, HEADER.size, 0, size, self.namespace, self.start, self.pid, self.exec_number,
            self.chain, self.index, self.created, 0, self.state, self.lost,
        )  # fmt: skip
        return (head + body).ljust(size, b"\0")

    def write(self, directory: Path, size: int = 8192) -> Path:
        """Make the file."""
        path = directory / self.name
        path.write_bytes(self.data(size))
        return path
