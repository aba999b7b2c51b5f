"""The filter: what nftables does with the packets of worlds, as text for ``nft -f`` (nft(8)).

One table in the router. A packet of a world goes through a chain of its own, found by the interface
it came in by, so nothing it says of itself chooses its rules. Names are sets with time-outs, which
the resolver fills before it answers.

A flow bears the mark of the rules that let it begin. After rules have changed its mark is an old
one, and its next packet is judged like a first.
"""

from __future__ import annotations

import hashlib

from substrate_services.network.addresses import (
    HOST_V4,
    HOST_V6,
    METADATA,
    ROUTER_V4,
    ROUTER_V6,
    link_name,
    world_v4,
    world_v6,
)
from substrate_services.network.links import UPLINK
from substrate_services.network.rules import Address, NetworkRules

TABLE = "substrate"
LOG_GROUP = 7
_ALWAYS_V4 = ("127.0.0.0/8", "0.0.0.0/8", "169.254.0.0/16", "224.0.0.0/3")
_ALWAYS_V6 = ("::1/128", "::/128", "ff00::/8", "fe80::/10", "::ffff:0:0/96")
_DNS_PORTS = "{ 53, 853, 5353, 5355 }"


def set_names(slot: int) -> tuple[str, ...]:
    """The sets of a world, in the order: names of IPv4, IPv6; names with a port of IPv4, IPv6."""
    return tuple(f"w{slot}_{kind}" for kind in ("names4", "names6", "ports4", "ports6"))


def base() -> str:
    """What all worlds share; nothing of what is there is lost when it is loaded again."""
    never4 = [str(one) for one in METADATA if one.version == 4]
    never6 = [str(one) for one in METADATA if one.version == 6]
    return f"""
add table inet {TABLE}
add set inet {TABLE} never4 {{ type ipv4_addr; flags interval; auto-merge; }}
add set inet {TABLE} never6 {{ type ipv6_addr; flags interval; auto-merge; }}
add set inet {TABLE} host4 {{ type ipv4_addr; }}
add set inet {TABLE} host6 {{ type ipv6_addr; }}
add element inet {TABLE} never4 {{ {", ".join((*_ALWAYS_V4, *never4))} }}
add element inet {TABLE} never6 {{ {", ".join((*_ALWAYS_V6, *never6))} }}
add map inet {TABLE} outward {{ type ifname : verdict; }}
add map inet {TABLE} inward {{ type ifname : verdict; }}
add map inet {TABLE} nearby {{ type ifname : verdict; }}
add chain inet {TABLE} refuse
flush chain inet {TABLE} refuse
add rule inet {TABLE} refuse limit rate 500/second burst 1000 packets log group {LOG_GROUP}
add rule inet {TABLE} refuse meta l4proto tcp reject with tcp reset
add rule inet {TABLE} refuse reject with icmpx type admin-prohibited
add chain inet {TABLE} forged
flush chain inet {TABLE} forged
add rule inet {TABLE} forged drop
add chain inet {TABLE} forward {{ type filter hook forward priority 0; policy drop; }}
flush chain inet {TABLE} forward
add rule inet {TABLE} forward iifname "{UPLINK}" oifname vmap @inward
add rule inet {TABLE} forward iifname vmap @outward
add chain inet {TABLE} input {{ type filter hook input priority 0; policy drop; }}
flush chain inet {TABLE} input
add rule inet {TABLE} input iifname "lo" accept
add rule inet {TABLE} input iifname "{UPLINK}" ct state established,related accept
add rule inet {TABLE} input iifname "{UPLINK}" icmpv6 type {{ nd-neighbor-solicit, \
nd-neighbor-advert, nd-router-advert }} accept
add rule inet {TABLE} input iifname vmap @nearby
add chain inet {TABLE} leave {{ type nat hook postrouting priority 100; }}
flush chain inet {TABLE} leave
add rule inet {TABLE} leave oifname "{UPLINK}" masquerade
"""


def host_addresses(addresses: frozenset[Address]) -> str:
    """The host's own addresses, which no world reaches."""
    lines = []
    for version in (4, 6):
        name = f"host{version}"
        of_version = sorted(str(one) for one in addresses if one.version == version)
        lines.append(f"flush set inet {TABLE} {name}")
        if of_version:
            lines.append(f"add element inet {TABLE} {name} {{ {', '.join(of_version)} }}")
    return "\n".join(lines)


