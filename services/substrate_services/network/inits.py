"""Which init a number means: with the time of its start, as the kernel gives numbers out again.

Whoever enters a namespace by a number alone may enter somebody else's: the host's own, if a process
of it has the number by then.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

_STARTED = 19  # of the fields after the name, proc_pid_stat(5)


@dataclass(frozen=True, slots=True)
class Init:
    """The first process of a world."""

    pid: int
    started: int  # in ticks since the machine began


def start_of(pid: int) -> int:
    """When a process started. Raises OSError where there is none."""
    directory = _open_directory(pid)
    try:
        return _start(directory)
    finally:
        os.close(directory)


def open_init(init: Init) -> int:
    """A descriptor of a process's directory in /proc: what is opened below it is that process's.

    Raises:
        ProcessLookupError: it has ended, whoever has its number now.
    """
    directory = _open_directory(init.pid)
    try:
        if _start(directory) != init.started:
            raise ProcessLookupError(f"process {init.pid} is another by now")
    except BaseException:
        os.close(directory)
        raise
    return directory


def open_netns(init: Init) -> int:
    """A descriptor of an init's network namespace. Raises OSError where it has ended."""
    directory = open_init(init)
    try:
        return os.open("ns/net", os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
    finally:
        os.close(directory)


def follow(init: Init) -> int:
    """A pidfd, readable once the init has ended. Raises OSError where it has."""
    descriptor = os.pidfd_open(init.pid)
    try:
        os.close(open_init(init))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def has_link(init: Init) -> bool:
    """Whether there is more than the loopback in an init's network; no right is needed."""
    try:
        directory = open_init(init)
    except OSError:
        return False
    try:
        descriptor = os.open("net/dev", os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
        with open(descriptor, encoding="ascii", errors="replace") as lines:
            names = {line.partition(":")[0].strip() for line in lines if ":" in line}
    except OSError:
        return False
    finally:
        os.close(directory)
    return bool(names - {"lo"})


def _open_directory(pid: int) -> int:
    try:
        return os.open(f"/proc/{pid}", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise ProcessLookupError(f"there is no process {pid}") from error


def _start(directory: int) -> int:
    descriptor = os.open("stat", os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
    try:
        # The name may hold anything, brackets too.
        return int(os.read(descriptor, 4096).rpartition(b")")[2].split()[_STARTED])
    finally:
        os.close(descriptor)
