"""How long a command takes from the caller's side: worlds, execs, the command line, replays.

Every row and every peer take turns in one run (see measuring.py), so the ratios hold where the
milliseconds do not. The bars are those of the design, docs/BENCHMARKS.md explains each row.

Run: python benchmarks/bench_latency.py [--rounds N] [--record] [--json]; scripts/bench sets up the
peers first.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from measuring import (
    Busy,
    Case,
    machine,
    machine_line,
    quantile,
    record,
    run_to_end,
    say,
    take_turns,
    timed,
    wait_for_quiet,
)
from peers import BUILT, Unavailable, bwrap_overlay, bwrap_read_only, docker, runc, swerex

from substrate_sdk import Substrate

if TYPE_CHECKING:
    from substrate_sdk import World
    from substrate_sdk.client.sync import Shell

ROUNDS = 60
WARM_UP = 5
LARGE_PROJECT_FILES = 10_000
LARGE_PROJECT_ROUNDS = 15
QUIET_SHARE = 0.15  # of the CPUs, used by others

FLOOR = "fork+exec of true"
FRESH = "fresh world + true + remove, gRPC"
POOLED = "the same from a warm pool, gRPC"
BWRAP_OVERLAY = "bubblewrap with overlay, true"
BWRAP_READ_ONLY = "bubblewrap, / read-only, true"
RUNC = "runc run, / read-only, true"
DOCKER = "docker run --rm, true"
EXEC = "exec true in a live world, gRPC"
SHELL = "command in a live shell, gRPC"
SWEREX_EXECUTE = "SWE-ReX execute true, HTTP"
SWEREX_SESSION = "SWE-ReX session true, HTTP"
CLI = "substrate -c true, end to end"
PYTHON = "python -c pass"
REPLAY = "replay of true, beyond its own time"
CREATE_SMALL = "create a world, 3-file project"
CREATE_LARGE = "create a world, 10,000-file project"


@dataclass(frozen=True, slots=True)
class Bar:
    """What the design asks of a case.

    Attributes:
        text: it, in words.
        holds: looks at the medians, in milliseconds by case; None where a peer is missing.
    """

    text: str
    holds: Callable[[dict[str, float]], bool | None]


def _at_most(name: str, limit_ms: float) -> Callable[[dict[str, float]], bool | None]:
    return lambda ms: ms[name] <= limit_ms if name in ms else None


def _fresh_holds(ms: dict[str, float]) -> bool | None:
    if FRESH not in ms or BWRAP_OVERLAY not in ms:
        return None
    return ms[FRESH] <= 1.5 * ms[BWRAP_OVERLAY]


def _exec_holds(ms: dict[str, float]) -> bool | None:
    if EXEC not in ms:
        return None
    if ms[EXEC] > 2:
        return False
    return ms[EXEC] < ms[SWEREX_EXECUTE] if SWEREX_EXECUTE in ms else None


def _large_holds(ms: dict[str, float]) -> bool | None:
    if CREATE_LARGE not in ms or CREATE_SMALL not in ms:
        return None
    return ms[CREATE_LARGE] - ms[CREATE_SMALL] <= 30


BARS = {
    FRESH: Bar("<= 1.5 x bubblewrap with overlay", _fresh_holds),
    POOLED: Bar("<= 4 ms", _at_most(POOLED, 4)),
    EXEC: Bar("<= 2 ms, and < SWE-ReX execute", _exec_holds),
    SHELL: Bar("<= 3 ms", _at_most(SHELL, 3)),
    CLI: Bar("<= 50 ms", _at_most(CLI, 50)),
    REPLAY: Bar("<= 15 ms", _at_most(REPLAY, 15)),
    CREATE_LARGE: Bar("<= 30 ms over the small project", _large_holds),
}

#: What a row is divided by.
REFERENCES = {
    FRESH: BWRAP_OVERLAY,
    POOLED: BWRAP_OVERLAY,
    BWRAP_READ_ONLY: BWRAP_OVERLAY,
    RUNC: BWRAP_OVERLAY,
    DOCKER: BWRAP_OVERLAY,
    EXEC: SWEREX_EXECUTE,
    SHELL: SWEREX_SESSION,
    SWEREX_SESSION: SWEREX_EXECUTE,
    CLI: PYTHON,
    CREATE_LARGE: CREATE_SMALL,
}


@dataclass(slots=True)
class Results:
    """What one run found.

    Attributes:
        cases: in the table's order.
        parts_s: the parts of a fresh world's time, by name, a value for each turn.
        pooled_parts_s: the same of a pooled one's.
        notes: what a reader must know to read the table.
        busy_before: share of the CPUs that others used just before the run.
    """

    cases: list[Case] = field(default_factory=list)
    parts_s: dict[str, list[float]] = field(default_factory=dict)
    pooled_parts_s: dict[str, list[float]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    busy_before: float = 0.0

    def medians(self) -> dict[str, float]:
        """Milliseconds of the cases that were measured."""
        return {case.name: case.p50_ms for case in self.cases if case.times_s}


# --- what is measured ----------------------------------------------------------------------------


def _fresh_world(sub: Substrate, project: Path, parts_s: dict[str, list[float]]) -> float:
    start = time.perf_counter()
    world = sub.world(cwd=project)
    made = time.perf_counter()
    try:
        result = world.run(["true"])
        ran = time.perf_counter()
    finally:
        world.remove()
    removed = time.perf_counter()
    _require(result.exit_code == 0, f"true exited with {result.exit_code}")
    for name, time_s in (("create", made - start), ("true", ran - made), ("remove", removed - ran)):
        parts_s.setdefault(name, []).append(time_s)
    return removed - start


def _exec(world: World) -> float:
    start = time.perf_counter()
    result = world.run(["true"])
    time_s = time.perf_counter() - start
    _require(result.exit_code == 0, f"true exited with {result.exit_code}")
    return time_s


def _in_shell(shell: Shell) -> float:
    start = time.perf_counter()
    result = shell.run("true")
    time_s = time.perf_counter() - start
    _require(result.exit_code == 0, f"true exited with {result.exit_code}")
    return time_s


def _create(sub: Substrate, project: Path) -> float:
    start = time.perf_counter()
    world = sub.world(cwd=project)
    time_s = time.perf_counter() - start
    world.remove()
    return time_s


def _replay_beyond(sub: Substrate, span_id: str) -> float:
    """Seconds that a replay takes more than the replayed command itself ran."""
    start = time.perf_counter()
    report = sub.replay(span_id)
    time_s = time.perf_counter() - start
    _require(report.verdict == "identical", f"the replay of true is {report.verdict}")
    return time_s - report.runs[0].duration_ms / 1_000


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise RuntimeError(otherwise)


def _peer(name: str, make: Callable[[], Case]) -> Case:
    """A peer's case; one that only gives a reason where the peer is not to be had."""
    try:
        return make()
    except Unavailable as error:
        return Case(name, lambda: 0.0, unavailable=str(error))


