"""Where things are: the home of a host, its sockets, and the endpoint of a client.

Used by clients and by the host process alike, so it imports neither grpc nor protobuf.

Environment: ``SUBSTRATE_HOME`` (default ``~/.substrate``) and ``SUBSTRATE_ENDPOINT``
(``unix:///path`` or ``host:port``; none means the embedded host of that home).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping

from substrate_sdk.errors import InvalidArgument, SubstrateError

__all__ = ["Endpoint", "HostPaths", "endpoint_from_env", "home_from_env", "parse_endpoint"]

#: A socket's path is limited to 107 bytes (unix(7)); this leaves room for the names beside it.
_SOCKET_PATH_LIMIT = 100


class Endpoint:
    """Where a host listens.

    Attributes:
        path: of a Unix socket, or None.
        address: ``host:port``, or None.
    """

    __slots__ = ("address", "path")

    def __init__(self, *, path: str | None = None, address: str | None = None) -> None:
        if (path is None) == (address is None):
            raise ValueError("an endpoint is a path or an address")
        self.path = path
        self.address = address

    @property
    def is_local(self) -> bool:
        """It is a socket of this machine, which its permissions guard."""
        return self.path is not None

    @property
    def target(self) -> str:
        """What grpc calls it."""
        return f"unix:{self.path}" if self.path is not None else f"dns:///{self.address}"

    def __str__(self) -> str:
        return f"unix://{self.path}" if self.path is not None else str(self.address)

    def __repr__(self) -> str:
        return f"Endpoint({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Endpoint):
            return NotImplemented
        return (self.path, self.address) == (other.path, other.address)

    def __hash__(self) -> int:
        return hash((self.path, self.address))


def parse_endpoint(text: str) -> Endpoint:
    """Read ``unix:///path`` or ``host:port`` (IPv6 in brackets).

    Raises:
        InvalidArgument: it is neither.
    """
    if text.startswith("unix:"):
        path = text.removeprefix("unix:")
        path = path.removeprefix("//") if path.startswith("//") else path
        if path.startswith("/") and "\0" not in path and len(os.fsencode(path)) <= 107:
            return Endpoint(path=path)
    elif "://" not in text:
        host, colon, port = text.rpartition(":")
        if colon and _is_host(host) and port.isascii() and port.isdigit() and 0 < int(port) < 65536:
            return Endpoint(address=text)
    raise InvalidArgument(
        f"endpoint {text!r} is not usable: write unix:///absolute/path (at most 107 bytes) "
        "or host:port"
    )


def _is_host(host: str) -> bool:
    if host.startswith("[") and host.endswith("]"):
        return len(host) > 4 and all(c in "0123456789abcdefABCDEF:.%" for c in host[1:-1])
    return bool(host) and all(c.isalnum() or c in "-._" for c in host)


def endpoint_from_env(environ: Mapping[str, str] | None = None) -> Endpoint | None:
    """The endpoint that ``SUBSTRATE_ENDPOINT`` names; None where it is unset or empty."""
    text = (os.environ if environ is None else environ).get("SUBSTRATE_ENDPOINT", "")
    return parse_endpoint(text) if text else None


def home_from_env(environ: Mapping[str, str] | None = None) -> str:
    """The home that ``SUBSTRATE_HOME`` names, absolute; ``~/.substrate`` by default."""
    text = (os.environ if environ is None else environ).get("SUBSTRATE_HOME", "")
    return os.path.abspath(os.path.expanduser(text or "~/.substrate"))


class HostPaths:
    """The files of one host's home that clients and the host must agree on.

    Args:
        home: the home's directory; what ``SUBSTRATE_HOME`` says when not given.
    """

    __slots__ = ("home", "run_dir")

    def __init__(self, home: str | os.PathLike[str] | None = None) -> None:
        self.home = home_from_env() if home is None else os.path.abspath(os.fspath(home))
        run_dir = os.path.join(self.home, "run")
        # launcher.sock is the longest name there.
        if len(os.fsencode(os.path.join(run_dir, "launcher.sock"))) > _SOCKET_PATH_LIMIT:
            import hashlib

            digest = hashlib.blake2b(os.fsencode(self.home), digest_size=8).hexdigest()
            run_dir = f"/tmp/substrate-{os.getuid()}-{digest}"  # noqa: S108 # owner is verified
        self.run_dir = run_dir

    @property
    def host_socket(self) -> str:
        """Where the host listens, 0600."""
        return os.path.join(self.run_dir, "host.sock")

    @property
    def launcher_socket(self) -> str:
        """Where the launcher listens."""
        return os.path.join(self.run_dir, "launcher.sock")

    @property
    def host_pid(self) -> str:
        """The host's process id, in decimal."""
        return os.path.join(self.run_dir, "host.pid")

    @property
    def start_lock(self) -> str:
        """Locked (flock) by whoever starts the host."""
        return os.path.join(self.run_dir, "start.lock")

    @property
    def host_log(self) -> str:
        """What the host writes to its standard output and error."""
        return os.path.join(self.home, "host.log")

    @property
    def endpoint(self) -> Endpoint:
        """Where the host of this home listens."""
        return Endpoint(path=self.host_socket)

    def make_directories(self) -> None:
        """Make the home and the directory for sockets, 0700, and verify who owns them.

        Raises:
            SubstrateError: they cannot be made, or belong to somebody else.
        """
        for directory in (self.home, self.run_dir):
            try:
                os.makedirs(directory, mode=0o700, exist_ok=True)
                state = os.lstat(directory) if directory == self.run_dir else os.stat(directory)
            except OSError as error:
                raise SubstrateError(
                    f"cannot make {directory}: {error.strerror}; "
                    "set SUBSTRATE_HOME to a directory that you can write"
                ) from error
            if not stat.S_ISDIR(state.st_mode) or state.st_uid != os.getuid():
                raise SubstrateError(
                    f"{directory} is not a directory of uid {os.getuid()}; "
                    "remove it, or set SUBSTRATE_HOME to another directory"
                )
        # Others could replace the sockets in a directory that they can write.
        if stat.S_IMODE(os.stat(self.run_dir).st_mode) & 0o077:
            os.chmod(self.run_dir, 0o700)
