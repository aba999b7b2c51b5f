"""Programs that want all there is, with the limits that hold them (issue 4, "Hostile load")."""

from __future__ import annotations

from dataclasses import dataclass, field

from substrate_sdk.types import Limits

_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Load:
    """A hostile program.

    Attributes:
        name: what it is called.
        argv: the program.
        limits: of its world.
        seconds: after which it is ended.
        reasons: how it may end.
        rules: limits that its result tells of.
        after: a command that its world can run when it has ended.
    """

    name: str
    argv: tuple[str, ...]
    limits: Limits
    seconds: float = 3.0
    reasons: frozenset[str] = frozenset({"TIMEOUT"})
    rules: frozenset[str] = field(default_factory=frozenset)
    after: str = "true"


def _python(*lines: str) -> tuple[str, ...]:
    return ("python3", "-c", "\n".join(lines))


#: Until the kernel has refused for some time; then all of it, by the group.
_FORK_BOMB = _python(
    "import os, signal, time",
    "first, refused = os.getpid(), None",
    "while refused is None or time.monotonic() < refused + 1.5:",
    "    try: os.fork()",
    "    except OSError: refused = refused or time.monotonic()",
    "    if os.getpid() != first: refused = None",
    "os.kill(0, signal.SIGKILL)",
)
_MEMORY_HOG = _python("kept = []", "while True: kept.append(bytearray(16 << 20))")
_DISK_FILLER = _python(
    "import os",
    "out = open('/tmp/big', 'wb', buffering=0)",
    "block = os.urandom(1 << 20)",
    "while True: out.write(block)",
)
_INODE_FILLER = _python(
    "import itertools",
    "for i in itertools.count(): open(f'/tmp/f{i}', 'x').close()",
)
#: 100,000 descriptors: as many as one process may have, in as many processes as that takes.
_OPEN_FILES = _python(
    "import os, resource, signal",
    "soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)",
    "resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))",
    "left, each = 100_000, min(hard - 16, 20_000)",
    "while left > 0:",
    "    reader, writer = os.pipe()",
    "    if os.fork() == 0:",
    "        kept = [os.open('/dev/null', os.O_RDONLY) for _ in range(min(each, left))]",
    "        os.write(writer, b'x'); signal.pause()",
    "    os.read(reader, 1); os.close(reader); os.close(writer); left -= each",
    "signal.pause()",
)
_ZOMBIES = _python(
    "import os, time",
    "refused = None",
    "while refused is None or time.monotonic() < refused + 1.5:",
    "    try:",
    "        if os.fork() == 0: os._exit(0)",
    "    except OSError:",
    "        refused = refused or time.monotonic()",
    "        time.sleep(0.01)",
)

LOADS = (
    Load(
        "fork-bomb",
        _FORK_BOMB,
        Limits(pids=300),
        seconds=60,
        reasons=frozenset({"SIGNALED"}),
        rules=frozenset({"pids"}),
    ),
    Load(
        "memory-hog",
        _MEMORY_HOG,
        Limits(memory_bytes=256 * _MIB),
        seconds=60,
        reasons=frozenset({"OOM"}),
        rules=frozenset({"memory_bytes"}),
    ),
    Load(
        "disk-filler",
        _DISK_FILLER,
        Limits(disk_bytes=64 * _MIB),
        seconds=60,
        reasons=frozenset({"EXITED"}),
        rules=frozenset({"disk_bytes"}),
        after="rm /tmp/big",
    ),
    Load(
        "inode-filler",
        _INODE_FILLER,
        Limits(disk_bytes=64 * _MIB, inodes=5_000),
        seconds=60,
        reasons=frozenset({"EXITED"}),
        rules=frozenset({"inodes"}),
        after="rm -r /tmp/f1*",
    ),
    Load("open-files", _OPEN_FILES, Limits(memory_bytes=256 * _MIB)),
    Load(
        "zombie-storm",
        _ZOMBIES,
        Limits(pids=300),
        seconds=60,
        reasons=frozenset({"EXITED"}),
        rules=frozenset({"pids"}),
    ),
)
