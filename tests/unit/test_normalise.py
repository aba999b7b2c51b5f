from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from substrate_services.replay.normalise import (
    MAX_LINE_BYTES,
    PairNormaliser,
    RunFacts,
    SetAside,
    find_temp_names,
)

T = 1732279380.5  # 2024-11-22 12:43:00.5 UTC
LATER = T + 86400 + 3600  # 2024-11-23 13:43:00.5 UTC

RECORDED = RunFacts(
    started_at=T,
    duration_s=2,
    pids=(4, 12, 13),
    temp_names=(b"tmp.aaaaaaaaaa", b"tmpk3x9_1qz"),
    host_name=b"host-one",
    world_root=b"/srv/worlds/one/root",
    world_id="wld_one",
    session_id="ses_one",
    exec_id="exe_one",
    span_ids=("0" * 31 + "1", "0" * 15 + "1"),
)
REPLAYED = RunFacts(
    started_at=LATER,
    duration_s=3,
    pids=(4, 22, 23),
    temp_names=(b"tmp.bbbbbbbbbb", b"tmp00000000"),
    host_name=b"host-two",
    world_root=b"/srv/worlds/two/root",
    world_id="wld_two",
    session_id="ses_two",
    exec_id="exe_two",
    span_ids=("0" * 31 + "2", "0" * 15 + "2"),
)


def same(recorded: bytes, replayed: bytes) -> tuple[bool, dict[str, int]]:
    pair = PairNormaliser(RECORDED, REPLAYED)
    return pair.same(recorded, replayed), pair.hits


