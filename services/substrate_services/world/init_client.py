"""The host's side of a world's init: start execs, feed and signal them, hear how they end.

The init keeps everything it knows until :meth:`InitClient.forget`, so a client that is new (after
a restart of the host process) calls :meth:`InitClient.connect` and then :meth:`InitClient.status`
and has missed nothing.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import secrets
import signal
import socket
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum, IntFlag
from typing import Any

from substrate_services.world.wire import (
    PACKET_MAX,
    STDIN_CHUNK,
    STDIN_WINDOW,
    Connection,
    InitType,
    Packet,
    Reader,
    WireError,
    fixed_id,
    parse_id,
    string,
)

_WELCOME = struct.Struct("<QQQQII")
_START = struct.Struct("<IIiiHHIIIqQQ64s")
_RLIMIT = struct.Struct("<QQQ")
_STARTED = struct.Struct("<64siIQQQ")
_FAILED = struct.Struct("<64siI")
_STDIN = struct.Struct("<64sQII")
_STDIN_ACK = struct.Struct("<64sQQII")
_SIGNAL = struct.Struct("<64siI")
_RESIZE = struct.Struct("<64sHHI")
_OUTPUT = struct.Struct("<64sQ")
_STATE = struct.Struct("<64sIIiiiIIi20Q")
_ERROR = struct.Struct("<ii")
_PROC = struct.Struct("<64siiQ16s")
_PROC_HEAD = struct.Struct("<II")
_INFINITY = (1 << 64) - 1


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


class _StateFlag(IntFlag):
    TRUNCATED = 1
    LOG_FAILED = 2
    KILLED = 4
    LOST = 8


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

    def encode(self) -> bytes:
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
        rows, cols = self.pty or (0, 0)
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

    @classmethod
    def decode(cls, payload: bytes) -> ExecState:
        """From ``struct sub_state``. Raises WireError where it makes no sense."""
        values = _unpack(_STATE, payload)
        raw_id, phase, reason, pid, exit_code, signo, flags, remaining, log_errno = values[:9]
        numbers = values[9:]
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


@dataclass(slots=True)
class _StdinState:
    """Bytes the caller wants written: what init has taken and where it closed."""

    received: int = 0
    written: int = 0
    closed: bool = False
    changed: asyncio.Event = field(default_factory=asyncio.Event)


def _unpack(layout: struct.Struct, payload: bytes) -> tuple[Any, ...]:
    if len(payload) < layout.size:
        raise WireError(f"answer of {len(payload)} bytes is too short")
    return layout.unpack_from(payload)


_Answer = tuple[Packet, list[Packet]]


class InitClient:
    """A conversation with one world's init.

    Events come by callback, in the loop's thread and in init's order; a callback must not block.

    Args:
        channel_fd: the box's channel; taken over.
        on_output: (exec_id, log bytes): the output log has grown.
        on_exited: the main process ended and its output so far is in the log.
        on_gone: the connection broke; the world has ended or is ending.
    """

    def __init__(
        self,
        channel_fd: int,
        *,
        on_output: Callable[[str, int], None] = lambda _id, _size: None,
        on_exited: Callable[[ExecState], None] = lambda _state: None,
        on_gone: Callable[[], None] = lambda: None,
    ) -> None:
        self._on_output = on_output
        self._on_exited = on_exited
        self._on_gone = on_gone
        self._requests = itertools.count(1)
        self._pending: dict[int, tuple[asyncio.Future[_Answer], list[Packet]]] = {}
        self._stdin: dict[str, _StdinState] = {}
        self._gone = False
        sock = socket.socket(fileno=channel_fd)
        self._connection = Connection(sock, on_packet=self._take, on_lost=self._lost)

    async def connect(self, *, timeout_s: float = 10.0) -> Welcome:
        """Greet the init. What an earlier host left unread in the socket is passed over.

        Raises:
            InitGone: it does not answer.
        """
        nonce = secrets.randbits(63)
        # A fresh block of numbers: answers to an earlier host's requests match none of ours.
        self._requests = itertools.count(secrets.randbits(20) << 11 | 1)
        async with asyncio.timeout(timeout_s):
            packet, _ = await self._ask(InitType.HELLO, struct.pack("<Q", nonce))
        answer = _unpack(_WELCOME, packet.payload)
        if packet.type != InitType.WELCOME or answer[0] != nonce:
            raise InitGone("the init answered a greeting with something else")
        return Welcome(answer[1], answer[2], answer[3], KillMode(answer[4]), answer[5])

    async def start(self, start: ExecStart, log_fd: int) -> Started:
        """Start an exec, or find the one that was started under this id. Idempotent.

        Args:
            start: what to start.
            log_fd: the output log, opened with O_APPEND for writing; stays the caller's.

        Raises:
            StartFailed: it could not be started; nothing runs.
            InitGone: the world ended.
            ValueError: an argument the kernel cannot take.
        """
        state = self._stdin.setdefault(start.exec_id, _StdinState())
        packet, _ = await self._ask(InitType.START, start.encode(), (log_fd,))
        if packet.type == InitType.FAILED:
            if self._stdin.get(start.exec_id) is state:
                del self._stdin[start.exec_id]
            _, error, stage = _unpack(_FAILED, packet.payload)
            kind = Stage(min(max(stage, Stage.REQUEST), Stage.SETUP))
            raise StartFailed(start.exec_id, error, kind, _describe(start, kind))
        if packet.type != InitType.STARTED:
            raise self._refusal("start", packet)
        raw_id, pid, existing, mono, boot, ticks = _unpack(_STARTED, packet.payload)
        return Started(parse_id(raw_id), pid, bool(existing), mono, boot, ticks)

    async def write_stdin(
        self, exec_id: str, data: bytes, *, offset: int | None = None, eof: bool = False
    ) -> int:
        """Hand bytes to an exec's stdin; waits while the exec does not read. One writer at a time.

        Args:
            exec_id: an exec started with ``stdin`` or ``pty``.
            data: the bytes.
            offset: position of ``data`` in the whole input; None for "goes on". Bytes that init
                has already are not written twice.
            eof: close stdin behind them.

        Returns:
            How many bytes of input init has taken so far. Less than asked where stdin is closed.

        Raises:
            InitGone: the world ended.
            ValueError: ``offset`` leaves a gap.
        """
        state = self._stdin.setdefault(exec_id, _StdinState())
        at = state.received if offset is None else offset
        if at > state.received:
            raise ValueError(f"stdin offset {at} leaves a gap after {state.received}")
        end = at + len(data)
        view = memoryview(data)
        while True:
            if state.closed:
                return state.received
            room = STDIN_WINDOW - (state.received - state.written)
            position = max(at, min(state.received, end))
            chunk = bytes(view[position - at :][: min(room, STDIN_CHUNK)])
            last = position + len(chunk) == end
            if not chunk and not (last and eof):
                if position == end:
                    return state.received
            else:
                state.changed.clear()
                payload = _STDIN.pack(fixed_id(exec_id), position, int(eof and last), 0) + chunk
                self._send(InitType.STDIN, 0, payload)
                await self._stdin_change(state)
                if last and (state.received >= end or state.closed):
                    return state.received
                continue
            state.changed.clear()
            await self._stdin_change(state)

    async def _stdin_change(self, state: _StdinState) -> None:
        await state.changed.wait()
        if self._gone:
            raise InitGone("the world ended")

    async def signal(self, exec_id: str, signo: int, *, scope: Scope = Scope.MAIN) -> None:
        """Send a signal. SIGKILL to the TREE takes everything the exec ever started.

        Raises:
            InitError: ENOENT no such exec, ESRCH it has ended, EINVAL no such signal.
            InitGone: the world ended.
        """
        payload = _SIGNAL.pack(fixed_id(exec_id), int(signo), scope)
        await self._ask_ok("signal", InitType.SIGNAL, payload)

    async def kill(self, exec_id: str) -> None:
        """SIGKILL the whole tree."""
        await self.signal(exec_id, signal.SIGKILL, scope=Scope.TREE)

    async def resize(self, exec_id: str, rows: int, cols: int) -> None:
        """Change the size of an exec's terminal.

        Raises:
            InitError: ENOENT no such exec, ENOTTY it has no terminal.
            InitGone: the world ended.
        """
        await self._ask_ok(
            "resize", InitType.RESIZE, _RESIZE.pack(fixed_id(exec_id), rows, cols, 0)
        )

    async def status(self) -> list[ExecState]:
        """Every exec init knows, in no particular order."""
        packet, parts = await self._ask(InitType.STATUS, b"")
        if packet.type != InitType.OK:
            raise self._refusal("status", packet)
        states = [ExecState.decode(part.payload) for part in parts]
        for state in states:
            stdin = self._stdin.setdefault(state.exec_id, _StdinState())
            stdin.received = max(stdin.received, state.stdin_received)
            stdin.written = max(stdin.written, state.stdin_written)
        return states

    async def forget(self, exec_id: str) -> None:
        """Let init drop what it knows about an exec that has exited. Idempotent.

        Raises:
            InitError: EBUSY it has not exited.
            InitGone: the world ended.
        """
        await self._ask_ok("forget", InitType.FORGET, fixed_id(exec_id))
        self._stdin.pop(exec_id, None)

    async def processes(self) -> list[Process]:
        """The processes of the world (at most some 680)."""
        packet, _ = await self._ask(InitType.PROCS, b"")
        if packet.type != InitType.PROC_LIST:
            raise self._refusal("processes", packet)
        count, _ = _unpack(_PROC_HEAD, packet.payload)
        reader = Reader(packet.payload[_PROC_HEAD.size :])
        found = []
        for _ in range(min(count, PACKET_MAX // _PROC.size)):
            raw_id, pid, ppid, ticks, comm = _unpack(_PROC, reader.raw(_PROC.size))
            found.append(Process(parse_id(raw_id), pid, ppid, ticks, comm.rstrip(b"\0")))
        return found

    def close(self) -> None:
        """End the conversation; the world goes on."""
        self._gone = True
        self._connection.close()
        self._release()

    # -- packets ---------------------------------------------------------------------------------

    def _send(self, kind: InitType, request: int, payload: bytes, fds: Sequence[int] = ()) -> None:
        try:
            self._connection.send(kind, request, payload, fds)
        except WireError as error:
            raise InitGone("the world ended") from error

    async def _ask(self, kind: InitType, payload: bytes, fds: Sequence[int] = ()) -> _Answer:
        request = next(self._requests) & 0xFFFFFFFF
        future: asyncio.Future[_Answer] = asyncio.get_running_loop().create_future()
        self._pending[request] = (future, [])
        try:
            self._send(kind, request, payload, fds)
            return await future
        finally:
            self._pending.pop(request, None)

    async def _ask_ok(self, what: str, kind: InitType, payload: bytes) -> None:
        packet, _ = await self._ask(kind, payload)
        if packet.type != InitType.OK:
            raise self._refusal(what, packet)

    @staticmethod
    def _refusal(what: str, packet: Packet) -> Exception:
        if packet.type != InitType.ERROR:
            return WireError(f"{what}: unexpected answer 0x{packet.type:04x}")
        error, _ = _unpack(_ERROR, packet.payload)
        return InitError(what, error)

    def _take(self, packet: Packet) -> None:
        packet.close_fds()  # an init has no business sending any
        if packet.type == InitType.OUTPUT:
            raw_id, size = _unpack(_OUTPUT, packet.payload)
            self._on_output(parse_id(raw_id), size)
        elif packet.type == InitType.EXITED:
            self._on_exited(ExecState.decode(packet.payload))
        elif packet.type == InitType.STDIN_ACK:
            self._take_ack(packet.payload)
        elif entry := self._pending.get(packet.request):
            future, parts = entry
            if packet.type == InitType.STATE:
                parts.append(packet)
            elif not future.done():
                future.set_result((packet, parts))

    def _take_ack(self, payload: bytes) -> None:
        raw_id, received, written, closed, _ = _unpack(_STDIN_ACK, payload)
        state = self._stdin.get(parse_id(raw_id))
        if state is not None:
            state.received, state.written = received, min(written, received)
            state.closed = state.closed or bool(closed)
            state.changed.set()

    def _lost(self, _error: WireError) -> None:
        self._gone = True
        self._release()
        self._on_gone()

    def _release(self) -> None:
        for future, _ in self._pending.values():
            if not future.done():
                future.set_exception(InitGone("the world ended"))
        for state in self._stdin.values():
            state.changed.set()


def _describe(start: ExecStart, stage: Stage) -> str:
    """What could not be started, for people."""
    if stage is Stage.EXEC:
        return f"cannot execute {os.fsdecode(start.argv[0])}"
    if stage is Stage.CWD:
        return f"cannot enter directory {os.fsdecode(start.cwd)}"
    if stage is Stage.USER:
        return f"no such user {start.user or start.uid}"
    return f"cannot start {os.fsdecode(start.argv[0])}"
