"""What people read: summaries, trees, tables, exit codes."""

from __future__ import annotations

import signal
from dataclasses import replace

import pytest

from substrate_sdk import (
    Blocked,
    Change,
    Coverage,
    Decision,
    FileState,
    Limits,
    Process,
    Report,
    Result,
    WorldInfo,
)
from substrate_sdk._pb.substrate.replay.v1alpha1 import replay_pb2
from substrate_sdk.cli import diff, replay
from substrate_sdk.cli.exit_codes import exit_code, signal_number
from substrate_sdk.cli.summary import summary
from substrate_sdk.cli.text import (
    Style,
    change_line,
    command_text,
    duration,
    plural,
    printable,
    table,
)
from substrate_sdk.cli.tree import Counts, counts_by_process, tree_lines

PLAIN = Style(enabled=False)

WORLD = WorldInfo(
    world_id="wld_x", session_id="ses_x", state="ready", profile="workspace", project=b"/p",
    cwd=b"/p", network=(), limits=Limits(), created_at=None, expires_at=None, idle_s=None,
    keep=False, steps=1, running=0, generation=0, labels={}, snapshot_id=None, moved_base=(),
)  # fmt: skip

RESULT = Result(
    exit_code=0, signal=None, termination_reason="EXITED", stdout_bytes=b"", stderr_bytes=b"",
    changes=(), changes_total=0, blocked=(), coverage=Coverage("full", processes=2, covered=2),
    decision=Decision("allow", "default", "", "enforce"), span_id="00112233445566aa", trace_id="",
    session_id="ses_x", world_id="wld_x", exec_id="exe_x", duration_ms=1240.0,
)  # fmt: skip

FILE = FileState("file", 0o644, 3, "ab" * 32)


def test_a_summary_of_little() -> None:
    assert summary(RESULT, WORLD, PLAIN) == (
        "── substrate  exit 0 in 1.24 s\n"
        "changes   none\n"
        "network   none\n"
        "decision  allow (no rule against it)\n"
        "coverage  full, 2 processes\n"
        "span      00112233445566aa   replay: substrate replay 00112233445566aa\n"
    )


def test_a_summary_of_much() -> None:
    result = replace(
        RESULT,
        exit_code=None,
        termination_reason="TIMEOUT",
        changes=(
            Change(b"/p/made.txt", "created", "project", None, FILE),
            Change(b"/p/README.md", "deleted", "project", FILE, None),
            Change(b"/p/d", "created", "project", None, FileState("dir", 0o755)),
            *(
                Change(b"/root/.cache/%d" % number, "created", "outside", None, FILE)
                for number in range(5)
            ),
        ),
        changes_total=11,
        blocked=(Blocked("read /root/.ssh/id_rsa", "profile", "home", "copy it to the project"),),
        coverage=Coverage("partial", ("1 static program",), 3, 2),
        decision=Decision("deny", "no-rm", "Do not.", "observe", "pol.yaml:3", enforced=False),
        hosts=tuple(f"h{number}" for number in range(7)),
        truncated=True,
    )
    world = replace(WORLD, keep=True, network=("@python",))
    assert summary(result, world, PLAIN) == (
        "── substrate  timed out in 1.24 s\n"
        "changes   2 created, 1 deleted in the project\n"
        "            + made.txt\n"
        "            - README.md\n"
        "            + d/\n"
        "          5 created outside of it\n"
        "            + /root/.cache/0\n"
        "            + /root/.cache/1\n"
        "            + /root/.cache/2\n"
        "            … 2 more\n"
        "          and 3 more (substrate diff 00112233445566aa)\n"
        "network   @python; tried h0, h1, h2, h3, h4 and 2 more\n"
        "decision  deny (rule no-rm, pol.yaml:3), recorded only: the policy observes: Do not.\n"
        "coverage  partial, 3 processes: 1 static program\n"
        "blocked   read /root/.ssh/id_rsa (profile: home)\n"
        "          copy it to the project\n"
        "output    cut at the world's limit\n"
        "span      00112233445566aa   replay: substrate replay 00112233445566aa\n"
        "world     wld_x   again: substrate run --in wld_x -- …\n"
    )


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ({}, 0),
        ({"exit_code": 3}, 3),
        ({"exit_code": 127}, 127),
        ({"exit_code": 126, "termination_reason": "DENIED"}, 126),
        ({"exit_code": None, "termination_reason": "DENIED"}, 126),
        ({"exit_code": None, "termination_reason": "TIMEOUT", "signal": "SIGKILL"}, 124),
        ({"exit_code": None, "termination_reason": "SIGNALED", "signal": "SIGSEGV"}, 139),
        ({"exit_code": None, "termination_reason": "SIGNALED", "signal": "SIG40"}, 168),
        ({"exit_code": None, "termination_reason": "OOM", "signal": "SIGKILL"}, 137),
        ({"exit_code": None, "termination_reason": "LIMIT"}, 137),
        ({"exit_code": None, "termination_reason": "KILLED_BY_USER", "signal": "SIGINT"}, 130),
        ({"exit_code": 0, "termination_reason": "KILLED_BY_USER"}, 0),
        ({"exit_code": None, "termination_reason": "AGENT_LOST"}, 125),
        ({"exit_code": None, "termination_reason": "WORLD_REMOVED"}, 125),
    ],
)
def test_exit_codes(changed: dict[str, object], code: int) -> None:
    assert exit_code(replace(RESULT, **changed)) == code  # type: ignore[arg-type] # as above


