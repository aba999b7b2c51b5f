"""Hostile programs in real worlds: each attempt fails, by what was meant to stop it.

What a user is promised is in tests/e2e/test_done_when_isolation.py; here is what somebody would try
who knows how the recorder is built.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import blake3
import pytest

from substrate_sdk import Change, Result, World
from tests.users import User, new_user

pytestmark = [
    pytest.mark.needs_git,
    pytest.mark.skipif(os.geteuid() != 0, reason="the stronger id mapping needs root"),
]

# Run in the world before an attempt: what was tried is printed as DONE, or the errno's name.
_TOOLS = """
import ctypes, errno, os, platform, socket, stat, sys, time
libc = ctypes.CDLL(None, use_errno=True)
ARM = platform.machine() == "aarch64"
def call(x86, arm, *arguments):
    passed = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    ctypes.set_errno(0)
    got = libc.syscall(ctypes.c_long(arm if ARM else x86), *passed)
    print("DONE" if got != -1 else errno.errorcode[ctypes.get_errno()])
def attempt(function, *arguments):
    try:
        function(*arguments)
    except OSError as error:
        print(errno.errorcode[error.errno])
    else:
        print("DONE")
def read(path, flags=os.O_RDONLY):
    fd = os.open(path, flags | os.O_NONBLOCK)
    print(os.read(fd, 200))
"""


@pytest.fixture(scope="module")
def user() -> Iterator[User]:
    with new_user() as made:
        (made.home / ".ssh").mkdir(mode=0o700)
        (made.home / ".ssh" / "id_rsa").write_text("hunter2 is the key")
        made.up()
        yield made


@pytest.fixture(scope="module")
def project() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="isolation", dir="/var/tmp"))
    try:
        (directory / "README.md").write_text("the host's own text\n")
        (directory / "kept").mkdir()
        (directory / "kept" / "a").write_text("a")
        subprocess.run(["git", "init", "--quiet"], cwd=directory, check=True)
        yield directory
    finally:
        shutil.rmtree(directory)


@pytest.fixture(scope="module")
def shared(user: User, project: Path) -> Iterator[World]:
    """A world for attempts that leave it whole."""
    with user.client() as client, client.world(project=project, cwd=project) as world:
        yield world


@pytest.fixture
def world(user: User, project: Path) -> Iterator[World]:
    """A world for one attempt, which may ruin it."""
    with user.client() as client, client.world(project=project, cwd=project) as made:
        yield made


def python(world: World, source: str, *, user: str = "", timeout_s: float = 60) -> Result:
    return world.run(["python3", "-c", _TOOLS + source], user=user, timeout_s=timeout_s)


def refusal(world: World, source: str) -> str:
    """What stopped an attempt that prints one word."""
    result = python(world, source)
    assert result.exit_code == 0, result.stderr
    assert "DONE" not in result.stdout, source
    return result.stdout.strip()


def is_kept(user: User, content: bytes) -> bool:
    """Whether the host's store has these bytes."""
    digest = blake3.blake3(content).hexdigest()
    return (user.substrate_home / "objects" / digest[:2] / digest[2:]).exists()


def paths(changes: tuple[Change, ...]) -> set[bytes]:
    """Every path that changed, with those that were renamed away."""
    return {path for c in changes for path in (c.path_bytes, c.renamed_from) if path}


# --- the kernel's doors ---------------------------------------------------------------------------

