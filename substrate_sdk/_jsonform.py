"""The JSON forms of what JSON has no words for."""

from __future__ import annotations

from datetime import datetime
from typing import TypeAlias, Union

JsonValue: TypeAlias = Union[  # noqa: UP007 # a recursive alias has to be a string in parts
    bool, int, float, str, list["JsonValue"], dict[str, "JsonValue"], None
]
JsonObject: TypeAlias = dict[str, JsonValue]


def bytes_form(value: bytes) -> JsonValue:
    """A string where the bytes are UTF-8, else ``{"b64": "…"}``, as in the journal."""
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        from base64 import b64encode

        return {"b64": b64encode(value).decode("ascii")}


def optional_bytes_form(value: bytes | None) -> JsonValue:
    """As bytes_form; null for None."""
    return None if value is None else bytes_form(value)


def time_form(value: datetime | None) -> JsonValue:
    """RFC 3339 in UTC; null for None."""
    return None if value is None else value.isoformat().replace("+00:00", "Z")
