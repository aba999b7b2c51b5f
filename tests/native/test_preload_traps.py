"""The traps of research/telemetry.md §3: each of these failed, or would, with a naive library."""

from __future__ import annotations

import os
import re
import resource
import shutil
import signal
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from substrate_services.telemetry.coverage import coverage_of
from substrate_services.telemetry.segments import SegmentName
from tests.native.recording import (
    ROOT,
    Recorder,
    compile_c,
    decode,
    preload_library,
    small_file_system,
)


@pytest.fixture
def recorder(tmp_path: Path) -> Recorder:
    return Recorder(tmp_path / "seg")


def _program(name: str, directory: Path, *flags: str) -> Path:
    """Compile native/tests/<name>.c."""
    return compile_c(ROOT / "native" / "tests" / f"{name}.c", directory / name, *flags)


# --- the library itself --------------------------------------------------------------------------


def _operations() -> set[str]:
    text = (ROOT / "native" / "include" / "events.h").read_text()
    return set(re.findall(r"^ {4}X\((\w+)\)", text, re.MULTILINE)) - {"none"}


def _program_headers(data: bytes) -> list[tuple[int, int]]:
    """(p_type, p_memsz) of a 64-bit ELF file."""
    offset = struct.unpack_from("<Q", data, 32)[0]
    size, count = struct.unpack_from("<HH", data, 54)
    return [
        (
            struct.unpack_from("<I", data, offset + i * size)[0],
            struct.unpack_from("<Q", data, offset + i * size + 40)[0],
        )
        for i in range(count)
    ]


def _exported(data: bytes) -> set[str]:
    """Names of the symbols that the dynamic symbol table defines."""
    offset = struct.unpack_from("<Q", data, 40)[0]
    size, count = struct.unpack_from("<HH", data, 58)
    sections = [struct.unpack_from("<IIQQQQIIQQ", data, offset + i * size) for i in range(count)]
    table = next(s for s in sections if s[1] == 11)  # SHT_DYNSYM
    strings = sections[table[6]][4]
    names = set()
    for at in range(table[4], table[4] + table[5], 24):
        name, _, _, section = struct.unpack_from("<IBBH", data, at)
        if section != 0 and name != 0:
            end = data.index(b"\0", strings + name)
            names.add(data[strings + name : end].decode())
    return names


@pytest.mark.parametrize("musl", [False, True])
def test_the_library_exports_only_hooks_and_little_static_tls(musl: bool) -> None:
    data = preload_library(musl=musl).read_bytes()
    exported = _exported(data)
    assert exported <= _operations()
    assert {"open", "execve", "vfork", "connect"} <= exported
    assert ("__openat_2" in exported) is not musl  # which has no such function: absent-in-musl
    assert sum(size for kind, size in _program_headers(data) if kind == 7) < 64  # PT_TLS


def test_the_library_loads_into_glibc_2_17() -> None:
    versions = re.findall(rb"GLIBC_2\.(\d+)", preload_library().read_bytes())
    assert versions
    assert max(int(v) for v in versions) <= 17


def test_without_a_segment_directory_nothing_is_written(tmp_path: Path) -> None:
    env = {
        **os.environ,
        "LD_PRELOAD": str(preload_library()),
        "SUBSTRATE_SEGMENTS": str(tmp_path / "absent"),
    }
    done = subprocess.run(
        ["sh", "-c", "echo hi; cat /missing"], env=env, check=False, capture_output=True, timeout=20
    )
    assert (done.returncode, done.stdout) == (1, b"hi\n")
    assert list(tmp_path.iterdir()) == []


# --- processes -----------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("dash") is None, reason="dash is not installed")
def test_vfork_in_dash_works_and_its_children_are_seen(recorder: Recorder) -> None:
    recording = recorder.run(["dash", "-c", "for i in 1 2 3 4 5 6 7 8 9; do ls / >/dev/null; done"])
    assert recording.returncode == 0
    children = [p for p in recording.summary.processes if p.argv[:1] == (b"ls",)]
    assert len(children) == 9
    assert {p.parent_span_id for p in children} == {recording.summary.processes[0].span_id}


def test_a_vfork_child_does_not_leave_its_parent_confused(
    recorder: Recorder, tmp_path: Path
) -> None:
    recording = recorder.run([_program("vforks", tmp_path)])
    assert recording.returncode == 0
    root = recording.summary.processes[0]
    opens = [e for e in recording.calls("open") if e.get("path") in {"/child", "/parent"}]
    assert len(opens) == 400
    assert sum(e["path"] == "/parent" and "tid" not in e for e in opens) == 200
    # The child's carry its own pid, as thread of the process whose memory it borrowed.
    assert len({e["tid"] for e in opens if e["path"] == "/child"}) == 200
    assert {e["pid"] for e in opens} == {root.pid}