_FILTERED = {
    "a user namespace": "272, 97, 0x10000000",
    "a mount namespace": "272, 97, 0x20000",
    "clone into a user namespace": "56, 220, 0x10000000 | 17, 0, 0, 0, 0",
    "another's namespace": "308, 268, 0, 0",
    "mount": "165, 40, b'none', b'/mnt', b'tmpfs', 0, 0",
    "umount of a mask": "166, 39, b'/etc/shadow', 2",
    "pivot_root": "155, 41, b'.', b'.'",
    "chroot": "161, 51, b'/'",
    "open_tree": "428, 428, -100, b'/', 1",
    "move_mount": "429, 429, -1, b'', -1, b'', 0",
    "fsopen": "430, 430, b'tmpfs', 0",
    "mount_setattr": "442, 442, -1, b'', 0, 0, 0",
    "file handles": "304, 265, -100, 0, 0",
    "bpf": "321, 280, 0, 0, 0",
    "perf": "298, 241, 0, 0, -1, -1, 0",
    "userfaultfd": "323, 282, 0",
    "io_uring": "425, 425, 4, 0",
    "keyrings": "250, 219, 0, -3, 0",
    "descriptors of pid 1": "438, 438, os.pidfd_open(1), 3, 0",
    "tracing pid 1": "101, 117, 0x4206, 1, 0, 0",
    "limits of pid 1": "302, 261, 1, 1, (ctypes.c_uint64 * 2)(0, 0), 0",
    "a kernel module": "175, 105, 0, 0, b''",
    "kexec": "246, 104, 0, 0, 0, 0",
    "reboot": "169, 142, 0xFEE1DEAD, 672274793, 0, 0",
    "the clock": "227, 112, 0, 0",
    "the host name": "170, 161, b'x', 1",
    "swap": "167, 224, b'x', 0",
    "accounting": "163, 89, b'x'",
    "the kernel's log": "103, 116, 3, 0, 0",
    "all capabilities": "126, 91, (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)"
    "(*[0xFFFFFFFF] * 6)",
}


@pytest.mark.parametrize("what", _FILTERED)
def test_a_system_call_that_breaks_out_is_not_permitted(shared: World, what: str) -> None:
    assert refusal(shared, f"call({_FILTERED[what]})") == "EPERM"


def test_clone3_does_not_exist_because_its_flags_cannot_be_looked_at(shared: World) -> None:
    assert refusal(shared, "call(435, 435, 0, 0)") == "ENOSYS"


@pytest.mark.parametrize(
    "arguments", ["17, 3, 0x300", "socket.AF_INET, socket.SOCK_RAW, 1", "40, 1, 0", "38, 5, 0"]
)
def test_sockets_around_the_network_rules_are_not_permitted(shared: World, arguments: str) -> None:
    assert refusal(shared, f"attempt(socket.socket, {arguments})") == "EPERM"


# --- files that are not shown ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "stopped_by"),
    [
        ("/etc/shadow", {"EACCES"}),
        ("/proc/self/root/etc/shadow", {"EACCES"}),
        ("/proc/self/cwd/../../../etc/shadow", {"EACCES"}),
        ("/proc/1/root/etc/shadow", {"EACCES", "EPERM"}),
        ("/proc/1/cwd", {"EACCES", "EPERM"}),
        ("/proc/1/fd/3", {"EACCES", "EPERM"}),
        ("/proc/1/mem", {"EACCES", "EPERM"}),
        ("/proc/1/environ", {"EACCES", "EPERM"}),
        ("/proc/1/exe", {"EACCES", "EPERM"}),
        ("/proc/kcore", {"ENOENT", "EACCES"}),
        ("/proc/kmsg", {"ENOENT", "EACCES", "EPERM"}),
        ("/dev/mem", {"ENOENT"}),
        ("/dev/kmsg", {"ENOENT"}),
        ("/dev/vda", {"ENOENT"}),
        ("/dev/loop-control", {"ENOENT"}),
        ("/dev/fuse", {"ENOENT"}),
    ],
)
def test_nothing_hidden_can_be_read_by_another_name(
    shared: World, path: str, stopped_by: set[str]
) -> None:
    assert refusal(shared, f"attempt(read, {path!r})") in stopped_by


