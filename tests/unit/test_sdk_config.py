"""Homes, sockets and endpoints."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from substrate_sdk.config import (
    Endpoint,
    HostPaths,
    endpoint_from_env,
    home_from_env,
    parse_endpoint,
)
from substrate_sdk.errors import InvalidArgument, SubstrateError


@pytest.mark.parametrize(
    ("text", "target", "local"),
    [
        ("unix:///run/a.sock", "unix:/run/a.sock", True),
        ("unix:/run/a.sock", "unix:/run/a.sock", True),
        ("localhost:7777", "dns:///localhost:7777", False),
        ("10.0.0.1:1", "dns:///10.0.0.1:1", False),
        ("[::1]:443", "dns:///[::1]:443", False),
    ],
)
def test_an_endpoint_is_a_socket_or_an_address(text: str, target: str, local: bool) -> None:
    endpoint = parse_endpoint(text)
    assert (endpoint.target, endpoint.is_local) == (target, local)
    assert parse_endpoint(str(endpoint)) == endpoint


@pytest.mark.parametrize(
    "text",
    [
        "unix://relative/path",
        "unix:",
        "unix:///" + "x" * 107,
        "unix:///a\0b",
        "localhost",
        "localhost:",
        "localhost:http",
        "localhost:0",
        "localhost:65536",
        "host name:1",
        ":80",
        "https://host:1",
        "::1:80",
        "[::1:80",
        "",
    ],
)
def test_a_malformed_endpoint_is_refused_with_its_value_and_the_two_forms(text: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse_endpoint(text)
    message = str(caught.value)
    assert repr(text) in message
    assert "unix:///" in message
    assert "host:port" in message
    assert "\n" not in message


def test_no_endpoint_in_the_environment_means_the_embedded_host() -> None:
    assert endpoint_from_env({}) is None
    assert endpoint_from_env({"SUBSTRATE_ENDPOINT": ""}) is None
    assert endpoint_from_env({"SUBSTRATE_ENDPOINT": "unix:///x"}) == Endpoint(path="/x")


def test_the_home_is_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert home_from_env({}) == f"{tmp_path}/.substrate"
    assert home_from_env({"SUBSTRATE_HOME": "here"}) == f"{tmp_path}/here"
    assert home_from_env({"SUBSTRATE_HOME": "~/there"}) == f"{tmp_path}/there"


def test_sockets_of_a_long_home_lie_in_a_short_directory_of_ours(tmp_path: Path) -> None:
    home = tmp_path / ("h" * 100)
    paths = HostPaths(home)
    assert paths.run_dir.startswith(f"/tmp/substrate-{os.getuid()}-")
    assert len(paths.launcher_socket) < 100
    assert HostPaths(home).run_dir == paths.run_dir != HostPaths(f"{home}2").run_dir
    assert paths.host_log == f"{home}/host.log"
    paths.make_directories()
    try:
        assert stat.S_IMODE(os.stat(paths.run_dir).st_mode) == 0o700
        paths.make_directories()  # again, on what is there
        os.rmdir(paths.run_dir)
        # Somebody may have put a link there first, to have our sockets where they like.
        os.symlink(tmp_path, paths.run_dir)
        with pytest.raises(SubstrateError, match="is not a directory of uid"):
            paths.make_directories()
    finally:
        if os.path.islink(paths.run_dir):
            os.unlink(paths.run_dir)


def test_a_directory_for_sockets_that_others_can_enter_is_closed(tmp_path: Path) -> None:
    paths = HostPaths(tmp_path / "home")
    os.makedirs(paths.run_dir, mode=0o777)
    os.chmod(paths.run_dir, 0o777)
    paths.make_directories()
    assert stat.S_IMODE(os.stat(paths.run_dir).st_mode) == 0o700


def test_a_home_that_cannot_be_made_is_named_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SubstrateError, match=r"cannot make .*file/home.*SUBSTRATE_HOME"):
        HostPaths(tmp_path / "file" / "home").make_directories()


def test_config_needs_neither_grpc_nor_protobuf() -> None:
    script = (
        "import sys, substrate_sdk.config\n"
        "print([n for n in ('grpc', 'google.protobuf', 'asyncio') if n in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True
    )
    assert done.stdout.strip() == "[]"
