"""Issue 2, done when 4: what is run is what was asked for, byte for byte, and again in a replay."""

from __future__ import annotations

import hashlib
import os
import shlex
import subprocess
from base64 import b64decode
from pathlib import Path

import pytest

from tests.users import PYTHON, Json, User

#: Prints every argument and nothing else, each ended by a null byte.
PRINT = "import os, sys; os.write(1, b''.join(os.fsencode(a) + b'\\0' for a in sys.argv[1:]))"
AWKWARD = (
    b"plain",
    b"with spaces",
    b"",
    b"'single' and \"double\"",
    b"line\nbreak\r\n\ttab",
    b"back\\slash $HOME `id` $(id) * ? [a] {b}",
    b"\xff\xfe not UTF-8 \x80",
    "grüße 🚀".encode(),
    b"\x01\x1b[31m\x7f",
    b"--json",
    b"--",
    b"-c",
)


def raw_of(result: Json, stream: str = "stdout") -> bytes:
    """The exact bytes of a stream in the JSON of a run."""
    exact = result.get(f"{stream}_b64")
    return b64decode(exact) if exact is not None else str(result[stream]).encode()


def assert_identical(user: User, span: str, cwd: Path) -> None:
    code, report = user.replay(span, cwd=cwd)
    assert (code, report["verdict"]) == (0, "identical"), report


def test_an_exit_code_of_a_login_shell_replays(user: User, git_checkout: Path) -> None:
    result = user.run_json("bash", "-lc", "exit 3", cwd=git_checkout)
    assert result["exit_code"] == 3
    code, report = user.replay(result["span_id"], cwd=git_checkout)
    assert (code, report["verdict"]) == (0, "identical"), report
    with user.client() as sub:
        assert sub.span(report["runs"][0]["span_id"]).result.exit_code == 3


def test_arguments_survive_byte_for_byte(user: User, git_checkout: Path) -> None:
    result = user.run_json(PYTHON, "-c", PRINT, *AWKWARD, cwd=git_checkout)
    assert result["exit_code"] == 0, result["stderr"]
    assert raw_of(result) == b"".join(word + b"\0" for word in AWKWARD)
    assert_identical(user, result["span_id"], git_checkout)


def test_arguments_are_in_the_record_byte_for_byte(user: User, git_checkout: Path) -> None:
    span = user.run_json("true", *AWKWARD, cwd=git_checkout)["span_id"]
    with user.client() as sub:
        recorded = sub.span(span)
    assert recorded.argv == (b"true", *AWKWARD)


def test_a_shell_string_survives_byte_for_byte(user: User, git_checkout: Path) -> None:
    script = b"printf '%s' '\xff\n\t\"x\"' \"$0\"; printf ' %s' \\\n  joined"
    done = user.run("-c", script, cwd=git_checkout)
    assert done.stdout.startswith(b'\xff\n\t"x"')
    assert done.stdout.endswith(b" joined")
    with user.client() as sub:
        recorded = sub.span("@last")
    assert recorded.shell == script
    assert_identical(user, recorded.span_id, git_checkout)


@pytest.mark.parametrize("size", [0, 1, 200_000])
def test_binary_standard_input_is_recorded_and_replayed(
    user: User, git_checkout: Path, size: int
) -> None:
    data = os.urandom(size)
    result = user.run_json("sha256sum", cwd=git_checkout, stdin=data)
    assert result["stdout"].split()[0] == hashlib.sha256(data).hexdigest()
    assert_identical(user, result["span_id"], git_checkout)


def test_standard_input_that_the_command_does_not_read_is_no_failure(
    user: User, git_checkout: Path
) -> None:
    result = user.run_json("true", cwd=git_checkout, stdin=b"x" * 1_000_000)
    assert result["exit_code"] == 0


def test_a_command_that_reads_part_of_its_input_replays(user: User, git_checkout: Path) -> None:
    lines = b"".join(b"line %d\n" % n for n in range(50_000))
    result = user.run_json("head", "-n", "1", cwd=git_checkout, stdin=lines)
    assert result["stdout"] == "line 0\n"
    assert_identical(user, result["span_id"], git_checkout)


def test_without_standard_input_a_command_sees_its_end(user: User, git_checkout: Path) -> None:
    result = user.run_json("cat", cwd=git_checkout, options=("--no-stdin",))
    assert (result["exit_code"], result["stdout"]) == (0, "")


def test_binary_output_comes_through_on_both_streams(user: User, git_checkout: Path) -> None:
    script = "import os; os.write(1, bytes(range(256))); os.write(2, bytes(range(255, -1, -1)))"
    done = user.run("run", "-q", "--", PYTHON, "-c", script, cwd=git_checkout)
    assert done.stdout == bytes(range(256))
    assert done.stderr == bytes(range(255, -1, -1))


def test_large_output_comes_through_whole(user: User, git_checkout: Path) -> None:
    script = "import sys; sys.stdout.write('0123456789abcde\\n' * 1_000_000)"
    done = user.run("run", "-q", "--", PYTHON, "-c", script, cwd=git_checkout)
    assert hashlib.sha256(done.stdout).digest() == (
        hashlib.sha256(b"0123456789abcde\n" * 1_000_000).digest()
    )


