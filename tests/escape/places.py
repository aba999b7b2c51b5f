"""What hostile programs look for: secrets, processes, sockets and memory of the host.

All of it is really there, so that a program which finds nothing was kept from it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

SECRET = "hunter2-of-the-host"
PROGRAMS = Path(__file__).parent / "programs"

OLDEST_LANDLOCK_ABI = 2
_LANDLOCK_CREATE_RULESET = 444
_LANDLOCK_VERSION = 1
_IPC_PRIVATE, _IPC_CREAT, _IPC_RMID = 0, 0o1000, 0
_libc = ctypes.CDLL(None, use_errno=True)
_libc.shmat.restype = ctypes.c_void_p


def landlock_abi() -> int:
    """Of this kernel; below 1 where there is none (landlock_create_ruleset(2))."""
    return int(_libc.syscall(_LANDLOCK_CREATE_RULESET, None, 0, _LANDLOCK_VERSION))


def compile_programs(directory: Path) -> Path:
    """All of ``programs/`` in one static executable."""
    target = directory / "escape"
    sources = sorted(str(path) for path in PROGRAMS.glob("*.c"))
    compiler = [sys.executable, "-m", "ziglang", "cc"]
    command = [*compiler, "-target", f"{platform.machine()}-linux-musl", "-static", "-O1", "-Wall"]
    subprocess.run([*command, "-Wextra", "-Werror", "-o", str(target), *sources], check=True)
    return target


@dataclass(frozen=True, slots=True)
class Host:
    """What of the host programs look for.

    Attributes:
        words: the words that a program is given in a world.
        outside: those that differ for the control.
        control_dir: where controls run; holds the programs too.
        pid: a process of the host, which does nothing.
    """

    words: Mapping[str, str]
    outside: Mapping[str, str]
    control_dir: Path
    pid: int


def fill_project(project: Path, programs: Path) -> dict[str, str]:
    """The programs in a project, one of them set-id and one with capabilities of files."""
    escape, set_id, capable = (project / name for name in ("escape", "set-id", "capable"))
    for path in (escape, set_id, capable):
        shutil.copy(programs, path)
        path.chmod(0o755)
    os.chown(set_id, 0, 0)
    set_id.chmod(0o4755)
    # struct vfs_cap_data, revision 2, effective: CAP_SYS_ADMIN (capabilities(7)).
    os.setxattr(
        capable, "security.capability", bytes.fromhex("01000002000020000000000000000000") + bytes(4)
    )
    directory = project / "directory"
    directory.mkdir(exist_ok=True)
    return {
        "escape": str(escape),
        "set_id": str(set_id),
        "capable": str(capable),
        "directory": str(directory),
    }


@contextlib.contextmanager
def host_places(programs: Path, project: Path) -> Iterator[Host]:
    """Put everything in its place, and take it away again."""
    with contextlib.ExitStack() as stack:
        control = Path(tempfile.mkdtemp(prefix="escape-control", dir="/var/tmp"))
        stack.callback(shutil.rmtree, control)
        control.chmod(0o777)
        words = {
            "shadow": "/etc/shadow",
            "shadow_copy": "/etc/shadow",
            "null": "/dev/null",
            "pid1": "1",
            "host_fd": "0",
            "disk": _a_disk(),
            **fill_project(project, programs),
        }
        sleeper, shown = _process_of_host(stack)
        outside = {
            **fill_project(control, programs),
            "pid1": str(sleeper),
            "host_fd": str(shown),
            "shadow_copy": str(control / "shadow"),
            "null": str(control / "null"),
        }
        (control / "shadow").write_text(SECRET)
        os.mknod(control / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        words["host_pid"] = str(sleeper)
        words |= _cgroup_files()
        words |= _sockets(stack, project)
        words |= _memory(stack)
        for name, directory in (("in_run", "/run"), ("in_tmp", "/tmp")):
            descriptor, path = tempfile.mkstemp(prefix="escape", dir=directory)
            stack.callback(os.unlink, path)
            with open(descriptor, "w", encoding="ascii") as file:
                file.write(SECRET)
            words[name] = os.path.basename(path)
        yield Host(words, outside, control, sleeper)


def _a_disk() -> str:
    for entry in sorted(os.scandir("/dev"), key=lambda entry: entry.name):
        if stat.S_ISBLK(entry.stat(follow_symlinks=False).st_mode):
            return entry.path
    return "/dev/sda"


def _process_of_host(stack: contextlib.ExitStack) -> tuple[int, int]:
    """A process, with a file open whose content is secret: its pid, and the descriptor's number."""
    descriptor, path = tempfile.mkstemp(dir="/var/tmp")
    stack.callback(os.unlink, path)
    stack.callback(os.close, descriptor)
    os.pwrite(descriptor, SECRET.encode(), 0)
    sleeper = subprocess.Popen(
        ["sleep", "3600"], env={"PATH": os.environ["PATH"], "KEY": SECRET}, pass_fds=[descriptor]
    )
    stack.callback(sleeper.wait)
    stack.callback(sleeper.kill)
    return sleeper.pid, descriptor


def _cgroup_files() -> dict[str, str]:
    """Files by which processes are moved between cgroups, and by which v1 runs programs."""
    found = {"cgroup_procs": "/sys/fs/cgroup/cgroup.procs"}
    for directory, _, names in os.walk("/sys/fs/cgroup"):
        if "cgroup.procs" in names:
            found["cgroup_procs"] = os.path.join(directory, "cgroup.procs")
        if "release_agent" in names:
            found["release_agent"] = os.path.join(directory, "release_agent")
        if len(found) == 2:
            break
    return {"release_agent": "/sys/fs/cgroup/release_agent", **found}


def _sockets(stack: contextlib.ExitStack, project: Path) -> dict[str, str]:
    abstract = f"escape-{os.getpid()}"
    path = project / "bus"
    listening = [socket.socket(socket.AF_UNIX) for _ in range(2)]
    loopback = socket.socket()
    for each in (*listening, loopback):
        stack.callback(each.close)
    listening[0].bind("\0" + abstract)
    listening[1].bind(str(path))
    path.chmod(0o777)
    loopback.bind(("127.0.0.1", 0))
    for each in (*listening, loopback):
        each.listen(16)
    port: int = loopback.getsockname()[1]
    return {"abstract": abstract, "socket": str(path), "port": str(port)}


def _memory(stack: contextlib.ExitStack) -> dict[str, str]:
    """Shared memory of both kinds (shmget(2), shm_open(3))."""
    name = f"escape-{os.getpid()}"
    file = Path("/dev/shm", name)
    file.write_text(SECRET)
    stack.callback(file.unlink)
    number = _libc.shmget(_IPC_PRIVATE, 4096, _IPC_CREAT | 0o666)
    if number < 0:
        raise OSError(ctypes.get_errno(), "shmget")
    stack.callback(_libc.shmctl, number, _IPC_RMID, None)
    address = _libc.shmat(number, None, 0)
    ctypes.memmove(address, SECRET.encode() + b"\0", len(SECRET) + 1)
    _libc.shmdt(ctypes.c_void_p(address))
    return {"posix_shm": name, "shm": str(number)}
