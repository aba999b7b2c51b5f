"""What one world may take of the network that all worlds of a home share."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from substrate_sdk import Substrate
from substrate_services.network.ruleset import FLOWS_LIMIT, NAMED_LIMIT
from tests.integration.test_network_living import routed
from tests.integration.test_network_rules import connect, run
from tests.internet import OTHER_V4, V4, Internet
from tests.users import PYTHON, User, read_some

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(shutil.which("nft") is None, reason="nft is not installed (nftables)"),
    pytest.mark.skipif(shutil.which("pasta") is None, reason="pasta is not installed (passt)"),
]

#: One datagram from each of so many ports: a flow each, whoever answers; then a connection.
FLOWS = """
import socket, sys
for _ in range(int(sys.argv[1])):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        try:
            one.sendto(b'x', (sys.argv[2], int(sys.argv[3])))
        except OSError:
            pass
try:
    socket.create_connection((sys.argv[2], 80), 20).close()
    print('reached')
except OSError as error:
    print(type(error).__name__)
"""
#: Without an end, to where no rule leads.
NOISE = f"""
import socket
one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
said = False
while True:
    for port in range(2000, 4000):
        try:
            one.sendto(b'x', ('{OTHER_V4}', port))
        except OSError:
            pass
    if not said:
        print('noisy', flush=True)
        said = True
"""
RESOLVE = """
import socket, sys
for name in sys.argv[1:]:
    try:
        print(len(socket.getaddrinfo(name, 80, socket.AF_INET, socket.SOCK_STREAM)))
    except OSError as error:
        print('error')
"""


@pytest.fixture
def sub(online: User) -> Iterator[Substrate]:
    with online.client() as made:
        yield made


def tracked(user: User) -> int:
    """Flows in the kernel's table of the router."""
    return int(routed(user, "cat", "/proc/sys/net/netfilter/nf_conntrack_count"))


def test_a_world_has_so_many_flows_and_the_others_have_theirs(
    sub: Substrate, online: User, git_checkout: Path
) -> None:
    before = tracked(online)
    with (
        sub.world(project=git_checkout, network=["full"]) as greedy,
        sub.world(project=git_checkout, network=[f"{V4}/32"]) as other,
    ):
        # Questions are not tracked at all, so their number needs no bound.
        run(greedy, PYTHON, "-c", FLOWS, "500", "10.207.0.1", "53")
        assert tracked(online) - before < 100
        result = run(greedy, PYTHON, "-c", FLOWS, str(FLOWS_LIMIT + 1_000), V4, "9999")
        assert result.stdout == "ConnectionRefusedError\n"
        assert tracked(online) - before < FLOWS_LIMIT + 100
        (told,) = [item for item in result.blocked if item.rule == "network_flows"]
        assert (told.layer, f"{FLOWS_LIMIT:,}" in told.fix) == ("limits", True)
        assert connect(other, f"{V4}:80") == ["reached"]


def test_a_noisy_world_hides_nobody_elses_refusals(sub: Substrate, git_checkout: Path) -> None:
    with (
        sub.world(project=git_checkout, network=[f"{V4}/32"]) as noisy,
        sub.world(project=git_checkout, network=[f"{V4}/32"]) as other,
    ):
        noise = noisy.exec([PYTHON, "-c", NOISE])
        assert read_some(noise).startswith(b"noisy")
        for port in (81, 82, 83):
            result = run(other, PYTHON, "-c", FLOWS, "1", OTHER_V4, str(port))
            assert f"connect {OTHER_V4}:{port}" in [item.what for item in result.blocked]
        noise.kill()
        noise.wait()


def test_whoever_serves_a_name_cannot_fill_the_filter(
    sub: Substrate, online: User, internet: Internet, git_checkout: Path
) -> None:
    names = [f"n{number}.many.example" for number in range(NAMED_LIMIT // 64 + 3)]
    zone = {
        name: {"A": [f"93.185.{number}.{last}" for last in range(64)], "AAAA": [], "ttl": 60}
        for number, name in enumerate(names)
    }
    (internet.directory / "zone.json").write_text(json.dumps(zone))
    with sub.world(project=git_checkout, network=["*.many.example"]) as world:
        result = run(world, PYTHON, "-c", RESOLVE, *names)
        assert result.stdout.split() == ["64"] * (len(names) - 3) + ["error"] * 3
        assert {item.rule for item in result.blocked} == {"network_names"}
        # What is open stays so, and the same name is answered again.
        assert run(world, PYTHON, "-c", RESOLVE, names[0]).stdout == "64\n"
        assert elements(online) == NAMED_LIMIT


def elements(user: User) -> int:
    """Addresses that names have open, in all worlds' sets."""
    found = json.loads(routed(user, "nft", "-j", "list", "sets"))["nftables"]
    return sum(
        len(one["set"].get("elem", []))
        for one in found
        if "set" in one and one["set"]["name"].startswith("w")
    )


def test_closed_addresses_are_closed_behind_a_nat64_too(sub: Substrate, git_checkout: Path) -> None:
    with sub.world(project=git_checkout, network=["full"]) as world:
        kept = connect(
            world,
            "64:ff9b::a9fe:a9fe:80",
            "64:ff9b::a83f:8110:80",
            "fd00:42::42:80",
            "fd00:a9fe:a9fe::1:80",
        )
    assert kept == ["ConnectionRefusedError"] * 4
