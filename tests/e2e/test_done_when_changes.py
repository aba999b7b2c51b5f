"""Issue 2, done when 2: effects are known and kept off the host, and a step replays."""

from __future__ import annotations

import subprocess
from pathlib import Path

import blake3
import pytest

from tests.users import Json, User, by_path, tree_of

COMMAND = ("sh", "-c", "echo hi > made.txt; rm README.md; exit 3")
README = b"# A project\n\nIt has a readme.\n"


@pytest.fixture
def recorded(user: User, git_checkout: Path) -> Json:
    """What ``run --json`` printed about the issue's command."""
    return user.run_json(*COMMAND, cwd=git_checkout)


def blake(data: bytes) -> str:
    return blake3.blake3(data).hexdigest()


def test_run_exits_with_the_commands_own_code(user: User, git_checkout: Path) -> None:
    done = user.run("run", "--json", "--", *COMMAND, cwd=git_checkout)
    assert done.code == 3
    assert done.json["exit_code"] == 3
    assert done.json["termination_reason"] == "EXITED"


def test_run_leaves_the_checkout_untouched(user: User, git_checkout: Path) -> None:
    before = tree_of(git_checkout)
    user.run_json(*COMMAND, cwd=git_checkout)
    assert tree_of(git_checkout) == before
    status = subprocess.run(
        ["git", "status", "--porcelain"],
        cwd=git_checkout,
        check=True,
        capture_output=True,
        env=user.env(),
    )
    assert status.stdout == b""


def test_run_lists_exactly_the_created_and_the_deleted_file_with_hashes(
    recorded: Json, git_checkout: Path
) -> None:
    made, readme = sorted(recorded["changes"], key=lambda change: str(change["kind"]))
    assert recorded["changes_total"] == 2
    assert (made["kind"], made["path"]) == ("created", str(git_checkout / "made.txt"))
    assert made["before"] is None
    assert made["after"]["digest"] == blake(b"hi\n")
    assert made["after"]["size_bytes"] == 3
    assert (readme["kind"], readme["path"]) == ("deleted", str(git_checkout / "README.md"))
    assert readme["before"]["digest"] == blake(README)
    assert readme["after"] is None
    assert {made["scope"], readme["scope"]} == {"project"}


@pytest.mark.usefixtures("recorded")
def test_diff_of_the_last_step_is_a_patch_that_git_applies(user: User, git_checkout: Path) -> None:
    patch = user.run("diff", "@last", cwd=git_checkout)
    assert patch.code == 0
    apply = ["git", "apply", "--check", "-"]
    subprocess.run(apply, cwd=git_checkout, input=patch.stdout, check=True, env=user.env())
    subprocess.run(["git", "apply", "-"], cwd=git_checkout, input=patch.stdout, check=True)
    assert (git_checkout / "made.txt").read_bytes() == b"hi\n"
    assert not (git_checkout / "README.md").exists()


def test_diff_of_awkward_changes_applies(user: User, git_checkout: Path) -> None:
    """Spaces, quotes, no newline at the end, binary content, modes, links, empty files."""
    script = r"""
    printf 'no newline' > 'a file'; printf 'q' > 'quo"te'; : > empty; mkdir -p deep/er
    printf '\000\001\377bin' > deep/er/blob; ln -s 'a file' link; printf '#!/bin/sh\n' > run
    chmod 755 run; printf 'more\n' >> README.md; chmod 755 README.md
    printf 'tab' > "$(printf 'a\tb')"
    """
    result = user.run_json("sh", "-c", script, cwd=git_checkout)
    assert result["exit_code"] == 0, result
    patch = user.run("diff", result["span_id"], cwd=git_checkout)
    subprocess.run(["git", "apply", "-"], cwd=git_checkout, input=patch.stdout, check=True)
    assert (git_checkout / "a file").read_bytes() == b"no newline"
    assert (git_checkout / "deep/er/blob").read_bytes() == b"\0\1\xffbin"
    assert (git_checkout / "link").readlink() == Path("a file")
    assert (git_checkout / "run").stat().st_mode & 0o111
    assert (git_checkout / "README.md").read_bytes() == README + b"more\n"
    assert (git_checkout / "README.md").stat().st_mode & 0o111
    assert (git_checkout / "empty").read_bytes() == b""
    assert (git_checkout / 'quo"te').read_bytes() == b"q"
    assert (git_checkout / "a\tb").read_bytes() == b"tab"


