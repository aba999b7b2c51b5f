"""Small files that are there whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path


def replace_file(path: Path, data: bytes) -> None:
    """Put ``data`` where a reader, or a host that takes over, finds either this or what was before.

    It outlives this process, whenever that ends; no more than that: nothing waits for the disk.
    """
    # One of these is on every command's way: without pathlib's and io's layers it takes a third.
    name = os.fsencode(path)
    scratch = name + b".new"
    fd = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
    finally:
        os.close(fd)
    os.rename(scratch, name)
