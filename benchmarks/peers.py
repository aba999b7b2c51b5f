"""The programs that Substrate is compared with, as scripts/bench sets them up below build/bench.

A peer that is not there gives a reason, and its rows say so.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from measuring import ROOT, run_to_end

BUILT = ROOT / "build" / "bench"
_NO_USER_NAMESPACE = (
    *("--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts"),
    "--unshare-cgroup",
)
_OVERLAY = ("--overlay-src", "/", "--tmp-overlay", "/", "--dev", "/dev", "--proc", "/proc")


class Unavailable(RuntimeError):
    """A peer cannot be measured here; its text says why."""


def bwrap_read_only(*command: str) -> list[str]:
    """Bubblewrap, every namespace, the host's tree read-only.

    Raises:
        Unavailable: it is not installed, or cannot work here.
    """
    program = shutil.which("bwrap")
    if program is None:
        raise Unavailable("bwrap is not installed (Debian: apt-get install bubblewrap)")
    argv = [program, "--unshare-all", "--ro-bind", "/", "/", *command]
    _try(argv)
    return argv


def bwrap_overlay(*command: str) -> tuple[list[str], str]:
    """Bubblewrap with a writable overlay of the host's tree: our equal.

    Returns:
        The command line, and what of the full isolation it lacks; empty where nothing.

    Raises:
        Unavailable: it is not installed, too old, or cannot work here.
    """
    built = BUILT / "bwrap-overlay"
    program = str(built) if built.exists() else shutil.which("bwrap")
    if program is None:
        raise Unavailable("bwrap is not installed (Debian: apt-get install bubblewrap)")
    shown = subprocess.run([program, "--help"], capture_output=True, text=True, check=False)
    if "--tmp-overlay" not in shown.stdout + shown.stderr:
        raise Unavailable("bwrap here is older than 0.11, which has no overlay")
    everything = [program, "--unshare-all", *_OVERLAY, *command]
    try:
        _try(everything)
    except Unavailable:
        # A user namespace may not clone `/` where something is mounted below it (EINVAL, "failed
        # to clone lowerpath"); without one, which root can do, bubblewrap has less work.
        lesser = [program, *_NO_USER_NAMESPACE, *_OVERLAY, *command]
        _try(lesser)
        return lesser, "no user namespace"
    return everything, ""


@contextlib.contextmanager
def _bound(directory: str) -> Iterator[str]:
    """A second mount of a directory."""
    target = tempfile.mkdtemp(prefix="root")
    try:
        if subprocess.run(["mount", "--bind", directory, target], check=False).returncode != 0:
            raise Unavailable("binding its root takes root")
        try:
            yield target
        finally:
            subprocess.run(["umount", "--lazy", target], check=True)
    finally:
        os.rmdir(target)  # never a whole tree: were it still mounted, that would be the host's


@contextlib.contextmanager
def runc(*command: str) -> Iterator[tuple[list[str], str]]:
    """A run of runc with its default namespaces, the host's tree read-only.

    Yields:
        The command line of one run, and what was run.

    Raises:
        Unavailable: it is not installed, or cannot work here.
    """
    program = shutil.which("runc")
    if program is None:
        raise Unavailable("runc is not installed (Debian: apt-get install runc)")
    with contextlib.ExitStack() as stack:
        bundle = stack.enter_context(tempfile.TemporaryDirectory(prefix="runc"))
        subprocess.run([program, "spec"], cwd=bundle, check=True)
        path = Path(bundle, "config.json")
        config = json.loads(path.read_text())
        # Not / itself, over which pivot_root(2) cannot put another.
        root = stack.enter_context(_bound("/"))
        config["root"] = {"path": root, "readonly": True}
        config["process"].update(terminal=False, args=list(command))
        # Where cgroup v1 hierarchies are mounted apart, runc cannot show them in this root.
        config["mounts"] = [mount for mount in config["mounts"] if mount["type"] != "cgroup"]
        path.write_text(json.dumps(config))
        argv = [program, "--root", f"{bundle}/state", "run", "--bundle", bundle, "substrate-bench"]
        _try(argv)
        version = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)
        yield argv, f"{version.stdout.splitlines()[0]}, without a mount of the cgroups"


@contextlib.contextmanager
def docker(*command: str) -> Iterator[tuple[list[str], str]]:
    """``docker run`` of an image that is the host's own /bin and libraries, on a running engine.

    Yields:
        The command line of one run, and what was run.

    Raises:
        Unavailable: there is no client, or no engine that answers.
    """
    program = shutil.which("docker")
    if program is None:
        raise Unavailable("docker is not installed (Debian: apt-get install docker.io)")
    asked = subprocess.run(
        [program, "version", "--format", "{{.Server.Version}}"],
        capture_output=True,
        text=True,
        check=False,
    )
    if asked.returncode != 0:
        raise Unavailable("no Docker engine answers here (dockerd is not running)")
    busybox = shutil.which("busybox")
    if busybox is None:
        raise Unavailable("an image needs busybox (Debian: apt-get install busybox-static)")
    with tempfile.TemporaryDirectory(prefix="docker") as root:
        (Path(root) / "bin").mkdir()
        shutil.copy(busybox, Path(root) / "bin" / "busybox")
        (Path(root) / "bin" / command[0]).symlink_to("busybox")
        packed = subprocess.run(["tar", "-C", root, "-c", "."], capture_output=True, check=True)
    image = "substrate-bench:latest"
    subprocess.run(
        [program, "import", "-", image], input=packed.stdout, capture_output=True, check=True
    )
    try:
        argv = [program, "run", "--rm", "--network", "none", image, f"/bin/{command[0]}"]
        _try(argv)
        yield argv, f"Docker {asked.stdout.strip()}, an image of busybox alone, no network"
    finally:
        subprocess.run([program, "rmi", "--force", image], capture_output=True, check=False)


def _try(argv: list[str]) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = done.stderr.strip() or f"exit {done.returncode}"
        raise Unavailable(said.splitlines()[-1])
    run_to_end(argv)


@contextlib.contextmanager
def swerex() -> Iterator[Callable[[str], float]]:
    """SWE-ReX's server and client; gives a function from a call's name to its seconds.

    Raises:
        Unavailable: it is not installed, or does not start.
    """
    python = BUILT / "swerex" / "bin" / "python"
    if not (BUILT / "swerex" / "ready").exists():
        raise Unavailable("swe-rex is not set up; scripts/bench does it, from PyPI")
    program = Path(__file__).with_name("swerex_peer.py")
    with subprocess.Popen(
        [python, program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        stdin, stdout = process.stdin, process.stdout
        if stdout.readline() != "ready\n":
            process.kill()
            raise Unavailable("swerex-remote did not start")

        def call(name: str) -> float:
            stdin.write(name + "\n")
            stdin.flush()
            answer = stdout.readline()
            if not answer:
                raise Unavailable(f"swe-rex failed in {name}")
            return float(answer)

        try:
            yield call
        finally:
            with contextlib.suppress(BrokenPipeError):
                stdin.close()  # its end
