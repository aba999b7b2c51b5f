"""Nothing that a program puts into the segment directory crashes, stalls or fools the decoder."""

from __future__ import annotations

import json
import os
import random
import struct
import subprocess
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from substrate_services.native_paths import native_path
from substrate_services.telemetry.segments import prepare_directory
from tests.native import segment_files as sf
from tests.native.ledger_files import Ledger
from tests.native.recording import ROOT, Recorder, compiler, decode
from tests.native.segment_files import Segment


@pytest.fixture
def segments(tmp_path: Path) -> Path:
    directory = tmp_path / "seg"
    prepare_directory(directory)
    return directory


@pytest.fixture(scope="module")
def checked_decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The decoder under AddressSanitizer and UndefinedBehaviorSanitizer, without its sandbox."""
    output = tmp_path_factory.mktemp("decoder") / "decode-asan"
    native = ROOT / "native"
    sources = [p for p in sorted((native / "decode").glob("*.c")) if p.name != "sandbox.c"]
    done = subprocess.run(
        [
            *compiler(), "-std=gnu11", "-O1", "-g", "-fsanitize=address,undefined",
            "-fno-sanitize-recover=all", "-I", str(native / "include"),
            *map(str, sources), str(native / "tests" / "no_sandbox.c"), "-o", str(output),
        ],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode != 0:
        pytest.skip(f"no sanitizers with {compiler()[0]}: {done.stderr.splitlines()[0]}")
    return output


def _run(
    decoder: Path, directory: Path, *options: str, fds: tuple[int, ...] = ()
) -> tuple[int, bytes, bytes, bytes]:
    """(exit code, events, summary, complaints) of one run."""
    fd = os.open(directory, os.O_RDONLY)
    summary_fd = os.memfd_create("summary")
    try:
        done = subprocess.run(
            [decoder, f"--dirfd={fd}", f"--summary-fd={summary_fd}", "--span=s", *options],
            check=False, capture_output=True, pass_fds=(fd, summary_fd, *fds), timeout=60,
            env={"ASAN_OPTIONS": "detect_leaks=0"},
        )  # fmt: skip
        os.lseek(summary_fd, 0, os.SEEK_SET)
        summary = b""
        while chunk := os.read(summary_fd, 1 << 20):
            summary += chunk
    finally:
        os.close(fd)
        os.close(summary_fd)
    return done.returncode, done.stdout, summary, done.stderr


def _assert_sane(result: tuple[int, bytes, bytes, bytes]) -> None:
    code, events, summary, complaints = result
    assert code == 0, complaints.decode(errors="replace")
    for line in events.splitlines():
        assert json.loads(line)["source"] in ("self_reported", "kernel")
    json.loads(summary)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Segments of real programs, and some made by hand."""
    recorder = Recorder(tmp_path_factory.mktemp("corpus"))
    recorder.run(
        ["sh", "-c", "cd /; ls >/dev/null; (exit 3); env -i sh -c 'cat /missing'; mkdir /proc/x"]
    )
    found = {path.name: path.read_bytes() for path in recorder.segments.iterdir()}
    made = Segment(10).hello()
    made.add(
        sf.record(
            sf.SPAWN, sf.OP_SPAWN, at=1_000_500, arg=(11, 0, 2, 0), tid=10,
            fields=sf.text(1, b"/bin/x") + sf.text(6, b"x\0y\0") + sf.text(15, b"12345678"),
        )
    )  # fmt: skip
    made.add(sf.record(7, 16, at=1, arg=(1, 2, 3, 4), fields=sf.text(15, b"12345678")))
    made.add(sf.record(12, 113, at=2, fields=sf.text(11, struct.pack("<HH4s8x", 2, 80, b"abcd"))))
    made.add(sf.record(13, 115, at=3, fields=sf.text(12, b"name") + sf.text(11, b"\x01\x00/sock")))
    made.call(
        sf.OPEN, "openat", (sf.PATH, b"x"), (sf.DIRECTORY, b"/d"), (sf.DIRECTORY_ID, b"8bytes..")
    )
    made.call(sf.MUTATE, "rename", (sf.PATH, b"/d"), (sf.PATH2, b"/e"))
    made.call(sf.STAT, "stat", (sf.PATH, b"x"), (sf.STAT_COUNTS, bytes(24)))
    made.look(b"y", calls=2).look(b"/z/.", failed=1).look(b"x", dirfd=4)
    made.call(sf.TRANSFER, "read", (sf.TRANSFER_COUNTS, bytes(40)), arg=(3, 0, 0, 0))
    made.call(sf.SOURCES, "time", (sf.SOURCE_COUNTS, bytes(64)))
    made.call(sf.LOAD, "dlopen", (sf.LIBRARIES, b"/a\0/b\0"))
    found[made.name] = made.data()
    assert len(found) > 5
    return found


