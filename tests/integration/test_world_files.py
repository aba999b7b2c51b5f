"""The Files API, for root and for a user without any privilege: what each call does and records."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from substrate_sdk.client.sync import World
from substrate_sdk.errors import (
    AlreadyExists,
    InvalidArgument,
    WorldFileDenied,
    WorldFileExists,
    WorldFileNotFound,
    WorldIsADirectory,
    WorldNotADirectory,
)
from substrate_sdk.types import Result
from tests.users import User, by_path

NOT_UTF8 = b"\xff\xfe name"


@dataclass(frozen=True)
class Place:
    """A world, whose user it is, and its project on the host."""

    user: User
    world: World
    project: Path

    def kinds(self, result: Result) -> dict[str, str]:
        return by_path([change.to_json() for change in result.changes], self.project)


@contextmanager
def placed(user: User, project: Path) -> Iterator[Place]:
    with user.client() as sub, sub.world(project=project, cwd=project) as world:
        yield Place(user, world, project)


@pytest.fixture
def place(request: pytest.FixtureRequest, who: tuple[str, User]) -> Iterator[Place]:
    name, user = who
    project = request.getfixturevalue("git_checkout" if name == "user" else "own_checkout")
    with placed(user, project) as made:
        yield made


@pytest.fixture
def world(place: Place) -> World:
    return place.world


# -- reading ----------------------------------------------------------------------------------


def test_the_state_of_a_path_is_that_of_the_link_not_of_what_it_leads_to(world: World) -> None:
    world.run("printf hello > f; chmod 640 f; ln -s nowhere l; mkdir d; mkfifo p")
    found = world.files.stat("f")
    assert (found.kind, found.mode, found.size_bytes) == ("file", 0o640, 5)
    assert found.modified_at is not None
    link = world.files.stat("l")
    assert (link.kind, link.target) == ("symlink", b"nowhere")
    assert world.files.stat("d/").kind == "dir"
    assert world.files.stat("p").kind == "fifo"
    assert world.files.stat(f"{world.run('pwd').stdout.strip()}/f").size_bytes == 5
    assert world.files.exists("l")
    assert not world.files.exists("none")
    assert not world.files.exists("f/below-a-file")
    with pytest.raises(WorldFileNotFound, match="none"):
        world.files.stat("none")


def test_a_directory_is_listed_by_name_as_deep_as_asked(world: World) -> None:
    world.run("mkdir -p t/b/c t/a; touch t/z t/b/y t/b/c/x t/a-b; ln -s /etc t/link")
    names = [entry.path for entry in world.files.list("t")]
    assert names == ["a", "a-b", "b", "link", "z"]
    two = [entry.path for entry in world.files.list("t", depth=2)]
    assert two == ["a", "a-b", "b", "b/c", "b/y", "link", "z"]
    every = world.files.list("t", depth=None)
    assert [entry.path for entry in every] == ["a", "a-b", "b", "b/c", "b/c/x", "b/y", "link", "z"]
    assert {entry.path: entry.state.kind for entry in every}["link"] == "symlink"
    assert world.files.list("t/a") == ()
    with pytest.raises(WorldNotADirectory):
        world.files.list("t/z")
    with pytest.raises(WorldFileNotFound):
        world.files.list("none")


def test_ten_thousand_entries_come_in_pages_each_once(world: World) -> None:
    world.run("mkdir -p big/d; cd big; seq -f 'f%05g' 0 9989 | xargs touch; touch d/{0..8}")
    listed = [entry.path for entry in world.files.list("big", depth=None)]
    assert len(listed) == 9_990 + 1 + 9
    assert listed == [*["d"], *[f"d/{n}" for n in range(9)], *[f"f{n:05}" for n in range(9_990)]]


def test_names_need_not_be_utf8_and_files_may_be_empty(world: World) -> None:
    world.files.write(NOT_UTF8, b"")
    assert NOT_UTF8 in [entry.path_bytes for entry in world.files.list()]
    assert world.files.read(NOT_UTF8) == b""
    assert world.files.stat(os.fsdecode(NOT_UTF8)).size_bytes == 0
    world.files.rename(NOT_UTF8, b"new\nline")
    assert world.run(["cat", b"new\nline"]).ok
    world.files.remove(b"new\nline")
    assert not world.files.exists(b"new\nline")


def test_ranges_beyond_the_end_are_short(world: World) -> None:
    world.files.write("r", b"0123456789")
    assert world.files.read("r", offset=8, length=10) == b"89"
    assert world.files.read("r", offset=10) == b""
    assert world.files.read("r", offset=1 << 40) == b""
    assert world.files.read("r", length=0) == b""
    assert b"".join(world.files.read_pieces("r", offset=3, length=4)) == b"3456"
    with pytest.raises(InvalidArgument, match="offset"):
        world.files.read("r", offset=1 << 63)


def test_nothing_that_is_no_file_is_opened(world: World) -> None:
    world.run("mkfifo p; mkdir d")
    with pytest.raises(WorldFileDenied):
        world.files.read("p")
    with pytest.raises(WorldFileDenied):
        world.files.write("p", b"x")
    with pytest.raises(WorldFileDenied):
        world.files.read("/dev/zero")
    with pytest.raises(WorldIsADirectory):
        world.files.read("d")
    with pytest.raises(WorldIsADirectory):
        world.files.write("d", b"x")


# -- changing ---------------------------------------------------------------------------------


def test_permission_bits_are_as_asked_whatever_the_umask(world: World) -> None:
    world.files.write("f", b"", mode=0o666)
    world.files.mkdir("d/e", mode=0o777, make_parents=True)
    world.files.write("p/q/f", b"", make_parents=True)
    modes = world.run("stat -c %a f d d/e p p/q p/q/f").stdout.split()
    assert modes == ["666", "755", "777", "755", "755", "644"]
    world.files.chmod("f", 0o4750)
    assert world.files.stat("f").mode == 0o4750


def test_what_is_there_or_not_is_an_error_of_its_own(world: World) -> None:
    world.run("mkdir -p d/e; touch f; ln -s f l")
    for path in ("d", "f"):
        with pytest.raises(WorldFileExists) as caught:
            world.files.mkdir(path)
        assert isinstance(caught.value, FileExistsError)
    with pytest.raises(WorldFileExists):
        world.files.mkdir("d", make_parents=True)
    with pytest.raises(WorldFileExists):
        world.files.symlink("l", "elsewhere")
    with pytest.raises(WorldFileNotFound):
        world.files.mkdir("x/y")
    with pytest.raises(WorldFileNotFound):
        world.files.remove("none")
    with pytest.raises(WorldFileNotFound):
        world.files.rename("none", "other")
    with pytest.raises(WorldFileNotFound):
        world.files.chmod("none", 0o644)
    with pytest.raises(WorldFileDenied, match="not empty"):
        world.files.remove("d")
    with pytest.raises(InvalidArgument, match="root"):
        world.files.remove("/tmp/..", recursive=True)
    with pytest.raises(InvalidArgument, match="mode"):
        world.files.chmod("f", 0o10000)
    assert world.files.exists("d/e")


def test_a_link_is_removed_and_renamed_itself(world: World) -> None:
    world.run("mkdir d; touch d/kept; ln -s d l; ln -s d m")
    world.files.remove("l", recursive=True)
    world.files.rename("m", "n")
    assert world.run("ls; ls d; readlink n").stdout.split() == ["README.md", "d", "n", "kept", "d"]


def test_a_rename_may_go_from_one_file_system_of_a_world_to_another(place: Place) -> None:
    world = place.world
    world.run(
        "mkdir -p t/sub t/empty; echo one > t/sub/f; chmod 640 t/sub/f; ln -s f t/sub/l;"
        "chmod 750 t/sub; mkdir /tmp/full; touch /tmp/full/x; echo old > /tmp/file"
    )
    world.files.rename("t", "/tmp/moved")
    found = world.run("cd /tmp/moved && find . | sort && stat -c %a sub sub/f && cat sub/l").stdout
    assert found.split() == [".", "./empty", "./sub", "./sub/f", "./sub/l", "750", "640", "one"]
    assert not world.files.exists("t")
    world.run("echo new > g")
    world.files.rename("g", "/tmp/file")
    assert world.files.read("/tmp/file") == b"new\n"
    with pytest.raises(WorldFileDenied, match="not empty"):
        world.files.rename("/tmp/moved", "/tmp/full")
    world.files.rename("README.md", "/tmp/README.md")
    assert (place.project / "README.md").exists()


def test_a_directory_of_the_host_is_renamed_in_the_world_only(place: Place) -> None:
    source = place.project / "src"
    source.mkdir()
    (source / "a.txt").write_text("a\n")
    owner = place.project.stat()
    for path in (source, source / "a.txt"):
        os.chown(path, owner.st_uid, owner.st_gid)
    with placed(place.user, place.project) as fresh:
        result = fresh.world.files.rename("src", "lib")
        assert fresh.world.files.read("lib/a.txt") == b"a\n"
        assert not fresh.world.files.exists("src")
        kinds = fresh.kinds(result)
        assert kinds.get("lib") in ("created", "renamed")
    assert (source / "a.txt").exists()


@dataclass(frozen=True)
class Step:
    kind: str
    do: Callable[[World], Result]
    changes: dict[str, str]


def _upload(world: World) -> Result:
    with tempfile.TemporaryDirectory() as directory:
        Path(directory, "one.txt").write_bytes(b"1")
        return world.files.upload_dir(directory, "up/here")


STEPS = [
    Step("files.write", lambda w: w.files.write("new", b"x"), {"new": "created"}),
    Step("files.remove", lambda w: w.files.remove("gone"), {"gone": "deleted"}),
    Step(
        "files.remove",
        lambda w: w.files.remove("deep", recursive=True),
        {"deep": "deleted", "deep/a": "deleted", "deep/a/b": "deleted"},
    ),
    Step(
        "files.mkdir",
        lambda w: w.files.mkdir("m/n", make_parents=True),
        {"m": "created", "m/n": "created"},
    ),
    Step("files.chmod", lambda w: w.files.chmod("mode", 0o600), {"mode": "metadata"}),
    Step("files.symlink", lambda w: w.files.symlink("l", b"\xff"), {"l": "created"}),
    Step("files.rename", lambda w: w.files.rename("old", "README.md"), {}),
    Step(
        "files.upload",
        _upload,
        {"up": "created", "up/here": "created", "up/here/one.txt": "created"},
    ),
]


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.kind)
def test_each_change_is_a_step_that_replays(place: Place, step: Step) -> None:
    place.world.run("mkdir -p deep/a/b; touch gone mode; echo moved > old")
    result = step.do(place.world)
    assert result.coverage.state == "full", result.coverage
    if step.changes:
        assert place.kinds(result) == step.changes
    else:
        assert place.kinds(result)["README.md"] in ("modified", "renamed")
    (line,) = [line for line in place.user.spans() if line["span_id"] == result.span_id]
    assert line["kind"] == step.kind
    code, report = place.user.replay(result.span_id, cwd=place.project)
    assert (code, report["verdict"]) == (0, "identical"), report
    assert "changes" in report["compared"]


def test_a_change_that_fails_is_recorded_and_replays_as_it_failed(place: Place) -> None:
    with pytest.raises(WorldFileNotFound):
        place.world.files.remove("none")
    line = place.user.spans()[-1]
    assert (line["kind"], line["exit"]) == ("files.remove", 2)
    assert place.user.replay(line["span_id"], cwd=place.project)[1]["verdict"] == "identical"


def test_a_repeated_request_is_one_step_and_another_under_its_id_is_refused(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("substrate_sdk.client.files.new_id", lambda _prefix: "same")
    first = world.files.mkdir("once")
    assert world.files.mkdir("once").span_id == first.span_id
    with pytest.raises(AlreadyExists, match="same"):
        world.files.remove("once")
    assert world.files.exists("once")


def test_an_open_file_is_written_from_where_it_stands(place: Place, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"0123456789" * 100_000)
    with source.open("rb") as file:
        file.seek(5)
        place.world.files.write("copy", file)
    assert place.world.files.read("copy") == source.read_bytes()[5:]
    mode = place.world.files.stat("copy").mode
    assert stat.S_IMODE(mode) == 0o644


def test_a_source_that_fails_is_not_taken_for_a_shorter_one(place: Place) -> None:
    class Failing:
        def tell(self) -> int:
            return 0

        def seek(self, _offset: int) -> int:
            return 0

        def read(self, _size: int) -> bytes:
            raise OSError(5, "no more")

    with pytest.raises(OSError, match="no more"):
        place.world.files.write("short", Failing())  # type: ignore[arg-type] # all that is used
    assert not place.world.files.exists("short")


def test_a_cwd_that_is_gone_keeps_nobody_from_absolute_paths(place: Place) -> None:
    below = place.project / "below"
    below.mkdir()
    with place.user.client() as sub, sub.world(project=place.project, cwd=below) as world:
        world.run("chmod u+rwx .")
        world.files.remove("/" + os.fspath(below), recursive=True)
        world.files.write("/tmp/f", b"x")
        assert world.files.read("/tmp/f") == b"x"
        with pytest.raises(WorldFileNotFound):
            world.files.read("README.md")
    assert below.exists()
