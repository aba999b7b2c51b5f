"""What Substrate raises when it could not do what was asked.

A command that fails, is killed, times out or is denied is a *result*, never one of these.

::

    SubstrateError                .reason .retryable .trace_id .code .metadata
    ├── InvalidArgument           ValueError; .violations names fields
    │   ├── ProjectRefused        this directory cannot be a project
    │   ├── SpanAmbiguous         the prefix fits several spans
    │   ├── ImageInvalid          an archive is no image
    │   └── PolicyInvalid         a policy file has mistakes
    ├── NotFound                  LookupError
    │   ├── WorldNotFound
    │   ├── ExecNotFound
    │   ├── ShellNotFound
    │   ├── SessionNotFound
    │   ├── SpanNotFound
    │   ├── ReplayNotFound
    │   ├── ApprovalNotFound
    │   ├── ImageNotFound
    │   ├── ObjectMissing
    │   └── WorldFileNotFound     FileNotFoundError
    ├── AlreadyExists
    │   └── WorldFileExists       FileExistsError
    ├── AccessDenied              PermissionError
    │   ├── WorldFileDenied
    │   ├── PolicyDenied
    │   └── Unauthenticated
    ├── PreconditionFailed
    │   ├── WorldLost             its init is gone
    │   ├── ShellEnded            the shell is not there any more
    │   ├── WorldPaused           it is paused
    │   ├── NotPaused             some process of it cannot be stopped now
    │   ├── LimitUnavailable      the host cannot enforce a limit
    │   ├── NoNamespaces          the host cannot make worlds
    │   ├── NotRestorable         parts of a recorded tree are missing
    │   ├── StdinClosed           BrokenPipeError
    │   ├── NoPty
    │   ├── WorldNotADirectory    NotADirectoryError
    │   ├── WorldIsADirectory     IsADirectoryError
    │   ├── ConsentNeeded
    │   ├── TreeInUse
    │   ├── ImageInUse            a world is on it
    │   ├── UnsafeTree            what a world offers is not written here
    │   ├── SessionEnded
    │   ├── ReplayRunning
    │   ├── ApprovalClosed
    │   └── ApprovalVoid
    ├── Conflict                  the host's file is not what the world started from
    ├── OffsetBeyondEnd           ValueError
    ├── ResourceExhausted
    │   ├── DiskFull              OSError (ENOSPC)
    │   ├── BudgetExhausted
    │   └── TooLarge
    ├── DataLoss
    │   └── ObjectCorrupt
    ├── NotBuilt                  NotImplementedError
    ├── HostUnavailable           ConnectionError
    ├── CallTimeout               TimeoutError; the call's deadline, never a command's
    ├── CallCancelled
    └── InternalError             a fault of the host; its log has the rest

Errors that come from a host are made by :func:`from_rpc_error`; it keeps the wire failure as
``__cause__`` where it is used with ``raise … from``.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from substrate_sdk._reasons import BARE_CODES, DOMAIN, REASONS, STATUS_DETAILS_KEY

if TYPE_CHECKING:
    import grpc

__all__ = [
    "AccessDenied",
    "AlreadyExists",
    "ApprovalClosed",
    "ApprovalNotFound",
    "ApprovalVoid",
    "BudgetExhausted",
    "CallCancelled",
    "CallTimeout",
    "Conflict",
    "ConsentNeeded",
    "DataLoss",
    "DiskFull",
    "ExecNotFound",
    "FieldViolation",
    "HostUnavailable",
    "ImageInUse",
    "ImageInvalid",
    "ImageNotFound",
    "InternalError",
    "InvalidArgument",
    "LimitUnavailable",
    "NoNamespaces",
    "NoPty",
    "NotBuilt",
    "NotFound",
    "NotPaused",
    "NotRestorable",
    "ObjectCorrupt",
    "ObjectMissing",
    "OffsetBeyondEnd",
    "PolicyDenied",
    "PolicyInvalid",
    "PreconditionFailed",
    "ProjectRefused",
    "ReplayNotFound",
    "ReplayRunning",
    "ResourceExhausted",
    "SessionEnded",
    "SessionNotFound",
    "ShellEnded",
    "ShellNotFound",
    "SpanAmbiguous",
    "SpanNotFound",
    "StdinClosed",
    "SubstrateError",
    "TooLarge",
    "TreeInUse",
    "Unauthenticated",
    "UnsafeTree",
    "WorldFileDenied",
    "WorldFileExists",
    "WorldFileNotFound",
    "WorldIsADirectory",
    "WorldLost",
    "WorldNotADirectory",
    "WorldNotFound",
    "WorldPaused",
    "error_class",
    "from_rpc_error",
]


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One field of a request that the host would not take."""

    field: str
    description: str


