"""The everyday tools yield exactly the changes that they make: nothing more, nothing less.

What is compared, in order, are all changes of the tree and all opens for writing that came about,
each as its kind and its paths, relative to the test's directory. Changes of what was opened just
before, such as the times that ``cp -p`` sets, count like all others.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.truth.operations import OpClass
from benchmarks.truth.recorded import read_events
from tests.native.recording import Recorder

Change = tuple[str, ...]

#: Names that sed and ln make up for what then takes a file's place.
_MADE_UP = re.compile(r"(^|/)(sed|Cu)[A-Za-z0-9]{6}$")


class Tools:
    """Runs tools in a directory and tells what they changed."""

    def __init__(self, directory: Path, segments: Path) -> None:
        self.directory = directory
        self._recorder = Recorder(segments)

    def changes(self, *command: str) -> list[Change]:
        """What a command that succeeds changed, in order; ``~`` stands for a made-up name."""
        recording = self._recorder.run(command, cwd=self.directory)
        assert (recording.returncode, recording.stderr) == (0, b"")
        assert recording.summary.lost == recording.summary.torn == 0
        recorded = read_events(recording.events, frozenset())
        done = [at for occurrences in recorded.operations.values() for at in occurrences]
        done.sort(key=lambda at: at.end_s)
        return [
            self._change(at.operation.op_class, at.operation.kind, paths)
            for at in done
            if at.operation.op_class in (OpClass.MUTATION, OpClass.WRITE)
            and not at.operation.error
            and (paths := tuple(path for path in (at.operation.path, at.operation.path2) if path))
        ]

    def _change(self, op_class: OpClass, kind: str, paths: tuple[bytes, ...]) -> Change:
        shown = [self._shown(path) for path in paths]
        return ("write" if op_class is OpClass.WRITE else kind, *shown)

    def _shown(self, path: bytes) -> str:
        text = os.fsdecode(path)
        if text.startswith("/"):
            text = os.path.relpath(text, self.directory)
        return _MADE_UP.sub(r"\1~", text)


@pytest.fixture
def tools(tmp_path: Path) -> Tools:
    directory = (tmp_path / "work").resolve()
    directory.mkdir()
    os.umask(0o022)
    return Tools(directory, tmp_path / "segments")


@pytest.fixture
def elsewhere(tools: Tools) -> Iterator[Path]:
    """A directory on another file system."""
    directory = Path(tempfile.mkdtemp(prefix="sbmv", dir="/dev/shm"))
    try:
        if directory.stat().st_dev == tools.directory.stat().st_dev:
            pytest.skip("/dev/shm and the temporary directory are one file system")
        yield directory
    finally:
        shutil.rmtree(directory)


def _tree(directory: Path) -> None:
    """One thing in each directory: with two, their order would be the file system's."""
    (directory / "sub").mkdir(parents=True)
    (directory / "sub" / "b").write_text("b")


def _furnish(directory: Path) -> None:
    (directory / "a").write_text("one\n")
    (directory / "b").write_text("one\n")
    (directory / "d").mkdir()
    (directory / "e").mkdir()
    (directory / "link").symlink_to("a")
    _tree(directory / "tree")


_REMOVED: list[Change] = [("remove", "tree/sub/b"), ("remove", "tree/sub"), ("remove", "tree")]
#: It sets the owner and the access control list of what then takes the file's place.
_SED: list[Change] = [("write", "~"), ("chown", "~"), ("xattr", "~")]

