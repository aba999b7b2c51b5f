"""The embedded host: started once, shared, survived; and the record that it keeps."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from substrate_sdk import AsyncSubstrate, Substrate, errors
from tests.conftest import SUBSTRATE
from tests.e2e.test_cli_run import cli

pytestmark = pytest.mark.timeout(180)


def test_many_who_come_at_once_share_one_host(substrate_home: Path) -> None:
    children = [
        subprocess.Popen([*SUBSTRATE, "up", "--json"], stdout=subprocess.PIPE) for _ in range(6)
    ]
    answers = [json.loads(child.communicate(timeout=60)[0]) for child in children]
    assert len({answer["pid"] for answer in answers}) == 1
    assert answers[0]["home"] == str(substrate_home)
    assert (substrate_home / "run" / "host.pid").read_text().strip() == str(answers[0]["pid"])


def test_a_host_comes_up_and_goes_down(substrate_home: Path) -> None:
    assert b"is ready at unix://" in cli("up").stdout
    assert b"is ready at" in cli("up").stdout
    ended = cli("down", "--worlds", "--json")
    assert json.loads(ended.stdout)["ended"] is not None
    assert not [path for path in (substrate_home / "run").iterdir() if path.name == "host.pid"]
    assert cli("down").stdout == b"no host runs\n"


def test_down_removes_worlds_when_asked(substrate_home: Path, tmp_path: Path) -> None:
    del substrate_home
    world = cli("world", "create", cwd=tmp_path).stdout.decode().strip()
    assert cli("down").returncode == 0
    assert world.encode() in cli("world", "list").stdout  # it outlived the host
    shown = json.loads(cli("down", "--worlds", "--json").stdout)
    assert shown["removed"] == [world]


def test_the_host_is_killed_and_the_command_goes_on(substrate_home: Path, tmp_path: Path) -> None:
    script = "echo a; sleep 2; echo done; exit 5"
    with subprocess.Popen(
        [*SUBSTRATE, "run", "-q", "--", "sh", "-c", script],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=tmp_path,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"a\n"
        os.kill(int((substrate_home / "run" / "host.pid").read_text()), signal.SIGKILL)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (5, b"done\n", b"")
    shown = json.loads(cli("trace", "show", "--json").stdout)
    assert (shown["exit_code"], shown["command"]["argv"][-1]) == (5, script)
    assert cli("trace", "show", "--output").stdout == b"a\ndone\n"


def test_a_host_that_cannot_start_says_why(substrate_home: Path) -> None:
    substrate_home.mkdir(parents=True)
    (substrate_home / "trace.jsonl").mkdir()  # nothing can be recorded there
    done = cli("run", "--", "true")
    assert (done.returncode, done.stdout) == (125, b"")
    (line,) = done.stderr.decode().splitlines()
    assert "the host did not start: " in line
    assert "host.log" in line
    shown = cli("doctor")
    assert shown.returncode == 1
    assert b"the host did not start" in shown.stdout
    assert b"overlay" in shown.stdout


def test_a_client_without_the_host_software_says_what_to_install(substrate_home: Path) -> None:
    del substrate_home
    script = (
        "import importlib.util as u, sys\n"
        "find = u.find_spec\n"
        "u.find_spec = lambda n, *r: None if n == 'substrate_services' else find(n, *r)\n"
        "from substrate_sdk.cli import main; sys.exit(main(['run', '--', 'true']))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True)
    assert done.returncode == 125
    assert b"pip install 'substrate-recorder[host]'" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_doctor_says_what_works(substrate_home: Path) -> None:
    del substrate_home
    shown = json.loads(cli("doctor", "--json").stdout)
    states = {item["feature"]: item["state"] for item in shown["capabilities"]}
    assert states["host"] == "works"
    assert set(states.values()) <= {"works", "degraded", "missing"}
    for item in shown["capabilities"]:
        if item["state"] != "works":
            assert item["consequence"]


def test_what_was_recorded_is_shown(substrate_home: Path, git_checkout: Path) -> None:
    del substrate_home
    cli("run", "-q", "--", "sh", "-c", "cat README.md; touch made; exit 2", cwd=git_checkout)
    span = json.loads(cli("trace", "show", "@last", "--json").stdout)
    listed = cli("trace", "ls").stdout.decode().splitlines()
    assert listed[0].split()[0] == "SPAN"
    assert listed[1].startswith(span["span_id"])
    tree = cli("trace", "show", span["span_id"][:8]).stdout.decode()
    assert "exit 2" in tree
    assert "└─ touch made" in tree
    assert "+ made" in tree
    bounded = cli("trace", "events").stdout.splitlines()
    assert any(json.loads(line)["event_type"] == "syscall" for line in bounded)
    assert cli("trace", "events", "--all").returncode == 0
    assert cli("trace", "show", "--output").stdout == (git_checkout / "README.md").read_bytes()
    assert cli("trace", "verify").returncode == 0
    missing = cli("trace", "show", "0123456789abcdef")
    assert missing.returncode == 125
    assert b"0123456789abcdef" in missing.stderr


def test_a_replay_says_what_it_found(substrate_home: Path, git_checkout: Path) -> None:
    del substrate_home
    cli("run", "-q", "--", "sh", "-c", "echo hi > made; exit 3", cwd=git_checkout)
    same = cli("replay", "--json")
    assert (same.returncode, json.loads(same.stdout)["verdict"]) == (0, "identical")
    random = "od -An -N8 -tx8 /dev/urandom | tee made"
    span = json.loads(cli("run", "--json", "--", "sh", "-c", random, cwd=git_checkout).stdout)
    other = cli("replay", span["span_id"])
    assert other.returncode == 1
    assert other.stdout.startswith(b"diverged")
    shown = json.loads(cli("replay", span["span_id"], "--json").stdout)
    assert {item["dimension"] for item in shown["divergences"]} >= {"stdout", "changes"}
    assert shown["first"] is not None
    assert cli("replay", "0123456789abcdef").returncode == 2


def test_the_readme_is_true(
    substrate_home: Path, git_checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del substrate_home
    monkeypatch.chdir(git_checkout)
    with Substrate() as sub:
        with sub.world() as world:
            result = world.run("echo hi; echo there > made", timeout_s=60)
            assert (result.exit_code, result.stdout) == (0, "hi\n")
            assert [os.path.basename(change.path) for change in result.changes] == ["made"]
            assert result.coverage.state in ("full", "partial")
            written = world.files.write("notes.txt", b"kept in the world")
            assert written.span_id
            assert world.files.read("notes.txt") == b"kept in the world"
            with pytest.raises(FileNotFoundError):
                world.files.read("none.txt")
            proc = world.exec(["python3", "-i"])
            proc.stdin.write(b"print(6 * 7)\n")
            proc.stdin.close()
            assert proc.wait(60).stdout == "42\n"
            assert {os.path.basename(c.path) for c in world.diff().changes} >= {"made", "notes.txt"}
            assert b"kept in the world" in world.diff().patch()
            with pytest.raises(errors.WorldNotFound):
                sub.connect("wld_" + "a" * 26)
        report = sub.replay(span=result.span_id)
        assert (report.verdict, report.first) == ("identical", None)
        assert sub.span(result).argv[-1].endswith(b"made")
        kinds = [span.kind for span in sub.spans(world_id=world.world_id)]
        assert "files.write" in kinds
        assert list(sub.events(result))


def test_the_readme_is_true_when_awaited(substrate_home: Path, tmp_path: Path) -> None:
    del substrate_home

    async def act() -> None:
        async with AsyncSubstrate() as sub, sub.world(cwd=tmp_path) as world:
            result = await world.run(["sh", "-c", "cat; exit 3"], stdin=b"in")
            assert (result.exit_code, result.stdout) == (3, "in")
            assert (await sub.replay(result)).verdict == "identical"

    asyncio.run(act())
