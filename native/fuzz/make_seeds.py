"""Writes the seeds that the fuzzer of the decoder starts from, into a directory.

``python native/fuzz/make_seeds.py DIRECTORY``. The form is that of fuzz_decode.c; what the fuzzer
found from them is minimised into native/fuzz/corpus by ``native/fuzz/run merge``.
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "services")]

from tests.native import segment_files as sf  # noqa: E402
from tests.native.segment_files import Segment  # noqa: E402

_SEGMENT, _MISNAMED, _LEDGER, _RECORDS, _KERNEL = range(5)
_IPV4 = struct.pack("<H", 2) + bytes((0, 80, 127, 0, 0, 1)) + bytes(8)
_UNIX = struct.pack("<H", 1) + b"/run/socket\0"


def _part(kind: int, data: bytes) -> bytes:
    return struct.pack("<BH", kind, len(data)) + data


def _head(
    pid: int, exec_number: int = 1, *, chain: int = 0, index: int = 0, state: int = 0, off: int = 0
) -> bytes:
    """What build_segment reads before the records."""
    return struct.pack(
        "<BBBBBHBBBBB", pid, exec_number, 5, chain, index, 100, state, 0, 0, off, 0
    )  # fmt: skip


def _record(
    kind: int, op: int = 40, fields: tuple[tuple[int, bytes], ...] = (), *, at: int = 200,
    result: int = 3, error: int = 0, flags: int = 0, tid: int = 10, sequence: int = 0,
    arg: tuple[int, int, int, int] = (-1, 0, 0, -100),
) -> bytes:  # fmt: skip
    """What build_record reads."""
    head = struct.pack(
        "<BHBBBHBbBB4b", kind, op, len(fields), flags, tid, at, 1, result, error, sequence, *arg
    )
    return head + b"".join(bytes((tag, len(value))) + value for tag, value in fields)


def _look(path: bytes, *, dirfd: int = -1) -> bytes:
    """What build_look reads."""
    head = struct.pack(
        "<BHBBBHBbBB4b", sf.LOOK, 0, 0, 1, 2, 0, 1, 0, 0, 0, dirfd, 0, 0, 0
    )  # fmt: skip
    return head + bytes((len(path),)) + path


def _hello(pid: int, ppid: int = 1) -> bytes:
    body = sf.HELLO.pack(7, 5, 9, 1, ppid, 0o22, 2 * 10**18, 100, 0, 1)
    fields = ((10, body), (5, b"/w"), (6, b"sh\0-c\0"), (7, b"../bin/sh"))
    return _record(1, 0, fields, at=100, tid=pid)


def _kernel(bits: int, *records: tuple[int, int, int, int, int, int, int, bytes]) -> bytes:
    """(type, time, pid, parent, host pid, host parent, status, name or number of a file)."""
    data = bytes((bits,))
    for kind, at, pid, parent, host, host_parent, status, name in records:
        value = name[0] if kind >= 5 else len(name)
        data += struct.pack(
            "<BBHBBBBHB", kind, 0, at, pid, parent, host, host_parent, status, value
        )
        data += name if kind < 5 else b""
    return _part(_KERNEL, data)


def seeds() -> dict[str, bytes]:
    """Inputs by name."""
    calls = _head(10) + _hello(10)
    for kind in (*range(2, 15), 18):
        calls += _record(kind, kind + 20, ((1, b"a/../b"), (2, b"/c"), (6, b"x\0y\0")))
    calls += _record(7, 16, ((1, b"out"), (15, b"12345678")), arg=(1, 1, 65, 0))
    calls += _record(7, 16, ((1, b"sub"), (15, b"12345678")), arg=(4, 1, 0, 0))
    calls += _record(6, 10, ((1, b"/bin/x"), (6, b"x\0"), (15, b"12345678")), arg=(11, 0, 2, 0))

    network = _head(10) + _hello(10)
    for kind in (12, 15, 16, 17, 20):
        for address in (_IPV4, _UNIX):
            network += _record(kind, 113, ((11, address),), arg=(4, 5, 0, 0), result=5)
    counts = struct.pack("<5Q", 2, 200, 1, 100, 9)
    network += _record(22, 1, ((20, counts),), arg=(4, 0, 0, 0))
    network += _record(22, 1, ((20, counts), (11, _IPV4)), arg=(9, 0, 0, 0))
    network += _record(13, 115, ((12, b"name"), (13, b"80"), (11, _IPV4)))

    sums = _head(10) + _hello(10) + _record(10, 40, ((1, b"file"),), result=3)
    sums += _record(22, 1, ((20, counts),), arg=(3, 0, 0, 0))
    sums += _record(21, 1, ((1, b"file"), (19, struct.pack("<3Q", 4, 1, 300))))
    sums += _record(21, 1, ((19, struct.pack("<3Q", 4, 1, 300)),), arg=(7, 0, 0, 0), flags=16)
    sums += _record(23, 1, ((21, struct.pack("<8Q", *range(8))),))
    sums += _record(19, 1, ((18, b"/lib/a.so\0/lib/b.so\0"), (1, b"b.so")))

    places = _head(10) + _hello(10)
    places += _record(10, 45, ((1, b"f"), (3, b"/w/d"), (16, b"abcdefgh")), arg=(5, 65, 0, 0))
    places += _record(11, 83, ((1, b"/w"), (2, b"/v")), arg=(-1, 0, 0, -100), result=0)
    places += _record(10, 45, ((1, b"g"), (16, b"abcdefgh")), arg=(5, 0, 0, 0))
    places += _record(14, 116, ((1, b"sub"),), result=0)

    looks = _head(10) + _hello(10) + _look(b"a.txt") + _look(b"/etc/x") + _look(b"")
    looks += _record(10, 45, ((1, b"f"), (3, b"/w/d"), (16, b"\6" + bytes(7))), arg=(5, 0, 0, 0))
    looks += _look(b"below", dirfd=5) + _record(10, 40, ((1, b"/a"),), sequence=9)
    before = _head(11, state=0x80) + _hello(11) + _look(b"x" * 60) + _record(10, 40, ((1, b"/a"),))

    first = _head(10, state=1) + _hello(10) + _record(10, 40, ((1, b"/a"),), sequence=1)
    third = _head(10, index=2) + _record(10, 40, ((1, b"/b"),), sequence=99)
    child = _head(11) + _hello(11, 10) + _record(9, 32, (), result=12, arg=(0, 0, 0, 0))
    world = (
        (1, 50, 10, 1, 110, 101, 0, b""), (2, 60, 10, 0, 110, 0, 0, b"/bin/sh"),
        (5, 70, 10, 0, 110, 0, 0, b"\0"), (1, 90, 11, 10, 111, 110, 0, b""),
        (2, 95, 11, 0, 111, 0, 0, b"./static"), (2, 99, 11, 0, 111, 0, 0, b"/bin/ls"),
        (5, 100, 11, 0, 111, 0, 0, b"\1"), (1, 120, 12, 11, 112, 111, 0, b""),
        (3, 900, 12, 0, 112, 0, 9, b""), (3, 950, 11, 0, 111, 0, 256, b""),
        (6, 960, 11, 0, 111, 0, 0, b"\1"), (3, 999, 10, 0, 110, 0, 0, b""),
    )  # fmt: skip
    two = _part(_RECORDS, first) + _part(_RECORDS, child)
    real = Segment(10).hello().open(b"/x").open(b"rel/../y", flags=0o101)
    raw = real.data(0)
    header = struct.pack("<QHHHHIIQQ24x", 0x314745444C425553, 1, 64, 128, 1, 1, 0, 7, 0)
    record = struct.pack("<HHIQiiiii12s76s", 2, 0, 0, 9, 10, 0, 110, 0, 0, b"sh", b"/bin/sh")
    return {
        "calls": bytes((0, 0)) + _part(_RECORDS, calls),
        "small": bytes((32 + 64 + 16, 9)) + _part(_RECORDS, calls) + _part(_RECORDS, network),
        "network": bytes((0, 0)) + _part(_RECORDS, network),
        "sums": bytes((8, 127)) + _part(_RECORDS, sums),
        "places": bytes((0, 0)) + _part(_RECORDS, places),
        "looks": bytes((0, 0)) + _part(_RECORDS, looks) + _part(_RECORDS, before),
        "gaps": bytes((2, 9)) + _part(_RECORDS, first) + _part(_RECORDS, third),
        "ledger": bytes((3, 9)) + two + _kernel(0x13, *world),
        "forged": bytes((3, 9)) + two + _part(_RECORDS, third) + _kernel(0x13, *world),
        "by-pid": bytes((1, 9)) + two + _kernel(0x22, *world),
        "lost": bytes((7, 9)) + two + _kernel(0x17, (4, 99, 0, 0, 0, 0, 0, b"x"), *world),
        "raw": bytes((0, 0)) + _part(_SEGMENT, raw) + _part(_MISNAMED, raw),
        "raw-ledger": bytes((1, 0)) + _part(_SEGMENT, raw) + _part(_LEDGER, header + record),
    }


def main() -> None:
    """Write them."""
    directory = Path(sys.argv[1])
    directory.mkdir(parents=True, exist_ok=True)
    for name, data in seeds().items():
        (directory / name).write_bytes(data)


if __name__ == "__main__":
    main()
