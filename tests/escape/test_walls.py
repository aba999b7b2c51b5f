"""Ways out that need somebody on the host's side to be careless, or two worlds to compare."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from substrate_sdk import World
from substrate_sdk.errors import SubstrateError
from substrate_services.world.backends.base import BoxSpec
from substrate_services.world.init_client import InitClient, InitGone
from substrate_services.world.wire import PROTOCOL_VERSION, InitType
from tests.escape.places import OLDEST_LANDLOCK_ABI, SECRET, compile_programs, landlock_abi
from tests.native.boxes import launcher, let_go, root_overlay, talk
from tests.users import User, read_until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="not root")


@pytest.fixture(scope="module")
def programs() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="walls", dir="/var/tmp") as directory:
        os.chmod(directory, 0o755)
        yield compile_programs(Path(directory))


@pytest.fixture
def project() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="walls", dir="/var/tmp") as directory:
        yield Path(directory)


# --- landlock: what is not below the world's root is no file --------------------------------------


@pytest.mark.skipif(landlock_abi() < OLDEST_LANDLOCK_ABI, reason="this kernel has no Landlock")
def test_a_directory_of_the_host_that_leaks_into_a_world_leads_to_no_file(
    tmp_path: Path, programs: Path
) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "leaked").mkdir()
    (tmp_path / "leaked" / "secret").write_text(SECRET)
    command = (str(programs), "read_by_leaked_directory", "secret")
    directory = os.open(tmp_path / "leaked", os.O_RDONLY | os.O_DIRECTORY)

    async def in_a_box() -> bytes:
        async with launcher(tmp_path) as backend:
            spec = BoxSpec("wld_test", (root_overlay(tmp_path / "box"),), "box")
            box = talk(backend, await backend.create(spec), tmp_path)
            try:
                await box.client.connect()
                start = box.command(*command)
                box.follow(start.exec_id)
                log = os.open(box.log(start.exec_id), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
                try:
                    started = await box.client.start(start, log, output_fd=directory)
                finally:
                    os.close(log)
                return (await box.end(started)).err
            finally:
                let_go(box)

    try:
        outside = subprocess.run(command, check=True, stdout=directory, stderr=subprocess.PIPE)
        assert outside.stderr == f"GOT {SECRET}\n".encode()
        assert asyncio.run(in_a_box()) == b"REFUSED EACCES\n"
    finally:
        os.close(directory)


def test_commands_of_one_world_still_see_and_signal_one_another(user: User, project: Path) -> None:
    """The other side of that wall: all of a world is in one domain."""
    with user.client() as client, client.world(project=project, cwd=project) as world:
        server = world.exec(["sleep", "86124"])
        script = (
            "pid=$(pgrep -f 'sleep 86124' | head -1); readlink /proc/$pid/exe; "
            "ls /proc/$pid/fd | head -1; kill $pid"
        )
        seen = world.run(["sh", "-c", script]).stdout.split()
        assert (len(seen), seen[1]) == (2, "0")
        assert server.wait(10).termination_reason == "SIGNALED"


# --- what both sides share ------------------------------------------------------------------------


def _watched(command: list[str], user: User | None, project: Path) -> str:
    """Start a watcher of /dev/null, open that on the host, and ask what the watcher noticed."""
    if user is None:
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=project
        ) as process:
            assert b"WATCHING" in read_until(process, b"WATCHING\n")
            Path("/dev/null").write_bytes(b"x")
            return process.communicate(b"\n", timeout=10)[0].decode()
    with user.client() as client, client.world(project=project, cwd=project) as world:
        watcher = world.exec(command)
        with contextlib.closing(watcher.output()) as output:
            assert b"WATCHING" in next(output).data
            Path("/dev/null").write_bytes(b"x")
            watcher.stdin.write(b"\n")
            watcher.stdin.close()
        return watcher.wait(10).stdout


def test_a_world_does_not_notice_who_opens_a_device_on_the_host(
    user: User, programs: Path, project: Path
) -> None:
    shutil.copy(programs, project / "escape")
    command = [str(project / "escape"), "watch_opens", "/dev/null"]
    assert "GOT an event" in _watched(command, None, project)
    assert "REFUSED" in _watched(command, user, project)


@pytest.mark.parametrize("pty", [False, True])
def test_a_command_has_no_descriptor_but_its_three(user: User, project: Path, pty: bool) -> None:
    with user.client() as client, client.world(project=project, cwd=project) as world:
        listing = world.exec(["sh", "-c", "exec ls -l /proc/self/fd"], pty=pty)
        result = listing.wait(10)
        lines = [line.split(" -> ") for line in result.stdout.split("\n") if " -> " in line]
        names = {line[0].split()[-1]: line[1].strip() for line in lines}
        opened_by_ls = {number for number, target in names.items() if target.endswith("/fd")}
        assert names.keys() - opened_by_ls == {"0", "1", "2"}
        for number in ("0", "1", "2"):
            assert names[number].startswith(("pipe:", "/dev/pts/", "/dev/null")), names


# --- the recorder in another world ----------------------------------------------------------------


def test_what_a_world_does_to_the_recorder_stays_in_it(user: User, project: Path) -> None:
    before = Path("/etc/ld.so.preload").read_bytes() if Path("/etc/ld.so.preload").exists() else b""
    with (
        user.client() as client,
        client.world(project=project, cwd=project) as hostile,
        client.world(project=project, cwd=project) as neighbour,
    ):
        hostile.run(
            "echo /tmp/mine.so > /etc/ld.so.preload; rm -rf /run/substrate/*; mkdir -p /run/x; "
            "touch /run/substrate/seg/forged; mv /run/substrate /run/away"
        )
        seen = neighbour.run(
            "cat /etc/ld.so.preload; ls /run/substrate/seg; cat README 2>/dev/null"
        )
        assert "mine.so" not in seen.stdout
        assert "forged" not in seen.stdout
        assert "libsubstrate_preload" in seen.stdout
        assert seen.coverage.state == "full", seen.coverage
    after = Path("/etc/ld.so.preload").read_bytes() if Path("/etc/ld.so.preload").exists() else b""
    assert after == before


def test_pid_1_outlives_its_children_and_so_do_the_neighbours(user: User, project: Path) -> None:
    with (
        user.client() as client,
        client.world(project=project, cwd=project) as hostile,
        client.world(project=project, cwd=project) as neighbour,
    ):
        sleeper = neighbour.exec(["cat"])
        for script in ("kill -9 1", "kill -STOP 1", "kill -9 -1", "kill -SEGV 1; kill -BUS 1"):
            hostile.run(["sh", "-c", script])
            assert hostile.run(["echo", "alive"]).stdout == "alive\n"
        sleeper.stdin.write(b"untouched")
        sleeper.stdin.close()
        assert sleeper.wait(10).stdout == "untouched"


def test_the_kernel_tells_no_world_where_it_lies(user: User, project: Path) -> None:
    with user.client() as client, client.world(project=project, cwd=project) as world:
        addresses = world.run("cut -d' ' -f1 /proc/kallsyms | sort -u | head -2; cat /proc/modules")
        assert set(addresses.stdout.split()) <= {"0" * 16}
    own = Path("/proc/kallsyms")
    assert not own.exists() or own.read_text()[:16] != "0" * 16


def test_names_that_shells_and_parsers_trip_over_are_applied_as_they_are(
    user: User, project: Path
) -> None:
    names = ["a\nb", "-rf", "$(touch pwned)", "...", " ", "\x1b[2J", "{}", "*"]
    with user.client() as client, client.world(project=project, cwd=project) as world:
        for name in names:
            world.run(["python3", "-c", "import sys; open(sys.argv[1], 'w').write('x')", name])
        world.apply()
    assert sorted(os.listdir(project)) == sorted(names)


# --- trees up and down while they change ----------------------------------------------------------

_FLIP = "while [ ! -e stop ]; do mv d e; ln -s {host} d; rm d; mv e d; done 2>/dev/null"


@contextlib.contextmanager
def _flipping(world: World, host: Path) -> Iterator[None]:
    world.run("mkdir d && echo inside > d/secret")
    flipper = world.exec(_FLIP.format(host=host))
    try:
        yield
    finally:
        world.run("touch stop")
        flipper.wait(10)


def test_directories_that_become_links_all_the_time_are_no_way_out_for_trees(
    user: User, project: Path, tmp_path: Path
) -> None:
    """The host's own directory is the link's target, and the host's client moves trees."""
    host = user.substrate_home / "races"
    host.mkdir()
    (host / "secret").write_text(SECRET)
    up = tmp_path / "up"
    up.mkdir()
    (up / "uploaded").write_text("x")
    (up / "secret").write_text("overwritten")
    done = 0
    try:
        with (
            user.client() as client,
            client.world(project=project, cwd=project) as world,
            _flipping(world, host),
        ):
            for number in range(12):
                down = tmp_path / f"down{number}"
                with contextlib.suppress(SubstrateError, OSError):
                    world.files.download_dir("d", down)
                    done += 1
                with contextlib.suppress(SubstrateError, OSError):
                    world.files.upload_dir(up, "d")
                    done += 1
                for path in tmp_path.glob("down*/**/*"):
                    assert path.is_symlink() or path.is_dir() or SECRET not in path.read_text()
        assert done
        assert [path.name for path in host.iterdir()] == ["secret"]
        assert (host / "secret").read_text() == SECRET
    finally:
        shutil.rmtree(host)


