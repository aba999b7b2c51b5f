"""How fast substrate-decode turns segments into event lines, on one core.

Run ``python benchmarks/bench_decode.py [events]``. It writes a synthetic segment directory in
/dev/shm (opens below some hundred directories, as a build makes them), decodes it to /dev/null and
prints events per second; DESIGN §11 asks for 1,000,000.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "services")]

from substrate_services.native_paths import native_path  # noqa: E402
from tests.native.segment_files import Segment  # noqa: E402

_SEGMENT_BYTES = 1 << 20
_ROUNDS = 5


def _fill(directory: Path, events: int) -> int:
    """Write segments with at least this many events; returns how many there are."""
    segment = Segment(10).hello()
    used = sum(map(len, segment.records))
    number = 0
    while used < _SEGMENT_BYTES - 512:
        segment.open(
            b"/usr/lib/python3/dist-packages/package%d/module%d.py" % (number % 300, number)
        )
        used += len(segment.records[-1])
        number += 1
    per_segment = len(segment.records) - 1
    count = -(-events // per_segment)
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
    """Print the best of some rounds."""
    wanted = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    directory = Path(tempfile.mkdtemp(prefix="sbdecode", dir="/dev/shm"))
    directory.chmod(0o1777)
    try:
        events = _fill(directory, wanted)
        best = min(_decode_s(directory) for _ in range(_ROUNDS))
    finally:
        shutil.rmtree(directory)
    rate = events / best
    print(
        f"decode: {events} events in {best:.3f} s, best of {_ROUNDS}: {rate / 1e6:.2f} M events/s"
    )
    print(f"        {rate / 1_000_000:.2f} x the bar of 1 M events/s")


if __name__ == "__main__":
    main()
