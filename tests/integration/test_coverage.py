"""Coverage of real steps: what the kernel and the tree say is held against what programs say."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from substrate_sdk import Result, Substrate
from substrate_sdk.client.sync import World
from tests.native.recording import compile_c
from tests.users import User, eventually, kill_and_wait, read_some

SOURCES = Path(__file__).parents[2] / "native" / "tests"
STATIC = r"""
#include <fcntl.h>
#include <unistd.h>
int main(int count, char **arguments) {
    if (count > 1) {
        int fd = open(arguments[1], O_WRONLY | O_CREAT, 0644);
        if (fd < 0 || write(fd, "x", 1) != 1) return 1;
    }
    return 5;
}
"""
GO = 'package main\n\nimport "os"\n\nfunc main() { os.WriteFile("by-go", nil, 0o644) }\n'
FORGERY = """
import os
directory = "/run/substrate/seg"
name = next(n for n in os.listdir(directory) if n.startswith(f"{os.getpid()}-"))
content = bytearray(open(f"{directory}/{name}", "rb").read())
parts = name.split("-")
other = int(parts[0]) + 100_000
content[40:44] = other.to_bytes(4, "little")  # sub_segment.self.pid
open(f"{directory}/" + "-".join([str(other), *parts[1:]]), "wb").write(content)
"""

#: In the name of a process that lives, has segments of its own, and did not make this one.
LIVING_FORGERY = """
import os, subprocess
directory = "/run/substrate/seg"
other = subprocess.Popen(["sh", "-c", "echo; read line"], stdin=subprocess.PIPE, stdout=-1)
other.stdout.readline()
name = next(n for n in os.listdir(directory) if n.startswith(f"{other.pid}-"))
content = bytearray(open(f"{directory}/{name}", "rb").read())
content[48:52] = (9).to_bytes(4, "little")  # sub_segment.chain
open(f"{directory}/" + "-".join([*name.split("-")[:3], "9", "0"]), "wb").write(content)
other.communicate(b"\\n")
"""


@pytest.fixture
def sub(user: User) -> Iterator[Substrate]:
    with user.client() as made:
        yield made


@pytest.fixture
def project(git_checkout: Path) -> Path:
    """A checkout with a program that leaves no trace in libc, and a static one."""
    compile_c(SOURCES / "rawfork.c", git_checkout / "rawfork")
    compile_c(STATIC, git_checkout / "quiet", "-static")
    return git_checkout


@pytest.fixture
def world(sub: Substrate, project: Path) -> Iterator[World]:
    if os.geteuid() != 0:
        pytest.skip("the ledger needs root")
    with sub.world(project=project, cwd=project) as made:
        first = made.run("true")
        if first.coverage.ledger == "none":
            pytest.skip("no kernel ledger here")
        yield made


def reasons(result: Result) -> str:
    return "; ".join(result.coverage.reasons)


def test_a_static_child_of_raw_system_calls_is_named(world: World) -> None:
    result = world.run("./rawfork ./quiet")
    assert result.exit_code == 5
    assert result.coverage.state == "partial"
    assert result.coverage.processes == result.coverage.covered + 1
    assert "quiet" in reasons(result)
    assert "static" in reasons(result)


def test_what_a_static_program_writes_is_named(world: World) -> None:
    result = world.run("./quiet made; true")
    assert result.coverage.state == "partial"
    assert "1 changes that no event explains" in reasons(result)
    assert "/made" in reasons(result)


def test_what_a_covered_program_writes_past_libc_is_named(world: World) -> None:
    result = world.run("./rawfork --write raw")
    assert [change.path.endswith("/raw") for change in result.changes] == [True]
    assert result.coverage.state == "partial"
    assert result.coverage.processes == result.coverage.covered
    assert "/raw" in reasons(result)


@pytest.mark.slow
def test_a_program_of_go_is_named_and_so_is_its_change(world: World, project: Path) -> None:
    go = shutil.which("go") or "/usr/local/go/bin/go"
    if not os.access(go, os.X_OK):
        pytest.skip("no Go here")
    (project / "main.go").write_text(GO)
    environment = {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-mod=mod"}
    command = [go, "build", "-o", str(project / "gopher"), "main.go"]
    subprocess.run(command, check=True, cwd=project, env=environment, capture_output=True)
    result = world.run("./gopher && true")
    assert result.coverage.state == "partial"
    assert "gopher" in reasons(result)
    assert "/by-go" in reasons(result)


def test_removed_segments_are_told(world: World) -> None:
    result = world.run("rm -f /run/substrate/seg/*; true")
    assert result.coverage.state == "partial"
    assert "removed" in reasons(result)
    assert world.run("true").coverage.state == "full", "the next step pays for it"


@pytest.mark.parametrize("forgery", [FORGERY, LIVING_FORGERY], ids=["nobody", "living"])
def test_a_segment_in_another_s_name_is_found(world: World, forgery: str) -> None:
    result = world.run(["python3", "-c", forgery])
    assert result.exit_code == 0, result.stderr
    assert result.coverage.state == "partial"
    assert any("left out" in reason for reason in result.coverage.reasons), reasons(result)


@pytest.mark.parametrize(
    "script",
    [
        "sed -i s/project/thing/ README.md",
        "tar cf /tmp/all.tar . && mkdir there && tar xf /tmp/all.tar -C there",
        "cp -a . /tmp/copy",
        "git -c user.name=a -c user.email=a@b commit -qam more --allow-empty && git gc -q",
        "git clone -q . /tmp/clone",
        "mkdir -p d/e && echo x >d/e/f && mv d g && rm -r g/e",
        "mkdir real && ln -s real link && echo x >link/file && rm link/file",
        "ln README.md hard && echo more >>hard",
        "touch a && install -m 755 a b && chmod 600 b && touch -d yesterday a && truncate -s 9 a",
        "echo x >/tmp/x; python3 -c 'import json, this' >/dev/null",
        "python3 -c \"import sqlite3; sqlite3.connect('db').execute('create table t(a)')\"",
        "printf 'a:\\n\\techo x >a\\n' >Makefile && make -j2 a",
    ],
)
def test_ordinary_commands_are_seen_in_full(world: World, script: str) -> None:
    result = world.run(script)
    assert result.exit_code == 0, result.stderr
    assert result.coverage.state == "full", reasons(result)
    assert result.coverage.ledger in ("bpf", "proc_connector")


@pytest.mark.slow
def test_an_installation_is_seen_in_full(world: World) -> None:
    result = world.run("/usr/bin/python3 -m venv --without-pip /tmp/v && /tmp/v/bin/python -c ''")
    assert result.exit_code == 0, result.stderr
    assert result.coverage.state == "full", reasons(result)


def test_the_ledger_goes_on_while_no_host_runs(
    lone_user: User, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if os.geteuid() != 0:
        pytest.skip("the ledger needs root")
    with lone_user.embedded(monkeypatch) as sub:
        made = sub.world(project=project, cwd=project, keep=True)
        proc = made.exec("echo begun; sleep 1; ./rawfork ./quiet; exit 0", exec_id="alone")
        assert read_some(proc) == b"begun\n"
    kill_and_wait(lone_user.host_pid())
    lone_user.up()
    (line,) = eventually(
        lambda: [span for span in lone_user.spans() if "rawfork" in str(span["cmd"])], "the span"
    )
    assert line["coverage"]["ledger"] in ("bpf", "proc_connector")
    assert "quiet" in str(line["coverage"]["reasons"])


def test_classes_that_were_switched_off_are_said(sub: Substrate, project: Path) -> None:
    with sub.world(project=project, cwd=project, telemetry=["open", "mutate"]) as made:
        result = made.run("ls >/dev/null; echo x >made")
    assert result.coverage.state == "partial"
    assert result.coverage.classes_off == ("network", "stat", "transfer", "load", "sources")
    assert "as was asked for" in reasons(result)


def test_the_host_s_policy_says_what_is_recorded_by_default(user: User, project: Path) -> None:
    policies = user.substrate_home / "policies"
    policies.mkdir(parents=True)
    (policies / "less.yaml").write_text("version: 1\ntelemetry: {classes: [open]}\n")
    with user.client() as sub:
        with sub.world(project=project, cwd=project) as made:
            assert "mutate" in made.run("ls >/dev/null").coverage.classes_off
        with sub.world(project=project, cwd=project, telemetry=["mutate"]) as made:
            assert "mutate" not in made.run("ls >/dev/null").coverage.classes_off
