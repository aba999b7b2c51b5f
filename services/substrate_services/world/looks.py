"""Looking into a world without changing it: file operations that are no steps.

A look is done by a process of the world, as the world's user, so whatever its paths lead to is
resolved inside; its output goes through a log like a command's, and is dropped afterwards.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator

from substrate_services.world.ids import new_id
from substrate_services.world.init_client import ExecStart, ExecState, InitGone
from substrate_services.world.output_log import OutputFollower, Stream
from substrate_services.world.worlds import World

_LIMIT_BYTES = 1 << 40  # a file is given whole, however large


class Look:
    """One file operation under way."""

    def __init__(self, follower: OutputFollower) -> None:
        self._follower = follower
        self.ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def output(self) -> AsyncIterator[bytes]:
        """What the operation writes, until it ends."""
        async for frame in self._follower.frames():
            if frame.stream is Stream.STDOUT:
                yield frame.data

    async def result(self) -> int:
        """The operation's errno; 0 for success. Raises InitGone."""
        return await self.ended

    def grew(self) -> None:
        """The log has grown."""
        self._follower.grew()

    def end(self, number: int) -> None:
        """The operation has ended."""
        self._follower.finish()
        if not self.ended.done():
            self.ended.set_result(number)

    def fail(self, error: Exception) -> None:
        """The operation's end will not be seen."""
        self._follower.finish()
        if not self.ended.done():
            self.ended.set_exception(error)
            self.ended.exception()  # read here too: nobody may be waiting


class Looks:
    """The looks of one host; a :class:`~substrate_services.world.worlds.Listener` for them."""

    def __init__(self) -> None:
        self._open: dict[tuple[str, str], Look] = {}

    @contextlib.asynccontextmanager
    async def open(self, world: World, operation: tuple[bytes, ...]) -> AsyncIterator[Look]:
        """Start a file operation of the world's init (native/init/builtin.c).

        Raises:
            StartFailed, InitGone: it could not be started.
        """
        look_id = new_id("look")
        key = (world.spec.world_id, look_id)
        log = world.directory / "execs" / f"{look_id}.log"
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            look = self._open[key] = Look(OutputFollower(log))
            await world.init.start(
                ExecStart(
                    exec_id=look_id,
                    argv=operation,
                    cwd=world.spec.cwd,
                    user=world.spec.user,
                    builtin=True,
                    output_limit_bytes=_LIMIT_BYTES,
                ),
                descriptor,
            )
            world.touch()
            try:
                yield look
            finally:
                if not look.ended.done():
                    await world.init.kill(look_id)
                with contextlib.suppress(InitGone):
                    await look.ended
                    await world.init.forget(look_id)
        finally:
            os.close(descriptor)
            self._open.pop(key, None)
            log.unlink(missing_ok=True)

    def output_grew(self, world: World, exec_id: str) -> None:
        """See :class:`Listener`."""
        look = self._open.get((world.spec.world_id, exec_id))
        if look is not None:
            look.grew()

    def exec_exited(self, world: World, state: ExecState) -> None:
        """See :class:`Listener`."""
        look = self._open.get((world.spec.world_id, state.exec_id))
        if look is not None:
            look.end(0 if state.exit_code is None else state.exit_code)

    def world_lost(self, world: World) -> None:
        """See :class:`Listener`."""
        for (world_id, _look_id), look in list(self._open.items()):
            if world_id == world.spec.world_id:
                look.fail(InitGone(f"world {world_id} has ended"))
