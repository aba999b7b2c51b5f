"""Traps that came with sums, libraries and classes: each failed, or would, with a naive library."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.native.raw_segments import DIRECTORY, LIBRARIES, Record, read_records
from tests.native.recording import Recorder, compile_c

_ALL = 127
_CLASSES = {
    "open": 1, "mutate": 2, "connect": 4, "stat": 8, "transfer": 16, "load": 32, "sources": 64,
}  # fmt: skip


@pytest.fixture
def recorder(tmp_path: Path) -> Recorder:
    return Recorder(tmp_path / "world" / "seg")


def _records(
    recorder: Recorder, command: list[str | Path], cwd: Path | None = None
) -> tuple[bytes, list[Record]]:
    recorder.clear()
    done = subprocess.run(
        command, check=False, capture_output=True, env=recorder.environment(), cwd=cwd, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, read_records(recorder.segments)


_BUSY = """
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
int main(void) {
    struct stat status; struct timespec now; char byte;
    struct sockaddr_in in = {.sin_family = AF_INET, .sin_port = htons(9)};
    int fd = open("/dev/zero", O_RDONLY);
    read(fd, &byte, 1);
    stat("/", &status);
    clock_gettime(CLOCK_REALTIME, &now);
    unlink("/absent");
    connect(socket(AF_INET, SOCK_STREAM, 0), (struct sockaddr *)&in, sizeof(in));
    return 0;
}
"""


@pytest.mark.parametrize("off", list(_CLASSES))
def test_a_class_that_is_switched_off_leaves_no_record(
    recorder: Recorder, tmp_path: Path, off: str
) -> None:
    program = compile_c(_BUSY, tmp_path / "busy")
    (recorder.segments.parent / "classes").symlink_to(f"{_ALL & ~_CLASSES[off]:x}")
    _, records = _records(recorder, [program])
    found = {record.type for record in records}
    assert off not in found
    assert set(_CLASSES) - {off} <= found
    assert {"hello", "exit"} <= found


def test_dlopen_searches_where_its_caller_says(recorder: Recorder, tmp_path: Path) -> None:
    """A frame of the library's between them would hide the caller's RUNPATH from the loader."""
    (tmp_path / "lib").mkdir()
    compile_c(
        "int answer(void) { return 42; }", tmp_path / "lib" / "libhidden.so", "-shared", "-fPIC"
    )
    source = """
    #include <dlfcn.h>
    int main(void) {
        void *library = dlopen("libhidden.so", RTLD_NOW);
        int (*answer)(void) = library ? (int (*)(void))dlsym(library, "answer") : 0;
        dlopen("libabsent.so", RTLD_NOW);
        return answer && answer() == 42 ? 0 : 1;
    }
    """
    program = compile_c(source, tmp_path / "p", f"-Wl,-rpath,{tmp_path}/lib", "-ldl")
    _, records = _records(recorder, [program])
    loads = [record for record in records if record.type == "load"]
    libraries = _libraries(records)
    assert [r.path for r in loads if r.op == "dlopen"] == ["libhidden.so", "libabsent.so"]
    assert f"{tmp_path}/lib/libhidden.so" in libraries
    assert any(Path(name).name.startswith("libc.so") for name in libraries)
    assert len(set(libraries)) == len(libraries)  # each is told once


def _libraries(records: list[Record]) -> list[str]:
    return [
        name.decode()
        for record in records
        if record.type == "load"
        for value in record.all(LIBRARIES)
        for name in value.split(b"\0")
        if name
    ]


def test_what_an_earlier_constructor_loaded_is_told_once(
    recorder: Recorder, tmp_path: Path
) -> None:
    """Libraries of the start are known by where they stand; these stand behind them."""
    for name in ("early", "late"):
        compile_c("int x;", tmp_path / f"lib{name}.so", "-shared", "-fPIC")
    source = f"""
    #include <dlfcn.h>
    __attribute__((constructor)) static void load(void) {{
        dlopen("{tmp_path}/libearly.so", RTLD_NOW);
    }}
    """
    compile_c(source, tmp_path / "libfirst.so", "-shared", "-fPIC", "-ldl")
    main = f"""
    #include <dlfcn.h>
    int main(void) {{
        void *early = dlopen("{tmp_path}/libearly.so", RTLD_NOW | RTLD_NOLOAD);
        dlclose(early);
        dlclose(early);
        return dlopen("{tmp_path}/liblate.so", RTLD_NOW) == 0;
    }}
    """
    program = compile_c(
        main, tmp_path / "p", f"-L{tmp_path}", "-Wl,--no-as-needed", "-lfirst",
        f"-Wl,-rpath,{tmp_path}", "-ldl",
    )  # fmt: skip
    _, records = _records(recorder, [program])
    libraries = _libraries(records)
    assert len(set(libraries)) == len(libraries)
    expected = {f"{tmp_path}/lib{name}.so" for name in ("first", "early", "late")}
    assert expected <= set(libraries)


@pytest.mark.needs_strace
def test_the_libraries_of_the_start_need_no_question_to_the_kernel(
    recorder: Recorder, tmp_path: Path
) -> None:
    """Nine calls for each program that is started, when each library was asked about."""
    program = compile_c("int main(void) { return 0; }", tmp_path / "p")
    log = tmp_path / "log"
    environment = {
        name: value
        for name, value in recorder.environment().items()
        if name in ("LD_PRELOAD", "SUBSTRATE_SEGMENTS")
    }
    options = [f"-E{name}={value}" for name, value in environment.items()]
    subprocess.run(
        ["strace", "-e", "trace=rt_sigprocmask,exit_group", "-o", log, *options, program],
        check=True, timeout=60,
    )  # fmt: skip
    assert "exit_group" in log.read_text()
    assert "rt_sigprocmask" not in log.read_text()
    assert any(
        Path(name).name.startswith("libc.so")
        for name in _libraries(read_records(recorder.segments))
    )


def test_a_directory_that_another_process_renames_is_told_by_its_new_name(
    recorder: Recorder, tmp_path: Path
) -> None:
    code = (
        "import os, time, sys\n"
        "fd = os.open('old', os.O_RDONLY)\n"
        "os.close(os.open('a', os.O_CREAT | os.O_WRONLY, dir_fd=fd))\n"
        "print(flush=True); sys.stdin.readline()\n"
        "os.close(os.open('b', os.O_CREAT | os.O_WRONLY, dir_fd=fd))\n"
    )
    (tmp_path / "old").mkdir()
    with subprocess.Popen(
        [sys.executable, "-S", "-c", code],
        env=recorder.environment(),
        cwd=tmp_path,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as program:
        assert program.stdout is not None
        assert program.stdin is not None
        program.stdout.readline()
        # As old as a remembered path may become: time is what is tested.
        subprocess.run(["sleep", "0.2"], check=True)
        os.rename(tmp_path / "old", tmp_path / "new")
        program.stdin.write(b"\n")
        program.stdin.close()
        assert program.wait(20) == 0
    told = {
        r.path: r.one(DIRECTORY) for r in read_records(recorder.segments) if r.path in {"a", "b"}
    }
    assert told == {"a": os.fsencode(tmp_path / "old"), "b": os.fsencode(tmp_path / "new")}


def test_system_calls_by_number_fork_and_exec_as_ever(recorder: Recorder, tmp_path: Path) -> None:
    source = """
    #define _GNU_SOURCE
    #include <fcntl.h>
    #include <linux/sched.h>
    #include <signal.h>
    #include <sys/syscall.h>
    #include <sys/wait.h>
    #include <unistd.h>
    int main(void) {
        struct clone_args how = {.exit_signal = SIGCHLD};
        for (int i = 0; i < 2; i++) {
            int status;
            long child = i == 0 ? syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0)
                                : syscall(SYS_clone3, &how, sizeof(how));
            if (child == 0) {
                char *argv[] = {"sh", "-c", "exit 7", 0}, *environment[] = {0};
                open(i == 0 ? "/cloned" : "/cloned3", O_RDONLY);
                syscall(SYS_execve, "/bin/sh", argv, environment);
            }
            if (waitpid(child, &status, 0) != child || WEXITSTATUS(status) != 7)
                return 1;
        }
        return syscall(SYS_clone3, (void *)8, sizeof(how)) == -1 ? 0 : 1;
    }
    """
    program = compile_c(source, tmp_path / "p")
    _, records = _records(recorder, [program])
    forks = {r.op: r.result for r in records if r.type == "fork" and r.error == 0}
    assert set(forks) == {"clone", "clone3"}
    opened = {r.path: r.pid for r in records if r.type == "open"}
    assert (opened["/cloned"], opened["/cloned3"]) == (forks["clone"], forks["clone3"])
    execs = [r.pid for r in records if r.type == "exec"]
    assert execs == list(forks.values())
    # The environment that was passed had no LD_PRELOAD: the shells were reached all the same.
    assert sum(r.type == "hello" and r.pid in execs for r in records) == 4


def test_below_a_filter_nothing_is_asked_of_the_kernel(recorder: Recorder, tmp_path: Path) -> None:
    """Also where a call fails so that its arguments may not have been read."""
    source = """
    #define _GNU_SOURCE
    #include <errno.h>
    #include <fcntl.h>
    #include <linux/filter.h>
    #include <linux/seccomp.h>
    #include <stddef.h>
    #include <sys/prctl.h>
    #include <sys/stat.h>
    #include <sys/syscall.h>
    #include <unistd.h>
    #define ON(n, result) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, n, 0, 1), BPF_STMT(BPF_RET, result)
    int main(void) {
        struct sock_filter code[] = {
            BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
            ON(SYS_openat, SECCOMP_RET_ERRNO | EPERM),
            ON(SYS_newfstatat, SECCOMP_RET_ERRNO | EPERM),
            ON(SYS_read, SECCOMP_RET_ALLOW), ON(SYS_exit_group, SECCOMP_RET_ALLOW),
            BPF_STMT(BPF_RET, SECCOMP_RET_KILL_PROCESS)};
        struct sock_fprog filter = {sizeof(code) / sizeof(code[0]), code};
        struct stat status;
        char byte;
        int fd = open("/dev/zero", O_RDONLY);
        prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter);
        for (int i = 0; i < 300; i++) {
            if (open("/quiet", O_RDONLY) != -1 || errno != EPERM)
                _exit(1);
            if (stat("/quiet", &status) != -1 || read(fd, &byte, 1) != 1)
                _exit(2);
        }
        _exit(0);
    }
    """
    program = compile_c(source, tmp_path / "p")
    _, records = _records(recorder, [program])
    assert any(r.type == "transfer" for r in records)


_NULLS = """
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <unistd.h>
int main(void) {
    static const long numbers[] = {
        SYS_openat, SYS_openat2, SYS_statx, SYS_newfstatat, SYS_faccessat, 439, SYS_execve,
        SYS_execveat, 435, SYS_renameat2, SYS_linkat, SYS_symlinkat, SYS_unlinkat, SYS_mkdirat,
        SYS_memfd_create, SYS_getrandom,
#ifdef SYS_open
        SYS_open, SYS_rename, SYS_unlink, SYS_mkdir,
#endif
    };
    static const long pointers[] = {0, 1, 8, 4095, 4096, 1L << 62};
    for (unsigned i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++)
        for (unsigned j = 0; j < sizeof(pointers) / sizeof(pointers[0]); j++) {
            long p = pointers[j];
            errno = 0;
            long result = syscall(numbers[i], p, p, p, p, p);
            printf("%ld %ld %ld %d\\n", numbers[i], p, result, errno);
        }
    return 0;
}
"""


def test_system_calls_by_number_with_pointers_to_nothing_fail_as_ever(
    recorder: Recorder, tmp_path: Path
) -> None:
    program = compile_c(_NULLS, tmp_path / "nulls")
    plain = subprocess.run([program], check=True, capture_output=True, timeout=60).stdout
    recorded, _ = _records(recorder, [program])
    assert recorded == plain
    assert plain.count(b" 14\n") > 50  # EFAULT
