"""What a step read of the base, as one object: what a replay needs besides the snapshot.

Canonical JSON::

    {"format":"substrate.inputs.v1","pins":[[PATH,DIGEST],…],"moved":[[PATH,DIGEST],…],
     "read":[FINGERPRINT,…],"read_truncated":N}

``pins`` names the content of project files that is kept, for the whole life of the world so far;
``read`` has the fingerprints of base files outside the project that this step read, and of those
of the project that were not, or no longer, what the world began with; ``moved`` names the content
of the latter.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from substrate_services.journal import bytesjson
from substrate_services.journal.jsontypes import Fields, JsonValue, canonical_bytes
from substrate_services.journal.parts import file_fingerprint_from_json, file_fingerprint_to_json
from substrate_services.journal.schema import FileFingerprint
from substrate_services.objects.store import ObjectStore

_FORMAT = "substrate.inputs.v1"
# The inode number in the fingerprint of a file that changed while a step read it: no file has it.
CHANGED_WHILE_READ = 0


@dataclass(frozen=True, slots=True)
class Inputs:
    """Kept content and fingerprints of base files."""

    pins: Mapping[bytes, str]
    read: tuple[FileFingerprint, ...] = ()
    read_truncated: int = 0
    moved: Mapping[bytes, str] = field(default_factory=dict)

    def content(self, path: bytes) -> str | None:
        """Digest of what the step found in a file of the project; None where it is not kept."""
        return self.moved.get(path) or self.pins.get(path)


def put_inputs(store: ObjectStore, inputs: Inputs) -> str:
    """Keep ``inputs`` as an object; returns its digest."""
    return store.put(
        canonical_bytes(
            {
                "format": _FORMAT,
                "pins": _pairs_to_json(inputs.pins),
                "moved": _pairs_to_json(inputs.moved),
                "read": [file_fingerprint_to_json(entry) for entry in inputs.read],
                "read_truncated": inputs.read_truncated,
            }
        )
    )


def get_inputs(store: ObjectStore, digest: str | None) -> Inputs:
    """Read inputs; none at all for None. Raises ObjectMissing, ObjectCorrupt or LineError."""
    if digest is None:
        return Inputs({})
    fields = Fields(json.loads(store.get(digest)), "inputs")
    if fields.text("format") != _FORMAT:
        raise fields.wrong("format", _FORMAT)
    return Inputs(
        pins=_pairs_from_json(fields, "pins"),
        moved=_pairs_from_json(fields, "moved"),
        read=tuple(file_fingerprint_from_json(item) for item in fields.items("read")),
        read_truncated=fields.integer("read_truncated", 0),
    )


def _pairs_to_json(digests: Mapping[bytes, str]) -> list[JsonValue]:
    return [[bytesjson.encode(path), digest] for path, digest in sorted(digests.items())]


def _pairs_from_json(fields: Fields, key: str) -> dict[bytes, str]:
    digests: dict[bytes, str] = {}
    for item in fields.items(key):
        if not isinstance(item, list) or len(item) != 2 or not isinstance(item[1], str):
            raise fields.wrong(key, "[path, digest] pairs")
        digests[bytesjson.decode(item[0])] = item[1]
    return digests
