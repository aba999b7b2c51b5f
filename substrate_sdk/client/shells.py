"""A persistent shell in a world, asynchronous."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from substrate_sdk._facts import Output
from substrate_sdk._pb.substrate.common.v1alpha1 import types_pb2
from substrate_sdk._pb.substrate.world.v1alpha1 import shells_pb2
from substrate_sdk._results import CommandFailed, Result
from substrate_sdk.client import methods, requests
from substrate_sdk.client.connection import Answers, Connection
from substrate_sdk.client.execs import OutputCallback
from substrate_sdk.client.requests import PathLike, new_id
from substrate_sdk.errors import CallTimeout, InvalidArgument, ShellNotFound, SubstrateError


class AsyncShell:
    """A bash (or sh, where there is none) that lives from one command to the next.

    It keeps its directory, variables, functions, aliases, options and traps. Each command is a
    step of its own, with its own output, changes and record; one runs at a time, those that are
    given meanwhile wait. Made by ``AsyncWorld.shell``; as a context manager it is closed at the
    end.

    Attributes:
        shell_id: its id in the world.
    """

    def __init__(
        self, connection: Connection, request: shells_pb2.OpenShellRequest, *, agent_id: str
    ) -> None:
        self._connection = connection
        self._request = request
        self._agent_id = agent_id

    @property
    def shell_id(self) -> str:
        """Its id in the world."""
        return self._request.shell_id

    @property
    def world_id(self) -> str:
        """Its world."""
        return self._request.world_id

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            await self.close()
        else:
            # What went wrong in the block matters more than that tidying up failed too.
            with contextlib.suppress(SubstrateError):
                await self.close()

    async def run(
        self,
        command: str | bytes,
        *,
        timeout_s: float | None = None,
        stdin: bytes | str | None = None,
        check: bool = False,
        on_output: OutputCallback | None = None,
    ) -> Result:
        """Run a command in it, to its end, after those that were given before.

        A non-zero exit, an interrupt and a time-out are results, and the shell goes on. A command
        that ends the shell (``exit 3``) has the shell's exit code; the next one is refused.
        Interrupting the call (Ctrl-C, or cancelling the task) interrupts the command.

        Args:
            command: any text that the shell understands, of any number of lines.
            timeout_s: seconds after which the command and what it started are ended. The shell
                stays, unless it does not come back.
            stdin: what it reads; nothing when None. Text is sent as UTF-8.
            check: raise when the command does not exit with 0.
            on_output: called with each piece of output as it comes.

        Raises:
            ShellEnded: the shell is not there any more; the message says why.
            CommandFailed: with ``check``; it carries the result.
        """
        request = shells_pb2.RunShellRequest(
            world_id=self.world_id,
            shell_id=self.shell_id,
            exec_id=new_id("exe_"),
            command=requests.argv_or_shell(command)[1] or b"",
            stdin=(stdin.encode("utf-8") if isinstance(stdin, str) else stdin) or b"",
            agent_id=self._agent_id,
            traceparent=requests.traceparent(),
        )
        if timeout_s is not None:
            if not 0 < timeout_s < 1e9:
                raise InvalidArgument(
                    f"timeout_s: {timeout_s!r} is not a positive number of seconds"
                )
            request.timeout.FromNanoseconds(round(timeout_s * 1e9))
        try:
            result = await self._finish(request, on_output)
        except SubstrateError:
            raise
        except BaseException:
            with contextlib.suppress(SubstrateError):
                await self.interrupt()
            raise
        if check and not result.ok:
            raise CommandFailed(result)
        return result

    async def _finish(
        self, request: shells_pb2.RunShellRequest, on_output: OutputCallback | None
    ) -> Result:
        kept: dict[str, list[bytes]] = {"stdout": [], "stderr": []}
        finished: types_pb2.ExecResult | None = None
        answers: Answers[shells_pb2.RunShellRequest, shells_pb2.RunShellResponse] = (
            self._connection.stream(methods.RUN_SHELL, lambda: request)
        )
        try:
            async for answer in answers:
                kind = answer.WhichOneof("event")
                if kind == "output":
                    request.offset = answer.output.next_offset
                    output = Output.from_proto(answer.output)
                    kept["stderr" if output.stream == "stderr" else "stdout"].append(output.data)
                    if on_output is not None:
                        on_output(output)
                elif kind == "finished":
                    finished = answer.finished
                    break
        finally:
            await answers.close()
        if finished is None:
            raise CallTimeout(f"the host ended command {request.exec_id} without a result")
        return Result.from_proto(finished, b"".join(kept["stdout"]), b"".join(kept["stderr"]))

    async def interrupt(self) -> None:
        """Interrupt the command that runs, as Ctrl-C does; nothing where none runs."""
        await self._connection.unary(
            methods.INTERRUPT_SHELL,
            shells_pb2.InterruptShellRequest(world_id=self.world_id, shell_id=self.shell_id),
        )

    async def restart(self) -> None:
        """End it, with all that runs in it, and open it anew: as it was at first."""
        await self.close()
        await self._open()

    async def close(self) -> None:
        """End it and all that runs in it. Idempotent."""
        with contextlib.suppress(ShellNotFound):
            await self._connection.unary(
                methods.CLOSE_SHELL,
                shells_pb2.CloseShellRequest(world_id=self.world_id, shell_id=self.shell_id),
            )

    async def _open(self) -> None:
        self._request.request_id = new_id("req_")
        await self._connection.unary(methods.OPEN_SHELL, self._request)


async def open_shell(
    connection: Connection,
    world_id: str,
    *,
    shell_id: str | None,
    env: Mapping[str, str] | None,
    cwd: PathLike | None,
    agent_id: str,
) -> AsyncShell:
    """Open a shell in a world."""
    request = shells_pb2.OpenShellRequest(
        world_id=world_id, shell_id=shell_id or new_id("sh_"), env=requests.env_vars(env)
    )
    if cwd is not None:
        request.cwd = os.fsencode(cwd)
    shell = AsyncShell(connection, request, agent_id=agent_id)
    await shell._open()  # noqa: SLF001 # its own module
    return shell
