"""Networks of worlds that live on: changed, recovered, rootless, and gone without a trace."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from substrate_sdk.client.sync import World
from substrate_sdk.types import Limits
from tests.integration.test_network_ports import helper_of
from tests.integration.test_network_rules import connect, fetch, run
from tests.internet import (
    DNS,
    HOST_V4,
    METADATA,
    OTHER_V4,
    PRIVATE,
    V4,
    V6,
    Internet,
)
from tests.leaks import processes
from tests.user_fixtures import rootless_user
from tests.users import PYTHON, Json, User, eventually, kill_and_wait, new_user, read_some

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(shutil.which("nft") is None, reason="nft is not installed (nftables)"),
    pytest.mark.skipif(shutil.which("pasta") is None, reason="pasta is not installed (passt)"),
]

SYSTEM_PYTHON = "/usr/bin/python3"  # one that an ordinary user may execute
_VARIABLES = (("SUBSTRATE_DNS", DNS),)


@pytest.fixture
def online(internet: Internet) -> Iterator[User]:
    with new_user(internet.as_host, variables=_VARIABLES) as made:
        made.up()
        yield made


def helpers(user: User) -> list[int]:
    """The helper, what lives in the router, and the way out of it."""
    needle = os.fsencode(os.path.join(user.paths.run_dir, "net"))
    found = []
    for pid in processes():
        try:
            if needle in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
        except OSError:
            continue
    return found


def routed(user: User, *command: str) -> str:
    """What a command says in the router."""
    for pid in processes():
        try:
            status = Path(f"/proc/{pid}/status").read_text()
        except OSError:
            continue
        if f"PPid:\t{user.launcher_pid()}\n" in status and "substrate-net" in status:
            enter = ["nsenter", f"--net=/proc/{pid}/ns/net", *command]
            return subprocess.run(enter, check=True, capture_output=True, text=True).stdout
    raise AssertionError("there is no router")


def of_life(user: User, event_type: str) -> list[Json]:
    return [line["detail"] for line in user.lines() if line["event_type"] == event_type]


STREAM = (
    "import socket, sys, time\n"
    f"s = socket.create_connection(('{V4}', 80))\n"
    "print('begun', flush=True)\n"
    "try:\n"
    "  while True:\n"
    "    s.sendall(b'GET / HTTP/1.1\\r\\nHost: a\\r\\n\\r\\n'); s.recv(4096); time.sleep(0.05)\n"
    "except OSError as error:\n"
    "  print('cut', type(error).__name__, flush=True)\n"
)


def test_rules_change_on_a_living_world_and_narrowing_cuts_what_is_open(
    online: User, internet: Internet, git_checkout: Path
) -> None:
    internet.name("site.example", V4)
    with online.client() as sub, sub.world(project=git_checkout) as world:
        assert connect(world, f"{V4}:80") == ["OSError"]
        world.update(network=[f"{V4}/32", f"{OTHER_V4}/32"])
        assert connect(world, f"{V4}:80", f"{OTHER_V4}:80") == ["reached"] * 2
        stream = world.exec([PYTHON, "-c", STREAM])
        assert read_some(stream).startswith(b"begun")
        world.update(network=["site.example", f"{OTHER_V4}/32"])
        result = stream.wait(20)
        assert "cut" in result.stdout, result
        assert connect(world, f"{V4}:80", f"{OTHER_V4}:80") == ["ConnectionRefusedError", "reached"]
        assert fetch(world, "http://site.example/") == [f"200 {V4} /"]
        world.update(network=["full"])
        assert connect(world, f"{V6}:80") == ["reached"]
        assert list(world.update(network=["none"]).network) == []
        assert connect(world, f"{OTHER_V4}:80") == ["OSError"]
    assert [detail["network"] for detail in of_life(online, "world_updated")] == [
        [f"{V4}/32", f"{OTHER_V4}/32"],
        ["site.example", f"{OTHER_V4}/32"],
        ["full"],
        [],
    ]


def test_a_killed_helper_leaves_the_world_closed_and_the_next_goes_on(
    online: User, internet: Internet, git_checkout: Path
) -> None:
    internet.name("site.example", V4, ttl=600)
    internet.name("later.example", OTHER_V4)
    with online.client() as sub:
        rules = ["site.example", "later.example"]
        world = sub.world(project=git_checkout, network=rules, keep=True)
        assert fetch(world, "http://site.example/") == [f"200 {V4} /"]
        before = routed(online, "nft", "list", "ruleset")
        # Without the host nobody starts it again: the filter stands by itself.
        kill_and_wait(online.host_pid())
        kill_and_wait(helper_of(online))
        assert connect_from_outside(world, online, OTHER_V4) == "ConnectionRefusedError"
        after = routed(online, "nft", "list", "ruleset")
        assert "policy drop" in after
        assert after.count("goto refuse") == before.count("goto refuse")
    online.up()
    with online.client() as sub:
        world = sub.connect(world.world_id)
        assert connect(world, f"{V4}:80") == ["reached"]  # what was open is, unasked
        assert fetch(world, "http://site.example/", "http://later.example/") == [
            f"200 {V4} /",
            f"200 {OTHER_V4} /",
        ]
        killed = helper_of(online)
        kill_and_wait(killed)
        eventually(lambda: helper_alive(online, killed), "another helper")
        expected = [f"200 {OTHER_V4} /"]
        eventually(lambda: fetch(world, "http://later.example/") == expected, "names again")
        world.remove()


def test_what_a_host_had_not_written_down_when_it_died_does_not_hold(
    online: User, git_checkout: Path
) -> None:
    with online.client() as sub:
        world = sub.world(project=git_checkout, keep=True)
        before = state_of(online, world.world_id)
        world.update(network=["full"], limits=Limits(pids=4))
        assert connect(world, f"{V4}:80") == ["reached"]
    kill_and_wait(online.host_pid())
    # As a host leaves it that dies between the kernel and the file.
    state_file(online, world.world_id).write_text(before)
    online.up()
    with online.client() as sub:
        world = sub.connect(world.world_id)
        assert list(world.info.network) == []
        assert connect(world, f"{V4}:80") == ["OSError"]
        assert run(world, "cat", "/proc/net/dev").stdout.count("eth0") == 0
        many = "for i in 1 2 3 4 5 6 7 8; do sleep 30 & done && echo begun; kill $(jobs -p)"
        assert run(world, "bash", "-c", many).stdout == "begun\n"
        world.remove()


def state_file(user: User, world_id: str) -> Path:
    """Where a host keeps what it knows of a world."""
    (found,) = (user.home / ".substrate" / "worlds" / world_id).glob("world.json")
    return found


def state_of(user: User, world_id: str) -> str:
    return state_file(user, world_id).read_text()


def test_a_helper_that_died_in_a_change_leaves_no_name_open_that_was_closed(
    online: User, internet: Internet, git_checkout: Path
) -> None:
    """What names had opened is the kernel's, and the next helper has no rules to compare with."""
    internet.name("site.example", V4)
    internet.name("later.example", OTHER_V4)
    with online.client() as sub:
        wide = ["site.example", "later.example"]
        world = sub.world(project=git_checkout, network=wide, keep=True)
        assert fetch(world, "http://site.example/", "http://later.example/") == [
            f"200 {V4} /",
            f"200 {OTHER_V4} /",
        ]
    kill_and_wait(online.host_pid())
    kill_and_wait(helper_of(online))
    # As after a change that the host wrote down and the helper did not live to make.
    written = json.loads(state_of(online, world.world_id))
    assert written["network"] == wide
    narrow = json.dumps(written | {"network": wide[:1]})
    state_file(online, world.world_id).write_text(narrow)
    online.up()
    with online.client() as sub:
        world = sub.connect(world.world_id)
        assert connect(world, f"{OTHER_V4}:80") == ["ConnectionRefusedError"]
        assert fetch(world, "http://site.example/") == [f"200 {V4} /"]
        world.remove()


