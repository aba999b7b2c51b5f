"""Reading what ``strace -ff -ttt -y`` wrote: a file a thread, a line a call.

A file a thread means that a call is never cut in two by another thread's; what still is cut is a
call that its thread did not come back from. Strings are read byte by byte: strace writes every byte
that is not printable as a C escape.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

#: What strace is asked for. The issue's classes are %file, %process and %network; calls on a bare
#: descriptor change files too, and mmap tells the loader's opens from all others.
TRACED = (
    "%file,%process,%network,fchmod,fchown,ftruncate,fallocate,fsetxattr,fremovexattr,fchdir,mmap"
)

_LINE = re.compile(r"^(\d+\.\d+) (.*)$", re.DOTALL)
_CALL = re.compile(r"^(\w+)\((.*)\)\s+= (.*)$", re.DOTALL)
_CUT = re.compile(r"^(\w+)\((.*)(?:<unfinished \.\.\.>)?$", re.DOTALL)
_RESUMED = re.compile(r"^<\.\.\. (\w+) resumed>.*\)\s+= (.*)$", re.DOTALL)
_RESULT = re.compile(r"^(-?\d+|0x[0-9a-f]+|\?)(?:<(?:[^>]*)>(?:\(deleted\))?)?(?: ([A-Z]\w+))?")
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"(?:\.\.\.)?|<[^<>]*>|=>|[^",<>(){}\[\]=]+|.', re.DOTALL)
_ESCAPE = re.compile(rb"\\([0-7]{1,3}|x[0-9a-f]{2}|.)", re.DOTALL)
_NAMED = {
    b"n": b"\n", b"t": b"\t", b"r": b"\r", b"v": b"\v", b"f": b"\f", b"a": b"\a", b"b": b"\b",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Call:
    """A system call.

    Attributes:
        at_s: seconds since the epoch, at its entry.
        arguments: as strace prints them.
        result: None when the call did not come back, or will be restarted.
        error: name of the errno, empty when it succeeded.
    """

    at_s: float
    name: str
    arguments: tuple[str, ...]
    result: int | None
    error: str


@dataclass(slots=True)
class ThreadLog:
    """What one thread did, in order."""

    tid: int
    calls: list[Call] = field(default_factory=list)
    killed_by: str = ""
    not_understood: list[str] = field(default_factory=list)


def read_logs(prefix: Path) -> dict[int, ThreadLog]:
    """All threads of a run, by thread id, from the files ``prefix.TID``."""
    logs = {}
    for path in prefix.parent.glob(f"{prefix.name}.*"):
        tid = int(path.name.rpartition(".")[2])
        logs[tid] = read_log(tid, path)
    return logs


def read_log(tid: int, path: Path) -> ThreadLog:
    """One thread's file."""
    log = ThreadLog(tid)
    cut: Call | None = None
    for at_s, text in _lines(path):
        if text.startswith("+++ killed by "):
            log.killed_by = text.split()[3]
            continue
        if text.startswith(("+++", "---")):
            continue
        resumed = _RESUMED.match(text)
        if resumed is not None and cut is not None:
            result, error = _outcome(resumed[2])
            log.calls[-1] = Call(cut.at_s, cut.name, cut.arguments, result, error)
            cut = None
            continue
        call = _call(at_s, text)
        if call is None:
            log.not_understood.append(text)
            continue
        cut = call if call.result is None else None
        log.calls.append(call)
    return log


def _lines(path: Path) -> Iterator[tuple[float, str]]:
    # A byte a character: strace escapes what is not ASCII, and comments hold none.
    with path.open(encoding="latin-1", newline="\n") as file:
        for line in file:
            match = _LINE.match(line.rstrip("\n"))
            if match is None:
                continue
            # An anonymous or shared mapping says nothing here, and there are very many.
            if match[2].startswith("mmap(") and "MAP_DENYWRITE" not in match[2]:
                continue
            yield float(match[1]), match[2]


def _call(at_s: float, text: str) -> Call | None:
    whole = _CALL.match(text)
    if whole is not None:
        result, error = _outcome(whole[3])
        return Call(at_s, whole[1], split_arguments(whole[2]), result, error)
    cut = _CUT.match(text)
    if cut is not None:
        return Call(at_s, cut[1], split_arguments(cut[2].removesuffix(" ")), None, "")
    return None


def _outcome(text: str) -> tuple[int | None, str]:
    match = _RESULT.match(text)
    if match is None or match[1] == "?":
        return None, ""
    value = int(match[1], 0)
    return value, (match[2] or "") if value == -1 else ""


def split_arguments(text: str) -> tuple[str, ...]:
    """The arguments of a call, parted at the commas between them."""
    arguments: list[str] = []
    current: list[str] = []
    depth = 0
    for token in _TOKEN.findall(text):
        if token == "," and depth == 0:
            arguments.append("".join(current).strip())
            current = []
            continue
        if token in ("(", "{", "["):
            depth += 1
        elif token in (")", "}", "]"):
            depth -= 1
        current.append(token)
    last = "".join(current).strip()
    if last or arguments:
        arguments.append(last)
    return tuple(arguments)


def string_of(argument: str) -> bytes | None:
    """The bytes of a string argument; None when it is none (NULL, or memory that is not there)."""
    if not argument.startswith('"'):
        return None
    text = argument.removesuffix("...")[1:-1].encode("latin-1")
    return unescaped(text)


def unescaped(text: bytes) -> bytes:
    """Bytes from strace's C escapes."""
    if b"\\" not in text:
        return text

    def plain(match: re.Match[bytes]) -> bytes:
        escape = match[1]
        if escape[:1] in b"01234567":
            return bytes([int(escape, 8)])
        if escape[:1] == b"x" and len(escape) == 3:
            return bytes([int(escape[1:], 16)])
        return _NAMED.get(escape, escape)

    return _ESCAPE.sub(plain, text)


def descriptor_of(argument: str) -> tuple[int, bytes]:
    """Number and path of a descriptor argument (``-y`` writes the path behind it)."""
    number, _, rest = argument.partition("<")
    path = rest.rpartition(">")[0].encode("latin-1")
    value = -100 if number == "AT_FDCWD" else int(number) if number.lstrip("-").isdigit() else -1
    return value, unescaped(path)
