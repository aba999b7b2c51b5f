"""From the decoder's event lines to operations."""

from __future__ import annotations

import base64
import dataclasses
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from benchmarks.truth.addresses import recorded_address
from benchmarks.truth.operations import Image, Occurrence, OpClass, Operation, normalised

Event = Mapping[str, Any]

_KINDS = {
    "remove": "unlink unlinkat remove rmdir shm_unlink sem_unlink mq_unlink",
    "rename": "rename renameat renameat2",
    "mkdir": "mkdir mkdirat mkdtemp",
    "mknod": "mknod mknodat mkfifo mkfifoat __xmknod __xmknodat",
    "link": "link linkat",
    "symlink": "symlink symlinkat",
    "chmod": "chmod fchmod fchmodat lchmod",
    "chown": "chown lchown fchown fchownat",
    "truncate": "truncate truncate64 ftruncate ftruncate64",
    "fallocate": "fallocate fallocate64 posix_fallocate posix_fallocate64",
    "utimes": "utime utimes utimensat futimens futimes lutimes futimesat",
    "xattr": "setxattr lsetxattr fsetxattr removexattr lremovexattr fremovexattr",
}
_MUTATIONS = {name: kind for kind, names in _KINDS.items() for name in names.split()}
_EXECS = frozenset(
    ("execve", "execv", "execvp", "execvpe", "execl", "execlp", "execle", "fexecve", "execveat")
)
_SPAWNS = frozenset(
    ("posix_spawn", "posix_spawnp", "pidfd_spawn", "pidfd_spawnp", "system", "popen")
)
_SHELLS = frozenset(("system", "popen"))
_FORKS = frozenset(
    ("fork", "__fork", "__libc_fork", "_Fork", "clone", "__clone", "daemon", "forkpty")
)
_VFORKS = frozenset(("vfork", "__vfork"))
_NETWORK = {
    "connect": "connect", "__connect": "connect", "bind": "bind", "listen": "listen",
    "accept": "accept", "accept4": "accept",
}  # fmt: skip
_WRITES = ("O_WRONLY", "O_RDWR", "O_CREAT", "O_TRUNC", "O_TMPFILE")


@dataclass(slots=True)
class Recorded:
    """What the library and the decoder told of a run.

    Attributes:
        operations: of each image.
        entries: of each thread, the calls in whose time libc may have done more by itself.
        other: symbols that stand for no operation of a measured class, with their counts.
        looked_at: (image, path) → stat-class calls.
    """

    operations: dict[Image, list[Occurrence]] = field(default_factory=lambda: defaultdict(list))
    entries: dict[int, list[Occurrence]] = field(default_factory=lambda: defaultdict(list))
    other: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    looked_at: dict[tuple[Image, bytes], int] = field(default_factory=lambda: defaultdict(int))


def read_events(events: Sequence[Event], processes: frozenset[int]) -> Recorded:
    """Bring a run's lines to operations.

    Args:
        events: the decoder's lines.
        processes: the pids that were processes; a vfork child's calls carry its pid as their
            thread id, whatever image they are told under.
    """
    numbers = {
        event["process_span"]: max(1, event["exec_no"])
        for event in events
        if event["event_type"] == "world_process_start"
    }
    recorded = Recorded()
    for event in events:
        if event["event_type"] == "file_summary":
            image = Image(event["pid"], numbers.get(event["process_span"], 1))
            recorded.looked_at[image, _path(event, "path")] += event["stat_calls"]
        if event["event_type"] != "syscall":
            continue
        tid = event.get("tid", event["pid"])
        image = Image(event["pid"], numbers.get(event["process_span"], 1))
        if tid != event["pid"] and tid in processes:
            image = Image(tid, 1)
        start_s = _seconds(event["ts"])
        end_s = start_s + event["elapsed_us"] / 1e6
        name = event["syscall"]
        found = _operations(event, name)
        searched = name in _EXECS | _SPAWNS and "path" not in event and name not in _SHELLS
        subject = Operation(OpClass.STAT, name, _path(event, "path"))
        entry = Occurrence(
            operation=found[0] if found else subject,
            tid=tid,
            start_s=start_s,
            end_s=end_s,
            name=name,
            descriptor=event["result"],
            searched=searched,
        )
        recorded.entries[tid].append(entry)
        if not found:
            recorded.other[name] += 1
        recorded.operations[image] += [dataclasses.replace(entry, operation=op) for op in found]
    return recorded


def _operations(event: Event, name: str) -> list[Operation]:
    error = event.get("error", "")
    path = _path(event, "path")
    if name in _MUTATIONS:
        if name == "shm_unlink":
            path = normalised(b"/dev/shm", path.lstrip(b"/"))
        return [Operation(OpClass.MUTATION, _MUTATIONS[name], path, _path(event, "path2"), error)]
    if name in _EXECS:
        path = path or _argument(event)
        return [Operation(OpClass.EXEC, "exec", path, b"", error)]
    if name in _SPAWNS:
        program = b"/bin/sh" if name in _SHELLS else path or _argument(event)
        return [
            Operation(OpClass.EXEC, "exec", program, b"", error if name not in _SHELLS else ""),
            *_file_actions(event),
        ]
    if name in _FORKS:
        made = event["result"] if not error else 0
        return [Operation(OpClass.EXEC, "fork", b"%d" % made)] if made > 0 else []
    if name in _VFORKS:
        return [Operation(OpClass.EXEC, "vfork", b"")]
    if name in _NETWORK:
        return [_network(event, _NETWORK[name])]
    if "flags" in event and name != "memfd_create":
        if name == "shm_open":
            path = normalised(b"/dev/shm", path.lstrip(b"/"))
        writes = any(flag in event["flags"] for flag in _WRITES)
        op_class = OpClass.WRITE if writes else OpClass.READ
        return [Operation(op_class, "open", path, b"", error)]
    return []


def _file_actions(event: Event) -> list[Operation]:
    if event.get("error"):
        return []
    return [
        Operation(
            OpClass.WRITE if any(f in action["flags"] for f in _WRITES) else OpClass.READ,
            "open",
            normalised(b"", _bytes(action["path"])),
        )
        for action in event.get("file_actions", ())
        if action["action"] == "open"
    ]


def _network(event: Event, kind: str) -> Operation:
    path = b"fd " + _argument(event)
    if kind in ("connect", "bind"):
        address = recorded_address(
            event.get("family", "?"), _bytes(event.get("address", "")), event.get("port")
        )
        path += b" " + address
    return Operation(OpClass.NETWORK, kind, path, b"", event.get("error", ""))


def _argument(event: Event) -> bytes:
    return _bytes(event["args"][0]) if event["args"] else b""


def _path(event: Event, key: str) -> bytes:
    return _bytes(event.get(key, "")).removesuffix(b" (deleted)")


def _bytes(value: object) -> bytes:
    if isinstance(value, dict):
        return base64.b64decode(value["b64"])
    return str(value).encode()


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()
