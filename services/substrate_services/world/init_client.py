"""The host's side of a world's init: start execs, feed and signal them, hear how they end.

The init keeps everything it knows until :meth:`InitClient.forget`, so a client that is new (after
a restart of the host process) calls :meth:`InitClient.connect` and then :meth:`InitClient.status`
and has missed nothing.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
import secrets
import signal
import socket
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from substrate_services.world.init_messages import (
    ExecStart,
    ExecState,
    InitError,
    InitGone,
    KillMode,
    Phase,
    Process,
    Reason,
    Rlimit,
    Scope,
    ShellRun,
    Stage,
    Started,
    StartFailed,
    Usage,
    Welcome,
    unpack,
)
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
)

__all__ = [
    "ExecStart",
    "ExecState",
    "InitClient",
    "InitError",
    "InitGone",
    "KillMode",
    "Phase",
    "Process",
    "Reason",
    "Rlimit",
    "Scope",
    "ShellRun",
    "Stage",
    "StartFailed",
    "Started",
    "Usage",
    "Welcome",
]

_WELCOME = struct.Struct("<QQQQII")
_STARTED = struct.Struct("<64siIQQQ")
_FAILED = struct.Struct("<64siI")
_STDIN = struct.Struct("<64sQII")
_STDIN_ACK = struct.Struct("<64sQQII")
_SIGNAL = struct.Struct("<64siI")
_RESIZE = struct.Struct("<64sHHI")
_OUTPUT = struct.Struct("<64sQ")
_ERROR = struct.Struct("<ii")
_PROC = struct.Struct("<64siiQ16s")
_PROC_HEAD = struct.Struct("<II")
_FREEZE = struct.Struct("<II")
_FREEZE_LOOKS = 60  # some 5 s


@dataclass(slots=True)
class _StdinState:
    """Bytes the caller wants written: what init has taken and where it closed."""

    received: int = 0
    written: int = 0
    closed: bool = False
    changed: asyncio.Event = field(default_factory=asyncio.Event)


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
        self.why_lost = ""  # how the conversation ended, where it was not closed
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
        answer = unpack(_WELCOME, packet.payload)
        if packet.type != InitType.WELCOME or answer[0] != nonce:
            raise InitGone("the init answered a greeting with something else")
        return Welcome(answer[1], answer[2], answer[3], KillMode(answer[4]), answer[5])

    async def start(self, start: ExecStart, log_fd: int, output_fd: int | None = None) -> Started:
        """Start an exec, or find the one that was started under this id. Idempotent.

        Args:
            start: what to start.
            log_fd: the output log, opened with O_APPEND for writing; stays the caller's.
            output_fd: what standard output is to be, instead of going to the log; stays the
                caller's.

        Raises:
            StartFailed: it could not be started; nothing runs.
            InitGone: the world ended.
            ValueError: an argument the kernel cannot take.
        """
        state = self._stdin.setdefault(start.exec_id, _StdinState())
        fds = (log_fd,) if output_fd is None else (log_fd, output_fd)
        payload = start.encode(with_output=output_fd is not None)
        packet, _ = await self._ask(InitType.START, payload, fds)
        if packet.type == InitType.FAILED:
            if self._stdin.get(start.exec_id) is state:
                del self._stdin[start.exec_id]
            _, error, stage = unpack(_FAILED, packet.payload)
            kind = Stage(min(max(stage, Stage.REQUEST), Stage.SETUP))
            raise StartFailed(start.exec_id, error, kind, _describe(start, kind))
        if packet.type != InitType.STARTED:
            raise self._refusal("start", packet)
        raw_id, pid, existing, mono, boot, ticks = unpack(_STARTED, packet.payload)
        return Started(parse_id(raw_id), pid, bool(existing), mono, boot, ticks)

    async def run_in_shell(self, run: ShellRun, log_fd: int) -> Started:
        """Give a shell a command, or find the one that it was given under this id.

        Args:
            run: the command.
            log_fd: its output log, opened with O_APPEND for writing; stays the caller's.

        Raises:
            StartFailed: ESRCH there is no such shell any more, EBUSY it runs another command.
            InitGone: the world ended.
        """
        packet, _ = await self._ask(InitType.SHELL_RUN, run.encode(), (log_fd,))
        if packet.type == InitType.FAILED:
            _, error, _ = unpack(_FAILED, packet.payload)
            raise StartFailed(run.exec_id, error, Stage.REQUEST, f"shell {run.shell_id}")
        if packet.type != InitType.STARTED:
            raise self._refusal("run in a shell", packet)
        raw_id, pid, existing, mono, boot, ticks = unpack(_STARTED, packet.payload)
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
        count, _ = unpack(_PROC_HEAD, packet.payload)
        reader = Reader(packet.payload[_PROC_HEAD.size :])
        found = []
        for _ in range(min(count, PACKET_MAX // _PROC.size)):
            raw_id, pid, ppid, ticks, comm = unpack(_PROC, reader.raw(_PROC.size))
            found.append(Process(parse_id(raw_id), pid, ppid, ticks, comm.rstrip(b"\0")))
        return found

    async def freeze(self, *, frozen: bool) -> None:
        """Stop everything that execs of the world have started, or let it go on. Idempotent.

        Returns once nothing runs. Time-outs do not run meanwhile.

        Raises:
            InitError: EOPNOTSUPP an init from before it; ETIMEDOUT some processes do not stop (they
                wait for a file system, say), and all go on.
            InitGone: the world ended.
        """
        for attempt in range(_FREEZE_LOOKS):
            packet, _ = await self._ask(InitType.FREEZE, _FREEZE.pack(frozen, 0))
            if packet.type != InitType.FROZEN:
                raise self._refusal("freeze", packet)
            _, pending = unpack(_FREEZE, packet.payload)
            if not pending or not frozen:
                return
            await asyncio.sleep(min(0.001 * 2**attempt, 0.1))
        await self.freeze(frozen=False)
        raise InitError("freeze", errno.ETIMEDOUT)

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
        error, _ = unpack(_ERROR, packet.payload)
        return InitError(what, error)

    def _take(self, packet: Packet) -> None:
        packet.close_fds()  # an init has no business sending any
        if packet.type == InitType.OUTPUT:
            raw_id, size = unpack(_OUTPUT, packet.payload)
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
        raw_id, received, written, closed, _ = unpack(_STDIN_ACK, payload)
        state = self._stdin.get(parse_id(raw_id))
        if state is not None:
            state.received, state.written = received, min(written, received)
            state.closed = state.closed or bool(closed)
            state.changed.set()

    def _lost(self, error: WireError) -> None:
        self.why_lost = str(error)
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
