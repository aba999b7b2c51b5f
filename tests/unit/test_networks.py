"""A world's rules on their way to the network helper, when that one is killed meanwhile."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING
from unittest.mock import Mock

from substrate_services.world import networks
from substrate_services.world.networks import Networks

if TYPE_CHECKING:
    import pytest

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
