"""A door that many may pass together, or one alone."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator


class Gate:
    """Lets commands start side by side, and holds them off while a world's tree is exchanged.

    Whoever wants the place alone holds newcomers off at once, and waits for those inside.
    """

    def __init__(self) -> None:
        self._inside = 0
        self._taken = asyncio.Lock()
        self._empty = asyncio.Event()
        self._empty.set()

    @contextlib.asynccontextmanager
    async def shared(self) -> AsyncIterator[None]:
        """Be inside together with others."""
        async with self._taken:
            self._inside += 1
            self._empty.clear()
        try:
            yield
        finally:
            self._inside -= 1
            if self._inside == 0:
                self._empty.set()

    @contextlib.asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """Be inside alone."""
        async with self._taken:
            await self._empty.wait()
            yield
