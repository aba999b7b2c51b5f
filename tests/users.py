"""Somebody who uses Substrate from the command line, with a home of their own."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from substrate_sdk import Substrate
from substrate_sdk.client.sync import Exec
from substrate_sdk.config import Endpoint, HostPaths
from tests.conftest import SUBSTRATE, _end_host, _remove_tree, homes

if TYPE_CHECKING:
    import pytest

#: One JSON object as it was printed: tests look into it freely.
Json = dict[str, Any]
Word = str | bytes
FoundT = TypeVar("FoundT")

#: A Python that worlds show: the venv's own directory may lie in a home, which they do not.
PYTHON = os.path.realpath(sys.executable)

#: How many times longer than usual this machine may take: an emulated one, in scripts/vm-tests.
SLOWNESS = float(os.environ.get("SUBSTRATE_TEST_SLOWNESS", "1"))

_OWN_VARIABLES = (
    "SUBSTRATE_ENDPOINT",
    "SUBSTRATE_TOKEN",
    "SUBSTRATE_WORLD",
    "SUBSTRATE_WORLD_ID",
    "SHIM_TRACE_LOG",
    "OTEL_EXPORTER_OTLP_ENDPOINT",
)


@dataclass(frozen=True, slots=True)
class Finished:
    """A command line that has ended."""

    code: int
    stdout: bytes
    stderr: bytes

    @property
    def out(self) -> str:
        return self.stdout.decode(errors="replace")

    @property
    def err(self) -> str:
        return self.stderr.decode(errors="replace")

    @property
    def json(self) -> Json:
        """The one JSON object on standard output."""
        assert self.stdout, f"nothing was printed, exit {self.code}: {self.err}"
        found = json.loads(self.stdout)
        assert isinstance(found, dict)
        return found

    @property
    def error_line(self) -> str:
        """Standard error, which is one line and no traceback."""
        lines = self.err.splitlines()
        assert len(lines) == 1, self.err
        assert "Traceback" not in self.err
        return lines[0]


@dataclass(frozen=True, slots=True)
class User:
    """A user with a home, below which is their ``$SUBSTRATE_HOME``.

    Attributes:
        home: ``$HOME``.
        prefix: put before every command line: what changes its user or its namespaces.
        command: the command line's program.
        variables: further environment.
    """

    home: Path
    prefix: tuple[str, ...] = ()
    command: tuple[str, ...] = SUBSTRATE
    variables: tuple[tuple[str, str], ...] = ()

    @property
    def substrate_home(self) -> Path:
        return self.home / ".substrate"

    @property
    def paths(self) -> HostPaths:
        return HostPaths(self.substrate_home)

    @property
    def trace(self) -> Path:
        return self.substrate_home / "trace.jsonl"

    def env(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        env = {name: value for name, value in os.environ.items() if name not in _OWN_VARIABLES}
        env.update(HOME=str(self.home), SUBSTRATE_HOME=str(self.substrate_home))
        return {**env, **dict(self.variables), **(extra or {})}

    def start(
        self,
        *words: Word,
        cwd: Path,
        env: Mapping[str, str] | None = None,
        stdin: int = subprocess.DEVNULL,
    ) -> subprocess.Popen[bytes]:
        """Start the command line with these arguments."""
        return subprocess.Popen(
            [*self.prefix, *self.command, *words],
            cwd=cwd,
            env=self.env(env),
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def run(
        self,
        *words: Word,
        cwd: Path,
        env: Mapping[str, str] | None = None,
        stdin: bytes | None = None,
        timeout_s: float = 30.0,
    ) -> Finished:
        """Run the command line with these arguments to its end."""
        process = self.start(
            *words, cwd=cwd, env=env, stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE
        )
        return finish(process, stdin, timeout_s)

    def run_json(
        self,
        *command: Word,
        cwd: Path,
        options: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        stdin: bytes | None = None,
    ) -> Json:
        """``substrate run --json OPTIONS -- COMMAND``: what it printed."""
        done = self.run("run", "--json", *options, "--", *command, cwd=cwd, env=env, stdin=stdin)
        return done.json

    def replay(self, span: str = "@last", *options: str, cwd: Path) -> tuple[int, Json]:
        """``substrate replay --json``: its exit code and report."""
        done = self.run("replay", "--json", span, *options, cwd=cwd)
        return done.code, done.json

    def up(self, cwd: Path = Path("/")) -> None:
        """Start the host."""
        done = self.run("up", cwd=cwd)
        assert done.code == 0, done.err

    def client(self) -> Substrate:
        """An SDK client of this user's running host."""
        return Substrate(str(Endpoint(path=self.paths.host_socket)))

    def embedded(self, monkeypatch: pytest.MonkeyPatch) -> Substrate:
        """An SDK client whose host is started when it is not there, in this process's place."""
        for name in _OWN_VARIABLES:
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("HOME", str(self.home))
        monkeypatch.setenv("SUBSTRATE_HOME", str(self.substrate_home))
        return Substrate()

    def host_pid(self) -> int:
        """The process that serves the host's socket (SO_PEERCRED, unix(7))."""
        return _listener(self.paths.host_socket, socket.SOCK_STREAM)

    def launcher_pid(self) -> int:
        """The process that serves the launcher's socket."""
        return _listener(self.paths.launcher_socket, socket.SOCK_SEQPACKET)

    def lines(self) -> list[Json]:
        """The journal, each line parsed."""
        return [json.loads(line) for line in self.trace.read_text().splitlines()]

    def spans(self) -> list[Json]:
        """The journal's completed steps, oldest first."""
        return [line for line in self.lines() if line["event_type"] == "command_complete"]


