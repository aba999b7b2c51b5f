"""A ``substrate-walk`` that knows what a world wrote, and tells what has changed since.

It is a process of its own, and ends with its socket. native/walk/answer.c says how it answers.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field

from substrate_services.native_paths import NativeMissingError, native_path
from substrate_services.world.layers import Identity

# Each knows all entries of a world by heart (about 150 bytes each), and has programs in the kernel.
LOOKERS_MAX = 32

_SOCKET_FD = 3
_TAKEN, _ALL = 1, 2  # of a request
_EVERYTHING = 1  # of an answer
_LENGTH = struct.Struct("<Q")
_HEAD = struct.Struct("<BBH")
_FACTS = struct.Struct("<QQqqIII")
_END = struct.Struct("<Q")
# A walk of all there is: a host that is busy may take its time.
_TIMEOUT_S = 120.0

_places = threading.BoundedSemaphore(LOOKERS_MAX)


class LookerLost(Exception):
    """It has ended, or will not begin: look in another way."""


@dataclass(frozen=True, slots=True)
class Found:
    """An entry that is new, or other than it was; ``identity`` is None for a whiteout."""

    name: bytes
    mode: int
    identity: Identity | None


@dataclass(slots=True)
class Look:
    """A directory in which something is other than it was.

    Attributes:
        path: from the layer's root.
        unread: it could not be read, so nothing of it is known.
        gone: names that were in it.
        found: what there is now, of what has changed.
    """

    path: bytes
    unread: bool = False
    gone: list[bytes] = field(default_factory=list)
    found: list[Found] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Answer:
    """What has changed since the last answer that was taken.

    Attributes:
        looks: by root, directories before those below them.
        everything: all entries were looked at, not only those that the kernel named.
    """

    looks: tuple[list[Look], ...]
    everything: bool


class Looker:
    """One process that looks at directories again and again. Methods block.

    Args:
        roots: the directories.
        init_pid: of the init of the world that writes there, so that the kernel may name what its
            processes change; 0 to look at everything each time.
        world_id: that world's.

    Raises:
        LookerLost: there are as many as there may be, or it cannot be started.
    """

    def __init__(self, roots: Sequence[bytes], *, init_pid: int = 0, world_id: str = "-") -> None:
        if not _places.acquire(blocking=False):
            raise LookerLost(f"{LOOKERS_MAX} worlds have one already")
        self._roots = len(roots)
        try:
            self._socket, self.pid = _start(roots, init_pid, world_id)
        except (NativeMissingError, OSError) as error:
            _places.release()
            raise LookerLost(str(error)) from error
        # Also where a world is forgotten without a word, so that no process outlives its tree.
        self._end = weakref.finalize(self, _end, self._socket, self.pid)

    def look(self, *, taken: bool, everything: bool) -> Answer:
        """Look again.

        Args:
            taken: what the last answer told need not be told again.
            everything: do not rest on what the kernel names.

        Raises:
            LookerLost: it has ended.
        """
        request = (_TAKEN if taken else 0) | (_ALL if everything else 0)
        try:
            self._socket.sendall(bytes([request]), socket.MSG_NOSIGNAL)
            (size,) = _LENGTH.unpack(self._receive(_LENGTH.size))
            return _answer(self._receive(size), self._roots)
        except OSError as error:
            self.close()
            raise LookerLost(str(error)) from error

    def close(self) -> None:
        """End it."""
        self._end()

    def _receive(self, size: int) -> bytearray:
        data = bytearray(size)
        view = memoryview(data)
        while view:
            got = self._socket.recv_into(view)
            if not got:
                raise ConnectionResetError("substrate-walk has ended")
            view = view[got:]
        return data


def _start(roots: Sequence[bytes], init_pid: int, world_id: str) -> tuple[socket.socket, int]:
    program = native_path("substrate-walk")
    argv: list[str | bytes] = [os.fspath(program), str(_SOCKET_FD), str(init_pid), world_id, *roots]
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    ours.settimeout(_TIMEOUT_S)
    with theirs:
        try:
            pid = os.posix_spawn(
                program,
                argv,
                {},
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
                    (os.POSIX_SPAWN_DUP2, theirs.fileno(), _SOCKET_FD),
                ],
                setpgroup=0,
            )
        except OSError:
            ours.close()
            raise
    return ours, pid


def _end(connection: socket.socket, pid: int) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()
    with contextlib.suppress(ChildProcessError, ProcessLookupError):
        # It ends when its socket does, but may be in the midst of a look that takes for ever.
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    _places.release()


def _answer(data: bytearray, roots: int) -> Answer:
    looks: tuple[list[Look], ...] = tuple([] for _ in range(roots))
    look = Look(b"")
    at = 0
    while True:
        kind, of, length = _HEAD.unpack_from(data, at)
        at += _HEAD.size
        name = bytes(data[at : at + length])
        at += length
        if kind == b"C"[0]:
            ino, size, mtime, ctime, mode, _uid, _gid = _FACTS.unpack_from(data, at)
            at += _FACTS.size
            look.found.append(Found(name, mode, (ino, size, mtime, ctime) if ino else None))
        elif kind in b"DU":
            look = Look(name, unread=kind == b"U"[0])
            looks[of].append(look)
        elif kind == b"G"[0]:
            look.gone.append(name)
        else:
            return Answer(looks, everything=of == _EVERYTHING)
