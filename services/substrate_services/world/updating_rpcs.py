"""Changing, pausing and resuming worlds on the wire."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from dataclasses import fields, replace

from substrate_sdk._pb.substrate.world.v1alpha1 import worlds_pb2
from substrate_services.errors import InvalidField
from substrate_services.wire import validation
from substrate_services.wire.errors import Context
from substrate_services.world.limits import Limits
from substrate_services.world.limits_wire import limits_from_proto
from substrate_services.world.messages import checked_labels, world_to_proto
from substrate_services.world.networks import read_rules
from substrate_services.world.spec import WorldSpec
from substrate_services.world.updating import Updates
from substrate_services.world.worlds import Worlds

_PARTS = {
    "runtime" if field.name == "runtime_s" else field.name: field.name for field in fields(Limits)
}
_NAMES = ("limits", "network", "expires_at", "idle_timeout", "labels", "keep")


class UpdatingRpcs:
    """A part of :class:`~substrate_services.world.server.WorldServicer`."""

    _worlds: Worlds
    _updates: Updates

    async def UpdateWorld(
        self, request: worlds_pb2.UpdateWorldRequest, context: Context
    ) -> worlds_pb2.UpdateWorldResponse:
        """See the contract."""
        world = self._worlds.get(request.world_id)
        paths = _checked(request.update_mask.paths)
        named = {"idle_timeout_s" if path == "idle_timeout" else path for path in paths}

        def change(spec: WorldSpec) -> WorldSpec:
            return updated(spec, request.world, paths)

        await _whole(self._updates.update(world, change, {name.split(".")[0] for name in named}))
        moved = await asyncio.to_thread(world.tree.moved_base)
        return worlds_pb2.UpdateWorldResponse(world=world_to_proto(world, moved_base=moved))

    async def PauseWorld(
        self, request: worlds_pb2.PauseWorldRequest, context: Context
    ) -> worlds_pb2.PauseWorldResponse:
        """See the contract."""
        await _whole(self._updates.pause(self._worlds.get(request.world_id)))
        return worlds_pb2.PauseWorldResponse()

    async def ResumeWorld(
        self, request: worlds_pb2.ResumeWorldRequest, context: Context
    ) -> worlds_pb2.ResumeWorldResponse:
        """See the contract."""
        await _whole(self._updates.resume(self._worlds.get(request.world_id)))
        return worlds_pb2.ResumeWorldResponse()


async def _whole(work: Coroutine[object, object, None]) -> None:
    """Do it to the end, though the client goes: what holds in the kernel is to be written down."""
    await asyncio.shield(asyncio.ensure_future(work))


def _checked(paths: Iterable[str]) -> tuple[str, ...]:
    found = tuple(dict.fromkeys(paths))
    if not found:
        raise InvalidField("update_mask", "", f"expected some of {', '.join(_NAMES)}")
    for path in found:
        whole, _, part = path.partition(".")
        if whole not in _NAMES or (part and (whole != "limits" or part not in _PARTS)):
            raise InvalidField(
                "update_mask",
                path,
                f"expected some of {', '.join(_NAMES)}, or limits.{' limits.'.join(_PARTS)}",
            )
    return found


def updated(spec: WorldSpec, values: worlds_pb2.World, paths: Iterable[str]) -> WorldSpec:
    """A spec with the named values of a message.

    Raises:
        InvalidField: one cannot be used.
    """
    wanted = limits_from_proto(values.limits)
    for path in paths:
        whole, _, part = path.partition(".")
        if part:
            name = _PARTS[part]
            spec = replace(spec, limits=replace(spec.limits, **{name: getattr(wanted, name)}))
        elif whole == "limits":
            spec = replace(spec, limits=wanted)
        elif whole == "network":
            spec = replace(spec, network=read_rules(tuple(values.network)).texts)
        elif whole == "expires_at":
            at = None
            if values.HasField("expires_at"):
                at = validation.timestamp_s("world.expires_at", values.expires_at)
            spec = replace(spec, expires_at=at)
        elif whole == "idle_timeout":
            idle_s = None
            if values.HasField("idle_timeout"):
                idle_s = validation.duration_s("world.idle_timeout", values.idle_timeout)
            spec = replace(spec, idle_timeout_s=idle_s)
        elif whole == "labels":
            spec = replace(spec, labels=checked_labels("world.labels", values.labels))
        else:
            spec = replace(spec, keep=values.keep)
    return spec
