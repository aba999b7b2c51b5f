"""``substrate diff @last|SPAN|WORLD``: what it changed."""

from __future__ import annotations

import sys

from substrate_sdk.cli.arguments import Parser, open_substrate, print_json, print_text
from substrate_sdk.cli.text import Style, change_counts, change_line, plural


def main(args: list[str]) -> int:
    """Run it."""
    parser = Parser("diff", "Show what a step or a world changed, as a patch.")
    parser.add_argument("what", metavar="@last|SPAN|WORLD", nargs="?", default="@last")
    parser.add_argument("--stat", action="store_true", help="one line for each change")
    options = parser.parse_args(args[1:])
    style = Style(sys.stdout)
    with open_substrate(options) as sub:
        diff = sub.diff(options.what)
        if options.json:
            print_json({"changes": [change.to_json() for change in diff.changes]})
        elif options.stat:
            for change in diff.changes:
                outside = "" if change.scope == "project" else style.paint("  (outside)", "dim")
                print_text(change_line(change, None, style) + outside)
            counts = change_counts(diff.changes)
            print(f"{plural(len(diff.changes), 'change')}{f': {counts}' if counts else ''}")
        else:
            sys.stdout.flush()
            for piece in diff.patch_pieces():
                sys.stdout.buffer.write(_coloured(piece) if style.enabled else piece)
    return 0


_COLOURS = ((b"@@", b"36"), (b"diff ", b"1"), (b"+", b"32"), (b"-", b"31"))


def _coloured(patch: bytes) -> bytes:
    """A piece of a patch with its lines coloured by what they begin with."""
    lines = []
    for line in patch.splitlines(keepends=True):
        code = next((code for start, code in _COLOURS if line.startswith(start)), None)
        body = line.rstrip(b"\n")
        end = line[len(body) :]
        lines.append(line if code is None else b"\x1b[%sm%s\x1b[0m%s" % (code, body, end))
    return b"".join(lines)
