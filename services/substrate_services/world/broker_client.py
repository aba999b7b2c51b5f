"""Asks the broker about steps, over gRPC: the World is where policy is enforced."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from substrate_sdk._pb.substrate.broker.v1alpha1 import broker_pb2, broker_pb2_grpc
from substrate_services.journal.action import action_digest
from substrate_services.journal.schema import Action, Decision
from substrate_services.wire.convert import command_to_proto, decision_from_proto
from substrate_services.world.file_steps import paths_of
from substrate_services.world.spec import WorldSpec
from substrate_services.world.steps import HOST_KINDS, StepKind
from substrate_services.world.worlds import World

if TYPE_CHECKING:
    import grpc.aio

_CLASSES_FOR_S = 1.0


class BrokerClient:
    """A :class:`~substrate_services.world.execs.Decider`.

    Args:
        channel: to the BrokerService.
    """

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._broker = broker_pb2_grpc.BrokerServiceStub(channel)
        self._classes: tuple[str, ...] = ()
        self._asked = -math.inf

    async def telemetry_classes(self) -> tuple[str, ...]:
        """What worlds record whose creator does not say; all where empty.

        A change of the host's policy shows within a second: worlds are made too often to ask the
        broker about each.
        """
        now = time.monotonic()
        if now - self._asked > _CLASSES_FOR_S:
            answer = await self._broker.GetPolicy(broker_pb2.GetPolicyRequest())
            self._classes, self._asked = tuple(answer.policy.telemetry), now
        return self._classes

    async def decide_network(self, spec: WorldSpec) -> Decision:
        """What policy says of a world with this network."""
        facts = _facts(spec, spec.cwd, spec.network)
        facts.kind = broker_pb2.STEP_KIND_NETWORK
        answer = await self._broker.Evaluate(broker_pb2.EvaluateRequest(step=facts))
        return decision_from_proto(answer.decision)

    async def decide(self, world: World, action: Action, kind: StepKind) -> Decision:
        """See :class:`Decider`."""
        facts = _facts(world.spec, action.cwd, action.network)
        facts.action_digest = action_digest(action)
        if kind == "exec":
            facts.kind = broker_pb2.STEP_KIND_EXEC
            facts.command.CopyFrom(command_to_proto(action.command))
        elif kind == "apply":
            facts.kind = broker_pb2.STEP_KIND_APPLY
            facts.paths.extend(action.command.argv[1:])
        elif kind in HOST_KINDS:
            facts.kind = broker_pb2.STEP_KIND_FILES  # of the world's own files
        else:
            facts.kind = broker_pb2.STEP_KIND_FILES
            facts.paths.extend(_changed(action))
        answer = await self._broker.Evaluate(broker_pb2.EvaluateRequest(step=facts))
        return decision_from_proto(answer.decision)


def _facts(spec: WorldSpec, cwd: bytes, network: Sequence[str]) -> broker_pb2.StepFacts:
    """What policy is told of a world, whatever it is asked about."""
    return broker_pb2.StepFacts(
        world_id=spec.world_id,
        session_id=spec.session_id,
        agent_id=spec.agent_id,
        profile=spec.profile,
        cwd=cwd,
        project=spec.project.root if spec.project is not None else None,
        policy_file=spec.policy_file or b"",
        network=network,
    )


def _changed(action: Action) -> list[bytes]:
    """The paths that a Files step is about, absolute; nothing is looked up."""
    return [
        os.path.normpath(os.path.join(action.cwd, path)) for path in paths_of(action.command.argv)
    ]
