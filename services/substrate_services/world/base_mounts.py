"""The base of a world: the mounts that the host has when the world is made (DESIGN §5).

An overlay's lower layer does not cross mounts, so a project or home on a mount of its own needs
an overlay of its own. This module reads /proc/self/mountinfo (proc(5)) and says which mounts
count.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass

# Kernel interfaces and per-boot state: a world gets its own, or none.
_NEVER_BELOW = (b"/proc", b"/sys", b"/dev", b"/run", b"/var/run")
_PSEUDO = frozenset(
    b"proc sysfs devtmpfs devpts cgroup cgroup2 mqueue hugetlbfs debugfs tracefs securityfs pstore "
    b"bpf configfs fusectl binfmt_misc autofs rpc_pipefs efivarfs nsfs selinuxfs".split()
)
_OCTAL = re.compile(rb"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class BaseMount:
    """One mount of the base."""

    mount_point: bytes
    fs_type: bytes
    device: str  # major:minor
    root: bytes  # the part of the file system that is mounted
    is_dir: bool


def read_base_mounts(mountinfo: bytes | None = None) -> tuple[BaseMount, ...]:
    """The mounts that make up the base, shallow ones first; ``/`` is always among them.

    Args:
        mountinfo: the text of a mountinfo file; this process's own when None.
    """
    if mountinfo is None:
        with open("/proc/self/mountinfo", "rb") as file:
            mountinfo = file.read()
    seen: dict[bytes, BaseMount] = {}
    for line in mountinfo.splitlines():
        fields = line.split(b" ")
        separator = fields.index(b"-", 6)
        mount_point = _unescape(fields[4])
        fs_type = fields[separator + 1]
        # A later mount on the same point hides the earlier one, whatever its type.
        seen.pop(mount_point, None)
        if fs_type in _PSEUDO or is_below(mount_point, _NEVER_BELOW):
            continue
        seen[mount_point] = BaseMount(
            mount_point=mount_point,
            fs_type=fs_type,
            device=fields[2].decode(),
            root=_unescape(fields[3]),
            is_dir=os.path.isdir(mount_point),
        )
    return tuple(sorted(seen.values(), key=lambda mount: mount.mount_point.count(b"/")))


def mount_points() -> tuple[bytes, ...]:
    """Every mount point that this process sees, whatever is mounted there."""
    with open("/proc/self/mountinfo", "rb") as file:
        return tuple(_unescape(line.split(b" ")[4]) for line in file)


def is_below(path: bytes, roots: Iterable[bytes]) -> bool:
    """Whether ``path`` is one of ``roots`` or lies below one (by name; nothing is resolved)."""
    return any(root in (b"/", path) or path.startswith(root.rstrip(b"/") + b"/") for root in roots)


def _unescape(field: bytes) -> bytes:
    return _OCTAL.sub(lambda match: bytes([int(match.group(1), 8)]), field)
