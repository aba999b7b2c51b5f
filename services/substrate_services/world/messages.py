"""Between the wire and the World's domain: what is asked for, checked, and what is told."""

from __future__ import annotations

import signal
from collections.abc import Iterable, Sequence

from substrate_sdk._pb.substrate.common.v1alpha1 import types_pb2
from substrate_sdk._pb.substrate.world.v1alpha1 import execs_pb2, worlds_pb2
from substrate_services.errors import InvalidField, ServiceError
from substrate_services.telemetry.classes import classes_mask
from substrate_services.wire import validation
from substrate_services.wire.convert import (
    command_to_proto,
    decision_to_proto,
    result_to_proto,
    timestamp_to_proto,
)
from substrate_services.world.backends.base import BackendCapabilities
from substrate_services.world.limit_rows import limit_rows
from substrate_services.world.limits_wire import limits_from_proto, limits_to_proto
from substrate_services.world.networks import network_rows
from substrate_services.world.output_log import Frame, Stream
from substrate_services.world.preparing import WorldRequest
from substrate_services.world.steps import Exec, ExecRequest
from substrate_services.world.telemetry_rows import telemetry_rows
from substrate_services.world.worlds import World

_STREAMS = {
    Stream.STDOUT: execs_pb2.OUTPUT_STREAM_STDOUT,
    Stream.STDERR: execs_pb2.OUTPUT_STREAM_STDERR,
    Stream.PTY: execs_pb2.OUTPUT_STREAM_PTY,
}
_LABELS_LIMIT = 64
_OLDEST_LANDLOCK_ABI = 2  # see native/init/landlock.c
_ENV_LIMIT = 4_096


def world_request(request: worlds_pb2.CreateWorldRequest, trace_id: str = "") -> WorldRequest:
    """A checked CreateWorldRequest.

    Raises:
        InvalidField: a field cannot be used.
        ServiceError: NOT_BUILT, for what is in the contract and not in this version.
    """
    if request.request_id:
        validation.request_id("request_id", request.request_id)
    if request.session_id:
        validation.session_id("session_id", request.session_id)
    source = request.source.WhichOneof("source")
    if source == "image":
        validation.required_text("source.image", request.source.image)
    if source == "before_span_id":
        validation.span_id("source.before_span_id", request.source.before_span_id)
    if source == "after_span_id":
        validation.span_id("source.after_span_id", request.source.after_span_id)
    if source == "snapshot_id":
        validation.digest("source.snapshot_id", request.source.snapshot_id)
    if request.secrets:
        raise _not_built("secrets")
    return WorldRequest(
        cwd=b""
        if source in ("directory", "image") and not request.cwd
        else validation.normal_path("cwd", request.cwd),
        request_id=request.request_id,
        session_id=request.session_id,
        trace_id=trace_id,
        agent_id=validation.bounded_text("agent_id", request.agent_id),
        profile=request.profile or "workspace",
        caller_env=checked_env("caller_env", request.caller_env),
        env=checked_env("env", request.env),
        user=validation.bounded_text("user", request.user),
        network=tuple(
            validation.bounded_text(f"network[{index}]", rule)
            for index, rule in enumerate(request.network)
        ),
        hostname=_hostname(request.hostname),
        labels=checked_labels("labels", request.labels),
        keep=request.keep,
        ttl_s=validation.duration_s("ttl", request.ttl) if request.HasField("ttl") else None,
        idle_timeout_s=validation.duration_s("idle_timeout", request.idle_timeout)
        if request.HasField("idle_timeout")
        else None,
        policy_file=validation.normal_path("policy_file", request.policy_file)
        if request.policy_file
        else None,
        before_span_id=request.source.before_span_id or None,
        after_span_id=request.source.after_span_id or None,
        snapshot_id=request.source.snapshot_id or None,
        use_host_base=request.source.use_host_base,
        directory=validation.normal_path("source.directory", request.source.directory)
        if source == "directory"
        else None,
        image=request.source.image or None,
        telemetry=_telemetry(request.telemetry),
        limits=limits_from_proto(request.limits),
    )


def checked_labels(field: str, labels: Sequence[types_pb2.Label]) -> tuple[tuple[str, str], ...]:
    """Labels as the domain has them. Raises InvalidField."""
    if len(labels) > _LABELS_LIMIT:
        raise InvalidField(field, len(labels), f"expected at most {_LABELS_LIMIT}")
    return tuple((label.key, label.value) for label in labels)


