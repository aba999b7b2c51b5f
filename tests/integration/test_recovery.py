"""Issue 2, done when 6: hosts and launchers die; commands and records do not."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

from tests.leaks import processes
from tests.users import User, by_path, eventually, finish, kill_and_wait, read_some, read_until

if TYPE_CHECKING:
    import pytest

SLOW = "echo begun; sleep 2; echo done"


def spans_of(user: User, command: str) -> list[str]:
    return [line["span_id"] for line in user.spans() if command in str(line["cmd"])]


def test_a_client_gets_the_rest_when_its_host_was_killed(
    lone_user: User, git_checkout: Path
) -> None:
    process = lone_user.start("run", "--", "sh", "-c", SLOW, cwd=git_checkout)
    read_until(process, b"begun\n")
    kill_and_wait(lone_user.host_pid())
    done = finish(process)
    assert done.code == 0, done.err
    assert done.stdout == b"done\n"
    assert "Traceback" not in done.err
    assert len(spans_of(lone_user, "sleep 2")) == 1
    assert lone_user.run("trace", "verify", cwd=git_checkout).code == 0


def test_a_command_without_a_client_ends_and_the_next_client_sees_it(
    lone_user: User, git_checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with lone_user.embedded(monkeypatch) as sub:
        world = sub.world(project=git_checkout, cwd=git_checkout, keep=True)
        proc = world.exec(SLOW + "; echo x > made", exec_id="detached")
        assert read_some(proc) == b"begun\n"
    kill_and_wait(lone_user.host_pid())
    lone_user.up()
    shown = lone_user.run("world", "list", "--json", cwd=git_checkout).json["worlds"]
    assert [item["world_id"] for item in shown] == [world.world_id]
    (span,) = eventually(lambda: spans_of(lone_user, "sleep 2"), "the span")
    output = lone_user.run("trace", "show", "--output", span, cwd=git_checkout)
    assert output.stdout == b"begun\ndone\n"
    (line,) = [line for line in lone_user.spans() if line["span_id"] == span]
    assert (line["exit"], line["termination_reason"]) == (0, "EXITED")
    assert lone_user.replay(span, cwd=git_checkout)[1]["verdict"] == "identical"


def test_a_command_that_ended_while_no_host_ran_is_recorded_by_the_next(
    lone_user: User, git_checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with lone_user.embedded(monkeypatch) as sub:
        world = sub.world(project=git_checkout, cwd=git_checkout, keep=True)
        # It cannot end before the fifo in its world is opened, which a second step does.
        proc = world.exec("mkfifo go; echo begun; read x < go; echo got $x; exit 5")
        read_some(proc)
        opener = world.exec("sleep 0.5; echo it > go")
        kill_and_wait(lone_user.host_pid())
        launcher = lone_user.launcher_pid()
        eventually(lambda: not sleeping_below(launcher), "the commands have ended")
        result = proc.wait(20)
        assert (result.exit_code, result.stdout) == (5, "begun\ngot it\n")
        assert opener.wait(20).ok
    assert len(spans_of(lone_user, "mkfifo")) == 1


def test_the_output_of_a_command_that_an_earlier_host_recorded_ends(
    lone_user: User, git_checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with lone_user.embedded(monkeypatch) as sub:
        world = sub.world(project=git_checkout, cwd=git_checkout, keep=True)
        world.exec("echo all", exec_id="over").wait()
        kill_and_wait(lone_user.host_pid())
        lone_user.up()
        again = world.exec("echo all", exec_id="over")
        assert b"".join(piece.data for piece in again.output(timeout_s=20)) == b"all\n"
    assert len(spans_of(lone_user, "echo all")) == 1


def test_a_host_that_is_asked_to_end_leaves_commands_running(
    lone_user: User, git_checkout: Path
) -> None:
    process = lone_user.start("run", "--", "sh", "-c", SLOW, cwd=git_checkout)
    read_until(process, b"begun\n")
    assert lone_user.run("down", cwd=git_checkout).code == 0
    done = finish(process)
    assert (done.code, done.stdout) == (0, b"done\n"), done.err


def test_a_host_killed_again_and_again_loses_nothing(lone_user: User, git_checkout: Path) -> None:
    script = "for i in 1 2 3 4 5 6; do echo $i; sleep 0.4; done"
    process = lone_user.start("run", "-q", "--", "sh", "-c", script, cwd=git_checkout)
    seen = b""
    for number in (b"1\n", b"3\n", b"5\n"):
        seen += read_until(process, number)
        kill_and_wait(lone_user.host_pid())
        lone_user.up()
    done = finish(process)
    assert done.code == 0, done.err
    assert seen + done.stdout == b"1\n2\n3\n4\n5\n6\n"
    assert len(spans_of(lone_user, "for i in")) == 1


def test_steps_after_an_adoption_record_only_their_own_changes(
    lone_user: User, git_checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with lone_user.embedded(monkeypatch) as sub:
        world = sub.world(project=git_checkout, cwd=git_checkout, keep=True)
        first = world.run("echo one > one; rm README.md")
        assert len(first.changes) == 2
        kill_and_wait(lone_user.host_pid())
        second = world.run("cat one; echo two > two; echo more >> one")
        assert second.stdout == "one\n"
        found = by_path([change.to_json() for change in second.changes], git_checkout)
        assert found == {"one": "modified", "two": "created"}
        whole = by_path([change.to_json() for change in world.diff().changes], git_checkout)
        assert whole == {"one": "created", "two": "created", "README.md": "deleted"}
        (git_checkout / "README.md").write_text("edited since\n")
        report = sub.replay(second.span_id)
        assert report.verdict == "identical", report
        world.remove()


def test_a_killed_launcher_ends_its_commands_and_says_so(
    lone_user: User, git_checkout: Path
) -> None:
    process = lone_user.start(
        "run", "--json", "--", "sh", "-c", "echo begun; sleep 600", cwd=git_checkout
    )
    eventually(lambda: output_logs_hold(lone_user, b"begun"), "the command runs")
    launcher = lone_user.launcher_pid()
    kill_and_wait(launcher)
    done = finish(process)
    assert done.code == 125, done
    assert done.json["termination_reason"] == "AGENT_LOST"
    assert done.json["stdout"] == "begun\n"
    sleepers = [pid for pid in processes() if "sleep\0600" in command_of(pid)]
    assert not [pid for pid in sleepers if str(lone_user.home) in environment_of(pid)]
    # The next launcher clears what the killed one could not; the leak check sees that it did.
    assert lone_user.run_json("echo", "again", cwd=git_checkout)["stdout"] == "again\n"


def test_after_a_killed_launcher_new_worlds_work(lone_user: User, git_checkout: Path) -> None:
    lone_user.up()
    kill_and_wait(lone_user.launcher_pid())
    result = lone_user.run_json("echo", "again", cwd=git_checkout)
    assert result["stdout"] == "again\n"


def test_host_and_launcher_killed_together_leave_a_record_and_no_process(
    lone_user: User, git_checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with lone_user.embedded(monkeypatch) as sub:
        world = sub.world(project=git_checkout, cwd=git_checkout, keep=True)
        proc = world.exec("echo begun; sleep 600")
        read_some(proc)
        host, launcher = lone_user.host_pid(), lone_user.launcher_pid()
        os.kill(host, signal.SIGKILL)
        kill_and_wait(launcher)
    lone_user.up()
    (line,) = [line for line in lone_user.spans() if "sleep 600" in str(line["cmd"])]
    assert line["termination_reason"] == "AGENT_LOST"
    output = lone_user.run("trace", "show", "--output", line["span_id"], cwd=git_checkout)
    assert output.stdout == b"begun\n"
    assert lone_user.run("world", "list", "--json", cwd=git_checkout).json["worlds"] == []


def test_a_torn_journal_is_repaired_and_said_so(lone_user: User, git_checkout: Path) -> None:
    span = lone_user.run_json("true", cwd=git_checkout)["span_id"]
    kill_and_wait(lone_user.host_pid())
    with lone_user.trace.open("ab") as file:
        file.write(b'{"seq":99999,"v":"1.0","event_type":"command_comp')
    lone_user.run_json("true", cwd=git_checkout)
    assert lone_user.run("trace", "show", span, cwd=git_checkout).code == 0
    assert any(line["event_type"] == "journal_repair" for line in lone_user.lines())
    assert lone_user.run("trace", "verify", cwd=git_checkout).code == 0


# -- parts ------------------------------------------------------------------------------------


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def environment_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/environ").read_text(errors="replace")
    except OSError:
        return ""


def output_logs_hold(user: User, text: bytes) -> bool:
    logs = user.substrate_home.glob("worlds/*/execs/*/output.log")
    return any(text in log.read_bytes() for log in logs)


def sleeping_below(launcher: int) -> bool:
    """Whether a process of a world other than its first runs."""
    table = processes()
    inits = {pid for pid, process in table.items() if process.parent == launcher}
    return any(process.parent in inits and process.state != "Z" for process in table.values())
