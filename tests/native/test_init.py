"""Init against real programs: starting, streams, ends, and what survives the host."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from substrate_services.world.init_client import (
    InitError,
    KillMode,
    Phase,
    Reason,
    Rlimit,
    Scope,
    Stage,
    StartFailed,
)
from tests.native.boxes import (
    PATH,
    box_spec,
    guest,
    launcher,
    let_go,
    make_backend,
    talk,
)

pytestmark = pytest.mark.root


# -- starting ------------------------------------------------------------------------------------


def test_exit_codes_and_signals_are_told_apart(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with guest(tmp_path) as box:
            for code in (0, 1, 126, 255):
                done = await box.sh(f"exit {code}")
                assert (done.state.reason, done.code, done.state.signal) == (
                    Reason.EXITED,
                    code,
                    None,
                )
            done = await box.sh("kill -SEGV $$")
            assert (done.state.reason, done.code) == (Reason.SIGNALED, None)
            assert done.state.signal == signal.SIGSEGV
            assert done.state.end_mono_ns > done.state.start_mono_ns
            done = await box.run(
                "python3", "-c", "b = bytearray(60 << 20)\nfor _ in range(10**6): pass"
            )
            assert done.state.usage.max_rss_bytes > 60 << 20
            assert done.state.usage.user_us > 0

    asyncio.run(scenario())


def test_what_cannot_start_says_where_it_failed(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with guest(tmp_path) as box:
            cases = [
                (box.command("no-such-program"), Stage.EXEC, errno.ENOENT),
                (box.command("/etc/passwd"), Stage.EXEC, errno.EACCES),
                (box.command("/etc"), Stage.EXEC, errno.EACCES),
                (box.command("true", cwd=b"/no/where"), Stage.CWD, errno.ENOENT),
                (box.command("true", user="nobody-knows"), Stage.USER, errno.ENOENT),
                (box.command("true", user="root:no-group"), Stage.USER, errno.ENOENT),
                (box.command("no-operation", builtin=True), Stage.REQUEST, errno.ENOSYS),
                (box.command("x" * 200_000), Stage.EXEC, errno.ENAMETOOLONG),
            ]
            for start, stage, error in cases:
                with pytest.raises(StartFailed) as caught:
                    await box.start(start)
                assert (caught.value.stage, caught.value.error) == (stage, error), start.argv
            # The id of what never started is free again.
            retry = box.command("true", exec_id=cases[0][0].exec_id)
            assert (await box.end(await box.start(retry))).code == 0

    asyncio.run(scenario())


def test_starting_twice_finds_the_first(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with guest(tmp_path) as box:
            start = box.command("sh", "-c", "echo once; sleep 0.2", exec_id="same")
            first, second = await asyncio.gather(box.start(start), box.start(start))
            assert first.pid == second.pid
            done = await box.end(first)
            again = await box.start(start)
            assert (again.existing, again.pid, done.out) == (True, first.pid, b"once\n")

    asyncio.run(scenario())


def test_arguments_and_environment_arrive_byte_for_byte(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with guest(tmp_path) as box:
            odd = [b"a b", b"'\"\n\t$x", b"\xff\xfe\x80", b"", "é".encode()]
            done = await box.run("printf", "%s|", *odd)
            assert done.out == b"|".join(odd) + b"|"
            done = await box.run("env", "-0", env=(PATH, b"B=\xff\n=", b"EMPTY="))
            assert done.out == PATH + b"\0B=\xff\n=\0EMPTY=\0"
            big = [b"x" * 100_000 for _ in range(10)]
            env = (PATH, *(b"V%d=" % n + b"y" * 100_000 for n in range(5)))
            done = await box.run(
                "sh", "-c", 'printf %s "$*" | wc -c; env | wc -c', "sh", *big, env=env
            )
            words, variables = (int(count) for count in done.out.split())
            assert words >= 10**6
            assert variables >= 5 * 10**5

    asyncio.run(scenario())


def test_the_process_is_what_was_asked_for(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with guest(tmp_path) as box:
            done = await box.sh(
                "pwd; umask; ulimit -n; ulimit -c",
                cwd=b"/usr/lib",
                umask=0o077,
                rlimits=(Rlimit(resource.RLIMIT_NOFILE, 100, 100),),
            )
            assert done.out == b"/usr/lib\n0077\n100\n0\n"
            soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
            assert (await box.sh("ulimit -n")).out == b"%d\n" % soft
            done = await box.sh("id -u; id -g; id -G", user="nobody")
            assert done.out == b"65534\n65534\n65534\n"
            done = await box.sh("id -u; id -g; echo to-err > /dev/stderr", uid=1234, gid=99)
            assert (done.out, done.err) == (b"1234\n99\n", b"to-err\n")
            done = await box.sh("id -u; id -g; id -G", user="daemon:tty")
            assert done.out.split()[:2] == [b"1", b"5"]
            done = await box.sh("ls /proc/self/fd | wc -l; trap; echo $$; ps -o pid=,sid= -p $$")
            assert done.out.split()[0] == b"4"  # 0, 1, 2 and ls's own
            assert done.out.split()[-1] == done.out.split()[-2]  # a session of its own
            done = await box.run("sh", "-c", "grep -c . /proc/self/maps; true", no_aslr=True)
            assert done.code == 0
            maps = [(await box.run("cat", "/proc/self/maps", no_aslr=True)).out for _ in range(2)]
            assert maps[0].split()[0] == maps[1].split()[0]

    asyncio.run(scenario())


def test_a_script_without_an_interpreter_line_runs(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with guest(tmp_path) as box:
            await box.sh("printf 'echo \"$1\"' > /s; chmod +x /s")
            assert (await box.run("/s", "a b")).out == b"a b\n"

    asyncio.run(scenario())


def test_pids_can_be_repeated(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with guest(tmp_path) as box:
            done = await box.sh("echo $$; sh -c 'echo $$'; true", last_pid=4999)
            first, child = (int(pid) for pid in done.out.split())
            assert (first, child) == (5000, 5001)
            assert done.started.pid == 5000

    asyncio.run(scenario())


# -- streams -------------------------------------------------------------------------------------


def test_stdin_flows_with_backpressure(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with guest(tmp_path) as box:
            data = os.urandom(3 << 20)
            start = box.command("sh", "-c", "sleep 0.1; cat", stdin=True)
            started = await box.start(start)
            for at in range(0, len(data), 700_000):
                taken = await box.client.write_stdin(
                    start.exec_id, data[at : at + 700_000], offset=at
                )
                assert taken == min(at + 700_000, len(data))
            # What init has already is not written twice.
            await box.client.write_stdin(start.exec_id, data[-10:], offset=len(data) - 10, eof=True)
            done = await box.end(started)
            assert done.out == data
            assert done.state.stdin_written == len(data)

    asyncio.run(scenario())


def test_stdin_that_nobody_reads_ends(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with guest(tmp_path) as box:
            start = box.command("sh", "-c", "exec 0<&-; sleep 0.2", stdin=True)
            started = await box.start(start)
            taken = await box.client.write_stdin(start.exec_id, b"x" * (1 << 20))
            assert taken < 1 << 20
            assert (await box.end(started)).code == 0
            done = await box.run("cat")
            assert (done.out, done.code) == (b"", 0)  # /dev/null
            empty = box.command("cat", stdin=True)
            started = await box.start(empty)
            await box.client.write_stdin(empty.exec_id, b"", eof=True)
            assert (await box.end(started)).code == 0

    asyncio.run(scenario())


def test_output_beyond_the_limit_is_dropped_and_said(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with guest(tmp_path) as box:
            done = await box.sh(
                "head -c 20000000 /dev/zero; echo end >&2", output_limit_bytes=1 << 20
            )
            assert len(done.out) + len(done.err) == 1 << 20
            assert done.state.truncated
            assert done.state.out_bytes == (20_000_000, 4, 0)
            exact = await box.sh("head -c 4096 /dev/zero", output_limit_bytes=4096)
            assert not exact.state.truncated

    asyncio.run(scenario())


def test_output_is_there_while_the_command_runs(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with guest(tmp_path) as box:
            start = box.command("sh", "-c", "echo one; read x; echo two", stdin=True)
            started = await box.start(start)
            await asyncio.wait_for(box.until(start.exec_id, b"one"), 10)
            await box.client.write_stdin(start.exec_id, b"\n")
            assert (await box.end(started)).out == b"one\ntwo\n"

    asyncio.run(scenario())


def test_a_terminal_is_a_terminal(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with guest(tmp_path) as box:
            done = await box.sh(
                "tty; stty size; test -t 0 -a -t 1 -a -t 2 && echo all", pty=(33, 99)
            )
            assert done.pty.split(b"\r\n")[:3] == [b"/dev/pts/0", b"33 99", b"all"]
            script = (
                "import os, signal\n"
                "signal.signal(signal.SIGWINCH, lambda *_: print(*os.get_terminal_size()))\n"
                "print('ready', flush=True)\n"
                "print('got', input())\n"
            )
            start = box.command("python3", "-u", "-c", script, pty=(24, 80))
            started = await box.start(start)
            await asyncio.wait_for(box.until(start.exec_id, b"ready"), 10)
            await box.client.resize(start.exec_id, 50, 120)
            await asyncio.wait_for(box.until(start.exec_id, b"120 50"), 10)
            await box.client.write_stdin(start.exec_id, b"words\n")
            assert b"got words" in (await box.end(started)).pty

    asyncio.run(scenario())


def test_a_terminal_that_is_closed_before_the_exit_ends_nobody(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with guest(tmp_path) as box:
            close = "import os, time\nfor fd in range(3): os.close(fd)\ntime.sleep(0.1)\n"
            again = "fd = os.open('/dev/pts/0', os.O_RDWR)\nos.write(fd, b'back')\nos._exit(5)\n"
            done = await box.run("python3", "-c", close + again, pty=(24, 80))
            assert (done.code, done.pty) == (5, b"back")

    asyncio.run(scenario())


def test_terminal_keys_interrupt_and_end(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with guest(tmp_path) as box:
            # Not dash: it loses a SIGINT that comes while it forks.
            wait = "import signal; signal.signal(2, signal.SIG_DFL); print('ready'); signal.pause()"
            start = box.command("python3", "-u", "-c", wait, pty=(24, 80))
            started = await box.start(start)
            await asyncio.wait_for(box.until(start.exec_id, b"ready"), 10)
            await box.client.write_stdin(start.exec_id, b"\x03")
            assert (await box.end(started)).state.signal == signal.SIGINT
            start = box.command("cat", pty=(24, 80))
            started = await box.start(start)
            await box.client.write_stdin(start.exec_id, b"line\n", eof=True)
            done = await box.end(started)
            assert (done.code, done.pty.count(b"line")) == (0, 2)  # echoed, then written
            with pytest.raises(InitError, match="resize"):
                await box.client.resize("nobody", 1, 1)

    asyncio.run(scenario())


# -- ends ----------------------------------------------------------------------------------------

_DAEMON = (
    "import os, time\n"
    "if os.fork() == 0:\n"
    "    os.setsid()\n"
    "    if os.fork() == 0:\n"
    "        for fd in range(3): os.close(fd)\n"
    "        time.sleep(600)\n"
    "    os._exit(0)\n"
    "print('made', flush=True)\n"
    "time.sleep(600)\n"
)


def test_a_timeout_takes_the_whole_tree_and_keeps_the_output(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with guest(tmp_path) as box:
            done = await box.run("python3", "-c", _DAEMON, timeout_s=1.0)
            assert (done.state.reason, done.state.remaining) == (Reason.TIMEOUT, 0)
            assert done.out == b"made\n"
            done = await box.sh("trap '' TERM INT HUP; while :; do :; done", timeout_s=0.2)
            assert done.state.reason is Reason.TIMEOUT
            assert [process.pid for process in await box.client.processes()] == [1]

    asyncio.run(scenario())


def test_a_fork_bomb_ends_at_the_timeout(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with guest(tmp_path) as box:
            bomb = "import os\nwhile True:\n  try: os.fork()\n  except OSError: pass\n"
            limits = (Rlimit(resource.RLIMIT_NPROC, 60, 60),)
            done = await box.run("python3", "-c", bomb, uid=1000, timeout_s=0.5, rlimits=limits)
            assert (done.state.reason, done.state.remaining) == (Reason.TIMEOUT, 0)

    asyncio.run(scenario())


def test_signals_reach_whom_they_should(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with guest(tmp_path) as box:
            child = "(trap 'echo child' TERM; echo up; sleep 60 & wait)"
            script = f"trap 'echo main; exit 9' TERM; {child} & wait"
            for scope, said in ((Scope.MAIN, b"main\n"), (Scope.TREE, b"child\n")):
                start = box.command("bash", "-c", script)
                started = await box.start(start)
                await asyncio.wait_for(box.until(start.exec_id, b"up"), 10)
                await box.client.signal(start.exec_id, signal.SIGTERM, scope=scope)
                done = await box.end(started)
                assert done.code == 9
                assert b"main\n" in done.out
                if scope is Scope.TREE:
                    await asyncio.wait_for(box.until(start.exec_id, said), 10)
                await box.client.kill(start.exec_id)
            start = box.command("python3", "-c", _DAEMON)
            started = await box.start(start)
            await asyncio.wait_for(box.until(start.exec_id, b"made"), 10)
            await box.client.kill(start.exec_id)
            done = await box.end(started)
            assert (done.state.signal, done.state.killed, done.state.remaining) == (9, True, 0)
            with pytest.raises(InitError) as caught:
                await box.client.signal(start.exec_id, signal.SIGTERM)
            assert caught.value.error == errno.ESRCH

    asyncio.run(scenario())


def test_background_children_live_on_and_still_log(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with guest(tmp_path) as box:
            start = box.command(
                "sh",
                "-c",
                "(while [ ! -e /go ]; do sleep 0.02; done; echo later) & echo now; exit 4",
            )
            done = await box.end(await box.start(start))
            assert (done.code, done.out, done.state.remaining >= 1) == (4, b"now\n", True)
            assert (await box.run("touch", "/go")).code == 0
            await asyncio.wait_for(box.until(start.exec_id, b"later"), 10)

    asyncio.run(scenario())


def test_forgetting_leaves_a_background_child_alive(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with guest(tmp_path) as box:
            loop = "trap '' PIPE; while :; do echo x || echo failed > /failed; sleep 0.01; done"
            start = box.command("sh", "-c", f"({loop}) & exit 0")
            running = box.command("sleep", "60", exec_id="running")
            await box.start(running)
            with pytest.raises(InitError) as caught:
                await box.client.forget("running")
            assert caught.value.error == errno.EBUSY
            await box.end(await box.start(start))
            await box.client.forget(start.exec_id)
            await box.client.forget(start.exec_id)
            assert {state.exec_id for state in await box.client.status()} == {"running"}
            assert (await box.sh("sleep 0.1; test ! -e /failed")).code == 0
            assert any(process.comm == b"sh" for process in await box.client.processes())

    asyncio.run(scenario())


def test_many_execs_at_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with guest(tmp_path) as box:
            ends = await asyncio.gather(*(box.sh(f"echo {n}; exit {n % 256}") for n in range(100)))
            assert [(done.out, done.code) for done in ends] == [
                (b"%d\n" % n, n % 256) for n in range(100)
            ]
            states = await box.client.status()
            assert len(states) == 100
            assert {state.phase for state in states} == {Phase.EXITED}

    asyncio.run(scenario())


# -- hosts come and go ---------------------------------------------------------------------------

_HOST = """
import asyncio, os, sys
from pathlib import Path
from tests.native.boxes import box_spec, make_backend, talk
async def main():
    directory = Path(sys.argv[1])
    backend = make_backend(directory)
    await backend.start()
    box = talk(backend, await backend.create(box_spec(directory)), directory)
    await box.client.connect()
    wait = 'while [ ! -e /tmp/go ]; do sleep 0.02; done'
    script = f'echo before; {wait}; yes | head -c 300000; exit 7'
    await box.start(box.command('sh', '-c', script, exec_id='lasting', stdin=True))
    await box.until('lasting', b'before')
    print('READY', flush=True)
    await asyncio.sleep(600)
