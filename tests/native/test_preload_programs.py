"""Real programs behave the same under the library, and what they do to files is seen exactly."""

from __future__ import annotations

import base64
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.native.recording import Recorder, Recording, preload_library

_MUTATIONS = {
    "unlink", "unlinkat", "rmdir", "remove", "rename", "renameat", "renameat2", "mkdir", "mkdirat",
    "link", "linkat", "symlink", "symlinkat", "chmod", "fchmod", "fchmodat", "truncate",
    "ftruncate",
}  # fmt: skip


@pytest.fixture
def recorder(tmp_path: Path) -> Recorder:
    return Recorder(tmp_path / "seg")


@pytest.fixture
def work(tmp_path: Path) -> Path:
    directory = (tmp_path / "work").resolve()
    directory.mkdir()
    return directory


def _mutated(recording: Recording, work: Path) -> list[tuple[str, ...]]:
    """(call, path[, second path]) of the changes below the directory, paths relative to it."""
    found = []
    for event in recording.calls(*_MUTATIONS):
        paths = [event[key] for key in ("path", "path2") if key in event]
        if event.get("error") is None and paths and paths[0].startswith(f"{work}/"):
            found.append((event["syscall"], *(os.path.relpath(path, work) for path in paths)))
    return found


def _written(recording: Recording, work: Path) -> set[str]:
    return {
        os.path.relpath(event["path"], work)
        for event in recording.events
        if event.get("flags", "").startswith(("O_WRONLY", "O_RDWR"))
        and event.get("path", "").startswith(f"{work}/")
        and "error" not in event
    }


# --- the same output -----------------------------------------------------------------------------

_PYTHON = """
import subprocess, os, tempfile
print(subprocess.run(['sh', '-c', 'echo out; echo err >&2; exit 3'], capture_output=True))
print(os.popen('echo popen').read(), os.system('exit 2'))
with tempfile.TemporaryDirectory() as d: print(sorted(os.listdir(d)))
try: open('/missing')
except OSError as e: print(e)
"""
_PROGRAMS = {
    "bash": ["bash", "-c", 'x=$(ls / | sort); echo "$x"; (cd /; pwd); cat <<< hi; false; echo $?'],
    "dash": ["sh", "-c", "for i in 1 2 3; do echo $i | tr 1-9 a-i; done; ls /missing; exit 4"],
    "python": [sys.executable, "-c", _PYTHON],
    "perl": ["perl", "-e", 'print `echo sub`; open(F, "<", "/missing") or print "$!\n"; exit 9'],
    "make": ["make", "-f", "-", "-j2"],
    "node": ["node", "-e", "console.log(require('child_process').execSync('echo hi')+'')"],
}
_MAKEFILE = (
    b"all: a b\na:\n\t@echo one; cat /dev/null\nb:\n\t@sh -c 'echo two' | cat\n.NOTPARALLEL:\n"
)


@pytest.mark.parametrize("name", sorted(_PROGRAMS))
def test_programs_print_and_return_the_same(recorder: Recorder, name: str, work: Path) -> None:
    command = _PROGRAMS[name]
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    stdin = _MAKEFILE if name == "make" else b""
    plain = subprocess.run(
        command, check=False, capture_output=True, cwd=work, input=stdin, timeout=60
    )
    recording = recorder.run(command, cwd=work, stdin=stdin)
    assert recording.stderr == plain.stderr
    assert recording.stdout == plain.stdout
    assert recording.returncode == plain.returncode
    assert recording.summary.lost == recording.summary.torn == 0
    assert {p.coverage for p in recording.summary.processes} == {"full"}


