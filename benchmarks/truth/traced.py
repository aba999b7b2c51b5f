"""From strace's calls to operations, each with what is needed to judge it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.truth.addresses import traced_address
from benchmarks.truth.lineage import Birth, Lineage, ProcessTruth, Program
from benchmarks.truth.operations import Image, Occurrence, OpClass, Operation, normalised
from benchmarks.truth.strace_log import Call, descriptor_of, string_of

# Where the paths are: a number is the argument that holds a path, a pair is a descriptor and the
# path below it, and F is the descriptor alone. Of two, the second is path2.
_F = "F"
_Place = int | tuple[int, int] | str
_MUTATIONS: dict[str, tuple[str, tuple[_Place, ...]]] = {
    "unlink": ("remove", (0,)),
    "unlinkat": ("remove", ((0, 1),)),
    "rmdir": ("remove", (0,)),
    "rename": ("rename", (0, 1)),
    "renameat": ("rename", ((0, 1), (2, 3))),
    "renameat2": ("rename", ((0, 1), (2, 3))),
    "mkdir": ("mkdir", (0,)),
    "mkdirat": ("mkdir", ((0, 1),)),
    "mknod": ("mknod", (0,)),
    "mknodat": ("mknod", ((0, 1),)),
    "link": ("link", (0, 1)),
    "linkat": ("link", ((0, 1), (2, 3))),
    "chmod": ("chmod", (0,)),
    "fchmod": ("chmod", (_F,)),
    "fchmodat": ("chmod", ((0, 1),)),
    "fchmodat2": ("chmod", ((0, 1),)),
    "chown": ("chown", (0,)),
    "lchown": ("chown", (0,)),
    "fchown": ("chown", (_F,)),
    "fchownat": ("chown", ((0, 1),)),
    "truncate": ("truncate", (0,)),
    "ftruncate": ("truncate", (_F,)),
    "fallocate": ("fallocate", (_F,)),
    "utime": ("utimes", (0,)),
    "utimes": ("utimes", (0,)),
    "utimensat": ("utimes", ((0, 1),)),
    "futimesat": ("utimes", ((0, 1),)),
    "setxattr": ("xattr", (0,)),
    "lsetxattr": ("xattr", (0,)),
    "fsetxattr": ("xattr", (_F,)),
    "removexattr": ("xattr", (0,)),
    "lremovexattr": ("xattr", (0,)),
    "fremovexattr": ("xattr", (_F,)),
}
_STATS: dict[str, tuple[_Place, int | None]] = {  # where the path is, and where the flags are
    "stat": (0, None),
    "lstat": (0, None),
    "newfstatat": ((0, 1), 3),
    "statx": ((0, 1), 2),
    "access": (0, None),
    "faccessat": ((0, 1), None),
    "faccessat2": ((0, 1), None),
    "readlink": (0, None),
    "readlinkat": ((0, 1), None),
}
_OPENS: dict[str, tuple[_Place, int]] = {
    "open": (0, 1),
    "openat": ((0, 1), 2),
    "openat2": ((0, 1), 2),
    "creat": (0, -1),
}
_WRITES = ("O_WRONLY", "O_RDWR", "O_CREAT", "O_TRUNC", "O_TMPFILE")


@dataclass(slots=True)
class TracedCall:
    """An operation that strace saw.

    Attributes:
        image: whose it is.
        program: what ran.
        flags: of an open.
        returned: the call came back; what did not is recorded by nobody.
        own: made by the library itself.
        before_library: of a covered program, before the library looked for its directory.
        mapped: an open whose file was mapped with MAP_DENYWRITE, as only the loader does.
        library: the loader opening the library itself.
        spawned: by libc in the child of posix_spawn, popen or system.
    """

    at: Occurrence
    image: Image
    program: Program
    flags: str = ""
    returned: bool = True
    own: bool = False
    before_library: bool = False
    mapped: bool = False
    spawned: bool = False
    library: bool = False


class Tracer:
    """Reads a run's processes."""

    def __init__(self, lineage: Lineage, segments: bytes, library: bytes) -> None:
        self._lineage = lineage
        self._segments = segments
        self._library = library
        classes = segments.rpartition(b"/")[0] + b"/classes"
        self._links = frozenset((b"/proc/self/ns/pid", b"/proc/self/exe", classes))
        self._cwd_of: dict[int, list[tuple[float, bytes]]] = {}

    def calls(self) -> Iterator[TracedCall]:
        """All operations of all processes; parents come before their children."""
        for process in self._lineage.processes.values():
            # What the first process does before its exec is strace's doing, the exec included.
            began_s = process.programs[1].from_s if process.birth is Birth.ROOT else 0.0
            for call in self._process(process):
                if call.at.start_s >= began_s:
                    yield call

    def _process(self, process: ProcessTruth) -> Iterator[TracedCall]:
        self._follow_directory(process)
        for program in process.programs[1:]:
            program.path = normalised(self._cwd(process, program.from_s), program.path)
        for log in process.threads:
            found: list[TracedCall] = []
            by_descriptor: dict[int, TracedCall] = {}
            touched: dict[int, int] = {}  # per program: how many calls before the first touch
            for call in log.calls:
                program = process.program_at(call.at_s)
                if call.name == "mmap":
                    opened = by_descriptor.get(descriptor_of(call.arguments[4])[0])
                    if opened is not None:
                        opened.mapped = True
                    continue
                for made in self._traced(process, program, log.tid, call):
                    _look_through_link(made, by_descriptor)
                    found.append(made)
                    if made.own:
                        self._mark_own(found, touched, program)
                    if made.at.descriptor >= 0:
                        by_descriptor[made.at.descriptor] = made
            yield from found

    def _mark_own(self, found: list[TracedCall], touched: dict[int, int], program: Program) -> None:
        """The library just used its directory: what it read to know itself stands just before."""
        for made in found[-5:]:
            if made.program is program and made.at.operation.path in _SELF_READS:
                made.own = True
        if id(program) not in touched and program.execs > 0:
            touched[id(program)] = len(found)
            for made in found:
                if made.program is program:
                    made.before_library = True

    def _traced(
        self, process: ProcessTruth, program: Program, tid: int, call: Call
    ) -> Iterator[TracedCall]:
        operation, flags = self._operation(process, call)
        if operation is None:
            return
        descriptor = call.result if operation.kind == "open" and call.result is not None else -1
        made = TracedCall(
            at=Occurrence(operation, tid, call.at_s, call.at_s, call.name, descriptor),
            image=program.image,
            program=program,
            flags=flags,
            returned=call.result is not None,
        )
        if process.birth is Birth.SPAWN and program.execs == 0 and process.parent is not None:
            made.image, made.spawned = process.parent.image, True
            made.program = process.parent
        path = operation.path
        made.own = self._is_own(call, path)
        made.library = bool(self._library) and path == self._library
        made.before_library = made.library
        yield made

    def _is_own(self, call: Call, path: bytes) -> bool:
        if path == self._segments or path.startswith(self._segments + b"/"):
            return True
        if call.name == "readlinkat":
            # libc's readlink is the older call where there is one; the library has no use for it.
            return path in self._links or _DESCRIPTOR_LINK.match(path) is not None
        return call.name == "statx" and call.arguments[2:4] == _PLACE_QUESTION

    def _operation(self, process: ProcessTruth, call: Call) -> tuple[Operation | None, str]:
        name, error = call.name, call.error
        if name in _OPENS:
            place, at = _OPENS[name]
            flags = "O_WRONLY|O_CREAT|O_TRUNC" if at < 0 else call.arguments[at]
            writes = any(flag in flags for flag in _WRITES)
            path = self._path(process, call, place)
            op_class = OpClass.WRITE if writes else OpClass.READ
            return (Operation(op_class, "open", path, b"", error), flags) if path else (None, "")
        if name in _MUTATIONS:
            kind, places = _MUTATIONS[name]
            paths = [self._path(process, call, place) for place in places]
            second = paths[1] if len(paths) > 1 else b""
            return Operation(OpClass.MUTATION, kind, paths[0], second, error), ""
        if name in ("symlink", "symlinkat"):
            target = string_of(call.arguments[0]) or b""
            path = self._path(process, call, 1 if name == "symlink" else (1, 2))
            return Operation(OpClass.MUTATION, "symlink", path, target, error), ""
        if name in ("execve", "execveat"):
            path = self._path(process, call, 0 if name == "execve" else (0, 1))
            return Operation(OpClass.EXEC, "exec", path, b"", error), ""
        if name in ("connect", "bind", "listen", "accept", "accept4"):
            return _network(call), ""
        if name in _STATS:
            place, _ = _STATS[name]
            path = self._path(process, call, place)
            # fstat, and what opendir and fopen ask of what they opened, is no look-up of a path.
            kind = "fstat" if "AT_EMPTY_PATH" in "".join(call.arguments[2:]) else "stat"
            return Operation(OpClass.STAT, kind, path, b"", error), ""
        return _birth_operation(call), ""

    def _path(self, process: ProcessTruth, call: Call, place: _Place) -> bytes:
        if isinstance(place, str):
            return _plain(descriptor_of(call.arguments[0])[1])
        if isinstance(place, tuple):
            base = descriptor_of(call.arguments[place[0]])[1]
            path = string_of(call.arguments[place[1]]) or b""
            return normalised(_plain(base), path)
        path = string_of(call.arguments[place]) or b""
        return normalised(self._cwd(process, call.at_s), path)

    # --- the working directory, which calls of the older kind do not show -------------------------

    def _follow_directory(self, process: ProcessTruth) -> None:
        born = process.programs[0].from_s
        history: list[tuple[float, bytes]] = []
        start = self._inherited(process, born)
        cwd = start
        for _, call, _ in sorted(process.calls(), key=lambda entry: entry[1].at_s):
            shown = _shown_directory(call)
            if shown is None and call.name == "chdir" and call.result == 0:
                shown = normalised(cwd, string_of(call.arguments[0]) or b"")
            if shown is not None and shown != cwd:
                history.append((call.at_s, shown))
                cwd = shown
        if process.parent is None and history:
            start = history[0][1]  # nothing else tells where the root began
        self._cwd_of[process.pid] = [(0.0, start), *history]

    def _inherited(self, process: ProcessTruth, born: float) -> bytes:
        if process.parent is None:
            return b"/"
        parent = next(
            (
                other
                for other in self._lineage.processes.values()
                if process.parent in other.programs
            ),
            None,
        )
        return self._cwd(parent, born) if parent is not None else b"/"

    def _cwd(self, process: ProcessTruth, at_s: float) -> bytes:
        for from_s, cwd in reversed(self._cwd_of.get(process.pid, [])):
            if from_s <= at_s:
                return cwd
        return b"/"


