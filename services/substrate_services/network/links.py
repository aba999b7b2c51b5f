"""Links between worlds and the router, by rtnetlink(7).

Both ends know each other's hardware address beforehand, so nothing is asked on the link: there is
no ARP and no neighbour discovery to forge.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
import struct

from substrate_services.network.addresses import (
    ROUTER_V4,
    ROUTER_V6,
    link_name,
    slot_of,
    world_v4,
    world_v6,
)
from substrate_services.network.netlink import (
    CREATE,
    DUMP,
    EXCLUSIVE,
    NETLINK_ROUTE,
    REPLACE,
    Netlink,
    NetlinkError,
    attribute,
    attributes,
    is_absent,
    nested,
    text,
)
from substrate_services.network.rules import Address

WORLD_LINK = "eth0"
UPLINK = "uplink"
MTU = 65520
_ROUTER_MAC = bytes.fromhex("025355620001")

_NEWLINK, _DELLINK, _GETLINK = 16, 17, 18
_NEWADDR, _GETADDR, _NEWROUTE, _GETROUTE, _NEWNEIGH = 20, 22, 24, 26, 28
_IFF_UP = 1
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_LINKINFO, _IFLA_NET_NS_FD = 1, 3, 4, 18, 28
_IFA_ADDRESS, _IFA_LOCAL, _NODAD = 1, 2, 2
_RTA_DST, _RTA_OIF, _RTA_GATEWAY = 1, 4, 5
_MAIN_TABLE, _STATIC, _UNICAST = 254, 4, 1
_SCOPE_UNIVERSE, _SCOPE_LINK = 0, 253
_PERMANENT = 0x80
_LINK = struct.Struct("=BxHiII")
_ADDRESS = struct.Struct("=BBBBI")
_ROUTE = struct.Struct("=BBBBBBBBI")
_NEIGHBOUR = struct.Struct("=B3xiHBB")


def _world_mac(slot: int) -> bytes:
    return bytes.fromhex("02535701") + slot.to_bytes(2, "big")


def _family(address: Address) -> int:
    return socket.AF_INET if address.version == 4 else socket.AF_INET6


class Links:
    """The links, addresses and routes of the network namespace in which this is made."""

    def __init__(self) -> None:
        self._netlink = Netlink(NETLINK_ROUTE)

    def close(self) -> None:
        """Close the socket."""
        self._netlink.close()

    def index_of(self, name: str) -> int | None:
        """The number of an interface; None where there is none."""
        try:
            answers = self._netlink.request(
                _GETLINK, 0, _LINK.pack(0, 0, 0, 0, 0) + text(_IFLA_IFNAME, name)
            )
        except NetlinkError as error:
            if is_absent(error):
                return None
            raise
        return int(_LINK.unpack_from(answers[0].body)[2])

    def addresses(self) -> frozenset[Address]:
        """All addresses here."""
        found = set()
        for answer in self._netlink.request(_GETADDR, DUMP, _ADDRESS.pack(0, 0, 0, 0, 0)):
            values = attributes(answer.body[_ADDRESS.size :])
            raw = values.get(_IFA_LOCAL) or values.get(_IFA_ADDRESS)
            if raw:
                found.add(ipaddress.ip_address(raw))
        return frozenset(found)

    def has_default_route(self, version: int) -> bool:
        """Whether there is a way to everywhere."""
        family = socket.AF_INET if version == 4 else socket.AF_INET6
        body = _ROUTE.pack(family, 0, 0, 0, 0, 0, 0, 0, 0)
        for answer in self._netlink.request(_GETROUTE, DUMP, body):
            of, dst_len, _, _, _, _, _, kind, _ = _ROUTE.unpack_from(answer.body)
            if of == family and dst_len == 0 and kind == _UNICAST:
                return True
        return False

    def linked_slot(self) -> int | None:
        """In a world: which one its link's address says it is."""
        slots = [slot for address in self.addresses() if (slot := slot_of(address))]
        return slots[0] if slots else None

    # -- in the router -------------------------------------------------------------------------

    def prepare_router(self) -> None:
        """Give the router its addresses; nothing happens where it has them."""
        loopback = self._must_index("lo")
        self._set_up(loopback)
        for address in (ROUTER_V4, ROUTER_V6):
            self._add_address(loopback, address)
        for host in (ROUTER_V4 + 1, ROUTER_V6 + 1):
            self._add_address(loopback, host)

    def connect(self, slot: int, world_netns: int) -> None:
        """Make a world's link, and the router's end of it ready.

        Args:
            slot: the world.
            world_netns: descriptor of its network namespace.
        """
        name = link_name(slot)
        peer = (
            _LINK.pack(0, 0, 0, 0, 0)
            + text(_IFLA_IFNAME, WORLD_LINK)
            + attribute(_IFLA_ADDRESS, _world_mac(slot))
            + attribute(_IFLA_MTU, struct.pack("=I", MTU))
            + attribute(_IFLA_NET_NS_FD, struct.pack("=i", world_netns))
        )
        body = (
            _LINK.pack(0, 0, 0, 0, 0)
            + text(_IFLA_IFNAME, name)
            + attribute(_IFLA_ADDRESS, _ROUTER_MAC)
            + attribute(_IFLA_MTU, struct.pack("=I", MTU))
            + nested(_IFLA_LINKINFO, text(1, "veth"), nested(2, attribute(1, peer)))
        )
        self._netlink.request(_NEWLINK, CREATE | EXCLUSIVE, body)
        index = self._must_index(name)
        self._set_up(index)
        for address in (world_v4(slot), world_v6(slot)):
            self._add_neighbour(index, address, _world_mac(slot))
            self._add_route(index, address)

    def disconnect(self, slot: int) -> None:
        """Take a world's link away; it need not be there."""
        self.remove(link_name(slot))

    def remove(self, name: str) -> None:
        """Take a link away, and with it its other end; it need not be there."""
        index = self.index_of(name)
        if index is None:
            return
        try:
            self._netlink.request(_DELLINK, 0, _LINK.pack(0, 0, index, 0, 0))
        except NetlinkError as error:
            if not is_absent(error):
                raise

    # -- in a world ----------------------------------------------------------------------------

    def configure_world(self, slot: int, *, with_v6: bool) -> None:
        """Address and routes of the world's end; in the world's namespace."""
        index = self._must_index(WORLD_LINK)
        pairs: list[tuple[Address, Address]] = [(world_v4(slot), ROUTER_V4)]
        pairs.append((world_v6(slot), ROUTER_V6))
        for own, _router in pairs:
            self._add_address(index, own)
        self._set_up(index)
        for own, router in pairs:
            for near in (router, router + 1):
                self._add_neighbour(index, near, _ROUTER_MAC)
                self._add_route(index, near)
            if own.version == 4 or with_v6:
                self._add_route(index, None, gateway=router)

    # -- parts ---------------------------------------------------------------------------------

    def _must_index(self, name: str) -> int:
        index = self.index_of(name)
        if index is None:
            raise NetlinkError(errno.ENODEV, f"no interface {name}")
        return index

    def _set_up(self, index: int) -> None:
        self._netlink.request(_NEWLINK, 0, _LINK.pack(0, 0, index, _IFF_UP, _IFF_UP))

    def _add_address(self, index: int, address: Address) -> None:
        body = _ADDRESS.pack(_family(address), address.max_prefixlen, _NODAD, 0, index)
        raw = address.packed
        self._netlink.request(
            _NEWADDR,
            CREATE | REPLACE,
            body + attribute(_IFA_LOCAL, raw) + attribute(_IFA_ADDRESS, raw),
        )

    def _add_neighbour(self, index: int, address: Address, mac: bytes) -> None:
        body = _NEIGHBOUR.pack(_family(address), index, _PERMANENT, 0, 0)
        self._netlink.request(
            _NEWNEIGH, CREATE | REPLACE, body + attribute(1, address.packed) + attribute(2, mac)
        )

    def _add_route(
        self, index: int, destination: Address | None, gateway: Address | None = None
    ) -> None:
        known = destination or gateway
        if known is None:
            raise ValueError("a route leads somewhere")
        scope = _SCOPE_LINK if gateway is None and known.version == 4 else _SCOPE_UNIVERSE
        length = destination.max_prefixlen if destination is not None else 0
        body = _ROUTE.pack(
            _family(known), length, 0, 0, _MAIN_TABLE, _STATIC, scope, _UNICAST, 0
        ) + attribute(_RTA_OIF, struct.pack("=I", index))
        if destination is not None:
            body += attribute(_RTA_DST, destination.packed)
        if gateway is not None:
            body += attribute(_RTA_GATEWAY, gateway.packed)
        self._netlink.request(_NEWROUTE, CREATE | REPLACE, body)