def mark_of(rules: NetworkRules) -> int:
    """The mark of flows that these rules let begin; never 0."""
    text = "\n".join(map(str, (rules.mode, rules.domains, rules.blocks, rules.host_ports)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "big") | 1


def attach(slot: int, rules: NetworkRules, *, forget_names: bool) -> str:
    """The chains of a world.

    Args:
        slot: the world.
        rules: what it may reach.
        forget_names: empty its sets, as its rules are others than before.
    """
    link = link_name(slot)
    names4, names6, ports4, ports6 = set_names(slot)
    lines = [
        f"add set inet {TABLE} {names4} {{ type ipv4_addr; flags timeout; }}",
        f"add set inet {TABLE} {names6} {{ type ipv6_addr; flags timeout; }}",
        f"add set inet {TABLE} {ports4} {{ type ipv4_addr . inet_service; flags timeout; }}",
        f"add set inet {TABLE} {ports6} {{ type ipv6_addr . inet_service; flags timeout; }}",
    ]
    if forget_names:
        lines += [f"flush set inet {TABLE} {name}" for name in set_names(slot)]
    chains = {"outward": _outward(slot, rules), "inward": _inward(rules), "nearby": _nearby(slot)}
    chains["nearby"] += _services(rules)
    for name, body in chains.items():
        chain = f"{link}_{name}"
        lines += [f"add chain inet {TABLE} {chain}", f"flush chain inet {TABLE} {chain}"]
        lines += [f"add rule inet {TABLE} {chain} {rule}" for rule in body]
        lines.append(f'add element inet {TABLE} {name} {{ "{link}" : goto {chain} }}')
    return "\n".join(lines)


def detach(slot: int) -> str:
    """Take a world's chains and sets away; each must be there."""
    link = link_name(slot)
    lines = [
        f'delete element inet {TABLE} {name} {{ "{link}" }}'
        for name in ("outward", "inward", "nearby")
    ]
    for name in ("outward", "inward", "nearby"):
        lines += [
            f"flush chain inet {TABLE} {link}_{name}",
            f"delete chain inet {TABLE} {link}_{name}",
        ]
    lines += [f"delete set inet {TABLE} {name}" for name in set_names(slot)]
    return "\n".join(lines)


def _from_itself(slot: int) -> list[str]:
    # Whose it is says the prefix: the packet's source may be another world's address.
    told = f'limit rate 50/second log prefix "forged {slot}" group {LOG_GROUP}'
    return [
        f"ip saddr != {world_v4(slot)} {told}",
        f"ip saddr != {world_v4(slot)} goto forged",
        f"ip6 saddr != {world_v6(slot)} {told}",
        f"ip6 saddr != {world_v6(slot)} goto forged",
        "meta nfproto != { ipv4, ipv6 } drop",
    ]


def _outward(slot: int, rules: NetworkRules) -> list[str]:
    mark = mark_of(rules)
    accept = f"ct mark set {mark} accept"
    names4, names6, ports4, ports6 = set_names(slot)
    body = [
        *_from_itself(slot),
        f'oifname != "{UPLINK}" goto refuse',
        "ip daddr @never4 goto refuse",
        "ip6 daddr @never6 goto refuse",
        "ip daddr @host4 goto refuse",
        "ip6 daddr @host6 goto refuse",
        "ip6 nexthdr != { tcp, udp, ipv6-icmp } goto refuse",
        "ct state invalid drop",
        f"ct mark {mark} ct state established,related accept",
    ]
    if rules.mode == "full":
        return [*body, f"meta l4proto {{ tcp, udp, icmp, ipv6-icmp }} {accept}", "goto refuse"]
    for block in rules.blocks:
        family = "ip" if block.network.version == 4 else "ip6"
        where = f"{family} daddr {block.network} meta l4proto {{ tcp, udp }}"
        body.append(where + (f" th dport {block.port}" if block.port else "") + f" {accept}")
    with_port = f"meta l4proto {{ tcp, udp }} ip daddr . th dport @{ports4} {accept}"
    body += [
        with_port,
        with_port.replace("ip daddr", "ip6 daddr").replace(ports4, ports6),
        # A name server elsewhere would answer what ours does not.
        f"meta l4proto {{ tcp, udp }} th dport {_DNS_PORTS} goto refuse",
        f"meta l4proto {{ tcp, udp }} ip daddr @{names4} {accept}",
        f"meta l4proto {{ tcp, udp }} ip6 daddr @{names6} {accept}",
        "goto refuse",
    ]
    return body


def _inward(rules: NetworkRules) -> list[str]:
    return [f"ct mark {mark_of(rules)} ct state established,related accept", "drop"]


def _nearby(slot: int) -> list[str]:
    asks = "meta l4proto { tcp, udp } th dport 53 accept"
    return [
        *_from_itself(slot),
        f"ip daddr {ROUTER_V4} {asks}",
        f"ip6 daddr {ROUTER_V6} {asks}",
    ]


def _services(rules: NetworkRules) -> list[str]:
    body = []
    for port in rules.host_ports:
        body.append(f"ip daddr {HOST_V4} tcp dport {port} accept")
        body.append(f"ip6 daddr {HOST_V6} tcp dport {port} accept")
    return [*body, "goto refuse"]
