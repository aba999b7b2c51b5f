"""A short run of benchmarks/soak_telemetry.py: nothing is lost that is not told."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.native.recording import ROOT


def _soak(*options: str) -> str:
    script = ROOT / "benchmarks" / "soak_telemetry.py"
    done = subprocess.run(
        [sys.executable, str(script), *options],
        check=False,
        capture_output=True,
        text=True,
        timeout=110,
        env={**os.environ, "PYTHONPATH": ""},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_what_was_published_before_sigkill_is_read_once() -> None:
    assert "| 100 kills |" in _soak("--points", "100", "--burst", "0")


@pytest.mark.slow
@pytest.mark.root
def test_a_burst_into_a_full_file_system_is_counted() -> None:
    assert _soak("--points", "0", "--burst", "1200000").count("coverage partial") == 2
