"""Whether the library changes what strace sees: the same work with it and without it."""

from __future__ import annotations

import posixpath
import re
from collections import Counter
from collections.abc import Iterable

from benchmarks.truth.traced import TracedCall

_PIPE = re.compile(rb"^(/pipe|/socket):.*")
#: A program and something that it did: class, kind, path, second path, errno.
_Deed = tuple[bytes, str, str, bytes, bytes, str]


def differences(
    paired: Iterable[TracedCall], alone: Iterable[TracedCall], *, rooms: tuple[bytes, bytes]
) -> tuple[int, Counter[_Deed]]:
    """Compare two runs of the same work, in two directories.

    Args:
        paired: of a run with the library.
        alone: of one without it.
        rooms: the directories of either run, which stand for each other.

    Returns:
        How many operations the run without it had, and those that only one of them had.
    """
    with_it = _deeds(paired, rooms[0])
    without = _deeds(alone, rooms[1])
    return without.total(), (with_it - without) + (without - with_it)


def _deeds(calls: Iterable[TracedCall], room: bytes) -> Counter[_Deed]:
    deeds: Counter[_Deed] = Counter()
    for call in calls:
        operation = call.at.operation
        # The loader opens the library, and a new process has a new number: neither is the work's.
        if call.own or call.library or operation.kind == "fork":
            continue
        deeds[
            posixpath.basename(call.program.path),
            str(operation.op_class),
            operation.kind,
            _PIPE.sub(rb"\1", operation.path.replace(room, b"ROOM")),
            operation.path2.replace(room, b"ROOM"),
            operation.error,
        ] += 1
    return deeds
