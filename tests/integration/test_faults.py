"""Host processes, launchers and inits killed at random moments; `make bench-faults` does more."""

from __future__ import annotations

from pathlib import Path

from tests.faults import TARGETS, Faults
from tests.users import User


def test_what_was_acknowledged_is_recorded_whoever_is_killed(
    lone_user: User, git_checkout: Path
) -> None:
    faults = Faults(lone_user, git_checkout, seed=11)
    for number in range(15):
        faults.point(TARGETS[number % len(TARGETS)])
    faults.finish()
    assert faults.tally.points.total() == 15
    assert faults.tally.acknowledged > 15
