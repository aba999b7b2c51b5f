"""The closed table between reasons and gRPC status codes.

Every error that crosses the wire carries ``google.rpc.ErrorInfo`` with one of these reasons and
the domain :data:`DOMAIN`. Both sides use this table: the services to choose the status code, the
SDK to know whether to try again. A contract test holds it against the comments of the protos.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

#: ``ErrorInfo.domain`` of every error of ours.
DOMAIN: Final = "substrate"

#: The metadata key under which gRPC carries a serialised ``google.rpc.Status``.
STATUS_DETAILS_KEY: Final = "grpc-status-details-bin"


@dataclass(frozen=True, slots=True)
class Reason:
    """One way in which a call can fail.

    Attributes:
        code: name of the gRPC status code.
        retryable: whether the same call may succeed later with nothing changed by the caller.
        also: further codes that the reason comes with, where the same fact means another thing
            to another call (an object asked for is NOT_FOUND; one that a record rests on is
            DATA_LOSS).
    """

    code: str
    retryable: bool = False
    also: tuple[str, ...] = ()


REASONS: Final[dict[str, Reason]] = {
    # What the caller sent.
    "INVALID_ARGUMENT": Reason("INVALID_ARGUMENT"),
    "PROJECT_REFUSED": Reason("INVALID_ARGUMENT"),
    "SPAN_AMBIGUOUS": Reason("INVALID_ARGUMENT"),
    "POLICY_INVALID": Reason("INVALID_ARGUMENT", also=("FAILED_PRECONDITION",)),
    "IMAGE_INVALID": Reason("INVALID_ARGUMENT"),
    "OFFSET_BEYOND_END": Reason("OUT_OF_RANGE"),
    # What is not there, or is there already.
    "WORLD_NOT_FOUND": Reason("NOT_FOUND"),
    "EXEC_NOT_FOUND": Reason("NOT_FOUND"),
    "SHELL_NOT_FOUND": Reason("NOT_FOUND"),
    "SESSION_NOT_FOUND": Reason("NOT_FOUND"),
    "SPAN_NOT_FOUND": Reason("NOT_FOUND"),
    "REPLAY_NOT_FOUND": Reason("NOT_FOUND"),
    "APPROVAL_NOT_FOUND": Reason("NOT_FOUND"),
    "FILE_NOT_FOUND": Reason("NOT_FOUND"),
    "IMAGE_NOT_FOUND": Reason("NOT_FOUND"),
    "OBJECT_MISSING": Reason("NOT_FOUND", also=("DATA_LOSS",)),
    "FILE_EXISTS": Reason("ALREADY_EXISTS"),
    "SUITE_EXISTS": Reason("ALREADY_EXISTS"),
    "ID_REUSED": Reason("ALREADY_EXISTS"),
    # What may not be.
    "FILE_DENIED": Reason("PERMISSION_DENIED"),
    "POLICY_DENIED": Reason("PERMISSION_DENIED"),
    # What stands in the way.
    "WORLD_LOST": Reason("FAILED_PRECONDITION"),
    "WORLD_PAUSED": Reason("FAILED_PRECONDITION"),
    "NOT_PAUSED": Reason("FAILED_PRECONDITION", retryable=True),
    "LIMIT_UNAVAILABLE": Reason("FAILED_PRECONDITION"),
    "NO_NAMESPACES": Reason("FAILED_PRECONDITION"),
    "NO_NETWORK": Reason("FAILED_PRECONDITION"),
    "WORLD_NOT_MADE": Reason("FAILED_PRECONDITION"),
    "NOT_RESTORABLE": Reason("FAILED_PRECONDITION"),
    "STDIN_CLOSED": Reason("FAILED_PRECONDITION"),
    "NO_PTY": Reason("FAILED_PRECONDITION"),
    "NOT_A_DIRECTORY": Reason("FAILED_PRECONDITION"),
    "IS_A_DIRECTORY": Reason("FAILED_PRECONDITION"),
    "CONSENT_NEEDED": Reason("FAILED_PRECONDITION"),
    "IMAGE_IN_USE": Reason("FAILED_PRECONDITION"),
    "TREE_IN_USE": Reason("FAILED_PRECONDITION"),
    "SHELL_ENDED": Reason("FAILED_PRECONDITION"),
    "UNSAFE_TREE": Reason("FAILED_PRECONDITION"),
    "SESSION_ENDED": Reason("FAILED_PRECONDITION"),
    "REPLAY_RUNNING": Reason("FAILED_PRECONDITION", retryable=True),
    "APPROVAL_CLOSED": Reason("FAILED_PRECONDITION"),
    "APPROVAL_VOID": Reason("FAILED_PRECONDITION"),
    "CONFLICT": Reason("ABORTED"),
    # What ran out.
    "DISK_FULL": Reason("RESOURCE_EXHAUSTED", retryable=True),
    "BUDGET_EXHAUSTED": Reason("RESOURCE_EXHAUSTED"),
    "TOO_LARGE": Reason("RESOURCE_EXHAUSTED"),
    # What is broken.
    "OBJECT_CORRUPT": Reason("DATA_LOSS"),
    "JOURNAL_BROKEN": Reason("INTERNAL"),
    "INTERNAL": Reason("INTERNAL"),
    "NOT_BUILT": Reason("UNIMPLEMENTED"),
    # What the transport says by itself: no server sent these, except a host that is going down.
    "HOST_UNAVAILABLE": Reason("UNAVAILABLE", retryable=True),
    "DEADLINE_EXCEEDED": Reason("DEADLINE_EXCEEDED", retryable=True),
    "CANCELLED": Reason("CANCELLED"),
    "UNAUTHENTICATED": Reason("UNAUTHENTICATED"),
    "UNKNOWN": Reason("UNKNOWN"),
}

#: The reason to take for a status that carries no ErrorInfo.
BARE_CODES: Final[dict[str, str]] = {
    "CANCELLED": "CANCELLED",
    "DEADLINE_EXCEEDED": "DEADLINE_EXCEEDED",
    "INTERNAL": "INTERNAL",
    "INVALID_ARGUMENT": "INVALID_ARGUMENT",
    "RESOURCE_EXHAUSTED": "TOO_LARGE",  # a message above gRPC's limit
    "UNAUTHENTICATED": "UNAUTHENTICATED",
    "UNAVAILABLE": "HOST_UNAVAILABLE",
    "UNIMPLEMENTED": "NOT_BUILT",  # an older host, which lacks the whole RPC
}
