"""The filter: what nftables does with the packets of worlds, as text for ``nft -f`` (nft(8)).

One table in the router. A packet of a world goes through a chain of its own, found by the interface
it came in by, so nothing it says of itself chooses its rules. Names are sets with time-outs, which
the resolver fills before it answers.

A flow bears the mark of the rules that let it begin. After rules have changed its mark is an old
one, and its next packet is judged like a first.

Nothing that a world does fills what others need: its flows, the addresses of its names and the
record of its refusals have bounds of their own, and its questions to the resolver are not tracked.
"""

from __future__ import annotations

import hashlib
import re

from substrate_services.network.addresses import (
    HOST_V4,
    HOST_V6,
    METADATA,
    ROUTER_V4,
    ROUTER_V6,
    inside_v6,
    link_name,
    world_v4,
    world_v6,
)
from substrate_services.network.links import UPLINK
from substrate_services.network.rules import Address, NetworkRules

TABLE = "substrate"
LOG_GROUP = 7
FLOWS_LIMIT = 2_048  # of one world at once; the kernel's table is one for all worlds of a home
NEW_FLOWS_PER_S = 1_000  # the count leaves out those that wait for their end (TIME_WAIT)
NAMED_LIMIT = 4_096  # addresses that a world's names have open
_SET_SIZE = 2 * NAMED_LIMIT  # what has run out is counted until the kernel has swept it
_ALWAYS_V4 = ("127.0.0.0/8", "0.0.0.0/8", "169.254.0.0/16", "224.0.0.0/3")
_ALWAYS_V6 = ("::1/128", "::/128", "ff00::/8", "fe80::/10", "::ffff:0:0/96")
_DNS_PORTS = "{ 53, 853, 5353, 5355 }"
_ASKS = "meta l4proto { tcp, udp } th dport 53"
_ANSWERS = "meta l4proto { tcp, udp } th sport 53"
#: A world's own chains: those that a packet is sent to, and those that packets come in by.
_ENDS = ("crowd", "refuse", "admit")
_WAYS = ("outward", "inward", "nearby")


def set_names(slot: int) -> tuple[str, ...]:
    """The sets of a world, in the order: names of IPv4, IPv6; names with a port of IPv4, IPv6."""
    return tuple(f"w{slot}_{kind}" for kind in ("name4", "name6", "port4", "port6"))


def base() -> str:
    """What all worlds share; nothing of what is there is lost when it is loaded again."""
    never4 = [str(one) for one in METADATA if one.version == 4]
    never6 = [str(one) for one in METADATA if one.version == 6]
    never6 += [str(inside_v6(one)) for one in ("169.254.0.0/16", *never4)]
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
add chain inet {TABLE} asked {{ type filter hook prerouting priority raw; }}
flush chain inet {TABLE} asked
add rule inet {TABLE} asked iifname "w*" ip daddr {ROUTER_V4} {_ASKS} notrack
add rule inet {TABLE} asked iifname "w*" ip6 daddr {ROUTER_V6} {_ASKS} notrack
add chain inet {TABLE} answered {{ type filter hook output priority raw; }}
flush chain inet {TABLE} answered
add rule inet {TABLE} answered oifname "w*" ip saddr {ROUTER_V4} {_ANSWERS} notrack
add rule inet {TABLE} answered oifname "w*" ip6 saddr {ROUTER_V6} {_ANSWERS} notrack
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


def admitting(slot: int) -> str:
    """The chain of a world that marks its flows."""
    return f"{link_name(slot)}_admit"


def is_of(rules: NetworkRules, listed: str) -> bool:
    """Whether that chain, as nft lists it, is of these rules."""
    marks = re.findall(r"ct mark set (0x[0-9a-f]+)", listed)
    return [int(mark, 16) for mark in marks] == [mark_of(rules)]


def attach(slot: int, rules: NetworkRules, *, forget_names: bool) -> str:
    """The chains of a world.

    Args:
        slot: the world.
        rules: what it may reach.
        forget_names: empty its sets, as its rules are others than before.
    """
    link = link_name(slot)
    names4, names6, ports4, ports6 = set_names(slot)
    bound = f"flags timeout; size {_SET_SIZE};"
    lines = [
        f"add set inet {TABLE} {names4} {{ type ipv4_addr; {bound} }}",
        f"add set inet {TABLE} {names6} {{ type ipv6_addr; {bound} }}",
        f"add set inet {TABLE} {ports4} {{ type ipv4_addr . inet_service; {bound} }}",
        f"add set inet {TABLE} {ports6} {{ type ipv6_addr . inet_service; {bound} }}",
    ]
    if forget_names:
        lines += [f"flush set inet {TABLE} {name}" for name in set_names(slot)]
    chains = {
        "crowd": _crowd(slot),
        "refuse": _refuse(),
        "admit": _admit(slot, rules),
        "outward": _outward(slot, rules),
        "inward": _inward(rules),
        "nearby": _nearby(slot, rules),
    }
    for name, body in chains.items():
        chain = f"{link}_{name}"
        lines += [f"add chain inet {TABLE} {chain}", f"flush chain inet {TABLE} {chain}"]
        lines += [f"add rule inet {TABLE} {chain} {rule}" for rule in body]
    for name in _WAYS:
        lines.append(f'add element inet {TABLE} {name} {{ "{link}" : goto {link}_{name} }}')
    return "\n".join(lines)


