"""Decisions: the strictest answer, defaults, modes, and how they are explained."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from substrate_services.broker.decide import StepRequest, check, decide, explain
from substrate_services.broker.policy import Policy, load_policy, merge_layers
from substrate_services.broker.policy_file import Layer, LayerFile, Reach, parse_policy
from substrate_services.journal.schema import Command, Decision


def layer(text: str, name: Layer = "host") -> LayerFile:
    read, problems = parse_policy(text.encode(), name, f"{name}.yaml")
    assert problems == []
    return read


def policy(*rules: str, head: str = "", name: Layer = "host") -> Policy:
    """The built-in policy's defaults with these rules, each in YAML's flow style."""
    lines = ["rules:", *(f"- {{{rule}}}" for rule in rules)] if rules else []
    text = "\n".join(["version: 1", head, *lines])
    return merge_layers([layer(text, name)])


def shell(script: bytes) -> Command:
    return Command((b"/bin/sh", b"-c", script), script)


def answer(rules: Policy, script: bytes, *reach: Reach, network: tuple[str, ...] = ()) -> Decision:
    return decide(rules, StepRequest(shell(script), frozenset(reach), network))


def verdicts(rules: Policy, *scripts: bytes) -> list[str]:
    return [answer(rules, script).action for script in scripts]


NO_RM = policy('id: no-rm, action: deny, command: "rm -rf *", reason: "Name the files."')


def test_the_command_is_denied_in_every_disguise() -> None:
    disguises = [
        b"rm -rf x", b"true; rm -rf x", b"/bin/rm -rf x", b"\\rm -rf x", b"'r'm -rf x",
        b"env rm -rf x", b'bash -c "rm -rf x"', b"$(rm -rf x)", b"ls | xargs rm -rf",
        b"echo `rm -rf x`", b"(cd a && rm -rf x)", b"f() { rm -rf x; }; f", b"rm -rf $X",
        b"rm -rf *", b"rm -rf ~/a", b"rm   -rf\tx", b"sudo -u root nice rm -rf x",
        b"find . -exec rm -rf {} +", b"$HOME/bin/rm -rf x", b"eval 'rm -rf x'",
    ]  # fmt: skip
    assert [s for s in disguises if answer(NO_RM, s).action != "deny"] == []
    found = answer(NO_RM, b"true; rm -rf x")
    assert (found.rule_id, found.source) == ("no-rm", "host.yaml:4")
    assert found.reason == "`rm -rf x` is denied by rule no-rm. Name the files."
    assert (found.mode, found.enforced, found.policy_hash) == ("enforce", True, NO_RM.hash)


def test_what_only_mentions_the_command_is_allowed() -> None:
    innocent = [
        b'echo "rm -rf x"', b"echo rm -rf x", b"rm -r x", b"rm x", b"cat <<'E'\nrm -rf x\nE\n",
        b"grep 'rm -rf' log", b"git rm -rf x", b"rmdir -rf x", b"trim -rf x",
    ]  # fmt: skip
    assert [s for s in innocent if answer(NO_RM, s).action != "allow"] == []
    found = answer(NO_RM, b"ls")
    assert (found.rule_id, found.source) == ("default", "")


def test_unknown_words_are_never_read_in_the_commands_favour() -> None:
    unknown = [b"$X -rf y", b"$X", b"rm $X", b"rm -r$X", b"r$X -rf y", b"{rm,-rf,x}", b"/bin/r?"]
    assert verdicts(NO_RM, *unknown) == ["ask"] * len(unknown)
    known_apart = [b"ls $X", b"rm x$Y", b"cp -rf $X", b"git $X", b'echo "$X"']
    assert verdicts(NO_RM, *known_apart) == ["allow"] * len(known_apart)
    found = answer(NO_RM, b"$X -rf y")
    assert "known only when it runs" in found.reason
    exact = policy("action: deny, argv: [make, world]")
    assert verdicts(exact, b"make $X", b"make world $X", b"make wor$X", b"make a $X") == [
        "ask", "ask", "ask", "allow"
    ]  # fmt: skip
    assert verdicts(policy("action: allow, command: '*'"), b"$X") == ["allow"]


def test_deny_beats_ask_beats_allow_over_all_commands() -> None:
    rules = policy(
        "action: allow, command: '*'", "action: ask, command: 'b:*'", "action: deny, command: c"
    )
    assert verdicts(rules, b"a", b"a; b", b"b; c; a", b"c | b") == ["allow", "ask", "deny", "deny"]
    both = policy("id: soft, action: ask, command: 'a:*'", "id: hard, action: deny, command: 'a:*'")
    assert answer(both, b"a").rule_id == "hard"
    first = policy("id: one, action: deny, command: 'a:*'", "id: two, action: deny, command: a")
    assert answer(first, b"a").rule_id == "one"


def test_a_shell_string_that_cannot_be_read_is_asked_about() -> None:
    found = answer(NO_RM, b"ls; echo 'a")
    assert (found.action, found.rule_id) == ("ask", "unparsable")
    assert "near byte 9 (a single quote is not closed)" in found.reason
    assert answer(NO_RM, b"rm -rf x; echo 'a").action == "deny"
    trusting = policy(head="defaults: {unparsable: allow}")
    assert answer(trusting, b"echo 'a").action == "allow"
    assert answer(trusting, b"echo 'a", "host").action == "ask"


def test_argv_is_what_counts() -> None:
    request = StepRequest(Command((b"env", b"rm", b"-rf", b"a b"), None))
    assert decide(NO_RM, request).action == "deny"
    lying = StepRequest(Command((b"rm", b"-rf", b"x"), b"ls"))
    assert decide(NO_RM, lying).action == "deny"
    quoted = StepRequest(Command((b"echo", b"; rm -rf x"), None))
    assert decide(NO_RM, quoted).action == "allow"
    no_sh = policy("action: deny, command: 'sh:*'")
    assert answer(no_sh, b"ls").action == "allow"  # the shell that Substrate adds is not the step's
    assert decide(no_sh, StepRequest(Command((b"sh", b"-c", b"ls"), None))).action == "deny"


def test_a_rule_with_a_path_is_about_that_path() -> None:
    rules = policy("action: deny, command: '/opt/x/tool:*'")
    assert verdicts(rules, b"/opt/x/tool a", b"tool a", b"/bin/tool a") == [
        "deny",
        "allow",
        "allow",
    ]
    glob = policy("action: deny, command: '/opt/*'")
    own = policy("action: allow, command: '/opt/ls:*'")
    assert answer(own, b"/opt/ls a", "host").action == "allow"
    assert answer(own, b"ls a", "host").action == "ask"
    assert verdicts(glob, b"/opt/x/tool a", b"tool a") == ["deny", "allow"]


def test_what_reaches_outside_is_asked_about_unless_the_host_allows_it() -> None:
    plain = load_policy()
    for reach in ("apply", "network", "secrets"):
        found = decide(plain, StepRequest(None, frozenset([reach])))
        assert (found.action, found.rule_id) == ("ask", "default")
        assert found.source.startswith("<built-in>/workspace.yaml:")
    assert answer(plain, b"ls").action == "allow"
    assert answer(plain, b"ls", "host").action == "ask"
    opened = policy(head="defaults: {host: allow, network: deny}")
    assert answer(opened, b"ls", "host").action == "allow"
    assert answer(opened, b"ls", "host", "network").action == "deny"


def test_an_allow_rule_lifts_the_ask_only_for_all_that_runs() -> None:
    rules = policy("action: allow, command: ['ls:*', 'git status:*', 'echo *']")
    allowed = [b"ls", b"ls -l $X", b"/bin/ls", b"git status && ls | ls", b"ls 2>/dev/null",
               b"echo a $X", b"ls *.py"]  # fmt: skip
    assert [s for s in allowed if answer(rules, s, "host").action != "allow"] == []
    asked = [
        b"ls; rm x", b"./ls", b"/tmp/ls", b"$X", b"ls$X", b"git $X", b"git sta$X",
        b"ls > /etc/passwd", b"PATH=. ls", b"> /etc/passwd", b"ls $(rm x)", b"sudo ls",
        b"ls; A=1", b"", b"echo 'a", b"$X ls", b"ls() { rm x; }; ls",
    ]  # fmt: skip
    assert [s for s in asked if answer(rules, s, "host").action != "ask"] == []


def test_an_allow_rule_speaks_for_the_reach_that_it_names() -> None:
    rules = policy(
        "action: allow, command: 'pip install:*', when: [network]", "action: allow, command: ls"
    )
    assert answer(rules, b"pip install x", "network").action == "allow"
    assert answer(rules, b"pip install x", "host").action == "ask"
    assert answer(rules, b"pip install x", "network", "host").action == "ask"
    assert answer(rules, b"ls", "network").action == "ask"
    for outsider in ("project", "session"):
        loose = policy("action: allow, command: ls", name=outsider)
        assert answer(loose, b"ls", "host").action == "ask"


def test_rules_with_when_count_only_where_the_step_can_reach() -> None:
    plain = load_policy()
    assert answer(plain, b"git push origin").action == "allow"
    assert answer(plain, b"cd a && git push origin", network=("@github",)).action == "ask"
    assert answer(plain, b"git pull", network=("@github",)).action == "allow"


def test_observe_says_what_would_be_and_lets_it_pass() -> None:
    rule = "id: no-rm, action: deny, command: 'rm:*'"
    found = answer(policy(rule, head="mode: observe"), b"rm x")
    assert (found.action, found.mode, found.enforced) == ("deny", "observe", False)
    reached = answer(policy(rule, head="mode: observe"), b"ls", "host")
    assert (reached.action, reached.enforced) == ("ask", False)
    off = answer(policy(rule, head="mode: disabled"), b"rm x", "host")
    assert (off.action, off.mode, off.enforced) == ("allow", "disabled", True)


def test_a_layer_that_only_observes_does_not_weaken_one_that_enforces() -> None:
    host = layer("version: 1\nrules: [{id: h, action: ask, command: 'rm:*'}]\n")
    tried = layer(
        "version: 1\nmode: observe\nrules: [{id: s, action: deny, command: '*'}]\n", "session"
    )
    both = merge_layers([host, tried])
    assert (answer(both, b"rm x").rule_id, answer(both, b"rm x").enforced) == ("h", True)
    assert (answer(both, b"ls").rule_id, answer(both, b"ls").enforced) == ("s", False)


def test_an_explanation_names_every_rule_and_why_one_won() -> None:
    rules = policy(
        "id: no-rm, action: deny, command: 'rm -rf *', reason: Name the files.",
        "id: ask-rm, action: ask, command: 'rm:*'",
        "id: push, action: ask, command: 'git push:*', when: [network]",
    )
    told = explain(rules, StepRequest(shell(b"cd $X; git push; sudo rm -rf y")))
    assert told.decision == answer(rules, b"cd $X; git push; sudo rm -rf y")
    matched = [(entry.rule.id, entry.command.source) for entry in told.considered if entry.matched]
    assert matched == [("no-rm", b"rm -rf y"), ("ask-rm", b"rm -rf y")]
    assert len(told.considered) == 4 * 3
    text = told.text()
    for line in (
        "deny: `rm -rf y` is denied by rule no-rm. Name the files.",
        "  rule no-rm at host.yaml:4",
        "  1. cd $X   (some words are known only when it runs)",
        "  4. rm -rf y   via sudo",
        "  deny  no-rm matches: rm -rf y   (host.yaml:4)",
        "why: it is the strictest of 2 answers (deny, then ask, then allow)",
    ):
        assert line in text.splitlines()
    assert "not counted: only for steps that reach network" in told.text(all_rules=True)
    assert "whose boundary holds" in explain(rules, StepRequest(shell(b"ls"))).text()
    assert "so the default does" in explain(rules, StepRequest(None, frozenset(["apply"]))).text()


def test_an_explanation_of_a_long_script_stays_bounded() -> None:
    told = explain(NO_RM, StepRequest(shell(b"ls\n" * 5_000 + b"rm -rf x")))
    assert told.decision.action == "deny"
    assert len(told.considered) == 200
    assert "… and 4801 more" in told.text()


def test_text_for_people_holds_no_control_characters() -> None:
    found = answer(NO_RM, b"rm -rf '\x1b[31m\n\xff'")
    assert found.action == "deny"
    assert found.reason.isprintable()


def test_check_lists_mistakes_and_counts_what_it_ran(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    good.write_text("version: 1\nrules: [{action: deny, command: 'rm:*', match: [rm a, rm b]}]\n")
    bad.write_text("version: 1\nrules: [{action: deny, command: 'rm:*', match: [ls]}]\n")
    found = check([good])
    assert (found.ok, found.problems, found.rules, found.examples) == (True, (), 1, 2)
    found = check([good, bad])
    assert not found.ok
    assert [problem.source for problem in found.problems] == [f"{bad}:2"]
    project = tmp_path / ".substrate" / "policy.yaml"
    project.parent.mkdir()
    project.write_text("version: 1\nrules: [{action: allow, command: ls}]\n")
    found = check([project])
    assert found.ok
    assert [problem.severity for problem in found.problems] == ["note"]


@given(st.binary(max_size=200), st.sets(st.sampled_from(["host", "network"])))
def test_any_request_gets_an_answer(script: bytes, reach: set[Reach]) -> None:
    request = StepRequest(shell(script), frozenset(reach))
    decision = decide(NO_RM, request)
    assert decision.reason
    assert explain(NO_RM, request).decision == decision


PATTERNS = [
    "rm:*", "rm -rf:*", "rm -rf *", "rm -rf x", "* x", "r? *", "rm*", "rm -r[fv] x", "rm", "*f*x",
    "/a/rm:*", "/a/* x", "rm ?f x", "rm -rf x x",
]  # fmt: skip
PIECES = ["rm", "-rf", "x", "/a", "$X", "r$X", '"$X"', "-r$X", 'x"$X"x', "$X$X"]
VALUES = ["", "rm", "m", "-rf x", "x x", "-rf", "/a/rm", "f", "rm -rf x", "f x", "*"]


@given(
    st.sampled_from(PATTERNS),
    st.lists(st.sampled_from(PIECES), min_size=1, max_size=4),
    st.sampled_from(VALUES),
)
def test_no_value_of_an_unknown_word_gets_past_a_rule(
    pattern: str, pieces: list[str], value: str
) -> None:
    script = " ".join(pieces)
    concrete = script.replace("$X", value)
    deny = policy(f"action: deny, command: '{pattern}'")
    if answer(deny, script.encode()).action == "allow":
        assert answer(deny, concrete.encode()).action == "allow", concrete
    allow = policy(f"action: allow, command: '{pattern}'")
    if concrete.strip(' "') and answer(allow, script.encode(), "host").action == "allow":
        assert answer(allow, concrete.encode(), "host").action == "allow", concrete
