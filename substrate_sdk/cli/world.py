"""``substrate world create|list|exec|update|pause|resume|rm``: worlds that stay."""

from __future__ import annotations

import argparse
import os
import sys

from substrate_sdk.cli import ports, run
from substrate_sdk.cli.arguments import (
    Parser,
    open_substrate,
    print_json,
    print_text,
    raw,
    readable_file,
    seconds,
    split_command,
)
from substrate_sdk.cli.exit_codes import exit_code
from substrate_sdk.cli.failures import UsageError
from substrate_sdk.cli.limits import add_limits, limits_of

_USAGE = (
    "write: substrate world create | list | exec WORLD -- CMD… | update WORLD … | pause WORLD… | "
    "resume WORLD… | expose WORLD PORT… | ports WORLD | unexpose WORLD PORT… | rm WORLD…"
)


def main(args: list[str]) -> int:
    """Dispatch."""
    match args[1:2]:
        case ["create"]:
            return _create(args[2:])
        case ["list" | "ls"]:
            return _list(args[2:])
        case ["exec"]:
            return _exec(args[2:])
        case ["update"]:
            return _update(args[2:])
        case ["pause"]:
            return _pause(args[2:], paused=True)
        case ["resume"]:
            return _pause(args[2:], paused=False)
        case ["expose" | "ports" | "unexpose" as verb]:
            return ports.COMMANDS[verb](args[2:])
        case ["rm" | "remove"]:
            return _remove(args[2:])
        case ["-h" | "--help"]:
            print(f"usage: substrate world …; {_USAGE}")
            return 0
        case [other]:
            raise UsageError(f"there is no world command {other!r}; {_USAGE}")
        case _:
            raise UsageError(_USAGE)


def _create(args: list[str]) -> int:
    parser = Parser("world create", "Make a world that stays, and print its id.")
    add = parser.add_argument
    add("--profile", metavar="P", help="how much of the host it shows (workspace)")
    add("--policy", metavar="FILE", type=readable_file, help="a policy file that is added")
    add("--net", metavar="RULE", action="append", default=[], help="allow network; repeatable")
    add("--project", metavar="DIR", help="the git root around it, or it, is the project")
    add("--base", metavar="B", help="a directory, image:NAME, snapshot:ID, before: or after:SPAN")
    add("--env", metavar="NAME=VALUE", action="append", default=[], help="set; repeatable")
    add("--cwd", metavar="DIR", help="where commands start")
    add("--user", metavar="U", help="the user in the world")
    add("--ttl", metavar="S", type=seconds, help="remove it after so many seconds")
    add("--idle", metavar="S", type=seconds, help="remove it after so many seconds of idleness")
    add_limits(parser)
    add("--label", metavar="NAME=VALUE", action="append", default=[], help="repeatable")
    add("--hostname", metavar="H", help="host name in the world")
    add("--agent", metavar="ID", help="who asks, for records")
    options = parser.parse_args(args)
    from substrate_sdk.client.requests import WorldOptions

    chosen: WorldOptions = {"keep": True, "network": options.net}
    for option, name in (
        ("profile", "profile"),
        ("policy", "policy"),
        ("project", "project"),
        ("base", "base"),
        ("cwd", "cwd"),
        ("user", "user"),
        ("ttl", "ttl_s"),
        ("idle", "idle_s"),
        ("hostname", "hostname"),
        ("agent", "agent_id"),
    ):
        value = getattr(options, option)
        if value is not None:
            chosen[name] = value  # type: ignore[literal-required] # the names stand just above
    if (limits := limits_of(options)) is not None:
        chosen["limits"] = limits
    chosen["env"] = run.environment(options.env)
    chosen["labels"] = run.environment(options.label)
    with open_substrate(options) as sub:
        world = sub.world(**chosen)
        if options.json:
            print_json(world.info.to_json())
        else:
            print(world.world_id)
    return 0


def _list(args: list[str]) -> int:
    parser = Parser("world list", "List the worlds of the host.")
    options = parser.parse_args(args)
    with open_substrate(options) as sub:
        worlds = sub.worlds()
    if options.json:
        print_json({"worlds": [world.to_json() for world in worlds]})
        return 0
    from substrate_sdk.cli.text import Style, printable, table

    rows = [["WORLD", "STATE", "STEPS", "RUNNING", "CREATED", "PROJECT"]]
    rows += [
        [
            world.world_id,
            world.state,
            str(world.steps),
            str(world.running),
            "" if world.created_at is None else f"{world.created_at.astimezone():%Y-%m-%d %H:%M}",
            printable(world.project or world.cwd),
        ]
        for world in worlds
    ]
    print_text(table(rows, Style(sys.stdout)))
    return 0


