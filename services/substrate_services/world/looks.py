"""Looking into a world without changing it: file operations that are no steps.

A look is done by a process of the world, as the world's user, so whatever its paths lead to is
resolved inside. What it says comes through a pipe of its own: a reader that is slow makes it wait,
and nothing is kept anywhere, however much it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable

from substrate_services.world.ids import new_id
from substrate_services.world.init_client import ExecStart, ExecState, InitError, InitGone
from substrate_services.world.worlds import World

_PIECE_BYTES = 256 << 10
_PIPE_BYTES = 1 << 20
_WORDS_LIMIT = 4 << 10  # of what it says on standard error, which nobody reads


class LookKilled(Exception):
    """Somebody in the world ended the operation: what it said is not all there is."""


class Look:
    """One file operation under way."""

    def __init__(self, pipe: int) -> None:
        self._pipe = pipe
        self._ended: asyncio.Future[ExecState] = asyncio.get_running_loop().create_future()
        self._wake: Callable[[], None] = _nothing

    @property
    def ended(self) -> bool:
        """Whether it is over."""
        return self._ended.done()

    async def output(self) -> AsyncGenerator[bytes, None]:
        """What the operation writes, until it ends, in pieces of at most 256 KiB."""
        # A process of the world may have got hold of the other end and write for ever; what the
        # operation wrote before it ended is in the pipe by then.
        left = _PIPE_BYTES
        while True:
            over = self.ended
            try:
                data = os.read(self._pipe, _PIECE_BYTES)
            except BlockingIOError:
                if over:
                    return
                await self._readable()
                continue
            if over:
                left -= len(data)
            if not data or left < 0:
                return
            yield data

    async def _readable(self) -> None:
        loop = asyncio.get_running_loop()
        ready = asyncio.Event()
        loop.add_reader(self._pipe, ready.set)
        self._wake = ready.set
        try:
            if not self.ended:
                await ready.wait()
        finally:
            self._wake = _nothing
            loop.remove_reader(self._pipe)

    async def result(self) -> int:
        """The operation's errno; 0 for success. Raises InitGone, LookKilled."""
        state = await asyncio.shield(self._ended)
        if state.exit_code is None:
            raise LookKilled("the operation was ended by a signal from inside the world")
        return state.exit_code

    def end(self, state: ExecState) -> None:
        """The operation has ended."""
        if not self.ended:
            self._ended.set_result(state)
        self._wake()

    def fail(self, error: Exception) -> None:
        """The operation's end will not be seen."""
        if not self.ended:
            self._ended.set_exception(error)
            self._ended.exception()  # read here too: nobody may be waiting
        self._wake()


class Looks:
    """The looks of one host; a :class:`~substrate_services.world.worlds.Listener` for them."""

    def __init__(self) -> None:
        self._open: dict[tuple[str, str], Look] = {}

    @contextlib.asynccontextmanager
    async def open(self, world: World, operation: tuple[bytes, ...]) -> AsyncIterator[Look]:
        """Start a file operation of the world's init (native/init/builtin.c).

        At the end of the block it is over, whatever it was about.

        Args:
            world: the world.
            operation: its name and arguments; paths are absolute.

        Raises:
            ServiceError: WORLD_PAUSED.
            StartFailed, InitGone: it could not be started.
        """
        world.require_running()
        look_id = new_id("look")
        key = (world.spec.world_id, look_id)
        pipe, writer = os.pipe2(os.O_CLOEXEC)
        try:
            os.set_blocking(pipe, False)
            with contextlib.suppress(OSError):  # the caller's share of pipes is used up: slower
                fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
            look = self._open[key] = Look(pipe)
            await self._start(world, look_id, operation, writer)
            os.close(writer)
            writer = -1
            world.touch()
            try:
                yield look
            finally:
                await _end(world, look, look_id)
        finally:
            self._open.pop(key, None)
            os.close(pipe)
            if writer >= 0:
                os.close(writer)

    async def _start(
        self, world: World, look_id: str, operation: tuple[bytes, ...], output: int
    ) -> None:
        log = os.open(os.devnull, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        try:
            await world.init.start(
                ExecStart(
                    exec_id=look_id,
                    argv=operation,
                    user=world.spec.user,
                    builtin=True,
                    output_limit_bytes=_WORDS_LIMIT,
                ),
                log,
                output,
            )
        finally:
            os.close(log)

    def output_grew(self, world: World, exec_id: str) -> None:
        """See :class:`Listener`."""

    def exec_exited(self, world: World, state: ExecState) -> None:
        """See :class:`Listener`."""
        look = self._open.get((world.spec.world_id, state.exec_id))
        if look is not None:
            look.end(state)

    def world_lost(self, world: World) -> None:
        """See :class:`Listener`."""
        for (world_id, _look_id), look in list(self._open.items()):
            if world_id == world.spec.world_id:
                look.fail(InitGone(f"world {world_id} has ended"))


async def _end(world: World, look: Look, look_id: str) -> None:
    with contextlib.suppress(InitGone, InitError):  # the world has ended, or is ending
        if not look.ended:
            await world.init.kill(look_id)
        with contextlib.suppress(LookKilled):
            await look.result()
        await world.init.forget(look_id)


def _nothing() -> None:
    """Nobody waits."""
