"""Comparing what was looked at: stat, access, readlink and the like, as counts for each file.

libc looks at files by itself too, and these looks are no symbol's: realpath reads a link for every
directory above the file that it was asked for, euidaccess asks for the status first, the tables of
NSS and time zones are looked at again to see whether they changed, and the loader looks for the
directories that it searches. A rule for each takes them out, and counts them; of what libc does for
a program, the look that the program asked for has to be recorded.
"""

from __future__ import annotations

import itertools
import posixpath
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from benchmarks.truth.libc import libc_looks
from benchmarks.truth.operations import Image
from benchmarks.truth.traced import TracedCall


@dataclass(slots=True)
class Looks:
    """Of one workload.

    Attributes:
        files: pairs of a process and a path: in truth, and of these captured.
        looks: how often they were looked at, in the same way.
        unseen: pairs that were not captured.
        libc: looks that are left out, by rule.
    """

    files: list[int] = field(default_factory=lambda: [0, 0])
    looks: list[int] = field(default_factory=lambda: [0, 0])
    unseen: list[tuple[Image, bytes]] = field(default_factory=list)
    libc: Counter[str] = field(default_factory=Counter)

    def compare(
        self,
        image: Image,
        calls: Sequence[TracedCall],
        recorded: dict[tuple[Image, bytes], int],
        searched: set[bytes],
    ) -> None:
        """Add what an image looked at, in the order of each of its threads.

        Args:
            image: whose looks they are.
            calls: the truth.
            recorded: how often, for each image and path.
            searched: directories that the loader looked for libraries in.
        """
        counts = Counter(self._without_realpath(image, calls, recorded))
        doubled = _doubled(calls)
        for path, count in counts.items():
            captured = min(count, recorded.get((image, path), 0))
            rule = libc_looks(path, nss=b"/etc/nsswitch.conf" in counts)
            rule = rule or ("loader" if path in searched else "")
            by_libc = count - captured if rule else min(doubled[path], count - captured)
            if by_libc:
                self.libc[rule or "euidaccess"] += by_libc
            if by_libc == count:
                continue
            self.files[0] += 1
            self.files[1] += captured > 0
            self.looks[0] += count - by_libc
            self.looks[1] += captured
            if captured < count - by_libc:
                self.unseen.append((image, path))

    def _without_realpath(
        self, image: Image, calls: Sequence[TracedCall], recorded: dict[tuple[Image, bytes], int]
    ) -> Iterator[bytes]:
        for chain in _chains(calls):
            if len(chain) == 1:
                yield chain[0]
                continue
            asked = next((path for path in reversed(chain) if (image, path) in recorded), None)
            if asked is None:
                yield from chain
                continue
            yield asked
            self.libc["realpath"] += len(chain) - 1


def _doubled(calls: Sequence[TracedCall]) -> Counter[bytes]:
    """How often an access followed a stat at once: euidaccess, which is both, may have been it."""
    return Counter(
        call.at.operation.path
        for before, call in itertools.pairwise(calls)
        if (before.at.name, call.at.name) == ("newfstatat", "access")
        and before.at.tid == call.at.tid
        and before.at.operation.path == call.at.operation.path
    )


def _chains(calls: Sequence[TracedCall]) -> Iterator[list[bytes]]:
    """The paths, those of one realpath together: link after link, from the root downwards."""
    chain: list[bytes] = []
    thread = -1
    for call in calls:
        path = call.at.operation.path
        reads = call.at.name in ("readlink", "readlinkat")
        same_thread = bool(chain) and call.at.tid == thread
        goes_on = same_thread and reads and _follows(chain[-1], path)
        # Before it takes ".." it asks whether what stands there is a directory.
        goes_on |= same_thread and call.at.name == "faccessat2" and path == chain[-1]
        if chain and not goes_on:
            yield chain
            chain = []
        if goes_on or (reads and path.count(b"/") == 1):
            chain.append(path)
            thread = call.at.tid
        else:
            yield [path]
    if chain:
        yield chain


def _follows(before: bytes, path: bytes) -> bool:
    """Whether realpath reads this link after that: below it, or where it or ``..`` leads."""
    above = posixpath.dirname(path)
    return above in (b"/", before) or before.startswith(above + b"/")
