"""Streams between the host and worlds: exposed ports, and services of the host's loopback."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable

_CHUNK = 1 << 16
_CONNECT_S = 10.0
Connect = Callable[[], Awaitable[socket.socket]]


class Forward:
    """A listener whose connections are carried to where ``connect`` leads."""

    def __init__(self, listener: socket.socket, connect: Connect) -> None:
        self._listener = listener
        self._connect = connect
        self._server: asyncio.Server | None = None
        self._streams: set[asyncio.StreamWriter] = set()

    async def start(self) -> None:
        """Begin to take connections."""
        self._server = await asyncio.start_server(self._carry, sock=self._listener)

    @property
    def address(self) -> str:
        """Where it listens."""
        host, port = self._listener.getsockname()[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def close(self) -> None:
        """Take no connections any more, and cut those there are."""
        if self._server is not None:
            self._server.close()
        for writer in list(self._streams):
            writer.transport.abort()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._streams.add(writer)
        other: asyncio.StreamWriter | None = None
        try:
            async with asyncio.timeout(_CONNECT_S):
                there = await self._connect()
            other_reader, other = await asyncio.open_connection(sock=there)
            self._streams.add(other)
            async with asyncio.TaskGroup() as group:
                group.create_task(_pump(reader, other))
                group.create_task(_pump(other_reader, writer))
        except* (OSError, TimeoutError):
            pass  # the other side is told by the end of its connection
        finally:
            for end in (writer, other):
                if end is not None:
                    self._streams.discard(end)
                    end.transport.abort() if end.transport.is_closing() else end.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(_CHUNK):
        writer.write(data)
        await writer.drain()
    with contextlib.suppress(OSError):
        writer.write_eof()


async def connect_first(sockets: list[tuple[socket.socket, tuple[str, int]]]) -> socket.socket:
    """The first of some sockets that reaches its address; the others are closed.

    Raises:
        OSError: none did.
    """
    loop = asyncio.get_running_loop()
    problem: OSError = OSError("nowhere to connect to")
    connected: socket.socket | None = None
    for sock, address in sockets:
        if connected is not None:
            sock.close()
            continue
        sock.setblocking(False)
        try:
            await loop.sock_connect(sock, address)
            connected = sock
        except OSError as error:
            sock.close()
            problem = error
    if connected is None:
        raise problem
    return connected