def _program(name: str, argv: Sequence[str]) -> Case:
    return Case(name, timed(lambda: run_to_end(argv)))


def _bwrap_overlay(notes: list[str]) -> Case:
    argv, lacks = bwrap_overlay("true")
    version = subprocess.run([argv[0], "--version"], capture_output=True, text=True, check=True)
    note = f"{version.stdout.strip()} with overlay"
    if lacks:
        note += (
            f" runs with {lacks} here: in one, it cannot lay an overlay over a `/` "
            "that has mounts below it (ours, which can, does more)"
        )
    notes.append(note)
    return _program(BWRAP_OVERLAY, argv)


def _runc(stack: contextlib.ExitStack, notes: list[str]) -> Case:
    argv, said = stack.enter_context(runc("true"))
    notes.append(said)
    return _program(RUNC, argv)


def _docker(stack: contextlib.ExitStack, notes: list[str]) -> Case:
    argv, said = stack.enter_context(docker("true"))
    notes.append(said)
    return _program(DOCKER, argv)


def _measure(options: argparse.Namespace, project: Path, large: Path) -> Results:
    results = Results()
    substrate = Path(sys.executable).with_name("substrate")
    with contextlib.ExitStack() as stack:
        sub = stack.enter_context(Substrate())
        sub.connect_host()
        pooled = stack.enter_context(_host_with_pool())
        world = stack.enter_context(sub.world(cwd=project))
        recorded = world.run(["true"]).span_id
        # In a world of its own: a command beside an open shell shares the world with it.
        shell = stack.enter_context(sub.world(cwd=project)).shell()
        execute: Callable[[str], float] | None = None
        missing = ""
        try:
            execute = stack.enter_context(swerex())
        except Unavailable as error:
            missing = str(error)

        def swe(name: str) -> float:
            assert execute is not None
            return execute(name)

        true = shutil.which("true") or "/bin/true"
        results.cases = [
            _program(FLOOR, [true]),
            Case(FRESH, lambda: _fresh_world(sub, project, results.parts_s)),
            Case(POOLED, lambda: _fresh_world(pooled, project, results.pooled_parts_s)),
            _peer(BWRAP_OVERLAY, lambda: _bwrap_overlay(results.notes)),
            _peer(BWRAP_READ_ONLY, lambda: _program(BWRAP_READ_ONLY, bwrap_read_only("true"))),
            _peer(RUNC, lambda: _runc(stack, results.notes)),
            _peer(DOCKER, lambda: _docker(stack, results.notes)),
            Case(EXEC, lambda: _exec(world)),
            Case(SHELL, lambda: _in_shell(shell)),
            Case(SWEREX_EXECUTE, lambda: swe("execute"), missing),
            Case(SWEREX_SESSION, lambda: swe("session"), missing),
            _program(CLI, [str(substrate), "-c", "true"]),
            _program(PYTHON, [sys.executable, "-c", "pass"]),
            Case(REPLAY, lambda: _replay_beyond(sub, recorded)),
        ]
        results.busy_before = wait_for_quiet(busy_share=QUIET_SHARE, patience_s=options.patience)
        if results.busy_before >= QUIET_SHARE:
            results.notes.append(
                f"not a quiet machine: others used {results.busy_before:.0%} of the CPUs before"
            )
        say(f"{options.rounds} rounds of {len(results.cases)} cases")
        busy = Busy()
        take_turns(results.cases, rounds=options.rounds, warm_up=WARM_UP)
        # A project of that size is kept (pinned) in the background, which would disturb the others.
        created = [
            Case(CREATE_SMALL, lambda: _create(sub, project)),
            Case(CREATE_LARGE, lambda: _create(sub, large)),
        ]
        take_turns(created, rounds=min(options.rounds, LARGE_PROJECT_ROUNDS), warm_up=2)
        results.notes.append(f"CPUs busy during the run: {busy.share():.0%}")
        results.cases += created
        for times_s in (*results.parts_s.values(), *results.pooled_parts_s.values()):
            del times_s[:WARM_UP]
        row = next(row for row in pooled.capabilities() if row.feature == "warm_pool")
        results.notes.append(f"warm pool: {row.mode}")
    return results


