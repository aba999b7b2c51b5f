"""Applying a world's changes to the host: all of it or nothing, and never over newer work."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
from functools import partial
from pathlib import Path

import pytest

from substrate_sdk import errors
from substrate_sdk.client.sync import Substrate
from tests.integration.test_world_fork import LIST, listing
from tests.users import PYTHON, User, eventually, kill_and_wait, tree_of


def on_host(root: Path) -> str:
    """What :func:`listing` says, of the host's tree."""
    done = subprocess.run(
        [PYTHON, "-c", LIST, str(root)], check=True, capture_output=True, text=True
    )
    return done.stdout


def without_directory_times(text: str) -> list[str]:
    found = []
    for line in text.splitlines():
        path, mode, uid, links, mtime_ns, content, attributes = eval(line)
        if stat.S_ISDIR(mode):
            mtime_ns = 0
        found.append(repr((path, oct(mode), uid, links, mtime_ns, content, attributes)))
    return found


SCRIPT = """
set -e
echo new > made; echo more >> README.md; mkdir -p deep/er; echo x > deep/er/file
ln -s ../made deep/link; ln made hard; chmod 700 tool; rm gone; rm -r old; mv moved renamed
mkdir empty; chmod 711 empty; truncate -s 8M sparse; printf x >> sparse; : > blank
rm kind; mkdir kind; echo y > kind/y; rm -r dir; echo file > dir; ln -sf elsewhere link
mv tree trees; echo z >> trees/one; touch -d '2001-02-03 04:05:06' made
printf n > "$(printf 'a\\nb\\377')"
"""


def fill(project: Path) -> None:
    (project / "tool").write_text("#!/bin/sh\n")
    (project / "gone").write_text("gone\n")
    (project / "old" / "in").mkdir(parents=True)
    (project / "old" / "in" / "file").write_text("old\n")
    (project / "moved").write_text("moved\n")
    (project / "kind").write_text("a file\n")
    (project / "dir" / "in").mkdir(parents=True)
    (project / "link").symlink_to("somewhere")
    (project / "tree" / "sub").mkdir(parents=True)
    (project / "tree" / "one").write_text("one\n")
    (project / "tree" / "sub" / "two").write_text("two\n")


def test_the_host_has_what_the_world_had(user: User, git_checkout: Path) -> None:
    fill(git_checkout)
    with user.client() as sub, sub.world(project=git_checkout, cwd=git_checkout) as world:
        assert world.run(["bash", "-c", SCRIPT]).ok
        before = on_host(git_checkout)
        planned = world.apply(dry_run=True)
        assert on_host(git_checkout) == before
        assert (planned.conflicts, planned.needs_consent) == ((), ())
        applied = world.apply()
        assert applied.changes == planned.changes
        seen = listing(world, git_checkout)
        assert without_directory_times(on_host(git_checkout)) == without_directory_times(seen)
        assert (git_checkout / "sparse").stat().st_blocks < 1000
        assert ("renamed", str(git_checkout / "renamed")) in {
            (change.kind, change.path) for change in applied.changes
        }
        # Nothing is left to apply, and later work goes on from there.
        assert world.diff().changes == ()
        assert world.apply().changes == ()
        assert world.run("echo again > made; rm -r deep; echo more >> README.md").ok
        world.apply()
        assert (git_checkout / "made").read_text() == "again\n"
        assert not (git_checkout / "deep").exists()
        assert world.run("ls deep").exit_code != 0


def test_an_apply_is_a_recorded_step(user: User, git_checkout: Path) -> None:
    with user.client() as sub, sub.world(project=git_checkout, cwd=git_checkout) as world:
        world.run("echo new > made")
        world.apply()
        (span,) = [s for s in sub.spans(world_id=world.world_id) if s.kind == "apply"]
        assert span.result.exit_code == 0
        assert span.result.decision.action == "allow"
        assert span.result.decision.decider == "owner"
        assert world.refresh().steps == 2
        code, report = user.replay(span.span_id, cwd=git_checkout)
        assert (code, report["verdict"]) == (2, "not_run"), report


def test_some_paths_only(user: User, git_checkout: Path) -> None:
    with user.client() as sub, sub.world(project=git_checkout, cwd=git_checkout) as world:
        world.run("mkdir -p a/b; echo 1 > a/b/one; echo 2 > a/b/two; echo 3 > three; rm README.md")
        world.apply("a/b/one")
        assert {n for n in tree_of(git_checkout) if not n.startswith(".git")} == {
            "README.md",
            "a",
            "a/b",
            "a/b/one",
        }
        world.apply("a", "README.md")
        assert {n for n in tree_of(git_checkout) if not n.startswith(".git")} == {
            "a",
            "a/b",
            "a/b/one",
            "a/b/two",
        }
        with pytest.raises(errors.InvalidArgument, match="not in the project"):
            world.apply("/etc/passwd")


