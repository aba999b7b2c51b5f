"""Reads the telemetry of a step: decodes its segments, judges coverage, clears what was read."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from substrate_services.journal.codec import SpanStart
from substrate_services.journal.jsontypes import JsonObject
from substrate_services.journal.schema import Coverage, LedgerSource
from substrate_services.objects.store import ObjectStore
from substrate_services.telemetry.classes import classes_mask, classes_off
from substrate_services.telemetry.coverage import RootProcess, coverage_of
from substrate_services.telemetry.decode import (
    ClockOffsets,
    DecodeSummary,
    HostContact,
    SpanIds,
    decode_segments,
)
from substrate_services.telemetry.decoders import Decoders
from substrate_services.telemetry.segments import remove_dead_segments, remove_segments
from substrate_services.world.backends.base import BackendError, Box
from substrate_services.world.ended import Ended
from substrate_services.world.layers import LowerView
from substrate_services.world.layout import Layout, layer_of
from substrate_services.world.recording import INLINE_EVENTS, EventSink, StepTelemetry
from substrate_services.world.worlds import World

log = logging.getLogger(__name__)

# The decision and the start lie between the two clocks' readings; a pid is not used again so soon.
_START_SLACK_NS = 1_000_000_000


class SegmentTelemetry:
    """A :class:`~substrate_services.world.recording.Telemetry` that decodes segments.

    Args:
        store: where all events of a step go.
        sync_ledger: brings a world's ledger up to date (:class:`Backend`).
        decoders: stand by to decode.
    """

    def __init__(
        self,
        store: ObjectStore,
        sync_ledger: Callable[[str, int], Awaitable[None]],
        decoders: Decoders | None = None,
    ) -> None:
        self._store = store
        self._sync_ledger = sync_ledger
        self._decoders = decoders

    async def read(
        self, world: World, start: SpanStart, watch: Sequence[bytes], ended: Ended
    ) -> StepTelemetry:
        """See :class:`Telemetry`."""
        if world.box is None:
            return StepTelemetry(coverage=Coverage("none", ("its telemetry went with its world",)))
        if start.kind != "exec":
            # Init does it itself; its changes are found by the walk, and nothing else happens.
            return StepTelemetry(coverage=Coverage("full", ()))
        offsets = ClockOffsets.now()
        began = round(start.start_time * 1e9) - offsets.utc_ns - _START_SLACK_NS
        since = None
        shell = world.shells.get(start.shell.shell_id) if start.shell is not None else None
        if shell is not None:
            # The root is the shell, which was there before: of it, what it did since then.
            since = began + _START_SLACK_NS
            began = shell.started_ns - _START_SLACK_NS
        sink = EventSink(self._store)
        ledger_fd = await self._ledger(world, max(0, began))
        summary = await decode_segments(
            segments_fd=world.box.segments_fd,
            ids=SpanIds(start.session_id, start.trace_id, start.span_id, start.world_id),
            root_pid=start.action.first_pid,
            sink=sink.write,
            watch=watch,
            max_events=INLINE_EVENTS,
            offsets=offsets,
            root_after_ns=max(0, began),
            since_ns=since,
            ledger_fd=ledger_fd,
            classes=classes_mask(world.spec.telemetry),
            decoders=self._decoders,
        )
        events_digest = sink.close()
        all_covered = summary.root_seen and summary.processes_covered == summary.processes_total
        coverage = coverage_of(
            summary,
            # Looked up only where it is missed: finding a program takes longer than all the rest.
            root=None if all_covered else _root(start, world.layout),
            open_program=lambda path: _open_program(path, world.layout),
        )
        off = classes_off(world.spec.telemetry)
        coverage = _less_what_is_off(replace(coverage, ledger=_source(summary)), off)
        if ended.remaining:
            coverage = _still_running(coverage, ended.remaining)
        _clear(world, world.box, summary)
        return StepTelemetry(
            processes=summary.processes,
            coverage=coverage,
            counts=summary.counts,
            events=tuple(_line(event) for event in summary.events),
            events_digest=events_digest,
            reads=summary.reads,
            hosts=tuple(_host(contact) for contact in summary.hosts),
            writes=summary.writes
            if summary.writes_complete and not {"open", "mutate"}.intersection(off)
            else None,
        )

    async def _ledger(self, world: World, began: int) -> int | None:
        """The world's ledger with all that has happened in it; None where there is none."""
        if world.box is None or world.box.ledger_fd is None:
            return None
        # What lies before this step is of no use to anybody, if nobody else's is still to be read.
        # Shells are traced from their start on, as long as they are there.
        from_ns = began if world.running <= 1 and not world.shells else 0
        try:
            await self._sync_ledger(world.spec.world_id, from_ns)
        except BackendError as error:
            log.warning("the ledger of world %s is not read: %s", world.spec.world_id, error)
            return None
        return world.box.ledger_fd