@pytest.mark.needs_git
def test_git_works_the_same_and_is_seen(recorder: Recorder, git_checkout: Path) -> None:
    (git_checkout / "new.txt").write_text("x\n")
    # git refreshes its index when it can: the first run settles it for both others.
    for _ in range(2):
        plain = subprocess.run(
            ["git", "status"], check=True, capture_output=True, cwd=git_checkout, timeout=60
        )
    recording = recorder.run(["git", "status"], cwd=git_checkout)
    assert (recording.returncode, recording.stdout) == (0, plain.stdout)
    opened = recording.paths("open", "open64", "openat", "fopen", "fopen64", "opendir", "__open_2")
    assert {str(git_checkout / ".git" / "index"), str(git_checkout / ".git" / "HEAD")} <= opened


def test_a_process_tree_has_its_shape(recorder: Recorder) -> None:
    recording = recorder.run(["sh", "-c", "sh -c 'ls / >/dev/null; (exit 2); true'; cat /dev/null"])
    processes = {p.span_id: p for p in recording.summary.processes}
    shape = [
        (p.argv[0], processes[p.parent_span_id].argv[0] if p.parent_span_id in processes else b"")
        for p in recording.summary.processes
    ]
    assert shape[0] == (b"sh", b"")
    assert shape[1] == (b"sh", b"sh")
    assert (b"ls", b"sh") in shape
    assert (b"cat", b"sh") in shape
    inner = recording.summary.processes[1]
    assert next(p for p in processes.values() if p.argv[0] == b"ls").parent_span_id == inner.span_id
    assert all(p.start_ns <= (p.end_ns or 0) for p in processes.values())


# --- exactly their changes -----------------------------------------------------------------------


def test_rm_mv_ln_mkdir_and_touch_yield_exactly_their_changes(
    recorder: Recorder, work: Path
) -> None:
    def changes(*command: str) -> list[tuple[str, ...]]:
        recording = recorder.run(command, cwd=work)
        assert recording.returncode == 0, recording.stderr
        return _mutated(recording, work)

    (work / "a").write_text("a")
    assert changes("mv", "a", "b") == [("renameat2", "a", "b")]
    assert changes("ln", "b", "c") == [("linkat", "b", "c")]
    linked = changes("ln", "-s", "target", "link")
    assert [c[:2] for c in linked] == [("symlinkat", "link")]
    assert changes("mkdir", "-p", "d/e") == [("mkdir", "d"), ("mkdir", "d/e")]
    assert [c[1] for c in changes("chmod", "600", "b")] == ["b"]
    assert [c[1] for c in changes("rm", "b", "c", "link")] == ["b", "c", "link"]
    (work / "d" / "e" / "f").write_text("")
    removed = changes("rm", "-r", "d")
    assert [c[1] for c in removed] == ["d/e/f", "d/e", "d"]
    recording = recorder.run(["touch", "new"], cwd=work)
    assert _written(recording, work) == {"new"}


def test_sed_in_place_and_cp_a_are_seen(recorder: Recorder, work: Path) -> None:
    (work / "text").write_text("one\n")
    recording = recorder.run(["sed", "-i", "s/one/two/", "text"], cwd=work)
    renames = [c for c in _mutated(recording, work) if c[0].startswith("rename")]
    assert len(renames) == 1
    assert renames[0][2] == "text"
    (work / "tree" / "sub").mkdir(parents=True)
    for i in range(5):
        (work / "tree" / "sub" / f"file{i}").write_text("x")
    recording = recorder.run(["cp", "-a", "tree", "copy"], cwd=work)
    assert _written(recording, work) == {f"copy/sub/file{i}" for i in range(5)}
    made = {c[1] for c in _mutated(recording, work) if c[0].startswith("mkdir")}
    assert made == {"copy", "copy/sub"}


def test_tar_is_seen_file_by_file(recorder: Recorder, work: Path) -> None:
    tree = work / "tree"
    tree.mkdir()
    names = {f"tree/file{i}" for i in range(50)}
    for name in names:
        (work / name).write_text(name)
    recording = recorder.run(["tar", "-cf", "all.tar", "tree"], cwd=work)
    read = {os.path.relpath(os.fsdecode(p), work) for p in recording.summary.reads}
    assert names <= read
    assert "all.tar" in _written(recording, work)
    shutil.rmtree(tree)
    recording = recorder.run(["tar", "-xf", "all.tar"], cwd=work)
    assert _written(recording, work) == names
    assert {p.name for p in tree.iterdir()} == {Path(name).name for name in names}


