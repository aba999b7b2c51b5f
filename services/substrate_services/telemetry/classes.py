"""Classes of events that can be left out, by world (native/include/events.h, SUB_CLASS_*).

Processes, their programs and their ends always are recorded.
"""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["ALL", "CLASSES", "CLASSES_LINK", "classes_mask", "classes_off"]

#: Names by the bit of their class.
CLASSES = {
    "open": 1,
    "mutate": 2,
    "network": 4,
    "stat": 8,
    "transfer": 16,
    "load": 32,
    "sources": 64,
}
#: Wanted alone, it leaves out all others.
PROCESS = "process"
ALL = sum(CLASSES.values())
#: Where the preload library looks, in the world (SUB_CLASSES_LINK): its target is the mask.
CLASSES_LINK = b"/run/substrate/classes"


def classes_mask(wanted: Iterable[str]) -> int:
    """The mask of the wanted classes; all where none are named.

    Raises:
        ValueError: a class that there is not; the text lists those that there are.
    """
    names = list(wanted)
    for name in names:
        if name != PROCESS and name not in CLASSES:
            raise ValueError(f"{name!r}: expected {', '.join((PROCESS, *CLASSES))}")
    return sum({CLASSES.get(name, 0) for name in names}) if names else ALL


def classes_off(wanted: Iterable[str]) -> tuple[str, ...]:
    """The classes that are left out."""
    mask = classes_mask(wanted)
    return tuple(name for name, bit in CLASSES.items() if not mask & bit)
