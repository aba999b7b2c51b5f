"""The walk of a layer as it is now, from the one before and from where things have changed.

Whoever told where to look has looked before: what is found here is what is there now, read as any
walk reads it, and what changes meanwhile is told the next time.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from dataclasses import replace

from substrate_services.world.layers import Layer, UpperNode, kind_of
from substrate_services.world.looking import Found, Look
from substrate_services.world.walks import KeepFile, Walk, settled, why_unread


def graft(
    layer: Layer, keep: KeepFile, before: UpperNode, looks: Iterable[Look], *, first: bool
) -> tuple[UpperNode, bool]:
    """Bring a walk up to date.

    Args:
        layer: the layer.
        keep: gives the digest of a regular file.
        before: the walk, which stays as it is; nodes of what has not changed are shared with it.
        looks: what has changed since, directories before those below them.
        first: the looks tell of all that there is.

    Returns:
        The walk, and whether all that was told was still there. Where not, the same has to be told
        again: whoever told it takes what has gone from its place for known, and may find it there
        again.
    """
    walk = Walk(layer.upper, layer, keep)
    with walk.opened():
        graft = _Graft(walk, before, first=first)
        return graft.run(looks), graft.whole


class _Graft:
    def __init__(self, walk: Walk, before: UpperNode, *, first: bool) -> None:
        self._walk = walk
        self._before = before
        self._copies: dict[bytes, tuple[UpperNode, UpperNode]] = {b"": (_copy(before), before)}
        # Directories of which all is told: what is not is no longer there.
        self._whole: set[bytes] = {b""} if first else set()
        self.whole = True  # all that was told was there

    def run(self, looks: Iterable[Look]) -> UpperNode:
        for look in looks:
            node = self._copy_at(look.path)
            if node is not None:
                self._look(look, node)
            else:
                self.whole = False
        self._look_at_unread()
        now = self._before
        # Those below before those above, and the root last.
        for path in sorted(self._copies, key=_depth, reverse=True):
            node, before = self._copies[path]
            if node.children.keys() != before.children.keys():
                node.children = dict(sorted(node.children.items()))  # as a walk finds them
            now = settled(node, before)
            if path:
                above, name = os.path.split(path)
                self._copies[above][0].children[name] = now
        return now

    def _copy_at(self, path: bytes) -> UpperNode | None:
        """The directory at a path, to be changed; None if there is none any more."""
        at = path
        missing = []
        while at not in self._copies:
            missing.append(at)
            at = os.path.dirname(at)
        node = self._copies[at][0]
        for at in reversed(missing):
            name = os.path.basename(at)
            before = node.children.get(name)
            if before is None or before.kind != "dir":
                return None
            node.children[name] = _copy(before)
            node = node.children[name]
            self._copies[at] = (node, before)
        return node

    def _look(self, look: Look, node: UpperNode) -> None:
        if look.unread:
            self._read_whole(look.path, node)
            return
        try:
            fd = self._walk.open_directory(look.path)
        except OSError as error:
            node.unread, node.children = why_unread(error), {}
            return
        try:
            self._walk.describe(fd, node)
            for name in look.gone:
                self._drop(look.path, node, name)
            for found in look.found:
                self._take(fd, look.path, node, found)
        finally:
            os.close(fd)
        if look.path in self._whole:
            there = {found.name for found in look.found}
            for name in [name for name in node.children if name not in there]:
                self._drop(look.path, node, name)

    def _take(self, fd: int, path: bytes, node: UpperNode, found: Found) -> None:
        before = node.children.get(found.name)
        if before is not None and _is_known(before, found):
            return
        below = os.path.join(path, found.name)
        if stat.S_ISDIR(found.mode):
            self._whole.add(below)
            if before is not None and before.kind == "dir" and _same_inode(before, found):
                return  # what is in it follows
        child = self._walk.entry(fd, found.name, before)
        if not _is_of(child, found):
            self.whole = False
        self._drop(path, node, found.name)
        if child is not None:
            node.children[found.name] = child

    def _drop(self, path: bytes, node: UpperNode, name: bytes) -> None:
        child = node.children.pop(name, None)
        if child is None or child.kind != "dir":
            return
        below = os.path.join(path, name)
        for copy in [c for c in self._copies if c == below or c.startswith(below + b"/")]:
            del self._copies[copy]

    def _look_at_unread(self) -> None:
        """What could not be read before, for whatever reason, may be readable now."""
        for path, _why in list(self._before.all_unread()):
            above, name = os.path.split(path)
            holder = self._copy_at(above)
            child = holder.children.get(name) if holder is not None else None
            if holder is None or child is None or not child.unread:
                continue
            if child.kind == "dir":
                node = self._copy_at(path)
                if node is not None:
                    self._read_whole(path, node)
                continue
            try:
                fd = self._walk.open_directory(above)
            except OSError:
                continue  # as unread as it was
            try:
                again = self._walk.entry(fd, name, child)
            finally:
                os.close(fd)
            if again is not None:
                holder.children[name] = again
            else:
                del holder.children[name]

    def _read_whole(self, path: bytes, node: UpperNode) -> None:
        """Read all below a directory of which nobody knows what has changed."""
        before = self._copies[path][1]
        fresh = self._walk.whole(path, replace(node, children={}, unread=""), before)
        if not path:
            self._copies = {b"": (_copy(fresh), before)}
            return
        above, name = os.path.split(path)
        self._drop(above, self._copies[above][0], name)
        self._copies[above][0].children[name] = fresh


def _depth(path: bytes) -> int:
    return path.count(b"/") + 1 if path else 0


def _copy(node: UpperNode) -> UpperNode:
    return replace(node, children=dict(node.children), below=None, kept="")


def _is_known(before: UpperNode, found: Found) -> bool:
    """Whether an entry is what it was when it was read; of directories that is not enough."""
    if found.identity is None:
        return before.state is None
    if before.state is None or stat.S_ISDIR(found.mode) or before.unread or before.fresh:
        return False
    if before.kind == "file" and before.state.digest is None:
        return False
    return before.kind == kind_of(found.mode) and before.identity == found.identity


def _is_of(child: UpperNode | None, found: Found) -> bool:
    """Whether what was read is what was found."""
    if child is None or child.identity is None or found.identity is None:
        return child is not None and child.identity == found.identity
    return child.identity[0] == found.identity[0] and child.kind == kind_of(found.mode)


def _same_inode(before: UpperNode, found: Found) -> bool:
    return (
        before.identity is not None
        and found.identity is not None
        and before.identity[0] == found.identity[0]
    )
