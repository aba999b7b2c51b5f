"""How programs of each kind fare under a world's injection: recorded, or left alone and named."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from substrate_sdk.client.sync import World
from substrate_services.telemetry.segments import prepare_directory
from substrate_services.world.injection import base_libc, choose_injection, lay_out_platforms
from tests.native.recording import preload_library
from tests.native.targets import Target
from tests.users import User

_PROGRAM = """
#include <stdio.h>
int main(void) {
    FILE *stream = fopen("/etc/passwd", "r");
    puts(stream != NULL ? "hello" : "none");
    return 5;
}
"""


#: What a world refuses, asked for by the 32-bit numbers (the last is allowed).
_REFUSED = """
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>
#define TRY(...) (errno = 0, printf("%d ", syscall(__VA_ARGS__) == -1 ? errno : 0))
int main(void) {
    struct rlimit limit = {0, 0};
    TRY(SYS_unshare, 0x10000000);
    TRY(SYS_mount, "none", "/tmp", "tmpfs", 0, 0);
    TRY(SYS_clone, 0x10000011, 0, 0, 0, 0);
    TRY(SYS_socket, 38, 5, 0);
    TRY(SYS_personality, 0x40000);
    TRY(SYS_keyctl, 0, 0, 0, 0, 0);
    TRY(425 /* io_uring_setup */, 1, 0);
    TRY(SYS_prlimit64, 1, RLIMIT_FSIZE, &limit, 0);
    TRY(SYS_setuid, 0); /* of 16 bits */
    TRY(435 /* clone3 */, 0, 0);
    TRY(SYS_getpid);
    return 0;
}
"""


@pytest.fixture
def world(user: User, git_checkout: Path) -> Iterator[World]:
    with user.client() as sub, sub.world(project=git_checkout, cwd=git_checkout) as made:
        yield made


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source") / "hello.c"
    path.write_text(_PROGRAM)
    return path


def _narrow_program(source: Path, output: Path) -> Path:
    """A 32-bit program, dynamic."""
    if not Path("/lib/ld-linux.so.2").exists():
        pytest.skip("no loader for 32-bit programs: install libc6-i386")
    return Target("x86", "gnu").compile(source, output)


def test_a_32_bit_program_runs_as_ever_and_is_named_as_not_covered(
    world: World, git_checkout: Path, source: Path
) -> None:
    _narrow_program(source, git_checkout / "narrow")
    result = world.run("./narrow; echo $?; ./narrow >&2")
    assert (result.exit_code, result.stdout) == (5, "hello\n5\n")
    assert result.stderr == "hello\n"
    assert result.coverage.state == "partial"
    assert any("32-bit program" in reason for reason in result.coverage.reasons), result.coverage
    alone = world.run(["./narrow"])
    assert (alone.stderr, alone.coverage.state) == ("", "none")
    assert any("32-bit program" in reason for reason in alone.coverage.reasons), alone.coverage


def test_a_32_bit_program_meets_the_same_filter(
    world: World, git_checkout: Path, tmp_path: Path
) -> None:
    source = tmp_path / "refused.c"
    source.write_text(_REFUSED)
    _narrow_program(source, git_checkout / "refused")
    result = world.run(["./refused"])
    refused = [errno.EPERM] * 9 + [errno.ENOSYS, 0]
    assert [int(word) for word in result.stdout.split()] == refused


def test_a_musl_program_runs_as_ever_and_is_named_as_not_covered(
    world: World, git_checkout: Path, source: Path
) -> None:
    if not Path("/lib/ld-musl-x86_64.so.1").exists():
        pytest.skip("no musl loader: install musl-tools")
    Target("x86_64", "musl").compile(source, git_checkout / "musl")
    result = world.run("./musl")
    assert (result.exit_code, result.stdout, result.stderr) == (5, "hello\n", "")
    assert any("musl program" in reason for reason in result.coverage.reasons), result.coverage


def test_a_set_id_program_of_a_world_is_covered(world: World, git_checkout: Path) -> None:
    """It gains nothing there (no_new_privs), so its loader treats it like any other."""
    shutil.copy("/usr/bin/id", git_checkout / "set-id")
    (git_checkout / "set-id").chmod(0o4755)
    result = world.run("./set-id -u; ls -l /etc/hostname >/dev/null")
    assert result.exit_code == 0
    assert (result.stderr, result.coverage.state) == ("", "full")


def test_programs_that_scrub_their_environment_are_covered(world: World) -> None:
    result = world.run("env -i /bin/sh -c 'exec env -i cat /etc/hostname'")
    assert (result.exit_code, result.stderr, result.coverage.state) == (0, "", "full")


def test_natively_too_each_loader_finds_a_library_of_its_own(tmp_path: Path, source: Path) -> None:
    narrow = _narrow_program(source, tmp_path / "narrow")
    libraries = preload_library().parent
    (tmp_path / "lib").symlink_to(libraries)
    lay_out_platforms(tmp_path / "abi")
    segments = tmp_path / "seg"
    prepare_directory(segments)
    env = {
        **os.environ,
        "LD_PRELOAD": f"{tmp_path}/abi/$PLATFORM/libsubstrate_preload.so",
        "SUBSTRATE_SEGMENTS": str(segments),
    }
    command = ["sh", "-c", f"{narrow}; exit 3"]
    done = subprocess.run(command, env=env, check=False, capture_output=True, timeout=20)
    assert (done.returncode, done.stdout, done.stderr) == (3, b"hello\n", b"")
    assert list(segments.iterdir()), "the shell was recorded"


@pytest.mark.parametrize(
    ("links", "libc"),
    [
        ({"lib64/ld-linux-x86-64.so.2": "../usr/lib/x86_64-linux-gnu/ld.so"}, "glibc"),
        ({"lib/ld-linux-aarch64.so.1": "/lib/aarch64-linux-gnu/ld-2.31.so"}, "glibc"),
        ({"lib/ld-musl-x86_64.so.1": ""}, "musl"),
        # Debian with musl-tools.
        (
            {
                "lib/ld-musl-x86_64.so.1": "x86_64-linux-musl/libc.so",
                "lib64/ld-linux-x86-64.so.2": "",
            },
            "glibc",
        ),
        # Alpine with gcompat.
        (
            {
                "lib/ld-musl-x86_64.so.1": "",
                "lib/libgcompat.so.0": "",
                "lib64/ld-linux-x86-64.so.2": "/lib/libgcompat.so.0",
            },
            "musl",
        ),
        ({}, "glibc"),
    ],
    ids=["glibc", "glibc-absolute-link", "musl", "debian-with-musl", "alpine-with-gcompat", "none"],
)
def test_the_loaders_of_a_base_tell_its_libc(
    tmp_path: Path, links: dict[str, str], libc: str
) -> None:
    for name, target in links.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if target:
            path.symlink_to(target)
        else:
            path.touch()
    assert base_libc(tmp_path) == libc


def test_a_musl_base_gets_the_library_by_its_environment(tmp_path: Path) -> None:
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "ld-musl-x86_64.so.1").touch()
    injection = choose_injection(tmp_path)
    ours = b"/run/substrate/lib/libsubstrate_preload-musl.so"
    assert injection.preload_file == b""
    assert injection.environment(b"") == {b"LD_PRELOAD": ours}
    assert injection.environment(b"/x.so") == {b"LD_PRELOAD": ours + b":/x.so"}
    assert choose_injection(Path("/")).environment(b"/x.so") == {}
