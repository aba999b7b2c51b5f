"""Sums are what was done: by many threads, through long chains, in children, in signal handlers."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.native.raw_segments import Record, add_up, bytes_by_path, read_records
from tests.native.recording import ROOT, Recorder, compile_c


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled native/tests/sums.c."""
    source = ROOT / "native" / "tests" / "sums.c"
    return compile_c(source, tmp_path_factory.mktemp("sums") / "sums", "-lpthread")


def _run(program: Path, way: str, directory: Path) -> tuple[list[list[str]], list[Record]]:
    recorder = Recorder(directory / "seg")
    work = directory / "work"
    work.mkdir()
    done = subprocess.run(
        [program, way],
        check=False,
        capture_output=True,
        env=recorder.environment(),
        cwd=work,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    lines = [line.split("\t") for line in done.stdout.decode().splitlines()]
    return lines, read_records(recorder.segments)


@pytest.mark.parametrize("way", ["threads", "chain", "children", "handlers"])
def test_sums_are_what_was_done(program: Path, way: str, tmp_path: Path) -> None:
    lines, records = _run(program, way, tmp_path)
    looks = {line[1]: (int(line[2]), int(line[3])) for line in lines if line[0] == "stat"}
    moved = {line[1]: tuple(int(n) for n in line[2:]) for line in lines if line[0] == "moved"}
    assert looks
    assert moved
    sums = add_up(records)
    found = bytes_by_path(records)
    if way == "handlers":  # what a handler did while a segment was replaced is lost, and counted
        for path, (calls, _) in looks.items():
            assert calls - 200 <= sums.stats[path][0] <= calls
            assert moved[path][0] - 200 <= found[path][0] <= moved[path][0]
        return
    assert {path: sums.stats[path] for path in looks} == looks
    assert {path: found[path] for path in moved} == moved
    assert set(found) <= set(moved)


def test_a_long_chain_keeps_one_sum_in_each_segment(program: Path, tmp_path: Path) -> None:
    _, records = _run(program, "chain", tmp_path)
    segments = len(list((tmp_path / "seg").iterdir()))
    assert segments > 2
    for kind in ("stat", "transfer"):
        assert sum(r.type == kind for r in records) <= segments


def test_a_number_that_is_used_again_begins_another_sum(program: Path, tmp_path: Path) -> None:
    lines, records = _run(program, "again", tmp_path)
    moved = {line[1]: tuple(int(n) for n in line[2:]) for line in lines if line[0] == "moved"}
    assert bytes_by_path(records) == moved
    # "here" before and after each chdir is another file.
    here = [r for r in records if r.type == "stat" and r.path == "here"]
    assert len(here) == 6


def test_cancellation_passes_through_a_hook(program: Path, tmp_path: Path) -> None:
    _, records = _run(program, "cancelled", tmp_path)
    assert sum(r.type == "thread" for r in records) == 50


def test_first_looks_at_many_files_take_little_room(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "seg")
    looks = """
import os
for number in range(3000):
    try:
        os.stat(f"/tmp/{number}")
    except FileNotFoundError:
        pass
    os.path.exists(f"./{number}")
"""
    done = recorder.run([sys.executable, "-S", "-c", looks], cwd=tmp_path)
    assert done.returncode == 0
    stats = add_up(read_records(recorder.segments)).stats
    assert [stats[f"/tmp/{number}"] for number in range(3000)] == [(1, 1)] * 3000
    assert [stats[f"./{number}"] for number in range(3000)] == [(1, 1)] * 3000
    data = b"".join(path.read_bytes() for path in recorder.segments.iterdir())
    short = re.findall(rb"(?=\x18\0.\0.{16}(?:/tmp/|\./)[0-9])", data, re.DOTALL)
    assert len(short) >= 5990