# --- its surroundings ----------------------------------------------------------------------------


@contextlib.contextmanager
def _host_with_pool() -> Iterator[Substrate]:
    """A second host, which keeps a world ready. It makes the next while other cases run."""
    home = Path(os.environ["HOME"], ".substrate-pool")
    home.mkdir(mode=0o700)
    (home / "host.toml").write_text("[worlds]\nwarm_pool = 1\n")
    try:
        with Substrate(home=home) as sub:
            sub.connect_host()
            yield sub
    finally:
        subprocess.run(
            [Path(sys.executable).with_name("substrate"), "down", "--worlds"],
            check=False,
            cwd="/",
            env={**os.environ, "SUBSTRATE_HOME": str(home)},
            stdout=subprocess.DEVNULL,
        )


def write_project(directory: Path, files: int) -> Path:
    """A directory with some files in it, a hundred to a subdirectory."""
    directory.mkdir()
    for number in range(files):
        path = directory / f"part{number // 100}" / f"module{number}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"VALUE = {number}\n" * 20)
    return directory


@contextlib.contextmanager
def host_of_its_own() -> Iterator[Path]:
    """A home with a host in it that ends with the benchmark, worlds and all."""
    home = Path(tempfile.mkdtemp(prefix="sbench", dir="/tmp"))
    kept = dict(os.environ)
    for name in [name for name in os.environ if name.startswith(("SUBSTRATE_", "OTEL_"))]:
        del os.environ[name]
    # Installed packages come compiled. Where writing bytecode is forbidden, as often in containers,
    # a checkout would be compiled anew at each start, and that is not what is to be measured.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ.update(
        HOME=str(home),
        SUBSTRATE_HOME=str(home / ".substrate"),
        PYTHONPYCACHEPREFIX=str(BUILT / "pycache"),
    )
    try:
        yield home
    finally:
        substrate = Path(sys.executable).with_name("substrate")
        subprocess.run(
            [substrate, "down", "--worlds"], check=False, cwd="/", stdout=subprocess.DEVNULL
        )
        os.environ.clear()
        os.environ.update(kept)
        for parent, names, _ in os.walk(home):
            for name in names:
                # overlayfs leaves work directories that nobody may enter.
                if not os.path.islink(os.path.join(parent, name)):
                    os.chmod(os.path.join(parent, name), 0o700)
        shutil.rmtree(home)


