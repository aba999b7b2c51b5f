"""BrokerService on the wire.

The broker only says what policy says. What becomes of an ``ask`` is up to the World service, the
enforcement point: where nobody can be asked, it denies and says so.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from substrate_sdk._pb.substrate.broker.v1alpha1 import broker_pb2, broker_pb2_grpc
from substrate_services.broker import messages
from substrate_services.broker.decide import StepRequest, check, decide, explain
from substrate_services.broker.policy import HostPolicyError, Policy, PolicyError
from substrate_services.broker.source import PolicySource
from substrate_services.errors import ServiceError
from substrate_services.wire.convert import decision_to_proto
from substrate_services.wire.errors import Context

_INLINE_BYTES = 4_096  # a command up to this long is decided about in well under 10 ms
_LISTED_PROBLEMS = 5
_Result = TypeVar("_Result")


class BrokerServicer(broker_pb2_grpc.BrokerServiceServicer):
    """Evaluate, Explain, Check, LoadPolicy and GetPolicy.

    Args:
        source: the policy in force; shared with nobody who changes it.
    """

    def __init__(self, source: PolicySource) -> None:
        self._source = source

    async def Evaluate(  # the name is gRPC's
        self, request: broker_pb2.EvaluateRequest, context: Context
    ) -> broker_pb2.EvaluateResponse:
        """Decides about a step."""
        del context
        step = messages.step_from_proto(request.step)
        policy = self._policy(step.project, step.files)
        decision = await _off_loop_if_long(decide, policy, step.request)
        return broker_pb2.EvaluateResponse(decision=decision_to_proto(decision))

    async def Explain(
        self, request: broker_pb2.ExplainRequest, context: Context
    ) -> broker_pb2.ExplainResponse:
        """Decides about a step, and says how it came to that."""
        del context
        step = messages.step_from_proto(request.step)
        policy = self._policy(step.project, step.files)
        return messages.explanation_to_proto(await _off_loop_if_long(explain, policy, step.request))

    async def Check(
        self, request: broker_pb2.CheckRequest, context: Context
    ) -> broker_pb2.CheckResponse:
        """Looks for mistakes in policy files."""
        del context
        paths = [
            messages.host_path(f"files[{index}]", file) for index, file in enumerate(request.files)
        ]
        checked = await asyncio.to_thread(check, paths or self._source.host_files())
        return messages.checked_to_proto(checked)

    async def LoadPolicy(
        self, request: broker_pb2.LoadPolicyRequest, context: Context
    ) -> broker_pb2.LoadPolicyResponse:
        """Reads the host's policy files again."""
        del request, context
        try:
            policy = await asyncio.to_thread(self._source.reload)
        except PolicyError as error:
            raise _policy_invalid(error) from error
        return broker_pb2.LoadPolicyResponse(policy=messages.policy_to_proto(policy))

    async def GetPolicy(
        self, request: broker_pb2.GetPolicyRequest, context: Context
    ) -> broker_pb2.GetPolicyResponse:
        """Says which policy is in force."""
        del context
        project = None
        if request.HasField("project"):
            project = messages.host_path("project", request.project)
        policy = self._policy(project, ())
        return broker_pb2.GetPolicyResponse(policy=messages.policy_to_proto(policy))

    def _policy(self, project: Path | None, files: tuple[Path, ...]) -> Policy:
        try:
            return self._source.current(project=project, files=files)
        except PolicyError as error:
            raise _policy_invalid(error) from error


async def _off_loop_if_long(
    call: Callable[[Policy, StepRequest], _Result], policy: Policy, request: StepRequest
) -> _Result:
    """Long scripts take tens of milliseconds to read: other calls go on meanwhile."""
    command = request.command
    size = 0 if command is None else sum(map(len, command.argv)) + len(command.shell or b"")
    if size <= _INLINE_BYTES:
        return call(policy, request)
    return await asyncio.to_thread(call, policy, request)


def _policy_invalid(error: PolicyError) -> ServiceError:
    """All mistakes in one line; a file of the request is the caller's fault, the host's is not."""
    told = [str(problem) for problem in error.problems[:_LISTED_PROBLEMS]]
    if len(error.problems) > _LISTED_PROBLEMS:
        told.append(f"and {len(error.problems) - _LISTED_PROBLEMS} more (substrate policy check)")
    code = "FAILED_PRECONDITION" if isinstance(error, HostPolicyError) else "INVALID_ARGUMENT"
    return ServiceError("POLICY_INVALID", "; ".join(told), code=code)
