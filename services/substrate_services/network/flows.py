"""What went over the links of worlds, and what was kept from going: the kernel's own account.

Flows are conntrack's (their bytes too), refusals are the filter's log. Both come over netlink from
the router, where every packet of a world has been given its source by the filter: who sent it is
not what the packet says, but where it came in.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from substrate_services.network.addresses import HOST_V4, HOST_V6, ROUTER_V4, ROUTER_V6, slot_of
from substrate_services.network.netlink import DUMP, REQUEST, Message, attributes, message, split
from substrate_services.network.presets import HOST_NAME
from substrate_services.network.rules import Address

OUTBOX_LIMIT = 20_000
NAMES_LIMIT = 10_000  # of addresses
_CONNTRACK, _LOG = 1, 4
_NEW, _GET, _DELETE = 0, 1, 2
_DONE, _ERROR = 3, 2
_PROTOCOLS = {6: "tcp", 17: "udp", 1: "icmp", 58: "icmp6"}
Record = dict[str, object]


@dataclass(frozen=True, slots=True)
class _Seen:
    """A flow as conntrack tells of it."""

    flow_id: int
    protocol: int
    source: Address
    source_port: int
    destination: Address
    port: int
    sent: int
    received: int
    began_ns: int | None


@dataclass(slots=True)
class _Flow:
    seen: _Seen
    name: str | None
    began_ns: int
    told: tuple[int, int] | None = None  # bytes in the last record


@dataclass(slots=True)
class Account:
    """What is to be told of a world."""

    names: dict[Address, str] = field(default_factory=dict)
    open: dict[int, _Flow] = field(default_factory=dict)
    outbox: deque[Record] = field(default_factory=deque)
    refused: dict[tuple[object, ...], Record] = field(default_factory=dict)
    sequence: int = 0
    lost: int = 0

    def call(self, address: Address, name: str) -> None:
        """Note what name an address was given for; the oldest goes where there are too many."""
        self.names[address] = name
        if len(self.names) > NAMES_LIMIT:
            del self.names[next(iter(self.names))]

    def tell_way_out(self, *, is_there: bool) -> None:
        """Note that the router's way out ended, or that there is one again."""
        self.put(
            {
                "kind": "way_out",
                "verdict": "restored" if is_there else "lost",
                "time_ns": time.time_ns(),
            }
        )

    def put(self, record: Record) -> None:
        """Add a record; the oldest goes where there are too many."""
        self.sequence += 1
        record["seq"] = self.sequence
        self.outbox.append(record)
        if len(self.outbox) > OUTBOX_LIMIT:
            self.outbox.popleft()
            self.lost += 1


