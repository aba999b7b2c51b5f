"""Find what a test leaves behind: processes, mounts, network namespaces, cgroups, descriptors.

How a process is recognised as the test's own: pytest makes itself a *child subreaper*, so whatever
is orphaned anywhere below it, daemons included, becomes its child instead of init's. The
environment marker and the temporary directory find what is not a descendant at all (a container's
processes, say). No other process on the machine is touched, so runs beside this one are safe.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from substrate_sdk.client.unix_transport import UnixTransport

#: Environment variable that marks a test's processes.
MARKER = "SUBSTRATE_TEST_ID"

_CLONE_NEWNS = 0x20000
_MNT_DETACH = 2
_MS_PRIVATE = 1 << 18
_MS_REC = 1 << 14
_PR_SET_CHILD_SUBREAPER = 36
_POLL_S = 0.02

_libc = ctypes.CDLL(None, use_errno=True)


def become_subreaper() -> None:
    """Have orphaned descendants reparented to this process (prctl(2), PR_SET_CHILD_SUBREAPER)."""
    if _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "cannot become a child subreaper")


class Room:
    """A mount namespace and cgroups of the run's own, so that runs side by side blame no other.

    What is made in the run is then in its own room, and what is in its room is its own. Where the
    machine does not let us (not root, say), the run stays where it is.

    Attributes:
        cgroups: the directories below which the run makes its cgroups, one for each hierarchy.
    """

    def __init__(self) -> None:
        """Move this process, which must have one thread only, into a room of its own."""
        if _libc.unshare(_CLONE_NEWNS) == 0:
            _libc.mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None)
        self.cgroups: list[Path] = []
        self._left: list[tuple[Path, Path]] = []
        for outside in _own_cgroups():
            inside = outside / f"tests-{os.getpid()}"
            try:
                inside.mkdir()
                (inside / "cgroup.procs").write_text(str(os.getpid()))
            except OSError:  # a cpuset without processors takes nobody
                with contextlib.suppress(OSError):
                    inside.rmdir()
                self.cgroups.append(outside)
            else:
                self.cgroups.append(inside)
                self._left.append((inside, outside))

    def leave(self) -> None:
        """Go back to the cgroups we came from and remove the run's own."""
        for inside, outside in self._left:
            (outside / "cgroup.procs").write_text(str(os.getpid()))
            for directory, _, _ in os.walk(inside, topdown=False):
                with contextlib.suppress(OSError):
                    os.rmdir(directory)


def _own_cgroups() -> list[Path]:
    """This process's cgroup in each hierarchy, v1 and v2 (cgroups(7), proc_pid_mountinfo(5))."""
    places = {}
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        number, controllers, place = line.split(":", 2)
        places[controllers if number != "0" else "cgroup2"] = place
    found = []
    for line in Path("/proc/self/mountinfo").read_text(errors="replace").splitlines():
        parts = line.split()
        kind, _, options = parts[parts.index("-") + 1 :]
        if kind == "cgroup":
            own = next((p for names, p in places.items() if names and names in options), None)
        else:
            own = places.get(kind)
        if kind in ("cgroup", "cgroup2") and own is not None:
            # What is mounted may be a part of the hierarchy, in a container.
            found.append(Path(parts[4]) / os.path.relpath(own, parts[3]))
    return [path for path in found if path.is_dir()]


def cgroup2_mount() -> Path | None:
    """Where version 2 is mounted, or None."""
    for line in Path("/proc/self/mountinfo").read_text(errors="replace").splitlines():
        parts = line.split()
        if parts[parts.index("-") + 1] == "cgroup2":
            return Path(parts[4])
    return None


@dataclass(frozen=True, slots=True)
class Process:
    """A process, identified so that a reused pid is not mistaken for it."""

    pid: int
    start: int  # clock ticks after boot, proc_pid_stat(5) field 22
    parent: int = field(compare=False)
    state: str = field(compare=False)

    def describe(self) -> str:
        """Its pid and command line."""
        with contextlib.suppress(OSError):
            command = Path(f"/proc/{self.pid}/cmdline").read_bytes().replace(b"\0", b" ")
            return f"{self.pid} ({command.decode(errors='replace').strip()[:200] or '?'})"
        return str(self.pid)


def processes() -> dict[int, Process]:
    """All processes of this pid namespace, by pid."""
    found = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        with contextlib.suppress(OSError):
            stat = Path("/proc", entry, "stat").read_bytes()
            # The command name may hold spaces and parentheses; what follows the last one does not.
            fields = stat[stat.rindex(b")") + 2 :].split()
            pid = int(entry)
            found[pid] = Process(pid, int(fields[19]), int(fields[1]), fields[0].decode())
    return found


