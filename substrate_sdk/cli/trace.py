"""``substrate trace ls|show|events|verify``: what was recorded."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from substrate_sdk.cli.arguments import Parser, count, open_substrate, print_json, print_text
from substrate_sdk.cli.failures import UsageError
from substrate_sdk.cli.text import Style, command_text, duration, table

if TYPE_CHECKING:
    from substrate_sdk.records import Span

_USAGE = "write: substrate trace ls | show [@last|SPAN] | events [@last|SPAN] | verify"


def main(args: list[str]) -> int:
    """Dispatch."""
    match args[1:2]:
        case ["ls" | "list"]:
            return _list(args[2:])
        case ["show"]:
            return _show(args[2:])
        case ["events"]:
            return _events(args[2:])
        case ["verify"]:
            return _verify(args[2:])
        case ["tail" | "export"]:
            from substrate_sdk.errors import NotBuilt

            raise NotBuilt(f"trace {args[1]} is not built yet; {_USAGE}")
        case ["-h" | "--help"]:
            print(f"usage: substrate trace …; {_USAGE}")
            return 0
        case [other]:
            raise UsageError(f"there is no trace command {other!r}; {_USAGE}")
        case _:
            raise UsageError(_USAGE)


def _list(args: list[str]) -> int:
    parser = Parser("trace ls", "List recorded steps, newest first.")
    add = parser.add_argument
    add("-n", dest="limit", metavar="N", type=count, default=20, help="at most N (20)")
    add("--session", metavar="ID", default="", help="only of this session")
    add("--world", metavar="ID", default="", help="only of this world")
    add("--kind", metavar="KIND", default="", help="only of this kind: exec, files.write")
    add("--text", metavar="T", default="", help="only commands that contain this")
    add("--exit", metavar="CODE", type=int, help="only with this exit code")
    options = parser.parse_args(args)
    with open_substrate(options) as sub:
        spans = list(
            sub.spans(
                limit=options.limit,
                session_id=options.session,
                world_id=options.world,
                kind=options.kind,
                text=options.text,
                exit_code=options.exit,
            )
        )
    if options.json:
        print_json({"spans": [span.to_json() for span in spans]})
        return 0
    rows = [["SPAN", "STARTED", "END", "TIME", "CHANGES", "COVERAGE", "WHAT"]]
    rows += [_row(span) for span in spans]
    print_text(table(rows, Style(sys.stdout)))
    return 0


def _row(span: Span) -> list[str]:
    result = span.result
    started = result.started_at
    return [
        span.span_id,
        "" if started is None else f"{started.astimezone():%Y-%m-%d %H:%M:%S}",
        short_end(span),
        duration(result.duration_ms),
        str(result.changes_total),
        result.coverage.state,
        what_text(span, 72),
    ]


def short_end(span: Span) -> str:
    """How a step ended, in a word: its exit code, its signal, or the reason."""
    result = span.result
    if result.termination_reason == "EXITED":
        return str(result.exit_code)
    if result.termination_reason == "SIGNALED":
        return result.signal or "signal"
    return result.termination_reason.lower()


def what_text(span: Span, limit: int = 0) -> str:
    """What a step did: its command, or its kind where it is none."""
    text = command_text(span.argv, span.shell, limit)
    mark = f" (replay of {span.replay_of})" if span.replay_of else ""
    return (f"{span.kind}: {text}" if span.kind != "exec" and text else text or span.kind) + mark


def _show(args: list[str]) -> int:
    parser = Parser("trace show", "Show a step: what was asked, its outcome, its processes.")
    parser.add_argument("span", metavar="@last|SPAN", nargs="?", default="@last")
    parser.add_argument("--output", action="store_true", help="print its recorded output instead")
    options = parser.parse_args(args)
    with open_substrate(options) as sub:
        span = sub.span(options.span)
        if options.output:
            for digest, stream in (
                (span.result.stdout_digest, sys.stdout),
                (span.result.stderr_digest, sys.stderr),
            ):
                for piece in sub.object(digest) if digest else ():
                    stream.buffer.write(piece)
            return 0
        if options.json:
            print_json(span.to_json())
            return 0
        from substrate_sdk.cli.tree import counts_by_process, span_text

        events = sub.events(span) if span.events_digest else iter(())
        print_text(span_text(span, counts_by_process(events), Style(sys.stdout)))
    return 0


def _events(args: list[str]) -> int:
    parser = Parser("trace events", "Print the events of a step, one JSON object a line.")
    parser.add_argument("span", metavar="@last|SPAN", nargs="?", default="@last")
    parser.add_argument(
        "--all", action="store_true", help="all of them, not only those in the journal itself"
    )
    options = parser.parse_args(args)
    # JSON lines are the only form there is, with --json and without.
    with open_substrate(options) as sub:
        sys.stdout.flush()
        for line in sub.event_lines(options.span, bounded=not options.all):
            sys.stdout.buffer.write(line)
    return 0


def _verify(args: list[str]) -> int:
    parser = Parser("trace verify", "Check the journal's chain.")
    options = parser.parse_args(args)
    with open_substrate(options) as sub:
        found = sub.verify()
    if options.json:
        print_json(found.to_json())
    else:
        style = Style(sys.stdout)
        word = style.paint("intact", "green") if found.intact else style.paint("broken", "red")
        print(f"the chain is {word}: {found.lines} lines in {found.batches} batches")
        for item in found.findings:
            print_text(f"  {item.kind} {item.segment}:{item.line}: {item.detail}")
    return 0 if found.intact else 1