def test_the_step_replays_identical(user: User, recorded: Json, git_checkout: Path) -> None:
    code, report = user.replay(recorded["span_id"], cwd=git_checkout)
    assert (code, report["verdict"]) == (0, "identical")
    assert {"exit", "changes", "stdout", "stderr"} <= set(report["compared"])
    assert report["divergences"] == []


def test_the_step_replays_identical_after_the_checkouts_readme_was_edited(
    user: User, recorded: Json, git_checkout: Path
) -> None:
    (git_checkout / "README.md").write_text("another\n")
    code, report = user.replay(recorded["span_id"], cwd=git_checkout)
    assert (code, report["verdict"]) == (0, "identical"), report


def test_the_step_replays_identical_from_elsewhere(
    user: User, recorded: Json, git_checkout: Path
) -> None:
    del git_checkout
    code, report = user.replay(recorded["span_id"], cwd=Path("/"))
    assert (code, report["verdict"]) == (0, "identical"), report


def test_a_command_whose_output_differs_each_time_diverges_and_says_where(
    user: User, git_checkout: Path
) -> None:
    script = "echo same; head -c 9 /dev/urandom | base64; exit 0"
    result = user.run_json("sh", "-c", script, cwd=git_checkout)
    done = user.run("replay", result["span_id"], cwd=git_checkout)
    assert done.code == 1
    assert "diverged" in done.out.splitlines()[0]
    assert "stdout" in done.out
    code, report = user.replay(result["span_id"], cwd=git_checkout)
    assert (code, report["verdict"]) == (1, "diverged")
    assert report["first"]["dimension"] == "stdout"
    assert result["stdout"].splitlines()[1] in str(report["first"])


def test_a_failing_replay_never_changes_the_checkout_or_the_recording(
    user: User, recorded: Json, git_checkout: Path
) -> None:
    before = tree_of(git_checkout)
    shown = user.run("trace", "show", "--json", recorded["span_id"], cwd=git_checkout).json
    user.replay(recorded["span_id"], cwd=git_checkout)
    again = user.run("trace", "show", "--json", recorded["span_id"], cwd=git_checkout).json
    assert again == shown
    assert tree_of(git_checkout) == before


def test_renames_modifications_modes_and_links_are_told_apart(
    user: User, git_checkout: Path
) -> None:
    script = "echo x >> README.md; ln -s README.md l; mkdir d; touch /var/tmp/outside; chmod 700 d"
    result = user.run_json("sh", "-c", script, cwd=git_checkout)
    assert by_path(result["changes"], git_checkout) == {
        "README.md": "modified",
        "l": "created",
        "d": "created",
        "/var/tmp/outside": "created",
    }
    scopes = {change["path"]: change["scope"] for change in result["changes"]}
    assert scopes["/var/tmp/outside"] == "outside"


def test_a_rename_shows_both_names_and_the_same_content(user: User, git_checkout: Path) -> None:
    result = user.run_json("mv", "README.md", "MOVED.md", cwd=git_checkout)
    found = by_path(result["changes"], git_checkout)
    if "README.md" in found:  # told as what happened to each name
        assert found == {"README.md": "deleted", "MOVED.md": "created"}
        moved, readme = result["changes"]
        assert moved["after"]["digest"] == readme["before"]["digest"] == blake(README)
    else:
        assert found == {"MOVED.md": "renamed"}
        assert result["changes"][0]["renamed_from"] == str(git_checkout / "README.md")


def test_a_command_that_changes_nothing_lists_nothing(user: User, git_checkout: Path) -> None:
    result = user.run_json("cat", "README.md", cwd=git_checkout)
    assert result["stdout"].encode() == README
    assert result["changes"] == []
    assert result["changes_total"] == 0


def test_the_host_sees_nothing_outside_of_the_project_either(
    user: User, git_checkout: Path
) -> None:
    places = (
        "/etc/made-by-test",
        "/var/tmp/made-by-test",
        "/tmp/made-by-test",
        "/opt/made-by-test",
    )
    script = "for p in " + " ".join(places) + " ~/made-by-test; do echo x > $p || exit 1; done"
    result = user.run_json("sh", "-c", script, cwd=git_checkout)
    assert result["exit_code"] == 0, result["stderr"]
    assert not any(Path(place).exists() for place in places)
    assert not (user.home / "made-by-test").exists()
    assert {change["scope"] for change in result["changes"]} == {"outside"}
    assert {change["path"] for change in result["changes"]} == {
        *places,
        str(user.home / "made-by-test"),
    }
