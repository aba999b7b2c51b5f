from __future__ import annotations

import json
from dataclasses import replace
from textwrap import dedent

import pytest

from substrate_services.replay.compare import Comparison
from substrate_services.replay.divergence import Dimension, Divergence, NotCompared
from substrate_services.replay.normalise import SetAside
from substrate_services.replay.report import (
    Missing,
    RunOutcome,
    Subject,
    make_report,
    run_outcome,
    to_json,
    to_lines,
    to_text,
)

SUBJECT = Subject(
    span_id="0123456789abcdef",
    action_digest="ab" * 32,
    command=b"python -m pytest -q",
    outcome="exited 0",
    duration_ms=1234.5,
    session_id="ses_x",
)
COMPARED: tuple[Dimension, ...] = ("exit", "changes", "stdout", "stderr")
PARTIAL = "coverage of the recording is partial: 1 static"
SKIPPED = (
    NotCompared("mtime", "modification times are compared only when asked for"),
    NotCompared("processes", PARTIAL),
    NotCompared("files_read", PARTIAL),
    NotCompared("duration", "never compared: it differs from run to run"),
)
LINE = Divergence(
    "stdout",
    "line_differs",
    "stdout, line 12",
    b"got \x1b[31m7\xff\tok\n",
    b"got 8\n",
    line=12,
    offset=345,
)


def comparison(*divergences: Divergence, omitted: int = 0) -> Comparison:
    return Comparison(
        divergences,
        (),
        COMPARED,
        SKIPPED,
        {"time": 4, "duration": 3},
        (SetAside("duration", b"0.12s", b"0.13s"),),
        omitted,
    )


def ran(found: Comparison | None, run: int = 1) -> RunOutcome:
    return run_outcome(
        run, found, span_id="fedcba9876543210", outcome="exited 0", duration_ms=987.0
    )


def text(expected: str) -> str:
    return dedent(expected).lstrip("\n")


def test_an_identical_replay_is_told_in_a_few_lines() -> None:
    assert to_text(make_report(SUBJECT, (ran(comparison()),))) == text(
        """
        identical  python -m pytest -q
          recorded  exited 0 in 1.23 s (span 0123456789abcdef)
          replayed  exited 0 in 987 ms (span fedcba9876543210)
          compared      exit, changes, stdout, stderr
          set aside     3 duration, 4 time (such as 0.12s / 0.13s)
          not compared  mtime: modification times are compared only when asked for
                        processes, files_read: coverage of the recording is partial: 1 static
                        duration: never compared: it differs from run to run
        """
    )


def test_a_diverged_replay_shows_the_first_divergence_and_then_the_others() -> None:
    others = (
        Divergence("stderr", "ends_early", "stderr, line 3", b"warning\n", None, "detail", line=3),
        *(
            Divergence("changes", "change_extra", f"/w/{n}", None, b"created", path=b"/w/%d" % n)
            for n in range(12)
        ),
    )
    report = make_report(SUBJECT, (ran(comparison(LINE, *others, omitted=5)),))
    assert report.verdict == "diverged"
    assert report.first == LINE
    shown = to_text(report, shown=3)
    assert shown.startswith(
        text(
            r"""
            diverged  python -m pytest -q
              recorded  exited 0 in 1.23 s (span 0123456789abcdef)
              replayed  exited 0 in 987 ms (span fedcba9876543210)
            first divergence: stdout, line 12: line differs
              - got \x1b[31m7\xff\tok
              + got 8
            also
              stderr, line 3: ends early: warning -> nothing
              changes: /w/0: change extra: nothing -> created
              and 16 more; all are in the JSON report
              compared      exit, changes, stdout, stderr
            """
        )
    )
    assert [line.text for line in to_lines(report) if line.role in ("expected", "actual")] == [
        r"  - got \x1b[31m7\xff\tok",
        "  + got 8",
    ]