class SubstrateError(Exception):
    """Root of every error that Substrate raises.

    Args:
        message: one line: what failed, with which value, what to do.
        reason: a key of the table of reasons; the class's own where not given.
        code: name of the gRPC status code; the reason's where not given.
        trace_id: the trace that the failure belongs to, 32 hex digits, where there is one.
        metadata: further facts, by name.
        violations: the fields at fault.
    """

    default_reason: ClassVar[str] = "UNKNOWN"
    default_errno: ClassVar[int | None] = None

    def __init__(
        self,
        message: str,
        *,
        reason: str | None = None,
        code: str | None = None,
        trace_id: str | None = None,
        metadata: Mapping[str, str] | None = None,
        violations: tuple[FieldViolation, ...] = (),
    ) -> None:
        super().__init__(message)
        _set_errno(self, self.default_errno, message)
        self.message = message
        self.reason = reason if reason is not None else self.default_reason
        known = REASONS.get(self.reason, REASONS["UNKNOWN"])
        self.code = code if code is not None else known.code
        #: Whether the same call may succeed later with nothing changed by the caller.
        self.retryable = known.retryable
        self.trace_id = trace_id
        self.metadata = dict(metadata or {})
        self.violations = violations

    def __str__(self) -> str:
        # Not OSError's "[Errno 2] …" for those that are an OSError too.
        return self.message


def _set_errno(error: Exception, number: int | None, message: str) -> None:
    # Those that are an OSError too answer errno as it does; the root knows nothing of that.
    if isinstance(error, OSError):
        error.errno = number
        error.strerror = message


class InvalidArgument(SubstrateError, ValueError):
    """A value that was given cannot be used."""

    default_reason = "INVALID_ARGUMENT"


class ProjectRefused(InvalidArgument):
    """The directory cannot be the project of a world."""

    default_reason = "PROJECT_REFUSED"


class SpanAmbiguous(InvalidArgument):
    """The prefix fits several spans."""

    default_reason = "SPAN_AMBIGUOUS"


class PolicyInvalid(InvalidArgument):
    """A policy file has mistakes."""

    default_reason = "POLICY_INVALID"


class ImageInvalid(InvalidArgument):
    """An archive is no image that the host takes; the message says why."""

    default_reason = "IMAGE_INVALID"


class NotFound(SubstrateError, LookupError):
    """What was named is not there."""


class WorldNotFound(NotFound):
    """There is no such world."""

    default_reason = "WORLD_NOT_FOUND"


class ExecNotFound(NotFound):
    """There is no such exec in the world."""

    default_reason = "EXEC_NOT_FOUND"


class ShellNotFound(NotFound):
    """There is no such shell in the world."""

    default_reason = "SHELL_NOT_FOUND"


class SessionNotFound(NotFound):
    """There is no such session."""

    default_reason = "SESSION_NOT_FOUND"


class SpanNotFound(NotFound):
    """There is no such recorded step."""

    default_reason = "SPAN_NOT_FOUND"


class ReplayNotFound(NotFound):
    """There is no such replay."""

    default_reason = "REPLAY_NOT_FOUND"


class ApprovalNotFound(NotFound):
    """There is no such approval."""

    default_reason = "APPROVAL_NOT_FOUND"


class ImageNotFound(NotFound):
    """The host has no such image."""

    default_reason = "IMAGE_NOT_FOUND"


