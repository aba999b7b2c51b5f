"""One command in namespaces of its own, with the preload library as a world has it, or without.

Both ways are alike but for one line: in one, ``/etc/ld.so.preload`` names the library, in the other
it is empty. So the environment, which tests look at, is the same. Each run has its own processes
(numbered from 1), network (loopback only), ``/tmp``, and the suite's tree as it was laid out: what
it writes there is gone with it.
"""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from substrate_services.native_paths import native_path

_SETUP = r"""
set -e
mount -t tmpfs -o mode=755,size=4g tmpfs /run
mkdir /run/up /run/work /run/etc-up /run/etc-work /run/substrate
mkdir -m 1777 /run/substrate/seg
cp "$LIBRARY" /run/substrate/libsubstrate_preload.so
mount -t overlay -o lowerdir=/etc,upperdir=/run/etc-up,workdir=/run/etc-work overlay /etc
[ -z "$TREE" ] || mount -t overlay \
  -o lowerdir="$TREE",upperdir=/run/up,workdir=/run/work overlay "$TREE"
case $TREE in /tmp/*) ;; *) mount -t tmpfs -o mode=1777,size=4g tmpfs /tmp ;; esac
mkdir -p "$HOME"
ip link set lo up
cd "${TREE:-/tmp}"
if [ "$RECORDED" = 1 ]; then
  echo /run/substrate/libsubstrate_preload.so >/etc/ld.so.preload
else
  : >/etc/ld.so.preload
fi
unset LIBRARY TREE RECORDED
set +e
"$@"
status=$?
: >/etc/ld.so.preload
set -- /run/substrate/seg/*
[ -e "$1" ] || shift
printf '\036%s' $#
exit $status
"""
_NAMESPACES = ("unshare", "--mount", "--pid", "--net", "--fork", "--kill-child", "--mount-proc")
_ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/tmp/home",
    "LC_ALL": "C.UTF-8",
    "TERM": "dumb",
    "TMPDIR": "/tmp",
}


@dataclass(frozen=True, slots=True)
class Ran:
    """How one command came out."""

    status: int | None  # None: it was killed, for it took too long
    stdout: bytes
    stderr: bytes
    segments: int  # files that the library left


@functools.cache
def _library() -> Path:
    """The library as it was when the run began: a build in the meantime does not mix two."""
    directory = Path(tempfile.mkdtemp(prefix="sbsuites"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return Path(shutil.copy(native_path("libsubstrate_preload.so"), directory))


def why_not() -> str:
    """Why nothing can be run here; empty when it can."""
    if os.geteuid() != 0:
        return "the suites are run in mount, network and process namespaces: root is needed"
    done = subprocess.run(
        [*_NAMESPACES, "sh", "-c", "ip link set lo up"], check=False, capture_output=True
    )
    return done.stderr.decode(errors="replace").strip() if done.returncode != 0 else ""


def run(
    command: Sequence[str | Path],
    *,
    recorded: bool,
    tree: Path | None,
    timeout_s: float,
    env: dict[str, str] | None = None,
) -> Ran:
    """Run a command, in the suite's tree or in ``/tmp``."""
    environment = {
        **_ENVIRONMENT,
        **(env or {}),
        "LIBRARY": str(_library()),
        "TREE": str(tree or ""),
        "RECORDED": "1" if recorded else "0",
    }
    # Files, not pipes: a process that stays behind would keep a pipe open.
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = subprocess.Popen(
            [*_NAMESPACES, "sh", "-c", _SETUP, "sh", *command],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
        )
        try:
            status = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            status = None
            process.kill()  # and with it all of its process namespace
            process.wait()
        out.seek(0)
        err.seek(0)
        stdout, _, count = (
            out.read().rpartition(b"\036") if status is not None else (b"", b"", b"0")
        )
        return Ran(status, stdout, err.read(), int(count))
