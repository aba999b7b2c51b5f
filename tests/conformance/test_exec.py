"""Commands: what they are given, what they give back, and how they end."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import grpc
import pytest

from substrate_sdk import World
from substrate_sdk._pb.substrate.world.v1alpha1 import execs_pb2
from substrate_sdk.errors import InvalidArgument
from tests.conformance.clauses import Place, clause, kinds, said
from tests.users import read_some


@clause("exec: the exact arguments arrive, byte for byte")
def test_arguments(shared: World) -> None:
    result = shared.run(["printf", "<%s>", "a b", "", "$HOME", b"\xff\n", "*"])
    assert result.stdout_bytes == b"<a b><><$HOME><\xff\n><*>"


@clause("exec: a string is for a shell; stdout, stderr and exit code are apart")
def test_shell_string(shared: World) -> None:
    result = shared.run("echo out | tr a-z A-Z; echo err >&2; exit 3")
    assert (result.stdout, result.stderr, result.exit_code) == ("OUT\n", "err\n", 3)
    assert (result.termination_reason, result.signal) == ("EXITED", None)


@clause("exec: variables are an allow-list of the caller's, the world's, and the command's")
def test_environment(place: Place, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    monkeypatch.setenv("LC_TIME", "C")
    with place.sub.world(project=project, env={"A": "world", "B": "world"}) as world:
        lines = world.run(["env"], env={"B": "command"}).stdout.splitlines()
    assert {"A=world", "B=command", "LC_TIME=C"} <= set(lines)
    assert not [line for line in lines if "hunter2" in line]
    parents = [line for line in lines if line.startswith("TRACEPARENT=00-")]
    assert len(parents) == 1


@clause("exec: TRACEPARENT names the command's own span")
def test_traceparent(shared: World) -> None:
    result = shared.run("echo $TRACEPARENT")
    assert result.stdout.split("-")[1:3] == [result.trace_id, result.span_id]


@clause("exec: the cwd is the world's, or the command's, absolute or relative to it")
def test_cwd(place: Place, shared: World) -> None:
    shared.run("mkdir -p cwd/deep")
    assert shared.run(["pwd"]).stdout == f"{place.host.project}\n"
    assert shared.run(["pwd"], cwd="cwd/deep").stdout == f"{place.host.project}/cwd/deep\n"
    assert shared.run(["pwd"], cwd="/tmp").stdout == "/tmp\n"


@clause("exec: a program or cwd that is not there is a result, as of a shell")
def test_not_there(shared: World) -> None:
    assert shared.run(["no-such-program"]).exit_code == 127
    gone = shared.run(["true"], cwd="/nowhere")
    assert (gone.exit_code, gone.ok) == (126, False)
    with pytest.raises(InvalidArgument):
        shared.run([])


@clause("exec: the umask is 022, or what is asked for")
def test_umask(shared: World) -> None:
    assert shared.run("umask").stdout == "0022\n"
    assert shared.run("umask", umask=0o077).stdout == "0077\n"


@clause("exec: without a user named, a command runs as the caller")
def test_caller(place: Place, shared: World) -> None:
    owner = place.user.home.stat()
    assert shared.run("id -u; id -g").stdout == f"{owner.st_uid}\n{owner.st_gid}\n"


@clause("exec: another user of the world can be named", needs=("users",))
def test_user(shared: World) -> None:
    assert shared.run("id -u; id -g", user="1234:2345").stdout == "1234\n2345\n"
    assert shared.run(["id", "-un"], user="nobody").stdout == "nobody\n"
    assert shared.run("id -u", user="root").stdout == "0\n"


@clause("exec: input is taken by offset, once, until its end is said")
def test_stdin(place: Place, shared: World) -> None:
    proc = shared.exec(["cat"])

    def write(offset: int, data: bytes, *, eof: bool = False) -> None:
        request = execs_pb2.WriteStdinRequest(offset=offset, data=data, eof=eof)
        request.world_id, request.exec_id = shared.world_id, proc.exec_id
        place.stub.WriteStdin(request)

    for offset, data in ((0, b"abc"), (0, b"abc"), (2, b"cde")):
        write(offset, data)
    with pytest.raises(grpc.RpcError) as beyond:
        write(99, b"z")
    assert beyond.value.code() is grpc.StatusCode.OUT_OF_RANGE
    write(5, b"", eof=True)
    assert proc.wait(20).stdout == "abcde"
    with pytest.raises(grpc.RpcError) as closed:
        write(5, b"z")
    assert closed.value.code() is grpc.StatusCode.FAILED_PRECONDITION


@clause("exec: output can be read again from any offset that was told")
def test_output_offsets(place: Place, shared: World) -> None:
    proc = shared.exec("echo one; echo two >&2; echo three")
    proc.wait(20)
    request = execs_pb2.StreamExecRequest(
        world_id=shared.world_id, exec_id=proc.exec_id, follow=True
    )

    def read(offset: int) -> list[execs_pb2.Output]:
        request.offset = offset
        answers = list(place.stub.StreamExec(request))
        assert answers[-1].finished.exit_code == 0
        return [answer.output for answer in answers if answer.HasField("output")]

    whole = read(0)
    assert b"".join(piece.data for piece in whole if piece.stream == 1) == b"one\nthree\n"
    assert b"".join(piece.data for piece in whole if piece.stream == 2) == b"two\n"
    for index, piece in enumerate(whole):
        assert read(piece.next_offset) == whole[index + 1 :]
    with pytest.raises(grpc.RpcError) as beyond:
        read(whole[-1].next_offset + 1_000_000)
    assert beyond.value.code() is grpc.StatusCode.OUT_OF_RANGE


@clause("exec: a terminal has the size asked for, and each later one")
def test_terminal(shared: World) -> None:
    proc = shared.exec("tty -s && stty size; read x; stty size", pty=(31, 97))
    assert read_some(proc).startswith(b"31 97")
    proc.resize(12, 34)
    proc.stdin.write(b"\n")
    assert proc.wait(20).stdout.split("\r\n")[-2:] == ["12 34", ""]


@clause("exec: signals are sent by name, to one process or to all")
def test_signals(shared: World) -> None:
    handles = "trap 'exit 7' USR1; echo up; while :; do read -t 1 x <> /dev/ptmx || :; done"
    handled = shared.exec(["bash", "-c", handles])
    assert read_some(handled) == b"up\n"
    handled.signal("SIGUSR1", whole_tree=False)
    assert handled.wait(20).exit_code == 7
    handled.signal("TERM")  # it is over; nothing happens
    tree = shared.exec("sleep 1000 & echo up; wait")
    assert read_some(tree) == b"up\n"
    tree.signal("TERM")
    ended = tree.wait(20)
    assert (ended.termination_reason, ended.signal) == ("KILLED_BY_USER", "SIGTERM")
    assert shared.run("pgrep -x sleep").stdout == ""
    with pytest.raises(InvalidArgument, match="NOPE"):
        handled.signal("NOPE")


@clause("exec: a time-out ends all that was started and keeps the output so far")
def test_timeout(shared: World) -> None:
    script = "echo partial; setsid sleep 1000 & sleep 1000"
    result = shared.run(script, timeout_s=0.4)
    assert (result.termination_reason, result.exit_code) == ("TIMEOUT", None)
    assert result.stdout == "partial\n"
    assert shared.run("pgrep -x sleep").stdout == ""


@clause("exec: the termination reason says how it ended")
def test_termination_reasons(place: Place, project: Path) -> None:
    policy = project / "policy.yaml"
    policy.write_text('version: 1\nrules:\n  - action: deny\n    command: "touch:*"\n')
    policy.chmod(0o644)
    with place.sub.world(project=project, policy=policy) as world:
        assert world.run("exit 3").termination_reason == "EXITED"
        signaled = world.run("kill -SEGV $$")
        assert (signaled.termination_reason, signaled.signal) == ("SIGNALED", "SIGSEGV")
        denied = world.run(["touch", "x"])
        assert (denied.termination_reason, denied.exit_code) == ("DENIED", 126)
        killed = world.exec(["sleep", "1000"])
        killed.kill()
        assert killed.wait(20).termination_reason == "KILLED_BY_USER"
        removed = world.exec(["sleep", "1000"])
    assert removed.wait(20).termination_reason == "WORLD_REMOVED"


@clause("exec: the same id is the same exec")
def test_same_id(shared: World) -> None:
    first = shared.exec("echo x >> once", exec_id="conform-once")
    assert first.wait(20).ok
    again = shared.exec("echo x >> once", exec_id="conform-once")
    assert (again.wait(20).span_id, said(shared, "cat once")) == (first.span_id, "x\n")


@clause("exec: execs are listed oldest first, in pages, and each can be asked for")
def test_listing(place: Place, world: World) -> None:
    ids = [world.exec(["true"], exec_id=f"conform-{n}").exec_id for n in range(3)]
    request = execs_pb2.ListExecsRequest(world_id=world.world_id, page_size=2)
    first = place.stub.ListExecs(request)
    request.page_token = first.next_page_token
    second = place.stub.ListExecs(request)
    assert [one.exec_id for one in (*first.execs, *second.execs)] == ids
    assert second.next_page_token == ""
    waited = place.stub.WaitExec(execs_pb2.WaitExecRequest(world_id=world.world_id, exec_id=ids[1]))
    got = place.stub.GetExec(execs_pb2.GetExecRequest(world_id=world.world_id, exec_id=ids[1]))
    assert got.exec.state == execs_pb2.EXEC_STATE_FINISHED
    assert got.exec.result.span_id == waited.result.span_id
    with pytest.raises(grpc.RpcError) as unknown:
        place.stub.GetExec(execs_pb2.GetExecRequest(world_id=world.world_id, exec_id="none"))
    assert unknown.value.code() is grpc.StatusCode.NOT_FOUND


@clause("exec: a background command goes on without its client")
def test_background(place: Place, shared: World) -> None:
    with place.user.client() as other:
        proc = other.connect(shared.world_id).exec(
            "echo up; read line; echo $line", exec_id="conform-background"
        )
        with contextlib.closing(proc.output()) as reader:
            assert next(reader).data == b"up\n"
    found = shared.exec("true", exec_id="conform-background")
    found.feed(b"later\n")
    assert found.wait(20).stdout == "up\nlater\n"


@clause("exec: commands of one world run beside one another")
def test_beside(shared: World) -> None:
    first = shared.exec("mkfifo ping pong; echo up; read x < ping; echo got $x; echo b > pong")
    assert read_some(first) == b"up\n"
    second = shared.run("echo a > ping; read y < pong; echo got $y", timeout_s=20)
    assert second.stdout == "got b\n"
    assert first.wait(20).stdout == "up\ngot a\n"


@clause("exec: a step tells what it changed, and nothing of it is on the host")
def test_changes(place: Place, shared: World) -> None:
    result = shared.run("echo x > changed; mkdir dir-made; chmod 600 README.md")
    expected = {"changed": "created", "dir-made": "created", "README.md": "metadata"}
    assert kinds(result, place.host.project) == expected
    assert sorted(path.name for path in place.host.project.iterdir()) == ["README.md"]


@clause("telemetry: a step of ordinary programs is covered in full")
def test_coverage(shared: World) -> None:
    result = shared.run("ls > listed; (cat listed | wc -l); rm listed")
    assert (result.coverage.state, result.coverage.reasons) == ("full", ())
    programs = {Path(os.fsdecode(process.argv[0])).name for process in result.processes}
    assert {"ls", "cat", "wc", "rm"} <= programs
