"""Changing a world, when the client does not stay to see it."""

from __future__ import annotations

import asyncio
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any
from unittest.mock import AsyncMock, Mock

from substrate_sdk._pb.substrate.world.v1alpha1 import worlds_pb2
from substrate_services.world import updating_rpcs
from substrate_services.world.limits import NO_LIMITS
from substrate_services.world.spec import WorldSpec, WorldState
from substrate_services.world.updating import Updates
from substrate_services.world.updating_rpcs import UpdatingRpcs

if TYPE_CHECKING:
    from collections.abc import Coroutine

    import pytest


def test_a_change_is_made_whole_though_its_client_goes() -> None:
    async def run() -> list[str]:
        done: list[str] = []

        async def pause(_world: object) -> None:
            done.append("frozen")
            await asyncio.sleep(0.02)
            done.append("written down")

        rpcs = UpdatingRpcs()
        rpcs._worlds, rpcs._updates = Mock(), Mock(pause=pause)
        call = asyncio.create_task(rpcs.PauseWorld(worlds_pb2.PauseWorldRequest(), Mock()))
        await asyncio.sleep(0.01)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        await asyncio.sleep(0.05)
        return done

    assert asyncio.run(run()) == ["frozen", "written down"]


class _World:
    """What an update asks of a world."""

    def __init__(self, spec: WorldSpec) -> None:
        self.state = WorldState(spec, "", "", None)
        self.exchanging = asyncio.Lock()
        self.tree = Mock(recording=asyncio.Lock())
        self.lost = self.removing = False
        self.box = self.save = self.touch = Mock()

    @property
    def spec(self) -> WorldSpec:
        return self.state.spec


def test_an_update_does_not_bring_back_what_another_takes_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each was a whole spec, made before its turn: the later one opened the network again."""
    monkeypatch.setattr(updating_rpcs, "world_to_proto", lambda *_, **__: worlds_pb2.World())
    nothing: dict[str, Any] = dict.fromkeys((field.name for field in fields(WorldSpec)), "")
    world = _World(replace(WorldSpec(**nothing), network=("full",), labels=(), limits=NO_LIMITS))
    attached: list[tuple[str, ...]] = []
    closing, asked_again = asyncio.Event(), asyncio.Event()

    async def attach(_world_id: str, _box: object, rules: tuple[str, ...]) -> None:
        closing.set()
        await asked_again.wait()
        attached.append(rules)

    async def run() -> None:
        rpcs = UpdatingRpcs()
        rpcs._worlds = Mock(get=lambda _world_id: world)
        rpcs._updates = Updates(
            backend=Mock(limit=AsyncMock()),
            journal=Mock(),
            networks=Mock(attach=attach),
            admission=Mock(require=AsyncMock()),
        )

        def change(path: str) -> Coroutine[object, object, worlds_pb2.UpdateWorldResponse]:
            request = worlds_pb2.UpdateWorldRequest(world=worlds_pb2.World(keep=True))
            request.update_mask.paths.append(path)
            return rpcs.UpdateWorld(request, Mock())

        async with asyncio.TaskGroup() as group:
            group.create_task(change("network"))
            await closing.wait()
            group.create_task(change("keep"))
            await asyncio.sleep(0)  # it begins
            asked_again.set()

    asyncio.run(run())
    assert (world.spec.network, world.spec.keep) == ((), True)
    assert attached == [()]
