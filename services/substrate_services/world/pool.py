"""Worlds made before anybody asks for them.

A pooled world is made by the same code and with the same box as any other, for the ground of one
that was asked for before (:class:`~.preparing.Ground`): nobody can tell it from a fresh one, and it
is given to one request, once. What has no state file yet is nobody's world: a host that dies leaves
such worlds to the next one's recovery, which takes them down.
"""

from __future__ import annotations

import asyncio
import logging
import select
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from substrate_services.world.backends.base import Backend, BackendError, Box, BoxSpec
from substrate_services.world.ids import new_id
from substrate_services.world.preparing import Ground, Laid, Preparer
from substrate_services.world.spec import world_directory

log = logging.getLogger(__name__)

POOL_LIMIT = 64
_REMEMBERED = 16  # requests, for which grounds to make worlds
_REFILL_AFTER_S = 0.05
_CLOSE_S = 10.0


@dataclass(frozen=True, slots=True)
class Pooled:
    """A world that waits for a request."""

    ground: Ground
    world_id: str
    directory: Path
    laid: Laid
    box: Box

    def lives(self) -> bool:
        """Whether its init has not ended."""
        poll = select.poll()
        poll.register(self.box.pidfd, select.POLLIN)  # readable once it has (pidfd_open(2))
        return not poll.poll(0)


@dataclass(frozen=True, slots=True)
class PoolCounts:
    """How a pool does: what it may hold and holds, and how requests fared since the host began."""

    size: int
    ready: int
    claimed: int
    missed: int


class Pool:
    """Keeps a bounded number of worlds ready. Methods are for the event loop's thread.

    Args:
        size: how many; 0: none.
        directory: of all worlds.
        backend: makes their boxes.
        preparer: makes their layers.
        box_spec: what box to make for a world.
        discard: takes down a world that was never used.
    """

    def __init__(
        self,
        *,
        size: int,
        directory: Path,
        backend: Backend,
        preparer: Preparer,
        box_spec: Callable[[str, Ground, Laid], BoxSpec],
        discard: Callable[[str, Path, Box | None], Awaitable[None]],
    ) -> None:
        self.size = size
        self._directory = directory
        self._backend = backend
        self._preparer = preparer
        self._box_spec = box_spec
        self._discard = discard
        self._ready: list[Pooled] = []
        self._asked: deque[Ground] = deque(maxlen=_REMEMBERED)
        self._wanted = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._claimed = self._missed = 0

    def counts(self) -> PoolCounts:
        """How it does."""
        return PoolCounts(self.size, len(self._ready), self._claimed, self._missed)

    def claim(self, ground: Ground) -> Pooled | None:
        """Take a world that was made on this very ground; None where there is none.

        Others will be made in its place, and those that the host has moved on from taken away.
        """
        found = next((made for made in self._ready if made.ground == ground and made.lives()), None)
        if found is None:
            self._missed += 1
        else:
            self._claimed += 1
            self._ready.remove(found)
        self._asked.append(ground)
        return found

    def refill(self) -> None:
        """Make up for what was claimed, in the background."""
        if self.size == 0:
            return
        self._wanted.set()
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._keep_full())

    async def close(self) -> None:
        """Take down what waits; nothing is made any more."""
        self.size = 0
        self._wanted.set()
        if self._task is not None:
            # What is being made is finished first: its thread cannot be called back.
            await asyncio.wait([self._task], timeout=_CLOSE_S)
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        ready, self._ready = self._ready, []
        for made in ready:
            await self._drop(made)

    async def _keep_full(self) -> None:
        while self.size > 0:
            self._wanted.clear()
            # Making one takes the processors that whoever claimed the last needs now.
            await asyncio.sleep(_REFILL_AFTER_S)
            try:
                while await self._step():
                    pass
            except (BackendError, OSError) as error:
                log.warning("no world could be made in advance: %s", error)
            await self._wanted.wait()

    async def _step(self) -> bool:
        """Take one away that nobody will want, or make one; False: there is nothing to do."""
        useless = self._useless()
        if useless is not None:
            self._ready.remove(useless)
            await self._drop(useless)
            return True
        if not self._asked or len(self._ready) >= self.size:
            return False
        return await self._make(self._asked[-1])

    def _useless(self) -> Pooled | None:
        """One whose init has ended, whose ground has changed, or that is in a better one's way."""
        for made in self._ready:
            last = next(
                (asked for asked in reversed(self._asked) if asked.is_like(made.ground)), None
            )
            if last != made.ground or not made.lives():
                return made
        if len(self._ready) < self.size or not self._asked:
            return None
        # Only for what is asked for more often: two that take turns must not displace each other.
        newest = self._asked[-1]
        often = self._asked.count(newest)
        if any(made.ground == newest for made in self._ready):
            return None
        rarest = min(self._ready, key=lambda made: self._asked.count(made.ground))
        return rarest if self._asked.count(rarest.ground) < often else None

    async def _make(self, asked: Ground) -> bool:
        world_id = new_id("wld")
        directory = world_directory(self._directory, world_id)
        box: Box | None = None
        try:
            ground = await asyncio.to_thread(self._preparer.look_again, asked)
            laid = await asyncio.to_thread(self._preparer.lay_ground, ground, directory)
            await asyncio.to_thread(laid.tree.begin)
            box = await self._backend.create(self._box_spec(world_id, ground, laid))
            # The host may have changed while it was made.
            if (
                ground != asked
                or await asyncio.to_thread(self._preparer.look_again, ground) != ground
            ):
                await self._discard(world_id, directory, box)
                return False
        except BaseException:
            await asyncio.shield(self._discard(world_id, directory, box))
            raise
        made = Pooled(ground, world_id, directory, laid, box)
        self._ready.append(made)
        if not made.lives():  # and the next would not either: the next request shall ask for one
            raise BackendError("its init ended at once")
        return True

    async def _drop(self, made: Pooled) -> None:
        try:
            await self._discard(made.world_id, made.directory, made.box)
        except BackendError as error:  # the launcher has gone, and its boxes with it
            log.warning("world %s, made in advance, is not taken down: %s", made.world_id, error)
