"""Taking a world's directory away, whatever a world has made of it."""

from __future__ import annotations

import itertools
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path

from substrate_services.world.disk import detach_disks
from substrate_services.world.spec import forget_state


def move_to(directory: Path, trash: Path) -> bool:
    """Move a directory into ``trash``; False where there is none."""
    trash.mkdir(mode=0o700, exist_ok=True)
    detach_disks(directory)
    try:
        directory.rename(trash / directory.name)
    except FileNotFoundError:
        return False
    return True


def empty(trash: Path) -> None:
    """Delete what an earlier host process did not come to."""
    if trash.is_dir():
        for left in list(trash.iterdir()):
            remove_tree(left)


def remove_tree(directory: Path) -> None:
    """Remove a world's directory, however deep a world has nested what is in it.

    A directory's own directories are moved to the top before it goes, so nothing is reached by a
    path that could be too long. Overlays leave directories behind that nobody may enter.
    """
    detach_disks(directory)
    try:
        top = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    except NotADirectoryError:  # the disk image of layers that a world does not go on with
        directory.unlink()
        return
    try:
        # Without its state it is a world that was never finished, should this be cut short.
        forget_state(directory)
        # An earlier removal may have been cut short: its names are not given again.
        fresh = (f".removed-{secrets.token_hex(4)}-{number}" for number in itertools.count())
        while names := _empty(top, top, fresh):
            for name in names:
                # Its mode must let us in, and a move changes its "..".
                os.chmod(name, stat.S_IRWXU, dir_fd=top)
                below = os.open(
                    name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=top
                )
                try:
                    _empty(below, top, fresh)
                finally:
                    os.close(below)
                os.rmdir(name, dir_fd=top)
    finally:
        os.close(top)
    directory.rmdir()


def _empty(directory: int, top: int, fresh: Iterator[str]) -> list[str]:
    """Remove a directory's files and move its directories to the top; names of the top's own."""
    directories = []
    with os.scandir(directory) as entries:
        listed = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    for name, is_dir in listed:
        if not is_dir:
            os.unlink(name, dir_fd=directory)
        elif directory == top:
            directories.append(name)
        else:
            os.chmod(name, stat.S_IRWXU, dir_fd=directory)
            os.rename(name, next(fresh), src_dir_fd=directory, dst_dir_fd=top)
    return directories