def _mutate(data: bytes, chance: random.Random) -> bytes:
    changed = bytearray(data)
    used = len(data.rstrip(b"\0")) + 8
    interesting = (0, 1, 7, 8, 0x40, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x80000040, 0xE000)
    for _ in range(chance.randint(1, 8)):
        at = chance.randrange(0, max(8, min(used, len(changed)) - 4))
        match chance.randrange(5):
            case 0:
                changed[at] = chance.randrange(256)
            case 1:
                at -= at % 4
                changed[at : at + 4] = struct.pack("<I", chance.choice(interesting))
            case 2:
                at -= at % 8
                changed[at : at + 8] = struct.pack("<Q", chance.choice(interesting) << 32)
            case 3:
                end = at + chance.randrange(64)
                changed[at:end] = chance.randbytes(end - at)
            case _:
                changed[at : at + 64] = changed[sf.HEADER.size : sf.HEADER.size + 64]
    if chance.random() < 0.2:
        del changed[chance.randrange(len(changed)) :]
    return bytes(changed)


@pytest.mark.parametrize("seed", range(60))
def test_mutated_segments_are_survived(
    checked_decoder: Path, corpus: dict[str, bytes], segments: Path, seed: int
) -> None:
    chance = random.Random(seed)
    for name, data in corpus.items():
        mutated = _mutate(data, chance)
        (segments / name).write_bytes(mutated)
    _assert_sane(_run(checked_decoder, segments))
    _assert_sane(_run(checked_decoder, segments, "--root-pid=10", "--max-events=3"))


# Of the sizes that the counts of sums have.
_COUNTS = st.sampled_from((24, 40, 64)).flatmap(
    lambda size: st.binary(min_size=size, max_size=size)
)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    bodies=st.lists(
        st.tuples(
            st.integers(0, 24),
            st.integers(0, len(sf.OPERATIONS) + 2),
            st.lists(st.tuples(st.integers(0, 22), st.binary(max_size=80) | _COUNTS), max_size=5),
            st.tuples(*(st.integers(-(2**31), 2**31 - 1) for _ in range(4))),
            st.integers(-(2**63), 2**63 - 1),
            st.integers(0, 2**32 - 1),
        ),
        max_size=12,
    )
)
def test_any_records_are_survived(
    checked_decoder: Path,
    segments: Path,
    bodies: list[tuple[int, int, list[tuple[int, bytes]], tuple[int, int, int, int], int, int]],
) -> None:
    segment = Segment(10).hello()
    for kind, op, fields, arg, result, flags in bodies:
        segment.add(
            sf.record(
                kind, op, at=abs(result), result=result, flags=flags, arg=arg, error=arg[0],
                fields=b"".join(sf.text(tag, value) for tag, value in fields), tid=flags,
            )
        )  # fmt: skip
    segment.write(segments)
    _assert_sane(_run(checked_decoder, segments))


def test_lengths_that_lie_end_a_segment(checked_decoder: Path, segments: Path) -> None:
    for pid, length in enumerate((1, 63, 65, 57_505, 0x7FFFFFF8, 0xFFFFFFF8, 0x80000001), 10):
        segment = Segment(pid).hello().open(b"/before")
        segment.add(struct.pack("<I", length) + bytes(200)).write(segments)
    result = _run(checked_decoder, segments)
    _assert_sane(result)
    assert result[1].count(b'"/before"') == 14  # as argument and as path, seven times
    assert json.loads(result[2])["corrupt_segments"] == 7


