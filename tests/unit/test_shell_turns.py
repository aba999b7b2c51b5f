"""Whose turn it is in a persistent shell."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from substrate_services.world.shell_state import Shell
from substrate_services.world.shells import Shells
from substrate_services.world.steps import ExecRequest


class _Execs:
    """Starts what it is given once it is allowed to; nothing of it ends."""

    def __init__(self) -> None:
        self.allowed = asyncio.Event()
        self.started: list[str] = []

    def find(self, _world: object, _exec_id: str) -> None:
        return None

    async def start(self, _world: object, request: ExecRequest, _begin: object) -> object:
        await self.allowed.wait()
        self.started.append(request.exec_id)
        return SimpleNamespace(done=asyncio.Event())


async def _client_goes() -> list[str]:
    execs = _Execs()
    shells = Shells(worlds=cast("Any", None), execs=cast("Any", execs))
    shell = Shell(shell_id="one", path=Path("/nowhere"), argv=(), env={}, cwd=b"/")
    world = cast(
        "Any", SimpleNamespace(shells={"one": shell}, spec=SimpleNamespace(world_id="wld_1"))
    )
    first = asyncio.create_task(shells.run(world, "one", ExecRequest(exec_id="first")))
    await asyncio.sleep(0.01)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    second = asyncio.create_task(shells.run(world, "one", ExecRequest(exec_id="second")))
    await asyncio.sleep(0.01)
    execs.allowed.set()
    await asyncio.sleep(0.01)
    second.cancel()
    return execs.started


def test_a_client_that_goes_while_its_command_is_decided_about_leaves_it_the_turn() -> None:
    assert asyncio.run(_client_goes()) == ["first"]