asyncio.run(main())
"""


def test_an_exec_outlives_a_killed_host_process(tmp_path: Path) -> None:
    async def scenario() -> None:
        host = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            _HOST,
            str(tmp_path),
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        assert host.stdout is not None
        assert await asyncio.wait_for(host.stdout.readline(), 30) == b"READY\n"
        host.kill()
        await host.wait()
        async with launcher(tmp_path) as backend:
            adopted = await backend.adopt()
            assert [box.world_id for box in adopted] == ["wld_test"]
            box = talk(backend, adopted[0], tmp_path)
            await box.client.connect()
            (state,) = await box.client.status()
            assert (state.exec_id, state.phase) == ("lasting", Phase.RUNNING)
            assert (await box.run("touch", "/tmp/go")).code == 0
            final = await asyncio.wait_for(box.exit_of("lasting"), 10)
            assert (final.exit_code, final.out_bytes[0]) == (7, 300_007)
            assert box.output("lasting")[0] == b"before\n" + b"y\n" * 150_000
            let_go(box)

    asyncio.run(scenario())


def test_events_nobody_read_are_not_lost(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with launcher(tmp_path) as backend:
            box = talk(backend, await backend.create(box_spec(tmp_path)), tmp_path)
            for n in range(300):  # more than the socket holds
                await box.start(
                    box.command("sh", "-c", "sleep 0.5; echo x; exit 3", exec_id=f"b{n}")
                )
            let_go(box)
            (found,) = await backend.adopt()
            box = talk(backend, found, tmp_path)
            await box.client.connect()
            await asyncio.wait_for(box.run("sleep", "1"), 30)
            states = {state.exec_id: state for state in await box.client.status()}
            assert [states[f"b{n}"].exit_code for n in range(300)] == [3] * 300
            let_go(box)

    asyncio.run(scenario())


# -- init defends itself -------------------------------------------------------------------------


def test_init_is_out_of_reach(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with guest(tmp_path) as box:
            for attempt in (
                "cat /proc/1/environ",
                "ls /proc/1/root/",
                "readlink /proc/1/fd/3",
                "cat /proc/1/fd/3",
                "readlink /proc/1/exe",
                "cat /proc/1/maps",
                "cat /proc/1/mem",
                "head -c1 /proc/1/auxv",
                "echo x > /proc/1/mem",
                "readlink /proc/1/task/1/fd/3",
                "prlimit --pid 1 --nofile=3",
                "renice 19 -p 1",
                "nsenter -t 1 -m true",
            ):
                done = await box.sh(attempt)
                assert done.code != 0, (attempt, done.out)
            assert (await box.sh("kill -9 1; kill -TERM 1; kill -SEGV 1; true")).code == 0
            steal = (
                "import ctypes, os, sys\n"
                "libc = ctypes.CDLL(None, use_errno=True)\n"
                "fd = os.pidfd_open(1)\n"
                "for number in range(64):\n"
                "    if libc.syscall(438, fd, number, 0) >= 0: sys.exit(1)\n"
                "if libc.ptrace(16, 1, 0, 0) == 0: sys.exit(2)\n"
                "sys.exit(0 if ctypes.get_errno() == 1 else 3)\n"
            )
            assert (await box.run("python3", "-c", steal)).code == 0
            assert (await box.run("true")).code == 0

    asyncio.run(scenario())


def test_execs_have_few_rights(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with guest(tmp_path) as box:
            done = await box.sh("grep -E '^(Cap|NoNewPrivs|Seccomp:)' /proc/self/status")
            values = dict(line.split(":\t") for line in done.out.decode().splitlines())
            allowed = sum(1 << bit for bit in (0, 1, 3, 4, 5, 6, 7, 10, 31))
            assert int(values["CapPrm"], 16) | int(values["CapBnd"], 16) == allowed
            assert int(values["CapInh"], 16) == int(values["CapAmb"], 16) == 0
            assert (values["NoNewPrivs"], values["Seccomp"]) == ("1", "2")
            done = await box.sh("grep CapEff /proc/self/status", uid=1000)
            assert done.out == b"CapEff:\t0000000000000000\n"
            for attempt in (
                "mount -t tmpfs x /mnt",
                "unshare -U true",
                "unshare -n true",
                "chroot / true",
                "hostname other",
                "ip link add d0 type dummy",
                "ping -c1 -W1 127.0.0.1",
                "dmesg",
                "date -s 2020-01-01",
                "swapoff -a; losetup /dev/loop0 /etc/passwd",
            ):
                assert (await box.sh(attempt)).code != 0, attempt
            calls = (
                "import ctypes, sys\n"
                "libc = ctypes.CDLL(None, use_errno=True)\n"
                "def no(number, *a):\n"
                "    return libc.syscall(number, *a) == -1 and ctypes.get_errno()\n"
                "EPERM, ENOSYS = 1, 38\n"
                # add_key, keyctl, bpf, perf_event_open, userfaultfd, io_uring_setup, setns,
                # open_by_handle_at, process_madvise, kexec_load, init_module
                "for n in (248, 250, 321, 298, 323, 425, 308, 304, 440, 246, 175):\n"
                "    assert no(n, 0, 0, 0, 0, 0, 0) == EPERM, n\n"
                "assert no(435, 0, 0) == ENOSYS\n"
                "assert no(9999) == ENOSYS\n"
                "assert no(56, 0x10000000 | 17, 0, 0, 0, 0) == EPERM\n"
                "import socket\n"
                "for family, kind in ((40, 1), (38, 5), (17, 3)):\n"
                "    try: socket.socket(family, kind)\n"
                "    except OSError: continue\n"
                "    sys.exit(f'family {family}')\n"
            )
            done = await box.run("python3", "-c", calls)
            assert done.code == 0, done.err

    asyncio.run(scenario())


def test_set_id_programs_give_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with guest(tmp_path) as box:
            done = await box.sh("cp /usr/bin/id /usr/bin/myid; chmod 6755 /usr/bin/myid")
            assert done.code == 0
            assert (await box.run("/usr/bin/myid", "-u", uid=1000)).out == b"1000\n"

    asyncio.run(scenario())


def test_init_says_who_it_is(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with launcher(tmp_path) as backend:
            box = talk(backend, await backend.create(box_spec(tmp_path)), tmp_path)
            welcome = await box.client.connect()
            namespace = os.stat(f"/proc/{box.box.init_pid}/ns/pid").st_ino
            assert welcome.pid_namespace == namespace
            wanted = "cgroup.kill" if welcome.kill_mode is KillMode.CGROUP else "subreaper"
            assert backend.capabilities().kill == wanted
            started = await box.start(box.command("sleep", "60", exec_id="s"))
            processes = {process.pid: process for process in await box.client.processes()}
            assert processes[started.pid].exec_id == "s"
            assert processes[started.pid].start_ticks == started.start_ticks
            assert processes[1].comm == b"substrate-init"
            let_go(box)

    asyncio.run(scenario())


def test_the_backend_can_be_used_by_two_loops_in_turn(tmp_path: Path) -> None:
    async def first() -> None:
        backend = make_backend(tmp_path)
        await backend.start()
        box = await backend.create(box_spec(tmp_path))
        os.close(box.channel_fd)
        box.close()
        await backend.close()

    async def second() -> None:
        async with launcher(tmp_path) as backend:
            (box,) = await backend.adopt()
            let_go(talk(backend, box, tmp_path))

    asyncio.run(first())
    asyncio.run(second())
