"""The replays of one host: started once, watched by many, reported."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Literal

from substrate_services.errors import ServiceError
from substrate_services.replay.report import Report
from substrate_services.replay.runner import Progress, ReplayRequest, Runner

log = logging.getLogger(__name__)

ReplayState = Literal["running", "finished", "cancelled", "failed"]
KEPT = 1_000  # finished replays whose reports are remembered


@dataclass(slots=True)
class Replay:
    """A replay that this host process knows."""

    request: ReplayRequest
    created_at: float = field(default_factory=time.time)
    state: ReplayState = "running"
    progress: list[Progress] = field(default_factory=list)
    report: Report | None = None
    error: Exception | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None

    def wake(self) -> None:
        """Tell all watchers to look again."""
        self.changed.set()
        self.changed = asyncio.Event()


class Replays:
    """Starts and remembers replays.

    Args:
        runner: replays one step.
    """

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._replays: dict[str, Replay] = {}

    def start(self, request: ReplayRequest) -> Replay:
        """Start a replay; the same replay_id gives the same replay."""
        known = self._replays.get(request.replay_id)
        if known is not None:
            return known
        replay = Replay(request)
        self._replays[request.replay_id] = replay
        self._forget_oldest()
        replay.task = asyncio.create_task(self._run(replay))
        return replay

    async def _run(self, replay: Replay) -> None:
        def tell(progress: Progress) -> None:
            replay.progress.append(progress)
            replay.wake()

        try:
            replay.report = await self._runner.replay(replay.request, tell)
            replay.state = "finished"
        except asyncio.CancelledError:
            replay.state = "cancelled"
            raise
        except Exception as error:  # noqa: BLE001 # the root of the replay's task
            # Told to everybody who watches or asks; a fault of ours is logged there.
            replay.state = "failed"
            replay.error = error
        finally:
            replay.wake()

    def get(self, replay_id: str) -> Replay:
        """The replay. Raises ServiceError REPLAY_NOT_FOUND."""
        replay = self._replays.get(replay_id)
        if replay is None:
            raise ServiceError(
                "REPLAY_NOT_FOUND",
                f"this host knows no replay {replay_id!r}; its runs are in the trace "
                "(`substrate trace ls`), and it can be started again",
            )
        return replay

    def all(self) -> list[Replay]:
        """The replays, newest first."""
        return sorted(self._replays.values(), key=lambda replay: replay.created_at, reverse=True)

    async def watch(self, replay: Replay) -> AsyncIterator[Progress]:
        """Progress from the start, until the replay is over.

        Raises what made a failed replay fail.
        """
        told = 0
        while True:
            changed = replay.changed
            while told < len(replay.progress):
                yield replay.progress[told]
                told += 1
            if replay.state != "running":
                break
            await changed.wait()
        if replay.error is not None:
            raise replay.error

    async def cancel(self, replay: Replay) -> None:
        """End a replay and wait until nothing of it runs. Idempotent."""
        if replay.task is not None and not replay.task.done():
            replay.task.cancel()
            await asyncio.wait([replay.task])

    async def close(self) -> None:
        """End all replays."""
        for replay in self._replays.values():
            await self.cancel(replay)

    @property
    def running(self) -> int:
        """Replays that are not over."""
        return sum(replay.state == "running" for replay in self._replays.values())

    def _forget_oldest(self) -> None:
        over = [key for key, replay in self._replays.items() if replay.state != "running"]
        for key in over[: max(0, len(self._replays) - KEPT)]:
            del self._replays[key]
