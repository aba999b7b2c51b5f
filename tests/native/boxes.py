"""A real box for tests: launcher, init, overlay over the host's root, execs with their output."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypedDict, Unpack

from substrate_services.journal.schema import LedgerSource
from substrate_services.world.backends.base import (
    Box,
    BoxLimits,
    BoxSpec,
    MountOp,
    Overlay,
    Symlink,
    Tmpfs,
)
from substrate_services.world.backends.native import NativeBackend
from substrate_services.world.init_client import ExecStart, ExecState, InitClient, Rlimit, Started
from substrate_services.world.output_log import OutputFollower, Stream, read_stream

PATH = b"PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"


class StartOptions(TypedDict, total=False):
    """Fields of ExecStart besides the command."""

    env: tuple[bytes, ...]
    cwd: bytes
    user: str
    uid: int
    gid: int
    umask: int
    timeout_s: float
    output_limit_bytes: int
    pty: tuple[int, int]
    stdin: bool
    builtin: bool
    no_aslr: bool
    last_pid: int
    rlimits: tuple[Rlimit, ...]


class BackendOptions(TypedDict, total=False):
    """Options of NativeBackend."""

    linger_s: int
    ledger: LedgerSource
    on_world_gone: Callable[[str, int], None]


@dataclass(frozen=True, slots=True)
class Ended:
    """An exec that ended, with what it wrote."""

    state: ExecState
    started: Started
    out: bytes
    err: bytes
    pty: bytes

    @property
    def code(self) -> int | None:
        return self.state.exit_code


def layer_dirs(directory: Path, name: str) -> tuple[bytes, bytes]:
    """Fresh upper and work directories."""
    paths = (directory / name / "upper", directory / name / "work")
    for path in paths:
        path.mkdir(parents=True, exist_ok=True)
        path.chmod(0o755)
    return os.fsencode(paths[0]), os.fsencode(paths[1])


def root_overlay(directory: Path, name: str = "root") -> Overlay:
    """The host's root, copy-on-write."""
    upper, work = layer_dirs(directory, name)
    return Overlay(b"/", (b"/",), upper, work)


def rootless_mounts(directory: Path) -> tuple[MountOp, ...]:
    """What a caller without root can overlay: each top-level directory by itself."""
    mounts: list[MountOp] = [Tmpfs(b"/")]
    for name in ("usr", "etc"):
        target = b"/" + name.encode()
        upper, work = layer_dirs(directory, name)
        mounts.append(Overlay(target, (target,), upper, work))
    mounts += [
        Symlink(link, os.readlink(link))
        for link in (b"/bin", b"/sbin", b"/lib", b"/lib64")
        if os.path.islink(link)
    ]
    mounts.append(Tmpfs(b"/tmp", mode=0o1777))
    return tuple(mounts)


def box_spec(directory: Path, world_id: str = "wld_test", *more: MountOp) -> BoxSpec:
    """A box over the host's root; rootless where the caller is not root."""
    if os.geteuid() != 0:
        mounts = (*rootless_mounts(directory / world_id), *more)
        return BoxSpec(world_id, mounts, "box", id_mapping="caller")
    return BoxSpec(world_id, (root_overlay(directory / world_id), *more), "box")


@dataclass
class Guest:
    """A living box and a conversation with its init."""

    backend: NativeBackend
    box: Box
    directory: Path
    client: InitClient = field(init=False)
    exits: dict[str, asyncio.Future[ExecState]] = field(default_factory=dict)
    followers: dict[str, OutputFollower] = field(default_factory=dict)
    numbers: itertools.count[int] = field(default_factory=itertools.count)

    def exited(self, state: ExecState) -> None:
        future = self.exit_of(state.exec_id)
        if not future.done():
            future.set_result(state)
        if follower := self.followers.get(state.exec_id):
            follower.grew()

    def grew(self, exec_id: str, _size: int) -> None:
        if follower := self.followers.get(exec_id):
            follower.grew()

    def exit_of(self, exec_id: str) -> asyncio.Future[ExecState]:
        return self.exits.setdefault(exec_id, asyncio.get_running_loop().create_future())

    def log(self, exec_id: str) -> Path:
        return self.directory / f"{exec_id}.log"

    def follow(self, exec_id: str) -> OutputFollower:
        return self.followers.setdefault(exec_id, OutputFollower(self.log(exec_id)))

    async def until(self, exec_id: str, text: bytes) -> None:
        """Wait until the exec's output holds ``text``."""
        seen = b""
        async for frame in self.follow(exec_id).frames():
            seen += frame.data
            if text in seen:
                return

    async def start(self, start: ExecStart) -> Started:
        self.follow(start.exec_id)
        fd = os.open(self.log(start.exec_id), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            return await self.client.start(start, fd)
        finally:
            os.close(fd)

    def command(
        self, *argv: str | bytes, exec_id: str = "", **options: Unpack[StartOptions]
    ) -> ExecStart:
        encoded = tuple(arg if isinstance(arg, bytes) else os.fsencode(arg) for arg in argv)
        options.setdefault("env", (PATH,))
        name = exec_id or f"e{next(self.numbers)}"
        return ExecStart(name, encoded, **options)

    async def run(
        self, *argv: str | bytes, exec_id: str = "", **options: Unpack[StartOptions]
    ) -> Ended:
        """Start and wait."""
        start = self.command(*argv, exec_id=exec_id, **options)
        started = await self.start(start)
        return await self.end(started)

    async def end(self, started: Started) -> Ended:
        state = await self.exit_of(started.exec_id)
        return Ended(state, started, *self.output(started.exec_id))

    def output(self, exec_id: str) -> tuple[bytes, bytes, bytes]:
        """What is in the log: stdout, stderr, terminal."""
        out, err, pty = (read_stream(self.log(exec_id), stream) for stream in Stream)
        return out, err, pty

    async def sh(self, script: str, **options: Unpack[StartOptions]) -> Ended:
        return await self.run("sh", "-c", script, **options)


def make_backend(directory: Path, **options: Unpack[BackendOptions]) -> NativeBackend:
    return NativeBackend(directory / "launcher.sock", directory / "launcher", **options)


def talk(backend: NativeBackend, box: Box, directory: Path) -> Guest:
    """A guest for a box; takes the box's channel."""
    guest = Guest(backend, box, directory)
    guest.client = InitClient(box.channel_fd, on_output=guest.grew, on_exited=guest.exited)
    return guest


def let_go(guest: Guest) -> None:
    """Close this side; the box lives on."""
    guest.client.close()
    guest.box.close()


@contextlib.asynccontextmanager
async def launcher(
    directory: Path, **options: Unpack[BackendOptions]
) -> AsyncIterator[NativeBackend]:
    """A launcher of the test's own, shut down at the end."""
    backend = make_backend(directory, **options)
    await backend.start()
    try:
        yield backend
    finally:
        await backend.start()  # where a test has killed it
        await backend.shutdown()
        await backend.close()


@contextlib.asynccontextmanager
async def guest(
    directory: Path,
    *more: MountOp,
    backend: NativeBackend | None = None,
    limits: BoxLimits | None = None,
) -> AsyncIterator[Guest]:
    """A box with a connected init."""
    async with contextlib.AsyncExitStack() as stack:
        if backend is None:
            backend = await stack.enter_async_context(launcher(directory))
        spec = box_spec(directory, "wld_test", *more)
        box = await backend.create(replace(spec, limits=limits or spec.limits))
        made = talk(backend, box, directory)
        stack.callback(let_go, made)
        await made.client.connect()
        yield made
