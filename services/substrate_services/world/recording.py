"""From an ended exec to its record: output, changes, telemetry, snapshot, and one line on disk."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from substrate_services.journal.codec import SpanStart, action_digest, decision_line, span_to_line
from substrate_services.journal.jsontypes import JsonObject, JsonValue
from substrate_services.journal.schema import Change, Coverage, SpanRecord
from substrate_services.journal.writer import Journal
from substrate_services.objects.store import ObjectStore
from substrate_services.telemetry.coverage import step_coverage
from substrate_services.telemetry.decode import DecodeSummary, decode_segments
from substrate_services.world.blocked import explain_blocked, watch_prefixes
from substrate_services.world.ended import Ended
from substrate_services.world.output_log import split_streams
from substrate_services.world.worlds import World, Worlds

INLINE_CHANGES = 1_000
INLINE_PROCESSES = 256
INLINE_EVENTS = 256


class Projection(Protocol):
    """Where finished spans go besides the journal."""

    def export(self, record: SpanRecord, events: Sequence[Mapping[str, JsonValue]]) -> None:
        """Take a finished step. Never blocks, never raises."""


@dataclass(frozen=True, slots=True)
class _Output:
    stdout: str | None
    stderr: str | None
    framed: str | None
    stdout_bytes: int
    stderr_bytes: int


class Recorder:
    """Makes the records of one host.

    Args:
        store: the host's objects.
        journal: the host's journal.
        worlds: for what is left of dead worlds.
        projection: OpenTelemetry, or None.
    """

    def __init__(
        self,
        *,
        store: ObjectStore,
        journal: Journal,
        worlds: Worlds,
        projection: Projection | None,
    ) -> None:
        self._store = store
        self._journal = journal
        self._worlds = worlds
        self._projection = projection

    async def record(
        self, world: World, start: SpanStart, directory: Path, ended: Ended
    ) -> SpanRecord:
        """Record an ended exec; returns once its line is on disk.

        Raises:
            JournalFull, OSError: there is no space; nothing recorded before is lost.
        """
        output = await asyncio.to_thread(self._keep_output, directory, start, ended)
        start = await asyncio.to_thread(self._keep_stdin, directory, start)
        ...