@contextlib.contextmanager
def new_user(
    prefix: tuple[str, ...] = (),
    command: tuple[str, ...] = SUBSTRATE,
    variables: tuple[tuple[str, str], ...] = (),
) -> Iterator[User]:
    """A user; at the end their host, launcher and home go.

    The path is short, because a socket's is limited to 107 bytes (unix(7)).
    """
    home = Path(tempfile.mkdtemp(prefix="sb", dir="/tmp"))
    homes.add(home)
    try:
        yield User(home, prefix, command, variables)
    finally:
        homes.discard(home)
        _end_host(home / ".substrate")
        _remove_tree(home)


def finish(
    process: subprocess.Popen[bytes], stdin: bytes | None = None, timeout_s: float = 30.0
) -> Finished:
    """Wait for a command line that was started."""
    with process:
        try:
            stdout, stderr = process.communicate(stdin, timeout=timeout_s * SLOWNESS)
        except subprocess.TimeoutExpired as error:
            process.kill()
            stdout, stderr = process.communicate()
            raise AssertionError(
                f"not over after {timeout_s} s; stdout {stdout!r}, stderr {stderr!r}"
            ) from error
    return Finished(process.returncode, stdout, stderr)


def kill_and_wait(pid: int, number: signal.Signals = signal.SIGKILL) -> None:
    """Signal a process, and return once it has ended, whosever child it is."""
    descriptor = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(descriptor, number)
        assert select.select([descriptor], [], [], 10)[0], f"process {pid} has not ended"
    finally:
        os.close(descriptor)


def eventually(look: Callable[[], FoundT | None], what: str, timeout_s: float = 10.0) -> FoundT:
    """Look until there is something, for what cannot be waited for."""
    deadline = time.monotonic() + timeout_s * SLOWNESS
    while True:
        found = look()
        if found:
            return found
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        time.sleep(0.02)


def read_until(process: subprocess.Popen[bytes], marker: bytes, timeout_s: float = 20.0) -> bytes:
    """Read a command line's standard output until the marker is in it."""
    assert process.stdout is not None
    descriptor = process.stdout.fileno()
    deadline = time.monotonic() + timeout_s * SLOWNESS
    data = b""
    while marker not in data:
        left_s = deadline - time.monotonic()
        assert left_s > 0, f"{marker!r} did not come: {data!r}"
        assert select.select([descriptor], [], [], left_s)[0], f"{marker!r} did not come: {data!r}"
        piece = os.read(descriptor, 65536)
        assert piece, f"the output ended before {marker!r}: {data!r}"
        data += piece
    return data


def read_some(proc: Exec) -> bytes:
    """The first piece of output of a command in a world."""
    with contextlib.closing(proc.output()) as reader:
        return next(reader).data


def tree_of(directory: Path) -> dict[str, bytes | str]:
    """Everything below a directory: content of files, targets of links."""
    found: dict[str, bytes | str] = {}
    for path in sorted(directory.rglob("*")):
        name = str(path.relative_to(directory))
        if path.is_symlink():
            found[name] = os.readlink(path)
        else:
            found[name] = "directory" if path.is_dir() else path.read_bytes()
    return found


def by_path(changes: Sequence[Json], root: Path) -> dict[str, str]:
    """Changes as relative path → kind, those outside with their absolute path."""
    found = {}
    for change in changes:
        path = Path(change["path"])
        name = str(path.relative_to(root)) if path.is_relative_to(root) else str(path)
        found[name] = change["kind"]
    return found


def _listener(path: str, kind: int) -> int:
    with socket.socket(socket.AF_UNIX, kind) as probe:
        probe.connect(path)
        credentials = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid: int = struct.unpack("3i", credentials)[0]
    return pid
