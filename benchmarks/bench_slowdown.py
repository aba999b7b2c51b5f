"""How much slower real work is under full telemetry, next to strace, reprozip and bpftrace.

Run ``scripts/bench slowdown`` (``make bench-slowdown``), which sets up what is compared with. Every
row's recorders take turns within a round, in an order drawn anew each time, and a ratio is that of
two runs of one round: the table holds the median of those. Peers, which take long, run in the first
rounds only. What the decoder takes afterwards, on another core, is a column of its own.

The mean is that of real work. Metadata storms have rows of their own, and so has a shell that does
nothing but start ``true``: that is no work, it is the price of a start, which is also printed in
microseconds, next to that of a preloaded library with nothing in it, and so is one event's.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "services"), str(ROOT / "benchmarks")]

from measuring import Busy, machine, machine_line, record, say  # noqa: E402

from benchmarks.slowdown.price import prices, prices_table  # noqa: E402
from benchmarks.slowdown.recorders import Recorder, Turn, recorders  # noqa: E402
from benchmarks.slowdown.work import WORK, Work  # noqa: E402
from benchmarks.truth.sources import NotToBeHad, Sources  # noqa: E402
from benchmarks.truth.workloads import Prepared  # noqa: E402

_CACHE = ROOT / "build" / "bench" / "truth"
_BARE, _OURS = "bare", "substrate"
_ORDER_SEED = 20


@dataclass(slots=True)
class Row:
    """What was measured of one work."""

    work: Work
    turns: dict[str, list[Turn]] = field(default_factory=dict)
    ratios: dict[str, list[float]] = field(default_factory=dict)
    cpu_ratios: list[float] = field(default_factory=list)
    unavailable: dict[str, str] = field(default_factory=dict)

    def ratio(self, recorder: str) -> float | None:
        """Median over the rounds of this recorder's time to that of the bare run beside it."""
        measured = self.ratios.get(recorder)
        return statistics.median(measured) if measured else None

    def wall_s(self, recorder: str) -> float:
        """Median wall time, of one run of the command."""
        return statistics.median(t.wall_s for t in self.turns[recorder]) / self.work.times


@contextlib.contextmanager
def _room(below: Path) -> Iterator[Path]:
    room = Path(tempfile.mkdtemp(prefix="sbslow", dir=below)).resolve()
    try:
        yield room
    finally:
        shutil.rmtree(room, ignore_errors=True)


@dataclass(slots=True)
class _Rooms:
    """Where a work's turns are taken: each in a directory of its own, or all in one."""

    work: Work
    sources: Sources
    below: Path
    stack: contextlib.ExitStack
    kept: Prepared | None = None

    def turn(self, recorder: Recorder) -> Turn:
        """Prepare and run once."""
        if not self.work.fresh:
            if self.kept is None:
                room = self.stack.enter_context(_room(self.below))
                self.kept = self.work.ready(self.sources, room)
            return self._run(recorder, self.kept)
        with _room(self.below) as room:
            return self._run(recorder, self.work.ready(self.sources, room))

    def _run(self, recorder: Recorder, ready: Prepared) -> Turn:
        passed = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        env = {**passed, "LANG": "C.UTF-8", **ready.env}
        return recorder.run(ready.command, ready.cwd, env, self.work.times)


def _measure(rooms: _Rooms, columns: Sequence[Recorder], options: argparse.Namespace) -> Row:
    row = Row(rooms.work)
    order = random.Random(_ORDER_SEED)
    for number in range(-1, options.rounds):  # the first warms the caches
        chosen = columns if 0 <= number < options.peer_rounds else columns[:2]
        taken: dict[str, Turn] = {}
        for recorder in order.sample(chosen, len(chosen)):
            if recorder.name in row.unavailable:
                continue
            try:
                taken[recorder.name] = rooms.turn(recorder)
            except (NotToBeHad, OSError, RuntimeError, subprocess.SubprocessError) as error:
                row.unavailable[recorder.name] = f"{error}".splitlines()[0]
        if _BARE in row.unavailable:
            break
        if number < 0:
            continue
        for name, turn in taken.items():
            row.turns.setdefault(name, []).append(turn)
            row.ratios.setdefault(name, []).append(turn.wall_s / taken[_BARE].wall_s)
            if name == _OURS:
                row.cpu_ratios.append(turn.cpu_s / taken[_BARE].cpu_s)
    return row


def _geometric(ratios: Sequence[float]) -> str:
    return f"{statistics.geometric_mean(ratios):.3f}" if ratios else "-"


