"""The file that a journal's writer appends to: opening, repair, commits and rotation.

Everything here is synchronous and belongs to one thread at a time; the queue in front of it is
in :mod:`.writer`.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import stat
import time
from pathlib import Path

import blake3

from substrate_services.journal.chain import COMMIT_MARK, GENESIS, parse_commit, seal
from substrate_services.journal.codec import SCHEMA_VERSION, require_readable, timestamp
from substrate_services.journal.errors import JournalBusy, JournalForeign
from substrate_services.journal.jsontypes import Fields, JsonValue, LineError, compact_bytes
from substrate_services.journal.recovery import TailState, inspect_tail
from substrate_services.journal.segments import (
    Segment,
    live_pending_path,
    lock_path,
    open_segment,
    read_frames,
    rotated_path,
    rotated_segments,
    sync_directory,
    write_all,
)

_log = logging.getLogger(__name__)

_HEADER_BYTES = 4096  # a segment's first line is far shorter


def take_lock(path: Path) -> int:
    """Makes this process the journal's one writer; the descriptor holds the lock.

    Raises JournalBusy, with the pid of the process that has it.
    """
    fd = os.open(lock_path(path), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(fd, 32, 0).strip()
        os.close(fd)
        raise JournalBusy(path, int(holder) if holder.isdigit() else None) from None
    except BaseException:
        os.close(fd)
        raise
    # On a full disk the pid is missing from a message, which must not keep the journal closed.
    with contextlib.suppress(OSError):
        os.ftruncate(fd, 0)
        os.pwrite(fd, b"%d\n" % os.getpid(), 0)
    return fd


class LiveFile:
    """The live segment of a journal, positioned behind its last good batch.

    Attributes:
        segment: number of the live segment.
        size: bytes in it, all sealed and durable.
        head: the chain's head.
        seq: sequence number of the last line that is durable.

    Raises:
        JournalForeign: the file there is not a journal, or of a newer version.
        OSError: it cannot be opened, started or repaired.
    """

    segment: int
    size: int
    head: bytes
    seq: int
    _fd: int

    def __init__(self, path: Path) -> None:
        self.path = path
        pending = live_pending_path(path)
        if _is_empty(path):
            _adopt_pending(pending, path)
        else:
            # Left by a rotation that was cut before its first rename: nothing in it counts.
            with contextlib.suppress(FileNotFoundError):
                os.unlink(pending)
        if _is_empty(path):
            self._start()
        else:
            self._continue()

    def commit(self, lines: bytes, count: int) -> None:
        """Appends ``count`` lines as one batch and makes it durable.

        Raises OSError; the file then ends where it ended before.
        """
        seq = self.seq + count
        commit, head = seal(
            self.head,
            lines,
            seq=seq,
            first_seq=self.seq + 1,
            lines=count,
            ts=timestamp(time.time()),
        )
        self._append_durably(lines + commit)
        self.seq, self.head = seq, head

    def rotate(self) -> Segment:
        """Goes on in a new segment; returns the old one under its rotated name.

        Raises OSError; the old segment is then still the live one.
        """
        fresh, head, size = self._prepare(self.segment + 1, self.head, self.seq)
        old = Segment(self.segment, rotated_path(self.path, self.segment, compressed=False), False)
        try:
            # A crash between the two renames leaves no live file: __init__ does the second.
            os.rename(self.path, old.path)
            try:
                os.rename(live_pending_path(self.path), self.path)
            except OSError:
                os.rename(old.path, self.path)
                raise
            sync_directory(self.path.parent)
        except OSError:
            os.close(fresh)
            raise
        os.close(self._fd)
        self._fd, self.head, self.size, self.segment = fresh, head, size, self.segment + 1
        return old

    def close(self) -> None:
        """Closes the file. What was committed is durable already."""
        os.close(self._fd)

    # --- opening ---------------------------------------------------------------------------

    def _start(self) -> None:
        rotated = rotated_segments(self.path)
        self.segment = rotated[-1].number + 1 if rotated else 1
        prev, self.seq = _end_of(rotated[-1]) if rotated else (GENESIS, 0)
        self._fd, self.head, self.size = self._prepare(self.segment, prev, self.seq)
        try:
            os.rename(live_pending_path(self.path), self.path)
            sync_directory(self.path.parent)
        except BaseException:
            os.close(self._fd)
            raise

    def _continue(self) -> None:
        if not stat.S_ISREG(os.stat(self.path).st_mode):
            raise JournalForeign(self.path, "it is not a regular file")
        self._fd = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            self.segment = self._own_number()
            tail = inspect_tail(self._fd)
            if tail is None:
                raise JournalForeign(self.path, "it holds no commit line")
            if os.fstat(self._fd).st_mode & 0o077:
                os.fchmod(self._fd, 0o600)
            self.size, self.head, self.seq = tail.good_end, tail.head, tail.seq
            if tail.torn:
                self._repair(tail)
        except BaseException:
            os.close(self._fd)
            raise

    def _own_number(self) -> int:
        first_line, newline, _ = os.pread(self._fd, _HEADER_BYTES, 0).partition(b"\n")
        try:
            if not newline:
                raise LineError("no first line")
            fields = Fields(json.loads(first_line), "journal_segment")
            require_readable(fields)
            if fields.text("event_type") != "journal_segment":
                raise fields.wrong("event_type", "journal_segment")
            return fields.integer("segment")
        except (ValueError, RecursionError) as error:
            raise JournalForeign(self.path, f"its first line opens no segment: {error}") from error

    def _repair(self, tail: TailState) -> None:
        """Keeps the torn tail aside, then writes a line that names it in its place."""
        name = f"{self.path.name}.torn-{self.segment:08d}-{tail.good_end}"
        aside = self.path.with_name(name)
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
        fd = os.open(aside, flags, 0o600)
        try:
            write_all(fd, tail.torn)
            os.fsync(fd)
        finally:
            os.close(fd)
        sync_directory(aside.parent)
        os.ftruncate(self._fd, tail.good_end)
        self._append_own(
            "journal_repair",
            {
                "segment": self.segment,
                "offset": tail.good_end,
                "bytes": len(tail.torn),
                "digest": blake3.blake3(tail.torn).hexdigest(),
                "kept": name,
            },
        )
        _log.warning(
            "%s: an unfinished write of %d bytes at byte %d was kept aside in %s",
            self.path,
            len(tail.torn),
            tail.good_end,
            name,
        )

    # --- writing ---------------------------------------------------------------------------

    def _append_own(self, event_type: str, fields: dict[str, JsonValue]) -> None:
        data, self.head = _own_batch(event_type, fields, prev=self.head, seq=self.seq)
        self._append_durably(data)

    def _append_durably(self, data: bytes) -> None:
        try:
            write_all(self._fd, data)
            os.fdatasync(self._fd)
        except OSError:
            # Also after a failed fdatasync: its pages may be marked clean without being on disk,
            # so what it covered is cut off, to be written anew from memory.
            os.ftruncate(self._fd, self.size)
            os.fdatasync(self._fd)
            raise
        self.size += len(data)

    def _prepare(self, number: int, prev: bytes, seq: int) -> tuple[int, bytes, int]:
        """A new, sealed segment under the pending name: (descriptor, head of the chain, size)."""
        data, head = _own_batch(
            "journal_segment", {"segment": number, "prev": prev.hex()}, prev=prev, seq=seq
        )
        pending = live_pending_path(self.path)
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
        fd = os.open(pending, flags, 0o600)
        try:
            write_all(fd, data)
            os.fdatasync(fd)
        except OSError:
            os.close(fd)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(pending)
            raise
        return fd, head, len(data)


def _own_batch(
    event_type: str, fields: dict[str, JsonValue], *, prev: bytes, seq: int
) -> tuple[bytes, bytes]:
    """A sealed batch of one line of the writer's own: (its bytes, the chain's new head).

    Such a line takes no sequence number; it carries that of the last line before it.
    """
    ts = timestamp(time.time())
    line: dict[str, JsonValue] = {
        "seq": seq,
        "v": SCHEMA_VERSION,
        "event_type": event_type,
        "ts": ts,
        **fields,
    }
    data = compact_bytes(line) + b"\n"
    commit, head = seal(prev, data, seq=seq, first_seq=seq + 1, lines=1, ts=ts)
    return data + commit, head


def _is_empty(path: Path) -> bool:
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return True
    return stat.S_ISREG(status.st_mode) and status.st_size == 0


def _adopt_pending(pending: Path, path: Path) -> None:
    """Finishes a rotation, or a first start, that a crash cut before its last rename."""
    try:
        fd = os.open(pending, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        tail = inspect_tail(fd)
    finally:
        os.close(fd)
    if tail is not None and not tail.torn:
        os.rename(pending, path)
        sync_directory(path.parent)


def _end_of(segment: Segment) -> tuple[bytes, int]:
    """Head of the chain and last sequence number of a rotated segment."""
    fd, compressed = open_segment(segment)
    try:
        if not compressed:
            tail = inspect_tail(fd)
            if tail is not None:
                return tail.head, tail.seq
        else:
            # A commit line is shorter than a frame, so the last two hold the last one.
            texts = [b"", b""]
            for _, text in read_frames(fd):
                texts = [texts[1], text]
            text = b"".join(texts)
            start = text.rfind(b"\n", 0, text.rfind(COMMIT_MARK)) + 1
            commit = parse_commit(text[start:])
            if commit is not None:
                return commit.digest, commit.seq
    finally:
        os.close(fd)
    raise JournalForeign(segment.path, "it does not end with a commit line")
