"""The suites of bash, python, git, node and programs built with gcc, with and without the library.

Run ``make bench-suites`` (root, Debian: the suites come from its source packages). All of them take
some two hours of one processor; half of that with two. Prints a table:
for each suite how many tests and cases there are, how many came out the same, which differ because
of the library, and which are flaky: each that differs is run three times more both ways. Exits with
1 when the library made a difference.

From the environment:

* ``SUITES=git,node``: these alone;
* ``SUITES_EVERY=4``: every fourth test of each;
* ``SUITES_JOBS=2``: so many at a time (2);
* ``SUITES_RESUME=1``: go on with a run that was interrupted.

What came of each test is kept in ``build/suites/results``.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "services"), str(ROOT / "benchmarks")]

from measuring import machine, machine_line  # noqa: E402

from benchmarks.suites.comparing import Result, compare, finished  # noqa: E402
from benchmarks.suites.isolation import why_not as why_not_isolated  # noqa: E402
from benchmarks.suites.kinds import LAID_OUT, SUITES, Suite, why_not  # noqa: E402

_SHOWN_CHARS = 600
_COLUMNS = (
    "suite", "tests", "cases", "same", "different", "flaky", "failing both ways", "minutes",
)  # fmt: skip


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _run(name: str, suite: Suite, every: int, jobs: int, resume: bool) -> tuple[Result, float]:
    log = LAID_OUT / "results" / f"{name}.jsonl"
    log.parent.mkdir(parents=True, exist_ok=True)
    result = Result()
    done: set[str] = set()
    if not resume:
        log.unlink(missing_ok=True)
    for names, kept in finished(log):
        result.add(kept)
        done.update(names)
    tests = [test for test in suite.tests[::every] if test not in done]
    begun = time.monotonic()
    for part in compare(suite, tests, jobs, log, _say):
        result.add(part)
    return result, (time.monotonic() - begun) / 60


def _row(suite: Suite, result: Result, minutes: float) -> tuple[str, ...]:
    different, flaky = len(result.different), len(result.flaky)
    same = result.cases - different - flaky
    counts = (result.tests, result.cases, same, different, flaky, result.failing)
    return (suite.name, *(f"{count:,}" for count in counts), f"{minutes:.0f}")


def _tell(result: Result) -> None:
    for difference in result.different:
        print(f"\n{difference.test}, {difference.case}:")
        print(f"  without: {difference.without[0][:_SHOWN_CHARS]}")
        print(f"  with: {difference.recorded[0][:_SHOWN_CHARS]}")
    if result.flaky:
        print("\nflaky: " + ", ".join(sorted({flaky.test for flaky in result.flaky})))
    if result.unrecorded:
        print(f"\nnot recorded, and so not compared: {', '.join(result.unrecorded)}")


def main() -> int:
    """Run what this machine has; returns the exit code."""
    reason = why_not_isolated()
    if reason:
        _say(f"bench-suites: {reason}")
        return 1
    wanted = os.environ.get("SUITES", ",".join(SUITES)).split(",")
    unknown = sorted(set(wanted) - SUITES.keys())
    if unknown:
        _say(f"bench-suites: no suite {', '.join(unknown)}; there are {', '.join(SUITES)}")
        return 2
    every = int(os.environ.get("SUITES_EVERY", "1"))
    jobs = int(os.environ.get("SUITES_JOBS", "2"))
    sources = sorted({SUITES[name][0] for name in wanted} - {""})
    subprocess.run([ROOT / "scripts" / "suite-sources", *sources], check=False)
    rows = []
    results = []
    good = True
    for name in wanted:
        reason = why_not(name)
        if reason:
            _say(f"{name}: {reason}")
            good = False
            continue
        suite = SUITES[name][1]()
        _say(f"{name}: {len(suite.tests[::every])} tests")
        result, minutes = _run(name, suite, every, jobs, os.environ.get("SUITES_RESUME") == "1")
        results.append(result)
        rows.append(_row(suite, result, minutes))
        good = good and not result.different and not result.unrecorded
    print(machine_line(machine()), end="\n\n")
    for row in (_COLUMNS, ("---", *("---:" for _ in _COLUMNS[1:])), *rows):
        print(f"| {' | '.join(row)} |")
    for result in results:
        _tell(result)
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main())
