"""A short run of the decoder's fuzzer; ``make fuzz`` runs it for longer."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.native.recording import ROOT

_SECONDS = 8


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_no_bytes_break_the_decoder(tmp_path: Path) -> None:
    if shutil.which("clang") is None:
        pytest.skip("no clang: the fuzzer cannot be built")
    done = subprocess.run(
        [ROOT / "native" / "fuzz" / "run"],
        check=False,
        capture_output=True,
        text=True,
        errors="replace",
        env={**os.environ, "FUZZ_SECONDS": str(_SECONDS), "FUZZ_OUT": str(tmp_path)},
    )
    if "clang_rt.fuzzer" in done.stderr:
        pytest.skip("clang has no libFuzzer: install libclang-rt-14-dev")
    assert done.returncode == 0, done.stderr[-4000:]
    runs = re.search(r"number_of_executed_units: (\d+)", done.stderr)
    assert runs is not None
    assert int(runs[1]) > 1000
    assert list((tmp_path / "failures").iterdir()) == []
