"""What a backend must offer: a way to put an init into a box (DESIGN §3).

Everything above this line (execs, files, changes, snapshots) is the same for every backend; a
backend only makes boxes, finds those that outlived the host process, and takes them down.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from substrate_services.journal.schema import LedgerSource


@dataclass(frozen=True, slots=True)
class Overlay:
    """Mount a copy-on-write view at ``target``. Layers are host directories, topmost first."""

    target: bytes
    lowers: tuple[bytes, ...]
    upper: bytes
    work: bytes
    idmap_lowers: tuple[bool, ...] = ()  # which lowers are host trees to be shown id-mapped


@dataclass(frozen=True, slots=True)
class Bind:
    """Show the host's file or directory ``source`` at ``target`` (not copy-on-write)."""

    target: bytes
    source: bytes
    read_only: bool = True


@dataclass(frozen=True, slots=True)
class Tmpfs:
    """A fresh tmpfs at ``target``."""

    target: bytes
    mode: int = 0o755
    size_bytes: int = 64 << 20
    read_only: bool = False


@dataclass(frozen=True, slots=True)
class MaskFile:
    """Cover a file with an empty, unreadable one (skipped where the target does not exist)."""

    target: bytes


@dataclass(frozen=True, slots=True)
class MaskDir:
    """Cover a directory with an empty read-only tmpfs (skipped where it does not exist)."""

    target: bytes


@dataclass(frozen=True, slots=True)
class Grab:
    """Keep what is mounted at ``path`` now, under ``name``, to show it again after a cover."""

    name: str
    path: bytes


@dataclass(frozen=True, slots=True)
class Place:
    """Attach what :class:`Grab` kept at ``target``."""

    name: str
    target: bytes
    read_only: bool = False


@dataclass(frozen=True, slots=True)
class Symlink:
    """A symbolic link on a tmpfs made by an earlier operation (rootless: /bin -> usr/bin)."""

    target: bytes
    points_to: bytes


MountOp = Overlay | Bind | Tmpfs | MaskFile | MaskDir | Grab | Place | Symlink


@dataclass(frozen=True, slots=True)
class BoxLimits:
    """What all processes of a box may use together; None is no limit."""

    memory_bytes: int | None = None
    cpus: float | None = None
    pids: int | None = None


@dataclass(frozen=True, slots=True)
class BoxSpec:
    """The box to make: its mounts in order, and who its processes are.

    The backend adds by itself, after ``mounts``: /proc of the box's pid namespace with the usual
    masks, a minimal /dev with its own /dev/pts and /dev/shm, a read-only /sys, and the segment
    tmpfs at /run/substrate/seg.
    """

    world_id: str
    mounts: tuple[MountOp, ...]
    hostname: str
    segment_limit_bytes: int = 256 << 20
    # "caller": identity mapping of the host process's uid (rootless, or root on an old kernel);
    # "range": 65,536 ids mapped to an unprivileged range, layers id-mapped (host is root).
    id_mapping: Literal["caller", "range"] = "range"
    limits: BoxLimits = BoxLimits()


@dataclass(frozen=True, slots=True)
class Box:
    """A living box. The descriptors belong to whoever holds this; close them when done."""

    world_id: str
    init_pid: int  # in the host's pid namespace, where networks and layers are reached by it
    channel_fd: int  # SOCK_SEQPACKET to the init
    segments_fd: int  # directory of the segment tmpfs
    pidfd: int
    id_base: int = 0  # the host's uid for the box's uid 0, with id_mapping "range"
    ledger_fd: int | None = None  # what the kernel tells of its processes (native/include/ledger.h)

    def close(self) -> None:
        """Close the descriptors that nobody has taken over: all but the channel."""
        for descriptor in (self.segments_fd, self.pidfd, self.ledger_fd):
            if descriptor is not None:
                os.close(descriptor)


@dataclass(frozen=True, slots=True)
class BackendCapabilities:
    """What this host can do, for Capabilities and doctor; each value names a mode, not a hope."""

    rootless: bool
    id_mapping: Literal["range", "caller", "weak"]
    overlay: str  # e.g. "single", "per-top-level-directory"
    overlay_options: tuple[str, ...]
    kill: Literal["cgroup.kill", "subreaper"]
    # How each limit is enforced: a cgroup's version, or not at all.
    limits: Mapping[str, Literal["v2", "v1", "none"]] = field(default_factory=dict)
    problems: tuple[str, ...] = ()  # one line each: what is missing, the consequence, the fix
    # Where what the kernel tells of processes comes from, and why not from the best source.
    ledger: LedgerSource = "none"
    ledger_problem: str = ""
    segments_attested: bool = False  # the kernel tells who makes and removes segments
    segments_problem: str = ""
    landlock_abi: int = 0  # 0: the kernel has none, or it is off
    router_pid: int = 0  # keeps the network namespace where worlds' links meet


class Backend(Protocol):
    """Makes, finds and removes boxes. Implementations: native; docker and vm follow.

    What one promises, whatever a box is to it (a container whose entrypoint is the init, a guest
    whose pid 1 it is); ``tests/conformance`` holds it to what users see of it:

    - ``substrate-init`` is pid 1 of the box, speaks native/include/protocol.h over
      :attr:`Box.channel_fd`, and has more capabilities than any command. A backend that has no
      socket into the box (a serial port of a guest) keeps one end of a pair itself and carries
      packets and, for output logs and descriptors, their content.
    - The mounts of the spec are made in their order, each resolved inside the box's root, and
      nothing in the box can take one off. Layers' uppers stay where the spec has them on this
      host: changes are found by walking them, also when the box is gone.
    - A box outlives this process, with its commands, and is found again by :meth:`adopt`; once
      what keeps boxes ends, each box ends with all that ran in it.
    - After :meth:`remove` nothing of the box is left: no process, mount, cgroup or namespace.
    - Nothing in a box sees or reaches the host but through the spec. What a host cannot do is told
      by :meth:`capabilities`, with the consequence and the fix, and refused; never weakened in
      silence.
    """

    name: str

    async def start(self) -> None:
        """Connect to what makes boxes, starting it if it does not run.

        Raises:
            BackendUnavailable: namespaces or mounts are refused here; the text says the fix.
        """

    async def create(self, spec: BoxSpec) -> Box:
        """Make a box with a running init. Raises BackendError with the failing mount or call."""

    async def adopt(self) -> list[Box]:
        """Boxes that live on from an earlier host process."""

    async def remove(self, world_id: str) -> None:
        """Kill everything in the box and unmount it. Idempotent."""

    async def limit(self, world_id: str, limits: BoxLimits) -> None:
        """Change the limits of a living box. Raises BackendError where one cannot be set."""

    async def sync_ledger(self, world_id: str, from_ns: int) -> None:
        """Return once the box's ledger holds all that has happened; see :class:`Box`.

        Args:
            world_id: a box with a ledger.
            from_ns: CLOCK_MONOTONIC; nobody needs what the ledger holds from before. 0: keep all.

        Raises:
            BackendError: it cannot be told whether all is there.
        """

    def capabilities(self) -> BackendCapabilities:
        """What this host can do; known after :meth:`start`."""
        ...

    async def close(self) -> None:
        """Let go of the boxes without ending them."""


class BackendError(Exception):
    """A box could not be made or reached; the text is one line for people."""


class BackendUnavailable(BackendError):
    """This host cannot make boxes at all; ``fix`` says what to change."""

    def __init__(self, message: str, fix: str) -> None:
        super().__init__(message)
        self.fix = fix
