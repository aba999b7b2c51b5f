"""A host process, put together: stores, domain, servers, start-up and shut-down (DESIGN §3)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc.aio

from substrate_sdk.config import HostPaths
from substrate_services.agent.server import AgentServicer
from substrate_services.agent.sessions import Sessions
from substrate_services.broker.server import BrokerServicer
from substrate_services.broker.source import PolicySource
from substrate_services.host.identity import host_id
from substrate_services.host.server import build_server, private_directory
from substrate_services.journal.reader import JournalReader
from substrate_services.journal.writer import Journal
from substrate_services.native_paths import native_directory
from substrate_services.objects.store import ObjectStore
from substrate_services.replay.engines.local import LocalEngine
from substrate_services.replay.replays import Replays
from substrate_services.replay.runner import Runner
from substrate_services.replay.server import ReplayServicer
from substrate_services.telemetry.decoders import Decoders
from substrate_services.telemetry.otel import OtelProjection
from substrate_services.trace.server import TraceServicer
from substrate_services.world.admitting import Admission
from substrate_services.world.apply import Applies
from substrate_services.world.availability import Availability
from substrate_services.world.backends.base import BackendUnavailable
from substrate_services.world.backends.native import NativeBackend
from substrate_services.world.beneath import Caller
from substrate_services.world.broker_client import BrokerClient
from substrate_services.world.execs import Execs
from substrate_services.world.flowing import StepNetwork
from substrate_services.world.images.importing import Images
from substrate_services.world.images.store import ImageStore
from substrate_services.world.looks import Looks
from substrate_services.world.networks import Networks
from substrate_services.world.observing import SegmentTelemetry
from substrate_services.world.ports import Ports
from substrate_services.world.reaping import is_over, needs_host
from substrate_services.world.recording import Recorder
from substrate_services.world.rollback import Rollbacks
from substrate_services.world.server import WorldServicer
from substrate_services.world.shells import Shells
from substrate_services.world.updating import Updates
from substrate_services.world.worlds import Worlds

log = logging.getLogger(__name__)

_REAP_INTERVAL_S = 5.0
_GRACE_S = 5.0  # for calls under way when the host ends
_CHANNEL_OPTIONS = (("grpc.max_receive_message_length", 64 << 20),)


@dataclass(frozen=True, slots=True)
class HostConfig:
    """How a host runs.

    Attributes:
        home: ``$SUBSTRATE_HOME``.
        trace_path: the journal; ``trace.jsonl`` in the home by default.
        idle_s: the host ends after this long without calls, execs and worlds that are not kept;
            None for never.
        development: serve reflection too.
        version: of Substrate.
        warm_pool: how many worlds to keep ready before anybody asks for them.
    """

    home: Path
    trace_path: Path
    idle_s: float | None
    development: bool
    version: str
    warm_pool: int = 0


class Host:
    """One host process; :meth:`run` serves until it is told to stop or has nothing to do."""

    def __init__(self, config: HostConfig) -> None:
        self._config = config
        self._paths = HostPaths(config.home)
        self._stop = asyncio.Event()
        self._last_call = time.monotonic()
        self._calls = 0

    def stop(self) -> None:
        """End the host; kept worlds and running commands go on."""
        self._stop.set()

    async def run(self, ready: Callable[[], None]) -> None:
        """Serve.

        Args:
            ready: called once clients can connect.

        Raises:
            JournalBusy: another host has this home.
            OSError: the home or the socket cannot be used.
        """
        config = self._config
        private_directory(config.home)
        private_directory(Path(self._paths.run_dir))
        async with contextlib.AsyncExitStack() as stack:
            journal = Journal(config.trace_path)
            stack.callback(journal.close)
            store = ObjectStore(config.home / "objects")
            stack.callback(store.close)
            reader = JournalReader(config.trace_path)
            backend = NativeBackend(
                Path(self._paths.launcher_socket),
                config.home / "launcher",
                on_world_gone=_log_gone,
            )
            stack.push_async_callback(backend.close)
            projection = OtelProjection.from_environment(host_id(), config.version)
            if projection is not None:
                stack.callback(projection.close)
            networks = Networks(
                Path(self._paths.run_dir, "net"), config.home / "network.log", backend.capabilities
            )
            stack.push_async_callback(networks.close)
            image_store = ImageStore(config.home)
            worlds = Worlds(
                home=config.home,
                backend=backend,
                store=store,
                journal=journal,
                reader=reader,
                preload_dir=native_directory(),
                images=image_store,
                networks=networks,
                warm_pool=config.warm_pool,
            )
            stack.push_async_callback(worlds.close)
            channel = grpc.aio.insecure_channel(
                f"unix:{self._paths.host_socket}", options=_CHANNEL_OPTIONS
            )
            stack.push_async_callback(channel.close)
            decoders = Decoders()
            decoders.start()
            stack.push_async_callback(decoders.close)
            step_network = StepNetwork(networks, journal)
            worlds.closers.append(step_network.finish)
            ports = Ports(networks, journal)
            worlds.openers.append(ports.restore)
            recorder = Recorder(
                store=store,
                journal=journal,
                network=step_network,
                telemetry=SegmentTelemetry(store, backend.sync_ledger, decoders),
                projection=projection,
            )
            broker = BrokerClient(channel)
            execs = Execs(
                worlds=worlds,
                store=store,
                journal=journal,
                reader=reader,
                decider=broker,
                recorder=recorder,
            )
            stack.push_async_callback(execs.drain)
            looks = Looks()
            shells = Shells(worlds=worlds, execs=execs)
            # Shells first: where one is is known when its command is recorded.
            worlds.listeners += [shells, execs, looks]
            worlds.closers.append(shells.forget)
            rollbacks = Rollbacks(worlds=worlds, execs=execs, reader=reader)
            applies = Applies(
                home=config.home,
                execs=execs,
                store=store,
                rollbacks=rollbacks,
                caller=Caller.own(),
            )
            admission = Admission(broker, journal)
            worlds.admitters.append(admission.require)
            updates = Updates(
                backend=backend, journal=journal, networks=networks, admission=admission
            )
            availability = Availability(backend)
            replays = Replays(Runner(engine=LocalEngine(channel), reader=reader, store=store))
            stack.push_async_callback(replays.close)
            agent = AgentServicer(Sessions(journal), reader, channel)
            await self._recover(
                backend,
                worlds=worlds,
                rollbacks=rollbacks,
                applies=applies,
                updates=updates,
                execs=execs,
                shells=shells,
                agent=agent,
            )
            server = await build_server(
                [
                    agent,
                    BrokerServicer(PolicySource(config.home)),
                    WorldServicer(
                        availability=availability,
                        worlds=worlds,
                        execs=execs,
                        shells=shells,
                        looks=looks,
                        rollbacks=rollbacks,
                        applies=applies,
                        updates=updates,
                        images=Images(image_store, worlds.on_image),
                        ports=ports,
                        broker=broker,
                        reader=reader,
                        store=store,
                        version=config.version,
                    ),
                    ReplayServicer(replays),
                    TraceServicer(reader, store, host_id=host_id(), version=config.version),
                ],
                socket_path=Path(self._paths.host_socket),
                development=config.development,
            )
            await server.start()
            stack.push_async_callback(server.stop, _GRACE_S)
            stack.enter_context(_pid_file(Path(self._paths.host_pid)))
            ready()
            await self._serve(worlds, execs, replays)

    async def _recover(
        self,
        backend: NativeBackend,
        *,
        worlds: Worlds,
        rollbacks: Rollbacks,
        applies: Applies,
        updates: Updates,
        execs: Execs,
        shells: Shells,
        agent: AgentServicer,
    ) -> None:
        """Take over what an earlier host process left, before anybody can ask for it."""
        await agent.load()
        try:
            await backend.start()
        except BackendUnavailable as error:
            log.warning("worlds cannot be made here: %s; %s", error, error.fix)
            await applies.recover([])  # nobody's files are left half written
            return
        found = await worlds.recover()
        await rollbacks.recover(found)
        await applies.recover(found)
        await shells.recover(found)
        await updates.recover(found)
        await execs.recover(found)
        await shells.resume(found)
        await execs.drain()
        for world in found:
            # Its time may have passed while there was no host.
            if world.lost or is_over(world):
                await worlds.remove(world.spec.world_id, execs.end_all)

    # -- while it serves -----------------------------------------------------------------------

    async def _serve(self, worlds: Worlds, execs: Execs, replays: Replays) -> None:
        busy_since = time.monotonic()
        while not self._stop.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), self._interval())
            if self._stop.is_set():
                return
            for world in worlds.all():
                if is_over(world):
                    await worlds.remove(world.spec.world_id, execs.end_all)
            living = [world for world in worlds.all() if needs_host(world)]
            used = max((world.last_used for world in worlds.all()), default=0.0)
            if living or replays.running or self.calls_under_way():
                busy_since = time.monotonic()
            busy_since = max(busy_since, used, self._last_call)
            idle_s = self._config.idle_s
            if idle_s is not None and time.monotonic() - busy_since >= idle_s:
                return

    def _interval(self) -> float:
        if self._config.idle_s is None:
            return _REAP_INTERVAL_S
        return min(_REAP_INTERVAL_S, max(0.1, self._config.idle_s / 4))

    def calls_under_way(self) -> int:
        """RPCs that have not been answered."""
        return self._calls


@contextlib.contextmanager
def _pid_file(path: Path) -> Iterator[None]:
    path.write_text(f"{os.getpid()}\n")
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _log_gone(world_id: str, status: int) -> None:
    """A world's init ended unasked: with an exit code it gave up by itself, and the code is why."""
    code = os.waitstatus_to_exitcode(status)
    how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
    log.warning("the init of world %s ended %s", world_id, how)
