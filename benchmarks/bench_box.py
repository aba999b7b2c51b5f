"""A fresh box, `true` in it, and its removal, beside bubblewrap over an overlay of the same root.

Run ``python benchmarks/bench_box.py [rounds]`` as root, with bubblewrap installed. Rounds of both
alternate, so that a busy machine is equally unkind to both. Prints p50 and p95 in milliseconds, the
ratio (target: at most 1.5), and an exec of `true` in a living box beside posix_spawn of it.

bubblewrap 0.8 does not mount overlays, so its round mounts and unmounts one itself, by mount(2).
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "services")]

from tests.native.boxes import box_spec, launcher, layer_dirs, let_go, talk  # noqa: E402

_LIBC = ctypes.CDLL(None, use_errno=True)
_MNT_DETACH = 2
_BWRAP = (
    "bwrap --bind {merged} / --proc /proc --dev /dev --tmpfs /run --unshare-all --uid 0 --gid 0 "
    "--die-with-parent --new-session true"
)


def _spawn(argv: list[str]) -> None:
    pid = os.posix_spawnp(argv[0], argv, os.environ)
    if os.waitpid(pid, 0)[1] != 0:
        raise SystemExit(f"{argv} failed")


def _check(result: int, what: str) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), what)


def bubblewrap_round(directory: Path, number: int) -> None:
    """Mount an overlay of /, run `true` in it under bubblewrap, unmount."""
    upper, work = layer_dirs(directory, f"b{number}")
    merged = os.fsencode(directory / "merged")
    options = b"lowerdir=/,upperdir=" + upper + b",workdir=" + work
    _check(_LIBC.mount(b"overlay", merged, b"overlay", 0, options), "mount overlay")
    _spawn(_BWRAP.format(merged=os.fsdecode(merged)).split())
    _check(_LIBC.umount2(merged, _MNT_DETACH), "umount")


def _row(name: str, times: list[float]) -> float:
    times.sort()
    middle = statistics.median(times) * 1e3
    print(f"{name:44} p50 {middle:7.2f} ms   p95 {times[int(len(times) * 0.95)] * 1e3:7.2f} ms")
    return middle


async def _timed(action: Coroutine[Any, Any, object]) -> float:
    started = time.perf_counter()
    await action
    return time.perf_counter() - started


def _timed_call(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


async def measure(directory: Path, rounds: int) -> None:
    """All rows."""
    (directory / "merged").mkdir()
    times: dict[str, list[float]] = {"box": [], "bwrap": [], "exec": [], "spawn": []}
    async with launcher(directory) as backend:
        for number in range(rounds):

            async def box_round(name: str) -> None:
                box = talk(backend, await backend.create(box_spec(directory, name)), directory)
                await box.run("/bin/true", exec_id=name)
                let_go(box)
                await backend.remove(name)

            times["box"].append(await _timed(box_round(f"w{number}")))
            times["bwrap"].append(_timed_call(lambda n=number: bubblewrap_round(directory, n)))
        box = talk(backend, await backend.create(box_spec(directory, "live")), directory)
        for number in range(rounds * 3):
            times["exec"].append(await _timed(box.run("/bin/true", exec_id=f"x{number}")))
            await box.client.forget(f"x{number}")
            times["spawn"].append(_timed_call(lambda: _spawn(["/bin/true"])))
        let_go(box)
    ours = _row("box: create + true + remove", times["box"])
    theirs = _row("bubblewrap with overlay: true", times["bwrap"])
    print(f"{'ratio (target 1.5)':44} {ours / theirs:.2f}")
    ours = _row("exec of true in a living box", times["exec"])
    theirs = _row("posix_spawn of true on the host", times["spawn"])
    print(f"{'ratio':44} {ours / theirs:.2f}")


def main() -> None:
    """Measure in a temporary directory on disk."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 50
    directory = Path(tempfile.mkdtemp(prefix="substrate-bench-", dir="/var/tmp"))
    try:
        asyncio.run(measure(directory, rounds))
    finally:
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()
