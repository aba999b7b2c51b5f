"""Which addresses a world, and whatever answers its questions, may never or only by rule name."""

from __future__ import annotations

import ipaddress

from substrate_services.network.rules import Address, NetworkRules

ROUTER_V4 = ipaddress.IPv4Address("10.207.0.1")  # the resolver, and the worlds' gateway
ROUTER_V6 = ipaddress.IPv6Address("fd53:7562:7374::1")
HOST_V4 = ipaddress.IPv4Address("10.207.0.2")  # "host": services of the host's loopback
HOST_V6 = ipaddress.IPv6Address("fd53:7562:7374::2")
UPLINK_V4 = ipaddress.IPv4Address("10.207.255.2")
UPLINK_GATEWAY_V4 = ipaddress.IPv4Address("10.207.255.1")
SLOTS = range(1, 0xFD00)
_FIRST = 0x0100  # 10.207.1.0 and up are worlds

#: Where clouds hand credentials to whoever asks: AWS, Azure, GCP, ECS, EKS, Oracle, Alibaba,
#: Scaleway, Linode. Those of the rest are link-local, which is closed as a whole.
METADATA = tuple(
    ipaddress.ip_address(text)
    for text in (
        "169.254.169.254",
        "169.254.170.2",
        "169.254.170.23",
        "168.63.129.16",
        "192.0.0.192",
        "100.100.100.200",
        "fd00:ec2::254",
        "fd00:ec2::23",
        "fd20:ce::254",
        "fd00:42::42",
        "fd00:a9fe:a9fe::1",
        "fd00:c1::a9fe:a9fe",
        "fd00:100::100:200",
    )
)

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


def world_v4(slot: int) -> ipaddress.IPv4Address:
    """The address of a world."""
    return ipaddress.IPv4Address(int(ROUTER_V4) - 1 + _FIRST + slot - 1)


def world_v6(slot: int) -> ipaddress.IPv6Address:
    """The same, in IPv6."""
    return ipaddress.IPv6Address(int(ROUTER_V6) - 1 + (1 << 16) + slot)


def slot_of(address: Address) -> int | None:
    """The world that an address belongs to; None where it is no world's."""
    if isinstance(address, ipaddress.IPv4Address):
        slot = int(address) - (int(ROUTER_V4) - 1) - _FIRST + 1
    else:
        slot = int(address) - (int(ROUTER_V6) - 1) - (1 << 16)
    return slot if slot in SLOTS else None


def link_name(slot: int) -> str:
    """The router's end of a world's link."""
    return f"w{slot}"


def inside_v6(block: str) -> ipaddress.IPv6Network:
    """The IPv6 addresses that a NAT64 turns into those of an IPv4 block (RFC 6052)."""
    inner = ipaddress.IPv4Network(block)
    first = int(_NAT64.network_address) | int(inner.network_address)
    return ipaddress.IPv6Network((first, 96 + inner.prefixlen))


def may_answer(address: Address, rules: NetworkRules, host: frozenset[Address]) -> bool:
    """Whether a name may resolve to an address: none inside the caller's own networks (rebinding).

    Args:
        address: of an answer.
        rules: of the world that asked.
        host: the host's own addresses.
    """
    inner = _inner(address)
    if inner in METADATA or inner in host or address in host or address in METADATA:
        return False
    if rules.blocks_open(address):
        return True
    if inner.is_loopback or inner.is_link_local or inner.is_multicast or inner.is_unspecified:
        return False
    return inner.is_global or rules.mode == "full"


def _inner(address: Address) -> Address:
    """The IPv4 address that an IPv6 one stands for, where it does."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped
        if address.sixtofour is not None:
            return address.sixtofour
        if address in _NAT64:
            return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address
