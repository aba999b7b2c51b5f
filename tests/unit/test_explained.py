"""Changes are held against what events may have changed, with links followed in the world."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from substrate_services.journal.schema import Change, ChangeKind
from substrate_services.telemetry.classes import ALL, classes_mask, classes_off
from substrate_services.world.explained import unexplained_changes


@pytest.fixture
def root() -> Iterator[int]:
    """A descriptor of this process's own root: paths of events are looked up below it."""
    fd = os.open("/", os.O_PATH | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def change(path: str | Path, kind: ChangeKind = "created", before: str | None = None) -> Change:
    renamed_from = os.fsencode(before) if before else None
    return Change(os.fsencode(path), kind, "project", renamed_from=renamed_from)


def left(changes: list[Change], writes: list[str | Path], root: int | None) -> list[str]:
    found = unexplained_changes(changes, [os.fsencode(path) for path in writes], root)
    return [os.fsdecode(item.path) for item in found]


def test_a_change_is_explained_by_its_path_or_by_a_directory_above(root: int) -> None:
    changes = [change("/p/a"), change("/p/d/e/f"), change("/p/new", "renamed", "/p/old")]
    assert left(changes, ["/p/a", "/p/d", "/p/old"], root) == []
    assert left(changes, ["/p/a/b", "/p/dd", "/p/ol"], root) == ["/p/a", "/p/d/e/f", "/p/new"]


def test_links_are_followed_to_directories_and_to_files(tmp_path: Path, root: int) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "file").touch()
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "short").symlink_to("real/file")
    (tmp_path / "real" / "gone").touch()
    file, gone = tmp_path / "real" / "file", tmp_path / "real" / "gone"
    assert left([change(file)], [tmp_path / "link" / "file"], root) == []
    assert left([change(file)], [tmp_path / "short"], root) == []
    gone.unlink()
    assert left([change(gone, "deleted")], [tmp_path / "link" / "gone"], root) == []
    assert left([change(file)], [tmp_path / "link" / "other"], root) == [str(file)]


def test_links_lead_nowhere_outside_the_root(tmp_path: Path) -> None:
    world, outside = tmp_path / "world", tmp_path / "outside"
    world.mkdir()
    outside.mkdir()
    (outside / "file").touch()
    (world / "escape").symlink_to("../outside")
    fd = os.open(world, os.O_PATH | os.O_DIRECTORY)
    try:
        changes = [change(outside / "file")]
        assert left(changes, ["/escape/file"], fd) == [str(outside / "file")]
    finally:
        os.close(fd)


def test_a_file_with_other_names_may_have_been_changed_by_any(tmp_path: Path, root: int) -> None:
    (tmp_path / "one").touch()
    os.link(tmp_path / "one", tmp_path / "two")
    assert left([change(tmp_path / "one", "modified")], [tmp_path / "elsewhere"], root) == []
    assert left([change(tmp_path / "one", "created")], [tmp_path / "elsewhere"], root) != []


def test_without_a_root_links_get_the_benefit_of_the_doubt() -> None:
    assert left([change("/p/a")], ["/q"], None) == []


def test_classes_are_names_for_bits() -> None:
    assert classes_mask(()) == ALL
    assert classes_off(()) == ()
    assert classes_mask(["open", "open", "stat"]) == 9
    assert classes_mask(["process"]) == 0
    assert classes_off(["open", "mutate", "network", "stat", "transfer"]) == ("load", "sources")
    with pytest.raises(ValueError, match="'opens': expected process, open"):
        classes_mask(["opens"])
