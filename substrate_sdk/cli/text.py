"""Words, colours and columns for people."""

from __future__ import annotations

import os
import sys
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from substrate_sdk.types import Change, Coverage

_CODES = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "cyan": "36"}


class Style:
    """Colours for one stream; none where it is not a terminal or NO_COLOR is set."""

    def __init__(self, stream: IO[str] | None = None, *, enabled: bool | None = None) -> None:
        if enabled is None:
            chosen = sys.stderr if stream is None else stream
            enabled = (
                chosen.isatty()
                and not os.environ.get("NO_COLOR")
                and os.environ.get("TERM") != "dumb"
            )
        self.enabled = enabled

    def paint(self, text: str, *names: str) -> str:
        """The text in a colour, or as it is."""
        if not self.enabled or not text:
            return text
        return f"\x1b[{';'.join(_CODES[name] for name in names)}m{text}\x1b[0m"


def duration(milliseconds: float | None) -> str:
    """A duration in the unit that suits it."""
    if milliseconds is None:
        return "?"
    if milliseconds < 1:
        return f"{milliseconds:.2f} ms"
    if milliseconds < 1000:
        return f"{milliseconds:.0f} ms"
    seconds = milliseconds / 1000
    if seconds < 60:
        return f"{seconds:.2f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def plural(number: int, noun: str) -> str:
    """``1 process``, ``2 processes``."""
    many = noun + ("es" if noun.endswith(("s", "ch", "sh")) else "s")
    return f"{number} {noun if number == 1 else many}"


def printable(data: bytes) -> str:
    """Bytes as text that is safe on a terminal: control characters are escaped."""
    text = data.decode("utf-8", errors="backslashreplace")
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def command_text(argv: Sequence[bytes], shell: bytes | None, limit: int = 0) -> str:
    """A command as one would type it; cut to ``limit`` characters where that is not 0."""
    if shell is not None:
        text = printable(shell)
    else:
        text = " ".join(_quoted(printable(item)) for item in argv)
    return text if not limit or len(text) <= limit else text[: max(1, limit - 1)] + "…"


def _quoted(word: str) -> str:
    plain = bool(word) and all(c.isalnum() or c in "@%_-+=:,./~" for c in word)
    return word if plain else "'" + word.replace("'", "'\"'\"'") + "'"


def relative(path: bytes, root: bytes | None) -> str:
    """A path below a root as it is from there; others as they are."""
    if root and path.startswith(root.rstrip(b"/") + b"/"):
        path = path[len(root.rstrip(b"/")) + 1 :]
    return printable(path)


def coverage_text(coverage: Coverage) -> str:
    """``full, 12 processes`` or ``partial: why``."""
    state: str = coverage.state
    if state == "full" and coverage.ledger == "none":
        state += " (no kernel ledger here)"
    text = f"{state}, {plural(coverage.processes, 'process')}"
    if coverage.lost:
        text += f", {plural(coverage.lost, 'event')} lost"
    return text + (f": {'; '.join(coverage.reasons)}" if coverage.reasons else "")


_MARKS = {"created": "+", "deleted": "-", "modified": "~", "renamed": ">", "metadata": "m"}
_MARK_COLOURS = {"created": "green", "deleted": "red", "modified": "yellow"}


def change_line(change: Change, root: bytes | None, style: Style) -> str:
    """One change in one line."""
    mark = _MARKS.get(change.kind, "?")
    name = relative(change.path_bytes, root)
    state = change.after or change.before
    if state is not None and state.kind == "dir":
        name += "/"
    if change.renamed_from is not None:
        name = f"{relative(change.renamed_from, root)} → {name}"
    if change.kind == "metadata" and change.before and change.after:
        name += f" ({change.before.mode:04o} → {change.after.mode:04o})"
    colour = _MARK_COLOURS.get(change.kind, "cyan")
    return style.paint(f"{mark} {name}", colour)


def change_counts(changes: Sequence[Change]) -> str:
    """``2 created, 1 deleted``."""
    counts: dict[str, int] = {}
    for change in changes:
        counts[change.kind] = counts.get(change.kind, 0) + 1
    return ", ".join(f"{number} {kind}" for kind, number in counts.items())


def table(rows: Sequence[Sequence[str]], style: Style) -> str:
    """Columns with a head; the last one is as wide as it is."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for number, row in enumerate(rows):
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        line = "  ".join(cells).rstrip()
        lines.append(style.paint(line, "bold") if number == 0 else line)
    return "\n".join(lines)
