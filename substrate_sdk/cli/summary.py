"""What ``run`` says when the command is over, for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from substrate_sdk.cli.text import (
    Style,
    change_counts,
    change_line,
    coverage_text,
    duration,
    printable,
)

if TYPE_CHECKING:
    from substrate_sdk.types import Change, Result, WorldInfo

_SHOWN = 8


def summary(result: Result, world: WorldInfo, style: Style) -> str:
    """The whole of it, with a newline at its end."""
    lines = [_headline(result, style)]
    lines += _changes(result, world, style)
    lines += _network(result, world, style)
    lines += _decision(result, style)
    lines.append(_row("coverage", coverage_text(result.coverage), style))
    for item in result.blocked:
        rule = f"{item.layer}: {item.rule}" if item.rule else item.layer
        lines.append(_row("blocked", style.paint(f"{item.what} ({rule})", "yellow"), style))
        if item.fix:
            lines.append(_row("", item.fix, style))
    if result.truncated:
        lines.append(_row("output", "cut at the world's limit", style))
    lines.append(
        _row("span", f"{result.span_id}   replay: substrate replay {result.span_id}", style)
    )
    if world.keep:
        lines.append(
            _row(
                "world",
                f"{world.world_id}   again: substrate run --in {world.world_id} -- …",
                style,
            )
        )
    return "\n".join(lines) + "\n"


def _row(name: str, text: str, style: Style) -> str:
    return f"{style.paint(name.ljust(8), 'dim')}  {text}"


def ending(result: Result) -> str:
    """How the command ended, in words."""
    match result.termination_reason:
        case "EXITED":
            return f"exit {result.exit_code}"
        case "SIGNALED":
            return f"killed by {result.signal}"
        case "TIMEOUT":
            return "timed out"
        case "OOM":
            return "out of memory"
        case "LIMIT":
            return "ended by a limit"
        case "KILLED_BY_USER":
            return f"ended by {result.signal or 'a client'}"
        case "WORLD_REMOVED":
            return "its world was removed"
        case "DENIED":
            return "denied by policy"
        case "AGENT_LOST":
            return "its launcher died; the end was not seen"
        case _:
            return "ended"


def _headline(result: Result, style: Style) -> str:
    good = result.exit_code == 0 and result.termination_reason == "EXITED"
    text = style.paint(ending(result), "bold", "green" if good else "red")
    return f"{style.paint('── substrate', 'dim')}  {text} in {duration(result.duration_ms)}"


def _changes(result: Result, world: WorldInfo, style: Style) -> list[str]:
    if not result.changes_total:
        return [_row("changes", "none", style)]
    project = [change for change in result.changes if change.scope == "project"]
    outside = [change for change in result.changes if change.scope != "project"]
    lines: list[str] = []
    for where, changes in (("in the project", project), ("outside of it", outside)):
        if changes:
            name = "" if lines else "changes"
            lines.append(_row(name, f"{change_counts(changes)} {where}", style))
            # What lies outside is mostly caches; three lines of it are enough to tell.
            lines += _listed(changes, world, _SHOWN if where == "in the project" else 3, style)
    unlisted = result.changes_total - len(result.changes)
    if unlisted > 0:
        lines.append(_row("", f"and {unlisted} more (substrate diff {result.span_id})", style))
    return lines


def _listed(changes: list[Change], world: WorldInfo, limit: int, style: Style) -> list[str]:
    shown = [
        _row("", "  " + change_line(change, world.project, style), style)
        for change in changes[:limit]
    ]
    if len(changes) > limit:
        shown.append(_row("", f"  … {len(changes) - limit} more", style))
    return shown


def _network(result: Result, world: WorldInfo, style: Style) -> list[str]:
    text = ", ".join(world.network) or "none"
    if result.hosts:
        hosts = ", ".join(printable(host.encode()) for host in result.hosts[:5])
        more = f" and {len(result.hosts) - 5} more" if len(result.hosts) > 5 else ""
        text += f"; tried {hosts}{more}"
    return [_row("network", text, style)]


def _decision(result: Result, style: Style) -> list[str]:
    decision = result.decision
    rule = f"rule {decision.rule}" if decision.rule != "default" else "no rule against it"
    source = f", {decision.source}" if decision.source else ""
    text = f"{decision.action} ({rule}{source})"
    if not decision.enforced and decision.action != "allow":
        text += ", recorded only: the policy observes"
    if decision.action != "allow" and decision.reason:
        text += f": {decision.reason}"
    return [_row("decision", text, style)]
