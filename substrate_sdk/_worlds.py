"""What a host tells of its worlds and of itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from typing import TYPE_CHECKING

from substrate_sdk._facts import milliseconds, named, to_datetime
from substrate_sdk._jsonform import (
    JsonObject,
    JsonValue,
    bytes_form,
    optional_bytes_form,
    time_form,
)

if TYPE_CHECKING:
    from substrate_sdk._pb.substrate.common.v1alpha1 import types_pb2
    from substrate_sdk._pb.substrate.world.v1alpha1 import worlds_pb2

_WORLD_STATES = ("unknown", "ready", "paused", "lost", "removing")


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds that are enforced on a world; None leaves the host's default.

    Attributes:
        memory_bytes: of all processes together.
        cpus: processors: 1.5 is one and a half.
        pids: processes and threads.
        disk_bytes: of the upper layers.
        inodes: of the upper layers.
        output_bytes: kept of one exec; what comes after is cut.
        runtime_s: the longest that one exec may run.
    """

    memory_bytes: int | None = None
    cpus: float | None = None
    pids: int | None = None
    disk_bytes: int | None = None
    inodes: int | None = None
    output_bytes: int | None = None
    runtime_s: float | None = None

    def over(self, other: Limits) -> Limits:
        """These limits, and those of another where these say nothing."""
        return Limits(
            **{
                field.name: getattr(other, field.name)
                if getattr(self, field.name) is None
                else getattr(self, field.name)
                for field in fields(self)
            }
        )

    def to_proto(self) -> types_pb2.Limits:
        """Write the message."""
        from substrate_sdk._pb.substrate.common.v1alpha1 import types_pb2 as pb

        proto = pb.Limits(
            memory_bytes=self.memory_bytes,
            cpus=self.cpus,
            pids=self.pids,
            disk_bytes=self.disk_bytes,
            inodes=self.inodes,
            output_bytes=self.output_bytes,
        )
        if self.runtime_s is not None:
            proto.runtime.FromNanoseconds(round(self.runtime_s * 1e9))
        return proto

    @classmethod
    def from_proto(cls, proto: types_pb2.Limits) -> Limits:
        """Read the message."""
        return cls(
            memory_bytes=proto.memory_bytes if proto.HasField("memory_bytes") else None,
            cpus=proto.cpus if proto.HasField("cpus") else None,
            pids=proto.pids if proto.HasField("pids") else None,
            disk_bytes=proto.disk_bytes if proto.HasField("disk_bytes") else None,
            inodes=proto.inodes if proto.HasField("inodes") else None,
            output_bytes=proto.output_bytes if proto.HasField("output_bytes") else None,
            runtime_s=milliseconds(proto.runtime) / 1000 if proto.HasField("runtime") else None,
        )

    def to_json(self) -> JsonObject:
        """The object that ``--json`` prints."""
        return {
            "memory_bytes": self.memory_bytes,
            "cpus": self.cpus,
            "pids": self.pids,
            "disk_bytes": self.disk_bytes,
            "inodes": self.inodes,
            "output_bytes": self.output_bytes,
            "runtime_s": self.runtime_s,
        }


@dataclass(frozen=True, slots=True)
class WorldInfo:
    """What a host knows of a world.

    Attributes:
        world_id: its id.
        session_id: the session that it belongs to.
        state: ready, paused, lost or removing.
        profile: how much of the host it shows.
        project: its project's directory; None where there is none.
        cwd: where commands start.
        network: its network rules; none means no network.
        limits: its limits.
        created_at: when it was made.
        expires_at: when it is removed at the latest.
        idle_s: seconds of idleness after which it is removed; None is the host's default.
        keep: it stays when its client goes.
        steps: steps recorded.
        running: execs that run now.
        generation: counts rollbacks.
        labels: free labels.
        snapshot_id: the tree as of the last step.
        moved_base: files of the project that the host changed since the world was made.
        base: its root, ``image:sha256:…`` or ``directory:/…``; empty for the host's own.
    """

    world_id: str
    session_id: str
    state: str
    profile: str
    project: bytes | None
    cwd: bytes
    network: tuple[str, ...]
    limits: Limits
    created_at: datetime | None
    expires_at: datetime | None
    idle_s: float | None
    keep: bool
    steps: int
    running: int
    generation: int
    labels: Mapping[str, str]
    snapshot_id: str | None
    moved_base: tuple[bytes, ...]
    base: bytes = b""

    @classmethod
    def from_proto(cls, proto: worlds_pb2.World) -> WorldInfo:
        """Read the message."""
        return cls(
            world_id=proto.world_id,
            session_id=proto.session_id,
            state=named(_WORLD_STATES, proto.state),
            profile=proto.profile,
            project=proto.project if proto.HasField("project") else None,
            cwd=proto.cwd,
            network=tuple(proto.network),
            limits=Limits.from_proto(proto.limits),
            created_at=to_datetime(proto.created_at) if proto.HasField("created_at") else None,
            expires_at=to_datetime(proto.expires_at) if proto.HasField("expires_at") else None,
            idle_s=milliseconds(proto.idle_timeout) / 1000
            if proto.HasField("idle_timeout")
            else None,
            keep=proto.keep,
            steps=proto.steps,
            running=proto.running,
            generation=proto.generation,
            labels={label.key: label.value for label in proto.labels},
            snapshot_id=proto.snapshot_id if proto.HasField("snapshot_id") else None,
            moved_base=tuple(proto.moved_base),
            base=proto.base,
        )

    def to_json(self) -> JsonObject:
        """The object that ``--json`` prints."""
        labels: dict[str, JsonValue] = dict(self.labels)
        return {
            "world_id": self.world_id,
            "session_id": self.session_id,
            "state": self.state,
            "profile": self.profile,
            "project": optional_bytes_form(self.project),
            "cwd": bytes_form(self.cwd),
            "network": list(self.network),
            "limits": self.limits.to_json(),
            "created_at": time_form(self.created_at),
            "expires_at": time_form(self.expires_at),
            "idle_s": self.idle_s,
            "keep": self.keep,
            "steps": self.steps,
            "running": self.running,
            "generation": self.generation,
            "labels": labels,
            "snapshot_id": self.snapshot_id,
            "base": bytes_form(self.base),
            "moved_base": [bytes_form(path) for path in self.moved_base],
        }


@dataclass(frozen=True, slots=True)
class Capability:
    """One feature of a host.

    Attributes:
        feature: its name: user_namespaces, overlay, id_mapping, cgroup, telemetry.
        state: works, degraded or missing.
        mode: how it is done there.
        consequence: what follows where it does not work.
        fix: what to change.
    """

    feature: str
    state: str
    mode: str
    consequence: str
    fix: str

    @classmethod
    def from_proto(cls, proto: worlds_pb2.Capability) -> Capability:
        """Read the message."""
        return cls(
            feature=proto.feature,
            state=proto.state,
            mode=proto.mode,
            consequence=proto.consequence,
            fix=proto.fix,
        )

    def to_json(self) -> JsonObject:
        """The object that ``--json`` prints."""
        return {
            "feature": self.feature,
            "state": self.state,
            "mode": self.mode,
            "consequence": self.consequence,
            "fix": self.fix,
        }
