"""Reading the journal: steps by id, lists of steps, their events, and every line in order.

Only sealed lines are read, those that a commit line stands behind: what a writer is in the middle
of, or had to take back, was never told to anybody. A line that is damaged is skipped and counted;
its neighbours are read. Files rotated or compressed meanwhile are followed.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from substrate_services.journal import codec
from substrate_services.journal.index import Place, StepPlaces
from substrate_services.journal.jsontypes import Fields, JsonObject, LineError, compact_bytes
from substrate_services.journal.schema import SpanRecord
from substrate_services.journal.segments import rotated_segments
from substrate_services.journal.segmenttext import (
    DAMAGE,
    PlainText,
    SegmentText,
    open_live,
    open_rotated,
)

_PAGE_LIMIT = 1000
_SPAN_ID_LENGTH = 16


class AmbiguousSpan(LookupError):
    """A prefix that several spans share."""

    def __init__(self, prefix: str, matches: list[str]) -> None:
        self.matches = tuple(matches)
        shown = ", ".join(matches[:5]) + (", …" if len(matches) > 5 else "")
        super().__init__(f"span {prefix!r} is not unique: {shown}; give more digits")


@dataclass(frozen=True, slots=True)
class JournalLine:
    """One line and where it stands."""

    segment: int
    offset: int  # in the segment's uncompressed text
    seq: int
    event_type: str
    value: JsonObject


@dataclass(frozen=True, slots=True)
class SpanPage:
    """One page of a list of steps, newest first."""

    spans: tuple[SpanRecord, ...]
    next_page_token: str  # "" on the last page


class JournalReader:
    """Reads a journal, also while another process writes it. Safe from any thread.

    Args:
        path: the live file, as given to the writer. It need not exist yet.

    Attributes:
        bad_lines: lines that were skipped so far because they are damaged or unreadable.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(os.path.realpath(path))
        self.bad_lines = 0
        self._lock = threading.RLock()
        self._live: PlainText | None = None
        self._live_number = 0
        self._rotated: dict[int, SegmentText] = {}

    def close(self) -> None:
        """Gives up descriptors and indexes."""
        with self._lock:
            for text in [*self._rotated.values(), *([self._live] if self._live else [])]:
                text.close()
            self._rotated.clear()
            self._live = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # --- steps -----------------------------------------------------------------------------

    def find_span(self, span_id: str) -> SpanRecord | None:
        """The finished step with this span id, or with the only one that starts so.

        Raises AmbiguousSpan where several do. A full id is searched from the newest line
        backwards; a prefix has to look at every segment.
        """
        with self._lock:
            full = self._full_id(span_id)
            if full is None:
                return None
            for text in self._newest_first():
                while True:
                    step = text.index.steps.get(full)
                    if step is not None and step.complete is not None:
                        return self._record(text, step.complete)
                    if not self._extend(text):
                        break
        return None

    def list_spans(
        self,
        *,
        session_id: str | None = None,
        world_id: str | None = None,
        since: float | None = None,
        text: str | None = None,
        kind: str | None = None,
        matching: Callable[[SpanRecord], bool] | None = None,
        limit: int = 50,
        page_token: str = "",
    ) -> SpanPage:
        """Finished steps, the last finished first.

        Args:
            session_id: only this session's.
            world_id: only this world's.
            since: only those that started at or after this time, seconds since the epoch.
            text: only those whose command holds this text, in any case.
            kind: only this kind, ``exec`` for example.
            matching: only those for which this says so; asked after all other filters.
            limit: at most so many, up to 1,000.
            page_token: where the page before said to go on.

        Raises ValueError for a page token that no page gave.
        """
        if page_token and not page_token.isdecimal():
            raise ValueError(f"page_token {page_token!r} is not one that list_spans returned")
        limit = min(max(limit, 1), _PAGE_LIMIT)
        wanted = _Filter(session_id, world_id, since, text, kind)
        spans: list[SpanRecord] = []
        last_seq = 0
        with self._lock:
            before = int(page_token) if page_token else None
            for seq, record in self._completes_backwards(before, wanted.needles()):
                if since is not None and record.start_time + record.duration_ms / 1000 < since:
                    break  # those before it ended earlier still
                if wanted.takes(record) and (matching is None or matching(record)):
                    if len(spans) == limit:
                        return SpanPage(tuple(spans), str(last_seq))
                    spans.append(record)
                    last_seq = seq
        return SpanPage(tuple(spans), "")

    def last_span(self, kind: str | None = "exec") -> SpanRecord | None:
        """The step that finished last; of any kind when ``kind`` is None.

        Replays are passed over: after one, people still mean the command that they ran.
        """
        page = self.list_spans(kind=kind, limit=1, matching=lambda span: span.replay_of is None)
        return page.spans[0] if page.spans else None

    def start_line(self, span_id: str) -> codec.SpanStart | None:
        """What the ``command_start`` line of a step says, whether it has finished or not."""
        with self._lock:
            full = self._full_id(span_id)
            if full is None:
                return None
            for text in self._newest_first():
                while True:
                    step = text.index.steps.get(full)
                    if step is not None and step.start is not None:
                        return self._start(text, step.start)
                    if not self._extend(text):
                        break
        return None

    def bounded_events(self, span_id: str) -> tuple[JsonObject, ...]:
        """The event lines of a step that stand in the journal, in the order written.

        They are a bounded selection; all events of a step are in its ``events_digest``.
        """
        batches: list[list[JsonObject]] = []
        with self._lock:
            full = self._full_id(span_id)
            if full is None:
                return ()
            for text in self._newest_first():
                # The start line is the first that names a step; before it is known, there may be
                # more of the step's lines further down, also in the segment before.
                while (
                    (step := text.index.steps.get(full)) is None or step.start is None
                ) and self._extend(text):
                    pass
                if step is not None:
                    batches.append(self._events(text, step, full))
                    if step.start is not None:
                        break
        return tuple(event for batch in reversed(batches) for event in batch)

    # --- every line ------------------------------------------------------------------------

    def lines(self, *, since_seq: int = 0) -> Iterator[JournalLine]:
        """Every sealed line from the oldest on, with a sequence number of at least ``since_seq``.

        The writer's own lines (``journal_…``) are among them.
        """
        # With descriptors of its own, because other threads may close the shared ones meanwhile.
        live = open_live(self.path)  # first: what is rotated after this has a higher number
        try:
            for segment in rotated_segments(self.path):
                if live is not None and segment.number >= live[0]:
                    break
                try:
                    text = open_rotated(segment)
                except FileNotFoundError:
                    continue  # retention took it
                with contextlib.closing(text):
                    yield from self._lines_of(segment.number, text, since_seq)
            if live is not None:
                yield from self._lines_of(live[0], live[1], since_seq)
        finally:
            if live is not None:
                live[1].close()

    def __iter__(self) -> Iterator[JournalLine]:
        return self.lines()

    def _lines_of(self, number: int, text: SegmentText, since_seq: int) -> Iterator[JournalLine]:
        offset, rest = 0, b""
        try:
            for chunk in text.chunks():
                *whole, rest = (rest + chunk).split(b"\n")
                for raw in whole:
                    line = self._line(number, offset, raw)
                    offset += len(raw) + 1
                    if line is not None and line.seq >= since_seq:
                        yield line
        except DAMAGE:
            self.bad_lines += 1  # what comes behind the damage in this segment is not readable

    def _line(self, number: int, offset: int, raw: bytes) -> JournalLine | None:
        value = self._parse(raw)
        if value is None:
            return None
        try:
            fields = Fields(value, "line")
            return JournalLine(
                number, offset, fields.integer("seq"), fields.text("event_type"), value
            )
        except LineError:
            self.bad_lines += 1
            return None

    # --- inside ----------------------------------------------------------------------------

    def _newest_first(self) -> Iterator[SegmentText]:
        """The live segment, then the rotated ones; each as far indexed as it was before."""
        self._refresh()
        if self._live is not None:
            yield self._live
        for number in sorted(self._rotated, reverse=True):
            yield self._rotated[number]

    def _refresh(self) -> None:
        """Follows rotation and takes in what was committed since the last call."""
        try:
            identity = os.stat(self.path)
        except FileNotFoundError:
            identity = None
        if self._live is not None:
            same = identity is not None and self._live.identity() == (
                identity.st_dev,
                identity.st_ino,
            )
            if self._live.shrunk():
                self._live.close()
                self._live = None
            else:
                self._live.extend_forward()
                if not same:
                    # It has its number now; the descriptor outlives its compression.
                    self._rotated[self._live_number] = self._live
                    self._live = None
        if self._live is None:
            opened = open_live(self.path)
            if opened is not None:
                self._live_number, self._live = opened
        self._follow_rotated()

    def _follow_rotated(self) -> None:
        listed = {segment.number: segment for segment in rotated_segments(self.path)}
        for number in [n for n in self._rotated if n not in listed]:
            self._rotated.pop(number).close()
        for number, segment in listed.items():
            known = self._rotated.get(number)
            # An uncompressed one is let go when it has been compressed: its space is still held.
            if isinstance(known, PlainText) and segment.compressed:
                known.close()
                known = None
            if known is None and (self._live is None or number < self._live_number):
                with contextlib.suppress(FileNotFoundError):
                    self._rotated[number] = open_rotated(segment)

    def _full_id(self, span_id: str) -> str | None:
        """The id that a prefix stands for, None where no step has it."""
        if len(span_id) >= _SPAN_ID_LENGTH:
            return span_id
        matches: set[str] = set()
        for text in self._newest_first():
            while self._extend(text):
                pass
            matches.update(known for known in text.index.steps if known.startswith(span_id))
        if len(matches) > 1:
            raise AmbiguousSpan(span_id, sorted(matches))
        return next(iter(matches), None)

    def _completes_backwards(
        self, before: int | None, needles: Sequence[bytes]
    ) -> Iterator[tuple[int, SpanRecord]]:
        for text in self._newest_first():
            done = len(text.index.completes)
            while True:
                completes = text.index.completes
                for position in range(done - 1, -1, -1):
                    seq, span_id, place = completes[position]
                    if before is not None and seq >= before:
                        continue
                    if text.index.steps[span_id].complete != place:
                        continue  # an older record of the same step
                    record = self._record(text, place, needles)
                    if record is not None:
                        yield seq, record
                known = len(completes)
                if not self._extend(text):
                    break
                done = len(text.index.completes) - known

    def _extend(self, text: SegmentText) -> bool:
        try:
            return text.extend_back()
        except DAMAGE:
            self.bad_lines += 1
            return False

    def _record(
        self, text: SegmentText, place: Place, needles: Sequence[bytes] = ()
    ) -> SpanRecord | None:
        raw = self._read(text, place.offset, place.length)
        if not all(needle in raw for needle in needles):
            return None
        line = self._parse(raw)
        try:
            return None if line is None else codec.span_from_line(line)
        except LineError:
            self.bad_lines += 1
            return None

    def _start(self, text: SegmentText, place: Place) -> codec.SpanStart | None:
        line = self._parse(self._read(text, place.offset, place.length))
        try:
            return None if line is None else codec.start_from_line(line)
        except LineError:
            self.bad_lines += 1
            return None

    def _events(self, text: SegmentText, step: StepPlaces, span_id: str) -> list[JsonObject]:
        mark = f'"span_id":"{span_id}"'.encode()
        events: list[JsonObject] = []
        for line in self._read(text, step.first, step.end - step.first).split(b"\n"):
            value = self._parse(line) if mark in line else None
            if (
                value is not None
                and value.get("span_id") == span_id
                and value.get("event_type") not in {"command_start", "command_complete"}
            ):
                events.append(value)
        return events

    def _read(self, text: SegmentText, offset: int, length: int) -> bytes:
        try:
            return text.read(offset, length)
        except DAMAGE:
            return b""  # which no parser takes, and so counts as a bad line

    def _parse(self, raw: bytes) -> JsonObject | None:
        try:
            value = json.loads(raw)
        except (ValueError, RecursionError):
            value = None
        if isinstance(value, dict):
            return value
        self.bad_lines += 1
        return None


@dataclass(frozen=True, slots=True)
class _Filter:
    session_id: str | None
    world_id: str | None
    since: float | None
    text: str | None
    kind: str | None

    def needles(self) -> tuple[bytes, ...]:
        """What the raw line of a wanted step holds: cheap to look for, before parsing."""
        fields = {"session_id": self.session_id, "world_id": self.world_id, "kind": self.kind}
        return tuple(
            compact_bytes({name: value})[1:-1]
            for name, value in fields.items()
            if value is not None
        )

    def takes(self, record: SpanRecord) -> bool:
        return (
            (self.session_id is None or record.session_id == self.session_id)
            and (self.world_id is None or record.world_id == self.world_id)
            and (self.kind is None or record.kind == self.kind)
            and (self.since is None or record.start_time >= self.since)
            and (
                self.text is None
                or self.text.casefold() in codec.display_command(record.action.command).casefold()
            )
        )
