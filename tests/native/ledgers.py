"""Reading a world's ledger in tests (native/include/ledger.h)."""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from enum import IntEnum

_HEADER = struct.Struct("<QHHHHIIQQ24x")
_RECORD = struct.Struct("<HHIQiiiii12s76s4x")
MAGIC = 0x314745444C425553


class Kind(IntEnum):
    """``enum sub_ledger_type``."""

    FORK = 1
    EXEC = 2
    EXIT = 3
    LOST = 4
    SEGMENT = 5
    REMOVED = 6


@dataclass(frozen=True, slots=True)
class Entry:
    """One record."""

    kind: Kind
    cut: bool
    flags: int
    value: int
    time_ns: int
    pid: int
    parent: int
    host_pid: int
    host_parent: int
    status: int
    comm: bytes
    name: bytes


@dataclass(frozen=True, slots=True)
class Ledger:
    """A ledger as it is now."""

    source: int
    attested: bool
    pid_namespace: int
    first: int
    entries: tuple[Entry, ...]

    def of(self, kind: Kind) -> list[Entry]:
        return [entry for entry in self.entries if entry.kind is kind]


def read_ledger(fd: int | None) -> Ledger:
    """Everything from the first record that matters on."""
    assert fd is not None, "the box has no ledger"
    size = os.fstat(fd).st_size
    magic, version, header_bytes, record_bytes, source, attested, _, namespace, first = (
        _HEADER.unpack(os.pread(fd, _HEADER.size, 0))
    )
    assert (magic, version, header_bytes, record_bytes) == (MAGIC, 1, 64, _RECORD.size)
    first = first or header_bytes
    data = os.pread(fd, size - first, first)
    assert len(data) % _RECORD.size == 0
    entries = []
    for kind, flags, *numbers, comm, name in _RECORD.iter_unpack(data):
        assert name.endswith(b"\0")
        value, time_ns, pid, parent, host_pid, host_parent, status = numbers
        entries.append(
            Entry(
                Kind(kind),
                bool(flags & 1),
                flags=flags,
                value=value,
                time_ns=time_ns,
                pid=pid,
                parent=parent,
                host_pid=host_pid,
                host_parent=host_parent,
                status=status,
                comm=comm.rstrip(b"\0"),
                name=name.partition(b"\0")[0],
            )
        )
    return Ledger(source, bool(attested), namespace, first, tuple(entries))
