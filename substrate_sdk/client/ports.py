"""Ports of a world that are reachable on the loopback of its host."""

from __future__ import annotations

from substrate_sdk._pb.substrate.world.v1alpha1 import ports_pb2
from substrate_sdk.client import methods
from substrate_sdk.client.connection import Connection
from substrate_sdk.client.transport import drive


class AsyncPorts:
    """The ports of one world, asynchronous."""

    def __init__(self, connection: Connection, world_id: str) -> None:
        self._connection = connection
        self._world_id = world_id

    async def expose(self, port: int) -> str:
        """Make a server in the world reachable; returns where: ``127.0.0.1:40321``.

        It stays reachable, at the same place, until it is closed or the world is removed, whatever
        its network rules. Nothing needs to listen yet.

        Args:
            port: in the world.

        Raises:
            InvalidArgument: it is no port.
            WorldNotFound: there is no such world any more.
        """
        request = ports_pb2.ExposePortRequest(world_id=self._world_id, port=port)
        answer = await self._connection.unary(methods.EXPOSE_PORT, request)
        return answer.address

    async def list(self) -> dict[int, str]:
        """The exposed ports, and where they are on the host."""
        found: dict[int, str] = {}
        request = ports_pb2.ListPortsRequest(world_id=self._world_id)
        while True:
            answer = await self._connection.unary(methods.LIST_PORTS, request)
            found |= {item.port: item.address for item in answer.ports}
            if not answer.next_page_token:
                return found
            request.page_token = answer.next_page_token

    async def close(self, port: int) -> None:
        """Make it unreachable, and cut what is connected; it need not be exposed."""
        request = ports_pb2.UnexposePortRequest(world_id=self._world_id, port=port)
        await self._connection.unary(methods.UNEXPOSE_PORT, request)


class Ports:
    """The ports of one world; each method runs its asynchronous twin, blocking."""

    def __init__(self, inner: AsyncPorts) -> None:
        self._inner = inner

    def expose(self, port: int) -> str:
        """Make a server in the world reachable; see :meth:`AsyncPorts.expose`."""
        return drive(self._inner.expose(port))

    def list(self) -> dict[int, str]:
        """The exposed ports, and where they are on the host."""
        return drive(self._inner.list())

    def close(self, port: int) -> None:
        """Make it unreachable, and cut what is connected."""
        drive(self._inner.close(port))
