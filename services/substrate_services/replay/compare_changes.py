"""Compares what two runs did to the tree: path, kind, type, mode, owner, content, link target."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from substrate_services.journal.schema import Change, FileState
from substrate_services.replay.divergence import Cause, Divergence, NotCompared
from substrate_services.replay.git_index import LIMIT_BYTES, is_git_index, without_status
from substrate_services.replay.normalise import PairNormaliser
from substrate_services.replay.observed import ObjectReader
from substrate_services.replay.outputs import ExactLines, compare_streams

_SNIFF_BYTES = 8192
_MAX_CONTENTS = 20  # pairs of file contents that are opened to find the line that differs


@dataclass(slots=True)
class ChangesResult:
    """Differences between two lists of changes, and what could not be said about them."""

    divergences: list[Divergence] = field(default_factory=list)
    not_compared: list[NotCompared] = field(default_factory=list)


def compare_changes(
    recorded: tuple[Change, ...],
    replayed: tuple[Change, ...],
    names: PairNormaliser,
    objects: ObjectReader | None,
    *,
    omitted: bool,
    mtime: bool,
) -> ChangesResult:
    """Compare two lists of changes, the project's before those outside it, each by path.

    Args:
        recorded: the recording's changes.
        replayed: the replay's changes.
        names: pairs paths that differ in temporary names only.
        objects: to show the first line that differs in a file; None to leave that out.
        omitted: a list is not complete, so a path that only one of them has says nothing.
        mtime: compare modification times too.
    """
    result = ChangesResult()
    contents = _Contents(objects)
    unhashed = 0
    for old, new in _paired(recorded, replayed, names):
        if contents.differ_in_git_status_only(old, new):
            names.hits["git_index"] = names.hits.get("git_index", 0) + 1
            continue
        if old is None or new is None:
            if not omitted:
                result.divergences.append(_one_sided(old, new))
            continue
        result.divergences.extend(_differences(old, new, contents, mtime=mtime))
        unhashed += _unhashed(old.after, new.after)
    if unhashed:
        result.not_compared.append(
            NotCompared("changes", f"content of {unhashed} file(s) has no digest on one side")
        )
    return result


def _paired(
    recorded: tuple[Change, ...], replayed: tuple[Change, ...], names: PairNormaliser
) -> Iterator[tuple[Change | None, Change | None]]:
    old, new = _by_path(recorded), _by_path(replayed)
    twins = _twins(old, new, names)
    taken = set(twins.values())
    paths = [*old, *(path for path in new if path not in old and path not in taken)]
    for path in sorted(paths, key=lambda path: (_scope(old.get(path) or new[path]), path)):
        yield old.get(path), new.get(twins.get(path, path))


def _twins(
    old: Mapping[bytes, Change], new: Mapping[bytes, Change], names: PairNormaliser
) -> dict[bytes, bytes]:
    """What only one side has may be the same file under another temporary name."""
    spare: dict[bytes, list[bytes]] = {}
    for path in sorted(new.keys() - old.keys()):
        form = names.replayed.path(path)
        if form != path:
            spare.setdefault(form, []).append(path)
    twins: dict[bytes, bytes] = {}
    for path in sorted(old.keys() - new.keys()) if spare else ():
        candidates = spare.get(names.recorded.path(path), [])
        # With several of one form, what they hold tells them apart.
        for candidate in sorted(
            candidates, key=lambda candidate: _held(new[candidate]) != _held(old[path])
        ):
            if names.same_path(path, candidate):
                twins[path] = candidate
                candidates.remove(candidate)
                break
    return twins


def _held(change: Change) -> tuple[str | None, str | None, bytes | None]:
    after = change.after
    return (None, None, None) if after is None else (after.kind, after.digest, after.target)


def _by_path(changes: tuple[Change, ...]) -> dict[bytes, Change]:
    return {change.path: change for change in changes}


def _scope(change: Change) -> int:
    return 0 if change.scope == "project" else 1


def _one_sided(old: Change | None, new: Change | None) -> Divergence:
    change = old or new
    assert change is not None
    cause: Cause = "change_missing" if new is None else "change_extra"
    return _divergence(
        change,
        cause,
        None if old is None else describe_change(old),
        None if new is None else describe_change(new),
        "only in the recording" if new is None else "only in the replay",
    )


def _differences(
    old: Change, new: Change, contents: _Contents, *, mtime: bool
) -> Iterator[Divergence]:
    if _different_start(old.before, new.before):
        yield _divergence(
            old,
            "different_start",
            describe_state(old.before),
            describe_state(new.before),
            "the path was not the same before the step: the restored tree or its base differs",
        )
    before, after = old.after, new.after
    if before is None or after is None:
        if (before is None) != (after is None) or old.kind != new.kind:
            yield _divergence(old, "change_kind", describe_change(old), describe_change(new))
        return
    found = list(_state_differences(old, before, after, contents, mtime=mtime))
    yield from found
    if old.kind != new.kind and not found:
        yield _divergence(old, "change_kind", describe_change(old), describe_change(new))
    if old.renamed_from != new.renamed_from and old.kind == new.kind == "renamed":
        yield _divergence(old, "renamed_from", old.renamed_from, new.renamed_from)


def _state_differences(
    change: Change, old: FileState, new: FileState, contents: _Contents, *, mtime: bool
) -> Iterator[Divergence]:
    if old.kind != new.kind:
        yield _divergence(change, "file_type", describe_state(old), describe_state(new))
        return
    if old.target != new.target:
        yield _divergence(change, "link_target", old.target, new.target)
    if old.rdev != new.rdev:
        yield _divergence(change, "device", b"%d" % old.rdev, b"%d" % new.rdev)
    if old.kind == "file" and _other_content(old, new):
        yield contents.divergence(change, old, new)
    if old.mode != new.mode:
        yield _divergence(change, "mode", b"%04o" % old.mode, b"%04o" % new.mode)
    if (old.uid, old.gid) != (new.uid, new.gid):
        owners = (b"%d:%d" % (old.uid, old.gid), b"%d:%d" % (new.uid, new.gid))
        yield _divergence(change, "owner", *owners)
    if mtime and old.mtime_ns != new.mtime_ns:
        times = (b"%d ns" % old.mtime_ns, b"%d ns" % new.mtime_ns)
        yield replace(_divergence(change, "mtime", *times), dimension="mtime")


def _other_content(old: FileState, new: FileState) -> bool:
    if old.digest is not None and new.digest is not None:
        return old.digest != new.digest
    return old.size != new.size


def _unhashed(old: FileState | None, new: FileState | None) -> bool:
    if old is None or new is None or old.kind != "file" or new.kind != "file":
        return False
    # Different sizes are a divergence already, and two empty files are the same.
    return (old.digest is None or new.digest is None) and old.size == new.size > 0


def _different_start(old: FileState | None, new: FileState | None) -> bool:
    if old is None or new is None:
        return (old is None) != (new is None)
    if old.kind != new.kind or old.target != new.target:
        return True
    return old.digest is not None and new.digest is not None and old.digest != new.digest


class _Contents:
    """Looks for the first line in which two file contents differ."""

    def __init__(self, objects: ObjectReader | None) -> None:
        self._objects = objects
        self._left = _MAX_CONTENTS

    def divergence(self, change: Change, old: FileState, new: FileState) -> Divergence:
        """The divergence of a file whose content differs."""
        plain = _divergence(
            change,
            "content",
            describe_state(old),
            describe_state(new),
            f"{old.size} bytes became {new.size}" if old.size != new.size else "",
        )
        if self._objects is None or old.digest is None or new.digest is None or not self._left:
            return plain
        if not (self._objects.has(old.digest) and self._objects.has(new.digest)):
            return plain
        self._left -= 1
        if self._binary(old.digest) or self._binary(new.digest):
            return replace(plain, detail="; ".join(filter(None, (plain.detail, "binary content"))))
        with self._objects.open(old.digest) as before, self._objects.open(new.digest) as after:
            difference = compare_streams(before, after, ExactLines()).difference
        if difference is None:
            return plain
        return replace(
            plain,
            place=f"{plain.place}, line {difference.line}",
            expected=difference.expected,
            actual=difference.actual,
            line=difference.line,
            offset=difference.offset,
        )

    def differ_in_git_status_only(self, old: Change | None, new: Change | None) -> bool:
        """Whether an index of git was written on one side only, or on both, to the same effect."""
        one = old or new
        if self._objects is None or one is None or not is_git_index(one.path):
            return False
        if old is None or new is None:
            pair = one.before, one.after
        elif _different_start(old.before, new.before):
            return False
        else:
            pair = old.after, new.after
        before, after = pair
        if before is None or after is None or before.digest == after.digest:
            return False
        if (before.kind, before.mode, before.uid, before.gid) != (
            after.kind,
            after.mode,
            after.uid,
            after.gid,
        ):
            return False
        first = self._git_index(before)
        return first is not None and first == self._git_index(after)

    def _git_index(self, state: FileState) -> bytes | None:
        assert self._objects is not None
        if state.digest is None or state.size > LIMIT_BYTES or not self._objects.has(state.digest):
            return None
        with self._objects.open(state.digest) as stream:
            return without_status(stream.read())

    def _binary(self, digest: str) -> bool:
        assert self._objects is not None
        with self._objects.open(digest) as stream:
            return b"\0" in stream.read(_SNIFF_BYTES)


def describe_change(change: Change) -> bytes:
    """One line about a change, for people."""
    state = describe_state(change.after)
    return change.kind.encode() + (b"" if change.after is None else b": " + state)


def describe_state(state: FileState | None) -> bytes:
    """One line about what a path holds, for people."""
    if state is None:
        return b"nothing"
    text = f"{state.kind} {state.mode:04o}".encode()
    if state.kind == "file":
        digest = f", {state.digest[:12]}…" if state.digest is not None else ""
        text += f", {state.size} bytes{digest}".encode()
    if state.target is not None:
        text += b" -> " + state.target
    return text


def _divergence(
    change: Change,
    cause: Cause,
    expected: bytes | None,
    actual: bytes | None,
    detail: str = "",
) -> Divergence:
    place = change.path.decode("utf-8", "backslashreplace")
    return Divergence("changes", cause, place, expected, actual, detail=detail, path=change.path)
