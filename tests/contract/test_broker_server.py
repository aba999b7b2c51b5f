"""BrokerService over a real socket."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from substrate_sdk import errors
from substrate_sdk._pb.substrate.broker.v1alpha1 import broker_pb2, broker_pb2_grpc
from substrate_sdk._pb.substrate.common.v1alpha1 import types_pb2
from substrate_services.broker.server import BrokerServicer
from substrate_services.broker.source import PolicySource
from substrate_services.wire.convert import decision_from_proto
from tests.contract.harness import failure, serving

_Result = TypeVar("_Result")
DENY_RM = "version: 1\nrules:\n- {id: no-rm, action: deny, command: 'rm -rf *'}\n"


def write(home: Path, text: str) -> Path:
    """The home, with this as the host's policy."""
    (home / "policies").mkdir(exist_ok=True)
    (home / "policies" / "a.yaml").write_text(text)
    return home


def talk(
    home: Path, conversation: Callable[[broker_pb2_grpc.BrokerServiceAsyncStub], Awaitable[_Result]]
) -> _Result:
    """Hold a conversation with a broker that serves the home's policy."""

    async def scenario() -> _Result:
        servicer = BrokerServicer(PolicySource(home))
        async with serving(home / "run" / "host.sock", servicer) as channel:
            return await conversation(broker_pb2_grpc.BrokerServiceStub(channel))

    return asyncio.run(scenario())


def facts(script: bytes, kind: broker_pb2.StepKind.ValueType = broker_pb2.STEP_KIND_EXEC,
          **more: object) -> broker_pb2.StepFacts:  # fmt: skip
    command = types_pb2.Command(argv=[b"/bin/sh", b"-c", script], shell=script)
    return broker_pb2.StepFacts(kind=kind, command=command, **more)  # type: ignore[arg-type]


def test_evaluate_decides_by_every_layer(tmp_path: Path) -> None:
    home = write(tmp_path, DENY_RM)
    session = tmp_path / "session.yaml"
    session.write_text("version: 1\nrules: [{id: no-ls, action: ask, command: ls}]\n")
    project = tmp_path / "project"
    (project / ".substrate").mkdir(parents=True)
    (project / ".substrate" / "policy.yaml").write_text(
        "version: 1\nrules: [{id: no-dd, action: deny, command: 'dd:*'}]\n"
    )

    async def conversation(stub: broker_pb2_grpc.BrokerServiceAsyncStub) -> list[str]:
        asked = [
            facts(b"true; rm -rf \xff"),
            facts(b"ls"),
            facts(b"ls", policy_file=bytes(session)),
            facts(b"dd if=a"),
            facts(b"dd if=a", project=bytes(project)),
            facts(b"ls", broker_pb2.STEP_KIND_HOST_EXEC),
            facts(b"git push", network=["@github"]),
            broker_pb2.StepFacts(kind=broker_pb2.STEP_KIND_APPLY, paths=[b"/src/a"]),
        ]
        answers = []
        for step in asked:
            response = await stub.Evaluate(broker_pb2.EvaluateRequest(step=step))
            decision = decision_from_proto(response.decision)
            assert decision.enforced
            assert decision.decider == "policy"
            answers.append(f"{decision.action} {decision.rule_id}")
        return answers

    assert talk(home, conversation) == [
        "deny no-rm", "allow default", "ask no-ls", "allow default", "deny no-dd", "ask default",
        "ask builtin.publish", "ask default",
    ]  # fmt: skip


def test_explain_gives_the_rules_the_commands_and_a_text(tmp_path: Path) -> None:
    home = write(tmp_path, DENY_RM)

    async def conversation(
        stub: broker_pb2_grpc.BrokerServiceAsyncStub,
    ) -> broker_pb2.ExplainResponse:
        step = facts(b"cd a && sudo rm -rf x")
        return await stub.Explain(broker_pb2.ExplainRequest(step=step))

    told = talk(home, conversation)
    assert list(told.commands) == [b"cd a", b"sudo rm -rf x", b"rm -rf x"]
    matched = [(rule.rule_id, rule.command) for rule in told.rules if rule.matched]
    assert matched == [("no-rm", b"rm -rf x")]
    assert told.decision.action == types_pb2.DECISION_ACTION_DENY
    assert told.text.startswith("deny: `rm -rf x` is denied by rule no-rm.")


