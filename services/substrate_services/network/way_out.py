"""Keeps the router's way out open: what carries packets is started again when it ends."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
from collections.abc import Callable

from substrate_services.network.exposed import Ask
from substrate_services.network.inside import InsideError
from substrate_services.network.links import Links
from substrate_services.network.uplink import Uplink, UplinkError

log = logging.getLogger(__name__)

_PAUSES_S = (0.1, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
_LAST_PAUSE_S = 30.0


class WayOut:
    """The uplink of one router, while worlds need it.

    Args:
        uplink: starts and finds the program.
        ask: has things done in the router.
        is_needed: whether a world has a network.
        changed: told of its end (False), and when it carries packets again (True).
    """

    def __init__(
        self,
        uplink: Uplink,
        ask: Ask,
        *,
        is_needed: Callable[[], bool],
        changed: Callable[[bool], None],
    ) -> None:
        self._uplink = uplink
        self._ask = ask
        self._is_needed = is_needed
        self._changed = changed
        self._pidfd = -1
        self._turn = asyncio.Lock()
        self._restarting: asyncio.Task[None] | None = None

    async def ensure(self) -> None:
        """See that packets can leave; a host that is offline has nowhere to send them.

        Raises:
            UplinkError: there is no program, or it does not run, and the host is online.
        """
        async with self._turn:
            try:
                await self._start()
            except UplinkError as error:
                if _is_online():
                    raise
                log.warning("worlds are offline like the host: %s", error)
                self._restart()

    async def _start(self) -> None:
        answer, _ = await self._ask("uplink")
        if not (answer["there"] and self._uplink.is_running()):
            self._unfollow()
            await self._uplink.start()
        self._follow()

    def _follow(self) -> None:
        pid = self._uplink.pid() if self._pidfd < 0 else None
        if pid is None:
            return
        with contextlib.suppress(OSError):
            self._pidfd = os.pidfd_open(pid)
            asyncio.get_running_loop().add_reader(self._pidfd, self._ended)

    def _unfollow(self) -> None:
        if self._pidfd >= 0:
            asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1

    def _ended(self) -> None:
        self._unfollow()
        if self._is_needed():
            log.warning("the way out of worlds ended; starting it again")
            self._changed(False)
            self._restart()

    def _restart(self) -> None:
        if self._restarting is None or self._restarting.done():
            self._restarting = asyncio.create_task(self._restart_until_it_runs())

    async def _restart_until_it_runs(self) -> None:
        for pause_s in itertools.chain(_PAUSES_S, itertools.repeat(_LAST_PAUSE_S)):
            await asyncio.sleep(pause_s)
            if not self._is_needed():
                return
            try:
                async with self._turn:
                    await self._start()
            except (UplinkError, InsideError, OSError) as error:
                log.warning("there is no way out of worlds: %s", error)
            else:
                self._changed(True)
                return

    def close(self) -> None:
        """Look after it no more; it runs on."""
        self._unfollow()
        if self._restarting is not None:
            self._restarting.cancel()

    def stop(self) -> None:
        """End it."""
        self.close()
        self._uplink.stop()


def _is_online() -> bool:
    links = Links()
    try:
        return links.has_default_route(4) or links.has_default_route(6)
    finally:
        links.close()
