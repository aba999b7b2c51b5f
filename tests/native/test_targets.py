"""The other builds do what this machine's does: musl, and aarch64 under qemu-user."""

from __future__ import annotations

import errno
import signal
import subprocess
from pathlib import Path

import pytest

from tests.native.recording import Recorder, preload_library
from tests.native.targets import Target, TargetRoot, exported_symbols

TARGETS = [Target("x86_64", "musl"), Target("aarch64", "gnu"), Target("aarch64", "musl")]

_QEMU_FORK = "qemu-user may leave a child of a program with threads waiting for qemu's own lock"


@pytest.fixture(scope="module", params=TARGETS, ids=lambda target: target.name)
def root(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TargetRoot:
    target: Target = request.param
    why = target.why_not()
    if why:
        pytest.skip(why)
    return TargetRoot(target, tmp_path_factory.mktemp(target.name))


#: Entry points whose events do not show what calls.c prints of them.
_STATUS_ONLY = {
    "execve", "execv", "execvp", "execvpe", "execl", "execlp", "execle", "fexecve", "execveat",
    "posix_spawn", "posix_spawnp", "system", "popen", "vfork",
}  # fmt: skip


def _error(number: str) -> str | None:
    return errno.errorcode[int(number)] if int(number) else None


def _clear(directory: Path) -> None:
    """Empty the working directory of the programs: one run finds what the other found."""
    for path in sorted(directory.rglob("*"), reverse=True):
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        else:
            path.unlink()


def test_every_call_is_recorded_and_returns_what_it_returns_without(root: TargetRoot) -> None:
    program = root.program("calls", "-ldl")
    plain = root.run(program, recorded=False)
    _clear(root.path / "work")
    recording = root.run(program)
    assert (plain.returncode, recording.returncode) == (3, 3), recording.stderr
    lines = [line.split("\t") for line in recording.stdout.decode().splitlines()]
    assert len(lines) > 70

    def comparable(text: bytes) -> list[list[str]]:
        rows = [line.split("\t") for line in text.decode().splitlines()]
        return [[n, "" if "temp" in p or "dir" in p else p, r, e] for n, p, r, e in rows]

    assert comparable(recording.stdout) == comparable(plain.stdout)
    missing = []
    for name, path, result, number in lines:
        found = [
            event
            for event in recording.calls(name)
            if (not path or event.get("path") == path)
            and (number == "0" or event.get("error") == _error(number))
            and (name in _STATUS_ONLY or event["result"] == int(result))
        ]
        if not found:
            missing.append((name, path, result, number, recording.calls(name)[:4]))
    assert not missing
    assert recording.summary.lost == recording.summary.torn == 0


def test_programs_started_every_way_are_covered(root: TargetRoot) -> None:
    recording = root.run(root.program("calls", "-ldl"))
    _clear(root.path / "work")
    shells = [p for p in recording.summary.processes if p.argv == (b"sh", b"-c", b"exit 7")]
    if root.target.emulated:  # see targets.py: no execveat, no fexecve, and a process an exec
        shells = [p for p in shells if p.coverage == "full"]
        assert len(shells) == 12
    else:
        assert len(shells) == 13  # musl 1.2.3 has no execveat
        programs = [p for p in recording.summary.processes if p.argv == (b"/bin/calls",)]
        assert {p.parent_span_id for p in shells} == {programs[0].span_id}
    assert {(p.exit_code, p.cwd, p.coverage) for p in shells} == {(7, b"/work", "full")}


def test_two_hundred_vforks_leave_the_parent_as_it_was(root: TargetRoot) -> None:
    recording = root.run(root.program("vforks"))
    assert recording.returncode == 0, recording.stderr
    if root.target.emulated:
        return  # what was overwritten is gone: see targets.py
    opens = [e for e in recording.calls("open") if e.get("path") in {"/child", "/parent"}]
    assert len(opens) == 400
    assert sum(e["path"] == "/parent" and "tid" not in e for e in opens) == 200
    assert len({e["tid"] for e in opens if e["path"] == "/child"}) == 200


def test_forks_in_a_threaded_program_are_all_seen(root: TargetRoot) -> None:
    if root.target.emulated:
        pytest.skip(_QEMU_FORK)
    recording = root.run(root.program("forks", "-lpthread"))
    assert recording.returncode == 0
    expected = {
        f"/{who}-{t}-{i}" for who in ("child", "parent") for t in range(4) for i in range(20)
    }
    assert expected <= recording.paths("open")
    assert recording.summary.processes_total == 81
    assert recording.summary.torn == recording.summary.lost == 0


def test_threads_one_after_the_other_are_all_seen(root: TargetRoot) -> None:
    recording = root.run(root.program("threads", "-lpthread"))
    assert recording.returncode == 0, recording.stderr
    assert {f"/thread-{i}" for i in range(300)} <= recording.paths("open")
    assert recording.summary.torn == recording.summary.lost == 0


def test_events_survive_sigkill(root: TargetRoot) -> None:
    recording = root.run(root.program("killed"))
    assert recording.returncode == -signal.SIGKILL
    assert len(recording.calls("open")) == 1000
    assert recording.summary.lost == recording.summary.torn == 0


def test_a_chain_of_segments_holds_twenty_thousand_events(root: TargetRoot) -> None:
    recording = root.run(root.program("full"))
    assert (recording.returncode, recording.stdout) == (4, b"done\n")
    assert sum(e.get("path") == "/full" for e in recording.events) == 20_000
    assert recording.summary.processes[-1].exit_code == 4


def test_a_signal_handler_may_do_what_it_likes(root: TargetRoot) -> None:
    recording = root.run(root.program("signals"))
    assert recording.returncode == 0
    handled = int(recording.stdout)
    seen = [e["path"] for e in recording.calls("open")]
    lost = recording.summary.lost
    assert handled > 10
    assert seen.count("/main") + seen.count("/handler") + lost == 100_000 + handled
    # Only while a segment is being replaced, which takes an emulator longer.
    assert lost <= (20 if root.target.emulated else 10) * len(recording.summary.segments)


def test_the_musl_build_exports_nothing_that_musl_has_not(root: TargetRoot) -> None:
    if root.target.libc != "musl":
        pytest.skip("glibc's names differ from version to version")
    name = "libsubstrate_preload-musl.so"
    ours = exported_symbols((root.path / "run/substrate/lib" / name).read_bytes())
    libc = exported_symbols((root.path / f"lib/ld-musl-{root.target.arch}.so.1").read_bytes())
    assert ours - libc == set(), "list them in native/preload/absent-in-musl"


def test_a_mode_is_passed_on_with_o_tmpfile(root: TargetRoot) -> None:
    assert root.run(root.program("mode")).stdout == b"640\n"


def test_the_musl_build_ends_no_program_of_glibc(tmp_path: Path) -> None:
    """LD_PRELOAD in a musl world reaches whatever brought its own libc along."""
    recorder = Recorder(tmp_path / "seg")
    command = ["sh", "-c", "cat /missing; exit 4"]
    plain = subprocess.run(command, check=False, capture_output=True, timeout=20)
    recording = recorder.run(command, library=preload_library(musl=True))
    assert (recording.returncode, recording.stderr) == (4, plain.stderr)
    assert "/missing" in recording.paths("open", "open64", "openat")
