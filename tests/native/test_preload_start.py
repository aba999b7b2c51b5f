"""What a program says of itself when it starts: who it is, what it runs, what it leaves out."""

from __future__ import annotations

import os
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from substrate_services.telemetry.segments import SegmentName, remove_dead_segments
from tests.native.recording import Recorder, compile_c
from tests.native.segment_files import Segment

_FROM_PIDFS = 1 << 62
_CLASSES_OFF = 80  # offsetof(struct sub_segment, classes_off)

#: Makes system call 434, pidfd_open, unknown, and becomes the rest of its arguments.
_WITHOUT_PIDFDS = """
#define _GNU_SOURCE
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <unistd.h>
int main(int argc, char **argv) {
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 434, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | 38),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog filter = {4, code};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 ||
        prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) != 0)
        return 99;
    execv(argv[1], argv + 1);
    return 98;
}
"""


@pytest.fixture
def recorder(tmp_path: Path) -> Recorder:
    return Recorder(tmp_path / "seg")


def _kernel_numbers_pidfds() -> bool:
    """Whether each process has an inode of its own in pidfs, and its pidfd knows its namespace."""
    release = os.uname().release.split(".")
    return (int(release[0]), int(release[1].partition("-")[0])) >= (6, 11)


def _names(recorder: Recorder) -> list[SegmentName]:
    names = [SegmentName.parse(path.name) for path in recorder.segments.iterdir()]
    return sorted((name for name in names if name), key=lambda name: name.exec_no)


@contextmanager
def _waiting_shell(recorder: Recorder, *before: str) -> Iterator[subprocess.Popen[bytes]]:
    """A shell that has started, and ends when its standard input does."""
    with subprocess.Popen(
        [*before, "/bin/sh", "-c", "echo; read line"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=recorder.environment(),
    ) as shell:
        assert shell.stdout is not None
        assert shell.stdin is not None
        assert shell.stdout.readline() == b"\n"
        yield shell
        shell.stdin.close()


@pytest.mark.skipif(not _kernel_numbers_pidfds(), reason="the kernel does not number pidfds")
def test_a_process_is_told_apart_by_the_inode_of_its_pidfd(recorder: Recorder) -> None:
    with _waiting_shell(recorder) as shell:
        pidfd = os.pidfd_open(shell.pid)
        try:
            inode = os.fstat(pidfd).st_ino
        finally:
            os.close(pidfd)
        (name,) = _names(recorder)
        assert (name.pid, name.start_ticks) == (shell.pid, inode | _FROM_PIDFS)


def test_without_pidfds_a_process_is_told_apart_by_its_start(
    recorder: Recorder, tmp_path: Path
) -> None:
    program = compile_c(_WITHOUT_PIDFDS, tmp_path / "without")
    with _waiting_shell(recorder, str(program)) as shell:
        stat = Path(f"/proc/{shell.pid}/stat").read_text().rpartition(")")[2].split()
        (name,) = [n for n in _names(recorder) if not n.start_ticks & _FROM_PIDFS]
        assert (name.pid, name.start_ticks) == (shell.pid, int(stat[19]))


def test_an_exec_keeps_the_identity_and_a_fork_has_its_own(recorder: Recorder) -> None:
    # bash forks for the subshell, and the last command of each shell is executed in its place.
    recording = recorder.run(["bash", "-c", "(exec env true); exec env env true"])
    assert recording.returncode == 0
    names = _names(recorder)
    of_root = [n for n in names if n.pid == names[-1].pid]
    of_child = [n for n in names if n.pid != names[-1].pid]
    assert {n.exec_no for n in of_root} == {1, 2, 3, 4}
    assert {n.exec_no for n in of_child} == {0, 1, 2}
    assert len({n.start_ticks for n in of_root}) == 1
    assert len({n.start_ticks for n in of_child}) == 1
    assert {n.start_ticks for n in of_root} != {n.start_ticks for n in of_child}


def _programs(recorder: Recorder, *command: str, cwd: Path | None = None) -> list[bytes]:
    recording = recorder.run(command, cwd=cwd)
    assert recording.returncode == 0
    return [process.exe for process in recording.summary.processes]


def test_the_program_is_what_the_kernel_was_asked_for(recorder: Recorder, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/bin/true")
    assert _programs(recorder, "/bin/true") == [b"/bin/true"]
    assert _programs(recorder, str(tmp_path / "link")) == [bytes(tmp_path / "link")]
    assert _programs(recorder, "./link", cwd=tmp_path) == [bytes(tmp_path / "link")]
    assert _programs(recorder, "/bin/cat", "/bin/cat") == [b"/bin/cat"]


@pytest.mark.parametrize("line", ["#!/bin/sh", "#!/bin/sh -e"])
def test_the_program_of_a_script_is_its_interpreter(
    recorder: Recorder, tmp_path: Path, line: str
) -> None:
    script = tmp_path / "script"
    script.write_text(f"{line}\n:\n")
    script.chmod(0o755)
    assert _programs(recorder, str(script)) == [b"/bin/sh"]
    assert _programs(recorder, "./script", cwd=tmp_path) == [b"/bin/sh"]


def test_a_program_that_was_run_by_descriptor_is_named_as_well(
    recorder: Recorder, tmp_path: Path
) -> None:
    source = """
        #define _GNU_SOURCE
        #include <fcntl.h>
        #include <unistd.h>
        int main(void) {
            char *argv[] = {"true", 0};
            extern char **environ;
            fexecve(open("/bin/true", O_RDONLY | O_CLOEXEC), argv, environ);
            return 1;
        }
    """
    program = compile_c(source, tmp_path / "by-descriptor")
    assert _programs(recorder, str(program))[-1] == os.fsencode(os.path.realpath("/bin/true"))


@pytest.mark.parametrize(
    ("mask", "off"), [("7f", 0), ("0", 0x7F), ("5", 0x7A), ("not-a-mask", 0), ("ffffff83", 0x7C)]
)
def test_segments_say_which_classes_are_off(recorder: Recorder, mask: str, off: int) -> None:
    (recorder.segments.parent / "classes").symlink_to(mask)
    recorder.run(["true"])
    (segment,) = recorder.segments.iterdir()
    assert struct.unpack_from("<I", segment.read_bytes(), _CLASSES_OFF) == (off,)


@pytest.mark.parametrize("numbering", [_FROM_PIDFS, 1 << 63])
def test_segments_of_a_number_that_proc_does_not_show_stay_while_the_pid_is_used(
    tmp_path: Path, numbering: int
) -> None:
    alive = Segment(os.getpid(), start=numbering | 77).write(tmp_path)
    with subprocess.Popen(["true"]) as process:
        process.wait()
        dead = Segment(process.pid, start=numbering | 78).write(tmp_path)
    fd, proc = os.open(tmp_path, os.O_RDONLY), os.open("/proc", os.O_RDONLY)
    try:
        assert remove_dead_segments(fd, proc) == 1
    finally:
        os.close(fd)
        os.close(proc)
    assert alive.exists()
    assert not dead.exists()