def test_a_replay_that_could_not_run_says_what_is_missing() -> None:
    report = make_report(
        SUBJECT,
        (run_outcome(1, None, reason="1 file of the tree cannot be restored"),),
        (Missing(b"/work/README.md", "changed on the host since", "cd" * 32),),
    )
    assert report.verdict == "not_run"
    assert to_text(report) == text(
        """
        not_run  python -m pytest -q
          recorded  exited 0 in 1.23 s (span 0123456789abcdef)
          replayed  not run: 1 file of the tree cannot be restored
        missing
          /work/README.md: changed on the host since
        """
    )


def test_several_runs_are_all_listed_and_the_first_that_diverged_speaks() -> None:
    runs = (
        ran(comparison(), 1),
        ran(comparison(LINE), 2),
        run_outcome(3, None, reason="the disk is full"),
    )
    report = make_report(SUBJECT, runs)
    assert report.verdict == "diverged"
    assert report.first == LINE
    lines = to_text(report).splitlines()
    assert lines[2:5] == [
        "  run 1      exited 0 in 987 ms (span fedcba9876543210)  identical",
        "  run 2      exited 0 in 987 ms (span fedcba9876543210)  diverged",
        "  run 3      not run: the disk is full",
    ]


def test_a_run_of_which_nothing_could_be_compared_is_no_success() -> None:
    nothing = Comparison((), (), (), SKIPPED, {}, ())
    report = make_report(SUBJECT, (ran(nothing),))
    assert report.verdict == "not_run"
    assert "(nothing could be compared)" in to_text(report)


def test_a_report_needs_a_run() -> None:
    with pytest.raises(ValueError, match="at least one run"):
        make_report(SUBJECT, ())


def test_the_json_has_the_documented_names() -> None:
    report = make_report(SUBJECT, (ran(comparison(LINE)),), (Missing(b"/w/\xff", "gone"),))
    divergence = {
        "dimension": "stdout",
        "cause": "line_differs",
        "place": "stdout, line 12",
        "path": None,
        "line": 12,
        "offset": 345,
        "expected": {"b64": "Z290IBtbMzFtN/8Jb2sK"},
        "actual": "got 8\n",
        "detail": "",
    }
    assert json.loads(json.dumps(to_json(report))) == {
        "verdict": "diverged",
        "span_id": "0123456789abcdef",
        "session_id": "ses_x",
        "action_digest": "ab" * 32,
        "command": "python -m pytest -q",
        "outcome": "exited 0",
        "duration_ms": 1234.5,
        "first": divergence,
        "divergences": [divergence],
        "divergences_omitted": 0,
        "observations": [],
        "compared": list(COMPARED),
        "not_compared": [{"dimension": item.dimension, "reason": item.reason} for item in SKIPPED],
        "missing": [{"what": {"b64": "L3cv/w=="}, "reason": "gone", "digest": None}],
        "normalisation": {"duration": 3, "time": 4},
        "set_aside": [{"rule": "duration", "recorded": "0.12s", "replayed": "0.13s"}],
        "runs": [
            {
                "run": 1,
                "verdict": "diverged",
                "span_id": "fedcba9876543210",
                "outcome": "exited 0",
                "duration_ms": 987.0,
                "reason": "",
                "divergences": 1,
            }
        ],
    }
    assert to_json(make_report(SUBJECT, (ran(comparison()),)))["first"] is None


@pytest.mark.parametrize("hostile", ["\x1b]0;owned\x07", "\x9b31m", "\u202e", "a\rb", "a\nb"])
def test_outputs_cannot_act_on_the_terminal(hostile: str) -> None:
    found = Divergence("stdout", "line_differs", hostile, hostile.encode(), hostile.encode())
    subject = Subject("s", "d", hostile.encode(), "exited 0", 1.0)
    report = make_report(
        subject,
        (
            ran(replace(comparison(found, found), not_compared=(NotCompared("exit", hostile),))),
            run_outcome(2, None, reason=hostile),
        ),
        (Missing(hostile.encode(), hostile),),
    )
    for line in to_lines(report):
        assert line.text.isprintable(), line