def detach(slot: int) -> str:
    """Take a world's chains and sets away; each must be there."""
    link = link_name(slot)
    lines = [f'delete element inet {TABLE} {name} {{ "{link}" }}' for name in _WAYS]
    for action in ("flush", "delete"):
        lines += [f"{action} chain inet {TABLE} {link}_{name}" for name in (*_WAYS, *_ENDS)]
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


def _crowd(slot: int) -> list[str]:
    """For a flow that is one too many."""
    return [
        f'limit rate 10/second log prefix "crowd {slot}" group {LOG_GROUP}',
        "goto refuse",
    ]


def _refuse() -> list[str]:
    """What is refused is told, of each world so much and no more."""
    return [
        f"limit rate 100/second burst 500 packets log group {LOG_GROUP}",
        "goto refuse",
    ]


def _admit(slot: int, rules: NetworkRules) -> list[str]:
    """For a flow that may begin."""
    crowd = f"goto {link_name(slot)}_crowd"
    return [
        f"ct count over {FLOWS_LIMIT} {crowd}",
        f"limit rate over {NEW_FLOWS_PER_S}/second burst {FLOWS_LIMIT} packets {crowd}",
        f"ct mark set {mark_of(rules)} accept",
    ]


def _outward(slot: int, rules: NetworkRules) -> list[str]:
    link = link_name(slot)
    admit, refuse = f"goto {link}_admit", f"goto {link}_refuse"
    names4, names6, ports4, ports6 = set_names(slot)
    body = [
        *_from_itself(slot),
        f'oifname != "{UPLINK}" {refuse}',
        f"ip daddr @never4 {refuse}",
        f"ip6 daddr @never6 {refuse}",
        f"ip daddr @host4 {refuse}",
        f"ip6 daddr @host6 {refuse}",
        f"ip6 nexthdr != {{ tcp, udp, ipv6-icmp }} {refuse}",
        "ct state invalid drop",
        f"ct mark {mark_of(rules)} accept",
    ]
    if rules.mode == "full":
        return [*body, f"meta l4proto {{ tcp, udp, icmp, ipv6-icmp }} {admit}", refuse]
    for block in rules.blocks:
        family = "ip" if block.network.version == 4 else "ip6"
        where = f"{family} daddr {block.network} meta l4proto {{ tcp, udp }}"
        body.append(where + (f" th dport {block.port}" if block.port else "") + f" {admit}")
    with_port = f"meta l4proto {{ tcp, udp }} ip daddr . th dport @{ports4} {admit}"
    body += [
        with_port,
        with_port.replace("ip daddr", "ip6 daddr").replace(ports4, ports6),
        # A name server elsewhere would answer what ours does not.
        f"meta l4proto {{ tcp, udp }} th dport {_DNS_PORTS} {refuse}",
        f"meta l4proto {{ tcp, udp }} ip daddr @{names4} {admit}",
        f"meta l4proto {{ tcp, udp }} ip6 daddr @{names6} {admit}",
        refuse,
    ]
    return body


def _inward(rules: NetworkRules) -> list[str]:
    return [f"ct mark {mark_of(rules)} ct state established,related accept", "drop"]


def _nearby(slot: int, rules: NetworkRules) -> list[str]:
    """The resolver, and the services of the host that the rules name."""
    link = link_name(slot)
    body = [
        *_from_itself(slot),
        f"ip daddr {ROUTER_V4} {_ASKS} accept",
        f"ip6 daddr {ROUTER_V6} {_ASKS} accept",
        f"ct mark {mark_of(rules)} accept",
    ]
    for port in rules.host_ports:
        body.append(f"ip daddr {HOST_V4} tcp dport {port} goto {link}_admit")
        body.append(f"ip6 daddr {HOST_V6} tcp dport {port} goto {link}_admit")
    return [*body, f"goto {link}_refuse"]
