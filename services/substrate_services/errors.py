"""What the services' domain code raises for a caller to see.

::

    ServiceError      reason, message, metadata
    └── InvalidField  a field of a request cannot be used

Domain code knows no gRPC: :mod:`substrate_services.wire.errors` turns these into a status with the
code that :mod:`substrate_sdk._reasons` gives for the reason. Errors of the ground floor (journal,
objects) have roots of their own and are turned there too.
"""

from __future__ import annotations

from collections.abc import Mapping


class ServiceError(Exception):
    """Something that was asked for cannot be done, and the caller can be told why.

    Args:
        reason: a key of ``substrate_sdk._reasons.REASONS``.
        message: one line: what failed, with which value, what to do.
        metadata: further facts, by name; small, they travel in HTTP/2 headers.
        code: one of the reason's codes, where it has several and this is not the first.
    """

    def __init__(
        self,
        reason: str,
        message: str,
        metadata: Mapping[str, str] | None = None,
        *,
        code: str | None = None,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.metadata = dict(metadata or {})
        self.code = code


class InvalidField(ServiceError):
    """A field of a request holds what cannot be used.

    Args:
        field: its name, as the proto spells it, with the way to it (``limits.memory_bytes``).
        value: what it holds.
        expected: what it should hold, or what to do: "expected 64 hex digits".
    """

    def __init__(self, field: str, value: object, expected: str) -> None:
        shown = repr(value)
        if len(shown) > 120:
            shown = f"{shown[:117]}..."
        super().__init__("INVALID_ARGUMENT", f"{field} is {shown}; {expected}", {"field": field})
        self.field = field
        self.description = f"is {shown}; {expected}"