@pytest.mark.parametrize(
    ("recorded", "replayed", "rule"),
    [
        (b"3 passed in 0.12s", b"3 passed in 0.09s", "duration"),
        (b"===== 3 passed in 9.99s =====", b"===== 3 passed in 10.01s ====", "duration"),
        (b"== 1 passed in 59.9s ==", b"== 1 passed in 61.00s (0:01:01) ==", "duration"),
        (
            b"\x1b[32m== \x1b[1m3 passed\x1b[0m\x1b[32m in 9.12s\x1b[0m\x1b[32m ==\x1b[0m\r",
            b"\x1b[32m= \x1b[1m3 passed\x1b[0m\x1b[32m in 19.12s\x1b[0m\x1b[32m =\x1b[0m\r",
            "duration",
        ),
        (b"Ran 12 tests in 0.018s", b"Ran 12 tests in 0.020s", "duration"),
        (b"real\t0m0.012s", b"real\t1m2.500s", "duration"),
        (b"real 0.01", b"real 0.02", "duration"),
        (b"took \x1b[32m0.12s\x1b[0m", b"took \x1b[32m0.13s\x1b[0m", "duration"),
        (b"added 5 packages in 2s", b"added 5 packages in 4s", "duration"),
        (b"query: 12ms", b"query: 9.5 ms", "duration"),
        ("step 3.1µs".encode(), b"step 900ns", "duration"),
        (b"at 2024-11-22T12:43:01Z", b"at 2024-11-23T13:43:01Z", "time"),
        (b"at 2024-11-22T13:43:01+01:00", b"at 2024-11-23T14:43:02+01:00", "time"),
        (b"2024-11-22 12:43:01,250 INFO up", b"2024-11-23 13:43:02,001 INFO up", "time"),
        (b"2024/11/22 20:43:01 up", b"2024/11/23 21:43:01 up", "time"),  # another zone
        (b"-rw-r--r-- 1 a a 5 Nov 22 12:43 x", b"-rw-r--r-- 1 a a 5 Nov 23 13:43 x", "time"),
        (b"on Fri Nov 22 12:43:01 UTC 2024", b"on Sat Nov 23 13:43:01 UTC 2024", "time"),
        (
            b"Date: Fri, 22 Nov 2024 12:43:01 +0000",
            b"Date: Sat, 23 Nov 2024 13:43:01 +0000",
            "time",
        ),
        (b"[22/Nov/2024:12:43:01 +0000] GET", b"[23/Nov/2024:13:43:01 +0000] GET", "time"),
        (b"log-20241122T124301Z.txt", b"log-20241123T134301Z.txt", "time"),
        (b"[12:43:01] up", b"[13:43:02] up", "time"),
        (b"built on 2024-11-22", b"built on 2024-11-23", "time"),
        (b"now=1732279381", b"now=1732369381", "time"),
        (b'{"time":1732279381250}', b'{"time":1732369381999}', "time"),
        (b"ts 1732279381.25 up", b"ts 1732369381.5 up", "time"),
        (
            b"id 7d9f2c1e-0000-4abc-8abc-000011112222",
            b"id 00000000-1111-4abc-9abc-000011112222",
            "uuid",
        ),
        (b"<X object at 0x7f1122334455>", b"<X object at 0x7f5544332211>", "address"),
        (b"<X object at 0x1b2c3d0>", b"<X object at 0x2b2c3d0>", "address"),
        (b"goroutine at 0xc000012345", b"goroutine at 0xc000099999", "address"),
        (b"started pid 12", b"started pid 22", "pid"),
        (b'{"pid": 12}', b'{"pid": 22}', "pid"),
        (b"cron[13]: done", b"cron[23]: done", "pid"),
        (b"read /proc/12/stat", b"read /proc/22/stat", "pid"),
        (b"wrote tmp.aaaaaaaaaa", b"wrote tmp.bbbbbbbbbb", "temp_name"),
        (b"/tmp/tmp.aaaaaaaaaa", b"/tmp/tmp.bbbbbbbbbb", "temp_name"),  # alone, but recorded
        (b"in /tmp/tmpabcdefg1/x", b"in /tmp/tmpabcdefg2/x", "temp_name"),
        (b"host-one", b"host-two", "host_name"),
        (b"cwd /srv/worlds/one/root/a", b"cwd /srv/worlds/two/root/a", "world_root"),
        (b"wld_one", b"wld_two", "world_id"),
        (b"S=ses_one", b"S=ses_two", "session_id"),
        (b"E=exe_one", b"E=exe_two", "exec_id"),
        (b"P=" + b"0" * 15 + b"1", b"P=" + b"0" * 15 + b"2", "span_id"),
    ],
)
def test_volatile_values_are_set_aside(recorded: bytes, replayed: bytes, rule: str) -> None:
    assert same(recorded, replayed) == (True, {rule: 1})