def _descendants(of: int, table: dict[int, Process]) -> set[Process]:
    children: dict[int, list[Process]] = {}
    for process in table.values():
        children.setdefault(process.parent, []).append(process)
    found: set[Process] = set()
    pending = [of]
    while pending:
        for child in children.get(pending.pop(), ()):
            found.add(child)
            pending.append(child.pid)
    return found


def _bears(process: Process, marker: bytes, directories: Iterable[bytes]) -> bool:
    """Whether a process carries the marker, or lives in or speaks of one of the directories."""
    base = f"/proc/{process.pid}"
    with contextlib.suppress(OSError):
        if marker in Path(base, "environ").read_bytes():
            return True
        texts = [Path(base, "cmdline").read_bytes(), os.readlink(os.fsencode(f"{base}/cwd"))]
        return any(directory in text for directory in directories for text in texts)
    return False


def _mounts() -> dict[int, str]:
    """Mounts of our mount namespace: id to a line's essence (proc_pid_mountinfo(5))."""
    found = {}
    for line in Path("/proc/self/mountinfo").read_text(errors="replace").splitlines():
        parts = line.split()
        found[int(parts[0])] = f"{parts[4]} ({parts[parts.index('-') + 1]})"
    return found


def _network_namespaces(mine: Iterable[Process]) -> dict[int, str]:
    """Network namespaces held by a name or by processes of ours: inode to who holds it."""
    found: dict[int, str] = {}
    for process in mine:
        with contextlib.suppress(OSError):
            inode = os.stat(f"/proc/{process.pid}/ns/net").st_ino
            found[inode] = f"process {process.describe()}"
    with contextlib.suppress(OSError):
        for entry in os.scandir("/run/netns"):
            with contextlib.suppress(OSError):
                found[entry.stat().st_ino] = entry.path
    found.pop(os.stat("/proc/self/ns/net").st_ino, None)
    return found


def _cgroups(roots: Iterable[Path]) -> set[str]:
    """Every cgroup below some."""
    return {directory for root in roots for directory, _, _ in os.walk(root)}


def _cgroup_pids(directory: str) -> set[int]:
    """Processes in a cgroup and below it."""
    pids: set[int] = set()
    for parent, _, _ in os.walk(directory):
        with contextlib.suppress(OSError):
            pids.update(int(pid) for pid in Path(parent, "cgroup.procs").read_text().split())
    return pids


def _descriptors() -> dict[int, str]:
    """This process's open descriptors and what they refer to."""
    found = {}
    for entry in os.listdir("/proc/self/fd"):
        # The descriptor that lists the directory is gone by now.
        with contextlib.suppress(OSError):
            found[int(entry)] = os.readlink(f"/proc/self/fd/{entry}")
    return found


def _without_idle(left: tuple[tuple[int, str], ...]) -> tuple[tuple[int, str], ...]:
    """Less what open clients of wider fixtures keep for their next call: it may be a new one."""
    if not any(target.startswith("socket:") for _, target in left):
        return left
    idle = {
        connection._socket.fileno()
        for transport in gc.get_objects()
        if isinstance(transport, UnixTransport)
        for connection in transport._idle
    }
    return tuple((number, target) for number, target in left if number not in idle)


@dataclass(frozen=True, slots=True)
class Leaks:
    """What is there that was not there before; empty means clean."""

    processes: tuple[Process, ...] = ()
    mounts: tuple[tuple[int, str], ...] = ()
    network_namespaces: tuple[tuple[int, str], ...] = ()
    cgroups: tuple[str, ...] = ()
    descriptors: tuple[tuple[int, str], ...] = ()

    def __bool__(self) -> bool:
        return any(
            (self.processes, self.mounts, self.network_namespaces, self.cgroups, self.descriptors)
        )

    def lines(self) -> Iterator[str]:
        """One line for each thing left behind."""
        for process in self.processes:
            yield f"process {process.describe()}"
        for _, mount in self.mounts:
            yield f"mount {mount}"
        for inode, holder in self.network_namespaces:
            yield f"network namespace {inode} held by {holder}"
        for cgroup in self.cgroups:
            yield f"cgroup {cgroup}"
        for number, target in self.descriptors:
            yield f"file descriptor {number} -> {target}"