@pytest.mark.parametrize(
    "path",
    [
        "/proc/sys/kernel/core_pattern",
        "/proc/sys/kernel/modprobe",
        "/proc/sys/vm/drop_caches",
        "/proc/sysrq-trigger",
        "/sys/kernel/uevent_helper",
        "/etc/shadow",
    ],
)
def test_nothing_of_the_hosts_kernel_can_be_written(shared: World, path: str) -> None:
    stopped_by = refusal(shared, f"attempt(os.open, {path!r}, os.O_WRONLY)")
    assert stopped_by in {"EROFS", "EACCES", "ENOENT"}


def test_a_mask_cannot_be_opened_by_a_path_descriptor(shared: World) -> None:
    source = "fd = os.open('/etc/shadow', os.O_PATH); attempt(read, f'/proc/self/fd/{fd}')"
    assert refusal(shared, source) == "EACCES"


def test_a_mask_cannot_be_linked_moved_or_removed(shared: World) -> None:
    source = """
attempt(os.link, "/etc/shadow", "/tmp/linked")
attempt(os.rename, "/etc/shadow", "/tmp/moved")
attempt(os.unlink, "/etc/shadow")
"""
    assert refusal(shared, source).split() == ["EXDEV", "EXDEV", "EBUSY"]


def test_a_mask_goes_with_its_directory_and_the_host_keeps_nothing_of_what_it_hides(
    user: User, world: World
) -> None:
    result = python(world, "os.rename('/etc', '/etc2'); attempt(read, '/etc2/shadow')")
    assert result.stdout == "EACCES\n"
    everything = paths(world.diff().changes)
    assert b"/etc/passwd" in everything
    assert b"/etc/shadow" not in everything
    assert not is_kept(user, Path("/etc/shadow").read_bytes())


def test_a_home_behind_a_link_that_is_hidden_is_hidden_too(user: User, project: Path) -> None:
    real = Path(tempfile.mkdtemp(prefix="home", dir="/var/tmp"))
    link = user.home.with_name(user.home.name + "-link")
    try:
        (real / ".ssh").mkdir()
        (real / ".ssh" / "id_rsa").write_text("hunter2 of the other name")
        link.symlink_to(real)
        script = f"cat {real}/.ssh/id_rsa; cat ~/.ssh/id_rsa; touch ~/mine && ls ~"
        env = {"HOME": str(link)}
        result = user.run_json("sh", "-c", script, cwd=project, env=env)
    finally:
        link.unlink(missing_ok=True)
        shutil.rmtree(real)
    assert result["stdout"] == "mine\n"
    assert "No such file" in result["stderr"]


def test_what_a_bind_mount_shows_again_is_masked_again(project: Path) -> None:
    alias = Path(tempfile.mkdtemp(prefix="alias", dir="/var/tmp"))
    mounted = ("unshare", "--mount", "sh", "-c", 'mount --bind / "$0" && exec "$@"', str(alias))
    try:
        with new_user(mounted) as other:
            script = f"cat {alias}/etc/shadow; ls -A {alias}{other.substrate_home} {alias}/root"
            result = other.run_json("sh", "-c", script, cwd=project)
            # The recorder's home lies below the user's, which is emptied as a whole.
            assert "trace.jsonl" not in result["stdout"]
            assert ".bashrc" not in result["stdout"]
            assert "root:*" not in result["stdout"]
            assert "root:$" not in result["stdout"]
            assert "Permission denied" in result["stderr"]
    finally:
        alias.rmdir()


# --- the host's own files -------------------------------------------------------------------------


