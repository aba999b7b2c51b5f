"""Seccomp filters of programs: nobody dies of the library, and what it cannot record is told."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from substrate_services.telemetry.coverage import coverage_of
from tests.native.recording import Recorder, Recording, compile_c

_FILTER = r"""
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <spawn.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
extern char **environ;
#define ON(n, result) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, n, 0, 1), BPF_STMT(BPF_RET, result)
#define NUMBER BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr))
static int install(struct sock_filter *code, unsigned short length, int by_number) {
    struct sock_fprog filter = {length, code};
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    return by_number ? syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &filter)
                     : prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter);
}
#define INSTALL(code, by_number) install(code, sizeof(code) / sizeof(code[0]), by_number)
static int run(char **arguments) {
    int status;
    pid_t child = fork();
    if (child == 0) {
        execv(arguments[0], arguments);
        _exit(99);
    }
    waitpid(child, &status, 0);
    return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}
"""
#: What this libc's loader and start do, and the program itself; all of the library's else kills.
_STRICT = (
    _FILTER
    + r"""
static const int needed[] = {
    SYS_execve, SYS_brk, SYS_openat, SYS_newfstatat, SYS_fstat, SYS_mmap, SYS_close, SYS_read,
    SYS_pread64, SYS_mprotect, SYS_set_tid_address, SYS_set_robust_list, 334 /* rseq */, SYS_munmap,
    SYS_prlimit64, SYS_getrandom, SYS_write, SYS_exit_group, SYS_exit, SYS_clone, SYS_wait4,
    SYS_rt_sigprocmask, SYS_futex, SYS_unlinkat, SYS_prctl, SYS_seccomp, SYS_faccessat,
#ifdef SYS_access
    SYS_access, SYS_arch_prctl, SYS_readlink, SYS_unlink,
#endif
};
int main(int count, char **arguments) {
    struct sock_filter code[2 * sizeof(needed) / sizeof(needed[0]) + 2] = {NUMBER};
    unsigned short length = 1;
    for (unsigned i = 0; i < sizeof(needed) / sizeof(needed[0]); i++) {
        struct sock_filter pair[] = {ON(needed[i], SECCOMP_RET_ALLOW)};
        code[length++] = pair[0];
        code[length++] = pair[1];
    }
    struct sock_filter last = BPF_STMT(BPF_RET, SECCOMP_RET_KILL_PROCESS);
    code[length++] = last;
    if (install(code, length, arguments[1][0] == 'n') != 0)
        return 98;
    return run(arguments + 2);
}
"""
)
#: As containers and browsers do: what is dangerous is refused, the rest passes.
_LENIENT = (
    _FILTER
    + r"""
int main(int count, char **arguments) {
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch)),
        BPF_STMT(BPF_ST, 3), BPF_STMT(BPF_LDX | BPF_W | BPF_IMM, 1),
        BPF_STMT(BPF_LD | BPF_W | BPF_MEM, 3), NUMBER,
        ON(SYS_mount, SECCOMP_RET_ERRNO | EPERM), ON(SYS_ptrace, SECCOMP_RET_KILL_PROCESS),
        ON(SYS_pidfd_open, SECCOMP_RET_ERRNO | ENOSYS),
        BPF_STMT(BPF_RET, SECCOMP_RET_ALLOW)};
    if (INSTALL(code, arguments[1][0] == 'n') != 0)
        return 98;
    open("/below", O_RDONLY);
    return run(arguments + 2);
}
"""
)
_CHILD = r"""
#include <unistd.h>
int main(void) { unlink("/by-child"); write(1, "ran\n", 4); return 5; }
"""
_ASKS = (
    _FILTER
    + r"""
int main(void) {
    unsigned action = SECCOMP_RET_KILL_PROCESS;
    struct sock_filter wrong[] = {BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 1)};
    struct sock_filter round[] = {BPF_STMT(BPF_JMP | BPF_JA, 0xffffffff)}; /* to itself */
    prctl(PR_GET_SECCOMP);
    syscall(SYS_seccomp, SECCOMP_GET_ACTION_AVAIL, 0, &action);
    syscall(SYS_seccomp, 3 /* SECCOMP_GET_NOTIF_SIZES */, 0, (char[64]){0});
    if (INSTALL(wrong, 0) == 0 || INSTALL(wrong, 1) == 0 || INSTALL(round, 1) == 0)
        return 1; /* and this one the kernel did not take */
    open("/after", O_RDONLY);
    return 0;
}
"""
)


@pytest.fixture
def recorder(tmp_path: Path) -> Recorder:
    return Recorder(tmp_path / "world" / "seg")


def _run(recorder: Recorder, tmp_path: Path, source: str, how: str) -> Recording:
    outer = compile_c(source, tmp_path / "outer")
    child = compile_c(_CHILD, tmp_path / "child")
    command: list[str | bytes | Path] = [outer, how, child]
    plain = subprocess.run(command, check=False, capture_output=True, timeout=60)
    assert (plain.returncode, plain.stdout) == (5, b"ran\n")
    recording = recorder.run(command)
    assert (recording.returncode, recording.stdout) == (5, b"ran\n"), recording.stderr
    return recording


@pytest.mark.parametrize("how", ["by number", "prctl"])
def test_a_program_below_a_filter_that_kills_runs_on(
    recorder: Recorder, tmp_path: Path, how: str
) -> None:
    recording = _run(recorder, tmp_path, _STRICT, "n" if how == "by number" else "p")
    assert recording.summary.foreign_files == 0
    coverage = coverage_of(recording.summary)
    assert coverage.state == "partial"
    assert any("seccomp filter" in reason for reason in coverage.reasons)
    after = recorder.run(["sh", "-c", "true; exec true"])  # the mark is nobody else's business
    assert coverage_of(after.summary).state == "full"


def test_others_of_the_world_are_recorded_while_the_mark_is_there(
    recorder: Recorder, tmp_path: Path
) -> None:
    _run(recorder, tmp_path, _STRICT, "p")
    assert (recorder.segments / "filtered").exists()
    done = subprocess.run(["true"], check=False, env=recorder.environment(), timeout=60)
    assert done.returncode == 0
    assert any(process.exe.endswith(b"/true") for process in recorder.read().summary.processes)


@pytest.mark.parametrize("how", ["by number", "prctl"])
def test_below_a_filter_that_lets_everything_pass_all_is_recorded(
    recorder: Recorder, tmp_path: Path, how: str
) -> None:
    recording = _run(recorder, tmp_path, _LENIENT, "n" if how == "by number" else "p")
    assert "/below" in recording.paths("open")
    assert "/by-child" in recording.paths("unlink")
    assert coverage_of(recording.summary).state == "full"
    assert not (recorder.segments / "filtered").exists()


def test_questions_about_filters_and_failures_change_nothing(
    recorder: Recorder, tmp_path: Path
) -> None:
    recording = recorder.run([compile_c(_ASKS, tmp_path / "asks")])
    assert recording.returncode == 0
    assert not (recorder.segments / "filtered").exists()
    assert "/after" in recording.paths("open")
    assert coverage_of(recording.summary).state == "full"
