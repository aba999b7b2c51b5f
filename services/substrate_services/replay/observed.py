"""What is known about one run, recorded or replayed, for the comparison of two."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import BinaryIO, Protocol, TypeAlias

from substrate_services.journal.schema import (
    Change,
    Coverage,
    Process,
    SpanRecord,
    TerminationReason,
)
from substrate_services.replay.normalise import RunFacts, find_temp_names


class ObjectReader(Protocol):
    """What the comparison needs of the object store."""

    def has(self, digest: str) -> bool:
        """Whether the object is there."""
        ...

    def open(self, digest: str) -> BinaryIO:
        """A stream of the object's bytes; reading raises when they are damaged."""
        ...


@dataclass(frozen=True, slots=True)
class Stream:
    """One output stream of a run; opened only when it has to be read."""

    open: Callable[[], BinaryIO]
    size: int  # bytes that were kept
    digest: str | None = None  # equal digests spare the reading
    cut: bool = False  # the run wrote more than was kept

    @staticmethod
    def of(data: bytes, *, cut: bool = False) -> Stream:
        """A stream of bytes in memory."""
        return Stream(lambda: io.BytesIO(data), len(data), cut=cut)


@dataclass(frozen=True, slots=True)
class Unavailable:
    """Something that was not recorded, or is no longer kept."""

    reason: str


Output: TypeAlias = Stream | Unavailable


@dataclass(frozen=True, slots=True)
class FileRead:
    """A path that a run looked up; failed look-ups count too."""

    path: bytes
    found: bool = True


@dataclass(frozen=True, slots=True)
class Observed:
    """One run. With ``pty``, ``stdout`` is the terminal's one stream and ``stderr`` is not read."""

    termination_reason: TerminationReason
    exit_code: int | None
    signal: str | None
    stdout: Output
    stderr: Output
    changes: tuple[Change, ...]
    coverage: Coverage
    facts: RunFacts = field(default_factory=RunFacts)
    pty: bool = False
    changes_omitted: int = 0  # changes made but not in `changes`
    changes_shared: bool = False  # some may be those of other commands
    processes: tuple[Process, ...] = ()
    processes_omitted: int = 0
    files_read: tuple[FileRead, ...] | None = None  # None: not recorded
    endpoints: tuple[str, ...] | None = None  # "host:port"; None: not recorded


def observe(
    span: SpanRecord,
    objects: ObjectReader,
    *,
    changes: tuple[Change, ...] | None = None,
    processes: tuple[Process, ...] | None = None,
    files_read: tuple[FileRead, ...] | None = None,
    endpoints: tuple[str, ...] | None = None,
    opened: Iterable[bytes] = (),
    host_name: bytes = b"",
    world_root: bytes = b"",
) -> Observed:
    """What a span's record says about its run.

    Args:
        span: the record of the run.
        objects: where its output is.
        changes: all changes, when the record lists only some (``changes_digest``).
        processes: all processes, likewise.
        files_read: from the step's events; None when they were not read.
        endpoints: from the step's events; None when they were not read.
        opened: paths that the step opened or made; temporary names are found among them.
        host_name: the world's host name.
        world_root: where the host has the world's tree mounted.
    """
    listed = span.changes if changes is None else changes
    tree = span.processes if processes is None else processes
    pids = sorted({(process.start_ns, process.pid): None for process in tree})
    return Observed(
        termination_reason=span.termination_reason,
        exit_code=span.exit_code,
        signal=span.signal,
        stdout=_output(
            objects, "stdout", span.stdout_digest, span.stdout_bytes, cut=span.truncated
        ),
        stderr=_output(
            objects, "stderr", span.stderr_digest, span.stderr_bytes, cut=span.truncated
        ),
        changes=listed,
        coverage=span.coverage,
        facts=RunFacts(
            started_at=span.start_time,
            duration_s=span.duration_ms / 1000,
            pids=tuple(dict.fromkeys(pid for _, pid in pids)),
            temp_names=find_temp_names((*(change.path for change in listed), *opened)),
            host_name=host_name,
            world_root=world_root,
            world_id=span.world_id,
            session_id=span.session_id,
            exec_id=span.exec_id,
            span_ids=(
                span.trace_id,
                span.span_id,
                span.parent_span or "",
                *(process.span_id for process in tree),
            ),
        ),
        pty=span.action.pty,
        changes_omitted=span.changes_truncated if changes is None else 0,
        changes_shared=span.shared,
        processes=tree,
        processes_omitted=span.processes_truncated if processes is None else 0,
        files_read=files_read,
        endpoints=endpoints,
    )


def _output(
    objects: ObjectReader, name: str, digest: str | None, size: int, *, cut: bool
) -> Output:
    if digest is None:
        return Unavailable(f"{name} was not kept") if size else Stream.of(b"", cut=cut)
    if not objects.has(digest):
        return Unavailable(f"{name} (object {digest[:12]}…) is no longer in the object store")
    return Stream(lambda: objects.open(digest), size, digest, cut)
