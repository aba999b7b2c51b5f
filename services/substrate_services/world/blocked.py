"""What the boundary kept from a command, in words that say how to go on (DESIGN §5).

This explains; it enforces nothing. It rests on the program's own testimony of failed calls,
compared with what this host knows it hid.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping

from substrate_services.journal.schema import Blocked
from substrate_services.network.presets import rule_for
from substrate_services.world.base_mounts import is_below
from substrate_services.world.layout import TMP, Layout
from substrate_services.world.profile import Mask

BLOCKED_LIMIT = 64
INIT_PREFIX = b"/proc/1"
_EAI_AGAIN = -3  # getaddrinfo(3): no name server answered; a name that is not there is another
_NETWORK_ERRORS = frozenset({"ENETUNREACH", "EHOSTUNREACH", "EPERM", "EACCES", "ECONNREFUSED"})


def watch_prefixes(layout: Layout) -> tuple[bytes, ...]:
    """Paths whose failed look-ups the decoder must not leave out."""
    homes = (cover for cover in layout.covers if cover != TMP)
    return tuple(dict.fromkeys((*(mask.path for mask in layout.masks), *homes, INIT_PREFIX)))


def explain_blocked(
    events: Iterable[Mapping[str, object]], layout: Layout, network: tuple[str, ...]
) -> tuple[Blocked, ...]:
    """The distinct things that were kept from the command, in the order it met them.

    Args:
        events: decoded event lines with ``syscall``, ``error`` and ``path`` or ``host``/``port``.
        layout: the world's layout.
        network: the world's network rules; () is none.
    """
    found: dict[tuple[str, str], Blocked] = {}
    for event in events:
        if event.get("error") is not None:
            blocked = _of_path(event, layout) or _of_connect(event, network)
        else:
            blocked = _of_look_up(event, network)
        if blocked is not None:
            found.setdefault((blocked.what, blocked.rule), blocked)
        if len(found) >= BLOCKED_LIMIT:
            break
    return tuple(found.values())


def _of_path(event: Mapping[str, object], layout: Layout) -> Blocked | None:
    text = event.get("path")
    if not isinstance(text, str) or not text.startswith("/"):
        return None
    path = os.fsencode(text)
    what = f"{event.get('syscall', 'open')} {text}"
    mask = _mask_over(path, layout.masks)
    if mask is not None:
        return Blocked(what, "profile", mask.rule, mask.fix)
    if is_below(path, (INIT_PREFIX,)):
        return Blocked(
            what,
            "kernel",
            "init-protected",
            "the world's first process belongs to the recorder; a command can read /proc/self",
        )
    over = [cover for cover in layout.covers if is_below(path, (cover,))]
    # A home may itself lie in /tmp; what is hidden by the fresh /tmp alone is nobody's secret.
    in_home = bool(over) and max(over, key=len) != TMP
    if in_home and not is_below(path, layout.shown) and os.path.lexists(path):
        return Blocked(
            what,
            "profile",
            "home-allow-list",
            "a world's home holds named toolchains only; copy the file into the project, or pass "
            "its content with --env, if the command may have it",
        )
    return None


def _mask_over(path: bytes, masks: Iterable[Mask]) -> Mask | None:
    over = [mask for mask in masks if is_below(path, (mask.path,))]
    return max(over, key=lambda mask: len(mask.path)) if over else None


def _of_connect(event: Mapping[str, object], network: tuple[str, ...]) -> Blocked | None:
    if network or event.get("syscall") != "connect" or event.get("error") not in _NETWORK_ERRORS:
        return None
    address = event.get("host") or event.get("address")
    if not isinstance(address, str) or address.startswith("/"):
        return None
    if address.startswith("127.") or address == "::1":
        return None  # the world's own loopback: nobody listens there, nothing was kept away
    port = event.get("port")
    number = port if isinstance(port, int) else None
    return _no_network(f"connect {address}:{number or ''}".rstrip(":"), address, number)


def _of_look_up(event: Mapping[str, object], network: tuple[str, ...]) -> Blocked | None:
    """A name that could not be resolved; getaddrinfo(3) answers with its own codes, not errno."""
    if network or event.get("syscall") != "getaddrinfo" or event.get("result") != _EAI_AGAIN:
        return None
    args = event.get("args")
    name = args[0] if isinstance(args, list | tuple) and args else None
    return _no_network(f"resolve {name}", name, None) if isinstance(name, str) else None


def _no_network(what: str, where: str, port: int | None) -> Blocked:
    return Blocked(
        what,
        "network",
        "network-none",
        f"this world has no network; add `--net {rule_for(where, port)}`",
    )
