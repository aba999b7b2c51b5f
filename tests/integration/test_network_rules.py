"""Issue 4, done when 5: what network rules let a world reach, held against real servers."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from substrate_sdk import Result, Substrate
from substrate_sdk.client.sync import World
from substrate_sdk.errors import InvalidArgument
from tests.internet import (
    DNS,
    FETCH,
    HOST_V4,
    METADATA,
    OTHER_DNS,
    OTHER_V4,
    PRIVATE,
    V4,
    V6,
    Internet,
)
from tests.users import PYTHON, User, eventually

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(shutil.which("nft") is None, reason="nft is not installed (nftables)"),
    pytest.mark.skipif(shutil.which("pasta") is None, reason="pasta is not installed (passt)"),
]

#: Whether an address can be reached at all, and how it fails: no name is asked.
CONNECT = """
import socket, sys
for where in sys.argv[1:]:
    host, _, port = where.rpartition(':')
    try:
        socket.create_connection((host, int(port)), 3).close()
        print('reached', flush=True)
    except OSError as error:
        print(type(error).__name__, flush=True)
"""


@pytest.fixture
def sub(online: User) -> Iterator[Substrate]:
    with online.client() as made:
        yield made


def run(world: World, *command: str) -> Result:
    result = world.run(list(command), timeout_s=30)
    assert result.exit_code == 0, result.stderr
    return result


def fetch(world: World, *urls: str, python: str = PYTHON) -> list[str]:
    return run(world, python, "-c", FETCH, *urls).stdout.splitlines()


def connect(world: World, *where: str, python: str = PYTHON) -> list[str]:
    return run(world, python, "-c", CONNECT, *where).stdout.splitlines()


def flows_of(user: User, result: Result) -> list[dict[str, object]]:
    return [
        line
        for line in user.lines()
        if line["event_type"] == "network_flow" and line.get("span_id") == result.span_id
    ]


def test_an_allowed_name_is_reached_and_others_are_not(
    sub: Substrate, online: User, internet: Internet, git_checkout: Path
) -> None:
    internet.name("site.example", V4)
    internet.name("registry.npmjs.org", OTHER_V4)
    urls = ("http://site.example/a", "http://registry.npmjs.org/", f"http://{OTHER_V4}/")
    with sub.world(project=git_checkout, network=["site.example"]) as world:
        result = run(world, PYTHON, "-c", FETCH, *urls)
    found = result.stdout.splitlines()
    assert found[0] == f"200 {V4} /a"
    assert all(line.startswith("error") for line in found[1:]), found
    # The resolver never passes on what no rule names: nothing leaves inside a question.
    assert not [line for line in internet.questions() if "npmjs" in line]
    blocked = {item.what: (item.layer, item.rule, item.fix) for item in result.blocked}
    assert blocked == {
        "resolve registry.npmjs.org": ("network", "network-allow", "add `--net @npm`"),
        f"connect {OTHER_V4}:80": ("network", "network-allow", f"add `--net {OTHER_V4}:80`"),
    }
    flows = flows_of(online, result)
    (allowed,) = [flow for flow in flows if flow["verdict"] == "allowed"]
    assert allowed["name"] == "site.example"
    assert (allowed["address"], allowed["port"], allowed["protocol"]) == (V4, 80, "tcp")
    assert allowed["source"] == "kernel"
    assert allowed["world_id"] == world.world_id
    assert int(str(allowed["sent_bytes"])) > 100
    assert int(str(allowed["received_bytes"])) > 100
    refused = {(flow["kind"], flow.get("address")) for flow in flows if flow != allowed}
    assert refused == {("lookup", None), ("refused", OTHER_V4)}


def test_a_preset_opens_its_hosts_over_https_and_nothing_else_of_them(
    sub: Substrate, internet: Internet, git_checkout: Path
) -> None:
    internet.name("pypi.org", V4, V6)
    shutil.copy(internet.directory / "ca.pem", git_checkout / "ca.pem")
    with sub.world(
        project=git_checkout,
        cwd=git_checkout,
        network=["@python"],
        env={"SSL_CERT_FILE": str(git_checkout / "ca.pem")},
    ) as world:
        found = fetch(world, "https://pypi.org/simple/", "http://pypi.org/")
        over_v6 = connect(world, f"{V6}:443", f"{V6}:80")
    assert found[0].startswith("200 ")
    assert found[1].startswith("error")
    assert over_v6 == ["reached", "ConnectionRefusedError"]


def test_wildcards_ports_and_blocks(sub: Substrate, internet: Internet, git_checkout: Path) -> None:
    internet.name("a.wild.example", V4)
    internet.name("wild.example", V4)
    internet.name("port.example", OTHER_V4)
    rules = ["*.wild.example", "port.example:8080", f"{PRIVATE}/32:80", f"[{V6}/64]:80"]
    with sub.world(project=git_checkout, network=rules) as world:
        found = fetch(
            world,
            "http://a.wild.example/",
            "http://wild.example/",
            "http://port.example:8080/",
            "http://port.example/",
            f"http://{PRIVATE}/",
            f"http://{PRIVATE}:8080/",
            f"http://[{V6}]/",
        )
    assert [line.split()[0] for line in found] == [
        "200", "error", "200", "error", "200", "error", "200",
    ]  # fmt: skip


def test_full_reaches_everything_but_the_host_and_metadata(
    sub: Substrate, internet: Internet, git_checkout: Path
) -> None:
    internet.name("anything.example", V4)
    listening = ("python3", "-m", "http.server", "80", "--bind", "0.0.0.0")
    with (
        subprocess.Popen(
            [*internet.as_host, *listening],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/var/empty" if Path("/var/empty").is_dir() else "/",
        ) as server,
        sub.world(project=git_checkout, network=["full"]) as world,
    ):
        try:
            check = [*internet.as_host, "bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/80"]
            eventually(
                lambda: subprocess.run(check, check=False, capture_output=True).returncode == 0,
                "the host's server",
            )
            found = fetch(world, "http://anything.example/", f"http://[{V6}]/")
            assert [line.split()[0] for line in found] == ["200", "200"]
            kept = connect(
                world,
                f"{HOST_V4}:80",
                "2001:2::2:80",
                "10.207.0.1:80",
                "10.207.0.2:80",
                "10.207.255.1:80",
                "10.207.255.2:80",
                f"{METADATA}:80",
                "fd00:ec2::254:80",
                f"::ffff:{HOST_V4}:80",
            )
            assert "reached" not in kept, kept
        finally:
            server.kill()


def test_a_service_of_the_host_is_reached_by_its_rule_only(
    sub: Substrate, internet: Internet, git_checkout: Path
) -> None:
    serve = (
        "import http.server\n"
        "class Page(http.server.BaseHTTPRequestHandler):\n"
        "  def do_GET(self):\n"
        "    self.send_response(200); self.end_headers(); self.wfile.write(b'of the host')\n"
        "make = lambda port: http.server.ThreadingHTTPServer(('127.0.0.1', port), Page)\n"
        "servers = [make(5001), make(5002)]\n"
        "import threading\n"
        "threading.Thread(target=servers[1].serve_forever, daemon=True).start()\n"
        "print('ready', flush=True); servers[0].serve_forever()\n"
    )
    with subprocess.Popen(
        [*internet.as_host, PYTHON, "-c", serve],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as server:
        try:
            assert server.stdout is not None
            assert server.stdout.readline() == b"ready\n"
            with (
                sub.world(project=git_checkout, network=["host:5001"]) as world,
                sub.world(project=git_checkout, network=[f"{V4}:80"]) as other,
            ):
                assert fetch(world, "http://host:5001/", "http://host:5002/") == [
                    "200 of the host",
                    "error [Errno 111] Connection refused",
                ]
                # What listens for one world is not there for another.
                assert connect(other, "10.207.0.2:5001") == ["ConnectionRefusedError"]
        finally:
            server.kill()


def test_answers_that_lead_inside_are_dropped(
    sub: Substrate, internet: Internet, git_checkout: Path
) -> None:
    internet.name("rebind.example", PRIVATE, "127.0.0.1", METADATA, HOST_V4, "fd00:ec2::254")
    internet.name("mapped.example", f"64:ff9b::{PRIVATE}", "::ffff:10.99.0.5")
    with sub.world(project=git_checkout, network=["rebind.example", "mapped.example"]) as world:
        result = run(world, PYTHON, "-c", FETCH, "http://rebind.example/", "http://mapped.example/")
    assert [line.split()[0] for line in result.stdout.splitlines()] == ["error", "error"]
    assert {item.rule for item in result.blocked} == {"network-private-answer"}
    with sub.world(project=git_checkout, network=["rebind.example", f"{PRIVATE}/32"]) as world:
        found = fetch(world, "http://rebind.example/b")
    assert found == [f"200 {PRIVATE} /b"]


def test_a_name_whose_address_changes_keeps_working(
    sub: Substrate, internet: Internet, git_checkout: Path
) -> None:
    internet.name("moves.example", V4, ttl=1)
    with sub.world(project=git_checkout, network=["moves.example"]) as world:
        assert fetch(world, "http://moves.example/") == [f"200 {V4} /"]
        internet.name("moves.example", OTHER_V4, ttl=1)
        assert fetch(world, "http://moves.example/") == [f"200 {OTHER_V4} /"]


ASK = """
import socket, sys
question = b'\\x12\\x34\\x01\\0\\0\\1\\0\\0\\0\\0\\0\\0' + b''.join(
    bytes([len(label)]) + label.encode() for label in sys.argv[2].split('.')) + b'\\0\\0\\1\\0\\1'
