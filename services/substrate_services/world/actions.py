"""What a step is to do, from what a client asks for or from a recording; and how it begins."""

from __future__ import annotations

import os
import time
from dataclasses import replace

from substrate_services.errors import InvalidField, ServiceError
from substrate_services.journal.codec import SpanStart
from substrate_services.journal.reader import JournalReader
from substrate_services.journal.schema import Action, Command, Decision, SpanRecord
from substrate_services.world.file_kinds import FILES_KINDS
from substrate_services.world.ids import new_span_id
from substrate_services.world.steps import ExecRequest, StepKind
from substrate_services.world.worlds import World

DEFAULT_UMASK = 0o022


class Actions:
    """Finds out what steps are to do.

    Args:
        reader: reads the host's journal.
    """

    def __init__(self, reader: JournalReader) -> None:
        self._reader = reader

    def resolve(
        self, world: World, request: ExecRequest
    ) -> tuple[Action, SpanRecord | None, StepKind]:
        """Everything that determines the exec, from the request or from a recording."""
        if request.recorded_span_id is not None:
            record = self._reader.find_span(request.recorded_span_id)
            if record is None:
                raise ServiceError(
                    "SPAN_NOT_FOUND", f"no span {request.recorded_span_id!r} is recorded here"
                )
            action = replace(record.action, snapshot_id=world.tree.snapshot_id)
            return action, record, FILES_KINDS.get(record.kind, "exec")
        spec = world.spec
        command = _command(request, spec.shell)
        env = dict(spec.env)
        env.update(request.env)
        cwd = request.cwd if request.cwd is not None else spec.cwd
        if not cwd.startswith(b"/"):
            cwd = os.path.normpath(os.path.join(spec.cwd, cwd))
        env[b"PWD"] = cwd
        action = Action(
            command=command,
            cwd=cwd,
            env=tuple(sorted(env.items())),
            umask=DEFAULT_UMASK if request.umask is None else request.umask,
            user=request.user or spec.user,
            stdin_digest=request.stdin_digest,
            snapshot_id=world.tree.snapshot_id,
            timeout_s=request.timeout_s,
            pty=request.pty is not None,
            pty_size=request.pty,
            profile=spec.profile,
            network=spec.network,
            limits=spec.limits.to_action(),
        )
        return action, None, request.kind

    def original(self, start: SpanStart) -> SpanStart | SpanRecord:
        """The step whose place in the trace the command is told; a replay is told the recorded."""
        step: SpanStart | SpanRecord = start
        while step.replay_of is not None:
            recorded = self._reader.find_span(step.replay_of)
            if recorded is None:
                break
            step = recorded
        return step


def span_start(
    world: World,
    request: ExecRequest,
    kind: StepKind,
    action: Action,
    *,
    decision: Decision,
    replay_of: SpanRecord | None,
) -> SpanStart:
    """The beginning of a step, for the journal."""
    action = replace(action, policy_hash=decision.policy_hash)
    caller_trace, caller_span = _caller(request.traceparent)
    return SpanStart(
        span_id=new_span_id(),
        trace_id=caller_trace or world.spec.trace_id,
        session_id=request.session_id or world.spec.session_id,
        world_id=world.spec.world_id,
        exec_id=request.exec_id,
        kind=kind,
        agent_id=request.agent_id or world.spec.agent_id,
        parent_span=caller_span,
        start_time=time.time(),
        action=action,
        decision=decision,
        replay_of=replay_of.span_id if replay_of is not None else None,
        replay_of_trace=replay_of.trace_id if replay_of is not None else None,
        labels=world.spec.labels,
        utc_offset_ns=_boot_to_utc_ns(),
        project=world.spec.project.root if world.spec.project is not None else None,
        shell=request.in_shell,
    )


def _command(request: ExecRequest, shell: bytes) -> Command:
    if request.shell is not None:
        shell = shell or (b"/bin/bash" if os.path.exists("/bin/bash") else b"/bin/sh")
        return Command((shell, b"-c", request.shell), request.shell)
    if not request.argv or not request.argv[0]:
        raise InvalidField("argv", list(request.argv), "expected a program and its arguments")
    return Command(request.argv)


def with_first_pid(start: SpanStart, pid: int) -> SpanStart:
    """Known only once it runs; a host that takes over hears it from the world's init."""
    return replace(start, action=replace(start.action, first_pid=pid))


def identity_env(step: SpanStart | SpanRecord) -> dict[bytes, bytes]:
    """The command's own place in the trace, for its environment.

    W3C traceparent as the OpenTelemetry environment carriers put it; the SUBSTRATE_ names are
    those of the original format. No part of the action: two runs of one command are one action.
    """
    return {
        b"TRACEPARENT": f"00-{step.trace_id}-{step.span_id}-01".encode(),
        b"SUBSTRATE_SESSION_ID": step.session_id.encode(),
        b"SUBSTRATE_PARENT_SPAN": step.span_id.encode(),
        b"SUBSTRATE_WORLD_ID": step.world_id.encode(),
    }


def _caller(traceparent: str) -> tuple[str | None, str | None]:
    """Trace and span of the caller, from a traceparent that the edge has checked."""
    parts = traceparent.split("-")
    return (parts[1], parts[2]) if len(parts) >= 4 else (None, None)


def _boot_to_utc_ns() -> int:
    return time.time_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME)