def test_environment_with_odd_bytes_is_recorded_and_replayed(
    user: User, git_checkout: Path
) -> None:
    script = "import os; os.write(1, os.environb[b'ODD'] + b'|' + os.environb.get(b'EMPTY', b'?'))"
    odd = b"a\xff b=c\n'\""
    options = (b"--env", b"ODD=" + odd, b"--env", b"EMPTY=")
    done = user.run("run", "--json", *options, "--", PYTHON, "-c", script, cwd=git_checkout)
    assert raw_of(done.json) == odd + b"|"
    assert_identical(user, done.json["span_id"], git_checkout)


def test_the_callers_secrets_do_not_come_along(user: User, git_checkout: Path) -> None:
    result = user.run_json(
        "env",
        cwd=git_checkout,
        env={"AWS_SECRET_ACCESS_KEY": "hunter2", "GITHUB_TOKEN": "hunter2", "LC_ALL": "C.UTF-8"},
    )
    assert "hunter2" not in result["stdout"]
    assert "LC_ALL=C.UTF-8" in result["stdout"]
    assert "hunter2" not in user.trace.read_text()


def test_a_command_is_told_its_place_in_the_trace_and_a_replay_the_recorded_one(
    user: User, git_checkout: Path
) -> None:
    result = user.run_json("sh", "-c", "echo $TRACEPARENT", cwd=git_checkout)
    assert result["stdout"].strip() == f"00-{result['trace_id']}-{result['span_id']}-01"
    assert_identical(user, result["span_id"], git_checkout)


def test_the_working_directory_is_the_callers_and_is_replayed(
    user: User, git_checkout: Path
) -> None:
    odd = git_checkout / os.fsdecode(b"sub dir \xff\n")
    odd.mkdir()
    done = user.run("run", "--json", "--", "pwd", cwd=odd)
    assert raw_of(done.json) == os.fsencode(odd) + b"\n"
    assert_identical(user, done.json["span_id"], Path("/"))


def test_a_relative_working_directory_counts_from_the_callers(
    user: User, git_checkout: Path
) -> None:
    (git_checkout / "sub").mkdir()
    result = user.run_json("pwd", cwd=git_checkout, options=("--cwd", "sub"))
    assert result["stdout"] == f"{git_checkout}/sub\n"


def test_the_umask_is_recorded_and_replayed(user: User, git_checkout: Path) -> None:
    with user.client() as sub, sub.world(project=git_checkout, cwd=git_checkout) as world:
        result = world.run("umask; touch made", umask=0o027)
    assert result.stdout == "0027\n"
    (change,) = result.changes
    assert change.after is not None
    assert change.after.mode == 0o640
    assert_identical(user, result.span_id, git_checkout)


def test_a_signal_ends_as_a_shell_would_say_it(user: User, git_checkout: Path) -> None:
    done = user.run("run", "--json", "--", "sh", "-c", "kill -TERM $$", cwd=git_checkout)
    assert done.code == 128 + 15
    assert (done.json["exit_code"], done.json["signal"]) == (None, "SIGTERM")
    assert done.json["termination_reason"] == "SIGNALED"
    assert_identical(user, done.json["span_id"], git_checkout)


def test_a_program_that_is_not_there_is_said_to_people(user: User, git_checkout: Path) -> None:
    done = user.run("run", "-q", "--", "no-such-program", "x", cwd=git_checkout)
    assert done.code == 127
    assert done.error_line.startswith("substrate: cannot execute no-such-program: ")


def test_a_program_that_is_not_there_is_a_result_as_in_a_shell(
    user: User, git_checkout: Path
) -> None:
    done = user.run("run", "--json", "--", "no-such-program", "x", cwd=git_checkout)
    assert done.code == 127
    assert "no-such-program" in done.json["stderr"]


def test_a_file_that_is_no_program_is_126_and_not_a_denial(user: User, git_checkout: Path) -> None:
    done = user.run("run", "--json", "--", "./README.md", cwd=git_checkout)
    assert done.code == 126
    assert done.json["termination_reason"] == "EXITED"
    assert done.json["decision"]["action"] == "allow"


def test_a_command_line_copied_from_the_record_runs_the_same(
    user: User, git_checkout: Path
) -> None:
    """Quoting in the summary's command is a shell's: it can be pasted."""
    span = user.run_json("printf", "%s|", "a b", "c'd", "", cwd=git_checkout)["span_id"]
    shown = user.run("trace", "show", span, cwd=git_checkout).out
    (line,) = [line for line in shown.splitlines() if line.startswith("command")]
    assert shlex.split(line)[1:] == ["printf", "%s|", "a b", "c'd", ""]


def test_git_works_in_a_world_as_on_the_host(user: User, git_checkout: Path) -> None:
    (git_checkout / "README.md").write_text("edited\n")
    here = subprocess.run(
        ["git", "status", "--short"],
        cwd=git_checkout,
        check=True,
        capture_output=True,
        text=True,
        env=user.env(),
    ).stdout
    result = user.run_json("git", "status", "--short", cwd=git_checkout)
    assert (result["exit_code"], result["stdout"]) == (0, here), result["stderr"]
