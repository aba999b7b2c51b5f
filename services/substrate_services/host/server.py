"""A gRPC server on a Unix socket, with the services that a host has.

Which services there are stands in :data:`SERVICES`. An RPC that a servicer's class does not
override answers UNIMPLEMENTED with reason NOT_BUILT.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import stat
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias, cast
from urllib.parse import quote

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from substrate_sdk._pb.substrate.agent.v1alpha1 import agent_pb2, agent_pb2_grpc
from substrate_sdk._pb.substrate.broker.v1alpha1 import broker_pb2, broker_pb2_grpc
from substrate_sdk._pb.substrate.replay.v1alpha1 import replay_pb2, replay_pb2_grpc
from substrate_sdk._pb.substrate.trace.v1alpha1 import trace_pb2, trace_pb2_grpc
from substrate_sdk._pb.substrate.world.v1alpha1 import world_service_pb2, world_service_pb2_grpc
from substrate_services.wire.errors import ErrorInterceptor

if TYPE_CHECKING:
    from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor

MAX_MESSAGE_BYTES: Final = 64 << 20
_SOCKET_PATH_BYTES: Final = 107  # sizeof(sockaddr_un.sun_path) without its NUL

# gRPC answers a client that pings more often than every five minutes with GOAWAY; clients of ours
# may ping every ten seconds, also between calls, to see early that a host is gone.
_OPTIONS: Final[tuple[tuple[str, int], ...]] = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.max_ping_strikes", 0),
    # The window would follow bandwidth times delay, and on a busy machine the delay is ours: an
    # upload then filled hundreds of megabytes of the host. This much is enough for any link.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 4 << 20),
)

Servicer: TypeAlias = (
    "agent_pb2_grpc.AgentServiceServicer | broker_pb2_grpc.BrokerServiceServicer"
    " | world_service_pb2_grpc.WorldServiceServicer | replay_pb2_grpc.ReplayServiceServicer"
    " | trace_pb2_grpc.TraceServiceServicer"
)


@dataclass(frozen=True, slots=True)
class Service:
    """One of the services of DESIGN §4.

    Attributes:
        name: as in ``substrate serve <name>``.
        descriptor: its part of the protos.
        base: the generated class that servicers inherit.
        add: the generated function that puts a servicer on a server.
        servicer: ``module:class`` of ours, which may not exist yet.
    """

    name: str
    descriptor: ServiceDescriptor
    base: type[object]
    add: Callable[[Servicer, grpc.aio.Server], None]
    servicer: str

    @property
    def full_name(self) -> str:
        """``substrate.world.v1alpha1.WorldService``."""
        return str(self.descriptor.full_name)

    def methods(self) -> tuple[MethodDescriptor, ...]:
        """Its RPCs, in the order of the proto."""
        return tuple(self.descriptor.methods)

    def servicer_class(self) -> type[object]:
        """Our servicer's class; the generated base, which has nothing built, where there is none.

        Raises ImportError where the module exists and cannot be imported: that is a fault.
        """
        module_name, _, class_name = self.servicer.partition(":")
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if error.name != module_name:
                raise
            return self.base
        return cast("type[object]", getattr(module, class_name))

    def not_built(self, servicer_class: type[object]) -> tuple[str, ...]:
        """Full names, as gRPC calls them, of the RPCs that the class does not override."""
        return tuple(
            f"/{self.full_name}/{method.name}"
            for method in self.methods()
            if getattr(servicer_class, method.name) is getattr(self.base, method.name)
        )


def _service(
    name: str,
    file: object,
    base: type[object],
    add: Callable[..., None],
) -> Service:
    descriptor: ServiceDescriptor = file.DESCRIPTOR.services_by_name[  # type: ignore[attr-defined]
        f"{name.capitalize()}Service"
    ]
    own = f"substrate_services.{name}.server:{name.capitalize()}Servicer"
    return Service(name, descriptor, base, add, own)


SERVICES: Final[tuple[Service, ...]] = (
    _service(
        "agent",
        agent_pb2,
        agent_pb2_grpc.AgentServiceServicer,
        agent_pb2_grpc.add_AgentServiceServicer_to_server,
    ),
    _service(
        "broker",
        broker_pb2,
        broker_pb2_grpc.BrokerServiceServicer,
        broker_pb2_grpc.add_BrokerServiceServicer_to_server,
    ),
    _service(
        "world",
        world_service_pb2,
        world_service_pb2_grpc.WorldServiceServicer,
        world_service_pb2_grpc.add_WorldServiceServicer_to_server,
    ),
    _service(
        "replay",
        replay_pb2,
        replay_pb2_grpc.ReplayServiceServicer,
        replay_pb2_grpc.add_ReplayServiceServicer_to_server,
    ),
    _service(
        "trace",
        trace_pb2,
        trace_pb2_grpc.TraceServiceServicer,
        trace_pb2_grpc.add_TraceServiceServicer_to_server,
    ),
)


def service_of(servicer: Servicer) -> Service:
    """The service that a servicer serves. Raises TypeError where it serves none of ours."""
    for service in SERVICES:
        if isinstance(servicer, service.base):
            return service
    raise TypeError(f"{type(servicer).__name__} serves none of the services in SERVICES")


async def build_server(
    servicers: Sequence[Servicer], *, socket_path: Path, development: bool = False
) -> grpc.aio.Server:
    """A server with these services and health, bound to a Unix socket, not yet started.

    A socket that is there already is replaced: the caller makes
    sure, with its own lock, that no other host serves it.

    Args:
        servicers: at most one for each service; services without one are not served.
        socket_path: where to listen; its directory is made where it is missing, for its owner
            alone.
        development: serves reflection too.

    Raises:
        PermissionError: the directory belongs to somebody else or others may enter it.
        OSError: the socket cannot be bound.
        ValueError: the path is longer than a socket's may be.
    """
    address = _prepare_socket(socket_path)
    served = [(service_of(servicer), servicer) for servicer in servicers]
    missing = [
        method for service, servicer in served for method in service.not_built(type(servicer))
    ]
    server = grpc.aio.server(interceptors=[ErrorInterceptor(missing)], options=list(_OPTIONS))
    for service, servicer in served:
        service.add(servicer, server)
    names = [service.full_name for service, _ in served]
    await _add_health(server, names)
    if development:
        extra = [health.SERVICE_NAME, reflection.SERVICE_NAME]
        reflection.enable_server_reflection([*names, *extra], server)
    # The directory is closed before the socket appears in it, so there is no moment at which its
    # mode, which the umask decides, matters to anybody else.
    try:
        server.add_insecure_port(address)
    except RuntimeError as error:
        raise OSError(f"cannot listen on {socket_path}: {error}") from error
    os.chmod(socket_path, 0o600)
    return server


async def _add_health(server: grpc.aio.Server, names: Iterable[str]) -> None:
    servicer = health.aio.HealthServicer()
    for name in ("", *names):
        await servicer.set(name, health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)


def _prepare_socket(socket_path: Path) -> str:
    """Makes the directory of a socket that only its owner can reach; gives gRPC's address of it.

    gRPC does not tell handlers the peer's uid: ``context.peer()`` is "unix:" on such a socket, and
    ``auth_context`` is empty (local credentials check the kind of connection, not who it is). A
    user host does not need it: connecting takes write permission on the socket and search
    permission on its directory (unix(7)), both are the owner's alone, and so every caller is the
    owner, or root. A system host, which serves many uids, must take SO_PEERCRED from sockets that
    it accepts itself.
    """
    encoded = os.fsencode(socket_path)
    if not socket_path.is_absolute():
        raise ValueError(f"socket path {str(socket_path)!r} is not absolute")
    if len(encoded) > _SOCKET_PATH_BYTES:
        raise ValueError(
            f"socket path {str(socket_path)!r} has {len(encoded)} bytes; at most "
            f"{_SOCKET_PATH_BYTES} fit: set SUBSTRATE_HOME to a shorter path"
        )
    private_directory(socket_path.parent)
    return f"unix:{quote(encoded)}"


def private_directory(directory: Path) -> None:
    """Makes a directory of ours that nobody else can enter, or makes sure that it is one."""
    directory.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        os.mkdir(directory, 0o700)
    # By descriptor, and not through a link: in /tmp somebody else may have been here first.
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        status = os.fstat(fd)
        if status.st_uid != os.geteuid():
            raise PermissionError(
                f"{directory} belongs to uid {status.st_uid}, not to {os.geteuid()}; "
                "set SUBSTRATE_HOME to a directory of your own"
            )
        if stat.S_IMODE(status.st_mode) & 0o077:
            os.fchmod(fd, 0o700)
    finally:
        os.close(fd)
