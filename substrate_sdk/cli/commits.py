"""``substrate fork|rollback|apply WORLD|SPAN|@last``: a world's tree, elsewhere or again."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from substrate_sdk.cli.arguments import Parser, open_substrate, print_json, print_text
from substrate_sdk.cli.failures import UsageError

if TYPE_CHECKING:
    import argparse

    from substrate_sdk.client.sync import Substrate
    from substrate_sdk.types import Applied

_WHAT = "@last|SPAN|WORLD"


def main(args: list[str]) -> int:
    """Dispatch."""
    return {"fork": _fork, "rollback": _rollback, "apply": _apply}[args[0]](args[1:])


def _is_world(what: str) -> bool:
    return what.startswith("wld_")


def _fork(args: list[str]) -> int:
    parser = Parser("fork", "Make a world with the tree after a step, and print its id; it stays.")
    parser.add_argument("what", metavar=_WHAT, nargs="?", default="@last")
    options = parser.parse_args(args)
    with open_substrate(options) as sub:
        world = sub.fork(_last_step(sub, options.what), keep=True)
        if options.json:
            print_json(world.info.to_json())
        else:
            print(world.world_id)
    return 0


def _last_step(sub: Substrate, what: str) -> str:
    """A step: the one that is named, or the last of the world that is named."""
    if not _is_world(what):
        return what
    for span in sub.spans(world_id=what, limit=1):
        return span.span_id
    raise UsageError(f"world {what} has no recorded step; name a step")


def _rollback(args: list[str]) -> int:
    parser = Parser(
        "rollback",
        "Set a world's tree to that after one of its steps; of a WORLD, to what it was at first.",
    )
    parser.add_argument("what", metavar=_WHAT, nargs="?", default="@last")
    parser.add_argument("--kill", action="store_true", help="end what runs in the world")
    options = parser.parse_args(args)
    with open_substrate(options) as sub:
        if _is_world(options.what):
            world = sub.connect(options.what)
            if options.kill:
                raise UsageError("--kill goes with a step; a world is emptied when nothing runs")
            world.discard()
        else:
            span = sub.span(options.what)
            world = sub.connect(span.result.world_id)
            world.rollback(span, kill=options.kill)
        info = world.refresh()
    if options.json:
        print_json(info.to_json())
    else:
        print(f"{info.world_id} is at generation {info.generation}")
    return 0


def _apply(args: list[str]) -> int:
    parser = Parser(
        "apply",
        "Write what a world changed, or what it had changed by a step, to the project on the host.",
    )
    parser.add_argument("what", metavar=_WHAT)
    parser.add_argument("paths", metavar="PATH", nargs="*", help="only these, with what is below")
    parser.add_argument("--dry-run", action="store_true", help="only say what would happen")
    parser.add_argument(
        "--yes",
        metavar="PATH",
        action="append",
        default=[],
        help="write this path though it executes later on the host; repeatable",
    )
    options = parser.parse_args(args)
    with open_substrate(options) as sub:
        consent = list(options.yes)
        if not options.dry_run and not options.json and sys.stdin.isatty():
            consent += _asked(_applied(sub, options, consent, dry_run=True))
        applied = _applied(sub, options, consent, dry_run=options.dry_run)
    if options.json:
        print_json(applied.to_json())
    else:
        _print(applied)
    return 1 if applied.conflicts or applied.needs_consent else 0


def _applied(
    sub: Substrate, options: argparse.Namespace, consent: list[str], *, dry_run: bool
) -> Applied:
    paths: list[str] = options.paths
    if _is_world(options.what):
        return sub.connect(options.what).apply(*paths, dry_run=dry_run, consent=consent)
    return sub.apply(options.what, *paths, dry_run=dry_run, consent=consent)


def _asked(planned: Applied) -> list[str]:
    """Ask on the terminal about each path that executes later on the host."""
    from substrate_sdk.cli.text import printable

    agreed = []
    for path in planned.needs_consent:
        sys.stderr.write(f"{printable(path)} executes later on the host. Write it? [y/N] ")
        sys.stderr.flush()
        if sys.stdin.readline().strip().lower() in ("y", "yes"):
            agreed.append(os.fsdecode(path))
    return agreed


def _print(applied: Applied) -> None:
    from substrate_sdk.cli.text import Style, change_counts, change_line, plural, printable

    style = Style(sys.stdout)
    for change in applied.changes:
        print_text(change_line(change, None, style))
    for path in applied.conflicts:
        print_text(style.paint(f"! {printable(path)}: the host's is another by now", "red"))
    for path in applied.needs_consent:
        print_text(style.paint(f"? {printable(path)}: needs --yes", "yellow"))
    counts = change_counts(applied.changes)
    print(f"{plural(len(applied.changes), 'change')}{f': {counts}' if counts else ''}")
