"""Asks the process that lives in the router (``inside``) to do things there."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
from typing import NoReturn

from substrate_services.network.inside import MESSAGE_LIMIT, InsideError, serve

log = logging.getLogger(__name__)

_DESCRIPTORS = 8


class Hand:
    """The helper's hand in the router.

    Args:
        router_pid: the launcher's process that keeps the router's namespaces.
        rootless: they are owned by a user namespace of the caller's.
    """

    def __init__(self, router_pid: int, *, rootless: bool) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (ours, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MESSAGE_LIMIT)
        self._pid = os.fork()
        if self._pid == 0:
            _live_inside(theirs, router_pid, rootless=rootless)
        theirs.close()
        ours.setblocking(False)
        self._socket = ours
        self._turn = asyncio.Lock()

    async def ask(self, op: str, **arguments: object) -> tuple[dict[str, object], list[int]]:
        """Have something done; returns what it says, and descriptors.

        Raises:
            InsideError: it could not be done.
        """
        # To its end, whoever gives up: an answer left behind would be taken for the next one's.
        return await asyncio.shield(asyncio.ensure_future(self._exchange(op, arguments)))

    async def _exchange(
        self, op: str, arguments: dict[str, object]
    ) -> tuple[dict[str, object], list[int]]:
        loop = asyncio.get_running_loop()
        async with self._turn:
            try:
                await loop.sock_sendall(self._socket, json.dumps({"op": op, **arguments}).encode())
            except ConnectionError:
                _end_with_it()
            ready: asyncio.Future[None] = loop.create_future()
            loop.add_reader(self._socket, lambda: _fulfil(ready))
            try:
                await ready
            finally:
                loop.remove_reader(self._socket)
            data, descriptors, _, _ = socket.recv_fds(self._socket, MESSAGE_LIMIT, _DESCRIPTORS)
        if not data:
            _end_with_it()
        answer = json.loads(data)
        if "error" in answer:
            raise InsideError(str(answer["error"]))
        return answer, descriptors

    def close(self) -> None:
        """End it."""
        self._socket.close()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self._pid, 0)


def _end_with_it() -> NoReturn:
    """Nothing can be changed any more: the host starts another helper, and tells it all."""
    log.critical("the process in the router ended; this one ends with it")
    os._exit(1)


def _fulfil(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


def _live_inside(channel: socket.socket, router_pid: int, *, rootless: bool) -> None:
    """The child: nothing of the helper's but its end of the channel."""
    status = 1
    try:
        kept = channel.fileno()
        os.closerange(3, kept)
        os.closerange(kept + 1, 1 << 16)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        serve(channel, router_pid, rootless=rootless)
        status = 0
    except (OSError, KeyboardInterrupt) as error:
        with contextlib.suppress(OSError):
            channel.send(json.dumps({"error": f"the router cannot be entered: {error}"}).encode())
    finally:
        os._exit(status)
