"""What a host tells of its images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from substrate_sdk._facts import to_datetime
from substrate_sdk._jsonform import JsonObject, JsonValue, bytes_form, time_form

if TYPE_CHECKING:
    from substrate_sdk._pb.substrate.world.v1alpha1 import images_pb2


@dataclass(frozen=True, slots=True)
class Image:
    """A tree that worlds can have for a root: ``sub.world(base="image:NAME")``.

    Attributes:
        digest: its identity, ``sha256:`` and 64 hex digits.
        names: what it is called on the host.
        size_bytes: of its files.
        imported_at: when it was imported.
        env: variables that it sets.
        working_dir: where commands start.
        user: the user that commands run as; root where it is empty.
        entrypoint: what a container of it runs first; worlds do not.
        command: what a container of it runs by default; worlds do not.
    """

    digest: str
    names: tuple[str, ...]
    size_bytes: int
    imported_at: datetime | None
    env: Mapping[bytes, bytes]
    working_dir: bytes
    user: str
    entrypoint: tuple[str, ...]
    command: tuple[str, ...]

    @classmethod
    def from_proto(cls, proto: images_pb2.Image) -> Image:
        """Read the message."""
        return cls(
            digest=proto.digest,
            names=tuple(proto.names),
            size_bytes=proto.size_bytes,
            imported_at=to_datetime(proto.imported_at) if proto.HasField("imported_at") else None,
            env={item.name: item.value for item in proto.env},
            working_dir=proto.working_dir,
            user=proto.user,
            entrypoint=tuple(proto.entrypoint),
            command=tuple(proto.command),
        )

    def to_json(self) -> JsonObject:
        """The object that ``--json`` prints."""
        env: list[JsonValue] = [[bytes_form(k), bytes_form(v)] for k, v in self.env.items()]
        return {
            "digest": self.digest,
            "names": list(self.names),
            "size_bytes": self.size_bytes,
            "imported_at": time_form(self.imported_at),
            "env": env,
            "working_dir": bytes_form(self.working_dir),
            "user": self.user,
            "entrypoint": list(self.entrypoint),
            "command": list(self.command),
        }
