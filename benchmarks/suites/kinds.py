"""The suites: which tests there are, how one is run, and what came of it.

What comes of a test is told by *cases*: its exit status, each of its subtests, its output. Where a
suite says itself what each subtest came to (git's, CPython's, coreutils'), that is compared; the
output of the others is, without what changes from run to run (see `normalised`).
"""

from __future__ import annotations

import re
import shutil
import subprocess
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.suites.isolation import Ran, run
from tests.native.suites import normalised

ROOT = Path(__file__).resolve().parents[2]
LAID_OUT = ROOT / "build" / "suites"
PYTHON = "/usr/bin/python3"

TIMED_OUT = "timed out"
#: case -> what it came to
Cases = dict[str, str]


@dataclass(frozen=True, slots=True)
class Suite:
    """One suite: its tests, and how some of them are run at once."""

    name: str
    what: str  # the program under test, and whose tests
    tests: tuple[str, ...]
    outcomes: Callable[[Sequence[str], bool], tuple[dict[str, Cases], int]]
    batch: int = 1  # tests that one start of the suite runs


def _status(ran: Ran) -> str:
    return TIMED_OUT if ran.status is None else str(ran.status)


def bash() -> Suite:
    """Bash's own tests, each by the difference between what it printed and what it should."""
    tree = LAID_OUT / "bash"
    names = sorted(path.name[4:] for path in (tree / "tests").glob("run-*"))

    def outcomes(tests: Sequence[str], recorded: bool) -> tuple[dict[str, Cases], int]:
        (name,) = tests
        script = (
            "cd tests; PATH=$PWD:$PATH BUILD_DIR=$PWD/.. THIS_SH=/bin/bash BASH_TSTOUT=/tmp/out "
            f"sh run-{name}; status=$?; cat /tmp/out 2>/dev/null; exit $status"
        )
        ran = run(["sh", "-c", script], recorded=recorded, tree=tree, timeout_s=120)
        printed = normalised(ran.stdout + ran.stderr)
        lines = "\n".join(sorted(printed.splitlines()))
        return {name: {"exit": _status(ran), "output": lines}}, ran.segments

    return Suite(
        "bash",
        "the installed bash; Debian's source of it",
        tuple(name for name in names if name not in ("all", "minimal", "gprof")),
        outcomes,
    )


_TAP = re.compile(r"^(ok|not ok) (\d+) ?-? ?(.*)$", re.MULTILINE)


def git() -> Suite:
    """Git's t/, with the installed git; each subtest by its verdict."""
    tree = LAID_OUT / "git"
    names = sorted(path.stem for path in (tree / "t").glob("t[0-9]*.sh"))

    def outcomes(tests: Sequence[str], recorded: bool) -> tuple[dict[str, Cases], int]:
        (name,) = tests
        ran = run(
            ["sh", "-c", f"cd t && exec ./{name}.sh --root=/tmp/trash"],
            recorded=recorded,
            tree=tree,
            timeout_s=600,
            env={"GIT_TEST_INSTALLED": "/usr/bin", "GIT_CONFIG_NOSYSTEM": "1"},
        )
        text = ran.stdout.decode(errors="replace")
        cases = {f"{number} {what}": verdict for verdict, number, what in _TAP.findall(text)}
        return {name: {"exit": _status(ran), **cases}}, ran.segments

    return Suite("git", "the installed git; Debian's source of it", tuple(names), outcomes)


def python() -> Suite:
    """CPython's regression tests without the network and the screen, each case by its verdict."""
    listed = subprocess.run(
        [PYTHON, "-m", "test", "--list-tests"], check=True, capture_output=True, text=True
    )

    def outcomes(tests: Sequence[str], recorded: bool) -> tuple[dict[str, Cases], int]:
        (name,) = tests
        script = (
            f"mkdir /tmp/w && cd /tmp/w && {PYTHON} -m test --junit-xml /tmp/report "
            f"--tempdir /tmp/w {name} >&2; status=$?; cat /tmp/report; exit $status"
        )
        ran = run(
            ["sh", "-c", script],
            recorded=recorded,
            tree=None,
            timeout_s=900,
            env={"PYTHONDONTWRITEBYTECODE": "1"},
        )
        cases: Cases = {}
        if ran.stdout:
            for case in ET.fromstring(ran.stdout).iter("testcase"):
                verdict = next((c.tag for c in case if not c.tag.startswith("system")), "passed")
                cases[case.get("name", "")] = verdict
        return {name: {"exit": _status(ran), **cases}}, ran.segments

    return Suite(
        "python", "the installed python3; Debian's libpython3-testsuite",
        tuple(listed.stdout.split()), outcomes,
    )  # fmt: skip


