"""Fork, rollback and apply for a user without any privilege, whose overlays have other options."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from substrate_sdk import errors
from substrate_sdk.client.sync import World
from tests.integration.test_world_apply import SCRIPT, fill, on_host, without_directory_times
from tests.integration.test_world_fork import listing
from tests.user_fixtures import UID
from tests.users import User


def give(directory: Path) -> None:
    for parent, names, files in os.walk(directory):
        for name in (".", *names, *files):
            os.chown(os.path.join(parent, name), UID, UID, follow_symlinks=False)


def seen_in(world: World, root: Path, rootless: User) -> str:
    return listing(world, root, rootless.command[0])


def test_a_fork_and_a_rollback(rootless: User, own_checkout: Path) -> None:
    fill(own_checkout)
    give(own_checkout)
    with rootless.client() as sub, sub.world(project=own_checkout, cwd=own_checkout) as world:
        first = world.run(["bash", "-c", SCRIPT])
        assert first.ok, first.stderr
        seen = seen_in(world, own_checkout, rootless)
        world.run("rm -r deep trees; echo x > made; chmod 000 tool; chmod 500 empty")
        with world.fork(at=first) as other:
            assert seen_in(other, own_checkout, rootless) == seen
        assert world.rollback(to=first) == 1
        assert seen_in(world, own_checkout, rootless) == seen
        assert world.snapshot().snapshot_id == first.snapshot_after
        world.discard()
        assert without_directory_times(
            seen_in(world, own_checkout, rootless)
        ) == without_directory_times(on_host(own_checkout))


def test_an_apply(rootless: User, own_checkout: Path) -> None:
    fill(own_checkout)
    give(own_checkout)
    with rootless.client() as sub, sub.world(project=own_checkout, cwd=own_checkout) as world:
        assert world.run(["bash", "-c", SCRIPT]).ok
        world.apply()
        seen = seen_in(world, own_checkout, rootless)
        assert without_directory_times(on_host(own_checkout)) == without_directory_times(seen)
        assert (own_checkout / "made").stat().st_uid == UID
        assert world.diff().changes == ()
        # The world's own directories hide the host's, which are of the same name by now.
        world.run("rm deep/er/file; echo 2 > deep/er/two")
        world.apply()
        assert [path.name for path in (own_checkout / "deep" / "er").iterdir()] == ["two"]


def test_what_the_caller_may_not_write_is_not_written(rootless: User, own_checkout: Path) -> None:
    closed = own_checkout / "closed"
    closed.mkdir()
    (closed / "file").write_text("root's\n")
    closed.chmod(0o755)  # of root
    with rootless.client() as sub, sub.world(project=own_checkout, cwd=own_checkout) as world:
        world.run("echo mine > made")
        # A world of the user's cannot write there either; the host's directory is taken away.
        (own_checkout / "dir").mkdir()
        os.chown(own_checkout, 0, 0)
        before = on_host(own_checkout)
        with pytest.raises((errors.WorldFileDenied, errors.Conflict)):
            world.apply()
        assert on_host(own_checkout) == before
        os.chown(own_checkout, UID, UID)
        world.apply()
        assert (own_checkout / "made").read_text() == "mine\n"
