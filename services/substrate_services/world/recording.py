"""From an ended exec to its record: output, changes, telemetry, snapshot, and one line on disk."""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Protocol

from substrate_services.journal import bytesjson
from substrate_services.journal.action import action_digest
from substrate_services.journal.codec import (
    SpanStart,
    decision_line,
    process_exit_line,
    process_start_line,
    span_to_line,
)
from substrate_services.journal.jsontypes import JsonObject
from substrate_services.journal.schema import Change, Coverage, Process, SpanRecord
from substrate_services.journal.writer import Journal
from substrate_services.objects.store import ObjectStore
from substrate_services.world.blocked import explain_blocked, watch_prefixes
from substrate_services.world.ended import Ended
from substrate_services.world.explained import unexplained_changes
from substrate_services.world.flowing import StepFlows
from substrate_services.world.limited import disk_blocked
from substrate_services.world.output_log import OutputLogCorrupt, Stream, read_frames
from substrate_services.world.tree import StepEffects
from substrate_services.world.worlds import World

INLINE_CHANGES = 1_000
INLINE_PROCESSES = 256
INLINE_EVENTS = 256
INLINE_HOSTS = 64
_SPOOL_BYTES = 1 << 20
# So much output and input is kept as objects at once, which takes less time than changing threads.
_AT_ONCE_BYTES = 16 << 10
_LOG, _STDIN = "output.log", "stdin"

_NEVER_RAN = Coverage("none", ("it never ran",))


@dataclass(frozen=True, slots=True)
class StepTelemetry:
    """What telemetry says about a step."""

    processes: tuple[Process, ...] = ()
    coverage: Coverage = _NEVER_RAN
    counts: tuple[tuple[str, int], ...] = ()
    events: tuple[JsonObject, ...] = ()  # bounded, what matters most first
    events_digest: str | None = None
    reads: tuple[bytes, ...] = ()
    hosts: tuple[str, ...] = ()
    # Paths that events may have changed; None where they do not tell of all.
    writes: tuple[bytes, ...] | None = None


@dataclass(slots=True)
class Attempt:
    """A step on its way into the record: what has been found out stays found out."""

    start: SpanStart
    directory: Path
    telemetry: StepTelemetry = field(default_factory=StepTelemetry)
    flows: StepFlows | None = None
    effects: StepEffects | None = None
    shared: bool = False  # something else ran in the world meanwhile
    queued: SpanRecord | None = None  # its lines are with the writer, and may be on disk


class Telemetry(Protocol):
    """Reads what a step's processes wrote about themselves."""

    async def read(
        self, world: World, start: SpanStart, watch: Sequence[bytes], ended: Ended
    ) -> StepTelemetry:
        """Decode the step's segments. Never raises: what cannot be read lowers the coverage."""
        ...


class Network(Protocol):
    """Tells what went over a world's network."""

    async def of_step(
        self, world: World, start: SpanStart, events: Sequence[JsonObject]
    ) -> StepFlows:
        """What belongs to a step that has ended."""
        ...


class Projection(Protocol):
    """Where finished spans go besides the journal."""

    def export(self, record: SpanRecord, events: Sequence[JsonObject]) -> None:
        """Take a finished step. Never blocks, never raises."""
        ...


@dataclass(frozen=True, slots=True)
class _Output:
    stdout: str | None = None
    stderr: str | None = None
    framed: str | None = None
    stdout_bytes: int = 0
    stderr_bytes: int = 0


