"""Files of a world that fights back: links, races and flood lead to nothing of the host's."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest

from substrate_sdk.client.sync import World
from substrate_sdk.errors import SubstrateError, WorldFileDenied, WorldFileNotFound
from tests.users import User, kill_and_wait

SECRET = b"of the host alone"
MB = 1 << 20


@pytest.fixture
def secret(who: tuple[str, User]) -> Iterator[Path]:
    """A file that only the recorder sees, beside its own."""
    directory = who[1].substrate_home
    path = directory / "secret"
    path.write_bytes(SECRET)
    path.chmod(0o644)
    yield path
    assert path.read_bytes() == SECRET
    path.unlink()


def test_no_path_leads_out(world: World, secret: Path) -> None:
    world.run(f"ln -s {secret} link; ln -s {secret.parent} dir; mkdir -p a/b; ln -s / root")
    up = "../" * 30
    paths = [
        "link",
        "dir/secret",
        f"{up}{os.fspath(secret)[1:]}",
        f"root{secret}",
        f"/proc/self/root{secret}",
        f"/proc/1/root{secret}",
        f"/proc/self/cwd/{up}{os.fspath(secret)[1:]}",
    ]
    for path in paths:
        with pytest.raises((WorldFileNotFound, WorldFileDenied)):
            world.files.read(path)
        with pytest.raises((WorldFileNotFound, WorldFileDenied)):
            world.files.chmod(path, 0o777)
        # Some of these change what is in the world: the link itself, say. None reaches the host.
        with contextlib.suppress(SubstrateError):
            world.files.write(path, b"overwritten")
        with contextlib.suppress(SubstrateError):
            world.files.rename(path, "taken")
        with contextlib.suppress(SubstrateError):
            world.files.remove(path, recursive=True)
        world.run(f"rm -rf taken; [ -L link ] || ln -s {secret} link")
    assert secret.stat().st_mode & 0o777 == 0o644


def test_a_directory_that_becomes_a_link_all_the_time_is_no_way_out(
    world: World, secret: Path
) -> None:
    host = secret.parent
    before = set(os.listdir(host))
    world.run("mkdir d; echo inside > d/secret")
    swapper = world.exec(
        f"while [ ! -e stop ]; do mv d e; ln -s {host} d; rm d; mv e d; done 2>/dev/null"
    )
    deadline = time.monotonic() + 4
    read = 0
    while time.monotonic() < deadline:
        for look in (
            lambda: world.files.read("d/secret"),
            lambda: world.files.write("d/made-by-race", b"x"),
            lambda: world.files.list("d"),
            lambda: world.files.remove("d/made-by-race"),
            lambda: world.files.mkdir("d/dir-by-race"),
            lambda: world.files.rename("d/dir-by-race", "d/renamed-by-race"),
        ):
            try:
                found = look()
            except SubstrateError:
                continue
            read += 1
            assert found != SECRET
    world.run("touch stop")
    swapper.wait(10)
    assert read
    assert not [name for name in set(os.listdir(host)) - before if "race" in name]


def test_a_hard_link_to_a_file_of_the_host_is_written_in_the_world_only(world: World) -> None:
    world.run("ln README.md hard")
    world.files.write("hard", b"mine")
    project = Path(world.run("pwd").stdout.strip())
    assert world.files.read("README.md") == b"mine"
    assert (project / "README.md").read_bytes() != b"mine"


def test_an_endless_file_is_read_no_further_than_the_reader_reads(
    world: World, who: tuple[str, User]
) -> None:
    world.run("truncate -s 4T sparse")
    free = os.statvfs(who[1].home).f_bavail
    taken = 0
    pieces = world.files.read_pieces("sparse")
    for piece in pieces:
        taken += len(piece)
        if taken > 200 * MB:
            break
    block = os.statvfs(who[1].home).f_frsize
    assert (free - os.statvfs(who[1].home).f_bavail) * block < 100 * MB
    assert world.files.read("sparse", offset=(4 << 40) - 1) == b"\0"


def test_a_world_that_is_removed_ends_what_reads_in_it(world: World) -> None:
    world.run("truncate -s 1T sparse")
    pieces = iter(world.files.read_pieces("sparse"))
    next(pieces)
    failed: list[BaseException] = []

    def drain() -> None:
        try:
            for _ in pieces:
                pass
        except SubstrateError as error:
            failed.append(error)

    reader = threading.Thread(target=drain)
    reader.start()
    world.remove()
    reader.join(20)
    assert not reader.is_alive()
    assert failed


def _rss_bytes(pid: int) -> int:
    fields = Path(f"/proc/{pid}/statm").read_text().split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")


class Peak:
    """The largest resident size of a process while the block runs."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self.before = _rss_bytes(pid)
        self.most = self.before
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def _look(self) -> None:
        while not self._over.wait(0.05):
            self.most = max(self.most, _rss_bytes(self._pid))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._over.set()
        self._thread.join()


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_gigabyte_goes_in_and_out_in_constant_memory(
    world: World, who: tuple[str, User], tmp_path: Path
) -> None:
    # Once is enough of a gigabyte; that it costs no memory, a quarter of it shows as well.
    size = 1 << 30 if who[0] == "user" else 1 << 28
    source = tmp_path / "source"
    with source.open("wb") as file:
        for number in range(size // MB):
            file.write(b"%08d" % number * (MB // 8))
    began = time.monotonic()
    with Peak(who[1].host_pid()) as host, Peak(os.getpid()) as client:
        with source.open("rb") as file:
            result = world.files.write("big", file)
        wrote_s = time.monotonic() - began
        taken = 0
        for piece in world.files.read_pieces("big"):
            taken += len(piece)
    read_s = time.monotonic() - began - wrote_s
    print(f"{size // MB} MiB: written in {wrote_s:.1f} s, read in {read_s:.1f} s")
    print(
        f"host +{(host.most - host.before) >> 20} MiB, client +{client.most - client.before >> 20}"
    )
    assert taken == size
    assert result.changes[0].after is not None
    assert result.changes[0].after.size_bytes == size
    # What is between two threads at most; 14 to 20 MiB were measured, on a busy machine or not.
    assert host.most - host.before < 64 * MB
    assert client.most - client.before < 100 * MB


def test_a_host_that_is_killed_while_it_writes_finishes_the_write(
    lone_user: User, git_checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = os.urandom(30 * MB)
    with lone_user.embedded(monkeypatch) as sub, sub.world(project=git_checkout) as world:
        target = world.run("pwd").stdout.strip() + "/big"
        done: list[object] = []
        writer = threading.Thread(target=lambda: done.append(world.files.write("big", content)))
        writer.start()
        deadline = time.monotonic() + 20
        while not world.files.exists(target) and time.monotonic() < deadline:
            time.sleep(0.01)
        kill_and_wait(lone_user.host_pid())
        writer.join(60)
        assert done
        assert world.files.read("big") == content
