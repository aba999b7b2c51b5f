"""What a command cannot see, reach or do."""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from substrate_sdk import World
from tests.conformance.clauses import Host, Place, clause, new_project, rules, said
from tests.users import read_some

#: The command lines of all processes that a world sees.
COMMANDS = "cat /proc/[0-9]*/cmdline | tr '\\0' ' '"
NETWORK = ("network_filter", "network_uplink")
_IPC_PRIVATE, _IPC_RMID = 0, 0


@pytest.fixture
def listener() -> Iterator[int]:
    """A TCP server on the host's loopback: its port."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@clause("isolation: processes of the host are not seen and not signalled")
def test_processes(shared: World) -> None:
    with subprocess.Popen(["sleep", "86399"]) as outside:
        try:
            found = said(shared, f"{COMMANDS}; ls -d /proc/[0-9]* | wc -l")
            assert "86399" not in found
            assert int(found.split()[-1]) < 20
            shared.run(f"kill -9 {outside.pid}; kill -9 -1")
            assert outside.poll() is None
        finally:
            outside.kill()
    assert said(shared, "echo alive") == "alive\n"


@clause("isolation: the first process of a world cannot be ended, traced or looked into")
def test_first_process(shared: World) -> None:
    for attempt in ("cat /proc/1/environ", "ls /proc/1/root/etc", "cat /proc/1/maps"):
        result = shared.run(f"kill -9 1; {attempt}")
        assert (result.ok, result.stdout) == (False, ""), (attempt, result)
    assert said(shared, "echo alive") == "alive\n"


@clause("isolation: shared memory of the host is not seen")
def test_ipc(shared: World) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    segment = libc.shmget(_IPC_PRIVATE, 4096, 0o1600)
    assert segment >= 0, os.strerror(ctypes.get_errno())
    try:
        assert len(Path("/proc/sysvipc/shm").read_text().splitlines()) > 1
        assert len(said(shared, "cat /proc/sysvipc/shm").splitlines()) == 1
    finally:
        libc.shmctl(segment, _IPC_RMID, None)


@clause("isolation: a world has a host name of its own")
def test_host_name(place: Place, project: Path) -> None:
    before = socket.gethostname()
    with place.sub.world(project=project, hostname="elsewhere") as world:
        assert said(world, "cat /proc/sys/kernel/hostname") == "elsewhere\n"
        assert world.run("echo x > /proc/sys/kernel/hostname").exit_code != 0
    assert socket.gethostname() == before


@clause("isolation: nothing can be mounted, and no mask taken off")
def test_mounts(shared: World) -> None:
    assert shared.run("mount -t tmpfs none /mnt").exit_code != 0
    assert shared.run("umount -l /etc/shadow || umount -l /proc/sys").exit_code != 0
    assert shared.run("unshare -Urm true").exit_code != 0


@clause("isolation: the kernel's switches and devices cannot be written")
def test_kernel(shared: World) -> None:
    for path in ("/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger", "/sys/power/state"):
        assert shared.run(f"echo x > {path}").exit_code != 0, path
    assert shared.run("mknod /tmp/disk b 8 0").exit_code != 0
    assert said(shared, "ls /dev | grep -c '^sd' || true") == "0\n"


@clause("isolation: set-id programs and capabilities give nothing")
def test_privileges(shared: World) -> None:
    status = said(shared, "grep -E '^(NoNewPrivs|Seccomp|CapBnd)' /proc/self/status")
    found = dict(line.split(":\t") for line in status.splitlines())
    assert (found["NoNewPrivs"], found["Seccomp"]) == ("1", "2")
    net_raw, sys_admin, mknod = 13, 21, 27
    assert not int(found["CapBnd"], 16) & (1 << net_raw | 1 << sys_admin | 1 << mknod)


@clause("isolation: homes, secrets and the recorder are masked, and blocked[] says which")
def test_masks(place: Place, shared: World) -> None:
    key = place.user.home / "conform-secret"
    key.write_text("hunter2")
    key.chmod(0o644)
    for path, rule in ((place.user.trace, "substrate-home"), (Path("/etc/shadow"), None)):
        result = shared.run(["cat", str(path)])
        assert (result.exit_code, result.stdout) == (1, ""), path
        if rule is not None:
            assert rules(result), path
            assert all(entry.fix for entry in result.blocked)
    result = shared.run(["cat", str(key)])
    assert "hunter2" not in result.stdout
    assert result.exit_code == 1


@clause("isolation: one world sees neither the files nor the processes of another")
def test_worlds_apart(place: Place, world: World, project: Path) -> None:
    said(world, "echo one > made; echo t > /tmp/made; sleep 86398 > /dev/null 2>&1 &")
    with place.sub.world(project=project, cwd=project) as other:
        assert other.run("ls made /tmp/made").exit_code == 2
        assert "86398" not in said(other, COMMANDS)


@clause("network: none reaches nothing, and blocked[] says what would")
def test_no_network(shared: World, listener: int) -> None:
    assert said(shared, "tail -n +3 /proc/net/dev | cut -d: -f1").split() == ["lo"]
    result = shared.run(["bash", "-c", f"exec 3<>/dev/tcp/127.0.0.1/{listener}"])
    assert result.exit_code != 0
    far = shared.run(["bash", "-c", "exec 3<>/dev/tcp/192.0.2.1/443"])
    assert far.exit_code != 0
    assert [(entry.layer, entry.rule) for entry in far.blocked] == [("network", "network-none")]


@pytest.fixture(scope="package")
def networked_id(host: Host) -> Iterator[str | None]:
    """A world with rules: what carries its network is there before any test, and nobody's leak."""
    if host.why_not(NETWORK) is not None:
        yield None
        return
    with (
        new_project(host.user) as project,
        host.user.client() as sub,
        sub.world(project=project, network=["host:9"]) as world,
    ):
        yield world.world_id


@pytest.fixture
def networked(networked_id: str, place: Place) -> World:
    """That world."""
    return place.sub.connect(networked_id)


def reaches(world: World, host: str, port: int) -> bool:
    return world.run(["bash", "-c", f"exec 3<>/dev/tcp/{host}/{port}"], timeout_s=20).ok


@clause(
    "network: a rule opens what it names, also on a living world, and nothing else",
    needs=NETWORK,
)
def test_allow(networked: World, listener: int) -> None:
    networked.update(network=[f"host:{listener}"])
    assert reaches(networked, "host", listener)
    assert not reaches(networked, "host", 9)
    networked.update(network=["192.0.2.0/24"])
    assert not reaches(networked, "host", listener)


@clause(
    "network: full still closes the host and the metadata addresses",
    needs=NETWORK,
)
def test_full(networked: World, listener: int) -> None:
    networked.update(network=["full"])
    assert "00000000" in said(networked, "cut -f2 /proc/net/route")  # a default route
    assert not reaches(networked, "127.0.0.1", listener)
    assert not reaches(networked, "169.254.169.254", 80)


@clause(
    "network: a port of a world can be reached from the host, until it is closed",
    needs=NETWORK,
)
def test_ports(place: Place, networked: World) -> None:
    source = (
        "import socket\ns = socket.create_server(('127.0.0.1', 8000))\nprint('up', flush=True)\n"
        "c, _ = s.accept(); c.sendall(b'of the world'); c.close()"
    )
    server = networked.exec([place.python, "-c", source])
    assert read_some(server).startswith(b"up")
    host, _, port = networked.ports.expose(8000).rpartition(":")
    with socket.create_connection((host, int(port)), 10) as client:
        assert client.recv(100) == b"of the world"
    assert server.wait(20).ok
    networked.ports.close(8000)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, int(port)), 10)
