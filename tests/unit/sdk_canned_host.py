"""A host whose facts are canned, to test the mechanics of clients: loss, resumption, forks.

It serves the real contract over the real gRPC stack; only what happens behind it is made up. What
a host truly does is tested against a true one, in tests/e2e.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import SimpleQueue
from threading import Thread
from types import TracebackType
from typing import Any, Self, TypeAlias

import grpc
import grpc.aio
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2

from substrate_sdk._pb.substrate.common.v1alpha1 import types_pb2
from substrate_sdk._pb.substrate.world.v1alpha1 import (
    execs_pb2,
    files_pb2,
    world_service_pb2_grpc,
    worlds_pb2,
)

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

WORLD_ID = "wld_canned"


@dataclass
class Script:
    """What the host does next.

    Attributes:
        cut_after: StreamExec is aborted with UNAVAILABLE after these many answers, each once.
        refuse: RPC name -> how often it is answered with UNAVAILABLE.
        not_built: RPC names that are answered with NOT_BUILT.
        output: what a command writes: (stream, bytes).
        reads_stdin: the command echoes its standard input.
        hold: commands stay running until a signal comes,
        hold_for: or this one, where it is not empty.
    """

    cut_after: list[int] = field(default_factory=list)
    refuse: dict[str, int] = field(default_factory=dict)
    not_built: set[str] = field(default_factory=set)
    output: list[tuple[execs_pb2.OutputStream.ValueType, bytes]] = field(
        default_factory=lambda: [
            (execs_pb2.OUTPUT_STREAM_STDOUT, b"out\n"),
            (execs_pb2.OUTPUT_STREAM_STDERR, b"err\n"),
        ]
    )
    reads_stdin: bool = False
    hold: bool = False
    hold_for: str = ""
    exit_code: int = 0


class CannedWorlds(world_service_pb2_grpc.WorldServiceServicer):
    """The WorldService, canned."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.calls: list[str] = []
        self.requests: list[object] = []
        self.offsets: list[int] = []
        self.signals: list[str] = []
        self.stdin = b""
        self.stdin_eof = asyncio.Event()
        self.released = asyncio.Event()
        self.signalled: SimpleQueue[str] = SimpleQueue()
        self.execs: dict[str, execs_pb2.StartExecRequest] = {}

    async def _note(self, name: str, request: object, context: Context) -> None:
        self.calls.append(name)
        self.requests.append(request)
        if self.script.refuse.get(name, 0) > 0:
            self.script.refuse[name] -= 1
            await context.abort(grpc.StatusCode.UNAVAILABLE, "going down")
        if name in self.script.not_built:
            await abort(context, grpc.StatusCode.UNIMPLEMENTED, "NOT_BUILT", f"{name}: not built")

    async def CreateWorld(  # noqa: N802 # gRPC's name
        self, request: worlds_pb2.CreateWorldRequest, context: Context
    ) -> worlds_pb2.CreateWorldResponse:
        await self._note("CreateWorld", request, context)
        return worlds_pb2.CreateWorldResponse(
            world=worlds_pb2.World(
                world_id=WORLD_ID,
                session_id=request.session_id or "ses_canned",
                cwd=request.cwd,
                project=request.cwd,
                profile=request.profile or "workspace",
                network=request.network,
                keep=request.keep,
            )
        )

    async def GetWorld(  # noqa: N802 # gRPC's name
        self, request: worlds_pb2.GetWorldRequest, context: Context
    ) -> worlds_pb2.GetWorldResponse:
        await self._note("GetWorld", request, context)
        if request.world_id != WORLD_ID:
            text = f"world {request.world_id}: there is no such world"
            await abort(context, grpc.StatusCode.NOT_FOUND, "WORLD_NOT_FOUND", text)
        return worlds_pb2.GetWorldResponse(
            world=worlds_pb2.World(world_id=WORLD_ID, session_id="ses_canned", cwd=b"/work")
        )

    async def RemoveWorld(  # noqa: N802 # gRPC's name
        self, request: worlds_pb2.RemoveWorldRequest, context: Context
    ) -> worlds_pb2.RemoveWorldResponse:
        await self._note("RemoveWorld", request, context)
        return worlds_pb2.RemoveWorldResponse()

    async def StartExec(  # noqa: N802 # gRPC's name
        self, request: execs_pb2.StartExecRequest, context: Context
    ) -> execs_pb2.StartExecResponse:
        await self._note("StartExec", request, context)
        return execs_pb2.StartExecResponse(exec=self._start(request))

    def _start(self, request: execs_pb2.StartExecRequest) -> execs_pb2.Exec:
        self.execs[request.exec_id] = request
        made = execs_pb2.Exec(
            exec_id=request.exec_id,
            world_id=request.world_id,
            span_id="00112233445566aa",
            session_id="ses_canned",
            pid=2,
            state=execs_pb2.EXEC_STATE_RUNNING,
        )
        if request.shell == b"denied":
            made.state = execs_pb2.EXEC_STATE_FINISHED
            made.result.CopyFrom(
                types_pb2.ExecResult(
                    exit_code=126,
                    termination_reason=types_pb2.TERMINATION_REASON_DENIED,
                    decision=types_pb2.Decision(
                        action=types_pb2.DECISION_ACTION_DENY,
                        rule_id="no-denied",
                        reason="it says so",
                        source="policy.yaml:3",
                        enforced=True,
                    ),
                    span_id="00112233445566aa",
                )
            )
        return made

    async def StreamExec(  # noqa: N802 # gRPC's name
        self, request: execs_pb2.StreamExecRequest, context: Context
    ) -> AsyncIterator[execs_pb2.StreamExecResponse]:
        await self._note("StreamExec", request, context)
        self.offsets.append(request.offset)
        if request.HasField("start"):
            made = self._start(request.start)
            if made.HasField("result"):
                yield execs_pb2.StreamExecResponse(finished=made.result)
                return
        cut = self.script.cut_after.pop(0) if self.script.cut_after else None
        sent = 0
        offset = 0
        for stream, data in await self._output():
            offset += 24 + len(data)
            if offset <= request.offset:
                continue
            if sent == cut:
                await context.abort(grpc.StatusCode.UNAVAILABLE, "cut")
            sent += 1
            yield execs_pb2.StreamExecResponse(
                output=execs_pb2.Output(stream=stream, data=data, next_offset=offset)
            )
        if sent == cut:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "cut")
        while self.script.hold and not self.released.is_set():
            yield execs_pb2.StreamExecResponse(keepalive=execs_pb2.Keepalive())
            await self.released.wait()
        yield execs_pb2.StreamExecResponse(finished=self._result(request.exec_id))

    async def _output(self) -> list[tuple[execs_pb2.OutputStream.ValueType, bytes]]:
        if not self.script.reads_stdin:
            return self.script.output
        await self.stdin_eof.wait()
        return [(execs_pb2.OUTPUT_STREAM_STDOUT, self.stdin)]

    def _result(self, exec_id: str) -> types_pb2.ExecResult:
        killed = self.signals[-1].removeprefix("SIG") if self.signals else ""
        if killed:
            return types_pb2.ExecResult(
                signal=f"SIG{killed}",
                termination_reason=types_pb2.TERMINATION_REASON_KILLED_BY_USER,
                exec_id=exec_id,
                span_id="00112233445566aa",
                world_id=WORLD_ID,
            )
        return types_pb2.ExecResult(
            exit_code=self.script.exit_code,
            termination_reason=types_pb2.TERMINATION_REASON_EXITED,
            exec_id=exec_id,
            span_id="00112233445566aa",
            world_id=WORLD_ID,
        )

    async def WriteStdin(  # noqa: N802 # gRPC's name
        self, request: execs_pb2.WriteStdinRequest, context: Context
    ) -> execs_pb2.WriteStdinResponse:
        # As the contract says: by offset, so that what is sent twice is written once.
        fresh = request.data[max(0, len(self.stdin) - request.offset) :]
        self.stdin += fresh
        if request.eof:
            self.stdin_eof.set()
        await self._note("WriteStdin", request, context)
        return execs_pb2.WriteStdinResponse(offset=len(self.stdin))

    async def SignalExec(  # noqa: N802 # gRPC's name
        self, request: execs_pb2.SignalExecRequest, context: Context
    ) -> execs_pb2.SignalExecResponse:
        await self._note("SignalExec", request, context)
        self.signals.append(request.signal)
        name = f"SIG{request.signal.removeprefix('SIG')}"
        if self.script.hold_for in ("", name):
            self.released.set()
        self.signalled.put(name)
        return execs_pb2.SignalExecResponse()

    async def WriteFile(  # noqa: N802 # gRPC's name
        self,
        request_iterator: AsyncIterator[files_pb2.WriteFileRequest],
        context: Context,
    ) -> files_pb2.WriteFileResponse:
        parts = [part async for part in request_iterator]
        await self._note("WriteFile", parts[0], context)
        size = sum(len(part.data) for part in parts)
        return files_pb2.WriteFileResponse(
            result=types_pb2.ExecResult(exit_code=0, span_id=f"{size:016x}")
        )

    async def ReadFile(  # noqa: N802 # gRPC's name
        self, request: files_pb2.ReadFileRequest, context: Context
    ) -> AsyncIterator[files_pb2.ReadFileResponse]:
        await self._note("ReadFile", request, context)
        if request.path == b"missing":
            await abort(context, grpc.StatusCode.NOT_FOUND, "FILE_NOT_FOUND", "missing: not there")
        for start in range(request.offset, 10):
            yield files_pb2.ReadFileResponse(data=b"0123456789"[start : start + 1])


