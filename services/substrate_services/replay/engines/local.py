"""Runs on the host of one WorldService, over gRPC."""

from __future__ import annotations

import json

import grpc
import grpc.aio

from substrate_sdk._pb.substrate.world.v1alpha1 import execs_pb2, world_service_pb2_grpc, worlds_pb2
from substrate_sdk.errors import from_rpc_error
from substrate_services.replay.engines.base import CannotRestore, MissingPath, RestoredWorld

AGENT = "substrate-replay"


class LocalEngine:
    """An :class:`~substrate_services.replay.engines.base.Engine` for one host.

    Args:
        channel: to the host's WorldService.
    """

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._world = world_service_pb2_grpc.WorldServiceStub(channel)

    async def restore(
        self, span_id: str, *, request_id: str, use_host_base: bool, keep: bool
    ) -> RestoredWorld:
        """See :class:`Engine`."""
        request = worlds_pb2.CreateWorldRequest(
            request_id=request_id,
            cwd=b"/",
            agent_id=AGENT,
            keep=keep,
            source=worlds_pb2.WorldSource(before_span_id=span_id, use_host_base=use_host_base),
        )
        try:
            answer = await self._world.CreateWorld(request)
        except grpc.aio.AioRpcError as error:
            told = from_rpc_error(error)
            if told.reason != "NOT_RESTORABLE":
                raise
            raise CannotRestore(str(told), _missing(told.metadata.get("missing", "[]"))) from error
        missing = tuple(MissingPath(path, "the host's base was used") for path in answer.missing)
        return RestoredWorld(answer.world.world_id, missing)

    async def run(self, world_id: str, span_id: str, *, exec_id: str) -> str:
        """See :class:`Engine`."""
        started = await self._world.StartExec(
            execs_pb2.StartExecRequest(
                world_id=world_id,
                exec_id=exec_id,
                agent_id=AGENT,
                recorded=execs_pb2.RecordedAction(span_id=span_id),
            )
        )
        await self._world.WaitExec(execs_pb2.WaitExecRequest(world_id=world_id, exec_id=exec_id))
        return started.exec.span_id

    async def remove(self, world_id: str) -> None:
        """See :class:`Engine`."""
        await self._world.RemoveWorld(worlds_pb2.RemoveWorldRequest(world_id=world_id))


def _missing(text: str) -> tuple[MissingPath, ...]:
    try:
        listed = json.loads(text)
        return tuple(MissingPath(item["path"].encode(), item["reason"]) for item in listed)
    except (ValueError, KeyError, TypeError, AttributeError):
        return ()  # cut on its way; the message itself names the first
