"""A file system of a world's own for its layers, where its disk is limited (DESIGN §5, Limits).

A sparse image beside the layers, with ext4 on it, on a loop device that the kernel frees with its
last mount (LO_FLAGS_AUTOCLEAR). Blocks and inodes end where the image ends, whoever writes: no
quota to keep, and none that an id of the world could get around. docs/adr/0011-disk-limits.md
says what else was looked at.

Every generation of a world's layers has an image of its own, so a rollback never needs room in the
one before. Blocking; call it from a thread.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import functools
import logging
import os
import struct
from pathlib import Path

from substrate_services.errors import ServiceError
from substrate_services.world.backends.base import BackendCapabilities
from substrate_services.world.limits import Limits

log = logging.getLogger(__name__)

IMAGE = "layers.img"
MOUNT_POINT = "layers"

_LOOP_CTL_GET_FREE = 0x4C82
_LOOP_CONFIGURE = 0x4C0A
_LOOP_GET_STATUS64 = 0x4C05
_LO_FLAGS_AUTOCLEAR = 4
_INFO_BYTES = 232  # struct loop_info64: device and inode of the image first
_CONFIG_BYTES = 304  # struct loop_config: fd, block size, struct loop_info64, reserved
_CONFIG_FLAGS_AT = 8 + 52  # lo_flags in it
_MS_NOSUID_NODEV_NOATIME = 2 | 4 | 1024
_MNT_DETACH = 2
_INODE_BYTES = 256
_FOLIO_BYTES = 2 << 20
_BYTES_PER_INODE = 16_384  # where only the bytes are limited, as mkfs does it
_ATTEMPTS = 16
_SEARCH = "/usr/sbin:/sbin:/usr/local/sbin:/usr/bin:/bin"

_libc = ctypes.CDLL(None, use_errno=True)


def disk_problem(found: BackendCapabilities) -> tuple[str, str] | None:
    """Why the disk of worlds cannot be limited here, and what to do; None where it can."""
    if found.rootless:
        return (
            "mounting an image takes root",
            "run the host as root, or keep the home on a file system of limited size",
        )
    return _machine_problem()


@functools.cache
def _machine_problem() -> tuple[str, str] | None:
    if _mkfs() is None:
        return "there is no mkfs.ext4", "install e2fsprogs"
    if not os.path.exists("/dev/loop-control"):
        return (
            "there are no loop devices",
            "modprobe loop; in a container, give it /dev/loop-control and its devices",
        )
    return None


def require_disk(limits: Limits, found: BackendCapabilities) -> None:
    """Raise ServiceError LIMIT_UNAVAILABLE where the disk is to be limited and cannot be."""
    problem = disk_problem(found) if limits.needs_disk else None
    if problem is not None:
        raise ServiceError(
            "LIMIT_UNAVAILABLE",
            f"the disk of a world cannot be limited here: {problem[0]}; {problem[1]}",
            {"limit": "disk_bytes" if limits.disk_bytes is not None else "inodes"},
        )


def make_disk(directory: Path, limits: Limits) -> None:
    """Make and mount what the layers in a directory are to be on.

    Raises:
        ServiceError: LIMIT_UNAVAILABLE, DISK_FULL.
    """
    free = os.statvfs(directory)
    size = limits.disk_bytes
    if size is None:
        size = free.f_bavail * free.f_frsize
    inodes = limits.inodes if limits.inodes is not None else max(1_024, size // _BYTES_PER_INODE)
    # Blocks are for the world; what the file system needs for itself comes on top.
    total = size + inodes * _INODE_BYTES + size // 128 + (2 << 20)
    image = directory / IMAGE
    try:
        with image.open("xb") as made:
            made.truncate(total)
        _make_file_system(image, inodes)
        attach_disk(directory)
    except OSError as error:
        image.unlink(missing_ok=True)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ServiceError("DISK_FULL", f"no space for a world's image: {image}") from error
        raise ServiceError(
            "LIMIT_UNAVAILABLE",
            f"the disk of a world cannot be limited: {error.strerror or error}; "
            "`substrate doctor` says what is missing",
            {"limit": "disk_bytes"},
        ) from error


def attach_disk(directory: Path) -> None:
    """Mount the image in a directory, where there is one and it is not. Raises OSError.

    A world that outlived its host may have it mounted where this process cannot see it, in another
    mount namespace. Two devices with one image would be two file systems that write over each
    other; the same device again is the same file system.
    """
    image, point = directory / IMAGE, directory / MOUNT_POINT
    if not image.exists() or point.is_mount():
        return
    point.mkdir(exist_ok=True)
    # Not the descriptor that the device gets: it would keep the lock as long as it is there.
    with image.open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        device = _attached(lock.fileno())
        if device is None:
            device = _attach(image)
        try:
            # Space that files in the world give up goes back to the host.
            _mount(device, point, "ext4", b"discard,nobarrier,noauto_da_alloc,noinit_itable")
        finally:
            os.close(device)


def detach_disks(directory: Path) -> None:
    """Unmount all images below a directory, and with that free their loop devices."""
    prefix = os.fsencode(os.path.realpath(directory))
    for point in _mounts_below(prefix):
        _libc.umount2(point, _MNT_DETACH)


def is_full(directory: Path) -> tuple[bool, bool]:
    """Whether the blocks, and the inodes, of the image in a directory are used up."""
    point = directory / MOUNT_POINT
    if not (directory / IMAGE).exists():
        return False, False
    with contextlib.suppress(OSError):
        status = os.statvfs(point)
        # Kernels with large folios in ext4 refuse up to 2 MiB of a write as a whole (tried on 6.18:
        # 1 MiB failed with 512 KiB left, which stay), and nobody notes down that it failed.
        least = min(_FOLIO_BYTES, status.f_blocks * status.f_frsize // 16)
        return status.f_bavail * status.f_frsize < least, status.f_favail == 0
    return False, False


# -- parts ---------------------------------------------------------------------------------------


def _mkfs() -> str | None:
    for directory in _SEARCH.split(":"):
        path = os.path.join(directory, "mkfs.ext4")
        if os.access(path, os.X_OK):
            return path
    return None


def _make_file_system(image: Path, inodes: int) -> None:
    """Mkfs without a journal: nobody mounts it again after a crash of the machine but to read."""
    program = _mkfs()
    if program is None:
        raise OSError(errno.ENOENT, "there is no mkfs.ext4")
    argv = [program, "-q", "-F", "-m", "0", "-b", "4096", "-I", str(_INODE_BYTES)]
    argv += ["-N", str(inodes), "-O", "^has_journal,^resize_inode,metadata_csum"]
    argv += ["-E", "lazy_itable_init=1,nodiscard,root_owner=0:0", os.fspath(image)]
    quiet = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
        (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
    ]
    # No fork in a process with a gRPC server.
    pid = os.posix_spawn(program, argv, {"PATH": _SEARCH}, file_actions=quiet)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status:
        raise OSError(errno.EINVAL, f"mkfs.ext4 ended with {status}")


def _attached(image: int) -> int | None:
    """The loop device that has an image already, whoever attached it; open, so that it stays."""
    wanted = os.fstat(image)
    for found in Path("/sys/block").glob("loop*/loop/backing_file"):
        status = bytearray(_INFO_BYTES)
        try:
            device = os.open(f"/dev/{found.parent.parent.name}", os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            continue  # gone meanwhile, or not shown here
        try:
            fcntl.ioctl(device, _LOOP_GET_STATUS64, status)
        except OSError:
            os.close(device)
            continue  # freed meanwhile
        if struct.unpack_from("<QQ", status) == (wanted.st_dev, wanted.st_ino):
            return device
        os.close(device)
    return None


def _attach(image: Path) -> int:
    """A loop device with the image; it goes with its last user, which is the mount."""
    backing = os.open(image, os.O_RDWR | os.O_CLOEXEC)
    try:
        control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
        try:
            for _attempt in range(_ATTEMPTS):
                device = os.open(
                    f"/dev/loop{fcntl.ioctl(control, _LOOP_CTL_GET_FREE)}",
                    os.O_RDWR | os.O_CLOEXEC,
                )
                config = bytearray(_CONFIG_BYTES)
                struct.pack_into("<II", config, 0, backing, 0)
                struct.pack_into("<I", config, _CONFIG_FLAGS_AT, _LO_FLAGS_AUTOCLEAR)
                try:
                    fcntl.ioctl(device, _LOOP_CONFIGURE, bytes(config))
                except OSError as error:
                    os.close(device)
                    if error.errno != errno.EBUSY:  # somebody else was quicker
                        raise
                    continue
                return device
            raise OSError(errno.EBUSY, "no loop device is free")
        finally:
            os.close(control)
    finally:
        os.close(backing)


def _mount(device: int, point: Path, kind: str, options: bytes) -> None:
    source = os.readlink(f"/proc/self/fd/{device}")
    done = _libc.mount(
        os.fsencode(source),
        os.fsencode(point),
        kind.encode(),
        _MS_NOSUID_NODEV_NOATIME,
        options,
    )
    if done:
        number = ctypes.get_errno()
        raise OSError(number, f"mounting {point}: {os.strerror(number)}")


def _mounts_below(prefix: bytes) -> list[bytes]:
    """Mount points at or below a path, the latest first (proc_pid_mountinfo(5))."""
    found = []
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        point = line.split(b" ", 5)[4]
        if b"\\" in point:
            point = point.decode("unicode_escape").encode("latin-1")
        if point == prefix or point.startswith(prefix + b"/"):
            found.append(point)
    return found[::-1]
