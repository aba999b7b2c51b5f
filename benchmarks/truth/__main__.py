"""``make bench-truth``: run the workloads under strace and the library at once, print the table.

Exits with 1 when a class is captured to less than 99.5 %, or when fewer than ten workloads ran.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.measuring import ROOT, machine, machine_line, record, say
from benchmarks.truth.distortion import differences
from benchmarks.truth.pairing import WorkloadFailed, run_alone, run_pair
from benchmarks.truth.report import Row, as_json, markdown, totals
from benchmarks.truth.sources import NotToBeHad, Sources
from benchmarks.truth.workloads import WORKLOADS, Workload

CACHE = ROOT / "build" / "bench" / "truth"
_ENOUGH = 10


def run_workload(workload: Workload, sources: Sources, keep: Path | None = None) -> Row:
    """One row, from fresh directories that are gone afterwards."""
    try:
        with _room() as room:
            ready = workload.ready(sources, room)
            pair = run_pair(ready.command, cwd=ready.cwd, env=ready.env, keep=keep)
        row = Row(workload.name, pair.comparison)
        if workload.same_each_time:
            with _room() as other:
                ready = workload.ready(sources, other)
                alone = run_alone(ready.command, cwd=ready.cwd, env=ready.env)
            rooms = os.fsencode(room), os.fsencode(other)
            row.operations_alone, differing = differences(pair.traced, alone, rooms=rooms)
            row.distorted = differing.total()
        return row
    except (NotToBeHad, WorkloadFailed) as error:
        return Row(workload.name, unavailable=str(error))


@contextmanager
def _room() -> Iterator[Path]:
    room = Path(tempfile.mkdtemp(prefix="sbtruth", dir="/var/tmp")).resolve()
    try:
        yield room
    finally:
        shutil.rmtree(room, ignore_errors=True)


def main() -> int:
    """Parse arguments, run, print."""
    parser = argparse.ArgumentParser(prog="bench-truth", description=__doc__)
    parser.add_argument("only", nargs="*", help="run workloads whose names hold one of these")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    parser.add_argument("--record", action="store_true", help="add a line to the history")
    parser.add_argument("--keep", type=Path, help="keep strace's files and the events below this")
    options = parser.parse_args()
    if shutil.which("strace") is None:
        say("strace is not installed (Debian: strace); scripts/debian-packages installs it")
        return 2
    chosen = [w for w in WORKLOADS if not options.only or any(o in w.name for o in options.only)]
    sources = Sources(CACHE)
    rows = []
    for number, workload in enumerate(chosen):
        say(f"{number + 1}/{len(chosen)}: {workload.name}")
        keep = None
        if options.keep is not None:
            keep = options.keep / workload.name.replace(" ", "-").replace(",", "")
            shutil.rmtree(keep, ignore_errors=True)
            keep.mkdir(parents=True)
        rows.append(run_workload(workload, sources, keep))
    if options.json:
        print(json.dumps(as_json(rows)))
    else:
        print(f"{machine_line(machine())}\n\n{markdown(rows)}")
    if options.record:
        record("truth", as_json(rows))
    ran = sum(row.comparison is not None for row in rows)
    enough = ran >= min(_ENOUGH, len(chosen)) and ran > 0
    return 0 if enough and totals(rows).met() else 1


if __name__ == "__main__":
    sys.exit(main())
