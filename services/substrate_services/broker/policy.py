"""The policy in force: layers of files merged into one set of rules.

Layers, from the ground up::

    builtin   broker/profiles/workspace.yaml
    host      $SUBSTRATE_HOME/policies/*.yaml, in name order       (the owner's)
    project   <project>/.substrate/policy.yaml                     (in the agent's reach)
    session   files named for one session or run (--policy FILE)   (in the agent's reach)

The owner's layers (builtin, host) decide freely: host files may set the mode, change defaults and
``disable`` built-in rules. Project and session can only tighten: their allow rules never lift an
ask, their defaults count only when stricter, and their mode applies to their own rules alone
(``mode: observe`` in a project tries that file's rules out without touching the host's).
docs/POLICY.md has the tables.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import blake3

from substrate_services.broker.patterns import Pattern, View
from substrate_services.broker.policy_file import (
    REACHES,
    Layer,
    LayerFile,
    Problem,
    Rule,
    read_policy_file,
)
from substrate_services.journal.schema import DecisionAction, PolicyMode

HASH_VERSION = 1
BUILTIN_FILE = Path(__file__).parent / "profiles" / "workspace.yaml"
STRICTNESS: dict[DecisionAction, int] = {"allow": 0, "ask": 1, "deny": 2}
_MODE_STRENGTH: dict[PolicyMode, int] = {"disabled": 0, "observe": 1, "enforce": 2}
_OWNER: tuple[Layer, ...] = ("builtin", "host")


class PolicyError(Exception):
    """A policy file is wrong. ``problems`` lists every mistake, one line each."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in problems))


class HostPolicyError(PolicyError):
    """The host's own policy files are wrong, and no earlier reading of them is in force."""


@dataclass(frozen=True, slots=True)
class Default:
    """What is answered when no rule settles a step."""

    action: DecisionAction
    source: str = ""  # file:line


class RuleIndex:
    """Finds the rules that can concern a command without looking at all of them.

    Prefix and exact rules are found by their words, globs by their first word; only globs that
    leave the first word open are tried against every command.
    """

    __slots__ = ("_by_first", "_first_globs", "_open_globs", "_words", "rules")

    def __init__(self, rules: Iterable[Rule]) -> None:
        self.rules = tuple(rules)
        self._words: dict[bytes, dict[int, dict[tuple[bytes, ...], list[Rule]]]] = {}
        self._first_globs: dict[bytes, list[tuple[Pattern, Rule]]] = {}
        self._open_globs: list[tuple[Pattern, Rule]] = []
        self._by_first: dict[bytes, list[Rule]] = {}
        for rule in self.rules:
            for pattern in rule.patterns:
                if pattern.first is not None:
                    self._by_first.setdefault(pattern.first, []).append(rule)
                if pattern.form != "glob":
                    by_length = self._words.setdefault(pattern.words[0], {})
                    at_length = by_length.setdefault(len(pattern.words), {})
                    at_length.setdefault(pattern.words, []).append(rule)
                elif pattern.first is not None:
                    self._first_globs.setdefault(pattern.first, []).append((pattern, rule))
                else:
                    self._open_globs.append((pattern, rule))

    def possible(self, view: View) -> Iterator[Rule]:
        """Rules that a command with unknown words might match, in order; one may come twice."""
        if view.segments[0] == b"":
            return iter(self.rules)
        found = list(self._by_first.get(view.words[0], ()))
        if view.full is not None:
            found += self._by_first.get(view.full[0], ())
        found += (rule for _, rule in self._open_globs)
        found.sort(key=lambda rule: rule.order)
        return iter(found)

    def matching(self, view: View) -> Iterator[Rule]:
        """Rules that match the command as spelled; one may come twice."""
        for words in (view.words, view.full):
            if words is None:
                continue
            for length, by_words in self._words.get(words[0], {}).items():
                for rule in by_words.get(words[:length], ()):
                    if len(words) == length or rule.matches(view):
                        yield rule
            for pattern, rule in self._first_globs.get(words[0], ()):
                if pattern.matches(view):
                    yield rule
        for pattern, rule in self._open_globs:
            if pattern.matches(view):
                yield rule