class LeakChecker:
    """Remembers how things are when made; later tells, and cleans up, what was added."""

    def __init__(
        self,
        marker_value: str,
        directories: Iterable[Path],
        cgroups: Iterable[Path] = (Path("/sys/fs/cgroup"),),
    ) -> None:
        """Take the picture.

        Args:
            marker_value: what :data:`MARKER` is set to for the test's processes.
            directories: the test's own directories, by which processes of its are recognised.
            cgroups: below which cgroups are looked for.
        """
        self._cgroup_roots = tuple(cgroups)
        self._marker = f"{MARKER}={marker_value}".encode()
        self._directories = [os.fsencode(directory) for directory in directories]
        table = processes()
        self._processes = set(table.values())
        self._mounts = _mounts()
        self._namespaces = _network_namespaces(self._processes)
        self._cgroups = _cgroups(self._cgroup_roots)
        gc.collect()
        self._descriptors = _descriptors()

    def add_directory(self, directory: Path) -> None:
        """Recognise processes by one more directory of the test's own."""
        self._directories.append(os.fsencode(directory))

    def _own_processes(self) -> set[Process]:
        self._reap_orphans()
        table = processes()
        me = os.getpid()
        family = _descendants(me, table) - self._processes
        strangers = set(table.values()) - self._processes - family - {table[me]}
        family |= {p for p in strangers if _bears(p, self._marker, self._directories)}
        # A zombie is no longer a process that runs; its parent, if it lives, is reported.
        return {process for process in family if process.state not in "ZX"}

    def leaks(self) -> Leaks:
        """Everything that is there now and was not when this was made."""
        # Descriptors of collectable objects are the interpreter's business, not a leak.
        gc.collect()
        own = self._own_processes()
        mounts = _mounts()
        namespaces = _network_namespaces(own)
        descriptors = _descriptors()
        pids = {process.pid for process in own}
        return Leaks(
            tuple(sorted(own, key=lambda process: process.pid)),
            tuple((i, mounts[i]) for i in mounts.keys() - self._mounts.keys()),
            tuple((i, namespaces[i]) for i in namespaces.keys() - self._namespaces.keys()),
            tuple(
                sorted(
                    cgroup
                    for cgroup in _cgroups(self._cgroup_roots) - self._cgroups
                    if self._is_own_cgroup(cgroup, pids)
                )
            ),
            _without_idle(
                tuple(
                    (number, target)
                    for number, target in descriptors.items()
                    if self._descriptors.get(number) != target
                )
            ),
        )

    def _reap_orphans(self) -> None:
        """Collect zombies that came to us during the test.

        The test is over when this runs, so what is a zombie now, nobody waits for. Those that were
        there before may be children of a wider fixture, which will ask for their exit status.
        """
        me = os.getpid()
        for process in set(processes().values()) - self._processes:
            if process.parent == me and process.state == "Z":
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(process.pid, os.WNOHANG)

    @staticmethod
    def _is_own_cgroup(directory: str, own_pids: set[int]) -> bool:
        """Nobody's is ours: another run's cgroup has that run's processes in it."""
        pids = _cgroup_pids(directory)
        return not pids or bool(pids & own_pids)

    def settle(self, timeout_s: float = 3.0) -> Leaks:
        """Wait until nothing is left, at most ``timeout_s``; return what still is."""
        deadline = time.monotonic() + timeout_s
        while (found := self.leaks()) and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        return found

    def clean(self, found: Leaks) -> None:
        """End and remove what was found, so that the next test starts from a clean machine."""
        for process in found.processes:
            _kill(process)
        _wait_until(lambda: not self._own_processes(), 3.0)
        for _, mount in sorted(found.mounts, reverse=True):
            _libc.umount2(os.fsencode(_unescape(mount.rsplit(" (", 1)[0])), _MNT_DETACH)
        for _, holder in found.network_namespaces:
            if holder.startswith("/run/netns/"):
                with contextlib.suppress(OSError):
                    os.unlink(holder)
        for cgroup in sorted(found.cgroups, reverse=True):
            with contextlib.suppress(OSError):
                os.rmdir(cgroup)


def _wait_until(condition: Callable[[], bool], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < deadline:
        time.sleep(_POLL_S)


def _unescape(path: str) -> str:
    """Undo mountinfo's octal escapes of space, tab, newline and backslash."""
    for code, character in (("040", " "), ("011", "\t"), ("012", "\n"), ("134", "\\")):
        path = path.replace(f"\\{code}", character)
    return path


def _kill(process: Process) -> None:
    """SIGKILL, through a pidfd and after a second look, so that no later owner of the pid dies."""
    with contextlib.suppress(OSError):
        pidfd = os.pidfd_open(process.pid)
        try:
            if processes().get(process.pid) == process:
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        finally:
            os.close(pidfd)
