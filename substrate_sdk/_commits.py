"""What commits of a world give back: snapshots, and what was applied to the host."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from substrate_sdk._facts import Change
from substrate_sdk._jsonform import JsonObject, bytes_form

if TYPE_CHECKING:
    from substrate_sdk._pb.substrate.world.v1alpha1 import commits_pb2


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A world's tree, kept as it was.

    Attributes:
        snapshot_id: the digest of its object; ``base="snapshot:ID"`` makes a world of it.
        unclean: files were open for writing meanwhile, so their content may be half written.
    """

    snapshot_id: str
    unclean: bool

    @classmethod
    def from_proto(cls, proto: commits_pb2.SnapshotResponse) -> Snapshot:
        """Read the message."""
        return cls(proto.snapshot_id, proto.unclean)

    def to_json(self) -> JsonObject:
        """The object that ``--json`` prints."""
        return {"snapshot_id": self.snapshot_id, "unclean": self.unclean}


@dataclass(frozen=True, slots=True)
class Applied:
    """What was, or would be, written to the host.

    Attributes:
        changes: by path.
        conflicts: paths whose file on the host is not the one that the world was made from; only
            of a dry run, otherwise they are a ``Conflict``.
        needs_consent: paths that execute later on the host and were not agreed to; only of a dry
            run, otherwise they are a ``ConsentNeeded``.
    """

    changes: tuple[Change, ...]
    conflicts: tuple[bytes, ...] = ()
    needs_consent: tuple[bytes, ...] = ()

    @classmethod
    def from_proto(cls, proto: commits_pb2.ApplyResponse) -> Applied:
        """Read the message."""
        return cls(
            changes=tuple(Change.from_proto(change) for change in proto.applied),
            conflicts=tuple(proto.conflicts),
            needs_consent=tuple(proto.needs_consent),
        )

    def to_json(self) -> JsonObject:
        """The object that ``--json`` prints."""
        return {
            "changes": [change.to_json() for change in self.changes],
            "conflicts": [bytes_form(path) for path in self.conflicts],
            "needs_consent": [bytes_form(path) for path in self.needs_consent],
        }
