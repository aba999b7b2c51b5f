"""Ports of worlds on the host's loopback, and services of the host's loopback in the router."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from substrate_services.network.addresses import HOST_V4, HOST_V6
from substrate_services.network.forwards import Connect, Forward, Streams, connect_first
from substrate_services.network.inits import Init, follow
from substrate_services.network.inside import InsideError
from substrate_services.network.rules import Address

log = logging.getLogger(__name__)


class Ask(Protocol):
    """Has something done in the router; see :class:`~substrate_services.network.hand.Hand`."""

    async def __call__(self, op: str, **arguments: object) -> tuple[dict[str, object], list[int]]:
        """What it says, and descriptors. Raises InsideError."""
        ...


@dataclass(slots=True)
class _Exposed:
    world_id: str
    port: int
    init: Init
    forward: Forward
    pidfd: int = -1


class ExposedPorts:
    """Ports of worlds that the host can reach.

    Args:
        ask: has sockets made in worlds.
        streams: counts what is carried.
        ended: called when the init of a world with such a port has ended.
    """

    def __init__(self, ask: Ask, streams: Streams, ended: Callable[[], None]) -> None:
        self._ask = ask
        self._streams = streams
        self._ended = ended
        self._exposed: dict[tuple[str, int], _Exposed] = {}

    def __len__(self) -> int:
        return len(self._exposed)

    def address_of(self, world_id: str, init: Init, port: int) -> str | None:
        """Where a port is; None where it is not, or was another box's, which ends."""
        known = self._exposed.get((world_id, port))
        if known is not None and known.init != init:
            self._close(known)
            return None
        return known.forward.address if known is not None else None

    async def expose(self, world_id: str, init: Init, port: int, wanted: int) -> str:
        """Listen on the host's loopback for a port of a world; returns where."""
        address = f"port {port} of world {world_id}"
        forward = Forward(
            _loopback_listener(wanted),
            self._into(init, port),
            self._streams,
            lambda _peer: log.warning("%s has too many connections; one was refused", address),
        )
        await forward.start()
        made = self._exposed[world_id, port] = _Exposed(world_id, port, init, forward)
        with contextlib.suppress(OSError):
            made.pidfd = follow(init)
            asyncio.get_running_loop().add_reader(made.pidfd, lambda: self._init_ended(made))
        return forward.address

    def close(self, world_id: str | None = None, port: int | None = None) -> None:
        """End that; of all worlds, and all ports, where there is None."""
        for exposed in list(self._exposed.values()):
            if world_id in (None, exposed.world_id) and port in (None, exposed.port):
                self._close(exposed)

    def _init_ended(self, exposed: _Exposed) -> None:
        self._close(exposed)
        self._ended()

    def _close(self, exposed: _Exposed) -> None:
        exposed.forward.close()
        if exposed.pidfd >= 0:
            asyncio.get_running_loop().remove_reader(exposed.pidfd)
            os.close(exposed.pidfd)
            exposed.pidfd = -1
        if self._exposed.get((exposed.world_id, exposed.port)) is exposed:
            del self._exposed[exposed.world_id, exposed.port]

    def _into(self, init: Init, port: int) -> Connect:
        async def connect() -> socket.socket:
            sockets = []
            for address, is_6 in (("127.0.0.1", False), ("::1", True)):
                try:
                    _, (made,) = await self._ask(
                        "connect", pid=init.pid, started=init.started, v6=is_6
                    )
                except InsideError as error:
                    raise OSError(str(error)) from error
                sockets.append((socket.socket(fileno=made), (address, port)))
            return await connect_first(sockets)

        return connect


class HostServices:
    """Services of the host's loopback that worlds may use, as ``host`` in the router.

    Args:
        ask: has sockets made in the router.
        streams: counts what is carried.
        crowded: told of the address in the router, the service, and the world's address, where a
            world had one connection too many.
    """

    def __init__(
        self, ask: Ask, streams: Streams, crowded: Callable[[Address, int, str], None]
    ) -> None:
        self._ask = ask
        self._streams = streams
        self._crowded = crowded
        self._services: dict[int, list[Forward]] = {}

    async def serve(self, ports: Iterable[int]) -> None:
        """Listen for these ports of the host, and no others."""
        wanted = set(ports)
        for port in self._services.keys() - wanted:
            for forward in self._services.pop(port):
                forward.close()
        for port in wanted - self._services.keys():
            forwards: list[Forward] = []
            for address in (HOST_V4, HOST_V6):
                try:
                    _, (listener,) = await self._ask("listen", address=str(address), port=port)
                except InsideError:
                    if address.version == 4:
                        raise
                    continue  # no IPv6 here
                forwards.append(await self._forward(listener, address, port))
            self._services[port] = forwards

    async def _forward(self, listener: int, address: Address, port: int) -> Forward:
        forward = Forward(
            socket.socket(fileno=listener),
            _to_loopback(port),
            self._streams,
            lambda peer: self._crowded(address, port, peer),
        )
        await forward.start()
        return forward

    def close(self) -> None:
        """Listen for none."""
        for forwards in self._services.values():
            for forward in forwards:
                forward.close()
        self._services.clear()


def _loopback_listener(port: int) -> socket.socket:
    """On a port of the caller's choosing where it is free, else on any."""
    for number in dict.fromkeys((port, 0)):
        made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            made.bind(("127.0.0.1", number))
        except OSError:
            made.close()
            if number == 0:
                raise
            continue
        made.listen(128)
        return made
    raise OSError("no free port")


def _to_loopback(port: int) -> Callable[[], Awaitable[socket.socket]]:
    async def connect() -> socket.socket:
        return await connect_first(
            [
                (socket.socket(socket.AF_INET, socket.SOCK_STREAM), ("127.0.0.1", port)),
                (socket.socket(socket.AF_INET6, socket.SOCK_STREAM), ("::1", port)),
            ]
        )

    return connect
