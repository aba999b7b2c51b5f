"""The network helper's parts by themselves: what a world, or a client that goes, must not upset."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import os
import socket
import struct
from collections import Counter
from pathlib import Path
from unittest.mock import Mock

import pytest

from substrate_services.network import ruleset
from substrate_services.network.addresses import world_v4, world_v6
from substrate_services.network.flows import Account, Flows
from substrate_services.network.forwards import Forward, Streams
from substrate_services.network.hand import Hand
from substrate_services.network.inits import Init, follow, open_netns, start_of
from substrate_services.network.resolver import _STREAMS_LIMIT, Found, Resolver
from substrate_services.network.rules import parse_rules
from substrate_services.network.service import Member, Service


def test_link_local_addresses_are_closed_whatever_the_rules() -> None:
    assert "169.254.0.0/16" in ruleset.base()


def test_a_forged_source_is_told_of_the_world_that_forged_it() -> None:
    accounts = {5: Account(), 6: Account()}
    flows = Flows.__new__(Flows)
    flows._account_of = accounts.get
    head = struct.pack(">IHBB", 6 << 28, 8, 17, 64)
    packet = head + world_v6(6).packed + bytes(24)
    assert 'log prefix "forged 5"' in ruleset.attach(5, parse_rules(["full"]), forget_names=False)
    flows._refused_packet({9: packet, 10: b"forged 5\0"})
    assert [record["forged"] for record in accounts[5].refused.values()] == [True]
    assert not accounts[6].refused
    solicitation = head + ipaddress.IPv6Address("fe80::5").packed + bytes(24)
    flows._refused_packet({9: solicitation, 10: b"forged 5\0"})  # the kernel's own
    assert len(accounts[5].refused) == 1


def test_an_answer_that_comes_after_its_rule_has_gone_opens_nothing() -> None:
    asked: list[dict[str, object]] = []

    async def ask(op: str, **arguments: object) -> tuple[dict[str, object], list[int]]:
        asked.append({"op": op, **arguments})
        return {}, []

    async def run() -> None:
        service = Service(Path("/nonexistent"), lambda: None)
        service._ask = ask  # type: ignore[method-assign]
        service._slots[5] = Member("wld", Init(1, 1), 5, parse_rules(["new.example"]))
        address = ipaddress.ip_address("192.0.2.1")
        for name in ("old.example", "new.example"):
            await service._open_names(5, Found(name, (address,), frozenset([None]), 60))

    asyncio.run(run())
    assert [len(one["elements"]) for one in asked if isinstance(one["elements"], list)] == [0, 1]


def test_a_world_has_so_many_connections_to_the_resolver_and_no_more() -> None:
    resolver = Resolver.__new__(Resolver)
    resolver._streams = Counter({5: _STREAMS_LIMIT})
    writer = Mock()
    writer.get_extra_info.return_value = (str(world_v4(5)), 1234)
    asyncio.run(resolver._serve_stream(Mock(), writer))
    writer.close.assert_called_once_with()
    assert resolver._streams[5] == _STREAMS_LIMIT


def test_a_question_to_the_router_given_up_leaves_its_answer_to_nobody_else() -> None:
    async def run() -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        hand = Hand.__new__(Hand)
        hand._socket, hand._turn = ours, asyncio.Lock()
        first = asyncio.create_task(hand.ask("first"))
        await asyncio.sleep(0.01)
        first.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await first
        second = asyncio.create_task(hand.ask("second"))
        for _ in range(2):
            await asyncio.sleep(0.01)
            asked = json.loads(theirs.recv(1000))
            theirs.send(json.dumps({"said": asked["op"]}).encode())
        assert (await second)[0] == {"said": "second"}
        ours.close()
        theirs.close()

    asyncio.run(run())


def test_the_namespace_of_whoever_has_the_number_now_is_not_entered() -> None:
    now = Init(os.getpid(), start_of(os.getpid()))
    os.close(open_netns(now))
    os.close(follow(now))
    before = Init(now.pid, now.started - 1)  # had the number, and has ended
    for enter in (open_netns, follow):
        with pytest.raises(ProcessLookupError):
            enter(before)


def test_a_forward_carries_so_many_streams_and_its_total_is_bounded_too() -> None:
    async def run() -> None:
        served = await asyncio.start_server(echo, "127.0.0.1", 0)
        port = served.sockets[0].getsockname()[1]
        crowded: list[str] = []
        streams = Streams(each=3, total=5)
        forwards = [await carry(port, streams, crowded) for _ in range(2)]
        first, second = (int(one.address.rpartition(":")[2]) for one in forwards)
        kept = [await talks(first) for _ in range(3)]
        assert await talks(first) is None
        kept += [await talks(second) for _ in range(2)]
        assert None not in kept
        assert await talks(second) is None  # of all there are five
        assert crowded == ["127.0.0.1"] * 2
        # What ends makes room again.
        await closed(kept.pop(0))
        again = None
        for _ in range(1000):
            again = again or await talks(first)
        for writer in (*kept, again):
            await closed(writer)
        for forward in forwards:
            forward.close()
        served.close()
        carrying = asyncio.all_tasks() - {asyncio.current_task()}
        await asyncio.wait(carrying, timeout=10)

    asyncio.run(run())


async def carry(port: int, streams: Streams, crowded: list[str]) -> Forward:
    async def connect() -> socket.socket:
        made = socket.socket()
        made.setblocking(False)
        await asyncio.get_running_loop().sock_connect(made, ("127.0.0.1", port))
        return made

    forward = Forward(socket.create_server(("127.0.0.1", 0)), connect, streams, crowded.append)
    await forward.start()
    return forward


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(100):
            writer.write(data)
    writer.close()


async def talks(port: int) -> asyncio.StreamWriter | None:
    """A connection that carries bytes both ways; None where it is refused."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    with contextlib.suppress(ConnectionError):
        writer.write(b"x")
        if await reader.read(1) == b"x":
            return writer
    await closed(writer)
    return None


async def closed(writer: asyncio.StreamWriter | None) -> None:
    assert writer is not None
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()
