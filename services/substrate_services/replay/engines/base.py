"""What a replay needs of an engine: fresh worlds with a recorded tree, and runs in them.

One host does it with asyncio (:mod:`.local`); many hosts will do it with a distributed engine
behind the same interface (DESIGN §9).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class MissingPath:
    """Something of a recorded tree that a host cannot give."""

    path: bytes
    reason: str


class CannotRestore(Exception):
    """The recorded tree cannot be had; ``missing`` says what of it, as far as it is told."""

    def __init__(self, message: str, missing: tuple[MissingPath, ...]) -> None:
        super().__init__(message)
        self.missing = missing


@dataclass(frozen=True, slots=True)
class RestoredWorld:
    """A fresh world that shows a recorded tree."""

    world_id: str
    missing: tuple[MissingPath, ...]  # with the host's base used knowingly


class Engine(Protocol):
    """Makes worlds and runs recorded steps in them. Calls may be repeated with the same ids."""

    async def restore(
        self, span_id: str, *, request_id: str, use_host_base: bool, keep: bool
    ) -> RestoredWorld:
        """A fresh world with the tree before a span.

        Raises:
            CannotRestore: this host cannot give it.
        """
        ...

    async def run(self, world_id: str, span_id: str, *, exec_id: str) -> str:
        """Run a recorded step; returns the span id of the run once it is recorded."""
        ...

    async def remove(self, world_id: str) -> None:
        """Take a world down. Idempotent."""
        ...
