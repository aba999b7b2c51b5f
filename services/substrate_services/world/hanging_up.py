"""Commands that go with the client that waits for them, as with a terminal that is closed.

A client that was killed says nothing, and one whose connection was lost comes again: only when
nobody has come for a while is the command told (SIGHUP), and then ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections import Counter
from collections.abc import AsyncIterator

from substrate_services.errors import ServiceError
from substrate_services.world.execs import Execs
from substrate_services.world.steps import Exec
from substrate_services.world.worlds import World

GRACE_S = 5.0  # for a client to come again
_LAST_S = 5.0  # for a command to end by itself


class HangUps:
    """Who waits for what, on one host.

    Args:
        execs: signals commands.
    """

    def __init__(self, execs: Execs) -> None:
        self._execs = execs
        self._waiting: Counter[str] = Counter()  # by span
        self._tasks: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def waiting(self, world: World, exec_: Exec) -> AsyncIterator[None]:
        """Be a client without whom the command is not to go on."""
        span_id = exec_.start.span_id
        self._waiting[span_id] += 1
        try:
            yield
        finally:
            self._waiting[span_id] -= 1
            if not self._waiting[span_id]:
                del self._waiting[span_id]
                if exec_.phase == "running":
                    task = asyncio.create_task(self._end(world, exec_))
                    self._tasks.add(task)
                    task.add_done_callback(self._tasks.discard)

    async def _end(self, world: World, exec_: Exec) -> None:
        for number, patience_s in ((signal.SIGHUP, GRACE_S), (signal.SIGKILL, _LAST_S)):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(exec_.done.wait(), patience_s)
            if exec_.phase != "running" or exec_.start.span_id in self._waiting:
                return
            with contextlib.suppress(ServiceError):  # its world was removed
                await self._execs.signal(world, exec_.exec_id, number, tree=True)
