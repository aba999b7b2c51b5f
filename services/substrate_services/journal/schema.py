"""The facts a host records, as the journal and the domain code see them.

These are the ground floor's words (DESIGN §1): every service speaks in them, none of them knows
protobuf. How each becomes a JSON line is in :mod:`substrate_services.journal.codec`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

FileKind = Literal["file", "dir", "symlink", "fifo", "socket", "char", "block"]
ChangeKind = Literal["created", "modified", "deleted", "renamed", "metadata"]
ChangeScope = Literal["project", "outside"]
DecisionAction = Literal["allow", "ask", "deny"]
PolicyMode = Literal["disabled", "observe", "enforce"]
CoverageState = Literal["full", "partial", "none"]
#: Where the kernel's own account of processes comes from.
LedgerSource = Literal["bpf", "proc_connector", "none"]
EventSource = Literal["kernel", "self_reported"]
TerminationReason = Literal[
    "EXITED",
    "SIGNALED",
    "TIMEOUT",
    "OOM",
    "LIMIT",
    "KILLED_BY_USER",
    "WORLD_REMOVED",
    "DENIED",
    "AGENT_LOST",
]


@dataclass(frozen=True, slots=True)
class FileState:
    """What one path holds: enough to tell whether two trees are the same."""

    kind: FileKind
    mode: int  # permission bits, 0o7777
    size: int = 0  # bytes; 0 for what is not a regular file
    digest: str | None = None  # BLAKE3 of a regular file's content
    target: bytes | None = None  # of a symbolic link
    uid: int = 0  # as the world sees it
    gid: int = 0
    mtime_ns: int = 0  # recorded, compared only on request
    rdev: int = 0  # of a device node


@dataclass(frozen=True, slots=True)
class Change:
    """One difference that a step made to the world's tree."""

    path: bytes  # absolute, in the world
    kind: ChangeKind
    scope: ChangeScope
    before: FileState | None = None
    after: FileState | None = None
    renamed_from: bytes | None = None


@dataclass(frozen=True, slots=True)
class Command:
    """What to execute: the exact argv, and the shell string it was made from, if it was one."""

    argv: tuple[bytes, ...]
    shell: bytes | None = None


@dataclass(frozen=True, slots=True)
class Action:
    """Everything that determines an exec (DESIGN §1); its digest is the replay key."""

    command: Command
    cwd: bytes
    env: tuple[tuple[bytes, bytes], ...]  # sorted by name
    umask: int
    user: str  # name or uid in the world
    stdin_digest: str | None  # None: no stdin (/dev/null)
    snapshot_id: str | None  # the tree before the step
    timeout_s: float | None
    pty: bool = False
    pty_size: tuple[int, int] | None = None  # rows and columns at the start
    profile: str = "workspace"
    network: tuple[str, ...] = ()  # () is none
    limits: tuple[tuple[str, int], ...] = ()
    policy_hash: str = ""
    first_pid: int | None = None  # the pid the first process had, for replay


@dataclass(frozen=True, slots=True)
class Decision:
    """The broker's answer for a step, with the rule that made it."""

    action: DecisionAction
    rule_id: str  # "default" when no rule matched
    reason: str  # one sentence a model can act on
    mode: PolicyMode
    policy_hash: str
    source: str = ""  # file:line of the rule
    decider: str = "policy"
    enforced: bool = True  # False in observe mode: recorded, not acted upon


@dataclass(frozen=True, slots=True)
class Coverage:
    """How completely telemetry saw a step."""

    state: CoverageState
    reasons: tuple[str, ...] = ()
    processes: int = 0
    covered: int = 0
    events: int = 0
    lost: int = 0
    ledger: LedgerSource | None = None  # None: not said (no command, or an older record)
    classes_off: tuple[str, ...] = ()  # what was not to be recorded


@dataclass(frozen=True, slots=True)
class Blocked:
    """Something the boundary kept from the command, and how to allow it."""

    what: str
    layer: str  # profile | network | capabilities | limits | policy | kernel
    rule: str
    fix: str


@dataclass(frozen=True, slots=True)
class Process:
    """One process image (pid and exec number) seen inside a step."""

    span_id: str  # digest of (exec span, pid namespace, pid, start time, exec number)
    parent_span_id: str  # of the parent process, or of the step
    pid: int
    ppid: int
    exec_no: int  # 0 for a forked child before its first exec
    start_ns: int  # CLOCK_BOOTTIME
    end_ns: int | None
    argv: tuple[bytes, ...]
    exe: bytes
    cwd: bytes
    exit_code: int | None
    signal: int | None
    coverage: CoverageState = "full"
    coverage_reason: str = ""
    events: int = 0


@dataclass(frozen=True, slots=True)
class FileFingerprint:
    """Tells cheaply whether a file of the base is still the one recorded."""

    path: bytes  # absolute on the host
    ino: int
    mtime_ns: int
    ctime_ns: int
    size: int
    mode: int  # st_mode, type bits included
    uid: int
    gid: int
    target: bytes | None = None  # of a symbolic link


@dataclass(frozen=True, slots=True)
class ShellStep:
    """Which command of a persistent shell a step was.

    Its action says where the shell was and what it was opened with; what the commands before it
    exported, defined and set is theirs to do again.
    """

    shell_id: str
    number: int  # the first is 1


@dataclass(frozen=True, slots=True)
class SpanRecord:
    """A finished step: the content of a ``command_complete`` line."""

    span_id: str
    trace_id: str
    session_id: str
    world_id: str
    exec_id: str
    kind: str  # exec | files.write | …
    agent_id: str
    parent_span: str | None
    start_time: float  # seconds since the epoch
    duration_ms: float
    action: Action
    decision: Decision
    termination_reason: TerminationReason
    exit_code: int | None
    signal: str | None  # "SIGKILL"
    stdout_digest: str | None
    stderr_digest: str | None
    output_digest: str | None  # the framed output log, streams interleaved
    stdout_bytes: int
    stderr_bytes: int
    truncated: bool
    changes: tuple[Change, ...]
    changes_truncated: int  # changes beyond those listed inline; all are in changes_digest
    changes_digest: str | None
    blocked: tuple[Blocked, ...]
    coverage: Coverage
    processes: tuple[Process, ...]
    processes_truncated: int
    events_digest: str | None  # all events: zstd object of JSON lines
    event_counts: tuple[tuple[str, int], ...]
    snapshot_after: str | None
    inputs_digest: str | None  # base files the step read, with fingerprints
    replay_of: str | None = None  # span id of the recording this step replays
    labels: tuple[tuple[str, str], ...] = field(default=())
    replay_of_trace: str | None = None  # trace id of that recording, for the OTel link
    utc_offset_ns: int | None = None  # UTC minus CLOCK_BOOTTIME at the start, to date processes
    hosts: tuple[str, ...] = ()  # what it connected to, or tried to, bounded
    project: bytes | None = None  # on the host
    shell: ShellStep | None = None  # None: no command of a shell
    shared: bool = False  # other processes ran in the world meanwhile: changes may be theirs
