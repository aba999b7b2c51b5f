"""What the Files calls give back, each made from its message by ``from_proto``."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from substrate_sdk._facts import Change, FileState
from substrate_sdk._jsonform import JsonObject, bytes_form

if TYPE_CHECKING:
    from substrate_sdk._pb.substrate.world.v1alpha1 import files_pb2


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One entry of a directory.

    Attributes:
        path_bytes: relative to the directory that was listed; :attr:`path` is it as text.
        state: what it is.
    """

    path_bytes: bytes
    state: FileState

    @property
    def path(self) -> str:
        """The path as Python gives paths: ``os.fsencode`` takes it back to the bytes."""
        return os.fsdecode(self.path_bytes)

    @classmethod
    def from_proto(cls, proto: files_pb2.FileEntry) -> FileEntry:
        """Read the message."""
        return cls(proto.path, FileState.from_proto(proto.state))

    def to_json(self) -> JsonObject:
        """The object that ``--json`` prints."""
        return {"path": bytes_form(self.path_bytes), "state": self.state.to_json()}


@dataclass(frozen=True, slots=True)
class FileEvent:
    """Something that a watch tells.

    Attributes:
        change: what happened: ``after`` is the state when it was told; None where only ``lost``
            is told.
        lost: how many changes before this one were not told, because they were not read in time.
    """

    change: Change | None
    lost: int = 0

    @classmethod
    def from_proto(cls, proto: files_pb2.WatchFilesResponse) -> FileEvent:
        """Read the message."""
        change = Change.from_proto(proto.change) if proto.HasField("change") else None
        return cls(change, proto.lost)

    def to_json(self) -> JsonObject:
        """The object that ``--json`` prints."""
        change = None if self.change is None else self.change.to_json()
        return {"change": change, "lost": self.lost}


@dataclass(frozen=True, slots=True)
class Download:
    """What a download brought.

    Attributes:
        entries: files, directories and links.
        size_bytes: content of all files together.
    """

    entries: int
    size_bytes: int

    def to_json(self) -> JsonObject:
        """The object that ``--json`` prints."""
        return {"entries": self.entries, "size_bytes": self.size_bytes}