for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
    with socket.socket(socket.AF_INET, kind) as asking:
        asking.settimeout(2)
        try:
            asking.connect((sys.argv[1], 53))
            if kind == socket.SOCK_STREAM:
                asking.sendall(len(question).to_bytes(2, 'big') + question)
                answer = asking.recv(512)[2:]
            else:
                asking.send(question)
                answer = asking.recv(512)
            print('code', answer[3] & 15, 'answers', int.from_bytes(answer[6:8], 'big'))
        except OSError as error:
            print(type(error).__name__)
"""


def test_names_are_answered_over_udp_and_tcp_and_by_no_other_server(
    sub: Substrate, internet: Internet, git_checkout: Path
) -> None:
    internet.name("site.example", V4)
    internet.name("secret.tunnel.example", V4)
    with sub.world(project=git_checkout, network=["site.example", f"{OTHER_DNS}/32"]) as world:

        def ask(server: str, name: str) -> list[str]:
            return run(world, PYTHON, "-c", ASK, server, name).stdout.splitlines()

        assert ask("10.207.0.1", "site.example") == ["code 0 answers 1"] * 2
        assert ask("10.207.0.1", "secret.tunnel.example") == ["code 5 answers 0"] * 2
        refused = ask(DNS, "secret.tunnel.example")
        assert not [line for line in refused if line.startswith("code")], refused
        # A rule that names the address is a rule for its name server too.
        assert ask(OTHER_DNS, "site.example")[0] == "code 0 answers 1"
    assert "secret.tunnel.example A" not in internet.questions()


HOSTILE = r"""
import ctypes, os, socket, struct, subprocess, sys
def told(name, work):
    try:
        print(name, 'did', work())
    except OSError as error:
        print(name, 'failed')
