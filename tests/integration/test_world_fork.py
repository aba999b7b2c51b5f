"""Snapshots and forks: a tree after a step, in another world, also after the first is gone."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from substrate_sdk import errors
from substrate_sdk.client.sync import World
from tests.users import PYTHON, User, read_some, tree_of

LIST = """
import os, stat, sys
root = sys.argv[1]
for directory, names, files in sorted(os.walk(os.fsencode(root))):
    for name in sorted(names + files):
        path = os.path.join(directory, name)
        status = os.lstat(path)
        content = b""
        if stat.S_ISLNK(status.st_mode):
            content = os.readlink(path)
        elif stat.S_ISREG(status.st_mode):
            content = open(path, "rb").read()
        attributes = [] if stat.S_ISLNK(status.st_mode) else [
            (name, os.getxattr(path, name)) for name in sorted(os.listxattr(path))
        ]
        print(ascii((path, status.st_mode, status.st_uid, status.st_nlink
            if stat.S_ISREG(status.st_mode) else 0, status.st_mtime_ns, content, attributes)))
"""


def listing(world: World, root: Path, python: str = PYTHON) -> str:
    """Everything that a program in the world sees of a tree."""
    result = world.run([python, "-c", LIST, str(root)])
    assert result.ok, result.stderr
    return result.stdout


def test_a_fork_has_the_tree_after_the_step_and_goes_its_own_way(
    user: User, git_checkout: Path
) -> None:
    with user.client() as sub, sub.world(project=git_checkout, cwd=git_checkout) as world:
        first = world.run("echo one > made; rm README.md; mkdir d; ln -s ../made d/l; chmod 700 d")
        seen = listing(world, git_checkout)
        world.run("echo two > made; rm -r d; echo more > later")
        with world.fork(at=first) as other:
            assert other.world_id != world.world_id
            assert other.session_id == world.session_id
            assert listing(other, git_checkout) == seen
            assert other.info.cwd == world.info.cwd
            # What the first world had changed by then is told as the fork's own.
            names = {change.path_bytes for change in other.diff().changes}
            assert os.fsencode(git_checkout / "made") in names
            assert os.fsencode(git_checkout / "later") not in names
            other.run("echo fork > made")
            assert world.run("cat made").stdout == "two\n"
            assert other.run("cat made").stdout == "fork\n"
    assert (git_checkout / "README.md").exists()
    assert not (git_checkout / "made").exists()


def test_a_fork_is_made_when_the_first_world_is_gone(user: User, git_checkout: Path) -> None:
    with user.client() as sub:
        with sub.world(project=git_checkout, cwd=git_checkout, env={"NAME": "kept"}) as world:
            step = world.run("echo $NAME > made; truncate -s 64M sparse; ln made other")
            seen = listing(world, git_checkout)
        with sub.fork(step) as other:
            assert listing(other, git_checkout) == seen
            assert other.run("echo $NAME; pwd").stdout == f"kept\n{git_checkout}\n"
        with pytest.raises(errors.WorldNotFound):
            sub.connect(other.world_id)


def test_a_fork_after_the_host_moved_on_has_what_was_kept(user: User, git_checkout: Path) -> None:
    (git_checkout / "data").write_text("as it was\n")
    with user.client() as sub:
        with sub.world(project=git_checkout, cwd=git_checkout) as world:
            step = world.run("cat data > copy; cat README.md > /dev/null")
            seen = listing(world, git_checkout)
        (git_checkout / "data").write_text("as it is now\n")
        (git_checkout / "added").write_text("since\n")
        with sub.fork(step) as other:
            assert listing(other, git_checkout) == seen
            # The host's own moves are no changes of the fork.
            assert [change.path for change in other.diff().changes] == [str(git_checkout / "copy")]


def test_a_fork_of_a_fork_and_of_a_step_in_it(user: User, git_checkout: Path) -> None:
    with user.client() as sub, sub.world(project=git_checkout, cwd=git_checkout) as world:
        first = world.run("echo 1 > a")
        with world.fork(at=first) as second:
            step = second.run("echo 2 > b")
            with second.fork(at=step.span_id[:12]) as third:
                assert third.run("cat a b").stdout == "1\n2\n"


def test_a_snapshot_can_be_started_from(user: User, git_checkout: Path) -> None:
    with user.client() as sub, sub.world(project=git_checkout, cwd=git_checkout) as world:
        world.run("echo one > made; rm README.md")
        kept = world.snapshot()
        assert not kept.unclean
        steps = world.refresh().steps
        assert world.snapshot().snapshot_id == kept.snapshot_id
        assert world.refresh().steps == steps
        world.run("echo two > made")
        with sub.world(base=f"snapshot:{kept.snapshot_id}", cwd=git_checkout) as other:
            assert other.run("cat made; ls README.md").stdout == "one\n"
        with sub.world(base=f"after:{world.run('true').span_id}", cwd=git_checkout) as other:
            assert other.run("cat made").stdout == "two\n"


def test_a_snapshot_says_that_a_file_is_open_for_writing(user: User, git_checkout: Path) -> None:
    with user.client() as sub, sub.world(project=git_checkout, cwd=git_checkout) as world:
        proc = world.exec("exec 3> open; echo ready; read line", stdin=True)
        assert read_some(proc) == b"ready\n"
        assert world.snapshot().unclean
        proc.stdin.close()
        proc.wait()
        assert not world.snapshot().unclean


def test_the_command_line_forks_the_last_step(user: User, git_checkout: Path) -> None:
    user.run_json("sh", "-c", "echo made > made", cwd=git_checkout)
    done = user.run("fork", "@last", cwd=git_checkout)
    assert done.code == 0, done.err
    world_id = done.out.strip()
    try:
        shown = user.run(
            "world", "exec", "--quiet", world_id, "--", "cat", "made", cwd=git_checkout
        )
        assert (shown.code, shown.out) == (0, "made\n")
        again = user.run("fork", "--json", world_id, cwd=git_checkout)
        assert again.code == 0, again.err
        user.run("world", "rm", again.json["world_id"], cwd=git_checkout)
    finally:
        user.run("world", "rm", world_id, cwd=git_checkout)


def test_a_step_that_is_not_recorded_is_named(user: User) -> None:
    with user.client() as sub, pytest.raises(errors.SpanNotFound, match="0123456789abcdef"):
        sub.fork("0123456789abcdef")


def test_unchanged_directories_are_the_same_objects(user: User, git_checkout: Path) -> None:
    with user.client() as sub, sub.world(project=git_checkout, cwd=git_checkout) as world:
        world.run("mkdir -p many/a many/b; for n in 1 2 3 4 5; do echo $n > many/a/$n; done")
        before = world.snapshot()
        objects = count_objects(user)
        world.run("echo new > many/b/new")
        world.snapshot()
        # One file, the directories above it, the snapshot, its inputs and changes, the output.
        assert count_objects(user) - objects < 20
        assert before.snapshot_id


def count_objects(user: User) -> int:
    done = subprocess.run(
        ["find", str(user.substrate_home / "objects"), "-type", "f"],
        check=True,
        capture_output=True,
    )
    return done.stdout.count(b"\n")


def test_names_that_are_no_text_come_along(user: User, git_checkout: Path) -> None:
    with user.client() as sub, sub.world(project=git_checkout, cwd=git_checkout) as world:
        step = world.run(["sh", "-c", r"printf x > $(printf 'a\nb\377'); mkdir -p '-rf'/' '"])
        seen = listing(world, git_checkout)
        with world.fork(at=step) as other:
            assert listing(other, git_checkout) == seen
    assert tree_of(git_checkout).keys() >= {"README.md"}
