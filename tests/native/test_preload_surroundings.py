"""What surrounds a program may be anything: constructors, its own getenv, its descriptors.

Traps of research/telemetry.md §3; docs/TELEMETRY.md names the test of each.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.native.recording import Recorder, compile_c, preload_library


@pytest.fixture
def recorder(tmp_path: Path) -> Recorder:
    return Recorder(tmp_path / "seg")


def test_what_runs_before_our_constructor_is_recorded(recorder: Recorder, tmp_path: Path) -> None:
    """A library's constructor, and before any of those the program's own preinit functions."""
    library = """
    #include <fcntl.h>
    __attribute__((constructor)) static void early(void) { open("/early", O_RDONLY); }
    void needed(void) {}
    """
    compile_c(library, tmp_path / "libearly.so", "-shared", "-fPIC")
    source = """
    #include <fcntl.h>
    void needed(void);
    static void first(void) { open("/preinit", O_RDONLY); }
    __attribute__((section(".preinit_array"), used)) static void (*at_first)(void) = first;
    int main(void) { needed(); open("/main", O_RDONLY); return 5; }
    """
    link = (f"-L{tmp_path}", "-learly", f"-Wl,-rpath,{tmp_path}")
    recording = recorder.run([compile_c(source, tmp_path / "p", *link), "argument"])
    assert recording.returncode == 5
    opened = [event["path"] for event in recording.calls("open")]
    assert [path for path in opened if path in ("/preinit", "/early", "/main")] == [
        "/preinit", "/early", "/main",
    ]  # fmt: skip
    (process,) = recording.summary.processes
    assert (process.argv[1:], process.exit_code, process.coverage) == ((b"argument",), 5, "full")


def test_a_program_may_have_an_environment_and_a_memory_of_its_own(
    recorder: Recorder, tmp_path: Path
) -> None:
    """As bash does: what we called of these would be the program's, before it is ready for it."""
    source = """
    #define _GNU_SOURCE
    #include <fcntl.h>
    #include <stdlib.h>
    #include <string.h>
    #include <unistd.h>
    extern char **environ;
    static int ready;
    static char heap[1 << 22];
    static size_t used;
    static void check(void) { if (!ready) abort(); }
    char *getenv(const char *name) { check(); return 0; }
    char *secure_getenv(const char *name) { check(); return 0; }
    int setenv(const char *name, const char *value, int over) { check(); return -1; }
    int unsetenv(const char *name) { check(); return -1; }
    int putenv(char *entry) { check(); return -1; }
    void *malloc(size_t size) {
        check();
        used = (used + 15) & ~15ul;
        void *found = heap + used;
        used += size;
        return used > sizeof heap ? 0 : found;
    }
    void free(void *memory) { check(); }
    void *calloc(size_t count, size_t size) { return malloc(count * size); }
    void *realloc(void *memory, size_t size) { return malloc(size); }
    int main(int argc, char **argv) {
        if (open("/own", O_RDONLY) != -1) return 1;
        if (argc > 1) return 6;
        char *again[] = {argv[0], "again", 0}, *none[] = {"ONLY=this", 0};
        execve(argv[0], again, none);
        return 2;
    }
    """
    recording = recorder.run([compile_c(source, tmp_path / "p", "-rdynamic")])
    assert recording.returncode == 6, recording.stderr
    assert len([e for e in recording.calls("open") if e["path"] == "/own"]) == 2
    assert [p.exec_no for p in recording.summary.processes] == [1, 2]


