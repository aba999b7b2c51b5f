"""Policy files: what is read, what is refused, and how layers are merged."""

# ruff: noqa: E501 # expected messages stand on one line, as people see them

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from substrate_services.broker.patterns import PatternError, compile_pattern, exact_pattern
from substrate_services.broker.policy import HostPolicyError, Policy, PolicyError, load_policy
from substrate_services.broker.policy_file import Layer, Problem, parse_policy
from substrate_services.broker.source import PolicySource


def problems(text: str, layer: Layer = "host") -> list[str]:
    """The problems of a policy's text, as people see them."""
    return [str(problem) for problem in parse_policy(text.encode(), layer, "p.yaml")[1]]


def host(tmp_path: Path, text: str, name: str = "a.yaml") -> Path:
    """A home with this host policy in it."""
    (tmp_path / "policies").mkdir(exist_ok=True)
    (tmp_path / "policies" / name).write_text(text)
    return tmp_path


def rule_of(policy: Policy, rule_id: str) -> tuple[str, str, str]:
    (found,) = [rule for rule in policy.rules if rule.id == rule_id]
    return found.action, found.layer, found.mode


def test_the_built_in_policy_is_right_and_short() -> None:
    policy = load_policy()
    assert policy.mode == "enforce"
    assert {key: value.action for key, value in policy.defaults.items()} == {
        "apply": "ask",
        "network": "ask",
        "secrets": "ask",
        "host": "ask",
        "unparsable": "ask",
    }
    assert [rule.id for rule in policy.rules] == ["builtin.publish"]
    assert policy.examples == 4
    assert policy.rules[0].source.startswith("<built-in>/workspace.yaml:")


def test_a_rule_has_every_part_it_was_given(tmp_path: Path) -> None:
    home = host(
        tmp_path,
        """version: 1
name: ours
rules:
  - id: no-push
    action: deny
    kind: command
    command: ["git push:*", "gh pr create:*"]
    when: [network, host]
    reason: >-
      Ask a person
      to push.
    match: ["cd a && git push origin", [gh, pr, create]]
    not_match: ["git pull", "echo 'git push'"]
  - {action: ask, argv: [make, "a b"]}
""",
    )
    policy = load_policy(home=home)
    rule, derived = policy.rules[1:]
    assert (rule.id, rule.action, rule.line, rule.layer) == ("no-push", "deny", 4, "host")
    assert rule.source == f"{home}/policies/a.yaml:4"
    assert rule.reason == "Ask a person to push."
    assert rule.when == {"network", "host"}
    assert [pattern.form for pattern in rule.patterns] == ["prefix", "prefix"]
    assert derived.id == "ask:make-a-b"
    assert derived.patterns[0].words == (b"make", b"a b")
    assert policy.examples == 4 + 4


