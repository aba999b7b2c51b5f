"""What a world's limits did to an exec: its reason, and words that say how to go on (DESIGN §5)."""

from __future__ import annotations

from dataclasses import replace

from substrate_services.journal.schema import Action, Blocked
from substrate_services.world.disk import is_full
from substrate_services.world.ended import Ended
from substrate_services.world.init_client import ExecState
from substrate_services.world.limits import FLAGS, PIDS, Limits
from substrate_services.world.spec import layers_directory
from substrate_services.world.worlds import World


def with_limits(ended: Ended, state: ExecState, limits: Limits, action: Action) -> Ended:
    """The end of an exec, as what the kernel counted against it explains it.

    A command of which the kernel ended a process for want of memory ended by that where it was the
    main process, or where the command failed; one that went on and succeeded did not.
    """
    reason = ended.reason
    began = Limits.from_action(action.limits)  # the init has these, whatever was updated since
    killed = reason == "SIGNALED" and ended.signal == "SIGKILL"
    if state.oom_kills and (killed or (reason == "EXITED" and ended.exit_code != 0)):
        reason = "OOM"
    elif reason == "TIMEOUT" and began.is_runtime(action.timeout_s):
        reason = "LIMIT"
    blocked = [*ended.blocked]
    if state.oom_kills:
        blocked.append(_memory(state.oom_kills, limits))
    if state.pids_refused:
        most = limits.pids or PIDS
        blocked.append(
            _blocked(f"processes refused: {state.pids_refused}", "pids", f"more than {most:,}")
        )
    if state.truncated:
        kept = began.output_limit_bytes
        blocked.append(_blocked("output cut", "output_bytes", f"more than {kept:,} bytes"))
    if reason == "LIMIT":
        blocked.append(_blocked("time is over", "runtime", f"more than {began.runtime_s:g} s"))
    return replace(ended, reason=reason, blocked=tuple(blocked))


def disk_blocked(world: World) -> tuple[Blocked, ...]:
    """Whether the world's disk is full now, after a step; blocks."""
    limits = world.spec.limits
    if not limits.needs_disk:
        return ()
    blocks, inodes = is_full(layers_directory(world.directory, world.state.generation))
    found = []
    if blocks:
        most = "" if limits.disk_bytes is None else f" of {limits.disk_bytes:,} bytes"
        found.append(_blocked("the disk is full", "disk_bytes", f"more than its limit{most}"))
    if inodes:
        most = "" if limits.inodes is None else f" of {limits.inodes:,}"
        found.append(_blocked("no inode is left", "inodes", f"more than its limit{most}"))
    return tuple(found)


def _memory(kills: int, limits: Limits) -> Blocked:
    what = f"processes ended for want of memory: {kills}"
    if limits.memory_bytes is not None:
        return _blocked(what, "memory_bytes", f"more than {limits.memory_bytes:,} bytes")
    return Blocked(
        what,
        "limits",
        "memory_of_all_worlds",
        "all worlds of a host together have nine tenths of its memory: run fewer, or bound each "
        "with --memory",
    )


def _blocked(what: str, rule: str, more: str) -> Blocked:
    flag = FLAGS["runtime_s" if rule == "runtime" else rule]
    return Blocked(what, "limits", rule, f"make the world with {flag} of {more}, or update it")
