"""How many addresses the names of a world have open: so many and no more.

Whoever serves a name chooses what it resolves to, and a new address in each answer would fill the
kernel's memory and the helper's. What runs out makes room again.
"""

from __future__ import annotations

import time
from collections.abc import Collection

from substrate_services.network.ruleset import NAMED_LIMIT


class Opened:
    """The elements of one world's sets, as far as this helper has put them there."""

    def __init__(self) -> None:
        self._until: dict[str, float] = {}

    def take(self, elements: Collection[str], timeout_s: float) -> bool:
        """Note elements that are to be open for a time; False where they are too many.

        Args:
            elements: set and key of each, as one text.
            timeout_s: from now on; what is open already stays open as long.
        """
        now = time.monotonic()
        fresh = sum(element not in self._until for element in elements)
        if len(self._until) + fresh > NAMED_LIMIT:
            self._until = {key: until for key, until in self._until.items() if until > now}
            fresh = sum(element not in self._until for element in elements)
            if len(self._until) + fresh > NAMED_LIMIT:
                return False
        for element in elements:
            self._until[element] = now + timeout_s
        return True

    def clear(self) -> None:
        """The sets were emptied."""
        self._until.clear()
