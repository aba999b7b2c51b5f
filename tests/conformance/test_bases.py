"""Worlds whose root is an image or a directory."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from substrate_sdk.errors import (
    ImageInUse,
    ImageInvalid,
    ImageNotFound,
    InvalidArgument,
    NotRestorable,
)
from tests.conformance.clauses import Place, clause, said
from tests.native.targets import Target
from tests.unit.image_archives import docker, oci, tar

PROGRAMS = ("dash", "cat", "ls", "id", "env", "mkdir", "rm", "mv", "touch", "chmod", "pwd")

HELLO = """
#include <stdio.h>
int main(void) {
    FILE *made = fopen("/tmp/made", "w");
    fputs("hello\\n", made);
    puts("hello");
    return fclose(made);
}
"""


def needed_by(program: str) -> set[str]:
    """The libraries and the loader of a program, as the loader lists them."""
    listed = subprocess.run(["ldd", program], check=True, capture_output=True, text=True).stdout
    return {word for word in listed.split() if word.startswith("/")}


@pytest.fixture(scope="module")
def root() -> Iterator[Path]:
    """A root file system of glibc, without bash, python or a user database of the host's."""
    made = Path(tempfile.mkdtemp(prefix="sbroot", dir="/tmp"))
    made.chmod(0o755)
    for name in PROGRAMS:
        program = shutil.which(name)
        assert program is not None
        for source in (program, *needed_by(program)):
            target = made / source.lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)
        if not (made / "bin" / name).exists():
            (made / "bin").mkdir(exist_ok=True)
            shutil.copy(program, made / "bin" / name)
    (made / "bin" / "sh").symlink_to("dash")
    (made / "etc").mkdir()
    (made / "etc" / "passwd").write_text(
        "root:x:0:0::/root:/bin/sh\nann:x:7:8::/home/ann:/bin/sh\n"
    )
    (made / "etc" / "os-release").write_text("ID=of-the-image\n")
    (made / "root").mkdir()
    try:
        yield made
    finally:
        shutil.rmtree(made)


def packed(root: Path) -> bytes:
    """The root as a tar, of root's."""
    command = ["tar", "--owner=0", "--group=0", "-C", str(root), "-cf", "-", "."]
    return subprocess.run(command, check=True, capture_output=True).stdout


@pytest.fixture(scope="module")
def archive(root: Path) -> Iterator[Path]:
    """The same as an image of two layers."""
    directory = Path(tempfile.mkdtemp(prefix="sbimg", dir="/tmp"))
    upper = tar([("./etc/.wh.os-release", b""), ("./etc/of-layer-2", b"two\n")])
    config = {"Env": ["OF_IMAGE=yes", "PATH=/bin:/usr/bin"], "WorkingDir": "/work/deep"}
    try:
        yield oci(directory / "image.tar", [packed(root), upper], config, name="conform:1")
    finally:
        shutil.rmtree(directory)


