"""The broker of the same process, without a socket in between.

The World asks it before every step. Through gRPC the host would be its own client, which takes
longer than most decisions, and longer than some commands.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from substrate_sdk._pb.substrate.broker.v1alpha1 import broker_pb2
from substrate_services.broker.server import BrokerServicer

if TYPE_CHECKING:
    from substrate_services.wire.errors import Context


class LocalBroker:
    """Calls a servicer as a stub would: the same messages, and its errors as they are.

    Args:
        servicer: of this process.
    """

    def __init__(self, servicer: BrokerServicer) -> None:
        self._servicer = servicer
        # Nobody has called: there is no connection to look at or to end, and no deadline.
        self._nobody = cast("Context", None)

    async def Evaluate(  # noqa: N802 # gRPC's name
        self, request: broker_pb2.EvaluateRequest, /
    ) -> broker_pb2.EvaluateResponse:
        """See the contract."""
        return await self._servicer.Evaluate(request, self._nobody)

    async def GetPolicy(  # noqa: N802 # gRPC's name
        self, request: broker_pb2.GetPolicyRequest, /
    ) -> broker_pb2.GetPolicyResponse:
        """See the contract."""
        return await self._servicer.GetPolicy(request, self._nobody)
