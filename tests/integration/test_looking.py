"""A looker tells of all that a walk from nothing finds, whatever is done to the trees meanwhile."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from substrate_services.native_paths import native_path
from substrate_services.objects.store import hash_file
from substrate_services.world import layer_walks, looking
from substrate_services.world.beneath import RENAME_EXCHANGE, rename
from substrate_services.world.layer_walks import ENTRIES_TO_STAND_BY, LayerWalks
from substrate_services.world.layers import Layer, UpperNode
from substrate_services.world.looking import Looker
from substrate_services.world.walks import Walk, walk_upper
from tests.native.recording import ROOT, compiler

ROUNDS = 15


def _keep(descriptor: int, _status: os.stat_result) -> str:
    return hash_file(descriptor)


def _make_file(path: Path, chance: random.Random) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_NONBLOCK
    with contextlib.suppress(OSError):
        fd = os.open(path, flags, 0o644)
        os.write(fd, str(chance.random()).encode())
        os.close(fd)


def _make_directory(path: Path, chance: random.Random) -> None:
    with contextlib.suppress(OSError):
        (path / "x" / "y").mkdir(parents=True)
        (path / "x" / "y" / "z").write_text(str(chance.random()))


def _remove(path: Path, _chance: random.Random) -> None:
    subprocess.run(["rm", "-rf", os.fspath(path)], check=True)  # however deep it is


def _rename(path: Path, chance: random.Random) -> None:
    with contextlib.suppress(OSError):
        path.rename(path.parent.parent / f"n{chance.randrange(6)}")


def _link(path: Path, chance: random.Random) -> None:
    with contextlib.suppress(OSError):
        (path.parent / f"n{chance.randrange(6)}").hardlink_to(path)


def _symlink(path: Path, _chance: random.Random) -> None:
    with contextlib.suppress(OSError):
        path.symlink_to("/nonexistent")


def _chmod(path: Path, chance: random.Random) -> None:
    with contextlib.suppress(OSError):
        path.chmod(chance.choice((0o700, 0o755, 0o711)))


def _note(path: Path, chance: random.Random) -> None:
    with contextlib.suppress(OSError):
        os.setxattr(path, "user.note", str(chance.random()).encode(), follow_symlinks=False)


def _fifo(path: Path, _chance: random.Random) -> None:
    with contextlib.suppress(OSError):
        os.mkfifo(path)


def _deep(path: Path, _chance: random.Random) -> None:
    """Deeper than is looked at, and than a path can say."""
    fd = os.open(path.parent, os.O_PATH | os.O_DIRECTORY) if path.parent.is_dir() else -1
    with contextlib.suppress(OSError):
        for _ in range(20):
            os.mkdir("d" * 240, dir_fd=fd)
            below = os.open("d" * 240, os.O_PATH | os.O_DIRECTORY, dir_fd=fd)
            os.close(fd)
            fd = below
    if fd >= 0:
        os.close(fd)


DEEDS: tuple[Callable[[Path, random.Random], None], ...] = (
    _make_file, _make_file, _make_directory, _remove, _rename, _link, _symlink, _chmod, _note,
    _fifo, _deep,
)  # fmt: skip


@pytest.fixture
def layer(tmp_path: Path) -> Iterator[Layer]:
    directory = tmp_path / "layer"
    for number in range(ENTRIES_TO_STAND_BY // 50 + 1):
        below = directory / "upper" / f"full{number}"
        below.mkdir(parents=True)
        for name in range(50):
            (below / str(name)).write_text(str(name))
    yield Layer("root", b"/", (), directory)
    # Its own way of removing does not get at what lies too deep for a path.
    subprocess.run(["rm", "-rf", os.fspath(directory)], check=True)


@contextlib.contextmanager
def walking(layer: Layer) -> Iterator[tuple[LayerWalks, dict[str, UpperNode]]]:
    walks = LayerWalks((layer,), _keep)
    first = walks.walk({})
    walks.stand_by(first)
    assert walks.stands_by
    try:
        yield walks, first
    finally:
        walks.close()


def _act(layer: Layer, chance: random.Random) -> None:
    upper = Path(os.fsdecode(layer.upper))
    places = ("", "n1", "n2", "n3/x", "n4/x/y", "full1", "full2")
    for _ in range(chance.randint(1, 6)):
        path = upper / chance.choice(places) / f"n{chance.randrange(6)}"
        chance.choice(DEEDS)(path, chance)
    if chance.random() < 0.5:
        (upper / "full3" / str(chance.randrange(60))).write_text(str(chance.random()))


@pytest.mark.parametrize("seed", range(3))
def test_what_is_told_makes_the_walk_that_a_walk_from_nothing_is(layer: Layer, seed: int) -> None:
    chance = random.Random(seed)
    with walking(layer) as (walks, first):
        known = first
        for number in range(ROUNDS):
            _act(layer, chance)
            now = walks.walk(known)
            assert now["root"] == walk_upper(layer, _keep), f"round {number} of seed {seed}"
            again = walks.walk(now)
            if not list(now["root"].all_unread()):
                assert again["root"] is now["root"]
            known = again
        assert walks.stands_by


def test_what_could_not_be_kept_is_told_again(layer: Layer) -> None:
    full = False

    def keep(descriptor: int, status: os.stat_result) -> str:
        if full:
            raise OSError(28, "No space left on device")
        return _keep(descriptor, status)

    walks = LayerWalks((layer,), keep)
    try:
        known = walks.walk({})
        walks.stand_by(known)
        known = walks.walk(known)
        changed = Path(os.fsdecode(layer.upper)) / "full1" / "7"
        changed.write_text("other")
        full = True
        with pytest.raises(OSError, match="No space left"):
            walks.walk(known)
        full = False
        assert walks.walk(known)["root"] == walk_upper(layer, _keep)
        assert walks.stands_by
    finally:
        walks.close()


def test_walks_go_on_when_the_looker_is_killed(layer: Layer) -> None:
    with walking(layer) as (walks, known):
        assert walks.looker_pid
        os.kill(walks.looker_pid, signal.SIGKILL)
        (Path(os.fsdecode(layer.upper)) / "full1" / "7").write_text("other")
        assert walks.walk(known)["root"] == walk_upper(layer, _keep)
        assert not walks.stands_by


def test_a_looker_has_no_memory_or_access_error(
    layer: Layer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "substrate-walk"
    native = ROOT / "native"
    done = subprocess.run(
        [
            *compiler(), "-std=gnu11", "-O1", "-g", "-fsanitize=address,undefined",
            "-fno-sanitize-recover=all", "-DSUBSTRATE_SANITIZED", "-I", str(native / "include"),
            *map(str, (native / "walk").glob("*.c")), "-o", str(program),
        ],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode != 0:
        pytest.skip(f"no sanitizers with {compiler()[0]}: {done.stderr.splitlines()[0]}")
    assert native_path("substrate-walk").exists()
    monkeypatch.setattr(looking, "native_path", lambda _name: program)
    chance = random.Random(9)
    looker = Looker([layer.upper])
    try:
        for _ in range(ROUNDS):
            _act(layer, chance)
            assert looker.look(taken=chance.random() < 0.7, everything=True).everything
    finally:
        looker.close()


def _write_twice(path: Path, look: Callable[[], object]) -> None:
    """Write, look, and write as much again, until both writes have left the same times."""
    for number in range(1_000):
        path.write_bytes(b"%04d" % number)
        before = os.stat(path)
        look()
        path.write_bytes(b"%04d" % (number + 5_000))
        after = os.stat(path)
        if (before.st_mtime_ns, before.st_ctime_ns) == (after.st_mtime_ns, after.st_ctime_ns):
            return
    pytest.fail("no two writes came within one tick of the clock")


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a file system takes root")
@pytest.mark.parametrize("with_looker", [False, True])
def test_a_second_change_within_one_tick_is_found(
    layer: Layer, with_looker: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layer_walks, "ENTRIES_TO_STAND_BY", 0)  # a look has to be quick here
    upper = os.fsdecode(layer.upper)
    # Its times are those of the clock's tick, as all file systems' are before Linux 6.13.
    subprocess.run(["mount", "-t", "ramfs", "none", upper], check=True)
    try:
        with walking(layer) as (walks, first):
            if not with_looker:
                walks.close()
            known = [first]

            def look() -> None:
                known.append(walks.walk(known[-1]))

            _write_twice(Path(upper) / "twice", look)
            look()
            assert known[-1]["root"] != known[-2]["root"]
            assert known[-1]["root"] == walk_upper(layer, _keep)
    finally:
        subprocess.run(["umount", upper], check=True)


def test_a_directory_that_is_away_while_it_is_read_is_found_again(
    layer: Layer, monkeypatch: pytest.MonkeyPatch
) -> None:
    upper = Path(os.fsdecode(layer.upper))
    upper_fd = os.open(upper, os.O_PATH | os.O_DIRECTORY)
    read = Walk.entry
    away = iter([True])

    def exchange() -> None:
        rename(upper_fd, b"back", upper_fd, b"other", RENAME_EXCHANGE)

    def entry(
        self: Walk, directory_fd: int, name: bytes, before: UpperNode | None
    ) -> UpperNode | None:
        if name != b"back" or not next(away, False):
            return read(self, directory_fd, name, before)
        exchange()
        try:
            return read(self, directory_fd, name, before)
        finally:
            exchange()

    with walking(layer) as (walks, first):
        known = walks.walk(first)
        (upper / "back").mkdir()
        (upper / "back" / "in").write_text("in")
        (upper / "other").write_text("other")
        monkeypatch.setattr(Walk, "entry", entry)
        for _ in range(2):
            known = walks.walk(known)
        assert next(away, None) is None
        assert known["root"] == walk_upper(layer, _keep)
        assert walks.stands_by
    os.close(upper_fd)


def test_a_looker_that_is_in_the_midst_of_something_ends_at_once(layer: Layer) -> None:
    with walking(layer) as (walks, _known):
        pid = walks.looker_pid
        os.kill(pid, signal.SIGSTOP)  # it hears nothing
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
