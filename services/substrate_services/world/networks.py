"""The worlds' networks, as the host process sees them: it asks the helper, and starts it.

The helper (``substrate_services.network``) outlives this process. Where it dies, the worlds stay
behind the filter as it was; it is started again, and told what there is.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import os
import select
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from substrate_services.errors import InvalidField, ServiceError
from substrate_services.network.inits import Init, has_link, start_of
from substrate_services.network.rules import BadRule, NetworkRules, parse_rules
from substrate_services.network.uplink import FIX as UPLINK_FIX
from substrate_services.network.uplink import find_program
from substrate_services.world.backends.base import BackendCapabilities, Box

log = logging.getLogger(__name__)

NFT_FIX = "sudo apt-get install nftables"
_LINE_LIMIT = 1 << 26
_START_S = 20.0
_RETRIES = 3


@dataclass(frozen=True, slots=True)
class Flow:
    """Something that a world sent, or wanted to: see ``substrate_services.network.flows``."""

    fields: dict[str, object]

    def text(self, name: str) -> str:
        """A field that is text; empty where it is none."""
        value = self.fields.get(name)
        return value if isinstance(value, str) else ""

    def number(self, name: str) -> int:
        """A field that is a number; 0 where it is none."""
        value = self.fields.get(name)
        return value if isinstance(value, int) else 0


@dataclass(frozen=True, slots=True)
class _Wanted:
    init: Init
    rules: tuple[str, ...]


def read_rules(texts: tuple[str, ...]) -> NetworkRules:
    """The rules of a request. Raises InvalidField."""
    try:
        return parse_rules(texts)
    except BadRule as error:
        raise InvalidField("network", list(texts), str(error)) from error


class Networks:
    """Keeps the worlds of one host on their networks.

    Args:
        directory: the helper's own; its socket lies beside it.
        log_file: what the helper has to say.
        capabilities: of the backend, once it has started.
    """

    def __init__(
        self, directory: Path, log_file: Path, capabilities: Callable[[], BackendCapabilities]
    ) -> None:
        self._directory = directory
        self._socket = directory.with_suffix(".sock")
        self._log_file = log_file
        self._capabilities = capabilities
        self._wanted: dict[str, _Wanted] = {}
        self._had: set[str] = set()  # worlds with something to tell, though it was taken away
        self._exposed: dict[tuple[str, int], tuple[Init, int]] = {}  # port of the host
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None
        self._answers: dict[int, asyncio.Future[dict[str, object]]] = {}
        self._numbers = itertools.count(1)
        self._starting = asyncio.Lock()
        self._turns: dict[str, asyncio.Lock] = {}  # by world: see _restore
        self._restarting: asyncio.Task[None] | None = None
        self._closed = False

    # -- worlds --------------------------------------------------------------------------------

    async def attach(
        self, world_id: str, box: Box, rules: tuple[str, ...], *, adopted: bool = False
    ) -> None:
        """Give a world the network of its rules, or change it, or take it away.

        Args:
            world_id: the world.
            box: its box.
            rules: what it may reach.
            adopted: an earlier host had it, and may have ended before it had noted down what the
                world has.

        Raises:
            ServiceError: NO_NETWORK, and it is as it was; WORLD_LOST.
        """
        async with self._turn(world_id):
            await self._change(world_id, box, rules, adopted=adopted)

    def _turn(self, world_id: str) -> asyncio.Lock:
        return self._turns.setdefault(world_id, asyncio.Lock())

    async def _change(
        self, world_id: str, box: Box, rules: tuple[str, ...], *, adopted: bool
    ) -> None:
        if not parse_rules(rules).texts:
            if adopted and has_link(init := _init_of(box)):
                self._wanted[world_id] = _Wanted(init, ())
            await self._detach(world_id)
            return
        _require_programs()
        wanted = _Wanted(_init_of(box), rules)
        await self._ask(_attach(world_id, wanted, self._capabilities()))
        self._wanted[world_id] = wanted
        self._had.add(world_id)

    async def _detach(self, world_id: str) -> None:
        """Take a world's network away; it need not have one."""
        wanted = self._wanted.get(world_id)
        if wanted is not None:
            # A helper that was started since may not know yet what it is to take away.
            await self._ask(_attach(world_id, wanted, self._capabilities()))
            await self._ask({"op": "detach", "world_id": world_id})
            self._wanted.pop(world_id, None)

    async def forget(self, world_id: str) -> None:
        """A world is gone: so is what it had. Never raises."""
        exposed = [key for key in self._exposed if key[0] == world_id]
        for key in exposed:
            del self._exposed[key]
        try:
            async with self._turn(world_id):
                self._wanted.pop(world_id, None)
                self._turns.pop(world_id, None)
                if world_id in self._had:
                    self._had.discard(world_id)
                    await self._ask({"op": "detach", "world_id": world_id, "forget": True})
            if exposed:
                await self._ask({"op": "unexpose", "world_id": world_id})
        except ServiceError as error:
            log.warning("the network of world %s: %s", world_id, error)

    async def flows(self, world_id: str, after: int) -> tuple[list[Flow], int]:
        """What a world's links carried, and what was refused; and how many records were lost.

        Args:
            world_id: the world.
            after: what has been kept of what was told before.
        """
        if world_id not in self._had:
            return [], 0
        try:
            answer = await self._ask({"op": "flows", "world_id": world_id, "after": after})
        except ServiceError as error:
            log.warning("the flows of world %s: %s", world_id, error)
            return [], 0
        records, lost = answer.get("records"), answer.get("lost")
        found = (
            [Flow(record) for record in records if isinstance(record, dict)]
            if isinstance(records, list)
            else []
        )
        return found, lost if isinstance(lost, int) else 0

    # -- ports ---------------------------------------------------------------------------------

    async def expose(self, world_id: str, box: Box, port: int, wanted: int = 0) -> str:
        """Make a port of a world reachable on the host's loopback; returns where. Idempotent.

        Args:
            world_id: the world.
            box: its box.
            port: in the world.
            wanted: on the host, where it is free; 0 for any.
        """
        init = _init_of(box)
        known = self._exposed.get((world_id, port))
        if known is not None and known[0] == init:
            wanted = known[1]
        return await self._expose(world_id, init, port, wanted)

    async def _expose(self, world_id: str, init: Init, port: int, wanted: int) -> str:
        answer = await self._ask(
            _expose(world_id, init, port, wanted=wanted, found=self._capabilities())
        )
        address = str(answer["address"])
        self._exposed[(world_id, port)] = init, int(address.rpartition(":")[2])
        return address

    async def unexpose(self, world_id: str, port: int) -> None:
        """End that; it need not be."""
        if self._exposed.pop((world_id, port), None) is not None:
            await self._ask({"op": "unexpose", "world_id": world_id, "port": port})

    # -- the helper ----------------------------------------------------------------------------

    async def close(self) -> None:
        """Let go of the helper; networks go on."""
        self._closed = True
        for task in (self._restarting, self._reading):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        if self._writer is not None:
            self._writer.close()

    async def _ask(self, request: dict[str, object]) -> dict[str, object]:
        for _ in range(_RETRIES):
            writer = await self._connected()
            number = next(self._numbers)
            answer: asyncio.Future[dict[str, object]] = asyncio.get_running_loop().create_future()
            self._answers[number] = answer
            try:
                writer.write(json.dumps(request | {"id": number}).encode() + b"\n")
                found = await answer
            except ConnectionError:
                continue  # it ended, idle or killed; a new one is as good
            finally:
                self._answers.pop(number, None)
            if "error" in found:
                raise ServiceError("NO_NETWORK", str(found["error"]))
            return found
        raise ServiceError("NO_NETWORK", f"the network helper ends again and again; {self._see()}")

    async def _connected(self) -> asyncio.StreamWriter:
        async with self._starting:
            if self._writer is not None:
                return self._writer
            try:
                reader, writer = await self._connect()
            except OSError as error:
                raise ServiceError(
                    "NO_NETWORK", f"the network helper cannot be reached: {error}; {self._see()}"
                ) from error
            self._writer = writer
            self._reading = asyncio.create_task(self._read(reader))
            return writer

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        with contextlib.suppress(OSError):
            return await asyncio.open_unix_connection(self._socket, limit=_LINE_LIMIT)
        await self._start()
        return await asyncio.open_unix_connection(self._socket, limit=_LINE_LIMIT)

    async def _start(self) -> None:
        """Start the helper; posix_spawn only, in a session of its own, as it outlives us."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        said = os.open(self._log_file, flags, 0o600)
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "substrate_services.network",
                os.fspath(self._directory),
                os.fspath(self._socket),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=said,
                cwd="/",
                start_new_session=True,
            )
        finally:
            os.close(said)
        assert process.stdout is not None
        try:
            async with asyncio.timeout(_START_S):
                # The end without a word: another one runs, and answers soon.
                await process.stdout.readline()
        except TimeoutError as error:
            raise ServiceError(
                "NO_NETWORK", f"the network helper does not start; {self._see()}"
            ) from error

    async def _read(self, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(OSError):
            while line := await reader.readline():
                found = json.loads(line)
                answer = self._answers.pop(found.pop("id"), None)
                if answer is not None and not answer.done():
                    answer.set_result(found)
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(ConnectionResetError("the network helper ended"))
        if (self._wanted or self._exposed) and not self._closed:
            self._restarting = asyncio.create_task(self._restore())

    async def _restore(self) -> None:
        """Tell a new helper what there is.

        What is being changed is told by whoever changes it, and then as it is: else what has just
        been closed would be opened again.
        """
        found = self._capabilities()
        for world_id in list(self._wanted):
            try:
                async with self._turn(world_id):
                    if (wanted := self._wanted.get(world_id)) is not None:
                        await self._ask(_attach(world_id, wanted, found))
            except ServiceError as error:
                log.warning("world %s stays without a network: %s", world_id, error)
        for (world_id, port), (init, number) in list(self._exposed.items()):
            try:
                await self._expose(world_id, init, port, number)
            except ServiceError as error:
                log.warning("port %s of world %s: %s", port, world_id, error)

    def _see(self) -> str:
        return f"see {self._log_file}"


def _init_of(box: Box) -> Init:
    """The init of a box, told apart from whoever has its number later.

    Raises:
        ServiceError: WORLD_LOST; it has ended.
    """
    ended = select.poll()
    ended.register(box.pidfd, select.POLLIN)
    with contextlib.suppress(OSError):
        init = Init(box.init_pid, start_of(box.init_pid))
        if not ended.poll(0):  # so it was this one's start
            return init
    raise ServiceError("WORLD_LOST", f"world {box.world_id} has ended; make another")


def _attach(world_id: str, wanted: _Wanted, found: BackendCapabilities) -> dict[str, object]:
    return {
        "op": "attach",
        "world_id": world_id,
        "init_pid": wanted.init.pid,
        "init_started": wanted.init.started,
        "rules": list(wanted.rules),
        "router_pid": found.router_pid,
        "rootless": found.rootless,
    }


def _expose(
    world_id: str, init: Init, port: int, *, wanted: int, found: BackendCapabilities
) -> dict[str, object]:
    return {
        "op": "expose",
        "world_id": world_id,
        "init_pid": init.pid,
        "init_started": init.started,
        "port": port,
        "wanted": wanted,
        "router_pid": found.router_pid,
        "rootless": found.rootless,
    }


def _require_programs() -> None:
    """Refuse before anything is made: a world never has a network that is not filtered."""
    if shutil.which("nft") is None:
        raise ServiceError(
            "NO_NETWORK",
            f"network rules need nft, which is not installed; {NFT_FIX}",
        )
    if find_program() is None:
        raise ServiceError(
            "NO_NETWORK",
            f"network rules need pasta or slirp4netns, and neither is installed; {UPLINK_FIX}",
        )


def network_rows() -> list[tuple[str, str, str, str, str]]:
    """What doctor says of networks: feature, state, mode, consequence and fix."""
    rows = []
    nft = shutil.which("nft") is not None
    rows.append(
        ("network_filter", "works", "nftables", "", "")
        if nft
        else (
            "network_filter",
            "missing",
            "",
            "worlds have no network: one with network rules is refused",
            NFT_FIX,
        )
    )
    program = find_program()
    if program is None:
        why = "worlds have no network: one with network rules is refused"
        rows.append(("network_uplink", "missing", "", why, UPLINK_FIX))
    elif program == "slirp4netns":
        why = "worlds' networks are slower than with pasta"
        rows.append(("network_uplink", "degraded", program, why, "sudo apt-get install passt"))
    elif not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        why = "worlds have no network: nothing can make the device that packets leave by"
        fix = "sudo modprobe tun && sudo chmod 666 /dev/net/tun; in Docker: --device /dev/net/tun"
        rows.append(("network_uplink", "missing", program, why, fix))
    else:
        rows.append(("network_uplink", "works", program, "", ""))
    conntrack = os.path.exists("/proc/sys/net/netfilter/nf_conntrack_acct")
    rows.append(
        ("network_flows", "works", "conntrack", "", "")
        if conntrack
        else (
            "network_flows",
            "degraded",
            "",
            "flows of worlds are recorded without their bytes",
            "load nf_conntrack: sudo modprobe nf_conntrack",
        )
    )
    with_v6 = os.path.exists("/proc/net/if_inet6")
    rows.append(
        ("network_ipv6", "works", "", "", "")
        if with_v6
        else (
            "network_ipv6",
            "missing",
            "",
            "worlds reach IPv4 addresses only",
            "enable IPv6: the kernel runs with ipv6.disable=1, or without it",
        )
    )
    return rows