@clause("base: an image is the root, with its environment and cwd, and nothing of the host's")
def test_image(place: Place, archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDITOR", "of-the-host")
    image = place.sub.images.add(archive)
    assert image.names == ("conform:1",)
    with place.sub.world(base="image:conform:1") as world:
        assert (world.info.base, world.info.project) == (f"image:{image.digest}".encode(), None)
        assert said(world, "pwd; cat /etc/of-layer-2; echo $OF_IMAGE $EDITOR $0") == (
            "/work/deep\ntwo\nyes /bin/sh\n"
        )
        assert world.run("cat /etc/os-release").exit_code == 1
        assert said(world, "ls /").split() == sorted(
            {"bin", "dev", "etc", "proc", "root", "run", "sys", "tmp", "work"}
            | {name for name in ("lib", "lib64", "usr") if name in said(world, "ls /")}
        )
        if place.capabilities["users"].state == "works":
            assert said(world, "id -u; echo $HOME") == "0\n/root\n"
            assert world.run("id -u; id -g", user="ann").stdout == "7\n8\n"
        result = world.run("echo x > made; mkdir /new; rm /etc/of-layer-2")
        changes = {change.path: change.kind for change in result.changes}
        assert changes == {
            "/work/deep/made": "created",
            "/new": "created",
            "/etc/of-layer-2": "deleted",
        }
        assert (result.coverage.state, result.coverage.reasons) == ("full", ())
        with world.shell() as shell:
            shell.run("cd /new; X=1")
            assert shell.run("pwd; echo $X").stdout == "/new\n1\n"


@clause("base: a step on an image replays, forks and rolls back; its image is then kept or named")
def test_image_history(place: Place, archive: Path) -> None:
    image = place.sub.images.add(archive, name="history")
    with place.sub.world(base="image:history") as world:
        first = world.run("cat /etc/of-layer-2; echo one > made")
        world.run("echo two > made")
        world.rollback(to=first)
        assert said(world, "cat made") == "one\n"
        report = place.sub.replay(first)
        assert report.verdict == "identical", report
        for name in image.names:
            if name != "history":
                place.sub.images.remove(name)
        with pytest.raises(ImageInUse, match=world.world_id):
            place.sub.images.remove("history")
    with place.sub.fork(first) as other:
        assert said(other, "cat made /etc/of-layer-2") == "one\ntwo\n"
        assert [change.path for change in other.diff().changes] == ["/work/deep/made"]
    place.sub.images.remove("history")
    with pytest.raises(NotRestorable, match=image.digest):
        place.sub.fork(first)
    with pytest.raises(ImageNotFound):
        place.sub.world(base="image:history")


@clause("base: a project of the host's is shown on an image where it is named")
def test_image_with_project(place: Place, archive: Path, project: Path) -> None:
    place.sub.images.add(archive, name="with-project")
    with place.sub.world(base="image:with-project", project=project) as world:
        assert said(world, "pwd; cat README.md") == f"{project}\n# A project\n"
        step = world.run("echo made > made")
        assert [(c.path, c.scope) for c in step.changes] == [(str(project / "made"), "project")]
        assert not (project / "made").exists()
        world.apply()
    assert (project / "made").read_text() == "made\n"
    assert place.sub.replay(step).verdict == "identical"


@clause("base: an image of musl is covered in full too")
def test_musl(place: Place, tmp_path: Path) -> None:
    loader = Path("/lib/ld-musl-x86_64.so.1")
    if not loader.exists():
        pytest.skip("no musl loader: install musl-tools")
    (tmp_path / "hello.c").write_text(HELLO)
    program = Target("x86_64", "musl").compile(tmp_path / "hello.c", tmp_path / "hello")
    layer = tar([("bin/hello", program.read_bytes()), (f"lib/{loader.name}", loader.read_bytes())])
    place.sub.images.add(docker(tmp_path / "musl.tar", [layer], {}, "musl:1"))
    with place.sub.world(base="image:musl:1") as world:
        result = world.run(["hello"])
        assert (result.stdout, result.stderr) == ("hello\n", "")
        assert (result.coverage.state, result.coverage.reasons) == ("full", ())
        assert [change.path for change in result.changes] == ["/tmp/made"]


@clause("base: a directory of the host is the root, copy-on-write")
def test_directory(place: Place, root: Path) -> None:
    with place.sub.world(base=root) as world:
        result = world.run("cat /etc/os-release; echo x > /etc/os-release; pwd")
        assert result.stdout == "ID=of-the-image\n/\n"
        assert result.coverage.state == "full"
    assert (root / "etc" / "os-release").read_text() == "ID=of-the-image\n"
    report = place.sub.replay(result)
    assert report.verdict == "identical", report


@clause("base: what is no root, or would show what worlds hide, is refused in one line")
def test_refused(place: Place, tmp_path: Path) -> None:
    for directory in ("/", place.user.home, place.user.substrate_home, "/nowhere"):
        with pytest.raises(InvalidArgument) as refused:
            place.sub.world(base=directory)
        assert "\n" not in str(refused.value)
    with pytest.raises(ImageNotFound, match="image import"):
        place.sub.world(base="image:none")
    (tmp_path / "bad.tar").write_bytes(tar([("../x", b"")]))
    with pytest.raises(ImageInvalid, match="leads out"):
        place.sub.images.add(tmp_path / "bad.tar")


@clause("base: the command line imports, lists, uses and removes images")
def test_command_line(place: Place, root: Path, tmp_path: Path) -> None:
    path = tmp_path / "root.tar"
    path.write_bytes(packed(root))
    for directory in (tmp_path, *tmp_path.parents[:2]):
        os.chmod(directory, 0o755)
    user = place.user
    done = user.run("image", "import", str(path), "--name", "by-cli", cwd=Path("/"))
    assert done.code == 0, done.err
    digest = done.out.split()[0]
    images = user.run("image", "ls", "--json", cwd=Path("/")).json["images"]
    assert [image["digest"] for image in images if "by-cli" in image["names"]] == [digest]
    ran = user.run(
        "run", "-q", "--base", "image:by-cli", "--", "cat", "/etc/os-release", cwd=Path("/")
    )
    assert (ran.code, ran.out) == (0, "ID=of-the-image\n"), ran.err
    assert user.run("image", "rm", "by-cli", cwd=Path("/")).code == 0
    assert "by-cli" in user.run("image", "rm", "by-cli", cwd=Path("/")).error_line
    assert "no such file" in user.run("image", "import", "/nope", cwd=Path("/")).error_line.lower()
