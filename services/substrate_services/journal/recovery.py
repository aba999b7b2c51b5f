"""Opening a live segment for writing: where its sealed part ends, and what to do with the rest.

The one writer makes a batch durable before it writes the next, so a crash or a power cut can
leave exactly one batch unfinished, at the end of the file: cut short, or with its pages on disk
only in part. Anything else that does not verify is damage, not a tear; it stays where it is, for
``verify`` to name.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

from substrate_services.journal.chain import (
    COMMIT_MARK,
    Commit,
    batch_digest,
    covered_head,
    parse_commit,
)

_FIRST_WINDOW = 1 << 20


@dataclass(frozen=True, slots=True)
class TailState:
    """What a writer needs to go on behind a segment's last good batch."""

    good_end: int  # bytes
    head: bytes
    seq: int
    torn: bytes  # what stands behind good_end


def inspect_tail(fd: int) -> TailState | None:
    """Finds the end of the sealed part of a live segment; None where nothing in it is sealed."""
    size = os.fstat(fd).st_size
    sealed = next(_commits_backwards(fd, size), None)
    if sealed is None:
        return None
    commit, end, start = sealed
    if end == size and not _verifies(fd, commit, start, end):
        before = next(_commits_backwards(fd, start), None)
        if before is not None and _verifies(fd, before[0], before[2], before[1]):
            commit, end, _ = before
    return TailState(end, commit.digest, commit.seq, os.pread(fd, size - end, end))


def _verifies(fd: int, commit: Commit, start: int, end: int) -> bool:
    raw = os.pread(fd, end - start, start)
    return batch_digest(commit.prev, covered_head(raw)) == commit.digest


def _commits_backwards(fd: int, size: int) -> Iterator[tuple[Commit, int, int]]:
    """Commits from the end of the first ``size`` bytes: (commit, its end, its batch's start)."""
    newer: tuple[Commit, int] | None = None
    window = _FIRST_WINDOW
    top = size  # everything from here on has been looked at
    while True:
        base = max(0, size - window)
        data = os.pread(fd, size - base, base)
        found = len(data) if newer is None else min(len(data), top - base)
        while (at := data.rfind(COMMIT_MARK, 0, found)) >= 0:
            line_start = data.rfind(b"\n", 0, at) + 1
            line_end = data.find(b"\n", at) + 1
            found = at
            if line_end == 0 or (line_start == 0 and base > 0):
                continue  # not ended yet, or begins before the window
            commit = parse_commit(data[line_start:line_end])
            if commit is None:
                continue
            if newer is not None:
                yield newer[0], newer[1], base + line_end
            newer = (commit, base + line_end)
            top = base + line_start
        if base == 0:
            break
        window *= 4
    if newer is not None:
        yield newer[0], newer[1], 0
