"""How fast substrate-decode turns segments into event lines, on one core.

Run ``python benchmarks/bench_decode.py [records]``. It writes synthetic segment directories in
/dev/shm, decodes each to /dev/null and prints records per second; DESIGN §11 asks for 1,000,000.

opens: of files below some hundred directories, as a build makes them.
sums: the counts that stand for stat calls and transfers, one record a file.
mixed: what a build leaves: opens, failed ones, stats, transfers, changes, relative paths.
"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "services")]

from substrate_services.native_paths import native_path  # noqa: E402
from tests.native import segment_files as sf  # noqa: E402
from tests.native.segment_files import Segment  # noqa: E402

_SEGMENT_BYTES = 1 << 20
_ROUNDS = 5


_STAT = (sf.STAT_COUNTS, struct.pack("<3Q", 3, 1, 9))
_MOVED = (sf.TRANSFER_COUNTS, struct.pack("<5Q", 2, 8192, 0, 0, 9))


def _path(number: int) -> bytes:
    return b"/usr/lib/python3/dist-packages/package%d/module%d.py" % (number % 300, number)


def _open(segment: Segment, number: int) -> None:
    segment.open(_path(number))


def _sum(segment: Segment, number: int) -> None:
    if number % 4 == 3:
        segment.call(sf.TRANSFER, "read", _MOVED, arg=(number % 64, 0, 0, 0))
    else:
        segment.call(sf.STAT, "stat", (sf.PATH, _path(number)), _STAT)


def _mixed(segment: Segment, number: int) -> None:
    match number % 8:
        case 0 | 1:
            segment.open(_path(number), result=3 + number % 5)
        case 2:
            segment.open(_path(number), result=-1, error=2)
        case 3:
            segment.open(b"src/module%d.c" % number, flags=0o1101, result=3)
        case 4 | 5:
            segment.call(sf.STAT, "stat", (sf.PATH, _path(number // 8)), _STAT)
        case 6:
            segment.call(sf.TRANSFER, "read", _MOVED, arg=(3 + number % 5, 0, 0, 0))
        case _:
            new, old = b"build/m%d.o" % number, b"build/m%d.tmp" % number
            segment.call(sf.MUTATE, "rename", (sf.PATH, old), (sf.PATH2, new))


_SETS: dict[str, Callable[[Segment, int], None]] = {"opens": _open, "sums": _sum, "mixed": _mixed}


def _fill(directory: Path, records: int, add: Callable[[Segment, int], None]) -> int:
    """Write segments with at least this many records; returns how many there are."""
    segment = Segment(10).hello()
    used = sum(map(len, segment.records))
    number = 0
    while used < _SEGMENT_BYTES - 512:
        add(segment, number)
        used += len(segment.records[-1])
        number += 1
    per_segment = len(segment.records) - 1
    count = -(-records // per_segment)
    for index in range(count):
        segment.pid = 10 + index
        (directory / segment.name).write_bytes(segment.data(_SEGMENT_BYTES))
    return per_segment * count


def _decode_s(directory: Path) -> float:
    fd = os.open(directory, os.O_RDONLY)
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        started = time.perf_counter()
        subprocess.run(
            [native_path("substrate-decode"), f"--dirfd={fd}", f"--summary-fd={null}", "--span=s"],
            check=True,
            stdout=null,
            pass_fds=(fd, null),
        )
        return time.perf_counter() - started
    finally:
        os.close(fd)
        os.close(null)


def main() -> None:
    """Print the best of some rounds, for each set."""
    wanted = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    for name, add in _SETS.items():
        directory = Path(tempfile.mkdtemp(prefix="sbdecode", dir="/dev/shm"))
        directory.chmod(0o1777)
        try:
            records = _fill(directory, wanted, add)
            best = min(_decode_s(directory) for _ in range(_ROUNDS))
        finally:
            shutil.rmtree(directory)
        rate = records / best
        print(
            f"decode {name:6}: {records} records in {best:.3f} s, best of {_ROUNDS}: "
            f"{rate / 1e6:.2f} M records/s, {rate / 1_000_000:.2f} x the bar of 1 M/s"
        )


if __name__ == "__main__":
    main()