told('packet', lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 3))
told('raw', lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1))
told('raw6', lambda: socket.socket(socket.AF_INET6, socket.SOCK_RAW, 58))
def transparent():
    s = socket.socket()
    s.setsockopt(socket.SOL_IP, 19, 1)
    s.bind(('10.207.1.77', 0))
told('transparent', transparent)
told('foreign', lambda: socket.socket().bind(('10.207.1.77', 0)))
def address():
    s = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
    own = bytes([10, 207, 1, 77])
    body = struct.pack('=BBBBIHH4s', 2, 32, 2, 0, 2, 8, 2, own)
    s.send(struct.pack('=IHHII', 16 + len(body), 20, 0x605, 1, 0) + body)
    code, = struct.unpack_from('=i', s.recv(4096), 16)
    if code:
        raise OSError(-code, 'refused')
told('address', address)
def flush():
    done = subprocess.run(['nft', 'flush', 'ruleset'], capture_output=True)
    if done.returncode:
        raise OSError('refused')
    return subprocess.run(['nft', 'list', 'ruleset'], capture_output=True).stdout
def nested(work):
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(0x10000000):
            os._exit(3)
        for file, text in (('setgroups', 'deny'), ('uid_map', f'0 {os.getuid()} 1')):
            try:
                open('/proc/self/' + file, 'w').write(text)
            except OSError:
                pass
        try:
            work()
        except OSError:
            os._exit(4)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