def test_a_dead_way_out_is_opened_again_and_its_worlds_are_told(
    online: User, internet: Internet, git_checkout: Path
) -> None:
    internet.name("site.example", V4)
    with online.client() as sub, sub.world(project=git_checkout, network=["site.example"]) as world:
        assert fetch(world, "http://site.example/") == [f"200 {V4} /"]
        stream = world.exec([PYTHON, "-c", FLOW])
        assert read_some(stream).startswith(b"begun")
        killed = way_out(online)
        kill_and_wait(killed)
        eventually(lambda: of_uplink(online) not in (None, killed), "another way out", 40)
        expected = [f"200 {V4} /"]
        eventually(lambda: fetch(world, "http://site.example/") == expected, "the network", 40)
        stream.kill()
        told = stream.wait()
        assert "network-way-out" in {item.rule for item in told.blocked}
    told_of = {line["event_type"] for line in online.lines()}
    assert {"network_lost", "network_restored"} <= told_of


FLOW = f"""
import socket, time
s = socket.create_connection(('{V4}', 80))
print('begun', flush=True)
time.sleep(60)
"""


def way_out(user: User) -> int:
    pid = of_uplink(user)
    assert pid is not None
    return pid


def of_uplink(user: User) -> int | None:
    """The program that carries the packets of a user's worlds."""
    try:
        return int(Path(user.paths.run_dir, "net", "uplink.pid").read_text())
    except (OSError, ValueError):
        return None


def helper_alive(user: User, but: int) -> bool:
    try:
        return helper_of(user) != but
    except OSError:
        return False


