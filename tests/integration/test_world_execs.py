"""Commands in worlds that live on: time-outs, signals, background processes, files, concurrency."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from substrate_sdk import CommandFailed, Result, Substrate
from substrate_sdk.client.sync import World
from substrate_sdk.errors import WorldFileDenied, WorldFileNotFound, WorldNotFound
from tests.leaks import processes
from tests.users import User, by_path, eventually, finish, read_some, read_until


@pytest.fixture
def sub(user: User) -> Iterator[Substrate]:
    with user.client() as made:
        yield made


@pytest.fixture
def world(sub: Substrate, git_checkout: Path) -> Iterator[World]:
    with sub.world(project=git_checkout, cwd=git_checkout) as made:
        yield made


def sleepers(mark: str) -> list[int]:
    """Processes of this machine whose command line holds the mark."""
    found = []
    for pid in processes():
        try:
            words = Path(f"/proc/{pid}/cmdline").read_text(errors="replace").split("\0")
        except OSError:
            continue
        if "sleep" in words[0] and mark in words:
            found.append(pid)
    return found


# -- time-outs and signals --------------------------------------------------------------------


def test_a_timeout_keeps_partial_output_and_ends_the_whole_tree(
    user: User, git_checkout: Path
) -> None:
    script = "echo a; echo b >&2; touch made; sleep 60.0713 & setsid sleep 60.0713 & sleep 60.0713"
    done = user.run("run", "--json", "--timeout", "1", "--", "sh", "-c", script, cwd=git_checkout)
    assert done.code == 124
    result = done.json
    assert result["termination_reason"] == "TIMEOUT"
    assert (result["stdout"], result["stderr"]) == ("a\n", "b\n")
    assert by_path(result["changes"], git_checkout) == {"made": "created"}
    assert 900 < result["duration_ms"] < 15_000
    assert sleepers("60.0713") == []


def test_a_program_that_ignores_termination_is_ended_too(world: World) -> None:
    result = world.run("trap '' TERM INT HUP; echo a; while :; do sleep 1; done", timeout_s=0.5)
    assert (result.termination_reason, result.stdout) == ("TIMEOUT", "a\n")


def test_a_timeout_is_recorded_and_replayed(user: User, git_checkout: Path) -> None:
    script = "echo a; sleep 60"
    done = user.run("run", "--json", "--timeout", "0.5", "--", "sh", "-c", script, cwd=git_checkout)
    code, report = user.replay(done.json["span_id"], cwd=git_checkout)
    assert report["verdict"] == "identical", report
    assert code == 0


def test_ending_the_command_line_ends_the_command(user: User, git_checkout: Path) -> None:
    process = user.start(
        "run", "--", "sh", "-c", "echo begun; exec sleep 60.0715", cwd=git_checkout
    )
    read_until(process, b"begun\n")
    process.terminate()
    done = finish(process)
    assert done.code == 128 + 15
    assert sleepers("60.0715") == []


# -- what lives on ----------------------------------------------------------------------------


def test_background_processes_of_a_kept_world_live_on(world: World) -> None:
    first = world.run("sleep 60.0716 > /dev/null 2>&1 & echo $!")
    assert first.exit_code == 0
    pid = first.stdout.strip()
    assert first.coverage.state == "partial", "it went on after the command ended"
    again = world.run(f"kill -0 {pid} && kill {pid} && echo was there")
    assert again.stdout == "was there\n", again


def test_background_processes_end_with_their_world(sub: Substrate, git_checkout: Path) -> None:
    with sub.world(project=git_checkout, cwd=git_checkout) as made:
        made.run("sleep 60.0717 > /dev/null 2>&1 &")
        assert sleepers("60.0717")
    assert sleepers("60.0717") == []


def test_a_world_keeps_its_files_between_steps(world: World, git_checkout: Path) -> None:
    world.run("echo one > made")
    result = world.run("cat made; echo two >> made")
    assert result.stdout == "one\n"
    found = by_path([change.to_json() for change in result.changes], git_checkout)
    assert found == {"made": "modified"}
    assert not (git_checkout / "made").exists()


def test_many_commands_at_once_are_each_recorded(world: World, git_checkout: Path) -> None:
    results: dict[int, str] = {}

    def run(number: int) -> None:
        results[number] = world.run(f"echo {number}; echo {number} > file{number}").stdout

    threads = [threading.Thread(target=run, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert results == {number: f"{number}\n" for number in range(8)}
    made = by_path([change.to_json() for change in world.diff().changes], git_checkout)
    assert made == {f"file{number}": "created" for number in range(8)}
    assert world.refresh().steps == 8


def test_live_input_and_output(world: World) -> None:
    proc = world.exec(["cat"])
    reader = proc.output()
    for line in (b"one\n", b"\xff\0two\n"):
        proc.stdin.write(line)
        assert next(reader).data == line
    proc.stdin.close()
    reader.close()
    result = proc.wait(10)
    assert result.stdout_bytes == b"one\n\xff\0two\n"


def test_a_removed_world_ends_its_commands_and_is_gone(sub: Substrate, git_checkout: Path) -> None:
    made = sub.world(project=git_checkout, cwd=git_checkout)
    proc = made.exec("echo a; sleep 60.0718")
    read_some(proc)
    results: list[Result] = []

    def wait() -> None:
        with contextlib.suppress(WorldNotFound):  # too late to wait: the record has it
            results.append(proc.wait(20))

    waiting = threading.Thread(target=wait)
    waiting.start()
    made.remove()
    waiting.join(20)
    for result in (*results, sub.span(proc.span_id).result):
        assert result.termination_reason == "WORLD_REMOVED"
    assert b"".join(sub.object(sub.span(proc.span_id).result.stdout_digest or "")) == b"a\n"
    assert sleepers("60.0718") == []
    with pytest.raises(WorldNotFound, match=made.world_id):
        made.run("true")
    made.remove()  # idempotent


def test_a_failing_command_is_an_exception_only_when_asked_for(world: World) -> None:
    assert world.run("exit 9").exit_code == 9
    with pytest.raises(CommandFailed, match="exited with 9") as caught:
        world.run("exit 9", check=True)
    assert caught.value.result.exit_code == 9


def test_a_world_is_told_apart_by_the_command_line(user: User, git_checkout: Path) -> None:
    world_id = user.run("world", "create", cwd=git_checkout).out.strip()
    first = user.run("run", "--in", world_id, "-q", "--", "touch", "f", cwd=git_checkout)
    assert first.code == 0, first.err
    env = {"SUBSTRATE_WORLD_ID": world_id}
    assert user.run("-c", "ls f", cwd=git_checkout, env=env).out == "f\n"
    shown = user.run("world", "exec", "-q", world_id, "--", "ls", cwd=git_checkout)
    assert shown.out == "README.md\nf\n"
    assert user.run("world", "rm", world_id, cwd=git_checkout).code == 0
    gone = user.run("run", "--in", world_id, "--", "true", cwd=git_checkout)
    assert gone.code == 125
    assert world_id in gone.error_line


# -- files ------------------------------------------------------------------------------------


def test_writing_a_file_is_a_step_that_replays(
    user: User, world: World, git_checkout: Path
) -> None:
    content = bytes(range(256)) * 1000
    result = world.files.write("made.bin", content, mode=0o600)
    (change,) = result.changes
    assert by_path([change.to_json()], git_checkout) == {"made.bin": "created"}
    assert change.after is not None
    assert change.after.mode == 0o600
    assert world.files.read("made.bin") == content
    assert world.files.read("made.bin", offset=255, length=3) == b"\xff\0\1"
    assert world.run("wc -c < made.bin").stdout == "256000\n"
    (line,) = [line for line in user.spans() if line["span_id"] == result.span_id]
    assert line["kind"] == "files.write"
    code, report = user.replay(result.span_id, cwd=git_checkout)
    assert (code, report["verdict"]) == (0, "identical"), report


def test_overwriting_a_file_of_the_project_is_a_modification(world: World) -> None:
    result = world.files.write("README.md", "new\n")
    assert [change.kind for change in result.changes] == ["modified"]
    assert world.files.read_text("README.md") == "new\n"


def test_a_file_that_is_not_there_is_one_clear_error(world: World) -> None:
    with pytest.raises(WorldFileNotFound, match="no-such-file") as caught:
        world.files.read("no-such-file")
    assert isinstance(caught.value, FileNotFoundError)
    assert "\n" not in str(caught.value)


def test_files_are_read_as_the_worlds_user_not_as_the_recorder(user: User, world: World) -> None:
    for path in (user.trace, Path("/proc/1/environ")):
        with pytest.raises((WorldFileNotFound, WorldFileDenied)):
            world.files.read(path)


def test_a_link_out_of_the_world_leads_nowhere(world: World, user: User) -> None:
    world.run(["ln", "-s", str(user.trace), "link"])
    with pytest.raises((WorldFileNotFound, WorldFileDenied)):
        world.files.read("link")
    world.run("ln -s /etc up")
    world.files.write("up/made-by-test", b"x")
    assert not Path("/etc/made-by-test").exists()


# -- clients that go --------------------------------------------------------------------------


def test_a_command_ends_after_the_client_that_waits_for_it_was_killed(
    user: User, world: World, git_checkout: Path
) -> None:
    words = ("run", "-n", "--in", world.world_id, "--", "sh", "-c", "echo up; sleep 60.0773")
    process = user.start(*words, cwd=git_checkout)
    read_until(process, b"up")
    process.kill()
    finish(process)
    assert sleepers("60.0773")
    (span,) = eventually(
        lambda: [line for line in user.spans() if "60.0773" in line["cmd"]],
        "the command was told",
        timeout_s=20,
    )
    assert not sleepers("60.0773")
    assert span["termination_reason"] == "KILLED_BY_USER"
    assert span["signal"] == "SIGHUP"


def test_a_command_that_nobody_waits_for_goes_on_without_its_client(world: World) -> None:
    proc = world.exec("echo up; read -r line; echo $line")
    with contextlib.closing(proc.output()) as reader:
        assert next(iter(reader)).data == b"up\n"
    proc.feed(b"later\n")
    assert proc.wait().stdout == "up\nlater\n"


def test_the_result_of_a_command_outlives_its_world(sub: Substrate, git_checkout: Path) -> None:
    with sub.world(project=git_checkout, cwd=git_checkout) as world:
        ended = world.exec("echo done")
        cut = world.exec("echo begun; sleep 60.0777")
        assert read_some(cut) == b"begun\n"
        with contextlib.closing(ended.output()) as reader:
            assert [piece.data for piece in reader] == [b"done\n"]
    assert (ended.wait().exit_code, ended.wait().stdout) == (0, "done\n")
    assert (cut.wait().termination_reason, cut.wait().stdout) == ("WORLD_REMOVED", "begun\n")
