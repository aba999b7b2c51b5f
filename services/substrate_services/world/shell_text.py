"""What a persistent shell is told: the text on its control, around each command.

The shell is interactive in the shells' own sense, without a terminal or prompts: it reads its
control line by line at its top level, so an interrupt, a syntax error or an unset variable ends a
command and not the shell, as it does where a person types. A command is one ``eval`` with streams
of its own; around it neither the control nor the pipe for reports is open. What the shell itself
says (prompts, traces of these lines, jobs that are done) goes nowhere.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Dialect:
    """A kind of shell.

    Attributes:
        argv: how it is started.
        first_fd: of what it gets besides its control: the pipe for reports, standard output and
            error of commands, the file that they read. Programs seldom use these numbers.
        opening: the first lines.
    """

    argv: tuple[bytes, ...]
    first_fd: int
    opening: bytes


BASH = Dialect(
    (b"/bin/bash", b"--norc", b"--noprofile", b"--noediting", b"-i"),
    40,
    b"unset HISTFILE MAILCHECK; export -n PS1 PS2; set +o history +H\n",
)
#: POSIX: descriptors have one digit there.
SH = Dialect((b"/bin/sh", b"-i"), 6, b"unset HISTFILE MAILCHECK\n")

#: No prompts, and no history; over whatever the environment says.
OWN_ENV = {b"PS1": b"", b"PS2": b"", b"HISTFILE": b""}


def dialect(shell: bytes = b"") -> Dialect:
    """What a world's shell speaks; without one named, that of this host's: bash, or sh."""
    if shell:
        return BASH if shell == BASH.argv[0] else SH
    return BASH if os.path.exists("/bin/bash") else SH


def dialect_of(argv: tuple[bytes, ...]) -> Dialect:
    """The dialect that was started with ``argv``."""
    return BASH if argv == BASH.argv else SH


def command_text(
    shell: Dialect, command: bytes, *, env: Mapping[bytes, bytes], status: int, has_stdin: bool
) -> bytes:
    """The lines that run a command.

    Args:
        shell: which.
        command: any text without NUL.
        env: exported before it.
        status: what ``$?`` is when it begins.
        has_stdin: whether it reads the file with its input, else nothing.
    """
    reports, out, err, given = range(shell.first_fd, shell.first_fd + 4)
    source = f"/proc/self/fd/{given}" if has_stdin else "/dev/null"
    closed = f"{reports}>&- {out}>&- {err}>&- {given}<&-"
    exports = b" ".join(name + b"=" + _quoted(value) for name, value in sorted(env.items()))
    lines = [b"\\export " + exports]
    if status:
        # An && list may fail under `set -e`; the function is gone before it returns.
        name = "_substrate_status"
        lines.append(f"{name}() {{ unset -f {name}; return {status}; }}; {name} && :".encode())
    # The blank: a command that begins with a dash is no option.
    lines.append(
        b"\\eval " + _quoted(b" " + command) + f" <{source} >&{out} 2>&{err} {closed}".encode()
    )
    return b"\n".join(lines) + b"\n"


def trailer_text(shell: Dialect, word: str) -> bytes:
    """The line that reports the end of a command; a shell that cannot report does not go on.

    A command may have made functions or aliases of anything, keywords too, and variables read-only.
    So one way to the builtin is tried after the other, the program is the last, and the names hold
    ``word``, which no command knows before it runs. Only the first report counts.
    """
    status, told = f"_{word}", f"_{word}_"
    report = f'\'%s %s %s\\0\' {word} "${status}" "${{PWD-}}" >&{shell.first_fd}'
    if shell is not BASH:
        way = f"\\command printf {report}"
        return f"{status}=$?; {way} || kill -9 $$; \\unset {status}\n".encode()
    # What sets a variable is the builtin and no function: nothing else is done then. An assignment
    # behind || is no failure under `set -e`.
    tries = [
        f"{way} printf {report} && {way} printf -v {told} : || {status}=${status}"
        for way in ("\\command", f'"${{{told}-builtin}}"')
    ]
    last = f'"${{{told}-/usr/bin/printf}}" {report} || \\kill -9 $$'
    return "; ".join((f"{status}=$?", *tries, last, f"\\unset -v {status} {told}\n")).encode()


def _quoted(text: bytes) -> bytes:
    return b"'" + text.replace(b"'", b"'\\''") + b"'"