def connect_from_outside(world: World, user: User, address: str) -> str:
    """Try a connection in the world's network namespace, without a host process."""
    del world
    for pid in processes():
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            parent = f"PPid:\t{user.launcher_pid()}\n" in Path(f"/proc/{pid}/status").read_text()
        except OSError:
            continue
        if parent and words[0] == b"substrate-init":
            script = (
                "import socket\n"
                f"try: socket.create_connection(('{address}', 80), 3); print('reached')\n"
                "except OSError as error: print(type(error).__name__)"
            )
            enter = ["nsenter", f"--net=/proc/{pid}/ns/net", PYTHON, "-c", script]
            return subprocess.run(enter, check=True, capture_output=True, text=True).stdout.strip()
    raise AssertionError("there is no world")


def test_removal_leaves_no_link_no_rule_and_no_process(
    online: User, internet: Internet, git_checkout: Path
) -> None:
    internet.name("site.example", V4)
    with online.client() as sub:
        stays = sub.world(project=git_checkout, network=["site.example"])
        empty = sorted(routed(online, "nft", "list", "ruleset").splitlines())
        links = routed(online, "ip", "-br", "link").count("\n")
        worlds = [
            sub.world(project=git_checkout, network=["site.example", "host:9"]) for _ in range(3)
        ]
        for world in worlds:
            assert fetch(world, "http://site.example/") == [f"200 {V4} /"]
        assert routed(online, "ip", "-br", "link").count("\n") == links + 3
        for world in worlds:
            world.remove()
        assert routed(online, "ip", "-br", "link").count("\n") == links
        assert sorted(routed(online, "nft", "list", "ruleset").splitlines()) == empty
        assert helpers(online)
        stays.remove()
    eventually(lambda: not helpers(online), "the helper's end")


def test_flows_of_a_process_that_lives_on_are_lines_of_the_worlds_life(
    online: User, git_checkout: Path
) -> None:
    late = f"(sleep 1; exec 3<>/dev/tcp/{V4}/80; exec 3<>/dev/tcp/{OTHER_V4}/80) &"
    with online.client() as sub:
        world = sub.world(project=git_checkout, network=[f"{V4}/32"])
        world.run(["bash", "-c", late])
        eventually(
            lambda: "ESTABLISHED" in flow_table(online) or "TIME_WAIT" in flow_table(online),
            "the flow",
        )
        world.remove()
    eventually(
        lambda: (
            ("allowed", V4)
            in {
                (detail["flow"]["verdict"], detail["flow"]["address"])
                for detail in of_life(online, "network_flow")
            }
        ),
        "the line of the world's life",
    )


def flow_table(user: User) -> str:
    return routed(user, "cat", "/proc/net/nf_conntrack")


# -- without any privilege -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tun() -> Iterator[None]:
    """/dev/net/tun as udev makes it (0666), in this run's own mount namespace."""
    if os.stat("/dev/net/tun").st_mode & 0o006 == 0o006:
        yield
        return
    directory = Path(tempfile.mkdtemp(prefix="sbtun", dir="/dev/shm"))
    device = directory / "tun"
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=0755", "none", directory], check=True)
    os.mknod(device, 0o666 | stat.S_IFCHR, os.makedev(10, 200))
    device.chmod(0o666)
    subprocess.run(["mount", "--bind", device, "/dev/net/tun"], check=True)
    yield
    subprocess.run(["umount", "/dev/net/tun"], check=True)
    subprocess.run(["umount", directory], check=True)
    directory.rmdir()


@pytest.fixture(scope="module")
def rootless_online(internet: Internet, tun: None) -> Iterator[User]:
    del tun
    with rootless_user(internet.as_host, _VARIABLES) as made:
        # Started before any test's leak check looks.
        made.run("world", "create", "--net", "stays.example", cwd=Path("/"))
        yield made


def test_without_privilege_the_same_rules_hold(rootless_online: User, internet: Internet) -> None:
    internet.name("site.example", V4, V6)
    internet.name("other.example", OTHER_V4)
    internet.name("rebind.example", PRIVATE)
    with (
        rootless_online.client() as sub,
        sub.world(cwd="/", network=["site.example", "rebind.example"]) as world,
    ):
        result = run(world, SYSTEM_PYTHON, "-c", "import os; print(os.getuid())")
        assert result.stdout == "12345\n"
        found = fetch(
            world,
            "http://site.example/a",
            "http://other.example/",
            "http://rebind.example/",
            f"http://{OTHER_V4}/",
            python=SYSTEM_PYTHON,
        )
        assert [line.split()[0] for line in found] == ["200", "error", "error", "error"]
        assert connect(
            world, f"{V6}:80", f"{HOST_V4}:80", f"{METADATA}:80", python=SYSTEM_PYTHON
        ) == [
            "reached",
            "ConnectionRefusedError",
            "ConnectionRefusedError",
        ]
        hostile = (
            "import socket\n"
            "try: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 3); print('did')\n"
            "except OSError: print('failed')"
        )
        assert run(world, SYSTEM_PYTHON, "-c", hostile).stdout == "failed\n"
        address = world.ports.expose(8000)
        assert address.startswith("127.0.0.1:")
        world.update(network=["none"])
        assert connect(world, f"{V4}:80", python=SYSTEM_PYTHON) == ["OSError"]
