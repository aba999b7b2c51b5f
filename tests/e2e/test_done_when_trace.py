"""Issue 2, done when 3: ``trace.jsonl`` holds real lines that jq reads."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.users import User, new_user

pytestmark = pytest.mark.needs_jq


def shell(user: User, script: str, cwd: Path, **env: str) -> str:
    """A line of a user's shell, with ``substrate`` on the PATH; its standard output."""
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", script],
        check=False,
        cwd=cwd,
        env=user.env(env),
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def listed(user: User, git_checkout: Path) -> User:
    """A user who has run ``SUBSTRATE_WORLD=enabled substrate -c ls``."""
    done = user.run("-c", "ls", cwd=git_checkout, env={"SUBSTRATE_WORLD": "enabled"})
    assert (done.code, done.out) == (0, "README.md\n")
    return user


def test_jq_shows_the_last_lines(listed: User, git_checkout: Path) -> None:
    shown = shell(listed, 'tail -5 "$SUBSTRATE_HOME/trace.jsonl" | jq -c .', git_checkout)
    lines = [json.loads(line) for line in shown.splitlines()]
    assert len(lines) == 5
    assert all(line["event_type"] for line in lines)


def test_jq_finds_what_the_command_did_to_files(listed: User, git_checkout: Path) -> None:
    query = """jq -c 'select(.event_type == "syscall")' "$SUBSTRATE_HOME/trace.jsonl" """
    events = [json.loads(line) for line in shell(listed, query, git_checkout).splitlines()]
    span = listed.spans()[-1]["span_id"]
    events = [event for event in events if event["span_id"] == span]
    opened = [event for event in events if event.get("path") == str(git_checkout)]
    assert opened, "ls opens the directory that it lists"
    for event in events:
        assert re.fullmatch("[0-9a-f]{16}", event["process_span"])
        assert event["span_id"] == span
        assert event["syscall"]
        assert event["source"] in ("self_reported", "kernel")


def test_every_line_is_an_object_with_sequence_version_and_type(
    listed: User, git_checkout: Path
) -> None:
    listed.run("-c", "echo more | tr a-z A-Z; ls /nonexistent", cwd=git_checkout)
    lines = listed.lines()
    # The writer's own lines take no number (docs/TRACE.md).
    numbers = [line["seq"] for line in lines if not line["event_type"].startswith("journal_")]
    assert numbers == list(range(1, len(numbers) + 1))
    assert {line["v"] for line in lines} == {lines[0]["v"]}
    assert all(isinstance(line["event_type"], str) and line["event_type"] for line in lines)


def test_a_steps_lines_stand_in_order(user: User, git_checkout: Path) -> None:
    span = user.run_json("true", cwd=git_checkout)["span_id"]
    types = [line["event_type"] for line in user.lines() if line.get("span_id") == span]
    assert types[0] == "command_start"
    assert types[-1] == "command_complete"
    assert types.count("command_start") == types.count("command_complete") == 1


def test_the_chain_verifies_and_a_changed_byte_breaks_it(
    lone_user: User, git_checkout: Path
) -> None:
    lone_user.run_json("echo", "precious", cwd=git_checkout)
    whole = lone_user.run("trace", "verify", cwd=git_checkout)
    assert whole.code == 0, whole.err
    assert "intact" in whole.out
    lone_user.run("down", cwd=git_checkout)
    text = lone_user.trace.read_bytes()
    assert b"precious" in text
    lone_user.trace.write_bytes(text.replace(b"precious", b"previous", 1))
    broken = lone_user.run("trace", "verify", "--json", cwd=git_checkout)
    assert broken.code == 1
    assert broken.json["intact"] is False
    assert broken.json["findings"]


def test_show_prints_the_tree_of_processes(user: User, git_checkout: Path) -> None:
    script = "sh -c 'cat README.md | wc -l'; exit 4"
    span = user.run_json("sh", "-c", script, cwd=git_checkout)["span_id"]
    shown = user.run("trace", "show", span, cwd=git_checkout).out
    assert "exit 4" in shown
    assert re.search(r"└─ .*cat README.md|├─ .*cat README.md", shown), shown
    assert "wc -l" in shown


def test_ls_lists_steps_last_first_or_last(user: User, git_checkout: Path) -> None:
    spans = [user.run_json("echo", str(n), cwd=git_checkout)["span_id"] for n in range(2)]
    shown = user.run("trace", "ls", cwd=git_checkout).out
    assert all(span in shown for span in spans)


def test_all_events_of_a_step_are_one_json_object_a_line(user: User, git_checkout: Path) -> None:
    span = user.run_json("cat", "README.md", cwd=git_checkout)["span_id"]
    done = user.run("trace", "events", "--all", span, cwd=git_checkout)
    events = [json.loads(line) for line in done.out.splitlines()]
    assert any(event.get("path") == str(git_checkout / "README.md") for event in events)
    assert {event["span_id"] for event in events} == {span}


def test_recorded_output_is_printed_again(user: User, git_checkout: Path) -> None:
    script = r"printf '\000\377out'; printf 'err' >&2"
    span = user.run_json("bash", "-c", script, cwd=git_checkout)["span_id"]
    done = user.run("trace", "show", "--output", span, cwd=git_checkout)
    assert (done.stdout, done.stderr) == (b"\0\xffout", b"err")


def test_a_span_says_what_was_asked(user: User, git_checkout: Path) -> None:
    result = user.run_json("sh", "-c", "exit 0", cwd=git_checkout, options=("--agent", "tester"))
    (line,) = [line for line in user.spans() if line["span_id"] == result["span_id"]]
    assert line["agent_id"] == "tester"
    assert line["trace_id"] == result["trace_id"]
    assert line["session_id"] == result["session_id"]
    assert str(git_checkout) in json.dumps(line)


def test_the_trace_file_can_be_put_elsewhere(git_checkout: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere.jsonl"
    with new_user() as other:
        done = other.run("-c", "true", cwd=git_checkout, env={"SHIM_TRACE_LOG": str(elsewhere)})
        assert done.code == 0, done.err
        types = [json.loads(line)["event_type"] for line in elsewhere.read_text().splitlines()]
        assert "command_complete" in types
        assert not other.trace.exists()


def test_nobody_else_can_read_the_records(listed: User) -> None:
    assert listed.substrate_home.stat().st_mode & 0o077 == 0
    assert listed.trace.stat().st_mode & 0o077 == 0
    for directory in ("objects", "worlds"):
        assert os.stat(listed.substrate_home / directory).st_mode & 0o077 == 0


def test_worlds_decisions_and_processes_are_in_the_journal(
    listed: User, git_checkout: Path
) -> None:
    listed.run_json("true", cwd=git_checkout)
    found = {str(line["event_type"]) for line in listed.lines()}
    assert {"world_created", "world_removed", "policy_decision"} <= found
    assert {"world_process_start", "world_process_exit"} <= found