def exec_request(request: execs_pb2.StartExecRequest) -> ExecRequest:
    """A checked StartExecRequest. Raises as :func:`world_request` does."""
    validation.exec_id("exec_id", request.exec_id)
    kind = request.WhichOneof("command")
    if kind is None:
        raise InvalidField("argv", "", "give argv, shell or recorded")
    if request.on_ask == execs_pb2.ON_ASK_WAIT:
        raise _not_built("waiting for an approval (on_ask)")
    if request.traceparent:
        validation.traceparent("traceparent", request.traceparent)
    if request.stdin == execs_pb2.STDIN_MODE_OBJECT:
        validation.digest("stdin_digest", request.stdin_digest)
    shell = None
    if kind == "shell":
        shell = validation.required_bytes("shell", request.shell)
        if b"\0" in shell:
            raise InvalidField("shell", shell, "it cannot contain a NUL byte")
    if kind == "recorded":
        validation.span_id("recorded.span_id", request.recorded.span_id)
    return ExecRequest(
        exec_id=request.exec_id,
        argv=validation.argument_vector("argv.args", list(request.argv.args))
        if kind == "argv"
        else (),
        shell=shell,
        recorded_span_id=request.recorded.span_id if kind == "recorded" else None,
        env=checked_env("env", request.env),
        cwd=_cwd(request.cwd) if request.HasField("cwd") else None,
        user=validation.bounded_text("user", request.user),
        umask=_umask(request.umask) if request.HasField("umask") else None,
        stdin_pipe=request.stdin == execs_pb2.STDIN_MODE_PIPE or request.HasField("pty"),
        stdin_digest=request.stdin_digest or None,
        pty=_pty(request.pty) if request.HasField("pty") else None,
        timeout_s=validation.duration_s("timeout", request.timeout)
        if request.HasField("timeout")
        else None,
        session_id=validation.session_id("session_id", request.session_id)
        if request.session_id
        else "",
        agent_id=validation.bounded_text("agent_id", request.agent_id),
        traceparent=request.traceparent,
    )


def signal_number(name: str) -> int:
    """The number of SIGINT, INT or 2-less names. Raises InvalidField."""
    full = name.upper() if name.upper().startswith("SIG") else f"SIG{name.upper()}"
    try:
        return signal.Signals[full].value
    except KeyError:
        raise InvalidField(
            "signal", name, "expected a signal's name, such as SIGINT or TERM"
        ) from None


def world_to_proto(world: World, *, moved_base: Iterable[bytes] = ()) -> worlds_pb2.World:
    """A world as it is now."""
    spec = world.spec
    message = worlds_pb2.World(
        world_id=spec.world_id,
        session_id=spec.session_id,
        state=worlds_pb2.WORLD_STATE_LOST
        if world.lost
        else worlds_pb2.WORLD_STATE_REMOVING
        if world.removing
        else worlds_pb2.WORLD_STATE_PAUSED
        if world.state.paused
        else worlds_pb2.WORLD_STATE_READY,
        profile=spec.profile,
        project=spec.project.root if spec.project is not None else None,
        cwd=spec.cwd,
        network=spec.network,
        created_at=timestamp_to_proto(spec.created_at),
        keep=spec.keep,
        steps=world.state.steps,
        generation=world.state.generation,
        running=world.running,
        labels=[types_pb2.Label(key=key, value=value) for key, value in spec.labels],
        snapshot_id=world.state.snapshot_id,
        moved_base=moved_base,
        hostname=spec.hostname,
        limits=limits_to_proto(spec.limits),
        base=spec.base,
    )
    if spec.idle_timeout_s is not None:
        message.idle_timeout.FromNanoseconds(round(spec.idle_timeout_s * 1e9))
    if spec.expires_at is not None:
        message.expires_at.CopyFrom(timestamp_to_proto(spec.expires_at))
    return message


def exec_to_proto(exec_: Exec, *, with_result: bool = True) -> execs_pb2.Exec:
    """An exec as it is now."""
    start = exec_.start
    log = exec_.output_log
    message = execs_pb2.Exec(
        exec_id=start.exec_id,
        world_id=start.world_id,
        span_id=start.span_id,
        trace_id=start.trace_id,
        session_id=start.session_id,
        state={
            "running": execs_pb2.EXEC_STATE_RUNNING,
            "recording": execs_pb2.EXEC_STATE_RECORDING,
            "finished": execs_pb2.EXEC_STATE_FINISHED,
        }[exec_.phase],
        command=command_to_proto(start.action.command),
        decision=decision_to_proto(start.decision),
        started_at=timestamp_to_proto(start.start_time),
        pid=exec_.pid,
        output_bytes=log.stat().st_size if log.exists() else 0,
    )
    if with_result and exec_.record is not None:
        message.result.CopyFrom(result_to_proto(exec_.record))
    return message


def output_to_proto(frame: Frame) -> execs_pb2.Output:
    """A piece of output."""
    return execs_pb2.Output(
        stream=_STREAMS[frame.stream],
        data=frame.data,
        next_offset=frame.end,
        monotonic_ns=frame.mono_ns,
    )


