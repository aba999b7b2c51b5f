"""A step of a world: what is asked for, and what this host process knows of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from substrate_services.journal.codec import SpanStart
from substrate_services.journal.jsontypes import JsonObject, compact_bytes
from substrate_services.journal.schema import Action, Decision, ShellStep, SpanRecord
from substrate_services.world.ended import Ended
from substrate_services.world.file_kinds import FilesKind
from substrate_services.world.output_log import OutputFollower
from substrate_services.world.recording import Attempt
from substrate_services.world.replacing import replace_file
from substrate_services.world.worlds import World

StepKind = Literal["exec", FilesKind, "apply", "discard", "rollback"]
#: Steps that the host itself does, without the world's init.
HOST_KINDS = ("apply", "discard", "rollback")
FILES_PROGRAM = b"substrate-files"  # argv[0] of a recorded Files step
EXEC_FILE = "exec.json"  # in a step's directory: how it began
STDIN_FILE = "stdin"  # there too: what was written to its pipe
_OUTCOME_FILE = "outcome"


@dataclass(frozen=True, slots=True)
class ExecRequest:
    """What a client asks for; see StartExecRequest in the contract.

    Exactly one of ``argv``, ``shell`` and ``recorded_span_id`` is given.
    """

    exec_id: str
    argv: tuple[bytes, ...] = ()
    shell: bytes | None = None
    recorded_span_id: str | None = None
    kind: StepKind = "exec"
    env: Mapping[bytes, bytes] = field(default_factory=dict)
    cwd: bytes | None = None
    user: str = ""
    umask: int | None = None
    stdin_pipe: bool = False
    stdin_digest: str | None = None
    pty: tuple[int, int] | None = None  # rows, columns
    timeout_s: float | None = None
    session_id: str = ""
    agent_id: str = ""
    traceparent: str = ""
    in_shell: ShellStep | None = None


@dataclass(slots=True)
class Exec:
    """A step that this host process knows."""

    start: SpanStart
    directory: Path
    phase: Literal["running", "recording", "finished"] = "running"
    pid: int = 0
    record: SpanRecord | None = None
    failure: Exception | None = None  # why there is no record
    ended: Ended | None = None
    attempt: Attempt | None = None
    shared: bool = False  # something else ran in the world meanwhile
    stdin_pipe: bool = False
    stdin_received: int = 0
    killed_by_user: bool = False
    recording: asyncio.Lock = field(default_factory=asyncio.Lock)
    done: asyncio.Event = field(default_factory=asyncio.Event)
    output: OutputFollower = field(init=False)

    def __post_init__(self) -> None:
        self.output = OutputFollower(self.output_log)

    @property
    def exec_id(self) -> str:
        """As the client chose it."""
        return self.start.exec_id

    @property
    def output_log(self) -> Path:
        """The framed output log."""
        return self.directory / "output.log"


#: Starts what a step is about, with environment that is no part of its action; gives how it ended
#: where it does not run.
Begin = Callable[[Exec, Mapping[bytes, bytes]], Awaitable[Ended | None]]


class Decider(Protocol):
    """Asks the broker."""

    async def decide(self, world: World, action: Action, kind: StepKind) -> Decision:
        """The broker's answer. Raises ServiceError where it cannot be had."""


def is_denied(decision: Decision) -> bool:
    """Whether a step may not go on."""
    return decision.enforced and decision.action != "allow"


def was_never_told(exec_: Exec) -> bool:
    """Whether a host ended between noting a step down and having a living init begin it."""
    return (
        exec_.phase != "finished"
        and exec_.start.kind not in HOST_KINDS
        and not (exec_.directory / _OUTCOME_FILE).exists()
    )


def note_outcome(exec_: Exec, message: bytes = b"") -> Ended:
    """Keep on disk that a step of the host's own is done, before its record is made."""
    scratch = exec_.directory / f"{_OUTCOME_FILE}.new"
    scratch.write_bytes(message)
    scratch.replace(exec_.directory / _OUTCOME_FILE)
    return outcome_of(exec_)


def outcome_of(exec_: Exec) -> Ended:
    """How a step ended whose end this process has not seen."""
    try:
        message = (exec_.directory / _OUTCOME_FILE).read_bytes()
    except FileNotFoundError:
        return Ended.lost()
    took_ns = max(0, time.time_ns() - round(exec_.start.start_time * 1e9))
    return Ended("EXITED", 0, duration_ns=took_ns, message=message)


def write_exec_file(directory: Path, line: JsonObject) -> None:
    """Keep on disk how a step began (its ``command_start`` line), for a host that takes over."""
    replace_file(directory / EXEC_FILE, compact_bytes(line) + b"\n")
