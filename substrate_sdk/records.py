"""What the SDK gives back of the record: steps, replays, policies; see ``types`` for the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, cast

from substrate_sdk._facts import Decision, milliseconds, named
from substrate_sdk._jsonform import JsonObject, JsonValue, bytes_form, optional_bytes_form
from substrate_sdk._results import Result

if TYPE_CHECKING:
    from substrate_sdk._pb.substrate.broker.v1alpha1 import broker_pb2
    from substrate_sdk._pb.substrate.replay.v1alpha1 import replay_pb2
    from substrate_sdk._pb.substrate.trace.v1alpha1 import trace_pb2

__all__ = [
    "Divergence",
    "Explanation",
    "Finding",
    "Missing",
    "NotCompared",
    "PolicyCheck",
    "PolicyProblem",
    "Progress",
    "ReplayRun",
    "Report",
    "RuleTrace",
    "Span",
    "Verification",
]

Verdict = Literal[
    "unknown",
    "identical",
    "diverged",
    "flake",
    "environment_drift",
    "regression",
    "environment_dependent",
    "not_run",
]
_VERDICTS: tuple[Verdict, ...] = (
    "unknown",
    "identical",
    "diverged",
    "flake",
    "environment_drift",
    "regression",
    "environment_dependent",
    "not_run",
)

_DECISIONS = ("unknown", "allow", "ask", "deny")


@dataclass(frozen=True, slots=True)
class Span:
    """A recorded step.

    Attributes:
        result: its outcome; its output is in the objects that the digests name.
        kind: exec, files.write and so on.
        argv: the exact arguments.
        shell: the string that they were made from, if there was one.
        cwd: where it started.
        env: its environment, exactly.
        umask: its file mode creation mask.
        user: its user in the world.
        pty: it had a terminal.
        agent_id: who asked.
        parent_span_id: the span that it was asked from.
        stdin_digest: object with its standard input.
        events_digest: object with all of its events.
        changes_digest: object with all of its changes.
        replay_of: the recording that it replays.
        project: the project.
    """

    result: Result
    kind: str
    argv: tuple[bytes, ...]
    shell: bytes | None
    cwd: bytes
    env: tuple[tuple[bytes, bytes], ...]
    umask: int
    user: str
    pty: bool
    agent_id: str
    parent_span_id: str | None
    stdin_digest: str | None
    events_digest: str | None
    changes_digest: str | None
    replay_of: str | None
    project: bytes | None

    @property
    def span_id(self) -> str:
        """Its id, 16 hex digits."""
        return self.result.span_id

    @classmethod
    def from_proto(cls, proto: trace_pb2.Span) -> Span:
        """Read the message."""
        command = proto.command
        return cls(
            result=Result.from_proto(proto.result),
            kind=proto.kind,
            argv=tuple(command.argv),
            shell=command.shell if command.HasField("shell") else None,
            cwd=proto.cwd,
            env=tuple((item.name, item.value) for item in proto.env),
            umask=proto.umask,
            user=proto.user,
            pty=proto.pty,
            agent_id=proto.agent_id,
            parent_span_id=proto.parent_span_id if proto.HasField("parent_span_id") else None,
            stdin_digest=proto.stdin_digest if proto.HasField("stdin_digest") else None,
            events_digest=proto.events_digest if proto.HasField("events_digest") else None,
            changes_digest=proto.changes_digest if proto.HasField("changes_digest") else None,
            replay_of=proto.replay_of if proto.HasField("replay_of") else None,
            project=proto.project if proto.HasField("project") else None,
        )

    def to_json(self) -> JsonObject:
        """The object that ``substrate trace show --json`` prints: a result's, and what was asked.

        Without output, which is in the objects that the digests name.
        """
        command: JsonObject = {
            "argv": [bytes_form(item) for item in self.argv],
            "shell": optional_bytes_form(self.shell),
        }
        env: list[JsonValue] = [[bytes_form(name), bytes_form(value)] for name, value in self.env]
        return {
            **self.result.to_json(output=False),
            "kind": self.kind,
            "command": command,
            "cwd": bytes_form(self.cwd),
            "env": env,
            "umask": f"{self.umask:04o}",
            "user": self.user,
            "pty": self.pty,
            "agent_id": self.agent_id,
            "parent_span_id": self.parent_span_id,
            "stdin_digest": self.stdin_digest,
            "events_digest": self.events_digest,
            "changes_digest": self.changes_digest,
            "replay_of": self.replay_of,
            "project": optional_bytes_form(self.project),
        }


@dataclass(frozen=True, slots=True)
class Divergence:
    """A difference between a recording and a replay.

    Attributes:
        dimension: exit, changes, stdout, stderr, processes, files or network.
        cause: what caused it, where known.
        path: the path that it is about.
        place: a line number, a process, an operation.
        expected: what was recorded.
        actual: what happened.
        detail: one sentence for people.
        informative: listed for information; the verdict does not rest on it.
        run: which run, from 1.
    """

    dimension: str
    cause: str
    path: bytes | None
    place: str
    expected: bytes
    actual: bytes
    detail: str
    informative: bool
    run: int

    @classmethod
    def from_proto(cls, proto: replay_pb2.Divergence) -> Divergence:
        """Read the message."""
        return cls(
            dimension=proto.dimension,
            cause=proto.cause,
            path=proto.path if proto.HasField("path") else None,
            place=proto.place,
            expected=proto.expected,
            actual=proto.actual,
            detail=proto.detail,
            informative=proto.informative,
            run=proto.run,
        )

    def to_json(self) -> JsonObject:
        """The object that ``--json`` prints."""
        return {
            "dimension": self.dimension,
            "cause": self.cause,
            "path": optional_bytes_form(self.path),
            "place": self.place,
            "expected": bytes_form(self.expected),
            "actual": bytes_form(self.actual),
            "detail": self.detail,
            "informative": self.informative,
            "run": self.run,
        }


@dataclass(frozen=True, slots=True)
class NotCompared:
    """A dimension that a replay did not compare, and why."""

    dimension: str
    reason: str

    def to_json(self) -> JsonObject:
        """The object that ``--json`` prints."""
        return {"dimension": self.dimension, "reason": self.reason}


@dataclass(frozen=True, slots=True)
class Missing:
    """A path of the recorded tree that could not be restored, and why."""

    path: bytes
    reason: str

    def to_json(self) -> JsonObject:
        """The object that ``--json`` prints."""
        return {"path": bytes_form(self.path), "reason": self.reason}


@dataclass(frozen=True, slots=True)
class ReplayRun:
    """One run of a replay.

    Attributes:
        number: from 1.
        span_id: its own span.
        verdict: what it says.
        duration_ms: how long the command took.
        total_ms: how long everything took.
        reason: why it was not run; empty when it was.
    """

    number: int
    span_id: str
    verdict: Verdict
    duration_ms: float
    total_ms: float
    reason: str = ""

    @classmethod
    def from_proto(cls, proto: replay_pb2.Run) -> ReplayRun:
        """Read the message."""
        return cls(
            number=proto.number,
            span_id=proto.span_id,
            verdict=cast("Verdict", named(_VERDICTS, proto.verdict)),
            duration_ms=milliseconds(proto.duration),
            total_ms=milliseconds(proto.total),
            reason=proto.reason,
        )

    def to_json(self) -> JsonObject:
        """The object that ``--json`` prints."""
        return {
            "number": self.number,
            "span_id": self.span_id,
            "verdict": self.verdict,
            "duration_ms": self.duration_ms,
            "total_ms": self.total_ms,
            "reason": self.reason,
        }


@dataclass(frozen=True, slots=True)
class Report:
    """What a replay found.

    Attributes:
        replay_id: the replay.
        span_id: the span that was replayed.
        verdict: the answer. ``identical`` means equal on everything in ``compared``, no more.
        divergences: all differences, in order of what matters, bounded.
        divergences_truncated: differences beyond those.
        first: the first of them; None where there is none.
        compared: what was compared.
        not_compared: what was not, and why.
        missing: what could not be restored.
        runs: the runs.
        normalisation: hits of each normalisation rule.
        recorded_duration_ms: how long the recorded command took.
        text: all of it, for people.
    """

    replay_id: str
    span_id: str
    verdict: Verdict
    divergences: tuple[Divergence, ...]
    divergences_truncated: int
    first: Divergence | None
    compared: tuple[str, ...]
    not_compared: tuple[NotCompared, ...]
    missing: tuple[Missing, ...]
    runs: tuple[ReplayRun, ...]
    normalisation: tuple[tuple[str, int], ...]
    recorded_duration_ms: float
    text: str

    @classmethod
    def from_proto(cls, proto: replay_pb2.Report) -> Report:
        """Read the message."""
        return cls(
            replay_id=proto.replay_id,
            span_id=proto.span_id,
            verdict=cast("Verdict", named(_VERDICTS, proto.verdict)),
            divergences=tuple(Divergence.from_proto(item) for item in proto.divergences),
            divergences_truncated=proto.divergences_truncated,
            first=Divergence.from_proto(proto.first) if proto.HasField("first") else None,
            compared=tuple(proto.compared),
            not_compared=tuple(
                NotCompared(item.dimension, item.reason) for item in proto.not_compared
            ),
            missing=tuple(Missing(item.path, item.reason) for item in proto.missing),
            runs=tuple(ReplayRun.from_proto(item) for item in proto.runs),
            normalisation=tuple(sorted(proto.normalisation.items())),
            recorded_duration_ms=milliseconds(proto.recorded_duration),
            text=proto.text,
        )

    def to_json(self) -> JsonObject:
        """The object that ``substrate replay --json`` prints."""
        hits: JsonObject = dict(self.normalisation)
        return {
            "replay_id": self.replay_id,
            "span_id": self.span_id,
            "verdict": self.verdict,
            "divergences": [item.to_json() for item in self.divergences],
            "divergences_truncated": self.divergences_truncated,
            "first": None if self.first is None else self.first.to_json(),
            "compared": list(self.compared),
            "not_compared": [item.to_json() for item in self.not_compared],
            "missing": [item.to_json() for item in self.missing],
            "runs": [item.to_json() for item in self.runs],
            "normalisation": hits,
            "recorded_duration_ms": self.recorded_duration_ms,
        }


@dataclass(frozen=True, slots=True)
class Progress:
    """A stage of a replay has begun.

    Attributes:
        stage: reading, deciding, restoring, running or comparing.
        run: which run, from 1.
        runs: of how many.
        text: one line for people.
    """

    stage: str
    run: int
    runs: int
    text: str

    @classmethod
    def from_proto(cls, proto: replay_pb2.Progress) -> Progress:
        """Read the message."""
        return cls(stage=proto.stage, run=proto.run, runs=proto.runs, text=proto.text)


@dataclass(frozen=True, slots=True)
class PolicyProblem:
    """A mistake in a policy: where (file:line), what is wrong and what to do."""

    source: str
    message: str

    def to_json(self) -> JsonObject:
        """The object that ``--json`` prints."""
        return {"source": self.source, "message": self.message}


@dataclass(frozen=True, slots=True)
class PolicyCheck:
    """What is wrong with policy files.

    Attributes:
        problems: the mistakes; none is good.
        rules: rules read.
        examples: examples run.
    """

    problems: tuple[PolicyProblem, ...]
    rules: int
    examples: int

    @classmethod
    def from_proto(cls, proto: broker_pb2.CheckResponse) -> PolicyCheck:
        """Read the message."""
        return cls(
            problems=tuple(PolicyProblem(item.source, item.message) for item in proto.problems),
            rules=proto.rules,
            examples=proto.examples,
        )

    def to_json(self) -> JsonObject:
        """The object that ``substrate policy check --json`` prints."""
        return {
            "problems": [item.to_json() for item in self.problems],
            "rules": self.rules,
            "examples": self.examples,
        }


@dataclass(frozen=True, slots=True)
class RuleTrace:
    """One rule that was considered.

    Attributes:
        rule: its id.
        source: file:line.
        action: what it would say.
        matched: whether it matched.
        command: the simple command that it matched.
    """

    rule: str
    source: str
    action: str
    matched: bool
    command: bytes

    @classmethod
    def from_proto(cls, proto: broker_pb2.RuleTrace) -> RuleTrace:
        """Read the message."""
        return cls(
            rule=proto.rule_id,
            source=proto.source,
            action=named(_DECISIONS, proto.action),
            matched=proto.matched,
            command=proto.command,
        )

    def to_json(self) -> JsonObject:
        """The object that ``--json`` prints."""
        return {
            "rule": self.rule,
            "source": self.source,
            "action": self.action,
            "matched": self.matched,
            "command": bytes_form(self.command),
        }


@dataclass(frozen=True, slots=True)
class Explanation:
    """How policy comes to its answer about a command.

    Attributes:
        decision: the answer.
        rules: the rules that were considered.
        commands: the simple commands found in the command.
        text: all of it, for people.
    """

    decision: Decision
    rules: tuple[RuleTrace, ...]
    commands: tuple[bytes, ...]
    text: str

    @classmethod
    def from_proto(cls, proto: broker_pb2.ExplainResponse) -> Explanation:
        """Read the message."""
        return cls(
            decision=Decision.from_proto(proto.decision),
            rules=tuple(RuleTrace.from_proto(item) for item in proto.rules),
            commands=tuple(proto.commands),
            text=proto.text,
        )

    def to_json(self) -> JsonObject:
        """The object that ``substrate policy explain --json`` prints."""
        return {
            "decision": self.decision.to_json(),
            "rules": [item.to_json() for item in self.rules],
            "commands": [bytes_form(item) for item in self.commands],
        }


@dataclass(frozen=True, slots=True)
class Finding:
    """Something found in the journal.

    Attributes:
        kind: broken_chain, bad_line, missing_lines, repaired_tear, retention_gap, unanchored_tail.
        segment: the file.
        line: in it, from 1.
        detail: one sentence for people.
        tampering: the record cannot be trusted there.
    """

    kind: str
    segment: str
    line: int
    detail: str
    tampering: bool

    def to_json(self) -> JsonObject:
        """The object that ``--json`` prints."""
        return {
            "kind": self.kind,
            "segment": self.segment,
            "line": self.line,
            "detail": self.detail,
            "tampering": self.tampering,
        }


@dataclass(frozen=True, slots=True)
class Verification:
    """Whether the journal's chain holds.

    Attributes:
        intact: it does.
        lines: lines read.
        batches: batches read.
        findings: what was found.
    """

    intact: bool
    lines: int
    batches: int
    findings: tuple[Finding, ...]

    @classmethod
    def from_proto(cls, proto: trace_pb2.VerifyResponse) -> Verification:
        """Read the message."""
        return cls(
            intact=proto.intact,
            lines=proto.lines,
            batches=proto.batches,
            findings=tuple(
                Finding(item.kind, item.segment, item.line, item.detail, item.tampering)
                for item in proto.findings
            ),
        )

    def to_json(self) -> JsonObject:
        """The object that ``substrate trace verify --json`` prints."""
        return {
            "intact": self.intact,
            "lines": self.lines,
            "batches": self.batches,
            "findings": [item.to_json() for item in self.findings],
        }
