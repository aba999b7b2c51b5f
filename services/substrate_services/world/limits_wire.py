"""Limits of a world between the wire and the domain."""

from __future__ import annotations

from substrate_sdk._pb.substrate.common.v1alpha1 import types_pb2
from substrate_services.wire import validation
from substrate_services.world.limits import Limits


def limits_from_proto(message: types_pb2.Limits) -> Limits:
    """Checked limits. Raises InvalidField."""
    return Limits(
        memory_bytes=message.memory_bytes if message.HasField("memory_bytes") else None,
        cpus=message.cpus if message.HasField("cpus") else None,
        pids=message.pids if message.HasField("pids") else None,
        disk_bytes=message.disk_bytes if message.HasField("disk_bytes") else None,
        inodes=message.inodes if message.HasField("inodes") else None,
        output_bytes=message.output_bytes if message.HasField("output_bytes") else None,
        runtime_s=validation.duration_s("limits.runtime", message.runtime)
        if message.HasField("runtime")
        else None,
    ).checked()


def limits_to_proto(limits: Limits) -> types_pb2.Limits:
    """What was asked for; what was not is the host's default."""
    message = types_pb2.Limits(
        memory_bytes=limits.memory_bytes,
        cpus=limits.cpus,
        pids=limits.pids,
        disk_bytes=limits.disk_bytes,
        inodes=limits.inodes,
        output_bytes=limits.output_bytes,
    )
    if limits.runtime_s is not None:
        message.runtime.FromNanoseconds(round(limits.runtime_s * 1e9))
    return message