class ObjectMissing(NotFound):
    """The object store has no such object."""

    default_reason = "OBJECT_MISSING"


class WorldFileNotFound(NotFound, FileNotFoundError):
    """There is no such path in the world."""

    default_reason = "FILE_NOT_FOUND"
    default_errno = errno.ENOENT


class AlreadyExists(SubstrateError):
    """What was to be made is there already, and is another."""

    default_reason = "ID_REUSED"


class WorldFileExists(AlreadyExists, FileExistsError):
    """The path is there already in the world."""

    default_reason = "FILE_EXISTS"
    default_errno = errno.EEXIST


class AccessDenied(SubstrateError, PermissionError):
    """The caller may not do this."""

    default_reason = "POLICY_DENIED"
    default_errno = errno.EPERM


class WorldFileDenied(AccessDenied):
    """The world's user may not do this to the path."""

    default_reason = "FILE_DENIED"
    default_errno = errno.EACCES


class PolicyDenied(AccessDenied):
    """Policy denies a step that has no result to say so in, such as a write to a file."""

    default_reason = "POLICY_DENIED"


class Unauthenticated(AccessDenied):
    """The host does not know the caller."""

    default_reason = "UNAUTHENTICATED"


class PreconditionFailed(SubstrateError):
    """Something has to be different first; the message says what."""

    default_reason = "UNKNOWN"


class WorldLost(PreconditionFailed):
    """The world's init is gone; its records and its tree are there."""

    default_reason = "WORLD_LOST"


class ShellEnded(PreconditionFailed):
    """The shell has ended, or was lost; ``restart`` makes it anew."""

    default_reason = "SHELL_ENDED"


class WorldPaused(PreconditionFailed):
    """The world is paused; ``resume`` lets it go on."""

    default_reason = "WORLD_PAUSED"


class NotPaused(PreconditionFailed):
    """The world goes on: some process of it cannot be stopped now."""

    default_reason = "NOT_PAUSED"


class LimitUnavailable(PreconditionFailed):
    """The host cannot enforce a limit; the message says why, and the fix."""

    default_reason = "LIMIT_UNAVAILABLE"


class NoNamespaces(PreconditionFailed):
    """The host cannot make worlds; the message has the fix."""

    default_reason = "NO_NAMESPACES"


class NotRestorable(PreconditionFailed):
    """Parts of a recorded tree cannot be restored; the message and metadata name them."""

    default_reason = "NOT_RESTORABLE"


class StdinClosed(PreconditionFailed, BrokenPipeError):
    """The command's standard input is closed."""

    default_reason = "STDIN_CLOSED"
    default_errno = errno.EPIPE


class NoPty(PreconditionFailed):
    """The exec has no terminal."""

    default_reason = "NO_PTY"


class WorldNotADirectory(PreconditionFailed, NotADirectoryError):
    """The path in the world is not a directory."""

    default_reason = "NOT_A_DIRECTORY"
    default_errno = errno.ENOTDIR


class WorldIsADirectory(PreconditionFailed, IsADirectoryError):
    """The path in the world is a directory."""

    default_reason = "IS_A_DIRECTORY"
    default_errno = errno.EISDIR


class ConsentNeeded(PreconditionFailed):
    """Applying would write paths that execute later on the host."""

    default_reason = "CONSENT_NEEDED"


class ImageInUse(PreconditionFailed):
    """A world that lives is on the image."""

    default_reason = "IMAGE_IN_USE"


class TreeInUse(PreconditionFailed):
    """Processes hold files in the tree; the message lists them."""

    default_reason = "TREE_IN_USE"


class UnsafeTree(PreconditionFailed):
    """A tree from a world has something in it that is not written here; the message names it."""

    default_reason = "UNSAFE_TREE"


class SessionEnded(PreconditionFailed):
    """The session is over."""

    default_reason = "SESSION_ENDED"


class ReplayRunning(PreconditionFailed):
    """The replay has no report yet."""

    default_reason = "REPLAY_RUNNING"