class Flows:
    """The flows of all worlds.

    Args:
        events: conntrack's events; groups are joined.
        queries: a netlink socket to ask conntrack for all flows.
        log: the filter's log.
        account_of: where to keep what is told of the world in a slot.
        accounts: all of them.
    """

    def __init__(
        self,
        *,
        events: socket.socket,
        queries: socket.socket,
        log: socket.socket,
        account_of: Callable[[int], Account | None],
        accounts: Callable[[], Iterable[Account]],
    ) -> None:
        self._events, self._queries, self._log = events, queries, log
        self._account_of = account_of
        self._accounts = accounts
        self._missed = False
        self._asking = asyncio.Lock()
        loop = asyncio.get_running_loop()
        for sock in (events, queries, log):
            sock.setblocking(False)
        loop.add_reader(events, self._read_events)
        loop.add_reader(log, self._read_log)

    def close(self) -> None:
        """Hear nothing more."""
        loop = asyncio.get_running_loop()
        for sock in (self._events, self._log):
            loop.remove_reader(sock)
        for sock in (self._events, self._queries, self._log):
            sock.close()

    async def settle(self) -> None:
        """Take in all that the kernel has told so far, and how many bytes open flows have now."""
        self._read_events()
        self._read_log()
        async with self._asking:
            missed, self._missed = self._missed, False
            # What begins while the kernel is asked may not be in its answer.
            open_before = [(account, tuple(account.open)) for account in self._accounts() if missed]
            found = await self._all()
        for seen in found:
            self._saw(seen, ended=False)
        there = {seen.flow_id for seen in found}
        for account, flow_ids in open_before:
            # Its end was not heard: there was too much to hear.
            for flow_id in set(flow_ids) - there:
                if (flow := account.open.pop(flow_id, None)) is not None:
                    self._tell(account, flow, ended=True)

    def refused_name(self, slot: int, name: str, what: str) -> None:
        """Note a name that was not answered."""
        account = self._account_of(slot)
        if account is not None:
            self._refuse(account, ("lookup", name), {"kind": "lookup", "name": name, "type": what})

    def crowded(self, slot: int, address: Address, port: int) -> None:
        """Note a connection to a service of the host that was one too many."""
        account = self._account_of(slot)
        if account is not None:
            record = _refusal(6, address, port) | {"name": HOST_NAME, "crowded": True}
            self._refuse(account, ("crowd",), record)

    def records(self, account: Account, after: int) -> list[Record]:
        """What is to be told, but for what was told before ``after``."""
        for flow in account.open.values():
            self._tell(account, flow, ended=False)
        for record in account.refused.values():
            account.put(record)
        account.refused.clear()
        while account.outbox and _sequence(account.outbox[0]) <= after:
            account.outbox.popleft()
        return list(account.outbox)

    # -- conntrack -----------------------------------------------------------------------------

    def _read_events(self) -> None:
        for found in _datagrams(self._events, self._note_missed):
            for item, _ in split(found):
                if item.kind >> 8 == _CONNTRACK and (seen := _parse_flow(item)) is not None:
                    self._saw(seen, ended=item.kind & 0xFF == _DELETE)

    def _note_missed(self) -> None:
        self._missed = True

    def _saw(self, seen: _Seen, *, ended: bool) -> None:
        slot = slot_of(seen.source)
        account = self._account_of(slot) if slot is not None else None
        if account is None or seen.destination in (ROUTER_V4, ROUTER_V6):
            return
        flow = account.open.get(seen.flow_id)
        if flow is None:
            name = account.names.get(seen.destination)
            if seen.destination in (HOST_V4, HOST_V6):
                name = HOST_NAME
            flow = _Flow(seen, name, seen.began_ns or time.time_ns())
            account.open[seen.flow_id] = flow
        if (seen.sent, seen.received) >= (flow.seen.sent, flow.seen.received):
            flow.seen = seen
        if ended:
            self._tell(account, flow, ended=True)
            del account.open[seen.flow_id]

    def _tell(self, account: Account, flow: _Flow, *, ended: bool) -> None:
        seen = flow.seen
        bytes_now = (seen.sent, seen.received)
        if flow.told == bytes_now:
            return
        account.put(
            {
                "kind": "flow",
                "verdict": "allowed",
                "time_ns": flow.began_ns,
                "flow": seen.flow_id,
                "protocol": _PROTOCOLS.get(seen.protocol, str(seen.protocol)),
                "address": str(seen.destination),
                "port": seen.port,
                "local_port": seen.source_port,
                "name": flow.name,
                "sent_bytes": seen.sent,
                "received_bytes": seen.received,
                "ended": ended,
            }
        )
        flow.told = bytes_now

    async def _all(self) -> list[_Seen]:
        found: list[_Seen] = []
        loop = asyncio.get_running_loop()
        body = struct.pack("=BBH", 0, 0, 0)
        await loop.sock_sendall(
            self._queries, message(_CONNTRACK << 8 | _GET, REQUEST | DUMP, 1, body)
        )
        while True:
            for item, _ in split(await loop.sock_recv(self._queries, 1 << 18)):
                if item.kind in (_DONE, _ERROR):
                    return found
                if (seen := _parse_flow(item)) is not None:
                    found.append(seen)

    # -- the filter's log ----------------------------------------------------------------------

    def _read_log(self) -> None:
        for found in _datagrams(self._log, self._note_missed):
            for item, _ in split(found):
                if item.kind == _LOG << 8:
                    self._refused_packet(attributes(item.body[4:]))

    def _refused_packet(self, values: dict[int, bytes]) -> None:
        packet = _parse_packet(values.get(9, b""))
        if packet is None:
            return
        protocol, source, destination, port = packet
        prefix = values.get(10, b"").rstrip(b"\0").decode(errors="replace")
        told, _, number = prefix.partition(" ")
        forged, crowded = told == "forged", told == "crowd"
        slot = int(number) if forged or crowded else slot_of(source)
        account = self._account_of(slot) if slot is not None else None
        if account is None or source.is_link_local or source.is_unspecified:
            return  # nobody's, or the kernel's own word to its neighbours
        record = _refusal(protocol, destination, port) | {
            "name": account.names.get(destination),
            "forged": forged,
            "crowded": crowded,
        }
        if destination in (HOST_V4, HOST_V6):
            record["name"] = HOST_NAME
        # Of what was one flow too many, one tells for all.
        key = ("crowd",) if crowded else ("refused", protocol, destination, port, forged)
        self._refuse(account, key, record)

    def _refuse(self, account: Account, key: tuple[object, ...], record: Record) -> None:
        known = account.refused.get(key)
        if known is None:
            if len(account.refused) >= OUTBOX_LIMIT:
                account.lost += 1
                return
            account.refused[key] = record | {
                "verdict": "blocked",
                "time_ns": time.time_ns(),
                "count": 1,
            }
        else:
            count = known["count"]
            known["count"] = count + 1 if isinstance(count, int) else 1


