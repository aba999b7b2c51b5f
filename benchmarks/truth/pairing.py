"""Running a command under the library and strace at once, and comparing what both tell."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.truth.compare import Comparison, compare
from benchmarks.truth.lineage import Lineage
from benchmarks.truth.recorded import read_events
from benchmarks.truth.strace_log import TRACED, read_logs
from benchmarks.truth.traced import TracedCall, Tracer
from substrate_services.telemetry.decode import ClockOffsets, DecodeLimits, DecodeSummary
from substrate_services.telemetry.segments import SEGMENT_VARIABLE, prepare_directory
from tests.native.recording import Event, decode, preload_library

_LIMITS = DecodeLimits(output_bytes=4 << 30, memory_bytes=8 << 30, timeout_s=300)


class WorkloadFailed(RuntimeError):
    """The command did not end as it should have, so there is nothing to compare."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A run that both saw: what strace saw, what the recorder did, and what they differ in."""

    traced: list[TracedCall]
    events: list[Event]
    summary: DecodeSummary
    comparison: Comparison


def run_pair(
    command: Sequence[str],
    *,
    cwd: Path,
    env: Mapping[str, str] | None = None,
    timeout_s: float = 300,
    keep: Path | None = None,
) -> Pair:
    """Run a command, traced and recorded, and compare.

    Args:
        command: with its arguments.
        cwd: where.
        env: added to this process's environment, of which little is passed on.
        timeout_s: after which it is killed.
        keep: a directory for strace's files and the events, to look into a difference.

    Raises:
        WorkloadFailed: it exited with anything but 0, or what it wrote could not be decoded.
    """
    with _rooms(keep) as (segments, logs):
        library = _own_copy(logs)
        loaded = ["-E", f"LD_PRELOAD={library}", "-E", f"{SEGMENT_VARIABLE}={segments}"]
        _run([*_strace(logs), *loaded, *command], cwd, _environment(env), timeout_s)
        summary, events = decode(segments, offsets=_offsets(), limits=_LIMITS)
        if summary.failure:
            raise WorkloadFailed(summary.failure)
        if keep is not None:
            _write_events(keep / "events", events)
        read = read_logs(logs / "strace")
        lineage = Lineage(read, os.fsencode(segments))
        traced = list(Tracer(lineage, os.fsencode(segments), os.fsencode(library)).calls())
        comparison = compare(lineage, traced, read_events(events, frozenset(lineage.processes)))
        comparison.not_understood = sum(len(log.not_understood) for log in read.values())
        return Pair(traced, events, summary, comparison)


def run_alone(
    command: Sequence[str], *, cwd: Path, env: Mapping[str, str] | None = None
) -> list[TracedCall]:
    """What strace sees of a command that runs without the library.

    Raises:
        WorkloadFailed: it exited with anything but 0.
    """
    with _rooms(None) as (segments, logs):
        _run([*_strace(logs), *command], cwd, _environment(env), timeout_s=300)
        lineage = Lineage(read_logs(logs / "strace"), os.fsencode(segments))
        return list(Tracer(lineage, os.fsencode(segments), b"").calls())


def _strace(logs: Path) -> list[str]:
    # --seccomp-bpf stops at the traced calls alone, which is what makes this bearable. strace's
    # option -E then gives the library to the command and not to strace.
    strace = ["strace", "-ff", "--seccomp-bpf", "-ttt", "-y", "-s", "256", "-e", f"trace={TRACED}"]
    return [*strace, "-e", "signal=none", "-qq", "-o", str(logs / "strace")]


def _run(command: Sequence[str], cwd: Path, env: Mapping[str, str], timeout_s: float) -> None:
    # A session of its own, so that what is left of it after a time-out can be ended together.
    with subprocess.Popen(
        command,
        cwd=cwd,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        try:
            output, errors = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired as error:
            os.killpg(process.pid, signal.SIGKILL)
            raise WorkloadFailed(f"the command was not done after {timeout_s:g} s") from error
    if process.returncode != 0:
        said = (errors or output).decode("utf-8", "replace").strip().splitlines()
        last = said[-1] if said else "no message"
        raise WorkloadFailed(f"the command ended with {process.returncode}: {last}")


def _environment(extra: Mapping[str, str] | None) -> dict[str, str]:
    passed = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return {**passed, "LANG": "C.UTF-8", **(extra or {})}


def _offsets() -> ClockOffsets:
    """This process's; a hello's own are as far off as strace stopped it between two clocks."""
    monotonic_ns = time.monotonic_ns()
    boot_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - monotonic_ns
    return ClockOffsets(utc_ns=time.time_ns() - time.monotonic_ns(), boot_ns=boot_ns)


def _own_copy(directory: Path) -> Path:
    """The library, safe from a build that replaces it while programs run."""
    return Path(shutil.copy2(preload_library(), directory))


@contextmanager
def _rooms(keep: Path | None) -> Iterator[tuple[Path, Path]]:
    """A directory for segments, in memory, and one for logs."""
    segments = Path(tempfile.mkdtemp(prefix="sbtruth", dir="/dev/shm"))
    logs = keep if keep is not None else Path(tempfile.mkdtemp(prefix="sbtruth", dir="/var/tmp"))
    try:
        prepare_directory(segments)
        yield segments, logs
    finally:
        shutil.rmtree(segments, ignore_errors=True)
        if keep is None:
            shutil.rmtree(logs, ignore_errors=True)


def _write_events(path: Path, events: Sequence[Event]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(event) + "\n" for event in events)