class ApprovalClosed(PreconditionFailed):
    """The question was answered differently, or has expired."""

    default_reason = "APPROVAL_CLOSED"


class ApprovalVoid(PreconditionFailed):
    """What was asked about has changed since."""

    default_reason = "APPROVAL_VOID"


class Conflict(SubstrateError):
    """The host's file is not what the world started from."""

    default_reason = "CONFLICT"


class OffsetBeyondEnd(SubstrateError, ValueError):
    """The offset lies beyond what there is."""

    default_reason = "OFFSET_BEYOND_END"


class ResourceExhausted(SubstrateError):
    """Something ran out."""

    default_reason = "BUDGET_EXHAUSTED"


class DiskFull(ResourceExhausted, OSError):
    """The host has no space to record in; what was recorded is kept."""

    default_reason = "DISK_FULL"
    default_errno = errno.ENOSPC


class BudgetExhausted(ResourceExhausted):
    """The session's budget is used up."""

    default_reason = "BUDGET_EXHAUSTED"


class TooLarge(ResourceExhausted):
    """A message or a content is larger than allowed."""

    default_reason = "TOO_LARGE"


class DataLoss(SubstrateError):
    """A record rests on something that is gone or damaged."""


class ObjectCorrupt(DataLoss):
    """An object does not hold what its digest names."""

    default_reason = "OBJECT_CORRUPT"


class NotBuilt(SubstrateError, NotImplementedError):
    """This version of Substrate cannot do this."""

    default_reason = "NOT_BUILT"


class HostUnavailable(SubstrateError, ConnectionError):
    """No host answers at the endpoint."""

    default_reason = "HOST_UNAVAILABLE"
    default_errno = errno.ECONNREFUSED


class CallTimeout(SubstrateError, TimeoutError):
    """The host did not answer in time. A command's own time-out is a result."""

    default_reason = "DEADLINE_EXCEEDED"
    default_errno = errno.ETIMEDOUT


class CallCancelled(SubstrateError):
    """The call was cancelled, by the caller or because the host went away."""

    default_reason = "CANCELLED"


class InternalError(SubstrateError):
    """A fault of the host. Its log has the details."""

    default_reason = "INTERNAL"


_BY_REASON: dict[str, type[SubstrateError]] = {
    **{
        cls.default_reason: cls
        for cls in (
            InvalidArgument,
            ProjectRefused,
            SpanAmbiguous,
            PolicyInvalid,
            ImageInvalid,
            WorldNotFound,
            ExecNotFound,
            ShellNotFound,
            SessionNotFound,
            SpanNotFound,
            ReplayNotFound,
            ApprovalNotFound,
            ImageNotFound,
            ObjectMissing,
            WorldFileNotFound,
            WorldFileExists,
            WorldFileDenied,
            PolicyDenied,
            Unauthenticated,
            WorldLost,
            ShellEnded,
            WorldPaused,
            NotPaused,
            LimitUnavailable,
            NoNamespaces,
            NotRestorable,
            StdinClosed,
            NoPty,
            WorldNotADirectory,
            WorldIsADirectory,
            ConsentNeeded,
            TreeInUse,
            ImageInUse,
            UnsafeTree,
            SessionEnded,
            ReplayRunning,
            ApprovalClosed,
            ApprovalVoid,
            Conflict,
            OffsetBeyondEnd,
            DiskFull,
            BudgetExhausted,
            TooLarge,
            ObjectCorrupt,
            NotBuilt,
            HostUnavailable,
            CallTimeout,
            CallCancelled,
            InternalError,
        )
    },
    "ID_REUSED": AlreadyExists,
    "SUITE_EXISTS": AlreadyExists,
    "JOURNAL_BROKEN": InternalError,
    "UNKNOWN": SubstrateError,
}

