"""What the benchmarks share: cases that take turns, percentiles, the machine's line, the history.

A case is one way of doing something. All cases of a table run once in each round, in an order drawn
anew for each round, so that noise of the machine and the after-effects of one case hit all alike.
Only then do ratios between them mean anything; single numbers do not travel between machines.
"""

from __future__ import annotations

import json
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HISTORY = Path(__file__).resolve().parent / "history.jsonl"
_ORDER_SEED = 20


@dataclass(slots=True)
class Case:
    """One way of doing something.

    Attributes:
        name: what a reader calls it.
        once: does it once and returns how long it took, in seconds. It times itself, so that what
            it must prepare or clean up is not counted.
        times_s: what was measured.
        unavailable: why it cannot be measured here; empty where it can.
    """

    name: str
    once: Callable[[], float]
    unavailable: str = ""
    times_s: list[float] = field(default_factory=list)

    def quantile_ms(self, share: float) -> float:
        """The time within which that share of the turns was done, in milliseconds."""
        return quantile(self.times_s, share) * 1_000

    @property
    def p50_ms(self) -> float:
        """Half of the turns took at most this long, in milliseconds."""
        return statistics.median(self.times_s) * 1_000


def quantile(values: Sequence[float], share: float) -> float:
    """The value at ``share`` of the sorted values, interpolated between neighbours."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def timed(call: Callable[[], object]) -> Callable[[], float]:
    """A case's ``once`` from something of which all is to be counted."""

    def once() -> float:
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    return once


def take_turns(
    cases: Sequence[Case],
    *,
    rounds: int,
    warm_up: int,
    progress: Callable[[int], None] = lambda _round: None,
) -> None:
    """Measure all cases in turns. A case that fails is unavailable from then on, and says why."""
    order = random.Random(_ORDER_SEED)
    for number in range(-warm_up, rounds):
        progress(number)
        for case in order.sample(cases, len(cases)):
            if case.unavailable:
                continue
            try:
                time_s = case.once()
            except (OSError, RuntimeError, subprocess.SubprocessError) as error:
                case.unavailable = f"{error}".splitlines()[0] if str(error) else repr(error)
                case.times_s.clear()
                continue
            if number >= 0:
                case.times_s.append(time_s)


def run_to_end(argv: Sequence[str], env: Mapping[str, str] | None = None) -> None:
    """Start a program with posix_spawn(3), the cheapest way from Python, and wait for it.

    Raises:
        RuntimeError: it did not exit with 0.
    """
    nothing = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in (0, 1, 2)]
    pid = os.posix_spawn(argv[0], argv, os.environ if env is None else env, file_actions=nothing)
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    if code != 0:
        raise RuntimeError(f"{argv[0]} exited with {code}")


def machine() -> dict[str, str | int]:
    """What the numbers depend on, and nothing that names this machine."""
    return {
        "cpu": _cpu_model(),
        "cpus": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)),
        "kernel": platform.release(),
        "os": platform.freedesktop_os_release().get("PRETTY_NAME", "Linux"),
        "python": platform.python_version(),
    }


def machine_line(facts: Mapping[str, str | int]) -> str:
    """The machine in one line."""
    return (
        f"{facts['cpu']}, {facts['cpus']} CPUs, {facts['memory_gib']} GiB, "
        f"Linux {facts['kernel']}, {facts['os']}, Python {facts['python']}"
    )


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _cpu_ticks() -> tuple[int, int]:
    """Ticks of all CPUs, and those in which somebody ran, other machines of the host included."""
    fields = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return sum(fields), sum(fields) - fields[3] - fields[4]  # all but idle and iowait; proc(5)


class Busy:
    """How busy all CPUs were since it was made, whoever kept them so."""

    def __init__(self) -> None:
        self._start = _cpu_ticks()

    def share(self) -> float:
        """From 0 to 1."""
        total, busy = (now - then for now, then in zip(_cpu_ticks(), self._start, strict=True))
        return busy / total if total else 0.0


def wait_for_quiet(*, busy_share: float, patience_s: float) -> float:
    """Wait until little else runs; returns the share of the CPUs that others used last.

    It looks at processor time and not at the load average, which takes minutes to forget a burst.
    """
    deadline = time.monotonic() + patience_s
    told = False
    while True:
        busy = Busy()
        time.sleep(3)
        share = busy.share()
        if share < busy_share or time.monotonic() >= deadline:
            return share
        if not told:
            told = True
            say(f"others use the machine ({share:.0%} of it); waiting up to {patience_s:.0f} s")


def say(line: str) -> None:
    """A line for whoever waits; results go to standard output alone."""
    print(f"bench: {line}", file=sys.stderr, flush=True)


def commit() -> str:
    """The checkout's commit, with ``+`` where files were changed since; empty without git."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--exclude=*", "--dirty=+"],
            cwd=ROOT,
            check=True,
            capture_output=True,
            text=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return described.stdout.strip()


def record(benchmark: str, result: Mapping[str, object]) -> None:
    """Add one line to the history: what was measured, when, at which commit, on what."""
    line = {
        "benchmark": benchmark,
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "commit": commit(),
        "machine": machine(),
        **result,
    }
    with HISTORY.open("a", encoding="utf-8") as history:
        history.write(json.dumps(line, separators=(",", ":")) + "\n")