def capabilities_to_proto(
    found: BackendCapabilities | None, problem: str, fix: str
) -> list[worlds_pb2.Capability]:
    """What this host can do, for people and for doctor."""
    if found is None:
        return [
            worlds_pb2.Capability(
                feature="worlds",
                state="missing",
                mode="",
                consequence=problem,
                fix=fix,
            )
        ]
    mapping_note = {
        "range": ("works", ""),
        "caller": ("works", ""),
        "weak": (
            "degraded",
            (
                "the world's root is the host's root without its capabilities: files that only "
                "root may read, and that no mask hides, can be read in a world"
            ),
        ),
    }[found.id_mapping]
    rows = [
        worlds_pb2.Capability(
            feature="worlds", state="works", mode="rootless" if found.rootless else "root"
        ),
        worlds_pb2.Capability(
            feature="id_mapping",
            state=mapping_note[0],
            mode=found.id_mapping,
            consequence=mapping_note[1],
        ),
        worlds_pb2.Capability(
            feature="overlay",
            state="works",
            mode=f"{found.overlay} ({', '.join(found.overlay_options)})"
            if found.overlay_options
            else found.overlay,
        ),
        worlds_pb2.Capability(feature="kill", state="works", mode=found.kill),
    ]
    rows.append(_users(found))
    rows += limit_rows(found)
    rows.append(_landlock(found.landlock_abi))
    rows += telemetry_rows(found)
    rows += [
        worlds_pb2.Capability(feature=feature, state=state, mode=mode, consequence=why, fix=how)
        for feature, state, mode, why, how in network_rows()
    ]
    rows += [
        worlds_pb2.Capability(feature="host", state="degraded", consequence=text)
        for text in found.problems
    ]
    return rows


def _users(found: BackendCapabilities) -> worlds_pb2.Capability:
    if found.id_mapping == "range":
        return worlds_pb2.Capability(feature="users", state="works", mode="65,536 ids")
    return worlds_pb2.Capability(
        feature="users",
        state="missing",
        mode="one id is mapped: the caller's",
        consequence="commands run as the caller; user= takes no other, and chown fails",
        fix="run the host as root (a system host)"
        if found.rootless
        else "a kernel that can id-map overlay layers: Linux 5.19 or newer",
    )


def _landlock(abi: int) -> worlds_pb2.Capability:
    if abi >= _OLDEST_LANDLOCK_ABI:
        return worlds_pb2.Capability(feature="landlock", state="works", mode=f"ABI {abi}")
    return worlds_pb2.Capability(
        feature="landlock",
        state="missing",
        mode=f"ABI {abi}" if abi else "",
        consequence="the mount namespace is the only wall around a world's files",
        fix="Linux 5.19 or newer with `landlock` among the names of /sys/kernel/security/lsm; "
        "boot with lsm=landlock,... to add it",
    )


def checked_env(field: str, variables: Iterable[types_pb2.EnvVar]) -> dict[bytes, bytes]:
    """Variables by name. Raises InvalidField."""
    found: dict[bytes, bytes] = {}
    for index, variable in enumerate(variables):
        if index >= _ENV_LIMIT:
            raise InvalidField(field, f"{index + 1} variables", f"expected at most {_ENV_LIMIT}")
        name = validation.environment_name(f"{field}[{index}].name", variable.name)
        if b"\0" in variable.value:
            raise InvalidField(
                f"{field}[{index}].value", variable.value, "it cannot contain a NUL byte"
            )
        found[name] = variable.value
    return found


def _cwd(cwd: bytes) -> bytes:
    if b"\0" in cwd:
        raise InvalidField("cwd", cwd, "it cannot contain a NUL byte")
    return cwd


def _umask(umask: int) -> int:
    if umask > 0o777:
        raise InvalidField("umask", oct(umask), "expected at most 0o777")
    return umask


def _pty(size: execs_pb2.PtySize) -> tuple[int, int]:
    if not (0 < size.rows < 65_536 and 0 < size.columns < 65_536):
        raise InvalidField(
            "pty", f"{size.rows}x{size.columns}", "expected rows and columns from 1 to 65,535"
        )
    return size.rows, size.columns


def _telemetry(classes: Iterable[str]) -> tuple[str, ...]:
    wanted = tuple(classes)
    try:
        classes_mask(wanted)
    except ValueError as error:
        raise InvalidField("telemetry", wanted, str(error)) from error
    return wanted


def _hostname(name: str) -> str:
    allowed = all(char.isascii() and (char.isalnum() or char in "-.") for char in name)
    if len(name) > 64 or not allowed:
        raise InvalidField("hostname", name, "expected at most 64 letters, digits, '-' and '.'")
    return name


def _not_built(what: str) -> ServiceError:
    return ServiceError("NOT_BUILT", f"{what} is not built yet in this version of Substrate")
