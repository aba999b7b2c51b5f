"""Changes of a step that no event of its processes explains.

What a program does past libc (a raw system call, io_uring, a shared mapping of an inherited file)
leaves no event, but changes the tree all the same: the walk finds it, and the step's coverage is
then not full (DESIGN §6).

A change is explained where an event speaks of its path or of a directory above: a renamed directory
brings all that is in it. Events name files as programs did, through links of all kinds, while the
walk knows one path of each. So what is left is looked at once more, with links followed inside the
world; and of a file with several names any may have been meant.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence

from substrate_services.journal.schema import Change
from substrate_services.world.beneath import open_in_root

__all__ = ["unexplained_changes"]

# Following a link costs some microseconds; a step that wrote more is not judged.
_RESOLVED_MAX = 20_000


def unexplained_changes(
    changes: Sequence[Change], writes: Sequence[bytes], root_fd: int | None
) -> tuple[Change, ...]:
    """The changes that no event explains.

    Args:
        changes: of one step.
        writes: absolute paths that its events may have changed, as programs named them.
        root_fd: the world's root directory, to follow links in; without it, or with too many paths,
            links are given the benefit of the doubt.

    Returns:
        Those left over. Blocks: call it from a thread.
    """
    left = _left(changes, set(writes))
    if not left:
        return ()
    if root_fd is None or len(writes) > _RESOLVED_MAX:
        return ()
    left = _left(left, _resolved(writes, root_fd))
    return tuple(change for change in left if not _has_other_names(change, root_fd))


def _left(changes: Sequence[Change], known: set[bytes]) -> list[Change]:
    return [
        change
        for change in changes
        if not (
            _is_known(change.path, known)
            or (change.renamed_from is not None and _is_known(change.renamed_from, known))
        )
    ]


def _is_known(path: bytes, known: set[bytes]) -> bool:
    while path not in known:
        above = os.path.dirname(path)
        if above == path:
            return False
        path = above
    return True


def _resolved(writes: Sequence[bytes], root_fd: int) -> set[bytes]:
    """Where the paths lead: with the links to their directories followed, and all links."""
    found: set[bytes] = set()
    directories: dict[bytes, bytes | None] = {}
    for path in writes:
        directory, name = os.path.split(path)
        if directory not in directories:
            directories[directory] = _real_path(directory, root_fd)
        above = directories[directory]
        if above is not None:
            found.add(os.path.join(above, name))
        if (real := _real_path(path, root_fd)) is not None:
            found.add(real)
    return found


def _real_path(path: bytes, root_fd: int) -> bytes | None:
    try:
        fd = open_in_root(root_fd, path, os.O_PATH)
    except OSError:
        return None  # gone meanwhile
    try:
        # The kernel's name for it, from the root of the world's own mounts.
        return os.readlink(b"/proc/self/fd/%d" % fd)
    except OSError:
        return None
    finally:
        os.close(fd)


def _has_other_names(change: Change, root_fd: int) -> bool:
    if change.kind not in ("modified", "metadata"):
        return False
    with contextlib.suppress(OSError):
        fd = open_in_root(root_fd, change.path, os.O_PATH | os.O_NOFOLLOW)
        try:
            return os.fstat(fd).st_nlink > 1
        finally:
            os.close(fd)
    return False
