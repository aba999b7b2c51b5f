"""How an exec ended, as its record says it."""

from __future__ import annotations

import errno
import signal
from dataclasses import dataclass

from substrate_services.journal.schema import Blocked, Decision, TerminationReason
from substrate_services.world.init_client import ExecState, Reason, Stage, StartFailed

DENIED_EXIT = 126
NOT_FOUND_EXIT = 127
CANNOT_EXECUTE_EXIT = 126

_SPOILED = (
    b"substrate: the command wrote to the pipe that its shell reports on; the shell was ended\n"
)


@dataclass(frozen=True, slots=True)
class Ended:
    """The end of an exec.

    Attributes:
        reason: see TerminationReason in the contract.
        exit_code: None when a signal ended it, or nobody saw its end.
        signal: by name.
        duration_ns: of the command; None where it is not known.
        truncated: output beyond the limit was cut.
        never_ran: no process was started.
        message: what to tell on standard error where there was no program to say it.
        blocked: what kept it from starting.
        remaining: processes it started that live on.
    """

    reason: TerminationReason
    exit_code: int | None = None
    signal: str | None = None
    duration_ns: int | None = None
    truncated: bool = False
    never_ran: bool = False
    message: bytes = b""
    blocked: tuple[Blocked, ...] = ()
    remaining: int = 0

    @classmethod
    def of(cls, state: ExecState, *, killed_by_user: bool) -> Ended:
        """From what the world's init says."""
        reason: TerminationReason = "EXITED"
        if state.lost or state.spoiled:
            reason = "AGENT_LOST"
        elif state.reason is Reason.TIMEOUT:
            reason = "TIMEOUT"
        elif state.reason is Reason.SIGNALED:
            reason = "KILLED_BY_USER" if killed_by_user or state.killed else "SIGNALED"
        return cls(
            reason=reason,
            exit_code=state.exit_code if reason == "EXITED" else None,
            signal=signal_name(state.signal) if state.signal else None,
            duration_ns=max(0, state.end_boot_ns - state.start_boot_ns),
            truncated=state.truncated or state.log_errno != 0,
            remaining=state.remaining,
            message=_SPOILED if state.spoiled else b"",
        )

    @classmethod
    def not_started(cls, error: StartFailed) -> Ended:
        """The command could not be started: a result, with a shell's exit codes."""
        text = f"substrate: {error}\n".encode()
        if error.stage is Stage.EXEC and error.error == errno.ENOENT:
            return cls("EXITED", NOT_FOUND_EXIT, never_ran=True, message=text, duration_ns=0)
        if error.stage in (Stage.EXEC, Stage.CWD, Stage.USER):
            return cls("EXITED", CANNOT_EXECUTE_EXIT, never_ran=True, message=text, duration_ns=0)
        raise OSError(error.error, f"the world could not start the command: {error}")

    @classmethod
    def denied(cls, decision: Decision) -> Ended:
        """Policy said no; or said to ask, and nobody can be asked."""
        verb = "denied" if decision.action == "deny" else "needs an approval that nobody can give"
        what = Blocked(
            what=f"command {verb}",
            layer="policy",
            rule=decision.rule_id,
            fix=f"{decision.reason} ({decision.source})" if decision.source else decision.reason,
        )
        return cls("DENIED", DENIED_EXIT, never_ran=True, blocked=(what,), duration_ns=0)

    @classmethod
    def interrupted(cls) -> Ended:
        """Its shell was interrupted before it began, as a line that is dropped at a prompt."""
        return cls("EXITED", 128 + signal.SIGINT, never_ran=True, duration_ns=0)

    @classmethod
    def in_lost_shell(cls, how: str) -> Ended:
        """Its shell was gone before it could begin."""
        return cls("AGENT_LOST", message=f"substrate: the shell {how}\n".encode(), duration_ns=0)

    @classmethod
    def lost(cls) -> Ended:
        """What ran it is gone."""
        return cls("AGENT_LOST")

    @classmethod
    def removed(cls) -> Ended:
        """Its world was removed."""
        return cls("WORLD_REMOVED", signal="SIGKILL")


def signal_name(number: int) -> str:
    """What a signal is called; any number that a world's init may say."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIGRTMIN+{number - signal.SIGRTMIN}" if number >= signal.SIGRTMIN else str(number)
