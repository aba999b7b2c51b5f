"""The journal's one writer: takes lines from any thread and commits them in groups.

An ``append`` only takes a place in a queue. A thread writes what is queued as one batch, closes
it with a commit line (:mod:`.chain`), makes it durable with fdatasync, and only then answers
those who wait in ``flush``; a thread that calls ``flush_sync`` does it itself. A batch is written
at once when somebody waits for it, else after the commit interval, so a lone flush costs one write
and many share one.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import re
import threading
import time
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from substrate_services.journal.codec import SCHEMA_VERSION, timestamp
from substrate_services.journal.errors import (
    JournalBroken,
    JournalClosed,
    JournalError,
    JournalFull,
)
from substrate_services.journal.jsontypes import JsonObject, JsonValue, compact_bytes
from substrate_services.journal.livefile import LiveFile, take_lock
from substrate_services.journal.segments import Segment, compress_segment, rotated_segments

_log = logging.getLogger(__name__)

_FULL_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_BATCH_BYTES = 4 << 20  # a batch is one write; its lines are in memory twice while it is written
_RETRY_S = 1.0  # how often a full disk is tried again when nobody asks
_WRITERS_OWN = "journal_"  # event types of the lines that only the writer makes
_WORD = re.compile(r"[0-9A-Za-z_.:+-]{1,64}")  # what the index can find without parsing
_LINE_START = b'{"seq":%d,"v":"' + SCHEMA_VERSION.encode() + b'",'


@dataclass(frozen=True, slots=True)
class JournalStats:
    """Counters since the journal was opened."""

    lines: int  # durable, the writer's own not counted
    batches: int
    bytes: int  # of those lines
    queued_lines: int
    queued_bytes: int
    rotations: int
    full: bool  # whether the last attempt to write found no space


class Journal:
    """An append-only, chained file of JSON lines with one writer.

    Args:
        path: the live file; rotated ones, ``<stem>.lock`` and torn tails stand beside it.
        commit_interval_s: how long lines may wait for company when nobody flushes.
        segment_limit_bytes: size at which the live file is rotated.
        queue_limit_bytes: how much may wait for the disk; above it ``append`` waits.
        line_limit_bytes: longest line taken; put what is longer into the object store.

    Raises:
        JournalBusy: another process writes this journal.
        JournalForeign: the file is not a journal, or of a newer version.
        JournalFull: there is no space to start or to repair it.
        OSError: the file cannot be opened.
    """

    def __init__(
        self,
        path: Path,
        *,
        commit_interval_s: float = 0.005,
        segment_limit_bytes: int = 64 << 20,
        queue_limit_bytes: int = 32 << 20,
        line_limit_bytes: int = 16 << 20,
    ) -> None:
        # Rotation renames the file, so a symbolic link to another disk must be followed first.
        self.path = Path(os.path.realpath(path))
        self._commit_interval_s = commit_interval_s
        self._segment_limit_bytes = segment_limit_bytes
        self._queue_limit_bytes = max(queue_limit_bytes, line_limit_bytes)
        self._line_limit_bytes = line_limit_bytes

        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock_fd = take_lock(self.path)
            try:
                self._file = LiveFile(self.path)  # as _batch, once the thread runs
            except BaseException:
                os.close(self._lock_fd)
                raise
        except OSError as error:
            if error.errno in _FULL_ERRNOS:
                raise JournalFull(self.path, error.strerror or str(error)) from error
            raise

        # Guarded by the condition's lock.
        self._wake = threading.Condition()
        self._queue: deque[bytes] = deque()
        self._queued_bytes = 0  # the batch being written included
        self._waiters: list[tuple[int, Future[None]]] = []
        self._error: JournalFull | JournalBroken | None = None
        self._closing = False
        self._writing = False
        self._durable_seq = self._file.seq
        self._next_seq = self._file.seq + 1
        self._head = self._file.head
        self._first_seq = self._next_seq
        self._batches = self._bytes = self._rotations = 0

        # Touched by whoever has set _writing, under the lock: the writer thread, or a thread that
        # flushes and found nobody writing.
        self._batch: list[bytes] = []  # taken from the queue and not durable yet
        self._compressor: threading.Thread | None = None
        self._compress([s for s in rotated_segments(self.path) if not s.compressed])

        self._thread = threading.Thread(target=self._run, name="journal-writer", daemon=True)
        self._thread.start()

    # --- what callers use ------------------------------------------------------------------

    def append(self, line: Mapping[str, JsonValue]) -> int:
        """Queues a line and returns its sequence number. Safe from any thread.

        ``event_type`` is required; ``ts`` is the time of the call unless given. Does not wait for
        the disk; waits only while the queue is at its limit (async callers: ``await room()``).

        Raises:
            ValueError: the line has no event type, holds a field or an event type that belongs to
                the writer, holds what JSON cannot, or is too long.
            JournalFull: the queue is at its limit because there is no space; append again later.
            JournalBroken, JournalClosed: nothing is taken any more.
        """
        body = self._encode(line)
        while True:
            with self._wake:
                self._require_open()
                room = self._queue_limit_bytes - self._queued_bytes
                if len(body) <= room or not self._queued_bytes:
                    return self._enqueue(body)
                if self._error is None:
                    self._wake.wait()
                    continue
                # The disk was full; have the writer look once more before saying so.
                attempt = self._wait_for(self._durable_seq + 1)
            attempt.result()

    async def flush(self) -> None:
        """Returns when every line appended before is on disk.

        Raises:
            JournalFull: no space; the lines stay queued, so flush again, do not append again.
            JournalBroken: they will not get there.
            JournalClosed: close() came first.
        """
        await asyncio.wrap_future(self._flush_future())

    def flush_sync(self, timeout_s: float | None = None) -> None:
        """As :meth:`flush`, for threads. Raises TimeoutError after ``timeout_s`` too.

        Without a time limit it writes by itself where nobody else does so now: handing over to
        the writer's thread and back takes longer than most writes.
        """
        if timeout_s is None:
            self._write_here()
        self._flush_future().result(timeout_s)

    def _write_here(self) -> None:
        """Write a batch in this thread, unless another is at it or the last attempt failed."""
        with self._wake:
            if self._writing or self._error is not None or self._closing or not self._queue:
                return
            self._writing = True
            self._take_batch()
        self._write_guarded()

    async def room(self) -> None:
        """Returns when the queue is at most half full, so that ``append`` will not wait.

        Raises what :meth:`flush` raises.
        """
        while self.stats().queued_bytes > self._queue_limit_bytes // 2:
            await self.flush()

    @property
    def durable_seq(self) -> int:
        """Sequence number of the last line that is on disk."""
        with self._wake:
            return self._durable_seq

    @property
    def head(self) -> str:
        """The chain's head in hex: the digest of the last commit."""
        with self._wake:
            return self._head.hex()

    def stats(self) -> JournalStats:
        """Counters, for metrics and ``doctor``."""
        with self._wake:
            return JournalStats(
                lines=self._durable_seq + 1 - self._first_seq,
                batches=self._batches,
                bytes=self._bytes,
                queued_lines=self._next_seq - 1 - self._durable_seq,
                queued_bytes=self._queued_bytes,
                rotations=self._rotations,
                full=isinstance(self._error, JournalFull),
            )

    def close(self) -> None:
        """Writes what is queued and gives the journal up. A second call does nothing.

        Raises JournalFull or JournalBroken where lines could not be written: they are lost.
        """
        with self._wake:
            if self._closing:
                return
            self._closing = True
            self._wake.notify_all()
        self._thread.join()
        if self._compressor is not None:
            self._compressor.join()
        self._file.close()
        os.close(self._lock_fd)
        lost = self._next_seq - 1 - self._durable_seq
        if lost:
            error = self._error or JournalBroken(self.path, f"{lost} lines were not written")
            raise _anew(error)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # --- taking lines ----------------------------------------------------------------------

    def _encode(self, line: Mapping[str, JsonValue]) -> bytes:
        """The line behind its sequence number and version, newline included."""
        event_type, ts = line.get("event_type"), line.get("ts") or timestamp(time.time())
        if not isinstance(event_type, str) or _WORD.fullmatch(event_type) is None:
            raise ValueError(f"line has event_type {event_type!r}; expected a word like syscall")
        if not isinstance(ts, str) or _WORD.fullmatch(ts) is None:
            raise ValueError(f"line {event_type!r} has ts {ts!r}; expected RFC 3339 text")
        if event_type.startswith(_WRITERS_OWN):
            raise ValueError(f"event_type {event_type!r} belongs to the journal's writer")
        if "seq" in line or "v" in line:
            raise ValueError(f"line {event_type!r} holds seq or v; the writer assigns both")
        # Readers find these by their place, without parsing (see index.py).
        ordered: JsonObject = {"event_type": event_type, "ts": ts}
        span_id = line.get("span_id")
        if isinstance(span_id, str) and _WORD.fullmatch(span_id) is not None:
            ordered["span_id"] = span_id
        elif span_id is not None:
            raise ValueError(f"line {event_type!r} has span_id {span_id!r}; expected hex digits")
        for name, value in line.items():
            ordered.setdefault(name, value)
        body = compact_bytes(ordered)[1:] + b"\n"
        if len(body) > self._line_limit_bytes:
            raise ValueError(
                f"line {event_type!r} has {len(body)} bytes; the limit is "
                f"{self._line_limit_bytes}: put its payload into the object store"
            )
        return body

    def _require_open(self) -> None:
        if self._closing:
            raise JournalClosed(self.path)
        if isinstance(self._error, JournalBroken):
            raise _anew(self._error)

    def _enqueue(self, body: bytes) -> int:
        seq = self._next_seq
        self._next_seq += 1
        raw = _LINE_START % seq + body
        if not self._queue:
            self._wake.notify_all()
        self._queue.append(raw)
        self._queued_bytes += len(raw)
        return seq

    def _wait_for(self, seq: int) -> Future[None]:
        future: Future[None] = Future()
        self._waiters.append((seq, future))
        self._wake.notify_all()
        return future

    def _flush_future(self) -> Future[None]:
        with self._wake:
            target = self._next_seq - 1
            if target <= self._durable_seq:
                future: Future[None] = Future()
                future.set_result(None)
                return future
            self._require_open()
            return self._wait_for(target)

    # --- the writer thread -----------------------------------------------------------------

    def _run(self) -> None:
        while self._collect() and self._write_guarded():
            pass

    def _collect(self) -> bool:
        """Waits for lines and moves them into the batch; False when it is time to end."""
        with self._wake:
            if self._error is not None:
                self._wake.wait_for(lambda: self._waiters or self._closing, _RETRY_S)
            while True:
                self._wake.wait_for(
                    lambda: not self._writing and (self._queue or self._batch or self._closing)
                )
                if isinstance(self._error, JournalBroken):
                    return False  # somebody who flushed has found that out
                if self._batch:
                    break
                self._wake.wait_for(
                    lambda: self._waiters or self._closing or self._queued_bytes > _BATCH_BYTES,
                    self._commit_interval_s,
                )
                if not self._writing and (self._queue or self._closing):
                    break  # else somebody who flushed has written meanwhile
            self._take_batch()
            self._writing = bool(self._batch)
            return self._writing

    def _take_batch(self) -> None:
        size = sum(map(len, self._batch))
        while self._queue and size < _BATCH_BYTES:
            raw = self._queue.popleft()
            self._batch.append(raw)
            size += len(raw)

    def _write_guarded(self) -> bool:
        """Writes the batch, whatever happens; False when it is time to end."""
        try:
            return self._write()
        except Exception as error:  # noqa: BLE001 - waiters must hear of it
            _log.exception("the journal's writer failed")
            self._fail(JournalBroken(self.path, f"{type(error).__name__}: {error}"))
            return False
        finally:
            with self._wake:
                self._writing = False
                self._wake.notify_all()

    def _write(self) -> bool:
        """Writes the batch; False when it is time to end."""
        data = b"".join(self._batch)
        rotated = None
        try:
            if self._file.size >= self._segment_limit_bytes:
                rotated = self._file.rotate()
            self._file.commit(data, len(self._batch))
        except OSError as error:
            count = len(self._batch)
            waiting = "1 line waits" if count == 1 else f"{count} lines wait"
            detail = f"{error.strerror} ({waiting})"
            kind = JournalFull if error.errno in _FULL_ERRNOS else JournalBroken
            self._fail(kind(self.path, detail))
            return kind is JournalFull and not self._closing
        finally:
            if rotated is not None:
                self._compress([rotated])
        self._batch = []
        with self._wake:
            self._durable_seq, self._head = self._file.seq, self._file.head
            self._batches += 1
            self._bytes += len(data)
            self._rotations += rotated is not None
            self._queued_bytes -= len(data)
            self._error = None
            done = [future for seq, future in self._waiters if seq <= self._durable_seq]
            self._waiters = [waiter for waiter in self._waiters if waiter[0] > self._durable_seq]
            self._wake.notify_all()
        for future in done:
            if future.set_running_or_notify_cancel():
                future.set_result(None)
        return True

    def _fail(self, error: JournalFull | JournalBroken) -> None:
        with self._wake:
            self._error = error
            waiters, self._waiters = self._waiters, []
            self._wake.notify_all()
        for _, future in waiters:
            if future.set_running_or_notify_cancel():
                future.set_exception(_anew(error))

    def _compress(self, segments: list[Segment]) -> None:
        """Compresses rotated segments in a thread; one at a time, so a second call waits."""
        if not segments:
            return
        if self._compressor is not None:
            self._compressor.join()
        self._compressor = threading.Thread(
            target=_compress_all, args=(segments,), name="journal-compress", daemon=True
        )
        self._compressor.start()


def _anew(error: JournalFull | JournalBroken) -> JournalError:
    """An error of its own for each who is told: raising one twice would pile up its traceback."""
    return type(error)(error.path, error.detail)


def _compress_all(segments: list[Segment]) -> None:
    for segment in segments:
        try:
            compress_segment(segment)
        except OSError as error:
            # The text stays as it is, readable; the next start tries again.
            _log.warning("cannot compress %s: %s", segment.path, error)