def _cells(row: Row, columns: Sequence[Recorder]) -> list[str]:
    if _BARE not in row.turns:
        return [row.work.name, f"not run: {row.unavailable[_BARE]}"]
    cells = [row.work.name, f"{row.wall_s(_BARE) * 1000:.0f}"]
    for recorder in columns[1:]:
        ratio = row.ratio(recorder.name)
        cells.append("-" if ratio is None else f"{ratio:.3f}")
    if _OURS in row.turns:
        turns = row.turns[_OURS]
        cells.append(f"{statistics.median(row.cpu_ratios):.3f}")
        decode_s = statistics.median(t.decode_s for t in turns) / row.work.times
        events = turns[-1].events // row.work.times
        programs = turns[-1].programs // row.work.times
        added_us = (row.wall_s(_OURS) - row.wall_s(_BARE)) * 1e6
        lost = sum(t.lost for t in turns)
        cells += [f"{decode_s * 1000:.0f}", f"{programs:,}", f"{events:,}", f"{lost}"]
        cells += [f"{added_us / max(1, programs):,.0f}", f"{added_us / max(1, events):.2f}"]
    return cells


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    width = len(lines[0])
    shown = [[*line, *[""] * (width - len(line))] for line in lines]
    shown.insert(1, ["---", *["---:"] * (width - 1)])
    return "\n".join(f"| {' | '.join(line)} |" for line in shown)


def _table(rows: Sequence[Row], columns: Sequence[Recorder]) -> str:
    head = ["work", "bare, ms", *(recorder.name for recorder in columns[1:]), "CPU time",
            "decode, ms", "programs", "events", "lost", "us more per program",
            "us more per event"]  # fmt: skip
    lines = [head]
    for what, part in (
        ("", [row for row in rows if row.work.real]),
        (" of storms", [row for row in rows if row.work.storm]),
    ):
        lines += [_cells(row, columns) for row in part]
        for name, summed in (("geometric mean", _geometric), ("highest", _highest)):
            ratios = ([row.ratio(c.name) for row in part] for c in columns[1:])
            cells = [summed([r for r in column if r is not None]) for column in ratios]
            cells.append(summed([statistics.median(r.cpu_ratios) for r in part if r.cpu_ratios]))
            lines.append([f"**{name}{what}**", "", *cells])
    lines += [_cells(row, columns) for row in rows if row.work.starts]
    return _markdown(lines)


def _highest(ratios: Sequence[float]) -> str:
    return f"{max(ratios):.3f}" if ratios else "-"


def _notes(rows: Sequence[Row]) -> list[str]:
    seen: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        for recorder, why in row.unavailable.items():
            seen.setdefault((recorder, why), []).append(row.work.name)
    return [f"- {recorder}: {why} ({', '.join(w)})" for (recorder, why), w in seen.items()]


def _json(rows: Sequence[Row], busy: float) -> dict[str, object]:
    return {
        "busy": round(busy, 2),
        "ratios": {
            row.work.name: {
                name: round(statistics.median(ratios), 3) for name, ratios in row.ratios.items()
            }
            for row in rows
        },
    }


def main() -> int:
    """Measure, print the table."""
    parser = argparse.ArgumentParser(prog="bench-slowdown", description=__doc__)
    parser.add_argument("only", nargs="*", help="rows whose names hold one of these")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--peer-rounds", type=int, default=1)
    parser.add_argument(
        "--below",
        type=Path,
        default=Path("/dev/shm"),
        help="where the work is done: in memory, so that no disk's moods are measured",
    )
    parser.add_argument("--record", action="store_true", help="add a line to the history")
    options = parser.parse_args()
    columns = recorders()
    if options.peer_rounds == 0:
        columns = columns[:2]
    sources = Sources(_CACHE)
    busy = Busy()
    rows = []
    for work in WORK:
        if options.only and not any(text in work.name for text in options.only):
            continue
        say(work.name)
        with contextlib.ExitStack() as stack:
            rooms = _Rooms(work, sources, options.below, stack)
            rows.append(_measure(rooms, columns, options))
    print(f"{machine_line(machine())}; {busy.share():.0%} of the CPUs busy\n")
    print("\n".join([_table(rows, columns), *_notes(rows)]))
    priced = {} if options.only else prices()
    if priced:
        print(f"\n{prices_table(priced)}")
    if options.record:
        record("slowdown", {**_json(rows, busy.share()), "prices": priced})
    return 0


if __name__ == "__main__":
    sys.exit(main())
