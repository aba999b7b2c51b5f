"""Command lines: what they mean, and what is said when they mean nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from substrate_sdk.cli import main
from substrate_sdk.cli.arguments import raw, split_command
from substrate_sdk.cli.failures import UsageError
from substrate_sdk.cli.run import environment, parser
from tests.unit.sdk_canned_host import CannedHost, Script


@pytest.fixture(autouse=True)
def _no_host_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here may start a host, or use the one of whoever runs the tests."""
    for name in ("SUBSTRATE_WORLD", "SUBSTRATE_WORLD_ID", "SUBSTRATE_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SUBSTRATE_ENDPOINT", "unix:///nonexistent/host.sock")


@pytest.mark.parametrize(
    ("words", "options", "command"),
    [
        (["--", "ls"], [], ["ls"]),
        (["ls", "-l", "--", "x"], [], ["ls", "-l", "--", "x"]),
        (["--json", "ls", "--json"], ["--json"], ["ls", "--json"]),
        (["--timeout", "5", "ls"], ["--timeout", "5"], ["ls"]),
        (["--timeout=5", "ls"], ["--timeout=5"], ["ls"]),
        (["--net", "--", "--", "ls"], ["--net", "--"], ["ls"]),
        (["--", "--", "ls"], [], ["--", "ls"]),
        (["-n", "-q", "--"], ["-n", "-q"], []),
        (["-"], [], ["-"]),
        ([], [], []),
    ],
)
def test_the_command_begins_at_the_first_word_that_is_no_option(
    words: list[str], options: list[str], command: list[str]
) -> None:
    assert split_command(parser("run"), words) == (options, command)


def test_arguments_are_the_bytes_that_were_typed() -> None:
    assert raw([os.fsdecode(b"a\xff"), "é"]) == [b"a\xff", "é".encode()]


def test_environment_options() -> None:
    assert environment(["A=b=c", "D="]) == {"A": "b=c", "D": ""}
    for bad in ("A", "=b"):
        with pytest.raises(UsageError, match="NAME=VALUE"):
            environment([bad])


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["frobnicate"], 2, "there is no command 'frobnicate'"),
        (["run", "--frobnicate", "--", "x"], 2, "--frobnicate"),
        (["run"], 2, "name a command"),
        (["run", "--timeout", "soon", "--", "x"], 2, "'soon' is not a number of seconds above 0"),
        (["run", "--timeout", "-1", "--", "x"], 2, "--timeout"),
        (["run", "--in", "wld_x", "--net", "@python", "--", "x"], 2, "--in uses a world as it is"),
        (["-c", "ls", "x"], 2, "-c takes one string"),
        (["-c"], 2, "-c"),
        (["run", "--policy", "/nonexistent/p.yaml", "--", "x"], 125, "'/nonexistent/p.yaml': No"),
        (["run", "--endpoint", "nowhere", "--", "x"], 125, "'nowhere' is not usable"),
        (["world"], 2, "write: substrate world"),
        (["world", "frob"], 2, "'frob'"),
        (["world", "exec", "wld_x"], 2, "world exec WORLD -- CMD"),
        (["world", "rm"], 2, "name worlds, or --all"),
        (["trace", "frob"], 2, "'frob'"),
        (["trace", "ls", "-n", "0"], 2, "'0' is not a positive number"),
        (["policy", "explain"], 2, "give the command"),
        (["policy", "check", "/nonexistent/p.yaml"], 125, "/nonexistent/p.yaml"),
        (["replay", "wld_x"], 2, "a world cannot be replayed"),
        (["replay", "--endpoint", "unix:///nonexistent/x"], 2, "no Substrate host answers"),
        (["diff", "--endpoint", "unix:///nonexistent"], 125, "no Substrate host answers"),
        (["up", "--endpoint", "unix:///x"], 125, "SUBSTRATE_HOME"),
        (["shim"], 125, "not built yet"),
        (["trace", "tail"], 125, "not built yet"),
    ],
)
def test_a_mistake_is_one_line_and_an_exit_code(
    capfd: pytest.CaptureFixture[str], args: list[str], code: int, words: str
) -> None:
    assert main(args) == code
    captured = capfd.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("substrate")
    assert words in line
    assert "Traceback" not in line


