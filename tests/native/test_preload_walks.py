"""Walks: what a descriptor leads to follows from how it was opened, until something says otherwise.

The kernel is asked for the path behind a directory's descriptor once; what is opened below it by a
name that cannot be a followed link, and copies of it, are derived. Each test is a way in which a
derived path could be a wrong one.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.native.raw_segments import read_records
from tests.native.recording import Recorder, Recording, compile_c

_HEAD = """
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#define WALK (O_RDONLY | O_DIRECTORY | O_NOFOLLOW)
static int below(int fd, const char *name) { return openat(fd, name, WALK); }
static void mark(int fd, const char *name) { mkdirat(fd, name, 0755); }
"""


@pytest.fixture
def recorder(tmp_path: Path) -> Recorder:
    return Recorder(tmp_path / "segments")


def _run(
    recorder: Recorder, tmp_path: Path, body: str, headers: str = ""
) -> tuple[Recording, Path]:
    """Run the body of a main() that starts in a tree: a/b/c, other/b, link -> other."""
    tree = tmp_path / "tree"
    for name in ("a/b/c", "other/b"):
        (tree / name).mkdir(parents=True)
    (tree / "link").symlink_to("other")
    source = f"{_HEAD}{headers}\nint main(void) {{\n{body}\nreturn 0; }}"
    program = compile_c(source, tmp_path / "walk", "-lpthread")
    recording = recorder.run([program], cwd=tree)
    assert (recording.returncode, recording.stderr) == (0, b"")
    return recording, tree


def _made(recording: Recording, tree: Path) -> list[str]:
    """The marks as the events place them, relative to the tree. The truth is where they are."""
    events = [event["path"] for event in recording.calls("mkdirat", "mkdir")]
    told = [os.path.relpath(path, tree) for path in events]
    there = {str(p.relative_to(tree)) for p in tree.rglob("*") if p.is_dir() and p.name[0] == "m"}
    assert set(told) == there
    return told


def _asked(tmp_path: Path, recorder: Recorder, body: str) -> int:
    """How often the kernel was asked for a descriptor's path."""
    log = tmp_path / "log"
    program = compile_c(f"{_HEAD}\nint main(void) {{\n{body}\nreturn 0; }}", tmp_path / "counted")
    loaded = {
        name: value
        for name, value in recorder.environment().items()
        if name in ("LD_PRELOAD", "SUBSTRATE_SEGMENTS")
    }
    options = [f"-E{name}={value}" for name, value in loaded.items()]
    subprocess.run(
        ["strace", "-e", "trace=readlinkat", "-o", log, *options, program],
        check=True, timeout=60, cwd=tmp_path / "tree",
    )  # fmt: skip
    return log.read_text().count("/proc/self/fd/")


@pytest.mark.needs_strace
def test_a_walk_asks_for_the_directory_that_it_starts_from_alone(
    recorder: Recorder, tmp_path: Path
) -> None:
    body = """
    int top = open("a", WALK), b = below(top, "b"), c = below(b, "c");
    int copy = fcntl(c, F_DUPFD_CLOEXEC, 20);
    close(c);
    mark(copy, "m1"); mark(b, "m2"); mark(top, "m3");
    """
    recording, tree = _run(recorder, tmp_path, body)
    assert _made(recording, tree) == ["a/b/c/m1", "a/b/m2", "a/m3"]
    # A copy's own question is how this could fail: one a descriptor, four in all.
    for name in ("a/b/c/m1", "a/b/m2", "a/m3"):
        (tree / name).rmdir()
    assert _asked(tmp_path, recorder, body) <= 2  # two: where the clock passed the answer's age


