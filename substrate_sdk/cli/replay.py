"""``substrate replay @last|SPAN``: run it again, and say whether it did the same.

Exit code: 0 identical, 1 anything else that ran, 2 it could not run.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from substrate_sdk.cli.arguments import Parser, count, open_substrate, print_json, print_text
from substrate_sdk.cli.failures import UsageError
from substrate_sdk.cli.text import Style, plural, printable

if TYPE_CHECKING:
    from substrate_sdk.records import Progress, Report

_COULD_NOT_RUN = 2


def main(args: list[str]) -> int:
    """Run it."""
    parser = Parser("replay", "Run a recorded step again, in a fresh world, and compare.")
    add = parser.add_argument
    add("what", metavar="@last|SPAN|SESSION", nargs="?", default="@last")
    add("--runs", metavar="K", type=count, default=1, help="how often (1)")
    add("--against", metavar="DIR", help="a directory of the host to run as well, and compare")
    add("--vary", metavar="X", action="append", default=[], help="what to vary; repeatable")
    add("--hosts", metavar="HOST", action="append", default=[], help="hosts to use; repeatable")
    add("--use-host-base", action="store_true", help="for what cannot be restored")
    add("--mtime", action="store_true", help="compare modification times too")
    add("--keep", action="store_true", help="keep the worlds of the replay")
    add("--report", choices=("text", "json"), default="text", help="form of the report (text)")
    options = parser.parse_args(args[1:])
    session = options.what if options.what.startswith("ses_") else None
    if options.what.startswith("wld_"):
        raise UsageError("a world cannot be replayed: name a span, or a session")
    shown = _ProgressLine()
    with open_substrate(options) as sub:
        try:
            report = sub.replay(
                None if session else options.what,
                session=session,
                runs=options.runs,
                use_host_base=options.use_host_base,
                keep_worlds=options.keep,
                compare_mtime=options.mtime,
                against=options.against,
                variations=tuple(options.vary),
                hosts=tuple(options.hosts),
                on_progress=shown,
            )
        finally:
            shown.clear()
    if options.json or options.report == "json":
        print_json(report.to_json())
    else:
        print_text(report_text(report, Style(sys.stdout)))
    return exit_code(report)


def exit_code(report: Report) -> int:
    """0 identical, 2 not run, 1 all else."""
    if report.verdict == "identical":
        return 0
    return _COULD_NOT_RUN if report.verdict in ("not_run", "unknown") else 1


def report_text(report: Report, style: Style) -> str:
    """The report for people: the host's own words where it sent some."""
    colour = {"identical": "green", "not_run": "yellow"}.get(report.verdict, "red")
    word = style.paint(report.verdict, "bold", colour)
    if report.text:
        text = report.text.rstrip("\n")
        # The host writes for any reader; the verdict is ours to colour.
        return text.replace(report.verdict, word, 1) if style.enabled else text
    lines = [f"{word}: replay of {report.span_id}, {plural(len(report.runs), 'run')}"]
    for item in report.divergences:
        place = f" at {item.place}" if item.place else ""
        path = f" {printable(item.path)}" if item.path is not None else ""
        lines.append(f"  {item.dimension}{path}{place}: {item.detail or item.cause}")
    lines += [f"  missing {printable(item.path)}: {item.reason}" for item in report.missing]
    lines.append(f"  compared: {', '.join(report.compared) or 'nothing'}")
    lines += [f"  not compared: {item.dimension} ({item.reason})" for item in report.not_compared]
    return "\n".join(lines)


class _ProgressLine:
    """One line on stderr that says how far it is; nothing where that is not a terminal."""

    def __init__(self) -> None:
        self._on = sys.stderr.isatty()
        self._shown = False

    def __call__(self, progress: Progress) -> None:
        if not self._on:
            return
        run = f" {progress.run}/{progress.runs}" if progress.runs > 1 else ""
        text = f"replay{run}: {progress.text or progress.stage}"
        sys.stderr.write(f"\r\x1b[K{printable(text.encode())[:100]}")
        sys.stderr.flush()
        self._shown = True

    def clear(self) -> None:
        """Take the line away."""
        if self._shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