def test_forks_in_a_threaded_program_are_all_seen(recorder: Recorder, tmp_path: Path) -> None:
    recording = recorder.run([_program("forks", tmp_path, "-lpthread")])
    assert recording.returncode == 0
    expected = {
        f"/{who}-{t}-{i}" for who in ("child", "parent") for t in range(4) for i in range(20)
    }
    assert expected <= recording.paths("open")
    assert recording.summary.processes_total == 81
    root = recording.summary.processes[0]
    assert {p.parent_span_id for p in recording.summary.processes[1:]} == {root.span_id}
    assert recording.summary.torn == recording.summary.lost == 0


def test_short_threads_share_segments(recorder: Recorder, tmp_path: Path) -> None:
    recording = recorder.run([_program("threads", tmp_path, "-lpthread")])
    assert {f"/thread-{i}" for i in range(300)} <= recording.paths("open")
    chains = {SegmentName.parse(s.name).chain for s in recording.summary.segments}  # type: ignore[union-attr]
    assert chains == {0, 1}  # the main thread's and one that all others carried on
    tids = {e["tid"] for e in recording.calls("open") if e.get("path", "").startswith("/thread")}
    assert len(tids) == 300


def test_exec_numbers_follow_a_process_through_execs(recorder: Recorder) -> None:
    recording = recorder.run(["sh", "-c", "exec env -i sh -c 'exec env sh -c \"exit 4\"'"])
    images = recording.summary.processes
    assert [p.exec_no for p in images] == [1, 2, 3, 4, 5]
    assert len({p.pid for p in images}) == 1
    assert len({p.span_id for p in images}) == 5
    assert [p.exit_code for p in images] == [None, None, None, None, 4]
    assert all(p.end_ns is not None for p in images)
    assert recording.returncode == 4


def test_events_survive_sigkill(recorder: Recorder, tmp_path: Path) -> None:
    recording = recorder.run([_program("killed", tmp_path)])
    assert recording.returncode == -signal.SIGKILL
    assert len(recording.calls("open")) == 1000
    assert recording.summary.lost == recording.summary.torn == 0


def test_a_parent_tells_how_its_child_was_killed(recorder: Recorder) -> None:
    recording = recorder.run(["sh", "-c", "sh -c 'kill -9 $$'; sh -c 'exit 6'; exit 0"])
    outcomes = {(p.exit_code, p.signal) for p in recording.summary.processes[1:]}
    assert outcomes == {(None, 9), (6, None)}


# --- surroundings --------------------------------------------------------------------------------


def test_a_program_may_close_every_descriptor(recorder: Recorder) -> None:
    code = (
        "import os; os.closerange(3, 4096); os.close(0);"
        "assert os.open('/dev/null', os.O_RDONLY) == 0;"
        "[os.path.exists(str(i)) or os.open('/dev/null', os.O_RDONLY) for i in range(500)]"
    )
    recording = recorder.run([sys.executable, "-S", "-c", code])
    assert recording.returncode == 0, recording.stderr
    assert sum(e.get("path") == "/dev/null" for e in recording.events) >= 501


def test_a_signal_handler_may_do_what_it_likes(recorder: Recorder, tmp_path: Path) -> None:
    recording = recorder.run([_program("signals", tmp_path)])
    assert recording.returncode == 0
    handled = int(recording.stdout)
    seen = [e["path"] for e in recording.calls("open")]
    lost = recording.summary.lost
    assert handled > 10
    assert seen.count("/main") + seen.count("/handler") + lost == 100_000 + handled
    # Only in the instants before signals are held back for the making of a segment.
    assert lost <= 3


def test_a_malloc_that_opens_a_file_does_not_wait_for_itself(
    recorder: Recorder, tmp_path: Path
) -> None:
    library = _program("allocator", tmp_path, "-shared", "-fPIC")
    recording = recorder.run(
        ["ls", "/"], env={"LD_PRELOAD": f"{preload_library()} {library}"}, timeout_s=20
    )
    assert recording.returncode == 0
    assert "/proc/self/maps" in recording.paths("open")


