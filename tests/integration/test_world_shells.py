"""Persistent shells: what they keep, what ends them, and what a command of one is recorded as."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from substrate_sdk import Limits, Result, Substrate
from substrate_sdk.client.sync import Shell, World
from substrate_sdk.errors import InvalidArgument, ShellEnded, ShellNotFound, WorldNotFound
from tests.integration.test_world_execs import sleepers
from tests.users import User, kill_and_wait


@pytest.fixture
def sub(user: User) -> Iterator[Substrate]:
    with user.client() as made:
        yield made


@pytest.fixture
def world(sub: Substrate, git_checkout: Path) -> Iterator[World]:
    with sub.world(project=git_checkout, cwd=git_checkout) as made:
        yield made


@pytest.fixture
def shell(world: World) -> Iterator[Shell]:
    with world.shell() as made:
        yield made


def said(shell: Shell, command: str, **options: float | str) -> tuple[int | None, str, str]:
    result = shell.run(command, **options)  # type: ignore[arg-type]
    return result.exit_code, result.stdout, result.stderr


def changed(result: Result) -> dict[str, str]:
    """What a step did to the project, by name."""
    return {Path(change.path).name: change.kind for change in result.changes}


# -- what it keeps ----------------------------------------------------------------------------


def test_a_shell_keeps_directory_variables_functions_options_and_status(
    shell: Shell, git_checkout: Path
) -> None:
    first = shell.run(
        "mkdir sub && cd sub && export X=1; y=2\n"
        'greet() {\n  echo "hello $1"\n}\n'
        "alias ll='echo aliased'; set -f; umask 027; trap 'echo usr1' USR1"
    )
    assert (first.exit_code, first.stdout, first.stderr) == (0, "", "")
    assert changed(first) == {"sub": "created"}
    assert said(shell, "pwd; greet you; ll; echo $X $y *; umask; kill -USR1 $$") == (
        0,
        f"{git_checkout}/sub\nhello you\naliased\n1 2 *\n0027\nusr1\n",
        "",
    )
    assert said(shell, "sh -c 'exit 7'")[0] == 7
    assert said(shell, "echo $?; declare -F; exec 5</dev/null; diff /dev/fd/5 /dev/null")[:2] == (
        0,
        "7\ndeclare -f greet\n",
    )


def test_each_command_is_a_step_with_its_own_changes_and_record(shell: Shell, user: User) -> None:
    one = shell.run("echo one > one; cat one")
    two = shell.run("ls; echo two > two; /bin/true")
    assert changed(one) == {"one": "created"}
    assert changed(two) == {"two": "created"}
    assert one.span_id != two.span_id
    programs = {
        line["span_id"]: [Path(process["argv"][0]).name for process in line["processes"]]
        for line in user.spans()
    }
    assert "cat" in programs[one.span_id]
    assert "cat" not in programs[two.span_id]
    assert {"ls", "true"} <= set(programs[two.span_id])
    assert one.coverage.state == two.coverage.state == "full", (one.coverage, two.coverage)
    assert "one\n" in two.stdout


def test_what_a_command_leaves_running_marks_the_next_as_shared(shell: Shell) -> None:
    left = shell.run("sleep 60.0719 & echo started")
    assert left.stdout == "started\n"
    after = shell.run("echo next")
    assert (after.exit_code, after.stdout) == (0, "next\n")
    assert any("at the same time" in reason for reason in after.coverage.reasons)
    assert shell.run("kill %1; wait %1").exit_code == 143
    assert sleepers("60.0719") == []


# -- awkward commands -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "exit_code", "stdout", "in_stderr"),
    [
        ("t='if then'; eval \"$t\"", 2, "", "syntax error"),
        ('t="echo \'unterminated"; eval "$t"', 2, "", "unexpected EOF"),
        ("cat <<E\n$((1+1)) 'q'\nE", 0, "2 'q'\n", ""),
        ("break; continue; return 3", 2, "", "only meaningful"),
        ("set -u; echo $nope; echo not", 1, "", "nope: unbound"),
        ("exec nosuchprogram", 127, "", "nosuchprogram"),
        ('read -r line; echo "<$line>"', 0, "<>\n", ""),
        ("-x", 127, "", "-x: command not found"),
        ("kill -INT $$; echo not", 130, "", ""),
        ("exec >/dev/null; echo not", 0, "", ""),
        ("(exit 9) | true; echo ${PIPESTATUS[*]}", 0, "9 0\n", ""),
        ("trap 'echo oops' ERR; false; trap - ERR", 0, "oops\n", ""),
        ("printf '\\377\\0x' | od -An -tx1", 0, " ff 00 78\n", ""),
    ],
)
def test_a_shell_survives(
    shell: Shell, command: str, exit_code: int, stdout: str, in_stderr: str
) -> None:
    got = said(shell, command)
    assert got[:2] == (exit_code, stdout), got
    assert in_stderr in got[2]
    assert said(shell, "set +u; echo alive") == (0, "alive\n", "")


@pytest.mark.parametrize(
    "command",
    [
        "command() { :; }",
        "set -e; command() { return 3; }; builtin() { return 3; }",
        "builtin() { :; }; command() { :; }; printf() { :; }",
        'for n in trap unset return exit kill test; do eval "$n() { printf x; }"; done',
        "alias command=true printf=true builtin=true unset=false case=true if=true eval=false",
        "set -o posix",
        "set -Eeu; set -anm; IFS=0123456789:_",
        "f() { echo; }; trap f DEBUG ERR RETURN EXIT USR1",
        "readonly _substrate_status=1 PS1 PS2 HISTFILE PWD IFS",
        "PROMPT_COMMAND='false; IFS=' PS1='$(false)' PS4='$(false)'",
        "declare -i PWD; unset PWD",
        "enable -n printf command builtin",
    ],
)
def test_nothing_that_a_command_redefines_hides_the_end_of_the_next(
    world: World, command: str
) -> None:
    with world.shell() as shell:
        assert shell.run(command, timeout_s=10).exit_code == 0
        assert shell.run("true", timeout_s=10).exit_code == 0
        assert shell.run("set +e; sh -c 'exit 7'", timeout_s=10).exit_code == 7


def test_a_directory_of_any_length_is_no_end_of_a_shell(shell: Shell) -> None:
    name = "n=$(printf 'x%.0s' {1..250})"
    code, stdout, stderr = said(shell, f"{name}; for i in {{1..45}}; do mkdir $n; cd $n; done")
    assert (code, stdout, stderr) == (0, "", "")
    assert int(shell.run("echo ${#PWD}").stdout) > 11_000
    assert said(shell, "cd /usr; (exit 4)") == (4, "", "")
    assert shell.run("pwd").stdout == "/usr\n"


def test_input_is_given_byte_for_byte_and_to_one_command(shell: Shell) -> None:
    data = bytes(range(256)) * 5000
    assert shell.run("cat", stdin=data).stdout_bytes == data
    assert shell.run("cat; cat", stdin="twice").stdout == "twice"
    assert shell.run("cat").stdout == ""


def test_a_long_command_and_much_output(shell: Shell) -> None:
    text = "x" * 120_000
    assert shell.run(f"x='{text}'; echo ${{#x}}").stdout == "120000\n"
    assert len(shell.run("head -c 5000000 /dev/zero").stdout_bytes) == 5_000_000
    assert shell.run("echo back").stdout == "back\n"


def test_a_command_has_neither_the_control_nor_the_reports(shell: Shell) -> None:
    listed = shell.run("exec ls -l /proc/self/fd 2>&1 | grep -v 'proc\\|total\\|/dev/null'")
    kinds = [line.split(" -> ")[-1].partition(":")[0] for line in listed.stdout.splitlines()]
    assert kinds in (["pipe", "pipe"], ["pipe", "pipe", "pipe"]), listed.stdout  # its own streams


def test_the_directory_of_a_shell_may_be_removed_under_it(shell: Shell) -> None:
    assert shell.run("mkdir gone && cd gone && rmdir ../gone").exit_code == 0
    assert shell.run("echo still; ls . | wc -l").stdout.startswith("still\n")
    assert shell.run("cd / && pwd").stdout == "/\n"


# -- interrupts and time-outs -----------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [
        "sleep 60.0727; echo not",
        "while :; do :; done",
        "sh -c 'trap \"\" INT; sleep 60.0727'; sleep 60.0727",
        "while :; do sleep 60.0727; done",
        "setsid -w sleep 60.0727",
    ],
)
def test_a_timeout_ends_the_command_and_what_it_started_and_keeps_the_shell(
    shell: Shell, command: str
) -> None:
    shell.run("kept=1; cd /")
    result = shell.run(f"echo begun; {command}", timeout_s=0.3)
    assert (result.termination_reason, result.exit_code) == ("TIMEOUT", None)
    assert result.stdout == "begun\n"
    assert sleepers("60.0727") == []
    assert said(shell, "echo $kept; pwd") == (0, "1\n/\n", "")


def test_a_shell_that_does_not_come_back_is_ended_with_its_command(shell: Shell) -> None:
    result = shell.run("trap '' INT; while :; do :; done", timeout_s=0.2)
    assert result.termination_reason == "TIMEOUT"
    with pytest.raises(ShellEnded, match="SIGKILL"):
        shell.run("echo")
    shell.restart()
    assert shell.run("echo anew").stdout == "anew\n"


def test_an_interrupt_ends_the_command_and_not_the_shell(shell: Shell) -> None:
    shell.run("kept=2")
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(shell.run, "echo begun; sleep 60.0731; echo not")
        # As at any terminal, a child that is not its program yet may take an interrupt and go on.
        while not sleepers("60.0731"):
            pass
        shell.interrupt()
        result = running.result(20)
    assert (result.exit_code, result.stdout) == (130, "begun\n")
    assert result.termination_reason == "EXITED"
    shell.interrupt()  # nothing runs
    assert said(shell, "echo $kept $?") == (0, "2 130\n", "")


# -- its end ----------------------------------------------------------------------------------


def test_exit_ends_the_shell_with_its_code_and_restart_makes_another(shell: Shell) -> None:
    result = shell.run("X=1; trap 'echo bye' EXIT; exit 3")
    assert (result.exit_code, result.termination_reason) == (3, "EXITED")
    assert result.stdout == "bye\n"
    with pytest.raises(ShellEnded, match="exit code 3"):
        shell.run("echo")
    shell.restart()
    assert shell.run('echo "<$X>"').stdout == "<>\n"
    assert shell.run("set -e; false; echo not").exit_code == 1
    with pytest.raises(ShellEnded):
        shell.run("echo")
    shell.restart()
    assert shell.run("exec echo replaced").stdout == "replaced\n"


def test_no_command_is_given_to_a_shell_that_the_one_before_has_ended(world: World) -> None:
    for number in range(3):
        with world.shell() as shell:
            # What it leaves makes the shell's own end come later than its command's.
            assert shell.run(f"sleep 60.0741 & exit {number}").exit_code == number
            with pytest.raises(ShellEnded, match=f"ended with exit code {number}"):
                shell.run("echo")
            shell.restart()
            assert shell.run("echo anew").stdout == "anew\n"


def test_a_shell_that_a_realtime_signal_ended_is_told_of(shell: Shell) -> None:
    assert shell.run("kill -40 $$; sleep 9").signal == "SIGRTMIN+6"
    with pytest.raises(ShellEnded, match=r"SIGRTMIN\+6"):
        shell.run("echo")
    shell.restart()
    assert shell.run("echo anew").stdout == "anew\n"


def test_a_late_report_of_an_interrupted_command_is_no_forgery(shell: Shell) -> None:
    shell.run("PROMPT_COMMAND='sleep 0.3'")
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(shell.run, "echo begun; sleep 60.0743")
        while not sleepers("60.0743"):
            pass
        shell.interrupt()
        assert running.result(20).exit_code == 130
    assert said(shell, "echo next; sleep 0.5") == (0, "next\n", "")


def test_a_command_that_forges_a_report_ends_its_own_shell_and_no_other(world: World) -> None:
    with world.shell() as spoiled, world.shell() as other:
        other.run("kept=3")
        forge = 'for f in /proc/$PPID/fd/*; do printf "x 0 /\\0" > $f; done; sleep 60.0733'
        result = spoiled.run(f"sh -c '{forge}'")
        assert result.termination_reason == "AGENT_LOST"
        assert "reports on" in result.stderr
        with pytest.raises(ShellEnded, match="reports on"):
            spoiled.run("echo")
        assert other.run("echo $kept").stdout == "3\n"
        spoiled.restart()
        assert spoiled.run("echo anew").stdout == "anew\n"
    assert sleepers("60.0733") == []


def test_closing_ends_what_runs_in_it_and_runs_its_exit_trap(world: World) -> None:
    shell = world.shell(env={"GIVEN": "1"}, cwd="/tmp", shell_id="mine")
    assert shell.run("pwd; echo $GIVEN").stdout == "/tmp\n1\n"
    shell.run("trap 'echo left > /tmp/left' EXIT; sleep 60.0739 &")
    shell.close()
    shell.close()
    assert sleepers("60.0739") == []
    assert world.run("cat /tmp/left").stdout == "left\n"
    with pytest.raises(ShellNotFound):
        shell.run("echo")
    with pytest.raises(InvalidArgument):
        world.shell(shell_id="no/slashes")
    with pytest.raises(InvalidArgument, match="is taken"):
        world.exec("true", exec_id="substrate-shell_mine")


def test_a_removed_world_ends_its_shells_commands_and_says_one_line(
    sub: Substrate, git_checkout: Path
) -> None:
    world = sub.world(project=git_checkout, cwd=git_checkout)
    shell = world.shell()
    begun = threading.Event()
    with ThreadPoolExecutor(2) as pool:
        running = pool.submit(
            shell.run, "echo begun; sleep 60.0733", on_output=lambda _out: begun.set()
        )
        assert begun.wait(20)
        waiting = pool.submit(shell.run, "echo not")
        world.remove()
        assert running.result(20).termination_reason == "WORLD_REMOVED"
        with pytest.raises(WorldNotFound) as refused:
            waiting.result(20)
    assert len(str(refused.value).splitlines()) == 1
    with pytest.raises(WorldNotFound, match="there is no world"):
        shell.run("echo")
    with pytest.raises(WorldNotFound, match="there is no world"):
        world.shell()


def test_many_shells_at_once_in_a_world(world: World) -> None:
    shells = [world.shell() for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:

        def work(number: int) -> list[str]:
            shells[number].run(f"n={number}")
            return [shells[number].run(f"echo $n.{turn}").stdout for turn in range(3)]

        got = list(pool.map(work, range(8)))
    assert got == [[f"{n}.{turn}\n" for turn in range(3)] for n in range(8)]
    for shell in shells:
        shell.close()


def test_commands_given_at_once_run_one_after_another(shell: Shell) -> None:
    shell.run("count=0")
    with ThreadPoolExecutor(6) as pool:
        outs = [
            result.stdout
            for result in pool.map(
                lambda _n: shell.run("count=$((count+1)); sleep 0.02; echo $count"), range(6)
            )
        ]
    assert sorted(outs) == [f"{n}\n" for n in range(1, 7)]


def test_a_shell_lives_on_while_its_host_is_killed_and_comes_again(
    lone_user: User, git_checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = lone_user
    with (
        user.embedded(monkeypatch) as sub,
        sub.world(project=git_checkout, cwd=git_checkout) as world,
    ):
        shell = world.shell()
        shell.run("cd /tmp; kept=4; (exit 6)")
        begun = threading.Event()
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(
                shell.run,
                "echo $?; mkfifo f; read -r line <f; echo $line",
                on_output=lambda _out: begun.set(),
            )
            assert begun.wait(20)
            kill_and_wait(user.host_pid())
            assert world.run("echo through > /tmp/f").exit_code == 0
            result = running.result(30)
        assert (result.exit_code, result.stdout) == (0, "6\nthrough\n")
        assert said(shell, "pwd; echo $kept") == (0, "/tmp\n4\n", "")
        numbers = [line["shell"]["number"] for line in user.spans() if line.get("shell")]
        assert numbers == [1, 2, 3]


def test_limits_hold_in_shells(sub: Substrate, git_checkout: Path) -> None:
    limits = Limits(runtime_s=2, pids=30)
    with sub.world(project=git_checkout, cwd=git_checkout, limits=limits) as world:
        shell = world.shell()
        assert shell.run("sleep 60.0747").termination_reason == "LIMIT"
        forks = "for i in $(seq 60); do sleep 1 & done 2>/dev/null; wait"
        assert any("processes refused" in row.what for row in shell.run(forks).blocked)


def test_a_shell_that_runs_a_command_is_opened_again_at_once(world: World) -> None:
    shell = world.shell(shell_id="mine")
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(shell.run, "sleep 60.0749")
        while not sleepers("60.0749"):
            pass
        world.shell(shell_id="mine").interrupt()
        assert running.result(20).exit_code == 130


def test_a_rollback_ends_the_shells_that_it_is_told_to(world: World) -> None:
    shell = world.shell()
    first = shell.run("echo 1 > made")
    shell.run("echo 2 > made")
    world.rollback(to=first, kill=True)
    with pytest.raises(ShellEnded, match="set back"):
        shell.run("echo")
    shell.restart()
    assert shell.run("cat made").stdout == "1\n"


# -- on the command line ----------------------------------------------------------------------


def test_the_command_line_feeds_a_shell_from_its_input(user: User, git_checkout: Path) -> None:
    script = (
        b"cd /tmp; x=1\nfor i in 1 2\ndo\n  echo $i.$x\ndone\ncat <<E\n$PWD\nE\nexit 4\necho not\n"
    )
    done = user.run("shell", cwd=git_checkout, stdin=script)
    assert (done.code, done.out) == (4, "1.1\n2.1\n/tmp\n"), done.err
    numbers = [line["shell"]["number"] for line in user.spans() if line.get("shell")]
    assert numbers[-4:] == [1, 2, 3, 4]
    done = user.run("shell", "--json", cwd=git_checkout, stdin=b"echo a\nfalse\n")
    assert done.code == 1
    assert [line.count('"stdout": "a') for line in done.out.splitlines()] == [1, 0]
