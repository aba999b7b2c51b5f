"""How the arguments of the SDK become fields of messages, for sync and async alike."""

from __future__ import annotations

import os
import sys
import time
from base64 import b32encode
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final, TypeAlias, TypedDict

from substrate_sdk._pb.substrate.common.v1alpha1 import types_pb2
from substrate_sdk._pb.substrate.world.v1alpha1 import execs_pb2, worlds_pb2
from substrate_sdk.config import Endpoint
from substrate_sdk.errors import InvalidArgument, NotBuilt

if TYPE_CHECKING:
    from substrate_sdk.types import Limits, WorldInfo

#: Text or bytes; text becomes bytes as Python does it for file names (os.fsencode).
Text: TypeAlias = str | bytes
PathLike: TypeAlias = str | bytes | os.PathLike[str] | os.PathLike[bytes]
#: A string for the shell, or the exact arguments.
CommandLike: TypeAlias = Text | Sequence[PathLike]

#: What a download may hold unless its caller says otherwise.
DOWNLOAD_LIMIT_BYTES: Final = 64 << 30

#: Variables that may go to a host on another machine; an own machine's host filters by profile.
_REMOTE_VARIABLES = ("TERM", "LANG", "TZ", "NO_COLOR")


def new_id(prefix: str) -> str:
    """A fresh id: a prefix and 26 lower-case base-32 digits."""
    return prefix + b32encode(os.urandom(17)).decode("ascii").lower()[:26]


def env_vars(env: Mapping[str, str] | Mapping[bytes, bytes] | None) -> list[types_pb2.EnvVar]:
    """Environment variables as messages, sorted by name."""
    pairs = sorted((os.fsencode(name), os.fsencode(value)) for name, value in (env or {}).items())
    for name, value in pairs:
        if not name or b"=" in name or b"\0" in name + value:
            raise InvalidArgument(f"env: {name!r} cannot be an environment variable")
    return [types_pb2.EnvVar(name=name, value=value) for name, value in pairs]


def caller_env(endpoint: Endpoint) -> list[types_pb2.EnvVar]:
    """The caller's environment, of which the host uses what the world's profile allows.

    To another machine go only variables about the terminal and the language: no secret must
    cross the network because a profile would have dropped it there.
    """
    environ = os.environb
    if endpoint.is_local:
        return [types_pb2.EnvVar(name=name, value=environ[name]) for name in sorted(environ)]
    return [
        types_pb2.EnvVar(name=name, value=environ[name])
        for name in sorted(environ)
        if os.fsdecode(name) in _REMOTE_VARIABLES or name.startswith(b"LC_")
    ]


def labels(values: Mapping[str, str] | None) -> list[types_pb2.Label]:
    """Labels as messages, sorted by name."""
    return [types_pb2.Label(key=key, value=value) for key, value in sorted((values or {}).items())]


def argv_or_shell(command: CommandLike) -> tuple[execs_pb2.Argv | None, bytes | None]:
    """A command as exact arguments, or as a string for the shell: one of the two.

    Raises:
        InvalidArgument: it is empty, or has a null byte in it.
    """
    if isinstance(command, (str, bytes)):
        shell = os.fsencode(command)
        _refuse_nulls([shell])
        if not shell.strip():
            raise InvalidArgument("command: it is empty")
        return None, shell
    args = [os.fsencode(item) for item in command]
    _refuse_nulls(args)
    if not args or not args[0]:
        raise InvalidArgument("command: it is empty")
    return execs_pb2.Argv(args=args), None


def _refuse_nulls(items: Iterable[bytes]) -> None:
    if any(b"\0" in item for item in items):
        raise InvalidArgument("command: a null byte cannot be part of it")


def traceparent() -> str:
    """W3C traceparent of the caller's span: OpenTelemetry's, or that of its environment."""
    # Imported by the caller, or there is no span to continue.
    trace = sys.modules.get("opentelemetry.trace")
    if trace is not None:
        context = trace.get_current_span().get_span_context()
        if context.is_valid:
            return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
    return os.environ.get("TRACEPARENT", "")


