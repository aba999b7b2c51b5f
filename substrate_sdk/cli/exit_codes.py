"""How the end of a command becomes an exit code, as shells and timeout(1) have it."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from substrate_sdk.types import Result

TIMED_OUT = 124
FAILED = 125
DENIED = 126


def exit_code(result: Result) -> int:
    """The exit code of ``substrate run`` for a result."""
    match result.termination_reason:
        case "DENIED":
            return DENIED
        case "TIMEOUT":
            return TIMED_OUT
        case "AGENT_LOST" | "WORLD_REMOVED" | "UNKNOWN":
            return FAILED if result.exit_code is None else result.exit_code
        case _:
            pass
    if result.exit_code is not None:
        return result.exit_code
    return 128 + signal_number(result.signal or "SIGKILL")


def signal_number(name: str) -> int:
    """The number of a signal by its name; SIGKILL's for one that this system does not know."""
    try:
        return signal.Signals[name].value
    except KeyError:
        _, above, offset = name.partition("SIGRTMIN+")  # those have no names of their own
        if above and offset.isdigit():
            return int(signal.SIGRTMIN) + int(offset)
        digits = name.removeprefix("SIG")
        return int(digits) if digits.isdigit() else signal.SIGKILL.value
