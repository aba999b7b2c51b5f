"""One thing that a process asked the kernel for, whoever tells of it.

Both sides are brought to the same form, in which they can be counted against each other: which
symbol of libc or which system call it was does not matter, what it did to what, and how it ended,
does.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class OpClass(StrEnum):
    """The classes that the bar is set for, and the one that is compared otherwise."""

    EXEC = "exec/spawn"
    READ = "open for read"
    WRITE = "open for write"
    MUTATION = "mutation"
    NETWORK = "network"
    STAT = "stat"


#: The classes in the denominator, in the order of the table.
MEASURED = (OpClass.EXEC, OpClass.READ, OpClass.WRITE, OpClass.MUTATION, OpClass.NETWORK)


@dataclass(frozen=True, slots=True)
class Image:
    """A process between two execs; a forked child counts as the first program that it becomes.

    Attributes:
        pid: the process.
        number: 1 for its first covered program (or for a child that has none of its own), and so
            on; 0 and below for programs without the library, which are not compared.
    """

    pid: int
    number: int


@dataclass(frozen=True, slots=True)
class Operation:
    """What was done.

    Attributes:
        kind: open, exec, fork, unlink, rename, connect, ….
        path: absolute and without ``.`` and ``..``; the address of a network operation.
        path2: of operations on two paths.
        error: name of the errno; empty when it succeeded.
    """

    op_class: OpClass
    kind: str
    path: bytes
    path2: bytes = b""
    error: str = ""


@dataclass(frozen=True, slots=True)
class Occurrence:
    """An operation, by whom and when.

    Attributes:
        tid: the thread.
        start_s: seconds since the epoch, by the clock of whoever tells of it.
        end_s: the same; only the recorder tells it.
        name: the system call or the symbol.
        descriptor: that came out of it, or -1.
        searched: a bare program name, which libc looks up in PATH; ``path`` is that name.
    """

    operation: Operation
    tid: int
    start_s: float
    end_s: float
    name: str
    descriptor: int = -1
    searched: bool = False


def normalised(base: bytes, path: bytes) -> bytes:
    """An absolute path by its text alone: links are not followed, ``..`` takes a name away."""
    whole = path if path.startswith(b"/") else base + b"/" + path
    kept: list[bytes] = []
    for name in whole.split(b"/"):
        if name == b"..":
            if kept:
                kept.pop()
        elif name not in (b"", b"."):
            kept.append(name)
    return b"/" + b"/".join(kept)
