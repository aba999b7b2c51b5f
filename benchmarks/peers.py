"""The programs that Substrate is compared with, as scripts/bench sets them up below build/bench.

A peer that is not there gives a reason, and its rows say so.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
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
