"""One line and the right exit code for everything that can go wrong."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from substrate_sdk.errors import SubstrateError

#: Whether stdout has its JSON object already: what fails after it is told on stderr alone.
answered = False

USAGE = 2
FAILED = 125


class UsageError(Exception):
    """The command line makes no sense; the message says what to write instead."""


def report(error: Exception, args: Sequence[str]) -> int:
    """Say on stderr what went wrong, in one line, and give the exit code.

    With ``--json`` stdout gets one object as well, so that whoever parses it always has one.

    Args:
        error: what ended the command.
        args: the command line.
    """
    command = args[0] if args and not args[0].startswith("-") else ""
    code = FAILED
    if isinstance(error, BrokenPipeError) and not isinstance(error, SubstrateError):
        return 141  # as if SIGPIPE had ended us, silently
    if isinstance(error, UsageError):
        code = USAGE
    elif command == "replay":
        code = 2  # 1 says that the replay diverged; 125 has no meaning to who asks for a verdict
    message = _message(error)
    say(f"substrate {command}: {message}" if command else f"substrate: {message}")
    if _wants_json(args) and not answered:
        _print_json(error, message, code)
    return code


def _message(error: Exception) -> str:
    if isinstance(error, SubstrateError | UsageError):
        return str(error)
    if isinstance(error, OSError):
        what = f"{error.filename}: " if error.filename else ""
        return f"{what}{error.strerror or error}"
    return f"internal error: {type(error).__name__}: {error} (SUBSTRATE_DEBUG=1 shows where)"


def _wants_json(args: Sequence[str]) -> bool:
    """Whether ``--json`` is an option of ours, not a word of the command that is to run."""
    options = list(args[: args.index("--")] if "--" in args else args)
    if "--json" not in options:
        return False
    from substrate_sdk.cli import run
    from substrate_sdk.cli.arguments import split_command

    if options[0] == "run":  # its command begins at the first word that is no option
        options, _ = split_command(run.parser("run"), options[1:])
    elif "-c" in options:
        options = options[: options.index("-c")]
    return "--json" in options


def _print_json(error: Exception, message: str, code: int) -> None:
    import json

    reason, retryable = "USAGE" if code == USAGE else "FAILED", False
    if isinstance(error, SubstrateError):
        reason, retryable = error.reason or reason, error.retryable
    report = {"reason": reason, "message": message, "retryable": retryable, "exit_code": code}
    print(json.dumps({"error": report}))


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