def test_running_on_the_host_is_said_not_to_be_built(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SUBSTRATE_WORLD", "disabled")
    assert main(["run", "--", "true"]) == 125
    assert "SUBSTRATE_WORLD=disabled" in capfd.readouterr().err


def test_a_fault_of_ours_is_one_line_and_a_traceback_on_demand(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(args: list[str]) -> int:
        raise ZeroDivisionError(args)

    monkeypatch.setattr("substrate_sdk.cli.doctor.main", fail)
    assert main(["doctor"]) == 125
    assert "internal error: ZeroDivisionError" in capfd.readouterr().err
    with pytest.raises(ZeroDivisionError):
        main(["--debug", "doctor"])
    monkeypatch.setenv("SUBSTRATE_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        main(["doctor"])


@pytest.mark.parametrize("name", ["run", "diff", "replay", "up", "down", "doctor"])
def test_every_command_has_help(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    assert "--json" in capfd.readouterr().out


def test_help_names_every_command(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capfd.readouterr().out
    for name in ("run", "-c", "world", "diff", "trace", "replay", "policy", "up, down", "doctor"):
        assert name in shown
    assert main(["--version"]) == 0


def test_what_is_said_of_a_name_that_is_not_utf8_is_not_changed(
    capfdbinary: pytest.CaptureFixture[bytes],
) -> None:
    assert main(["run", "--policy", os.fsdecode(b"/nonexistent\xff"), "--", "x"]) == 125
    assert len(capfdbinary.readouterr().err.splitlines()) == 1


def run_cli(host: CannedHost, *args: str | bytes, stdin: bytes | None = None) -> (
    subprocess.CompletedProcess[bytes]
):  # fmt: skip
    command = [sys.executable, "-c", "from substrate_sdk.cli import main; main()", *args]
    return subprocess.run(
        command,
        check=False,
        capture_output=True,
        env={**os.environ, "SUBSTRATE_ENDPOINT": host.endpoint},
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        timeout=60,
    )


def test_run_streams_and_exits_as_the_command_does(tmp_path: Path) -> None:
    with CannedHost(str(tmp_path / "h.sock"), Script(exit_code=7)) as host:
        done = run_cli(host, "run", "--quiet", "--", b"a\xff", "b c")
        assert (done.returncode, done.stdout, done.stderr) == (7, b"out\n", b"err\n")
        (started,) = host.worlds.execs.values()
        assert list(started.argv.args) == [b"a\xff", b"b c"]
        assert host.worlds.calls[-1] == "RemoveWorld"
        summed = run_cli(host, "run", "--", "x")
        assert summed.stdout == b"out\n"
        assert summed.stderr.startswith(b"err\n")
        assert b"exit 7" in summed.stderr
        assert b"\x1b[" not in summed.stderr  # no colours where there is no terminal


def test_json_is_one_object_and_nothing_else(tmp_path: Path) -> None:
    with CannedHost(str(tmp_path / "h.sock"), Script(exit_code=3)) as host:
        done = run_cli(host, "run", "--json", "--", "x")
        assert (done.returncode, done.stderr) == (3, b"")
        shown = json.loads(done.stdout)
        assert (shown["exit_code"], shown["stdout"], shown["stderr"]) == (3, "out\n", "err\n")


def test_stdin_that_is_a_pipe_is_forwarded(tmp_path: Path) -> None:
    with CannedHost(str(tmp_path / "h.sock"), Script(reads_stdin=True)) as host:
        data = os.urandom(200_000)
        assert run_cli(host, "run", "-q", "--", "cat", stdin=data).stdout == data


def test_a_denial_names_the_rule(tmp_path: Path) -> None:
    with CannedHost(str(tmp_path / "h.sock")) as host:
        done = run_cli(host, "-c", "denied")
        assert done.returncode == 126
        assert done.stderr == b"substrate: denied by rule no-denied (policy.yaml:3): it says so\n"
        shown = json.loads(run_cli(host, "--json", "-c", "denied").stdout)
        assert (shown["termination_reason"], shown["exit_code"]) == ("DENIED", 126)


def test_a_kept_world_is_not_removed_and_a_given_one_neither(tmp_path: Path) -> None:
    with CannedHost(str(tmp_path / "h.sock")) as host:
        kept = run_cli(host, "run", "--keep", "--", "x")
        assert b"substrate run --in wld_canned" in kept.stderr
        assert run_cli(host, "run", "-q", "--in", "wld_canned", "--", "x").returncode == 0
        assert "RemoveWorld" not in host.worlds.calls
        assert run_cli(host, "run", "-q", "--in", "wld_other", "--", "x").returncode == 125


def test_the_first_interrupt_is_forwarded_and_the_second_kills(tmp_path: Path) -> None:
    with CannedHost(str(tmp_path / "h.sock"), Script(hold=True, hold_for="SIGKILL")) as host:
        command = [sys.executable, "-c", "from substrate_sdk.cli import main; main()"]
        with subprocess.Popen(
            [*command, "run", "-q", "-n", "--", "x"],
            env={**os.environ, "SUBSTRATE_ENDPOINT": host.endpoint},
            stdout=subprocess.PIPE,
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"out\n"
            process.send_signal(signal.SIGINT)
            host.wait_for_signal("SIGINT")
            process.send_signal(signal.SIGINT)
            assert process.wait(20) == 128 + signal.SIGKILL
        assert host.worlds.signals == ["SIGINT", "KILL"]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--json", "-c", "ls"], "HOST_UNAVAILABLE"),
        (["run", "--json", "ls"], "HOST_UNAVAILABLE"),
        (["run", "--json", "--timeout", "x", "--", "ls"], "USAGE"),
        (["trace", "ls", "--json"], "HOST_UNAVAILABLE"),
        (["run", "ls", "--json"], None),
        (["run", "--", "ls", "--json"], None),
        (["-c", "ls", "--json"], None),
    ],
)
def test_who_asks_for_json_gets_it_when_it_goes_wrong_too(
    capsys: pytest.CaptureFixture[str], words: list[str], reason: str | None
) -> None:
    code = main(words)
    printed = capsys.readouterr().out
    if reason is None:
        assert printed == ""
        return
    error = json.loads(printed)["error"]
    assert (error["reason"], error["exit_code"]) == (reason, code)
    assert error["message"]
