"""What a host and an init say to each other, as values: native/include/protocol.h in Python."""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Any

from substrate_services.world.wire import WireError, fixed_id, parse_id, string

_START = struct.Struct("<IIiiHHIIIqQQ64s")
_RLIMIT = struct.Struct("<QQQ")
_STATE = struct.Struct("<64sIIiiiIIi20Q")
_COUNTED = struct.Struct("<QQ")  # after _STATE, from inits that count it
_SHELL_RUN = struct.Struct("<64s64s64sQQ")
_INFINITY = (1 << 64) - 1


def unpack(layout: struct.Struct, payload: bytes) -> tuple[Any, ...]:
    """The structure at the start of an answer. Raises WireError where it is too short."""
    if len(payload) < layout.size:
        raise WireError(f"answer of {len(payload)} bytes is too short")
    return layout.unpack_from(payload)


class Stage(IntEnum):
    """What failed when an exec could not be started."""

    REQUEST = 1
    USER = 2
    CWD = 3
    EXEC = 4
    SETUP = 5


class Phase(IntEnum):
    """Where in its life an exec is."""

    STARTING = 0
    RUNNING = 1
    EXITED = 2


class Reason(IntEnum):
    """Why the main process of an exec ended."""

    NONE = 0
    EXITED = 1
    SIGNALED = 2
    TIMEOUT = 3


class KillMode(IntEnum):
    """How a process tree is found."""

    CGROUP = 1
    SUBREAPER = 2


class Scope(IntEnum):
    """Whom a signal goes to."""

    MAIN = 0
    TREE = 1
    GROUP = 2


class _StartFlag(IntFlag):
    PTY = 1
    STDIN = 2
    BUILTIN = 4
    NO_ASLR = 8
    OUTPUT = 16
    SHELL = 32


class _StateFlag(IntFlag):
    TRUNCATED = 1
    LOG_FAILED = 2
    KILLED = 4
    LOST = 8
    SHELL_ENDED = 256
    SPOILED = 512


@dataclass(frozen=True, slots=True)
class Rlimit:
    """One resource limit; None is unlimited. A hard limit cannot exceed the host's."""

    resource: int  # resource.RLIMIT_*
    soft: int | None
    hard: int | None


@dataclass(frozen=True, slots=True)
class ExecStart:
    """What to start.

    Attributes:
        exec_id: chosen by the caller; starting it again gives the exec that is there.
        argv: program and arguments; looked up in the PATH of ``env`` where argv[0] has no slash.
        env: the whole environment; nothing is inherited.
        cwd: absolute, entered as the user.
        user: "", "name", "uid", each also with ":group"; "" is the world's default user.
        uid: overrides ``user`` where not None.
        gid: overrides the user's group where not None.
        timeout_s: after which the whole tree is killed; None for never.
        output_limit_bytes: how much output is kept in the log; more is dropped and flagged.
        pty: rows and columns of a terminal, or None for pipes.
        stdin: whether :meth:`InitClient.write_stdin` will feed it; /dev/null otherwise.
        builtin: argv[0] names a file operation of init (native/init/builtin.c).
        no_aslr: start with ADDR_NO_RANDOMIZE.
        last_pid: the first process gets the next free pid after this one; None for any.
        shell_fd: a shell for :class:`ShellRun`; its report pipe, the streams of its commands and
            the file that they read are its descriptors from this number on.
    """

    exec_id: str
    argv: tuple[bytes, ...]
    env: tuple[bytes, ...] = ()
    cwd: bytes = b"/"
    user: str = ""
    uid: int | None = None
    gid: int | None = None
    umask: int = 0o022
    timeout_s: float | None = None
    output_limit_bytes: int = 64 << 20
    pty: tuple[int, int] | None = None
    stdin: bool = False
    builtin: bool = False
    no_aslr: bool = False
    last_pid: int | None = None
    rlimits: tuple[Rlimit, ...] = ()
    shell_fd: int | None = None

    def encode(self, *, with_output: bool = False) -> bytes:
        """As SUB_I_START carries it. Raises ValueError for NUL bytes or an empty argv."""
        if not self.argv or not self.argv[0]:
            raise ValueError("argv must name a program")
        flags = _StartFlag(0)
        if self.pty is not None:
            flags |= _StartFlag.PTY
        if self.stdin or self.pty is not None:
            flags |= _StartFlag.STDIN
        if self.builtin:
            flags |= _StartFlag.BUILTIN
        if self.no_aslr:
            flags |= _StartFlag.NO_ASLR
        if with_output:
            flags |= _StartFlag.OUTPUT
        rows, cols = self.pty or (0, 0)
        if self.shell_fd is not None:
            flags |= _StartFlag.SHELL
            rows = self.shell_fd
        timeout_ms = 0 if self.timeout_s is None else max(1, round(self.timeout_s * 1000))
        head = _START.pack(
            flags,
            self.umask,
            -1 if self.uid is None else self.uid,
            -1 if self.gid is None else self.gid,
            rows,
            cols,
            len(self.argv),
            len(self.env),
            len(self.rlimits),
            -1 if self.last_pid is None else self.last_pid,
            timeout_ms,
            self.output_limit_bytes,
            fixed_id(self.exec_id),
        )
        parts = [head, string(self.cwd), string(self.user.encode())]
        parts += [string(text) for text in (*self.argv, *self.env)]
        for limit in self.rlimits:
            soft = _INFINITY if limit.soft is None else limit.soft
            hard = _INFINITY if limit.hard is None else limit.hard
            parts.append(_RLIMIT.pack(limit.resource, soft, hard))
        return b"".join(parts)


