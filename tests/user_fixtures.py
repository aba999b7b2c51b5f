"""Fixtures of users, for the layers of tests that drive the whole; tests/users.py is the rest."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from substrate_sdk.client.sync import World
from tests.leaks import LeakChecker
from tests.users import User, new_user


@pytest.fixture(scope="module")
def user() -> Iterator[User]:
    """A user whose host runs and is shared by the tests of a module."""
    with new_user() as made:
        # Started before any test's leak check looks, so that it is nobody's leak.
        made.up()
        yield made


@pytest.fixture
def lone_user(leak_check: LeakChecker | None) -> Iterator[User]:
    """A user of one test only, whose host does not run yet."""
    with new_user() as made:
        if leak_check is not None:
            leak_check.add_directory(made.home)
        yield made


# --- without any privilege ------------------------------------------------------------------------

UID = 12345
_ROOT = Path(__file__).resolve().parents[1]
#: Installed packages of this interpreter, for another one of the same version.
_PACKAGES = sysconfig.get_path("purelib")


def as_user() -> tuple[str, ...]:
    # The shell has no capabilities left, which setpriv itself still has when it executes.
    drop = ("setpriv", "--reuid", str(UID), "--regid", str(UID), "--clear-groups")
    return (*drop, "sh", "-c", 'exec "$@"', "sh")


@pytest.fixture(scope="module")
def rootless() -> Iterator[User]:
    """An unprivileged user whose host runs."""
    with rootless_user() as made:
        yield made


@pytest.fixture(scope="module", params=["user", "rootless"])
def who(request: pytest.FixtureRequest) -> tuple[str, User]:
    """With privilege and without; their hosts start before any test's leak check looks."""
    name: str = request.param
    return name, request.getfixturevalue(name)


@pytest.fixture
def world(request: pytest.FixtureRequest, who: tuple[str, User]) -> Iterator[World]:
    """A world of either, on a checkout; modules that need another have a fixture of this name."""
    name, user = who
    project: Path = request.getfixturevalue("git_checkout" if name == "user" else "own_checkout")
    with user.client() as sub, sub.world(project=project, cwd=project) as made:
        yield made


@contextlib.contextmanager
def rootless_user(
    prefix: tuple[str, ...] = (), variables: tuple[tuple[str, str], ...] = ()
) -> Iterator[User]:
    """The same, with words before its commands and further variables; skips where none can be."""
    if os.geteuid() != 0:
        pytest.skip("not root: every other test of this suite is this one")
    if shutil.which("setpriv") is None:
        pytest.skip("setpriv is not installed (Debian: util-linux)")
    can = subprocess.run(
        [*as_user(), "unshare", "-Ur", "true"], check=False, capture_output=True, text=True
    )
    if can.returncode != 0:
        pytest.skip(f"this kernel gives unprivileged users no namespaces: {can.stderr.strip()}")
    path = os.pathsep.join((str(_ROOT), str(_ROOT / "services"), _PACKAGES))
    version = sys.version_info[:2]
    probe = f"import grpc, substrate_services, sys; sys.exit(sys.version_info[:2] != {version})"
    for python in (sys.executable, "/usr/bin/python3"):
        done = subprocess.run(
            [*as_user(), python, "-c", probe],
            check=False,
            capture_output=True,
            cwd="/",
            env={**os.environ, "PYTHONPATH": path},
        )
        if done.returncode == 0:
            break
    else:
        pytest.skip(f"no Python of this version that uid {UID} may execute, with these packages")
    command = (python, "-c", "import sys, substrate_sdk.cli as c; sys.exit(c.main())")
    variables = (("PYTHONPATH", path), *variables)
    with new_user((*prefix, *as_user()), command=command, variables=variables) as made:
        os.chown(made.home, UID, UID)
        made.up()
        yield made


@pytest.fixture
def own_checkout(rootless: User, git_checkout: Path) -> Iterator[Path]:
    """A checkout that belongs to the user, where they can reach it."""
    del rootless
    parent = Path(tempfile.mkdtemp(prefix="sbco", dir="/tmp"))
    os.chown(parent, UID, UID)
    copy = parent / "checkout"
    subprocess.run(["cp", "-r", git_checkout, copy], check=True)
    subprocess.run(["chown", "-R", f"{UID}:{UID}", copy], check=True)
    try:
        yield copy
    finally:
        shutil.rmtree(parent)