@pytest.mark.parametrize(
    "unfinished",
    [
        sf.record(sf.OPEN, sf.OP_OPEN, at=5, fields=sf.text(1, b"/half")),
        struct.pack("<I28x", 32),  # of a look, whose type is not there yet
        Segment(10).look(b"/half").records[0],
    ],
)
def test_a_record_that_was_never_finished_is_stepped_over(
    segments: Path, unfinished: bytes
) -> None:
    segment = Segment(10).hello().open(b"/before")
    unfinished = unfinished[:3] + bytes((unfinished[3] | 0x80,)) + unfinished[4:]
    segment.add(unfinished).open(b"/after").write(segments)
    summary, events = decode(segments)
    assert [e["path"] for e in events if e.get("syscall") == "open"] == ["/before", "/after"]
    assert summary.torn == 1


@pytest.mark.parametrize(
    ("length", "path_bytes"), [(24, 1), (32, 0), (32, 9), (40, 8), (56, 1), (4200, 4097)]
)
def test_looks_whose_lengths_lie_end_a_segment(
    checked_decoder: Path, segments: Path, length: int, path_bytes: int
) -> None:
    segment = Segment(10).hello().open(b"/before")
    head = sf.LOOK_HEAD.pack(length, sf.LOOK, path_bytes, 1, 0, -100, 0)
    segment.add(head.ljust(length, b"x")).open(b"/after").write(segments)
    result = _run(checked_decoder, segments)
    _assert_sane(result)
    assert b'"/before"' in result[1]
    assert b'"/after"' not in result[1]
    assert json.loads(result[2])["corrupt_segments"] == 1


@pytest.mark.parametrize("seed", range(30))
def test_mutated_ledgers_are_survived(
    checked_decoder: Path, corpus: dict[str, bytes], segments: Path, seed: int
) -> None:
    for name, data in corpus.items():
        (segments / name).write_bytes(data)
    ledger = Ledger(attested=True).fork(10, 1, 100).run(10, 110, b"/bin/prog")
    for number, name in enumerate(corpus, 20):
        ledger.fork(number, 10, 200 + number).run(number, 300 + number, b"/bin/x")
        ledger.made(10 if number % 2 else number, 400 + number, name).removed(number, 500, name)
        ledger.exit(number, 10**15, number)
    path = segments.parent / "ledger"
    path.write_bytes(_mutate(ledger.data(), random.Random(seed)))
    fd = os.open(path, os.O_RDONLY)
    try:
        for options in ((), ("--root-pid=10",), ("--root-pid=21", "--root-after=150")):
            result = _run(checked_decoder, segments, f"--ledger-fd={fd}", *options, fds=(fd,))
            _assert_sane(result)
    finally:
        os.close(fd)


def test_a_process_of_very_many_images_does_not_take_forever(segments: Path) -> None:
    for number in range(1, 15_001):
        image = Segment(10, exec_number=number, created=1000 + number)
        (segments / image.name).write_bytes(image.data(0))
    summary, _ = decode(segments, root_pid=10)
    assert summary.failure == ""
    assert summary.processes_total == 15_000


def test_parents_in_a_circle_end(checked_decoder: Path, segments: Path) -> None:
    namespace = 4026531836
    for pid, parent in ((10, 11), (11, 12), (12, 10), (13, 13)):
        segment = Segment(pid, exec_number=0, created=1000)
        segment.hello(ppid=parent, parent=(namespace, 1000, parent, 0)).write(segments)
    for options in ((), ("--root-pid=10",), ("--root-pid=99",)):
        _assert_sane(_run(checked_decoder, segments, *options))


def test_a_hundred_thousand_forks_claimed_do_not_take_forever(segments: Path) -> None:
    segment = Segment(10).hello()
    for i in range(10_000):
        segment.add(sf.record(sf.FORK, sf.OP_FORK, at=2_000_000 + i, result=11, tid=10))
        segment.add(sf.record(sf.WAIT, 32, at=2_000_000 + i, result=11, tid=10))
    segment.write(segments, 2 << 20)
    summary, _ = decode(segments)
    assert summary.events_total == 20_000


