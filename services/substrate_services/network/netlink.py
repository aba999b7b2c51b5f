"""Netlink messages, as far as links, addresses, conntrack, logs and sets need them (netlink(7)).

Numbers are the kernel's uapi. Each request is answered before the next is sent.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

NETLINK_ROUTE = 0
NETLINK_NETFILTER = 12
REQUEST, MULTI, ACK, DUMP = 1, 2, 4, 0x300
CREATE, EXCLUSIVE, REPLACE = 0x400, 0x200, 0x100
NESTED = 0x8000

_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_ERROR, _DONE = 2, 3
_TYPE_MASK = 0x3FFF


class NetlinkError(OSError):
    """The kernel refused a request."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message: its type and what follows the header."""

    kind: int
    body: bytes


def attribute(kind: int, data: bytes) -> bytes:
    """One attribute, padded to four bytes."""
    padding = b"\0" * (-len(data) % 4)
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(data), kind) + data + padding


def nested(kind: int, *attributes: bytes) -> bytes:
    """An attribute made of attributes."""
    return attribute(kind | NESTED, b"".join(attributes))


def text(kind: int, value: str) -> bytes:
    """An attribute that is a string."""
    return attribute(kind, value.encode() + b"\0")


def attributes(data: bytes) -> dict[int, bytes]:
    """The attributes in ``data`` by kind; what is cut short is left out."""
    found = {}
    position = 0
    while position + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, position)
        if length < _ATTRIBUTE.size or position + length > len(data):
            break
        found[kind & _TYPE_MASK] = data[position + _ATTRIBUTE.size : position + length]
        position += (length + 3) & ~3
    return found


def message(kind: int, flags: int, sequence: int, body: bytes) -> bytes:
    """A message as it goes over the socket."""
    return _HEADER.pack(_HEADER.size + len(body), kind, flags, sequence, 0) + body


def split(data: bytes) -> Iterator[tuple[Message, int]]:
    """The messages of one datagram, each with its sequence number."""
    position = 0
    while position + _HEADER.size <= len(data):
        length, kind, _flags, sequence, _port = _HEADER.unpack_from(data, position)
        if length < _HEADER.size or position + length > len(data):
            return
        yield Message(kind, data[position + _HEADER.size : position + length]), sequence
        position += (length + 3) & ~3


class Netlink:
    """A netlink socket in the network namespace in which it is made."""

    def __init__(self, family: int) -> None:
        self.socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, family
        )
        self.socket.bind((0, 0))
        self._sequence = 0

    def close(self) -> None:
        """Close the socket."""
        self.socket.close()

    def request(self, kind: int, flags: int, body: bytes) -> list[Message]:
        """Ask, and wait for the acknowledgement or the end of the dump.

        Raises:
            NetlinkError: the kernel's answer was an error.
        """
        self._sequence += 1
        dump = flags & DUMP == DUMP
        self.socket.send(
            message(kind, REQUEST | flags | (0 if dump else ACK), self._sequence, body)
        )
        return self._answers(self._sequence)

    def batch(self, messages: Iterable[tuple[int, int, bytes]], begin: bytes) -> None:
        """Send netfilter messages that take effect together, or not at all.

        Raises:
            NetlinkError: one of them was refused.
        """
        first = self._sequence + 1
        parts = [message(0x10, REQUEST, first, begin)]
        sequence = first
        listed = list(messages)
        for index, (kind, flags, body) in enumerate(listed):
            sequence += 1
            # Older kernels do not acknowledge the end of a batch.
            last = ACK if index == len(listed) - 1 else 0
            parts.append(message(kind, REQUEST | flags | last, sequence, body))
        self._sequence = sequence + 1
        parts.append(message(0x11, REQUEST, self._sequence, begin))
        self.socket.send(b"".join(parts))
        while True:
            for answer, number in split(self.socket.recv(1 << 16)):
                if number >= first and answer.kind == _ERROR:
                    _raise(answer)
                    return

    def _answers(self, sequence: int) -> list[Message]:
        found: list[Message] = []
        while True:
            for answer, number in split(self.socket.recv(1 << 18)):
                if number != sequence:
                    continue
                if answer.kind == _ERROR:
                    _raise(answer)
                    return found
                if answer.kind == _DONE:
                    return found
                found.append(answer)


def _raise(answer: Message) -> None:
    (number,) = struct.unpack_from("=i", answer.body)
    if number:
        raise NetlinkError(-number, os.strerror(-number))


def is_absent(error: OSError) -> bool:
    """Whether an error says that what was to be removed is not there."""
    return error.errno in (errno.ENODEV, errno.ENOENT, errno.ESRCH)
