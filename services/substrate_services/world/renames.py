"""Pairing what is gone with what is new: renames (DESIGN §5, kind ``renamed``).

What counts are facts that are the same on every host and after every restart: overlayfs's own
redirects, content, link targets, and the time of last modification, which a rename keeps. Inode
numbers are none of them; they are given again within a step.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from substrate_services.journal.schema import Change, FileState

_Key = tuple[object, ...]
_NO_REDIRECTS: Mapping[bytes, bytes] = {}


def pair_renames(
    changes: Sequence[Change], redirects: Mapping[bytes, bytes] = _NO_REDIRECTS
) -> list[Change]:
    """The changes, where pairs of deleted and created entries are one renamed entry each.

    A file is paired by its content, an empty one or a link by its time as well; a directory by
    overlayfs's word, or by most of what is in it. Everything is paired at most once.

    Args:
        changes: sorted by path, without renames.
        redirects: directories that overlayfs says were renamed, new path → old path.
    """
    pairing = _Pairing(changes)
    if not pairing.gone or not pairing.new:
        return list(changes)
    for new, old in sorted(redirects.items()):
        pairing.pair(new, old)
    pairing.by_content()
    pairing.directories()
    pairing.inside_directories()
    return pairing.result(changes)


class _Pairing:
    def __init__(self, changes: Iterable[Change]) -> None:
        self.gone: dict[bytes, FileState] = {}
        self.new: dict[bytes, FileState] = {}
        for change in changes:
            if change.kind == "deleted" and change.before is not None:
                self.gone[change.path] = change.before
            elif change.kind == "created" and change.after is not None:
                self.new[change.path] = change.after
        self.old_of: dict[bytes, bytes] = {}
        self._taken: set[bytes] = set()

    def pair(self, new: bytes, old: bytes) -> bool:
        """Pair two entries of one kind, if both are there and in no pair yet."""
        before, after = self.gone.get(old), self.new.get(new)
        if before is None or after is None or before.kind != after.kind:
            return False
        if new in self.old_of or old in self._taken:
            return False
        self.old_of[new] = old
        self._taken.add(old)
        return True

    def by_content(self) -> None:
        """Files and links: first those that agree in more, then those that agree in less."""
        rules: tuple[Callable[[bytes, FileState], _Key | None], ...] = (
            lambda path, state: _same_entry(state, os.path.basename(path)),
            lambda _path, state: _same_entry(state),
            lambda path, state: _same_content(state, os.path.basename(path)),
            lambda _path, state: _same_content(state),
        )
        for rule in rules:
            olds: dict[_Key, list[bytes]] = {}
            for path, state in self.gone.items():
                key = rule(path, state) if path not in self._taken else None
                if key is not None:
                    olds.setdefault(key, []).append(path)
            for path, state in self.new.items():
                key = rule(path, state) if path not in self.old_of else None
                candidates = olds.get(key) if key is not None else None
                if candidates:
                    self.pair(path, candidates.pop(0))

    def directories(self) -> None:
        """Directories, deepest first: by what is in them, empty ones by their time."""
        votes: dict[bytes, dict[bytes, int]] = {}

        def vote(new: bytes, old: bytes) -> None:
            if os.path.basename(new) == os.path.basename(old):
                found = votes.setdefault(os.path.dirname(new), {})
                found[os.path.dirname(old)] = found.get(os.path.dirname(old), 0) + 1

        for new, old in self.old_of.items():
            vote(new, old)
        filled = {os.path.dirname(path) for path in (*self.gone, *self.new)}
        empty: dict[_Key, list[bytes]] = {}
        for path, state in self.gone.items():
            if state.kind == "dir" and path not in filled:
                empty.setdefault((state.mode, state.mtime_ns), []).append(path)
        depth = sorted(self.new, key=lambda path: (-path.count(b"/"), path))
        for path in depth:
            state = self.new[path]
            if state.kind != "dir" or path in self.old_of:
                continue
            olds = sorted(votes.get(path, {}).items(), key=lambda item: (-item[1], item[0]))
            candidates = [old for old, _count in olds]
            if path not in filled:
                candidates += empty.get((state.mode, state.mtime_ns), ())
            for old in candidates:
                if self.pair(path, old):
                    vote(path, old)
                    break

    def inside_directories(self) -> None:
        """What kept its name in a renamed directory and changed besides; parents come first."""
        for path in sorted(self.new):
            old_directory = self.old_of.get(os.path.dirname(path))
            if old_directory is not None and path not in self.old_of:
                self.pair(path, os.path.join(old_directory, os.path.basename(path)))

    def result(self, changes: Iterable[Change]) -> list[Change]:
        """The changes with the pairs in them."""
        found = []
        for change in changes:
            old = self.old_of.get(change.path) if change.kind == "created" else None
            if old is not None:
                found.append(
                    replace(change, kind="renamed", before=self.gone[old], renamed_from=old)
                )
            elif change.kind != "deleted" or change.path not in self._taken:
                found.append(change)
        return found


def _same_entry(state: FileState, *more: object) -> _Key | None:
    """A key that is equal for one file or link before and after a rename."""
    if state.kind == "file" and state.digest is not None:
        return ("file", state.digest, state.mtime_ns, *more)
    if state.kind == "symlink":
        return ("symlink", state.target, state.mtime_ns, *more)
    return None


def _same_content(state: FileState, *more: object) -> _Key | None:
    """A key that is equal for files of one content; empty ones say nothing."""
    if state.kind == "file" and state.digest is not None and state.size:
        return ("file", state.digest, *more)
    return None
