"""Looking only where a step wrote gives what a walk of everything gives, in real worlds.

A snapshot that is asked for always walks everything: it is what each step's own is held against.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from substrate_sdk.client.sync import World
from tests.users import PYTHON, User

FILES = 2_500  # more than a short walk is worth (tree.SHORT_WALK_FROM)
STEPS = 12

FILL = f"""
import os
for number in range({FILES}):
    directory = f"full/{{number // 50}}"
    os.makedirs(directory, exist_ok=True)
    with open(f"{{directory}}/{{number}}", "w") as file:
        file.write(str(number))
"""

# What a step may do, to paths that are chosen at random; what fails (no such file) is part of it.
DEEDS = (
    "echo {n} > {a}",
    "echo {n} >> {a}",
    "rm -f {a}",
    "mkdir -p {d}; echo {n} > {d}/in",
    "mkdir -p {d}/x/y; touch {d}/x/y/z",
    "rm -rf {d}",
    "mv {a} {b}",
    "mv {d} {e}",
    "mv {d} moving && echo {n} > moving/f{n} && mv moving {d}",
    "rm -rf {d}; mkdir {d}; echo {n} > {d}/anew",
    "ln -f {a} {b}",
    "ln -sfn {e} {d}l; echo {n} > {d}l/through",
    "echo {n} > {d}l/through",
    "rm -f {d}l",
    "chmod 6{n3} {a}; chmod 7{n3} {d}",
    "touch -d @{n} {a}",
    "truncate -s {n}00k {a}",
    "cp -a {d} {e}",
    "cp {a} {b} && rm {a}",
    "mkfifo p{n}; mknod q{n} p",
    "sed -i s/1/2/ {a} {b}",
    "(cd {d} && echo {n} > ../{n}up && tar -cf ../t{n}.tar . && rm -f ../{n}up)",
    "(sh -c 'echo {n} > {a}; exec >/dev/null 2>&1; sleep 0.05; echo late > {b}') & :",
    PYTHON + ' -c \'import mmap,os; f=os.open("{a}",os.O_RDWR|os.O_CREAT); os.ftruncate(f,64);'
    ' m=mmap.mmap(f,64); os.close(f); m[:2]=b"{n2}"\'',
    PYTHON + ' -c \'import os; os.setxattr("{a}", "user.k", b"{n}")\'',
    PYTHON + ' -c \'import os; os.setxattr("{d}", "user.k", b"{n}")\'',
    PYTHON + ' -c \'import os; os.rename("{a}","tmp1"); os.rename("{b}","{a}");'
    ' os.rename("tmp1","{b}")\'',
    PYTHON + ' -c \'import os; f=os.open("{d}",os.O_TMPFILE|os.O_WRONLY); os.write(f,b"t");'
    ' os.link(f"/proc/self/fd/{{f}}","{d}/linked",follow_symlinks=True)\'',
    PYTHON + " -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"{d}/sock{n}\")'",
    "true",
)


def full_world(sub_world: World) -> World:
    assert sub_world.run([PYTHON, "-c", FILL]).ok
    assert sub_world.run("true").ok  # nobody at work, nothing unsaid: from here on hints count
    return sub_world


def a_step(chance: random.Random) -> str:
    files = [f"full/{chance.randrange(50)}/{chance.randrange(FILES)}" for _ in range(6)]
    files += [f"full/{n // 50}/{n}" for n in chance.sample(range(FILES), 8)]
    files += ["base/one", "base/deep/two", "new", "base/new"]
    directories = [f"full/{chance.randrange(50)}" for _ in range(3)]
    directories += ["base", "base/deep", "made", "made/deeper", "base/other"]
    deeds = []
    for _ in range(chance.randint(1, 5)):
        a, b = chance.choice(files), chance.choice(files)
        d, e = chance.choice(directories), chance.choice(directories)
        number = chance.randrange(10, 99)
        deeds.append(
            chance.choice(DEEDS).format(
                a=a, b=b, d=d, e=e, n=number, n2=number, n3=f"{chance.choice('4567')}5"
            )
        )
    return "; ".join(deeds)


@pytest.mark.parametrize("seed", range(2))
def test_a_short_walk_finds_what_a_whole_one_finds(
    user: User, git_checkout: Path, seed: int
) -> None:
    (git_checkout / "base" / "deep").mkdir(parents=True)
    for name in ("one", "deep/two", "deep/three"):
        (git_checkout / "base" / name).write_text(name)
    (git_checkout / "base" / "link").symlink_to("deep")
    chance = random.Random(seed)
    with user.client() as sub, sub.world(project=git_checkout, cwd=git_checkout) as made:
        world = full_world(made)
        for number in range(STEPS):
            script = a_step(chance)
            result = world.run(["sh", "-c", script])
            # What a step leaves running may change more before the snapshot is taken.
            if " & :" in script:
                world.run("sleep 0.2")
                continue
            assert result.snapshot_after == world.snapshot().snapshot_id, f"step {number}: {script}"


def test_a_step_that_says_all_is_not_walked_for_and_is_found_out_if_it_did_not(
    user: User, git_checkout: Path
) -> None:
    """The host's own hand in an upper stands for a program that kept quiet."""
    with user.client() as sub, sub.world(project=git_checkout, cwd=git_checkout) as made:
        world = full_world(made)
        upper_file = next(Path(user.home).glob(f".substrate/worlds/{world.world_id}/**/full/7/350"))
        before = world.run("echo x > full/3/150")
        assert [change.path_bytes for change in before.changes] == [
            os.fsencode(git_checkout / "full/3/150")
        ]
        upper_file.write_text("in silence")
        quiet = world.run("echo y > full/3/151")
        assert len(quiet.changes) == 1  # nobody looked at it
        assert quiet.snapshot_after != world.snapshot().snapshot_id
        # A link is a reason to look at everything.
        whole = world.run("ln -s x full/3/link")
        assert {os.path.basename(change.path_bytes) for change in whole.changes} == {
            b"350",
            b"link",
        }
        assert whole.coverage.state == "partial"
        assert any("no event explains" in reason for reason in whole.coverage.reasons)