def test_the_checkout_stays_as_it_is_however_it_is_written(world: World, project: Path) -> None:
    before = (project / "README.md").stat()
    source = """
import mmap
os.link("README.md", "second"); open("second", "a").write("x")
with open("README.md", "r+b") as file, mmap.mmap(file.fileno(), 0) as shared: shared[0:3] = b"XXX"
fd = os.open("README.md", os.O_PATH); open(f"/proc/self/fd/{fd}", "w").write("y")
os.truncate("README.md", 0); os.chmod("README.md", 0o6777); os.utime("README.md", (0, 0))
os.setxattr("README.md", "user.x", b"y"); os.unlink("README.md")
"""
    result = python(world, source)
    assert result.exit_code == 0, result.stderr
    assert (project / "README.md").read_text() == "the host's own text\n"
    after = (project / "README.md").stat()
    assert (after.st_mode, after.st_ctime_ns) == (before.st_mode, before.st_ctime_ns)


def test_sockets_and_fifos_of_the_host_lead_nowhere(world: World, project: Path) -> None:
    fifo, name = project / "fifo", project / "listening"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.bind(str(name))
        listener.listen()
        source = f"""
attempt(os.open, {str(fifo)!r}, os.O_WRONLY | os.O_NONBLOCK)
attempt(socket.socket(socket.AF_UNIX).connect, {str(name)!r})
"""
        assert refusal(world, source).split() == ["ENXIO", "ECONNREFUSED"]
    finally:
        os.close(reader)
        listener.close()
        fifo.unlink()
        name.unlink()


def test_a_set_id_program_gains_nothing_and_nobody_on_the_host_reaches_it(
    user: User, world: World
) -> None:
    source = """
import shutil, subprocess
shutil.copy("/bin/sh", "/var/tmp/sh"); os.chmod("/var/tmp/sh", 0o6755)
cap = bytes.fromhex("0100000200002000000000000000000000000000")
os.setxattr("/var/tmp/sh", "security.capability", cap)
os.setgid(1000); os.setuid(1000)
print(subprocess.run(["/var/tmp/sh", "-pc", "id -u; grep CapEff /proc/self/status"],
                     capture_output=True, text=True).stdout.split())
"""
    result = python(world, source)
    assert result.stdout.strip() == "['1000', 'CapEff:', '0000000000000000']", result.stderr
    # On disk it is the host's root's, by the id-mapped layer; nobody else may get to it.
    (upper,) = user.substrate_home.glob(f"worlds/{world.world_id}/layers/root*/upper/var/tmp/sh")
    assert upper.stat().st_mode & stat.S_ISUID
    for directory in (user.substrate_home, user.substrate_home / "worlds" / world.world_id):
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    ("source", "stopped_by"),
    [
        # Landlock is asked first, where the kernel has it.
        ("attempt(os.mknod, 'w', stat.S_IFCHR | 0o600, 0)", {"EACCES", "EPERM"}),
        (
            "attempt(os.mknod, 'd', stat.S_IFBLK | 0o600, os.makedev(254, 0))",
            {"EACCES", "EPERM"},
        ),
        ("attempt(os.setxattr, 'kept', 'trusted.overlay.opaque', b'y')", {"EPERM"}),
        ("attempt(os.setxattr, 'kept', 'trusted.overlay.redirect', b'/root')", {"EPERM"}),
        ("call(316, 276, -100, b'README.md', -100, b'moved', 4)", {"EINVAL"}),  # RENAME_WHITEOUT
    ],
)
def test_the_overlays_own_marks_cannot_be_forged(
    shared: World, source: str, stopped_by: set[str]
) -> None:
    assert refusal(shared, source) in stopped_by


def test_marks_of_rootless_overlays_mean_nothing_here(world: World, project: Path) -> None:
    result = python(world, "os.setxattr('kept', 'user.overlay.opaque', b'y')")
    assert result.exit_code == 0, result.stderr
    assert os.fsencode(project / "kept" / "a") not in paths(result.changes)


# --- trees that are made to hurt whoever walks them -----------------------------------------------