@pytest.mark.parametrize(
    ("recorded", "replayed"),
    [
        (b"0.7316452", b"0.2245091"),  # random.random()
        (b"n = 0.7316452", b"n = 0.2245091"),
        (b"31742", b"1882"),  # $RANDOM
        (b"id 3174218820", b"id 1732299999"),  # a number as long as a time, outside the runs
        (b"1732279381250123456", b"1732369381250123456"),  # date +%s%N, alone and beside text
        (b"ns 1732279381250123456", b"ns 1732369381250123456"),
        (b"us 1732279381250123", b"us 1732369381250123"),
        (b"pid 99", b"pid 98"),  # no process that was seen
        (b"pid 12", b"pid 23"),  # seen, but another process
        (b"12 passed", b"22 passed"),  # numbers that happen to be pids
        (b"line [12] x", b"line [22] x"),
        (b"4 passed", b"5 passed"),
        (b"Ran 12 tests in 0.018s", b"Ran 13 tests in 0.018s"),
        (b"3 passed in 0.12s", b"3 failed in 0.12s"),
        (b"timeout=500ms", b"timeout=600ms"),
        (b"timeout: 0.5s", b"timeout: 0.6s"),
        (b"timed out after 0.5s", b"timed out after 0.6s"),
        (b"retry in 5 seconds", b"retry in 6 seconds"),
        (b"sleep 30s", b"sleep 60s"),
        (b"keep for 30s", b"keep for 60s"),
        (b"version 1.2.3", b"version 1.2.4"),
        (b"v2.5s1", b"v2.6s1"),
        (b"ratio 16:10", b"ratio 16:9"),
        (b"released 2024-01-01T00:00:00Z", b"released 2025-01-01T00:00:00Z"),
        (b"released 2024-01-01", b"released 2025-01-01"),
        (b"at 2024-11-22T12:43:01Z", b"at 2025-06-01T12:43:01Z"),
        (b"at 2024-13-45T12:43:01Z", b"at 2024-13-45T12:43:02Z"),
        (b"Nov 22 12:43:01 OK", b"Nov 23 13:43:01 FAILED"),
        (b"Nov 22 12:43:01 TEST", b"Nov 23 13:43:01 FAST"),
        (b"epoch 1600000000", b"epoch 1600000001"),
        (b"crc 0xdeadbeef", b"crc 0xdeadbee0"),
        (b"hash 0x123456789abcdef0", b"hash 0x123456789abcdef1"),
        (b"mac aa:12:43:01", b"mac aa:12:43:02"),
        (
            b"name-based 7d9f2c1e-0000-5abc-8abc-000011112222",
            b"name-based 00000000-1111-5abc-9abc-000011112222",
        ),
        # Alone on its line a value is the answer, not decoration.
        (b"7d9f2c1e-0000-4abc-8abc-000011112222\n", b"00000000-1111-4abc-9abc-000011112222\n"),
        (b"1732279381\n", b"1732369381\n"),
        (b"Fri Nov 22 12:43:01 UTC 2024\n", b"Sat Nov 23 13:43:01 UTC 2024\n"),
        (b"0x7f1122334455\n", b"0x7f5544332211\n"),
        (b"0.12s\n", b"0.13s\n"),
        (b"\x1b[32m0.12s\x1b[0m\n", b"\x1b[32m0.13s\x1b[0m\n"),
        # A literal placeholder is no value.
        (b"at <time>", b"at 2024-11-23T13:43:01Z"),
        (b"\xff took 0.1s", b"\xfe took 0.1s"),
        (b"/tmp/data1", b"/tmp/data2"),
        (b"other host-three", b"other host-two"),
        (b"whost-one", b"whost-two"),
    ],
)
def test_real_differences_stay(recorded: bytes, replayed: bytes) -> None:
    assert same(recorded, replayed) == (False, {})


def test_without_the_runs_times_no_time_is_set_aside() -> None:
    pair = PairNormaliser(RunFacts(), RunFacts())
    assert not pair.same(b"at 2024-11-22T12:43:01Z", b"at 2024-11-22T12:43:02Z")
    assert not pair.same(b"now=1732279381", b"now=1732279382")


def test_a_replay_under_the_recordings_clock_shows_its_times() -> None:
    assert same(b"[12:43:01] up at 1732279381", b"[12:43:02] up at 1732279382")[0]


def test_values_that_differ_are_counted_and_the_first_of_each_rule_is_kept() -> None:
    pair = PairNormaliser(RECORDED, REPLAYED)
    assert pair.same(b"a 1ms b 5ms c 7ms", b"a 2ms b 5ms c 8ms")
    assert pair.same(b"d 1ms", b"d 1ms")
    assert pair.hits == {"duration": 2}
    assert pair.samples == [SetAside("duration", b"1ms", b"2ms")]


def test_a_line_that_differs_after_all_counts_nothing() -> None:
    assert same(b"x took 1ms", b"y took 2ms") == (False, {})


def test_uuids_must_correspond_one_to_one() -> None:
    one, two, three = (b"%d0000000-0000-4000-8000-000000000000" % number for number in (1, 2, 3))
    pair = PairNormaliser(RECORDED, REPLAYED)
    assert pair.same(b"begin " + one, b"begin " + two)
    assert pair.same(b"end " + one, b"end " + two)
    assert not pair.same(b"end " + one, b"end " + three)  # once the same, now another
    assert not pair.same(b"end " + three, b"end " + two)  # twice another, now the same


