"""Files and trees, through the Files API."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from substrate_sdk import World
from substrate_sdk.errors import (
    InvalidArgument,
    WorldFileDenied,
    WorldFileExists,
    WorldFileNotFound,
    WorldIsADirectory,
    WorldNotADirectory,
)
from tests.conformance.clauses import Place, clause, kinds, said


@clause("files: stat tells of the entry itself, not of what a link leads to")
def test_stat(shared: World) -> None:
    said(shared, "mkdir -p st; cd st; printf hello > f; chmod 640 f; ln -s none l; mkfifo p")
    found = shared.files.stat("st/f")
    assert (found.kind, found.mode, found.size_bytes) == ("file", 0o640, 5)
    assert (shared.files.stat("st/l").kind, shared.files.stat("st/l").target) == (
        "symlink",
        b"none",
    )
    assert (shared.files.stat("st").kind, shared.files.stat("st/p").kind) == ("dir", "fifo")
    with pytest.raises(WorldFileNotFound):
        shared.files.stat("st/none")


@clause("files: a directory is listed by name, as deep as asked")
def test_list(shared: World) -> None:
    said(shared, "mkdir -p ls/b/c; touch ls/z ls/b/y ls/b/c/x; ln -s /etc ls/link")
    assert [entry.path for entry in shared.files.list("ls")] == ["b", "link", "z"]
    every = [entry.path for entry in shared.files.list("ls", depth=None)]
    assert every == ["b", "b/c", "b/c/x", "b/y", "link", "z"]
    with pytest.raises(WorldNotADirectory):
        shared.files.list("ls/z")


@clause("files: content goes in and out whole, and in ranges")
def test_content(shared: World) -> None:
    content = bytes(range(256)) * 20_000
    shared.files.write("big", content, mode=0o600)
    assert shared.files.read("big") == content
    assert shared.files.read("big", offset=255, length=3) == b"\xff\0\1"
    assert shared.files.read("big", offset=len(content) + 1) == b""
    assert said(shared, "wc -c < big; stat -c %a big") == f"{len(content)}\n600\n"


@clause("files: each write, rename, removal, directory, mode and link is a step of its own")
def test_steps(place: Place, shared: World) -> None:
    files = shared.files
    done = [
        files.mkdir("own/deep", make_parents=True),
        files.write("own/a", b"x"),
        files.chmod("own/a", 0o700),
        files.symlink("own/l", "a"),
        files.rename("own/a", "own/b"),
        files.remove("own/l"),
        files.remove("own", recursive=True),
    ]
    found = [kinds(result, place.host.project) for result in done]
    assert found[0] == {"own": "created", "own/deep": "created"}
    assert found[1] == {"own/a": "created"}
    assert found[2] == {"own/a": "metadata"}
    assert found[3] == {"own/l": "created"}
    assert found[4] == {"own/b": "renamed"}
    assert found[5] == {"own/l": "deleted"}
    assert set(found[6].values()) == {"deleted"}
    assert len({result.span_id for result in done}) == len(done)


@clause("files: what is there, is not, or is of another kind is an error of its own")
def test_errors(shared: World) -> None:
    said(shared, "mkdir -p er/full; touch er/full/x er/f")
    with pytest.raises(WorldFileExists):
        shared.files.mkdir("er")
    with pytest.raises(WorldIsADirectory):
        shared.files.read("er")
    with pytest.raises(WorldFileDenied, match="not empty"):
        shared.files.remove("er/full")
    with pytest.raises(WorldFileNotFound):
        shared.files.write("er/no/such", b"")
    with pytest.raises(InvalidArgument):
        shared.files.remove("/", recursive=True)
    with pytest.raises(WorldFileDenied):
        shared.files.read("/dev/zero")


@clause("files: every path is resolved inside the world, links and .. included")
def test_inside(place: Place, shared: World) -> None:
    secret = place.user.trace
    said(shared, f"mkdir in; cd in; ln -s {secret} a; ln -s /proc/1/root r; ln -s /tmp t")
    for path in ("in/a", f"in/r{secret}", f"in/../../../../..{secret}", f"/proc/self/root{secret}"):
        with pytest.raises((WorldFileNotFound, WorldFileDenied)):
            shared.files.read(path)
    shared.files.write("in/t/conform-made-inside", b"x")
    assert not Path("/tmp/conform-made-inside").exists()
    assert said(shared, "cat /tmp/conform-made-inside") == "x"


@clause("files: a watch tells what happens, as it happens")
def test_watch(shared: World) -> None:
    shared.files.mkdir("watched")
    with shared.files.watch("watched") as watch:
        said(shared, "cd watched; echo a > new; mv new other; rm other; mkdir last")
        seen = []
        for event in watch:
            assert (event.lost, event.change is not None) == (0, True)
            assert event.change is not None
            seen.append((event.change.kind, Path(event.change.path).name))
            if seen[-1][1] == "last":
                break
    for expected in (("created", "new"), ("renamed", "other"), ("deleted", "other")):
        assert expected in seen


@clause("files: a tree goes in and comes out as it was")
def test_trees(shared: World, tmp_path: Path) -> None:
    source, back = tmp_path / "source", tmp_path / "back"
    (source / "d").mkdir(parents=True)
    (source / "d" / "run").write_bytes(b"#!/bin/sh\necho ran\n")
    (source / "d" / "run").chmod(0o755)
    (source / "link").symlink_to("d/run")
    (source / "hard").hardlink_to(source / "d" / "run")
    assert shared.files.upload_dir(source, "tree").ok
    assert said(shared, "tree/link; stat -c %h tree/hard") == "ran\n2\n"
    shared.files.download_dir("tree", back)
    assert (back / "d" / "run").read_bytes() == (source / "d" / "run").read_bytes()
    assert (back / "link").readlink() == Path("d/run")
    assert (back / "hard").stat().st_nlink == 2


@clause("files: the host's own file stays as it is, however the world changes it")
def test_host_stays(world: World, project: Path, mine: Callable[[Path], None]) -> None:
    kept = project / "kept"
    kept.write_text("the host's\n")
    mine(kept)
    said(world, "echo more >> README.md; mv README.md gone; : > kept; ln gone hard")
    world.files.remove("kept")
    assert (project / "README.md").read_text() == "# A project\n"
    assert kept.read_text() == "the host's\n"