@pytest.mark.parametrize("name", ["changed", "deleted", "created", "directory"])
def test_newer_work_on_the_host_is_a_conflict_and_nothing_is_written(
    user: User, git_checkout: Path, name: str
) -> None:
    (git_checkout / "file").write_text("as it was\n")
    (git_checkout / "dir").mkdir()
    with user.client() as sub, sub.world(project=git_checkout, cwd=git_checkout) as world:
        world.run("echo mine > file; echo mine > created; echo other > other; rm -r dir")
        match name:
            case "changed":
                (git_checkout / "file").write_text("newer\n")
                path = git_checkout / "file"
            case "deleted":
                (git_checkout / "file").unlink()
                path = git_checkout / "file"
            case "created":
                path = git_checkout / "created"
                path.write_text("theirs\n")
            case _:
                path = git_checkout / "dir" / "added"
                path.write_text("theirs\n")
        before = on_host(git_checkout)
        planned = world.apply(dry_run=True)
        if name != "deleted":
            assert os.fsencode(path) in planned.conflicts
        with pytest.raises(errors.Conflict, match=path.name):
            world.apply()
        assert on_host(git_checkout) == before
        world.apply("other")
        assert (git_checkout / "other").read_text() == "other\n"


EXECUTING = (
    ".git/hooks/pre-commit",
    ".git/config",
    ".envrc",
    ".vscode/tasks.json",
    ".github/workflows/ci.yml",
    ".gitlab-ci.yml",
    "sub/.pre-commit-config.yaml",
    ".substrate/policy.yaml",
    ".ENVRC",
)


@pytest.mark.parametrize("path", EXECUTING)
def test_what_executes_later_needs_consent_by_name(
    user: User, git_checkout: Path, path: str
) -> None:
    target = git_checkout / path
    with user.client() as sub, sub.world(project=git_checkout, cwd=git_checkout) as world:
        world.files.write(target, "hostile\n", make_parents=True)
        world.run("echo fine > Makefile; echo '{}' > package.json")
        assert world.apply(dry_run=True).needs_consent == (os.fsencode(target),)
        with pytest.raises(errors.ConsentNeeded, match=target.name):
            world.apply()
        assert not target.exists() or "hostile" not in target.read_text()
        assert not (git_checkout / "Makefile").exists()
        world.apply(consent=[path])
        assert target.read_text() == "hostile\n"
        assert (git_checkout / "Makefile").exists()


@pytest.mark.parametrize(
    "script",
    [
        "git config core.hooksPath tools; mkdir tools; echo x > tools/pre-commit",
        "ln -s tools .vscode; mkdir tools; echo x > tools/tasks.json",
        "git init -q --bare inner",
        "mkdir inner; cd inner; git init -q",
        "rm -rf .git; echo 'gitdir: ../elsewhere' > .git",
    ],
)
def test_ways_around_consent(user: User, git_checkout: Path, script: str) -> None:
    with user.client() as sub, sub.world(project=git_checkout, cwd=git_checkout) as world:
        assert world.run(script).ok
        with pytest.raises(errors.ConsentNeeded):
            world.apply()


def test_commits_and_branches_need_no_consent(user: User, git_checkout: Path) -> None:
    git = "git -c user.name=T -c user.email=t@example.invalid"
    with user.client() as sub, sub.world(project=git_checkout, cwd=git_checkout) as world:
        result = world.run(
            f"{git} checkout -q -b topic && echo x > x && git add x && "
            f"{git} commit -q -m Topic && git tag v1"
        )
        assert result.ok, result.stderr
        world.apply()
    log = subprocess.run(
        ["git", "-c", "safe.directory=*", "log", "--format=%s"],
        cwd=git_checkout,
        check=True,
        capture_output=True,
        text=True,
    )
    assert log.stdout.split() == ["Topic", "Begin"]


def test_a_tree_full_of_traps(user: User, git_checkout: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "victim").write_text("untouched\n")
    (git_checkout / "sub").mkdir()
    (git_checkout / "sub" / "victim").write_text("inside\n")
    with user.client() as sub, sub.world(project=git_checkout, cwd=git_checkout) as world:
        world.run(f"echo hostile > sub/victim; ln -s {outside}/victim link; ln -s / root")
        # The host's own directory becomes a link, before the apply: it is not followed.
        (git_checkout / "sub").rename(git_checkout / "away")
        (git_checkout / "sub").symlink_to(outside)
        with pytest.raises(errors.Conflict):
            world.apply()
        assert (outside / "victim").read_text() == "untouched\n"
        world.apply("link", "root")
        assert os.readlink(git_checkout / "link") == f"{outside}/victim"
        world.run("rm link; echo over > link")
        world.apply("link")
        assert (outside / "victim").read_text() == "untouched\n"
        assert (git_checkout / "link").read_text() == "over\n"


