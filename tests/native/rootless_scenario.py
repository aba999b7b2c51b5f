"""What must hold without root; run as an ordinary user by test_launcher_rootless.py.

Prints one line for each check: "ok NAME" or "FAIL NAME: why". Uses the standard library only.
"""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

from substrate_services.world.backends.base import MaskDir, MaskFile
from substrate_services.world.init_client import Reason, Rlimit, StartFailed
from tests.native.boxes import Guest, guest

_DAEMON = (
    "import os, time\n"
    "if os.fork() == 0:\n"
    "    os.setsid()\n"
    "    if os.fork() == 0: time.sleep(600)\n"
    "    os._exit(0)\n"
    "print('made', flush=True)\n"
    "time.sleep(600)\n"
)
_BOMB = "import os\nwhile True:\n  try: os.fork()\n  except OSError: pass\n"


async def who_am_i(box: Guest) -> None:
    found = box.backend.capabilities()
    assert (found.rootless, found.id_mapping) == (True, "caller")
    assert "userxattr" in found.overlay_options
    done = await box.sh("id -u; hostname; exit 3")
    assert (done.out, done.code) == (b"%d\nbox\n" % os.getuid(), 3)


async def files_are_copied_on_write(box: Guest) -> None:
    done = await box.sh("cp /etc/passwd /tmp/h && echo x > /tmp/x && cat /tmp/x")
    assert done.out == b"x\n", done.err
    assert (await box.sh("echo x >> /etc/passwd")).code != 0  # root's file stays root's


async def masks_hold(box: Guest) -> None:
    for script in (
        "ls /usr/share/doc | grep .",
        "cat /etc/hostname",
        "umount /usr/share/doc",
        "umount -l /etc/hostname",
        "unshare -Urm umount /usr/share/doc",
        "chmod 755 /etc/hostname",
        "mount -t tmpfs x /tmp",
        "cat /proc/1/environ",
        "readlink /proc/1/exe",
        "readlink /proc/1/fd/3",
        "readlink /proc/2/fd/0",
    ):
        assert (await box.sh(script)).code != 0, script


async def nobody_else_exists(box: Guest) -> None:
    failed = None
    try:
        await box.run("true", user="root")
    except StartFailed as failure:
        failed = failure.error
    assert failed == errno.EPERM, failed


async def timeouts_take_the_tree(box: Guest) -> None:
    done = await box.run("/usr/bin/python3", "-c", _DAEMON, timeout_s=1.0)
    assert (done.state.reason, done.state.remaining) == (Reason.TIMEOUT, 0)
    assert done.out == b"made\n"


async def background_children_live_until_killed(box: Guest) -> None:
    start = box.command("sh", "-c", "setsid sleep 600 & sleep 600 & exit 4")
    done = await box.end(await box.start(start))
    assert (done.code, done.state.remaining) == (4, 2)
    await box.client.kill(start.exec_id)
    for _ in range(500):
        if not any(process.comm == b"sleep" for process in await box.client.processes()):
            return
        await asyncio.sleep(0.01)
    raise AssertionError("sleep lives on")


async def a_killed_supervisor_is_noticed(box: Guest) -> None:
    start = box.command("sh", "-c", "kill -9 $PPID; sleep 600", exec_id="traitor")
    started = await box.start(start)
    done = await box.end(started)
    assert done.state.lost
    for _ in range(500):
        if not any(process.comm == b"sleep" for process in await box.client.processes()):
            return
        await asyncio.sleep(0.01)
    raise AssertionError("sleep lives on")


async def an_exec_that_init_learns_of_all_at_once_is_not_lost(box: Guest) -> None:
    """Its start, its end and its supervisor's, between two looks of init's: a loaded machine."""
    many = "for i in $(seq 60); do sleep 600 & done; wait"
    crowd = await box.start(box.command("sh", "-c", many))
    for round_ in range(3):
        os.kill(box.box.init_pid, signal.SIGSTOP)
        start = box.command("stat", "/", "0", exec_id=f"quick{round_}", builtin=True)
        begun = asyncio.ensure_future(box.start(start))
        # Read in the same round as the start; listing everybody takes longer than the command.
        looks = [asyncio.ensure_future(box.client.processes()) for _ in range(15)]
        await asyncio.sleep(0)
        os.kill(box.box.init_pid, signal.SIGCONT)
        await asyncio.gather(*looks)
        done = await box.end(await begun)
        assert (done.state.lost, done.code) == (False, 0), done.state
    await box.client.kill(crowd.exec_id)
    await box.exit_of(crowd.exec_id)


async def a_stopped_supervisor_goes_on(box: Guest) -> None:
    done = await box.sh("kill -STOP $PPID; sleep 0.1; kill -STOP $PPID; exit 3")
    assert done.code == 3, done.state


async def a_fork_bomb_ends(box: Guest) -> None:
    few = (Rlimit(resource.RLIMIT_NPROC, 60, 60),)
    done = await box.run("/usr/bin/python3", "-c", _BOMB, timeout_s=0.5, rlimits=few)
    assert (done.state.reason, done.state.remaining) == (Reason.TIMEOUT, 0), done.state


async def terminals_work(box: Guest) -> None:
    done = await box.sh("tty; stty size", pty=(20, 60))
    assert done.pty == b"/dev/pts/0\r\n20 60\r\n", done.pty


async def pids_can_be_repeated(box: Guest) -> None:
    done = await box.sh("echo $$", last_pid=7000)
    assert done.out == b"7001\n", done.out


async def main() -> None:
    checks: list[Callable[[Guest], Awaitable[None]]] = [
        who_am_i,
        files_are_copied_on_write,
        masks_hold,
        nobody_else_exists,
        timeouts_take_the_tree,
        background_children_live_until_killed,
        a_killed_supervisor_is_noticed,
        an_exec_that_init_learns_of_all_at_once_is_not_lost,
        a_stopped_supervisor_goes_on,
        a_fork_bomb_ends,
        terminals_work,
        pids_can_be_repeated,
    ]
    directory = Path(sys.argv[1])
    async with guest(directory, MaskDir(b"/usr/share/doc"), MaskFile(b"/etc/hostname")) as box:
        for check in checks:
            try:
                await asyncio.wait_for(check(box), 20)
            except (AssertionError, TimeoutError, StartFailed) as error:
                print(f"FAIL {check.__name__}: {error!r}", flush=True)
            else:
                print(f"ok {check.__name__}", flush=True)


if __name__ == "__main__":
    asyncio.run(main())