def test_no_descriptor_of_a_program_is_ours(recorder: Recorder, tmp_path: Path) -> None:
    """Nor while it has threads, forks and several segments."""
    source = """
    #define _GNU_SOURCE
    #include <dirent.h>
    #include <fcntl.h>
    #include <pthread.h>
    #include <stdio.h>
    #include <sys/wait.h>
    #include <unistd.h>
    static void *many(void *unused) {
        for (int i = 0; i < 3000; i++)
            open("/many", O_RDONLY);
        return unused;
    }
    static void list(void) {
        DIR *directory = opendir("/proc/self/fd");
        for (struct dirent *entry; (entry = readdir(directory)) != 0;)
            printf("%s ", entry->d_name);
        closedir(directory);
        printf("%d %d\\n", open("/dev/null", O_RDONLY), dup2(0, 7));
        fflush(stdout);
    }
    int main(void) {
        pthread_t thread;
        int status;
        list();
        pthread_create(&thread, 0, many, 0);
        many(0);
        pthread_join(thread, 0);
        list();
        pid_t child = fork();
        if (child == 0) { many(0); list(); _exit(0); }
        waitpid(child, &status, 0);
        return 0;
    }
    """
    program = compile_c(source, tmp_path / "p", "-lpthread")
    plain = subprocess.run(
        [program], check=True, stdin=subprocess.DEVNULL, capture_output=True, timeout=20
    )
    recording = recorder.run([program])
    assert recording.stdout == plain.stdout
    assert len(recording.calls("open")) >= 9000
    assert recording.summary.lost == 0


@pytest.mark.parametrize(
    "way",
    ["LD_PRELOAD={own} ./p", "env -u LD_PRELOAD ./p", "env -i LD_PRELOAD={own} ./p", "env -i ./p"],
)
def test_a_program_that_sets_ld_preload_loads_both(
    recorder: Recorder, tmp_path: Path, way: str
) -> None:
    own = compile_c(
        '#include <unistd.h>\n__attribute__((constructor)) static void own(void)'
        ' { write(1, "own", 3); }',
        tmp_path / "own.so", "-shared", "-fPIC",
    )  # fmt: skip
    source = '#include <fcntl.h>\nint main(void) { open("/both", O_RDONLY); return 3; }'
    compile_c(source, tmp_path / "p")
    recording = recorder.run(["sh", "-c", way.format(own=own)], cwd=tmp_path)
    # env -i LD_PRELOAD=... is set for its child alone: the constructor runs once.
    assert (recording.returncode, recording.stdout) == (3, b"own" if "{own}" in way else b"")
    assert "/both" in recording.paths("open")


def test_the_library_asks_for_no_thread_storage_at_run_time() -> None:
    """General dynamic TLS is allocated on the first use, by malloc, below a signal handler."""
    for musl in (False, True):
        assert b"__tls_get_addr" not in preload_library(musl=musl).read_bytes()


def test_a_program_of_many_libraries_with_thread_storage_still_starts(
    recorder: Recorder, tmp_path: Path
) -> None:
    """Little static TLS is left for what is loaded later: ours must not be what exhausts it."""
    source = "#include <dlfcn.h>\n#include <stdio.h>\nint main(void) {\n"
    for i in range(6):
        name = tmp_path / f"lib{i}.so"
        # glibc keeps 1,664 bytes of static TLS for what is opened later.
        compile_c(
            f'__thread char t{i}[256] __attribute__((tls_model("initial-exec")));'
            f"char *f{i}(void) {{ return t{i}; }}",
            name, "-shared", "-fPIC",
        )  # fmt: skip
        source += f'if (!dlopen("{name}", RTLD_NOW)) {{ puts(dlerror()); return {i + 1}; }}\n'
    program = compile_c(source + "return 0; }", tmp_path / "p", "-ldl")
    plain = subprocess.run([program], check=False, capture_output=True, timeout=20)
    recording = recorder.run([program])
    assert (recording.returncode, recording.stdout) == (plain.returncode, plain.stdout) == (0, b"")


def test_python_finds_the_descriptors_it_would_find(recorder: Recorder) -> None:
    code = "import os; print(sorted(map(int, os.listdir('/proc/self/fd'))), os.dup(0))"
    plain = subprocess.run(
        [sys.executable, "-S", "-c", code],
        check=True,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=20,
    )
    assert recorder.run([sys.executable, "-S", "-c", code]).stdout == plain.stdout