def _exec(args: list[str]) -> int:
    parser = run.parser("world exec")
    parser.usage = "substrate world exec [OPTIONS] WORLD -- CMD…"
    head, rest = split_command(parser, args)
    options = parser.parse_args(head)
    if not rest or (len(rest) == 1 and options.shell is None):
        raise UsageError("write: substrate world exec WORLD -- CMD…")
    new_only = (
        options.profile,
        options.base,
        options.project,
        options.policy,
        options.net,
        options.keep,
        options.world,
    )
    if any(new_only) or limits_of(options) is not None:
        raise UsageError("world exec uses a world as it is; options for new ones do not apply")
    world_id, command = rest[0], rest[1:]
    if command and command[0] == "--":
        del command[0]
    if (options.shell is None) == (not command):
        raise UsageError("give the command after --, or as one string with -c")
    given = raw(command) if options.shell is None else os.fsencode(options.shell)
    with open_substrate(options) as sub:
        world = sub.connect(world_id, agent_id=options.agent)
        result = run.run_in(world, given, options)
        run.report(world, result, options, quiet=options.quiet)
    return exit_code(result)


def _update(args: list[str]) -> int:
    parser = Parser("world update", "Change what bounds a world that lives.")
    add = parser.add_argument
    add("world", metavar="WORLD")
    add_limits(parser)
    add("--ttl", metavar="S", type=_seconds_or_none, help="remove it in so many seconds, or never")
    add("--idle", metavar="S", type=_seconds_or_none, help="of idleness; default: the host's")
    add("--label", metavar="NAME=VALUE", action="append", help="all its labels; repeatable")
    add("--keep", action=argparse.BooleanOptionalAction, help="it stays when its client goes")
    add("--net", metavar="RULE", action="append", help="all its network rules, or none; repeatable")
    options = parser.parse_args(args)
    from substrate_sdk.client.requests import WorldChanges

    changes: WorldChanges = {}
    if options.ttl is not None:
        changes["ttl_s"] = options.ttl or None
    if options.idle is not None:
        changes["idle_s"] = options.idle or None
    if options.label is not None:
        changes["labels"] = run.environment(options.label)
    if options.keep is not None:
        changes["keep"] = options.keep
    if options.net is not None:
        changes["network"] = options.net
    asked = limits_of(options)
    if not changes and asked is None:
        raise UsageError("name what is to be changed: substrate world update WORLD --memory 2G")
    with open_substrate(options) as sub:
        world = sub.connect(options.world)
        if asked is not None:
            changes["limits"] = asked.over(world.info.limits)
        info = world.update(**changes)
    if options.json:
        print_json(info.to_json())
    return 0


def _seconds_or_none(text: str) -> float:
    """Seconds; 0 for "never" and "default"."""
    return 0.0 if text in ("never", "default") else seconds(text)


def _pause(args: list[str], *, paused: bool) -> int:
    name, what = ("pause", "Stop") if paused else ("resume", "Let go on")
    parser = Parser(f"world {name}", f"{what} everything in worlds.")
    parser.add_argument("worlds", metavar="WORLD", nargs="+")
    options = parser.parse_args(args)
    with open_substrate(options) as sub:
        for world_id in options.worlds:
            world = sub.connect(world_id)
            if paused:
                world.pause()
            else:
                world.resume()
    if options.json:
        print_json({"paused" if paused else "resumed": list(options.worlds)})
    return 0


def _remove(args: list[str]) -> int:
    parser = Parser("world rm", "End everything in worlds and take them down; records stay.")
    parser.add_argument("worlds", metavar="WORLD", nargs="*")
    parser.add_argument("--all", action="store_true", help="every world of the host")
    options = parser.parse_args(args)
    if bool(options.worlds) == options.all:
        raise UsageError("name worlds, or --all")
    with open_substrate(options) as sub:
        names = [world.world_id for world in sub.worlds()] if options.all else options.worlds
        for name in names:
            sub.remove_world(name)
    if options.json:
        print_json({"removed": list(names)})
    return 0
