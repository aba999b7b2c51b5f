"""Policy rules about what a world's network opens, held against the network rules of a world.

A pattern is written like a network rule, but that ``host`` alone is every service of the host. What
restricts counts where any of it is asked for; what allows, where nothing else is. What restricts
``full``, or a name, also restricts blocks of addresses so wide that they are no less.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, collapse_addresses

from substrate_services.network.presets import HOST_NAME
from substrate_services.network.rules import (
    BadRule,
    BlockRule,
    DomainRule,
    Network,
    NetworkRules,
    parse_rules,
)

#: Bits of a prefix, by version of IP: nobody was given more addresses than such a block has.
_WIDE = {4: 8, 6: 16}


@dataclass(frozen=True, slots=True)
class _Host:
    port: int | None


@dataclass(frozen=True, slots=True)
class _Full:
    pass


@dataclass(frozen=True, slots=True)
class _Wide:
    """Blocks of addresses so wide that any name may lead into them."""


_Part = DomainRule | BlockRule | _Host | _Full | _Wide


@dataclass(frozen=True, slots=True)
class NetworkPattern:
    """One pattern of a policy file.

    Attributes:
        spec: as it is written.
        parts: what it stands for; a preset stands for several.
    """

    spec: str
    parts: tuple[_Part, ...]

    def concerns(self, wanted: NetworkRules) -> bool:
        """Whether any of what is wanted is in it."""
        return any(_overlap(part, asked) for part in self.parts for asked in _asked(wanted))


def compile_network(spec: str) -> NetworkPattern:
    """Read a pattern. Raises ValueError with a line for people."""
    if spec.strip().lower() == HOST_NAME:
        return NetworkPattern(spec, (_Host(None),))
    rules = parse_rules([spec])
    if not rules.texts:
        raise BadRule(f"`{spec}` is no network; leave the rule out")
    return NetworkPattern(spec, _parts(rules))


def all_covered(wanted: NetworkRules, patterns: Iterable[NetworkPattern]) -> bool:
    """Whether everything that is wanted is in some pattern."""
    parts = [part for pattern in patterns for part in pattern.parts]
    return all(any(_within(asked, part) for part in parts) for asked in _parts(wanted))


def read_wanted(texts: Iterable[str]) -> NetworkRules:
    """The network rules of a step; what cannot be read is held against every rule there is."""
    try:
        return parse_rules(texts)
    except BadRule:
        return parse_rules(["full"])


def _parts(rules: NetworkRules) -> tuple[_Part, ...]:
    full: tuple[_Part, ...] = (_Full(),) if rules.mode == "full" else ()
    hosts = tuple(_Host(port) for port in rules.host_ports)
    return (*full, *rules.domains, *rules.blocks, *hosts)


def _asked(rules: NetworkRules) -> tuple[_Part, ...]:
    wide = any(block.prefixlen < _WIDE[block.version] for block in _together(rules))
    return (*_parts(rules), *((_Wide(),) if wide else ()))


def _together(rules: NetworkRules) -> Iterator[Network]:
    v4 = [b.network for b in rules.blocks if isinstance(b.network, IPv4Network)]
    v6 = [b.network for b in rules.blocks if isinstance(b.network, IPv6Network)]
    yield from collapse_addresses(v4)
    yield from collapse_addresses(v6)


def _overlap(pattern: _Part, asked: _Part) -> bool:
    match pattern, asked:
        case ((_Full() | DomainRule() | BlockRule()), _Full()):
            return True
        case ((_Full() | DomainRule()), _Wide()):
            return True
        case DomainRule(), DomainRule():
            either = _below(pattern, asked) or _below(asked, pattern)
            return either and _one_port(pattern.port, asked.port)
        case BlockRule(), BlockRule():
            return (
                pattern.network.version == asked.network.version
                and pattern.network.overlaps(asked.network)
                and _one_port(pattern.port, asked.port)
            )
        case _Host(), _Host():
            return _one_port(pattern.port, asked.port)
        case _:
            return False


def _within(asked: _Part, pattern: _Part) -> bool:
    match asked, pattern:
        case ((DomainRule() | BlockRule() | _Full()), _Full()):
            return True
        case DomainRule(), DomainRule():
            return _below(asked, pattern) and pattern.port in (None, asked.port)
        case BlockRule(), BlockRule():
            inner, outer = asked.network, pattern.network
            return (
                inner.version == outer.version
                and inner[0] in outer
                and inner[-1] in outer
                and pattern.port in (None, asked.port)
            )
        case _Host(), _Host():
            return pattern.port in (None, asked.port)
        case _:
            return False


def _below(inner: DomainRule, outer: DomainRule) -> bool:
    """Whether each name of one is a name of the other."""
    if not outer.wildcard:
        return not inner.wildcard and inner.name == outer.name
    return inner.name.endswith(f".{outer.name}") or (inner.wildcard and inner.name == outer.name)


def _one_port(one: int | None, other: int | None) -> bool:
    return one is None or other is None or one == other
