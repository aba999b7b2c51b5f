"""Other programs' suites come out the same with the library as without (the quick part of them).

All of it: ``benchmarks/bench_suites.py``.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.native.suites import (
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

_QUICK_PYTHON = (
    "test_posix", "test_fork1", "test_glob", "test_tempfile", "test_wait4", "test_popen",
)  # fmt: skip
_QUICK_BASH = ("redir", "glob-test", "vredir", "exp-tests", "heredoc", "cond", "array", "func")


def _same(suite: Suite, at_least: int) -> None:
    comparison = compare(suite)
    assert comparison.different == {}
    assert comparison.same >= at_least, comparison.unstable
    assert comparison.segments > 0


@pytest.mark.slow
def test_pythons_own_tests_come_out_the_same() -> None:
    if not Path("/usr/lib/python3.11/test/libregrtest").exists():
        pytest.skip("no tests of python's: install libpython3.11-testsuite")
    _same(python_suite(_QUICK_PYTHON), 200)


@pytest.mark.slow
def test_bashs_own_tests_come_out_the_same() -> None:
    if not BASH_TESTS.exists():
        pytest.skip("no tests of bash's: run scripts/suite-sources")
    _same(bash_suite([name for name in _QUICK_BASH if (BASH_TESTS / f"run-{name}").exists()]), 5)


def test_programs_built_with_gcc_come_out_the_same() -> None:
    _same(compiled_suite(), 5)


def test_git_comes_out_the_same() -> None:
    _same(script_suite(["sh", "-c"], GIT_SCRIPTS), 1)


def test_node_comes_out_the_same() -> None:
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    _same(script_suite(["node", "-e"], NODE_SCRIPTS), 3)