@dataclass(frozen=True, slots=True)
class Policy:
    """All layers merged, ready to decide with.

    Attributes:
        hash: 64 hex digits; equal policies have equal hashes whatever their comments and order of
            files.
        mode: the owner's mode; layers in the agent's reach carry their own in their rules.
        defaults: by reach, plus ``unparsable``.
        rules: every rule of every layer that is not disabled, strictest layers not first: in
            order of layers and lines.
        files: the files it was made from, in order.
        telemetry: classes of events that worlds record whose creator names none; all where empty.
        notes: what was read and has no effect, and why.
        examples: how many match and not_match examples ran.
    """

    hash: str
    mode: PolicyMode
    defaults: dict[str, Default]
    rules: tuple[Rule, ...]
    files: tuple[str, ...]
    telemetry: tuple[str, ...] = ()
    notes: tuple[Problem, ...] = ()
    examples: int = 0
    restricting: RuleIndex = field(default_factory=lambda: RuleIndex(()), repr=False, compare=False)
    allowing: RuleIndex = field(default_factory=lambda: RuleIndex(()), repr=False, compare=False)


def load_policy(
    paths: Sequence[Path] = (), *, home: Path | None = None, project: Path | None = None
) -> Policy:
    """Read and merge all layers.

    Args:
        paths: session files, in order.
        home: the host's $SUBSTRATE_HOME; None leaves the host layer out.
        project: the project's root on the host; its policy is read when there is one.

    Raises:
        PolicyError: any file is wrong; all its problems are in it.
    """
    return merge(layer_files(paths, home=home, project=project))


def layer_files(
    paths: Sequence[Path] = (), *, home: Path | None = None, project: Path | None = None
) -> list[tuple[Layer, Path]]:
    """Which files make up a policy, lowest layer first."""
    files: list[tuple[Layer, Path]] = [("builtin", BUILTIN_FILE)]
    if home is not None:
        files += [("host", path) for path in sorted((home / "policies").glob("*.yaml"))]
    if project is not None:
        own = project / ".substrate" / "policy.yaml"
        if own.exists() or own.is_symlink():
            files.append(("project", own))
    files += [("session", path) for path in paths]
    return files


def merge(files: Sequence[tuple[Layer, Path]]) -> Policy:
    """Read the files and make one policy of them.

    Raises:
        PolicyError: any file is wrong.
    """
    return merge_layers(read_layers(files))


def read_layers(files: Sequence[tuple[Layer, Path]]) -> list[LayerFile]:
    """Read each file.

    Raises:
        PolicyError: any file is wrong; all problems of all files are in it.
    """
    problems: list[Problem] = []
    layers: list[LayerFile] = []
    for layer, path in files:
        read, found = read_policy_file(path, layer)
        layers.append(read)
        problems += found
    if problems:
        raise PolicyError(problems)
    return layers


def merge_layers(layers: Sequence[LayerFile]) -> Policy:
    """Merge layers that have been read without problems.

    Raises:
        PolicyError: two files use one id, or a `disable` names no built-in rule.
    """
    clashes = _clashing_ids(layers)
    if clashes:
        raise PolicyError(clashes)
    notes: list[Problem] = []
    mode = _owner_mode(layers)
    disabled = _disabled_ids(layers)
    rules: list[Rule] = []
    taken = {rule.id for layer in layers for rule in layer.rules if not rule.derived}
    for layer in layers:
        own = layer.layer in _OWNER
        layer_mode = mode if own else (layer.mode or mode)
        for rule in layer.rules:
            if own and rule.id in disabled and rule.layer == "builtin":
                continue
            if not own and rule.action == "allow":
                notes.append(_allow_note(rule))
            rule_id = _free_id(rule.id, taken) if rule.derived else rule.id
            rules.append(replace(rule, id=rule_id, mode=layer_mode, order=len(rules)))
    defaults = _merge_defaults(layers, notes)
    active = [rule for rule in rules if rule.mode != "disabled"]
    return Policy(
        hash=_hash(mode, defaults, rules),
        mode=mode,
        defaults=defaults,
        rules=tuple(rules),
        files=tuple(layer.file for layer in layers),
        telemetry=_merge_telemetry(layers),
        notes=tuple(notes),
        examples=sum(layer.examples for layer in layers),
        restricting=RuleIndex(rule for rule in active if rule.action != "allow"),
        allowing=RuleIndex(
            rule for rule in active if rule.action == "allow" and rule.layer in _OWNER
        ),
    )