# --- what is shown -------------------------------------------------------------------------------


def table(results: Results) -> str:
    """The results as a Markdown table, which reads well as it is."""
    medians = results.medians()
    rows = [["what", "p50 ms", "p95 ms", "p99 ms", "ratio", "to", "bar", ""]]
    for case in results.cases:
        bar = BARS.get(case.name)
        if not case.times_s:
            rows.append(
                [case.name, "-", "-", "-", "", "", f"not available: {case.unavailable}", ""]
            )
            continue
        reference = REFERENCES.get(case.name)
        ratio, to = "", ""
        if reference in medians:
            ratio, to = f"{case.p50_ms / medians[reference]:.2f}", reference
        met = {True: "met", False: "not met", None: "open"}[bar.holds(medians)] if bar else ""
        rows.append(
            [
                case.name,
                f"{case.p50_ms:.2f}",
                f"{case.quantile_ms(0.95):.2f}",
                f"{case.quantile_ms(0.99):.2f}",
                ratio,
                to,
                bar.text if bar else "",
                met,
            ]
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if 1 <= column <= 4 else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("| " + " | ".join(cells) + " |")
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def _parts_line(what: str, parts_s: dict[str, list[float]]) -> str:
    parts = [f"{name} {quantile(times_s, 0.5) * 1_000:.1f} ms" for name, times_s in parts_s.items()]
    return f"{what}, p50 of its parts: " + ", ".join(parts)


def as_json(results: Results, rounds: int) -> dict[str, object]:
    """The results as the history keeps them."""
    medians = results.medians()
    return {
        "rounds": rounds,
        "busy_before": round(results.busy_before, 2),
        "rows": {
            case.name: {
                "p50_ms": round(case.p50_ms, 3),
                "p95_ms": round(case.quantile_ms(0.95), 3),
                "p99_ms": round(case.quantile_ms(0.99), 3),
                "bar_met": BARS[case.name].holds(medians) if case.name in BARS else None,
            }
            if case.times_s
            else {"unavailable": case.unavailable}
            for case in results.cases
        },
        "fresh_world_parts_ms": {
            name: round(quantile(times_s, 0.5) * 1_000, 3)
            for name, times_s in results.parts_s.items()
        },
        "notes": results.notes,
    }


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"turns of each ({ROUNDS})")
    parser.add_argument(
        "--patience", type=float, default=60.0, help="wait so many seconds for a quiet machine (60)"
    )
    parser.add_argument("--record", action="store_true", help="add a line to the history")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    options = parser.parse_args()
    with host_of_its_own() as home:
        project = write_project(home / "project", 3)
        large = write_project(home / "large", LARGE_PROJECT_FILES)
        before = Path.cwd()
        os.chdir(project)
        try:
            results = _measure(options, project, large)
        finally:
            os.chdir(before)
    result = as_json(results, options.rounds)
    if options.record:
        record("latency", result)
    if options.json:
        print(json.dumps(result))
        return
    print(f"latency, {options.rounds} interleaved rounds, p50, p95 and p99")
    print(machine_line(machine()))
    print()
    print(table(results))
    print()
    print(_parts_line("a fresh world", results.parts_s))
    print(_parts_line("from a pool", results.pooled_parts_s))
    for note in results.notes:
        print(note)


if __name__ == "__main__":
    main()
