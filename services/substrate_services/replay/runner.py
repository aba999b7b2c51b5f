"""One replay, from the recording to the report (DESIGN §9)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass

from substrate_services.errors import ServiceError
from substrate_services.journal.action import action_digest
from substrate_services.journal.codec import display_command
from substrate_services.journal.parts import change_from_json
from substrate_services.journal.reader import JournalReader
from substrate_services.journal.schema import Change, SpanRecord
from substrate_services.objects.errors import ObjectMissing
from substrate_services.objects.store import ObjectStore
from substrate_services.replay.compare import CompareOptions, compare, describe_exit
from substrate_services.replay.engines.base import CannotRestore, Engine, MissingPath
from substrate_services.replay.lookups import files_looked_up
from substrate_services.replay.observed import Observed, observe
from substrate_services.replay.report import (
    Missing,
    Report,
    RunOutcome,
    Subject,
    make_report,
    run_outcome,
)

_HOST_NAME = b"substrate"
_NOT_REPLAYED = ("apply", "discard", "rollback")


@dataclass(frozen=True, slots=True)
class ReplayRequest:
    """What to replay, and how."""

    replay_id: str
    span_id: str
    runs: int = 1
    use_host_base: bool = False
    keep_worlds: bool = False
    compare_mtime: bool = False


@dataclass(frozen=True, slots=True)
class Progress:
    """A stage of a replay that has begun."""

    stage: str
    run: int
    runs: int
    text: str


Tell = Callable[[Progress], None]


class Runner:
    """Replays recorded steps.

    Args:
        engine: where the runs happen.
        reader: reads the journal.
        store: where output and trees are.
    """

    def __init__(self, *, engine: Engine, reader: JournalReader, store: ObjectStore) -> None:
        self._engine = engine
        self._reader = reader
        self._store = store

    async def replay(self, request: ReplayRequest, tell: Tell) -> Report:
        """Replay one step and compare each run with the recording.

        Raises:
            ServiceError: SPAN_NOT_FOUND.
        """
        tell(Progress("reading", 0, request.runs, f"reading span {request.span_id}"))
        recorded = await asyncio.to_thread(self._reader.find_span, request.span_id)
        if recorded is None:
            raise ServiceError(
                "SPAN_NOT_FOUND",
                f"no span {request.span_id!r} is recorded here; `substrate trace ls` shows them",
            )
        before = await asyncio.to_thread(self._observe, recorded)
        subject = Subject(
            span_id=recorded.span_id,
            action_digest=action_digest(recorded.action),
            command=display_command(recorded.action.command).encode(),
            outcome=describe_exit(before),
            duration_ms=recorded.duration_ms,
            session_id=recorded.session_id,
        )
        refusal = _cannot_be_replayed(recorded)
        if refusal is not None:
            return make_report(subject, (run_outcome(1, None, reason=refusal),))
        runs: list[RunOutcome] = []
        missing: tuple[Missing, ...] = ()
        for number in range(1, request.runs + 1):
            outcome, found = await self._run(request, recorded, before, number, tell)
            runs.append(outcome)
            missing = missing or tuple(_as_missing(entry) for entry in found)
        return make_report(subject, tuple(runs), missing)

    async def _run(
        self,
        request: ReplayRequest,
        recorded: SpanRecord,
        before: Observed,
        number: int,
        tell: Tell,
    ) -> tuple[RunOutcome, tuple[MissingPath, ...]]:
        total = request.runs
        tell(Progress("restoring", number, total, "restoring the tree before the step"))
        # The same ids whenever this run is tried again: nothing runs twice.
        run_id = f"{request.replay_id}-{number}"
        try:
            world = await self._engine.restore(
                recorded.span_id,
                request_id=run_id,
                use_host_base=request.use_host_base,
                keep=request.keep_worlds,
            )
        except CannotRestore as error:
            return run_outcome(number, None, reason=str(error)), error.missing
        try:
            tell(Progress("running", number, total, display_command(recorded.action.command)))
            span_id = await self._engine.run(world.world_id, recorded.span_id, exec_id=run_id)
            tell(Progress("comparing", number, total, "comparing with the recording"))
            outcome = await asyncio.to_thread(self._compare, request, before, span_id, number)
            return outcome, world.missing
        finally:
            if not request.keep_worlds:
                await self._engine.remove(world.world_id)

    def _compare(
        self, request: ReplayRequest, before: Observed, span_id: str, number: int
    ) -> RunOutcome:
        record = self._reader.find_span(span_id)
        if record is None:
            return run_outcome(number, None, reason=f"the run's own span {span_id} is not recorded")
        after = self._observe(record)
        if record.termination_reason == "DENIED":
            return run_outcome(
                number,
                None,
                span_id=span_id,
                outcome=describe_exit(after),
                reason=f"policy denies it now: {record.decision.reason} "
                f"(rule {record.decision.rule_id})",
            )
        comparison = compare(
            before,
            after,
            objects=self._store,
            options=CompareOptions(mtime=request.compare_mtime),
        )
        return run_outcome(
            number,
            comparison,
            span_id=span_id,
            outcome=describe_exit(after),
            duration_ms=record.duration_ms,
        )

    def _observe(self, record: SpanRecord) -> Observed:
        files = files_looked_up(self._store, record.events_digest)
        return observe(
            record,
            self._store,
            changes=self._all_changes(record),
            files_read=files,
            endpoints=record.hosts,
            opened=(entry.path for entry in files or ()),
            host_name=_HOST_NAME,
        )

    def _all_changes(self, record: SpanRecord) -> tuple[Change, ...] | None:
        """All changes of a step; None where only those in the line are left."""
        if record.changes_digest is None or not record.changes_truncated:
            return None
        try:
            listed = json.loads(self._store.get(record.changes_digest))
        except ObjectMissing:
            return None
        return tuple(change_from_json(item) for item in listed)


def _cannot_be_replayed(recorded: SpanRecord) -> str | None:
    if recorded.termination_reason == "DENIED":
        return f"it never ran: policy denied it (rule {recorded.decision.rule_id})"
    if recorded.kind in _NOT_REPLAYED:
        return f"replaying a step of kind {recorded.kind} is not built yet: it runs no command"
    if recorded.shell is not None and recorded.shell.number > 1:
        # Its directory and its tree are recorded; what was set in the shell is not.
        return (
            f"it is command {recorded.shell.number} of shell {recorded.shell.shell_id}: what the "
            "commands before it set there is not recorded, and they are not replayed first yet"
        )
    if recorded.action.snapshot_id is None:
        return "the tree before it was not kept"
    return None


def _as_missing(entry: MissingPath) -> Missing:
    return Missing(entry.path, entry.reason)
