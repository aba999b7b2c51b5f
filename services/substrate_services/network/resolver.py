"""The resolver of worlds: answers the names that a world's rules allow, and opens the filter.

What it answers is in the filter before the answer leaves. It asks the host's name servers, and
keeps no cache: its answers' lives are the time-outs of the filter's sets, within bounds.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import random
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rdtypes.IN.A
import dns.rdtypes.IN.AAAA
import dns.rrset

from substrate_services.network.addresses import HOST_V4, HOST_V6, may_answer, slot_of
from substrate_services.network.presets import HOST_NAME
from substrate_services.network.rules import Address, NetworkRules

TTL_LIMIT_S = 3600  # a client asks again after this, whatever the answer said
OPEN_AT_LEAST_S = 300  # programs keep addresses longer than they should
_OPEN_BEYOND_S = 60
_ANSWERS_LIMIT = 64
_UNDER_WAY_LIMIT = 64  # questions of one world
_STREAMS_LIMIT = 64  # connections of one world; descriptors are shared by all
_TIMEOUT_S = 3.0
_TCP_IDLE_S = 10.0
_ADDRESS_KINDS = (dns.rdatatype.A, dns.rdatatype.AAAA)
# Their answers carry addresses, or all there is, past the filter of addresses.
_EMPTY_KINDS = (dns.rdatatype.SVCB, dns.rdatatype.HTTPS)
_REFUSED_KINDS = (dns.rdatatype.ANY, dns.rdatatype.AXFR, dns.rdatatype.IXFR)


@dataclass(frozen=True, slots=True)
class Found:
    """Addresses that a name resolved to, to open on ports (None: all) for a time."""

    name: str
    addresses: tuple[Address, ...]
    ports: frozenset[int | None]
    timeout_s: int


class World:
    """What the resolver asks of a world."""

    rules: NetworkRules
    asking: int


@dataclass(frozen=True, slots=True)
class Upstream:
    """A name server of the host."""

    address: str
    port: int


def upstreams(environ: dict[str, str] | None = None) -> tuple[Upstream, ...]:
    """The name servers to ask.

    ``SUBSTRATE_DNS`` (addresses, with :PORT or without) names them, else the host's resolv.conf(5).
    """
    text = (os.environ if environ is None else environ).get("SUBSTRATE_DNS", "")
    if text:
        return tuple(_upstream(part) for part in text.replace(",", " ").split())
    found = []
    try:
        with open("/etc/resolv.conf", encoding="utf-8", errors="replace") as lines:
            for line in lines:
                words = line.split()
                if len(words) > 1 and words[0] == "nameserver":
                    found.append(Upstream(words[1], 53))
    except OSError:
        pass
    return tuple(found[:3]) or (Upstream("127.0.0.1", 53),)


def _upstream(text: str) -> Upstream:
    if text.startswith("["):
        address, _, port = text[1:].partition("]")
        return Upstream(address, int(port.removeprefix(":") or 53))
    if text.count(":") == 1:
        address, _, port = text.partition(":")
        return Upstream(address, int(port))
    return Upstream(text, 53)


class Resolver:
    """Serves all worlds of a home.

    Args:
        world_of: the world in a slot, if there is one.
        host: the host's own addresses now.
        open_names: puts addresses into the filter; returns when they are there, and False
            where the world has too many already.
        refused: hears of names that were not answered.
    """

    def __init__(
        self,
        *,
        world_of: Callable[[int], World | None],
        host: Callable[[], frozenset[Address]],
        open_names: Callable[[int, Found], Awaitable[bool]],
        refused: Callable[[int, str, str], None],
    ) -> None:
        self._world_of = world_of
        self._host = host
        self._open_names = open_names
        self._refused = refused
        self._tasks: set[asyncio.Task[None]] = set()
        self._streams: Counter[int] = Counter()  # by slot
        self._servers: list[asyncio.Server] = []
        self._datagrams: socket.socket | None = None

    async def serve(self, datagrams: socket.socket, streams: socket.socket) -> None:
        """Answer on two sockets of the router, until :meth:`close`."""
        datagrams.setblocking(False)
        self._datagrams = datagrams
        asyncio.get_running_loop().add_reader(datagrams, self._read_datagrams)
        self._servers.append(await asyncio.start_server(self._serve_stream, sock=streams))

    def close(self) -> None:
        """Answer nobody any more."""
        if self._datagrams is not None:
            asyncio.get_running_loop().remove_reader(self._datagrams)
            self._datagrams.close()
        for server in self._servers:
            server.close()
        for task in self._tasks:
            task.cancel()

    def _read_datagrams(self) -> None:
        assert self._datagrams is not None
        for _ in range(64):
            try:
                data, sender = self._datagrams.recvfrom(4096)
            except OSError:
                return
            slot = slot_of(ipaddress.ip_address(sender[0]))
            world = self._world_of(slot) if slot is not None else None
            if slot is None or world is None or world.asking >= _UNDER_WAY_LIMIT:
                continue
            world.asking += 1
            task = asyncio.create_task(self._answer_datagram(slot, world, data, sender))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _answer_datagram(
        self, slot: int, world: World, data: bytes, sender: tuple[str, int]
    ) -> None:
        try:
            answer = await self.answer(slot, world.rules, data)
        finally:
            world.asking -= 1
        if answer is not None and self._datagrams is not None:
            payload = max(512, min(answer.request_payload, 1232)) if answer.edns >= 0 else 512
            wire = _to_wire(answer, payload)
            with contextlib.suppress(OSError):
                self._datagrams.sendto(wire, sender)

    async def _serve_stream(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        slot = slot_of(ipaddress.ip_address(writer.get_extra_info("peername")[0]))
        if slot is None or self._streams[slot] >= _STREAMS_LIMIT:
            writer.close()
            return
        self._streams[slot] += 1
        try:
            while (world := self._world_of(slot)) is not None:
                head = await asyncio.wait_for(reader.readexactly(2), _TCP_IDLE_S)
                data = await asyncio.wait_for(
                    reader.readexactly(int.from_bytes(head, "big")), _TCP_IDLE_S
                )
                answer = await self.answer(slot, world.rules, data)
                if answer is None:
                    return
                wire = _to_wire(answer, 65535)
                writer.write(len(wire).to_bytes(2, "big") + wire)
                await writer.drain()
        except (TimeoutError, asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self._streams[slot] -= 1
            writer.close()

    async def answer(
        self, slot: int, rules: NetworkRules, data: bytes
    ) -> dns.message.Message | None:
        """The answer to a question; None where it is none."""
        try:
            query = dns.message.from_wire(data)
        except dns.exception.DNSException:
            return None
        if query.flags & dns.flags.QR or len(query.question) != 1:
            return None
        question = query.question[0]
        reply = dns.message.make_response(query, recursion_available=True)
        name = question.name.to_text(omit_final_dot=True).lower()
        kind = question.rdtype
        if name == "localhost" or name.endswith(".localhost"):
            return _with_addresses(
                reply, question, [ipaddress.ip_address("127.0.0.1"), ipaddress.ip_address("::1")]
            )
        if name == HOST_NAME and rules.host_ports:
            return _with_addresses(reply, question, [HOST_V4, HOST_V6])
        ports = rules.name_ports(name)
        if not ports or question.rdclass != dns.rdataclass.IN or kind in _REFUSED_KINDS:
            self._refused(slot, name, dns.rdatatype.to_text(kind))
            reply.set_rcode(dns.rcode.REFUSED)
            return reply
        if kind in _EMPTY_KINDS:
            return reply
        found = await self._ask(question)
        if found is None:
            reply.set_rcode(dns.rcode.SERVFAIL)
            return reply
        reply.set_rcode(found.rcode())
        if kind not in _ADDRESS_KINDS:
            reply.answer = [item for item in found.answer if item.rdtype not in _ADDRESS_KINDS]
            return reply
        await self._keep_what_is_open(slot, rules, name, found=found, reply=reply)
        return reply

    async def _keep_what_is_open(
        self,
        slot: int,
        rules: NetworkRules,
        name: str,
        *,
        found: dns.message.Message,
        reply: dns.message.Message,
    ) -> None:
        """Take into ``reply`` the addresses that may be answered, once the filter has them."""
        host = self._host()
        addresses: list[Address] = []
        ttl = TTL_LIMIT_S
        inside = False
        for item in found.answer:
            kept = []
            for data in item:
                if item.rdtype in _ADDRESS_KINDS:
                    address = ipaddress.ip_address(data.to_text())
                    if not may_answer(address, rules, host):
                        inside = True
                        continue
                    if len(addresses) >= _ANSWERS_LIMIT:
                        continue
                    addresses.append(address)
                elif item.rdtype != dns.rdatatype.CNAME:
                    continue
                kept.append(data)
            ttl = min(ttl, item.ttl)
            if kept:
                reply.answer.append(dns.rrset.from_rdata_list(item.name, 0, kept))
        for rrset in reply.answer:
            rrset.ttl = ttl
        if inside and not addresses:
            self._refused(slot, name, "private")
        if addresses:
            timeout_s = max(ttl, OPEN_AT_LEAST_S) + _OPEN_BEYOND_S
            opened = Found(name, tuple(addresses), rules.name_ports(name), timeout_s)
            if not await self._open_names(slot, opened):
                self._refused(slot, name, "crowd")
                reply.answer.clear()
                reply.set_rcode(dns.rcode.SERVFAIL)

    async def _ask(self, question: dns.rrset.RRset) -> dns.message.Message | None:
        servers: Sequence[Upstream] = upstreams()
        for server in servers:
            query = dns.message.make_query(question.name, question.rdtype, use_edns=0, payload=1232)
            query.id = random.SystemRandom().randrange(1 << 16)
            try:
                async with asyncio.timeout(_TIMEOUT_S):
                    found = await _exchange_udp(server, query)
                    if found.flags & dns.flags.TC:
                        found = await _exchange_tcp(server, query)
            except (TimeoutError, OSError, EOFError, dns.exception.DNSException):
                continue
            if found.question == query.question:
                return found
        return None


class _Datagram(asyncio.DatagramProtocol):
    def __init__(self, query_id: int) -> None:
        self.answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._query_id = query_id

    def datagram_received(self, data: bytes, _sender: object) -> None:
        if data[:2] == self._query_id.to_bytes(2, "big") and not self.answer.done():
            self.answer.set_result(data)

    def error_received(self, error: Exception) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)


async def _exchange_udp(server: Upstream, query: dns.message.Message) -> dns.message.Message:
    loop = asyncio.get_running_loop()
    # A socket of its own for each question: its port is another secret (RFC 5452).
    transport, protocol = await loop.create_datagram_endpoint(
        lambda: _Datagram(query.id), remote_addr=(server.address, server.port)
    )
    try:
        transport.sendto(query.to_wire())
        return dns.message.from_wire(await protocol.answer)
    finally:
        transport.close()


async def _exchange_tcp(server: Upstream, query: dns.message.Message) -> dns.message.Message:
    reader, writer = await asyncio.open_connection(server.address, server.port)
    try:
        wire = query.to_wire()
        writer.write(len(wire).to_bytes(2, "big") + wire)
        length = int.from_bytes(await reader.readexactly(2), "big")
        return dns.message.from_wire(await reader.readexactly(length))
    finally:
        writer.close()


def _with_addresses(
    reply: dns.message.Message, question: dns.rrset.RRset, addresses: Sequence[Address]
) -> dns.message.Message:
    for address in addresses:
        kind = "A" if address.version == 4 else "AAAA"
        if dns.rdatatype.to_text(question.rdtype) == kind:
            reply.answer.append(dns.rrset.from_text(question.name, 5, "IN", kind, str(address)))
    return reply


def _to_wire(reply: dns.message.Message, size: int) -> bytes:
    try:
        return reply.to_wire(max_size=size)
    except dns.exception.TooBig:
        short = dns.message.Message(reply.id)
        short.flags = reply.flags | dns.flags.TC
        short.question = reply.question
        return short.to_wire()
