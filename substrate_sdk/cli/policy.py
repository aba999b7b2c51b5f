"""``substrate policy check [FILE…]`` and ``substrate policy explain -- CMD…``."""

from __future__ import annotations

import os

from substrate_sdk.cli.arguments import (
    Parser,
    open_substrate,
    print_json,
    print_text,
    raw,
    readable_file,
    split_command,
)
from substrate_sdk.cli.failures import UsageError
from substrate_sdk.cli.text import plural, printable

_USAGE = "write: substrate policy check [FILE…] | explain -- CMD…"


def main(args: list[str]) -> int:
    """Dispatch."""
    match args[1:2]:
        case ["check"]:
            return _check(args[2:])
        case ["explain"]:
            return _explain(args[2:])
        case ["test" | "suggest" | "import"]:
            from substrate_sdk.errors import NotBuilt

            raise NotBuilt(f"policy {args[1]} is not built yet; {_USAGE}")
        case ["-h" | "--help"]:
            print(f"usage: substrate policy …; {_USAGE}")
            return 0
        case [other]:
            raise UsageError(f"there is no policy command {other!r}; {_USAGE}")
        case _:
            raise UsageError(_USAGE)


def _check(args: list[str]) -> int:
    parser = Parser("policy check", "Look for mistakes in policy files, and run their examples.")
    parser.add_argument("files", metavar="FILE", nargs="*", type=readable_file)
    options = parser.parse_args(args)
    with open_substrate(options) as sub:
        found = sub.policy_check(*options.files)
    if options.json:
        print_json(found.to_json())
    else:
        for problem in found.problems:
            print_text(f"{problem.source}: {problem.message}")
        counted = f"{plural(found.rules, 'rule')}, {plural(found.examples, 'example')}"
        print(f"{plural(len(found.problems), 'problem')} in {counted}")
    return 1 if found.problems else 0


def _explain(args: list[str]) -> int:
    parser = Parser("policy explain", "Say what policy would answer about a command, and why.")
    parser.usage = "substrate policy explain [OPTIONS] -- CMD… | -c 'SHELL COMMAND'"
    add = parser.add_argument
    add("-c", dest="shell", metavar="CMD", help="a string for the shell")
    add("--policy", metavar="FILE", type=readable_file, help="a policy file that is added")
    add("--profile", metavar="P", default="", help="of the world")
    add("--agent", metavar="ID", default="", help="who would ask")
    head, command = split_command(parser, args)
    options = parser.parse_args(head)
    if (options.shell is None) == (not command):
        raise UsageError("give the command after --, or as one string with -c")
    cwd = os.getcwdb()
    with open_substrate(options) as sub:
        found = sub.policy_explain(
            raw(command) if options.shell is None else os.fsencode(options.shell),
            project=cwd,
            cwd=cwd,
            profile=options.profile,
            agent_id=options.agent,
            policy=options.policy,
        )
    if options.json:
        print_json(found.to_json())
        return 0
    if found.text:
        print_text(found.text.rstrip("\n"))
        return 0
    decision = found.decision
    print_text(f"{decision.action} (rule {decision.rule}): {decision.reason}")
    for rule in found.rules:
        mark = "matched" if rule.matched else "no match"
        print_text(f"  {rule.rule} {rule.source}: {rule.action}, {mark} {printable(rule.command)}")
    return 0
