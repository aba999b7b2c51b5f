"""Whose turn it is in a persistent shell."""

from __future__ import annotations

import asyncio
import errno
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from substrate_services.world.ended import Ended
from substrate_services.world.init_client import InitError
from substrate_services.world.shell_state import Shell
from substrate_services.world.shells import Shells
from substrate_services.world.steps import Begin, ExecRequest


class _Execs:
    """Starts what it is given once it is allowed to; nothing of it ends."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.allowed = asyncio.Event()
        self.started: list[str] = []
        self.interrupted = False

    def find(self, _world: object, _exec_id: str) -> None:
        return None

    async def start(self, _world: object, request: ExecRequest, begin: Begin | None) -> object:
        self.asked.set()
        await self.allowed.wait()
        self.started.append(request.exec_id)
        made = SimpleNamespace(exec_id=request.exec_id, done=asyncio.Event(), ended=None)
        if self.interrupted and begin is not None:
            made.ended = await begin(cast("Any", made), {})
        return made


async def _client_goes() -> list[str]:
    execs = _Execs()
    shells = Shells(worlds=cast("Any", None), execs=cast("Any", execs))
    shell = Shell(shell_id="one", path=Path("/nowhere"), argv=(), env={}, cwd=b"/")
    world = cast(
        "Any",
        SimpleNamespace(
            shells={"one": shell}, spec=SimpleNamespace(world_id="wld_1"), removing=False
        ),
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


class _Init:
    """Knows of no command yet."""

    async def signal(self, _exec_id: str, _number: int, **_scope: object) -> None:
        raise InitError("signal", errno.ENOENT)


async def _interrupted_while_decided_about() -> object:
    execs = _Execs()
    execs.interrupted = True
    shells = Shells(worlds=cast("Any", None), execs=cast("Any", execs))
    shell = Shell(shell_id="one", path=Path("/nowhere"), argv=(), env={}, cwd=b"/")
    named = SimpleNamespace(world_id="wld_1")
    world = cast(
        "Any", SimpleNamespace(shells={"one": shell}, spec=named, init=_Init(), removing=False)
    )
    running = asyncio.create_task(shells.run(world, "one", ExecRequest(exec_id="first")))
    await execs.asked.wait()
    await shells.interrupt(world, "one")
    execs.allowed.set()
    done = await running
    await shells.forget(world)
    return done.ended


def test_an_interrupt_while_a_command_is_decided_about_ends_it_before_it_begins() -> None:
    ended = asyncio.run(_interrupted_while_decided_about())
    assert ended == Ended.interrupted()
    assert Ended.interrupted().exit_code == 130