# --- an init that lies ----------------------------------------------------------------------------

_IN_MEMFD = 1


def _packet(
    kind: int,
    payload: bytes = b"",
    *,
    version: int = PROTOCOL_VERSION,
    length: int = -1,
    flags: int = 0,
) -> bytes:
    size = len(payload) if length < 0 else length
    return struct.pack("<HHIII", version, kind, 0, size, flags) + payload


def _endless() -> int:
    """A memfd of a terabyte, of holes."""
    descriptor = os.memfd_create("endless")
    os.truncate(descriptor, 1 << 40)
    return descriptor


_FORGED: dict[str, tuple[bytes, bool]] = {
    "a scrap": (b"\1\2", False),
    "another version": (_packet(InitType.OK, version=77), False),
    "an unknown type": (_packet(0x7777, b"x" * 100), False),
    "a length that lies": (_packet(InitType.OUTPUT, b"x", length=1 << 31), False),
    "an exit of nothing": (_packet(InitType.EXITED), False),
    "an exit of noise": (_packet(InitType.EXITED, os.urandom(400)), False),
    "output of a name that is a path": (
        _packet(InitType.OUTPUT, struct.pack("<64sQ", b"../../etc/passwd", 1 << 62)),
        False,
    ),
    "output of no name": (_packet(InitType.OUTPUT, struct.pack("<64sQ", b"", 1)), False),
    "a state nobody asked for": (_packet(InitType.STATE, os.urandom(300)), False),
    "a memory file that is not there": (
        _packet(InitType.OUTPUT, length=1000, flags=_IN_MEMFD),
        False,
    ),
    "a memory file without end": (
        _packet(InitType.OUTPUT, length=(1 << 32) - 1, flags=_IN_MEMFD),
        True,
    ),
    "a descriptor nobody wants": (_packet(InitType.OK), True),
}


