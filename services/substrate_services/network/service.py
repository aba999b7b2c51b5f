"""The helper: the network of all worlds of one home, for host processes that come and go.

It outlives the host process and ends when no world needs it. It does not touch the host's network:
what it makes is in the router (``inside``), a network namespace that the launcher keeps, and goes
with it. Where this process dies the filter stays as it is, names stop resolving, and open names
close as their time runs out; the next helper goes on with links, flows and addresses as they are.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import os
import random
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from substrate_services.network import ruleset
from substrate_services.network.addresses import SLOTS, slot_of
from substrate_services.network.exposed import ExposedPorts, HostServices
from substrate_services.network.flows import Account, Flows
from substrate_services.network.forwards import Streams
from substrate_services.network.hand import Hand
from substrate_services.network.inits import Init, follow
from substrate_services.network.inside import InsideError
from substrate_services.network.links import Links
from substrate_services.network.netlink import NetlinkError
from substrate_services.network.opened import Opened
from substrate_services.network.resolver import Found, Resolver, World
from substrate_services.network.rules import Address, NetworkRules, parse_rules
from substrate_services.network.uplink import Uplink
from substrate_services.network.way_out import WayOut

log = logging.getLogger(__name__)

_LEFT_LIMIT = 256
_RTMGRP_ADDRESSES = 0x10 | 0x100  # of IPv4 and IPv6, rtnetlink(7)


@dataclass(slots=True)
class Member(World):
    """A world with a network."""

    world_id: str
    init: Init
    slot: int
    rules: NetworkRules
    asking: int = 0
    account: Account = field(default_factory=Account)
    opened: Opened = field(default_factory=Opened)
    pidfd: int = -1


class Service:
    """Everything the helper keeps.

    Args:
        directory: its own, in the home's run directory.
        finished: called when no world needs it any more.
    """

    def __init__(self, directory: Path, finished: Callable[[], None]) -> None:
        self._directory = directory
        self._finished = finished
        self._hand: Hand | None = None
        self._router_pid = 0
        self._rootless = False
        self._way_out: WayOut | None = None
        self._resolver: Resolver | None = None
        self._flows: Flows | None = None
        self._members: dict[str, Member] = {}
        self._slots: dict[int, Member] = {}
        self._left: dict[str, Account] = {}  # of worlds that have ended, until the host knows
        # What conntrack remembers of a world is not to be another's: numbers go around.
        self._next = random.SystemRandom().choice(SLOTS)
        streams = Streams()
        self._exposed = ExposedPorts(self._ask, streams, self._end_if_done)
        self._services = HostServices(self._ask, streams, self._crowded)
        self._host: frozenset[Address] = frozenset()
        self._addresses: socket.socket | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._turn = asyncio.Lock()  # links and chains change one after the other

    @property
    def is_needed(self) -> bool:
        """Whether a world has a network, or a port that is reachable."""
        return bool(self._members or self._exposed)

    # -- what the host asks --------------------------------------------------------------------

    async def attach(
        self, world_id: str, init: Init, texts: list[str], router_pid: int, *, rootless: bool
    ) -> None:
        """Give a world the network that its rules allow, or change it; idempotent."""
        rules = parse_rules(texts)
        async with self._turn:
            await self._enter_router(router_pid, rootless=rootless)
            if rules.texts and self._way_out is not None:
                await self._way_out.ensure()
            known = self._members.get(world_id)
            changed = known is not None and known.rules != rules
            if known is not None and known.init != init:
                await self._forget(known)  # it was given a new box
                known = None
            before = known.rules if known is not None else rules
            if known is not None:
                known.rules = rules  # an answer on its way opens nothing that is closed here
            try:
                answer, _ = await self._ask(
                    "attach",
                    pid=init.pid,
                    started=init.started,
                    rules=list(rules.texts),
                    taken=sorted(self._slots),
                    first=self._next,
                )
            except BaseException:
                if known is not None:
                    known.rules = before
                raise
            slot = answer["slot"]
            assert isinstance(slot, int)
            if known is not None and changed:
                known.opened.clear()
            if known is None:
                self._next = slot + 1 if slot + 1 in SLOTS else SLOTS.start
                known = Member(world_id, init, slot, rules)
                self._members[world_id] = known
                self._slots[slot] = known
                self._follow(known)
            await self._serve_host_ports()

    async def detach(self, world_id: str, *, forget: bool) -> None:
        """Take a world's network away; it need not have one.

        Args:
            world_id: the world.
            forget: its flows too; nobody will ask.
        """
        known = self._members.get(world_id)
        if known is not None:
            await self._detach(known)
        if forget:
            self._left.pop(world_id, None)
        self._end_if_done()

    async def _detach(self, member: Member) -> None:
        async with self._turn:
            if self._members.get(member.world_id) is member:
                await self._forget(member)
                await self._serve_host_ports()
        self._end_if_done()

    async def flows(self, world_id: str, after: int) -> dict[str, object]:
        """What a world's links carried and what was refused, but for what the host has."""
        known = self._members.get(world_id)
        account = known.account if known is not None else self._left.get(world_id)
        if account is None or self._flows is None:
            return {"records": [], "lost": 0}
        await self._flows.settle()
        records = self._flows.records(account, after)
        lost, account.lost = account.lost, 0
        return {"records": records, "lost": lost}

    async def expose(
        self,
        world_id: str,
        init: Init,
        port: int,
        wanted: int,
        router_pid: int,
        *,
        rootless: bool,
    ) -> str:
        """Listen on the host's loopback for a port of a world; returns where. Idempotent."""
        address = self._exposed.address_of(world_id, init, port)
        if address is None:
            await self._enter_router(router_pid, rootless=rootless)
            address = await self._exposed.expose(world_id, init, port, wanted)
        return address

    def unexpose(self, world_id: str, port: int | None) -> None:
        """End that; of all ports where ``port`` is None."""
        self._exposed.close(world_id, port)
        self._end_if_done()

    # -- the router ----------------------------------------------------------------------------

    async def _enter_router(self, router_pid: int, *, rootless: bool) -> None:
        if self._hand is not None and router_pid == self._router_pid:
            return
        if self._hand is not None:
            await self._leave_router()  # its launcher is gone, and all its worlds
        self._router_pid, self._rootless = router_pid, rootless
        self._hand = Hand(router_pid, rootless=rootless)
        self._way_out = WayOut(
            Uplink(self._directory, router_pid, rootless=rootless),
            self._ask,
            is_needed=lambda: bool(self._members),
            changed=self._way_out_changed,
        )
        try:
            _, descriptors = await self._ask("prepare")
        except InsideError:
            await self._leave_router()
            raise
        datagrams, streams, refusals, events, queries = map(_as_socket, descriptors)
        self._flows = Flows(
            events=events,
            queries=queries,
            log=refusals,
            account_of=self._account_of,
            accounts=lambda: [member.account for member in self._members.values()],
        )
        self._resolver = Resolver(
            world_of=self._slots.get,
            host=lambda: self._host,
            open_names=self._open_names,
            refused=self._flows.refused_name,
        )
        await self._resolver.serve(datagrams, streams)
        await self._follow_host_addresses()

    async def _leave_router(self) -> None:
        loop = asyncio.get_running_loop()
        if self._resolver is not None:
            self._resolver.close()
        if self._flows is not None:
            self._flows.close()
        if self._hand is not None:
            self._hand.close()
        if self._addresses is not None:
            loop.remove_reader(self._addresses)
            self._addresses.close()
        for member in self._members.values():
            self._unfollow(member)
        self._members.clear()
        self._slots.clear()
        self._services.close()
        if self._way_out is not None:
            self._way_out.close()
        self._resolver = self._flows = self._hand = self._addresses = None

    async def _ask(self, op: str, **arguments: object) -> tuple[dict[str, object], list[int]]:
        if self._hand is None:
            raise InsideError("there is no router")
        return await self._hand.ask(op, **arguments)

    def _way_out_changed(self, is_there: bool) -> None:
        for member in self._members.values():
            member.account.tell_way_out(is_there=is_there)

    def _crowded(self, address: Address, port: int, peer: str) -> None:
        """A world has too many connections to a service of the host."""
        slot = slot_of(ipaddress.ip_address(peer))
        if slot is not None and self._flows is not None:
            self._flows.crowded(slot, address, port)

    async def _forget(self, member: Member) -> None:
        self._unfollow(member)
        if self._flows is not None:
            await self._flows.settle()
        self._left[member.world_id] = member.account
        while len(self._left) > _LEFT_LIMIT:
            del self._left[next(iter(self._left))]
        # First, so that what could not be taken away is known, and asked for again.
        await self._ask("detach", slot=member.slot)
        self._members.pop(member.world_id, None)
        self._slots.pop(member.slot, None)

    def _account_of(self, slot: int) -> Account | None:
        member = self._slots.get(slot)
        return member.account if member is not None else None

    async def _open_names(self, slot: int, found: Found) -> bool:
        member = self._slots.get(slot)
        if member is None:
            return False
        for address in found.addresses:
            member.account.call(address, found.name)
        if member.rules.mode == "full":
            return True  # there everything is open already
        names4, names6, ports4, ports6 = ruleset.set_names(slot)
        elements = []
        # By the rules as they are now: they may have changed since the question.
        ports = member.rules.name_ports(found.name) & found.ports
        for address in found.addresses:
            is_4 = address.version == 4
            for port in ports:
                if port is None:
                    elements.append((names4 if is_4 else names6, address.packed.hex()))
                else:
                    key = address.packed + port.to_bytes(2, "big") + b"\0\0"
                    elements.append((ports4 if is_4 else ports6, key.hex()))
        if not member.opened.take([" ".join(one) for one in elements], found.timeout_s):
            return False
        await self._ask("feed", elements=[(*one, found.timeout_s) for one in elements])
        return True

    # -- worlds that end unasked ---------------------------------------------------------------

    def _follow(self, member: Member) -> None:
        try:
            member.pidfd = follow(member.init)
        except OSError:
            return
        loop = asyncio.get_running_loop()
        loop.add_reader(member.pidfd, lambda: self._ended(member))

    def _unfollow(self, member: Member) -> None:
        if member.pidfd >= 0:
            asyncio.get_running_loop().remove_reader(member.pidfd)
            os.close(member.pidfd)
            member.pidfd = -1

    def _ended(self, member: Member) -> None:
        self._unfollow(member)
        if self._members.get(member.world_id) is member:
            self._in_background(self._detach(member))

    # -- the host's addresses and services -----------------------------------------------------

    async def _follow_host_addresses(self) -> None:
        watch = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
        watch.bind((0, _RTMGRP_ADDRESSES))
        watch.setblocking(False)
        self._addresses = watch
        asyncio.get_running_loop().add_reader(watch, self._addresses_changed)
        await self._take_host_addresses()

    def _addresses_changed(self) -> None:
        assert self._addresses is not None
        with contextlib.suppress(OSError):
            while self._addresses.recv(1 << 16):
                pass
        self._in_background(self._take_host_addresses())

    async def _take_host_addresses(self) -> None:
        links = Links()
        try:
            self._host = links.addresses()
        finally:
            links.close()
        await self._ask("host", nft=ruleset.host_addresses(self._host))

    async def _serve_host_ports(self) -> None:
        """Listen in the router for the services of the host that some world may use."""
        await self._services.serve(
            port for member in self._members.values() for port in member.rules.host_ports
        )

    # -- ending --------------------------------------------------------------------------------

    def _end_if_done(self) -> None:
        if not self.is_needed:
            self._finished()

    async def close(self) -> None:
        """End all of it."""
        self._exposed.close()
        for task in self._tasks:
            task.cancel()
        await self._leave_router()
        if self._way_out is not None:
            self._way_out.stop()

    def _in_background(self, work: Awaitable[None]) -> None:
        async def run() -> None:
            try:
                await work
            except (InsideError, NetlinkError) as error:
                log.warning("%s", error)

        task = asyncio.create_task(run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _as_socket(descriptor: int) -> socket.socket:
    return socket.socket(fileno=descriptor)