def start_exec(
    command: CommandLike,
    *,
    world_id: str,
    env: Mapping[str, str] | None,
    cwd: PathLike | None,
    user: str,
    umask: int | None,
    stdin: bool,
    pty: tuple[int, int] | None,
    timeout_s: float | None,
    agent_id: str,
    on_ask: str,
    exec_id: str | None,
) -> execs_pb2.StartExecRequest:
    """The request for a command; see ``AsyncWorld.exec`` for the arguments."""
    argv, shell = argv_or_shell(command)
    if on_ask not in ("deny", "wait"):
        raise NotBuilt(f"on_ask={on_ask!r} is not built yet; use 'deny' or 'wait'")
    request = execs_pb2.StartExecRequest(
        world_id=world_id,
        exec_id=exec_id or new_id("exe_"),
        argv=argv,
        env=env_vars(env),
        cwd=None if cwd is None else os.fsencode(cwd),
        user=user,
        umask=umask,
        stdin=execs_pb2.STDIN_MODE_PIPE if stdin else execs_pb2.STDIN_MODE_UNSPECIFIED,
        agent_id=agent_id,
        traceparent=traceparent(),
        on_ask=execs_pb2.ON_ASK_WAIT if on_ask == "wait" else execs_pb2.ON_ASK_UNSPECIFIED,
    )
    if shell is not None:
        request.shell = shell
    if pty is not None:
        request.pty.rows, request.pty.columns = pty
    if timeout_s is not None:
        if not 0 < timeout_s < 1e9:
            raise InvalidArgument(f"timeout_s: {timeout_s!r} is not a positive number of seconds")
        request.timeout.FromNanoseconds(round(timeout_s * 1e9))
    return request


def world_source(base: PathLike) -> worlds_pb2.WorldSource:
    """Where a new world's tree comes from; see ``AsyncSubstrate.world`` for the forms."""
    text = os.fsencode(base)
    for prefix, name in (
        (b"image:", "image"),
        (b"snapshot:", "snapshot_id"),
        (b"before:", "before_span_id"),
        (b"after:", "after_span_id"),
    ):
        if text.startswith(prefix):
            source = worlds_pb2.WorldSource()
            setattr(source, name, text.removeprefix(prefix).decode("utf-8", errors="replace"))
            return source
    return worlds_pb2.WorldSource(directory=os.path.abspath(text))


class WorldOptions(TypedDict, total=False):
    """How to make a world; all of it may be left out.

    What this version of the host cannot do is refused with NotBuilt, never ignored.
    """

    #: How much of the host it shows; "workspace" by default.
    profile: str
    #: Network rules: "@python", "example.org:443", "10.0.0.0/8:80", "full". None by default.
    network: Sequence[str]
    #: A directory of the host; the git root around it, or it, is the project.
    project: PathLike
    #: Where the tree comes from: a directory as the root, "image:NAME", "snapshot:ID",
    #: "before:SPAN" or "after:SPAN". The host's own mounts by default. On a directory or an image
    #: the project is shown, at its own path, only where one is named.
    base: PathLike
    #: Variables that are set whatever the profile allows.
    env: Mapping[str, str]
    #: Where commands start: a directory of the host; with project, relative to it.
    cwd: PathLike
    #: The user in the world; the caller by default.
    user: str
    #: Bounds.
    limits: Limits
    #: Secrets to inject: {variable: name under which the host knows the secret}.
    secrets: Mapping[str, str]
    #: Seconds after which it is removed, used or not.
    ttl_s: float
    #: Seconds of idleness after which it is removed.
    idle_s: float
    #: Free labels.
    labels: Mapping[str, str]
    #: It stays when its client goes, and at the end of a with block.
    keep: bool
    #: Host name in the world.
    hostname: str
    #: Classes of events to record: open, mutate, network, stat, transfer, load, sources; all where
    #: none are named. Processes always are, and "process" alone leaves out all others.
    telemetry: Sequence[str]
    #: Who asks, for records.
    agent_id: str
    #: A policy file on the host that is added for this world; it can only tighten.
    policy: PathLike


class WorldChanges(TypedDict, total=False):
    """What can be changed of a world; see ``AsyncWorld.update``."""

    limits: Limits
    ttl_s: float | None
    idle_s: float | None
    labels: Mapping[str, str]
    keep: bool
    network: Sequence[str]


