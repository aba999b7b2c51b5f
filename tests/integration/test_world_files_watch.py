"""Watching a directory of a world: what happens is told, as it happens and no more than fits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from substrate_sdk.client.sync import World
from substrate_sdk.client.sync_files import FileWatch
from substrate_sdk.errors import SubstrateError, WorldFileNotFound, WorldNotADirectory
from substrate_sdk.types import Change
from tests.users import eventually


def until(watch: FileWatch, found: Callable[[Change], bool]) -> list[Change]:
    """The changes up to one; a time limit of the test's own ends a watch that stays silent."""
    seen: list[Change] = []
    for event in watch:
        assert event.lost == 0
        assert event.change is not None
        seen.append(event.change)
        if found(event.change):
            return seen
    raise AssertionError(f"the watch ended: {seen}")


def short(change: Change) -> tuple[str, str]:
    return change.kind, Path(change.path).name


def test_what_is_made_written_renamed_and_removed_is_told(world: World) -> None:
    with world.files.watch() as watch:
        world.run("echo a > new; chmod 600 new; mv new other; rm other; ln -s x link")
        seen = until(watch, lambda change: short(change) == ("created", "link"))
    kinds = [short(change) for change in seen]
    assert kinds[0] == ("created", "new")
    for expected in [("modified", "new"), ("metadata", "new"), ("renamed", "other")]:
        assert expected in kinds
    assert kinds[-2:] == [("deleted", "other"), ("created", "link")]
    assert all(change.scope == "project" for change in seen)
    (renamed,) = [change for change in seen if change.kind == "renamed"]
    assert renamed.renamed_from is not None
    assert renamed.renamed_from.endswith(b"/new")
    assert seen[-1].after is not None
    assert (seen[-1].after.kind, seen[-1].after.target) == ("symlink", b"x")
    assert seen[-2].after is None


def test_all_levels_are_watched_those_made_and_moved_later_too(world: World) -> None:
    world.run("mkdir -p a/b")
    with world.files.watch(recursive=True) as watch:
        world.files.write("a/b/f", b"x")
        until(watch, lambda change: change.path.endswith("/a/b/f"))
        world.run("mkdir -p c/d; sleep 0.1; touch c/d/g")
        until(watch, lambda change: change.path.endswith("/c/d/g"))
        world.files.rename("c", "e")
        until(watch, lambda change: change.kind == "renamed")
        world.files.write("e/d/h", b"x")
        until(watch, lambda change: change.path.endswith("/e/d/h"))
    with world.files.watch() as watch:
        world.run("touch a/b/deep; touch last")
        seen = until(watch, lambda change: change.path.endswith("/last"))
        assert not [change for change in seen if change.path.endswith("deep")]


def test_a_reader_that_is_slow_is_told_how_much_it_missed(world: World) -> None:
    world.run("mkdir w")
    with world.files.watch("w") as watch:
        # No two that follow each other are the same, so none are told as one.
        world.run("cd w; for i in {1..60000}; do echo >> a; echo >> b; done", check=True)
        told = lost = 0
        for event in watch:
            told += event.change is not None
            lost += event.lost
            if lost:
                break
        assert told > 1_000
    with world.files.watch("w") as watch:
        world.files.write("w/after", b"")
        until(watch, lambda change: change.path.endswith("/after"))


def test_a_watch_ends_with_its_directory_and_with_its_reader(world: World) -> None:
    world.run("mkdir w")
    watch = world.files.watch("w")
    world.run("rmdir w")
    seen = [event.change for event in watch if event.change is not None]
    assert seen[-1].kind == "deleted"
    watch.close()
    other = world.files.watch()
    look = "ls -l /proc/[0-9]*/fd 2>/dev/null | grep -c inotify || true"
    other.close()
    eventually(lambda: world.run(look).stdout.strip() == "0" or None, "the watch has ended")


def test_what_is_no_directory_cannot_be_watched(world: World) -> None:
    with pytest.raises(WorldFileNotFound):
        world.files.watch("none")
    with pytest.raises(WorldNotADirectory):
        world.files.watch("README.md")


def test_a_watch_does_not_outlive_its_world(world: World) -> None:
    watch = world.files.watch()
    world.remove()
    with pytest.raises(SubstrateError):
        for _ in watch:
            pass
    watch.close()


def test_a_watch_makes_no_step_look_shared(world: World) -> None:
    world.run("sleep 0.3 >&- 2>&- &")
    with world.files.watch():
        world.run("sleep 0.5")
        result = world.run("true")
        assert (result.coverage.state, result.coverage.reasons) == ("full", ())
