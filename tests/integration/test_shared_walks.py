"""Walks that share what has not changed give what walks from nothing give, in real worlds.

The walks from nothing are this test's own, of the same upper layers: all entries are looked at, and
all files read again. A step's changes and its snapshot have to be those that they come to.
"""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from substrate_sdk import Limits, Result
from substrate_sdk.client.sync import World
from substrate_services.objects.store import ObjectStore, hash_file
from substrate_services.world.changes import ChangeFinder
from substrate_services.world.layers import UpperNode
from substrate_services.world.layout import what_is_hidden
from substrate_services.world.layout_file import load_layout
from substrate_services.world.snapshots import get_snapshot, put_snapshot
from substrate_services.world.walks import walk_upper
from tests.native.recording import compile_c
from tests.users import PYTHON, User

RAW = Path(__file__).parents[2] / "native" / "tests" / "rawfork.c"
FILES = 2_500
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


class Oracle:
    """Looks at a world from nothing.

    Args:
        user: whose world it is.
        world: the world.
        store: for the snapshots that the steps' are held against.
    """

    def __init__(self, user: User, world: World, store: ObjectStore) -> None:
        self._layout = load_layout(user.substrate_home / "worlds" / world.world_id)
        self._host_objects = user.substrate_home / "objects"
        self._store = store
        self._finder = ChangeFinder(
            self._layout.layers,
            self._layout.project,
            lambda path, _status: hash_file(path),
            what_is_hidden(self._layout),
        )
        self._before = self._walk()

    def look(self) -> None:
        """Take what is there for what the next step begins with."""
        self._before = self._walk()

    def check(self, result: Result, step: str) -> None:
        """Hold a step that has just ended against two walks from nothing."""
        before, self._before = self._before, self._walk()
        told = {(change.path_bytes, change.kind) for change in result.changes}
        found = self._finder.changes(before, self._before)
        assert told == {(change.path, change.kind) for change in found}, step
        assert result.snapshot_after is not None
        with contextlib.closing(ObjectStore(self._host_objects)) as host:
            base = get_snapshot(host, result.snapshot_after).base
        whole = put_snapshot(self._store, base, self._layout.layers, self._before)
        assert result.snapshot_after == whole, step

    def _walk(self) -> dict[str, UpperNode]:
        return {layer.layer_id: walk_upper(layer, _digest) for layer in self._layout.layers}


def _digest(descriptor: int, _status: os.stat_result) -> str:
    return hash_file(descriptor)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ObjectStore]:
    with contextlib.closing(ObjectStore(tmp_path / "oracle")) as made:
        yield made


def fill(world: World) -> None:
    assert world.run([PYTHON, "-c", FILL]).ok


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
def test_shared_walks_find_what_walks_from_nothing_find(
    user: User, git_checkout: Path, store: ObjectStore, seed: int
) -> None:
    (git_checkout / "base" / "deep").mkdir(parents=True)
    for name in ("one", "deep/two", "deep/three"):
        (git_checkout / "base" / name).write_text(name)
    (git_checkout / "base" / "link").symlink_to("deep")
    chance = random.Random(seed)
    with user.client() as sub, sub.world(project=git_checkout, cwd=git_checkout) as world:
        fill(world)
        oracle = Oracle(user, world, store)
        for number in range(STEPS):
            script = a_step(chance)
            result = world.run(["sh", "-c", script])
            if " & :" in script:
                # What a step leaves running may change more before anybody else looks.
                world.run("sleep 0.2")
                oracle.look()
                continue
            oracle.check(result, f"step {number}: {script}")


def test_what_no_program_says_is_found_in_the_step_that_did_it(
    user: User, git_checkout: Path, store: ObjectStore
) -> None:
    """Written by system calls of its own, in place: no event, and no directory's time, tells."""
    compile_c(RAW, git_checkout / "raw")  # linked dynamically, so telemetry covers it
    changed = os.fsencode(git_checkout / "full/7/350")
    with user.client() as sub, sub.world(project=git_checkout, cwd=git_checkout) as world:
        fill(world)
        oracle = Oracle(user, world, store)
        # Steps that say all that they do are no reason to believe the next one.
        for number in (150, 151):
            said = world.run(f"echo x > full/3/{number}")
            assert "no event explains" not in "; ".join(said.coverage.reasons)
            oracle.check(said, "a step that says all")
        silent = world.run(["./raw", "--write", "full/7/350"])
        assert silent.ok
        assert [(change.path_bytes, change.kind) for change in silent.changes] == [
            (changed, "modified")
        ]
        oracle.check(silent, "a step that says nothing")
        assert silent.coverage.state == "partial"
        assert silent.coverage.processes == silent.coverage.covered
        reason = silent.coverage.reasons[-1]
        assert reason.startswith("1 changes that no event explains")
        assert reason.endswith("/full/7/350")
        # The tree of that step has it, for whoever goes back to it.
        world.run("rm -r full")
        world.rollback(silent.span_id)
        assert world.run("cat full/7/350").stdout == "raw\n"


@pytest.mark.root
def test_what_is_written_through_a_mapping_later_is_found_later(
    user: User, git_checkout: Path
) -> None:
    """The page is dirty from the first write on, so that the second one is no event to anybody."""
    writer = (
        "import mmap, os\n"
        "file = os.open('mapped', os.O_RDWR | os.O_CREAT); os.ftruncate(file, 4096)\n"
        "page = mmap.mmap(file, 4096); os.close(file)\n"
        "page[:3] = b'one'\n"
        "os.mkfifo('told'); os.mkfifo('done')\n"
        "open('told').close(); page[:3] = b'two'; open('done', 'w').close()\n"
    )
    own_disk = Limits(disk_bytes=32 << 20)  # which nothing else writes back meanwhile
    with user.client() as sub, sub.world(cwd=git_checkout, limits=own_disk) as world:
        world.exec([PYTHON, "-c", writer])
        assert world.run("until test -p done; do sleep 0.01; done").ok
        world.run("echo > told; read _ < done || :")
        assert world.run("head -c3 mapped").stdout == "two"
        world.rollback(world.run("true"), kill=True)
        assert world.run("head -c3 mapped").stdout == "two"
