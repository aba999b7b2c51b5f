"""What a comparison speaks of: dimensions, and the differences in them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

Dimension: TypeAlias = Literal[
    "exit",
    "changes",
    "stdout",
    "stderr",
    "processes",
    "files_read",
    "endpoints",
    "mtime",
    "duration",
]
# What differs. Why it differs is not known from one run (DESIGN §9.7).
Cause: TypeAlias = Literal[
    "termination",  # ended in another way: exited, killed, timed out
    "exit_code",
    "signal",
    "change_missing",  # the recording changed it, the replay did not
    "change_extra",  # the replay changed it, the recording did not
    "change_kind",
    "different_start",  # the step began from another state of the path
    "file_type",
    "mode",
    "owner",
    "content",
    "link_target",
    "device",
    "renamed_from",
    "mtime",
    "line_differs",
    "ends_early",  # the replay's output lacks the rest
    "extra_output",  # the replay's output goes on
    "reordered",  # the same lines in another order
    "process_missing",
    "process_extra",
    "file_missing",
    "file_extra",
    "endpoint_missing",
    "endpoint_extra",
]

# What matters most comes first; `first` of a report is the first in this order.
ORDER: Final[tuple[Dimension, ...]] = (
    "exit",
    "changes",
    "mtime",
    "stdout",
    "stderr",
    "processes",
    "files_read",
    "endpoints",
    "duration",
)
# Only these make a run `diverged` (docs/REPLAY.md says why); the others are observations.
DECISIVE: Final[frozenset[Dimension]] = frozenset({"exit", "changes", "mtime", "stdout", "stderr"})


@dataclass(frozen=True, slots=True)
class Divergence:
    """One difference between a recording and a replay.

    ``expected`` is what the recording has, ``actual`` what the replay has; None where that side
    has nothing. Both are excerpts for people. ``line`` counts from 1, ``offset`` is in bytes from
    the start of the recording's output or file.
    """

    dimension: Dimension
    cause: Cause
    place: str  # for people: "stdout, line 12", "/work/made.txt"
    expected: bytes | None = None
    actual: bytes | None = None
    detail: str = ""
    path: bytes | None = None
    line: int | None = None
    offset: int | None = None


@dataclass(frozen=True, slots=True)
class NotCompared:
    """A dimension, or a named part of it, about which nothing is said, and why."""

    dimension: Dimension
    reason: str
