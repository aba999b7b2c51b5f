"""What the preload library costs: the start of a program, and one event.

Run ``python benchmarks/bench_preload.py``. Variants take turns in one run; the median of a turn's
``true``, the best of the turns, is printed, with its ratio to no library at all:

* ``plain``: no library
* ``empty``: a library with nothing in it, which is what the loader asks for any
* ``off``: ours, with no segment directory
* ``on``: ours, writing segments
* ``strace``: ``strace -f --seccomp-bpf``, where it is installed
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "services")]

from substrate_services.telemetry.segments import prepare_directory  # noqa: E402
from tests.native.recording import compile_c, preload_library  # noqa: E402

_TURNS = 5
_SPAWNS = 500
_CALLS = 50_000


def _measure(
    program: Path, what: str, count: int, env: dict[str, str], prefix: tuple[str, ...] = ()
) -> float:
    done = subprocess.run(
        [*prefix, str(program), what, str(count)],
        check=True,
        stdout=subprocess.PIPE,
        env={**os.environ, **env},
        text=True,
    )
    return float(done.stdout)


def _empty(directory: Path) -> None:
    for path in directory.iterdir():
        path.unlink()


def main() -> None:
    """Print the table."""
    work = Path(tempfile.mkdtemp(prefix="sbbench"))
    room = Path(tempfile.mkdtemp(prefix="sbbench", dir="/dev/shm"))
    segments = room / "seg"
    prepare_directory(segments)
    room.chmod(0o755)
    (room / "classes").symlink_to("7f")  # as in a world
    try:
        source = ROOT / "native" / "tests" / "cost.c"
        static = compile_c(source, work / "cost-static", "-static")
        dynamic = compile_c(source, work / "cost")
        empty = compile_c("int nothing_at_all;", work / "empty.so", "-shared", "-fPIC")
        ours = str(preload_library())
        variants: dict[str, tuple[dict[str, str], tuple[str, ...]]] = {
            "plain": ({}, ()),
            "empty": ({"LD_PRELOAD": str(empty)}, ()),
            "off": ({"LD_PRELOAD": ours, "SUBSTRATE_SEGMENTS": str(work / "absent")}, ()),
            "on": ({"LD_PRELOAD": ours, "SUBSTRATE_SEGMENTS": str(segments)}, ()),
        }
        if shutil.which("strace"):
            trace = ("strace", "-f", "--seccomp-bpf", "-e", "trace=%file,%process,%network")
            variants["strace"] = ({}, (*trace, "-o", os.devnull))
        best: dict[tuple[str, str], float] = {}
        for _ in range(_TURNS):
            for name, (env, prefix) in variants.items():
                for what, program, count in (
                    ("spawn", static, _SPAWNS if name != "strace" else 50),
                    ("open", dynamic, _CALLS if name != "strace" else 2_000),
                    ("openat", dynamic, _CALLS if name != "strace" else 2_000),
                ):
                    cost = _measure(program, what, count, env, prefix)
                    best[name, what] = min(cost, best.get((name, what), cost))
                    _empty(segments)
    finally:
        shutil.rmtree(work)
        shutil.rmtree(room)
    print(
        f"{'':8} {'true, us':>10} {'more':>6} {'ratio':>6}  {'open, ns':>9} {'more':>6}  "
        f"{'openat below fd, ns':>20} {'more':>6}"
    )
    for name in variants:
        spawn, opened, below = (best[name, what] for what in ("spawn", "open", "openat"))
        print(
            f"{name:8} {spawn / 1000:10.0f} {(spawn - best['plain', 'spawn']) / 1000:6.0f} "
            f"{spawn / best['plain', 'spawn']:6.2f}  "
            f"{opened:9.0f} {opened - best['plain', 'open']:6.0f}  "
            f"{below:20.0f} {below - best['plain', 'openat']:6.0f}"
        )


if __name__ == "__main__":
    main()
