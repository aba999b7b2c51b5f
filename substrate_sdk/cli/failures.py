"""One line and the right exit code for everything that can go wrong."""

from __future__ import annotations

import sys

from substrate_sdk.errors import SubstrateError

USAGE = 2
FAILED = 125


class UsageError(Exception):
    """The command line makes no sense; the message says what to write instead."""


def report(error: Exception, command: str) -> int:
    """Say on stderr what went wrong, in one line, and give the exit code."""
    program = f"substrate {command}" if command and not command.startswith("-") else "substrate"
    if isinstance(error, UsageError):
        say(f"{program}: {error}")
        return USAGE
    code = FAILED
    if command == "replay":
        code = 2  # 1 says that the replay diverged; 125 has no meaning to who asks for a verdict
    if isinstance(error, SubstrateError):
        say(f"{program}: {error}")
    elif isinstance(error, BrokenPipeError):
        return 141  # as if SIGPIPE had ended us, silently
    elif isinstance(error, OSError):
        what = f"{error.filename}: " if error.filename else ""
        say(f"{program}: {what}{error.strerror or error}")
    else:
        kind = type(error).__name__
        say(f"{program}: internal error: {kind}: {error} (SUBSTRATE_DEBUG=1 shows where)")
    return code


def say(line: str) -> None:
    """Write one line to stderr, whatever characters are in it."""
    text = " ".join(line.split("\n"))
    sys.stderr.flush()
    data = text.encode("utf-8", errors="surrogateescape") + b"\n"
    try:
        sys.stderr.buffer.write(data)
        sys.stderr.flush()
    except (OSError, AttributeError):
        pass  # there is nobody to tell