@pytest.mark.parametrize("what", _FORGED)
def test_an_init_that_lies_ends_the_conversation_at_most(what: str) -> None:
    packet, with_descriptor = _FORGED[what]

    async def scenario() -> list[str]:
        problems: list[str] = []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _loop, context: problems.append(str(context)))
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        client = InitClient(ours.detach())
        with theirs:
            greeting = asyncio.ensure_future(client.connect(timeout_s=5))
            await asyncio.sleep(0)
            passed = [_endless()] if with_descriptor else []
            socket.send_fds(theirs, [packet], passed)
            for descriptor in passed:
                os.close(descriptor)
        with pytest.raises(InitGone):
            await greeting
        client.close()
        return problems

    assert asyncio.run(scenario()) == []


def test_nobody_in_a_world_can_speak_for_init(user: User, project: Path) -> None:
    """There is no socket to speak through: not by name, not by descriptor, not by address."""
    with user.client() as client, client.world(project=project, cwd=project) as world:
        script = (
            "cat /proc/net/unix | tail -n +2 | wc -l; ls -l /proc/[0-9]*/fd 2>/dev/null | "
            "grep -c socket:; find /run /tmp /dev -type s | wc -l"
        )
        assert world.run(["sh", "-c", script]).stdout.split() == ["0", "0", "0"]


# --- beside mounts, rootless ----------------------------------------------------------------------


@contextlib.contextmanager
def _beside_a_mount() -> Iterator[Path]:
    """A directory of the host with a mount in it, which rootless worlds take apart."""
    directory = Path(tempfile.mkdtemp(prefix="beside", dir="/srv"))
    directory.chmod(0o755)
    mounted = directory / "mounted"
    mounted.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", mounted], check=True)
    try:
        yield directory
    finally:
        subprocess.run(["umount", mounted], check=True)
        shutil.rmtree(directory)


def test_sockets_beside_mounts_are_not_shown_rootless(
    rootless: User, programs: Path, own_checkout: Path
) -> None:
    copy = own_checkout / "escape"
    shutil.copy(programs, copy)
    with _beside_a_mount() as directory, socket.socket(socket.AF_UNIX) as bus:
        bus.bind(str(directory / "bus"))
        bus.listen()
        (directory / "bus").chmod(0o777)
        (directory / "file").write_text("shown")
        command = [str(copy), "connect_to_path", str(directory / "bus")]
        outside = subprocess.run(command, check=True, capture_output=True, text=True)
        assert outside.stdout == "GOT\n"
        with rootless.client() as client, client.world(project=own_checkout) as world:
            assert world.run(["cat", str(directory / "file")]).stdout == "shown"
            assert world.run(command).stdout in {"REFUSED ENOENT\n", "REFUSED ECONNREFUSED\n"}
