"""Worlds that are made before they are asked for: like any other, and nobody's until then."""

from __future__ import annotations

import difflib
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from substrate_sdk import Substrate, World
from tests.users import User, eventually, kill_and_wait

LOOK = """
cd /proc/self
awk '{$1 = $2 = $3 = ""; print}' mountinfo
grep -E '^(Uid|Gid|Groups|Cap|NoNewPrivs|Seccomp|NSpid|NSpgid)' status
cat cgroup uid_map gid_map limits
ls fd /dev /run; stat -c '%A %U %G %n' /* ~/.*; hostname
env | sort | grep -vE '^(TRACEPARENT|SUBSTRATE_[A-Z_]*(ID|SPAN))='; find /tmp /run -xdev | sort
cat /proc/1/environ /proc/1/root/etc/shadow 2>&1; echo 0 > /proc/sys/kernel/core_pattern
mount -t tmpfs none /mnt; umount /proc; kill -0 -1; true
"""


def pool(user: User, size: int) -> None:
    user.substrate_home.mkdir(mode=0o700, exist_ok=True)
    (user.substrate_home / "host.toml").write_text(f"[worlds]\nwarm_pool = {size}\n")


def counts(client: Substrate) -> tuple[int, ...]:
    """What the pool holds, how many it may hold, and how many were claimed and missed."""
    (row,) = (row for row in client.capabilities() if row.feature == "warm_pool")
    return tuple(int(number) for number in re.findall(r"\d+", row.mode))


def until(client: Substrate, holds: Callable[[tuple[int, ...]], bool]) -> tuple[int, ...]:
    return eventually(lambda: found if holds(found := counts(client)) else None, "a full pool")


def look_around(world: World) -> list[str]:
    """All that a world's command can tell of what holds it, without the world's own names."""
    result = world.run(LOOK)
    assert result.exit_code == 0, result.stderr
    # Each world has a range of ids of its own outside, from 0x70000000 on.
    text = re.sub(r"\b(18|19|20|21)\d{8}\b", "OUTSIDE", result.stdout + result.stderr)
    return text.replace(world.world_id, "WORLD").splitlines()


def compare(user: User, project: Path) -> None:
    pool(user, 1)
    user.up()
    with user.client() as client:
        with client.world(cwd=project) as fresh:
            assert counts(client)[2:] == (0, 1)
            seen = look_around(fresh)
        until(client, lambda found: found[0] == 1)
        with client.world(cwd=project) as pooled:
            assert counts(client)[2:] == (1, 1)
            differs = difflib.unified_diff(seen, look_around(pooled), n=0, lineterm="")
            assert "\n".join(differs) == ""
            assert pooled.diff().changes == ()
            # It is given to nobody else.
            with client.world(cwd=project) as another:
                assert another.world_id != pooled.world_id


def test_a_pooled_world_cannot_be_told_from_a_fresh_one(
    lone_user: User, git_checkout: Path
) -> None:
    compare(lone_user, git_checkout)


def test_rootless_too(rootless: User, own_checkout: Path) -> None:
    rootless.run("down", "--worlds", cwd=Path("/"))  # a host reads its settings as it starts
    try:
        compare(rootless, own_checkout)
    finally:
        rootless.run("down", "--worlds", cwd=Path("/"))


def test_what_the_host_changed_meanwhile_is_seen(lone_user: User, git_checkout: Path) -> None:
    pool(lone_user, 1)
    lone_user.up()
    readme, inner = git_checkout / "README.md", git_checkout / "inner"
    inner.mkdir()
    (inner / "old").write_text("old")
    with lone_user.client() as client:
        client.world(cwd=git_checkout).remove()
        until(client, lambda found: found[0] == 1)
        readme.write_text("edited\n")
        (inner / "old").unlink()
        inner.rmdir()
        inner.mkdir()
        (inner / "new").write_text("new")
        with client.world(cwd=git_checkout) as world:
            assert counts(client)[2:] == (1, 1)
            assert world.run("cat README.md; ls inner; echo more >> README.md").stdout == (
                "edited\nnew\n"
            )
            assert [change.path for change in world.diff().changes] == [str(readme)]
            world.apply()  # its baseline is the file as it was when the world was claimed
        assert readme.read_text() == "edited\nmore\n"
        # Where the project itself is another directory now, what was made for it is of no use.
        until(client, lambda found: found[0] == 1)
        git_checkout.rename(git_checkout.with_name("moved"))
        git_checkout.mkdir()
        (git_checkout / "fresh").touch()
        with client.world(cwd=git_checkout) as world:
            assert counts(client)[2:] == (1, 2)
            assert world.run("ls").stdout == "fresh\n"


def test_a_pool_stays_within_its_bounds_and_ends_with_its_host(
    lone_user: User, git_checkout: Path, tmp_path: Path
) -> None:
    pool(lone_user, 2)
    lone_user.up()
    worlds = lone_user.substrate_home / "worlds"
    with lone_user.client() as client:
        kept = client.world(cwd=git_checkout, keep=True)
        for name in ("a", "b", "c"):
            (tmp_path / name).mkdir()
            client.world(cwd=tmp_path / name).remove()
        assert until(client, lambda found: found[0] == 2)[1] == 2
        assert [world.world_id for world in client.worlds()] == [kept.world_id]
    # Killed, it leaves them to the next host, which takes them down: they were nobody's.
    left = set(os.listdir(worlds))
    kill_and_wait(lone_user.host_pid())
    pool(lone_user, 1)
    lone_user.up()
    with lone_user.client() as client:
        assert counts(client) == (0, 1, 0, 0)
        assert os.listdir(worlds) == [kept.world_id]
        assert left > {kept.world_id}
        client.world(cwd=git_checkout).remove()
        until(client, lambda found: found[0] == 1)
    # Asked to end, it takes them down itself.
    kill_and_wait(lone_user.host_pid(), signal.SIGTERM)
    assert os.listdir(worlds) == [kept.world_id]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[worlds]\nwarm_pool = -1\n", "worlds.warm_pool is -1; expected a number of worlds"),
        ("[worlds]\nwarm_pol = 1\n", "worlds.warm_pol is not known; worlds.warm_pool is"),
        ("worlds = 3\n", "write [worlds]"),
        ("[world", "host.toml: "),
    ],
)
def test_a_mistake_in_the_settings_is_one_line(lone_user: User, text: str, said: str) -> None:
    pool(lone_user, 0)
    (lone_user.substrate_home / "host.toml").write_text(text)
    done = lone_user.run("up", cwd=Path("/"))
    assert done.code == 125
    assert said in done.err
    assert len(done.err.splitlines()) == 1
