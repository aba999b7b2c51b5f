"""Rolling a world back: its tree becomes that after an earlier step, on layers of their own."""

from __future__ import annotations

import json
import signal
import subprocess
from functools import partial
from pathlib import Path

import pytest

from substrate_sdk import errors
from substrate_sdk._pb.substrate.world.v1alpha1 import commits_pb2
from substrate_sdk.client import methods
from substrate_sdk.client.transport import drive
from tests.integration.test_world_fork import listing
from tests.users import User, by_path, eventually, kill_and_wait, read_some


def test_the_tree_becomes_that_after_the_step(user: User, git_checkout: Path) -> None:
    with user.client() as sub, sub.world(project=git_checkout, cwd=git_checkout) as world:
        first = world.run(
            "echo one > made; ln made hard; mkdir -p d/e; ln -s ../made d/l; rm README.md;"
            "chmod 711 d; touch -d '2001-02-03 04:05:06.789' d/e; echo x > ~/kept; echo t > /tmp/t"
        )
        seen = listing(world, git_checkout)
        world.run("echo two >> hard; rm -r d; mkdir d; echo x > README.md; rm ~/kept /tmp/t")
        assert world.rollback(to=first) == 1
        assert listing(world, git_checkout) == seen
        assert world.run("cat ~/kept /tmp/t").ok
        assert world.refresh().generation == 1
        assert world.info.state == "ready"


def test_a_rollback_is_a_step_whose_tree_is_the_recorded_one(
    user: User, git_checkout: Path
) -> None:
    with user.client() as sub, sub.world(project=git_checkout, cwd=git_checkout) as world:
        first = world.run("echo one > made; mkdir d; echo d > d/f; ln d/f d/g")
        second = world.run("echo two > made; rm -r d; echo new > other")
        world.rollback(to=first)
        (span,) = [s for s in sub.spans(world_id=world.world_id) if s.kind == "rollback"]
        assert span.result.exit_code == 0
        assert span.result.snapshot_before == second.snapshot_after
        # Equal to the last bit: content, modes, times, links.
        assert span.result.snapshot_after == first.snapshot_after
        kinds = by_path([change.to_json() for change in span.result.changes], git_checkout)
        kinds.pop(".", None)
        assert kinds == {
            "made": "modified",
            "d": "created",
            "d/f": "created",
            "d/g": "created",
            "other": "deleted",
        }
        # The next step is told against the tree that was rolled back to.
        third = world.run("echo three > third")
        assert third.snapshot_before == first.snapshot_after
        assert {c.path for c in third.changes if c.after and c.after.kind == "file"} == {
            str(git_checkout / "third")
        }
        code, report = user.replay(third.span_id, cwd=git_checkout)
        assert (code, report["verdict"]) == (0, "identical"), report
        code, report = user.replay(span.span_id, cwd=git_checkout)
        assert (code, report["verdict"]) == (2, "not_run"), report
        assert "rollback" in json.dumps(report)


def test_back_and_forth_many_times(user: User, git_checkout: Path) -> None:
    with user.client() as sub, sub.world(project=git_checkout, cwd=git_checkout) as world:
        steps = [
            world.run(f"echo {number} > made; echo {number} > f{number}") for number in range(3)
        ]
        for generation, number in enumerate((0, 2, 1, 2), 1):
            assert world.rollback(to=steps[number]) == generation
            names = " ".join(f"f{n}" for n in range(number + 1))
            assert world.run("cat made; echo f*").stdout == f"{number}\n{names}\n"


def test_processes_that_hold_the_tree_are_a_reason_to_refuse(
    user: User, git_checkout: Path
) -> None:
    with user.client() as sub, sub.world(project=git_checkout, cwd=git_checkout) as world:
        first = world.run("echo one > made")
        world.run("echo two > made")
        proc = world.exec("echo $$; exec sleep 1000")
        assert int(read_some(proc)) == proc.pid
        with pytest.raises(errors.TreeInUse, match=str(proc.pid)) as caught:
            world.rollback(to=first)
        assert caught.value.metadata["held_by"] == str(proc.pid)
        assert world.run("cat made").stdout == "two\n"
        assert world.refresh().generation == 0
        assert world.rollback(to=first, kill=True) == 1
        ended = proc.wait()
        assert ended.termination_reason == "KILLED_BY_USER"
        assert world.run("cat made").stdout == "one\n"


def test_what_a_command_left_behind_holds_the_tree_too(user: User, git_checkout: Path) -> None:
    with user.client() as sub, sub.world(project=git_checkout, cwd=git_checkout) as world:
        first = world.run("echo one > made; setsid sleep 1000 > /dev/null 2>&1 &")
        with pytest.raises(errors.TreeInUse):
            world.rollback(to=first)
        world.rollback(to=first, kill=True)
        assert world.run("pgrep sleep").exit_code != 0


def test_a_step_of_another_world_is_no_place_to_go_back_to(user: User, git_checkout: Path) -> None:
    with user.client() as sub, sub.world(project=git_checkout, cwd=git_checkout) as world:
        with sub.world(project=git_checkout, cwd=git_checkout) as other:
            theirs = other.run("true")
        with pytest.raises(errors.SpanNotFound, match="fork"):
            world.rollback(to=theirs)