def test_a_seccomp_filter_of_the_program_meets_no_system_call_of_ours(
    recorder: Recorder, tmp_path: Path
) -> None:
    program = _program("filtered", tmp_path)
    for way in ("prctl", "syscall"):
        recording = recorder.run([program, way])
        assert recording.returncode == 8
        opens = [e for e in recording.calls("open") if e.get("path") == "/quiet"]
        assert opens
        assert recording.summary.lost > 0  # what did not fit is told
        coverage = coverage_of(recording.summary)
        assert coverage.state == "partial"


def test_a_mode_is_passed_on_with_o_tmpfile(recorder: Recorder, tmp_path: Path) -> None:
    recording = recorder.run([_program("mode", tmp_path)])
    assert recording.stdout == b"640\n"


def test_a_file_size_limit_of_zero_kills_nobody(recorder: Recorder) -> None:
    command = ["sh", "-c", "ulimit -f 0; cat /dev/null; exec true"]
    recording = recorder.run(command)
    assert recording.returncode == 0


def test_a_descriptor_limit_kills_nobody(recorder: Recorder) -> None:
    def low() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))

    recorder.clear()
    done = subprocess.run(
        ["/bin/true"],
        env=recorder.environment({"LD_PRELOAD": ""}),
        check=False,
        preexec_fn=low,
        timeout=20,
    )
    plain = done.returncode
    done = subprocess.run(
        ["/bin/true"],
        env=recorder.environment(),
        check=False,
        preexec_fn=low,
        timeout=20,
    )
    assert done.returncode == plain


@pytest.mark.root
def test_a_full_segment_file_system_costs_events_not_programs(tmp_path: Path) -> None:
    program = _program("full", tmp_path)
    with small_file_system("128k") as directory:
        recorder = Recorder(directory)
        recording = recorder.run(["sh", "-c", f"{program}; {program}; exit 4"])
        assert (recording.returncode, recording.stdout) == (4, b"done\ndone\n")
        summary = recording.summary
        seen = sum(e.get("path") == "/full" for e in recording.events)
        assert 0 < seen < 20_000
        # The first program's losses are counted; the second had no room for a word.
        assert summary.lost + seen >= 20_000
        assert coverage_of(summary).state == "partial"


@pytest.mark.root
def test_ld_so_preload_reaches_scrubbed_and_set_id_programs(tmp_path: Path) -> None:
    """In a mount namespace of its own, as in a world."""
    set_id = tmp_path / "id"
    shutil.copy("/usr/bin/id", set_id)
    os.chmod(set_id, 0o4755)
    os.chmod(tmp_path, 0o755)
    for parent in tmp_path.parents:
        if parent.is_relative_to("/tmp") and parent != Path("/tmp"):
            os.chmod(parent, 0o755)
    library = tmp_path / "libsubstrate_preload.so"
    shutil.copy(preload_library(), library)
    os.chmod(library, 0o755)
    out = tmp_path / "out"
    out.mkdir()
    script = f"""
set -e
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p -m 755 /run/substrate && mkdir -m 1777 /run/substrate/seg
echo {library} > {tmp_path}/preload
touch {tmp_path}/empty
test -e /etc/ld.so.preload || {{ mkdir {tmp_path}/u {tmp_path}/w; mount -t overlay overlay \
-o lowerdir=/etc,upperdir={tmp_path}/u,workdir={tmp_path}/w /etc; touch /etc/ld.so.preload; }}
mount --bind {tmp_path}/preload /etc/ld.so.preload
env -i /bin/sh -c 'exec env -i /bin/sh -c "cat /etc/hostname >/dev/null; exit 3"' || test $? = 3
setpriv --reuid=65534 --regid=65534 --clear-groups {set_id} -u > {tmp_path}/uid
cp /run/substrate/seg/* {out}/
"""
    env = {k: v for k, v in os.environ.items() if not k.startswith("SUBSTRATE_SEG")}
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script], check=False, capture_output=True, env=env, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "uid").read_text() == "0\n"
    os.chmod(out, 0o755)
    summary, events = decode(out)
    programs = {p.argv[0] for p in summary.processes if p.coverage == "full"}
    assert {b"/bin/sh", b"cat", os.fsencode(set_id)} <= programs
    chain = [p for p in summary.processes if p.argv[:1] in {(b"/bin/sh",), (b"env",)}]
    assert [p.exec_no for p in chain if p.pid == chain[0].pid] == [1, 2, 3, 4][: len(chain)]
    assert any(e.get("path") == "/etc/hostname" for e in events)
