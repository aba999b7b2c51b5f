"""The decoder: which directory a path starts from, where that is not the process's own."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from substrate_services.telemetry.segments import prepare_directory
from tests.native import segment_files as sf
from tests.native.recording import Recorder, compile_c, decode
from tests.native.segment_files import Segment

_MADE = os.O_CREAT | os.O_WRONLY
_HERE = (sf.AT_FDCWD, 0, 0, 0)
_KEY = (sf.KEY, b"12345678")


@pytest.fixture
def segments(tmp_path: Path) -> Path:
    directory = tmp_path / "seg"
    prepare_directory(directory)
    return directory


def _action(
    segment: Segment, name: str, kind: int, fd: int, path: bytes = b"", *, other: int = 0
) -> None:
    fields = (_KEY, (sf.PATH, path)) if path else (_KEY,)
    segment.call(7, f"posix_spawn_file_actions_{name}", *fields, arg=(kind, fd, other, 0))


# --- vfork ---------------------------------------------------------------------------------------


def test_an_exec_keeps_its_directory_when_the_next_child_has_begun(segments: Path) -> None:
    segment = Segment(10).hello(cwd=b"/work")
    for tid, at in ((11, 1_001_000), (12, 1_002_000)):
        sub = b"/work/sub%d" % tid
        segment.add(
            sf.record(
                sf.CHDIR, sf.OPERATIONS["chdir"], at=at, tid=tid, flags=1, arg=_HERE,
                fields=sf.text(sf.PATH, b"sub%d" % tid) + sf.text(sf.CWD, sub),
            )
        )  # fmt: skip
        segment.add(
            sf.record(
                sf.EXEC, sf.OP_EXECVE, at=at + 100, tid=tid, flags=1, arg=_HERE,
                fields=sf.text(sf.PATH, b"./xx"),
            )
        )  # fmt: skip
    segment.write(segments)
    _, events = decode(segments)
    execs = [event["path"] for event in events if event.get("syscall") == "execve"]
    assert execs == ["/work/sub11/xx", "/work/sub12/xx"]


def test_vfork_children_of_a_real_program_start_from_their_own_directory(tmp_path: Path) -> None:
    sub = tmp_path / "sub"
    sub.mkdir()
    for name in ("xx", "yy"):
        compile_c("int main(void) { return 0; }", sub / name)
    recorder = Recorder(tmp_path / "seg")
    recording = recorder.run(
        [
            sys.executable,
            "-c",
            "import subprocess as s, sys\nfor p in ('./xx', './yy'): s.run([p], cwd=sys.argv[1])",
            sub,
        ],
        cwd=tmp_path,
    )
    paths = recording.paths("execv", "execve")
    assert {f"{sub}/xx", f"{sub}/yy"} <= paths
    assert f"{tmp_path}/xx" not in paths


# --- posix_spawn ---------------------------------------------------------------------------------


def test_file_actions_name_absolute_paths(segments: Path) -> None:
    segment = Segment(10).hello(cwd=b"/work")
    segment.open(b"/other/place", flags=os.O_DIRECTORY, result=8)
    _action(segment, "addopen", 1, 1, b"out", other=_MADE)
    _action(segment, "addchdir_np", 4, -1, b"sub")
    _action(segment, "addopen", 1, 2, b"../err", other=_MADE)
    _action(segment, "addfchdir_np", 5, 8)
    _action(segment, "addopen", 1, 0, b"in")
    _action(segment, "addfchdir_np", 5, 2)  # that it opened before: nobody knows where it leads
    _action(segment, "addopen", 1, 0, b"lost")
    segment.call(sf.SPAWN, "posix_spawn", (sf.PATH, b"./prog"), _KEY, arg=(11, 0, 0, 0))
    segment.write(segments)
    _, events = decode(segments)
    (spawn,) = (event for event in events if event.get("syscall") == "posix_spawn")
    paths = [action.get("path") for action in spawn["file_actions"]]
    assert paths == ["/work/out", "/work/sub", "/work/err", None, "/other/place/in", None, "lost"]
    assert spawn["path"] == "./prog"


def test_file_actions_are_done_where_the_spawn_is_called(segments: Path) -> None:
    segment = Segment(10).hello(cwd=b"/work")
    _action(segment, "addopen", 1, 1, b"out", other=_MADE)
    _action(segment, "addchdir_np", 4, -1, b"sub")
    for place in (b"/first", b"/second"):
        segment.call(sf.CHDIR, "chdir", (sf.PATH, place), (sf.CWD, place))
        segment.call(sf.SPAWN, "posix_spawn", (sf.PATH, b"./prog"), _KEY, arg=(11, 0, 0, 0))
    _action(segment, "destroy", 7, -1)
    segment.call(sf.SPAWN, "posix_spawn", (sf.PATH, b"./prog"), _KEY, arg=(11, 0, 0, 0))
    segment.write(segments)
    summary, events = decode(segments)
    spawns = [event for event in events if event.get("syscall") == "posix_spawn"]
    assert [s["path"] for s in spawns] == ["/first/sub/prog", "/second/sub/prog", "/second/prog"]
    assert [s.get("file_actions", [{}])[0].get("path") for s in spawns] == [
        "/first/out",
        "/second/out",
        None,
    ]
    # That of the place where it was asked for as well: the spawn might never have been told.
    assert summary.writes == (b"/first/out", b"/second/out", b"/work/out")


# --- names that are no paths ---------------------------------------------------------------------


def test_semaphores_are_files_in_shared_memory(segments: Path) -> None:
    segment = Segment(10).hello()
    segment.call(sf.OPEN, "sem_open", (sf.PATH, b"//hi"), arg=(sf.AT_FDCWD, _MADE, 0o600, 0))
    segment.call(sf.OPEN, "sem_open", (sf.PATH, b"bare"), arg=(sf.AT_FDCWD, os.O_RDWR, 0, 0))
    segment.call(sf.MUTATE, "sem_unlink", (sf.PATH, b"/hi"))
    segment.write(segments)
    summary, events = decode(segments)
    assert [event["path"] for event in events if "syscall" in event] == [
        "/dev/shm/sem.hi",
        "/dev/shm/sem.bare",
        "/dev/shm/sem.hi",
    ]
    assert summary.writes == (b"/dev/shm/sem.bare", b"/dev/shm/sem.hi")


def test_a_semaphore_lies_where_the_path_says(tmp_path: Path) -> None:
    program = compile_c(
        """
        #include <fcntl.h>
        #include <semaphore.h>
        #include <stdio.h>
        #include <unistd.h>
        int main(void) {
            char name[64], path[96];
            sprintf(name, "/substrate-%d", getpid());
            if (sem_open(name, O_CREAT | O_EXCL, 0600, 1) == SEM_FAILED) return 1;
            sprintf(path, "/dev/shm/sem.%s", name + 1);
            int there = access(path, F_OK) == 0;
            sem_unlink(name);
            puts(path);
            return !there;
        }
        """,
        tmp_path / "semaphore",
        "-pthread",
    )
    recording = Recorder(tmp_path / "seg").run([program])
    assert recording.returncode == 0
    path = recording.stdout.decode().strip()
    assert recording.paths("sem_open") == recording.paths("sem_unlink") == {path}
    assert os.fsencode(path) in recording.summary.writes


def test_the_ids_of_a_line_are_there_once(tmp_path: Path) -> None:
    """json.loads keeps the last of two equal keys: the sum's pid hid the process's."""
    recording = Recorder(tmp_path / "seg").run([sys.executable, "-c", "import os; os.getpid()"])
    pid = recording.summary.processes[0].pid
    sums = [e for e in recording.events if e["event_type"] in ("nondeterminism", "file_summary")]
    assert {event["pid"] for event in sums} == {pid}
    (line,) = (e for e in sums if e["event_type"] == "nondeterminism")
    assert line["process_id"] >= 1
    assert dict(recording.summary.counts)["source_pid"] == line["process_id"]


# --- what descriptors lead to --------------------------------------------------------------------

_PLACE, _BELOW = 32, 64


def _below(segment: Segment, fd: int, name: bytes, *, result: int = 9, flags: int = 0) -> Segment:
    return segment.call(
        sf.OPEN, "openat", (sf.PATH, name), arg=(fd, 0, 0, 0), result=result, flags=_BELOW | flags
    )


def _opened(segments: Path, segment: Segment) -> list[str | None]:
    segment.write(segments)
    _, events = decode(segments)
    return [event.get("path") for event in events if event.get("syscall") == "openat"]


def _explained(fd: int, directory: bytes, name: bytes, *, result: int, flags: int = 0) -> Segment:
    segment = Segment(10).hello(cwd=b"/elsewhere")
    return segment.call(
        sf.OPEN, "openat", (sf.PATH, name), (sf.DIRECTORY, directory),
        (sf.DIRECTORY_ID, (fd + 1).to_bytes(8, "little")), arg=(fd, 0, 0, 0), result=result,
        flags=flags,
    )  # fmt: skip


def test_opens_and_copies_say_what_their_descriptors_lead_to(segments: Path) -> None:
    segment = _explained(3, b"/top", b"a", result=4, flags=_PLACE)
    _below(segment, 4, b"b", result=5, flags=_PLACE)
    segment.call(sf.DUP, "dup", arg=(5, 0, 0, 0), result=6, flags=_PLACE)
    _below(segment, 6, b"c")
    _below(segment, 5, b"d", result=6, flags=_PLACE)
    _below(segment, 6, b"e")
    segment.call(sf.DUP, "dup2", arg=(6, 0, 0, 0), result=6, flags=_PLACE)
    _below(segment, 6, b"f")
    assert _opened(segments, segment) == [
        "/top/a", "/top/a/b", "/top/a/b/c", "/top/a/b/d", "/top/a/b/d/e", "/top/a/b/d/f",
    ]  # fmt: skip


def test_nothing_is_derived_from_what_is_not_known(segments: Path) -> None:
    """The record that explained it is lost: better no directory than the one before."""
    segment = _explained(3, b"/top", b"a", result=4, flags=_PLACE)
    _below(segment, 77, b"b", result=4, flags=_PLACE)
    _below(segment, 4, b"c")
    segment.call(sf.DUP, "dup", arg=(78, 0, 0, 0), result=3, flags=_PLACE)
    _below(segment, 3, b"d")
    assert _opened(segments, segment) == ["/top/a", "b", "c", "d"]


def test_failed_opens_and_those_of_vfork_children_name_no_descriptor(segments: Path) -> None:
    segment = _explained(3, b"/top", b"a", result=4, flags=_PLACE)
    segment.call(
        sf.OPEN, "openat", (sf.PATH, b"x"), arg=(3, 0, 0, 0), result=4, error=2,
        flags=_BELOW | _PLACE,
    )  # fmt: skip
    _below(segment, 3, b"y", result=4, flags=_PLACE | 1)
    _below(segment, 4, b"z")
    assert _opened(segments, segment)[-1] == "/top/a/z"


def test_a_renamed_directory_takes_what_was_derived_below_it_along(segments: Path) -> None:
    segment = _explained(3, b"/top", b"a", result=4, flags=_PLACE)
    _below(segment, 4, b"b", result=5, flags=_PLACE)
    segment.call(sf.MUTATE, "rename", (sf.PATH, b"/top/a"), (sf.PATH2, b"/new"))
    _below(segment, 5, b"c")
    assert _opened(segments, segment)[-1] == "/new/b/c"
