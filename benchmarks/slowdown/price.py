"""What the start of a program and one event cost, each as it is, in one run by turns.

The start of ``true`` is compared with that under a preloaded library that has nothing in it: so
much of the price is the loader's, whatever a library does. An event is a failing look-up by
``open``, which is recorded with its path: below the working directory and below a descriptor.
"""

from __future__ import annotations

import os
import random
import shutil
import statistics
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from measuring import say

from substrate_services.native_paths import native_path
from substrate_services.telemetry.segments import SEGMENT_VARIABLE, prepare_directory
from tests.native.recording import compile_c

_ROOT = Path(__file__).resolve().parents[2]
_TURNS = 11
_COUNTS = {"spawn": 300, "open": 20_000, "openat": 20_000}
_ORDER_SEED = 20
_SAID = {
    "spawn": "start of `true`, us",
    "open": "look-up of a path, ns",
    "openat": "look-up below a descriptor, ns",
}

Prices = dict[str, dict[str, float]]


def _once(program: Path, what: str, env: Mapping[str, str]) -> float:
    """Nanoseconds of one, as the program measured it (the median of its starts)."""
    done = subprocess.run(
        [program, what, str(_COUNTS[what])], check=True, capture_output=True, text=True,
        env={"PATH": os.environ["PATH"], **env}, timeout=120,
    )  # fmt: skip
    return float(done.stdout)


def prices() -> Prices:
    """Nanoseconds by what is priced and who records: the median over the turns."""
    say("the price of a start and of an event")
    work = Path(tempfile.mkdtemp(prefix="sbprice"))
    room = Path(tempfile.mkdtemp(prefix="sbprice", dir="/dev/shm"))
    try:
        segments = room / "seg"
        prepare_directory(segments)
        room.chmod(0o755)
        (room / "classes").symlink_to("7f")  # as in a world
        source = _ROOT / "native" / "tests" / "cost.c"
        static = compile_c(source, work / "cost-static", "-static")
        dynamic = compile_c(source, work / "cost")
        empty = compile_c("int nothing_at_all;", work / "empty.so", "-shared", "-fPIC")
        library = native_path("libsubstrate_preload.so")
        variants: dict[str, dict[str, str]] = {
            "bare": {},
            "empty library": {"LD_PRELOAD": str(empty)},
            "substrate": {"LD_PRELOAD": str(library), SEGMENT_VARIABLE: str(segments)},
        }
        taken: dict[str, dict[str, list[float]]] = {what: {} for what in _COUNTS}
        order = random.Random(_ORDER_SEED)
        for _ in range(_TURNS):
            for name in order.sample(list(variants), len(variants)):
                for what in _COUNTS:
                    program = static if what == "spawn" else dynamic
                    cost = _once(program, what, variants[name])
                    taken[what].setdefault(name, []).append(cost)
                    for path in segments.iterdir():
                        path.unlink()
        return {
            what: {name: round(statistics.median(by_name[name]), 1) for name in variants}
            for what, by_name in taken.items()
        }
    finally:
        shutil.rmtree(work)
        shutil.rmtree(room)


def prices_table(priced: Prices) -> str:
    """The prices, and what is more than nothing, as Markdown."""
    names = list(next(iter(priced.values())))
    lines = ["| price of | " + " | ".join([*names, "more", "more than empty"]) + " |"]
    lines.append("| --- |" + " ---: |" * (len(names) + 2))
    for what, by_name in priced.items():
        unit = 1000 if what == "spawn" else 1
        more = by_name["substrate"] - by_name["bare"]
        beyond = by_name["substrate"] - by_name["empty library"]
        shown = [*(by_name[name] for name in names), more, beyond]
        lines.append(f"| {_SAID[what]} | " + " | ".join(f"{ns / unit:.0f}" for ns in shown) + " |")
    return "\n".join(lines)