def _source(summary: DecodeSummary) -> LedgerSource:
    if summary.ledger.used and summary.ledger.source == "bpf":
        return "bpf"
    if summary.ledger.used and summary.ledger.source == "proc_connector":
        return "proc_connector"
    return "none"


def _line(event: JsonObject) -> JsonObject:
    # The decoder's lines are programs' testimony; the writer's own fields are not theirs to set.
    return {key: value for key, value in event.items() if key not in ("seq", "v")}


def _host(contact: HostContact) -> str:
    address = os.fsdecode(contact.name or contact.address)
    text = address if contact.family == "AF_UNIX" else f"{address}:{contact.port}"
    return f"{text} ({contact.error})" if contact.failed == contact.count else text


def _less_what_is_off(coverage: Coverage, off: tuple[str, ...]) -> Coverage:
    if not off:
        return coverage
    return replace(
        coverage,
        state="partial" if coverage.state == "full" else coverage.state,
        reasons=(*coverage.reasons, f"not recorded, as was asked for: {', '.join(off)}"),
        classes_off=off,
    )


def _still_running(coverage: Coverage, remaining: int) -> Coverage:
    return replace(
        coverage,
        state="partial" if coverage.state == "full" else coverage.state,
        reasons=(*coverage.reasons, f"{remaining} processes went on after the command ended"),
    )


def _clear(world: World, box: Box, summary: DecodeSummary) -> None:
    """Remove what has been read of processes that have ended; the tmpfs is bounded."""
    remove_segments(
        box.segments_fd, [segment.name for segment in summary.segments if not segment.open]
    )
    if world.running <= 1:
        # Nobody else's segments wait to be read, so those of killed processes, which could not
        # say that they ended, go too.
        with contextlib.suppress(OSError):  # the world is ending
            proc = os.open(f"/proc/{box.init_pid}/root/proc", os.O_RDONLY | os.O_DIRECTORY)
            try:
                remove_dead_segments(box.segments_fd, proc)
            finally:
                os.close(proc)


def _root(start: SpanStart, layout: Layout) -> RootProcess | None:
    pid = start.action.first_pid
    if pid is None:
        return None
    argv = start.action.command.argv
    return RootProcess(pid, argv, _find_program(start, layout))


def _find_program(start: SpanStart, layout: Layout) -> bytes:
    """The program's path, as execvp(3) finds it; empty where it does not."""
    name = start.action.command.argv[0]
    if b"/" in name:
        return os.path.normpath(os.path.join(start.action.cwd, name))
    path = dict(start.action.env).get(b"PATH", b"")
    for directory in path.split(b":"):
        candidate = os.path.join(directory, name)
        if directory.startswith(b"/"):
            with contextlib.suppress(OSError):
                os.close(_open_program(candidate, layout))
                return candidate
    return b""


def _open_program(path: bytes, layout: Layout) -> int:
    """Open a program as the world shows it, without following a link of the world's making."""
    # The host's own links (/bin -> usr/bin) are resolved on the host, by name.
    directory = os.path.realpath(os.path.dirname(path))
    path = os.path.join(directory, os.path.basename(path))
    layer = layer_of(path, layout)
    if layer is None:
        raise FileNotFoundError(path)
    relative = os.path.relpath(path, layer.mount_point)
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        return _open_beneath(layer.upper, relative, flags)
    except OSError:
        lower = LowerView.root(layer).lookup(relative)
        if lower is None:
            raise FileNotFoundError(path) from None
        return os.open(lower.host_path, flags)


def _open_beneath(root: bytes, relative: bytes, flags: int) -> int:
    """Open ``relative`` below ``root``, following no symbolic link at all."""
    directory = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    names = relative.split(b"/")
    for name in names[:-1]:
        try:
            deeper = os.open(
                name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory
            )
        finally:
            os.close(directory)
        directory = deeper
    try:
        return os.open(names[-1], flags | os.O_NOFOLLOW, dir_fd=directory)
    finally:
        os.close(directory)
