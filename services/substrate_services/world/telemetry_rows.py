"""What telemetry can do on this host, as rows of Capabilities and ``substrate doctor``."""

from __future__ import annotations

import platform
from pathlib import Path

from substrate_sdk._pb.substrate.world.v1alpha1 import worlds_pb2
from substrate_services.native_paths import native_directory
from substrate_services.world.backends.base import BackendCapabilities

__all__ = ["telemetry_rows"]

_UNTOLD = (
    "a process that a program starts past libc is not missed, and what programs say of themselves "
    "is not held against the kernel's word: coverage says so"
)
_LIBRARIES = (
    ("glibc", "libsubstrate_preload.so"),
    ("musl", "libsubstrate_preload-musl.so"),
    ("32-bit (runs unseen, said so)", "narrow/libsubstrate_preload.so"),
)


def telemetry_rows(
    found: BackendCapabilities, libraries: Path | None = None
) -> list[worlds_pb2.Capability]:
    """The rows.

    Args:
        found: what the backend found.
        libraries: directory of the libraries that worlds load; this installation's when None.
    """
    return [
        _ledger(found),
        _segments(found),
        _preload(libraries or native_directory()),
    ]


def _ledger(found: BackendCapabilities) -> worlds_pb2.Capability:
    if found.ledger == "bpf":
        return worlds_pb2.Capability(
            feature="telemetry.ledger", state="works", mode="bpf: scheduler tracepoints by cgroup"
        )
    if found.ledger == "proc_connector":
        return worlds_pb2.Capability(
            feature="telemetry.ledger",
            state="degraded",
            mode="proc connector",
            consequence="processes that end at once may be without a pid or a program's name",
            fix="a kernel from 5.10 on with CONFIG_DEBUG_INFO_BTF, and cgroup v2 "
            f"({found.ledger_problem})",
        )
    return worlds_pb2.Capability(
        feature="telemetry.ledger",
        state="missing",
        mode=found.ledger_problem,
        consequence=_UNTOLD,
        fix="run the host as root (a system host)"
        if found.rootless
        else "a kernel from 5.10 on with CONFIG_DEBUG_INFO_BTF, or with CONFIG_PROC_EVENTS",
    )


def _segments(found: BackendCapabilities) -> worlds_pb2.Capability:
    if found.segments_attested:
        return worlds_pb2.Capability(
            feature="telemetry.segments_attested", state="works", mode="fanotify"
        )
    return worlds_pb2.Capability(
        feature="telemetry.segments_attested",
        state="missing",
        mode=found.segments_problem,
        consequence="a hostile program can write records in another's name, or remove them",
        fix="run the host as root (a system host), on a kernel from 5.17 on",
    )


def _preload(directory: Path) -> worlds_pb2.Capability:
    there = [name for name, file in _LIBRARIES if (directory / file).is_file()]
    missing = [name for name, file in _LIBRARIES if not (directory / file).is_file()]
    mode = f"{platform.machine()}: {', '.join(there) or 'nothing'}"
    if not missing:
        return worlds_pb2.Capability(feature="telemetry.preload", state="works", mode=mode)
    return worlds_pb2.Capability(
        feature="telemetry.preload",
        state="degraded" if there else "missing",
        mode=mode,
        consequence=f"programs are not covered: {', '.join(missing)}",
        fix="install the platform wheel, or run `python hatch_build.py native` in the checkout",
    )
