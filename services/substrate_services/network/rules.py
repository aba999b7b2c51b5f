"""Network rules: what users write, checked once, and what the rest of this package works with.

A rule is ``none``, ``full``, a preset (``@python``), a domain (``example.org``, ``*.example.org``),
an address or CIDR block (``192.0.2.0/24``, ``[2001:db8::/32]``), each of the last three with
``:PORT`` or without, or ``host:PORT``, a service on the host's loopback.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from substrate_services.network.presets import HOST_NAME, PRESETS

RULES_LIMIT = 256
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)")
_FORMS = (
    "write none, full, a preset (@python, @npm, @go, @rust, @github), domain[:port], "
    "*.domain[:port], address[/bits][:port] or host:port"
)


class BadRule(ValueError):
    """A rule that cannot be used; the text is one line for people."""


@dataclass(frozen=True, slots=True)
class DomainRule:
    """A name, or with ``wildcard`` all names below it; ``port`` None is every port."""

    name: str
    wildcard: bool
    port: int | None


@dataclass(frozen=True, slots=True)
class BlockRule:
    """A block of addresses; ``port`` None is every port."""

    network: Network
    port: int | None


@dataclass(frozen=True, slots=True)
class NetworkRules:
    """What a world may reach.

    Attributes:
        mode: nothing, what the rules name, or all but the host.
        domains: names; what they resolve to is open for as long as the answer holds.
        blocks: addresses.
        host_ports: services on the host's loopback.
        texts: the rules as they are written, normal form.
    """

    mode: Literal["none", "allow", "full"]
    domains: tuple[DomainRule, ...] = ()
    blocks: tuple[BlockRule, ...] = ()
    host_ports: tuple[int, ...] = ()
    texts: tuple[str, ...] = ()

    def name_ports(self, name: str) -> frozenset[int | None]:
        """The ports that a name is open on; None among them is every port."""
        if self.mode == "full":
            return frozenset([None])
        if "\\" in name:  # a dot inside a label: it is below something else than it looks
            return frozenset()
        return frozenset(
            rule.port
            for rule in self.domains
            if (name.endswith(f".{rule.name}") if rule.wildcard else name == rule.name)
        )

    def blocks_open(self, address: Address) -> bool:
        """Whether a rule names the address itself, and not by a name."""
        return any(
            rule.network.version == address.version and address in rule.network
            for rule in self.blocks
        )


NO_NETWORK = NetworkRules("none")


def parse_rules(texts: Iterable[str]) -> NetworkRules:
    """Read a world's rules.

    Raises:
        BadRule: one of them cannot be used.
    """
    written = tuple(dict.fromkeys(text.strip().lower() for text in texts))
    if len(written) > RULES_LIMIT:
        raise BadRule(f"{len(written)} network rules are too many; at most {RULES_LIMIT}")
    if "none" in written and len(written) > 1:
        raise BadRule("network rule 'none' goes with no other rule; leave it out")
    if written in ((), ("none",)):
        return NO_NETWORK
    domains: dict[DomainRule, None] = {}
    blocks: dict[BlockRule, None] = {}
    host_ports: dict[int, None] = {}
    for text in (one for rule in written for one in _expanded(rule)):
        if text == "full":
            continue
        where, port = _split_port(text)
        if where == HOST_NAME:
            if port is None:
                raise BadRule("network rule 'host' needs a port: host:5432")
            host_ports[port] = None
        elif (block := _block(where)) is not None:
            blocks[BlockRule(block, port)] = None
        else:
            domains[_domain(text, where, port)] = None
    return NetworkRules(
        mode="full" if "full" in written else "allow",
        domains=tuple(domains),
        blocks=tuple(blocks),
        host_ports=tuple(host_ports),
        texts=written,
    )


def _expanded(rule: str) -> tuple[str, ...]:
    if not rule.startswith("@"):
        return (rule,)
    found = PRESETS.get(rule[1:])
    if found is None:
        names = ", ".join(f"@{name}" for name in PRESETS)
        raise BadRule(f"network rule {rule!r} names no preset; there are {names}")
    return found


def _split_port(text: str) -> tuple[str, int | None]:
    """What stands before ``:port``, without brackets, and the port."""
    bracketed = re.fullmatch(r"\[([^\]]*)\](?::(\d+))?", text)
    if bracketed:
        where, port = bracketed.group(1), bracketed.group(2)
    elif text.count(":") == 1:
        where, _, port = text.partition(":")
    else:
        return text, None
    if port is None:
        return where, None
    if not re.fullmatch(r"\d{1,5}", port) or not 0 < int(port) < 65536:
        raise BadRule(f"network rule {text!r} has no usable port; write 1 to 65535 after the colon")
    return where, int(port)


def _block(where: str) -> Network | None:
    if not re.fullmatch(r"[0-9.]+(/\d+)?|[0-9a-f:.]*:[0-9a-f:.]*(/\d+)?", where):
        return None
    try:
        return ipaddress.ip_network(where, strict=False)
    except ValueError as error:
        raise BadRule(f"network rule {where!r} is no address block: {error}") from error


def _domain(text: str, where: str, port: int | None) -> DomainRule:
    wildcard = where.startswith("*.")
    name = where.removeprefix("*.").rstrip(".")
    if not name.isascii():
        try:
            name = name.encode("idna").decode("ascii")
        except UnicodeError as error:
            raise BadRule(f"network rule {text!r} is no domain: {error}") from error
    labels = name.split(".")
    if (
        not name
        or len(name) > 253
        or not all(_LABEL.fullmatch(label) for label in labels)
        or labels[-1].isdigit()
    ):
        raise BadRule(f"network rule {text!r} cannot be used; {_FORMS}")
    return DomainRule(name, wildcard, port)
