"""Hosts that end at any moment, and records that are damaged while none runs."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from substrate_services.world.removal import remove_tree
from tests.users import User, eventually, finish, kill_and_wait

if TYPE_CHECKING:
    from collections.abc import Callable


def test_a_removal_that_was_cut_short_is_finished(tmp_path: Path) -> None:
    world = tmp_path / "wld_x"
    # As it is left by a removal that ended after it had moved directories to the top.
    for number in range(4):
        (world / f".removed-{number}" / "work" / "work").mkdir(parents=True)
        (world / f".removed-{number}" / "file").write_text("x")
    (world / "layers" / "root" / "work").mkdir(parents=True)
    remove_tree(world)
    assert not world.exists()


def test_hosts_killed_around_short_commands_lose_nothing(
    lone_user: User, git_checkout: Path
) -> None:
    moment = random.Random(7)
    acknowledged: dict[str, str] = {}
    for number in range(12):
        lone_user.up()
        script = f"echo {number}; echo x > made{number}"
        process = lone_user.start("run", "--json", "-n", "--", "sh", "-c", script, cwd=git_checkout)
        time.sleep(moment.uniform(0.1, 0.4))  # the moment is what is tested: any will do
        kill_and_wait(lone_user.host_pid())
        done = finish(process)
        assert done.code == 0, done.err
        assert done.json["stdout"] == f"{number}\n"
        assert len(done.json["changes"]) == 1
        acknowledged[done.json["span_id"]] = script
    lone_user.up()
    spans = [line["span_id"] for line in lone_user.spans()]
    assert sorted(spans) == sorted(acknowledged)
    assert lone_user.run("trace", "verify", cwd=git_checkout).code == 0
    worlds = lone_user.substrate_home / "worlds"
    eventually(lambda: not list(worlds.iterdir()), "no world is left over")


def _empty_objects(world: Path) -> None:
    for path in (world.parent.parent / "objects").glob("*/*"):
        path.unlink()


def _cut_layout(world: Path) -> None:
    (world / "layout.json").write_text("{")


def _no_layout(world: Path) -> None:
    (world / "layout.json").unlink()


def _cut_state(world: Path) -> None:
    (world / "world.json").write_text("")


@pytest.mark.parametrize("damage", [_empty_objects, _cut_layout, _no_layout, _cut_state])
def test_a_host_starts_beside_a_damaged_world_and_keeps_its_files(
    lone_user: User, git_checkout: Path, damage: Callable[[Path], None]
) -> None:
    made = lone_user.run("run", "--keep", "--", "sh", "-c", "echo x > made", cwd=git_checkout)
    assert made.code == 0, made.err
    kill_and_wait(lone_user.host_pid())
    (world,) = (lone_user.substrate_home / "worlds").iterdir()
    damage(world)
    assert lone_user.run_json("true", cwd=git_checkout)["exit_code"] == 0
    assert lone_user.run("world", "list", "--json", cwd=git_checkout).json["worlds"] == []
    (line,) = [line for line in lone_user.lines() if line["event_type"] == "world_lost"]
    assert line["world_id"] == world.name
    assert list(Path(line["detail"]["kept"]).glob("layers/*/upper/**/made"))
    kill_and_wait(lone_user.host_pid())
    assert lone_user.run_json("true", cwd=git_checkout)["exit_code"] == 0


def test_a_world_without_its_file_is_cleared_away(lone_user: User, git_checkout: Path) -> None:
    lone_user.run("run", "--keep", "--", "true", cwd=git_checkout)
    kill_and_wait(lone_user.host_pid())
    (world,) = (lone_user.substrate_home / "worlds").iterdir()
    (world / "world.json").unlink()
    assert lone_user.run_json("true", cwd=git_checkout)["exit_code"] == 0
    assert not world.exists()
