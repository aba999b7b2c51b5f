"""Steps that overlap, and files with several names: what a world says of them stays true."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from substrate_sdk.client.sync import World
from tests.users import User, read_some

SHARED = "other commands ran in the world at the same time: changes may be theirs"


@pytest.fixture
def world(user: User, git_checkout: Path) -> Iterator[World]:
    with (
        user.client() as sub,
        sub.world(project=git_checkout, cwd=git_checkout) as made,
    ):
        yield made


def test_steps_that_overlap_say_that_changes_may_be_the_others(user: User, world: World) -> None:
    slow = world.exec("echo begun; read go; echo a > a.txt")
    assert read_some(slow).strip() == b"begun"
    quick = world.run("echo b > b.txt")
    slow.stdin.write(b"go\n")
    slow.stdin.close()
    slower = slow.wait()
    for result in (quick, slower):
        assert result.coverage.state == "partial"
        assert SHARED in result.coverage.reasons
    alone = world.run("echo c > c.txt")
    assert (alone.coverage.state, alone.coverage.reasons) == ("full", ())

    _code, report = user.replay(quick.span_id, cwd=Path("/"))
    assert "changes" not in report["compared"]
    reasons = [item["reason"] for item in report["not_compared"] if item["dimension"] == "changes"]
    assert reasons == [
        "other commands ran in the world during the recording: changes may be theirs"
    ]


def test_a_step_beside_what_an_earlier_one_left_running_says_so(world: World) -> None:
    left = world.run("(until [ -e stop ]; do sleep 0.05; done; echo late > late) >&- 2>&- &")
    assert left.coverage.state == "partial"
    beside = world.run("echo x > x; touch stop; until [ -e late ]; do sleep 0.05; done")
    assert SHARED in beside.coverage.reasons
    assert "late" in {Path(str(change.path)).name for change in beside.changes}
    world.run("sleep 0.2")  # the background process may still be on its way out
    assert world.run("true").coverage.state == "full"


def test_a_later_step_is_replayed_with_hard_links_as_they_were(user: User, world: World) -> None:
    world.run("mkdir d; echo one > data; ln data d/twin; ln README.md readme-twin")
    later = world.run("echo two >> d/twin; cat data; stat -c %h data readme-twin")
    assert later.stdout == "one\ntwo\n2\n2\n"
    _code, report = user.replay(later.span_id, cwd=Path("/"))
    assert report["verdict"] == "identical", report
