"""The answer to one step, and how it came about.

Deny beats ask beats allow, over all rules and all simple commands of the step. What no rule
settles is allowed inside a world, whose boundary holds, and follows the policy's defaults where it
reaches outside: apply, network, secrets, the host itself.

What cannot be known before the command runs is never read in its favour: a command that could
match a restricting rule, for some value of its unknown words, is asked about, and an allow rule
counts only when it holds for all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from substrate_services.broker.commands import SimpleCommand, from_argv, is_shell_call, parse
from substrate_services.broker.network_rules import all_covered, read_wanted
from substrate_services.broker.patterns import View
from substrate_services.broker.policy import (
    BUILTIN_FILE,
    STRICTNESS,
    Policy,
    PolicyError,
    merge_layers,
)
from substrate_services.broker.policy_file import (
    REACHES,
    Layer,
    Problem,
    Reach,
    Rule,
    read_policy_file,
)
from substrate_services.journal.schema import Command, Decision, DecisionAction, PolicyMode

TRACED_COMMANDS = 200  # Explain shows how rules were held against this many; all are decided on
_SHOWN_BYTES = 120


@dataclass(frozen=True, slots=True)
class StepRequest:
    """What a decision rests on.

    Attributes:
        command: what would run; None for a step that runs nothing (apply, network, secrets).
        reach: what the step newly asks for outside its world.
        network: the network rules the world already has; ``when: [network]`` counts with them.
        profile, agent_id, session_id, world_id, cwd: for records and for deciders to come.
    """

    command: Command | None = None
    reach: frozenset[Reach] = frozenset()
    network: tuple[str, ...] = ()
    profile: str = "workspace"
    agent_id: str = ""
    session_id: str = ""
    world_id: str = ""
    cwd: bytes = b""

    @property
    def touches(self) -> frozenset[Reach]:
        """What rules with ``when`` are held against."""
        return self.reach | {"network"} if self.network else self.reach


@dataclass(frozen=True, slots=True)
class Finding:
    """One reason for an action.

    Attributes:
        action: what it asks for.
        rule: the rule behind it; None for a default or an unreadable command.
        command: the simple command it is about; None for defaults.
        certain: False when the rule matches only for some value of unknown words.
        mode: how the rule's layer is applied.
        rule_id, source, reason: as they go into the decision.
    """

    action: DecisionAction
    rule: Rule | None
    command: SimpleCommand | None
    certain: bool
    mode: PolicyMode
    rule_id: str
    source: str
    reason: str


@dataclass(frozen=True, slots=True)
class Considered:
    """One rule held against one command, for Explain."""

    rule: Rule
    command: SimpleCommand
    result: str  # matches | could match | does not match | not counted: …

    @property
    def matched(self) -> bool:
        """True when the rule had a say."""
        return self.result in ("matches", "could match")


@dataclass(frozen=True, slots=True)
class Checked:
    """What ``check`` found.

    Attributes:
        problems: mistakes (``severity`` error) and things without effect (note).
        rules: rules that could be read.
        examples: match and not_match examples that were run.
    """

    problems: tuple[Problem, ...]
    rules: int
    examples: int

    @property
    def ok(self) -> bool:
        """True when nothing keeps the files from loading."""
        return all(problem.severity != "error" for problem in self.problems)


@dataclass(frozen=True, slots=True)
class Explanation:
    """A decision with everything that was looked at."""

    decision: Decision
    commands: tuple[SimpleCommand, ...]
    considered: tuple[Considered, ...]
    findings: tuple[Finding, ...]
    winner: Finding | None
    notes: tuple[Problem, ...] = field(default=())

    def text(self, *, all_rules: bool = False) -> str:
        """For people: the answer, the commands, the rules, why the winner won.

        Args:
            all_rules: also list the rules that did not match.
        """
        decision = self.decision
        applied = "" if decision.enforced else " (observed only, not enforced)"
        lines = [
            f"{decision.action}{applied}: {decision.reason}",
            f"  rule {decision.rule_id}" + (f" at {decision.source}" if decision.source else ""),
            f"  mode {decision.mode}, policy {decision.policy_hash[:12]}",
        ]
        if self.commands:
            lines.append("commands found:")
        for number, command in enumerate(self.commands[:TRACED_COMMANDS], 1):
            via = f"   via {' > '.join(command.via)}" if command.via else ""
            state = f"   unreadable: {command.problem}" if command.problem else ""
            state += f"   ({', '.join(command.effects)})" if command.effects else ""
            unknown = "   (some words are known only when it runs)" if command.dynamic else ""
            lines.append(f"  {number}. {shown(command)}{via}{state}{unknown}")
        if len(self.commands) > TRACED_COMMANDS:
            lines.append(f"  … and {len(self.commands) - TRACED_COMMANDS} more, decided on alike")
        told = [entry for entry in self.considered if all_rules or entry.matched]
        lines.append(f"rules that matched ({len(self.considered)} comparisons):")
        lines += [
            f"  {entry.rule.action:5} {entry.rule.id} {entry.result}: {shown(entry.command)}"
            f"   ({entry.rule.source})"
            for entry in told
        ] or ["  none"]
        lines.append(f"why: {self.why()}")
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines)

    def why(self) -> str:
        """One sentence on why this finding won over the others."""
        if self.winner is None:
            if self.decision.mode == "disabled":
                return "the policy is disabled"
            return "no rule matched and the step stays in its world, whose boundary holds"
        others = len(self.findings) - 1
        if self.winner.rule is None and self.winner.command is None:
            return "no rule settles a step that reaches outside its world, so the default does"
        if not others:
            return "nothing else had a say"
        return f"it is the strictest of {others + 1} answers (deny, then ask, then allow)"


def decide(policy: Policy, request: StepRequest) -> Decision:
    """Decide about one step. Never raises for any request."""
    winner, _ = _choose(_findings(policy, request, simple_commands(request.command)))
    return _decision(policy, winner)


def explain(policy: Policy, request: StepRequest) -> Explanation:
    """Decide as ``decide`` does, keeping every rule that was considered."""
    commands = simple_commands(request.command)
    findings = _findings(policy, request, commands)
    winner, _ = _choose(findings)
    return Explanation(
        decision=_decision(policy, winner),
        commands=tuple(commands),
        considered=tuple(
            Considered(rule, command, _result(rule, command, view, request))
            for command, view in [(c, View(c)) for c in commands[:TRACED_COMMANDS] if c.words]
            for rule in policy.rules
            if rule.patterns
        ),
        findings=tuple(findings),
        winner=winner,
        notes=policy.notes,
    )


def check(paths: Sequence[Path], *, layer: Layer = "host") -> Checked:
    """Look for mistakes in policy files and run the examples in them.

    Args:
        paths: the files; each is checked as ``layer``, except ``.substrate/policy.yaml``, which
            is a project's.
        layer: which layer the files are meant for; a project's or session's can do less.
    """
    entries: list[tuple[Layer, Path]] = [
        ("project" if path.parts[-2:] == (".substrate", "policy.yaml") else layer, path)
        for path in paths
    ]
    problems: list[Problem] = []
    layers = []
    for own_layer, path in entries:
        read, found = read_policy_file(path, own_layer)
        layers.append(read)
        problems += found
    builtin, _ = read_policy_file(BUILTIN_FILE, "builtin")
    try:
        problems += merge_layers([builtin, *layers]).notes
    except PolicyError as error:
        problems += error.problems
    rules = sum(len(read.rules) for read in layers)
    return Checked(tuple(problems), rules, sum(read.examples for read in layers))


def simple_commands(command: Command | None) -> list[SimpleCommand]:
    """Every simple command that a step's command is known to run.

    What is executed is argv, so argv is what counts; a shell string that argv merely hands to a
    shell is read without that shell, so that ``sh`` rules are about shells the step itself calls.
    """
    if command is None:
        return []
    if command.shell is None:
        return from_argv(command.argv)
    if not command.argv or is_shell_call(command.argv, command.shell):
        return parse(command.shell)
    return parse(command.shell) + from_argv(command.argv)


def shown(command: SimpleCommand) -> str:
    """A command for people: one line, cut."""
    data = b" ".join(command.source.split())
    cut = data[:_SHOWN_BYTES].decode("utf-8", "backslashreplace")
    text = "".join(char if char.isprintable() else repr(char)[1:-1] for char in cut)
    return text + ("…" if len(data) > _SHOWN_BYTES else "")


def _findings(
    policy: Policy, request: StepRequest, commands: Sequence[SimpleCommand]
) -> list[Finding]:
    touches = request.touches
    findings: list[Finding] = []
    views: list[tuple[SimpleCommand, View]] = []
    for command in commands:
        if command.problem:
            findings += _unparsable(policy, command)
            continue
        if not command.words:
            continue
        view = View(command)
        views.append((command, view))
        findings += _restricted(policy, command, view, touches)
    if "network" in request.reach and policy.mode != "disabled":
        opened = _opened(policy, request)
        findings += opened
        if any(finding.action == "allow" for finding in opened):
            request = replace(request, reach=request.reach - {"network"})
    complete = len(views) == len(commands) and not any(c.effects for c in commands)
    if request.reach and policy.mode != "disabled":
        findings += _outside(policy, request, views, complete=complete)
    return findings


def _opened(policy: Policy, request: StepRequest) -> list[Finding]:
    """What rules about the network say of what a step opens; they stand in for the default."""
    wanted = read_wanted(request.network)
    rules = [rule for rule in policy.rules if rule.network and rule.mode != "disabled"]
    found = [
        _about_network(rule)
        for rule in rules
        if rule.action != "allow" and any(one.concerns(wanted) for one in rule.network)
    ]
    allowing = [rule for rule in policy.allowing.rules if rule.network]
    if allowing and all_covered(wanted, (one for rule in allowing for one in rule.network)):
        found.append(_about_network(allowing[0]))
    return found


def _about_network(rule: Rule) -> Finding:
    verb = {
        "allow": "is allowed",
        "ask": "needs a person's approval",
        "deny": "is denied",
    }[rule.action]
    reason = f"Opening the network like this {verb} by rule {rule.id}. {rule.reason}".rstrip()
    return Finding(rule.action, rule, None, True, rule.mode, rule.id, rule.source, reason)


def _restricted(
    policy: Policy, command: SimpleCommand, view: View, touches: frozenset[Reach]
) -> list[Finding]:
    """What deny and ask rules say about one command."""
    found: dict[str, Finding] = {}
    for rule in policy.restricting.matching(view):
        if not rule.when or rule.when & touches:
            found.setdefault(rule.id, _by_rule(rule, command, certain=True))
    if view.dynamic:
        for rule in policy.restricting.possible(view):
            counts = not rule.when or rule.when & touches
            if counts and rule.id not in found and rule.could_match(view):
                found[rule.id] = _by_rule(rule, command, certain=False)
                if rule.mode == "enforce":
                    break  # they all say ask, so the first one enforced speaks for the rest
    return list(found.values())


def _outside(
    policy: Policy,
    request: StepRequest,
    views: Sequence[tuple[SimpleCommand, View]],
    *,
    complete: bool,
) -> list[Finding]:
    """The defaults for what is reached outside the world and no allow rule covers."""
    findings = []
    allowed = [_allowing(policy, view, request.touches) for _, view in views]
    for reach in REACHES:
        if reach not in request.reach:
            continue
        covering = [
            next((rule for rule in rules if _covers(rule, reach)), None) for rules in allowed
        ]
        if complete and covering and all(covering):
            findings += [
                _by_rule(rule, command, certain=True)
                for rule, (command, _) in zip(covering, views, strict=True)
                if rule is not None
            ][:1]
            continue
        default = policy.defaults[reach]
        findings.append(
            Finding(
                action=default.action,
                rule=None,
                command=None,
                certain=True,
                mode=policy.mode,
                rule_id="default",
                source=default.source,
                reason=_reach_reason(reach, default.action),
            )
        )
    return findings


def _allowing(policy: Policy, view: View, touches: frozenset[Reach]) -> list[Rule]:
    rules = policy.allowing.matching(view) if not view.dynamic else policy.allowing.rules
    return [
        rule
        for rule in rules
        if (not rule.when or rule.when & touches)
        and any(pattern.surely_matches(view) for pattern in rule.patterns)
    ]


def _covers(rule: Rule, reach: Reach) -> bool:
    """An allow rule lifts the ask of what it names; without `when`, that of running on the host."""
    return reach in rule.when if rule.when else reach == "host"


def _unparsable(policy: Policy, command: SimpleCommand) -> list[Finding]:
    default = policy.defaults["unparsable"]
    if policy.mode == "disabled" or default.action == "allow":
        return []
    reason = (
        f"The shell command cannot be read near byte {command.offset} ({command.problem}), so "
        "rules cannot be held against it; correct its syntax, or run its parts one by one."
    )
    finding = Finding(
        default.action, None, command, True, policy.mode, "unparsable", default.source, reason
    )
    return [finding]


def _by_rule(rule: Rule, command: SimpleCommand, *, certain: bool) -> Finding:
    action: DecisionAction = rule.action if certain else "ask"
    # The reason is worded for the winner only, by _rule_reason.
    return Finding(action, rule, command, certain, rule.mode, rule.id, rule.source, "")


def _rule_reason(finding: Finding) -> str:
    rule, command = finding.rule, finding.command
    if rule is None or command is None:
        return finding.reason
    text = shown(command)
    if not finding.certain:
        said = (
            f"`{text}` may do what rule {rule.id} says {rule.action} to, depending on words known "
            "only when it runs; write the command out in full."
        )
    elif rule.action == "allow":
        said = f"`{text}` is allowed by rule {rule.id}."
    elif rule.action == "ask":
        said = f"`{text}` needs a person's approval by rule {rule.id}."
    else:
        said = f"`{text}` is denied by rule {rule.id}."
    return f"{said} {rule.reason}".rstrip()


_REACH_REASONS: dict[Reach, str] = {
    "apply": "Applying changes writes to the host's own files",
    "network": "Opening the network lets the world reach other machines",
    "secrets": "A secret would be readable by the command",
    "host": "It would run on the host itself, outside any world",
}
_REACH_FIXES: dict[Reach, str] = {
    "apply": "leave the changes in the world for a person to apply",
    "network": "go on without it, or let a person open it",
    "secrets": "go on without it, or let a person inject it",
    "host": "run it in a world (SUBSTRATE_WORLD=enabled), or let the host's policy allow it",
}


def _reach_reason(reach: Reach, action: DecisionAction) -> str:
    if action == "allow":
        return f"{_REACH_REASONS[reach]}, which the policy's defaults allow."
    verb = "needs a person's approval" if action == "ask" else "is denied by the policy's defaults"
    return f"{_REACH_REASONS[reach]}, which {verb}; {_REACH_FIXES[reach]}."


def _choose(findings: Sequence[Finding]) -> tuple[Finding | None, bool]:
    """The finding that decides, and whether it is enforced.

    What is enforced comes first; a stricter observed answer is returned only when the enforced one
    would let the step go on, so that recording it changes nothing.
    """
    enforced = _strictest([finding for finding in findings if finding.mode == "enforce"])
    if enforced is not None and enforced.action != "allow":
        return enforced, True
    observed = _strictest([finding for finding in findings if finding.mode == "observe"])
    if observed is not None and observed.action != "allow":
        return observed, False
    return (enforced or observed), enforced is not None


def _strictest(findings: Sequence[Finding]) -> Finding | None:
    """Strictest first; then what is certain; then the lowest layer and line."""
    best: Finding | None = None
    best_key = (0, False, 0)
    for finding in findings:
        order = finding.rule.order if finding.rule is not None else 1 << 30
        key = (STRICTNESS[finding.action], finding.certain, -order)
        if best is None or key > best_key:
            best, best_key = finding, key
    return best


def _decision(policy: Policy, winner: Finding | None) -> Decision:
    if winner is None:
        reason = "No rule matches; the world's boundary holds."
        if policy.mode == "disabled":
            reason = "The policy is disabled."
        return Decision("allow", "default", reason, policy.mode, policy.hash)
    return Decision(
        action=winner.action,
        rule_id=winner.rule_id,
        reason=_rule_reason(winner),
        mode=winner.mode,
        policy_hash=policy.hash,
        source=winner.source,
        enforced=winner.mode == "enforce",
    )


def _result(rule: Rule, command: SimpleCommand, view: View, request: StepRequest) -> str:
    if rule.mode == "disabled":
        return "not counted: its layer is disabled"
    if rule.when and not rule.when & request.touches:
        return f"not counted: only for steps that reach {', '.join(sorted(rule.when))}"
    if rule.action == "allow":
        if rule.layer not in ("builtin", "host"):
            return "not counted: only the host's policies can allow"
        sure = any(pattern.surely_matches(view) for pattern in rule.patterns)
        return "matches" if sure else "does not match"
    if rule.matches(view):
        return "matches"
    if command.dynamic and rule.could_match(view):
        return "could match"
    return "does not match"
