"""What requests must hold, checked before anything happens.

Each helper takes the field's name as the proto spells it and its value, gives the value back in
the form that domain code uses, and raises :class:`~substrate_services.errors.InvalidField`, which
names field and value.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import blake3

from substrate_services.errors import InvalidField

if TYPE_CHECKING:
    from google.protobuf.duration_pb2 import Duration
    from google.protobuf.timestamp_pb2 import Timestamp

DEFAULT_PAGE_SIZE: Final = 100
MAX_PAGE_SIZE: Final = 1000
_POSITION_EXPECTED: Final = "expected next_page_token of an earlier answer"

_ID: Final = r"[a-z2-7]{26}"
_WORLD = re.compile(rf"wld_{_ID}")
_SESSION = re.compile(rf"ses_{_ID}")
_EXEC = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_SPAN = re.compile(r"[0-9a-f]{16}")
_TRACE = re.compile(r"[0-9a-f]{32}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_REQUEST = re.compile(r"[!-~]{1,128}")
_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")


def _matching(pattern: re.Pattern[str], expected: str) -> Callable[[str, str], str]:
    def check(field: str, value: str) -> str:
        if pattern.fullmatch(value) is None:
            raise InvalidField(field, value, f"expected {expected}")
        return value

    return check


#: Each takes (field, value), and gives the value back.
world_id = _matching(_WORLD, "a world's id, wld_ and 26 characters (substrate world list)")
session_id = _matching(_SESSION, "a session's id, ses_ and 26 characters")
exec_id = _matching(_EXEC, "1 to 64 of A-Z a-z 0-9 _ . -")
span_id = _matching(_SPAN, "a span's id, 16 hex digits in lower case")
trace_id = _matching(_TRACE, "a trace's id, 32 hex digits in lower case")
digest = _matching(_DIGEST, "a digest, 64 hex digits in lower case")
request_id = _matching(_REQUEST, "1 to 128 printable ASCII characters without spaces")


def required_text(field: str, value: str) -> str:
    """A string that must not be empty."""
    if not value:
        raise InvalidField(field, value, "it must not be empty")
    return value


def required_bytes(field: str, value: bytes) -> bytes:
    """Bytes that must not be empty."""
    if not value:
        raise InvalidField(field, value, "it must not be empty")
    return value


def bounded_text(field: str, value: str, *, limit_chars: int = 256) -> str:
    """A string without control characters, at most so long; it may be empty."""
    if len(value) > limit_chars:
        raise InvalidField(field, value, f"expected at most {limit_chars} characters")
    if not value.isprintable():
        raise InvalidField(field, value, "expected no control characters")
    return value


def absolute_path(field: str, value: bytes) -> bytes:
    """A path from the root, without NUL; ``.`` and ``..`` are left for the world to resolve."""
    if not value.startswith(b"/"):
        raise InvalidField(field, value, "expected an absolute path")
    if b"\0" in value:
        raise InvalidField(field, value, "a path cannot contain a NUL byte")
    if len(value) > 4095:  # PATH_MAX, without its NUL
        raise InvalidField(field, value, "expected at most 4095 bytes")
    return value


def normal_path(field: str, value: bytes) -> bytes:
    """As :func:`absolute_path`, with ``//``, ``/.`` and ``/..`` folded."""
    path = os.path.normpath(absolute_path(field, value))
    return path.removeprefix(b"/") if path.startswith(b"//") else path


def argument_vector(field: str, values: list[bytes]) -> tuple[bytes, ...]:
    """At least a program, and no NUL anywhere: what execve takes."""
    if not values or not values[0]:
        raise InvalidField(field, values, "expected at least the program's name")
    for index, value in enumerate(values):
        if b"\0" in value:
            raise InvalidField(f"{field}[{index}]", value, "it cannot contain a NUL byte")
    return tuple(values)


def environment_name(field: str, value: bytes) -> bytes:
    """A variable's name: not empty, without ``=`` and NUL."""
    if not value or b"=" in value or b"\0" in value:
        raise InvalidField(field, value, "expected a name without '=' and NUL")
    return value


def duration_s(field: str, value: Duration) -> float:
    """A duration above zero, in seconds."""
    nanoseconds: int = value.seconds * 1_000_000_000 + value.nanos
    if nanoseconds <= 0 or abs(value.nanos) > 999_999_999:
        raise InvalidField(field, f"{nanoseconds / 1e9:g}s", "expected more than zero")
    if value.seconds > 315_576_000_000:  # the longest that google.protobuf.Duration allows
        raise InvalidField(field, f"{value.seconds}s", "expected at most 10,000 years")
    return nanoseconds / 1e9


def timestamp_s(field: str, value: Timestamp) -> float:
    """A point in time, in seconds since the epoch."""
    if not (-62_135_596_800 <= value.seconds <= 253_402_300_799 and 0 <= value.nanos < 10**9):
        raise InvalidField(field, f"{value.seconds}s", "expected a time between years 1 and 9999")
    seconds: float = value.seconds + value.nanos / 1e9
    return seconds


@dataclass(frozen=True, slots=True)
class TraceParent:
    """A caller's place in its own trace (https://www.w3.org/TR/trace-context/)."""

    trace_id: str
    span_id: str
    flags: int


def traceparent(field: str, value: str) -> TraceParent:
    """A W3C traceparent of any version but ff."""
    match = _TRACEPARENT.fullmatch(value)
    expected = "expected a W3C traceparent, such as 00-<32 hex>-<16 hex>-01"
    if match is None or match[1] == "ff" or (match[1] == "00" and match[5]):
        raise InvalidField(field, value, expected)
    if not match[2].strip("0") or not match[3].strip("0"):
        raise InvalidField(field, value, f"{expected}; its ids must not be zero")
    return TraceParent(match[2], match[3], int(match[4], 16))


# --- pages -------------------------------------------------------------------------------------


def page_size(value: int) -> int:
    """How many to list; 0 means the default, and more than the most is the most (AIP-158)."""
    if value < 0:
        raise InvalidField("page_size", value, "expected 0 or more")
    return min(value or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)


def page_token(position: str, query: Mapping[str, object]) -> str:
    """A token that goes on from a position of the same list.

    Args:
        position: where the next page starts, in the list's own terms.
        query: the request's filters; a token is good for these alone.
    """
    text = json.dumps([position, _query_hash(query)])
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def page_position(token: str, query: Mapping[str, object]) -> str | None:
    """The position in a token that :func:`page_token` made; None where the token is empty."""
    if not token:
        return None
    try:
        padded = token + "=" * (-len(token) % 4)
        parsed: object = json.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
    except (binascii.Error, ValueError):
        parsed = None
    match parsed:
        case [str() as position, str() as query_hash]:
            if query_hash == _query_hash(query):
                return position
            raise InvalidField("page_token", token, "it belongs to a list with other filters")
        case _:
            raise InvalidField("page_token", token, "expected next_page_token of an earlier answer")


def page_offset(token: str, query: Mapping[str, object]) -> int:
    """The position in a token, where positions are counts; 0 where the token is empty."""
    position = page_position(token, query)
    if position is None:
        return 0
    if not (position.isascii() and position.isdigit()):
        raise InvalidField("page_token", token, _POSITION_EXPECTED)
    return int(position)


def _query_hash(query: Mapping[str, object]) -> str:
    text = json.dumps(sorted((key, repr(value)) for key, value in query.items()))
    return blake3.blake3(text.encode()).hexdigest()[:16]