def test_signals_have_numbers() -> None:
    assert signal_number("SIGTERM") == signal.SIGTERM
    assert signal_number("nonsense") == signal.SIGKILL


@pytest.mark.parametrize(
    ("verdict", "code"),
    [
        ("IDENTICAL", 0), ("DIVERGED", 1), ("FLAKE", 1), ("REGRESSION", 1),
        ("ENVIRONMENT_DRIFT", 1), ("ENVIRONMENT_DEPENDENT", 1), ("NOT_RUN", 2), ("UNSPECIFIED", 2),
    ],
)  # fmt: skip
def test_exit_codes_of_a_replay(verdict: str, code: int) -> None:
    proto = replay_pb2.Report(verdict=replay_pb2.Verdict.Value(f"VERDICT_{verdict}"))
    assert replay.exit_code(Report.from_proto(proto)) == code


def test_a_report_without_words_of_the_host_is_told_all_the_same() -> None:
    report = Report.from_proto(
        replay_pb2.Report(
            verdict=replay_pb2.VERDICT_DIVERGED,
            span_id="00112233445566aa",
            divergences=[
                replay_pb2.Divergence(dimension="changes", path=b"/p/x", detail="content differs"),
                replay_pb2.Divergence(dimension="stdout", place="line 2", cause="clock"),
            ],
            compared=["exit"],
            not_compared=[replay_pb2.NotCompared(dimension="mtime", reason="not asked for")],
            missing=[replay_pb2.Missing(path=b"/p/y", reason="it changed")],
            runs=[replay_pb2.Run(number=1)],
        )
    )
    assert replay.report_text(report, PLAIN) == (
        "diverged: replay of 00112233445566aa, 1 run\n"
        "  changes /p/x: content differs\n"
        "  stdout at line 2: clock\n"
        "  missing /p/y: it changed\n"
        "  compared: exit\n"
        "  not compared: mtime (not asked for)"
    )


def process(span: str, parent: str, pid: int, name: str, **more: object) -> Process:
    facts: dict[str, object] = {
        "span_id": span, "parent_span_id": parent, "pid": pid, "ppid": 0, "exec_number": 1,
        "argv": (name.encode(),), "exe": b"", "cwd": b"/", "duration_ms": 5.0, "exit_code": 0,
        "signal": None, "coverage": "full", "coverage_reason": "", "events": 0, **more,
    }  # fmt: skip
    return Process(**facts)  # type: ignore[arg-type] # as above


def test_processes_hang_below_their_parents() -> None:
    processes = [
        process("a", "root", 2, "sh"),
        process("b", "a", 3, "make"),
        process("c", "b", 4, "cc", exit_code=1),
        process("d", "a", 5, "rm", exit_code=None, signal=9, duration_ms=None),
        process("e", "gone", 6, "static", coverage="none", coverage_reason="no loader"),
    ]
    counts = {"b": Counts({"x", "y"}, connects=1)}
    assert list(tree_lines("root", processes, counts, PLAIN)) == [
        "sh  [2] 5 ms, exit 0",
        " ├─ make  [3] 5 ms, exit 0, 2 files, 1 connect",
        " │  └─ cc  [4] 5 ms, exit 1",
        " └─ rm  [5] signal 9",
        "static  [6] 5 ms, exit 0, coverage none: no loader",
    ]


