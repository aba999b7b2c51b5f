"""Every entry point of research/telemetry.md §2 leaves a record of what went in and came out."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from tests.native.raw_segments import (
    ADDRESS,
    DIRECTORY,
    FLAG_DIRECTORY,
    FLAG_FAULT,
    FLAG_UNNAMED,
    NAME,
    SOURCES,
    Record,
    add_up,
    operations,
    read_records,
)
from tests.native.recording import ROOT, Recorder, compile_c, preload_library
from tests.native.targets import exported_symbols

Line = tuple[str, str, int, int, int]  #: name, what it was passed, result, errno, bytes

_STATS = {
    "stat", "stat64", "lstat", "lstat64", "fstatat", "fstatat64", "statx", "__xstat", "__xstat64",
    "__lxstat", "__lxstat64", "__fxstatat", "__fxstatat64", "access", "faccessat", "euidaccess",
    "eaccess", "readlink", "readlinkat", "__readlink_chk", "__readlinkat_chk", "realpath",
    "__realpath_chk", "canonicalize_file_name", "statfs", "statfs64", "statvfs", "statvfs64",
    "getxattr", "lgetxattr", "listxattr", "llistxattr",
}  # fmt: skip
_DESCRIPTOR_STATS = {"fstat", "fstat64", "__fxstat", "__fxstat64"}
_WRITES = {
    "write", "__write", "pwrite", "pwrite64", "__pwrite64", "writev", "pwritev", "pwritev64",
    "pwritev2", "pwritev64v2", "send", "__send", "sendto", "sendmsg", "sendmmsg", "__sendmmsg",
}  # fmt: skip
_READS = {
    "read", "__read", "__read_chk", "pread", "pread64", "__pread64", "__pread_chk",
    "__pread64_chk", "readv", "preadv", "preadv64", "preadv2", "preadv64v2", "recv", "__recv",
    "__recv_chk", "recvfrom", "__recvfrom_chk", "recvmsg", "recvmmsg",
}  # fmt: skip
_COPIES = {"sendfile", "sendfile64", "copy_file_range", "splice"}
_DUPS = {"dup", "dup2", "__dup2", "dup3", "fcntl", "__fcntl", "fcntl64"}
_CHANGES = {
    "utime", "utimes", "lutimes", "futimes", "futimesat", "futimens", "utimensat", "fallocate",
    "fallocate64", "posix_fallocate", "posix_fallocate64", "setxattr", "lsetxattr", "fsetxattr",
    "removexattr", "lremovexattr", "fremovexattr", "lchmod", "__xmknod", "__xmknodat", "mount",
    "umount", "umount2", "sem_unlink", "mq_unlink", "mkdirat", "renameat2", "unlinkat",
}  # fmt: skip
_OPENS = {
    "memfd_create", "sem_open", "mq_open", "__mq_open_2", "open_by_handle_at", "openat2", "openat",
}  # fmt: skip
_WALKS = {"ftw", "ftw64", "nftw", "nftw64", "fts_open", "fts64_open", "glob", "glob64"}
_THREADS = {"pthread_create", "thrd_create", "unshare", "setns"}
_LOOK_UPS = {
    "getnameinfo", "gethostbyname", "gethostbyname2", "gethostbyname_r", "gethostbyname2_r",
    "gethostbyaddr", "gethostbyaddr_r", "getaddrinfo_a", "res_query", "__res_query", "res_search",
    "__res_search", "res_send", "__res_send",
}  # fmt: skip


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled native/tests/entry_points.c."""
    source = ROOT / "native" / "tests" / "entry_points.c"
    output = tmp_path_factory.mktemp("entry_points") / "entry_points"
    return compile_c(source, output, "-ldl", "-lpthread", "-lresolv")


class Run:
    """One run of the program: what it said, and what was recorded."""

    def __init__(self, stdout: bytes, records: list[Record]) -> None:
        rows = [line.split("\t") for line in stdout.decode().splitlines()]
        (self.sources,) = ([int(n) for n in r[1].split()] for r in rows if r[0] == "sources")
        self.lines: list[Line] = [
            (r[0], r[1], int(r[2]), int(r[3]), int(r[4])) for r in rows if r[0] != "sources"
        ]
        root = next(r.pid for r in records if r.type == "hello")
        self.records = [r for r in records if r.pid == root]

    def of(self, names: set[str]) -> list[Line]:
        """The lines of these entry points."""
        found = [line for line in self.lines if line[0] in names]
        assert found
        return found

    def typed(self, kind: str) -> list[Record]:
        """The records of a type."""
        return [record for record in self.records if record.type == kind]


