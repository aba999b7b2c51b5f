"""What a fork asks for: a world like the one of a recorded step, with the tree after it."""

from __future__ import annotations

from substrate_services.journal.schema import SpanRecord
from substrate_services.world.limits import Limits
from substrate_services.world.preparing import WorldRequest
from substrate_services.world.worlds import World


def fork_request(record: SpanRecord, origin: World | None, request_id: str) -> WorldRequest:
    """The request for a fork.

    Args:
        record: the step.
        origin: its world, where that lives; it is what the fork is like.
        request_id: makes a repeated request harmless.

    A fork belongs to the session of the step: it is another way on from there. Where its world is
    gone, the step's own action says what that was like, and the fork stays until it is removed.
    """
    action = record.action
    if origin is None:
        return WorldRequest(
            cwd=action.cwd,
            request_id=request_id,
            session_id=record.session_id,
            trace_id=record.trace_id,
            agent_id=record.agent_id,
            profile=action.profile,
            env={name: value for name, value in action.env if name != b"PWD"},
            user=action.user,
            network=action.network,
            limits=Limits.from_action(action.limits),
            labels=record.labels,
            keep=True,
            after_span_id=record.span_id,
        )
    spec = origin.spec
    return WorldRequest(
        cwd=spec.cwd,
        request_id=request_id,
        session_id=spec.session_id,
        trace_id=spec.trace_id,
        agent_id=spec.agent_id,
        profile=spec.profile,
        env=dict(spec.env),
        user=spec.user,
        network=spec.network,
        limits=spec.limits,
        hostname=spec.hostname,
        labels=spec.labels,
        keep=spec.keep,
        idle_timeout_s=spec.idle_timeout_s,
        policy_file=spec.policy_file,
        telemetry=spec.telemetry,
        after_span_id=record.span_id,
    )
