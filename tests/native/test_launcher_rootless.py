"""The same boxes for a caller without any privilege."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.leaks import LeakChecker

_UID = 1000
_ROOT = Path(__file__).resolve().parents[2]


def _as_user() -> list[str]:
    if os.geteuid() != 0:
        return []
    return ["setpriv", f"--reuid={_UID}", f"--regid={_UID}", "--clear-groups"]


def _interpreter() -> str | None:
    """A Python that the user may execute; a root's own pyenv, for one, is closed to others."""
    probe = "import asyncio, sys; sys.exit(sys.version_info < (3, 11))"
    for candidate in (sys.executable, "/usr/bin/python3"):
        # By way of a shell: setpriv itself still has root's capabilities when it executes.
        command = [*_as_user(), "/bin/sh", "-c", 'exec "$0" -c "$1"', candidate, probe]
        if subprocess.run(command, check=False, capture_output=True).returncode == 0:
            return candidate
    return None


@pytest.fixture
def user_home(leak_check: LeakChecker) -> Iterator[Path]:
    home = Path(tempfile.mkdtemp(prefix="substrate-rootless-", dir="/var/tmp"))
    leak_check.add_directory(home)
    if os.geteuid() == 0:
        os.chown(home, _UID, _UID)
    yield home
    shutil.rmtree(home, ignore_errors=True)


def test_boxes_without_root(user_home: Path) -> None:
    if os.geteuid() == 0 and shutil.which("setpriv") is None:
        pytest.skip("setpriv is not installed (Debian: util-linux)")
    interpreter = _interpreter()
    if interpreter is None:
        pytest.skip(f"no Python 3.11 that uid {_UID} may execute")
    done = subprocess.run(
        [
            *_as_user(),
            interpreter,
            str(_ROOT / "tests/native/rootless_scenario.py"),
            str(user_home),
        ],
        check=False,
        capture_output=True,
        text=True,
        timeout=110,
        env={
            "PATH": os.environ["PATH"],
            "PYTHONPATH": f"{_ROOT}:{_ROOT / 'services'}",
            "PYTHONDONTWRITEBYTECODE": "1",
        },
        cwd=user_home,
    )
    if "worlds cannot be made" in done.stderr or "Permission denied: '/" in done.stderr:
        pytest.skip(done.stderr.strip().splitlines()[-1])
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line for line in lines if not line.startswith("ok ")] == []
    assert len(lines) == 12


_REFUSED = """
import asyncio, sys
from pathlib import Path
from substrate_services.world.backends.base import BackendUnavailable
from tests.native.boxes import make_backend
async def main():
    Path('/proc/sys/user/max_user_namespaces').write_text('0')
    backend = make_backend(Path(sys.argv[1]), linger_s=0)
    try:
        await backend.start()
    except BackendUnavailable as refusal:
        print(refusal.fix)
        print(refusal)
asyncio.run(main())
"""


def test_a_host_that_refuses_namespaces_is_told_the_fix(user_home: Path) -> None:
    interpreter = _interpreter()
    if interpreter is None or shutil.which("unshare") is None:
        pytest.skip("needs unshare and a Python that an ordinary user may execute")
    done = subprocess.run(
        [*_as_user(), "unshare", "-Ur", interpreter, "-c", _REFUSED, str(user_home)],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
        env={
            "PATH": os.environ["PATH"],
            "PYTHONPATH": f"{_ROOT}:{_ROOT / 'services'}",
            "PYTHONDONTWRITEBYTECODE": "1",
        },
        cwd=user_home,
    )
    if "unshare:" in done.stderr:
        pytest.skip(done.stderr.strip())
    fix, text = done.stdout.splitlines()
    assert "sysctl -w user.max_user_namespaces" in fix
    assert "worlds cannot be made: clone3(NEWNET|NEWUSER): No space left" in text
