"""Real work: what agents do all day, and the programs that a preload library finds hard."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.truth.sources import NotToBeHad, Sources

_PROGRAMS = Path(__file__).resolve().parent / "programs"


@dataclass(frozen=True, slots=True)
class Prepared:
    """A command that is ready to run."""

    command: tuple[str, ...]
    cwd: Path
    env: dict[str, str]


@dataclass(frozen=True, slots=True)
class Workload:
    """A name, and how to make ready for one run of it in a fresh directory."""

    name: str
    needs: tuple[str, ...]
    prepare: Callable[[Sources, Path], Prepared]
    fast: bool = False
    same_each_time: bool = False  # no names or numbers that a run makes up

    def ready(self, sources: Sources, room: Path) -> Prepared:
        """Make ready.

        Raises:
            NotToBeHad: a program or a source is missing here.
        """
        for program in self.needs:
            if shutil.which(program) is None:
                raise NotToBeHad(f"{program} is not installed")
        return self.prepare(sources, room)


def _run(*command: str | Path, cwd: Path, **env: str) -> Prepared:
    return Prepared(tuple(str(word) for word in command), cwd, env)


def _git_env(room: Path) -> dict[str, str]:
    return {"HOME": str(room), "GIT_CONFIG_NOSYSTEM": "1"}


def _git_clone(sources: Sources, room: Path) -> Prepared:
    return _run("git", "clone", "-q", sources.repository(), "copy", cwd=room, **_git_env(room))


def _git_status(sources: Sources, room: Path) -> Prepared:
    copy = room / "copy"
    shutil.copytree(sources.repository(), copy, symlinks=True)
    (copy / "django" / "new.py").write_text("new\n")
    (copy / "django" / "shortcuts.py").write_text("changed\n")
    return _run("git", "status", "--short", cwd=copy, **_git_env(room))


def _gcc(sources: Sources, room: Path) -> Prepared:
    source = sources.lua() / "src"
    return _run("gcc", "-O2", "-c", source / "lvm.c", "-o", "lvm.o", cwd=room)


def _make(sources: Sources, room: Path) -> Prepared:
    shutil.copytree(sources.lua(), room / "lua")
    return _run("make", "-s", "-j2", "posix", cwd=room / "lua")


def _tar(sources: Sources, room: Path) -> Prepared:
    script = 'tar -czf all.tgz -C "$1" . && mkdir out && tar -xzf all.tgz -C out'
    return _run("sh", "-c", script, "sh", sources.django(), cwd=room)


def _cp(sources: Sources, room: Path) -> Prepared:
    return _run("cp", "-a", sources.django(), "copy", cwd=room)


def _find(sources: Sources, room: Path) -> Prepared:
    return _run("find", sources.django(), "-name", "*.py", "-size", "+1k", cwd=room)


def _pytest(sources: Sources, room: Path) -> Prepared:
    shutil.copytree(sources.toolz(), room / "suite")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "toolz"]
    return _run(*command, cwd=room / "suite", PYTHONDONTWRITEBYTECODE="")


def _npm(sources: Sources, room: Path) -> Prepared:
    (room / "package.json").write_text('{"name": "truth", "version": "1.0.0"}\n')
    options = ["--offline", "--no-audit", "--no-fund", "--cache", str(room / "cache")]
    return _run("npm", "install", *options, sources.lodash(), cwd=room, HOME=str(room))


def _sqlite(_sources: Sources, room: Path) -> Prepared:
    return _run(sys.executable, _PROGRAMS / "sqlite.py", cwd=room)


def _sqlite_shell(_sources: Sources, room: Path) -> Prepared:
    script = (
        "create table t (a integer primary key, b); begin;"
        "insert into t (b) with recursive n(i) as (select 1 union all select i + 1 from n"
        " where i < 5000) select hex(randomblob(40)) from n; commit;"
        "create index byb on t (b); vacuum; select count(*) from t;"
    )
    return _run("sqlite3", "data.db", script, cwd=room)


def _pip(sources: Sources, room: Path) -> Prepared:
    options = ["--quiet", "--no-index", "--no-deps", "--disable-pip-version-check"]
    install = [sys.executable, "-m", "pip", "install", *options, "--target", "site"]
    return _run(*install, sources.pygments_wheel(), cwd=room, HOME=str(room))


def _server(_sources: Sources, room: Path) -> Prepared:
    return _run(sys.executable, _PROGRAMS / "server.py", cwd=room)


def _go(_sources: Sources, room: Path) -> Prepared:
    shutil.copytree(_PROGRAMS / "go", room / "program")
    env = {"HOME": str(room), "GOCACHE": str(room / "cache"), "GOFLAGS": "-mod=mod",
           "GOPROXY": "off", "GOTOOLCHAIN": "local", "CGO_ENABLED": "0"}  # fmt: skip
    build = "go build -o ../made . && cd .. && ./made"
    done = subprocess.run(
        ["sh", "-c", "go build -o ../warm ."], check=False, capture_output=True, text=True,
        cwd=room / "program", env={**_path(), **env},
    )  # fmt: skip
    if done.returncode != 0:
        raise NotToBeHad(f"go build: {done.stderr.strip()}")
    return _run("sh", "-c", build, cwd=room / "program", **env)


def _static(_sources: Sources, room: Path) -> Prepared:
    program = room / "static"
    source = _PROGRAMS / "static.c"
    done = subprocess.run(
        ["gcc", "-static", "-O1", str(source), "-o", str(program)],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode != 0:
        raise NotToBeHad(f"gcc -static: {done.stderr.strip()}")
    return _run("sh", "-c", "./static in; ls -l in", cwd=room)


def _script(sources: Sources, room: Path) -> Prepared:
    return _run("bash", _PROGRAMS / "script.sh", sources.lua() / "src", cwd=room)


def _path() -> dict[str, str]:
    return {"PATH": os.environ["PATH"]}


WORKLOADS: tuple[Workload, ...] = (
    Workload("git clone, 3,600 files", ("git",), _git_clone),
    Workload("git status of it", ("git",), _git_status, same_each_time=True),
    Workload("gcc -c of one file", ("gcc",), _gcc, fast=True),
    Workload("make -j2 of Lua", ("gcc", "make"), _make),
    Workload("tar -cz, tar -xz", ("tar",), _tar, same_each_time=True),
    Workload("cp -a", ("cp",), _cp, same_each_time=True),
    Workload("find", ("find",), _find, same_each_time=True),
    Workload("pytest of toolz", (), _pytest),
    Workload("npm install, offline", ("node", "npm"), _npm),
    Workload("sqlite in Python", (), _sqlite, fast=True),
    Workload("sqlite3", ("sqlite3",), _sqlite_shell),
    Workload("pip install of a wheel", (), _pip),
    Workload("threaded server, clients", ("curl",), _server),
    Workload("go build, then run", ("go",), _go),
    Workload("static C program", ("gcc",), _static),
    Workload("bash script of coreutils", ("bash",), _script, fast=True),
)
