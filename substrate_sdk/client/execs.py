"""A command that runs in a world, as a live handle: asynchronous."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Callable

from substrate_sdk._facts import Decision, Output, OutputStream
from substrate_sdk._pb.substrate.common.v1alpha1 import types_pb2
from substrate_sdk._pb.substrate.world.v1alpha1 import execs_pb2
from substrate_sdk._results import Result
from substrate_sdk.client import methods
from substrate_sdk.client.connection import Answers, Connection
from substrate_sdk.errors import CallTimeout, StdinClosed, SubstrateError

#: Bytes of standard input in one request.
STDIN_PIECE = 64 << 10

OutputCallback = Callable[[Output], None]


class AsyncStdin:
    """The standard input of an exec."""

    def __init__(self, connection: Connection, world_id: str, exec_id: str) -> None:
        self._connection = connection
        self._world_id = world_id
        self._exec_id = exec_id
        self._offset = 0

    async def write(self, data: bytes) -> None:
        """Write all of it; returns when the world has it.

        Raises:
            StdinClosed: the command has closed it or is over (a BrokenPipeError).
        """
        view = memoryview(data)
        for start in range(0, len(view), STDIN_PIECE):
            piece = bytes(view[start : start + STDIN_PIECE])
            await self._send(execs_pb2.WriteStdinRequest(data=piece))
            self._offset += len(piece)

    async def close(self) -> None:
        """Say that no more will come. Idempotent."""
        await self._send(execs_pb2.WriteStdinRequest(eof=True))

    async def _send(self, request: execs_pb2.WriteStdinRequest) -> None:
        request.world_id = self._world_id
        request.exec_id = self._exec_id
        request.offset = self._offset
        # As long as it takes: a command may read slowly. Its end, or the host's, ends the call.
        await self._connection.unary(methods.WRITE_STDIN, request, timeout_s=None)


class AsyncOutputReader:
    """The output of an exec, live, from the start of its log; ends with the command.

    Every reader reads by itself, at its own pace, from the first byte on: none takes anything
    away from another, and a slow one holds nobody up.
    """

    def __init__(
        self,
        connection: Connection,
        world_id: str,
        exec_id: str,
        *,
        timeout_s: float | None = None,
        start: execs_pb2.StartExecRequest | None = None,
        hang_up: bool = False,
    ) -> None:
        self._request = execs_pb2.StreamExecRequest(
            world_id=world_id, exec_id=exec_id, follow=True, start=start, hang_up=hang_up
        )
        self._answers: Answers[execs_pb2.StreamExecRequest, execs_pb2.StreamExecResponse] = (
            connection.stream(methods.STREAM_EXEC, self._resume, timeout_s=timeout_s)
        )
        #: The outcome, once the command is over and recorded.
        self.finished: types_pb2.ExecResult | None = None

    def _resume(self) -> execs_pb2.StreamExecRequest:
        return self._request

    def __aiter__(self) -> AsyncIterator[Output]:
        return self

    async def __anext__(self) -> Output:
        while self.finished is None:
            answer = await anext(self._answers)
            kind = answer.WhichOneof("event")
            if kind == "output":
                self._request.offset = answer.output.next_offset
                return Output.from_proto(answer.output)
            if kind == "finished":
                self.finished = answer.finished
                await self._answers.done()
        raise StopAsyncIteration

    async def close(self) -> None:
        """Stop reading. The command goes on."""
        await self._answers.close()


class AsyncByteStream:
    """One of the streams of an exec: iterating gives its bytes as they come."""

    def __init__(self, open_reader: Callable[[], AsyncOutputReader], stream: OutputStream) -> None:
        self._open_reader = open_reader
        self._stream = stream
        self._reader: AsyncOutputReader | None = None

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if self._reader is None:
            self._reader = self._open_reader()
        async for output in self._reader:
            if output.stream == self._stream or (
                output.stream == "pty" and self._stream == "stdout"
            ):
                return output.data
        raise StopAsyncIteration

    async def read(self) -> bytes:
        """All of it that was not read yet, to the end of the command."""
        return b"".join([piece async for piece in self])

    async def close(self) -> None:
        """Stop reading."""
        if self._reader is not None:
            await self._reader.close()


class AsyncExec:
    """A command in a world. Losing this handle does not end the command.

    Attributes:
        exec_id: its id in the world.
        world_id: its world.
        session_id: its session.
        span_id: its span, 16 hex digits.
        pid: of its first process, in the world; 0 where it never ran.
        decision: what policy said.
        stdin: its standard input.
    """

    def __init__(self, connection: Connection, proto: execs_pb2.Exec) -> None:
        self._connection = connection
        self.exec_id = proto.exec_id
        self.world_id = proto.world_id
        self.session_id = proto.session_id
        self.span_id = proto.span_id
        self.pid = proto.pid
        self.decision = Decision.from_proto(proto.decision)
        self.stdin = AsyncStdin(connection, proto.world_id, proto.exec_id)
        self._stdout = AsyncByteStream(self.output, "stdout")
        self._stderr = AsyncByteStream(self.output, "stderr")
        self._result: Result | None = None
        if proto.HasField("result") and not proto.output_bytes:
            self._result = Result.from_proto(proto.result)

    @property
    def result(self) -> Result | None:
        """The outcome; None before :meth:`wait` returned."""
        return self._result

    @property
    def stdout(self) -> AsyncByteStream:
        """Its standard output, or what it writes to its terminal."""
        return self._stdout

    @property
    def stderr(self) -> AsyncByteStream:
        """Its standard error."""
        return self._stderr

    def output(self, *, timeout_s: float | None = None) -> AsyncOutputReader:
        """A reader of both streams, in order, from the first byte on."""
        return AsyncOutputReader(self._connection, self.world_id, self.exec_id, timeout_s=timeout_s)

    async def wait(
        self,
        timeout_s: float | None = None,
        *,
        on_output: OutputCallback | None = None,
        keep_output: bool = True,
        hang_up: bool = False,
    ) -> Result:
        """Wait for the end of the command and its records.

        Args:
            timeout_s: seconds to wait at most; the command goes on afterwards.
            on_output: called with each piece of output as it comes.
            keep_output: False leaves it out of the result, for output too large to hold.
            hang_up: the command ends some seconds after this process does, should it be killed.

        Raises:
            CallTimeout: it is not over (a TimeoutError).
        """
        if self._result is not None:
            return self._result
        reader = AsyncOutputReader(
            self._connection, self.world_id, self.exec_id, timeout_s=timeout_s, hang_up=hang_up
        )
        self._result = await _collect(reader, self.exec_id, on_output, keep_output=keep_output)
        return self._result

    async def feed(self, data: bytes) -> None:
        """Write all of standard input and close it; a command need not read it."""
        try:
            await self.stdin.write(data)
            await self.stdin.close()
        except StdinClosed:
            pass

    async def signal(self, name: str, *, whole_tree: bool = True) -> None:
        """Send a signal, by name: INT, SIGTERM. A finished command takes it as well, in silence.

        Args:
            name: with or without SIG.
            whole_tree: to everything that the command started, else to its first process.
        """
        await self._connection.unary(
            methods.SIGNAL_EXEC,
            execs_pb2.SignalExecRequest(
                world_id=self.world_id, exec_id=self.exec_id, signal=name, whole_tree=whole_tree
            ),
        )

    async def kill(self) -> None:
        """End it and all it started, at once."""
        await kill(self._connection, self.world_id, self.exec_id)

    async def resize(self, rows: int, columns: int) -> None:
        """Change the size of its terminal."""
        await self._connection.unary(
            methods.RESIZE_PTY,
            execs_pb2.ResizePtyRequest(
                world_id=self.world_id,
                exec_id=self.exec_id,
                size=execs_pb2.PtySize(rows=rows, columns=columns),
            ),
        )


async def run_to_end(
    connection: Connection,
    request: execs_pb2.StartExecRequest,
    on_output: OutputCallback | None = None,
) -> Result:
    """Start a command that reads nothing, and follow it to its end, in one call.

    Raises as starting it and waiting for it do; whatever ends the call otherwise ends the command.
    """
    reader = AsyncOutputReader(
        connection, request.world_id, request.exec_id, start=request, hang_up=True
    )
    try:
        return await _collect(reader, request.exec_id, on_output, keep_output=True)
    except SubstrateError:
        raise
    except BaseException:
        # Ctrl-C or a cancelled task: like subprocess.run, leave nothing running behind.
        with contextlib.suppress(SubstrateError):
            await kill(connection, request.world_id, request.exec_id)
        raise


async def kill(connection: Connection, world_id: str, exec_id: str) -> None:
    """End an exec and all it started, at once."""
    await connection.unary(
        methods.SIGNAL_EXEC,
        execs_pb2.SignalExecRequest(
            world_id=world_id, exec_id=exec_id, signal="KILL", whole_tree=True
        ),
    )


async def _collect(
    reader: AsyncOutputReader,
    exec_id: str,
    on_output: OutputCallback | None,
    *,
    keep_output: bool,
) -> Result:
    """Read to the end; the outcome with what was read."""
    kept: dict[str, list[bytes]] = {"stdout": [], "stderr": []}
    started = time.monotonic()
    try:
        async for output in reader:
            if keep_output:
                kept["stderr" if output.stream == "stderr" else "stdout"].append(output.data)
            if on_output is not None:
                on_output(output)
    except CallTimeout as error:
        spent_s = time.monotonic() - started
        raise CallTimeout(
            f"exec {exec_id} is not over after {spent_s:.1f} s; it goes on"
        ) from error
    finally:
        await reader.close()
    if reader.finished is None:
        raise CallTimeout(f"the host ended the output of exec {exec_id} without a result")
    return Result.from_proto(reader.finished, b"".join(kept["stdout"]), b"".join(kept["stderr"]))
