"""Programs that telemetry once lost sight of, or took for somebody else."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from substrate_sdk import Substrate
from substrate_sdk.client.sync import World
from tests.native.recording import compile_c
from tests.users import User

LAST_PID = Path("/proc/sys/kernel/ns_last_pid")

FILTERED = """
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
static void *filter(void *unused) {
    struct sock_filter code[] = { /* ends whoever makes a segment */
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_fallocate, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)};
    struct sock_fprog program = {4, code};
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program, 0, 0);
    return unused;
}
int main(int count, char **arguments) {
    pthread_t thread;
    if (count > 1 && pthread_create(&thread, 0, filter, 0) == 0) /* which says nothing else */
        pthread_join(thread, 0);
    if (fork() == 0) {
        if (count == 1) filter(0); /* before it says anything */
        open("/etc/passwd", O_RDONLY);
        _exit(0);
    }
    wait(0);
    return arguments == 0;
}
"""

NO_ROOM = """
#include <fcntl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>
int main(void) {
    struct rlimit none = {0, 0};
    setrlimit(RLIMIT_FSIZE, &none);
    if (fork() == 0) {
        open("/etc/passwd", O_RDONLY);
        _exit(0);
    }
    wait(0);
    return 0;
}
"""

SIBLING = """
#define _GNU_SOURCE
#include <sched.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>
int main(void) {
    int pair[2];
    char byte;
    if (pipe(pair) != 0) return 1;
    if (syscall(SYS_clone, CLONE_PARENT | SIGCHLD, 0, 0, 0, 0) == 0) {
        execl("./silent", "silent", (char *)0);
        _exit(1);
    }
    close(pair[1]);
    return (int)read(pair[0], &byte, 1); /* until the other has ended */
}
"""

VFORKS = """
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>
int main(int count, char **arguments) {
    for (int i = atoi(arguments[count - 1]); i > 0; i--) {
        if (vfork() == 0) {
            execl("/bin/true", "true", (char *)0);
            _exit(1);
        }
        wait(0);
    }
    return 0;
}
"""


@pytest.fixture
def sub(user: User) -> Iterator[Substrate]:
    if os.geteuid() != 0:
        pytest.skip("the ledger needs root")
    with user.client() as made:
        yield made


@pytest.fixture
def world(sub: Substrate, git_checkout: Path) -> Iterator[World]:
    compile_c(FILTERED, git_checkout / "filtered", "-pthread")
    compile_c(SIBLING, git_checkout / "sibling")
    compile_c(VFORKS, git_checkout / "vforks")
    compile_c(NO_ROOM, git_checkout / "noroom")
    compile_c("int main(void) { return 0; }", git_checkout / "silent", "-static")
    with sub.world(project=str(git_checkout)) as made:
        yield made


@pytest.mark.parametrize("where", ["child", "thread"])
def test_a_filter_installed_by_who_said_nothing_before_is_told(world: World, where: str) -> None:
    coverage = world.run(["./filtered"] if where == "child" else ["./filtered", where]).coverage
    assert coverage.state == "partial"
    assert "it installed a seccomp filter" in " ".join(coverage.reasons)


def test_a_forked_child_that_can_make_no_segment_is_told_by_its_parent(world: World) -> None:
    coverage = world.run(["./noroom"]).coverage
    assert coverage.state == "partial"
    assert coverage.lost >= 2  # what it opened, and its end


def test_a_sibling_that_the_first_process_makes_is_the_step_s(world: World) -> None:
    if world.run("true").coverage.ledger != "bpf":
        pytest.skip("only BPF tells who called")
    coverage = world.run(["./sibling"]).coverage
    assert coverage.state == "partial"
    assert coverage.processes == 2
    assert "silent: static program" in " ".join(coverage.reasons)


def test_children_of_vfork_leave_their_parent_s_segments_to_it(world: World) -> None:
    """They wrote where a segment ends, and made the next: as forged as if another program had."""
    coverage = world.run(["./vforks", "400"]).coverage
    assert (coverage.state, coverage.reasons, coverage.lost) == ("full", (), 0)
    assert coverage.processes == coverage.covered == 401


def test_a_pid_that_another_world_had_is_not_taken_for_its_process(
    sub: Substrate, git_checkout: Path
) -> None:
    if not LAST_PID.exists():
        pytest.skip("this kernel does not let pids be chosen (CONFIG_CHECKPOINT_RESTORE)")
    compile_c(VFORKS, git_checkout / "vforks")
    first = LAST_PID.read_text()
    for _ in range(2):
        LAST_PID.write_text(first)
        with sub.world(project=str(git_checkout)) as world:
            coverage = world.run(["./vforks", "2500"], timeout_s=120).coverage
            assert (coverage.state, coverage.reasons) == ("full", ())
