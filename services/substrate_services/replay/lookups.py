"""Which files a step looked up, read back from its events."""

from __future__ import annotations

import json

from substrate_services.journal import bytesjson
from substrate_services.objects.errors import ObjectCorrupt, ObjectMissing
from substrate_services.objects.store import ObjectStore
from substrate_services.replay.observed import FileRead

EVENTS_LIMIT = 200_000
_OPENS = ("open", "fopen", "freopen", "creat", "scandir", "opendir")


def files_looked_up(store: ObjectStore, events_digest: str | None) -> tuple[FileRead, ...] | None:
    """Every path that a step opened or failed to find, once, sorted.

    Args:
        store: where the step's events are.
        events_digest: of the object with all events; None where there were none.

    Returns:
        The paths; None where the events are not kept, damaged, or too many to compare.
    """
    if events_digest is None:
        return ()
    found: dict[bytes, bool] = {}
    try:
        with store.open(events_digest) as lines:
            for number, line in enumerate(lines):
                if number >= EVENTS_LIMIT:
                    return None
                event = json.loads(line)
                call = event.get("syscall")
                if isinstance(call, str) and call.startswith(_OPENS) and event.get("path"):
                    path = bytesjson.decode(event["path"])
                    found[path] = found.get(path, False) or event.get("error") is None
    except (ObjectMissing, ObjectCorrupt, ValueError):
        return None
    return tuple(FileRead(path, ok) for path, ok in sorted(found.items()))
