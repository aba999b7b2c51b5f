"""Which files of a world are open for writing, as /proc tells of its processes (proc(5))."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import stat

# Interfaces and the recorder's own segments: no part of a world's tree.
_NOT_IN_THE_TREE = (b"/proc/", b"/sys/", b"/dev/", b"/run/", b"/memfd:", b"/SYSV")
_FLAGS = re.compile(rb"^flags:\s*([0-7]+)", re.MULTILINE)
_SYNC_FILE_RANGE_WAIT_BEFORE_AND_WRITE = 1 | 2

_libc = ctypes.CDLL(None, use_errno=True)
_libc.sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)


def maps_files(init_pid: int) -> bool:
    """Whether a process of a world has a file of its tree mapped, to be written.

    Args:
        init_pid: as for :func:`writes_files`.
    """
    pending = [init_pid]
    while pending:
        pid = pending.pop()
        with contextlib.suppress(OSError):  # it has just ended
            if pid != init_pid and _maps(pid):
                return True
            for thread in os.listdir(f"/proc/{pid}/task"):
                with open(f"/proc/{pid}/task/{thread}/children", "rb") as children:
                    pending += map(int, children.read().split())
    return False


def have_writes_told(descriptor: int) -> None:
    """Have the kernel tell of the next write through a mapping, by the file's times.

    It does so for the first write to a page that is clean (page_mkwrite), and a page is dirty until
    it is written to the disk. Where that is not done (tmpfs), this changes nothing.
    """
    _libc.sync_file_range(descriptor, 0, 0, _SYNC_FILE_RANGE_WAIT_BEFORE_AND_WRITE)


def writes_files(init_pid: int) -> bool:
    """Whether a process of a world has a file of its tree open for writing, or so mapped.

    Args:
        init_pid: the world's init, in the host's pid namespace.

    What cannot be looked at because it has just ended does not count.
    """
    try:
        namespace = os.readlink(f"/proc/{init_pid}/ns/pid")
    except OSError:
        return False
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == init_pid:
            continue
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/{name}/ns/pid") == namespace and _writes(int(name)):
                return True
    return False


def _writes(pid: int) -> bool:
    for number in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            target = os.readlink(os.fsencode(f"/proc/{pid}/fd/{number}"))
            if not _is_in_tree(target):
                continue
            with open(f"/proc/{pid}/fdinfo/{number}", "rb") as file:
                flags = _FLAGS.search(file.read())
            if flags is None or int(flags[1], 8) & os.O_ACCMODE == os.O_RDONLY:
                continue
            if stat.S_ISREG(os.stat(f"/proc/{pid}/fd/{number}").st_mode):
                return True
    return _maps(pid)


def _maps(pid: int) -> bool:
    with open(f"/proc/{pid}/maps", "rb") as maps:
        for line in maps:
            fields = line.split(None, 5)
            shared_and_written = b"w" in fields[1] and b"s" in fields[1]
            if shared_and_written and len(fields) > 5 and _is_in_tree(fields[5]):
                return True
    return False


def _is_in_tree(path: bytes) -> bool:
    return path.startswith(b"/") and not path.startswith(_NOT_IN_THE_TREE)
