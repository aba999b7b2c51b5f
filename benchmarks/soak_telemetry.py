"""Telemetry under SIGKILL, on a full file system and in a burst: what was lost, and was it told.

Run ``python benchmarks/soak_telemetry.py [--points N] [--burst EVENTS] [--world]`` (``make soak``).
Three parts, each with real processes; what came of them is printed as a table:

* ``kill``: N times, a tree of processes and threads that fork, vfork, spawn, exec and open files is
  killed at a random moment, at every second point one process of it a little before the rest. Each
  writer says in shared memory what it has published (native/tests/soak.c); what the decoder reads
  is held against that: everything published is there, once, and nothing else.
* ``burst``: a burst of ten million events into tmpfs file systems that are full after the first
  segments, that are too small, and into one that is large enough (root).
* ``world``: the same burst as a step of a world, whose segments have room for 256 MiB, and in a
  world whose segment file system a program filled before: what was lost stands in the span.

Exits with 1 when something was lost without being told, or an event was read twice.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import mmap
import os
import random
import re
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "services")]

from substrate_sdk.client.sync import World  # noqa: E402
from substrate_services.telemetry.coverage import coverage_of  # noqa: E402
from substrate_services.telemetry.decode import DecodeLimits, DecodeSummary, decode_segments  # noqa: E402
from tests.native.recording import (  # noqa: E402
    IDS,
    Recorder,
    compile_c,
    small_file_system,
)
from tests.users import new_user  # noqa: E402

_SLOTS = 65535
_PAGE_BYTES = 4 * (1 + _SLOTS)
_LONGEST_S = 0.06
#: Ten million event lines are more than a step may have: a world has room for fewer (256 MiB).
_LIMITS = DecodeLimits(output_bytes=16 << 30, timeout_s=300)
_PR_SET_CHILD_SUBREAPER = 36
#: Fills a world's segment file system (mode 1777), as a hostile program may.
_FILL = "cat /dev/zero >/run/substrate/seg/full 2>/dev/null; :"
#: More than a step of the burst has besides the burst's opens: start, threads, libraries, exit.
_OTHER_EVENTS = 32
_EVENT = re.compile(rb'"path": ?"/soak/(\d+)-(\d+)"')


@dataclass
class Kills:
    """What all points of the first part come to."""

    points: int = 0
    published: int = 0
    read: int = 0
    processes: int = 0
    lost: int = 0  # told by the decoder
    torn: int = 0
    unborn: int = 0  # segment files whose maker was killed before it had written anything
    missing: int = 0  # published, and not read
    twice: int = 0
    made_up: int = 0  # read, and not published, but for the one call that each writer may be in
    untold: int = 0  # missing beyond what the decoder told as lost
    failures: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """Whether nothing was lost untold, doubled or made up."""
        told = not (self.untold or self.twice or self.made_up or self.failures)
        return told and (self.published > 0 or self.points == 0)


def _decode(directory: Path) -> tuple[DecodeSummary, bytes]:
    chunks: list[bytes] = []
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        decoding = decode_segments(segments_fd=fd, ids=IDS, root_pid=None, sink=chunks.append)
        summary = asyncio.run(decoding)
    finally:
        os.close(fd)
    return summary, b"".join(chunks)


def _reap(group: int) -> None:
    """Wait for the end of every process of a group; they are this process's, or it adopted them."""
    while True:
        try:
            os.waitpid(-group, 0)
        except ChildProcessError:
            return


def _members(group: int) -> list[int]:
    found = []
    for entry in os.scandir("/proc"):
        with contextlib.suppress(OSError, ValueError, ProcessLookupError):
            pid = int(entry.name)
            if os.getpgid(pid) == group:
                found.append(pid)
    return found


