"""Checking a journal's chain: what is intact, what is not, and where.

Intact means: nothing between the first segment present and the last commit was changed, removed,
added or swapped, provided one digest of the chain is known from elsewhere. Until checkpoints are
signed none is, so whoever can write the files could rewrite them all; the report says so
(``unanchored``) instead of claiming more.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from substrate_services.journal.chain import (
    COMMIT_MARK,
    GENESIS,
    Commit,
    batch_digest,
    covered_head,
    parse_commit,
)
from substrate_services.journal.jsontypes import Fields, LineError
from substrate_services.journal.segments import (
    Segment,
    open_segment,
    read_chunks,
    read_frames,
    rotated_segments,
)
from substrate_services.journal.segmenttext import DAMAGE

FindingKind = Literal[
    "unanchored",  # no signed checkpoint vouches for the chain
    "repaired_tear",  # a crash tore the tail; it was kept aside and noted
    "unsealed_tail",  # lines no commit stands behind: a writer at work, or a crash
    "missing_history",  # the oldest segments are gone
    "missing_segment",  # a segment between two others is gone
    "unreadable_segment",  # cannot be opened or decompressed to its end
    "broken_link",  # what stands here does not follow what stands before it
    "changed_batch",  # a batch does not have the digest its commit line states
    "bad_line",  # a line in an intact batch is not a JSON object
]
Severity = Literal["info", "warning", "error"]

_SEVERITY: dict[FindingKind, Severity] = {
    "unanchored": "info",
    "repaired_tear": "info",
    "unsealed_tail": "warning",
    "missing_history": "warning",
    "bad_line": "warning",
    "missing_segment": "error",
    "unreadable_segment": "error",
    "broken_link": "error",
    "changed_batch": "error",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that verify has to say about a place in the journal."""

    kind: FindingKind
    segment: int
    offset: int | None  # bytes into the segment's uncompressed text
    detail: str

    @property
    def severity(self) -> Severity:
        """``error`` where recorded lines are not what was recorded."""
        return _SEVERITY[self.kind]


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What verify found out about a journal."""

    ok: bool  # no finding is an error
    segments: int
    batches: int
    lines: int  # in sealed batches, the writer's own not counted
    last_seq: int
    head: str  # the chain's head in hex
    findings: tuple[Finding, ...]


def verify(path: Path) -> VerifyReport:
    """Reads the whole journal and checks every batch. ``path`` is the live file.

    Memory is bounded by the largest batch. A journal that is being written can be verified; what
    is in the making is an ``unsealed_tail``.

    Raises FileNotFoundError where there is no journal, OSError where it may not be read.
    """
    path = Path(os.path.realpath(path))
    checker = _Checker()
    # The live file first: what it holds now is rotated under a number that is not listed yet.
    try:
        live = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        live = -1
    try:
        rotated = rotated_segments(path)
        if live < 0 and not rotated:
            raise FileNotFoundError(f"there is no journal at {path}")
        live_number = _number(os.pread(live, 4096, 0)) if live >= 0 else None
        for segment in rotated:
            if live_number is None or segment.number < live_number:
                checker.rotated(segment)
        if live >= 0:
            checker.live(live, live_number)
    finally:
        if live >= 0:
            os.close(live)
    return checker.report()


@dataclass(slots=True)
class _Checker:
    findings: list[Finding] = field(default_factory=list)
    expected: bytes | None = None  # digest that the next batch has to name; None: unknown
    expected_segment: int = 1
    segments: int = 0
    batches: int = 0
    lines: int = 0
    last_seq: int = 0
    segment: int = 0

    def rotated(self, segment: Segment) -> None:
        self._begin(segment.number)
        try:
            fd, compressed = open_segment(segment)
        except OSError as error:
            self._find("unreadable_segment", None, str(error))
            self.expected = None
            return
        try:
            text = (t for _, t in read_frames(fd)) if compressed else read_chunks(fd, 0)
            tail, offset = self._check(text)
        except DAMAGE as error:
            self._find("unreadable_segment", None, f"{segment.path.name}: {error}")
            self.expected = None
            return
        finally:
            os.close(fd)
        if tail:
            self._find(
                "changed_batch", offset, f"{tail} bytes at its end have no commit line; cut off"
            )

    def live(self, fd: int, number: int | None) -> None:
        self._begin(self.expected_segment if number is None else number)
        tail, offset = self._check(read_chunks(fd, 0))
        if tail:
            self._find(
                "unsealed_tail",
                offset,
                f"{tail} bytes have no commit line: a writer is at work, or was cut off",
            )

    def report(self) -> VerifyReport:
        self.findings.append(
            Finding(
                "unanchored",
                self.segment,
                None,
                f"no signed checkpoint: lines up to {self.last_seq} are consistent with one "
                "another, which does not exclude that all were rewritten",
            )
        )
        return VerifyReport(
            ok=not any(finding.severity == "error" for finding in self.findings),
            segments=self.segments,
            batches=self.batches,
            lines=self.lines,
            last_seq=self.last_seq,
            head=(self.expected or b"").hex(),
            findings=tuple(self.findings),
        )

    def _find(self, kind: FindingKind, offset: int | None, detail: str) -> None:
        self.findings.append(Finding(kind, self.segment, offset, detail))

    def _begin(self, number: int) -> None:
        first = self.segments == 0
        self.segment = number
        self.segments += 1
        if number == 1 and first:
            self.expected = GENESIS
        elif number != self.expected_segment:
            missing = _span(self.expected_segment, number - 1)
            if first:
                self._find("missing_history", None, f"segment {missing} is gone")
            else:
                self._find("missing_segment", None, f"segment {missing} is gone")
            self.expected = None
        self.expected_segment = number + 1

    def _check(self, text: Iterable[bytes]) -> tuple[int, int]:
        """Checks a segment's batches; returns the size of what follows the last, and its place."""
        batch: list[bytes] = []
        offset = start = 0
        for raw in _lines(text):
            offset += len(raw)
            commit = parse_commit(raw) if raw.endswith(b"\n") else None
            if commit is None:
                batch.append(raw)
                continue
            self._check_batch(batch, commit, covered_head(raw), start)
            batch, start = [], offset
        return offset - start, start

    def _check_batch(self, batch: list[bytes], commit: Commit, head: bytes, start: int) -> None:
        self.batches += 1
        if self.expected is not None and commit.prev != self.expected:
            self._find(
                "broken_link",
                start,
                f"the batch up to line {commit.seq} does not follow what stands before it: "
                "something between was removed, added or swapped",
            )
        seqs: list[int] = []
        problems: list[str] = []
        offset = start
        for raw in batch:
            seq, own = self._check_line(raw, offset, problems)
            if seq is not None and not own:
                seqs.append(seq)
            offset += len(raw)
        self.lines += len(seqs)
        if batch_digest(commit.prev, *batch, head) != commit.digest:
            problems += _disorder(seqs, commit)
            detail = "; ".join(problems) or "bytes were changed"
            self._find("changed_batch", start, f"lines up to {commit.seq}: {detail}")
        else:
            for problem in problems:
                self._find("bad_line", start, problem)
        self.expected, self.last_seq = commit.digest, commit.seq

    def _check_line(self, raw: bytes, offset: int, problems: list[str]) -> tuple[int | None, bool]:
        """A line's sequence number, and whether it is one of the writer's own."""
        try:
            fields = Fields(json.loads(raw), "line")
            seq, event_type = fields.integer("seq"), fields.text("event_type")
            if event_type == "journal_segment":
                self._check_header(fields, offset)
            elif event_type == "journal_repair":
                self._find(
                    "repaired_tear",
                    fields.integer("offset"),
                    f"{fields.integer('bytes')} bytes that a crash left unfinished were kept "
                    f"aside in {fields.text('kept')}",
                )
        except (LineError, ValueError, RecursionError):
            damaged = "a damaged commit line" if COMMIT_MARK in raw else "a line that is not JSON"
            problems.append(f"{damaged} at byte {offset}")
            return None, False
        return seq, event_type.startswith("journal_")

    def _check_header(self, fields: Fields, offset: int) -> None:
        number, prev = fields.integer("segment"), fields.text("prev")
        if number != self.segment:
            self._find("broken_link", offset, f"the file says that it is segment {number}")
        if self.expected is not None and prev != self.expected.hex():
            self._find("broken_link", offset, "the segment before it ended elsewhere")


def _disorder(seqs: list[int], commit: Commit) -> list[str]:
    """What the sequence numbers in a changed batch tell of the change."""
    wanted = range(commit.first_seq, commit.seq + 1)
    missing = sorted(set(wanted) - set(seqs))
    foreign = sorted(set(seqs) - set(wanted))
    problems = []
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        problems.append(f"line {missing[0]}{more} missing")
    if foreign:
        problems.append(f"line {foreign[0]} does not belong here")
    if not missing and not foreign and seqs != sorted(seqs):
        first = next(seq for seq, right in zip(seqs, wanted, strict=False) if seq != right)
        problems.append(f"lines are out of order from line {first} on")
    return problems


def _lines(text: Iterable[bytes]) -> Iterator[bytes]:
    """Whole lines with their newline; at the end what is left without one."""
    rest = b""
    for chunk in text:
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            yield line + b"\n"
    if rest:
        yield rest


def _number(head: bytes) -> int | None:
    try:
        return Fields(json.loads(head.partition(b"\n")[0]), "journal_segment").integer("segment")
    except (ValueError, RecursionError):
        return None


def _span(first: int, last: int) -> str:
    return str(first) if first == last else f"{first} to {last}"
