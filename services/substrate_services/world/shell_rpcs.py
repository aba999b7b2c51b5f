"""The shells of WorldService on the wire."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from substrate_sdk._pb.substrate.world.v1alpha1 import execs_pb2, shells_pb2
from substrate_services.errors import InvalidField, ServiceError
from substrate_services.wire import validation
from substrate_services.wire.convert import result_to_proto
from substrate_services.world.execs import Execs
from substrate_services.world.following import followed
from substrate_services.world.messages import checked_env, output_to_proto
from substrate_services.world.output_log import Frame, OutputLogCorrupt
from substrate_services.world.shells import (
    COMMAND_LIMIT_BYTES,
    STDIN_LIMIT_BYTES,
    OpenRequest,
    Shells,
)
from substrate_services.world.steps import ExecRequest
from substrate_services.world.worlds import Worlds

if TYPE_CHECKING:
    from substrate_services.wire.errors import Context


class ShellRpcs:
    """A part of :class:`~substrate_services.world.server.WorldServicer`."""

    _worlds: Worlds
    _execs: Execs
    _shells: Shells

    async def OpenShell(
        self, request: shells_pb2.OpenShellRequest, context: Context
    ) -> shells_pb2.OpenShellResponse:
        """See the contract."""
        world = self._worlds.get(request.world_id)
        cwd = request.cwd if request.HasField("cwd") else None
        if cwd is not None and b"\0" in cwd:
            raise InvalidField("cwd", cwd, "it cannot contain a NUL byte")
        shell = await self._shells.open(
            world, OpenRequest(request.shell_id, checked_env("env", request.env), cwd)
        )
        return shells_pb2.OpenShellResponse(shell_id=shell.shell_id)

    async def RunShell(
        self, request: shells_pb2.RunShellRequest, context: Context
    ) -> AsyncIterator[shells_pb2.RunShellResponse]:
        """See the contract."""
        world = self._worlds.get(request.world_id)
        exec_ = await self._shells.run(
            world, request.shell_id, _exec_request(request), request.stdin
        )
        size = exec_.output_log.stat().st_size if exec_.output_log.exists() else 0
        if request.offset > size:
            raise ServiceError(
                "OFFSET_BEYOND_END",
                f"offset {request.offset} is beyond the {size} bytes of output",
            )
        try:
            if exec_.output_log.exists():
                async for frame in followed(exec_, request.offset):
                    yield _streamed(frame)
        except OutputLogCorrupt as error:
            raise ServiceError("OFFSET_BEYOND_END", str(error)) from error
        record = await self._execs.wait(world, exec_)
        yield shells_pb2.RunShellResponse(finished=result_to_proto(record))

    async def InterruptShell(
        self, request: shells_pb2.InterruptShellRequest, context: Context
    ) -> shells_pb2.InterruptShellResponse:
        """See the contract."""
        await self._shells.interrupt(self._worlds.get(request.world_id), request.shell_id)
        return shells_pb2.InterruptShellResponse()

    async def CloseShell(
        self, request: shells_pb2.CloseShellRequest, context: Context
    ) -> shells_pb2.CloseShellResponse:
        """See the contract."""
        await self._shells.close(self._worlds.get(request.world_id), request.shell_id)
        return shells_pb2.CloseShellResponse()


def _exec_request(request: shells_pb2.RunShellRequest) -> ExecRequest:
    command = validation.required_bytes("command", request.command)
    if b"\0" in command:
        raise InvalidField("command", command, "it cannot contain a NUL byte")
    _at_most("command", len(command), COMMAND_LIMIT_BYTES)
    _at_most("stdin", len(request.stdin), STDIN_LIMIT_BYTES)
    if request.traceparent:
        validation.traceparent("traceparent", request.traceparent)
    return ExecRequest(
        exec_id=validation.exec_id("exec_id", request.exec_id),
        shell=command,
        timeout_s=validation.duration_s("timeout", request.timeout)
        if request.HasField("timeout")
        else None,
        agent_id=validation.bounded_text("agent_id", request.agent_id),
        traceparent=request.traceparent,
    )


def _at_most(field: str, size: int, limit: int) -> None:
    if size > limit:
        raise ServiceError("TOO_LARGE", f"{field} has {size} bytes; at most {limit} are taken")


def _streamed(frame: Frame | None) -> shells_pb2.RunShellResponse:
    if frame is None:
        return shells_pb2.RunShellResponse(keepalive=execs_pb2.Keepalive())
    return shells_pb2.RunShellResponse(output=output_to_proto(frame))