def test_find_is_told_where_it_looked(recorder: Recorder, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    expected = set()
    for first in range(4):
        for second in range(4):
            (tree / f"{first}" / f"{second}" / "deep").mkdir(parents=True)
            expected |= {f"{first}", f"{first}/{second}", f"{first}/{second}/deep"}
            (tree / f"{first}" / f"{second}" / "deep" / "file").touch()
            expected.add(f"{first}/{second}/deep/file")
    recording = recorder.run(["find", tree, "-newer", "/etc/hostname"])
    looked = {
        os.path.relpath(event["path"], tree)
        for event in recording.events
        if event["event_type"] == "file_summary" and event.get("path", "").startswith(str(tree))
    }
    assert looked >= expected
    # Nothing else: a path that is not there is one that was derived from a wrong one.
    assert all((tree / path).exists() for path in looked)


def test_a_link_that_is_followed_is_asked_for(recorder: Recorder, tmp_path: Path) -> None:
    body = """
    int top = open(".", WALK), through = openat(top, "link", O_RDONLY | O_DIRECTORY);
    mark(through, "m1");
    int slash = openat(top, "link/", WALK);
    mark(slash, "m2");
    int b = openat(top, "link/b", WALK), up = below(b, ".."), same = below(up, ".");
    mark(b, "m3"); mark(up, "m4"); mark(same, "m5");
    """
    recording, tree = _run(recorder, tmp_path, body)
    assert _made(recording, tree) == [
        "other/m1", "other/m2", "other/b/m3", "other/m4", "other/m5",
    ]  # fmt: skip


def test_a_number_that_is_used_again_is_another_directory(
    recorder: Recorder, tmp_path: Path
) -> None:
    """By every way of closing that passes the library, one that libc does inside, and dup2 over."""
    reuse = """
    int top = open(".", WALK), a = below(top, "a"), other = below(top, "other"), fd;
    fd = below(a, "b"); mark(fd, "m1"); close(fd);
    fd = below(other, "b"); mark(fd, "m2"); closefrom(fd);
    fd = below(a, "b"); mark(fd, "m3"); close_range(fd, fd, 0);
    fd = below(other, "b"); mark(fd, "m4"); syscall(SYS_close, fd);
    fd = below(a, "b"); mark(fd, "m5");
    dup2(other, fd); mark(fd, "m6");
    syscall(SYS_dup3, a, fd, O_CLOEXEC); mark(fd, "m7");
    syscall(SYS_close_range, fd, fd, 0);
    if (syscall(SYS_dup, other) != fd)
        return 1;
    mark(fd, "m10"); close(fd);
    fd = syscall(SYS_openat, other, "b", WALK); mark(fd, "m8");
    DIR *stream = fdopendir(fd); closedir(stream);
    fd = below(a, "b"); mark(fd, "m9");
    """
    recording, tree = _run(recorder, tmp_path, reuse)
    assert _made(recording, tree) == [
        "a/b/m1", "other/b/m2", "a/b/m3", "other/b/m4", "a/b/m5", "other/m6", "a/m7", "other/m10",
        "other/b/m8", "a/b/m9",
    ]  # fmt: skip


def test_what_is_made_anew_without_an_open_is_asked_for(recorder: Recorder, tmp_path: Path) -> None:
    """Closed and opened by system calls that pass nobody: true again when the answer is old."""
    body = """
    int top = open(".", WALK), fd = below(top, "a");
    mark(fd, "m1");
    long other, closed, at = top;
    __asm__ volatile("syscall" : "=a"(closed) : "a"(SYS_close), "D"((long)fd)
                     : "rcx", "r11", "memory");
    register long r10 __asm__("r10") = 0;
    __asm__ volatile("syscall" : "=a"(other)
                     : "a"(SYS_openat), "D"(at), "S"("other"), "d"((long)WALK), "r"(r10)
                     : "rcx", "r11", "memory");
    if (other != fd)
        return 1;
    usleep(200000); /* as old as an answer may become: time is what is tested */
    mark(fd, "m2");
    int b = below(fd, "b");
    mark(b, "m3");
    """
    if os.uname().machine != "x86_64":
        pytest.skip("the system calls are written for x86_64")
    recording, tree = _run(recorder, tmp_path, body)
    assert _made(recording, tree) == ["a/m1", "other/m2", "other/b/m3"]


def test_a_directory_that_the_program_renames_takes_what_is_below_along(
    recorder: Recorder, tmp_path: Path
) -> None:
    body = """
    int top = open(".", WALK), a = below(top, "a"), b = below(a, "b"), c = below(b, "c");
    mark(c, "m1");
    renameat(top, "a", top, "new");
    mkdirat(c, "m2", 0755); mkdirat(b, "m3", 0755);
    int again = below(a, "b");
    mkdirat(again, "m4", 0755);
    """
    recording, tree = _run(recorder, tmp_path, body)
    told = [os.path.relpath(event["path"], tree) for event in recording.calls("mkdirat")]
    assert told == ["a/b/c/m1", "new/b/c/m2", "new/b/m3", "new/b/m4"]


def test_a_directory_above_that_another_process_renames_is_told_by_its_new_name(
    recorder: Recorder, tmp_path: Path
) -> None:
    """What is derived is no younger than the answer that it hangs on."""
    code = (
        "import os, sys\n"
        "walk = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW\n"
        "top = os.open('.', walk)\n"
        "a = os.open('a', walk, dir_fd=top)\n"
        "b = os.open('b', walk, dir_fd=a)\n"
        "os.mkdir('m1', dir_fd=b)\n"
        "print(flush=True); sys.stdin.readline()\n"
        "os.mkdir('m2', dir_fd=b)\n"
        "c = os.open('c', walk, dir_fd=b)\n"
        "os.mkdir('m3', dir_fd=c)\n"
    )
    tree = tmp_path / "tree"
    (tree / "a/b/c").mkdir(parents=True)
    with subprocess.Popen(
        [sys.executable, "-S", "-c", code],
        env=recorder.environment(), cwd=tree, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as program:  # fmt: skip
        assert program.stdout is not None
        assert program.stdin is not None
        program.stdout.readline()
        # As old as an answer may become: time is what is tested.
        subprocess.run(["sleep", "0.2"], check=True)
        os.rename(tree / "a", tree / "new")
        program.stdin.write(b"\n")
        program.stdin.close()
        assert program.wait(20) == 0
    events = recorder.read().calls("mkdirat", "mkdir")
    told = [os.path.relpath(event["path"], tree) for event in events]
    assert told == ["a/b/m1", "new/b/m2", "new/b/c/m3"]


def test_what_is_derived_is_as_old_as_the_answer_that_it_hangs_on(
    recorder: Recorder, tmp_path: Path
) -> None:
    """An answer counts in its unit of 67 ms and in the next; the program knows in which it is."""
    body = """
    #include <time.h>
    long unit(void) {
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        return (now.tv_sec * 1000000000L + now.tv_nsec) >> 26;
    }
    for (int i = 0; i < 50; i++) {
        char name[16], other[16];
        int status, top = open(".", WALK);
        long began = unit();
        while (unit() == began)
            usleep(1000);
        snprintf(name, sizeof(name), "m%d", i), snprintf(other, sizeof(other), "n%d", i);
        mark(top, name);
        while (unit() == began + 1)
            usleep(1000);
        int fd = below(top, name);
        if (unit() != began + 2)
            continue;
        if (fork() == 0)
            _exit(syscall(SYS_renameat2, top, name, top, other, 0));
        wait(&status);
        while (unit() == began + 2)
            usleep(1000);
        mkdirat(fd, "seen", 0755);
        return unit() != began + 3;
    }
    """
    recording, _ = _run(recorder, tmp_path, body)
    seen = recording.calls("mkdirat")[-1]["path"]
    assert Path(seen).parent.name.startswith("n")
    assert Path(seen).is_dir()


def test_children_ask_for_what_they_inherit(recorder: Recorder, tmp_path: Path) -> None:
    """A forked child, one that borrows the memory, and a program that was handed descriptors."""
    body = """
    int top = open(".", WALK), a = below(top, "a"), other = below(top, "other");
    int b = below(a, "b"), status;
    if (fork() == 0) {
        mark(b, "m1");
        dup2(other, b);
        mark(b, "m2");
        _exit(0);
    }
    wait(&status);
    mark(b, "m3");
    if (vfork() == 0) {
        dup2(other, b);
        mkdirat(b, "m4", 0755);
        _exit(0);
    }
    wait(&status);
    mark(b, "m5");
    if (fork() == 0) {
        char code[100];
        snprintf(code, sizeof(code), "import os; os.mkdir('m6', dir_fd=%d)", b);
        execlp("python3", "python3", "-S", "-c", code, (char *)0);
    }
    wait(&status);
    """
    recording, tree = _run(recorder, tmp_path, body)
    assert sorted(_made(recording, tree)) == [
        "a/b/m1", "a/b/m3", "a/b/m5", "a/b/m6", "other/m2", "other/m4",
    ]  # fmt: skip


def test_threads_share_descriptors(recorder: Recorder, tmp_path: Path) -> None:
    """One opens, another uses; one closes, another has the number again."""
    body = """
    static int top, fd; static pthread_barrier_t step;
    top = open(".", WALK);
    pthread_barrier_init(&step, NULL, 2);
    void *other(void *unused) {
        pthread_barrier_wait(&step);
        mark(fd, "m2");
        close(fd);
        int mine = below(top, "other");
        if (mine != fd)
            abort();
        mark(mine, "m3");
        pthread_barrier_wait(&step);
        return NULL;
    }
    pthread_t thread;
    pthread_create(&thread, NULL, other, NULL);
    fd = below(top, "a");
    mark(fd, "m1");
    pthread_barrier_wait(&step);
    pthread_barrier_wait(&step);
    mark(fd, "m4");
    int b = below(fd, "b");
    mark(b, "m5");
    pthread_join(thread, NULL);
    """
    recording, tree = _run(recorder, tmp_path, body)
    assert _made(recording, tree) == ["a/m1", "a/m2", "other/m3", "other/m4", "other/b/m5"]


def test_a_change_of_the_working_directory_moves_no_descriptor(
    recorder: Recorder, tmp_path: Path
) -> None:
    body = """
    int a = open("a", WALK), b = below(a, "b");
    mark(b, "m1");
    fchdir(b); mkdir("m2", 0755);
    chdir("../../other"); mkdir("m3", 0755);
    mark(b, "m4");
    int c = below(b, "c");
    mark(c, "m5");
    """
    recording, tree = _run(recorder, tmp_path, body)
    assert _made(recording, tree) == ["a/b/m1", "a/b/m2", "other/m3", "a/b/m4", "a/b/c/m5"]


def test_a_file_that_is_made_below_is_known_by_its_descriptor(
    recorder: Recorder, tmp_path: Path
) -> None:
    """O_EXCL follows no link; O_TMPFILE opens what has no name; a plain open may follow one."""
    body = """
    int top = open(".", WALK);
    int made = openat(top, "made", O_WRONLY | O_CREAT | O_EXCL, 0600);
    fchmod(made, 0640);
    symlink("made", "alias");
    int alias = openat(top, "alias", O_WRONLY | O_CREAT, 0600);
    fchmod(alias, 0644);
    int unnamed = openat(top, "a", O_TMPFILE | O_WRONLY | O_NOFOLLOW, 0600);
    fchmod(unnamed, 0640);
    """
    recording, tree = _run(recorder, tmp_path, body)
    paths = [event.get("path", "") for event in recording.calls("fchmod")]
    assert paths[:2] == [str(tree / "made")] * 2
    assert paths[2] != str(tree / "a")


def test_a_file_that_was_made_just_now_is_where_its_maker_said(
    recorder: Recorder, tmp_path: Path
) -> None:
    """As tar and cp do it; unless the path goes up, or the file was there."""
    body = """
    int made = open("a/b/made", O_WRONLY | O_CREAT | O_EXCL, 0600);
    fchmod(made, 0640);
    rename("a/b/made", "a/moved");
    fchmod(made, 0644);
    int up = open("link/../up", O_WRONLY | O_CREAT | O_EXCL, 0600);
    fchmod(up, 0640);
    int there = open("a/moved", O_WRONLY | O_CREAT, 0600);
    fchmod(there, 0600);
    char name[20];
    for (int i = 0; i < 50; i++) {
        snprintf(name, sizeof(name), "a/f%d", i);
        int fd = open(name, O_WRONLY | O_CREAT | O_EXCL, 0600);
        fchmod(fd, 0640);
        close(fd);
    }
    """
    recording, tree = _run(recorder, tmp_path, body)
    paths = [event.get("path", "") for event in recording.calls("fchmod")]
    told = [os.path.relpath(path, tree) for path in paths]
    assert told[:4] == ["a/b/made", "a/moved", "up", "a/moved"]
    assert told[4:] == [f"a/f{number}" for number in range(50)]
    for path in tree.rglob("*"):
        if path.is_file():
            path.unlink()
    assert _asked(tmp_path, recorder, body) <= 3


def test_what_opens_no_descriptor_names_none(recorder: Recorder, tmp_path: Path) -> None:
    """The result of these is a count, or says success; a semaphore's was taken for number 0."""
    body = """
    char name[64], byte;
    snprintf(name, sizeof(name), "/substrate-%d", getpid());
    int kept = open("a/kept", O_RDWR | O_CREAT, 0600);
    dup2(kept, 0);
    if (sem_open(name, O_CREAT | O_EXCL, 0600, 1) == SEM_FAILED) return 1;
    sem_unlink(name);
    glob_t found;
    glob("a/*", 0, NULL, &found);
    if (write(0, "four", 4) != 4 || pread(0, &byte, 1, 0) != 1) return 2;
    fchmod(0, 0640);
    struct open_how how = {O_WRONLY | O_CREAT | O_EXCL, 0600, RESOLVE_IN_ROOT};
    int a = open("a", O_RDONLY | O_DIRECTORY);
    int made = (int)syscall(SYS_openat2, a, "//in", &how, sizeof(how));
    fchmod(made, 0640);
    """
    headers = "#include <glob.h>\n#include <linux/openat2.h>\n#include <semaphore.h>\n"
    recording, tree = _run(recorder, tmp_path, body, headers)
    kept, made = str(tree / "a/kept"), str(tree / "a/in")
    assert [event["path"] for event in recording.calls("fchmod")] == [kept, made]
    moved = [e for e in recording.events if e.get("write_bytes") == 4 and e["read_bytes"] == 1]
    assert [event["path"] for event in moved] == [kept]


def test_a_walk_goes_on_when_its_segment_is_full(recorder: Recorder, tmp_path: Path) -> None:
    """The next one knows no directories: what it says must not hang on what it does not."""
    body = """
    int top = open(".", WALK), a = below(top, "a"), b = below(a, "b");
    for (int i = 0; i < 3000; i++) {
        char name[16];
        snprintf(name, sizeof(name), "m%04d", i);
        int fd = below(i % 2 ? b : a, "c");
        mark(i % 2 ? b : a, name);
        if (fd >= 0)
            close(fd);
    }
    """
    recording, tree = _run(recorder, tmp_path, body)
    assert len(_made(recording, tree)) == 3000
    assert len(list(recorder.segments.iterdir())) > 2
    assert any(
        record.type == "open" and record.flags & 32 for record in read_records(recorder.segments)
    )
