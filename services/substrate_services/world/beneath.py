"""Reaching files below a directory and nowhere else, as somebody else where need be.

openat2(2) with RESOLVE_BENEATH and RESOLVE_NO_SYMLINKS has the kernel refuse every way out: ``..``,
links, magic links, mounts. Python has no binding for it, nor for renameat2(2), nor for a change of
credentials of one thread alone (setfsuid(2); glibc's own wrappers change every thread).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass

_SYS_OPENAT2 = 437  # on every architecture
_SYS_SETGROUPS = {"x86_64": 116, "aarch64": 159}
# RESOLVE_BENEATH, _NO_SYMLINKS, _NO_MAGICLINKS, _NO_XDEV of linux/openat2.h
_RESOLVE_BENEATH_AND_NO_LINKS = 0x08 | 0x04 | 0x02 | 0x01
_RESOLVE_IN_ROOT_AND_NO_MAGIC = 0x10 | 0x02  # RESOLVE_IN_ROOT, _NO_MAGICLINKS
RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2

_libc = ctypes.CDLL(None, use_errno=True)
_openat2 = ctypes.CDLL(None, use_errno=True).syscall
_openat2.argtypes = (
    ctypes.c_long,
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.c_void_p,
    ctypes.c_size_t,
)
_openat2.restype = ctypes.c_long
_libc.renameat2.argtypes = (
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.c_uint,
)


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def open_beneath(root_fd: int, relative: bytes, flags: int) -> int:
    """Open a path below a directory, following no link and leaving it in no way (openat2(2)).

    Raises:
        OSError: ELOOP for a link on the way, EXDEV for a way out.
    """
    return _open_how(root_fd, relative, flags, _RESOLVE_BENEATH_AND_NO_LINKS)


def open_in_root(root_fd: int, path: bytes, flags: int) -> int:
    """Open a path as it leads from a root directory, following links inside that root only.

    Raises:
        OSError: there is no such path; ELOOP for links of /proc, which lead anywhere.
    """
    return _open_how(root_fd, path, flags, _RESOLVE_IN_ROOT_AND_NO_MAGIC)


def _open_how(root_fd: int, relative: bytes, flags: int, resolve: int) -> int:
    how = _OpenHow(flags | os.O_CLOEXEC, 0, resolve)
    fd = int(_openat2(_SYS_OPENAT2, root_fd, relative, ctypes.byref(how), ctypes.sizeof(how)))
    if fd < 0:
        raise _last_error(relative)
    return fd


def rename(from_fd: int, old: bytes, to_fd: int, new: bytes, flags: int) -> None:
    """Rename with RENAME_NOREPLACE or RENAME_EXCHANGE (renameat2(2)). Raises OSError."""
    if _libc.renameat2(from_fd, old, to_fd, new, flags) != 0:
        raise _last_error(new)


def sync_filesystem(descriptor: int) -> None:
    """Write everything of a descriptor's file system to its disk (syncfs(2)). Raises OSError."""
    if _libc.syncfs(descriptor) != 0:
        raise _last_error(b"")


def _last_error(path: bytes) -> OSError:
    code = ctypes.get_errno()
    return OSError(code, os.strerror(code), os.fsdecode(path))


@dataclass(frozen=True, slots=True)
class Caller:
    """For whom files are written."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()

    @classmethod
    def own(cls) -> Caller:
        """This process's own user."""
        return cls(os.geteuid(), os.getegid(), tuple(os.getgroups()))

    @contextlib.contextmanager
    def acting(self) -> Iterator[None]:
        """Reach files as this user, in the current thread alone.

        With another fsuid the kernel takes the thread's capabilities over files away, and gives
        them back with the own one (capabilities(7)).

        Raises:
            PermissionError: this process may not act for others.
        """
        own = Caller.own()
        if _libc.setfsuid(-1) == self.uid:  # which asks only: it is so, or we are inside already
            yield
            return
        if own.uid != 0:
            raise PermissionError(f"user {own.uid} cannot act for user {self.uid}")
        _set_groups(self.groups)
        _libc.setfsgid(self.gid)
        _libc.setfsuid(self.uid)
        try:
            # The call itself never says whether it worked; asking for none does.
            if _libc.setfsuid(-1) != self.uid:
                raise PermissionError(f"cannot act for user {self.uid}")
            yield
        finally:
            _libc.setfsuid(own.uid)
            _libc.setfsgid(own.gid)
            _set_groups(own.groups)


def _set_groups(groups: tuple[int, ...]) -> None:
    """Supplementary groups of this thread alone: not through glibc, which sets all threads'."""
    number = _SYS_SETGROUPS[platform.machine()]
    array = (ctypes.c_uint32 * len(groups))(*groups)
    if _libc.syscall(ctypes.c_long(number), ctypes.c_size_t(len(groups)), array) != 0:
        raise _last_error(b"")
