"""The project as it was when its world was made, and what of it is still so (DESIGN §5).

The base is the host's live tree: an editor or ``git checkout`` may change it while a world lives
and before a replay. A fingerprint says which files are still the recorded ones; pins keep the
content of those that a step read or changed, so that a replay can have them back.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from substrate_services.journal.schema import FileFingerprint
from substrate_services.objects.store import ObjectStore
from substrate_services.world.base_mounts import is_below

# Pinning a whole project costs one read of it; beyond these bounds only what steps touch is kept.
PIN_FILE_LIMIT_BYTES = 8 << 20
PIN_BUDGET_BYTES = 64 << 20
PIN_BUDGET_FILES = 5_000


def fingerprint_of(path: bytes, status: os.stat_result | None = None) -> FileFingerprint:
    """The fingerprint of the entry at ``path``. Raises OSError when there is none."""
    if status is None:
        status = os.lstat(path)
    return FileFingerprint(
        path=path,
        ino=status.st_ino,
        mtime_ns=status.st_mtime_ns,
        ctime_ns=status.st_ctime_ns,
        size=status.st_size,
        mode=status.st_mode,
        uid=status.st_uid,
        gid=status.st_gid,
        target=os.readlink(path) if stat.S_ISLNK(status.st_mode) else None,
    )


def fingerprint_tree(root: bytes, leave_out: tuple[bytes, ...]) -> tuple[FileFingerprint, ...]:
    """Fingerprints of everything below ``root`` and of ``root`` itself, sorted by path.

    Other file systems mounted below are left out, as are the paths in ``leave_out``.
    """
    device = os.lstat(root).st_dev
    found = [fingerprint_of(root)]
    hidden = frozenset(leave_out)
    pending = [] if is_below(root, leave_out) else [root]
    while pending:
        for entry in _listed(pending.pop()):
            path = entry.path
            if path in hidden:
                continue
            try:
                status = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            if status.st_dev != device:
                continue
            found.append(fingerprint_of(path, status))
            if entry.is_dir(follow_symlinks=False):
                pending.append(path)
    return tuple(sorted(found, key=lambda entry: entry.path))


def _listed(directory: bytes) -> list[os.DirEntry[bytes]]:
    try:
        with os.scandir(directory) as entries:
            return list(entries)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return []  # gone, or not ours to read: not part of what a world could see either


def _entries(directory: bytes) -> Iterator[tuple[bytes, os.stat_result]]:
    pending = [directory]
    while pending:
        for entry in _listed(pending.pop()):
            try:
                status = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            yield entry.path, status
            if stat.S_ISDIR(status.st_mode):
                pending.append(entry.path)


def same_entry(recorded: FileFingerprint, status: os.stat_result | None) -> bool:
    """Whether the host's entry is still the recorded one.

    A directory counts as the same when it is one with the same owner and mode: its times change
    with its entries, which have fingerprints of their own.
    """
    if status is None or recorded.mode != status.st_mode:
        return False
    if (recorded.uid, recorded.gid) != (status.st_uid, status.st_gid):
        return False
    if stat.S_ISDIR(recorded.mode):
        return True
    return (recorded.ino, recorded.size, recorded.mtime_ns, recorded.ctime_ns) == (
        status.st_ino,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
    )


def lstat_or_none(path: bytes) -> os.stat_result | None:
    """The entry at ``path``, links not followed; None where there is none."""
    try:
        return os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None


@dataclass(slots=True)
class Pins:
    """Content of base files kept as objects: host path → digest."""

    digests: dict[bytes, str]
    total_bytes: int = 0

    def pin(
        self, store: ObjectStore, recorded: FileFingerprint, *, limit_bytes: int | None = None
    ) -> bool:
        """Keep the file's content if it is still the recorded file; False when it is not.

        Args:
            store: where to keep it.
            recorded: the file's fingerprint.
            limit_bytes: larger files are not kept.
        """
        if recorded.path in self.digests:
            return True
        if not stat.S_ISREG(recorded.mode):
            return True  # links and directories are in the fingerprint itself
        if limit_bytes is not None and recorded.size > limit_bytes:
            return False
        if not same_entry(recorded, lstat_or_none(recorded.path)):
            return False
        try:
            digest = store.put_file(recorded.path)
        except OSError:
            return False
        # Read first, looked at again: what was stored is the recorded file only if no write
        # came between.
        if not same_entry(recorded, lstat_or_none(recorded.path)):
            return False
        self.digests[recorded.path] = digest
        self.total_bytes += recorded.size
        return True

    def pin_all(self, store: ObjectStore, recorded: Iterable[FileFingerprint]) -> bool:
        """Keep a whole project if it fits the budget; False, with nothing read, if not."""
        files = [entry for entry in recorded if stat.S_ISREG(entry.mode)]
        if len(files) > PIN_BUDGET_FILES or sum(file.size for file in files) > PIN_BUDGET_BYTES:
            return False
        for file in files:
            self.pin(store, file, limit_bytes=PIN_FILE_LIMIT_BYTES)
        return True


@dataclass(frozen=True, slots=True)
class BaseDifference:
    """How the live project differs from the recorded one."""

    changed: tuple[FileFingerprint, ...]  # recorded entries that are gone or are others now
    added: tuple[bytes, ...]  # entries that were not there; the topmost of each new tree

    def __bool__(self) -> bool:
        return bool(self.changed or self.added)


def compare_with_live(
    root: bytes, recorded: Mapping[bytes, FileFingerprint], leave_out: tuple[bytes, ...]
) -> BaseDifference:
    """What of a recorded project is no longer so on this host."""
    changed: list[FileFingerprint] = []
    # Recorded directories that are none now: below them is nothing, also where a link leads to it.
    gone: set[bytes] = set()
    above = os.path.dirname(root)
    if os.path.realpath(above) != above:
        gone.add(above)
    for entry in sorted(recorded.values(), key=lambda entry: entry.path):
        status = lstat_or_none(entry.path) if os.path.dirname(entry.path) not in gone else None
        if stat.S_ISDIR(entry.mode) and (status is None or not stat.S_ISDIR(status.st_mode)):
            gone.add(entry.path)
        if not same_entry(entry, status):
            changed.append(entry)
    added: list[bytes] = []
    root_status = lstat_or_none(root) if above not in gone else None
    if root_status is not None and stat.S_ISDIR(root_status.st_mode):
        for path, status in _entries(root):
            if status.st_dev != root_status.st_dev or is_below(path, leave_out):
                continue
            if path not in recorded and not is_below(path, tuple(added[-64:])):
                added.append(path)
    # Below what was recorded as a file nothing is added: the file is put back instead.
    return BaseDifference(
        tuple(changed),
        tuple(
            path
            for path in _topmost(added)
            if (parent := recorded.get(os.path.dirname(path))) is None or stat.S_ISDIR(parent.mode)
        ),
    )


def _topmost(paths: Iterable[bytes]) -> Iterator[bytes]:
    last: bytes | None = None
    for path in sorted(paths, key=lambda path: path.split(b"/")):
        if last is None or not is_below(path, (last,)):
            yield path
            last = path
