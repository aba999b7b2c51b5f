"""Issue 2, done when 8: bad input and bad luck are one clear line, and lose nothing recorded."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from substrate_sdk._pb.substrate.common.v1alpha1 import types_pb2
from substrate_sdk._pb.substrate.trace.v1alpha1 import trace_pb2, trace_pb2_grpc
from substrate_sdk._pb.substrate.world.v1alpha1 import (
    execs_pb2,
    world_service_pb2_grpc,
    worlds_pb2,
)
from tests.conftest import SUBSTRATE
from tests.users import User, finish, new_user

# -- command lines ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        ("run", "--nonsense", "--", "true"),
        ("run",),
        ("run", "--timeout", "soon", "--", "true"),
        ("run", "--timeout", "-1", "--", "true"),
        ("run", "--env", "NOEQUALS", "--", "true"),
        ("run", "-c", "true", "extra"),
        ("frobnicate",),
        ("--frobnicate",),
        ("replay", "wld_abc"),
        ("replay", "@last", "--runs", "0"),
        ("world", "frobnicate"),
        ("world", "rm"),
        ("trace", "frobnicate"),
        ("policy",),
    ],
    ids=" ".join,
)
def test_a_wrong_command_line_is_one_line_and_exit_2(
    user: User, git_checkout: Path, words: tuple[str, ...]
) -> None:
    done = user.run(*words, cwd=git_checkout)
    assert done.code == 2
    assert done.error_line.startswith("substrate")
    assert done.out == ""


def test_what_is_not_built_yet_says_so(user: User, git_checkout: Path) -> None:
    done = user.run("shim", "status", cwd=git_checkout)
    assert done.code == 125
    assert "not built yet" in done.error_line


@pytest.mark.parametrize(
    ("endpoint", "says"),
    [
        ("unix:///no/such/host.sock", "/no/such/host.sock"),
        ("127.0.0.1:1", "127.0.0.1:1"),
        ("nonsense", "nonsense"),
        ("http://localhost:5", "http://localhost:5"),
        ("unix://relative/path", "relative/path"),
        ("localhost:99999", "localhost:99999"),
    ],
)
def test_a_wrong_endpoint_is_one_line_that_names_it(
    user: User, git_checkout: Path, endpoint: str, says: str
) -> None:
    env = {"SUBSTRATE_ENDPOINT": endpoint}
    done = user.run("run", "--", "true", cwd=git_checkout, env=env)
    assert done.code == 125
    assert says in done.error_line


def test_a_home_that_cannot_be_made_is_one_line(user: User, git_checkout: Path) -> None:
    env = {"SUBSTRATE_HOME": "/proc/nothing/here"}
    done = user.run("run", "--", "true", cwd=git_checkout, env=env)
    assert done.code == 125
    assert "/proc/nothing" in done.error_line
    assert "SUBSTRATE_HOME" in done.error_line


def test_a_home_that_is_a_file_is_one_line(user: User, git_checkout: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    env = {"SUBSTRATE_HOME": str(tmp_path / "file")}
    done = user.run("run", "--", "true", cwd=git_checkout, env=env)
    assert done.code == 125
    assert str(tmp_path / "file") in done.error_line


def test_a_working_directory_that_is_gone_is_one_line(user: User, tmp_path: Path) -> None:
    script = f'cd "{tmp_path}"; mkdir gone; cd gone; rmdir ../gone; exec "$@"'
    process = subprocess.Popen(
        ["sh", "-c", script, "sh", *SUBSTRATE, "run", "--", "true"],
        env=user.env(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd="/",
    )
    done = finish(process)
    assert done.code == 125, done
    assert len(done.err.splitlines()) == 1, done.err
    assert "Traceback" not in done.err


def test_a_damaged_reader_of_output_is_no_traceback(user: User, git_checkout: Path) -> None:
    script = '"$@" | head -c 1 > /dev/null; exit ${PIPESTATUS[0]}'
    command = [*SUBSTRATE, "run", "-q", "--", "sh", "-c", "yes | head -c 2000000"]
    done = subprocess.run(
        ["bash", "-c", script, "bash", *command],
        check=False,
        cwd=git_checkout,
        env=user.env(),
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert "Traceback" not in done.stderr
    assert done.returncode in (141, 0), done


# -- fields of calls --------------------------------------------------------------------------


@pytest.fixture
def channel(user: User) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(f"unix:{user.paths.host_socket}") as made:
        yield made


@pytest.fixture
def world_id(channel: grpc.Channel, git_checkout: Path) -> Iterator[str]:
    stub = world_service_pb2_grpc.WorldServiceStub(channel)
    request = worlds_pb2.CreateWorldRequest(cwd=os.fsencode(git_checkout))
    made = stub.CreateWorld(request).world.world_id
    yield made
    stub.RemoveWorld(worlds_pb2.RemoveWorldRequest(world_id=made))


def exec_request(world_id: str, **fields: object) -> execs_pb2.StartExecRequest:
    argv = execs_pb2.Argv(args=[b"true"])
    request = execs_pb2.StartExecRequest(world_id=world_id, exec_id="one", argv=argv)
    request.MergeFrom(execs_pb2.StartExecRequest(**fields))  # type: ignore[arg-type]
    return request


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"exec_id": "has spaces"}, "exec_id"),
        ({"exec_id": "../../etc"}, "exec_id"),
        ({"exec_id": "x" * 65}, "exec_id"),
        ({"argv": execs_pb2.Argv(args=[b"nul\0byte"])}, "argv"),
        ({"env": [types_pb2.EnvVar(name=b"A=B", value=b"c")]}, "env"),
        ({"env": [types_pb2.EnvVar(name=b"", value=b"c")]}, "env"),
        ({"umask": 0o10000}, "umask"),
        ({"traceparent": "nonsense"}, "traceparent"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_malformed_field_of_an_exec_is_invalid_and_named(
    channel: grpc.Channel, world_id: str, fields: dict[str, object], names: str
) -> None:
    stub = world_service_pb2_grpc.WorldServiceStub(channel)
    with pytest.raises(grpc.RpcError) as caught:
        stub.StartExec(exec_request(world_id, **fields))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert names in (caught.value.details() or "")
    assert "\n" not in (caught.value.details() or "")


def test_an_exec_of_nothing_is_invalid(channel: grpc.Channel, world_id: str) -> None:
    stub = world_service_pb2_grpc.WorldServiceStub(channel)
    with pytest.raises(grpc.RpcError) as caught:
        stub.StartExec(execs_pb2.StartExecRequest(world_id=world_id, exec_id="one"))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("cwd", [b"relative", b"/nul\0byte", b"/no/such/directory"])
def test_a_world_of_no_directory_is_refused(channel: grpc.Channel, cwd: bytes) -> None:
    stub = world_service_pb2_grpc.WorldServiceStub(channel)
    with pytest.raises(grpc.RpcError) as caught:
        stub.CreateWorld(worlds_pb2.CreateWorldRequest(cwd=cwd))
    assert caught.value.code() in (
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.FAILED_PRECONDITION,
    )
    assert "cwd" in (caught.value.details() or "") or cwd.decode() in (caught.value.details() or "")


def test_ids_that_are_not_there_are_not_found(channel: grpc.Channel) -> None:
    world = world_service_pb2_grpc.WorldServiceStub(channel)
    trace = trace_pb2_grpc.TraceServiceStub(channel)
    for call in (
        lambda: world.GetWorld(worlds_pb2.GetWorldRequest(world_id="wld_none")),
        lambda: world.StartExec(exec_request("wld_none")),
        lambda: trace.GetSpan(trace_pb2.GetSpanRequest(span_id="0" * 15 + "1")),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            call()
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_a_message_that_is_none_is_refused_and_the_host_goes_on(
    user: User, channel: grpc.Channel, git_checkout: Path
) -> None:
    call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
        "/substrate.world.v1alpha1.WorldService/CreateWorld"
    )
    with pytest.raises(grpc.RpcError):
        call(b"\xff\xff\xff\xffgarbage")
    assert user.run_json("true", cwd=git_checkout)["exit_code"] == 0


# -- the machine ------------------------------------------------------------------------------


@pytest.mark.root
def test_a_full_disk_is_one_line_and_loses_nothing_recorded(git_checkout: Path) -> None:
    with new_user() as other:
        (other.home / "small").mkdir()
        script = """
        set -u
        mount -t tmpfs -o size=24m,mode=700 none "$HOME/small" || exit 99
        export SUBSTRATE_HOME="$HOME/small/s"
        say() { echo "== $1"; }
        say first; "$@" run -q -- sh -c 'echo before'; echo "exit $?"
        dd if=/dev/zero of="$HOME/small/filler" bs=64k 2>/dev/null
        say full; "$@" run -q -- sh -c 'echo meanwhile; head -c 3000000 /dev/urandom > big' 2>&1
        echo "exit $?"
        rm "$HOME/small/filler"
        say after; "$@" run -q -- sh -c 'echo after'; echo "exit $?"
        say verify; "$@" trace verify; echo "exit $?"
        say list; "$@" trace ls
        "$@" down --worlds > /dev/null
        """
        process = subprocess.Popen(
            ["unshare", "-m", "--propagation", "private", "sh", "-c", script, "sh", *SUBSTRATE],
            cwd=git_checkout,
            env=other.env(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        done = finish(process, timeout_s=60)
        parts = dict(part.split("\n", 1) for part in done.out.split("== ")[1:])
        assert parts["first"] == "before\nexit 0\n", done
        full = parts["full"].splitlines()
        assert full[-1] == "exit 125", done
        errors = [line for line in full if line.startswith("substrate")]
        assert len(errors) == 1, done
        assert "space" in errors[0] or "full" in errors[0], done
        assert "Traceback" not in done.out + done.err
        assert parts["after"] == "after\nexit 0\n", done
        assert parts["verify"].endswith("exit 0\n"), done
        assert "intact" in parts["verify"], done
        assert "echo before" in parts["list"], done
        assert "echo after" in parts["list"], done


@pytest.mark.root
def test_without_namespaces_it_is_one_line_with_the_fix_and_nothing_runs(
    git_checkout: Path,
) -> None:
    # In a user namespace of its own, in which no more may be made: what an unprivileged user of
    # a hardened machine has.
    prefix = (
        "unshare", "--user", "--map-root-user", "--mount", "sh", "-c",
        'echo 0 > /proc/sys/user/max_user_namespaces && exec "$@"', "sh",
    )  # fmt: skip
    with new_user(prefix) as other:
        done = other.run("run", "--", "sh", "-c", "echo RAN", cwd=git_checkout)
        assert done.code == 125, done
        assert "RAN" not in done.out
        assert "max_user_namespaces" in done.error_line
        doctor = other.run("doctor", cwd=git_checkout)
        assert "missing" in doctor.out
        assert "max_user_namespaces" in doctor.out


def test_doctor_says_what_works(user: User, git_checkout: Path) -> None:
    done = user.run("doctor", "--json", cwd=git_checkout)
    assert done.code == 0
    found = {item["feature"]: item for item in done.json["capabilities"]}
    assert found["host"]["state"] == "works"
    for item in found.values():
        assert item["state"] in ("works", "degraded", "missing")
        assert item["state"] == "works" or item["consequence"] or item["fix"], item
