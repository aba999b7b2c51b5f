"""``make bench-faults``: a host process, a launcher or an init killed at 500 random moments.

    python benchmarks/bench_faults.py [--points N] [--seed S]

Prints what was killed, how many commands had been acknowledged by then, and how they ended; exits
with 1 where something did not hold (tests/faults.py says what has to). docs/BENCHMARKS.md keeps the
last result.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.faults import TARGETS, Faults  # noqa: E402
from tests.users import new_user  # noqa: E402


def main() -> int:
    """Run the points."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    began = time.monotonic()
    with new_user() as user, tempfile.TemporaryDirectory(prefix="faults") as directory:
        project = Path(directory)
        subprocess.run(["git", "init", "-q", directory], check=True)
        faults = Faults(user, project, options.seed)
        failed = ""
        for number in range(options.points):
            try:
                faults.point(TARGETS[number % len(TARGETS)])
            except AssertionError as error:
                failed = f"point {number}: {error}"
                break
        if not failed:
            faults.finish()
    tally = faults.tally
    killed = ", ".join(f"{count} {target}" for target, count in sorted(tally.points.items()))
    ended = ", ".join(f"{count} {reason}" for reason, count in tally.reasons.most_common())
    print(f"{tally.points.total()} points in {time.monotonic() - began:.0f} s: killed {killed}")
    print(f"{tally.acknowledged} commands acknowledged, each recorded once: {ended}")
    if failed:
        print(f"FAILED: {failed}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
