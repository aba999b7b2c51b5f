"""From what programs said that they touched to where a walk has to look.

A step's changes are what differs between two walks of the upper layers, and a walk of everything
takes as long as there are entries. Where every program of a step was seen, and none was lost, its
events name all paths that it may have changed; looking at those alone gives the same. It does so
only while names are what they seem: wherever a link, a renaming or a path of another kind makes
that doubtful there is no short way, and the whole is walked.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from substrate_services.world.layers import Layer, LowerView, Touched
from substrate_services.world.layout import Layout, layer_of

_DEPTH_LIMIT = 64
# What programs open for writing that is no file of a layer.
_DEVICES = (
    b"/dev/null",
    b"/dev/zero",
    b"/dev/full",
    b"/dev/tty",
    b"/dev/random",
    b"/dev/urandom",
    b"/dev/ptmx",
)


@dataclass(frozen=True, slots=True)
class Hints:
    """What the programs of a step said.

    Attributes:
        writes: absolute paths in the world, all that may have changed; of a renaming both ends.
        moves: something may have been renamed.
    """

    writes: tuple[bytes, ...]
    moves: bool


def touched_paths(
    hints: Hints, layout: Layout, hidden: Callable[[bytes], bool]
) -> dict[str, Touched] | None:
    """Where to look, by layer; None where that cannot be told.

    Args:
        hints: of the step.
        layout: the world's layers.
        hidden: says which host paths the world does not show.
    """
    found: dict[str, Touched] = {layer.layer_id: {} for layer in layout.layers}
    bases = {layer.layer_id: _Base(layer, hidden) for layer in layout.layers}
    for path in hints.writes:
        names = path.split(b"/")
        if names[0] or b".." in names or len(names) > _DEPTH_LIMIT:
            return None
        layer = layer_of(path, layout)
        if layer is None:
            if path not in _DEVICES and not path.startswith(b"/dev/pts/"):
                return None
            continue
        relative = os.path.relpath(path, layer.mount_point)
        if relative == b".":
            continue  # the root of a layer is always looked at
        if not bases[layer.layer_id].has_no_link(relative):
            return None
        touched = found[layer.layer_id]
        for name in relative.split(b"/"):
            touched = touched.setdefault(name, {})
        touched[b""] = {}
    return found


class _Base:
    """What lies below one layer, each directory looked up once."""

    def __init__(self, layer: Layer, hidden: Callable[[bytes], bool]) -> None:
        self._known: dict[bytes, LowerView | None] = {b"": LowerView.root(layer, hidden)}

    def has_no_link(self, relative: bytes) -> bool:
        """Whether a path means what it says, as far as the base goes."""
        view = self._look_up(relative)
        while relative and view is None:
            relative = os.path.dirname(relative)
            view = self._look_up(relative)
        # The last that is there: those above it are directories, or it would not be.
        return view is None or view.kind != "symlink"

    def _look_up(self, relative: bytes) -> LowerView | None:
        if relative not in self._known:
            above = self._look_up(os.path.dirname(relative))
            name = os.path.basename(relative)
            self._known[relative] = above.child(name) if above is not None else None
        return self._known[relative]