_DURATION = re.compile(r"duration_ms\S* \S+|\b[\d.]+ms\b")


# It says which files strace may see opened; strace sees those of a preloaded library as well.
_NODE_LEFT_OUT = {"test-strace-openat-openssl.js"}


def node() -> Suite:
    """Node's test/parallel, each test by exit status and the lines of its output.

    In no order: connections, workers and processes that run at once write as they come.
    """
    tree = LAID_OUT / "node"
    found = (tree / "test" / "parallel").glob("test-*.*js")
    names = sorted({path.name for path in found} - _NODE_LEFT_OUT)

    def outcomes(tests: Sequence[str], recorded: bool) -> tuple[dict[str, Cases], int]:
        (name,) = tests
        path = f"test/parallel/{name}"
        flags = re.search(r"^// Flags:(.*)$", (tree / path).read_text(), re.MULTILINE)
        ran = run(
            ["node", *(flags.group(1).split() if flags else ()), path],
            recorded=recorded,
            tree=tree,
            timeout_s=120,
            env={"NODE_TEST_DIR": "/tmp"},
        )
        printed = _DURATION.sub("", normalised(ran.stdout) + normalised(ran.stderr))
        lines = "\n".join(sorted(printed.splitlines()))
        return {name: {"exit": _status(ran), "output": lines}}, ran.segments

    return Suite(
        "node", "the installed node; test/parallel of Debian's source of its major version",
        tuple(names), outcomes,
    )  # fmt: skip


def _make_check(
    tree: Path, directory: str
) -> Callable[[Sequence[str], bool], tuple[dict[str, Cases], int]]:
    """Automake's parallel tests, each by the result that it noted down."""

    def outcomes(tests: Sequence[str], recorded: bool) -> tuple[dict[str, Cases], int]:
        # Whether a test's extension belongs to the name of its log is each Makefile's to say.
        script = (
            f"cd {directory}; make -s check SUBDIRS=. TESTS='{' '.join(tests)}' >&2; "
            f"for t in {' '.join(tests)}; do "
            "echo result $(cat $t.trs ${t%.*}.trs 2>/dev/null | grep ^:global-test-result:); done"
        )
        ran = run(["sh", "-c", script], recorded=recorded, tree=tree, timeout_s=600)
        results = [line.rpartition(" ")[2] for line in ran.stdout.decode().splitlines()]
        results += ["absent"] * (len(tests) - len(results))
        return {
            name: {"result": result} for name, result in zip(tests, results, strict=True)
        }, ran.segments

    return outcomes


def _tests_of(tree: Path, directory: str, variable: str) -> tuple[str, ...]:
    """What an automake variable lists."""
    done = subprocess.run(
        ["make", "-s", "-f", "-", "-C", tree / directory, "print-it"],
        input=f"include Makefile\nprint-it:\n\t@echo $({variable})\n",
        check=True,
        capture_output=True,
        text=True,
    )
    return tuple(done.stdout.split())


def coreutils() -> Suite:
    """The tests of coreutils, built with gcc."""
    tree = LAID_OUT / "coreutils"
    tests = _tests_of(tree, ".", "TESTS")
    return Suite(
        "gcc: coreutils", "coreutils of Debian's source, built with gcc", tests,
        _make_check(tree, "."), batch=10,
    )  # fmt: skip


def gnulib() -> Suite:
    """Gnulib's tests of libc's functions, as coreutils has them, built with gcc."""
    tree = LAID_OUT / "coreutils"
    tests = _tests_of(tree, "gnulib-tests", "TESTS")
    return Suite(
        "gcc: gnulib", "gnulib's tests of libc's functions, built with gcc", tests,
        _make_check(tree, "gnulib-tests"), batch=10,
    )  # fmt: skip


#: By the name that SUITES takes: what is laid out for it, and how it is made.
SUITES: dict[str, tuple[str, Callable[[], Suite]]] = {
    "bash": ("bash", bash),
    "gnulib": ("coreutils", gnulib),
    "coreutils": ("coreutils", coreutils),
    "python": ("", python),
    "node": ("node", node),
    "git": ("git", git),
}


def why_not(name: str) -> str:
    """Why a suite cannot be run here; empty when it can."""
    laid_out = SUITES[name][0]
    if laid_out and not (LAID_OUT / laid_out / "complete").exists():
        return f"not laid out: scripts/suite-sources {laid_out}"
    if name == "python" and not Path("/usr/lib/python3.11/test/libregrtest").exists():
        return "install libpython3.11-testsuite"
    if name in ("node", "git") and shutil.which(name) is None:
        return f"{name} is not installed"
    return ""