@pytest.mark.parametrize(
    ("script", "what"),
    [
        ("mkfifo pipe", "fifo"),
        ("echo x > f; chmod u+s f", "set-id"),
        ("echo x > f; chmod g+s f", "set-id"),
    ],
)
def test_what_is_never_applied(user: User, git_checkout: Path, script: str, what: str) -> None:
    with user.client() as sub, sub.world(project=git_checkout, cwd=git_checkout) as world:
        assert world.run(script).ok
        world.run("echo fine > fine")
        with pytest.raises(errors.InvalidArgument, match=what):
            world.apply()
        world.apply("fine")
        assert (git_checkout / "fine").exists()


def test_a_fork_of_a_world_that_is_gone_is_applied(user: User, git_checkout: Path) -> None:
    result = user.run_json("sh", "-c", "echo new > made; echo more >> README.md", cwd=git_checkout)
    dry = user.run("apply", "--dry-run", "--json", result["span_id"], cwd=git_checkout)
    assert (dry.code, [c["path"] for c in dry.json["changes"]]) == (
        0,
        [str(git_checkout / "README.md"), str(git_checkout / "made")],
    ), dry.err
    done = user.run("apply", result["span_id"], cwd=git_checkout)
    assert done.code == 0, done.err
    assert (git_checkout / "made").read_text() == "new\n"
    again = user.run("apply", "--json", result["span_id"], cwd=git_checkout)
    # The host has it all by now: nothing is left to do.
    assert (again.code, again.json["changes"]) == (0, [])


def test_the_hosts_own_policy_is_not_answered_by_asking(
    lone_user: User, git_checkout: Path
) -> None:
    user = lone_user
    policies = user.substrate_home / "policies"
    policies.mkdir(parents=True)
    (policies / "host.yaml").write_text("version: 1\ndefaults:\n  apply: deny\n")
    user.up()
    with user.client() as sub, sub.world(project=git_checkout, cwd=git_checkout) as world:
        world.run("echo new > made")
        with pytest.raises(errors.PolicyDenied, match="apply"):
            world.apply()
    assert not (git_checkout / "made").exists()


def has_log(directory: Path, applying: subprocess.Popen[bytes]) -> bool:
    return (directory.is_dir() and any(directory.iterdir())) or applying.poll() is not None


@pytest.mark.timeout(180)
def test_an_apply_that_is_cut_short_is_all_or_nothing(lone_user: User, git_checkout: Path) -> None:
    user = lone_user
    for number in range(60):
        (git_checkout / f"old{number}").write_text(f"old {number}\n")
    user.up()
    before = on_host(git_checkout)
    with user.client() as sub:
        world = sub.world(project=git_checkout, cwd=git_checkout, keep=True)
        world.run(
            "for n in $(seq 0 59); do echo new >> old$n; mkdir -p d$n/e; echo $n > d$n/e/f; done;"
            "rm old7; mv old8 moved"
        )
        wanted = without_directory_times(listing(world, git_checkout))
    outcomes = []
    for delay_ms in (0, 5, 10, 15, 20, 25, 30, 40, 60, 90):
        applying = user.start("apply", world.world_id, cwd=git_checkout)
        eventually(partial(has_log, user.substrate_home / "applies", applying), "it began")
        signal.sigtimedwait([], delay_ms / 1000)
        applying.kill()  # first, or it would start another host
        applying.communicate()
        kill_and_wait(user.host_pid(), signal.SIGKILL)
        user.up()
        assert not list((user.substrate_home / "applies").iterdir())
        now = on_host(git_checkout)
        assert not [name for name in os.listdir(git_checkout) if "substrate" in name]
        done = without_directory_times(now) == wanted
        assert done or without_directory_times(now) == without_directory_times(before)
        outcomes.append(done)
        if done:
            break
    with user.client() as sub:
        finish(sub, world.world_id)
        assert without_directory_times(on_host(git_checkout)) == wanted
    assert False in outcomes


def finish(sub: Substrate, world_id: str) -> None:
    again = sub.connect(world_id)
    again.apply()
    assert again.diff().changes == ()
    again.remove()
