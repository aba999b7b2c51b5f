"""Suites of bash, python, git, node and compiled programs, with and without the preload library.

Run ``python benchmarks/bench_suites.py`` (part of ``make soak``). Prints, for each suite, how many
outcomes are the same, which are not, and which already differ between two runs without the library.
Exits with 1 when the library made a difference.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "services")]

from tests.native.suites import (  # noqa: E402
    BASH_TESTS,
    GIT_SCRIPTS,
    NODE_SCRIPTS,
    Suite,
    bash_suite,
    compare,
    compiled_suite,
    python_suite,
    script_suite,
)

_PYTHON_TESTS = (
    "test_os", "test_subprocess", "test_posix", "test_socket", "test_threading", "test_fork1",
    "test_tempfile", "test_shutil", "test_glob", "test_pathlib", "test_select", "test_mmap",
    "test_signal", "test_wait3", "test_wait4", "test_popen", "test_io", "test_pty", "test_fcntl",
)  # fmt: skip
_SHOWN_CHARS = 600


def main() -> int:
    """Run what this machine has; returns the exit code."""
    suites: dict[str, Suite] = {
        "gcc": compiled_suite(),
        "git": script_suite(["sh", "-c"], GIT_SCRIPTS),
    }
    if shutil.which("node") is not None:
        suites["node"] = script_suite(["node", "-e"], NODE_SCRIPTS)
    subprocess.run([ROOT / "scripts" / "suite-sources"], check=False)
    if BASH_TESTS.exists():
        suites["bash"] = bash_suite()
    if Path("/usr/lib/python3.11/test/libregrtest").exists():
        suites["python"] = python_suite(_PYTHON_TESTS)
    good = True
    for name, suite in suites.items():
        comparison = compare(suite)
        good = good and not comparison.different and comparison.segments > 0
        print(
            f"{name:8} {comparison.same:5} the same, {len(comparison.different)} different, "
            f"{len(comparison.unstable)} unstable without it too: "
            f"{' '.join(comparison.unstable) or '-'}",
            flush=True,
        )
        for test, (plain, recorded) in comparison.different.items():
            print(f"  {test}\n    without: {plain[:_SHOWN_CHARS]}")
            print(f"    with: {recorded[:_SHOWN_CHARS]}")
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main())