MISTAKES = {
    "": "p.yaml: an empty policy; write at least `version: 1`",
    "[]": "p.yaml:1: a policy is a mapping with version, name, mode, defaults, disable, telemetry, rules, not a list",
    "name: x": "p.yaml:1: `version` is missing; write `version: 1`",
    "version: 2": "p.yaml:1: version `2` is not known; this reads version 1",
    "version: 1\nruls: []": "p.yaml:2: unknown key `ruls` in a policy; known: version, name, mode, defaults, disable, telemetry, rules",
    "version: 1\nversion: 1": "p.yaml:2: `version` is given twice",
    "version: 1\nmode: strict": "p.yaml:2: `mode: strict` is not known; one of disabled, observe, enforce",
    "version: 1\nmode: [x]": "p.yaml:2: `mode` is a string, not a list; put it in quotes",
    "version: 1\nname: 1": "p.yaml:2: `name` is a string, not `1`; put it in quotes",
    "version: 1\ndefaults: {disk: ask}": "p.yaml:2: unknown key `disk` in `defaults`; known: apply, network, secrets, host, unparsable",
    "version: 1\ndefaults: {host: maybe}": "p.yaml:2: `host: maybe` is not known; one of allow, ask, deny",
    "version: 1\nrules: {}": "p.yaml:2: `rules` is a list of rules, not a mapping",
    "version: 1\nrules: [x]": "p.yaml:2: a rule is a mapping with id, action, kind, command, argv, network, when, reason, match, not_match, not `x`",
    "version: 1\nrules:\n- {command: ls}": "p.yaml:3: the rule has no `action`; one of allow, ask, deny",
    "version: 1\nrules:\n- {action: forbid, command: ls}": "p.yaml:3: `action: forbid` is not known; one of allow, ask, deny",
    "version: 1\nrules:\n- {action: deny}": "p.yaml:3: a rule has either `command` (a pattern or a list) or `argv` (a list)",
    "version: 1\nrules:\n- {action: deny, command: ls, argv: [ls]}": "p.yaml:3: a rule has either `command` (a pattern or a list) or `argv` (a list)",
    "version: 1\nrules:\n- {action: deny, command: []}": "p.yaml:3: `command` is an empty list, so the rule never matches",
    "version: 1\nrules:\n- {action: deny, command: 3}": "p.yaml:3: `command` is a string, not `3`; put it in quotes",
    "version: 1\nrules:\n- {action: deny, command: ''}": "p.yaml:3: an empty pattern never matches; write a command, for example `git push:*`",
    "version: 1\nrules:\n- {action: deny, argv: []}": "p.yaml:3: an empty argv never matches; give the command and its arguments",
    "version: 1\nrules:\n- {action: deny, command: ls, kind: files}": "p.yaml:3: rules of kind `files` are not built yet; see docs/POLICY.md for what there is",
    "version: 1\nrules:\n- {action: deny, command: ls, kind: x}": "p.yaml:3: `kind: x` is not known; write `command` or `network`",
    "version: 1\nrules:\n- {action: deny, kind: network}": "p.yaml:3: a rule of kind `network` has `network`: a network rule, or a list",
    "version: 1\nrules:\n- {action: deny, network: full, when: [apply]}": "p.yaml:3: `when` is for commands, and the rule is about `network`",
    "version: 1\nrules:\n- {action: deny, network: ['10.0.0.0/99']}": "p.yaml:3: network rule '10.0.0.0/99' is no address block: '10.0.0.0/99' does not appear to be an IPv4 or IPv6 network",
    "version: 1\nrules:\n- {action: deny, command: ls, when: []}": "p.yaml:3: `when` is empty, so the rule never counts; list apply, network, secrets, host",
    "version: 1\nrules:\n- {action: deny, command: ls, when: [disk]}": "p.yaml:3: `when: disk` is not known; one of apply, network, secrets, host",
    "version: 1\nrules:\n- {action: deny, command: ls, id: 'a b'}": "p.yaml:3: `id: a b` is not an id: letters, digits and _ . : / -",
    "version: 1\nrules:\n- {action: deny, command: ls, id: default}": "p.yaml:3: `id: default` is taken by the policy's own answers",
    "version: 1\nrules:\n- {action: deny, command: ls, id: a}\n- {action: ask, command: cd, id: a}": "p.yaml:4: id `a` is already used in line 3",
    "version: 1\nrules:\n- {action: deny, command: ls, match: ['cd']}": "p.yaml:3: rule `deny:ls` does not match its example `cd`",
    "version: 1\nrules:\n- {action: deny, command: 'ls:*', not_match: ['ls -l']}": "p.yaml:3: rule `deny:ls` matches `ls -l`, which it says it does not",
    "version: 1\nrules:\n- {action: deny, command: ls, match: ls}": "p.yaml:3: `match` is a list of commands, not `ls`",
    "version: 1\nrules: &a\n- *a": "p.yaml:3: nested too deeply, or an alias (`*name`); write it out",
    "version: 1\nx: [[[[[[[[[[1]]]]]]]]]]": "p.yaml:2: nested too deeply, or an alias (`*name`); write it out",
    "version: 1\nrules: [": "p.yaml:3: not YAML: did not find expected node content",
    "version: !!python/object:os.system 1": "p.yaml:1: version `1` is not known; this reads version 1",
}  # fmt: skip


def test_each_mistake_is_one_clear_line_with_its_place() -> None:
    for text, expected in MISTAKES.items():
        assert expected in problems(text), text


def test_all_mistakes_are_listed_together(tmp_path: Path) -> None:
    first = tmp_path / "a.yaml"
    first.write_text("version: 1\nmode: x\nrules:\n- {action: y, command: ''}\n")
    second = tmp_path / "b.yaml"
    with pytest.raises(PolicyError) as raised:
        load_policy([first, second])
    lines = str(raised.value).splitlines()
    assert [line.split(": ")[0] for line in lines] == [
        f"{first}:2", f"{first}:4", f"{first}:4", str(second)
    ]  # fmt: skip
    assert "No such file" in lines[-1]


NEVER_MATCH = [
    "", "  ", ":*", "git push; ls", "a && b", "a | b", "A=1", "A=1 ls *", "ls > out", "ls $HOME",
    "'unclosed", "if *", "ls *:*", "[", "ls [z-a]", "ls [!\x01-\xff]", "# ls", "(ls *)", "ls &",
]  # fmt: skip


