"""Programs that want all there is: the world beside theirs works on, and they are told the limit.

How much slower the neighbour is while they run is measured by ``make bench-hostile``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks.hostile import LOADS, Load
from substrate_sdk.client.sync import Substrate, World
from substrate_sdk.types import Limits
from tests.users import User

pytestmark = [pytest.mark.root, pytest.mark.slow]

MIB = 1 << 20
#: The flood of issue 4 is 10 GB; here it is as long as a suite can wait for.
FLOOD_BYTES = int(os.environ.get("SUBSTRATE_FLOOD_BYTES", str(600 * 10**6)))


@dataclass(frozen=True)
class Pair:
    """A client and a world beside the hostile one."""

    sub: Substrate
    neighbour: World


@pytest.fixture
def pair(user: User, git_checkout: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pair]:
    """Nobody's load yet."""
    monkeypatch.chdir(git_checkout)
    with user.client() as sub:
        rows = {row.feature: row for row in sub.capabilities()}
        for feature in ("limits.memory", "limits.cpu", "limits.disk"):
            if rows[feature].state != "works":
                pytest.skip(f"{feature}: {rows[feature].mode}")
        with sub.world() as neighbour:
            yield Pair(sub, neighbour)
            assert [world.world_id for world in sub.worlds()] == [neighbour.world_id]


@pytest.mark.parametrize("load", LOADS, ids=lambda load: load.name)
def test_the_neighbour_works_on_and_the_limit_is_told(pair: Pair, load: Load) -> None:
    with pair.sub.world(limits=load.limits) as hostile:
        attack = hostile.exec(list(load.argv), timeout_s=load.seconds)
        for _ in range(3):
            assert pair.neighbour.run("echo here").stdout == "here\n"
        result = attack.wait(keep_output=False)
        told = {entry.rule for entry in result.blocked if entry.layer == "limits"}
        assert result.termination_reason in load.reasons, result.blocked
        assert load.rules <= told
        # The world itself is there: what was too much has ended, and it can be used.
        assert hostile.run(load.after).exit_code == 0
    assert pair.neighbour.run("echo here").stdout == "here\n"


def test_a_flood_of_output_is_cut_and_held_in_constant_memory(pair: Pair, user: User) -> None:
    kept = 1 * MIB
    before = resident(user.host_pid())
    with pair.sub.world(limits=Limits(output_bytes=kept)) as hostile:
        flood = hostile.exec(["sh", "-c", f"yes | head -c {FLOOD_BYTES}"], timeout_s=3_000)
        assert pair.neighbour.run("echo here").stdout == "here\n"
        result = flood.wait()
        assert (result.termination_reason, result.exit_code) == ("EXITED", 0)
        assert result.truncated
        assert len(result.stdout_bytes) == kept
        assert "output_bytes" in {entry.rule for entry in result.blocked}
    assert resident(user.host_pid()) - before < 64 * MIB


def resident(pid: int) -> int:
    """Bytes of memory that a process has now."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"process {pid} is gone")
