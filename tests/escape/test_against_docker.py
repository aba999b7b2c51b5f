"""The system call filter next to Docker's default profile: we allow nothing that Docker denies.

``docker_allows.txt`` names what the profile of github.com/moby/profiles/seccomp v0.2.4 allows on
amd64, x86 and arm64, whatever the arguments, to a container without added capabilities. Calls whose
arguments decide there (clone, socket, personality) are tried out below.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.users import User

ROOT = Path(__file__).resolve().parents[2]
DOCKER_ALLOWS = frozenset((Path(__file__).parent / "docker_allows.txt").read_text().split())

# What Docker denies and we allow: nothing. An entry needs its reason beside it.
JUSTIFIED: dict[str, str] = {}
# What Docker allows and we do not.
STRICTER = {
    "listmount": "tells of mounts; /proc/self/mountinfo does so for programs that need it",
    "statmount": "as listmount",
    "socketcall": "its arguments are in memory, so AF_VSOCK and AF_ALG could not be told",
}
# With ids of 16 bits: no value of theirs could be refused, and init's id must be.
SIXTEEN_BITS = frozenset(
    [
        "setfsgid",
        "setfsuid",
        "setgid",
        "setgroups",
        "setregid",
        "setresgid",
        "setresuid",
        "setreuid",
        "setuid",
    ]
)
# Answered by arguments, in code and not in the tables.
CONDITIONAL = frozenset({"clone", "socket", "personality"})
ARCHITECTURES = {
    "x86_64": ("x86_64-linux-musl", "x86_64-linux-musl", "ALLOWED"),
    "i386": ("x86-linux-musl", "x86_64-linux-musl", "I386_ALLOWED"),
    "aarch64": ("aarch64-linux-musl", "aarch64-linux-musl", "ALLOWED"),
}


def _preprocess(target: str, *words: str) -> str:
    command = [sys.executable, "-m", "ziglang", "cc", "-target", target, "-E", *words]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout


def _numbers(target: str) -> dict[int, str]:
    """The kernel's names of the calls of an architecture (asm/unistd.h)."""
    defined = _preprocess(target, "-dM", "-include", "asm/unistd.h", "-x", "c", os.devnull)
    return {int(number): name for name, number in re.findall(r"#define __NR_(\w+) (\d+)", defined)}


def _table(target: str, table: str) -> list[int]:
    text = _preprocess(target, "-P", "-Inative/include", "native/init/seccomp.c")
    found = re.search(rf"uint16_t {table}\[\] = \{{(.*?)\}};", text, re.DOTALL)
    assert found is not None
    return [int(number) for number in found[1].replace("\n", " ").split(",") if number.strip()]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_no_call_is_allowed_that_docker_denies(architecture: str) -> None:
    names_of, target, table = ARCHITECTURES[architecture]
    names = _numbers(names_of)
    allowed = {names.get(number, f"number {number}") for number in _table(target, table)}
    assert len(allowed) > 250
    assert allowed - DOCKER_ALLOWS == set(JUSTIFIED)
    lacking = (DOCKER_ALLOWS & set(names.values())) - allowed - CONDITIONAL
    if architecture == "i386":
        lacking -= SIXTEEN_BITS
    assert lacking <= set(STRICTER), "programs in Docker have these"


@pytest.fixture(scope="module")
def answers(user: User) -> dict[str, list[int]]:
    """What socket(2) and personality(2) say in a world, for every argument that there is."""
    script = """
import ctypes, errno, json, platform, socket
libc = ctypes.CDLL(None, use_errno=True)
def is_refused(family):
    try:
        socket.socket(family, socket.SOCK_STREAM).close()
    except OSError as error:
        return error.errno == errno.EPERM
    return False
def is_allowed(persona):
    return libc.personality(ctypes.c_ulong(persona)) != -1 and libc.personality(0) != -1
print(json.dumps({
    "refused": [family for family in range(64) if is_refused(family)],
    "personalities": [p for p in [*(1 << bit for bit in range(32)), 0, 8, 0x20008, 0xffffffff]
                      if is_allowed(p)],
}))
"""
    with user.client() as client, client.world(cwd="/") as world:
        result = world.run(["python3", "-c", script])
    assert result.exit_code == 0, result.stderr
    found: dict[str, list[int]] = json.loads(result.stdout)
    return found


def test_no_family_of_sockets_is_allowed_that_docker_denies(answers: dict[str, list[int]]) -> None:
    # Docker: those below 38, 39, and 41 to 45. Raw and packet sockets are capabilities' business.
    assert {38, 40, *range(46, 64)} <= set(answers["refused"])
    assert not {1, 2, 10, 16} & set(answers["refused"])


def test_no_personality_is_allowed_that_docker_denies(answers: dict[str, list[int]]) -> None:
    assert set(answers["personalities"]) == {0, 8, 0x20000, 0x20008, 0xFFFFFFFF}
