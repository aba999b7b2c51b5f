"""Compares a recording with a replay, and says what was compared and what was not.

The order is that of what matters: exit, tree, output, then what telemetry saw. Silence is never
taken for equality: a dimension is in ``compared`` only if it was looked at in full; for each of
the others ``not_compared`` says why, or how far it was looked at.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from substrate_services.journal.schema import TerminationReason
from substrate_services.replay.compare_changes import compare_changes
from substrate_services.replay.compare_traces import (
    compare_endpoints,
    compare_files_read,
    compare_processes,
)
from substrate_services.replay.divergence import (
    ORDER,
    Cause,
    Dimension,
    Divergence,
    NotCompared,
)
from substrate_services.replay.normalise import PairNormaliser, SetAside
from substrate_services.replay.observed import ObjectReader, Observed, Output, Unavailable
from substrate_services.replay.outputs import OutputDifference, compare_streams

MAX_DIVERGENCES = 1000

# Ended by something that is no part of the action: the end says nothing about the program.
_FROM_OUTSIDE: frozenset[TerminationReason] = frozenset(
    {"KILLED_BY_USER", "WORLD_REMOVED", "AGENT_LOST"}
)

_TRACED: tuple[Dimension, ...] = ("processes", "files_read", "endpoints")


@dataclass(frozen=True, slots=True)
class CompareOptions:
    """What to compare beyond the default."""

    mtime: bool = False  # modification times of changed paths


@dataclass(frozen=True, slots=True)
class Comparison:
    """What comparing two runs has shown.

    ``divergences`` decide the verdict and are sorted by dimension, so the first matters most.
    ``observations`` are differences in what telemetry saw; their dimensions are then not in
    ``compared``, so that equality on ``compared`` is what a missing divergence means.
    """

    divergences: tuple[Divergence, ...]
    observations: tuple[Divergence, ...]
    compared: tuple[Dimension, ...]
    not_compared: tuple[NotCompared, ...]
    normalisation: Mapping[str, int]  # rule → values that differed and were set aside
    set_aside: tuple[SetAside, ...]  # the first such pair of each rule
    omitted: int = 0  # divergences beyond MAX_DIVERGENCES

    @property
    def first(self) -> Divergence | None:
        """The divergence that matters most."""
        return self.divergences[0] if self.divergences else None


def compare(
    recorded: Observed,
    replayed: Observed,
    *,
    objects: ObjectReader | None = None,
    options: CompareOptions | None = None,
) -> Comparison:
    """Compare two runs of one action.

    Args:
        recorded: the run in the journal.
        replayed: the new run.
        objects: where changed files' contents are, to show the first line that differs.
        options: what to compare beyond the default.

    Raises:
        Whatever reading an output or an object raises; nothing is concluded then.
    """
    return _Comparer(recorded, replayed, objects, options or CompareOptions()).run()


def describe_exit(run: Observed) -> str:
    """How a run ended, in words."""
    reason = run.termination_reason
    if reason == "EXITED":
        return f"exited {run.exit_code}"
    if reason == "SIGNALED":
        return f"killed by {run.signal}"
    words = {
        "TIMEOUT": "timed out",
        "OOM": "ran out of memory",
        "LIMIT": "stopped at a limit",
        "KILLED_BY_USER": "killed by its user",
        "WORLD_REMOVED": "its world was removed",
        "DENIED": "denied by policy",
        "AGENT_LOST": "lost with its launcher",
    }
    return words.get(reason, reason)


@dataclass(slots=True)
class _Comparer:
    """One comparison, as it fills up."""

    recorded: Observed
    replayed: Observed
    objects: ObjectReader | None
    options: CompareOptions
    normaliser: PairNormaliser = field(init=False)
    divergences: list[Divergence] = field(default_factory=list)
    observations: list[Divergence] = field(default_factory=list)
    compared: list[Dimension] = field(default_factory=list)
    not_compared: list[NotCompared] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.normaliser = PairNormaliser(self.recorded.facts, self.replayed.facts)

    def run(self) -> Comparison:
        self._exit()
        self._changes()
        self._streams()
        self._traces()
        self._skip("duration", "never compared: it differs from run to run")
        rank = {dimension: index for index, dimension in enumerate(ORDER)}
        skipped = {item.dimension for item in self.not_compared}
        divergences = sorted(self.divergences, key=lambda found: rank[found.dimension])
        return Comparison(
            divergences=tuple(divergences[:MAX_DIVERGENCES]),
            observations=tuple(self.observations[:MAX_DIVERGENCES]),
            compared=tuple(
                dimension
                for dimension in ORDER
                if dimension in self.compared and dimension not in skipped
            ),
            not_compared=tuple(sorted(self.not_compared, key=lambda item: rank[item.dimension])),
            normalisation=self.normaliser.hits,
            set_aside=tuple(self.normaliser.samples),
            omitted=max(0, len(divergences) - MAX_DIVERGENCES),
        )

    def _skip(self, dimension: Dimension, reason: str) -> None:
        self.not_compared.append(NotCompared(dimension, reason))

    def _sides(self) -> tuple[tuple[str, Observed], tuple[str, Observed]]:
        return ("recording", self.recorded), ("replay", self.replayed)

    def _interrupted(self) -> str | None:
        """Why the end of a run says nothing about the program; None when it does."""
        for side, run in self._sides():
            if run.termination_reason in _FROM_OUTSIDE:
                return f"the {side} was ended from outside: {describe_exit(run)}"
        return None

    def _exit(self) -> None:
        interrupted = self._interrupted()
        if interrupted is not None:
            self._skip("exit", interrupted)
            return
        self.compared.append("exit")
        old, new = self.recorded, self.replayed
        cause: Cause
        if old.termination_reason != new.termination_reason:
            cause = "termination"
        elif old.signal != new.signal:
            cause = "signal"
        elif old.exit_code != new.exit_code:
            cause = "exit_code"
        else:
            return
        ends = (describe_exit(old).encode(), describe_exit(new).encode())
        self.divergences.append(Divergence("exit", cause, "exit", *ends))

    def _shared(self) -> str | None:
        for side, run in self._sides():
            if run.changes_shared:
                return f"other commands ran in the world during the {side}: changes may be theirs"
        return None

    def _changes(self) -> None:
        mtime = self.options.mtime
        if not mtime:
            self._skip("mtime", "modification times are compared only when asked for")
        interrupted = self._interrupted() or self._shared()
        if interrupted is not None:
            self._skip("changes", interrupted)
            if mtime:
                self._skip("mtime", interrupted)
            return
        for side, run in self._sides():
            if run.changes_omitted:
                self._skip("changes", f"{run.changes_omitted} changes of the {side} are not listed")
        result = compare_changes(
            self.recorded.changes,
            self.replayed.changes,
            self.normaliser,
            self.objects,
            omitted=bool(self.recorded.changes_omitted or self.replayed.changes_omitted),
            mtime=mtime,
        )
        self.divergences.extend(result.divergences)
        self.not_compared.extend(result.not_compared)
        self.compared.append("changes")
        if mtime:
            self.compared.append("mtime")

    def _streams(self) -> None:
        old, new = self.recorded, self.replayed
        if old.pty != new.pty:
            reason = "one run had a terminal and the other did not"
            self._skip("stdout", reason)
            self._skip("stderr", reason)
            return
        self._stream("stdout", old.stdout, new.stdout)
        if old.pty:
            self._skip("stderr", "a terminal has one stream; it was compared as stdout")
        else:
            self._stream("stderr", old.stderr, new.stderr)

    def _stream(self, dimension: Dimension, expected: Output, actual: Output) -> None:
        if isinstance(expected, Unavailable):
            self._skip(dimension, f"recording: {expected.reason}")
            return
        if isinstance(actual, Unavailable):
            self._skip(dimension, f"replay: {actual.reason}")
            return
        expected_cut = expected.cut or self._stopped(self.recorded)
        actual_cut = actual.cut or self._stopped(self.replayed)
        self.compared.append(dimension)
        if expected.digest is not None and expected.digest == actual.digest:
            cut_short = expected_cut or actual_cut
        else:
            with expected.open() as before, actual.open() as after:
                result = compare_streams(
                    before,
                    after,
                    self.normaliser,
                    recorded_cut=expected_cut,
                    replayed_cut=actual_cut,
                )
            cut_short = result.cut_short
            if result.difference is not None:
                self.divergences.append(_output_divergence(dimension, result.difference))
        if cut_short:
            size = min(expected.size, actual.size)
            why = "cut at its limit" if expected.cut or actual.cut else "stopped with its run"
            self._skip(dimension, f"compared up to byte {size}, where the output was {why}")

    def _stopped(self, run: Observed) -> bool:
        """Whether a run's output ends where somebody ended it, and not where the program did."""
        timed_out = run.termination_reason == "TIMEOUT"
        both = self.recorded.termination_reason == self.replayed.termination_reason
        return run.termination_reason in _FROM_OUTSIDE or (timed_out and both)

    def _traces(self) -> None:
        old, new = self.recorded, self.replayed
        for side, run in self._sides():
            if run.coverage.state != "full":
                why = f": {'; '.join(run.coverage.reasons)}" if run.coverage.reasons else ""
                for dimension in _TRACED:
                    self._skip(dimension, f"coverage of the {side} is {run.coverage.state}{why}")
                return
        if old.processes_omitted or new.processes_omitted:
            self._skip("processes", "not all processes are listed")
        else:
            found = compare_processes(old.processes, new.processes, self.normaliser)
            self._observe("processes", found)
        if old.files_read is None or new.files_read is None:
            self._skip("files_read", "look-ups were not read from both runs' events")
        else:
            self._observe(
                "files_read", compare_files_read(old.files_read, new.files_read, self.normaliser)
            )
        if old.endpoints is None or new.endpoints is None:
            self._skip("endpoints", "connections were not read from both runs' events")
        else:
            self._observe("endpoints", compare_endpoints(old.endpoints, new.endpoints))

    def _observe(self, dimension: Dimension, found: list[Divergence]) -> None:
        if not found:
            self.compared.append(dimension)
            return
        self.observations.extend(found)
        self._skip(
            dimension, f"{len(found)} difference(s) observed, which do not decide the verdict"
        )


def _output_divergence(dimension: Dimension, difference: OutputDifference) -> Divergence:
    details = {
        "ends_early": "the replay's output ends before this line",
        "extra_output": "the recording's output ends before this line",
        "reordered": "the same lines in another order from here on",
    }
    return Divergence(
        dimension,
        difference.cause,
        f"{dimension}, line {difference.line}",
        difference.expected,
        difference.actual,
        detail=details.get(difference.cause, ""),
        line=difference.line,
        offset=difference.offset,
    )