#: What a hello and a new segment read about the process that they are in.
_SELF_READS = frozenset((b"/proc/self/stat",))
#: How it asks which directory a descriptor stands for.
_PLACE_QUESTION = ("AT_STATX_DONT_SYNC|AT_EMPTY_PATH", "STATX_INO|STATX_BTIME|STATX_MNT_ID")


_DESCRIPTOR_LINK = re.compile(rb"^/proc/self/fd/(\d+)$")


def _look_through_link(made: TracedCall, by_descriptor: dict[int, TracedCall]) -> None:
    """fchmodat(3) that follows no links opens the file and then changes /proc/self/fd/N."""
    operation = made.at.operation
    link = _DESCRIPTOR_LINK.match(operation.path)
    if operation.kind != "chmod" or link is None:
        return
    opened = by_descriptor.get(int(link[1]))
    if opened is not None and "O_PATH" in opened.flags:
        path = opened.at.operation.path
        made.at = dataclasses.replace(made.at, operation=dataclasses.replace(operation, path=path))


def _plain(path: bytes) -> bytes:
    return path.removesuffix(b" (deleted)")


def _shown_directory(call: Call) -> bytes | None:
    if call.name == "getcwd" and call.result is not None and call.result > 0:
        return string_of(call.arguments[0])
    if call.name == "fchdir" and call.result == 0:
        return descriptor_of(call.arguments[0])[1]
    for argument in call.arguments[:3]:
        if argument.startswith("AT_FDCWD<"):
            return descriptor_of(argument)[1]
    return None


def _network(call: Call) -> Operation:
    descriptor = descriptor_of(call.arguments[0])[0]
    kind = "accept" if call.name == "accept4" else call.name
    path = b"fd %d" % descriptor
    if kind in ("connect", "bind"):
        path += b" " + traced_address(call.arguments[1])
    return Operation(OpClass.NETWORK, kind, path, b"", call.error)


def _birth_operation(call: Call) -> Operation | None:
    if call.name not in ("clone", "clone3", "fork", "vfork") or not call.result:
        return None
    text = ",".join(call.arguments)
    if "CLONE_THREAD" in text or call.result < 0:
        return None
    if call.name == "vfork":
        return Operation(OpClass.EXEC, "vfork", b"")
    if "CLONE_VM" in text and "CLONE_VFORK" in text:
        return None  # told of by its exec
    return Operation(OpClass.EXEC, "fork", b"%d" % call.result)