class Recorder:
    """Makes the records of one host.

    Args:
        store: the host's objects.
        journal: the host's journal.
        telemetry: reads segments.
        network: tells of flows.
        projection: OpenTelemetry, or None.
    """

    def __init__(
        self,
        *,
        store: ObjectStore,
        journal: Journal,
        telemetry: Telemetry,
        network: Network,
        projection: Projection | None,
    ) -> None:
        self._store = store
        self._journal = journal
        self._telemetry = telemetry
        self._network = network
        self._projection = projection

    async def record(self, world: World, attempt: Attempt, ended: Ended) -> SpanRecord:
        """Record an ended exec; returns once its line is on disk.

        After a failure (a full disk, say) it may be called again with the same attempt, and goes
        on where it failed.

        Raises:
            JournalFull, OSError: there is no space; nothing recorded before is lost.
        """
        duration_ns = ended.duration_ns
        if duration_ns is None:
            duration_ns = max(0, time.time_ns() - round(attempt.start.start_time * 1e9))
        if not ended.never_ran and attempt.effects is None:
            # The decoder is another process: it works while the output is hashed here.
            watch = watch_prefixes(world.layout)
            read = self._telemetry.read(world, attempt.start, watch, ended)
            (output, start), attempt.telemetry = await asyncio.gather(
                self._kept_streams(attempt), read
            )
            if attempt.flows is None:
                seen = attempt.telemetry.events
                attempt.flows = await self._network.of_step(world, attempt.start, seen)
                attempt.telemetry = _with_flows(attempt.telemetry, attempt.flows)
        else:
            output, start = await self._kept_streams(attempt)
        # One step of a world at a time from its effects to its file: the snapshot that the file
        # names is the one that the next host compares with, whichever record is on disk first.
        async with world.tree.recording:
            # In one go: each change of threads costs as much as the shorter of these by itself.
            record = await asyncio.to_thread(
                self._finish,
                world,
                attempt,
                ended,
                start=start,
                output=output,
                duration_ns=duration_ns,
            )
        if self._projection is not None:
            self._projection.export(record, attempt.telemetry.events)
        return record

    async def _kept_streams(self, attempt: Attempt) -> tuple[_Output, SpanStart]:
        small = _size_of(attempt.directory / _LOG) + _size_of(attempt.directory / _STDIN)
        if small <= _AT_ONCE_BYTES:
            return self._keep_streams(attempt.directory, attempt.start)
        return await asyncio.to_thread(self._keep_streams, attempt.directory, attempt.start)

    def _finish(
        self,
        world: World,
        attempt: Attempt,
        ended: Ended,
        *,
        start: SpanStart,
        output: _Output,
        duration_ns: int,
    ) -> SpanRecord:
        """The part of :meth:`record` that concurrent steps take in turn; blocks."""
        if not ended.never_ran and attempt.effects is None:
            found, unexplained = _look_at_tree(world, attempt)
            attempt.effects = found
            coverage = _less_what_is_shared(
                _less_what_is_unread(attempt.telemetry.coverage, found.unread),
                attempt.shared,
            )
            attempt.telemetry = replace(
                attempt.telemetry, coverage=_less_what_is_unexplained(coverage, unexplained)
            )
        telemetry, effects = attempt.telemetry, attempt.effects
        record = attempt.queued
        if record is None:
            blocked = explain_blocked(telemetry.events, world.layout, world.spec.network)
            record = _record(start, ended, output, attempt, duration_ns)
            full = disk_blocked(world)
            stopped = attempt.flows.blocked if attempt.flows is not None else ()
            record = replace(record, blocked=(*ended.blocked, *full, *blocked, *stopped))
            # Objects first: a line on disk never names what is not.
            self._store.sync()
            self._append(world, record, telemetry.events)
            attempt.queued = record
        self._journal.flush_sync()
        if effects is not None:
            world.state = world.state.after_step(world.tree.snapshot_id, effects.inputs_digest)
            world.save()
        return record

    def _append(self, world: World, record: SpanRecord, events: tuple[JsonObject, ...]) -> None:
        """Give the step's lines to the writer."""
        self._journal.append(
            decision_line(
                record.decision,
                span_id=record.span_id,
                session_id=record.session_id,
                world_id=world.spec.world_id,
                agent_id=record.agent_id,
                command=record.action.command,
                action_digest=action_digest(record.action),
            )
        )
        for process in record.processes:
            self._journal.append(process_start_line(record, process))
            if process.end_ns is not None:
                self._journal.append(process_exit_line(record, process))
        for event in events:
            self._journal.append(event)
        self._journal.append(span_to_line(record))

    # -- output --------------------------------------------------------------------------------

    def _keep_streams(self, directory: Path, start: SpanStart) -> tuple[_Output, SpanStart]:
        return self._keep_output(directory), self._keep_stdin(directory, start)

    def _keep_output(self, directory: Path) -> _Output:
        """Keep the framed log, and each stream by itself, as objects."""
        log = directory / _LOG
        if _size_of(log) == 0:
            return _Output()
        with _spool() as stdout, _spool() as stderr:
            sizes = {Stream.STDOUT: 0, Stream.STDERR: 0}
            try:
                for frame in read_frames(log):
                    error = frame.stream is Stream.STDERR
                    (stderr if error else stdout).write(frame.data)
                    sizes[Stream.STDERR if error else Stream.STDOUT] += len(frame.data)
            except OutputLogCorrupt:
                # The log is init's; what it holds up to there is still the command's output.
                pass
            return _Output(
                stdout=_put_spool(self._store, stdout, sizes[Stream.STDOUT]),
                stderr=_put_spool(self._store, stderr, sizes[Stream.STDERR]),
                framed=self._store.put_file(log),
                stdout_bytes=sizes[Stream.STDOUT],
                stderr_bytes=sizes[Stream.STDERR],
            )

    def _keep_stdin(self, directory: Path, start: SpanStart) -> SpanStart:
        """What was written to a pipe becomes an object, so that a replay can give it again."""
        kept = directory / _STDIN
        if start.action.stdin_digest is not None or not kept.exists():
            return start
        digest = self._store.put_file(kept)
        return replace(start, action=replace(start.action, stdin_digest=digest))


