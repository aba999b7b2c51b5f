"""What records the work: nothing, our library, and the peers. Each runs a command and times it."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import resource
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from peers import BUILT, Unavailable

from substrate_services.native_paths import native_path
from substrate_services.telemetry.decode import DecodeLimits, SpanIds, decode_segments
from substrate_services.telemetry.segments import SEGMENT_VARIABLE, prepare_directory

_IDS = SpanIds("ses_bench", "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331", "wld_bench")
_LIMITS = DecodeLimits(output_bytes=8 << 30, memory_bytes=8 << 30, timeout_s=300)
_PATIENCE_S = 600
_FILTER = "trace=%file,%process,%network"

#: Opens, mutations, programs and connections, as the others see them.
_PROGRAM = """
tracepoint:syscalls:sys_enter_openat { printf("o %d %s\\n", pid, str(args->filename)); }
tracepoint:syscalls:sys_enter_newfstatat { printf("s %d %s\\n", pid, str(args->filename)); }
tracepoint:syscalls:sys_enter_execve { printf("e %d %s\\n", pid, str(args->filename)); }
tracepoint:syscalls:sys_enter_unlink* { printf("u %d %s\\n", pid, str(args->pathname)); }
tracepoint:syscalls:sys_enter_mkdir* { printf("m %d %s\\n", pid, str(args->pathname)); }
tracepoint:syscalls:sys_enter_rename* { printf("r %d %s\\n", pid, str(args->oldname)); }
tracepoint:syscalls:sys_enter_connect { printf("c %d\\n", pid); }
tracepoint:sched:sched_process_exit { printf("x %d\\n", pid); }
"""
_WITH_TRACEFS = """
where=/sys/kernel/tracing
[ -e $where/events ] || mount -t tracefs tracefs $where || exit
exec "$0" "$@"
"""


@dataclass(frozen=True, slots=True)
class Turn:
    """How long a command took, and what our recorder made of it."""

    wall_s: float
    cpu_s: float
    decode_s: float = 0.0
    events: int = 0
    programs: int = 0
    lost: int = 0


class Recorder(Protocol):
    """One column of the table."""

    name: str

    def run(self, command: Sequence[str], cwd: Path, env: Mapping[str, str], times: int) -> Turn:
        """Run a command so many times.

        Raises:
            Unavailable: the recorder cannot run here.
            RuntimeError: the command failed under it.
        """


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _run(command: Sequence[str], cwd: Path, env: Mapping[str, str], times: int) -> Turn:
    """Wall and processor time of the runs, output thrown away."""
    took_s = 0.0
    cpu_s = _cpu_s()
    for _ in range(times):
        began = time.perf_counter()
        done = subprocess.run(
            command, check=False, cwd=cwd, env=env, timeout=_PATIENCE_S,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        took_s += time.perf_counter() - began
        if done.returncode != 0:
            raise RuntimeError(f"{command[0]} ended with {done.returncode}")
    return Turn(took_s, _cpu_s() - cpu_s)


class Bare:
    """Nothing."""

    name = "bare"

    def run(self, command: Sequence[str], cwd: Path, env: Mapping[str, str], times: int) -> Turn:
        """See Recorder."""
        return _run(command, cwd, env, times)


class Substrate:
    """Our library with every class on, as in a world; the decoder runs after the command."""

    name = "substrate"

    def run(self, command: Sequence[str], cwd: Path, env: Mapping[str, str], times: int) -> Turn:
        """See Recorder."""
        room = Path(tempfile.mkdtemp(prefix="sbslow", dir="/dev/shm"))
        try:
            segments = room / "seg"
            prepare_directory(segments)
            room.chmod(0o755)
            (room / "classes").symlink_to("7f")
            library = shutil.copy2(native_path("libsubstrate_preload.so"), room)
            loaded = {**env, "LD_PRELOAD": str(library), SEGMENT_VARIABLE: str(segments)}
            return self._decode(segments, _run(command, cwd, loaded, times))
        finally:
            shutil.rmtree(room, ignore_errors=True)

    @staticmethod
    def _decode(segments: Path, turn: Turn) -> Turn:
        fd = os.open(segments, os.O_RDONLY | os.O_DIRECTORY)
        began = time.perf_counter()
        try:
            summary = asyncio.run(
                decode_segments(
                    segments_fd=fd,
                    ids=_IDS,
                    root_pid=None,
                    sink=lambda _lines: None,
                    limits=_LIMITS,
                )
            )
        finally:
            os.close(fd)
        if summary.failure:
            raise RuntimeError(f"decoding failed: {summary.failure}")
        return dataclasses.replace(
            turn,
            decode_s=time.perf_counter() - began,
            events=summary.events_total,
            programs=summary.processes_covered,
            lost=summary.lost,
        )


class Prefix:
    """A recorder that is a command in front of the command."""

    def __init__(self, name: str, *words: str) -> None:
        self.name = name
        self._words = words

    def run(self, command: Sequence[str], cwd: Path, env: Mapping[str, str], times: int) -> Turn:
        """See Recorder."""
        if shutil.which(self._words[0]) is None:
            raise Unavailable(f"{self._words[0]} is not installed")
        return _run([*self._words, *command], cwd, env, times)


class Reprozip:
    """``reprozip trace``, what it does with its trace afterwards included: it is one command."""

    name = "reprozip trace"

    def run(self, command: Sequence[str], cwd: Path, env: Mapping[str, str], times: int) -> Turn:
        """See Recorder."""
        program = BUILT / "reprozip" / "bin" / "reprozip"
        if not program.exists():
            raise Unavailable("reprozip is not set up; scripts/bench does it, from PyPI")
        room = Path(tempfile.mkdtemp(prefix="sbslow", dir="/var/tmp"))
        try:
            options = ["--dont-identify-packages", "--overwrite", "-d", str(room / "trace")]
            traced = [str(program), "trace", *options, *command]
            # It asks whether it may send statistics, unless this is set.
            quiet = {**env, "REPROZIP_USAGE_STATS": "off"}
            return _run(traced, cwd, quiet, times)
        finally:
            shutil.rmtree(room, ignore_errors=True)


class Bpftrace:
    """bpftrace, of the whole machine, started beforehand."""

    name = "bpftrace"

    def run(self, command: Sequence[str], cwd: Path, env: Mapping[str, str], times: int) -> Turn:
        """See Recorder."""
        with self._tracing():
            return _run(command, cwd, env, times)

    @contextmanager
    def _tracing(self) -> Iterator[None]:
        program = shutil.which("bpftrace")
        if program is None:
            raise Unavailable("bpftrace is not installed (Debian: bpftrace)")
        with tempfile.NamedTemporaryFile(dir="/dev/shm", prefix="sbslow") as lines:
            # A mount namespace of its own, where tracefs can be mounted if it is not.
            command = ["unshare", "--mount", "sh", "-c", _WITH_TRACEFS, program]
            with subprocess.Popen(
                [*command, "-B", "line", "-e", _PROGRAM], stdin=subprocess.DEVNULL,
                stdout=lines, stderr=subprocess.PIPE,
            ) as tracer:  # fmt: skip
                try:
                    self._wait(tracer, Path(lines.name))
                    yield
                finally:
                    tracer.send_signal(signal.SIGINT)
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        tracer.communicate(timeout=30)
                    tracer.kill()

    @staticmethod
    def _wait(tracer: subprocess.Popen[bytes], lines: Path) -> None:
        """Until it has seen a look of ours, or said why it cannot."""
        deadline = time.monotonic() + 60
        while b"/absent/and/looked/for" not in lines.read_bytes():
            if tracer.poll() is not None or time.monotonic() > deadline:
                tracer.kill()
                said = tracer.communicate()[1].decode().strip().splitlines()
                raise Unavailable(f"bpftrace: {said[-1] if said else 'it did not attach'}")
            Path("/absent/and/looked/for").exists()
            time.sleep(0.05)


def recorders() -> tuple[Recorder, ...]:
    """All columns: first nothing, then ours, then the peers."""
    return (
        Bare(),
        Substrate(),
        Prefix("strace -f", "strace", "-f", "-o", os.devnull),
        Prefix("strace bpf", "strace", "-f", "--seccomp-bpf", "-e", _FILTER, "-o", os.devnull),
        Reprozip(),
        Bpftrace(),
    )
