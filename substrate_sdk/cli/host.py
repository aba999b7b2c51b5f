"""``substrate up`` and ``substrate down``: the host of ``$SUBSTRATE_HOME``."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import struct

from substrate_sdk.cli.arguments import Parser, open_substrate, print_json, seconds
from substrate_sdk.config import HostPaths
from substrate_sdk.errors import HostUnavailable, SubstrateError

#: Seconds that a host has to end: it waits for what it records.
_PATIENCE_S = 30.0


def main(args: list[str]) -> int:
    """Dispatch."""
    return _up(args[1:]) if args[0] == "up" else _down(args[1:])


def _up(args: list[str]) -> int:
    parser = Parser("up", "Start the host of $SUBSTRATE_HOME, unless it runs.")
    options = parser.parse_args(args)
    paths = _own_paths(options.endpoint)
    from substrate_sdk.client.embedded import ensure_host

    ensure_host(paths)
    pid = peer_pid(paths.host_socket)
    if options.json:
        print_json({"endpoint": str(paths.endpoint), "home": paths.home, "pid": pid})
    else:
        print(f"host {pid} is ready at {paths.endpoint}")
    return 0


def _down(args: list[str]) -> int:
    parser = Parser("down", "End the host of $SUBSTRATE_HOME; worlds and their commands go on.")
    parser.add_argument("--worlds", action="store_true", help="remove all worlds first")
    parser.add_argument(
        "--timeout", metavar="S", type=seconds, default=_PATIENCE_S, help="wait so long (30)"
    )
    options = parser.parse_args(args)
    paths = _own_paths(options.endpoint)
    removed: list[str] = []
    if options.worlds:
        # Worlds outlive hosts: one has to be there to take them down and keep the record.
        with open_substrate(options) as sub:
            removed = [world.world_id for world in sub.worlds()]
            for world_id in removed:
                sub.remove_world(world_id)
    pid = peer_pid(paths.host_socket)
    if pid is not None:
        _check_pid_file(paths, pid)
        _end(pid, "host", options.timeout)
    launcher = None
    if options.worlds:
        launcher = peer_pid(paths.launcher_socket, socket.SOCK_SEQPACKET)
        if launcher is not None:
            _end(launcher, "launcher", options.timeout)
    if options.json:
        print_json({"ended": pid, "launcher": launcher, "removed": list(removed)})
    elif pid is None and launcher is None:
        print("no host runs")
    else:
        print(f"ended host {pid}" if pid is not None else f"ended launcher {launcher}")
    return 0


def _own_paths(endpoint: str | None) -> HostPaths:
    if endpoint or os.environ.get("SUBSTRATE_ENDPOINT"):
        raise SubstrateError(
            "up and down are about the host of $SUBSTRATE_HOME; "
            "unset SUBSTRATE_ENDPOINT, or end that host where it runs"
        )
    return HostPaths()


def peer_pid(path: str, kind: int = socket.SOCK_STREAM) -> int | None:
    """The process that listens on a Unix socket (SO_PEERCRED, unix(7)); None where none does."""
    with socket.socket(socket.AF_UNIX, kind) as probe:
        try:
            probe.connect(path)
        except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
            return None
        credentials = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid: int = struct.unpack("3i", credentials)[0]
    return pid


def _check_pid_file(paths: HostPaths, pid: int) -> None:
    """Never signal a process that does not say itself that it is the host."""
    try:
        with open(paths.host_pid, encoding="ascii") as file:
            written = file.read().strip()
    except OSError as error:
        raise SubstrateError(f"cannot read {paths.host_pid}: {error.strerror}") from error
    if written != str(pid):
        raise SubstrateError(
            f"process {pid} listens on {paths.host_socket}, {paths.host_pid} says {written!r}: "
            "not ended; look which of them is the host"
        )


def _end(pid: int, what: str, timeout_s: float) -> None:
    """Ask a process to end, and wait until it has."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(descriptor, signal.SIGTERM)
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        if not poll.poll(timeout_s * 1000):
            raise HostUnavailable(
                f"{what} {pid} has not ended within {timeout_s:.0f} s; it may be recording still"
            )
    finally:
        os.close(descriptor)
