"""Changing a world, when the client does not stay to see it."""

from __future__ import annotations

import asyncio
from unittest.mock import Mock

from substrate_sdk._pb.substrate.world.v1alpha1 import worlds_pb2
from substrate_services.world.updating_rpcs import UpdatingRpcs


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