def test_a_deep_chain_and_a_cycle_of_processes_come_to_an_end() -> None:
    chain = [process(str(n), str(n - 1) if n else "root", n, "x") for n in range(3000)]
    assert len(list(tree_lines("root", chain, {}, PLAIN))) == 3000
    cycle = [process("a", "b", 1, "x"), process("b", "a", 2, "y")]
    assert list(tree_lines("root", cycle, {}, PLAIN)) == []


def test_files_and_connections_are_counted_once_each() -> None:
    counts = counts_by_process(
        [
            {"process_span": "a", "syscall": "openat", "path": "/x"},
            {"process_span": "a", "syscall": "openat", "path": "/x"},
            {"process_span": "a", "syscall": "unlink", "path": {"b64": "/w=="}},
            {"process_span": "a", "syscall": "connect", "path": None},
            {"event_type": "policy_decision"},
        ]
    )
    assert len(counts["a"].files) == 2
    assert counts["a"].connects == 1


@pytest.mark.parametrize(
    ("milliseconds", "text"),
    [
        (None, "?"), (0.25, "0.25 ms"), (12.4, "12 ms"), (1500, "1.50 s"), (61_000, "1 min 1 s"),
        (3_700_000, "1 h 1 min"),
    ],
)  # fmt: skip
def test_durations(milliseconds: float | None, text: str) -> None:
    assert duration(milliseconds) == text


def test_words() -> None:
    assert plural(1, "process") == "1 process"
    assert plural(2, "process") == "2 processes"
    assert plural(0, "change") == "0 changes"
    assert command_text((b"a b", b"it's", b"x"), None) == "'a b' 'it'\"'\"'s' x"
    assert command_text((), b"a && b") == "a && b"
    assert command_text((b"x" * 50,), None, 10) == "x" * 9 + "…"


def test_what_a_program_wrote_cannot_steer_the_terminal() -> None:
    assert "\x1b" not in printable(b"a\x1b[2Jb\r\n")
    assert printable(b"\xff") == "\\xff"
    change = Change(b"/p/\x1b]0;x\x07", "created", "project", None, FILE)
    assert "\x1b" not in change_line(change, b"/p", PLAIN)


def test_colours_only_where_they_are_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Style(enabled=True).paint("x", "bold", "red") == "\x1b[1;31mx\x1b[0m"
    assert PLAIN.paint("x", "red") == "x"

    class Terminal:
        def isatty(self) -> bool:
            return True

    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert Style(Terminal()).enabled  # type: ignore[arg-type] # all that it asks
    monkeypatch.setenv("NO_COLOR", "1")
    assert not Style(Terminal()).enabled  # type: ignore[arg-type] # all that it asks


def test_changes_in_one_line() -> None:
    renamed = Change(b"/p/b", "renamed", "project", FILE, FILE, b"/p/a")
    assert change_line(renamed, b"/p", PLAIN) == "> a → b"
    mode = Change(b"/p/a", "metadata", "project", FILE, replace(FILE, mode=0o755))
    assert change_line(mode, b"/p/", PLAIN) == "m a (0644 → 0755)"
    assert change_line(mode, None, PLAIN) == "m /p/a (0644 → 0755)"


def test_columns() -> None:
    assert table([["A", "LONG"], ["aaa", "b"]], PLAIN) == "A    LONG\naaa  b"


def test_a_patch_is_coloured_line_by_line() -> None:
    patch = b"diff --git a/x b/x\n@@ -1 +1 @@\n-a\n+b\r\n c\n"
    assert diff._coloured(patch) == (
        b"\x1b[1mdiff --git a/x b/x\x1b[0m\n\x1b[36m@@ -1 +1 @@\x1b[0m\n"
        b"\x1b[31m-a\x1b[0m\n\x1b[32m+b\r\x1b[0m\n c\n"
    )
