"""Every hooked entry point is seen, with what it returned, and returns what it always did."""

from __future__ import annotations

import errno
import os
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from tests.native.recording import ROOT, Recorder, Recording, compile_c

#: Entry points that calls.c cannot tell the outcome of by their own result.
_STATUS_ONLY = {
    "execve", "execv", "execvp", "execvpe", "execl", "execlp", "execle", "fexecve", "execveat",
    "posix_spawn", "posix_spawnp", "system", "popen", "vfork",
}  # fmt: skip


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled native/tests/calls.c."""
    source = ROOT / "native" / "tests" / "calls.c"
    return compile_c(source, tmp_path_factory.mktemp("calls") / "calls", "-ldl")


@pytest.fixture(scope="module")
def outcome(
    calls: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[list[str]], Recording, Path]:
    """One run of it: the lines it printed, what was recorded, and where it ran."""
    cwd = tmp_path_factory.mktemp("work").resolve()
    recorder = Recorder(tmp_path_factory.mktemp("seg"))
    recording = recorder.run([calls], cwd=cwd)
    lines = [line.split("\t") for line in recording.stdout.decode().splitlines()]
    return lines, recording, cwd


def _error(number: str) -> str | None:
    return errno.errorcode[int(number)] if int(number) else None


def test_every_call_is_recorded_with_its_path_result_and_errno(
    outcome: tuple[list[list[str]], Recording, Path],
) -> None:
    lines, recording, _ = outcome
    missing = []
    for name, path, result, number in lines:
        if name in _STATUS_ONLY:
            continue
        expected = {"result": int(result), "error": _error(number)}
        found = [
            event
            for event in recording.calls(name)
            if (not path or event.get("path") == path)
            and event["result"] == expected["result"]
            and event.get("error") == expected["error"]
        ]
        if not found:
            missing.append((name, path, result, _error(number), recording.calls(name)))
    assert not missing
    assert recording.returncode == 3
    assert len(lines) > 80


def test_the_number_of_events_is_the_number_of_calls(
    outcome: tuple[list[list[str]], Recording, Path],
) -> None:
    lines, recording, _ = outcome
    called = Counter(line[0] for line in lines)
    root = recording.started()[0]["pid"]
    recorded = Counter(
        event["syscall"]
        for event in recording.events
        if event["event_type"] == "syscall" and event["pid"] == root
    )
    for name in (
        "openat",
        "fopen64",
        "creat",
        "mkdir",
        "unlink",
        "rename",
        "connect",
        "getaddrinfo",
    ):
        assert recorded[name] == called[name], name


def test_programs_are_recorded_with_arguments_and_become_processes(
    outcome: tuple[list[list[str]], Recording, Path],
) -> None:
    lines, recording, cwd = outcome
    assert all(line[2] == "7" for line in lines if line[0] in _STATUS_ONLY and line[3] == "0"), (
        lines
    )
    shells = [p for p in recording.summary.processes if p.argv == (b"sh", b"-c", b"exit 7")]
    assert len(shells) == 14  # nine execs, two spawns, system, popen, vfork
    root = recording.summary.processes[0]
    assert {p.parent_span_id for p in shells} == {root.span_id}
    assert {(p.exit_code, p.exec_no, p.cwd) for p in shells} == {(7, 1, os.fsencode(cwd))}
    assert all(p.coverage == "full" for p in recording.summary.processes)
    for name in ("execve", "execv", "execl", "execle", "execveat", "posix_spawn"):
        event = next(
            e for e in recording.calls(name) if e.get("path") == "/bin/sh" and not e.get("fault")
        )
        assert event["argv"] == ["sh", "-c", "exit 7"]
        assert len(event["env_digest"]) == 16
    spawn = recording.calls("posix_spawn")[0]
    assert spawn["file_actions"] == [
        {"action": "open", "fd": 1, "path": f"{cwd}/spawned", "flags": "O_WRONLY|O_CREAT"},
        {"action": "dup2", "fd": 1, "to": 2},
        {"action": "close", "fd": 0},
    ]


def test_failed_execs_and_bad_pointers_stay_with_the_caller(
    outcome: tuple[list[list[str]], Recording, Path],
) -> None:
    _, recording, _ = outcome
    failed = [e for e in recording.calls("execve") if e["result"] == -1]
    assert {e["error"] for e in failed} == {"ENOENT", "EFAULT"}
    assert any(e.get("fault") for e in recording.calls("execve"))
    assert any(e.get("fault") for e in recording.calls("connect"))


def test_connections_and_names_are_recorded(
    outcome: tuple[list[list[str]], Recording, Path],
) -> None:
    _, recording, _ = outcome
    connects = recording.calls("connect")
    assert {(e.get("family"), e.get("address"), e.get("port")) for e in connects} >= {
        ("AF_INET", "127.0.0.1", 9),
        ("AF_UNIX", "/nonexistent.sock", None),
    }
    assert recording.calls("getaddrinfo")[0]["answers"]
    contact = next(h for h in recording.summary.hosts if h.family == "AF_INET")
    assert (contact.address, contact.port, contact.count) == (b"127.0.0.1", 9, 1)


def test_results_are_the_same_without_the_library(
    calls: Path, outcome: tuple[list[list[str]], Recording, Path], tmp_path: Path
) -> None:
    lines, _, cwd = outcome
    plain = subprocess.run([calls], cwd=tmp_path, check=False, capture_output=True, timeout=60)
    expected = [
        line.split("\t")
        for line in plain.stdout.decode().replace(str(tmp_path), str(cwd)).splitlines()
    ]

    def comparable(rows: list[list[str]]) -> list[list[str]]:
        # Temporary names are random.
        return [[n, "" if "temp" in p or "dir" in p else p, r, e] for n, p, r, e in rows]

    assert comparable(lines) == comparable(expected)
    assert plain.returncode == 3
