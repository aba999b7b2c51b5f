"""``python -m substrate_services.network DIRECTORY SOCKET``: the helper of one home.

Requests and answers are lines of JSON on a socket of the home's; an answer bears its request's id.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import logging
import os
import resource
import signal
import sys
from pathlib import Path

from substrate_services.network.inits import Init
from substrate_services.network.inside import InsideError
from substrate_services.network.netlink import NetlinkError
from substrate_services.network.rules import BadRule
from substrate_services.network.service import Service
from substrate_services.network.uplink import UplinkError

log = logging.getLogger("substrate.network")

_LINGER_S = 2.0  # for the next world: starting the way out takes a while
_LINE_LIMIT = 1 << 24


class Helper:
    """One helper process."""

    def __init__(self, directory: Path, socket_path: Path) -> None:
        self._socket_path = socket_path
        self._stop = asyncio.Event()
        self._service = Service(directory, self._linger)
        self._connections = 0
        self._answering = 0

    async def run(self) -> None:
        """Serve until no world needs it and no host is there, or until told to stop."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        self._socket_path.unlink(missing_ok=True)
        before = os.umask(0o177)
        server = await asyncio.start_unix_server(self._serve, self._socket_path, limit=_LINE_LIMIT)
        os.umask(before)
        self._linger()
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        await self._stop.wait()
        server.close()
        with contextlib.suppress(FileNotFoundError):
            self._socket_path.unlink()
        await self._service.close()

    def _linger(self) -> None:
        asyncio.get_running_loop().call_later(
            _LINGER_S if self._connections else 0.5, self._stop_if_idle
        )

    def _stop_if_idle(self) -> None:
        # The first world's network takes a while, and is nobody's before it is there.
        if not self._service.is_needed and not self._answering:
            self._stop.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections += 1
        try:
            async with asyncio.TaskGroup() as group:
                while line := await reader.readline():
                    group.create_task(self._answer(json.loads(line), writer))
        except* ConnectionError:
            pass
        finally:
            self._connections -= 1
            writer.close()
            self._stop_if_idle()

    async def _answer(self, request: dict[str, object], writer: asyncio.StreamWriter) -> None:
        answer: dict[str, object]
        self._answering += 1
        try:
            answer = await self._do(request)
        except (InsideError, NetlinkError, UplinkError, BadRule, OSError) as error:
            answer = {"error": str(error)}
        finally:
            self._answering -= 1
            self._linger()
        writer.write(json.dumps(answer | {"id": request["id"]}).encode() + b"\n")
        await writer.drain()

    async def _do(self, request: dict[str, object]) -> dict[str, object]:
        service = self._service
        world_id = str(request.get("world_id", ""))
        match request["op"]:
            case "attach":
                rules = request["rules"]
                await service.attach(
                    world_id,
                    _init(request),
                    [str(rule) for rule in rules] if isinstance(rules, list) else [],
                    _number(request, "router_pid"),
                    rootless=bool(request["rootless"]),
                )
                return {}
            case "detach":
                await service.detach(world_id, forget=bool(request.get("forget")))
                return {}
            case "flows":
                return await service.flows(world_id, _number(request, "after"))
            case "expose":
                address = await service.expose(
                    world_id,
                    _init(request),
                    _number(request, "port"),
                    _number(request, "wanted"),
                    _number(request, "router_pid"),
                    rootless=bool(request["rootless"]),
                )
                return {"address": address}
            case "unexpose":
                port = request.get("port")
                service.unexpose(world_id, port if isinstance(port, int) else None)
                return {}
            case other:
                return {"error": f"no such request: {other!r}"}


def _init(request: dict[str, object]) -> Init:
    return Init(_number(request, "init_pid"), _number(request, "init_started"))


def _number(request: dict[str, object], name: str) -> int:
    value = request.get(name, 0)
    return value if isinstance(value, int) else 0


def main(arguments: list[str]) -> int:
    """Run the helper, unless one runs."""
    directory, socket_path = Path(arguments[0]), Path(arguments[1])
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return 0
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # two for each connection carried
    asyncio.run(Helper(directory, socket_path).run())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
