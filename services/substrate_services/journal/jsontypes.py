"""JSON values with types, and the one way this project turns them into bytes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TypeAlias

JsonValue: TypeAlias = "bool | int | float | str | list[JsonValue] | dict[str, JsonValue] | None"
JsonObject: TypeAlias = "dict[str, JsonValue]"

_encoder = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
_canonical_encoder = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, separators=(",", ":"), sort_keys=True
)


def compact_bytes(value: Mapping[str, JsonValue] | Sequence[JsonValue]) -> bytes:
    """One line of UTF-8 JSON without white space, keys in the order given.

    Raises ValueError for NaN, infinities and strings that are not valid Unicode (a lone
    surrogate): those have no JSON form that every reader agrees on.
    """
    return _encoder.encode(value).encode()


def canonical_bytes(value: Mapping[str, JsonValue] | Sequence[JsonValue]) -> bytes:
    """As :func:`compact_bytes` with sorted keys: the form that digests are taken of."""
    return _canonical_encoder.encode(value).encode()


class LineError(ValueError):
    """A line, or an object, does not hold what its schema says; names the field and the value."""


class Fields:
    """Typed reading of one JSON object; unknown fields are ignored, wrong types are named.

    A field that is missing takes the default given; without a default it is an error.
    """

    __slots__ = ("_where", "value")

    def __init__(self, value: JsonValue, where: str) -> None:
        if not isinstance(value, dict):
            raise LineError(f"{where} is {_shown(value)}; expected a JSON object")
        self.value: JsonObject = value
        self._where = where

    def has(self, key: str) -> bool:
        """Whether the field is there and not null."""
        return self.value.get(key) is not None

    def text(self, key: str, default: str | None = None) -> str:
        """The string in the field."""
        value = self.value.get(key, default)
        if not isinstance(value, str):
            raise self.wrong(key, "a string")
        return value

    def opt_text(self, key: str) -> str | None:
        """The string, None where the field is missing or null."""
        return self.text(key) if self.has(key) else None

    def integer(self, key: str, default: int | None = None) -> int:
        """The integer in the field."""
        value = self.value.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.wrong(key, "an integer")
        return value

    def opt_integer(self, key: str) -> int | None:
        """The integer, None where the field is missing or null."""
        return self.integer(key) if self.has(key) else None

    def number(self, key: str, default: float | None = None) -> float:
        """The number in the field, as a float."""
        value = self.value.get(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self.wrong(key, "a number")
        return float(value)

    def opt_number(self, key: str) -> float | None:
        """The number, None where the field is missing or null."""
        return self.number(key) if self.has(key) else None

    def flag(self, key: str, default: bool | None = None) -> bool:
        """The truth value in the field."""
        value = self.value.get(key, default)
        if not isinstance(value, bool):
            raise self.wrong(key, "true or false")
        return value

    def items(self, key: str) -> list[JsonValue]:
        """The array in the field; an empty one where it is missing or null."""
        value = self.value.get(key)
        if value is None:
            return []
        if not isinstance(value, list):
            raise self.wrong(key, "an array")
        return value

    def child(self, key: str) -> Fields:
        """The object in the field."""
        return Fields(self.value.get(key), f"{self._where}.{key}")

    def where(self, key: str) -> str:
        """The field's full name, for messages."""
        return f"{self._where}.{key}"

    def wrong(self, key: str, expected: str) -> LineError:
        """The error for a field that does not hold what was expected."""
        shown = _shown(self.value[key]) if key in self.value else "missing"
        return LineError(f"{self._where}.{key} is {shown}; expected {expected}")


def _shown(value: JsonValue) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