def test_patterns_that_can_never_match_are_refused() -> None:
    accepted = []
    for spec in NEVER_MATCH:
        try:
            compile_pattern(spec)
        except PatternError:
            continue
        accepted.append(spec)
    assert accepted == []
    with pytest.raises(PatternError):
        exact_pattern([""])


@given(st.text(max_size=40))
def test_any_pattern_is_compiled_or_refused(spec: str) -> None:
    try:
        compile_pattern(spec)
    except PatternError:
        return


@given(st.binary(max_size=200))
def test_any_bytes_are_a_policy_or_problems(data: bytes) -> None:
    read, found = parse_policy(b"version: 1\n" + data, "project", "p.yaml")
    assert found or read.file == "p.yaml"
    for problem in found:
        assert "\n" not in str(problem)


def test_only_regular_files_of_bounded_size_are_read(tmp_path: Path) -> None:
    link, fifo, large = tmp_path / "link", tmp_path / "fifo", tmp_path / "large"
    link.symlink_to("/dev/zero")
    os.mkfifo(fifo)
    large.write_bytes(b"#" * (1 << 20) + b"\n\n")
    for path, why in ((link, "symbolic"), (fifo, "regular"), (large, "larger"), (tmp_path, "")):
        with pytest.raises(PolicyError, match="cannot read the policy") as raised:
            load_policy([path])
        assert why in str(raised.value)


def test_a_project_cannot_loosen_the_host(tmp_path: Path) -> None:
    home = host(tmp_path, "version: 1\ndefaults: {host: deny, secrets: allow}\n")
    project = tmp_path / "project"
    (project / ".substrate").mkdir(parents=True)
    (project / ".substrate" / "policy.yaml").write_text(
        "version: 1\nmode: disabled\ndefaults: {host: allow, secrets: ask}\nrules:\n"
        "- {action: allow, command: 'ls:*'}\n- {action: deny, command: 'rm:*'}\n"
    )
    policy = load_policy(home=home, project=project)
    assert policy.mode == "enforce"
    assert policy.defaults["host"].action == "deny"
    assert policy.defaults["secrets"].action == "allow"  # only counts in mode enforce
    assert rule_of(policy, "builtin.publish") == ("ask", "builtin", "enforce")
    assert rule_of(policy, "deny:rm") == ("deny", "project", "disabled")
    assert [note.line for note in policy.notes] == [5, 3, 3]
    assert all(note.severity == "note" for note in policy.notes)
    assert policy.allowing.rules == ()


def test_a_project_can_tighten_the_host(tmp_path: Path) -> None:
    home = host(tmp_path, "version: 1\nmode: observe\ndefaults: {host: allow}\n")
    session = tmp_path / "session.yaml"
    session.write_text(
        "version: 1\nmode: enforce\ndefaults: {host: deny}\n"
        "rules: [{action: deny, command: 'rm:*'}]\n"
    )
    policy = load_policy([session], home=home)
    assert policy.mode == "observe"
    assert policy.defaults["host"].action == "deny"
    assert policy.defaults["host"].source == f"{session}:3"
    assert rule_of(policy, "deny:rm") == ("deny", "session", "enforce")
    assert rule_of(policy, "builtin.publish")[2] == "observe"


def test_the_host_can_switch_built_in_rules_off_and_nobody_else_can(tmp_path: Path) -> None:
    text = "version: 1\ndisable: [builtin.publish]\n"
    assert load_policy(home=host(tmp_path, text)).rules == ()
    assert "`disable` works only in the host's policies" in problems(text, "project")[0]
    with pytest.raises(PolicyError, match="names `nope`, which is no built-in rule"):
        load_policy(home=host(tmp_path, "version: 1\ndisable: [nope]\n"))


def test_ids_are_unique_over_files_and_derived_ones_give_way(tmp_path: Path) -> None:
    host(tmp_path, "version: 1\nrules: [{action: deny, command: 'rm:*'}]\n", "a.yaml")
    host(tmp_path, "version: 1\nrules: [{action: deny, command: 'rm *'}]\n", "b.yaml")
    ids = [rule.id for rule in load_policy(home=tmp_path).rules]
    assert ids == ["builtin.publish", "deny:rm", "deny:rm-2"]
    host(tmp_path, "version: 1\nrules: [{action: deny, command: 'a', id: x}]\n", "a.yaml")
    host(tmp_path, "version: 1\nrules: [{action: deny, command: 'b', id: x}]\n", "b.yaml")
    with pytest.raises(PolicyError, match=r"b\.yaml:2: id `x` is already used at .*a\.yaml:2"):
        load_policy(home=tmp_path)