# For a reason that a newer host knows and this SDK does not: the code still says what kind it is.
_BY_CODE: dict[str, type[SubstrateError]] = {
    "ABORTED": Conflict,
    "ALREADY_EXISTS": AlreadyExists,
    "CANCELLED": CallCancelled,
    "DATA_LOSS": DataLoss,
    "DEADLINE_EXCEEDED": CallTimeout,
    "FAILED_PRECONDITION": PreconditionFailed,
    "INTERNAL": InternalError,
    "INVALID_ARGUMENT": InvalidArgument,
    "NOT_FOUND": NotFound,
    "OUT_OF_RANGE": OffsetBeyondEnd,
    "PERMISSION_DENIED": AccessDenied,
    "RESOURCE_EXHAUSTED": ResourceExhausted,
    "UNAUTHENTICATED": Unauthenticated,
    "UNAVAILABLE": HostUnavailable,
    "UNIMPLEMENTED": NotBuilt,
}


def error_class(reason: str, code: str) -> type[SubstrateError]:
    """The class for a reason; where the reason is not known, the one for the status code."""
    return _BY_REASON.get(reason) or _BY_CODE.get(code, SubstrateError)


def from_rpc_error(error: grpc.RpcError, *, endpoint: str = "") -> SubstrateError:
    """The error that a failed call means.

    Reads ``google.rpc.ErrorInfo`` and ``BadRequest`` from the trailing metadata, as every
    Substrate service sends them. A status without them comes from gRPC itself: UNAVAILABLE is
    then :class:`HostUnavailable`.

    Args:
        error: what a stub of ``grpc`` or ``grpc.aio`` raised.
        endpoint: where the call went, for the message; may be empty.
    """
    # The base class promises nothing; both stacks' errors are calls, and have these methods.
    status_code = error.code() if hasattr(error, "code") else None
    code: str = status_code.name if status_code is not None else "UNKNOWN"
    text = str(error.details() or "") if hasattr(error, "details") else str(error)
    metadata = error.trailing_metadata() if hasattr(error, "trailing_metadata") else None
    reason, facts, violations = _parse_details(metadata or ())
    if reason is None:
        reason = BARE_CODES.get(code, "UNKNOWN")
        text = _bare_message(code, text, endpoint)
    return error_class(reason, code)(
        text or f"the host answered {code} and said no more",
        reason=reason,
        code=code,
        trace_id=facts.get("trace_id"),
        metadata=facts,
        violations=violations,
    )


def _bare_message(code: str, text: str, endpoint: str) -> str:
    where = f" at {endpoint}" if endpoint else ""
    text = " ".join(text.split())
    match code:
        case "UNAVAILABLE":
            return (
                f"no Substrate host answers{where}: {text or 'connection lost'}; "
                "check the endpoint, or start a host (substrate up)"
            )
        case "DEADLINE_EXCEEDED":
            return f"the host{where} did not answer in time"
        case "UNIMPLEMENTED":
            return f"the host{where} does not know this call ({text}); upgrade it"
        case _:
            return text


def _parse_details(
    metadata: object,
) -> tuple[str | None, dict[str, str], tuple[FieldViolation, ...]]:
    """Reason, facts and field violations of trailing metadata; no reason where it has none."""
    raw = next(
        (
            bytes(value)
            for key, value in metadata  # type: ignore[attr-defined] # pairs, in both stacks
            if key == STATUS_DETAILS_KEY
        ),
        None,
    )
    if raw is None:
        return None, {}, ()
    # Only a failure needs these; importing them with the SDK would cost every start.
    from google.protobuf.message import DecodeError
    from google.rpc import error_details_pb2, status_pb2

    reason: str | None = None
    facts: dict[str, str] = {}
    violations: list[FieldViolation] = []
    try:
        for detail in status_pb2.Status.FromString(raw).details:
            info = error_details_pb2.ErrorInfo()
            request = error_details_pb2.BadRequest()
            if detail.Unpack(info) and info.domain == DOMAIN:
                reason = info.reason
                facts = dict(info.metadata)
            elif detail.Unpack(request):
                violations.extend(
                    FieldViolation(item.field, item.description)
                    for item in request.field_violations
                )
    except DecodeError:
        return None, {}, ()  # not from a host of ours; the status itself still says what kind
    return reason, facts, tuple(violations)