class EventSink:
    """Collects a step's events, in constant memory, for one object."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._spool = _spool()
        self._size = 0

    def write(self, data: bytes) -> None:
        """Take some whole or partial lines."""
        self._spool.write(data)
        self._size += len(data)

    def close(self) -> str | None:
        """Keep what was collected; returns its digest, or None where there was nothing."""
        with self._spool:
            return _put_spool(self._store, self._spool, self._size)


def _with_flows(telemetry: StepTelemetry, flows: StepFlows) -> StepTelemetry:
    if not flows.events:
        return telemetry
    return replace(
        telemetry,
        events=(*telemetry.events, *flows.events),
        counts=(*telemetry.counts, *flows.counts),
    )


def _less_what_is_shared(coverage: Coverage, shared: bool) -> Coverage:
    if not shared:
        return coverage
    reason = "other commands ran in the world at the same time: changes may be theirs"
    return replace(
        coverage,
        state="partial" if coverage.state == "full" else coverage.state,
        reasons=(*coverage.reasons, reason),
    )


def _look_at_tree(world: World, attempt: Attempt) -> tuple[StepEffects, tuple[Change, ...]]:
    """What the step did to the tree, and what of it no event explains."""
    telemetry = attempt.telemetry
    began_ns = round(attempt.start.start_time * 1e9)
    effects = world.tree.finish_step(telemetry.reads, began_ns, world.box)
    # Where nothing was seen, or others were at work too, that has been said already.
    judged = telemetry.writes is not None and telemetry.coverage.state != "none"
    if not judged or attempt.shared or world.box is None or not effects.changes:
        return effects, ()
    root_fd = None
    try:
        with contextlib.suppress(OSError):  # the world is ending
            root_fd = os.open(f"/proc/{world.box.init_pid}/root", os.O_PATH | os.O_DIRECTORY)
        return effects, unexplained_changes(effects.changes, telemetry.writes or (), root_fd)
    finally:
        if root_fd is not None:
            os.close(root_fd)


def _less_what_is_unexplained(coverage: Coverage, unexplained: tuple[Change, ...]) -> Coverage:
    """The coverage, where something was done that no event speaks of."""
    if not unexplained:
        return coverage
    reason = (
        f"{len(unexplained)} changes that no event explains, first: "
        f"{bytesjson.display(unexplained[0].path)[:200]}"
    )
    return replace(
        coverage,
        state="partial" if coverage.state == "full" else coverage.state,
        reasons=(*coverage.reasons, reason),
    )


def _less_what_is_unread(coverage: Coverage, unread: Sequence[tuple[bytes, str]]) -> Coverage:
    """The coverage, where content of files that a step left could not be kept."""
    if not unread:
        return coverage
    reasons = (
        f"the content of {os.fsdecode(path)[:200]} was not kept: {why}" for path, why in unread
    )
    return replace(
        coverage,
        state="partial" if coverage.state == "full" else coverage.state,
        reasons=(*coverage.reasons, *reasons),
    )


def _size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _put_spool(store: ObjectStore, spool: IO[bytes], size: int) -> str | None:
    if size == 0:
        return None
    spool.seek(0)
    if size <= _SPOOL_BYTES:
        return store.put(spool.read())
    spool.flush()
    return store.put_file(spool.fileno())


def _spool() -> tempfile.SpooledTemporaryFile[bytes]:
    return tempfile.SpooledTemporaryFile(max_size=_SPOOL_BYTES)


def _record(
    start: SpanStart,
    ended: Ended,
    output: _Output,
    attempt: Attempt,
    duration_ns: int,
) -> SpanRecord:
    telemetry, effects = attempt.telemetry, attempt.effects
    changes = effects.changes if effects is not None else ()
    return SpanRecord(
        span_id=start.span_id,
        trace_id=start.trace_id,
        session_id=start.session_id,
        world_id=start.world_id,
        exec_id=start.exec_id,
        kind=start.kind,
        agent_id=start.agent_id,
        parent_span=start.parent_span,
        start_time=start.start_time,
        duration_ms=duration_ns / 1e6,
        action=start.action,
        decision=start.decision,
        termination_reason=ended.reason,
        exit_code=ended.exit_code,
        signal=ended.signal,
        stdout_digest=output.stdout,
        stderr_digest=output.stderr,
        output_digest=output.framed,
        stdout_bytes=output.stdout_bytes,
        stderr_bytes=output.stderr_bytes,
        truncated=ended.truncated,
        changes=changes[:INLINE_CHANGES],
        changes_truncated=max(0, len(changes) - INLINE_CHANGES),
        changes_digest=effects.changes_digest if effects is not None else None,
        blocked=(),
        coverage=telemetry.coverage,
        processes=telemetry.processes[:INLINE_PROCESSES],
        processes_truncated=max(0, len(telemetry.processes) - INLINE_PROCESSES),
        events_digest=telemetry.events_digest,
        event_counts=telemetry.counts,
        snapshot_after=effects.snapshot_id if effects is not None else None,
        inputs_digest=effects.inputs_digest if effects is not None else None,
        replay_of=start.replay_of,
        labels=start.labels,
        replay_of_trace=start.replay_of_trace,
        utc_offset_ns=start.utc_offset_ns,
        hosts=telemetry.hosts[:INLINE_HOSTS],
        project=start.project,
        shell=start.shell,
        shared=attempt.shared,
    )
