"""Counting what was captured against the truth."""

from __future__ import annotations

import os
import posixpath
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from benchmarks.truth.libc import ENTRY_POINTS, libc_itself, may_be_search
from benchmarks.truth.lineage import Lineage, Program
from benchmarks.truth.looks import Looks
from benchmarks.truth.operations import MEASURED, Image, Occurrence, OpClass, Operation
from benchmarks.truth.recorded import Recorded
from benchmarks.truth.traced import TracedCall
from substrate_services.telemetry.coverage import why_uncovered

#: Strace notes the time at its stop, the library around the whole call: the stop lies within, but
#: for what two readings of the clock may differ.
_SLACK_S = 0.0003
#: A connection that is being made was asked for as it should be.
_UNDER_WAY = frozenset(("", "EINPROGRESS"))


@dataclass(slots=True)
class Count:
    """Of one class: how much there was, and how much of it was captured."""

    truth: int = 0
    captured: int = 0

    @property
    def ratio(self) -> float:
        """1 when there was nothing."""
        return self.captured / self.truth if self.truth else 1.0

    def add(self, other: Count) -> None:
        """Sum up."""
        self.truth += other.truth
        self.captured += other.captured


@dataclass(slots=True)
class Comparison:
    """What came of one workload.

    Attributes:
        classes: of operations that succeeded.
        failed: of operations of all measured classes that failed.
        missing: what nothing was recorded of.
        surplus: what was recorded, and strace did not see.
        libc: what libc does by itself, by rule.
        attributed: what is part of a recorded entry point, by entry point.
        own: calls of the library, which are no part of the workload.
        unreturned: calls that did not come back.
        uncovered: (program, reason) → processes and operations.
        looks: what was looked at by stat, access, readlink and the like.
    """

    classes: dict[OpClass, Count] = field(
        default_factory=lambda: {op_class: Count() for op_class in MEASURED}
    )
    failed: Count = field(default_factory=Count)
    missing: list[TracedCall] = field(default_factory=list)
    surplus: list[tuple[Image, Occurrence]] = field(default_factory=list)
    libc: Counter[str] = field(default_factory=Counter)
    attributed: Counter[str] = field(default_factory=Counter)
    own: int = 0
    unreturned: int = 0
    uncovered: dict[tuple[str, str], Counter[str]] = field(
        default_factory=lambda: defaultdict(Counter)
    )
    looks: Looks = field(default_factory=Looks)
    processes: int = 0
    not_understood: int = 0


def compare(lineage: Lineage, calls: Iterable[TracedCall], recorded: Recorded) -> Comparison:
    """Match a run's two tales."""
    result = Comparison()
    reasons = _Reasons(lineage, result)
    by_image: dict[Image, list[TracedCall]] = defaultdict(list)
    unreturned: dict[Image, list[TracedCall]] = defaultdict(list)
    looked_at: dict[Image, list[TracedCall]] = defaultdict(list)
    loaded: dict[int, set[bytes]] = defaultdict(set)
    searched: dict[int, set[bytes]] = defaultdict(set)
    for call in calls:
        if call.own:
            result.own += 1
            continue
        if call.mapped:
            loaded[call.image.pid].add(posixpath.basename(call.at.operation.path))
        if may_be_search(call):
            searched[call.image.pid].add(posixpath.dirname(call.at.operation.path))
        if reasons.of(call):
            continue
        if call.at.operation.op_class is OpClass.STAT:
            if call.at.operation.kind == "stat" and not call.before_library:
                looked_at[call.image].append(call)
            continue
        if not call.returned:
            unreturned[call.image].append(call)
        else:
            by_image[call.image].append(call)
    for image in {**by_image, **recorded.operations}:
        matching = _Matching(by_image.get(image, []), recorded, image, result)
        matching.run(frozenset(loaded[image.pid]))
        matching.end(unreturned[image])
    result.unreturned = sum(map(len, unreturned.values()))
    for image, looks in looked_at.items():
        result.looks.compare(image, looks, recorded.looked_at, searched[image.pid])
    result.processes = len(lineage.processes)
    return result


