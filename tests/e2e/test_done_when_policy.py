"""Issue 2: policy decides first; what it refuses does not run, and says why."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.users import User, new_user

POLICY = """\
version: 1
rules:
  - id: no-clean
    action: deny
    command: "make clean:*"
    reason: "Use `make tidy`."
  - id: ask-deploy
    action: ask
    command: "deploy:*"
    reason: "Deploying needs a person."
"""


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    file = tmp_path / "policy.yaml"
    file.write_text(POLICY)
    return file


def test_a_denied_command_is_126_and_names_the_rule(
    user: User, git_checkout: Path, policy: Path
) -> None:
    done = user.run(
        "run", "-q", "--policy", str(policy), "--", "make", "clean", "all", cwd=git_checkout
    )
    assert done.code == 126
    assert "no-clean" in done.error_line
    assert f"{policy}:3" in done.error_line
    assert "Use `make tidy`." in done.error_line


def test_a_denied_command_is_told_apart_in_json_and_recorded(
    user: User, git_checkout: Path, policy: Path
) -> None:
    done = user.run(
        "run", "--json", "--policy", str(policy), "--", "make", "clean", cwd=git_checkout
    )
    result = done.json
    assert (done.code, result["exit_code"]) == (126, 126)
    assert result["termination_reason"] == "DENIED"
    assert (result["decision"]["action"], result["decision"]["rule"]) == ("deny", "no-clean")
    (blocked,) = result["blocked"]
    assert (blocked["layer"], blocked["rule"]) == ("policy", "no-clean")
    assert blocked["fix"]
    (line,) = [line for line in user.spans() if line["span_id"] == result["span_id"]]
    assert line["termination_reason"] == "DENIED"


def test_a_denied_part_of_a_compound_command_stops_all_of_it(
    user: User, git_checkout: Path, policy: Path
) -> None:
    script = "echo x > made; (cd /tmp && make clean); echo done"
    done = user.run("--json", "--policy", str(policy), "-c", script, cwd=git_checkout)
    assert done.code == 126
    assert done.json["stdout"] == ""
    assert done.json["changes"] == []


def test_what_no_rule_matches_runs(user: User, git_checkout: Path, policy: Path) -> None:
    done = user.run(
        "run", "--json", "--policy", str(policy), "--", "echo", "make clean", cwd=git_checkout
    )
    assert (done.code, done.json["stdout"]) == (0, "make clean\n")
    assert done.json["decision"]["action"] == "allow"


def test_a_question_that_nobody_can_be_asked_is_a_denial_with_its_reason(
    user: User, git_checkout: Path, policy: Path
) -> None:
    command = ("run", "-q", "--policy", str(policy), "--", "deploy", "now")
    done = user.run(*command, cwd=git_checkout)
    assert done.code == 126
    assert "ask-deploy" in done.error_line
    assert "Deploying needs a person." in done.error_line
    told = user.run(*command[:1], "--json", *command[2:], cwd=git_checkout).json
    assert told["decision"]["action"] == "ask"
    assert told["termination_reason"] == "DENIED"


def test_an_observing_policy_runs_and_records(user: User, git_checkout: Path, policy: Path) -> None:
    policy.write_text(POLICY.replace("version: 1\n", "version: 1\nmode: observe\n"))
    done = user.run(
        "run", "--json", "--policy", str(policy), "--", "deploy", "now", cwd=git_checkout
    )
    assert done.code == 127  # it was run, and is not there
    decision = done.json["decision"]
    assert (decision["action"], decision["enforced"], decision["mode"]) == (
        "ask",
        False,
        "observe",
    )


def test_the_projects_own_policy_counts(user: User, git_checkout: Path) -> None:
    (git_checkout / ".substrate").mkdir()
    (git_checkout / ".substrate" / "policy.yaml").write_text(POLICY)
    done = user.run("run", "--json", "--", "make", "clean", cwd=git_checkout)
    assert done.code == 126
    assert done.json["decision"]["source"].endswith(".substrate/policy.yaml:3")


def test_a_command_cannot_change_the_policy_that_it_is_under(
    user: User, git_checkout: Path
) -> None:
    (git_checkout / ".substrate").mkdir()
    (git_checkout / ".substrate" / "policy.yaml").write_text(POLICY)
    with user.client() as sub, sub.world(project=git_checkout, cwd=git_checkout) as world:
        world.run("rm -rf .substrate")
        assert world.run("make clean").termination_reason == "DENIED"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("version: 1\nrules:\n  - action: forbid\n    command: x\n", ":3: "),
        ("version: 1\nrules: [\n", "policy.yaml:"),
        ("version: 1\nruels: []\n", ":2: "),
        ("version: 9\n", ":1: "),
        ("", "policy.yaml"),
        ("\x00\xff", "policy.yaml"),
    ],
)
def test_an_invalid_policy_is_one_line_with_its_place_and_nothing_runs(
    user: User, git_checkout: Path, policy: Path, text: str, says: str
) -> None:
    policy.write_bytes(text.encode("latin-1"))
    done = user.run("run", "--policy", str(policy), "--", "sh", "-c", "echo RAN", cwd=git_checkout)
    assert done.code == 125
    assert says in done.error_line
    assert str(policy) in done.error_line
    assert "RAN" not in done.out


@pytest.mark.parametrize("kind", ["missing", "directory"])
def test_an_unreadable_policy_is_one_line(
    user: User, git_checkout: Path, tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "no-such.yaml" if kind == "missing" else tmp_path
    done = user.run("run", "--policy", str(path), "--", "true", cwd=git_checkout)
    assert done.code == 125
    assert str(path) in done.error_line


def test_check_names_every_problem_with_its_line(
    user: User, git_checkout: Path, policy: Path
) -> None:
    assert user.run("policy", "check", str(policy), cwd=git_checkout).code == 0
    policy.write_text("version: 1\nrules:\n  - action: forbid\n    command: x\n  - command: y\n")
    done = user.run("policy", "check", str(policy), cwd=git_checkout)
    assert done.code == 1
    assert f"{policy}:3: " in done.out
    assert f"{policy}:5: " in done.out


def test_explain_says_which_rule_would_decide(user: User, git_checkout: Path, policy: Path) -> None:
    done = user.run(
        "policy", "explain", "--policy", str(policy), "--", "make", "clean", cwd=git_checkout
    )
    assert done.code == 0
    assert "deny" in done.out
    assert "no-clean" in done.out


def test_a_policy_of_the_host_counts_and_a_wrong_one_says_where(git_checkout: Path) -> None:
    with new_user() as other:
        policies = other.substrate_home / "policies"
        policies.mkdir(parents=True)
        file = policies / "host.yaml"
        file.write_text("version: 1\nrules: nonsense\n")
        wrong = other.run("run", "--", "echo", "RAN", cwd=git_checkout)
        assert wrong.code == 125
        assert f"{file}:2" in wrong.error_line
        assert "RAN" not in wrong.out
        file.write_text(POLICY)
        done = other.run("run", "--json", "--", "make", "clean", cwd=git_checkout)
        assert (done.code, done.json["decision"]["rule"]) == (126, "no-clean")


def test_a_denied_step_replays_as_not_run(user: User, git_checkout: Path, policy: Path) -> None:
    done = user.run(
        "run", "--json", "--policy", str(policy), "--", "make", "clean", cwd=git_checkout
    )
    code, report = user.replay(done.json["span_id"], cwd=git_checkout)
    assert (code, report["verdict"]) == (2, "not_run"), report