def _refusal(protocol: int, destination: Address, port: int) -> Record:
    return {
        "kind": "refused",
        "protocol": _PROTOCOLS.get(protocol, str(protocol)),
        "address": str(destination),
        "port": port,
    }


def _sequence(record: Record) -> int:
    value = record["seq"]
    return value if isinstance(value, int) else 0


def _datagrams(sock: socket.socket, missed: Callable[[], None]) -> list[bytes]:
    found = []
    with contextlib.suppress(BlockingIOError):
        for _ in range(4096):
            try:
                found.append(sock.recv(1 << 16))
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                missed()
    return found


def _parse_flow(item: Message) -> _Seen | None:
    values = attributes(item.body[4:])
    original = attributes(values.get(1, b""))
    addresses = attributes(original.get(1, b""))
    protocol = attributes(original.get(2, b""))
    source, destination = (
        addresses.get(1) or addresses.get(3),
        addresses.get(2) or addresses.get(4),
    )
    if not source or not destination or 1 not in protocol:
        return None
    stamp = attributes(values.get(20, b"")).get(1)
    return _Seen(
        flow_id=_number(values.get(12)),
        protocol=protocol[1][0],
        source=ipaddress.ip_address(source),
        source_port=_number(protocol.get(2)),
        destination=ipaddress.ip_address(destination),
        port=_number(protocol.get(3)),
        sent=_number(attributes(values.get(9, b"")).get(2)),
        received=_number(attributes(values.get(10, b"")).get(2)),
        began_ns=_number(stamp) or None,
    )


def _number(raw: bytes | None) -> int:
    return int.from_bytes(raw or b"", "big")


def _parse_packet(data: bytes) -> tuple[int, Address, Address, int] | None:
    """Protocol, source, destination and port of a packet's first bytes."""
    if len(data) >= 20 and data[0] >> 4 == 4:
        header = (data[0] & 15) * 4
        protocol, source, destination = data[9], data[12:16], data[16:20]
    elif len(data) >= 40 and data[0] >> 4 == 6:
        header, protocol, source, destination = 40, data[6], data[8:24], data[24:40]
    else:
        return None
    port = 0
    if protocol in (6, 17) and len(data) >= header + 4:
        port = _number(data[header + 2 : header + 4])
    return protocol, ipaddress.ip_address(source), ipaddress.ip_address(destination), port
