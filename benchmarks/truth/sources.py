"""What the workloads work on: real packages, fetched once from registries into a cache.

Everything comes through the registries' own clients (pip, npm, apt), at fixed versions, and is
there offline from then on.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

_DJANGO = "django==5.2.1"
_PYGMENTS = "pygments==2.19.1"
_TOOLZ = "toolz==1.0.0"
_LODASH = "lodash@4.17.21"
_APT_KEYS = "/usr/share/keyrings/debian-archive-keyring.gpg"
_APT_SUITE = "http://deb.debian.org/debian bookworm main"
_PATIENCE_S = 300


class NotToBeHad(RuntimeError):
    """A source that this machine cannot get; the message says why."""


class Sources:
    """The cache. Each method returns what is ready, fetching it at the first call."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True)

    def django(self) -> Path:
        """A tree of 3,600 files."""
        return self._once("django", lambda to: _unzip(_pip(_DJANGO, to), to))

    def repository(self) -> Path:
        """A git repository of it, with three commits, objects unpacked."""
        return self._once("repository", lambda to: _commit(self.django(), to))

    def pygments_wheel(self) -> Path:
        """A wheel to install: 300 modules."""
        return _only(self._once("pygments", lambda to: _pip(_PYGMENTS, to)), "*.whl")

    def toolz(self) -> Path:
        """A pure package with its test suite inside."""
        return self._once("toolz", lambda to: _unzip(_pip(_TOOLZ, to), to))

    def lodash(self) -> Path:
        """A package of npm, as its archive."""
        return _only(self._once("lodash", _npm), "*.tgz")

    def lua(self) -> Path:
        """A C project with a Makefile."""
        return self._once("lua", _apt_source)

    def _once(self, name: str, make: Callable[[Path], object]) -> Path:
        done = self._directory / name
        if done.exists():
            return done
        making = self._directory / f"{name}.making"
        shutil.rmtree(making, ignore_errors=True)
        making.mkdir()
        make(making)
        making.rename(done)
        return done


def _call(command: Sequence[str], *, cwd: Path | None = None) -> None:
    env = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    try:
        subprocess.run(
            command, check=True, capture_output=True, text=True, cwd=cwd, env=env,
            timeout=_PATIENCE_S,
        )  # fmt: skip
    except OSError as error:
        raise NotToBeHad(f"{command[0]}: {error.strerror}") from error
    except subprocess.TimeoutExpired as error:
        raise NotToBeHad(f"{command[0]} was not done after {_PATIENCE_S} s") from error
    except subprocess.CalledProcessError as error:
        said = (error.stderr or error.stdout).strip().splitlines() or ["no message"]
        raise NotToBeHad(f"{command[0]} ended with {error.returncode}: {said[-1]}") from error


def _only(directory: Path, pattern: str) -> Path:
    return next(directory.glob(pattern))


def _pip(requirement: str, to: Path) -> Path:
    _call(
        [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:",
         "--disable-pip-version-check", "--dest", str(to), requirement]
    )  # fmt: skip
    return _only(to, "*.whl")


def _unzip(wheel: Path, to: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(to)
    wheel.unlink()


def _npm(to: Path) -> None:
    _call(["npm", "pack", "--silent", "--pack-destination", str(to), _LODASH], cwd=to)


def _apt_source(to: Path) -> None:
    """With lists and a cache of its own, so that the machine's configuration stays as it is."""
    apt = to / "apt"
    (apt / "lists" / "partial").mkdir(parents=True)
    (apt / "cache" / "archives" / "partial").mkdir(parents=True)
    (apt / "sources.list").write_text(f"deb-src [signed-by={_APT_KEYS}] {_APT_SUITE}\n")
    own = [
        "apt-get", "-qq", "-o", f"Dir::Etc::SourceList={apt}/sources.list",
        "-o", "Dir::Etc::SourceParts=-", "-o", f"Dir::State::Lists={apt}/lists",
        "-o", f"Dir::Cache={apt}/cache", "-o", "APT::Sandbox::User=root",
    ]  # fmt: skip
    _call([*own, "update"])
    _call([*own, "--tar-only", "--download-only", "source", "lua5.4"], cwd=to)
    with tarfile.open(_only(to, "lua5.4_*.orig.tar.*")) as archive:
        archive.extractall(to, filter="data")
    top = next(path for path in to.iterdir() if path.is_dir() and path != apt)
    for path in top.iterdir():
        path.rename(to / path.name)
    top.rmdir()
    shutil.rmtree(apt)


def _commit(tree: Path, to: Path) -> None:
    git = ["git", "-c", "user.name=truth", "-c", "user.email=truth@localhost", "-c", "gc.auto=0"]
    shutil.copytree(tree, to, dirs_exist_ok=True)
    _call([*git, "init", "--quiet"], cwd=to)
    for name in ("django/contrib", "django/db", "."):
        _call([*git, "add", name], cwd=to)
        _call([*git, "commit", "--quiet", "-m", name], cwd=to)
