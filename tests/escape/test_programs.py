"""The escape suite: hostile programs in real worlds, each stopped by the layer that is meant to.

Each one also runs outside, where it gets what it is after: a program that is broken proves nothing.
"""

from __future__ import annotations

import os
import platform
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from substrate_sdk import World
from tests.escape.cases import CASES, EVERYBODY, Case, Who
from tests.escape.places import (
    OLDEST_LANDLOCK_ABI,
    PROGRAMS,
    SECRET,
    Host,
    compile_programs,
    host_places,
    landlock_abi,
)
from tests.users import User

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="the controls need root"),
    pytest.mark.needs_git,
    # Nothing is started by a test of these: what a module's worlds leave, other tests would find.
    pytest.mark.no_leak_check,
]

_X86 = platform.machine() == "x86_64"


@pytest.fixture(scope="module")
def project() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="escape", dir="/var/tmp"))
    try:
        directory.chmod(0o777)
        subprocess.run(["git", "init", "--quiet"], cwd=directory, check=True)
        yield directory
    finally:
        shutil.rmtree(directory)


@pytest.fixture(scope="module")
def host(project: Path) -> Iterator[Host]:
    with tempfile.TemporaryDirectory(dir="/var/tmp") as built:
        programs = compile_programs(Path(built))
        with host_places(programs, project) as made:
            yield made


class Inside:
    """All programs run in a world by one of its users, in one go: each one's line is kept."""

    def __init__(self, world: World, words: dict[str, str], who: Who, run_as: str) -> None:
        self.words = words
        script = [
            shlex.join(
                ["say", str(number), *(part.format(**words) for part in (case.program, *case.run))]
            )
            for number, case in enumerate(CASES)
            if who in case.who
        ]
        result = world.run("\n".join([_SAY, *script]), user=run_as, timeout_s=100)
        assert result.exit_code == 0, result
        assert SECRET not in result.stdout + result.stderr
        self._said = dict(line.split(" ", 1) for line in result.stdout.splitlines() if line)

    def said(self, case: Case) -> str:
        """What a program said, or how it ended."""
        return self._said[str(CASES.index(case))].strip()


# Runs a program and puts its number before what it says.
_SAY = """
say() {
    number=$1; shift
    said=$(timeout -s KILL 5 "$@" 2>&1 </dev/null | tr '\\n' ' ')
    echo "$number $said"
}
"""


def _secrets_of(user: User, world_id: str, other_home: Path) -> dict[str, str]:
    """Secrets below ``$SUBSTRATE_HOME`` and the home, and where they lie."""
    other_world = user.substrate_home / "worlds" / world_id
    places = {
        user.home / ".ssh" / "id_rsa",
        user.substrate_home / "secret",
        other_world / "layers" / "secret",
    }
    for place in places:
        place.parent.mkdir(exist_ok=True)
        place.write_text(SECRET)
    return {
        "key": str(user.home / ".ssh" / "id_rsa"),
        "substrate": str(user.substrate_home),
        "other_world": str(other_world),
        "other_uid": str(other_home),
    }


@pytest.fixture(scope="module")
def worlds(user: User, host: Host, project: Path) -> Iterator[dict[Who, Inside]]:
    """What programs said in a world of root's host, run by two of the world's users."""
    made: dict[Who, Inside] = {}
    with (
        tempfile.TemporaryDirectory(dir="/tmp") as other_home,
        user.client() as client,
        client.world(cwd="/") as other,
        client.world(project=project, cwd=project) as world,
    ):
        Path(other_home, "secret").write_text(SECRET)
        words = {**host.words, **_secrets_of(user, other.world_id, Path(other_home))}
        made["root"] = Inside(world, words, "root", "root")
        made["1000"] = Inside(world, words, "1000", "1000")
        yield made


@pytest.fixture(scope="module")
def rootless_world(rootless: User, user: User, host: Host, project: Path) -> Iterator[Inside]:
    with rootless.client() as client, client.world(cwd="/") as other:
        secrets = _secrets_of(rootless, other.world_id, user.substrate_home)
        with client.world(project=project, cwd=project) as world:
            yield Inside(world, {**host.words, **secrets}, "rootless", "")


def _cases() -> list[object]:
    return [
        pytest.param(who, case, id=f"{case.name}-{who}")
        for case in CASES
        for who in EVERYBODY
        if who in case.who
    ]


@pytest.mark.parametrize(("who", "case"), _cases())
def test_a_hostile_program_is_stopped(
    request: pytest.FixtureRequest, worlds: dict[Who, Inside], who: Who, case: Case
) -> None:
    if case.only_x86 and not _X86:
        pytest.skip("it speaks to x86 processors")
    if case.layer == "landlock" and landlock_abi() < OLDEST_LANDLOCK_ABI:
        pytest.skip("this kernel has no Landlock")
    inside = request.getfixturevalue("rootless_world") if who == "rootless" else worlds[who]
    said = inside.said(case)
    if said == "REFUSED ENOENT" and "ENOENT" not in case.refused:
        _skip_what_is_not_here(case, inside.words)
    assert said in {f"REFUSED {name}" for name in case.refused}, case.layer


def _skip_what_is_not_here(case: Case, words: dict[str, str]) -> None:
    paths = [word.format(**words) for word in case.run if word.startswith(("/", "{"))]
    missing = [path for path in paths if not os.path.lexists(path)]
    if missing:
        pytest.skip(f"this host has no {missing[0]}")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_same_program_gets_on_outside(
    worlds: dict[Who, Inside], host: Host, case: Case
) -> None:
    if case.only_x86 and not _X86:
        pytest.skip("it speaks to x86 processors")
    places = {**worlds["root"].words, **host.outside}
    program, *words = (
        part.format(**places) for part in (case.program, *(case.control_run or case.run))
    )
    drop = [
        "setpriv",
        f"--reuid={case.control_uid}",
        f"--regid={case.control_uid}",
        "--clear-groups",
    ]
    done = subprocess.run(
        ["unshare", "--mount", "--uts", *case.apart, *drop, program, *words],
        cwd=host.control_dir,
        check=False,
        capture_output=True,
        text=True,
        timeout=20,
    )
    answer = done.stdout.split()
    if answer[:2] == ["REFUSED", "ENOENT"] and "ENOENT" not in case.control:
        _skip_what_is_not_here(case, places)
    if answer[:2] == ["REFUSED", "ENODATA"] and case.run[0] == "list_directory":
        pytest.skip(f"{words[-1]} is empty on this host")
    assert answer, done
    assert answer[answer[0] == "REFUSED"] in case.control, done


def test_every_program_is_tried() -> None:
    written = {
        name
        for path in PROGRAMS.glob("*.c")
        for name in re.findall(r"^ATTEMPT\((\w+)\)", path.read_text(), re.MULTILINE)
    }
    # These two have a test of their own in test_walls.py.
    assert written - {"read_by_leaked_directory", "watch_opens"} == {case.run[0] for case in CASES}
