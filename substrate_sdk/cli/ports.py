"""``substrate world expose|ports|unexpose``: servers in a world, reachable on its host."""

from __future__ import annotations

from typing import TYPE_CHECKING

from substrate_sdk.cli.arguments import Parser, open_substrate, print_json, print_text

if TYPE_CHECKING:
    from substrate_sdk._jsonform import JsonValue


def expose(args: list[str]) -> int:
    """Make ports reachable, and print where they are."""
    parser = Parser("world expose", "Make ports of a world reachable on the host's loopback.")
    parser.add_argument("world", metavar="WORLD", help="its id")
    parser.add_argument("port", metavar="PORT", type=int, nargs="+", help="in the world")
    options = parser.parse_args(args)
    with open_substrate(options) as sub:
        world = sub.connect(options.world)
        _print({port: world.ports.expose(port) for port in options.port}, as_json=options.json)
    return 0


def show(args: list[str]) -> int:
    """Print the exposed ports."""
    parser = Parser("world ports", "List the ports of a world that are reachable on the host.")
    parser.add_argument("world", metavar="WORLD", help="its id")
    options = parser.parse_args(args)
    with open_substrate(options) as sub:
        _print(sub.connect(options.world).ports.list(), as_json=options.json)
    return 0


def unexpose(args: list[str]) -> int:
    """Make ports unreachable again."""
    parser = Parser("world unexpose", "Make ports of a world unreachable again.")
    parser.add_argument("world", metavar="WORLD", help="its id")
    parser.add_argument("port", metavar="PORT", type=int, nargs="+", help="in the world")
    options = parser.parse_args(args)
    with open_substrate(options) as sub:
        world = sub.connect(options.world)
        for port in options.port:
            world.ports.close(port)
    return 0


def _print(ports: dict[int, str], *, as_json: bool) -> None:
    if as_json:
        listed: list[JsonValue] = []
        listed += [{"port": port, "address": address} for port, address in ports.items()]
        print_json({"ports": listed})
        return
    for port, address in ports.items():
        print_text(f"{port}\t{address}")


COMMANDS = {"expose": expose, "ports": show, "unexpose": unexpose}
