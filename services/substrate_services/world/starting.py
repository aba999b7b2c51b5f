"""Starting a step's processes in the box of its world."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterable, Mapping

from substrate_services.world.actions import with_first_pid
from substrate_services.world.ended import Ended
from substrate_services.world.file_kinds import FILES_KINDS
from substrate_services.world.ids import LOOK_PREFIX
from substrate_services.world.init_client import ExecStart, InitGone, Rlimit, StartFailed
from substrate_services.world.limits import PIDS, Limits
from substrate_services.world.steps import Exec
from substrate_services.world.worlds import World

_OF_THE_INIT = 16


def process_limits(limits: Limits) -> tuple[Rlimit, ...]:
    """What each process of a world is limited to.

    A world has ids of its own, so this counts its processes and threads, for each of its users: a
    second wall beside the cgroup's, and the only one where there is no such cgroup.
    """
    # The init, its threads and its helpers are among them, which cgroups of version 2 do not count,
    # and the cgroup is to refuse first: it counts what it refused.
    most = (limits.pids or PIDS) + _OF_THE_INIT
    return (Rlimit(resource.RLIMIT_NPROC, most, most),)


async def start_in_box(
    world: World, exec_: Exec, identity: Mapping[bytes, bytes], *, stdin: bool
) -> Ended | None:
    """Let the world's init start a step.

    Args:
        world: where.
        exec_: the step; its pid is set.
        identity: environment that is no part of the action.
        stdin: whether there is a standard input to write to.

    Returns:
        None where it runs, else how it ended.
    """
    action, limits = exec_.start.action, world.spec.limits
    argv = action.command.argv
    builtin = exec_.start.kind in FILES_KINDS
    env = {**identity, **dict(action.env)}
    log_fd = os.open(exec_.output_log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        started = await world.init.start(
            ExecStart(
                exec_id=exec_.exec_id,
                argv=argv[1:] if builtin else argv,
                env=tuple(name + b"=" + value for name, value in sorted(env.items())),
                cwd=action.cwd,
                umask=action.umask,
                user=action.user,
                timeout_s=limits.timeout_s(action.timeout_s),
                pty=action.pty_size,
                stdin=stdin,
                builtin=builtin,
                output_limit_bytes=limits.output_limit_bytes,
                rlimits=process_limits(limits),
                last_pid=action.first_pid - 1 if action.first_pid is not None else None,
            ),
            log_fd,
        )
    except StartFailed as error:
        return Ended.not_started(error)
    except InitGone:
        return Ended.lost()
    finally:
        os.close(log_fd)
    exec_.pid = started.pid
    exec_.start = with_first_pid(exec_.start, started.pid)
    return None


async def mark_shared(world: World, exec_: Exec, known: Iterable[Exec]) -> None:
    """Say of all that runs in the world at the same time as a step that it does.

    The changes of a step are what differs between two walks, so they are the step's own only
    if nothing else was at work.
    """
    others = [
        other for other in known if other is not exec_ and other.phase != "finished" and other.pid
    ]
    for other in others:
        other.shared = True
    left_running = False
    if world.has_background:
        # What an earlier command left behind may have ended by now.
        shells = {shell.pid for shell in world.shells.values()}
        running = {other.exec_id for other in others}
        processes = await world.init.processes()
        left_running = any(
            process.exec_id
            and process.exec_id not in running
            and not process.exec_id.startswith(LOOK_PREFIX)
            and process.pid not in shells
            for process in processes
        )
        world.has_background = left_running
    exec_.shared = bool(others) or left_running
