"""Many worlds: what an idle one takes, and whether any stay behind.

Idle: 1,000 worlds live at once in which nothing runs; memory of their inits (PSS), and what host
and launcher have grown by, shared among them. Bar: 3 MB. Churn: 10,000 worlds made, used and
removed in a row, a few at a time; memory, descriptors, mounts, namespaces and cgroups of the host's
processes at its start and at its end. Bar: no growth, but for memory that is not given back at
once: 16 MB in all.

Run: python benchmarks/bench_worlds.py [--idle N] [--churn N] [--record] [--json]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from bench_latency import host_of_its_own, write_project
from measuring import machine, machine_line, record, say

from substrate_sdk import Substrate, World

IDLE = 1_000
CHURN = 10_000
AT_ONCE = 4
WARM_UP = 200  # worlds made and removed before the first count: pools and caches fill
BAR_MB = 3.0
GROWTH_BAR_MB = 16.0


@dataclass(frozen=True, slots=True)
class Counts:
    """What a host holds, its launcher, decoder and inits included."""

    processes: int
    memory_kib: int  # PSS
    descriptors: int
    mounts: int  # in the host's and the launcher's own namespaces
    namespaces: int
    cgroups: int


_WORLD = re.compile(r"wld_[0-9a-z]+")
_made: set[str] = set()  # ids


def _world(sub: Substrate, project: Path, *, keep: bool = False) -> World:
    world = sub.world(cwd=project, keep=keep)
    _made.add(world.world_id)
    return world


def count(home: Path) -> Counts:
    """Count what belongs to the host of a home."""
    pids = list(_family(home))
    memory = descriptors = mounts = 0
    namespaces: set[str] = set()
    seen_mounts: set[str] = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            memory += _pss_kib(pid)
            descriptors += len(os.listdir(f"/proc/{pid}/fd"))
            for name in os.listdir(f"/proc/{pid}/ns"):
                namespaces.add(os.readlink(f"/proc/{pid}/ns/{name}"))
            place = os.readlink(f"/proc/{pid}/ns/mnt")
            if place not in seen_mounts:
                seen_mounts.add(place)
                mounts += len(Path(f"/proc/{pid}/mountinfo").read_text().splitlines())
    return Counts(len(pids), memory, descriptors, mounts, len(namespaces), _cgroups())


def _family(home: Path) -> Iterator[int]:
    """The host's processes: whoever names its home, and all that descends from these."""
    parents: dict[int, int] = {}
    own: set[int] = set()
    marker = os.fsencode(home)
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                fields = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
                parents[int(entry)] = int(fields[1])
                if marker in Path(f"/proc/{entry}/cmdline").read_bytes():
                    own.add(int(entry))
    own.discard(os.getpid())
    for pid in parents:
        above = pid
        while above not in own and above in parents and above > 1:
            above = parents[above]
        if above in own:
            yield pid


def _pss_kib(pid: int) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1])
    return 0


def _cgroups() -> int:
    """Groups of worlds that this run has made; other hosts have theirs."""
    return sum(
        1
        for _, names, _ in os.walk("/sys/fs/cgroup")
        for name in names
        if (found := _WORLD.search(name)) is not None and found[0] in _made
    )


def _kernel_kib() -> int:
    """Kernel memory of the whole machine: slab, stacks, page tables, per-cpu."""
    wanted = ("Slab:", "KernelStack:", "PageTables:", "Percpu:")
    lines = Path("/proc/meminfo").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(wanted))


def _idle(sub: Substrate, home: Path, project: Path, worlds: int) -> dict[str, object]:
    before, kernel_before = count(home), _kernel_kib()
    begin = time.monotonic()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        made = list(pool.map(lambda _: _world(sub, project, keep=True), range(worlds)))
        took_s = time.monotonic() - begin
        during, kernel_during = count(home), _kernel_kib()
        ok = made[-1].run(["true"]).ok
        list(pool.map(lambda world: world.remove(), made))
    each_mb = (during.memory_kib - before.memory_kib) / worlds / 1024
    kernel_mb = (kernel_during - kernel_before) / worlds / 1024
    return {
        "worlds": worlds,
        "made_in_s": round(took_s, 1),
        "each_mb": round(each_mb, 3),
        "kernel_each_mb": round(kernel_mb, 3),
        "during": asdict(during),
        "bar_met": ok and each_mb + kernel_mb <= BAR_MB,
    }


def _churn(sub: Substrate, home: Path, project: Path, worlds: int) -> dict[str, object]:
    def one(_number: int) -> None:
        with _world(sub, project) as world:
            if not world.run(["true"]).ok:
                raise RuntimeError("true failed")

    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(one, range(min(WARM_UP, worlds))))
        before = _settled(home)
        begin = time.monotonic()
        list(pool.map(one, range(worlds)))
        took_s = time.monotonic() - begin
        after = _settled(home)
    grown = {name: value - asdict(before)[name] for name, value in asdict(after).items()}
    others = {name: more for name, more in grown.items() if name != "memory_kib"}
    return {
        "worlds": worlds,
        "took_s": round(took_s, 1),
        "before": asdict(before),
        "grown": grown,
        "bar_met": not any(more > 0 for more in others.values())
        and grown["memory_kib"] <= GROWTH_BAR_MB * 1024,
    }


def _settled(home: Path) -> Counts:
    """The counts once what is deleted behind the caller's back is gone."""
    last = count(home)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        time.sleep(0.5)  # nothing tells when the kernel and the host are done tidying up
        trash = home / ".substrate" / "trash"
        now = count(home)
        empty = not trash.exists() or not any(trash.iterdir())
        if empty and (now.processes, now.descriptors) == (last.processes, last.descriptors):
            return now
        last = now
    return last


def main() -> int:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--idle", type=int, default=IDLE)
    parser.add_argument("--churn", type=int, default=CHURN)
    parser.add_argument("--record", action="store_true", help="add a line to the history")
    parser.add_argument("--json", action="store_true", help="print JSON only")
    options = parser.parse_args()
    with host_of_its_own() as home, Substrate() as sub:
        sub.connect_host()
        project = write_project(home / "project", 3)
        with sub.world(cwd=project) as world:
            world.run(["true"])
        say(f"{options.idle} idle worlds")
        idle = _idle(sub, home, project, options.idle)
        say(f"{options.churn} worlds in a row")
        churn = _churn(sub, home, project, options.churn)
    result = {"idle": idle, "churn": churn}
    if options.record:
        record("worlds", result)
    if options.json:
        print(json.dumps(result))
        return 0
    print(f"worlds\n{machine_line(machine())}\n")
    for name, found in result.items():
        print(f"{name}: {'bar met' if found['bar_met'] else 'bar NOT met'}")
        for key, value in found.items():
            print(f"    {key}: {value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