def _run(program: Path, recorder: Recorder, cwd: Path, *arguments: str) -> Run:
    recorder.clear()
    done = subprocess.run(
        [program, *arguments],
        check=False,
        capture_output=True,
        # A name server that does not answer is given up on soon.
        env=recorder.environment({"RES_OPTIONS": "timeout:1 attempts:1"}),
        cwd=cwd,
        timeout=60,
    )
    assert done.returncode == 3, done.stderr
    return Run(done.stdout, read_records(recorder.segments))


@pytest.fixture(scope="module")
def outcome(program: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    recorder = Recorder(tmp_path_factory.mktemp("seg"))
    return _run(program, recorder, tmp_path_factory.mktemp("work"), "network")


def test_look_ups_add_up_by_path_and_descriptor(outcome: Run) -> None:
    expected: Counter[str | int] = Counter()
    failed: Counter[str | int] = Counter()
    faults = 0
    for name, what, result, _, _ in outcome.lines:
        key: str | int = what
        if name in _DESCRIPTOR_STATS or (name == "statx" and what.isdigit()):
            key = int(what)
        elif name not in _STATS:
            continue
        if what == "EFAULT":
            faults += 1
            continue
        expected[key] += 1
        failed[key] += result < 0
    sums = add_up(outcome.records)
    found = {key: value for key, value in sums.stats.items() if key in expected}
    assert found == {key: (count, failed[key]) for key, count in expected.items()}
    assert sum(bool(r.flags & FLAG_FAULT) for r in outcome.typed("stat")) == faults
    assert {"file", "absent", "link"} <= set(found)
    # A path that is asked about again and again costs one record.
    assert sum(r.path == "file" for r in outcome.typed("stat")) <= 3


def test_calls_and_bytes_add_up_by_descriptor(outcome: Run) -> None:
    read: Counter[int] = Counter()
    written: Counter[int] = Counter()
    calls = 0
    opened = {line[1]: line[2] for line in outcome.of({"openat"})}
    assert opened["file"] >= 0
    for name, what, result, _, count in outcome.of(_READS | _WRITES | _COPIES):
        if result < 0:
            continue
        if name in _COPIES:
            read[4] += result
            written[count] += result
            calls += 2
        elif what.isdigit():
            (written if name in _WRITES else read)[int(what)] += count
            calls += 1
        else:  # sendto an address
            calls += 1
    sums = add_up(outcome.records).transfers
    for descriptor, count in read.items():
        assert sums[descriptor][1] == count, descriptor
    # The lines that the program says itself go through stdio: libc's own writes pass no hook.
    for descriptor, count in written.items():
        if descriptor not in {6, 8}:  # used again for datagrams and connections
            assert sums[descriptor][3] == count, descriptor
    assert sum(s[0] + s[2] for s in sums.values()) == calls
    assert 1 not in sums


def test_transfers_say_whether_their_descriptor_has_a_name(outcome: Run) -> None:
    by_name = {r.op: r for r in outcome.typed("transfer") if not r.one(ADDRESS)}
    file = next(r for r in outcome.typed("open") if r.path == "file")
    of_file = [r for r in outcome.typed("transfer") if r.arg[0] == file.result]
    assert of_file
    assert not any(r.flags & FLAG_UNNAMED for r in of_file)
    assert by_name["send"].flags & FLAG_UNNAMED  # of a socketpair
    assert by_name["splice"].flags & FLAG_UNNAMED  # a pipe
    accepted = [r.result for r in outcome.typed("accept") if r.result >= 0]
    writes = [r for r in outcome.typed("transfer") if r.arg[0] in accepted and r.op == "write"]
    assert len(writes) == 2
    assert all(not r.flags & FLAG_UNNAMED for r in writes)


def test_changes_are_recorded_each_with_path_and_outcome(outcome: Run) -> None:
    records = Counter((r.op, r.path, r.error) for r in outcome.typed("mutate") if r.op in _CHANGES)
    by_descriptor = {"futimes", "futimens", "fsetxattr", "fremovexattr", "fallocate",
                     "fallocate64", "posix_fallocate", "posix_fallocate64"}  # fmt: skip
    expected = Counter(
        (name, None if name in by_descriptor else what, error)
        for name, what, _, error, _ in outcome.of(_CHANGES)
    )
    assert records == expected
    by_number = [r.one(DIRECTORY) for r in outcome.typed("mutate") if r.op in by_descriptor]
    explained = {path for path in by_number if path is not None}
    assert {Path(path.decode()).name for path in explained} == {"file"}


def test_opens_walks_and_copies_are_recorded(outcome: Run) -> None:
    records = [r for r in outcome.records if r.type == "open"]
    for name, what, result, error, _ in outcome.of(_OPENS):
        path = "file" if what == "fault" else what
        found = [
            r
            for r in records
            if r.op == name and r.error == error and (r.path or "").endswith(path)
        ]
        assert found, (name, what, result, error)
        assert any(r.result == result for r in found), (name, what, result)
    for name, what, result, _, _ in outcome.of(_WALKS):
        (walk,) = [r for r in records if r.op == name]
        assert (walk.path, walk.result) == (what, result)
        assert walk.flags & FLAG_DIRECTORY
    (words,) = [r for r in outcome.typed("spawn") if r.op == "wordexp"]
    assert words.one(NAME) == b"$(echo a) b"
    dups = Counter((r.op, r.arg[0], r.result) for r in outcome.typed("dup"))
    expected = Counter(
        (name, int(what), result)
        for name, what, result, _, _ in outcome.of(_DUPS)
        if result >= 0 and not (name == "dup2" and result == int(what))
    )
    assert dups == expected
    (failed,) = outcome.typed("failed")
    assert (failed.op, failed.error) == ("execveat", 2)


def test_connections_are_recorded_from_bind_to_accept(outcome: Run) -> None:
    binds = [(r.result, r.error, bool(r.flags & FLAG_FAULT)) for r in outcome.typed("bind")]
    assert binds == [(0, 0, False), (-1, 14, True)]
    listens = [(r.result, r.arg[1]) for r in outcome.typed("listen")]
    assert listens == [(0, 7)]
    accepts = [(r.op, r.error) for r in outcome.typed("accept")]
    assert accepts == [("accept", 0), ("accept4", 0), ("accept", 22)]
    localhost = bytes([127, 0, 0, 1])
    peers = [r.one(ADDRESS) for r in outcome.typed("accept") if r.error == 0]
    assert all(peer is not None and peer[4:8] == localhost for peer in peers)
    (datagram,) = [r for r in outcome.typed("transfer") if r.op == "sendto" and r.one(ADDRESS)]
    assert datagram.one(ADDRESS)[2:8] == bytes([0, 9]) + localhost  # type: ignore[index]


def test_names_and_answers_are_recorded(outcome: Run) -> None:
    records = {r.op: r for r in outcome.typed("resolve")}
    for name, what, result, _, _ in outcome.of(_LOOK_UPS):
        record = records[name]
        if what == "name.invalid":
            assert (record.one(NAME), record.result) == (what.encode(), result)
        elif name != "getaddrinfo_a" and what:
            answers = record.all(ADDRESS)
            assert [a[4:8] for a in answers] == [bytes([127, 0, 0, 1])], name
        if name.startswith("gethostbyname") or name == "getaddrinfo_a":
            assert record.one(NAME) == b"127.0.0.1"


def test_threads_and_namespaces_are_recorded(outcome: Run) -> None:
    found = Counter((r.op, r.result) for r in outcome.typed("thread"))
    assert found == Counter((name, result) for name, _, result, _, _ in outcome.of(_THREADS))


def test_sources_are_counted(outcome: Run) -> None:
    assert list(add_up(outcome.records).sources.values()) == outcome.sources
    assert all(outcome.sources)
    assert len(SOURCES) == len(outcome.sources)


def test_results_are_the_same_without_the_library(
    program: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    recorder = Recorder(tmp_path / "seg")
    recorded = _run(program, recorder, tmp_path_factory.mktemp("with"))
    plain = subprocess.run(
        [program],
        check=False,
        capture_output=True,
        cwd=tmp_path_factory.mktemp("without"),
        timeout=60,
    )
    alone = Run(plain.stdout, recorded.records)
    assert recorded.lines == alone.lines
    assert recorded.sources == alone.sources


# --- the list ------------------------------------------------------------------------------------

_RESEARCH = """
execve execv execvp execvpe execl execlp execle fexecve execveat posix_spawn posix_spawnp
pidfd_spawn pidfd_spawnp system popen pclose wordexp posix_spawn_file_actions_init
posix_spawn_file_actions_destroy posix_spawn_file_actions_addopen
posix_spawn_file_actions_addclose posix_spawn_file_actions_adddup2
posix_spawn_file_actions_addchdir_np posix_spawn_file_actions_addfchdir_np
posix_spawn_file_actions_addclosefrom_np posix_spawn_file_actions_addtcsetpgrp_np
fork __fork __libc_fork _Fork vfork __vfork clone __clone forkpty daemon pthread_create
thrd_create wait waitpid wait3 wait4 waitid unshare setns
open open64 __open __open64 openat openat64 __open_2 __open64_2 __openat_2 __openat64_2 creat
creat64 open_by_handle_at fopen fopen64 freopen freopen64 _IO_fopen fdopen opendir scandir
scandir64 scandirat scandirat64 ftw ftw64 nftw nftw64 fts_open fts64_open glob glob64 shm_open
shm_unlink sem_open mq_open __mq_open_2 memfd_create mkstemp mkstemp64 mkostemp mkostemp64
mkstemps mkstemps64 mkostemps mkostemps64 mkdtemp tmpfile tmpfile64 realpath
stat stat64 lstat lstat64 fstat fstat64 fstatat fstatat64 statx __xstat __xstat64 __lxstat
__lxstat64 __fxstat __fxstat64 __fxstatat __fxstatat64 access faccessat euidaccess eaccess
readlink readlinkat __readlink_chk __readlinkat_chk
unlink unlinkat remove rmdir rename renameat renameat2 link linkat symlink symlinkat mkdir
mkdirat mknod mknodat __xmknod __xmknodat mkfifo mkfifoat chmod fchmod fchmodat lchmod chown
lchown fchown fchownat truncate truncate64 ftruncate ftruncate64 utime utimes utimensat futimens
futimes lutimes futimesat fallocate fallocate64 posix_fallocate posix_fallocate64
copy_file_range sendfile sendfile64 splice setxattr lsetxattr fsetxattr removexattr lremovexattr
fremovexattr chdir fchdir chroot mount umount2
socket __socket socketpair connect __connect bind listen accept accept4 shutdown send __send
sendto sendmsg sendmmsg __sendmmsg recv __recv __recv_chk recvfrom __recvfrom_chk recvmsg
recvmmsg getaddrinfo getaddrinfo_a getnameinfo gethostbyname gethostbyname2 gethostbyaddr
gethostbyname_r gethostbyname2_r gethostbyaddr_r res_query res_search res_send res_nquery
res_nsearch res_nsend
exit _exit _Exit quick_exit abort dlopen dlmopen putenv setenv unsetenv clearenv close closefrom
close_range dup dup2 dup3 fcntl fcntl64 syscall prctl
read __read __read_chk write __write pread pread64 __pread64 __pread_chk __pread64_chk pwrite
pwrite64 __pwrite64 readv writev preadv preadv64 pwritev pwritev64 preadv2 preadv64v2 pwritev2
pwritev64v2
time gettimeofday clock_gettime getrandom getentropy arc4random arc4random_buf
arc4random_uniform getpid gettid readdir readdir64
"""

#: Symbols of §2 that have no hook, and why.
_LEFT_OUT = {
    "posix_spawn_file_actions_addtcsetpgrp_np": "moves a terminal, no file and no descriptor",
    "fdopen": "opens nothing: the descriptor it is given was recorded when it was made",
    "shutdown": "ends a direction of a connection that is recorded already",
    "exit": "on_exit tells its status, which a return from main has as well (a hook on musl)",
    "abort": "its end is a signal, which the parent and the kernel's ledger tell",
    "putenv": "the environment of a program is digested when it starts; bash has its own",
    "setenv": "as putenv",
    "unsetenv": "as putenv",
    "clearenv": "as putenv",
}


def test_each_symbol_of_the_research_that_libc_has_is_hooked() -> None:
    names = set(re.findall(r"\w+", _RESEARCH))
    hooked = exported_symbols(preload_library().read_bytes())
    assert names - hooked == set(_LEFT_OUT)
    assert hooked <= set(operations())


def test_every_operation_but_those_of_numbers_is_a_hook() -> None:
    hooked = exported_symbols(preload_library().read_bytes())
    by_number = {"openat2", "clone3", "exit_group"}  # through syscall
    of_musl = {"exit", "__libc_start_main"}
    unhooked = set(operations()) - hooked - {"none"} - by_number - of_musl
    assert unhooked == {"fdopendir"}  # opens nothing
