"""Functions that programs ask the loader for by name: the hooks are what they get."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest

from substrate_services.telemetry.coverage import coverage_of
from tests.native.recording import Recorder, compile_c
from tests.native.targets import Target, TargetRoot

_LOOKUPS = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
typedef int opener(const char *, int, ...);
static void said(const char *what, int ok) { printf("%s %s\n", what, ok ? "yes" : "NO"); }
int main(int count, char **arguments) {
    void *libc = dlopen(arguments[1], RTLD_NOW), *other = dlopen(arguments[2], RTLD_NOW);
    opener *of_libc = (opener *)dlsym(libc, "open"), *of_other = (opener *)dlsym(other, "open");
    opener *everywhere = (opener *)dlsym(RTLD_DEFAULT, "open");
    of_libc("/by-libc", O_RDONLY);
    of_other("/by-dependent", O_RDONLY);
    ((opener *)dlsym(RTLD_NEXT, "open"))("/by-next", O_RDONLY);
#ifdef __GLIBC__
    opener *versioned = (opener *)dlvsym(libc, "open", VERSION);
    versioned("/by-version", O_RDONLY);
    ((opener *)dlvsym(RTLD_DEFAULT, "open", VERSION))("/by-default-version", O_RDONLY);
    said("no such version", dlvsym(libc, "open", "GLIBC_0.1") == NULL && dlerror() != NULL);
#endif
    said("the same everywhere", (void *)everywhere == (void *)open);
    said("found", libc && other);
    said("absent", dlsym(libc, "no_such_function") == NULL && dlerror() != NULL);
    said("no handle of libc", dlsym(libc, "strlen") != NULL && dlerror() == NULL);
    int (*own)(const char *, int, ...) = (opener *)dlsym(other, "creat64");
    said("its own", own != NULL && own("/never", 0) == 77);
    return 0;
}
"""
_OTHER = "int open(const char *, int, ...); int creat64(void) { return 77; } void *keep = open;"


@pytest.fixture
def recorder(tmp_path: Path) -> Recorder:
    return Recorder(tmp_path / "world" / "seg")


def test_a_handle_of_libc_leads_to_the_hooks(recorder: Recorder, tmp_path: Path) -> None:
    other = compile_c(_OTHER, tmp_path / "libother.so", "-shared", "-fPIC")
    version = f'-DVERSION="{"GLIBC_2.2.5" if platform.machine() == "x86_64" else "GLIBC_2.17"}"'
    program = compile_c(_LOOKUPS, tmp_path / "p", version, "-ldl")
    command: list[str | bytes | Path] = [program, "libc.so.6", other]
    plain = subprocess.run(command, check=True, capture_output=True, timeout=60)
    recording = recorder.run(command)
    assert (recording.returncode, recording.stdout) == (0, plain.stdout)
    assert b"NO" not in plain.stdout
    assert recording.paths("open") >= {
        "/by-libc", "/by-dependent", "/by-next", "/by-version", "/by-default-version",
    }  # fmt: skip
    assert coverage_of(recording.summary).state == "full"


def test_ctypes_of_libc_is_seen(recorder: Recorder) -> None:
    code = "import ctypes; ctypes.CDLL('libc.so.6').unlink(b'/by-ctypes')"
    assert "/by-ctypes" in recorder.run([sys.executable, "-S", "-c", code]).paths("unlink")


