"""The truth test in small: what strace sees of real programs, the recorder sees too.

``make bench-truth`` is the whole of it. Here stand the fastest workloads, and what the comparison
itself has to do: see a gap where there is one.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
from pathlib import Path

import pytest

from benchmarks.truth.compare import Comparison
from benchmarks.truth.distortion import differences
from benchmarks.truth.operations import OpClass, normalised
from benchmarks.truth.pairing import run_alone, run_pair
from benchmarks.truth.report import BAR, Row, markdown, totals
from benchmarks.truth.strace_log import descriptor_of, read_log, split_arguments, string_of
from tests.native.recording import compile_c

_PROGRAMS = Path(__file__).resolve().parents[2] / "benchmarks" / "truth" / "programs"

_C_SOURCE = """
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
int main(int argc, char **argv) { printf("%d %zu\\n", argc, strlen(argv[0])); return EXIT_SUCCESS; }
"""


@pytest.fixture
def room(tmp_path: Path) -> Path:
    directory = (tmp_path / "room").resolve()
    directory.mkdir()
    return directory


def _assert_captured(comparison: Comparison, *classes: OpClass) -> None:
    sums = totals([Row("workload", comparison)])
    told = markdown([Row("workload", comparison)])
    assert all(count.ratio >= BAR for count in sums.classes.values()), told
    assert sums.failed.ratio >= BAR, told
    assert comparison.surplus == [], told
    assert comparison.not_understood == 0
    for op_class in classes:
        assert comparison.classes[op_class].truth > 0, f"{op_class}: there was nothing to capture"


@pytest.mark.needs_strace
def test_a_script_of_coreutils_is_captured(room: Path) -> None:
    source = room / "source"
    source.mkdir()
    for name in ("lapi.c", "lvm.c", "lua.h"):
        (source / name).write_text(f"lua_{name}\n" * 20)
    pair = run_pair(["bash", str(_PROGRAMS / "script.sh"), str(source)], cwd=room)
    _assert_captured(pair.comparison, OpClass.EXEC, OpClass.READ, OpClass.WRITE, OpClass.MUTATION)
    assert pair.comparison.uncovered == {}


@pytest.mark.needs_strace
def test_a_threaded_server_and_its_clients_are_captured(room: Path) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    pair = run_pair([sys.executable, str(_PROGRAMS / "server.py")], cwd=room)
    _assert_captured(pair.comparison, OpClass.EXEC, OpClass.READ, OpClass.NETWORK)


@pytest.mark.needs_strace
def test_a_compiler_is_captured(room: Path) -> None:
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    (room / "main.c").write_text(_C_SOURCE)
    pair = run_pair(["gcc", "-O2", "main.c", "-o", "main"], cwd=room)
    _assert_captured(pair.comparison, OpClass.EXEC, OpClass.READ, OpClass.WRITE)
    assert pair.comparison.failed.truth > 0


@pytest.mark.needs_strace
def test_a_static_program_is_named_and_its_dynamic_parent_is_not(room: Path) -> None:
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    compile_c(_PROGRAMS / "static.c", room / "still", "-static")
    pair = run_pair(["sh", "-c", "./still made; true"], cwd=room)
    assert dict(pair.comparison.uncovered) == {
        ("still", "static program"): {"processes": 1, "operations": 4}
    }
    _assert_captured(pair.comparison, OpClass.EXEC)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="its system calls are written for it")
@pytest.mark.needs_strace
def test_what_passes_no_symbol_is_missed_and_said_to_be(room: Path) -> None:
    """The comparison must be able to fail: raw system calls are what the library cannot see."""
    program = compile_c(
        "#include <fcntl.h>\n#include <sys/syscall.h>\n"
        "static long call(long n, long a, long b, long c) {\n"
        "    long result;\n"
        '    __asm__ volatile("syscall" : "=a"(result) : "a"(n), "D"(a), "S"(b), "d"(c)\n'
        '                     : "rcx", "r11", "memory");\n'
        "    return result;\n}\n"
        "int main(void) {\n"
        '    call(SYS_mkdir, (long)"made", 0755, 0);\n'
        '    call(SYS_open, (long)"/missing", O_RDONLY, 0);\n'
        "    return 0;\n}\n",
        room / "raw",
    )
    comparison = run_pair([str(program)], cwd=room).comparison
    assert [call.at.operation.kind for call in comparison.missing] == ["mkdir", "open"]
    assert comparison.classes[OpClass.MUTATION].ratio == 0
    assert comparison.failed.ratio == 0
    told = markdown([Row("raw", comparison)])
    assert "missing 1 of mkdir (done) by raw" in told
    assert "0/1 = 0.00 %" in told


@pytest.mark.needs_strace
def test_the_library_does_not_change_what_strace_sees(tmp_path: Path) -> None:
    rooms = []
    for name in ("paired", "alone"):
        made = (tmp_path / name).resolve()
        (made / "tree" / "sub").mkdir(parents=True)
        for number in range(30):
            (made / "tree" / "sub" / f"file{number}").write_text("x")
        rooms.append(made)
    command = ["sh", "-c", "cp -a tree copy; rm -r copy; ls tree/sub | sort >list"]
    paired = run_pair(command, cwd=rooms[0]).traced
    alone = run_alone(command, cwd=rooms[1])
    operations, differing = differences(
        paired, alone, rooms=(os.fsencode(rooms[0]), os.fsencode(rooms[1]))
    )
    assert operations > 300
    assert dict(differing) == {}


# --- reading strace -------------------------------------------------------------------------------


def test_lines_of_strace_are_read_exactly(tmp_path: Path) -> None:
    log = tmp_path / "strace.7"
    log.write_text(
        "100.000001 openat(AT_FDCWD</a, b>, "
        r'"we\"ird, (\303\244\n", O_WRONLY|O_CREAT, 0644) = 3</a, b/x>'
        '\n100.000002 unlink("gone") = -1 ENOENT (No such file or directory)\n'
        "100.000003 --- SIGCHLD {si_signo=SIGCHLD} ---\n"
        "100.000004 accept(4<socket:[1]>, NULL, NULL <unfinished ...>\n"
        "100.000005 <... accept resumed>) = ? ERESTARTSYS (To be restarted if SA_RESTART is set)\n"
        '100.000006 execve("/bin/x", ["x", "a, b"], 0x1 /* 3 vars */) = 0\n'
        "100.000007 wait4(-1,  <unfinished ...>\n"
        "100.000008 +++ killed by SIGKILL +++\n"
    )
    read = read_log(7, log)
    assert read.killed_by == "SIGKILL"
    assert read.not_understood == []
    assert [(call.name, call.result, call.error) for call in read.calls] == [
        ("openat", 3, ""),
        ("unlink", -1, "ENOENT"),
        ("accept", None, ""),
        ("execve", 0, ""),
        ("wait4", None, ""),
    ]
    opened = read.calls[0].arguments
    assert descriptor_of(opened[0]) == (-100, b"/a, b")
    assert string_of(opened[1]) == 'we"ird, (ä\n'.encode()
    assert opened[2:] == ("O_WRONLY|O_CREAT", "0644")
    assert read.calls[3].arguments[1] == '["x", "a, b"]'


def test_arguments_are_parted_at_the_commas_between_them() -> None:
    text = '3<socket:[5]>, {sa_family=AF_UNIX, sun_path="/a,b"}, 110'
    assert split_arguments(text) == (
        "3<socket:[5]>",
        '{sa_family=AF_UNIX, sun_path="/a,b"}',
        "110",
    )
    assert split_arguments("") == ()


def test_paths_are_normalised_by_their_text() -> None:
    assert normalised(b"/work", b"a/./b/../c//d") == b"/work/a/c/d"
    assert normalised(b"/work", b"//x/..") == b"/"
