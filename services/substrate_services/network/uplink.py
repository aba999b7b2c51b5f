"""The router's way out: pasta, or slirp4netns, which need no right over the host's own network.

Either is an ordinary process with sockets in the host's network on one side and a tap device in the
router on the other. The host's firewall, addresses and forwarding are never touched.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

from substrate_services.network.addresses import UPLINK_GATEWAY_V4, UPLINK_V4
from substrate_services.network.links import UPLINK

FIX = "install one: sudo apt-get install passt (or slirp4netns)"
_NEWNS = 0x20000
_BIND, _PRIVATE, _REC = 0x1000, 1 << 18, 1 << 14
_START_S = 10.0
_libc = ctypes.CDLL(None, use_errno=True)


class UplinkError(Exception):
    """There is no way out; the text says why and what to do."""


def find_program() -> str | None:
    """Which program would be used: ``pasta``, ``slirp4netns`` or none."""
    return next((name for name in ("pasta", "slirp4netns") if shutil.which(name)), None)


class Uplink:
    """The process that carries the router's packets.

    Args:
        directory: where its pid is kept, for the helper that comes after this one.
        router_pid: keeps the router's namespaces.
        rootless: they are owned by a user namespace of the caller's.
    """

    def __init__(self, directory: Path, router_pid: int, *, rootless: bool) -> None:
        self._pid_file = directory / "uplink.pid"
        self._netns_file = directory / "uplink.netns"
        self._router_pid = router_pid
        self._rootless = rootless

    async def start(self) -> None:
        """Start it; returns when it carries packets.

        Raises:
            UplinkError: it is not installed, or ended at once.
        """
        self.stop()  # one without its link is of no use
        program = find_program()
        if program is None:
            raise UplinkError(f"neither pasta nor slirp4netns is installed; {FIX}")
        if program == "pasta":
            await self._start_pasta()
        else:
            await self._start_slirp()

    async def _start_pasta(self) -> None:
        namespaces = f"/proc/{self._router_pid}/ns"
        argv = ["pasta", "--quiet", "--config-net", "--ns-ifname", UPLINK, "--no-map-gw"]
        argv += ["--address", str(UPLINK_V4), "--netmask", "30"]
        argv += ["--gateway", str(UPLINK_GATEWAY_V4), "--mtu", "65520"]
        argv += ["-t", "none", "-u", "none", "-T", "none", "-U", "none"]
        argv += ["--no-dhcp", "--no-dhcpv6", "--no-ra", "--pid", os.fspath(self._pid_file)]
        before: Callable[[], None] | None = None
        if self._rootless:
            argv += ["--userns", f"{namespaces}/user", "--netns", f"{namespaces}/net"]
        else:
            # It gives its rights up before it opens the namespace: by a name that needs none.
            argv += ["--netns-only", "--runas", "0", "--netns", os.fspath(self._netns_file)]
            before = self._name_router
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
            preexec_fn=before,
        )
        await _started(process)

    def _name_router(self) -> None:
        """In the child: a mount that only it and what it starts can see."""
        source = f"/proc/{self._router_pid}/ns/net".encode()
        target = os.fsencode(self._netns_file)
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600))
        if (
            _libc.unshare(_NEWNS)
            or _libc.mount(None, b"/", None, _REC | _PRIVATE, None)
            or _libc.mount(source, target, None, _BIND, None)
        ):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    async def _start_slirp(self) -> None:
        ready_read, ready_write = os.pipe()
        argv = ["slirp4netns", "--configure", "--mtu=65520", "--disable-host-loopback"]
        argv += ["--disable-dns", f"--ready-fd={ready_write}", "--enable-ipv6"]
        argv += ["--cidr=10.207.255.0/24", "--netns-type=path"]
        if self._rootless:
            argv.append(f"--userns-path=/proc/{self._router_pid}/ns/user")
        argv += [f"/proc/{self._router_pid}/ns/net", UPLINK]
        try:
            process = await asyncio.create_subprocess_exec(
                *argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.DEVNULL,
                pass_fds=[ready_write],
                start_new_session=True,
            )
        finally:
            os.close(ready_write)
        self._pid_file.write_text(f"{process.pid}\n")
        try:
            said = await asyncio.wait_for(_read_byte(ready_read), _START_S)
        finally:
            os.close(ready_read)
        if said != b"1":
            raise UplinkError("slirp4netns ended at once; run it by hand to see why")

    def is_running(self) -> bool:
        """Whether the process of the pid file is there and is one of ours."""
        return self.pid() is not None

    def stop(self) -> None:
        """End it; it need not be there."""
        pid = self.pid()
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for file in (self._pid_file, self._netns_file):
            file.unlink(missing_ok=True)

    def pid(self) -> int | None:
        """The process; None where there is none."""
        try:
            pid = int(self._pid_file.read_text())
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
        except (OSError, ValueError):
            return None
        # A pid may be anybody's by now; that file, or the router, is named by ours alone.
        ours = os.fsencode(self._pid_file), f"/proc/{self._router_pid}/ns/net".encode()
        return pid if any(name in command for name in ours) else None


def _fulfil(ready: asyncio.Future[bytes], value: bytes) -> None:
    if not ready.done():
        ready.set_result(value)


async def _read_byte(descriptor: int) -> bytes:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[bytes] = loop.create_future()
    loop.add_reader(descriptor, lambda: _fulfil(ready, os.read(descriptor, 1)))
    try:
        return await ready
    finally:
        loop.remove_reader(descriptor)


async def _started(process: asyncio.subprocess.Process) -> None:
    """Wait for a program that goes into the background when it is ready."""
    said = b""
    try:
        # Not until the end of its errors: what goes into the background may keep them open.
        status = await asyncio.wait_for(process.wait(), _START_S)
        if status and process.stderr is not None:
            said = await process.stderr.read(2000)
    except TimeoutError as error:
        process.kill()
        raise UplinkError(f"pasta did not start within {_START_S:.0f} s") from error
    if status:
        lines = [
            line
            for line in said.decode(errors="replace").splitlines()
            if line and "to syslog" not in line
        ]
        raise UplinkError(f"pasta cannot carry packets here: {' '.join(lines[-2:])[:300]}")