def test_the_hash_is_of_what_is_said_and_not_of_how_it_is_written(tmp_path: Path) -> None:
    def digest(text: str, name: str = "a.yaml") -> str:
        for path in (tmp_path / "policies").glob("*"):
            path.unlink()
        return load_policy(home=host(tmp_path, text, name)).hash

    plain = digest("version: 1\nrules: [{action: deny, command: 'rm:*'}]\n")
    assert len(plain) == 64
    commented = "# hello\n\nversion: 1\nrules:\n  - command: 'rm:*' # x\n    action: deny\n"
    assert digest(commented, "z.yaml") == plain
    changed = {
        digest("version: 1\nrules: [{action: ask, command: 'rm:*'}]\n"),
        digest("version: 1\nrules: [{action: deny, command: 'rm *'}]\n"),
        digest("version: 1\nrules: [{action: deny, command: 'rm:*', when: [host]}]\n"),
        digest("version: 1\nmode: observe\nrules: [{action: deny, command: 'rm:*'}]\n"),
        digest("version: 1\ndefaults: {host: deny}\nrules: [{action: deny, command: 'rm:*'}]\n"),
        digest("version: 1\nrules: [{action: deny, command: 'rm:*', reason: why}]\n"),
    }
    assert len(changed | {plain}) == 7


def test_a_changed_file_is_seen_at_the_next_decision(tmp_path: Path) -> None:
    home = host(tmp_path, "version: 1\nrules: [{action: deny, command: 'rm:*'}]\n")
    project = tmp_path / "project"
    source = PolicySource(home)
    first = source.current()
    assert source.current() is first
    assert source.current(project=project).rules == first.rules
    host(tmp_path, "version: 1\nrules: [{action: deny, command: 'cp:*'}]\n")
    assert [rule.id for rule in source.current().rules] == ["builtin.publish", "deny:cp"]
    host(tmp_path, "version: 1\nrules: [{action: deny, command: 'mv:*'}]\n", "b.yaml")
    assert len(source.current(project=project).rules) == 3
    (home / "policies" / "a.yaml").unlink()
    assert [rule.id for rule in source.current().rules] == ["builtin.publish", "deny:mv"]
    (project / ".substrate").mkdir(parents=True)
    own = project / ".substrate" / "policy.yaml"
    own.write_text("version: 1\nrules: [{action: ask, command: 'dd:*'}]\n")
    assert [rule.id for rule in source.current(project=project).rules][-1] == "ask:dd"
    assert len(source.current().rules) == 2


def test_a_host_file_that_turns_wrong_leaves_the_policy_before_in_force(tmp_path: Path) -> None:
    home = host(tmp_path, "version: 1\nrules: [{action: deny, command: 'rm:*'}]\n")
    source = PolicySource(home)
    first = source.current()
    host(tmp_path, "version: 1\nrules: [{action: dny, command: 'rm:*'}]\n")
    assert source.current() is first
    assert [problem.line for problem in source.problems] == [2]
    with pytest.raises(HostPolicyError, match="action: dny"):
        source.reload()
    assert source.current().hash == first.hash
    host(tmp_path, "version: 1\n")
    assert source.current().hash != first.hash
    assert source.problems == ()


def test_wrong_files_stop_what_they_are_for(tmp_path: Path) -> None:
    host(tmp_path, "version: 3\n")
    with pytest.raises(HostPolicyError):
        PolicySource(tmp_path).current()
    source = PolicySource(None)
    wrong = tmp_path / "s.yaml"
    wrong.write_text("version: 3\n")
    with pytest.raises(PolicyError, match="version `3`"):
        source.current(files=[wrong])
    assert source.current().mode == "enforce"


def test_a_problem_without_a_line_names_the_file() -> None:
    assert str(Problem("a", 0, "m")) == "a: m"
    assert str(Problem("a", 3, "m")) == "a:3: m"


def test_the_host_says_what_worlds_record_by_default(tmp_path: Path) -> None:
    text = "version: 1\ntelemetry: {classes: [open, network]}\n"
    assert load_policy(home=host(tmp_path, text)).telemetry == ("open", "network")
    assert load_policy().telemetry == ()
    assert "`telemetry` works only in the host's policies" in problems(text, "project")[0]
    wrong = "version: 1\ntelemetry: {classes: [opens]}\n"
    assert "'opens': expected process, open, mutate" in problems(wrong, "host")[0]
    assert "names no `classes`" in problems("version: 1\ntelemetry: {}\n", "host")[0]