_CASES: dict[str, list[Change]] = {
    # rm
    "rm a b": [("remove", "a"), ("remove", "b")],
    "rm -f nothing": [],
    "rm -d d": [("remove", "d")],
    "rm -r tree": _REMOVED,
    "rm -rf tree nothing d": [*_REMOVED, ("remove", "d")],
    "rm link": [("remove", "link")],
    # mv
    "mv a c": [("rename", "a", "c")],
    "mv a b": [("rename", "a", "b")],
    "mv -n a b": [],
    "mv a b d": [("rename", "a", "d/a"), ("rename", "b", "d/b")],
    "mv tree d/moved": [("rename", "tree", "d/moved")],
    "mv -T d e": [("rename", "d", "e")],
    "mv --backup=simple a b": [("rename", "b", "b~"), ("rename", "a", "b")],
    # cp
    "cp a c": [("write", "c")],
    "cp a b": [("write", "b")],
    "cp --reflink=never a c": [("write", "c")],
    "cp --sparse=always a c": [("write", "c")],
    "cp -r tree copy": [("mkdir", "copy"), ("mkdir", "copy/sub"), ("write", "copy/sub/b")],
    "cp -p a c": [("write", "c"), ("utimes", "c"), ("xattr", "c")],
    "cp -l a c": [("link", "a", "c")],
    "cp -s a c": [("symlink", "c", "a")],
    "cp --remove-destination a b": [("remove", "b"), ("write", "b")],
    # ln
    "ln a c": [("link", "a", "c")],
    "ln -s a c": [("symlink", "c", "a")],
    "ln -s ../up d": [("symlink", "d/up", "../up")],
    "ln -f a b": [("link", "a", "~"), ("rename", "~", "b")],
    "ln -sf b link": [("symlink", "~", "b"), ("rename", "~", "link")],
    "ln -sfn d link": [("symlink", "~", "d"), ("rename", "~", "link")],
    # install
    "install a c": [("write", "c"), ("xattr", "c"), ("chmod", "c")],
    "install -D -m 600 a x/y/c": [
        ("mkdir", "x"), ("mkdir", "x/y"),
        ("write", "x/y/c"), ("xattr", "x/y/c"), ("chmod", "x/y/c"),
    ],
    "install -d p/q": [("mkdir", "p"), ("mkdir", "p/q")],
    # touch
    "touch new": [("write", "new"), ("utimes", "new")],
    "touch a": [("write", "a"), ("utimes", "a")],
    "touch -c nothing": [],
    "touch -d 2001-02-03 a": [("write", "a"), ("utimes", "a")],
    "touch -h link": [("utimes", "link")],
    "touch -h -d 2001-02-03 link": [("utimes", "link")],
    "touch -r a b": [("write", "b"), ("utimes", "b")],
    # chmod
    "chmod 600 a": [("chmod", "a")],
    "chmod u+x a b": [("chmod", "a"), ("chmod", "b")],
    "chmod -R go-w tree": [("chmod", "tree"), ("chmod", "tree/sub"), ("chmod", "tree/sub/b")],
    # sed
    "sed -i s/one/two/ a": [*_SED, ("rename", "~", "a")],
    "sed -i.bak s/one/two/ a": [*_SED, ("rename", "a", "a.bak"), ("rename", "~", "a")],
    "sed -i s/one/two/ a b": [*_SED, ("rename", "~", "a"), *_SED, ("rename", "~", "b")],
    "sed -i --follow-symlinks s/one/two/ link": [*_SED, ("rename", "~", "a")],
    "sed -n s/one/two/p a": [],
    # tar
    "tar -cf t.tar tree a": [("write", "t.tar")],
    "tar -tf here.tar": [],
    "tar -rf here.tar a": [("write", "here.tar")],
}  # fmt: skip


@pytest.mark.parametrize("command", list(_CASES))
def test_a_tool_yields_exactly_its_changes(tools: Tools, command: str) -> None:
    _furnish(tools.directory)
    if "here.tar" in command:
        subprocess.run(["tar", "-cf", "here.tar", "tree"], cwd=tools.directory, check=True)
    assert tools.changes(*command.split()) == _CASES[command]


# What is done for owners depends on who asks: these are root's.


def _kept(path: str, *, directory: bool) -> list[Change]:
    """What cp -a and mv set on a copy, after its content is there."""
    if directory:
        return [("utimes", path), ("chown", path), ("xattr", path), ("xattr", path)]
    return [("utimes", path), ("xattr", path)]


def _copied(to: str) -> list[Change]:
    return [
        ("mkdir", to),
        ("mkdir", f"{to}/sub"),
        ("write", f"{to}/sub/b"),
        *_kept(f"{to}/sub/b", directory=False),
        *_kept(f"{to}/sub", directory=True),
        *_kept(to, directory=True),
    ]


@pytest.mark.root
def test_cp_archive_sets_what_it_keeps(tools: Tools) -> None:
    _tree(tools.directory / "tree")
    assert tools.changes("cp", "-a", "tree", "copy") == _copied("copy")


@pytest.mark.root
def test_mv_across_file_systems_copies_and_removes(tools: Tools, elsewhere: Path) -> None:
    _furnish(tools.directory)
    there = os.path.relpath(elsewhere, tools.directory)
    assert tools.changes("mv", "a", str(elsewhere)) == [
        ("write", f"{there}/a"),
        *_kept(f"{there}/a", directory=False),
        ("remove", "a"),
    ]
    assert tools.changes("mv", "tree", str(elsewhere)) == [*_copied(f"{there}/tree"), *_REMOVED]
    assert tools.changes("mv", f"{elsewhere}/tree", ".") == [
        *_copied("tree"),
        *((kind, f"{there}/{path}") for kind, path in _REMOVED),
    ]


@pytest.mark.root
@pytest.mark.parametrize("options", ["-xf", "-xpf"])
def test_tar_unpacks_and_sets_what_it_kept(tools: Tools, options: str) -> None:
    _furnish(tools.directory)
    subprocess.run(["tar", "-cf", "t.tar", "tree"], cwd=tools.directory, check=True)

    def kept(path: str) -> list[Change]:
        return [("utimes", path), ("chown", path), ("chmod", path)]

    assert tools.changes("tar", options, "t.tar", "-C", "d") == [
        ("mkdir", "d/tree"),
        ("mkdir", "d/tree/sub"),
        ("write", "d/tree/sub/b"),
        *kept("d/tree/sub/b"),
        *kept("d/tree/sub"),
        *kept("d/tree"),
    ]


def test_tar_deletes_from_an_archive_by_writing_and_cutting_it(tools: Tools) -> None:
    _furnish(tools.directory)
    subprocess.run(["tar", "-cf", "t.tar", "tree", "a"], cwd=tools.directory, check=True)
    assert tools.changes("tar", "--delete", "-f", "t.tar", "a") == [
        ("write", "t.tar"),
        ("truncate", "t.tar"),
    ]