print('nested packet', nested(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 3)))
print('nested address', nested(address))
"""


@pytest.mark.parametrize("user", ["", "root"])
def test_nothing_inside_has_rights_over_its_network(
    sub: Substrate, git_checkout: Path, user: str
) -> None:
    with sub.world(project=git_checkout, network=["full"], user=user) as world:
        found = run(world, PYTHON, "-c", HOSTILE).stdout.splitlines()
        assert run(world, "cat", "/proc/net/dev").stdout.count("eth0") == 1
    for line in found:
        name, _, verdict = line.rpartition(" ")
        assert verdict in ("failed", "3", "4"), (name, found)


def test_worlds_do_not_reach_one_another(sub: Substrate, git_checkout: Path) -> None:
    serve = (
        "import socket\n"
        "s = socket.create_server(('::', 7000), family=socket.AF_INET6, dualstack_ipv6=True)\n"
        "import subprocess\n"
        "print(open('/proc/net/fib_trie').read().count('10.207.'), flush=True)\n"
        "s.accept()\n"
    )
    own = "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); "
    own += "s.connect(('10.207.0.1', 53)); print(s.getsockname()[0])"
    own6 = own.replace("AF_INET,", "AF_INET6,").replace("10.207.0.1", "fd53:7562:7374::1")
    with (
        sub.world(project=git_checkout, network=["full"]) as one,
        sub.world(project=git_checkout, network=["full", "10.0.0.0/8"]) as two,
    ):
        addresses = [run(one, PYTHON, "-c", text).stdout.strip() for text in (own, own6)]
        one.exec([PYTHON, "-c", serve])
        eventually(
            lambda: connect(one, f"{addresses[0]}:7000") == ["reached"], "the server of the world"
        )
        one.exec([PYTHON, "-c", serve.replace("7000", "7001")])
        assert "reached" not in connect(two, f"{addresses[0]}:7001", f"{addresses[1]}:7001")


@pytest.mark.parametrize(
    ("rules", "why"),
    [
        (["@cobol"], "names no preset"),
        (["none", "full"], "goes with no other rule"),
        (["host"], "needs a port"),
        (["example.org:99999"], "no usable port"),
        (["exa mple"], "cannot be used"),
        (["10.0.0.0/99"], "no address block"),
    ],
)
def test_a_bad_rule_is_refused_in_one_line(
    sub: Substrate, git_checkout: Path, rules: list[str], why: str
) -> None:
    with pytest.raises(InvalidArgument, match=why) as caught:
        sub.world(project=git_checkout, network=rules)
    assert "\n" not in str(caught.value)


def test_a_world_has_its_rules_in_its_record(online: User, git_checkout: Path) -> None:
    done = online.run(
        "run", "--json", "--net", "@npm", "--net", "Example.ORG", "--", "true", cwd=git_checkout
    )
    assert done.code == 0, done.err
    (created,) = [
        line["detail"]["network"]
        for line in online.lines()
        if line["event_type"] == "world_created" and line["world_id"] == done.json["world_id"]
    ]
    assert created == ["@npm", "example.org"]
    assert json.dumps(created)
