"""The embedded host: started by whoever comes first, shared, and gone when idle."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.leaks import processes
from tests.users import User, eventually, finish, kill_and_wait


def alive(pid: int) -> bool:
    """Whether a process runs; one that only waits to be reaped, by us, does not."""
    process = processes().get(pid)
    return process is not None and process.state not in "ZX"


def test_concurrent_callers_start_one_host_and_share_it(
    lone_user: User, git_checkout: Path
) -> None:
    started = [
        lone_user.start("run", "-q", "--", "echo", str(number), cwd=git_checkout)
        for number in range(5)
    ]
    done = [finish(process) for process in started]
    assert [item.code for item in done] == [0] * 5, done
    assert [item.out for item in done] == [f"{number}\n" for number in range(5)]
    # One journal, one writer: five steps in it, and one host that opened it.
    assert len(lone_user.spans()) == 5
    opened = [line for line in lone_user.lines() if line["event_type"] == "journal_segment"]
    assert len(opened) == 1
    assert lone_user.run("trace", "verify", cwd=git_checkout).code == 0


def test_up_and_down_are_idempotent(lone_user: User, git_checkout: Path) -> None:
    lone_user.up()
    first = lone_user.host_pid()
    lone_user.up()
    assert lone_user.host_pid() == first
    assert lone_user.run("down", cwd=git_checkout).code == 0
    eventually(lambda: not alive(first), "the host has ended")
    assert lone_user.run("down", cwd=git_checkout).code == 0


def start_idle_host(user: User, idle_s: float) -> subprocess.Popen[bytes]:
    """A host that ends after so long without work; returns once it is ready."""
    ready, ready_child = os.pipe()
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "substrate_services.host", "--home", user.substrate_home,
             "--idle-s", str(idle_s), "--ready-fd", str(ready_child)],
            env=user.env(),
            pass_fds=(ready_child,),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(ready_child)
        assert os.read(ready, 100) == b"ready\n"
    finally:
        os.close(ready)
    return process


def test_an_idle_host_ends_and_leaves_nothing(lone_user: User) -> None:
    process = start_idle_host(lone_user, 0.4)
    assert process.wait(15) == 0
    assert not Path(lone_user.paths.host_pid).exists()


def test_a_kept_world_stays_when_its_host_ends_and_is_adopted(
    lone_user: User, git_checkout: Path
) -> None:
    process = start_idle_host(lone_user, 0.6)
    made = lone_user.run("world", "create", cwd=git_checkout)
    world_id = made.out.strip()
    first = lone_user.run(
        "world", "exec", "-q", world_id, "--", "sh", "-c",
        "echo x > made; sleep 300 > /dev/null 2>&1 &", cwd=git_checkout,
    )  # fmt: skip
    assert first.code == 0, first.err
    assert process.wait(15) == 0
    again = lone_user.run(
        "world", "exec", "--json", world_id, "--", "sh", "-c",
        "cat made; grep -l sleep /proc/[0-9]*/comm | wc -l", cwd=git_checkout,
    )  # fmt: skip
    assert again.json["stdout"].startswith("x\n1"), again.json
    assert again.json["changes"] == []
    assert lone_user.run("down", "--worlds", cwd=git_checkout).code == 0


def test_a_host_does_not_end_while_a_command_runs(lone_user: User, git_checkout: Path) -> None:
    process = start_idle_host(lone_user, 0.3)
    done = lone_user.run("run", "-q", "--", "sh", "-c", "sleep 1.5; echo done", cwd=git_checkout)
    assert (done.code, done.out) == (0, "done\n")
    assert process.wait(15) == 0


def test_a_second_host_of_one_home_is_refused_in_one_line(
    lone_user: User, git_checkout: Path
) -> None:
    lone_user.up()
    done = subprocess.run(
        [sys.executable, "-m", "substrate_services.host", "--home", lone_user.substrate_home],
        check=False,
        env=lone_user.env(),
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert lone_user.run_json("true", cwd=git_checkout)["exit_code"] == 0


def test_a_stale_socket_and_pid_file_do_not_hinder(lone_user: User, git_checkout: Path) -> None:
    lone_user.up()
    kill_and_wait(lone_user.host_pid())
    assert Path(lone_user.paths.host_socket).exists()
    assert lone_user.run_json("true", cwd=git_checkout)["exit_code"] == 0
