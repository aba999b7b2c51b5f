"""Verdicts stay right whatever happens to the host's tree between a step and its replay."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from substrate_sdk.client.sync import World
from substrate_services.world.fingerprint import PIN_BUDGET_FILES
from tests.users import Json, User, read_some

LOOK = (
    "cat data; cat dir/a dir/deep/b; find . -path ./.git -prune -o -print | sort;"
    " stat -c '%n %A %s' data dir dir/a dir/deep; readlink link; echo x > made"
)


@pytest.fixture
def project(git_checkout: Path) -> Path:
    (git_checkout / "dir" / "deep").mkdir(parents=True)
    for name in ("data", "dir/a", "dir/deep/b"):
        (git_checkout / name).write_text(f"{name}\n")
    (git_checkout / "link").symlink_to("data")
    return git_checkout


@pytest.fixture
def world(user: User, project: Path) -> Iterator[World]:
    with (
        user.client() as sub,
        sub.world(project=project, cwd=project) as made,
    ):
        yield made


def verdict(user: User, span: str) -> tuple[str, Json]:
    _code, report = user.replay(span, cwd=Path("/"))
    return report["verdict"], report


@pytest.mark.parametrize(
    "change",
    [
        "rm data; mkdir data; echo q > data/q; mkdir data/d; echo q > data/d/q",
        "rm -r dir; echo f > dir",
        'mv dir "$AWAY/dir"; ln -s "$AWAY/dir" dir',
        'cp -a dir "$AWAY/dir"; rm -r dir; ln -s "$AWAY/dir" dir',
        "mv dir other",
        "mv dir other; mv other dir",
        "rm -r dir; mkdir dir; echo q > dir/q",
        "rm link; mkdir link; echo q > link/q",
        "rm data; mkfifo data",
        'mv "$PWD" "$AWAY/moved"',
        'mv "$PWD" "$AWAY/moved"; ln -s "$AWAY/moved" "$PROJECT"',
        'mv "$PWD" "$AWAY/moved"; echo f > "$PROJECT"',
        "touch -r data .ref; printf 'DATA\\n' > data; touch -r .ref data; rm .ref",
    ],
)
def test_a_host_that_moves_on_does_not_change_the_verdict(
    user: User, project: Path, tmp_path: Path, change: str
) -> None:
    span = user.run_json("sh", "-c", LOOK, cwd=project)["span_id"]
    away = tmp_path / "away"
    away.mkdir()
    env = {**os.environ, "AWAY": str(away), "PROJECT": str(project)}
    subprocess.run(["sh", "-ec", change], cwd=project, env=env, check=True)
    found, report = verdict(user, span)
    assert found == "identical", report


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize(
    ("change", "script"),
    [
        ("echo edited > data", "cat data"),
        ("echo edited > data", "cat data; echo more >> data"),
        ("rm data", "ls; cat data"),
        ("chmod 600 data; chmod 700 dir", "ls -l data; ls -ld dir | cut -c1-10"),
        ("mkdir new; echo n > new/file", "cat new/file; ls -R new"),
        ("rm -r dir; echo f > dir", "cat dir"),
        ("ln -sfn dir/a link", "cat link; readlink link"),
    ],
)
def test_a_later_step_saw_what_the_host_had_changed_before_it(
    user: User, world: World, project: Path, *, change: str, script: str, again: bool
) -> None:
    world.run("true")
    subprocess.run(["sh", "-ec", change], cwd=project, check=True)
    span = world.run(script).span_id
    if again and change.startswith(("echo", "mkdir")):
        # What the step read is kept; it has changed once more since.
        subprocess.run(["sh", "-ec", "echo again > data; rm -rf new"], cwd=project, check=True)
    found, report = verdict(user, span)
    assert found == "identical", report


def test_a_file_that_changed_while_the_step_ran_is_named(
    user: User, world: World, project: Path
) -> None:
    proc = world.exec("cat data; read line; cat data", stdin=True)
    assert read_some(proc) == b"data\n"
    (project / "data").write_text("edited meanwhile\n")
    proc.stdin.write(b"\n")
    span = proc.wait().span_id
    found, report = verdict(user, span)
    assert found == "not_run", report
    assert [item["path"] for item in report["missing"]] == [str(project / "data")]


def test_changes_in_a_directory_that_the_world_renamed_are_named(
    user: User, world: World, project: Path
) -> None:
    world.run("mv dir moved")
    span = world.run("cat moved/a; ls -R moved; cat data").span_id
    (project / "data").write_text("elsewhere: this one comes back from objects\n")
    assert verdict(user, span)[0] == "identical"
    (project / "dir" / "a").write_text("edited\n")
    (project / "dir" / "deep" / "new").write_text("added\n")
    found, report = verdict(user, span)
    assert found == "not_run", report
    assert sorted(item["path"] for item in report["missing"]) == [
        str(project / "dir" / "a"),
        str(project / "dir" / "deep" / "new"),
    ]


@pytest.mark.needs_git
@pytest.mark.parametrize("version", ["2", "4"])
def test_git_looks_at_an_edited_checkout_and_does_the_same(
    user: User, project: Path, version: str
) -> None:
    git = ["git", "-c", "user.name=T", "-c", "user.email=t@example.invalid"]
    for words in (["add", "."], ["update-index", "--index-version", version]):
        subprocess.run([*git, *words], cwd=project, check=True)
    subprocess.run([*git, "commit", "-qm", "all"], cwd=project, check=True)
    looked = user.run_json("git", "status", "--porcelain", cwd=project)["span_id"]
    script = "echo x > fresh; git add fresh; git rm -q data; git ls-files --stage"
    added = user.run_json("sh", "-c", script, cwd=project)["span_id"]
    (project / "data").write_text("edited\n")
    (project / "README.md").write_text("edited\n")
    for span in (looked, added):
        found, report = verdict(user, span)
        assert found == "identical", report
        assert report["normalisation"].get("git_index") == 1, report
        assert "changes" in report["compared"]


def test_files_that_were_read_through_links_count_as_read(user: User, git_checkout: Path) -> None:
    many = git_checkout / "many"  # too many for the whole project to be kept
    many.mkdir()
    for number in range(PIN_BUDGET_FILES + 1):
        (many / str(number)).touch()
    (git_checkout / "real").mkdir()
    for name in ("real/file", "real/other"):
        (git_checkout / name).write_text("kept\n")
    (git_checkout / "to-dir").symlink_to("real")
    (git_checkout / "to-file").symlink_to("real/other")
    outside = Path(f"/var/tmp/sb-{os.getpid()}-links")
    outside.mkdir()
    try:
        (outside / "real").write_text("one\n")
        (outside / "link").symlink_to("real")
        words = ("cat", "to-dir/file", "to-file", str(outside / "link"))
        span = user.run_json(*words, cwd=git_checkout)["span_id"]
        for name in ("real/file", "real/other"):
            (git_checkout / name).write_text("edited\n")
        assert verdict(user, span)[0] == "identical"
        (outside / "real").write_text("two\n")
        found, report = verdict(user, span)
        assert found == "not_run", report
        assert [item["path"] for item in report["missing"]] == [str(outside / "real")]
    finally:
        shutil.rmtree(outside)


@pytest.mark.parametrize("damage", ["remove", "overwrite"])
@pytest.mark.parametrize("which", ["snapshot", "upper"])
def test_a_tree_whose_objects_are_gone_is_not_run(
    user: User, world: World, which: str, damage: str
) -> None:
    unique = f"{which} {damage} {os.urandom(8).hex()}\n"
    made = world.files.write("kept", unique.encode())
    later = world.run("cat kept")
    assert later.stdout == unique
    (change,) = [change for change in made.changes if change.path.endswith("kept")]
    assert change.after is not None
    digest = later.snapshot_before if which == "snapshot" else change.after.digest
    assert digest is not None
    path = user.substrate_home / "objects" / digest[:2] / digest[2:]
    path.unlink()
    if damage == "overwrite":
        path.write_bytes(b"junk")
    found, report = verdict(user, later.span_id)
    assert found == "not_run", report
    assert digest in report["missing"][0]["reason"]


@pytest.mark.root
def test_mounts_that_come_and_go_matter_only_where_the_step_had_to_do_with_them(
    user: User, git_checkout: Path
) -> None:
    # Outside of /tmp, and so that their order among the host's mounts changes between the steps.
    points = [Path(f"/var/tmp/sb-{os.getpid()}-{name}") for name in ("a", "b")]
    for point in points:
        point.mkdir()
    mounted: list[Path] = []

    def mount(point: Path) -> None:
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(point)], check=True)
        mounted.append(point)

    def unmount(point: Path) -> None:
        subprocess.run(["umount", "-l", str(point)], check=True)
        mounted.remove(point)

    try:
        for point in points:
            mount(point)
        span = user.run_json("echo", "x", cwd=git_checkout)["span_id"]
        with user.client() as sub, sub.world(cwd=git_checkout) as world:
            world.run(f"echo kept > {points[1]}/file")
            later = world.run(f"cat {points[1]}/file").span_id
            assert verdict(user, later)[0] == "identical"
            unmount(points[0])
            assert verdict(user, span)[0] == "identical"
            assert verdict(user, later)[0] == "identical"
            unmount(points[1])
            found, report = verdict(user, later)
            assert found == "not_run", report
            assert [item["path"] for item in report["missing"]] == [str(points[1])]
    finally:
        while mounted:
            unmount(mounted[0])
        for point in points:
            shutil.rmtree(point, ignore_errors=True)