def test_paths_below_descriptors_and_after_chdir_are_absolute(
    recorder: Recorder, work: Path
) -> None:
    (work / "deep" / "er").mkdir(parents=True)
    code = (
        "import os\n"
        "fd = os.open('deep', os.O_RDONLY)\n"
        "os.open('er/../made', os.O_CREAT | os.O_WRONLY, dir_fd=fd)\n"
        "os.chdir('deep'); os.chdir('er')\n"
        "open('here', 'w').close()\n"
        "os.fchdir(fd)\n"
        "open(b'\\xff\\xfe', 'w').close()\n"
        "os.rename('made', 'er/moved', src_dir_fd=fd)\n"
        "os.truncate(os.open('er/moved', os.O_RDWR), 5)\n"
    )
    recording = recorder.run([sys.executable, "-S", "-c", code], cwd=work)
    assert recording.returncode == 0, recording.stderr
    written = [
        e["path"]
        for e in recording.calls("open", "open64", "openat", "openat64")
        if "O_CREAT" in e["flags"]
    ]
    raw = os.fsencode(work) + b"/deep/\xff\xfe"
    odd = {"b64": base64.b64encode(raw).decode()}
    assert written == [f"{work}/deep/made", f"{work}/deep/er/here", odd]
    moved = recording.calls("renameat", "rename")[-1]
    assert (moved["path"], moved["path2"]) == (f"{work}/deep/made", f"{work}/deep/er/moved")
    assert recording.calls("ftruncate", "ftruncate64")[-1]["path"] == f"{work}/deep/er/moved"
    assert {e["path"] for e in recording.calls("chdir", "fchdir")} == {
        f"{work}/deep",
        f"{work}/deep/er",
    }


def test_an_exec_that_fails_is_one_event_with_its_error(recorder: Recorder, work: Path) -> None:
    code = "import os\ntry: os.execv('/missing', ['a', 'b'])\nexcept FileNotFoundError: pass\n"
    recording = recorder.run([sys.executable, "-S", "-c", code], cwd=work)
    (event,) = recording.calls("execv")
    assert (event["path"], event["argv"], event["error"]) == ("/missing", ["a", "b"], "ENOENT")
    assert [p.coverage for p in recording.summary.processes] == ["full"]


_MUSL_LOADER = Path(f"/lib/ld-musl-{platform.machine()}.so.1")


@pytest.mark.skipif(not _MUSL_LOADER.exists(), reason="no musl loader (Debian: musl)")
def test_musl_programs_are_seen(recorder: Recorder, tmp_path: Path) -> None:
    source = tmp_path / "musl.c"
    source.write_text(
        "#include <fcntl.h>\n#include <sys/wait.h>\n#include <unistd.h>\n"
        'int main(void) { open("/main", O_RDONLY);\n'
        'if (fork() == 0) { open("/child", O_RDONLY); _exit(4); }\nwait(0); return 9; }\n'
    )
    target = f"{platform.machine()}-linux-musl"
    compiler = [sys.executable, "-m", "ziglang", "cc", "-O1", "-fno-sanitize=undefined"]
    program = tmp_path / "musl"
    subprocess.run(
        [*compiler, "-target", target, "-dynamic", source, "-o", program],
        check=True,
        capture_output=True,
    )
    recording = recorder.run([program, "x"], library=preload_library(musl=True))
    assert recording.returncode == 9
    assert {"/main", "/child"} <= recording.paths("open")
    assert [(p.exit_code, p.argv[1:]) for p in recording.summary.processes] == [
        (9, (b"x",)),
        (4, (b"x",)),
    ]
