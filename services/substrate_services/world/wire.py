"""Packets of native/include/protocol.h: layouts, and an asyncio connection that speaks them.

Everything that comes in is untrusted: an init runs beside the commands of its world. Lengths are
checked, text stays bytes until it is known to be an id, and what makes no sense is skipped.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import os
import socket
import struct
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum

PROTOCOL_VERSION = 1
PACKET_MAX = 65536
STDIN_WINDOW = 256 << 10
STDIN_CHUNK = 32 << 10
ID_BYTES = 64
_IN_MEMFD = 1
#: Flag of CREATE and ATTACH: the answer may hold the descriptor of the kernel's ledger.
WANTS_LEDGER = 2
_HEADER = struct.Struct("<HHIII")
_FDS_MAX = 4
#: Answers larger than this come in a memfd; with margin for the header.
_INLINE_MAX = PACKET_MAX - _HEADER.size


class LauncherType(IntEnum):
    """``enum sub_launcher_type``."""

    HELLO = 0x0101
    CREATE = 0x0102
    LIST = 0x0103
    ATTACH = 0x0104
    REMOVE = 0x0105
    SHUTDOWN = 0x0106
    LEDGER = 0x0107
    LIMITS = 0x0108
    WELCOME = 0x0181
    BOX = 0x0182
    WORLDS = 0x0183
    OK = 0x0184
    ERROR = 0x0185
    GONE = 0x0186


class InitType(IntEnum):
    """``enum sub_init_type``."""

    HELLO = 0x0201
    START = 0x0202
    STDIN = 0x0203
    SIGNAL = 0x0204
    RESIZE = 0x0205
    STATUS = 0x0206
    FORGET = 0x0207
    PROCS = 0x0208
    FREEZE = 0x0209
    SHELL_RUN = 0x020A
    WELCOME = 0x0281
    STARTED = 0x0282
    FAILED = 0x0283
    STDIN_ACK = 0x0284
    OUTPUT = 0x0285
    EXITED = 0x0286
    STATE = 0x0287
    OK = 0x0288
    ERROR = 0x0289
    PROC_LIST = 0x028A
    FROZEN = 0x028B


class WireError(Exception):
    """The peer broke the protocol, or is gone; the text says which."""


@dataclass(frozen=True, slots=True)
class Packet:
    """One message. ``fds`` belong to whoever takes the packet."""

    type: int
    request: int
    payload: bytes
    fds: tuple[int, ...]

    def close_fds(self) -> None:
        """Close descriptors nobody asked for."""
        for fd in self.fds:
            os.close(fd)


class Reader:
    """Takes a payload apart, checking every length."""

    def __init__(self, payload: bytes) -> None:
        self._payload = payload
        self._at = 0

    def string(self) -> bytes:
        """The next length-prefixed string. Raises WireError where it does not fit."""
        (length,) = _LENGTH.unpack(self.raw(_LENGTH.size))
        return self.raw(length)

    def raw(self, length: int) -> bytes:
        """The next bytes. Raises WireError where there are fewer."""
        if self._at + length > len(self._payload):
            raise WireError(f"payload of {len(self._payload)} bytes ends early")
        self._at += length
        return self._payload[self._at - length : self._at]


_LENGTH = struct.Struct("<I")


def string(text: bytes) -> bytes:
    """A length-prefixed string. Raises ValueError for a NUL byte, which the kernel cannot take."""
    if b"\0" in text:
        raise ValueError(f"NUL byte in {text[:80]!r}: the kernel cannot take it")
    return _LENGTH.pack(len(text)) + text


def fixed_id(text: str) -> bytes:
    """An id as the fixed 64-byte field. Raises ValueError where it does not fit."""
    raw = text.encode()
    if not 0 < len(raw) <= ID_BYTES:
        raise ValueError(f"id {text!r} must have 1 to {ID_BYTES} bytes")
    return raw.ljust(ID_BYTES, b"\0")


def parse_id(field: bytes) -> str:
    """The id in a 64-byte field. Raises WireError where it is no ASCII."""
    try:
        return field.rstrip(b"\0").decode("ascii")
    except UnicodeDecodeError as error:
        raise WireError(f"id {field!r} is not ASCII") from error


def _memfd(payload: bytes) -> int:
    fd = os.memfd_create("substrate-payload", os.MFD_CLOEXEC)
    try:
        view = memoryview(payload)
        while view:
            view = view[os.write(fd, view) :]
    except OSError:
        os.close(fd)
        raise
    return fd


class Connection:
    """A SEQPACKET socket in an event loop.

    Sending keeps order and never blocks the loop: packets the socket does not take wait in a queue.
    Every method must be called from the loop's thread.

    Args:
        sock: connected; taken over.
        on_packet: called with every packet; it owns the packet's descriptors.
        on_lost: called once, when the peer is gone or broke the protocol.
    """

    def __init__(
        self,
        sock: socket.socket,
        *,
        on_packet: Callable[[Packet], None],
        on_lost: Callable[[WireError], None],
    ) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._on_packet = on_packet
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[tuple[bytes, bytes, list[int]]] = deque()
        self._closed = False
        self._loop.add_reader(sock.fileno(), self._readable)

    @property
    def closed(self) -> bool:
        """Whether nothing can be sent any more."""
        return self._closed

    def send(
        self, kind: int, request: int, payload: bytes, fds: Sequence[int] = (), *, flags: int = 0
    ) -> None:
        """Send one packet; ``fds`` are duplicated by the kernel and stay the caller's.

        Raises:
            WireError: the connection is closed.
        """
        if self._closed:
            raise WireError("the connection is closed")
        own: list[int] = []
        inline = payload
        if len(payload) > _INLINE_MAX:
            own.append(_memfd(payload))
            flags |= _IN_MEMFD
            inline = b""
        header = _HEADER.pack(PROTOCOL_VERSION, kind, request, len(payload), flags)
        try:
            own += [os.dup(fd) for fd in fds]
        except OSError:
            _close_all(own)
            raise
        self._waiting.append((header, inline, own))
        self._flush()

    def close(self) -> None:
        """Close without telling ``on_lost``."""
        if self._closed:
            return
        self._closed = True
        self._loop.remove_reader(self._sock.fileno())
        self._loop.remove_writer(self._sock.fileno())
        for _, _, fds in self._waiting:
            _close_all(fds)
        self._waiting.clear()
        self._sock.close()

    def _lose(self, error: WireError) -> None:
        if not self._closed:
            self.close()
            self._on_lost(error)

    def _flush(self) -> None:
        while self._waiting:
            header, payload, fds = self._waiting[0]
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
            try:
                self._sock.sendmsg([header, payload], rights, socket.MSG_NOSIGNAL)
            except (BlockingIOError, InterruptedError):
                self._loop.add_writer(self._sock.fileno(), self._flush)
                return
            except OSError as error:
                self._lose(WireError(f"the peer is gone: {error.strerror}"))
                return
            self._waiting.popleft()
            _close_all(fds)
        if not self._closed:
            self._loop.remove_writer(self._sock.fileno())

    def _readable(self) -> None:
        # A bounded number, so that one talkative peer leaves the loop to the others.
        for _ in range(64):
            if self._closed:
                return
            try:
                data, ancillary, flags, _ = self._sock.recvmsg(
                    PACKET_MAX, socket.CMSG_SPACE(_FDS_MAX * 4), socket.MSG_CMSG_CLOEXEC
                )
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                self._lose(WireError(f"the peer is gone: {error.strerror}"))
                return
            fds = _received_fds(ancillary)
            if not data:
                _close_all(fds)
                self._lose(WireError("the peer closed the connection"))
                return
            packet = _parse(data, fds, torn=bool(flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC)))
            if packet is None:
                _close_all(fds)
                continue
            try:
                self._on_packet(packet)
            except WireError as error:
                self._lose(error)
                return


def _received_fds(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    fds = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return list(fds)


def _parse(data: bytes, fds: list[int], *, torn: bool) -> Packet | None:
    """A packet, or None for what makes no sense (skipped: the next one may be good)."""
    if torn or len(data) < _HEADER.size:
        return None
    version, kind, request, length, flags = _HEADER.unpack_from(data)
    # Answers never come in memfds: a peer could go on changing what was checked.
    if version != PROTOCOL_VERSION or flags or length != len(data) - _HEADER.size:
        return None
    return Packet(kind, request, data[_HEADER.size :], tuple(fds))


def _close_all(fds: Sequence[int]) -> None:
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)
