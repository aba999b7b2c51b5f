"""Where the lines of steps stand in one segment, kept in memory.

An index holds places, no facts, and can be thrown away at any time. It covers a stretch
``[low, high)`` of the segment's text and grows downwards (to find recent steps without reading a
whole file) and upwards (with what is committed). The SQLite index will take this module's place.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

# The writer puts these fields first and in this order, so that scanning needs no JSON parser.
_HEAD = re.compile(
    rb'\{"seq":(\d{1,19}),"v":"[^"\\]{1,16}","event_type":"([^"\\]{1,64})","ts":"[^"\\]{1,64}"'
    rb'(?:,"span_id":"([^"\\]{1,64})")?'
)


@dataclass(frozen=True, slots=True)
class Place:
    """Where one line stands in its segment's text."""

    offset: int
    length: int  # newline included


@dataclass(slots=True)
class StepPlaces:
    """Where one step's lines stand; all that name it are in ``[first, end)``."""

    first: int
    end: int
    start: Place | None = None
    complete: Place | None = None


@dataclass(slots=True)
class SegmentIndex:
    """The places in the stretch ``[low, high)`` of a segment's text."""

    low: int
    high: int
    steps: dict[str, StepPlaces] = field(default_factory=dict)
    completes: list[tuple[int, str, Place]] = field(default_factory=list)  # (seq, span, place)

    def add(self, text: bytes, base: int) -> None:
        """Takes in whole lines that stand right behind or right before the stretch."""
        if not text:
            return
        found: list[tuple[int, str, Place]] = []
        offset = base
        for line in text.split(b"\n")[:-1]:
            length = len(line) + 1
            head = _HEAD.match(line)
            if head is not None and head[3] is not None:
                self._add_line(head, Place(offset, length), found)
            offset += length
        if base == self.high:
            self.completes.extend(found)
            self.high = offset
        else:
            self.completes[:0] = found
            self.low = base

    def _add_line(
        self, head: re.Match[bytes], place: Place, found: list[tuple[int, str, Place]]
    ) -> None:
        span_id = head[3].decode("utf-8", "replace")
        end = place.offset + place.length
        step = self.steps.get(span_id)
        if step is None:
            step = self.steps[span_id] = StepPlaces(place.offset, end)
        else:
            step.first = min(step.first, place.offset)
            step.end = max(step.end, end)
        if head[2] == b"command_complete":
            found.append((int(head[1]), span_id, place))
            # The last record of a step counts, should a caller have appended it twice.
            if step.complete is None or step.complete.offset < place.offset:
                step.complete = place
        elif head[2] == b"command_start":
            step.start = place
