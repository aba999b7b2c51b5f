"""What limits did to a step, said by those that it began under."""

from __future__ import annotations

from unittest.mock import Mock

import pytest

from substrate_services.world.ended import Ended
from substrate_services.world.limited import with_limits
from substrate_services.world.limits import NO_LIMITS, Limits


@pytest.mark.parametrize(
    ("began", "now", "asked_s", "reason"),
    [
        (NO_LIMITS, Limits(runtime_s=1.0), 5.0, "TIMEOUT"),
        (Limits(runtime_s=2.0), NO_LIMITS, None, "LIMIT"),
        (Limits(runtime_s=2.0), NO_LIMITS, 5.0, "LIMIT"),
        (Limits(runtime_s=2.0), Limits(runtime_s=9.0), 1.0, "TIMEOUT"),
    ],
)
def test_limits_updated_meanwhile_do_not_say_why_a_step_ended(
    began: Limits, now: Limits, asked_s: float | None, reason: str
) -> None:
    state = Mock(oom_kills=0, pids_refused=0, truncated=False)
    action = Mock(timeout_s=asked_s, limits=began.to_action())
    ended = with_limits(Ended("TIMEOUT"), state, now, action)
    assert ended.reason == reason
    assert [one.rule for one in ended.blocked] == (["runtime"] if reason == "LIMIT" else [])