def test_facts_that_both_runs_share_hide_nothing() -> None:
    facts = RunFacts(host_name=b"same", pids=(12, 13), temp_names=(b"tmp.aaaaaaaaaa",))
    pair = PairNormaliser(facts, facts)
    assert not pair.same(b"pid 12", b"pid 13")
    assert not pair.same(b"on same", b"on else")


def test_paths_differ_only_in_recorded_names() -> None:
    pair = PairNormaliser(RECORDED, REPLAYED)
    assert pair.same_path(b"/tmp/tmp.aaaaaaaaaa/x", b"/tmp/tmp.bbbbbbbbbb/x")
    assert pair.hits == {"temp_name": 1}
    assert not pair.same_path(b"/tmp/tmp.aaaaaaaaaa/x", b"/tmp/tmp00000000/x")
    assert not pair.same_path(b"/tmp/tmp.cccccccccc", b"/tmp/tmp.dddddddddd")
    assert not pair.same_path(b"/a/2024-11-22", b"/a/2024-11-23")
    assert not pair.same_path(b"/tmp/tmp.aaaaaaaaaa", b"/tmp/<temp_name>")


def test_temp_names_are_found_by_their_form() -> None:
    paths = [
        b"/tmp/tmp.Ab3defghiJ/x",
        b"/tmp/tmpab_3efgh",
        b"/tmp/ccAb12Cd.s",
        b"/tmp/notes",
        b"/tmp/tmp.Ab3defghiJ",
        b"/work/tmpab_3efgh",
        b"/tmp/tmpab_3efghi",
    ]
    assert find_temp_names(paths) == (b"tmp.Ab3defghiJ", b"tmpab_3efgh", b"ccAb12Cd.s")


# --- hostile input -------------------------------------------------------------------------------

_fragments = st.sampled_from(
    [
        *(
            b"0",
            b"1",
            b"12",
            b"59",
            b":",
            b".",
            b"-",
            b"/",
            b" ",
            b"=",
            b"==",
            b"<",
            b">",
            b"s",
            b"m",
        ),
        *(
            b"ms",
            b"in ",
            b"took ",
            b"pid ",
            b"[12]:",
            b"/proc/12",
            b"\x1b[32m",
            b"\x1b[0m",
            b"\xff",
        ),
        *(b"2024-11-22", b"12:43:01", b"Nov 22 ", b"T", b"Z", b"1732279381", b"0x7f1122334455"),
        *(b"7d9f2c1e-0000-4abc-8abc-000011112222", b"<time>", b"<pid:1>", b"time", b"host-one"),
        *(
            b"/tmp/tmpabcdefgh",
            b"tmp.aaaaaaaaaa",
            b"wld_one",
            b"0000000000000001",
            b"timeout",
            b"\r",
        ),
        *(b" at ", b"UTC", b"2024", b"0.5s", b"1m 2s", b"real ", b"after ", b"_", b"h", b","),
    ]
)
_lines = st.one_of(st.lists(_fragments, max_size=14).map(b"".join), st.binary(max_size=80)).map(
    lambda line: line.replace(b"\n", b"")
)


@settings(max_examples=1500, deadline=None)
@given(_lines)
@example(b"timeout 5ms 6ms")
@example(b"==1 in 0.12s==")
def test_normalising_twice_changes_nothing_more(line: bytes) -> None:
    normaliser = PairNormaliser(RECORDED, REPLAYED).recorded
    once = normaliser.line(line).text
    assert normaliser.line(once).text == once


@settings(max_examples=300, deadline=None)
@given(_lines, _lines)
def test_lines_without_a_volatile_value_are_the_same_only_when_equal(a: bytes, b: bytes) -> None:
    pair = PairNormaliser(RECORDED, REPLAYED)
    if pair.same(a, b) and not pair.hits:
        assert a == b


