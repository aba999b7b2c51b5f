"""A recorded step and its processes, as a tree."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from substrate_sdk.cli.summary import ending
from substrate_sdk.cli.text import (
    Style,
    change_line,
    command_text,
    coverage_text,
    duration,
    plural,
    printable,
)

if TYPE_CHECKING:
    from substrate_sdk._jsonform import JsonObject
    from substrate_sdk.records import Span
    from substrate_sdk.types import Process

_CHANGES = 20


@dataclass(slots=True)
class Counts:
    """What one process did.

    Attributes:
        files: distinct paths that it opened, made, moved or removed.
        connects: connections that it tried.
    """

    files: set[str]
    connects: int = 0


def counts_by_process(events: Iterable[JsonObject]) -> dict[str, Counts]:
    """Files and connections of each process, by the process's span."""
    found: dict[str, Counts] = {}
    for event in events:
        process = event.get("process_span")
        if not isinstance(process, str):
            continue
        counts = found.setdefault(process, Counts(set()))
        if str(event.get("syscall", "")).startswith("connect"):
            counts.connects += 1
        elif event.get("path") is not None:
            counts.files.add(str(event["path"]))
    return found


def span_text(span: Span, counts: dict[str, Counts], style: Style) -> str:
    """The whole of it."""
    result = span.result
    started = result.started_at
    rows = [
        ("span", f"{span.span_id}  ({span.kind}, session {result.session_id})"),
        ("command", command_text(span.argv, span.shell)),
        ("cwd", printable(span.cwd)),
        ("started", "" if started is None else f"{started.astimezone():%Y-%m-%d %H:%M:%S %z}"),
        ("end", f"{ending(result)} after {duration(result.duration_ms)}"),
        ("decision", f"{result.decision.action} (rule {result.decision.rule})"),
        ("coverage", coverage_text(result.coverage)),
        ("hosts", ", ".join(result.hosts)),
        ("replay of", span.replay_of or ""),
    ]
    lines = [f"{style.paint(name.ljust(9), 'dim')} {text}" for name, text in rows if text]
    if result.processes:
        lines.append("")
        lines += tree_lines(span.span_id, result.processes, counts, style)
        if result.processes_truncated:
            lines.append(f"… and {plural(result.processes_truncated, 'more process')}")
    if result.changes:
        lines += ["", plural(result.changes_total, "change")]
        lines += [
            "  " + change_line(change, span.project or span.cwd, style)
            for change in result.changes[:_CHANGES]
        ]
        if result.changes_total > _CHANGES:
            lines.append(f"  … substrate diff --stat {span.span_id} shows all")
    return "\n".join(lines)


def tree_lines(
    root: str, processes: Iterable[Process], counts: dict[str, Counts], style: Style
) -> Iterator[str]:
    """One line for each process, below its parent."""
    known = list(processes)
    ids = {process.span_id for process in known}
    children: dict[str, list[Process]] = {}
    for process in known:
        # A parent that is not listed (it was cut, or did not report): hang it on the step.
        parent = process.parent_span_id if process.parent_span_id in ids else root
        children.setdefault(parent, []).append(process)

    # A stack instead of recursion: chains of processes are as deep as a program likes.
    stack = _reversed_siblings(children.get(root, []), "")
    while stack:
        process, indent, last, top = stack.pop()
        branch = "" if top else ("└─ " if last else "├─ ")
        yield f"{style.paint(indent + branch, 'dim')}{_process(process, counts, style)}"
        below = indent if top else indent + ("   " if last else "│  ")
        stack += _reversed_siblings(children.pop(process.span_id, []), below or " ")


def _reversed_siblings(
    siblings: list[Process], indent: str
) -> list[tuple[Process, str, bool, bool]]:
    count = len(siblings)
    return [
        (process, indent, number == count - 1, not indent)
        for number, process in reversed(list(enumerate(siblings)))
    ]


def _process(process: Process, counts: dict[str, Counts], style: Style) -> str:
    name = command_text(process.argv, None, 100) or printable(process.exe) or "(forked)"
    facts = [duration(process.duration_ms)] if process.duration_ms is not None else []
    if process.signal:
        facts.append(style.paint(f"signal {process.signal}", "red"))
    elif process.exit_code is not None:
        colour = "green" if process.exit_code == 0 else "red"
        facts.append(style.paint(f"exit {process.exit_code}", colour))
    did = counts.get(process.span_id)
    if did is not None and did.files:
        facts.append(plural(len(did.files), "file"))
    if did is not None and did.connects:
        facts.append(plural(did.connects, "connect"))
    if process.coverage != "full":
        why = f": {process.coverage_reason}" if process.coverage_reason else ""
        facts.append(style.paint(f"coverage {process.coverage}{why}", "yellow"))
    return f"{name}  {style.paint(f'[{process.pid}]', 'dim')} {', '.join(facts)}".rstrip()