def test_the_hosts_walk_follows_no_link_that_takes_a_directorys_place(
    user: User, world: World
) -> None:
    outside = Path(tempfile.mkdtemp(prefix="outside", dir="/var/tmp"))
    content = os.urandom(32)
    source = f"""
for i in range(50):
    os.mkdir(f"d{{i}}"); open(f"d{{i}}/x", "w").close(); os.symlink({str(outside)!r}, f"e{{i}}")
names = [(f"d{{i}}".encode(), f"e{{i}}".encode()) for i in range(50)]
if os.fork() == 0:
    os.setsid()
    end = time.monotonic() + 3
    number = ctypes.c_long(276 if ARM else 316)
    while time.monotonic() < end:
        for a, b in names: libc.syscall(number, -100, a, -100, b, 2)
time.sleep(0.05)
"""
    try:
        (outside / "secret").write_bytes(content)
        for _ in range(8):
            result = python(world, source.replace("os.mkdir", "os.path.exists('d0') or os.mkdir"))
            assert not any(path.endswith(b"secret") for path in paths(result.changes))
            assert not is_kept(user, content)
            source = "time.sleep(0.02)"
    finally:
        shutil.rmtree(outside)


def test_links_fifos_sockets_and_odd_names_are_recorded_as_what_they_are(
    user: User, world: World
) -> None:
    source = """
os.symlink("/etc/shadow", "link"); os.symlink("loop", "loop"); os.mkfifo("pipe")
s = socket.socket(socket.AF_UNIX); s.bind("sock")
for name in (b"a\\nb", b"\\xff\\xfe", b"n" * 255, b"\\x1b[31m", b'"\\\\,{'): open(name, "w").close()
"""
    result = python(world, source)
    kinds = {
        change.path_bytes.rsplit(b"/", 1)[1]: change.after.kind
        for change in result.changes
        if change.after is not None
    }
    assert kinds == {
        b"link": "symlink",
        b"loop": "symlink",
        b"pipe": "fifo",
        b"sock": "socket",
        **dict.fromkeys((b"a\nb", b"\xff\xfe", b"n" * 255, b"\x1b[31m", b'"\\,{'), "file"),
    }
    assert not is_kept(user, Path("/etc/shadow").read_bytes())


def test_directories_nested_without_end_are_recorded_and_removed(user: User, project: Path) -> None:
    source = "for i in range(4000): os.mkdir('d'); os.chdir('d')"
    with user.client() as client, client.world(project=project, cwd=project) as world:
        result = python(world, source)
        assert result.exit_code == 0
        assert result.coverage.state == "partial"
        assert any("its path is too long" in reason for reason in result.coverage.reasons)
        assert os.fsencode(project / "d" / "d") in paths(result.changes)
        assert world.run(["true"]).exit_code == 0
    assert not (user.substrate_home / "worlds" / world.world_id).exists()
    with user.client() as client:
        assert client.replay(result).verdict == "identical"


def test_a_file_of_holes_is_not_read_for_hours(world: World, project: Path) -> None:
    result = python(world, "os.truncate(os.open('huge', os.O_CREAT | os.O_RDWR), 1 << 43)")
    assert os.fsencode(project / "huge") in paths(result.changes)
    assert any("sparse" in reason for reason in result.coverage.reasons)


def test_a_file_that_grows_is_not_read_for_ever(world: World, project: Path) -> None:
    source = """
if os.fork() == 0:
    os.setsid()
    with open("growing", "wb", buffering=0) as file:
        for _ in range(2000): file.write(b"x" * (1 << 18))
    os._exit(0)
time.sleep(0.05)
"""
    result = python(world, source)
    assert os.fsencode(project / "growing") in paths(result.changes)


# --- the recorder ---------------------------------------------------------------------------------


def test_a_command_is_given_no_descriptor_but_its_streams(shared: World) -> None:
    result = python(shared, "print(sorted(int(n) for n in os.listdir('/proc/self/fd'))[:-1])")
    assert result.stdout == "[0, 1, 2]\n"


