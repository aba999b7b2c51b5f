"""Recorded steps for tests of what serves them."""

from __future__ import annotations

from substrate_services.journal.schema import (
    Action,
    Blocked,
    Change,
    Command,
    Coverage,
    Decision,
    FileState,
    Process,
    SpanRecord,
)

WORLD = "wld_" + "a" * 26
SESSION = "ses_" + "b" * 26
TRACE = "1" * 32
DIGEST = "ab" * 32

DECISION = Decision(
    action="allow",
    rule_id="default",
    reason="no rule matched",
    mode="enforce",
    policy_hash="cd" * 32,
    source="builtin:1",
)

PROCESS = Process(
    span_id="0" * 15 + "1",
    parent_span_id="0" * 15 + "2",
    pid=3,
    ppid=1,
    exec_no=1,
    start_ns=1_000,
    end_ns=2_000,
    argv=(b"cat", b"\xff\n"),
    exe=b"/usr/bin/cat",
    cwd=b"/work/\xfe",
    exit_code=0,
    signal=None,
)

CHANGE = Change(
    path=b"/work/new\xff",
    kind="renamed",
    scope="project",
    before=FileState("file", 0o644, size=3, digest=DIGEST),
    after=FileState("symlink", 0o777, target=b"\xfe", mtime_ns=-1),
    renamed_from=b"/work/old",
)


def step(
    span_id: str,
    *,
    shell: bytes = b"cat '\xff'",
    session_id: str = SESSION,
    world_id: str = WORLD,
    kind: str = "exec",
    start_time: float = 1_700_000_000.25,
    exit_code: int | None = 0,
    decision: Decision = DECISION,
    coverage: Coverage | None = None,
    changes: tuple[Change, ...] = (CHANGE,),
    changes_truncated: int = 0,
    changes_digest: str | None = None,
    events_digest: str | None = None,
) -> SpanRecord:
    """A finished step with everything in it that a record can have."""
    return SpanRecord(
        span_id=span_id,
        trace_id=TRACE,
        session_id=session_id,
        world_id=world_id,
        exec_id=f"exe_{span_id}",
        kind=kind,
        agent_id="tester",
        parent_span=None,
        start_time=start_time,
        duration_ms=1500.5,
        action=Action(
            command=Command((b"bash", b"-c", shell), shell),
            cwd=b"/work/\xfe",
            env=((b"PATH", b"/bin"), (b"X", b"\xff")),
            umask=0o22,
            user="1000",
            stdin_digest=None,
            snapshot_id=DIGEST,
            timeout_s=None,
        ),
        decision=decision,
        termination_reason="EXITED",
        exit_code=exit_code,
        signal=None,
        stdout_digest=DIGEST,
        stderr_digest=None,
        output_digest=None,
        stdout_bytes=3,
        stderr_bytes=0,
        truncated=False,
        changes=changes,
        changes_truncated=changes_truncated,
        changes_digest=changes_digest,
        blocked=(Blocked("connect x:443", "network", "none", "add --net x"),),
        coverage=coverage or Coverage("full", processes=1, covered=1, events=7),
        processes=(PROCESS,),
        processes_truncated=2,
        events_digest=events_digest,
        event_counts=(("open", 7),),
        snapshot_after=None,
        inputs_digest=None,
    )
