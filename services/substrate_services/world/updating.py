"""Changing a world that lives: its limits, its time, its labels; pausing and resuming it."""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Callable, Collection
from dataclasses import replace

from substrate_services.errors import InvalidField, ServiceError
from substrate_services.journal.codec import lifecycle_line
from substrate_services.journal.jsontypes import JsonValue
from substrate_services.journal.writer import Journal
from substrate_services.world.admitting import Admission
from substrate_services.world.backends.base import Backend, BackendError
from substrate_services.world.init_client import InitError, InitGone
from substrate_services.world.networks import Networks
from substrate_services.world.spec import WorldSpec
from substrate_services.world.worlds import World

log = logging.getLogger(__name__)


class Updates:
    """Changes the worlds of one host.

    Args:
        backend: enforces limits.
        journal: hears of every change.
        networks: enforces network rules.
        admission: says whether a world may have a network.
    """

    def __init__(
        self, *, backend: Backend, journal: Journal, networks: Networks, admission: Admission
    ) -> None:
        self._admission = admission
        self._backend = backend
        self._journal = journal
        self._networks = networks

    async def update(
        self, world: World, change: Callable[[WorldSpec], WorldSpec], names: Collection[str]
    ) -> None:
        """Let a world be as another spec says; steps that begin later are bound by that.

        Args:
            world: the world.
            change: gives its spec with other values in the fields that may change. Asked when
                nobody else changes it: what another update has taken away stays so.
            names: what is changed, for the journal.

        Raises:
            InvalidField: of a limit that cannot be changed while the world lives.
            ServiceError: WORLD_LOST, LIMIT_UNAVAILABLE, NO_NETWORK, POLICY_DENIED.
        """
        # One at a time, and none between a step and its record: both write the world's file.
        async with world.exchanging, world.tree.recording:
            _require_living(world)
            wanted = change(world.spec)
            now, new = world.spec.limits, wanted.limits
            for name in ("disk_bytes", "inodes"):
                if getattr(now, name) != getattr(new, name):
                    raise InvalidField(
                        f"world.limits.{name}",
                        getattr(new, name),
                        "the disk of a world that lives stays as it is; make another world, or "
                        "fork this one",
                    )
            new.require(self._backend.capabilities())
            if world.spec.network != wanted.network:
                await self._admission.require(wanted)
            before = world.state
            try:
                await self._enforce(world, before.spec, wanted)
                world.state = replace(before, spec=wanted)
                await asyncio.to_thread(world.save)
            except BaseException:
                # All of it or nothing: what is refused leaves no part of itself behind.
                world.state = before
                await self._set_back_limits(before.spec)
                if before.spec.network != wanted.network:
                    await self._set_back_network(world, before.spec)
                raise
            world.touch()
            self._log(world, "world_updated", _told(wanted, names))

    async def _enforce(self, world: World, now: WorldSpec, new: WorldSpec) -> None:
        if now.limits.for_box != new.limits.for_box:
            try:
                await self._backend.limit(world.spec.world_id, new.limits.for_box)
            except BackendError as error:
                raise ServiceError("LIMIT_UNAVAILABLE", str(error)) from error
        if now.network != new.network and world.box is not None:
            await self._networks.attach(world.spec.world_id, world.box, new.network)

    async def _set_back_limits(self, spec: WorldSpec) -> None:
        try:
            await self._backend.limit(spec.world_id, spec.limits.for_box)
        except BackendError as error:
            log.warning("the limits of world %s are not what they were: %s", spec.world_id, error)

    async def _set_back_network(self, world: World, spec: WorldSpec) -> None:
        try:
            if world.box is not None:
                await self._networks.attach(spec.world_id, world.box, spec.network)
        except ServiceError as error:
            log.warning("the network of world %s is not what it was: %s", spec.world_id, error)

    async def pause(self, world: World) -> None:
        """Stop everything in a world. Idempotent.

        Raises:
            ServiceError: WORLD_LOST, NOT_PAUSED.
        """
        async with world.exchanging, world.gate.alone():
            _require_living(world)
            if world.state.paused:
                return
            try:
                await world.init.freeze(frozen=True)
            except InitError as error:
                raise ServiceError("NOT_PAUSED", _why_not(world, error)) from error
            except InitGone as error:
                raise _lost(world) from error
            await self._keep(world, paused=True)

    async def resume(self, world: World) -> None:
        """Let everything in a world go on. Idempotent. Raises ServiceError WORLD_LOST."""
        async with world.exchanging, world.gate.alone():
            _require_living(world)
            if not world.state.paused:
                return
            try:
                await world.init.freeze(frozen=False)
            except InitGone as error:
                raise _lost(world) from error
            await self._keep(world, paused=False)

    async def _keep(self, world: World, *, paused: bool) -> None:
        async with world.tree.recording:
            world.state = replace(world.state, paused=paused)
            await asyncio.to_thread(world.save)
        world.touch()
        self._log(world, "world_paused" if paused else "world_resumed", {})

    async def recover(self, worlds: list[World]) -> None:
        """Make the worlds of an earlier host process what their files say that they are."""
        for world in worlds:
            if not world.lost:
                # That process may have ended between a change and its file; of the network too,
                # which a world has again as soon as it is found.
                await self._set_back_limits(world.spec)
                try:
                    # Also to thaw: that process may have ended before it had noted it down.
                    await world.init.freeze(frozen=world.state.paused)
                except (InitError, InitGone):
                    log.warning("world %s cannot be paused again", world.spec.world_id)

    def _log(self, world: World, event_type: str, detail: dict[str, JsonValue]) -> None:
        self._journal.append(
            lifecycle_line(
                event_type,
                session_id=world.spec.session_id,
                world_id=world.spec.world_id,
                agent_id=world.spec.agent_id,
                detail=detail,
            )
        )


def _require_living(world: World) -> None:
    if world.lost or world.removing:
        raise _lost(world)


def _lost(world: World) -> ServiceError:
    return ServiceError("WORLD_LOST", f"world {world.spec.world_id} has ended; make another")


def _why_not(world: World, error: InitError) -> str:
    if error.error == errno.ENOSYS:
        return f"world {world.spec.world_id} was made by an older version, which cannot pause"
    return (
        f"world {world.spec.world_id} goes on: a process of it waits in the kernel and cannot be "
        "stopped now; try again"
    )


def _told(spec: WorldSpec, names: Collection[str]) -> dict[str, JsonValue]:
    values: dict[str, JsonValue] = {
        "limits": dict(spec.limits.to_action()),
        "expires_at": spec.expires_at,
        "idle_timeout_s": spec.idle_timeout_s,
        "labels": dict(spec.labels),
        "keep": spec.keep,
        "network": list(spec.network),
    }
    return {name: value for name, value in values.items() if name in names}