def update_world(
    world_id: str, info: WorldInfo, changes: WorldChanges
) -> worlds_pb2.UpdateWorldRequest:
    """The request for a change; what is named and None becomes the host's default."""
    request = worlds_pb2.UpdateWorldRequest(world_id=world_id)
    world, paths = request.world, request.update_mask.paths
    if "limits" in changes:
        # A disk cannot be changed; naming it again would only be a way to get it wrong.
        limits = changes["limits"]
        if limits.disk_bytes is None and limits.inodes is None:
            limits = replace(limits, disk_bytes=info.limits.disk_bytes, inodes=info.limits.inodes)
        world.limits.CopyFrom(limits.to_proto())
        paths.append("limits")
    for name, field in (("ttl_s", "expires_at"), ("idle_s", "idle_timeout")):
        if name not in changes:
            continue
        paths.append(field)
        seconds = changes.get(name)
        if seconds is None:
            continue
        if not (isinstance(seconds, (int, float)) and 0 < seconds < 1e9):
            raise InvalidArgument(f"{name}: {seconds!r} is not a positive number of seconds")
        if field == "expires_at":
            world.expires_at.FromNanoseconds(time.time_ns() + round(seconds * 1e9))
        else:
            world.idle_timeout.FromNanoseconds(round(seconds * 1e9))
    if "labels" in changes:
        world.labels.extend(labels(changes["labels"]))
        paths.append("labels")
    if "keep" in changes:
        world.keep = changes["keep"]
        paths.append("keep")
    if "network" in changes:
        world.network.extend(network_rules(changes["network"]))
        paths.append("network")
    if not paths:
        raise InvalidArgument(
            "name what is to be changed: limits, network, ttl_s, idle_s, labels or keep"
        )
    return request


def network_rules(rules: Sequence[str]) -> list[str]:
    """The rules of a request; ``none`` alone is no rule. Raises InvalidArgument for a string."""
    if isinstance(rules, str):
        raise InvalidArgument(f"network: give a list of rules: [{rules!r}]")
    return [] if list(rules) == ["none"] else list(rules)


def create_world(
    endpoint: Endpoint, session_id: str, options: WorldOptions
) -> worlds_pb2.CreateWorldRequest:
    """The request for a world."""
    unknown = sorted(options.keys() - WorldOptions.__annotations__.keys())
    if unknown:
        raise TypeError(f"world() got an unexpected keyword argument {unknown[0]!r}")
    network = network_rules(options.get("network") or ())
    base, limits, policy = options.get("base"), options.get("limits"), options.get("policy")
    source = None if base is None else world_source(base)
    request = worlds_pb2.CreateWorldRequest(
        request_id=new_id("req_"),
        session_id=session_id,
        profile=options.get("profile") or "",
        cwd=_cwd(endpoint, options, source),
        source=source,
        caller_env=caller_env(endpoint),
        env=env_vars(options.get("env")),
        user=options.get("user") or "",
        limits=None if limits is None else limits.to_proto(),
        network=network,
        secrets=[
            types_pb2.SecretRef(name=name, env=variable)
            for variable, name in sorted((options.get("secrets") or {}).items())
        ],
        labels=labels(options.get("labels")),
        keep=options.get("keep", False),
        hostname=options.get("hostname") or "",
        agent_id=options.get("agent_id") or "",
        policy_file=host_path(policy),
        telemetry=_names("telemetry", options.get("telemetry")),
    )
    for name, seconds, field in (
        ("ttl_s", options.get("ttl_s"), request.ttl),
        ("idle_s", options.get("idle_s"), request.idle_timeout),
    ):
        if seconds is not None:
            if not 0 < seconds < 1e9:
                raise InvalidArgument(f"{name}: {seconds!r} is not a positive number of seconds")
            field.FromNanoseconds(round(seconds * 1e9))
    return request


def _names(option: str, names: Sequence[str] | None) -> Sequence[str]:
    if isinstance(names, str):
        raise InvalidArgument(f"{option}: give a list: [{names!r}]")
    return names or ()


def host_path(path: PathLike | None) -> bytes:
    """A path on the host as an absolute one; empty for None."""
    return b"" if path is None else os.path.abspath(os.fsencode(path))


def _cwd(endpoint: Endpoint, options: WorldOptions, source: worlds_pb2.WorldSource | None) -> bytes:
    """Where commands start; on a root of its own a world has a project only if one is named."""
    project, cwd = options.get("project"), options.get("cwd")
    own_root = source is not None and source.WhichOneof("source") in ("directory", "image")
    if own_root and project is None and cwd is None:
        return b""
    return _directory(endpoint, project, cwd)


def _directory(endpoint: Endpoint, project: PathLike | None, cwd: PathLike | None) -> bytes:
    """The directory in which commands start; the project is the git root around it, or it."""
    if project is None and cwd is None:
        return os.getcwdb() if endpoint.is_local else b""
    if project is None:
        assert cwd is not None
        return os.path.abspath(os.fsencode(cwd))
    root = os.path.abspath(os.fsencode(project))
    if cwd is None:
        return root
    inside = os.path.abspath(os.path.join(root, os.fsencode(cwd)))
    if os.path.commonpath([root, inside]) != root:
        raise InvalidArgument(
            f"cwd: {os.fsdecode(inside)} is not in the project {os.fsdecode(root)}"
        )
    return inside
