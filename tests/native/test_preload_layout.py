"""What a start costs, by what can be counted: calls, relocations, and where things lie.

Timings would tell more and fail for no reason; these do not change with the machine's mood.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.native.raw_segments import read_records
from tests.native.recording import Recorder, compile_c, preload_library

#: Of the library's own, from its constructor to the program's end.
_CALLS_OF_A_START = 24


@pytest.fixture
def recorder(tmp_path: Path) -> Recorder:
    return Recorder(tmp_path / "segments")


def _readelf(*options: str) -> list[str]:
    if shutil.which("readelf") is None:
        pytest.skip("no readelf: install binutils")
    done = subprocess.run(
        ["readelf", "-W", *options, preload_library()], check=True, capture_output=True, text=True
    )
    return done.stdout.splitlines()


def test_the_loader_has_little_to_relocate() -> None:
    """Names of functions as pointers were three hundred, in each program that was started."""
    relocations = [line for line in _readelf("-r") if " R_" in line]
    assert 0 < len(relocations) < 24


def test_the_library_is_two_mappings() -> None:
    loads = [line for line in _readelf("-l") if line.split()[:1] == ["LOAD"]]
    assert len(loads) == 2


@pytest.mark.needs_strace
def test_a_start_makes_no_more_system_calls_than_it_did(recorder: Recorder, tmp_path: Path) -> None:
    program = compile_c("int main(void) { return 0; }", tmp_path / "p")
    counts: list[int] = []
    for loaded in ({}, recorder.environment()):
        log = tmp_path / f"log{len(counts)}"
        options = [
            f"-E{name}={value}"
            for name, value in loaded.items()
            if name in ("LD_PRELOAD", "SUBSTRATE_SEGMENTS")
        ]
        command = ["strace", "-o", str(log), *options, str(program)]
        subprocess.run(command, check=True, timeout=60)
        counts.append(len(log.read_text().splitlines()))
    loader = 8  # to open, read and map a library, and close it
    assert counts[1] - counts[0] <= _CALLS_OF_A_START + loader


def test_an_exec_asks_once_a_page_what_can_be_read(recorder: Recorder, tmp_path: Path) -> None:
    """Not once a variable: a shell's environment has fifty, on one page or two."""
    source = """
    #include <unistd.h>
    int main(int argc, char **argv, char **environment) {
        char *again[] = {"true", 0};
        return execve("/bin/true", again, environment);
    }
    """
    program = compile_c(source, tmp_path / "p")
    log = tmp_path / "log"
    options = [
        f"-E{name}={value}"
        for name, value in recorder.environment().items()
        if name in ("LD_PRELOAD", "SUBSTRATE_SEGMENTS")
    ]
    many = [f"-EV{i}={'x' * 20}" for i in range(100)]
    command = ["strace", "-e", "trace=rt_sigprocmask,execve", "-o", str(log)]
    subprocess.run([*command, *options, *many, str(program)], check=True, timeout=60)
    text = log.read_text()
    assert text.count("execve(") == 2
    assert text.count("rt_sigprocmask(") < 30


def test_an_environment_that_cannot_be_read_is_the_callers_error(
    recorder: Recorder, tmp_path: Path
) -> None:
    """Beside strings that can be, on the page before, and in the first page of all."""
    source = """
    #define _GNU_SOURCE
    #include <errno.h>
    #include <string.h>
    #include <sys/mman.h>
    #include <unistd.h>
    int main(void) {
        char *room = mmap(0, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        munmap(room + 4096, 4096);
        strcpy(room, "A=1");
        memset(room + 4092, 'x', 4); /* runs into what is not there */
        char *argv[] = {"true", 0};
        char *bad[][4] = {{room, room + 4092, 0}, {room, (char *)8, 0}, {(char *)8, room, 0},
                          {room, room + 4096, room, 0}};
        for (int i = 0; i < 4; i++) {
            if (execve("/bin/true", argv, bad[i]) != -1 || errno != EFAULT)
                return 1;
            if (execve("/bin/true", bad[i], argv) != -1 || errno != EFAULT)
                return 2;
        }
        return 0;
    }
    """
    program = compile_c(source, tmp_path / "p")
    recording = recorder.run([program])
    assert recording.returncode == 0
    execs = [record for record in read_records(recorder.segments) if record.type == "exec"]
    assert len(execs) == 8


def test_programs_and_directories_of_long_names_are_told(
    recorder: Recorder, tmp_path: Path
) -> None:
    """The usual buffers are small, because each page of stack costs a start."""
    deep = tmp_path
    for length in (200, 200, 200):
        deep /= "d" * length
    deep.mkdir(parents=True)
    program = compile_c("int main(void) { return 0; }", tmp_path / "p")
    program.rename(deep / "program")
    for command, exe in (
        ([str(deep / "program")], deep / "program"),
        (["./program"], deep / "program"),
        (["/bin/true"], Path("/bin/true")),
    ):
        recording = recorder.run(command, cwd=deep)
        assert recording.returncode == 0
        (process,) = recording.summary.processes
        (started,) = recording.started()
        assert process.exe == bytes(exe)
        assert started["cwd"] == str(deep)
