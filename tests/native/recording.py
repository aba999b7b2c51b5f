"""Running programs under the preload library and reading what they wrote."""

from __future__ import annotations

import asyncio
import functools
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from substrate_services.native_paths import native_path
from substrate_services.telemetry.decode import (
    ClockOffsets,
    DecodeLimits,
    DecodeSummary,
    SpanIds,
    decode_segments,
)
from substrate_services.telemetry.segments import SEGMENT_VARIABLE, prepare_directory

ROOT = Path(__file__).resolve().parents[2]
IDS = SpanIds("ses_test", "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331", "wld_test")

Event = dict[str, Any]


def preload_library(*, musl: bool = False) -> Path:
    """The library for programs of this machine."""
    return native_path("libsubstrate_preload-musl.so" if musl else "libsubstrate_preload.so")


@functools.cache
def compiler() -> tuple[str, ...]:
    """A C compiler: the machine's, or the ziglang wheel's."""
    cc = shutil.which("gcc") or shutil.which("cc")
    if cc is not None:
        return (cc,)
    target = f"{platform.machine()}-linux-gnu"
    return (sys.executable, "-m", "ziglang", "cc", "-target", target)


def compile_c(source: str | Path, output: Path, *flags: str) -> Path:
    """Compile a C program, given as text or as a file."""
    if isinstance(source, str):
        path = output.with_suffix(".c")
        path.write_text(source)
    else:
        path = source
    command = [*compiler(), "-O1", "-w", str(path), "-o", str(output), *flags]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return output


@dataclass
class Recording:
    """What a run left: its outcome and, decoded, its events and summary."""

    returncode: int
    stdout: bytes
    stderr: bytes
    summary: DecodeSummary
    events: list[Event] = field(default_factory=list)

    def calls(self, *names: str) -> list[Event]:
        """The events of these entry points."""
        return [event for event in self.events if event.get("syscall") in names]

    def started(self) -> list[Event]:
        """The world_process_start lines."""
        return [event for event in self.events if event["event_type"] == "world_process_start"]

    def exits(self) -> list[Event]:
        """The world_process_exit lines."""
        return [event for event in self.events if event["event_type"] == "world_process_exit"]

    def paths(self, *names: str) -> set[str]:
        """The absolute paths of the events of these entry points."""
        return {event["path"] for event in self.calls(*names) if "path" in event}


def decode(
    directory: Path,
    *,
    root_pid: int | None = None,
    root_after_ns: int = 0,
    watch: Sequence[bytes] = (),
    max_events: int = 256,
    offsets: ClockOffsets | None = None,
    limits: DecodeLimits | None = None,
    ledger: Path | None = None,
    classes: int | None = None,
) -> tuple[DecodeSummary, list[Event]]:
    """Decode a directory of segments; every line must be one JSON object."""
    chunks: list[bytes] = []
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    ledger_fd = os.open(ledger, os.O_RDONLY) if ledger is not None else None
    try:
        summary = asyncio.run(
            decode_segments(
                segments_fd=fd,
                ids=IDS,
                root_pid=root_pid,
                root_after_ns=root_after_ns,
                sink=chunks.append,
                watch=watch,
                max_events=max_events,
                offsets=offsets,
                limits=limits,
                ledger_fd=ledger_fd,
                classes=classes,
            )
        )
    finally:
        os.close(fd)
        if ledger_fd is not None:
            os.close(ledger_fd)
    return summary, [json.loads(line) for line in b"".join(chunks).splitlines()]


class Recorder:
    """Runs commands under the library, each with a fresh segment directory."""

    def __init__(self, directory: Path) -> None:
        self.segments = directory
        prepare_directory(directory)

    def environment(
        self, extra: Mapping[str, str] | None = None, *, library: Path | None = None
    ) -> dict[str, str]:
        """This environment with the library in it."""
        return {
            **os.environ,
            SEGMENT_VARIABLE: str(self.segments),
            "LD_PRELOAD": str(library or preload_library()),
            **(extra or {}),
        }

    def clear(self) -> None:
        """Forget what was recorded."""
        for path in self.segments.iterdir():
            path.unlink()

    def run(
        self,
        command: Sequence[str | bytes | Path],
        *,
        env: Mapping[str, str] | None = None,
        library: Path | None = None,
        timeout_s: float = 60,
        cwd: Path | None = None,
        stdin: bytes = b"",
    ) -> Recording:
        """Run a command to its end and decode what it and its children wrote."""
        self.clear()
        done = subprocess.run(
            command,
            check=False,
            capture_output=True,
            env=self.environment(env, library=library),
            timeout=timeout_s,
            cwd=cwd,
            input=stdin,
        )
        return self.read(done.returncode, done.stdout, done.stderr)

    def read(self, returncode: int = 0, stdout: bytes = b"", stderr: bytes = b"") -> Recording:
        """Decode what lies in the directory now."""
        summary, events = decode(self.segments)
        assert summary.failure == ""
        return Recording(returncode, stdout, stderr, summary, events)


@contextmanager
def small_file_system(size: str) -> Iterator[Path]:
    """A tmpfs of its own, for root."""
    directory = Path(tempfile.mkdtemp(prefix="sbseg"))
    options = f"size={size},mode=1777"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", directory], check=True)
    try:
        yield directory
    finally:
        subprocess.run(["umount", "-l", directory], check=True)
        directory.rmdir()


def names(events: Iterable[Event]) -> set[str]:
    """The entry points that occur in events."""
    return {event["syscall"] for event in events if "syscall" in event}
