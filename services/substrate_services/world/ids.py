"""Identifiers: unguessable where they name something, in the shapes that standards fix."""

from __future__ import annotations

import base64
import re
import secrets

EXEC_ID = re.compile(r"[A-Za-z0-9_.-]{1,64}")
#: What begins the id of a file operation that is no step; no exec's id does.
LOOK_PREFIX = "look_"


def new_span_id() -> str:
    """16 hex digits, never all zero (W3C Trace Context §3.2.2.4)."""
    while not any(span_id := secrets.token_bytes(8)):
        pass
    return span_id.hex()


def new_trace_id() -> str:
    """32 hex digits, never all zero (W3C Trace Context §3.2.2.3)."""
    while not any(trace_id := secrets.token_bytes(16)):
        pass
    return trace_id.hex()


def new_id(prefix: str) -> str:
    """``prefix_`` and 26 characters of lower-case base32: 130 random bits."""
    return f"{prefix}_{base64.b32encode(secrets.token_bytes(17)).decode().lower()[:26]}"