def _one_point(recorder: Recorder, program: Path, page: Path, chance: random.Random) -> None:
    page.write_bytes(bytes(_PAGE_BYTES))
    recorder.clear()
    process = subprocess.Popen(
        [program, page],
        env=recorder.environment(),
        start_new_session=True,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    time.sleep(chance.random() * _LONGEST_S)
    if chance.random() < 0.5:
        members = _members(process.pid)
        if members:
            with contextlib.suppress(ProcessLookupError):
                os.kill(chance.choice(members), signal.SIGKILL)
        time.sleep(chance.random() * 0.005)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    _reap(process.pid)


def _published(page: Path) -> dict[int, int]:
    with page.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as data:
        next_slot = min(struct.unpack_from("<I", data, 0)[0], _SLOTS)
        counts = struct.unpack_from(f"<{next_slot}I", data, 4)
    return dict(enumerate(counts))


def _check(kills: Kills, page: Path, segments: Path) -> None:
    summary, text = _decode(segments)
    if summary.failure:
        kills.failures.append(summary.failure)
        return
    read = Counter((int(slot), int(number)) for slot, number in _EVENT.findall(text))
    published = _published(page)
    expected = {(slot, number) for slot, count in published.items() for number in range(count)}
    in_flight = set(published.items())  # the call had its record, not yet its number
    missing = len(expected - read.keys())
    kills.points += 1
    kills.published += len(expected)
    kills.read += sum(read.values())
    kills.processes += summary.processes_covered
    kills.lost += summary.lost
    kills.torn += summary.torn
    kills.missing += missing
    kills.untold += max(0, missing - summary.lost)
    kills.twice += sum(count > 1 for count in read.values())
    kills.made_up += len(read.keys() - expected - in_flight)
    unborn = sum(1 for path in segments.iterdir() if not any(path.read_bytes()[:8]))
    kills.unborn += unborn
    foreign = summary.foreign_files > unborn
    if summary.corrupt_segments or foreign or summary.unreadable_files:
        kills.failures.append(f"segments that could not be read at point {kills.points}")


def kill_at_random(points: int, seed: int, directory: Path) -> Kills:
    """Kill the work at so many random moments, and check what was recorded of it."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "PR_SET_CHILD_SUBREAPER")
    program = compile_c(ROOT / "native" / "tests" / "soak.c", directory / "soak", "-lpthread")
    # Where a world's segments are: in memory.
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="sbsoak") as memory:
        recorder = Recorder(Path(memory) / "seg")
        page = Path(memory) / "page"
        chance = random.Random(seed)
        kills = Kills()
        for _ in range(points):
            _one_point(recorder, program, page, chance)
            _check(kills, page, recorder.segments)
    return kills


@dataclass
class Burst:
    """What came of one burst."""

    made: int
    read: int
    lost: int
    returncode: int
    state: str
    seconds: float

    @property
    def good(self) -> bool:
        """Whether the program ended as ever, and what was not read was told as lost."""
        short = self.made - self.read
        return self.returncode == 6 and short <= self.lost and (short == 0 or self.state != "full")


def burst(events: int, size: str, directory: Path) -> Burst:
    """Make so many events in four threads with a segment file system of that size."""
    program = compile_c(ROOT / "native" / "tests" / "burst.c", directory / "burst", "-lpthread")
    with small_file_system(size) as segments:
        recorder = Recorder(segments)
        begun = time.monotonic()
        done = subprocess.run(
            [program, str(events // 4), "4"],
            env=recorder.environment(),
            check=False,
            capture_output=True,
            timeout=900,
        )
        seconds = time.monotonic() - begun
        fd = os.open(segments, os.O_RDONLY | os.O_DIRECTORY)
        try:
            summary = asyncio.run(
                decode_segments(
                    segments_fd=fd,
                    ids=IDS,
                    root_pid=None,
                    sink=lambda _: None,
                    limits=_LIMITS,
                )
            )
        finally:
            os.close(fd)
    made = int(done.stdout or 0)
    read = dict(summary.counts).get("open_failed", 0)
    state = summary.failure or coverage_of(summary).state
    return Burst(made, read, summary.lost, done.returncode, state, seconds)


def _world_burst(world: World, events: int) -> Burst:
    begun = time.monotonic()
    result = world.run(["./burst", str(events // 4), "4"], timeout_s=900)
    seconds = time.monotonic() - begun
    coverage = result.coverage
    # Which of them are the burst's opens is in the events object; that all are told shows here.
    if coverage.events + coverage.lost > events + _OTHER_EVENTS:
        raise RuntimeError(f"more than there was: {coverage}")
    read = min(events, coverage.events)
    return Burst(
        int(result.stdout), read, coverage.lost, result.exit_code or 0, coverage.state, seconds
    )


def bursts_in_worlds(events: int, directory: Path) -> Iterator[tuple[str, Burst]]:
    """The burst in a world, and in one whose segment file system is full; both go on after it."""
    project = directory / "project"
    project.mkdir()
    program = ROOT / "native" / "tests" / "burst.c"
    compile_c(program, project / "burst", "-lpthread")
    with new_user() as user:
        user.up()
        for name, before in (("a world", "true"), ("a world, full", _FILL)):
            with user.client() as sub, sub.world(project=project, cwd=project) as world:
                world.run(["sh", "-c", before])
                yield name, _world_burst(world, events)
                after = world.run(["true"])
                expected = (0, "partial" if before is _FILL else "full", 0)
                if (after.exit_code, after.coverage.state, after.coverage.lost) != expected:
                    raise RuntimeError(f"{name}: the step after the burst: {after.coverage}")


_COLUMNS = ("part", "events", "read", "told as lost", "untold", "twice", "outcome", "s")


def _kill_row(kills: Kills, seconds: float) -> tuple[str, ...]:
    outcome = (
        f"{kills.processes:,} images, {kills.torn} torn, {kills.unborn} unborn segments, "
        f"{kills.made_up} made up"
    )
    counts = (kills.published, kills.read, kills.lost, kills.untold, kills.twice)
    return (f"{kills.points:,} kills", *(f"{n:,}" for n in counts), outcome, f"{seconds:.0f}")


def _burst_row(name: str, result: Burst) -> tuple[str, ...]:
    untold = max(0, result.made - result.read - result.lost)
    counts = (result.made, result.read, result.lost, untold)
    outcome = f"exit {result.returncode}, coverage {result.state}"
    return (name, *(f"{n:,}" for n in counts), "", outcome, f"{result.seconds:.1f}")


def _row(cells: Sequence[str]) -> None:
    print(f"| {' | '.join(cells)} |", flush=True)


def main() -> int:
    """Run the parts; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(4)))
    parser.add_argument("--burst", type=int, default=10_000_000, help="events; 0: none")
    parser.add_argument("--world", action="store_true", help="the burst in worlds as well")
    options = parser.parse_args()
    good = True
    _row(_COLUMNS)
    _row(("---", *("---:" for _ in _COLUMNS[1:])))
    with tempfile.TemporaryDirectory(prefix="sbsoak") as name:
        directory = Path(name)
        if options.points:
            begun = time.monotonic()
            kills = kill_at_random(options.points, options.seed, directory)
            _row(_kill_row(kills, time.monotonic() - begun))
            good = kills.good and kills.points == options.points
            for failure in kills.failures[:5]:
                print(failure)
        results = []
        if options.burst and os.geteuid() == 0:
            for size in ("128k", "64m", "2g"):
                results.append((f"burst into {size}", burst(options.burst, size, directory)))
                _row(_burst_row(*results[-1]))
        if options.burst and options.world:
            for where, result in bursts_in_worlds(options.burst, directory):
                results.append((f"burst in {where}", result))
                _row(_burst_row(*results[-1]))
        good = good and all(result.good for _, result in results)
    print(f"seed {options.seed}: {'good' if good else 'NOT GOOD'}")
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main())
