"""A world's rules on their way to the network helper, when that one is killed meanwhile."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from unittest.mock import AsyncMock, Mock, patch

import pytest

from substrate_services.errors import ServiceError
from substrate_services.world import networks
from substrate_services.world.networks import Networks
from substrate_services.world.worlds import Worlds

WIDE, NARROW = ("full",), ("192.0.2.1/32",)


def test_a_helper_that_dies_in_a_change_is_told_the_new_rules_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever tells the next helper what there is would open again what was being closed."""
    monkeypatch.setattr(networks, "_require_programs", lambda: None)
    told: list[list[str]] = []
    gone = asyncio.Event()

    async def helper(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first = not told
        while line := await reader.readline():
            request = json.loads(line)
            told.append(request["rules"])
            if first and len(told) == 2:  # dies before it answers
                break
            writer.write(json.dumps({"id": request["id"]}).encode() + b"\n")
        writer.close()
        await writer.wait_closed()
        if not first:
            gone.set()

    async def run() -> None:
        directory = tmp_path / "network"
        server = await asyncio.start_unix_server(helper, directory.with_suffix(".sock"))
        pidfd = os.pidfd_open(os.getpid())
        box = Mock(init_pid=os.getpid(), pidfd=pidfd)
        capabilities = Mock(router_pid=1, rootless=False)
        known = Networks(directory, tmp_path / "log", lambda: capabilities)
        try:
            async with server:
                await known.attach("w", box, WIDE)
                await known.attach("w", box, NARROW)
                restoring = known._restarting
                assert restoring is not None
                await restoring
                await known.close()
                await gone.wait()
        finally:
            os.close(pidfd)

    asyncio.run(run())
    assert told[:2] == [list(WIDE), list(NARROW)]
    assert told[-1] == list(NARROW)


def test_a_helper_that_cannot_be_started_is_one_line_and_lets_worlds_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the system refuses: whose removal failed over it stayed for ever."""
    monkeypatch.setattr(networks, "_require_programs", lambda: None)

    async def run() -> str:
        known = Networks(tmp_path / "network", tmp_path / "none" / "log", Mock())
        pidfd = os.pidfd_open(os.getpid())
        try:
            with pytest.raises(ServiceError) as refused:
                await known.attach("w", Mock(init_pid=os.getpid(), pidfd=pidfd), WIDE)
        finally:
            os.close(pidfd)
        known._had.add("w")
        await known.forget("w")
        return refused.value.reason

    assert asyncio.run(run()) == "NO_NETWORK"


def test_a_world_that_is_set_back_does_without_a_network_that_cannot_be() -> None:
    """Its tree was another already, and the record said that the step had failed."""
    refuse = AsyncMock(side_effect=ServiceError("NO_NETWORK", "the helper does not start"))
    restored = AsyncMock()
    worlds = Worlds.__new__(Worlds)
    worlds.networks = Mock(attach=refuse)
    worlds.openers = [restored]
    worlds._backend = Mock(create=AsyncMock())
    world = Mock(lost=False)
    with (
        patch.object(Worlds, "_box_spec_of"),
        patch.object(Worlds, "_attach", AsyncMock()),
    ):
        asyncio.run(worlds._put_in_box(world))
    assert refuse.await_count == 1
    restored.assert_awaited_once_with(world)
    assert not world.lost
