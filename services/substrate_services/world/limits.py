"""The limits of a world: what was asked for, what holds where nothing was, and who enforces them.

Memory, processor time and processes are bounded by cgroups, disk and inodes by a file system of the
world's own (:mod:`~substrate_services.world.disk`), output by the world's init, and the time of an
exec by its time-out. RLIMIT_AS is no substitute for a limit of memory: it counts addresses, of each
process by itself, so programs that reserve much and use little fail, and ten processes get ten
times as much. Where no cgroup can hold a limit, the limit is refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

from substrate_services.errors import InvalidField, ServiceError
from substrate_services.journal.jsontypes import Fields, JsonObject
from substrate_services.world.backends.base import BackendCapabilities, BoxLimits

OUTPUT_BYTES = 256 << 20
PIDS = 4_096

_MIB = 1 << 20
#: The least that a world can be made and used with, and the most that a kernel takes.
_BOUNDS: Mapping[str, tuple[float, float]] = {
    "memory_bytes": (4 * _MIB, 1 << 50),
    "cpus": (0.01, 8_192),
    "pids": (4, 4_194_304),
    "disk_bytes": (16 * _MIB, 1 << 44),
    "inodes": (1_024, (1 << 32) - 2),
    "output_bytes": (1, 1 << 40),
    "runtime_s": (0.001, 1e9),
}
_CONTROLLERS = {"memory_bytes": "memory", "cpus": "cpu"}
#: The option of the command line for each, as `fix` of what was blocked names it.
FLAGS: Mapping[str, str] = {
    "memory_bytes": "--memory",
    "cpus": "--cpus",
    "pids": "--pids",
    "disk_bytes": "--disk",
    "inodes": "--inodes",
    "output_bytes": "--output",
    "runtime_s": "--runtime",
}


@dataclass(frozen=True, slots=True)
class Limits:
    """What was asked for; None is the host's default. See Limits in the contract."""

    memory_bytes: int | None = None
    cpus: float | None = None
    pids: int | None = None
    disk_bytes: int | None = None
    inodes: int | None = None
    output_bytes: int | None = None
    runtime_s: float | None = None

    @property
    def for_box(self) -> BoxLimits:
        """The part that the backend enforces."""
        return BoxLimits(memory_bytes=self.memory_bytes, cpus=self.cpus, pids=self.pids or PIDS)

    @property
    def output_limit_bytes(self) -> int:
        """Output that is kept of one exec."""
        return OUTPUT_BYTES if self.output_bytes is None else self.output_bytes

    @property
    def needs_disk(self) -> bool:
        """Whether the layers need a file system of their own."""
        return self.disk_bytes is not None or self.inodes is not None

    def timeout_s(self, asked_s: float | None) -> float | None:
        """When an exec is ended at the latest."""
        if asked_s is None or self.runtime_s is None:
            return asked_s if self.runtime_s is None else self.runtime_s
        return min(asked_s, self.runtime_s)

    def is_runtime(self, asked_s: float | None) -> bool:
        """Whether an exec that ran out of time did so by the limit, not by its own time-out."""
        return self.runtime_s is not None and (asked_s is None or self.runtime_s < asked_s)

    def to_action(self) -> tuple[tuple[str, int], ...]:
        """As an action has them: whole numbers by name, in order, of what was asked for."""
        found: dict[str, int] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "cpus" and value is not None:
                found["cpu_millis"] = round(value * 1_000)
            elif field.name == "runtime_s" and value is not None:
                found["runtime_ms"] = max(1, round(value * 1_000))
            elif value is not None:
                found[field.name] = value
        return tuple(sorted(found.items()))

    @classmethod
    def from_action(cls, pairs: tuple[tuple[str, int], ...]) -> Limits:
        """The way back; names that are not known are left out."""
        found = dict(pairs)
        cpu_millis, runtime_ms = found.pop("cpu_millis", None), found.pop("runtime_ms", None)
        known = {field.name for field in fields(cls)} - {"cpus", "runtime_s"}
        return cls(
            cpus=None if cpu_millis is None else cpu_millis / 1_000,
            runtime_s=None if runtime_ms is None else runtime_ms / 1_000,
            **{name: value for name, value in found.items() if name in known},
        )

    def to_json(self) -> JsonObject:
        """As the world's file has them."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_json(cls, found: Fields) -> Limits:
        """The way back."""
        return cls(
            memory_bytes=found.opt_integer("memory_bytes"),
            cpus=found.opt_number("cpus"),
            pids=found.opt_integer("pids"),
            disk_bytes=found.opt_integer("disk_bytes"),
            inodes=found.opt_integer("inodes"),
            output_bytes=found.opt_integer("output_bytes"),
            runtime_s=found.opt_number("runtime_s"),
        )

    def checked(self) -> Limits:
        """These limits. Raises InvalidField where one is out of bounds."""
        for name, (least, most) in _BOUNDS.items():
            value = getattr(self, name)
            field = "limits.runtime" if name == "runtime_s" else f"limits.{name}"
            if value is None:
                continue
            if not (math.isfinite(value) and least <= value <= most):
                raise InvalidField(field, value, f"expected {least:,} to {most:,}")
        # As the action and the kernel have it, so that a replay asks for the very same.
        if self.cpus is not None:
            return replace(self, cpus=round(self.cpus, 3))
        return self

    def require(self, found: BackendCapabilities) -> None:
        """Raise ServiceError LIMIT_UNAVAILABLE where this host cannot enforce one of them."""
        for name, controller in _CONTROLLERS.items():
            if getattr(self, name) is None or found.limits.get(controller, "none") != "none":
                continue
            why, fix = cgroup_problem(found)
            raise ServiceError(
                "LIMIT_UNAVAILABLE",
                f"{FLAGS[name]} {getattr(self, name)} cannot be enforced here: {why}; {fix}",
                {"limit": name},
            )


#: Nothing was asked for.
NO_LIMITS = Limits()


def cgroup_problem(found: BackendCapabilities) -> tuple[str, str]:
    """Why a host has no cgroup controllers for its worlds, and what to do."""
    why = "no cgroup with the memory and cpu controllers can be made"
    if found.rootless:
        return why, (
            "start the host in a delegated cgroup: "
            "systemd-run --user --scope -p Delegate=yes substrate up"
        )
    return why, "mount /sys/fs/cgroup writable, or leave the limit out"
