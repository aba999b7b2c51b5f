"""Bytes in JSON: a string when they are valid UTF-8, else ``{"b64": "…"}``.

argv, environments and paths are bytes on Linux. Most are UTF-8 and should read as text in
``trace.jsonl``; the others must survive too, byte for byte. The two forms cannot be confused,
and each byte string has exactly one of them, so that digests of the JSON are stable.
"""

from __future__ import annotations

import base64
import binascii

from substrate_services.journal.jsontypes import JsonObject, JsonValue, LineError


def encode(data: bytes) -> str | JsonObject:
    """The JSON form of ``data``."""
    try:
        # Strict decoding also refuses encoded surrogates and over-long forms, so what comes
        # back from text.encode() is what went in.
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return {"b64": base64.b64encode(data).decode("ascii")}


def decode(value: JsonValue, where: str = "value") -> bytes:
    """The bytes that :func:`encode` wrote; ``where`` names the field in the error.

    Raises LineError when the value has neither form.
    """
    if isinstance(value, str):
        try:
            return value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise LineError(f"{where} holds a lone surrogate; expected valid Unicode") from error
    if isinstance(value, dict):
        b64 = value.get("b64")
        if isinstance(b64, str):
            try:
                return base64.b64decode(b64, validate=True)
            except (binascii.Error, ValueError) as error:
                raise LineError(f"{where}.b64 is not base64: {error}") from error
    raise LineError(f'{where} is {value!r:.80}; expected a string or {{"b64": "…"}}')


def display(data: bytes) -> str:
    """``data`` as text for people: what is not UTF-8 is replaced, so it cannot be read back."""
    return data.decode("utf-8", "replace")
