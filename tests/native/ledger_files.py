"""Writing ledgers by hand: what the kernel could have told (native/include/ledger.h)."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from pathlib import Path

HEADER = struct.Struct("<QHHHHIIQQ24x")
RECORD = struct.Struct("<HHIQiiiii12s76s4x")
MAGIC = 0x314745444C425553
FORK, EXEC, EXIT, LOST, SEGMENT, REMOVED = range(1, 7)
BPF, PROC_CONNECTOR = 1, 2
CUT, SHARED, SEPARATE = 1, 2, 4
#: What host pids are beyond pids, in these tests.
HOST = 10_000


@dataclass
class Ledger:
    """A world's ledger. Pids are those in the world; on the host they are HOST more."""

    attested: bool = False
    source: int = BPF
    namespace: int = 4026531836
    first: int = 0
    records: list[bytes] = field(default_factory=list)

    def add(
        self,
        kind: int,
        at: int,
        pid: int = 0,
        *,
        parent: int = 0,
        status: int = 0,
        name: bytes = b"",
        comm: bytes = b"",
        value: int = 0,
        flags: int = 0,
        host_pid: int | None = None,
    ) -> Ledger:
        """Add a record of any kind."""
        host = HOST + pid if host_pid is None else host_pid
        host_parent = HOST + parent if parent else 0
        self.records.append(
            RECORD.pack(
                kind, flags, value, at, pid, parent, host, host_parent, status, comm, name[-75:]
            )
        )
        return self

    def fork(self, pid: int, parent: int, at: int, *, flags: int = 0) -> Ledger:
        """``parent`` starts ``pid``."""
        return self.add(FORK, at, pid, parent=parent, flags=flags)

    def run(self, pid: int, at: int, name: bytes) -> Ledger:
        """``pid`` runs a program."""
        return self.add(EXEC, at, pid, name=name)

    def exit(self, pid: int, at: int, status: int = 0) -> Ledger:
        """``pid`` ends, with a status as wait(2) gives it."""
        return self.add(EXIT, at, pid, status=status)

    def made(self, pid: int, at: int, name: str) -> Ledger:
        """``pid`` makes a segment file."""
        return self.add(SEGMENT, at, pid, name=name.encode())

    def removed(self, pid: int, at: int, name: str) -> Ledger:
        """``pid`` removes one."""
        return self.add(REMOVED, at, pid, name=name.encode())

    def lost(self, count: int, at: int) -> Ledger:
        """So many records found no room."""
        return self.add(LOST, at, value=count, host_pid=0)

    def data(self) -> bytes:
        """The file's content."""
        head = HEADER.pack(
            MAGIC, 1, HEADER.size, RECORD.size, self.source, self.attested, 0, self.namespace,
            self.first,
        )  # fmt: skip
        return head + b"".join(self.records)

    def write(self, path: Path) -> Path:
        """Make the file."""
        path.write_bytes(self.data())
        return path