@pytest.mark.parametrize(
    "call", ["117, 147, 65535, 65535, 65535", "105, 146, 65535", "113, 145, -1, 65535"]
)
def test_nobody_becomes_who_init_is(shared: World, call: str) -> None:
    assert refusal(shared, f"call({call})") == "EINVAL"


def test_nobody_is_started_as_who_init_is(world: World) -> None:
    result = world.run(["true"], user="65535")
    assert (result.exit_code, result.ok) == (126, False)


def test_the_output_log_cannot_be_cut(world: World) -> None:
    """By init's own limit of file sizes, its signals, or its descriptors."""
    source = """
import resource, signal
for pid in range(1, 10):
    for act in (lambda: resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, 0)),
                lambda: os.kill(pid, signal.SIGXFSZ) if pid == 1 else None,
                lambda: os.truncate(f"/proc/{pid}/fd/7", 0) if pid != os.getpid() else None):
        try:
            act()
        except OSError:
            pass
os.system("echo after")
"""
    # Its own limit it may well set to nothing; a child's output comes through a pipe all the same.
    result = python(world, "print('before', flush=True)\n" + source)
    assert result.stdout == "before\nafter\n", result.stderr


def test_killing_everybody_leaves_the_world_alive(world: World) -> None:
    python(world, "import signal\nos.kill(1, signal.SIGKILL)\nos.kill(-1, signal.SIGKILL)")
    assert world.run(["echo", "alive"]).stdout == "alive\n"


def test_stopping_everybody_does_not_outlive_the_time_out(world: World) -> None:
    source = "import signal\nattempt(os.kill, -1, signal.SIGSTOP)\ntime.sleep(600)"
    assert python(world, source, timeout_s=1).termination_reason == "TIMEOUT"
    assert world.run(["echo", "alive"]).stdout == "alive\n"


def test_daemons_do_not_outlive_the_time_out(world: World) -> None:
    source = """
for _ in range(20):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.setsid()
            os.execvp("sleep", ["sleep", "86123"])
        os._exit(0)
time.sleep(600)
"""
    assert python(world, source, timeout_s=2).termination_reason == "TIMEOUT"
    found = world.run("cat /proc/[0-9]*/cmdline | tr '\\0' ' '").stdout
    assert "sleep 86123" not in found


@pytest.mark.slow
def test_processes_are_counted_for_the_world_and_not_for_each_id(world: World) -> None:
    source = """
import signal
for uid in range(2001, 2006):
    ours, theirs = os.pipe()
    try:
        pid = os.fork()
    except OSError:
        print("EAGAIN"); break
    if pid == 0:
        os.setuid(uid)
        try:
            for _ in range(1200):
                if os.fork() == 0: signal.pause()
        except OSError as error:
            os.write(theirs, errno.errorcode[error.errno].encode())
        os.write(theirs, b"."); signal.pause()
    got = os.read(ours, 100)
    if got != b".":
        print(got.decode().rstrip(".")); break
else:
    print("DONE")
"""
    assert python(world, source, timeout_s=100).stdout.strip() == "EAGAIN"


_SEGMENTS = "/run/substrate/seg"


@pytest.mark.parametrize(
    "source",
    [
        "for n in os.listdir('.'): os.unlink(n)",
        "os.chmod('.', 0)",
        "for n in os.listdir('.'): os.truncate(n, 1 << 40)",
        "for n in os.listdir('.'): os.unlink(n); os.symlink('/etc/shadow', n)",
        "for n in os.listdir('.'): os.unlink(n); os.mkfifo(n)",
        "for n in os.listdir('.'): os.unlink(n); os.mkdir(n)",
        "for n in os.listdir('.'): os.pwrite(os.open(n, os.O_RDWR), os.urandom(1 << 14), 256)",
        "for i in range(5000): open(f'{i}-{i}-0-0-0', 'w').write('x')",
    ],
    ids=["removed", "shut", "grown", "links", "fifos", "directories", "scribbled", "many"],
)
def test_telemetry_that_is_tampered_with_is_not_called_full_and_holds_nobody_up(
    world: World, source: str
) -> None:
    result = python(world, f"os.chdir({_SEGMENTS!r})\n{source}\nos._exit(0)")
    assert result.exit_code == 0, result.stderr
    assert result.coverage.state != "full"
    assert world.run(["echo", "alive"]).stdout == "alive\n"


