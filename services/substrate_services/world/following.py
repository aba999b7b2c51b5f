"""Reading an exec's output as it comes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from substrate_services.world.output_log import Frame
from substrate_services.world.steps import Exec

KEEPALIVE_S = 15.0


async def followed(exec_: Exec, offset: int) -> AsyncIterator[Frame | None]:
    """Output from an offset on, until the command has ended; None where there was none for long.

    Raises:
        FileNotFoundError: there is no output.
        OutputLogCorrupt: ``offset`` is not the start of a record.
    """
    frames = exec_.output.frames(offset)
    following: asyncio.Future[Frame | None] | None = None
    try:
        while True:
            following = asyncio.ensure_future(anext(frames, None))
            while not (await asyncio.wait([following], timeout=KEEPALIVE_S))[0]:
                yield None
            frame = following.result()
            if frame is None:
                return
            yield frame
    finally:
        if following is not None and not following.done():
            following.cancel()
            await asyncio.wait([following])
        await frames.aclose()
