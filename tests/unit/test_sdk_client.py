"""The mechanics of clients, the same for every way of waiting: one suite, three transports."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from substrate_sdk import AsyncSubstrate, CommandFailed, Limits, Substrate, errors
from substrate_sdk._pb.substrate.world.v1alpha1 import execs_pb2, worlds_pb2
from substrate_sdk.client.aio_runtime import AioRuntime
from substrate_sdk.client.connection import Connection
from substrate_sdk.client.transport import BlockingRuntime, Runtime, drive
from substrate_sdk.config import Endpoint, HostPaths, parse_endpoint
from tests.unit.sdk_canned_host import WORLD_ID, CannedHost  # found by the path above

OUT, ERR = execs_pb2.OUTPUT_STREAM_STDOUT, execs_pb2.OUTPUT_STREAM_STDERR

T = TypeVar("T")
Act = Callable[[AsyncSubstrate], Coroutine[Any, Any, T]]


@pytest.fixture
def host(tmp_path: Path) -> Iterator[CannedHost]:
    with CannedHost(str(tmp_path / "host.sock")) as served:
        yield served


class Client:
    """Runs what a test does over one of the transports."""

    def __init__(self, kind: str, host: CannedHost) -> None:
        self.kind = kind
        self.host = host

    def do(self, act: Act[T]) -> T:
        async def closing() -> T:
            runtime: Runtime = AioRuntime() if self.kind == "aio" else BlockingRuntime()
            text = f"127.0.0.1:{self.host.port}" if self.kind == "grpc" else self.host.endpoint
            connection = Connection(runtime, parse_endpoint(text), HostPaths("/nonexistent"))
            async with AsyncSubstrate.over(connection) as sub:
                return await act(sub)

        return asyncio.run(closing()) if self.kind == "aio" else drive(closing())


@pytest.fixture(params=["unix", "grpc", "aio"])
def client(request: pytest.FixtureRequest, host: CannedHost) -> Client:
    return Client(request.param, host)


def test_a_command_gives_its_result(client: Client) -> None:
    async def act(sub: AsyncSubstrate) -> None:
        async with sub.world() as world:
            result = await world.run("hi")
            assert (result.exit_code, result.stdout, result.stderr) == (0, "out\n", "err\n")
            assert result.world_id == WORLD_ID

    client.do(act)
    assert client.host.worlds.calls == ["CreateWorld", "StreamExec", "RemoveWorld"]


def test_a_broken_stream_goes_on_where_it_broke(client: Client) -> None:
    client.host.script.output = [(OUT, b"%d\n" % number) for number in range(50)]
    client.host.script.cut_after = [0, 7, 1, 20]

    async def act(sub: AsyncSubstrate) -> str:
        world = await sub.world()
        return (await world.run("hi")).stdout

    assert client.do(act) == "".join(f"{number}\n" for number in range(50))
    offsets = client.host.worlds.offsets
    assert len(offsets) == 5
    assert offsets == sorted(offsets)


def test_a_host_that_keeps_failing_is_an_error_in_the_end(client: Client) -> None:
    client.host.script.refuse["StreamExec"] = 1000

    async def act(sub: AsyncSubstrate) -> None:
        world = await sub.world()
        with pytest.raises(errors.HostUnavailable):
            await world.run("hi")

    client.do(act)
    assert 2 < client.host.worlds.calls.count("StreamExec") < 20


@pytest.mark.parametrize("name", ["StartExec", "StreamExec", "RemoveWorld"])
def test_a_lost_call_is_sent_again_with_the_same_id(client: Client, name: str) -> None:
    async def act(sub: AsyncSubstrate) -> None:
        async with sub.world() as world:
            client.host.script.refuse[name] = 2
            proc = await world.exec("hi")
            assert (await proc.wait()).exit_code == 0

    client.do(act)
    worlds = client.host.worlds
    assert worlds.calls.count(name) == 3
    assert len(worlds.execs) == 1


def test_a_run_that_is_lost_is_asked_for_again_under_the_same_id(client: Client) -> None:
    async def act(sub: AsyncSubstrate) -> None:
        world = await sub.world()
        client.host.script.refuse["StreamExec"] = 2
        assert (await world.run("hi")).exit_code == 0

    client.do(act)
    requests = [
        r for r in client.host.worlds.requests if isinstance(r, execs_pb2.StreamExecRequest)
    ]
    assert len({r.start.exec_id for r in requests}) == 1
    assert len(requests) == 3


def test_a_lost_signal_is_not_sent_again(client: Client) -> None:
    async def act(sub: AsyncSubstrate) -> None:
        world = await sub.world()
        proc = await world.exec("hi")
        client.host.script.refuse["SignalExec"] = 1
        with pytest.raises(errors.HostUnavailable):
            await proc.signal("INT")

    client.do(act)
    assert client.host.worlds.calls.count("SignalExec") == 1


def test_stdin_arrives_once_and_in_order_also_across_a_loss(client: Client) -> None:
    client.host.script.reads_stdin = True
    data = os.urandom(300_000)

    async def act(sub: AsyncSubstrate) -> bytes:
        world = await sub.world()
        client.host.script.refuse["WriteStdin"] = 2
        return (await world.run(["cat"], stdin=data)).stdout_bytes

    assert client.do(act) == data


def test_large_messages_pass_both_ways(client: Client) -> None:
    big = os.urandom(3_000_000)
    client.host.script.output = [(OUT, big), (OUT, big)]

    async def act(sub: AsyncSubstrate) -> None:
        world = await sub.world()
        assert (await world.run("hi")).stdout_bytes == big + big
        written = await world.files.write("f", big)
        assert int(written.span_id, 16) == len(big)

    client.do(act)


def test_files_are_read_in_parts(client: Client) -> None:
    async def act(sub: AsyncSubstrate) -> None:
        world = await sub.world()
        assert await world.files.read("f") == b"0123456789"
        assert await world.files.read("f", offset=3) == b"3456789"
        assert await world.files.read("f", offset=3, length=2) == b"34"
        assert await world.files.read("f", length=0) == b""
        with pytest.raises(FileNotFoundError, match="missing: not there") as caught:
            await world.files.read("missing")
        assert isinstance(caught.value, errors.WorldFileNotFound)

    client.do(act)


def test_an_error_carries_the_reason_that_the_host_gave(client: Client) -> None:
    async def act(sub: AsyncSubstrate) -> None:
        with pytest.raises(errors.WorldNotFound, match="wld_none: there is no such") as caught:
            await sub.connect("wld_none")
        assert caught.value.reason == "WORLD_NOT_FOUND"
        assert not caught.value.retryable
        client.host.script.not_built.add("CreateWorld")
        with pytest.raises(errors.NotBuilt, match="CreateWorld: not built"):
            await sub.world()
        # Of a whole service that is not there:
        with pytest.raises(errors.NotBuilt):
            await sub.verify()

    client.do(act)


def test_a_denial_is_a_result_without_another_call(client: Client) -> None:
    async def act(sub: AsyncSubstrate) -> None:
        world = await sub.world()
        result = await world.run("denied")
        assert (result.termination_reason, result.exit_code) == ("DENIED", 126)
        assert result.decision.rule == "no-denied"
        with pytest.raises(CommandFailed, match="no-denied"):
            await world.run("denied", check=True)

    client.do(act)
    assert client.host.worlds.calls.count("StreamExec") == 2


def test_waiting_has_an_end_and_the_command_goes_on(client: Client) -> None:
    client.host.script.hold = True

    async def act(sub: AsyncSubstrate) -> None:
        world = await sub.world()
        proc = await world.exec("sleep")
        with pytest.raises(TimeoutError, match="it goes on"):
            await proc.wait(0.2)
        assert proc.result is None
        await proc.signal("TERM")
        result = await proc.wait(20)
        assert (result.signal, result.termination_reason) == ("SIGTERM", "KILLED_BY_USER")
        assert result.stdout == "out\n"
        assert proc.result is result

    client.do(act)


def test_streams_are_read_apart_and_from_the_start(client: Client) -> None:
    client.host.script.output = [(OUT, b"a"), (ERR, b"x"), (OUT, b"b")]

    async def act(sub: AsyncSubstrate) -> None:
        world = await sub.world()
        proc = await world.exec("hi")
        assert [piece async for piece in proc.stdout] == [b"a", b"b"]
        assert await proc.stderr.read() == b"x"
        assert [(out.stream, out.data) async for out in proc.output()] == [
            ("stdout", b"a"), ("stderr", b"x"), ("stdout", b"b"),
        ]  # fmt: skip
        assert (await proc.wait()).stdout == "ab"
        reader = proc.output()
        assert (await anext(reader)).data == b"a"
        await reader.close()
        assert [out async for out in reader] == []

    client.do(act)


def test_every_option_reaches_the_host(client: Client, tmp_path: Path) -> None:
    async def act(sub: AsyncSubstrate) -> None:
        world = await sub.world(
            profile="p", network=["@python"], project=tmp_path, base="image:i", cwd="sub",
            env={"A": "b"}, user="u", limits=Limits(pids=3), secrets={"KEY": "name"}, ttl_s=1.5,
            idle_s=2, labels={"l": "v"}, keep=True, hostname="h", agent_id="me", policy="pol.yaml",
        )  # fmt: skip
        await world.exec(
            [b"a\xff", "b c"], timeout_s=0.25, env={"X": "y"}, cwd="/c", user="w", umask=0o77,
            pty=(10, 20), on_ask="wait", exec_id="mine",
        )  # fmt: skip

    client.do(act)
    made, started = client.host.worlds.requests
    assert isinstance(made, worlds_pb2.CreateWorldRequest)
    assert (made.profile, list(made.network), made.user) == ("p", ["@python"], "u")
    assert made.cwd == os.fsencode(tmp_path / "sub")
    assert made.source.image == "i"
    assert [(var.name, var.value) for var in made.env] == [(b"A", b"b")]
    assert made.limits.pids == 3
    assert not made.limits.HasField("memory_bytes")
    assert [(ref.name, ref.env) for ref in made.secrets] == [("name", "KEY")]
    assert (made.ttl.ToMilliseconds(), made.idle_timeout.seconds) == (1500, 2)
    assert [(label.key, label.value) for label in made.labels] == [("l", "v")]
    assert (made.keep, made.hostname, made.agent_id) == (True, "h", "me")
    assert made.policy_file == os.fsencode(os.path.abspath("pol.yaml"))
    assert isinstance(started, execs_pb2.StartExecRequest)
    assert list(started.argv.args) == [b"a\xff", b"b c"]
    assert (started.exec_id, started.cwd, started.user) == ("mine", b"/c", "w")
    assert (started.umask, started.timeout.ToMilliseconds()) == (0o77, 250)
    assert (started.pty.rows, started.pty.columns) == (10, 20)
    assert started.on_ask == execs_pb2.ON_ASK_WAIT
    assert started.agent_id == "me"


def test_secrets_of_the_environment_stay_on_this_machine(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    monkeypatch.setenv("LC_ALL", "C")

    async def act(sub: AsyncSubstrate) -> None:
        await sub.world()

    client.do(act)
    (made,) = client.host.worlds.requests
    assert isinstance(made, worlds_pb2.CreateWorldRequest)
    names = {var.name for var in made.caller_env}
    assert b"LC_ALL" in names
    # The own host filters by profile; what goes over a network is filtered before.
    assert (b"AWS_SECRET_ACCESS_KEY" in names) == (client.kind != "grpc")


@pytest.mark.parametrize("command", ["", "  ", [], [""], ["a\0b"], "x\0", b""], ids=repr)
def test_a_command_that_cannot_be_is_refused_before_it_is_sent(
    client: Client, command: str | list[str]
) -> None:
    async def act(sub: AsyncSubstrate) -> None:
        world = await sub.world()
        with pytest.raises(errors.InvalidArgument, match="command"):
            await world.run(command)

    client.do(act)
    assert "StreamExec" not in client.host.worlds.calls


def test_a_block_that_fails_keeps_its_error_when_tidying_up_fails_too(client: Client) -> None:
    async def fails(sub: AsyncSubstrate) -> None:
        async with sub.world():
            client.host.script.not_built.add("RemoveWorld")
            raise ZeroDivisionError

    async def act(sub: AsyncSubstrate) -> None:
        with pytest.raises(ZeroDivisionError):
            await fails(sub)
        with pytest.raises(errors.NotBuilt):
            async with sub.world():
                pass

    client.do(act)


@pytest.mark.parametrize("kind", ["unix", "grpc", "aio"])
def test_an_endpoint_where_nobody_listens_is_an_error_at_once(kind: str, tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound and not listening: refused
        text = f"unix://{tmp_path}/none.sock"
        if kind == "grpc":
            text = f"127.0.0.1:{unused.getsockname()[1]}"

        async def act() -> None:
            runtime: Runtime = AioRuntime() if kind == "aio" else BlockingRuntime()
            sub = AsyncSubstrate.over(Connection(runtime, parse_endpoint(text), HostPaths("/x")))
            with pytest.raises(errors.HostUnavailable, match="no Substrate host answers") as caught:
                await sub.world()
            assert str(Endpoint(path=str(tmp_path / "none.sock")) if kind != "grpc" else text) in (
                str(caught.value)
            )
            assert "\n" not in str(caught.value)
            await sub.close()

        asyncio.run(act()) if kind == "aio" else drive(act())


# --- what only the blocking client promises ------------------------------------------------------


def test_threads_share_one_client(host: CannedHost) -> None:
    failures: list[BaseException] = []
    with Substrate(host.endpoint) as sub:
        world = sub.world()

        def work() -> None:
            try:
                for _ in range(10):
                    assert world.run("hi").stdout == "out\n"
            except BaseException as error:  # noqa: BLE001 # told to the main thread
                failures.append(error)

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failures
    assert host.worlds.calls.count("StreamExec") == 80


def test_a_forked_child_goes_on_with_connections_of_its_own(tmp_path: Path) -> None:
    # The host in a process of its own: this one must not have its threads when it forks.
    script = (
        f"import sys; sys.path[:0] = [{str(Path(__file__).parents[2])!r}]\n"
        "from tests.unit.sdk_canned_host import CannedHost\n"
        f"with CannedHost({str(tmp_path / 'host.sock')!r}):\n"
        "    print('up', flush=True); sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as served:
        assert served.stdin is not None
        assert served.stdout is not None
        assert served.stdout.readline() == b"up\n"
        sub = Substrate(f"unix://{tmp_path}/host.sock")
        world = sub.world()
        proc = world.exec("hi")
        reader = proc.output()
        assert next(reader).data == b"out\n"  # a call under way in the parent
        for _ in range(5):
            child = os.fork()
            if child == 0:
                signal.alarm(20)
                try:
                    good = world.run("hi").stdout == "out\n" and proc.wait().stdout == "out\n"
                    os._exit(0 if good else 3)
                except BaseException:  # noqa: BLE001 # a child of the test must not go on as it
                    os._exit(4)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert [out.data for out in reader] == [b"err\n"]  # and it goes on unharmed
        assert world.run("hi").stdout == "out\n"
        sub.close()
        served.stdin.close()


def test_the_blocking_client_works_inside_a_running_loop(host: CannedHost) -> None:
    async def notebook() -> str:
        with Substrate(host.endpoint) as sub, sub.world() as world:
            return world.run("hi").stdout

    assert asyncio.run(notebook()) == "out\n"


def test_one_async_client_serves_one_loop_after_the_other(host: CannedHost) -> None:
    sub = AsyncSubstrate(host.endpoint)

    async def once() -> str:
        async with sub.world() as world:
            stdout = (await world.run("hi")).stdout
        await sub.close()
        return stdout

    assert [asyncio.run(once()) for _ in range(2)] == ["out\n", "out\n"]


def test_tasks_share_one_async_client(host: CannedHost) -> None:
    async def many() -> list[str]:
        async with AsyncSubstrate(host.endpoint) as sub, sub.world() as world:
            results = await asyncio.gather(*(world.run("hi") for _ in range(20)))
            return [result.stdout for result in results]

    assert asyncio.run(many()) == ["out\n"] * 20


def test_interrupting_a_run_ends_the_command(host: CannedHost) -> None:
    host.script.hold = True

    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    with Substrate(host.endpoint) as sub:
        world = sub.world()
        with pytest.raises(KeyboardInterrupt):
            world.run("sleep", on_output=interrupt)
    assert host.worlds.signals == ["KILL"]


def test_cancelling_a_run_ends_the_command(host: CannedHost) -> None:
    host.script.hold = True

    async def act() -> None:
        seen = asyncio.Event()
        async with AsyncSubstrate(host.endpoint) as sub:
            world = await sub.world()
            task = asyncio.create_task(world.run("sleep", on_output=lambda _: seen.set()))
            await seen.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(act())
    assert host.worlds.signals == ["KILL"]


def test_a_reader_that_another_thread_waits_in_can_be_closed(host: CannedHost) -> None:
    host.script.hold = True
    with Substrate(host.endpoint) as sub:
        reader = sub.world().exec("sleep").output()
        assert [next(reader).data, next(reader).data] == [b"out\n", b"err\n"]
        rest: list[object] = []
        thread = threading.Thread(target=lambda: rest.extend(reader))
        thread.start()
        reader.close()
        thread.join(10)
        assert not thread.is_alive()
        assert rest == []


def test_a_connection_that_the_host_closed_meanwhile_is_replaced(tmp_path: Path) -> None:
    path = str(tmp_path / "host.sock")
    with Substrate(f"unix://{path}") as sub:
        for _ in range(2):
            with CannedHost(path) as host:
                assert sub.world().run("hi").stdout == "out\n"
                assert host.worlds.calls == ["CreateWorld", "StreamExec"]


def test_something_else_at_the_endpoint_is_said_to_be_that(tmp_path: Path) -> None:
    path = str(tmp_path / "other.sock")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()

        def serve() -> None:
            peer, _ = server.accept()
            with peer:
                peer.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                while peer.recv(4096):
                    pass

        thread = threading.Thread(target=serve)
        thread.start()
        with (
            Substrate(f"unix://{path}") as sub,
            pytest.raises(errors.HostUnavailable, match="does not speak HTTP/2"),
        ):
            sub.worlds()
        thread.join()