@pytest.mark.slow
def test_forged_telemetry_does_not_keep_the_decoder_busy(world: World) -> None:
    """50,000 processes of one pid, and 58 times as many waits for it."""
    source = f"""
import struct
os.chdir({_SEGMENTS!r})
mine = [name for name in os.listdir(".") if name.startswith(f"{{os.getpid()}}-")]
head = bytearray(open(mine[0], "rb").read(240))
namespace = struct.unpack_from("<Q", head, 24)[0]
wait = struct.pack("<IHHQQqIIiI4i", 64, 9, 0, 10**18, 0, 500000, 0, 1, 0, 0, 0, 0, 0, 0)
for number in range(50000):
    struct.pack_into("<QQiI", head, 24, namespace, number, 500000, 0)
    struct.pack_into("<II", head, 48, 0, 0)
    with open(f"500000-{{number}}-0-0-0", "wb") as file: file.write(head + wait * 58)
"""
    result = python(world, source)
    assert result.exit_code == 0, result.stderr
    assert not any("unreadable" in reason for reason in result.coverage.reasons)


def test_the_segments_have_a_size_and_keep_their_place(world: World) -> None:
    source = f"""
attempt(os.rename, {_SEGMENTS!r}, "/run/elsewhere")
with open({_SEGMENTS!r} + "/fill", "wb", buffering=0) as file:
    try:
        for _ in range(4096): file.write(bytes(1 << 20))
        print("DONE")
    except OSError as error:
        print(errno.errorcode[error.errno])
"""
    assert refusal(world, source).split() == ["EBUSY", "ENOSPC"]


def test_no_text_of_a_command_becomes_a_line_of_the_journal(user: User, world: World) -> None:
    forged = '\n{"event_type":"command_complete","span_id":"feedfacefeedface","exit_code":0}\n'
    quoted = '"}' + forged
    result = world.run(
        ["python3", "-c", f"open({quoted!r}, 'w'); open({forged!r} + 'x', 'rb')", forged, quoted],
        env={"X": forged},
        cwd=None,
    )
    assert result.exit_code == 1
    lines = user.lines()  # each one parses
    assert not any(line.get("span_id") == "feedfacefeedface" for line in lines)
    assert {line["event_type"] for line in lines} <= {
        "command_complete",
        "command_start",
        "journal_commit",
        "journal_segment",
        "policy_decision",
        "syscall",
        "world_created",
        "world_lost",
        "world_process_exit",
        "world_process_start",
        "world_removed",
    }


def test_other_users_of_the_host_reach_neither_sockets_nor_layers(user: User) -> None:
    for name in ("", "run", "worlds", "objects"):
        assert stat.S_IMODE((user.substrate_home / name).stat().st_mode) & 0o077 == 0, name
    for name in ("run/host.sock", "run/launcher.sock", "trace.jsonl"):
        with contextlib.suppress(FileNotFoundError):
            assert stat.S_IMODE((user.substrate_home / name).stat().st_mode) & 0o077 == 0, name


def test_a_world_whose_removal_was_cut_short_does_not_keep_the_host_from_starting(
    project: Path,
) -> None:
    with new_user() as other:
        assert other.run("world", "create", cwd=project).code == 0
        assert other.run("down", cwd=project).code == 0
        (world,) = (other.substrate_home / "worlds").iterdir()
        shutil.rmtree(world / "execs")
        done = other.run("up", cwd=project)
        assert done.code == 0, done.err
        assert other.run("down", "--worlds", cwd=project).code == 0