def test_what_is_no_regular_file_is_left_alone(segments: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    Segment(66).hello().open(b"/secret").write(tmp_path).rename(secret)
    os.symlink(secret, segments / "66-1000-1-0-0")
    os.mkfifo(segments / "67-1000-1-0-0")
    (segments / "68-1000-1-0-0").mkdir()
    (segments / "69-1000-1-0-0").write_bytes(b"")
    (segments / ("7" * 200)).write_bytes(b"x")
    (segments / "70-1000-1-0-0").write_bytes(Segment(71).hello().data())  # another's identity
    Segment(72).hello().open(b"/good").write(segments)
    summary, events = decode(segments)
    assert [e["path"] for e in events if "path" in e] == ["/good"]
    # An empty one is of a program that found no room, if there is such a program.
    assert summary.foreign_files + summary.unreadable_files == 5


def test_segments_cut_while_they_are_read(segments: Path) -> None:
    paths = []
    for pid in range(10, 14):
        segment = Segment(pid).hello()
        for _ in range(5000):
            segment.open(b"/some/path/that/is/not/short")
        paths.append(segment.write(segments, 1 << 20))
    content = [path.read_bytes() for path in paths]
    stop = threading.Event()

    def scribble() -> None:
        chance = random.Random(1)
        while not stop.is_set():
            path = chance.choice(paths)
            os.truncate(path, chance.randrange(1 << 20))
            with path.open("r+b") as file:
                file.write(content[0][: chance.randrange(1 << 19)])

    scribbler = threading.Thread(target=scribble)
    scribbler.start()
    try:
        for _ in range(10):
            summary, _ = decode(segments)
            assert summary.failure == ""
    finally:
        stop.set()
        scribbler.join()


def test_bytes_that_are_not_utf_8_come_through(segments: Path) -> None:
    odd = bytes(range(1, 256)).replace(b"/", b"")
    for pid, path in enumerate(
        (odd, b"\xed\xa0\x80", b"\xc0\xaf", b"\xf4\x90\x80\x80", b"\xff"), 10
    ):
        Segment(pid).hello(argv=b"\xfe\0ok\0", cwd=b"/\xfd").open(b"/" + path).write(segments)
    for pid, name in enumerate(("ü", "日本", "🎉", 'q"\\\n\t\x01\x7f'), 20):
        Segment(pid).hello().open(b"/" + name.encode()).write(segments)
    summary, _ = decode(segments)
    assert {r[1:] for r in summary.reads} >= {b"\xed\xa0\x80", b"\xc0\xaf", odd, "🎉".encode()}
    assert b'q"\\\n\t\x01\x7f' in {r[1:] for r in summary.reads}
    assert summary.processes[0].argv == (b"\xfe", b"ok")
    assert summary.processes[0].cwd == b"/\xfd"


def test_memory_is_limited(segments: Path) -> None:
    for pid in range(10, 60):
        segment = Segment(pid).hello()
        for i in range(400):
            segment.open(b"/%d-%d" % (pid, i) + b"x" * 2000)
        segment.write(segments, 1 << 20)
    code, _, _, complaints = _run(
        native_path("substrate-decode"), segments, "--memory-limit=20000000"
    )
    assert code == 1
    assert b"out of memory: raise --memory-limit" in complaints


@pytest.mark.needs_strace
def test_the_decoder_gives_up_its_rights_before_it_reads(segments: Path) -> None:
    Segment(10).hello().open(b"/x").write(segments)
    fd = os.open(segments, os.O_RDONLY)
    summary_fd = os.memfd_create("summary")
    try:
        done = subprocess.run(
            [
                "strace", "-f", native_path("substrate-decode"), f"--dirfd={fd}",
                f"--summary-fd={summary_fd}", "--span=s",
            ],
            check=False, capture_output=True, text=True, pass_fds=(fd, summary_fd), timeout=60,
        )  # fmt: skip
    finally:
        os.close(fd)
        os.close(summary_fd)
    assert done.returncode == 0, done.stderr
    calls = done.stderr.splitlines()
    filtered = next(i for i, call in enumerate(calls) if "SECCOMP" in call)
    first_read = next(i for i, call in enumerate(calls) if "pread64" in call)
    assert filtered < first_read
    before = "\n".join(calls[:filtered])
    if os.geteuid() == 0:
        assert 'chroot(".")' in before
        assert "setresuid(65534" in before
    assert "PR_SET_NO_NEW_PRIVS" in before
    after = "\n".join(calls[filtered:])
    assert not [line for line in after.splitlines() if "mmap(" in line and "ANON" not in line]
