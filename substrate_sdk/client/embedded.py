"""The embedded host: started when nobody answers at its socket, shared by all who come later."""

from __future__ import annotations

import contextlib
import fcntl
import math
import os
import socket
import sys
import time
from collections.abc import Iterator

from substrate_sdk.config import HostPaths
from substrate_sdk.errors import HostUnavailable

_START_TIMEOUT = "SUBSTRATE_START_TIMEOUT_S"
_START_TIMEOUT_S = 30.0


def start_timeout_s() -> float:
    """Seconds in which a new host must have said that it is ready; an emulated machine takes long.

    Raises:
        HostUnavailable: the environment's value is no positive number.
    """
    text = os.environ.get(_START_TIMEOUT)
    if text is None:
        return _START_TIMEOUT_S
    with contextlib.suppress(ValueError):
        if 0 < float(text) < math.inf:
            return float(text)
    raise HostUnavailable(f"{_START_TIMEOUT} is {text!r}: expected seconds, more than 0")


def host_answers(paths: HostPaths) -> bool:
    """Whether a process listens on the host's socket."""
    probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        probe.connect(paths.host_socket)
    except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
        return False
    except OSError as error:
        raise HostUnavailable(
            f"cannot connect to {paths.host_socket}: {error.strerror}; "
            "set SUBSTRATE_HOME to a directory of your own"
        ) from error
    finally:
        probe.close()
    return True


def ensure_host(paths: HostPaths) -> None:
    """Return once a host of this home listens; start one if need be. Blocks.

    Raises:
        HostUnavailable: it cannot be started; the message has the host's own words.
    """
    if host_answers(paths):
        return
    start_timeout_s()  # refused before anything is made
    _require_host_software()
    paths.make_directories()
    with _locked(paths.start_lock):
        # Whoever held the lock before may have started it.
        if not host_answers(paths):
            _start(paths)


def _require_host_software() -> None:
    from importlib.util import find_spec

    if sys.platform != "linux":
        raise HostUnavailable(
            f"a host runs on Linux only, this is {sys.platform}: "
            "set SUBSTRATE_ENDPOINT to the host:port of one"
        )
    if find_spec("substrate_services") is None:
        raise HostUnavailable(
            "no host runs, and this installation cannot start one: "
            "pip install 'substrate-recorder[host]', or set SUBSTRATE_ENDPOINT"
        )


@contextlib.contextmanager
def _locked(path: str) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _start(paths: HostPaths) -> None:
    import subprocess

    log_start = _size(paths.host_log)
    ready, ready_child = os.pipe2(os.O_CLOEXEC)
    try:
        try:
            with open(paths.host_log, "ab") as log:
                # No preexec_fn: this process may have threads, of gRPC among others.
                process = subprocess.Popen(
                    [
                        sys.executable,
                        "-m",
                        "substrate_services.host",
                        "--home",
                        paths.home,
                        "--ready-fd",
                        str(ready_child),
                    ],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=paths.home,
                    pass_fds=(ready_child,),
                    start_new_session=True,
                )
        except OSError as error:
            raise HostUnavailable(
                f"cannot start a host ({error.filename or sys.executable}: {error.strerror})"
            ) from error
        finally:
            os.close(ready_child)
        answer = _read_answer(ready)
    finally:
        os.close(ready)
    if answer == "ready":
        # It is nobody's child to wait for; without this Popen would complain when collected.
        process.returncode = 0
        return
    if answer is None:
        process.kill()
        process.wait()
        why = (
            f"it was not ready within {start_timeout_s():g} s ({_START_TIMEOUT} sets another time)"
        )
    else:
        process.wait()
        why = answer or _last_line(paths.host_log, log_start)
    raise HostUnavailable(f"the host did not start: {why} (log: {paths.host_log})")


def _read_answer(descriptor: int) -> str | None:
    """What the host says before it closes the pipe: "ready", an error, nothing; None: too late."""
    import select

    deadline = time.monotonic() + start_timeout_s()
    data = b""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    while True:
        left_s = deadline - time.monotonic()
        if left_s <= 0 or not poll.poll(left_s * 1000):
            return None
        piece = os.read(descriptor, 65536)
        data += piece
        if not piece or b"\n" in data:
            line = data.partition(b"\n")[0].decode(errors="replace").strip()
            return line.removeprefix("error:").strip()


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return 0


def _last_line(path: str, start: int) -> str:
    """The last line that was logged from ``start`` on: of a traceback, the line that says why."""
    try:
        with open(path, "rb") as log:
            log.seek(max(start, _size(path) - 65536))
            lines = log.read().decode(errors="replace").split("\n")
    except OSError:
        lines = []
    return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
