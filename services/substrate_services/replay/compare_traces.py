"""Compares what telemetry saw of two runs: processes, files looked up, endpoints.

These are observations: they help to find out why runs differ, and do not by themselves make a
replay `diverged` (docs/REPLAY.md). They need full coverage on both sides, as what an unobserved
process did cannot be told from what did not happen.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

from substrate_services.journal.schema import Process
from substrate_services.replay.divergence import Cause, Dimension, Divergence
from substrate_services.replay.normalise import Normaliser, PairNormaliser
from substrate_services.replay.observed import FileRead

_Key = tuple[bytes, bytes]  # digest of the ancestors' argv; the process's argv and exit


def compare_processes(
    recorded: Sequence[Process], replayed: Sequence[Process], normaliser: PairNormaliser
) -> list[Divergence]:
    """Processes that only one run has, by lineage, argv and exit; order does not count."""
    old = _lineages(recorded, normaliser.recorded)
    new = _lineages(replayed, normaliser.replayed)
    return [
        *_one_sided("processes", "process_missing", old, new),
        *_one_sided("processes", "process_extra", new, old),
    ]


def compare_files_read(
    recorded: Sequence[FileRead], replayed: Sequence[FileRead], normaliser: PairNormaliser
) -> list[Divergence]:
    """Paths that only one run looked up, or found."""
    old = _looked_up(recorded, normaliser.recorded)
    new = _looked_up(replayed, normaliser.replayed)
    return [
        *_one_sided("files_read", "file_missing", old, new),
        *_one_sided("files_read", "file_extra", new, old),
    ]


def compare_endpoints(recorded: Sequence[str], replayed: Sequence[str]) -> list[Divergence]:
    """Endpoints that only one run reached for."""
    old = Counter((b"", endpoint.encode()) for endpoint in set(recorded))
    new = Counter((b"", endpoint.encode()) for endpoint in set(replayed))
    return [
        *_one_sided("endpoints", "endpoint_missing", old, new),
        *_one_sided("endpoints", "endpoint_extra", new, old),
    ]


def _lineages(processes: Sequence[Process], normaliser: Normaliser) -> Counter[_Key]:
    by_span = {process.span_id: process for process in processes}
    lineage: dict[str, bytes] = {}
    for process in processes:
        # Up to an ancestor whose lineage is known, then down again: a chain may be thousands
        # of processes long.
        chain: list[Process] = []
        current: Process | None = process
        seen: set[str] = set()
        while current is not None and current.span_id not in lineage:
            if current.span_id in seen:  # testimony of a hostile program may hold a circle
                break
            seen.add(current.span_id)
            chain.append(current)
            current = by_span.get(current.parent_span_id)
        for link in reversed(chain):
            above = lineage.get(link.parent_span_id, b"")
            argv = normaliser.line(b" ".join(link.argv)).text
            lineage[link.span_id] = hashlib.sha256(above + argv).digest()
    return Counter(
        (lineage.get(process.parent_span_id, b""), _describe(process, normaliser))
        for process in processes
    )


def _describe(process: Process, normaliser: Normaliser) -> bytes:
    argv = normaliser.line(b" ".join(process.argv)).text
    if process.signal is not None:
        return b"%s, killed by signal %d" % (argv, process.signal)
    if process.exit_code is not None:
        return b"%s, exit %d" % (argv, process.exit_code)
    return argv + b", end not seen"


def _looked_up(files: Sequence[FileRead], normaliser: Normaliser) -> Counter[_Key]:
    found = {
        normaliser.path(file.path) + (b"" if file.found else b" (not found)") for file in files
    }
    return Counter((b"", path) for path in found)


def _one_sided(
    dimension: Dimension, cause: Cause, have: Counter[_Key], other: Counter[_Key]
) -> list[Divergence]:
    missing = cause.endswith("_missing")
    side = "only in the recording" if missing else "only in the replay"
    return [
        Divergence(
            dimension,
            cause,
            what.decode("utf-8", "backslashreplace"),
            what if missing else None,
            None if missing else what,
            detail=side if count == 1 else f"{side}, {count} times",
        )
        for (_, what), count in sorted((have - other).items(), key=lambda item: item[0][1])
    ]
