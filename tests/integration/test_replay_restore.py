"""Replays while the host's tree moves on: from kept content, or not at all, never wrongly."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from substrate_services.world.fingerprint import PIN_BUDGET_FILES
from tests.users import Json, User, eventually


def identical(user: User, span: str, cwd: Path) -> Json:
    code, report = user.replay(span, cwd=cwd)
    assert (code, report["verdict"]) == (0, "identical"), report
    return report


def not_run(user: User, span: str, cwd: Path) -> list[str]:
    """The paths that the replay says it lacks."""
    code, report = user.replay(span, cwd=cwd)
    assert (code, report["verdict"]) == (2, "not_run"), report
    return [str(item["path"]) for item in report["missing"]]


def test_a_file_that_the_step_read_comes_back_from_objects(user: User, git_checkout: Path) -> None:
    span = user.run_json("cat", "README.md", cwd=git_checkout)["span_id"]
    (git_checkout / "README.md").write_text("another\n")
    identical(user, span, git_checkout)


def test_a_file_that_is_gone_comes_back_from_objects(user: User, git_checkout: Path) -> None:
    (git_checkout / "deep").mkdir()
    (git_checkout / "deep" / "data").write_text("kept\n")
    span = user.run_json("sh", "-c", "cat deep/data; ls -A deep", cwd=git_checkout)["span_id"]
    (git_checkout / "deep" / "data").unlink()
    (git_checkout / "deep").rmdir()
    identical(user, span, git_checkout)


def test_files_added_since_are_not_there_in_a_replay(user: User, git_checkout: Path) -> None:
    span = user.run_json(
        "sh", "-c", "find . -path ./.git -prune -o -print | sort", cwd=git_checkout
    )
    (git_checkout / "added").mkdir()
    (git_checkout / "added" / "since").write_text("new\n")
    (git_checkout / "since").write_text("new\n")
    identical(user, span["span_id"], git_checkout)


def test_modes_links_and_types_come_back(user: User, git_checkout: Path) -> None:
    (git_checkout / "tool").write_text("#!/bin/sh\necho ran\n")
    (git_checkout / "tool").chmod(0o755)
    (git_checkout / "link").symlink_to("tool")
    (git_checkout / "dir").mkdir()
    script = "./link; readlink link; stat -c '%A %F' tool link dir"
    span = user.run_json("sh", "-c", script, cwd=git_checkout)["span_id"]
    (git_checkout / "tool").chmod(0o644)
    (git_checkout / "link").unlink()
    (git_checkout / "link").mkdir()
    (git_checkout / "dir").rmdir()
    (git_checkout / "dir").write_text("a file now\n")
    identical(user, span, git_checkout)


def test_a_checkout_of_another_commit_does_not_matter(user: User, git_checkout: Path) -> None:
    git = ["git", "-c", "user.name=T", "-c", "user.email=t@example.invalid"]
    script = "git log --format=%s; cat README.md; git status --short"
    # Without its locks, git does not write inode numbers, which nobody can restore, to its index.
    options = ("--env", "GIT_OPTIONAL_LOCKS=0")
    span = user.run_json("sh", "-c", script, cwd=git_checkout, options=options)["span_id"]
    (git_checkout / "README.md").write_text("second\n")
    (git_checkout / "more").write_text("more\n")
    for command in (["add", "."], ["commit", "--quiet", "-m", "Second"]):
        subprocess.run([*git, *command], cwd=git_checkout, check=True, env=user.env())
    identical(user, span, git_checkout)


def test_a_whole_project_that_is_gone_comes_back(user: User, git_checkout: Path) -> None:
    result = user.run_json("sh", "-c", "cat README.md; echo x > made", cwd=git_checkout)
    moved = git_checkout.rename(git_checkout.parent / "moved")
    identical(user, result["span_id"], moved)


def test_objects_that_are_gone_are_named_and_nothing_runs(user: User, git_checkout: Path) -> None:
    (git_checkout / "unique").write_text("only here 8c1f\n")
    result = user.run_json("cp", "unique", "copy", cwd=git_checkout)
    (change,) = result["changes"]
    digest = change["after"]["digest"]
    (git_checkout / "unique").write_text("another\n")
    (user.substrate_home / "objects" / digest[:2] / digest[2:]).unlink()
    assert not_run(user, result["span_id"], git_checkout) == [str(git_checkout / "unique")]
    shown = user.run("replay", result["span_id"], cwd=git_checkout)
    assert shown.code == 2
    assert "not_run" in shown.out
    assert str(git_checkout / "unique") in shown.out


def test_the_hosts_base_is_used_when_told_so(user: User, git_checkout: Path) -> None:
    (git_checkout / "unique").write_text("only here 8c2f\n")
    result = user.run_json("cp", "unique", "copy", cwd=git_checkout)
    digest = result["changes"][0]["after"]["digest"]
    (git_checkout / "unique").write_text("another\n")
    (user.substrate_home / "objects" / digest[:2] / digest[2:]).unlink()
    code, report = user.replay(result["span_id"], "--use-host-base", cwd=git_checkout)
    assert (code, report["verdict"]) == (1, "diverged"), report
    assert report["first"]["dimension"] == "changes"


def test_a_file_outside_that_the_step_read_and_that_changed_is_named(
    user: User, git_checkout: Path, tmp_path: Path
) -> None:
    # Not below /tmp or the home, which worlds do not show.
    outside = Path("/var/tmp") / f"substrate-test-{tmp_path.parent.name}-{os.getpid()}"
    outside.write_text("as recorded\n")
    try:
        span = user.run_json("cat", str(outside), cwd=git_checkout)["span_id"]
        identical(user, span, git_checkout)
        outside.write_text("as it is now\n")
        assert not_run(user, span, git_checkout) == [str(outside)]
    finally:
        outside.unlink()


@pytest.mark.timeout(60)
def test_of_a_project_too_large_to_keep_a_changed_file_is_named(
    user: User, git_checkout: Path
) -> None:
    many = git_checkout / "many"
    many.mkdir()
    for number in range(PIN_BUDGET_FILES + 10):
        (many / f"file{number}").touch()
    span = user.run_json("cat", "README.md", cwd=git_checkout)["span_id"]
    # What the step read was kept, budget or not.
    (git_checkout / "README.md").write_text("another\n")
    identical(user, span, git_checkout)
    # What it did not read was not; whether it matters cannot be known, so nothing runs.
    (many / "file7").write_text("changed\n")
    assert not_run(user, span, git_checkout) == [str(many / "file7")]


def test_a_later_step_of_a_world_starts_from_the_earlier_ones(
    user: User, git_checkout: Path
) -> None:
    with user.client() as sub, sub.world(project=git_checkout, cwd=git_checkout) as world:
        world.run("echo one > made; rm README.md; mkdir d; ln -s made d/l")
        second = world.run("cat made; ls; cat d/l 2>&1; echo two >> made")
        third = world.run("cat made; rm -r d")
    (git_checkout / "README.md").write_text("another\n")
    (git_checkout / "made").write_text("in the way\n")
    for result in (second, third):
        identical(user, result.span_id, git_checkout)


def test_a_directory_that_the_world_renamed_is_restored(user: User, git_checkout: Path) -> None:
    (git_checkout / "old").mkdir()
    (git_checkout / "old" / "file").write_text("content\n")
    with user.client() as sub, sub.world(project=git_checkout, cwd=git_checkout) as world:
        assert world.run("mv old new").ok
        after = world.run("cat new/file; ls; echo more >> new/file; mv new/file new/other")
        assert after.stdout.startswith("content\n")
    identical(user, after.span_id, git_checkout)


def test_changes_outside_of_the_project_come_back(user: User, git_checkout: Path) -> None:
    with user.client() as sub, sub.world(project=git_checkout, cwd=git_checkout) as world:
        world.run("echo setting > /etc/made.conf; mkdir -p ~/.cache/x; echo c > ~/.cache/x/y")
        world.run("echo t > /tmp/made; echo o > /opt/made; rm /etc/hostname")
        result = world.run(
            "cat /etc/made.conf ~/.cache/x/y /tmp/made /opt/made; ls /etc/hostname 2>&1"
        )
    assert result.stdout.startswith("setting\nc\nt\no\n")
    identical(user, result.span_id, git_checkout)


def test_a_replay_of_a_replay_is_the_same_again(user: User, git_checkout: Path) -> None:
    span = user.run_json("sh", "-c", "echo $RANDOM > /dev/null; date +%Y", cwd=git_checkout)
    first = identical(user, span["span_id"], git_checkout)
    identical(user, first["runs"][0]["span_id"], git_checkout)


def test_several_runs_are_each_a_span_that_names_what_it_replays(
    user: User, git_checkout: Path
) -> None:
    span = user.run_json("true", cwd=git_checkout)["span_id"]
    code, report = user.replay(span, "--runs", "3", cwd=git_checkout)
    assert (code, report["verdict"], len(report["runs"])) == (0, "identical", 3)
    replays = {line["span_id"]: line["replay_of"] for line in user.spans()}
    assert [replays[run["span_id"]] for run in report["runs"]] == [span] * 3


def test_replays_leave_no_world_behind(user: User, git_checkout: Path) -> None:
    span = user.run_json("true", cwd=git_checkout)["span_id"]
    user.replay(span, cwd=git_checkout)
    listed = user.run("world", "list", "--json", cwd=git_checkout).json["worlds"]
    # A world is taken down after its result was told.
    assert len(listed) <= 1
    eventually(lambda: not os.listdir(user.substrate_home / "worlds"), "no world is left")


@pytest.mark.parametrize("span", ["0123456789abcdef", "not-a-span", ""])
def test_a_span_that_is_not_there_is_one_line(user: User, git_checkout: Path, span: str) -> None:
    done = user.run("replay", span, cwd=git_checkout)
    assert done.code == 2
    assert len(done.err.splitlines()) == 1, done.err
    assert "Traceback" not in done.err


def test_a_damaged_object_is_never_taken_for_the_recorded_one(
    user: User, git_checkout: Path
) -> None:
    (git_checkout / "unique").write_text("only here 8c3f\n")
    result = user.run_json("cp", "unique", "copy", cwd=git_checkout)
    digest = result["changes"][0]["after"]["digest"]
    (git_checkout / "unique").write_text("another\n")
    stored = user.substrate_home / "objects" / digest[:2] / digest[2:]
    stored.chmod(0o600)
    stored.write_bytes(b"\0" * stored.stat().st_size)
    done = user.run("replay", "--json", result["span_id"], cwd=git_checkout)
    assert done.code == 2, done
    if done.stdout:
        assert json.loads(done.stdout)["verdict"] == "not_run"
    else:
        assert digest[:12] in done.error_line