@dataclass(frozen=True, slots=True)
class ShellRun:
    """A command for a shell that was started with ``shell_fd``.

    Attributes:
        shell_id: the shell's exec id.
        exec_id: of the command; it exits, is signalled and forgotten as any exec.
        word: what the trailer reports; nobody in the world can know it before.
        text: for the shell's control.
        trailer: after it: reports ``WORD STATUS DIRECTORY`` and NUL.
        stdin: what the command reads.
        timeout_s: after which the command and what it started are ended, and the shell is not.
        output_limit_bytes: how much output is kept in the log.
    """

    shell_id: str
    exec_id: str
    word: str
    text: bytes
    trailer: bytes
    stdin: bytes = b""
    timeout_s: float | None = None
    output_limit_bytes: int = 64 << 20

    def encode(self) -> bytes:
        """As SUB_I_SHELL_RUN carries it."""
        timeout_ms = 0 if self.timeout_s is None else max(1, round(self.timeout_s * 1000))
        head = _SHELL_RUN.pack(
            fixed_id(self.shell_id),
            fixed_id(self.exec_id),
            fixed_id(self.word),
            timeout_ms,
            self.output_limit_bytes,
        )
        given = struct.pack("<I", len(self.stdin)) + self.stdin  # may hold NUL bytes
        return b"".join([head, string(self.text), string(self.trailer), given])


@dataclass(frozen=True, slots=True)
class Started:
    """A running exec; times are of the host's clocks, ``start_ticks`` of /proc/PID/stat."""

    exec_id: str
    pid: int
    existing: bool
    start_mono_ns: int
    start_boot_ns: int
    start_ticks: int


class StartFailed(Exception):
    """An exec could not be started.

    Attributes:
        error: errno.
        stage: what failed; EXEC with ENOENT is the shell's 127, EXEC with others its 126.
    """

    def __init__(self, exec_id: str, error: int, stage: Stage, what: str) -> None:
        super().__init__(f"{what}: {os.strerror(error)}")
        self.exec_id = exec_id
        self.error = error
        self.stage = stage


class InitError(Exception):
    """The init refused a request; ``error`` is the errno."""

    def __init__(self, what: str, error: int) -> None:
        super().__init__(f"{what}: {os.strerror(error)}")
        self.error = error


