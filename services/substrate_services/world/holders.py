"""Which files of a world are open for writing, as /proc tells of its processes (proc(5))."""

from __future__ import annotations

import contextlib
import os
import re
import stat

# Interfaces and the recorder's own segments: no part of a world's tree.
_NOT_IN_THE_TREE = (b"/proc/", b"/sys/", b"/dev/", b"/run/", b"/memfd:", b"/SYSV")
_FLAGS = re.compile(rb"^flags:\s*([0-7]+)", re.MULTILINE)


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
    with open(f"/proc/{pid}/maps", "rb") as maps:
        for line in maps:
            fields = line.split(None, 5)
            shared_and_written = b"w" in fields[1] and b"s" in fields[1]
            if shared_and_written and len(fields) > 5 and _is_in_tree(fields[5]):
                return True
    return False


def _is_in_tree(path: bytes) -> bool:
    return path.startswith(b"/") and not path.startswith(_NOT_IN_THE_TREE)
