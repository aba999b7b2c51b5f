"""Trees into a world and out of it, as they were; and out of a hostile one, nowhere but below."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from substrate_sdk.client.sync import World
from substrate_sdk.errors import (
    UnsafeTree,
    WorldFileDenied,
    WorldFileNotFound,
    WorldNotADirectory,
)
from tests.users import User


def described(root: Path) -> dict[bytes, tuple[object, ...]]:
    found: dict[bytes, tuple[object, ...]] = {}
    names: dict[int, bytes] = {}
    top = os.fsencode(root)
    for directory, below, files in sorted(os.walk(top)):
        for name in sorted([*below, *files]):
            path = os.path.join(directory, name)
            status, relative = os.lstat(path), os.path.relpath(path, top)
            link = os.readlink(path) if os.path.islink(path) else b""
            content = b""
            if not link and name in files:
                with open(path, "rb") as file:
                    content = file.read()
            first = names.setdefault(status.st_ino, relative)
            mtime = 0 if link else int(status.st_mtime)
            found[relative] = (oct(status.st_mode), link, content, mtime, first)
    return found


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    (root / "empty" / "er").mkdir(parents=True)
    (root / "d").mkdir()
    (root / "d" / "run").write_bytes(b"#!/bin/sh\n")
    (root / "d" / "run").chmod(0o755)
    (root / "private").write_bytes(os.urandom(300_000))
    (root / "private").chmod(0o600)
    (root / "zero").touch()
    (root / "hard").hardlink_to(root / "private")
    (root / "abs").symlink_to("/etc/passwd")
    (root / "up").symlink_to("../../..")
    (root / ("long" * 40)).symlink_to("t" * 200)
    Path(os.fsdecode(os.fsencode(root) + b"/\xff\xfe")).write_bytes(b"odd")
    deep = root / "/".join(["deep" * 10] * 6)
    deep.mkdir(parents=True)
    (deep / "f").write_bytes(b"deep")
    os.utime(root / "d" / "run", (1, 1_000_000_000))
    (root / "d").chmod(0o555)
    return root


def test_a_tree_goes_in_and_comes_out_as_it_was(world: World, tree: Path, tmp_path: Path) -> None:
    result = world.files.upload_dir(tree, "into/here")
    assert result.ok
    assert world.run("into/here/d/run; stat -c %h into/here/hard").stdout == "2\n"
    done = world.files.download_dir("into/here", tmp_path / "back")
    assert described(tmp_path / "back") == described(tree)
    assert done.entries == len(described(tree))
    (tree / "d").chmod(0o755)
    (tmp_path / "back" / "d").chmod(0o755)


def test_what_is_there_is_replaced_not_written_through(world: World, tmp_path: Path) -> None:
    source = tmp_path / "s"
    (source / "d").mkdir(parents=True)
    (source / "f").write_bytes(b"new")
    (source / "d" / "g").write_bytes(b"new")
    world.run("mkdir -p t o; echo old > o/kept; ln o/kept t/f; ln -s ../o t/d; touch t/rest")
    world.files.upload_dir(source, "t")
    assert (
        world.run("cat o/kept; ls o; ls t; cat t/f t/d/g").stdout == "old\nkept\nd\nf\nrest\nnewnew"
    )


def test_what_is_no_directory_takes_and_gives_no_tree(world: World, tmp_path: Path) -> None:
    world.run("touch f")
    (tmp_path / "s").mkdir()
    with pytest.raises(WorldNotADirectory):
        world.files.upload_dir(tmp_path / "s", "f")
    with pytest.raises(WorldNotADirectory):
        world.files.download_dir("f", tmp_path / "t")
    with pytest.raises(WorldFileNotFound):
        world.files.download_dir("none", tmp_path / "t")
    with pytest.raises(FileNotFoundError):
        world.files.upload_dir(tmp_path / "none", "g")
    assert not world.files.exists("g")


def test_hostile_entries_stay_where_they_are(world: World, tmp_path: Path) -> None:
    world.run("mkdir t; cp /bin/true t/su; chmod 4755 t/su; mkfifo t/p")
    with pytest.raises(UnsafeTree, match="set-id"):
        world.files.download_dir("t", tmp_path / "t")
    world.run("rm t/su; ln -s /etc t/etc; touch t/plain")
    world.files.download_dir("t", tmp_path / "t")
    assert sorted(os.listdir(tmp_path / "t")) == ["etc", "plain"]
    assert os.readlink(tmp_path / "t" / "etc") == "/etc"


def test_a_tree_is_never_left_incomplete_in_silence(
    world: World, tmp_path: Path, who: tuple[str, User]
) -> None:
    world.run("mkdir -p t/closed; touch t/closed/f; chmod 0 t/closed")
    if who[0] == "rootless":
        with pytest.raises(WorldFileDenied):
            world.files.download_dir("t", tmp_path / "t")
    world.run("chmod 755 t/closed")
    assert world.files.download_dir("t", tmp_path / "t").entries == 2


def test_a_tree_that_changes_meanwhile_ends_well_or_with_an_error(
    world: World, tmp_path: Path
) -> None:
    world.run("mkdir -p t/a; for i in {1..300}; do head -c 20000 /dev/urandom > t/a/$i; done")
    churn = world.exec(
        "while [ ! -e stop ]; do mv t/a t/b; ln -s /etc t/a; rm t/a; mv t/b t/a; done"
    )
    for number in range(10):
        try:
            world.files.download_dir("t", tmp_path / str(number))
        except (WorldFileDenied, UnsafeTree):
            continue
        for _directory, _below, files in os.walk(tmp_path / str(number)):
            assert "passwd" not in files
    world.run("touch stop")
    churn.wait(10)
