"""Walks of a world's layers: by ourselves where there is little, else with a looker."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from substrate_services.world.grafts import graft
from substrate_services.world.layers import Layer, UpperNode
from substrate_services.world.looking import Looker, LookerLost
from substrate_services.world.walks import KeepFile, walk_upper

log = logging.getLogger(__name__)

# Below, a walk takes a few milliseconds at most, and a process of its own would not pay.
ENTRIES_TO_STAND_BY = 1_000


class LayerWalks:
    """Walks the layers of one world again and again. Methods block; call one at a time.

    Args:
        layers: the layers.
        keep: gives the digest of a regular file.
    """

    def __init__(self, layers: tuple[Layer, ...], keep: KeepFile) -> None:
        self._layers = layers
        self._keep = keep
        self._looker: Looker | None = None
        self._known: dict[str, UpperNode] = {}  # all that the looker has told
        self._taken = self._refused = False
        self.everything_seen = True  # by the last walk: it did not rest on what the kernel names

    def walk(
        self, previous: Mapping[str, UpperNode], *, everything: bool = True
    ) -> dict[str, UpperNode]:
        """All layers as they are now (layer id → upper root).

        Args:
            previous: an earlier walk; nodes of what is as it was are shared with it.
            everything: look at everything, and do not rest on what the kernel names.
        """
        if self._looker is not None:
            try:
                return self._look(self._looker, previous, everything=everything)
            except LookerLost as error:
                log.warning("looking at a world's layers without help: %s", error)
                self.close()
        self.everything_seen = True
        return {
            layer.layer_id: walk_upper(layer, self._keep, previous.get(layer.layer_id))
            for layer in self._layers
        }

    @property
    def stands_by(self) -> bool:
        """Whether there is a looker."""
        return self._looker is not None

    @property
    def looker_pid(self) -> int:
        """Its process; 0 where there is none."""
        return self._looker.pid if self._looker is not None else 0

    def stand_by(
        self, walks: Mapping[str, UpperNode], *, init_pid: int = 0, world_id: str = "-"
    ) -> None:
        """Have a looker from now on, if the world has written enough for that.

        Args:
            walks: the last walk.
            init_pid: of the world's init.
            world_id: the world's.
        """
        if self._looker is not None or self._refused:
            return
        entries = sum(walk.below.entries for walk in walks.values() if walk.below is not None)
        if entries < ENTRIES_TO_STAND_BY:
            return
        try:
            roots = [layer.upper for layer in self._layers]
            self._looker = Looker(roots, init_pid=init_pid, world_id=world_id)
        except LookerLost as error:
            log.info("a world of %d entries is walked without help: %s", entries, error)
            self._refused = True

    def close(self) -> None:
        """End the looker; walks go on without."""
        if self._looker is not None:
            self._looker.close()
        self._looker, self._known, self._taken, self._refused = None, {}, False, True

    def _look(
        self, looker: Looker, previous: Mapping[str, UpperNode], *, everything: bool
    ) -> dict[str, UpperNode]:
        answer = looker.look(taken=self._taken, everything=everything)
        # Until all of it is in a walk of ours it has to be told again.
        self._taken = False
        first = not self._known
        known = self._known or previous
        grafted = {
            layer.layer_id: graft(layer, self._keep, known[layer.layer_id], looks, first=first)
            for layer, looks in zip(self._layers, answer.looks, strict=True)
        }
        self._known = {layer_id: walk for layer_id, (walk, _whole) in grafted.items()}
        self._taken = all(whole for _walk, whole in grafted.values())
        self.everything_seen = answer.everything
        return dict(self._known)