class InitGone(Exception):
    """The init does not answer any more: the world ended."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What the main process and its waited-for children used."""

    user_us: int
    system_us: int
    max_rss_bytes: int
    minor_faults: int
    major_faults: int
    in_blocks: int
    out_blocks: int
    voluntary_switches: int
    involuntary_switches: int


@dataclass(frozen=True, slots=True)
class ExecState:
    """All that init knows about an exec.

    Attributes:
        exit_code: of a main process that exited, else None.
        signal: that ended it, else None.
        truncated: output beyond the limit was dropped.
        log_errno: why the log could not be written, or 0.
        killed: a SIGKILL to the whole tree was asked for.
        lost: somebody in the world killed the exec's supervisor; the status is unknown.
        remaining: processes of this exec that live on (background children).
        out_bytes: produced on stdout, stderr and the terminal, kept or not.
        oom_kills: processes of this exec that the kernel ended for want of memory.
        pids_refused: processes of the world that were refused while this exec ran.
        shell_ended: of a shell's command: the shell ended with it.
        spoiled: it wrote to the shell's reports, so the shell was ended.
        directory: where the shell was afterwards; empty where it did not say.
    """

    exec_id: str
    phase: Phase
    reason: Reason
    pid: int
    exit_code: int | None
    signal: int | None
    truncated: bool
    log_errno: int
    killed: bool
    lost: bool
    remaining: int
    start_mono_ns: int
    start_boot_ns: int
    start_ticks: int
    end_mono_ns: int
    end_boot_ns: int
    log_bytes: int
    out_bytes: tuple[int, int, int]
    usage: Usage
    stdin_received: int
    stdin_written: int
    oom_kills: int = 0
    pids_refused: int = 0
    shell_ended: bool = False
    spoiled: bool = False
    directory: bytes = b""

    @classmethod
    def decode(cls, payload: bytes) -> ExecState:
        """From ``struct sub_state``. Raises WireError where it makes no sense."""
        values = unpack(_STATE, payload)
        raw_id, phase, reason, pid, exit_code, signo, flags, remaining, log_errno = values[:9]
        numbers = values[9:]
        counted = payload[_STATE.size :]
        oom_kills, pids_refused = unpack(_COUNTED, counted) if counted else (0, 0)
        try:
            kind, why = Phase(phase), Reason(reason)
        except ValueError as error:
            raise WireError(f"state of an exec: {error}") from error
        return cls(
            exec_id=parse_id(raw_id),
            phase=kind,
            reason=why,
            pid=pid,
            exit_code=exit_code if exit_code >= 0 else None,
            signal=signo or None,
            truncated=bool(flags & _StateFlag.TRUNCATED),
            log_errno=log_errno if flags & _StateFlag.LOG_FAILED else 0,
            killed=bool(flags & _StateFlag.KILLED),
            lost=bool(flags & _StateFlag.LOST),
            remaining=remaining,
            start_mono_ns=numbers[0],
            start_boot_ns=numbers[1],
            start_ticks=numbers[2],
            end_mono_ns=numbers[3],
            end_boot_ns=numbers[4],
            log_bytes=numbers[5],
            out_bytes=(numbers[6], numbers[7], numbers[8]),
            usage=Usage(*numbers[9:18]),
            stdin_received=numbers[18],
            stdin_written=numbers[19],
            oom_kills=oom_kills,
            pids_refused=pids_refused,
            shell_ended=bool(flags & _StateFlag.SHELL_ENDED),
            spoiled=bool(flags & _StateFlag.SPOILED),
            directory=counted[_COUNTED.size + 4 :],
        )


@dataclass(frozen=True, slots=True)
class Process:
    """A process of the world; ``exec_id`` is "" where it belongs to no exec."""

    exec_id: str
    pid: int
    ppid: int
    start_ticks: int
    comm: bytes


@dataclass(frozen=True, slots=True)
class Welcome:
    """What init says about itself; the two clocks were read together."""

    pid_namespace: int
    mono_ns: int
    boot_ns: int
    kill_mode: KillMode
    exec_count: int
