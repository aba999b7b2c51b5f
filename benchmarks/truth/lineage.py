"""From threads' logs to processes: who made whom, how, and which program ran when."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum

from benchmarks.truth.operations import Image
from benchmarks.truth.strace_log import Call, ThreadLog, string_of

_MAKERS = frozenset(("clone", "clone3", "fork", "vfork"))
#: Between a call and the next: strace tells microseconds, and a double of today half of one.
_AFTER_S = 5e-7
_FLAGS = re.compile(r"flags=([A-Z_0-9|x]+)")


class Birth(StrEnum):
    """How a process came to be."""

    ROOT = "root"
    FORK = "fork"
    VFORK = "vfork"
    #: By libc for posix_spawn, popen or system: until its exec the child runs libc's code alone.
    SPAWN = "spawn"


@dataclass(slots=True)
class Program:
    """What a process runs between two execs.

    Attributes:
        path: as it was passed to execve; of a forked child, what its parent runs.
        image: by which both sides are matched.
        covered: the library made a segment in it.
    """

    path: bytes
    from_s: float
    execs: int
    image: Image
    covered: bool = False


@dataclass(slots=True)
class ProcessTruth:
    """A process as strace saw it."""

    pid: int
    birth: Birth
    parent: Program | None
    threads: list[ThreadLog] = field(default_factory=list)
    programs: list[Program] = field(default_factory=list)

    def program_at(self, at_s: float) -> Program:
        """What ran at a moment."""
        for program in reversed(self.programs):
            if program.from_s <= at_s:
                return program
        return self.programs[0]

    def calls(self) -> Iterator[tuple[int, Call, Program]]:
        """Each thread's calls, with the thread's id and the program that made them."""
        for log in self.threads:
            for call in log.calls:
                yield log.tid, call, self.program_at(call.at_s)


class Lineage:
    """All processes of a run."""

    def __init__(self, logs: dict[int, ThreadLog], segments: bytes) -> None:
        """Build it.

        Args:
            logs: by thread id.
            segments: the segment directory, whose files tell which programs have the library.
        """
        self.processes: dict[int, ProcessTruth] = {}
        self._logs = logs
        self._needle = f'"{segments.decode("latin-1")}/'
        made = {call.result for log in logs.values() for call in log.calls if _made(call)}
        for tid in sorted(set(logs) - made):
            self._add(tid, Birth.ROOT, None, first_s=0.0)

    def _add(self, pid: int, birth: Birth, parent: Program | None, *, first_s: float) -> None:
        # A child is followed as soon as its parent's log names it; recursion would go as deep as
        # the process tree.
        waiting = [(pid, birth, parent, first_s)]
        while waiting:
            waiting.extend(self._follow(*waiting.pop()))

    def _follow(
        self, pid: int, birth: Birth, parent: Program | None, first_s: float
    ) -> list[tuple[int, Birth, Program | None, float]]:
        process = ProcessTruth(pid, birth, parent)
        self.processes[pid] = process
        if pid in self._logs:
            process.threads.append(self._logs[pid])
        for log in process.threads:  # grows while it is read: threads make threads
            for call in log.calls:
                if _made(call) and _is_thread(call) and call.result in self._logs:
                    process.threads.append(self._logs[call.result])
        self._find_programs(process, first_s)
        return [
            (call.result, _birth(call), process.program_at(call.at_s), call.at_s)
            for _, call, _ in process.calls()
            if _made(call) and not _is_thread(call) and call.result is not None
        ]

    def _find_programs(self, process: ProcessTruth, first_s: float) -> None:
        path = process.parent.path if process.parent is not None else b""
        process.programs.append(Program(path, first_s, 0, Image(process.pid, 1)))
        for log in process.threads:
            for call in log.calls:
                if call.name in ("execve", "execveat") and call.result == 0:
                    where = call.arguments[0 if call.name == "execve" else 1]
                    process.programs.append(
                        Program(string_of(where) or b"", call.at_s + _AFTER_S, 0, Image(0, 0))
                    )
        process.programs.sort(key=lambda program: program.from_s)
        for log in process.threads:
            for call in log.calls:
                if self._makes_segment(call):
                    process.program_at(call.at_s).covered = True
        covered = 0
        for execs, program in enumerate(process.programs):
            program.execs = execs
            if execs > 0:
                covered += program.covered
                program.image = Image(process.pid, covered if program.covered else -execs)

    def _makes_segment(self, call: Call) -> bool:
        return (
            call.name == "openat"
            and call.result is not None
            and call.result >= 0
            and call.arguments[1].startswith(self._needle)
        )


def _made(call: Call) -> bool:
    return call.name in _MAKERS and call.result is not None and call.result > 0


def _flags(call: Call) -> set[str]:
    match = _FLAGS.search(",".join(call.arguments))
    return set(match[1].split("|")) if match is not None else set()


def _is_thread(call: Call) -> bool:
    return "CLONE_THREAD" in _flags(call)


def _birth(call: Call) -> Birth:
    if call.name == "vfork":
        return Birth.VFORK
    if {"CLONE_VM", "CLONE_VFORK"} <= _flags(call):
        return Birth.SPAWN
    return Birth.FORK
