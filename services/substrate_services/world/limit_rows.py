"""Which limits this host can enforce, as rows of Capabilities and ``substrate doctor``."""

from __future__ import annotations

from substrate_sdk._pb.substrate.world.v1alpha1 import worlds_pb2
from substrate_services.world.backends.base import BackendCapabilities
from substrate_services.world.disk import disk_problem
from substrate_services.world.limits import cgroup_problem

_UNBOUNDED = {
    "memory": "a world can take all memory of the host; --memory is refused: RLIMIT_AS counts "
    "addresses, of each process by itself, and is no substitute",
    "cpu": "--cpus is refused, and a world with many processes slows down the others",
}


def limit_rows(found: BackendCapabilities) -> list[worlds_pb2.Capability]:
    """The rows."""
    return [
        _cgroup(found, "memory"),
        _cgroup(found, "cpu"),
        _pids(found),
        _disk(found),
        _pause(found),
    ]


def _cgroup(found: BackendCapabilities, controller: str) -> worlds_pb2.Capability:
    feature, mechanism = f"limits.{controller}", found.limits.get(controller, "none")
    if mechanism != "none":
        return worlds_pb2.Capability(feature=feature, state="works", mode=f"cgroup {mechanism}")
    why, fix = cgroup_problem(found)
    return worlds_pb2.Capability(
        feature=feature,
        state="missing",
        mode=why,
        consequence=_UNBOUNDED[controller],
        fix=fix,
    )


def _pids(found: BackendCapabilities) -> worlds_pb2.Capability:
    mechanism = found.limits.get("pids", "none")
    if mechanism != "none":
        return worlds_pb2.Capability(
            feature="limits.pids", state="works", mode=f"cgroup {mechanism}, RLIMIT_NPROC"
        )
    _why, fix = cgroup_problem(found)
    return worlds_pb2.Capability(
        feature="limits.pids",
        state="degraded",
        mode="RLIMIT_NPROC",
        consequence="processes are counted for each user of a world, and what was refused is not",
        fix=fix,
    )


def _disk(found: BackendCapabilities) -> worlds_pb2.Capability:
    problem = disk_problem(found)
    if problem is None:
        return worlds_pb2.Capability(
            feature="limits.disk", state="works", mode="a file system of its own (ext4, loop)"
        )
    return worlds_pb2.Capability(
        feature="limits.disk",
        state="missing",
        mode=problem[0],
        consequence="a world can fill the disk of the home; --disk and --inodes are refused",
        fix=problem[1],
    )


def _pause(found: BackendCapabilities) -> worlds_pb2.Capability:
    if found.kill == "cgroup.kill":
        return worlds_pb2.Capability(feature="pause", state="works", mode="cgroup.freeze")
    return worlds_pb2.Capability(
        feature="pause",
        state="degraded",
        mode="SIGSTOP",
        consequence="programs see their children stop, and what had stopped by itself goes on too",
        fix=cgroup_problem(found)[1],
    )