async def abort(context: Context, code: grpc.StatusCode, reason: str, text: str) -> None:
    """End a call as services of ours do: with ErrorInfo in the status details."""
    detail = any_pb2.Any()
    detail.Pack(error_details_pb2.ErrorInfo(reason=reason, domain="substrate"))
    status = status_pb2.Status(code=code.value[0], message=text, details=[detail])
    key = "grpc-status-details-bin"
    await context.abort(code, text, ((key, status.SerializeToString()),))


class CannedHost:
    """The host in a thread of this process, for as long as a ``with`` block."""

    def __init__(self, path: str, script: Script | None = None) -> None:
        self.path = path
        self.script = script or Script()
        self.port = 0
        self._started: Future[CannedWorlds] = Future()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._end: asyncio.Event | None = None
        self._thread = Thread(target=lambda: asyncio.run(self._serve()))

    @property
    def endpoint(self) -> str:
        return f"unix://{self.path}"

    @property
    def worlds(self) -> CannedWorlds:
        return self._started.result()

    def wait_for_signal(self, name: str) -> None:
        """Wait until this signal came next."""
        assert self.worlds.signalled.get(timeout=20) == name

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._end = asyncio.Event()
        server = grpc.aio.server()
        worlds = CannedWorlds(self.script)
        world_service_pb2_grpc.add_WorldServiceServicer_to_server(worlds, server)
        server.add_insecure_port(f"unix:{self.path}")
        self.port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        self._started.set_result(worlds)
        await self._end.wait()
        await server.stop(0)

    def __enter__(self) -> Self:
        self._thread.start()
        self._started.result(10)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._loop is not None
        assert self._end is not None
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(10)
        assert not self._thread.is_alive(), "the canned host does not end"
