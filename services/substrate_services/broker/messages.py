"""The broker's types and their protobuf forms, validated on the way in."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from substrate_sdk._pb.substrate.broker.v1alpha1 import broker_pb2
from substrate_sdk._pb.substrate.common.v1alpha1 import types_pb2
from substrate_services.broker.decide import Checked, Explanation, StepRequest
from substrate_services.broker.policy import Policy
from substrate_services.broker.policy_file import Reach
from substrate_services.errors import InvalidField
from substrate_services.journal.schema import Command
from substrate_services.wire import validation
from substrate_services.wire.convert import DECISION_ACTIONS, POLICY_MODES, decision_to_proto

_REACH: dict[int, frozenset[Reach]] = {
    broker_pb2.STEP_KIND_EXEC: frozenset(),
    broker_pb2.STEP_KIND_FILES: frozenset(),
    broker_pb2.STEP_KIND_APPLY: frozenset(["apply"]),
    broker_pb2.STEP_KIND_NETWORK: frozenset(["network"]),
    broker_pb2.STEP_KIND_SECRET: frozenset(["secrets"]),
    broker_pb2.STEP_KIND_HOST_EXEC: frozenset(["host"]),
}
_KINDS_WITH_COMMAND = (broker_pb2.STEP_KIND_EXEC, broker_pb2.STEP_KIND_HOST_EXEC)
_PROFILE = re.compile(r"[A-Za-z0-9_.-]{1,64}\Z")
_DIGEST = re.compile(r"[0-9a-f]{64}\Z")


@dataclass(frozen=True, slots=True)
class Step:
    """What a request asks about, and which policies count for it."""

    request: StepRequest
    project: Path | None
    files: tuple[Path, ...]


def step_from_proto(facts: broker_pb2.StepFacts) -> Step:
    """Validate a request's facts.

    Raises:
        InvalidField: naming the field, as ``step.…``, and its value.
    """
    reach = _REACH.get(facts.kind)
    if reach is None:
        raise InvalidField("step.kind", facts.kind, "expected a STEP_KIND other than UNSPECIFIED")
    command = None
    if facts.kind in _KINDS_WITH_COMMAND:
        command = command_from_proto("step.command", facts.command)
    elif facts.HasField("command"):
        name = broker_pb2.StepKind.Name(facts.kind)
        raise InvalidField("step.command", "a command", f"a step of kind {name} has none")
    if facts.cwd:
        validation.absolute_path("step.cwd", facts.cwd)
    for index, path in enumerate(facts.paths):
        validation.absolute_path(f"step.paths[{index}]", path)
    if facts.action_digest and not _DIGEST.match(facts.action_digest):
        raise InvalidField("step.action_digest", facts.action_digest, "expected 64 hex digits")
    profile = facts.profile or "workspace"
    if not _PROFILE.match(profile):
        raise InvalidField("step.profile", profile, "expected a profile's name")
    network = tuple(
        validation.bounded_text(f"step.network[{index}]", rule)
        for index, rule in enumerate(facts.network)
    )
    request = StepRequest(
        command=command,
        reach=reach,
        network=network,
        profile=profile,
        agent_id=validation.bounded_text("step.agent_id", facts.agent_id),
        session_id=validation.bounded_text("step.session_id", facts.session_id),
        world_id=validation.bounded_text("step.world_id", facts.world_id),
        cwd=facts.cwd,
    )
    project = None
    if facts.HasField("project"):
        project = host_path("step.project", facts.project)
    files = (host_path("step.policy_file", facts.policy_file),) if facts.policy_file else ()
    return Step(request, project, files)


def command_from_proto(field: str, command: types_pb2.Command) -> Command:
    """Validate a command.

    Raises:
        InvalidField: there is no argv, or a NUL byte in it.
    """
    argv = validation.argument_vector(f"{field}.argv", list(command.argv))
    shell = command.shell if command.HasField("shell") else None
    if shell is not None and b"\0" in shell:
        raise InvalidField(f"{field}.shell", shell, "it cannot contain a NUL byte")
    return Command(argv, shell)


def host_path(field: str, value: bytes) -> Path:
    """A path on the host, from bytes.

    Raises:
        InvalidField: it is not absolute, or no path.
    """
    return Path(os.fsdecode(validation.absolute_path(field, value)))


def explanation_to_proto(explanation: Explanation) -> broker_pb2.ExplainResponse:
    """The wire form of an explanation."""
    return broker_pb2.ExplainResponse(
        decision=decision_to_proto(explanation.decision),
        rules=(
            broker_pb2.RuleTrace(
                rule_id=entry.rule.id,
                source=_text(entry.rule.source),
                action=DECISION_ACTIONS[entry.rule.action],
                matched=entry.matched,
                command=entry.command.source,
            )
            for entry in explanation.considered
        ),
        commands=(command.source for command in explanation.commands),
        text=_text(explanation.text()),
    )


def checked_to_proto(checked: Checked) -> broker_pb2.CheckResponse:
    """The wire form of what a check found. Notes are told with the mistakes, marked as notes."""
    return broker_pb2.CheckResponse(
        problems=(
            broker_pb2.PolicyProblem(
                source=_text(problem.source),
                message=f"note: {problem.message}"
                if problem.severity == "note"
                else problem.message,
            )
            for problem in checked.problems
        ),
        rules=checked.rules,
        examples=checked.examples,
    )


def policy_to_proto(policy: Policy) -> broker_pb2.Policy:
    """The wire form of what a policy is, without its rules."""
    return broker_pb2.Policy(
        policy_hash=policy.hash,
        mode=POLICY_MODES[policy.mode],
        files=_texts(policy.files),
        rules=len(policy.rules),
        telemetry=policy.telemetry,
    )


def _texts(values: Iterable[str]) -> list[str]:
    return [_text(value) for value in values]


def _text(value: str) -> str:
    """A string that protobuf takes: paths need not be UTF-8."""
    return value.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
