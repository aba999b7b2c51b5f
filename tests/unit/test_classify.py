from __future__ import annotations

from dataclasses import replace

import pytest

from substrate_services.replay.classify import RunVerdict, Verdict, classify, classify_run
from substrate_services.replay.compare import Comparison
from substrate_services.replay.divergence import Divergence

EQUAL = Comparison((), (), ("exit", "stdout"), (), {}, ())
OTHER = Divergence("stdout", "line_differs", "stdout, line 1", b"a", b"b")


def test_one_run_is_identical_diverged_or_not_run() -> None:
    assert classify_run(EQUAL) == "identical"
    assert classify_run(replace(EQUAL, divergences=(OTHER,))) == "diverged"
    assert classify_run(None) == "not_run"


def test_observations_do_not_decide() -> None:
    seen = Divergence("processes", "process_extra", "x", None, b"x")
    assert classify_run(replace(EQUAL, observations=(seen,))) == "identical"


def test_nothing_compared_is_never_identical() -> None:
    assert classify_run(replace(EQUAL, compared=())) == "not_run"
    assert classify_run(replace(EQUAL, compared=("processes", "endpoints"))) == "not_run"


@pytest.mark.parametrize(
    ("runs", "verdict"),
    [
        (["identical"], "identical"),
        (["identical", "identical"], "identical"),
        (["identical", "diverged", "not_run"], "diverged"),
        (["identical", "not_run"], "not_run"),
        ([], "not_run"),
    ],
)
def test_no_run_is_dropped_from_the_total(runs: list[RunVerdict], verdict: Verdict) -> None:
    assert classify(runs) == verdict
