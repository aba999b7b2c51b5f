"""A burst of events in a world: survived, with the losses in the span."""

from __future__ import annotations

from pathlib import Path

import pytest

from substrate_sdk.client.sync import World
from tests.native.recording import ROOT, compile_c
from tests.users import User


@pytest.mark.slow
def test_a_burst_in_a_world_is_survived_and_its_losses_are_in_the_span(
    user: User, git_checkout: Path
) -> None:
    """More events than a world's segments have room for (256 MiB)."""
    events = 4_000_000
    source = ROOT / "native" / "tests" / "burst.c"
    compile_c(source, git_checkout / "burst", "-lpthread")
    with user.client() as sub, sub.world(project=git_checkout, cwd=git_checkout) as world:
        result = world.run(["./burst", str(events // 4), "4"])
        assert (result.exit_code, result.stdout) == (6, f"{events}\n")
        coverage = result.coverage
        assert coverage.state == "partial"
        assert 0 < coverage.lost < events
        assert coverage.events + coverage.lost >= events
        _goes_on(world)


def _goes_on(world: World) -> None:
    """The step after it has room again."""
    result = world.run(["true"])
    assert (result.exit_code, result.coverage.state, result.coverage.lost) == (0, "full", 0)
