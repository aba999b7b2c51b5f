"""``substrate run -- CMD…`` and ``substrate -c CMD``."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from typing import IO, TYPE_CHECKING

from substrate_sdk.cli.arguments import (
    Parser,
    open_substrate,
    print_json,
    raw,
    readable_file,
    seconds,
    split_command,
)
from substrate_sdk.cli.exit_codes import exit_code
from substrate_sdk.cli.failures import UsageError, say
from substrate_sdk.cli.feeding import (
    feed_stdin,
    forwarding,
    raw_terminal,
    stdin_has_data,
    terminal_size,
)
from substrate_sdk.cli.limits import add_limits, limits_of
from substrate_sdk.errors import NotBuilt

if TYPE_CHECKING:
    from substrate_sdk.client.requests import CommandLike, WorldOptions
    from substrate_sdk.client.sync import Exec, Substrate, World
    from substrate_sdk.types import Output, Result


def parser(command: str) -> Parser:
    """The options of ``run``; those of ``-c`` are the same."""
    made = Parser(command, "Run a command in an isolated world and exit with its code.")
    made.usage = "substrate run [OPTIONS] -- CMD…\n       substrate [OPTIONS] -c 'SHELL COMMAND'"
    add = made.add_argument
    add("-c", dest="shell", metavar="CMD", help="a string for the shell")
    add("--profile", metavar="P", help="how much of the host the world shows (workspace)")
    add("--policy", metavar="FILE", type=readable_file, help="a policy file that is added")
    add("--net", metavar="RULE", action="append", default=[], help="allow network; repeatable")
    add("--in", dest="world", metavar="WORLD", help="a world that is there (SUBSTRATE_WORLD_ID)")
    add("--timeout", metavar="S", type=seconds, help="end the command after so many seconds")
    add("--env", metavar="NAME=VALUE", action="append", default=[], help="set; repeatable")
    add("--base", metavar="B", help="its root: image:NAME, or a directory (the host's own tree)")
    add(
        "--project",
        metavar="DIR",
        help="a directory of the host to show",
    )
    add("--cwd", metavar="DIR", help="where to start, in the world")
    add("--user", metavar="U", default="", help="the user in the world")
    add("--agent", metavar="ID", default="", help="who asks, for records")
    add("--keep", action="store_true", help="keep the world")
    add("--wait", action="store_true", help="wait where policy wants a person to be asked")
    add_limits(made)
    add("-n", "--no-stdin", action="store_true", help="the command reads nothing")
    add("-q", "--quiet", action="store_true", help="no summary")
    return made


def main(args: list[str]) -> int:
    """Run it."""
    name = "run" if args[0] == "run" else "-c"
    made = parser(name)
    head, command = split_command(made, args[1:])
    options = made.parse_args(head)
    given = _command(options, command)
    if os.environ.get("SUBSTRATE_WORLD", "enabled") == "disabled":
        raise NotBuilt(
            "SUBSTRATE_WORLD=disabled (running on the host itself) is not built yet; unset it"
        )
    inside = options.world or os.environ.get("SUBSTRATE_WORLD_ID", "")
    made_of = (options.profile, options.base, options.project, options.policy)
    if options.world and any((*made_of, options.net, options.keep)):
        raise UsageError(
            "--in uses a world as it is: --profile, --base, --project, --policy, --net and --keep "
            "make one"
        )
    if inside and limits_of(options) is not None:
        raise UsageError("limits are a world's: substrate world update WORLD --memory …")
    with open_substrate(options) as sub:
        world = open_world(sub, options, inside)
        try:
            result = run_in(world, given, options)
            report(world, result, options, quiet=options.quiet or _hushed(name))
        finally:
            if not inside and not options.keep:
                world.remove()
    return exit_code(result)


def _hushed(name: str) -> bool:
    # `-c` stands in for a shell: what reads its stderr is mostly a program.
    return name == "-c" and not sys.stderr.isatty()


def _command(options: argparse.Namespace, command: list[str]) -> CommandLike:
    if options.shell is not None:
        if command:
            raise UsageError("-c takes one string; quote the whole command")
        shell: bytes = os.fsencode(options.shell)
        return shell
    if not command:
        raise UsageError("name a command: substrate run -- CMD…")
    return raw(command)


def environment(pairs: list[str]) -> dict[str, str]:
    """``NAME=VALUE`` options as a mapping."""
    found = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise UsageError(f"--env takes NAME=VALUE, not {pair!r}")
        found[name] = value
    return found


def open_world(sub: Substrate, options: argparse.Namespace, inside: str) -> World:
    """The world that the options name, or a new one."""
    if inside:
        return sub.connect(inside, agent_id=options.agent)
    chosen: WorldOptions = {
        "keep": options.keep,
        "network": options.net,
        "agent_id": options.agent,
    }
    if options.profile:
        chosen["profile"] = options.profile
    if options.base is not None:
        chosen["base"] = options.base
    if options.project is not None:
        chosen["project"] = options.project
    if options.policy:
        chosen["policy"] = options.policy
    if (limits := limits_of(options)) is not None:
        chosen["limits"] = limits
    return sub.world(**chosen)


def run_in(world: World, command: CommandLike, options: argparse.Namespace) -> Result:
    """Run a command with our streams, terminal and signals as its own."""
    with_terminal = not options.json and os.isatty(0) and os.isatty(1) and not options.no_stdin
    with_stdin = with_terminal or (
        not options.no_stdin and stdin_has_data() and not (options.json and os.isatty(0))
    )
    proc = world.exec(
        command,
        timeout_s=options.timeout,
        env=environment(options.env),
        cwd=options.cwd,
        user=options.user,
        stdin=with_stdin,
        pty=terminal_size() if with_terminal else False,
        on_ask="wait" if options.wait else "deny",
    )
    if proc.result is not None:
        return proc.result
    with contextlib.ExitStack() as stack:
        stack.enter_context(forwarding(proc, pty=with_terminal))
        if with_terminal:
            stack.enter_context(raw_terminal())
        if with_stdin:
            feed_stdin(proc)
        if options.json:
            return proc.wait(hang_up=True)
        return proc.wait(on_output=_Copy(proc), keep_output=False, hang_up=True)


class _Copy:
    """Writes output to our own streams as it comes."""

    def __init__(self, proc: Exec) -> None:
        self._proc = proc
        self._gone: set[str] = set()

    def __call__(self, output: Output) -> None:
        if output.stream in self._gone:
            return
        ours: IO[bytes] = sys.stderr.buffer if output.stream == "stderr" else sys.stdout.buffer
        try:
            ours.write(output.data)
            ours.flush()
        except BrokenPipeError:
            # As the kernel would have done to the command, had it written there itself.
            self._gone.add(output.stream)
            os.dup2(os.open(os.devnull, os.O_WRONLY), ours.fileno())
            self._proc.signal("PIPE")


def report(world: World, result: Result, options: argparse.Namespace, *, quiet: bool) -> None:
    """Say what came of it: one JSON object, or a summary, and always what policy refused."""
    if options.json:
        print_json(result.to_json())
        return
    if result.termination_reason == "DENIED":
        rule = result.decision.rule
        where = f" ({result.decision.source})" if result.decision.source else ""
        say(f"substrate: denied by rule {rule}{where}: {result.decision.reason}")
    if not quiet:
        from substrate_sdk.cli.summary import summary
        from substrate_sdk.cli.text import Style

        sys.stdout.flush()
        sys.stderr.write("\n" + summary(result, world.info, Style(sys.stderr)))
        sys.stderr.flush()
