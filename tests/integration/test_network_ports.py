"""A server in a world, reached from its host: issue 4, port forwarding."""

from __future__ import annotations

import os
import socket
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from substrate_sdk import Substrate
from substrate_sdk.client.sync import Exec, World
from substrate_sdk.errors import InvalidArgument
from tests.users import PYTHON, User, eventually, kill_and_wait, read_some

if TYPE_CHECKING:
    from tests.leaks import LeakChecker

SERVE = (
    "import http.server, sys\n"
    "class Page(http.server.BaseHTTPRequestHandler):\n"
    "  def do_GET(self):\n"
    "    body = b'of the world'\n"
    "    self.send_response(200); self.send_header('Content-Length', str(len(body)))\n"
    "    self.end_headers(); self.wfile.write(body)\n"
    "  def log_message(self, *a): pass\n"
    "s = http.server.ThreadingHTTPServer(('127.0.0.1', 8000), Page)\n"
    "print('ready', flush=True); s.serve_forever()\n"
)


@pytest.fixture
def sub(lone_user: User, leak_check: LeakChecker | None) -> Iterator[Substrate]:
    del leak_check
    lone_user.up()
    with lone_user.client() as made:
        yield made


def serve(world: World) -> Exec:
    proc = world.exec([PYTHON, "-c", SERVE])
    assert read_some(proc).startswith(b"ready")
    return proc


def read(address: str) -> bytes:
    with urllib.request.urlopen(f"http://{address}/", timeout=5) as page:
        body: bytes = page.read()
        return body


def test_a_server_in_a_world_without_network_is_reached_and_closed(
    sub: Substrate, git_checkout: Path
) -> None:
    with sub.world(project=git_checkout) as world:
        address = world.ports.expose(8000)
        assert address.startswith("127.0.0.1:")
        assert world.ports.expose(8000) == address
        serve(world)
        assert read(address) == b"of the world"
        assert world.ports.list() == {8000: address}
        world.ports.close(8000)
        assert world.ports.list() == {}
        with pytest.raises(OSError, match="refused"):
            read(address)
        with pytest.raises(InvalidArgument):
            world.ports.expose(70000)


def test_a_port_survives_the_host_process_and_its_helper(
    lone_user: User, git_checkout: Path
) -> None:
    lone_user.up()
    with lone_user.client() as sub:
        world = sub.world(project=git_checkout, keep=True)
        serve(world)
        address = world.ports.expose(8000)
    kill_and_wait(lone_user.host_pid())
    assert read(address) == b"of the world"  # nobody needs the host for that
    lone_user.up()
    with lone_user.client() as sub:
        world = sub.connect(world.world_id)
        assert world.ports.list() == {8000: address}
        helper = helper_of(lone_user)
        kill_and_wait(helper)
        assert eventually(lambda: reached(address), "the port again") == b"of the world"
        assert helper_of(lone_user) != helper
        world.remove()
    with pytest.raises(OSError, match="refused"):
        read(address)


def test_ports_on_the_command_line(lone_user: User, git_checkout: Path) -> None:
    lone_user.up()
    made = lone_user.run("world", "create", "--json", cwd=git_checkout).json["world_id"]
    shown = lone_user.run("world", "expose", made, "8000", "--json", cwd=git_checkout).json
    (port,) = shown["ports"]
    assert port["port"] == 8000
    assert lone_user.run("world", "ports", made, "--json", cwd=git_checkout).json == shown
    assert lone_user.run("world", "unexpose", made, "8000", cwd=git_checkout).code == 0
    shown = lone_user.run("world", "ports", made, "--json", cwd=git_checkout).json
    assert shown == {"ports": []}
    assert lone_user.run("world", "rm", made, cwd=git_checkout).code == 0


TRY = """
import os, socket, sys
for path in sys.argv[1:]:
    try:
        if path.endswith('.sock'):
            socket.socket(socket.AF_UNIX).connect(path)
        else:
            os.stat(path) if '/ns/' in path else os.listdir(path)
        print('did', path)
    except OSError as error:
        print(type(error).__name__)
"""


@pytest.mark.root
def test_another_uid_reaches_nothing_that_lists_forwards_or_changes(
    lone_user: User, git_checkout: Path
) -> None:
    lone_user.up()
    with lone_user.client() as sub, sub.world(project=git_checkout) as world:
        address = world.ports.expose(8000)
        run_dir = lone_user.paths.run_dir
        sockets = sorted(Path(run_dir).rglob("*.sock"))
        assert {"net.sock", "host.sock"} <= {path.name for path in sockets}
        # As somebody to whom no directory above is closed: each mode has to hold by itself.
        lone_user.home.chmod(0o755)
        lone_user.substrate_home.chmod(0o755)
        pids = (lone_user.launcher_pid(), helper_of(lone_user))
        kept = [run_dir, *sockets, *(f"/proc/{pid}/ns/net" for pid in pids)]
        done = subprocess.run(
            ["/usr/bin/python3", "-c", TRY, *map(str, kept)],
            user=12345,
            group=12345,
            extra_groups=[],
            cwd="/",
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.split() == ["PermissionError"] * len(kept)
        assert world.ports.list() == {8000: address}


def reached(address: str) -> bytes | None:
    try:
        return read(address)
    except OSError:
        return None


def helper_of(user: User) -> int:
    """The process that serves the helper's socket."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.connect(os.path.join(user.paths.run_dir, "net.sock"))
        raw = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return int.from_bytes(raw[:4], "little")