def test_malformed_facts_are_refused_by_field_and_value(tmp_path: Path) -> None:
    command = types_pb2.Command(argv=[b"ls"])
    bad = {
        "step.kind": broker_pb2.StepFacts(command=command),
        "step.command.argv": broker_pb2.StepFacts(kind=broker_pb2.STEP_KIND_EXEC),
        "step.command.argv[1]": broker_pb2.StepFacts(
            kind=broker_pb2.STEP_KIND_EXEC, command=types_pb2.Command(argv=[b"a", b"\0"])
        ),
        "step.command.shell": broker_pb2.StepFacts(
            kind=broker_pb2.STEP_KIND_EXEC, command=types_pb2.Command(argv=[b"a"], shell=b"a\0")
        ),
        "step.command": broker_pb2.StepFacts(kind=broker_pb2.STEP_KIND_APPLY, command=command),
        "step.cwd": facts(b"ls", cwd=b"relative"),
        "step.paths[0]": facts(b"ls", paths=[b"relative"]),
        "step.project": facts(b"ls", project=b"relative"),
        "step.policy_file": facts(b"ls", policy_file=b"relative"),
        "step.action_digest": facts(b"ls", action_digest="ABC"),
        "step.profile": facts(b"ls", profile="a b"),
        "step.agent_id": facts(b"ls", agent_id="a\nb"),
    }

    async def conversation(
        stub: broker_pb2_grpc.BrokerServiceAsyncStub,
    ) -> dict[str, errors.SubstrateError]:
        return {
            field: await failure(stub.Evaluate(broker_pb2.EvaluateRequest(step=step)))
            for field, step in bad.items()
        }

    for field, error in talk(write(tmp_path, DENY_RM), conversation).items():
        assert error.reason == "INVALID_ARGUMENT", field
        assert str(error).startswith(f"{field} is "), str(error)


def test_a_wrong_file_of_the_request_is_named_with_all_its_mistakes(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("version: 1\nmode: x\nrules: [{action: y, command: ls}]\n")

    async def conversation(stub: broker_pb2_grpc.BrokerServiceAsyncStub) -> errors.SubstrateError:
        step = facts(b"ls", policy_file=bytes(wrong))
        error = await failure(stub.Evaluate(broker_pb2.EvaluateRequest(step=step)))
        right = await stub.Evaluate(broker_pb2.EvaluateRequest(step=facts(b"ls")))
        assert right.decision.action == types_pb2.DECISION_ACTION_ALLOW
        return error

    error = talk(write(tmp_path, DENY_RM), conversation)
    assert error.reason == "POLICY_INVALID"
    assert f"{wrong}:2: `mode: x` is not known" in str(error)
    assert f"{wrong}:3: `action: y` is not known" in str(error)
    assert "\n" not in str(error)


def test_a_changed_policy_counts_at_once_and_a_wrong_one_does_not(tmp_path: Path) -> None:
    home = write(tmp_path, DENY_RM)

    async def conversation(stub: broker_pb2_grpc.BrokerServiceAsyncStub) -> None:
        before = (await stub.GetPolicy(broker_pb2.GetPolicyRequest())).policy
        assert (before.mode, before.rules) == (types_pb2.POLICY_MODE_ENFORCE, 2)
        assert list(before.files) == ["<built-in>/workspace.yaml", f"{home}/policies/a.yaml"]
        write(home, "version: 1\nmode: observe\n")
        after = (await stub.GetPolicy(broker_pb2.GetPolicyRequest())).policy
        assert (after.mode, after.rules) == (types_pb2.POLICY_MODE_OBSERVE, 1)
        assert after.policy_hash != before.policy_hash
        write(home, "version: 1\nmode: obsrve\n")
        error = await failure(stub.LoadPolicy(broker_pb2.LoadPolicyRequest()))
        assert error.reason == "POLICY_INVALID"
        assert "a.yaml:2: `mode: obsrve` is not known" in str(error)
        still = (await stub.GetPolicy(broker_pb2.GetPolicyRequest())).policy
        assert still == after
        write(home, DENY_RM)
        loaded = (await stub.LoadPolicy(broker_pb2.LoadPolicyRequest())).policy
        assert loaded.policy_hash == before.policy_hash

    talk(home, conversation)


def test_check_answers_with_mistakes_and_counts(tmp_path: Path) -> None:
    home = write(tmp_path, DENY_RM)
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("version: 1\nrules: [{action: deny, command: ls, match: [cd]}]\n")

    async def conversation(stub: broker_pb2_grpc.BrokerServiceAsyncStub) -> None:
        in_force = await stub.Check(broker_pb2.CheckRequest())
        assert (list(in_force.problems), in_force.rules) == ([], 1)
        checked = await stub.Check(broker_pb2.CheckRequest(files=[bytes(wrong)]))
        (problem,) = checked.problems
        assert problem.source == f"{wrong}:2"
        assert "does not match its example `cd`" in problem.message
        assert checked.examples == 1

    talk(home, conversation)


def test_a_long_script_holds_up_nobody(tmp_path: Path) -> None:
    hostile = b"ls $X; " * 9_000

    async def conversation(stub: broker_pb2_grpc.BrokerServiceAsyncStub) -> None:
        slow = asyncio.ensure_future(_evaluate(stub, facts(hostile)))
        quick = await _evaluate(stub, facts(b"true; rm -rf x"))
        assert quick.action == types_pb2.DECISION_ACTION_DENY
        assert (await slow).action == types_pb2.DECISION_ACTION_ALLOW

    talk(write(tmp_path, DENY_RM), conversation)


async def _evaluate(
    stub: broker_pb2_grpc.BrokerServiceAsyncStub, step: broker_pb2.StepFacts
) -> types_pb2.Decision:
    return (await stub.Evaluate(broker_pb2.EvaluateRequest(step=step))).decision