@pytest.mark.parametrize(
    "unit",
    [
        b"1",
        b"1:",
        b"1.",
        b"12:34:56",
        b"pid",
        b"=1s",
        b"<",
        b"1m 1",
        b"Mon, ",
        b"\x1b[",
        b" 0.1s",
        b"/tmp/tmp",
        b"in 1",
        b"0x7f",
        b"timeout",
        b"a-",
        b"2024-11-22 ",
        b"Nov 1 ",
        b"\xff",
    ],
)
@pytest.mark.timeout(60)  # linear: a second; quadratic, in a line of a million bytes: hours
def test_hostile_lines_of_the_largest_size_are_done_in_linear_time(unit: bytes) -> None:
    normaliser = PairNormaliser(RECORDED, REPLAYED).recorded
    line = (unit * (MAX_LINE_BYTES // len(unit) + 1))[:MAX_LINE_BYTES]
    assert normaliser.line(line).text
    assert normaliser.line(line[:-2] + b" 1").text


def test_lines_above_the_limit_are_left_alone() -> None:
    line = b"took 0.1s " * (MAX_LINE_BYTES // 10 + 1)
    assert PairNormaliser(RECORDED, REPLAYED).recorded.line(line).text == line


# --- real test runners ---------------------------------------------------------------------------

_TESTS = """\
import time, unittest

class Case(unittest.TestCase):
    def test_quick(self):
        pass

    def test_slow(self):
        time.sleep(SECONDS)
"""


def _run(tmp_path: Path, argv: list[str], seconds: float) -> bytes:
    (tmp_path / "test_case.py").write_text(_TESTS.replace("SECONDS", str(seconds)))
    done = subprocess.run(
        [sys.executable, "-B", *argv],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=True,
    )
    return done.stdout


@pytest.mark.parametrize(
    "argv",
    [
        ["-m", "unittest", "-v", "test_case"],
        ["-m", "pytest", "-p", "no:cacheprovider"],
        ["-m", "pytest", "-q", "-p", "no:cacheprovider", "--color=yes"],
    ],
    ids=["unittest", "pytest", "pytest-colour"],
)
def test_runs_of_a_test_suite_differ_only_in_their_time(tmp_path: Path, argv: list[str]) -> None:
    recorded, replayed = _run(tmp_path, argv, 0.01), _run(tmp_path, argv, 0.2)
    assert recorded != replayed
    assert _hits(recorded, replayed).keys() == {"duration"}


def _hits(recorded: bytes, replayed: bytes) -> dict[str, int]:
    pair = PairNormaliser(RunFacts(), RunFacts())
    lines = zip(recorded.splitlines(), replayed.splitlines(), strict=True)
    assert [both for both in lines if not pair.same(*both)] == []
    return pair.hits


# Captured from `go test -v` and `cargo test`; the times stand where they vary.
_GO = b"""\
=== RUN   TestA
--- PASS: TestA (%.2fs)
=== RUN   TestB
=== RUN   TestB/sub
--- PASS: TestB (%.2fs)
    --- PASS: TestB/sub (%.2fs)
PASS
ok  \texample.com/x\t%.3fs
"""
_CARGO = b"""\
   Compiling c v0.1.0 (/tmp/gocap/c)
    Finished `test` profile [unoptimized + debuginfo] target(s) in %.2fs
     Running unittests src/lib.rs (target/debug/deps/c-d4fd4905425e6bfe)

running 1 test
test t ... ok

test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in %.2fs
"""


def test_outputs_of_go_and_cargo_differ_only_in_their_times() -> None:
    assert _hits(_GO % (0.01, 0, 0, 0.015), _GO % (0.02, 0.01, 0.01, 1.5)) == {"duration": 4}
    assert _hits(_CARGO % (0.96, 0), _CARGO % (10.13, 0.01)) == {"duration": 2}
