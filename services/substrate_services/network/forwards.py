"""Streams between the host and worlds: exposed ports, and services of the host's loopback.

Either end may be hostile: it may connect without an end, never read, never answer, or never close.
Streams are counted, of each peer and of all, and one of which an end has closed goes when the other
has long been silent.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
from collections import Counter
from collections.abc import Awaitable, Callable

_EACH_LIMIT = 512
_TOTAL_LIMIT = 4_096
_CHUNK = 1 << 16
_CONNECT_S = 10.0
_HALF_CLOSED_S = 300.0
Connect = Callable[[], Awaitable[socket.socket]]


class Streams:
    """How many streams all forwards of a helper carry.

    Args:
        each: of one peer through one forward.
        total: of all; as many as this process has descriptors for where it is not given.
    """

    def __init__(self, each: int = _EACH_LIMIT, total: int | None = None) -> None:
        self._each = each
        if total is None:
            # Two descriptors each; what is left is the resolver's, and everything else's.
            total = min(_TOTAL_LIMIT, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4)
        self._total = total
        self._of: Counter[tuple[object, str]] = Counter()

    def enter(self, forward: object, peer: str) -> bool:
        """Count a stream; False where it is one too many."""
        if self._of[forward, peer] >= self._each or self._of.total() >= self._total:
            return False
        self._of[forward, peer] += 1
        return True

    def leave(self, forward: object, peer: str) -> None:
        """It has ended."""
        self._of[forward, peer] -= 1
        if not self._of[forward, peer]:
            del self._of[forward, peer]


class Forward:
    """A listener whose connections are carried to where ``connect`` leads.

    Args:
        listener: takes the connections.
        connect: makes the other end of one.
        streams: counts them.
        crowded: told of the address of a peer that had one too many.
    """

    def __init__(
        self,
        listener: socket.socket,
        connect: Connect,
        streams: Streams,
        crowded: Callable[[str], None],
    ) -> None:
        self._listener = listener
        self._connect = connect
        self._counted = streams
        self._crowded = crowded
        self._server: asyncio.Server | None = None
        self._streams: set[asyncio.StreamWriter] = set()

    async def start(self) -> None:
        """Begin to take connections."""
        self._server = await asyncio.start_server(self._take, sock=self._listener)

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

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = str((writer.get_extra_info("peername") or ("",))[0])
        if not self._counted.enter(self, peer):
            writer.transport.abort()
            self._crowded(peer)
            return
        try:
            await self._carry(reader, writer)
        finally:
            self._counted.leave(self, peer)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._streams.add(writer)
        other: asyncio.StreamWriter | None = None
        try:
            async with asyncio.timeout(_CONNECT_S):
                there = await self._connect()
            other_reader, other = await asyncio.open_connection(sock=there)
            self._streams.add(other)
            await _join(_Pump(reader, other), _Pump(other_reader, writer))
        except (OSError, TimeoutError):
            pass  # the other side is told by the end of its connection
        finally:
            for end in (writer, other):
                if end is not None:
                    self._streams.discard(end)
                    end.transport.abort() if end.transport.is_closing() else end.close()


class _Pump:
    """One direction of a stream."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self.moved = 0

    async def run(self) -> None:
        while data := await self._reader.read(_CHUNK):
            self._writer.write(data)
            await self._writer.drain()
            self.moved += 1
        with contextlib.suppress(OSError):
            self._writer.write_eof()


async def _join(*pumps: _Pump) -> None:
    """Run both directions; the second ends by itself, or when it has long moved nothing."""
    tasks = {asyncio.create_task(pump.run()) for pump in pumps}
    pending = tasks
    try:
        done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        while pending and not any(task.exception() for task in done):
            moved = [pump.moved for pump in pumps]
            done, pending = await asyncio.wait(pending, timeout=_HALF_CLOSED_S)
            if moved == [pump.moved for pump in pumps]:
                break
    finally:
        for task in pending:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


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
