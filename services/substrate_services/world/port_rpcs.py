"""The ports of WorldService on the wire."""

from __future__ import annotations

import asyncio

from substrate_sdk._pb.substrate.world.v1alpha1 import ports_pb2
from substrate_services.wire import validation
from substrate_services.wire.errors import Context
from substrate_services.world.ports import Ports
from substrate_services.world.worlds import Worlds


class PortRpcs:
    """A part of :class:`~substrate_services.world.server.WorldServicer`."""

    _worlds: Worlds
    _ports: Ports

    async def ExposePort(
        self, request: ports_pb2.ExposePortRequest, context: Context
    ) -> ports_pb2.ExposePortResponse:
        """See the contract."""
        world = self._worlds.get(request.world_id)
        address = await self._ports.expose(world, request.port)
        return ports_pb2.ExposePortResponse(address=address)

    async def UnexposePort(
        self, request: ports_pb2.UnexposePortRequest, context: Context
    ) -> ports_pb2.UnexposePortResponse:
        """See the contract."""
        await self._ports.unexpose(self._worlds.get(request.world_id), request.port)
        return ports_pb2.UnexposePortResponse()

    async def ListPorts(
        self, request: ports_pb2.ListPortsRequest, context: Context
    ) -> ports_pb2.ListPortsResponse:
        """See the contract."""
        world = self._worlds.get(request.world_id)
        size = validation.page_size(request.page_size)
        query = {"world_id": request.world_id}
        start = validation.page_offset(request.page_token, query)
        found = list((await asyncio.to_thread(self._ports.all, world)).items())
        more = start + size < len(found)
        return ports_pb2.ListPortsResponse(
            ports=[
                ports_pb2.Port(port=port, address=address)
                for port, address in found[start : start + size]
            ],
            next_page_token=validation.page_token(str(start + size), query) if more else "",
        )
