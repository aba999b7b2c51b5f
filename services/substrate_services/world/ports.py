"""Ports of worlds that the host can reach, kept as long as the world is."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path

from substrate_services.errors import InvalidField, ServiceError
from substrate_services.journal.codec import lifecycle_line
from substrate_services.journal.jsontypes import JsonValue
from substrate_services.journal.writer import Journal
from substrate_services.world.networks import Networks
from substrate_services.world.worlds import World

log = logging.getLogger(__name__)

_FILE = "ports.json"
_PORTS_LIMIT = 64


class Ports:
    """The exposed ports of one host's worlds.

    Args:
        networks: carries the connections.
        journal: hears of every change.
    """

    def __init__(self, networks: Networks, journal: Journal) -> None:
        self._networks = networks
        self._journal = journal
        self._turn = asyncio.Lock()

    async def expose(self, world: World, port: int) -> str:
        """Make a port reachable on the host's loopback; returns where. Idempotent.

        Raises:
            InvalidField: it is no port, or there are too many.
            ServiceError: WORLD_LOST, NO_NETWORK.
        """
        if not 0 < port < 65536:
            raise InvalidField("port", port, "expected 1 to 65535")
        if world.box is None or world.lost:
            raise ServiceError("WORLD_LOST", f"world {world.spec.world_id} has ended; make another")
        async with self._turn:
            known = _load(world.directory)
            if port not in known and len(known) >= _PORTS_LIMIT:
                raise InvalidField("port", port, f"expected at most {_PORTS_LIMIT} of a world")
            address = await self._networks.expose(
                world.spec.world_id, world.box, port, _port_of(known.get(port, ""))
            )
            if known.get(port) != address:
                await asyncio.to_thread(_save, world.directory, known | {port: address})
                self._log(world, "port_exposed", {"port": port, "address": address})
            world.touch()
        return address

    async def unexpose(self, world: World, port: int) -> None:
        """End that; it need not be."""
        async with self._turn:
            known = _load(world.directory)
            await self._networks.unexpose(world.spec.world_id, port)
            if known.pop(port, None) is not None:
                await asyncio.to_thread(_save, world.directory, known)
                self._log(world, "port_unexposed", {"port": port})

    def all(self, world: World) -> dict[int, str]:
        """The exposed ports and where they are on the host."""
        return dict(sorted(_load(world.directory).items()))

    async def restore(self, world: World) -> None:
        """Expose again what was, for a new host process or a new box; where it was if it can be."""
        for port in _load(world.directory):
            try:
                await self.expose(world, port)
            except ServiceError as error:
                log.warning("port %s of world %s: %s", port, world.spec.world_id, error)

    def _log(self, world: World, event_type: str, detail: dict[str, JsonValue]) -> None:
        self._journal.append(
            lifecycle_line(
                event_type,
                session_id=world.spec.session_id,
                world_id=world.spec.world_id,
                agent_id=world.spec.agent_id,
                detail=detail,
            )
        )


def _port_of(address: str) -> int:
    port = address.rpartition(":")[2]
    return int(port) if port else 0


def _load(directory: Path) -> dict[int, str]:
    try:
        found = json.loads((directory / _FILE).read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return {int(port): str(address) for port, address in found.items()}


def _save(directory: Path, ports: dict[int, str]) -> None:
    scratch = directory / f"{_FILE}.new"
    scratch.write_text(json.dumps(ports))
    scratch.replace(directory / _FILE)