def test_discard_forgets_all_or_some(user: User, git_checkout: Path) -> None:
    with user.client() as sub, sub.world(project=git_checkout, cwd=git_checkout) as world:
        fresh = listing(world, git_checkout)
        world.run("echo x > made; rm README.md; mkdir -p d/e; echo y > d/e/y; echo z > d/z")
        result = world.discard("made", "d/e", git_checkout / "README.md")
        assert result.exit_code == 0
        assert world.run("ls; ls d").stdout == "README.md\nd\nz\n"
        world.discard()
        assert listing(world, git_checkout) == fresh
        assert world.diff().changes == ()


def test_a_path_in_a_replaced_directory_is_not_discarded_by_itself(
    user: User, git_checkout: Path
) -> None:
    (git_checkout / "dir").mkdir()
    (git_checkout / "dir" / "file").write_text("host's\n")
    with user.client() as sub, sub.world(project=git_checkout, cwd=git_checkout) as world:
        world.run("rm -r dir; mkdir dir; echo mine > dir/file")
        with pytest.raises(errors.InvalidArgument, match=r"discard that"):
            world.discard("dir/file")
        world.discard("dir")
        assert world.run("cat dir/file").stdout == "host's\n"


def test_the_same_request_rolls_back_once(user: User, git_checkout: Path) -> None:
    with user.client() as sub, sub.world(project=git_checkout, cwd=git_checkout) as world:
        first = world.run("echo one > made")
        request = commits_pb2.RollbackRequest(
            exec_id="exe_once", world_id=world.world_id, span_id=first.span_id
        )
        connection = sub._connection
        for _attempt in range(3):
            answer = drive(connection.unary(methods.ROLLBACK, request, timeout_s=60.0))
            assert answer.generation == 1


def test_the_command_line_rolls_back(user: User, git_checkout: Path) -> None:
    made = user.run("world", "create", cwd=git_checkout)
    world_id = made.out.strip()
    try:
        run = ("world", "exec", "--json", world_id, "--")
        first = user.run(*run, "sh", "-c", "echo 1 > made", cwd=git_checkout).json
        user.run(*run, "sh", "-c", "echo 2 > made", cwd=git_checkout)
        done = user.run("rollback", first["span_id"], cwd=git_checkout)
        assert done.code == 0, done.err
        assert user.run(*run, "cat", "made", cwd=git_checkout).json["stdout"] == "1\n"
        done = user.run("rollback", "--json", world_id, cwd=git_checkout)
        assert (done.code, done.json["generation"]) == (0, 2), done.err
        assert user.run(*run, "ls", cwd=git_checkout).json["stdout"] == "README.md\n"
    finally:
        user.run("world", "rm", world_id, cwd=git_checkout)


def test_a_world_lives_on_after_a_rollback_and_a_new_host(
    lone_user: User, git_checkout: Path
) -> None:
    user = lone_user
    user.up()
    with user.client() as sub:
        world = sub.world(project=git_checkout, cwd=git_checkout, keep=True)
        first = world.run("echo one > made")
        world.run("echo two > made")
        world.rollback(to=first)
        world.run("echo three > third")
    kill_and_wait(user.host_pid(), signal.SIGKILL)
    user.up()
    with user.client() as sub:
        again = sub.connect(world.world_id)
        assert again.info.generation == 1
        assert again.run("cat made third").stdout == "one\nthree\n"
        again.discard()
        assert again.run("ls").stdout == "README.md\n"
        again.remove()


def has_begun(marker: Path, rolling: subprocess.Popen[bytes]) -> bool:
    return marker.exists() or rolling.poll() is not None


@pytest.mark.timeout(180)
def test_a_rollback_that_is_cut_short_is_finished_or_has_not_happened(
    lone_user: User, git_checkout: Path
) -> None:
    user = lone_user
    user.up()
    with user.client() as sub:
        world = sub.world(project=git_checkout, cwd=git_checkout, keep=True)
        first = world.run("for n in $(seq 300); do echo $n > f$n; done")
        seen = listing(world, git_checkout)
        world.run("rm f*; echo two > made")
        other = listing(world, git_checkout)
    outcomes = set()
    marker = user.substrate_home / "worlds" / world.world_id / "exchange.json"
    for delay_ms in (1, 20, 50, 80, 110, 140, 170, 200, 250, 300, 400, 600):
        rolling = user.start("rollback", first.span_id, cwd=git_checkout)
        eventually(partial(has_begun, marker, rolling), "it began")
        signal.sigtimedwait([], delay_ms / 1000)
        rolling.kill()  # first, or it would start another host
        rolling.communicate()
        kill_and_wait(user.host_pid(), signal.SIGKILL)
        user.up()
        assert not marker.exists()
        with user.client() as sub:
            again = sub.connect(world.world_id)
            assert again.info.state == "ready"
            now = listing(again, git_checkout)
            assert now in (seen, other)
            outcomes.add(now == seen)
            if now == seen:
                again.run("rm f*; echo two > made")
                other = listing(again, git_checkout)
    assert True in outcomes
    with user.client() as sub:
        left = sorted(p.name for p in (user.substrate_home / "worlds" / world.world_id).iterdir())
        assert len([name for name in left if name.startswith("generation-")]) <= 1, left
        sub.remove_world(world.world_id)