_BEHIND = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
/* As sanitizers and allocators do: it stands in front of libc, and asks for what is behind it. */
int mkdir(const char *path, unsigned mode) {
    int (*next)(const char *, unsigned) = dlsym(RTLD_NEXT, "mkdir");
    return next(path, mode) == -1 ? -1 : 0;
}
static int depth;
void *malloc(size_t size) {
    static void *(*next)(size_t);
    static char early[1 << 16];
    static size_t used;
    if (next == NULL) {
        if (depth++ != 0)
            return early + (used += (size + 15) & ~15ul) - ((size + 15) & ~15ul);
        next = (void *(*)(size_t))dlsym(RTLD_NEXT, "malloc");
        depth--;
    }
    return next(size);
}
"""


@pytest.mark.parametrize("where", ["before", "behind"])
def test_another_interposer_reaches_the_next_one(
    recorder: Recorder, tmp_path: Path, where: str
) -> None:
    library = compile_c(_BEHIND, tmp_path / "libinter.so", "-shared", "-fPIC", "-ldl")
    main = r"""
    #include <errno.h>
    #include <stdlib.h>
    int mkdir(const char *, unsigned);
    int main(void) { free(0); return mkdir("/absent/made", 0755) == -1 && malloc(9) ? 0 : 1; }
    """
    flags = [] if where == "before" else [f"-L{tmp_path}", "-Wl,--no-as-needed", "-linter"]
    program = compile_c(main, tmp_path / "p", *flags, f"-Wl,-rpath,{tmp_path}", "-ldl")
    preload = recorder.environment()["LD_PRELOAD"]
    env = {"LD_PRELOAD": f"{library}:{preload}"} if where == "before" else None
    recording = recorder.run([program], env=env)
    assert recording.returncode == 0, recording.stderr
    assert [event["path"] for event in recording.calls("mkdir")] == ["/absent/made"]


def test_a_library_that_passes_the_hooks_is_told(recorder: Recorder, tmp_path: Path) -> None:
    library = compile_c(_OTHER, tmp_path / "libother.so", "-shared", "-fPIC")
    source = r"""
    #define _GNU_SOURCE
    #include <dlfcn.h>
    int main(int count, char **arguments) {
        void *made = arguments[2][0] == 'm' ? dlmopen(LM_ID_NEWLM, arguments[1], RTLD_NOW)
                                            : dlopen(arguments[1], RTLD_NOW | RTLD_DEEPBIND);
        return made == 0;
    }
    """
    program = compile_c(source, tmp_path / "p", "-ldl")
    for how in ("m", "d"):
        recording = recorder.run([program, library, how])
        assert recording.returncode == 0
        coverage = coverage_of(recording.summary)
        assert coverage.state == "partial"
        assert "dlmopen, RTLD_DEEPBIND" in coverage.reasons[0]


@pytest.mark.parametrize("target", [Target("x86_64", "musl"), Target("aarch64", "gnu")], ids=str)
def test_a_handle_leads_to_the_hooks_on_other_targets(target: Target, tmp_path: Path) -> None:
    if why := target.why_not():
        pytest.skip(why)
    root = TargetRoot(target, tmp_path / "root")
    source = tmp_path / "lookups.c"
    source.write_text(_LOOKUPS)
    other = tmp_path / "other.c"
    other.write_text(_OTHER)
    libc = "libc.so" if target.libc == "musl" else "libc.so.6"
    target.compile(other, root.path / "bin" / "libother.so", "-shared", "-fPIC")
    target.compile(source, root.path / "bin" / "lookups", '-DVERSION="GLIBC_2.17"')
    recording = root.run("/bin/lookups", libc, "/bin/libother.so")
    assert recording.returncode == 0, recording.stderr
    assert b"NO" not in recording.stdout
    wanted = {"/by-libc", "/by-dependent", "/by-next"}
    assert recording.paths("open") >= wanted


_WEAK = r"""
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>
#define ASK(name) printf("%s %d\n", #name, (name) != 0)
extern int pidfd_spawn(void) __attribute__((weak));
extern int pidfd_spawnp(void) __attribute__((weak));
extern int posix_spawn_file_actions_addchdir_np(void) __attribute__((weak));
extern int posix_spawn_file_actions_addfchdir_np(void) __attribute__((weak));
extern int posix_spawn_file_actions_addclosefrom_np(void) __attribute__((weak));
extern pid_t _Fork(void) __attribute__((weak));
int main(void) {
    ASK(pidfd_spawn);
    ASK(pidfd_spawnp);
    ASK(posix_spawn_file_actions_addchdir_np);
    ASK(posix_spawn_file_actions_addfchdir_np);
    ASK(posix_spawn_file_actions_addclosefrom_np);
    ASK(_Fork);
    fflush(stdout);
    if (_Fork && _Fork() == 0)
        _exit(0);
    wait(0);
    return 0;
}
"""


@pytest.mark.parametrize("flags", [(), ("-no-pie",), ("-fPIE", "-pie", "-Wl,-z,now")], ids=str)
def test_what_libc_has_not_got_is_not_found_for_the_hook_s_sake(
    recorder: Recorder, tmp_path: Path, flags: tuple[str, ...]
) -> None:
    """Before glibc 2.39 there is no pidfd_spawn: who asked weakly found one that did nothing."""
    program = compile_c(_WEAK, tmp_path / "weak", *flags)
    plain = subprocess.run([program], check=True, capture_output=True, timeout=60)
    recording = recorder.run([program])
    assert recording.returncode == 0, recording.stderr
    assert recording.stdout == plain.stdout
    assert bool(recording.calls("_Fork")) == (b"_Fork 1" in plain.stdout)