def _free_id(wanted: str, taken: set[str]) -> str:
    """A derived id, numbered when another rule has it."""
    rule_id, count = wanted, 2
    while rule_id in taken:
        rule_id, count = f"{wanted}-{count}", count + 1
    taken.add(rule_id)
    return rule_id


def _owner_mode(layers: Sequence[LayerFile]) -> PolicyMode:
    """The strictest mode that a host file names; else the built-in one."""
    host = [layer.mode for layer in layers if layer.layer == "host" and layer.mode is not None]
    if host:
        return max(host, key=_MODE_STRENGTH.__getitem__)
    builtin = [layer.mode for layer in layers if layer.layer == "builtin" and layer.mode]
    return builtin[0] if builtin else "enforce"


def _merge_telemetry(layers: Sequence[LayerFile]) -> tuple[str, ...]:
    """What any host file wants recorded; empty, which is all, where none says."""
    named = [layer.telemetry for layer in layers if layer.telemetry is not None]
    return tuple(dict.fromkeys(name for names in named for name in names))


def _disabled_ids(layers: Sequence[LayerFile]) -> set[str]:
    known = {rule.id for layer in layers if layer.layer == "builtin" for rule in layer.rules}
    wanted = [(layer, *entry) for layer in layers for entry in layer.disable]
    unknown = [
        Problem(layer.file, line, f"`disable` names `{rule_id}`, which is no built-in rule")
        for layer, rule_id, line in wanted
        if rule_id not in known
    ]
    if unknown:
        raise PolicyError(unknown)
    return {rule_id for _, rule_id, _ in wanted}


def _clashing_ids(layers: Sequence[LayerFile]) -> list[Problem]:
    """Ids are unique over all files, so that a decision names one rule."""
    seen: dict[str, Rule] = {}
    problems = []
    for layer in layers:
        for rule in layer.rules:
            if rule.derived:
                continue
            first = seen.setdefault(rule.id, rule)
            if first.file != rule.file:
                message = f"id `{rule.id}` is already used at {first.source}; give another id"
                problems.append(Problem(rule.file, rule.line, message))
    return problems


def _allow_note(rule: Rule) -> Problem:
    message = (
        f"allow rule `{rule.id}` of the {rule.layer} layer has no effect: only the host's "
        "policies can lift an ask, and inside a world nothing needs to be allowed"
    )
    return Problem(rule.file, rule.line, message, "note")


def _merge_defaults(layers: Sequence[LayerFile], notes: list[Problem]) -> dict[str, Default]:
    merged = {key: Default("ask") for key in (*REACHES, "unparsable")}
    for layer in layers:
        for key, (action, line) in layer.defaults.items():
            stricter = STRICTNESS[action] > STRICTNESS[merged[key].action]
            if layer.layer in _OWNER or (stricter and layer.mode in (None, "enforce")):
                merged[key] = Default(action, f"{layer.file}:{line}")
            elif action != merged[key].action:
                message = (
                    f"`defaults.{key}: {action}` has no effect: a {layer.layer} policy can only "
                    f"tighten `{merged[key].action}`, and only in mode enforce"
                )
                notes.append(Problem(layer.file, line, message, "note"))
    return merged


def _hash(mode: PolicyMode, defaults: dict[str, Default], rules: Sequence[Rule]) -> str:
    """BLAKE3 over the canonical merged form; where a rule stands is not part of it."""
    form = {
        "v": HASH_VERSION,
        "mode": mode,
        "defaults": {key: default.action for key, default in defaults.items()},
        "rules": [
            {
                "id": rule.id,
                "layer": rule.layer,
                "mode": rule.mode,
                "action": rule.action,
                "patterns": [[pattern.form, pattern.spec] for pattern in rule.patterns],
                "when": sorted(rule.when),
                "reason": rule.reason,
                **({"network": [one.spec for one in rule.network]} if rule.network else {}),
            }
            for rule in rules
        ],
    }
    canonical = json.dumps(form, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return blake3.blake3(canonical.encode()).hexdigest()
