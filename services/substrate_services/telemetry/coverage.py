"""How completely telemetry saw a step, and why not completely.

``full`` says that every program that ran said hello and lost nothing. Which programs ran is the
kernel's word where its ledger was read; where there is none, ``full`` speaks only of processes that
a covered program started through libc. What a program records of itself is its own word in any
case: ``full`` is a statement about programs that do not attack the recorder (DESIGN §1).
"""

from __future__ import annotations

import os
import platform
import stat
import struct
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from substrate_services.journal import bytesjson
from substrate_services.journal.schema import Coverage, CoverageState, Process
from substrate_services.telemetry.decode import DecodeSummary

__all__ = ["ProgramOpener", "RootProcess", "coverage_of", "why_uncovered"]

#: Opens a path as the step's processes saw it, for reading; raises OSError. It must not follow
#: links out of the world: what it is given came from inside.
ProgramOpener = Callable[[bytes], int]

_REASONS_LISTED = 8
_INTERPRETERS = 4  # how many #! lines the kernel follows
_MACHINES = {"x86_64": 62, "aarch64": 183}  # e_machine


@dataclass(frozen=True, slots=True)
class RootProcess:
    """The step's first process, as the world's init knows it."""

    pid: int
    argv: tuple[bytes, ...]
    exe: bytes  # the program's absolute path, empty when not known


def coverage_of(
    summary: DecodeSummary,
    *,
    root: RootProcess | None = None,
    open_program: ProgramOpener | None = None,
) -> Coverage:
    """Judge a step's coverage.

    Args:
        summary: what the decoder found.
        root: the step's first process; when given and it never said hello, that is told.
        open_program: to read why a program was not covered from its file; without it the reasons
            stay general.
    """
    if summary.failure:
        return Coverage(state="partial", reasons=(f"telemetry unreadable: {summary.failure}",))
    reasons: list[str] = []
    root_missing = root is not None and not summary.root_seen
    if root is not None and root_missing:
        why = why_uncovered(root.exe, open_program) or "it never said hello"
        reasons.append(f"{_shown(root.argv, root.exe)} (pid {root.pid}): {why}")
    reasons += _short_of_full(summary.processes, root, open_program)
    reasons += _losses(summary)
    if summary.processes_covered == 0 and not reasons:
        reasons.append("no process said hello")
    state: CoverageState = "partial" if reasons else "full"
    if summary.processes_covered == 0:
        state = "none"
    return Coverage(
        state=state,
        reasons=tuple(reasons),
        processes=summary.processes_total + (1 if root_missing else 0),
        covered=summary.processes_covered,
        events=summary.events_total,
        lost=summary.lost,
    )


def _short_of_full(
    processes: tuple[Process, ...], root: RootProcess | None, open_program: ProgramOpener | None
) -> list[str]:
    seen: Counter[str] = Counter()
    for process in processes:
        if process.coverage == "full":
            continue
        why = process.coverage_reason
        if process.coverage == "none":
            why = why_uncovered(_program(process, root), open_program) or why
        seen[f"{_shown(process.argv, process.exe)}: {why}"] += 1
    reasons = [
        f"{text} ({count} times)" if count > 1 else text
        for text, count in seen.most_common(_REASONS_LISTED)
    ]
    if len(seen) > _REASONS_LISTED:
        reasons.append(f"{len(seen) - _REASONS_LISTED} further programs were not seen in full")
    return reasons


def _program(process: Process, root: RootProcess | None) -> bytes:
    """The path of a process's program; the ledger has the root's as it was passed, relative too."""
    if root is None or process.pid != root.pid:
        return process.exe
    same = os.path.basename(process.exe) == os.path.basename(root.exe)
    return root.exe if same else process.exe


def _losses(summary: DecodeSummary) -> list[str]:
    ledger = summary.ledger
    forged = (
        f"segments ({ledger.forged_events} records) speak of others than who made them: left out"
    )
    losses = (
        (summary.lost, "events lost: no room for segments, or removed with theirs"),
        (summary.torn, "records were cut off by the end of their process"),
        (summary.output_beyond, "bytes of event lines were too many to keep"),
        (summary.corrupt_segments, "segments hold records that make no sense"),
        (summary.foreign_files, "files in the segment directory are not what they say"),
        (summary.unreadable_files, "segments could not be read"),
        (summary.links_dropped, "started processes were not followed up: too many"),
        (ledger.lost, "records of the kernel's ledger were lost"),
        (ledger.nameless, "processes are in the kernel's ledger without a pid"),
        (
            ledger.unknown_processes,
            "processes that segments speak of are not known to the kernel: left out",
        ),
        (ledger.forged_segments, forged),
        (ledger.late_segments, "segments came after the kernel's ledger was read"),
    )
    reasons = [f"{count} {text}" for count, text in losses if count]
    if ledger.given and not ledger.used:
        reasons.append(f"the kernel's ledger could not be used: {ledger.why}")
    return reasons


def _shown(argv: tuple[bytes, ...], exe: bytes) -> str:
    name = argv[0] if argv else exe
    return bytesjson.display(name)[:120] or "a program"


def why_uncovered(path: bytes, open_program: ProgramOpener | None) -> str:
    """Why the preload library was not loaded into a program, read from its file.

    Args:
        path: absolute, in the world.
        open_program: opens it.

    Returns:
        "static program", "musl program", …; empty when the file gives no reason.
    """
    if open_program is None or not path.startswith(b"/"):
        return ""
    for _ in range(_INTERPRETERS):
        try:
            fd = open_program(path)
        except OSError:
            return ""
        try:
            mode = os.fstat(fd).st_mode
            head = os.pread(fd, 4096, 0) if stat.S_ISREG(mode) else b""
            if head.startswith(b"#!"):
                words = head[2:].split(b"\n", 1)[0].split()
                if not words or not words[0].startswith(b"/"):
                    return ""
                path = words[0]
                continue
            return _elf_reason(fd, head, mode)
        except OSError:
            return ""
        finally:
            os.close(fd)
    return ""


def _elf_reason(fd: int, head: bytes, mode: int) -> str:
    if len(head) < 64 or not head.startswith(b"\x7fELF"):
        return ""
    if head[4] == 1:
        return "32-bit program"
    machine = struct.unpack_from("<H", head, 18)[0]
    if machine != _MACHINES.get(platform.machine(), machine):
        return "program of another architecture"
    interpreter = _interpreter(fd, head)
    if interpreter is None:
        return "static program"
    if b"ld-musl" in interpreter:
        return "musl program"
    if mode & (stat.S_ISUID | stat.S_ISGID):
        return "set-id program"
    return ""


def _interpreter(fd: int, head: bytes) -> bytes | None:
    """The path in a 64-bit ELF file's PT_INTERP; None when it has none (Elf64_Ehdr, Elf64_Phdr)."""
    offset = struct.unpack_from("<Q", head, 32)[0]
    entry_bytes, entries = struct.unpack_from("<HH", head, 54)
    if entry_bytes < 56 or offset >= 1 << 40:
        return None
    table = os.pread(fd, entry_bytes * min(entries, 128), offset)
    for at in range(0, len(table) - 55, entry_bytes):
        kind, _flags, where = struct.unpack_from("<IIQ", table, at)
        size = struct.unpack_from("<Q", table, at + 32)[0]
        if kind == 3 and where < 1 << 40:
            return os.pread(fd, min(size, 4096), where)
    return None
