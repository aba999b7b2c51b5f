"""What a step did to the tree: the difference between two walks of the layers (DESIGN §5)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from substrate_services.journal.schema import Change, ChangeScope, FileState
from substrate_services.world.base_mounts import is_below
from substrate_services.world.layers import HashFile, Layer, LowerView, UpperNode, Xattrs
from substrate_services.world.project import Project
from substrate_services.world.renames import pair_renames


@dataclass(frozen=True, slots=True)
class _View:
    """One side of a comparison at one path: the upper's entry over what lies below it."""

    upper: UpperNode | None
    lower: LowerView | None

    def shows_lower_only(self) -> bool:
        return self.upper is None

    def exists(self) -> bool:
        if self.upper is not None:
            return self.upper.kind is not None
        return self.lower is not None

    def unread(self) -> bool:
        return self.upper is not None and self.upper.unread != ""

    def kind(self) -> str:
        if self.upper is not None:
            return self.upper.kind or "none"
        return self.lower.kind if self.lower is not None else "none"

    def state(self, hash_file: HashFile | None) -> FileState | None:
        if self.upper is not None:
            return self.upper.state
        return self.lower.state(hash_file) if self.lower is not None else None

    def xattrs(self) -> Xattrs:
        if self.upper is not None:
            return self.upper.xattrs
        return self.lower.xattrs() if self.lower is not None else ()

    def below(self, root: LowerView) -> LowerView | None:
        """The lower directory that this directory's entries are merged with."""
        if self.upper is None:
            return self.lower
        if self.upper.kind != "dir" or self.upper.opaque:
            return None
        # Absolute: from the layer's root. Relative: a rename within the same directory, which
        # the parent has already looked up (see _child).
        if self.upper.redirect is not None and self.upper.redirect.startswith(b"/"):
            lower = root.lookup(self.upper.redirect)
            return lower if lower is not None and lower.kind == "dir" else None
        return self.lower if self.lower is not None and self.lower.kind == "dir" else None


class ChangeFinder:
    """Compares walks of one world's layers.

    Args:
        layers: the world's layers.
        project: what has scope ``project``; None when there is none.
        hash_lower: gives the digest of a base file.
        hidden: says which host paths the world does not show; they are no part of any change.
    """

    def __init__(
        self,
        layers: tuple[Layer, ...],
        project: Project | None,
        hash_lower: HashFile,
        hidden: Callable[[bytes], bool] | None = None,
    ) -> None:
        self._layers = layers
        self._project = project
        self._hash_lower = hash_lower
        self._hidden = hidden

    def changes(
        self,
        before: Mapping[str, UpperNode],
        after: Mapping[str, UpperNode],
        *,
        renames: bool = True,
    ) -> list[Change]:
        """All changes between two walks (layer id → upper root), sorted by path.

        Args:
            before: one walk.
            after: the other.
            renames: pair what is gone with what is new; otherwise it is deleted and created.
        """
        found: list[Change] = []
        redirects: dict[bytes, bytes] = {}
        for layer in self._layers:
            root = LowerView.root(layer, self._hidden)
            old = _View(before.get(layer.layer_id), root)
            new = _View(after[layer.layer_id], root)
            found.extend(self._compare(layer, old, new, root, redirects))
        found.sort(key=lambda change: change.path)
        return pair_renames(found, redirects) if renames else found

    def _compare(
        self,
        layer: Layer,
        old: _View,
        new: _View,
        root: LowerView,
        redirects: dict[bytes, bytes],
    ) -> Iterator[Change]:
        # A stack of its own: a world may nest directories deeper than calls may nest here.
        pending = [(b"", old, new)]
        while pending:
            relative, old, new = pending.pop()
            # Walks share what has not changed, so one look tells of all that is below.
            if old.upper is new.upper and _key(old.lower) == _key(new.lower):
                continue
            if not old.exists() and not new.exists():
                continue
            change = self._change(layer.path_in_world(relative), old, new)
            if change is not None:
                yield change
                if change.kind == "created" and new.upper is not None and new.upper.redirect:
                    redirects[change.path] = origin_of(layer, change.path, new.upper.redirect)
            for name, old_child, new_child in _pairs_below(old, new, root):
                pending.append((os.path.join(relative, name), old_child, new_child))

    def _change(self, path: bytes, old: _View, new: _View) -> Change | None:
        scope = self._scope(path)
        if not old.exists():
            return Change(path, "created", scope, None, new.state(self._hash_lower))
        if not new.exists():
            return Change(path, "deleted", scope, old.state(self._hash_lower), None)
        # Sizes decide most comparisons; only equal ones are worth reading the base for.
        before, after = _both(old, new, None)
        same_shape = (
            before.kind == after.kind
            and before.size == after.size
            and before.target == after.target
            and before.rdev == after.rdev
        )
        if "file" in (before.kind, after.kind):
            before, after = _both(old, new, self._hash_lower)
        if old.unread() or new.unread():
            # Without content to compare, its time of change has to do.
            same_shape = same_shape and before.mtime_ns == after.mtime_ns
        if not same_shape or before.digest != after.digest:
            return Change(path, "modified", scope, before, after)
        if (before.mode, before.uid, before.gid) != (after.mode, after.uid, after.gid):
            return Change(path, "metadata", scope, before, after)
        if old.xattrs() != new.xattrs():
            return Change(path, "metadata", scope, before, after)
        return None

    def _scope(self, path: bytes) -> ChangeScope:
        if self._project is not None and is_below(path, self._project.roots):
            return "project"
        return "outside"


def origin_of(layer: Layer, path: bytes, redirect: bytes) -> bytes:
    """Where a renamed base directory was: absolute from the layer's root, or a name beside."""
    if redirect.startswith(b"/"):
        return layer.path_in_world(redirect.lstrip(b"/"))
    return os.path.join(os.path.dirname(path), redirect)


def _both(old: _View, new: _View, hash_file: HashFile | None) -> tuple[FileState, FileState]:
    before, after = old.state(hash_file), new.state(hash_file)
    if before is None or after is None:
        raise AssertionError("only entries that exist on both sides are compared")
    return before, after


def _pairs_below(old: _View, new: _View, root: LowerView) -> Iterator[tuple[bytes, _View, _View]]:
    """What may differ below a directory of both sides, or of one."""
    if (old.kind() != "dir" and new.kind() != "dir") or old.unread() or new.unread():
        return
    old_below = old.below(root) if old.kind() == "dir" else None
    new_below = new.below(root) if new.kind() == "dir" else None
    names = set(old.upper.children if old.upper is not None else ())
    names |= set(new.upper.children if new.upper is not None else ())
    if _key(old_below) != _key(new_below):
        names |= set(old_below.names() if old_below is not None else ())
        names |= set(new_below.names() if new_below is not None else ())
    if _key(old_below) == _key(new_below):
        before = old.upper.children if old.upper is not None else {}
        after = new.upper.children if new.upper is not None else {}
        names = {name for name in names if before.get(name) is not after.get(name)}
    for name in sorted(names):
        yield name, _child(old, old_below, name), _child(new, new_below, name)


def _key(view: LowerView | None) -> tuple[bytes, ...] | None:
    return view.key if view is not None else None


def _child(view: _View, below: LowerView | None, name: bytes) -> _View:
    node = view.upper.children.get(name) if view.upper is not None else None
    looked_up = name
    if node is not None and node.redirect is not None and not node.redirect.startswith(b"/"):
        looked_up = node.redirect
    return _View(node, below.child(looked_up) if below is not None else None)
