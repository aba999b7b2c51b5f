"""What every test gets: a leak check, and homes, checkouts and tools to work with."""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Generator, Iterator
from pathlib import Path

import grpc
import pytest

from tests.leaks import MARKER, LeakChecker, Room, become_subreaper, processes

_ROOM = pytest.StashKey[Room]()
#: Of the users that there are now (tests/users.py), for the report of a test that fails.
homes: set[Path] = set()
_LOG_SHOWN = 4_000

#: The command line, in this interpreter: `subprocess.run([*SUBSTRATE, "down"])`.
SUBSTRATE = (sys.executable, "-c", "import sys, substrate_sdk.cli as c; sys.exit(c.main())")

# --- what tests need -----------------------------------------------------------------------------


def _lacks_command(command: str, package: str) -> str | None:
    return None if shutil.which(command) else f"{command} is not installed (Debian: {package})"


def _lacks_docker() -> str | None:
    missing = _lacks_command("docker", "docker.io")
    if missing:
        return missing
    done = subprocess.run(["docker", "info"], check=False, capture_output=True, timeout=20)
    return None if done.returncode == 0 else "no Docker daemon answers"


def _lacks_registry() -> str | None:
    # Asked through pip itself, which knows the index, the proxy and the certificates in use.
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps"]
    with tempfile.TemporaryDirectory() as directory:
        done = subprocess.run(
            [*command, "-d", directory, "--retries", "1", "--timeout", "15", "iniconfig"],
            check=False,
            capture_output=True,
            timeout=60,
        )
    return None if done.returncode == 0 else "no Python package registry is reachable"


@functools.cache
def _lacks(marker: str) -> str | None:
    """Why a test that bears this marker cannot run here, or None when it can."""
    match marker:
        case "root":
            return None if os.geteuid() == 0 else "not root"
        case "needs_bwrap":
            return _lacks_command("bwrap", "bubblewrap")
        case "needs_docker":
            return _lacks_docker()
        case "needs_qemu":
            arch = "x86_64" if platform.machine() == "aarch64" else "aarch64"
            return _lacks_command(f"qemu-{arch}", "qemu-user")
        case "needs_registry":
            return _lacks_registry()
        case "needs_git" | "needs_jq" | "needs_strace" | "needs_tmux":
            command = marker.removeprefix("needs_")
            return _lacks_command(command, command)
        case _:
            return None


def pytest_configure(config: pytest.Config) -> None:
    """Take in orphans, so that the leak check sees daemons; have a room of one's own."""
    become_subreaper()
    config.stash[_ROOM] = Room()


def pytest_unconfigure(config: pytest.Config) -> None:
    """Leave the machine as it was."""
    config.stash[_ROOM].leave()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what cannot run here, each with its reason."""
    for marker in item.iter_markers():
        reason = _lacks(marker.name)
        if reason is not None:
            pytest.skip(reason)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show what the hosts said of themselves with a test that failed: they are gone afterwards."""
    report = yield
    if report.failed:
        for home in sorted(homes):
            with contextlib.suppress(OSError):
                said = (home / ".substrate" / "host.log").read_text(errors="replace")
                report.sections.append((f"host.log of {home}", said[-_LOG_SHOWN:]))
    return report


# --- leaks ---------------------------------------------------------------------------------------


@pytest.fixture(scope="session", autouse=True)
def _warm_up() -> None:
    """Open once what libraries keep open for good, so that no test is blamed for it."""
    grpc.insecure_channel("unix:/nonexistent").close()


@pytest.fixture(autouse=True)
def leak_check(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[LeakChecker | None]:
    """Fail a test that leaves a process, mount, network namespace, cgroup or descriptor behind."""
    if request.node.get_closest_marker("no_leak_check"):
        yield None
        return
    test_id = uuid.uuid4().hex
    monkeypatch.setenv(MARKER, test_id)
    checker = LeakChecker(test_id, [tmp_path], request.config.stash[_ROOM].cgroups)
    yield checker
    found = checker.settle()
    if found:
        lines = list(found.lines())  # before cleaning: a dead process has no command line
        checker.clean(found)
        pytest.fail("the test left behind:\n  " + "\n  ".join(lines), pytrace=False)


# --- homes and checkouts -------------------------------------------------------------------------


def _holders(home: Path) -> list[int]:
    """Processes of ours that serve this home: it is in their environment or command line."""
    needle = os.fsencode(home)
    found = []
    for pid in processes():
        if pid == os.getpid():
            continue
        with contextlib.suppress(OSError):
            proc = Path("/proc", str(pid))
            if needle in (proc / "environ").read_bytes() or needle in (
                (proc / "cmdline").read_bytes()
            ):
                found.append(pid)
    return found


def _end_host(home: Path) -> None:
    """Stop the host of a home and whatever else serves it: politely, then not."""
    if (home / "run" / "host.sock").exists():
        with contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run(
                [*SUBSTRATE, "down"],
                check=False,
                capture_output=True,
                env={**os.environ, "SUBSTRATE_HOME": str(home)},
                timeout=20,
            )
    for number, patience_s in ((signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0)):
        deadline = time.monotonic() + patience_s
        for pid in _holders(home):
            with contextlib.suppress(OSError):
                os.kill(pid, number)
        while _holders(home) and time.monotonic() < deadline:
            time.sleep(0.02)


def _remove_tree(directory: Path) -> None:
    """Remove a tree even where overlayfs left directories that nobody may enter."""
    for parent, names, _ in os.walk(directory):
        for name in names:
            path = os.path.join(parent, name)
            if not os.path.islink(path):
                os.chmod(path, 0o700)
    shutil.rmtree(directory)


@pytest.fixture
def substrate_home(
    leak_check: LeakChecker | None, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """A fresh ``SUBSTRATE_HOME`` in a fresh ``HOME``; its host and launcher end with the test.

    The path is short, because a socket's is limited to 107 bytes (unix(7)).
    """
    user_home = Path(tempfile.mkdtemp(prefix="sb", dir="/tmp"))
    if leak_check is not None:
        leak_check.add_directory(user_home)
    home = user_home / ".substrate"
    monkeypatch.setenv("HOME", str(user_home))
    monkeypatch.setenv("SUBSTRATE_HOME", str(home))
    for name in ("SUBSTRATE_ENDPOINT", "SUBSTRATE_TOKEN", "SUBSTRATE_WORLD", "SHIM_TRACE_LOG"):
        monkeypatch.delenv(name, raising=False)
    try:
        yield home
    finally:
        _end_host(home)
        _remove_tree(user_home)


@pytest.fixture
def git_checkout(tmp_path: Path) -> Path:
    """A small git checkout with a committed README.md and nothing else."""
    reason = _lacks("needs_git")
    if reason is not None:
        pytest.skip(reason)
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    (checkout / "README.md").write_text("# A project\n\nIt has a readme.\n")
    # No configuration of the machine or the user may reach in.
    env = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    identity = ["-c", "user.name=Test", "-c", "user.email=test@example.invalid"]
    for command in (
        ["init", "--quiet", "--initial-branch=main"],
        ["add", "README.md"],
        [*identity, "commit", "--quiet", "--message", "Begin"],
    ):
        subprocess.run(["git", *command], check=True, cwd=checkout, env=env, capture_output=True)
    return checkout