class _Reasons:
    """Why a program is not covered, read from its file; empty for one that ought to be."""

    def __init__(self, lineage: Lineage, result: Comparison) -> None:
        self._lineage = lineage
        self._result = result
        self._known: dict[bytes, str] = {}
        self._judged: dict[int, str] = {}
        for process in lineage.processes.values():
            for program in process.programs:
                reason = self._judge(program, process.parent)
                self._judged[id(program)] = reason
                if reason:
                    self._row(program, reason)["processes"] += 1

    def of(self, call: TracedCall) -> str:
        """The reason; a call of an uncovered program is counted with it."""
        reason = self._judged[id(call.program)]
        if reason and call.at.operation.op_class is not OpClass.STAT:
            self._row(call.program, reason)["operations"] += 1
        return reason

    def _row(self, program: Program, reason: str) -> Counter[str]:
        name = posixpath.basename(program.path).decode("utf-8", "replace")
        return self._result.uncovered[name, reason]

    def _judge(self, program: Program, parent: Program | None) -> str:
        if program.covered:
            return ""
        if program.execs == 0:
            return self._judged.get(id(parent), "") if parent is not None else ""
        if program.path not in self._known:
            self._known[program.path] = why_uncovered(
                program.path, lambda path: os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            )
        return self._known[program.path]


class _Matching:
    """Of one image."""

    def __init__(
        self, calls: list[TracedCall], recorded: Recorded, image: Image, result: Comparison
    ) -> None:
        self._calls = calls
        self._recorded = recorded
        self._image = image
        self._result = result
        self._free: dict[Operation, list[Occurrence]] = defaultdict(list)
        for occurrence in recorded.operations.get(image, []):
            self._free[occurrence.operation].append(occurrence)

    def run(self, loaded: frozenset[bytes]) -> None:
        """Match, and put what remains where it belongs."""
        # The loader's first, lest they take the record of a program that opens a library itself.
        rest = self._keep(self._calls, lambda call: self._loader(call, loaded))
        rest = self._keep(rest, self._same)
        rest = self._keep(rest, self._searched, reverse=True)
        rest = self._keep(rest, self._path_search)
        rest = self._keep(rest, self._inside)
        for call in rest:
            if not self._libc(call, loaded):
                self._count(call, captured=False)
                self._result.missing.append(call)

    def end(self, unreturned: list[TracedCall]) -> None:
        """What is left over was recorded alone; but a call that never came back may be recorded."""
        for call in unreturned:
            self._take(call.at.operation)
        for occurrences in self._free.values():
            for occurrence in occurrences:
                self._result.surplus.append((self._image, occurrence))

    def _keep(
        self,
        calls: list[TracedCall],
        settle: Callable[[TracedCall], bool],
        *,
        reverse: bool = False,
    ) -> list[TracedCall]:
        """The calls that a rule did not settle, in their order."""
        order = calls[::-1] if reverse else calls
        rest = [call for call in order if not settle(call)]
        return rest[::-1] if reverse else rest

    def _count(self, call: TracedCall, *, captured: bool) -> None:
        operation = call.at.operation
        ok = operation.error in _UNDER_WAY
        count = self._result.classes[operation.op_class] if ok else self._result.failed
        count.truth += 1
        count.captured += captured

    def _take(self, operation: Operation) -> bool:
        occurrences = self._free.get(operation)
        if not occurrences:
            return False
        occurrences.pop()
        return True

    def _loader(self, call: TracedCall, loaded: frozenset[bytes]) -> bool:
        return (call.before_library or call.mapped) and self._libc(call, loaded)

    def _libc(self, call: TracedCall, loaded: frozenset[bytes]) -> bool:
        rule = libc_itself(call, loaded)
        if rule:
            self._result.libc[rule] += 1
        return bool(rule)

    def _same(self, call: TracedCall) -> bool:
        taken = self._take(call.at.operation)
        if taken:
            self._count(call, captured=True)
        return taken

    def _searched(self, call: TracedCall) -> bool:
        """The last try of a search of PATH is the one that the record tells the outcome of."""
        operation = call.at.operation
        if operation.op_class is not OpClass.EXEC:
            return False
        name = posixpath.basename(operation.path)
        taken = self._take(Operation(OpClass.EXEC, "exec", name, b"", operation.error))
        if taken:
            self._count(call, captured=True)
        return taken

    def _path_search(self, call: TracedCall) -> bool:
        """The tries before it."""
        operation = call.at.operation
        if operation.op_class is not OpClass.EXEC or not operation.error:
            return False
        name = posixpath.basename(operation.path)
        for occurrence in self._recorded.operations.get(self._image, []):
            if occurrence.searched and occurrence.operation.path == name:
                self._result.attributed[f"{occurrence.name}: search of PATH"] += 1
                return True
        return False

    def _inside(self, call: TracedCall) -> bool:
        for entry in self._recorded.entries.get(call.at.tid, []):
            within = entry.start_s - _SLACK_S <= call.at.start_s <= entry.end_s + _SLACK_S
            # dlopen is not timed; the name that it was given is the one that the loader opens.
            within |= entry.name == "dlopen" and entry.operation.path == call.at.operation.path
            if within and call.at.operation.kind in ENTRY_POINTS.get(entry.name, ()):
                self._result.attributed[entry.name] += 1
                return True
        return False
