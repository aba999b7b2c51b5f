"""The file system of a world whose disk is limited, by itself."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from substrate_services.world.disk import (
    MOUNT_POINT,
    attach_disk,
    detach_disks,
    is_full,
    make_disk,
)
from substrate_services.world.limits import Limits
from substrate_services.world.removal import empty

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(not os.path.exists("/dev/loop-control"), reason="there are no loop devices"),
    pytest.mark.skipif(shutil.which("mkfs.ext4") is None, reason="mkfs.ext4 is not installed"),
]

MIB = 1 << 20
ELSEWHERE = """
import ctypes, os, sys
from pathlib import Path
from substrate_services.world.disk import MOUNT_POINT, attach_disk
directory = Path(sys.argv[1])
libc = ctypes.CDLL(None, use_errno=True)
assert libc.umount2(os.fsencode(directory / MOUNT_POINT), 2) == 0
assert not list((directory / MOUNT_POINT).iterdir())
attach_disk(directory)
(directory / MOUNT_POINT / "from-elsewhere").write_text("seen")
print((directory / MOUNT_POINT / "from-here").read_text())
"""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A directory whose layers have 256 MiB."""
    make_disk(tmp_path, Limits(disk_bytes=256 * MIB))
    yield tmp_path
    detach_disks(tmp_path)


def devices(directory: Path) -> list[str]:
    """Loop devices with an image below a directory."""
    found = []
    for file in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            if file.read_text().startswith(str(directory)):
                found.append(file.parent.parent.name)
        except OSError:
            continue
    return found


def test_an_image_that_is_mounted_where_nobody_sees_it_is_one_file_system(disk: Path) -> None:
    point = disk / MOUNT_POINT
    (point / "from-here").write_text("written")
    # A host that is started anew in a mount namespace of its own, beside a living world.
    private = ("unshare", "--mount", "--propagation", "private")
    done = subprocess.run(
        [*private, sys.executable, "-c", ELSEWHERE, str(disk)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "written\n"
    assert (point / "from-elsewhere").read_text() == "seen"
    assert len(devices(disk)) == 1
    detach_disks(disk)
    assert devices(disk) == []
    attach_disk(disk)
    assert (point / "from-elsewhere").read_text() == "seen"


def test_a_disk_is_full_when_a_write_fails_and_not_before(disk: Path) -> None:
    point = disk / MOUNT_POINT
    left = os.statvfs(point).f_bavail * 4096
    with (point / "most").open("wb") as most:
        os.posix_fallocate(most.fileno(), 0, left - 3 * MIB)
    assert is_full(disk) == (False, False)
    with pytest.raises(OSError, match="space"):
        (point / "rest").write_bytes(bytes(4 * MIB))
    assert is_full(disk) == (True, False)


def test_an_image_that_is_no_longer_wanted_does_not_keep_other_things_in_the_trash(
    tmp_path: Path,
) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(b"image")
    (tmp_path / "world" / "execs").mkdir(parents=True)
    empty(tmp_path)
    assert os.listdir(tmp_path) == []
