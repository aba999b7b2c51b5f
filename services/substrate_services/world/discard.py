"""What a world's layers hold once some paths are set back to what they were at first."""

from __future__ import annotations

import os
from dataclasses import replace

from substrate_services.errors import InvalidField
from substrate_services.world.layers import UpperNode


def set_back(
    walk: UpperNode, first: UpperNode, relative: bytes, path: bytes, *, in_base: bool
) -> UpperNode:
    """Set one entry of a walked layer back.

    Args:
        walk: the layer as it is now.
        first: the layer as it was at first.
        relative: the entry, from the layer's root.
        path: the same, as the world names it.
        in_base: the base has an entry of that name.

    Returns:
        The layer with that. Walks share nodes, so the given one stays as it is.

    Raises:
        InvalidField: it lies in a directory that the world made anew, in which the base does not
            show: there is nothing to set it back to.
    """
    names = relative.split(b"/")
    changed = node = _copy(walk)
    above: UpperNode | None = first
    for depth, name in enumerate(names[:-1], 1):
        below = node.children.get(name)
        above = above.children.get(name) if above is not None else None
        if below is None:
            return walk  # nothing was written there, or above it
        replaced = below.kind != "dir" or below.opaque or below.redirect is not None
        if in_base and replaced and not (above is not None and above.kind == "dir"):
            holder = path.rsplit(b"/", len(names) - depth)[0]
            raise InvalidField(
                "paths",
                os.fsdecode(path),
                f"the world replaced {os.fsdecode(holder)} as a whole; discard that",
            )
        node.children[name] = node = _copy(below)
    at_first = above.children.get(names[-1]) if above is not None else None
    if at_first is not None:
        node.children[names[-1]] = at_first
    else:
        node.children.pop(names[-1], None)
    return changed


def _copy(node: UpperNode) -> UpperNode:
    return replace(node, children=dict(node.children), below=None, kept="")
