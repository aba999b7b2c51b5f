"""The leak check catches each kind of thing that a test can leave behind, and cleans up after it.

Each case runs a small suite in a pytest of its own, under the real conftest.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.leaks import processes

ROOT = Path(__file__).resolve().parents[2]


def run_suite(directory: Path, body: str) -> subprocess.CompletedProcess[str]:
    """Run a test module of this body under the conftest; stdout is pytest's."""
    suite = directory / "suite"
    suite.mkdir()
    (suite / "conftest.py").write_text("from tests.conftest import *\n")
    (suite / "test_case.py").write_text(
        "import os, subprocess, sys\nfrom pathlib import Path\nimport pytest\n"
        + textwrap.dedent(body)
    )
    pytest_command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider"]
    apart = ["-c", os.devnull, "--rootdir", str(suite), "--import-mode=importlib"]
    return subprocess.run(
        [*pytest_command, *apart, str(suite)],
        check=False,
        cwd=suite,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'services'}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
    )


def alive(pid: int) -> bool:
    process = processes().get(pid)
    return process is not None and process.state not in "ZX"


def assert_reported(result: subprocess.CompletedProcess[str], what: str) -> str:
    """The suite failed for this leak, and no other reason; returns the report's line."""
    assert result.returncode == 1, result.stdout
    assert "the test left behind" in result.stdout, result.stdout
    found = re.search(rf"^E? *({what}.*)$", result.stdout, re.MULTILINE)
    assert found, result.stdout
    return found.group(1)


def test_a_clean_test_passes(tmp_path: Path) -> None:
    result = run_suite(
        tmp_path,
        """
        def test_clean(tmp_path):
            subprocess.run(["true"], check=True)
            with open(tmp_path / "file", "w") as file:
                file.write("x")
        """,
    )
    assert result.returncode == 0, result.stdout


def test_a_process_that_ends_by_itself_in_time_is_not_a_leak(tmp_path: Path) -> None:
    result = run_suite(
        tmp_path,
        """
        def test_ends_soon():
            subprocess.run(["sh", "-c", "sleep 0.3 >/dev/null 2>&1 &"], check=True)
        """,
    )
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize(
    "daemon",
    [
        pytest.param("setsid sleep 1000 >/dev/null 2>&1 &", id="orphaned"),
        pytest.param("env -i setsid sleep 1000 >/dev/null 2>&1 &", id="without-environment"),
    ],
)
def test_a_daemon_is_named_and_ended(tmp_path: Path, daemon: str) -> None:
    result = run_suite(
        tmp_path,
        f"""
        def test_leaves_a_daemon():
            subprocess.run(["sh", "-c", {daemon!r}], check=True)

        def test_the_next_one_is_not_blamed():
            pass
        """,
    )
    line = assert_reported(result, r"process \d+ \(sleep 1000\)")
    assert "2 passed, 1 error" in result.stdout, result.stdout
    pid = re.search(r"\d+", line)
    assert pid is not None
    assert not alive(int(pid.group()))


def test_a_descriptor_is_named(tmp_path: Path) -> None:
    result = run_suite(
        tmp_path,
        """
        def test_leaves_a_descriptor(tmp_path):
            os.open(tmp_path / "left-open", os.O_CREAT | os.O_RDWR)
        """,
    )
    assert "left-open" in assert_reported(result, r"file descriptor \d+ -> ")


def test_what_an_open_client_keeps_for_its_next_call_is_no_leak(tmp_path: Path) -> None:
    result = run_suite(
        tmp_path,
        """
        import asyncio, socket
        from substrate_sdk.client.unix_transport import UnixTransport
        from substrate_sdk.config import Endpoint

        @pytest.fixture(scope="module")
        def client(tmp_path_factory):
            path = tmp_path_factory.mktemp("host") / "sock"
            with socket.socket(socket.AF_UNIX) as listening:
                listening.bind(str(path))
                listening.listen()
                made = UnixTransport(Endpoint(path=str(path)))
                yield made
                asyncio.run(made.close())

        def test_keeps_a_connection(client):
            client.give_back(client.take())
        """,
    )
    assert result.returncode == 0, result.stdout


@pytest.mark.root
def test_a_mount_is_named_and_removed(tmp_path: Path) -> None:
    result = run_suite(
        tmp_path,
        """
        def test_leaves_a_mount(tmp_path):
            target = tmp_path / "a mount"
            target.mkdir()
            subprocess.run(["mount", "-t", "tmpfs", "none", str(target)], check=True)
        """,
    )
    assert "mount (tmpfs)" in assert_reported(result, "mount /")
    assert "a\\040mount" not in Path("/proc/self/mountinfo").read_text()


@pytest.mark.root
def test_a_network_namespace_of_a_process_is_named(tmp_path: Path) -> None:
    result = run_suite(
        tmp_path,
        """
        def test_leaves_a_network_namespace():
            subprocess.run(["sh", "-c", "unshare -n sleep 1000 >/dev/null 2>&1 &"], check=True)
        """,
    )
    assert_reported(result, r"network namespace \d+ held by process \d+ \(sleep 1000\)")


@pytest.mark.root
def test_a_named_network_namespace_is_named_and_removed(tmp_path: Path) -> None:
    name = f"leak-check-{os.getpid()}"
    result = run_suite(
        tmp_path,
        f"""
        def test_leaves_a_named_network_namespace():
            Path("/run/netns").mkdir(exist_ok=True)
            command = ["unshare", "-n", "sh", "-c", "echo ready; exec sleep 1000"]
            with subprocess.Popen(command, stdout=subprocess.PIPE) as holder:
                holder.stdout.readline()
                Path("/run/netns/{name}").touch()
                ns = f"/proc/{{holder.pid}}/ns/net"
                subprocess.run(["mount", "--bind", ns, "/run/netns/{name}"], check=True)
                holder.kill()
        """,
    )
    assert_reported(result, rf"network namespace \d+ held by /run/netns/{name}")
    assert not Path("/run/netns", name).exists()


@pytest.mark.root
def test_a_cgroup_is_named_and_removed(tmp_path: Path) -> None:
    result = run_suite(
        tmp_path,
        """
        from tests.leaks import Room

        def test_leaves_a_cgroup(request):
            room = next(v for v in request.config.stash._storage.values() if isinstance(v, Room))
            roots = [root for root in room.cgroups if root.name == f"tests-{os.getpid()}"]
            if not roots:
                pytest.skip("no writable cgroup tree")
            os.mkdir(roots[0] / "leak-check")
        """,
    )
    if "1 skipped" in result.stdout:
        pytest.skip("no writable cgroup tree")
    cgroup = assert_reported(result, "cgroup /").removeprefix("cgroup ")
    assert cgroup.endswith("/leak-check")
    assert not Path(cgroup).exists()


def test_what_serves_a_home_ends_with_it(tmp_path: Path) -> None:
    # One that goes when asked, and one that has to be made to.
    result = run_suite(
        tmp_path,
        """
        @pytest.mark.parametrize("script", ["exec sleep 1000", "trap '' TERM; sleep 1000; :"])
        def test_leaves_a_host(substrate_home, script):
            assert os.environ["SUBSTRATE_HOME"] == str(substrate_home)
            assert substrate_home.parent == Path.home()
            subprocess.run(["setsid", "--fork", "sh", "-c", script], check=True)
        """,
    )
    assert result.returncode == 0, result.stdout
    assert "2 passed" in result.stdout
