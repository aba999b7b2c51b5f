"""Pseudo-terminals: opened inside libc, so each way to one tells of its own opens."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.native.recording import Recorder, compile_c

_PROGRAM = """
#define _GNU_SOURCE
#include <fcntl.h>
#include <pty.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>
int main(void) {
    int master, slave, forked;
    char name[64];
    if (openpty(&master, &slave, name, NULL, NULL) != 0) return 1;
    printf("openpty %d /dev/ptmx\\nopenpty %d %s\\n", master, slave, name);
    printf("posix_openpt %d /dev/ptmx\\n", posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC));
    printf("getpt %d /dev/ptmx\\n", getpt());
    fflush(stdout);
    if (write(slave, "x", 1) != 1) return 2;
    pid_t child = forkpty(&forked, NULL, NULL, NULL);
    if (child == 0) _exit(0);
    waitpid(child, NULL, 0);
    printf("forkpty %d /dev/ptmx\\n", forked);
    struct rlimit none = {0, 0};
    setrlimit(RLIMIT_NOFILE, &none);
    if (openpty(&master, &slave, NULL, NULL, NULL) == 0 || getpt() >= 0) return 3;
    return 0;
}
"""
_NAMES = ("openpty", "posix_openpt", "getpt", "forkpty")


@pytest.fixture
def program(tmp_path: Path) -> Path:
    return compile_c(_PROGRAM, tmp_path / "terminals", "-lutil")


def test_the_ends_of_terminals_are_opens(program: Path, tmp_path: Path) -> None:
    recording = Recorder(tmp_path / "seg").run([program])
    assert recording.returncode == 0, recording.stdout
    opens = [event for event in recording.calls(*_NAMES) if "flags" in event]
    done = [f"{e['syscall']} {e['result']} {e['path']}" for e in opens if "error" not in e]
    assert done == recording.stdout.decode().splitlines()
    flags = {event["syscall"]: event["flags"] for event in opens if event["path"] == "/dev/ptmx"}
    assert flags == {
        "openpty": "O_RDWR",
        "posix_openpt": "O_RDWR|O_NOCTTY|O_CLOEXEC",
        "getpt": "O_RDWR",
        "forkpty": "O_RDWR",
    }
    failed = [(e["syscall"], e["path"], e["error"]) for e in opens if "error" in e]
    assert failed == [("openpty", "/dev/ptmx", "EMFILE"), ("getpt", "/dev/ptmx", "EMFILE")]
    # The fork itself is told as before, and what is written goes to the terminal by its name.
    assert [e["result"] > 0 for e in recording.calls("forkpty") if "flags" not in e] == [True]
    slave = done[1].split()[2]
    (written,) = (e for e in recording.events if e.get("path") == slave and "write_bytes" in e)
    assert written["write_bytes"] == 1


def test_without_the_class_no_open_is_told(program: Path, tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "world" / "seg")
    (recorder.segments.parent / "classes").symlink_to("7e")
    recording = recorder.run([program])
    assert recording.returncode == 0
    assert [event["syscall"] for event in recording.calls(*_NAMES)] == ["forkpty"]
