"""What the journal raises.

::

    JournalError
    ├── JournalBusy      another process writes this journal
    ├── JournalForeign   the file is not a journal, or a newer version wrote it
    ├── JournalFull      no space; what was flushed before stays, later appends work again
    ├── JournalBroken    the disk failed; nothing more is accepted until the journal is reopened
    └── JournalClosed    append or flush after close
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar


class JournalError(Exception):
    """Root of the journal's errors."""

    reason: ClassVar[str] = "JOURNAL_ERROR"
    retryable: ClassVar[bool] = False


class JournalBusy(JournalError):
    """Another process holds the journal's lock."""

    reason: ClassVar[str] = "JOURNAL_BUSY"

    def __init__(self, path: Path, pid: int | None) -> None:
        self.path = path
        self.pid = pid
        holder = "another process" if pid is None else f"process {pid}"
        super().__init__(
            f"cannot write {path}: {holder} has it open for writing; use that host, "
            "stop it (substrate down), or set SHIM_TRACE_LOG to another file"
        )


class JournalForeign(JournalError):
    """The file is not a journal that this version can continue."""

    reason: ClassVar[str] = "JOURNAL_FOREIGN"

    def __init__(self, path: Path, detail: str) -> None:
        self.path = path
        super().__init__(f"cannot record to {path}: {detail}; name another file or move it away")


class JournalFull(JournalError):
    """There is no space to record in.

    From ``append``: the line was not taken; append it again later. From ``flush``: the lines are
    not on disk; they are kept in memory and written when there is space, so do not append them
    again, flush again.
    """

    reason: ClassVar[str] = "JOURNAL_FULL"
    retryable: ClassVar[bool] = True

    def __init__(self, path: Path, detail: str) -> None:
        self.path = path
        self.detail = detail
        super().__init__(f"cannot record to {path}: {detail}; free space on its file system")


class JournalBroken(JournalError):
    """Writing failed in a way that waiting does not mend (EIO, the file system went read-only)."""

    reason: ClassVar[str] = "JOURNAL_BROKEN"

    def __init__(self, path: Path, detail: str) -> None:
        self.path = path
        self.detail = detail
        super().__init__(
            f"cannot record to {path}: {detail}; check the disk, then restart the host"
        )


class JournalClosed(JournalError):
    """The journal was closed."""

    reason: ClassVar[str] = "JOURNAL_CLOSED"

    def __init__(self, path: Path) -> None:
        self.path = path
        super().__init__(f"cannot record to {path}: the journal is closed")
