"""What of the host a world's layout is made from, to tell later whether it would be the same."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

from substrate_services.world.profile import Mask


@dataclass(frozen=True, slots=True)
class Basis:
    """What of the host a layout is made from: where this is equal, so would be the layout.

    Attributes:
        covers: places where the base is hidden.
        shown: parts of the base that show through the covers.
        masks: what else is hidden.
        entries: what lies at paths that the layout leads to or copies from; () for nothing.
    """

    covers: tuple[bytes, ...]
    shown: tuple[bytes, ...]
    masks: tuple[Mask, ...]
    entries: tuple[tuple[bytes, tuple[int, ...]], ...]


def directories_above(path: bytes) -> Iterator[bytes]:
    """The directories that lead to an absolute path, ``/`` last."""
    while path not in (b"/", b""):
        path = os.path.dirname(path)
        yield path


def entry_at(path: bytes, *, times: bool) -> tuple[int, ...]:
    """Which entry it is and whose; with ``times``, also whether something was written to it."""
    try:
        status = os.lstat(path)
    except OSError:
        return ()
    found = (status.st_dev, status.st_ino, status.st_mode, status.st_uid, status.st_gid)
    return (*found, status.st_mtime_ns, status.st_size) if times else found
