"""Verdicts. One run says whether the replay did the same; why not is the run matrix's to say."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, TypeAlias

from substrate_services.replay.compare import Comparison
from substrate_services.replay.divergence import DECISIVE

RunVerdict: TypeAlias = Literal["identical", "diverged", "not_run"]
# The names that reports may carry (DESIGN §10); the four causes need a matrix of runs.
Verdict: TypeAlias = Literal[
    "identical",
    "diverged",
    "flake",
    "environment_drift",
    "regression",
    "environment_dependent",
    "not_run",
]


def classify_run(comparison: Comparison | None) -> RunVerdict:
    """The verdict of one run.

    ``identical`` says that everything in ``comparison.compared`` was equal, and no more.
    ``not_run`` also stands for a run about which nothing decisive could be compared: no answer
    is not a good answer.

    Args:
        comparison: None when there was no run to compare with.
    """
    if comparison is None:
        return "not_run"
    if comparison.divergences:
        return "diverged"
    if not DECISIVE.intersection(comparison.compared):
        return "not_run"
    return "identical"


def classify(runs: Iterable[RunVerdict]) -> Verdict:
    """The verdict over all runs of a replay, without naming a cause.

    One run that diverged makes the replay diverge; otherwise one that was not run leaves it
    without a verdict: failed runs are never dropped from the total. A run matrix, with recorded
    and new code and varied environments, will refine ``diverged`` here (DESIGN §9.7).
    """
    verdicts = set(runs)
    if "diverged" in verdicts:
        return "diverged"
    if "not_run" in verdicts or not verdicts:
        return "not_run"
    return "identical"
