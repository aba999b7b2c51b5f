"""The work that is slowed down: that of the truth test, and what only a clock needs.

Every turn gets a fresh directory and the same inputs, prepared before the clock starts.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.truth import workloads as truth
from benchmarks.truth.sources import NotToBeHad, Sources

_STORM = """
import os
for number in range(40_000):
    if number % 1_000 == 0:
        os.mkdir(f"d{number}")
        where = f"d{number}"
    os.close(os.open(f"{where}/{number}", os.O_CREAT | os.O_WRONLY | os.O_EXCL))
"""


@dataclass(frozen=True, slots=True)
class Work:
    """One row.

    Attributes:
        name: what a reader calls it.
        prepare: makes one turn ready in a fresh directory.
        times: how often the command runs in a turn, where once is too short for a clock.
        fresh: each turn needs a directory of its own, because the command changes it.
        storm: metadata and nothing else, which has a row of its own.
        starts: starting programs and nothing else, which has a row of its own.
    """

    name: str
    prepare: Callable[[Sources, Path], truth.Prepared]
    times: int = 1
    fresh: bool = True
    storm: bool = False
    starts: bool = False

    @property
    def real(self) -> bool:
        """Is it work that somebody wants done, whose ratios make the mean?"""
        return not (self.storm or self.starts)

    def ready(self, sources: Sources, room: Path) -> truth.Prepared:
        """Make a turn ready.

        Raises:
            NotToBeHad: a program or a source is missing here.
        """
        ready = self.prepare(sources, room)
        if shutil.which(ready.command[0]) is None:
            raise NotToBeHad(f"{ready.command[0]} is not installed")
        return ready


def _shared(name: str, *, times: int = 1, fresh: bool = True, storm: bool = False) -> Work:
    (workload,) = (each for each in truth.WORKLOADS if each.name == name)
    return Work(name, workload.ready, times, fresh, storm)


def _prepared(*command: str, cwd: Path, **env: str) -> truth.Prepared:
    return truth.Prepared(command, cwd, env)


def _git_log(sources: Sources, room: Path) -> truth.Prepared:
    env = {"HOME": str(room), "GIT_CONFIG_NOSYSTEM": "1"}
    return _prepared("git", "log", "--stat", cwd=sources.repository(), **env)


def _trues(_sources: Sources, room: Path) -> truth.Prepared:
    loop = "i=0; while [ $i -lt 200 ]; do /bin/true; i=$((i+1)); done"
    return _prepared("sh", "-c", loop, cwd=room)


def _python(_sources: Sources, room: Path) -> truth.Prepared:
    modules = "argparse, asyncio, email, http.client, json, logging, sqlite3, subprocess, unittest"
    return _prepared(sys.executable, "-c", f"import {modules}", cwd=room)


def _find_usr(_sources: Sources, room: Path) -> truth.Prepared:
    return _prepared("find", "/usr", "-xdev", "-type", "f", "-newer", "/etc/hostname", cwd=room)


def _untar(sources: Sources, room: Path) -> truth.Prepared:
    done = os.spawnlp(
        os.P_WAIT, "tar", "tar", "-cf", str(room / "all.tar"), "-C", str(sources.django()), "."
    )
    if done != 0:
        raise NotToBeHad(f"tar ended with {done}")
    return _prepared("tar", "-xf", "all.tar", cwd=room)


def _creates(_sources: Sources, room: Path) -> truth.Prepared:
    return _prepared(sys.executable, "-c", _STORM, cwd=room)


WORK: tuple[Work, ...] = (
    _shared("git status of it", times=5, fresh=False),
    Work("git log --stat", _git_log, fresh=False),
    _shared("git clone, 3,600 files"),
    _shared("gcc -c of one file", fresh=False),
    _shared("make -j2 of Lua"),
    Work("python start, imports", _python, times=5, fresh=False),
    Work("find /usr", _find_usr, fresh=False),
    _shared("pytest of toolz"),
    _shared("pip install of a wheel"),
    _shared("sqlite in Python"),
    _shared("npm install, offline"),
    _shared("threaded server, clients"),
    Work("tar -x, 3,600 files", _untar, storm=True),
    _shared("cp -a", storm=True),
    Work("40,000 creates", _creates, storm=True),
    Work("200x true in sh", _trues, times=3, fresh=False, starts=True),
)
