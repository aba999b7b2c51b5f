"""The native backend: namespaces and overlays, made by the launcher."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from substrate_services.journal.schema import LedgerSource
from substrate_services.world.backends.base import (
    BackendCapabilities,
    BackendError,
    BackendUnavailable,
    Box,
    BoxLimits,
    BoxSpec,
)
from substrate_services.world.backends.launcher_client import (
    LauncherClient,
    connect,
    start_launcher,
)

log = logging.getLogger(__name__)

_ATTEMPTS = 6
_RETRY_S = 0.05


class NativeBackend:
    """Boxes made by ``substrate-launcher``; one launcher per state directory.

    Args:
        socket_path: where the launcher listens; absolute, at most 107 bytes.
        state_dir: the launcher's own directory (created 0700), on a local file system.
        linger_s: how long a launcher without boxes and connections stays.
        ledger: the only source of the kernel's ledger to use, by name; the best where empty.
        on_world_gone: (world_id, wait status): an init ended unasked. Also called for every known
            box when the launcher is lost, with the status of a SIGKILL.
    """

    name = "native"

    def __init__(
        self,
        socket_path: Path,
        state_dir: Path,
        *,
        linger_s: int = 30,
        ledger: LedgerSource | Literal[""] = "",
        on_world_gone: Callable[[str, int], None] = lambda _world_id, _status: None,
    ) -> None:
        self._socket_path = socket_path
        self._state_dir = state_dir
        self._linger_s = linger_s
        self._ledger = ledger
        self._on_world_gone = on_world_gone
        self._client: LauncherClient | None = None
        self._known: set[str] = set()
        self._capabilities: BackendCapabilities | None = None
        self.launcher_pid = 0

    async def start(self) -> None:
        """Connect to the launcher, starting it if it does not run.

        Raises:
            BackendUnavailable: it cannot run, or boxes cannot be made here; the text says the fix.
        """
        if self._client is not None and not self._client.closed:
            return
        client, found = await self._reach()
        self._client = client
        self.launcher_pid = int(found.get("pid", ["0"])[0])
        self._capabilities = _capabilities(found)
        unable = [text for text in self._capabilities.problems if "worlds cannot be made" in text]
        if unable:
            await self.close()
            fix = next(iter(found.get("fix", [])), "") or "run `substrate doctor`"
            raise BackendUnavailable(f"{unable[0]}; {fix}", fix)

    async def _reach(self) -> tuple[LauncherClient, dict[str, list[str]]]:
        """A launcher that answers: the one that runs, or a new one."""
        problem = ""
        for attempt in range(_ATTEMPTS):
            # An idle launcher may be ending just now, and holds its lock until it has.
            await asyncio.sleep(attempt * _RETRY_S)
            try:
                sock = await connect(self._socket_path)
            except OSError:
                await start_launcher(
                    self._socket_path,
                    self._state_dir,
                    linger_s=self._linger_s,
                    ledger=self._ledger,
                )
                try:
                    sock = await connect(self._socket_path)
                except OSError as error:
                    problem = error.strerror or str(error)
                    continue
            client = LauncherClient(sock, on_gone=self._world_gone, on_lost=self._lost)
            try:
                return client, await client.hello()
            except BackendError as error:
                problem = str(error)
        raise BackendUnavailable(
            f"cannot reach the launcher at {self._socket_path}: {problem}",
            f"another launcher may hold {self._state_dir}/launcher.lock; end it",
        )

    async def create(self, spec: BoxSpec) -> Box:
        """Make a box with a running init.

        Raises:
            BackendError: the text names the failing operation or call, and what to do.
        """
        client = self._launcher()
        try:
            box = await client.create(spec)
        except asyncio.CancelledError:
            client.remove_unseen(spec.world_id)  # nobody will ever ask for it
            raise
        self._known.add(box.world_id)
        return box

    async def adopt(self) -> list[Box]:
        """Boxes that live on from an earlier host process."""
        client = self._launcher()
        boxes = []
        for world_id in await client.worlds():
            try:
                boxes.append(await client.attach(world_id))
            except BackendError:
                continue  # it ended since the list was made
            self._known.add(world_id)
        return boxes

    async def remove(self, world_id: str) -> None:
        """Kill everything in the box; returns when processes, mounts and cgroups are gone."""
        self._known.discard(world_id)
        client = self._launcher()
        try:
            await client.remove(world_id)
        except BackendError:
            # The boxes of a killed launcher end with it, and the next one clears what is left.
            if not client.closed:
                raise

    async def limit(self, world_id: str, limits: BoxLimits) -> None:
        """See :class:`Backend`."""
        await self._launcher().limit(world_id, limits)

    async def sync_ledger(self, world_id: str, from_ns: int) -> None:
        """See :class:`Backend`."""
        await self._launcher().sync_ledger(world_id, from_ns)

    async def shutdown(self) -> None:
        """Remove every box and end the launcher."""
        self._known.clear()
        await self._launcher().shutdown()

    def capabilities(self) -> BackendCapabilities:
        """What the launcher found this host can do. Raises BackendError before :meth:`start`."""
        if self._capabilities is None:
            raise BackendError("the native backend has not been started")
        return self._capabilities

    async def close(self) -> None:
        """Let go of the boxes without ending them."""
        if self._client is not None:
            self._client.close()
            self._client = None

    def _launcher(self) -> LauncherClient:
        if self._client is None:
            raise BackendError("the native backend has not been started")
        return self._client

    def _world_gone(self, world_id: str, status: int) -> None:
        self._known.discard(world_id)
        self._on_world_gone(world_id, status)

    def _lost(self) -> None:
        known, self._known = self._known, set()
        if known:
            log.warning("the launcher ended, and %d worlds with it", len(known))
        for world_id in known:
            self._on_world_gone(world_id, signal.SIGKILL)


def _capabilities(found: dict[str, list[str]]) -> BackendCapabilities:
    def value(key: str) -> str:
        return found.get(key, [""])[0]

    mapping: Literal["range", "caller", "weak"] = "caller"
    if value("id_mapping") == "range":
        mapping = "range"
    elif value("id_mapping") == "weak":
        mapping = "weak"
    ledger: LedgerSource = "none"
    if value("ledger") == "bpf":
        ledger = "bpf"
    elif value("ledger") == "proc_connector":
        ledger = "proc_connector"
    return BackendCapabilities(
        rootless=value("rootless") == "1",
        id_mapping=mapping,
        overlay=value("overlay"),
        overlay_options=tuple(filter(None, value("overlay_options").split(","))),
        kill="cgroup.kill" if value("kill") == "cgroup.kill" else "subreaper",
        limits=_limits(value("limits")),
        problems=tuple(found.get("problem", ())),
        ledger=ledger,
        ledger_problem=value("ledger_problem"),
        segments_attested=value("segments_attested") == "1",
        segments_problem=value("segments_problem"),
        landlock_abi=int(value("landlock") or "0"),
        router_pid=int(value("router") or 0),
    )


def _limits(text: str) -> dict[str, Literal["v2", "v1", "none"]]:
    """What "memory:v1,cpu:v2,pids:none" says, by name; an older launcher says nothing."""
    found: dict[str, Literal["v2", "v1", "none"]] = {}
    for entry in filter(None, text.split(",")):
        name, _, mechanism = entry.partition(":")
        found[name] = "v2" if mechanism == "v2" else "v1" if mechanism == "v1" else "none"
    return found
