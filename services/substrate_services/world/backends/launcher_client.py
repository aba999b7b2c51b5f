"""Starting and talking to the launcher (native/launcher), which outlives this process."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import socket
import struct
from collections.abc import Callable, Collection
from pathlib import Path

from substrate_services.native_paths import native_path
from substrate_services.world.backends.base import (
    BackendError,
    BackendUnavailable,
    Bind,
    Box,
    BoxLimits,
    BoxSpec,
    Grab,
    MaskDir,
    MaskFile,
    MountOp,
    Overlay,
    Place,
    Symlink,
    Tmpfs,
)
from substrate_services.world.wire import (
    WANTS_LEDGER,
    Connection,
    LauncherType,
    Packet,
    Reader,
    WireError,
    string,
)

_CREATE = struct.Struct("<IIQ")
_OP = struct.Struct("<BBHIQ")
_SECTION = struct.Struct("<II")
_LIMITS = struct.Struct("<QQQ")
_SECTION_LIMITS = 1
_CPU_PERIOD_US = 100_000
_BOX = struct.Struct("<iI")
_ERROR = struct.Struct("<ii")
_GONE = struct.Struct("<iI")
_READ_ONLY = 1


def encode_spec(spec: BoxSpec, sections: Collection[str] = ()) -> bytes:
    """A BoxSpec as SUB_L_CREATE carries it.

    Args:
        spec: the box.
        sections: what the launcher knows beyond the first version, as WELCOME names it.

    Raises:
        BackendError: the box needs more than the launcher knows.
    """
    mapping = 1 if spec.id_mapping == "range" else 0
    parts = [
        _CREATE.pack(mapping, len(spec.mounts), spec.segment_limit_bytes),
        string(spec.world_id.encode()),
        string(spec.hostname.encode()),
    ]
    parts += [_encode_op(op) for op in spec.mounts]
    if "limits" in sections:
        limits = _encode_limits(spec.limits)
        parts.append(_SECTION.pack(_SECTION_LIMITS, len(limits)) + limits)
    elif spec.limits.memory_bytes is not None or spec.limits.cpus is not None:
        raise BackendError(
            "the launcher that runs is older than this host and knows no limits; remove its worlds "
            "(substrate world rm --all), and it ends by itself"
        )
    return b"".join(parts)


def _encode_limits(limits: BoxLimits) -> bytes:
    cpu_us = round((limits.cpus or 0) * _CPU_PERIOD_US)
    return _LIMITS.pack(limits.memory_bytes or 0, cpu_us, limits.pids or 0)


def _encode_op(op: MountOp) -> bytes:
    match op:
        case Overlay():
            as_is = sum(1 << i for i, mapped in enumerate(op.idmap_lowers) if not mapped)
            return _op(1, (op.target, op.upper, op.work, *op.lowers), value=as_is)
        case Bind():
            return _op(2, (op.target, op.source), read_only=op.read_only)
        case Tmpfs():
            return _op(3, (op.target,), mode=op.mode, value=op.size_bytes, read_only=op.read_only)
        case MaskFile():
            return _op(4, (op.target,))
        case MaskDir():
            return _op(5, (op.target,))
        case Grab():
            return _op(6, (op.name.encode(), op.path))
        case Place():
            return _op(7, (op.name.encode(), op.target), read_only=op.read_only)
        case Symlink():
            return _op(8, (op.target, op.points_to))


def _op(
    kind: int,
    strings: tuple[bytes, ...],
    *,
    read_only: bool = False,
    mode: int = 0,
    value: int = 0,
) -> bytes:
    head = _OP.pack(kind, _READ_ONLY if read_only else 0, len(strings), mode, value)
    return head + b"".join(string(text) for text in strings)


async def start_launcher(
    socket_path: Path, state_dir: Path, *, linger_s: int, ledger: str = ""
) -> None:
    """Start a launcher for ``state_dir``; nothing happens where one runs.

    posix_spawn only: a fork in a process with a gRPC server crashes now and then.

    Raises:
        BackendUnavailable: it could not be started; the text is its own.
    """
    status, said = await asyncio.to_thread(_spawn, socket_path, state_dir, linger_s, ledger)
    if status:
        raise BackendUnavailable(
            said or f"the launcher ended with wait status {status}",
            f"see that {state_dir} is writable and not full",
        )


def _spawn(socket_path: Path, state_dir: Path, linger_s: int, ledger: str) -> tuple[int, str]:
    """Run the launcher until it is in the background; its wait status and what it said."""
    program = native_path("substrate-launcher")
    argv = [os.fspath(program), "--socket", os.fspath(socket_path), "--state", os.fspath(state_dir)]
    argv += ["--linger", str(linger_s), "--init", os.fspath(native_path("substrate-init"))]
    if ledger:
        argv += ["--ledger", ledger]
    reader, writer = os.pipe()
    try:
        actions = [
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
            (os.POSIX_SPAWN_DUP2, writer, 2),
        ]
        # A clean environment: the launcher needs none, and its inits pass none on.
        try:
            pid = os.posix_spawn(program, argv, {}, file_actions=actions)
        finally:
            os.close(writer)
        _, status = os.waitpid(pid, 0)
        said = os.read(reader, 4096).decode(errors="replace").strip() if status else ""
        return status, said
    except OSError as error:
        raise BackendUnavailable(
            f"cannot start {program}: {error.strerror}", "reinstall the platform wheel"
        ) from error
    finally:
        os.close(reader)


class LauncherClient:
    """A conversation with the launcher.

    Args:
        sock: connected to its socket.
        on_gone: (world_id, wait status): an init ended without being asked to.
        on_lost: the launcher ended; all worlds have ended with it.
    """

    def __init__(
        self,
        sock: socket.socket,
        *,
        on_gone: Callable[[str, int], None],
        on_lost: Callable[[], None],
    ) -> None:
        self._on_gone = on_gone
        self._on_lost = on_lost
        self._requests = itertools.count(1)
        self._sections: Collection[str] = ()
        self._pending: dict[int, asyncio.Future[Packet]] = {}
        self._connection = Connection(sock, on_packet=self._take, on_lost=self._lost)

    @property
    def closed(self) -> bool:
        """Whether the launcher cannot be asked any more."""
        return self._connection.closed

    async def hello(self) -> dict[str, list[str]]:
        """What the launcher found out about this host: values by key (launcher/probe.c)."""
        packet = await self._ask(LauncherType.HELLO, b"", LauncherType.WELCOME)
        found: dict[str, list[str]] = {}
        for line in packet.payload.decode(errors="replace").splitlines():
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
        self._sections = frozenset(",".join(found.get("sections", ())).split(","))
        return found

    async def create(self, spec: BoxSpec) -> Box:
        """Make a box. Raises BackendError."""
        return self._box(
            await self._ask(
                LauncherType.CREATE,
                encode_spec(spec, self._sections),
                LauncherType.BOX,
                flags=WANTS_LEDGER,
            )
        )

    async def attach(self, world_id: str) -> Box:
        """A living box. Raises BackendError where there is none."""
        payload = string(world_id.encode())
        return self._box(
            await self._ask(LauncherType.ATTACH, payload, LauncherType.BOX, flags=WANTS_LEDGER)
        )

    async def worlds(self) -> list[str]:
        """Ids of the living boxes."""
        packet = await self._ask(LauncherType.LIST, b"", LauncherType.WORLDS)
        reader = Reader(packet.payload)
        (count,) = struct.unpack("<I", reader.raw(4))
        return [reader.string().decode() for _ in range(count)]

    async def sync_ledger(self, world_id: str, from_ns: int) -> None:
        """Return once everything the kernel has told is in the box's ledger.

        Args:
            world_id: a box with a ledger.
            from_ns: CLOCK_MONOTONIC; what the ledger holds from before may be forgotten. 0: keep.

        Raises:
            BackendError: there is no such ledger.
        """
        payload = struct.pack("<Q", from_ns) + string(world_id.encode())
        await self._ask(LauncherType.LEDGER, payload, LauncherType.OK)

    async def limit(self, world_id: str, limits: BoxLimits) -> None:
        """Change the limits of a living box. Raises BackendError where one cannot be set."""
        payload = _encode_limits(limits) + string(world_id.encode())
        await self._ask(LauncherType.LIMITS, payload, LauncherType.OK)

    async def remove(self, world_id: str) -> None:
        """Kill everything in a box; returns when it is gone. Idempotent."""
        await self._ask(LauncherType.REMOVE, string(world_id.encode()), LauncherType.OK)

    def remove_unseen(self, world_id: str) -> None:
        """Like :meth:`remove`, without waiting to hear of it."""
        with contextlib.suppress(WireError):
            self._connection.send(LauncherType.REMOVE, 0, string(world_id.encode()))

    async def shutdown(self) -> None:
        """Remove all boxes and end the launcher."""
        await self._ask(LauncherType.SHUTDOWN, b"", LauncherType.OK)

    def close(self) -> None:
        """End the conversation; launcher and boxes go on."""
        self._connection.close()
        self._release()

    # -- packets ---------------------------------------------------------------------------------

    async def _ask(
        self, kind: LauncherType, payload: bytes, wanted: LauncherType, *, flags: int = 0
    ) -> Packet:
        request = next(self._requests) & 0xFFFFFFFF
        future: asyncio.Future[Packet] = asyncio.get_running_loop().create_future()
        self._pending[request] = future
        try:
            self._connection.send(kind, request, payload, flags=flags)
            packet = await future
        except WireError as error:
            raise BackendError(f"the launcher is gone: {error}") from error
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and future.exception() is None:
                future.result().close_fds()
            raise
        finally:
            self._pending.pop(request, None)
        if packet.type == wanted:
            return packet
        packet.close_fds()
        raise _failure(packet)

    def _box(self, packet: Packet) -> Box:
        # The fourth, the ledger, is missing where there is none, and from launchers before it.
        if len(packet.fds) not in (3, 4):
            packet.close_fds()
            raise BackendError("the launcher answered without descriptors")
        reader = Reader(packet.payload)
        init_pid, id_base = _BOX.unpack(reader.raw(_BOX.size))
        channel, segments, pidfd, *ledger = packet.fds
        return Box(
            world_id=reader.string().decode(),
            init_pid=init_pid,
            channel_fd=channel,
            segments_fd=segments,
            pidfd=pidfd,
            id_base=id_base,
            ledger_fd=ledger[0] if ledger else None,
        )

    def _take(self, packet: Packet) -> None:
        if packet.type == LauncherType.GONE:
            reader = Reader(packet.payload)
            status, _ = _GONE.unpack(reader.raw(_GONE.size))
            self._on_gone(reader.string().decode(), status)
            return
        future = self._pending.get(packet.request)
        if future is None or future.done():
            packet.close_fds()  # whoever asked does not wait any more
        else:
            future.set_result(packet)

    def _lost(self, _error: WireError) -> None:
        self._release()
        self._on_lost()

    def _release(self) -> None:
        for future in self._pending.values():
            if not future.done():
                future.set_exception(BackendError("the launcher ended"))


def _failure(packet: Packet) -> BackendError:
    if packet.type != LauncherType.ERROR:
        return BackendError(f"unexpected answer 0x{packet.type:04x} from the launcher")
    reader = Reader(packet.payload)
    _error, op = _ERROR.unpack(reader.raw(_ERROR.size))
    text, hint = (reader.string().decode(errors="replace") for _ in range(2))
    if op >= 0:
        text = f"mount operation {op}: {text}"
    return BackendUnavailable(f"{text}; {hint}", hint) if hint else BackendError(text)


async def connect(socket_path: Path) -> socket.socket:
    """A connected socket. Raises OSError where nobody listens."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with contextlib.ExitStack() as stack:
        stack.callback(sock.close)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, os.fspath(socket_path))
        stack.pop_all()
    return sock
