"""Commands in worlds, from the command line, on a real host."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Self

import pytest

from tests.conftest import SUBSTRATE

pytestmark = [pytest.mark.usefixtures("substrate_home"), pytest.mark.timeout(180)]


def cli(
    *args: str | bytes, cwd: Path | None = None, stdin: bytes | None = None, **env: str
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*SUBSTRATE, *args],
        check=False,
        capture_output=True,
        cwd=cwd,
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        env={**os.environ, **env},
        timeout=120,
    )


def test_the_effects_of_a_command_are_known_and_kept_off_the_checkout(git_checkout: Path) -> None:
    script = "echo hi > made.txt; rm README.md; exit 3"
    done = cli("run", "--json", "--", "sh", "-c", script, cwd=git_checkout)
    assert (done.returncode, done.stderr) == (3, b"")
    assert (git_checkout / "README.md").exists()
    assert not (git_checkout / "made.txt").exists()
    shown = json.loads(done.stdout)
    assert shown["exit_code"] == 3
    changes = {os.path.basename(change["path"]): change for change in shown["changes"]}
    assert {name: change["kind"] for name, change in changes.items()} == {
        "made.txt": "created",
        "README.md": "deleted",
    }
    assert len(changes["made.txt"]["after"]["digest"]) == 64
    assert len(changes["README.md"]["before"]["digest"]) == 64

    # The same, as a patch that git takes.
    patch = cli("diff", "@last", cwd=git_checkout)
    assert patch.returncode == 0
    subprocess.run(["git", "apply"], check=True, cwd=git_checkout, input=patch.stdout)
    assert (git_checkout / "made.txt").read_text() == "hi\n"
    assert not (git_checkout / "README.md").exists()
    stat = cli("diff", "--stat", cwd=git_checkout).stdout.decode()
    assert "made.txt" in stat
    assert stat.splitlines()[-1].startswith("2 changes: ")


def test_output_is_live_and_split_and_the_summary_comes_after(tmp_path: Path) -> None:
    done = cli("run", "--", "sh", "-c", "echo out; echo err >&2", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, b"out\n")
    lines = done.stderr.decode().splitlines()
    assert lines[0] == "err"
    assert "exit 0" in lines[2]
    assert lines[-1].startswith("span")


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (["run", "-q", "--", "sh", "-c", "exit 7"], 7),
        (["run", "-q", "--", "bash", "-lc", "exit 3"], 3),
        (["-c", "exit 4"], 4),
        (["run", "-q", "--", "sh", "-c", "kill -SEGV $$"], 139),
        (["run", "-q", "--timeout", "0.5", "--", "sleep", "60"], 124),
    ],
)
def test_the_exit_code_is_the_commands(tmp_path: Path, args: list[str], code: int) -> None:
    done = cli(*args, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (code, b"", b"")


@pytest.mark.parametrize(
    ("program", "code", "words"),
    [("no-such-program", 127, b"command not found"), ("/etc/passwd", 126, b"cannot be executed")],
)
def test_a_program_that_cannot_run_is_named(
    tmp_path: Path, program: str, code: int, words: bytes
) -> None:
    done = cli("run", "-q", "--", program, cwd=tmp_path)
    assert done.returncode == code
    assert program.encode() in done.stderr
    assert len(done.stderr.splitlines()) == 1
    del words  # the host's own words may come instead


def test_a_timeout_keeps_what_was_written(tmp_path: Path) -> None:
    script = "echo part; sleep 60"
    done = cli("run", "--json", "--timeout", "0.5", "--", "sh", "-c", script, cwd=tmp_path)
    shown = json.loads(done.stdout)
    assert (done.returncode, shown["termination_reason"]) == (124, "TIMEOUT")
    assert (shown["stdout"], shown["exit_code"]) == ("part\n", None)


def test_arguments_survive_byte_for_byte_into_the_record(tmp_path: Path) -> None:
    odd = [b"a b", b"q'\"", b"new\nline", b"\xff\xfe", b""]
    done = cli("run", "-q", "--", "printf", "%s|", *odd, cwd=tmp_path)
    assert done.stdout == b"".join(item + b"|" for item in odd)
    shown = json.loads(cli("trace", "show", "--json").stdout)
    assert shown["command"]["argv"] == [
        "printf", "%s|", "a b", "q'\"", "new\nline", {"b64": "//4="}, "",
    ]  # fmt: skip


def test_stdin_is_forwarded_whole(tmp_path: Path) -> None:
    data = os.urandom(1_000_000)
    assert cli("run", "-q", "--", "cat", cwd=tmp_path, stdin=data).stdout == data


def test_stdin_that_nobody_writes_holds_nothing_up(tmp_path: Path) -> None:
    with subprocess.Popen(
        [*SUBSTRATE, "run", "-q", "--", "echo", "done"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=tmp_path,
    ) as process:
        assert process.wait(60) == 0
        assert process.stdout is not None
        assert process.stdout.read() == b"done\n"


def test_a_reader_that_goes_away_ends_the_command(tmp_path: Path) -> None:
    script = f"{' '.join(map(repr, SUBSTRATE))} run -q -n -- yes | head -n 1"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {script}"],
        check=False, capture_output=True, cwd=tmp_path, timeout=60,
    )  # fmt: skip
    assert done.stdout == b"y\n"
    assert done.returncode == 128 + signal.SIGPIPE
    assert done.stderr == b""


def test_interrupts_reach_the_command_and_the_second_kills(tmp_path: Path) -> None:
    script = 'trap "echo caught" INT; echo up; while :; do sleep 60 & wait; done'
    with subprocess.Popen(
        [*SUBSTRATE, "run", "-q", "--", "sh", "-c", script],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        cwd=tmp_path,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == b"caught\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 137


def test_a_world_that_stays_keeps_what_was_done_in_it(git_checkout: Path) -> None:
    world = cli("world", "create", cwd=git_checkout).stdout.decode().strip()
    assert world.startswith("wld_")
    assert cli("world", "exec", world, "--", "sh", "-c", "echo 1 > a").returncode == 0
    assert cli("run", "-q", "--in", world, "--", "cat", "a").stdout == b"1\n"
    assert cli("-c", "cat a", SUBSTRATE_WORLD_ID=world).stdout == b"1\n"
    (listed,) = json.loads(cli("world", "list", "--json").stdout)["worlds"]
    assert (listed["world_id"], listed["steps"], listed["keep"]) == (world, 3, True)
    assert b"+1" in cli("diff", world).stdout
    assert cli("world", "rm", world).returncode == 0
    assert cli("world", "rm", world).returncode == 0  # it is gone, which is what was asked for
    gone = cli("run", "--in", world, "--", "true")
    assert gone.returncode == 125
    assert len(gone.stderr.splitlines()) == 1


def test_worlds_go_with_their_run_unless_they_are_kept(tmp_path: Path) -> None:
    cli("run", "-q", "--", "true", cwd=tmp_path)
    assert json.loads(cli("world", "list", "--json").stdout)["worlds"] == []
    cli("run", "-q", "--keep", "--", "true", cwd=tmp_path)
    assert len(json.loads(cli("world", "list", "--json").stdout)["worlds"]) == 1
    assert cli("world", "rm", "--all").returncode == 0


def test_a_policy_denies_and_names_its_rule(tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text("version: 1\nrules:\n  - id: no-rm\n    action: deny\n    command: rm:*\n")
    done = cli("run", "--policy", str(policy), "--", "rm", "x", cwd=tmp_path)
    if b"policy.yaml:" in done.stderr and b"no-rm" not in done.stderr:
        pytest.fail(f"the policy is not understood: {done.stderr.decode()}")
    assert done.returncode == 126
    assert b"no-rm" in done.stderr
    shown = json.loads(
        cli("run", "--json", "--policy", str(policy), "--", "rm", "x", cwd=tmp_path).stdout
    )
    assert (shown["termination_reason"], shown["decision"]["rule"]) == ("DENIED", "no-rm")
    assert cli("policy", "check", str(policy)).returncode == 0
    explained = cli("policy", "explain", "--policy", str(policy), "-c", "true && rm x")
    assert b"deny" in explained.stdout
    policy.write_text("version: 1\nrules: 3\n")
    broken = cli("run", "--policy", str(policy), "--", "true", cwd=tmp_path)
    assert broken.returncode == 125
    assert len(broken.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "args", [["--net", "full:x"], ["--profile", "none-such"]], ids=["network", "profile"]
)
def test_what_the_host_cannot_do_is_refused_in_one_line(tmp_path: Path, args: list[str]) -> None:
    done = cli("run", *args, "--", "true", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (125, b"")
    (line,) = done.stderr.decode().splitlines()
    assert args[1] in line
    assert "Traceback" not in line


class Terminal:
    """The command on a terminal of its own."""

    def __init__(self, *args: str, rows: int, columns: int, cwd: Path) -> None:
        self.fd, child = pty.openpty()
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.before = termios.tcgetattr(child)
        self.child = child
        self.process = subprocess.Popen(
            [*SUBSTRATE, *args],
            stdin=child, stdout=child, stderr=child, cwd=cwd, start_new_session=True,
            env={**os.environ, "TERM": "xterm"},
        )  # fmt: skip
        self.seen = b""

    def expect(self, text: bytes, patience_s: float = 60.0) -> None:
        deadline = time.monotonic() + patience_s
        while text not in self.seen:
            left_s = max(0.0, deadline - time.monotonic())
            ready, _, _ = select.select([self.fd], [], [], left_s)
            assert ready, f"{text!r} did not come, only {self.seen!r}"
            self.seen += os.read(self.fd, 4096)
        self.seen = self.seen.partition(text)[2]

    def type(self, text: bytes) -> None:
        os.write(self.fd, text)

    def end(self) -> int:
        code = self.process.wait(60)
        assert termios.tcgetattr(self.child) == self.before, "the terminal is not as it was"
        return code

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.child)
        os.close(self.fd)


def test_on_a_terminal_the_command_has_one(tmp_path: Path) -> None:
    with Terminal("run", "--", "sh", rows=33, columns=99, cwd=tmp_path) as terminal:
        terminal.type(b"PS1=; stty size; echo t$((40 + 2))\n")
        terminal.expect(b"33 99")
        terminal.expect(b"t42")
        fcntl.ioctl(terminal.fd, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
        terminal.process.send_signal(signal.SIGWINCH)
        # It may arrive after the next key strokes: ask until it has.
        terminal.type(b"until stty size | grep '40 120'; do sleep 0.05; done\n")
        terminal.expect(b"40 120\r")
        terminal.type(b"echo go; sleep 60; echo inter$((1 + 1))\n")
        terminal.expect(b"go\r")
        terminal.type(b"\x03")
        terminal.type(b"echo again$((2 + 2))\n")
        terminal.expect(b"again4")
        terminal.type(b"exit 7\n")
        terminal.expect(b"exit 7")
        terminal.expect(b"substrate replay ")
        assert terminal.end() == 7


def test_the_terminal_is_as_it_was_when_the_command_is_killed(tmp_path: Path) -> None:
    command = ("run", "-q", "--", "sh", "-c", "echo up; sleep 60")
    with Terminal(*command, rows=24, columns=80, cwd=tmp_path) as terminal:
        terminal.expect(b"up")
        terminal.process.send_signal(signal.SIGTERM)
        assert terminal.end() == 128 + signal.SIGTERM


def test_a_plain_command_imports_only_what_it_uses(tmp_path: Path) -> None:
    """What is imported is most of what the command line costs: docs/BENCHMARKS.md."""
    assert cli("up").returncode == 0  # starting a host takes more than using one
    script = 'import sys; from substrate_sdk.cli import main; sys.argv[1:] = ["-c", "true"]; main()'
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", script],
        check=True,
        capture_output=True,
        cwd=tmp_path,
        timeout=120,
    )
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.decode().splitlines()}
    assert "substrate_sdk.client.unix_transport" in imported  # it did talk to the host
    heavy = (
        "asyncio",
        "google.protobuf.internal.python_message",
        "google.protobuf.text_format",
        "grpc",
        "inspect",
        "json",
        "opentelemetry",
        "shutil",
        "subprocess",
        "substrate_sdk._commits",
        "substrate_sdk._files",
        "substrate_sdk._tar",
        "substrate_sdk._worlds",
        "substrate_sdk.records",
        "tempfile",
        "urllib.parse",
    )
    assert not imported.intersection(heavy)
