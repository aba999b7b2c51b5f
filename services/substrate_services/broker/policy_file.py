"""One policy file: YAML to rules, with the line of everything.

All problems of a file are found and reported together, each with ``file:line``. What is read here
can come from the agent's own tree, so it is bounded: size, depth, no YAML aliases, no symbolic
links, no devices.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar, get_args

import yaml

from substrate_services.broker.commands import SimpleCommand, from_argv, parse
from substrate_services.broker.network_rules import NetworkPattern, compile_network
from substrate_services.broker.patterns import (
    Pattern,
    PatternError,
    View,
    compile_pattern,
    exact_pattern,
)
from substrate_services.journal.schema import DecisionAction, PolicyMode
from substrate_services.telemetry.classes import classes_mask

Layer = Literal["builtin", "host", "project", "session"]
Reach = Literal["apply", "network", "secrets", "host"]
Severity = Literal["error", "note"]

REACHES: tuple[Reach, ...] = get_args(Reach)
MODES: tuple[PolicyMode, ...] = get_args(PolicyMode)
ACTIONS: tuple[DecisionAction, ...] = get_args(DecisionAction)
FORMAT_VERSION = 1
MAX_FILE_BYTES = 1 << 20
_VERSION = ("tag:yaml.org,2002:int", str(FORMAT_VERSION))
_MAX_YAML_DEPTH = 8
_Choice = TypeVar("_Choice", bound=str)
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:/-]{0,99}\Z")
_LATER_KINDS = ("files", "secrets")  # the schema's room for issues to come
_TOP_KEYS = ("version", "name", "mode", "defaults", "disable", "telemetry", "rules")
_RULE_KEYS = (
    "id", "action", "kind", "command", "argv", "network", "when", "reason", "match", "not_match",
)  # fmt: skip
_DEFAULT_KEYS = (*REACHES, "unparsable")


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake in a policy file.

    Attributes:
        file: the file, as it was named.
        line: 1-based; 0 when it is about the file as a whole.
        message: what is wrong, with which value, and what to do.
        severity: ``error`` keeps the file from loading; ``note`` does not.
    """

    file: str
    line: int
    message: str
    severity: Severity = "error"

    @property
    def source(self) -> str:
        """``file:line``."""
        return f"{self.file}:{self.line}" if self.line else self.file

    def __str__(self) -> str:
        return f"{self.source}: {self.message}"


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule of one layer.

    Attributes:
        id: given in the file, or derived from the action and the first pattern.
        action: what it says.
        patterns: of commands; any of them suffices.
        network: of what a world's network opens, instead; then there are no others.
        reason: for the model that reads the decision; may be empty.
        when: only counts for steps that reach these things; empty is always.
        layer: where it comes from.
        mode: how the layer is applied; set when layers are merged.
        file, line: where it stands.
        order: position over all layers.
        derived: the id was made up from the pattern; merging may number it.
    """

    id: str
    action: DecisionAction
    patterns: tuple[Pattern, ...]
    network: tuple[NetworkPattern, ...] = ()
    reason: str = ""
    when: frozenset[Reach] = frozenset()
    layer: Layer = "session"
    mode: PolicyMode = "enforce"
    file: str = ""
    line: int = 0
    order: int = 0
    derived: bool = False

    @property
    def source(self) -> str:
        """``file:line``."""
        return f"{self.file}:{self.line}"

    def matches(self, view: View) -> bool:
        """True when any pattern matches the command as spelled."""
        return any(pattern.matches(view) for pattern in self.patterns)

    def could_match(self, view: View) -> bool:
        """True when any pattern could match, for some value of the unknown words."""
        return any(pattern.could_match(view) for pattern in self.patterns)


@dataclass(frozen=True, slots=True)
class LayerFile:
    """What one file says, before layers are merged."""

    layer: Layer
    file: str
    name: str = ""
    mode: PolicyMode | None = None
    mode_line: int = 0
    defaults: dict[str, tuple[DecisionAction, int]] = field(default_factory=dict)
    disable: tuple[tuple[str, int], ...] = ()
    telemetry: tuple[str, ...] | None = None
    rules: tuple[Rule, ...] = ()
    examples: int = 0


def read_policy_file(path: Path, layer: Layer) -> tuple[LayerFile, list[Problem]]:
    """Read and check one file. Never raises for what is in it, nor when it cannot be read."""
    name = f"<built-in>/{path.name}" if layer == "builtin" else str(path)
    try:
        data = _read_bounded(path)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        return LayerFile(layer, name), [Problem(name, 0, f"cannot read the policy: {why}")]
    return parse_policy(data, layer, name)


def parse_policy(data: bytes, layer: Layer, name: str) -> tuple[LayerFile, list[Problem]]:
    """Check the text of a policy file. ``name`` is how problems and rules call the file."""
    return _Reader(layer, name).read(data)


def command_views(commands: list[SimpleCommand]) -> list[View]:
    """The views of the commands that could be read."""
    return [View(command) for command in commands if command.words]


def _read_bounded(path: Path) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError("not a regular file")
        with open(descriptor, "rb", closefd=False) as file:
            data = file.read(MAX_FILE_BYTES + 1)
    finally:
        os.close(descriptor)
    if len(data) > MAX_FILE_BYTES:
        raise ValueError(f"larger than {MAX_FILE_BYTES} bytes")
    return data


_Loader: type = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Reader:
    def __init__(self, layer: Layer, name: str) -> None:
        self.layer = layer
        self.name = name
        self.problems: list[Problem] = []
        self.ids: dict[str, int] = {}
        self.examples = 0

    def error(self, node: yaml.Node | None, message: str) -> None:
        line = node.start_mark.line + 1 if node is not None else 0
        self.problems.append(Problem(self.name, line, message))

    def read(self, data: bytes) -> tuple[LayerFile, list[Problem]]:
        root = self.compose(data)
        if root is None:
            return LayerFile(self.layer, self.name), self.problems
        top = self.mapping(root, _TOP_KEYS, "a policy")
        if top is None:
            return LayerFile(self.layer, self.name), self.problems
        if "version" not in top:
            self.error(root, f"`version` is missing; write `version: {FORMAT_VERSION}`")
        elif (top["version"].tag, top["version"].value) != _VERSION:
            self.error(
                top["version"],
                f"version {_shown(top['version'])} is not known; this reads version "
                f"{FORMAT_VERSION}",
            )
        mode = self.choice(top.get("mode"), MODES, "mode")
        rules = list(self.rules(top.get("rules")))
        parsed = LayerFile(
            layer=self.layer,
            file=self.name,
            name=self.string(top.get("name"), "name") or "",
            mode=mode,
            mode_line=top["mode"].start_mark.line + 1 if "mode" in top else 0,
            defaults=self.defaults(top.get("defaults")),
            disable=self.disabled(top.get("disable")),
            telemetry=self.telemetry(top.get("telemetry")),
            rules=tuple(rules),
            examples=self.examples,
        )
        return parsed, self.problems

    def compose(self, data: bytes) -> yaml.Node | None:
        """The node tree, after a pass over the events that bounds depth and forbids aliases."""
        depth = 0
        try:
            for event in yaml.parse(data, Loader=_Loader):
                depth += isinstance(event, yaml.CollectionStartEvent)
                depth -= isinstance(event, yaml.CollectionEndEvent)
                if isinstance(event, yaml.AliasEvent) or depth > _MAX_YAML_DEPTH:
                    line = event.start_mark.line + 1 if event.start_mark else 0
                    message = "nested too deeply, or an alias (`*name`); write it out"
                    self.problems.append(Problem(self.name, line, message))
                    return None
            node = yaml.compose(data, Loader=_Loader)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line = mark.line + 1 if mark is not None else 0
            self.problems.append(Problem(self.name, line, f"not YAML: {error.problem}"))
            return None
        except yaml.YAMLError as error:
            self.problems.append(Problem(self.name, 0, f"not YAML: {_one_line(str(error))}"))
            return None
        except UnicodeDecodeError:
            self.problems.append(Problem(self.name, 0, "not UTF-8 text"))
            return None
        if node is None:
            self.error(None, f"an empty policy; write at least `version: {FORMAT_VERSION}`")
        return node

    # -- typed access ----------------------------------------------------------------------------

    def mapping(
        self, node: yaml.Node, allowed: tuple[str, ...], what: str
    ) -> dict[str, yaml.Node] | None:
        if not isinstance(node, yaml.MappingNode):
            self.error(node, f"{what} is a mapping with {_listed(allowed)}, not {_shown(node)}")
            return None
        found: dict[str, yaml.Node] = {}
        for key, value in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else _shown(key)
            if name not in allowed:
                self.error(key, f"unknown key `{name}` in {what}; known: {_listed(allowed)}")
            elif name in found:
                self.error(key, f"`{name}` is given twice")
            else:
                found[name] = value
        return found

    def string(self, node: yaml.Node | None, what: str) -> str | None:
        if node is None:
            return None
        if not isinstance(node, yaml.ScalarNode) or node.tag != "tag:yaml.org,2002:str":
            self.error(node, f"`{what}` is a string, not {_shown(node)}; put it in quotes")
            return None
        value: str = node.value
        return value

    def strings(self, node: yaml.Node | None, what: str) -> list[tuple[str, yaml.Node]]:
        if not isinstance(node, yaml.SequenceNode):
            self.error(node, f"`{what}` is a list of strings, not {_shown(node)}")
            return []
        values = [(self.string(item, what), item) for item in node.value]
        return [(value, item) for value, item in values if value is not None]

    def choice(
        self, node: yaml.Node | None, choices: tuple[_Choice, ...], what: str
    ) -> _Choice | None:
        value = self.string(node, what)
        if value is None:
            return None
        for choice in choices:
            if choice == value:
                return choice
        self.error(node, f"`{what}: {value}` is not known; one of {_listed(choices)}")
        return None

    # -- the parts of a policy -------------------------------------------------------------------

    def defaults(self, node: yaml.Node | None) -> dict[str, tuple[DecisionAction, int]]:
        if node is None:
            return {}
        found = self.mapping(node, _DEFAULT_KEYS, "`defaults`") or {}
        values = {key: self.choice(value, ACTIONS, key) for key, value in found.items()}
        return {
            key: (value, found[key].start_mark.line + 1)
            for key, value in values.items()
            if value is not None
        }

    def disabled(self, node: yaml.Node | None) -> tuple[tuple[str, int], ...]:
        if node is None:
            return ()
        if self.layer != "host":
            self.error(
                node,
                f"`disable` works only in the host's policies; a {self.layer} policy can only "
                "tighten",
            )
            return ()
        return tuple(
            (value, item.start_mark.line + 1) for value, item in self.strings(node, "disable")
        )

    def telemetry(self, node: yaml.Node | None) -> tuple[str, ...] | None:
        if node is None:
            return None
        if self.layer != "host":
            self.error(
                node,
                f"`telemetry` works only in the host's policies; a {self.layer} policy cannot say "
                "what is recorded",
            )
            return None
        found = self.mapping(node, ("classes",), "`telemetry`") or {}
        if "classes" not in found:
            self.error(node, "`telemetry` names no `classes`; leave it out to record all")
            return None
        names = tuple(name for name, _ in self.strings(found["classes"], "classes"))
        try:
            classes_mask(names)
        except ValueError as error:
            self.error(node, f"`telemetry.classes`: {error}")
        return names

    def rules(self, node: yaml.Node | None) -> Iterator[Rule]:
        if node is None:
            return
        if not isinstance(node, yaml.SequenceNode):
            self.error(node, f"`rules` is a list of rules, not {_shown(node)}")
            return
        for item in node.value:
            rule = self.rule(item)
            if rule is not None:
                yield rule

    def rule(self, node: yaml.Node) -> Rule | None:
        before = len(self.problems)
        found = self.mapping(node, _RULE_KEYS, "a rule")
        if found is None:
            return None
        if "action" not in found:
            self.error(node, f"the rule has no `action`; one of {_listed(ACTIONS)}")
        action: DecisionAction | None = self.choice(found.get("action"), ACTIONS, "action")
        kind = self.kind(found.get("kind"))
        network: tuple[NetworkPattern, ...] = ()
        patterns: tuple[Pattern, ...] = ()
        if kind == "network" or (kind is None and "network" in found):
            network = self.network(node, found)
        else:
            patterns = self.patterns(node, found)
        when = self.when(found.get("when"))
        reason = self.string(found.get("reason"), "reason") or ""
        rule_id = self.rule_id(node, found.get("id"), action, (*patterns, *network))
        if action is None or not (patterns or network) or len(self.problems) > before:
            return None
        rule = Rule(
            id=rule_id,
            action=action,
            patterns=patterns,
            network=network,
            reason=_one_line(reason),
            when=when,
            layer=self.layer,
            file=self.name,
            line=node.start_mark.line + 1,
            derived="id" not in found,
        )
        self.run_examples(rule, found.get("match"), wanted=True)
        self.run_examples(rule, found.get("not_match"), wanted=False)
        return rule

    def kind(self, node: yaml.Node | None) -> str | None:
        kind = self.string(node, "kind")
        if kind in _LATER_KINDS:
            self.error(
                node,
                f"rules of kind `{kind}` are not built yet; see docs/POLICY.md for what there is",
            )
        elif kind not in (None, "command", "network"):
            self.error(node, f"`kind: {kind}` is not known; write `command` or `network`")
        return kind

    def network(self, node: yaml.Node, found: dict[str, yaml.Node]) -> tuple[NetworkPattern, ...]:
        for key in ("command", "argv", "when", "match", "not_match"):
            if key in found:
                self.error(found[key], f"`{key}` is for commands, and the rule is about `network`")
        given = found.get("network")
        if given is None:
            self.error(node, "a rule of kind `network` has `network`: a network rule, or a list")
            return ()
        specs: list[tuple[str | None, yaml.Node]]
        if isinstance(given, yaml.SequenceNode):
            specs = [*self.strings(given, "network")]
            if not specs:
                self.error(given, "`network` is an empty list, so the rule never matches")
        else:
            specs = [(self.string(given, "network"), given)]
        compiled = []
        for spec, item in specs:
            try:
                compiled += [compile_network(spec)] if spec is not None else []
            except ValueError as error:
                self.error(item, str(error))
        return tuple(compiled)

    def patterns(self, node: yaml.Node, found: dict[str, yaml.Node]) -> tuple[Pattern, ...]:
        if "network" in found or ("command" in found) == ("argv" in found):
            self.error(node, "a rule has either `command` (a pattern or a list) or `argv` (a list)")
            return ()
        try:
            if "argv" in found:
                words = self.strings(found["argv"], "argv")
                node = found["argv"]
                return (exact_pattern([word for word, _ in words]),)
            node = found["command"]
            if not isinstance(node, yaml.SequenceNode):
                spec = self.string(node, "command")
                return (compile_pattern(spec),) if spec is not None else ()
            if not node.value:
                self.error(node, "`command` is an empty list, so the rule never matches")
            compiled = []
            for spec, item in self.strings(node, "command"):
                node = item
                compiled.append(compile_pattern(spec))
            return tuple(compiled)
        except PatternError as error:
            self.error(node, str(error))
            return ()

    def when(self, node: yaml.Node | None) -> frozenset[Reach]:
        if node is None:
            return frozenset()
        chosen = [self.choice(item, REACHES, "when") for _, item in self.strings(node, "when")]
        if not chosen:
            self.error(node, f"`when` is empty, so the rule never counts; list {_listed(REACHES)}")
        return frozenset(reach for reach in chosen if reach is not None)

    def rule_id(
        self,
        node: yaml.Node,
        given: yaml.Node | None,
        action: str | None,
        patterns: tuple[Pattern | NetworkPattern, ...],
    ) -> str:
        line = node.start_mark.line + 1
        if given is None:
            spec = patterns[0].spec if patterns else str(line)
            base = f"{action}:" + re.sub(r"[^A-Za-z0-9_./-]+", "-", spec).strip("-")[:80]
            rule_id, count = base, 2
            while rule_id in self.ids:
                rule_id, count = f"{base}-{count}", count + 1
        else:
            rule_id = self.string(given, "id") or ""
            if not _ID.match(rule_id):
                self.error(given, f"`id: {rule_id}` is not an id: letters, digits and _ . : / -")
            elif rule_id in ("default", "unparsable"):
                self.error(given, f"`id: {rule_id}` is taken by the policy's own answers")
            elif rule_id in self.ids:
                self.error(given, f"id `{rule_id}` is already used in line {self.ids[rule_id]}")
        self.ids.setdefault(rule_id, line)
        return rule_id

    def run_examples(self, rule: Rule, node: yaml.Node | None, *, wanted: bool) -> None:
        """The rule's own tests (Codex's ``match`` and ``not_match``)."""
        if node is None:
            return
        what = "match" if wanted else "not_match"
        if not isinstance(node, yaml.SequenceNode):
            self.error(node, f"`{what}` is a list of commands, not {_shown(node)}")
            return
        for item in node.value:
            if isinstance(item, yaml.SequenceNode):
                argv = [word.encode() for word, _ in self.strings(item, what)]
                commands, shown = from_argv(argv), b" ".join(argv).decode()
            else:
                shell = self.string(item, what)
                if shell is None:
                    continue
                commands, shown = parse(shell.encode()), shell
            self.examples += 1
            views = command_views(commands)
            if wanted and not any(rule.matches(view) for view in views):
                self.error(item, f"rule `{rule.id}` does not match its example `{shown}`")
            elif not wanted and any(rule.matches(v) or rule.could_match(v) for v in views):
                self.error(item, f"rule `{rule.id}` matches `{shown}`, which it says it does not")


def _shown(node: yaml.Node | None) -> str:
    if isinstance(node, yaml.ScalarNode):
        return f"`{_one_line(node.value)[:60]}`" if node.value else "nothing"
    return "a list" if isinstance(node, yaml.SequenceNode) else "a mapping"


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(names)


def _one_line(text: str) -> str:
    return " ".join(text.split())
