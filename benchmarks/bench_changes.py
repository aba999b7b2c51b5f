"""What it takes to find a step's changes where the world has written much before.

Two worlds take turns with the same step, which touches ten files: one with 100,000 files in its
upper layer, one with these ten. What the first takes more is what finding, comparing and keeping
costs because of the others; finding is a walk of all of them (docs/adr/0007-changes-by-walking.md).
Bar: 10 ms (docs/BENCHMARKS.md).

Run: python benchmarks/bench_changes.py [--files N] [--rounds N] [--record] [--json]
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import TYPE_CHECKING

from bench_latency import host_of_its_own, write_project
from measuring import Case, machine, machine_line, record, say, take_turns

from substrate_sdk import Substrate

if TYPE_CHECKING:
    from substrate_sdk import World

FILES = 100_000
A_DIRECTORY = 100  # files
ROUNDS = 60
TOUCHED = 10
BAR_MS = 10.0
SMALL = "step that touches 10 files, 10 in the upper layer"
LARGE = "step that touches 10 files, {files} in the upper layer"

_FILL = f"""
import os, sys
for number in range(int(sys.argv[1])):
    directory = f"full/{{number // {A_DIRECTORY}}}"
    os.makedirs(directory, exist_ok=True)
    with open(f"{{directory}}/{{number}}", "w") as file:
        file.write(str(number))
"""

_TOUCH = f"for i in 0 1 2 3 4 5 6 7 8 9; do echo $RANDOM$$ > full/0/$i; done # {TOUCHED}"


def _step(world: World) -> float:
    start = time.perf_counter()
    result = world.run(["bash", "-c", _TOUCH])
    time_s = time.perf_counter() - start
    if len(result.changes) != TOUCHED:
        raise RuntimeError(f"{len(result.changes)} changes, not {TOUCHED}: {result.stderr}")
    if result.coverage.state != "full":
        raise RuntimeError(f"coverage is {result.coverage.state}: {result.coverage.reasons}")
    return time_s


def main() -> int:
    """Measure, and print a table; 1 where the bar is not met."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=FILES)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--record", action="store_true", help="add a line to the history")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    options = parser.parse_args()
    with host_of_its_own() as home, Substrate() as sub:
        project = write_project(home / "project", 3)
        with sub.world(cwd=project) as small, sub.world(cwd=project) as large:
            say(f"{options.files} files")
            for world, files in ((small, TOUCHED), (large, options.files)):
                filled = world.run([sys.executable, "-c", _FILL, str(files)])
                if not filled.ok:
                    raise RuntimeError(filled.stderr)
                world.run(["true"])
            cases = [
                Case(SMALL, lambda: _step(small)),
                Case(LARGE.format(files=options.files), lambda: _step(large)),
            ]
            take_turns(cases, rounds=options.rounds, warm_up=3)
    more_ms = cases[1].p50_ms - cases[0].p50_ms
    result = {
        "rounds": options.rounds,
        "files": options.files,
        "rows": {
            case.name: {
                f"p{round(share * 100)}_ms": round(case.quantile_ms(share), 3)
                for share in (0.5, 0.95, 0.99)
            }
            for case in cases
        },
        "more_ms": round(more_ms, 3),
        "bar_met": more_ms <= BAR_MS,
    }
    if options.record:
        record("changes", result)
    if options.json:
        print(json.dumps(result))
        return 0
    print(f"changes, {options.rounds} interleaved rounds\n{machine_line(machine())}\n")
    for case in cases:
        times = [f"{case.quantile_ms(share):8.2f}" for share in (0.5, 0.95, 0.99)]
        print(f"{case.name:58}" + "".join(times) + "  ms (p50, p95, p99)")
    met = "met" if more_ms <= BAR_MS else "NOT met"
    print(f"{'because of the others, p50':58}{more_ms:8.2f}  ms (bar {BAR_MS:g}: {met})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
