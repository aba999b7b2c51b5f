"""The identity of an action: one canonical encoding, its digest, and what differs between two.

The digest is the replay key (DESIGN §1), and what an approval binds to (DESIGN §8). Other
languages have to arrive at the same 64 hex digits, so the encoding is bencode (BEP 3): byte
strings, integers, lists, and dictionaries sorted by raw key, with exactly one encoding for each
value. docs/REPLAY.md lists the keys and has a test vector.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import blake3

from substrate_services.journal.schema import Action

ENCODING_VERSION = 1

Bencodable: TypeAlias = "bytes | str | int | Sequence[Bencodable] | Mapping[str, Bencodable]"

_SHOWN_BYTES = 60


def canonical_action(action: Action) -> bytes:
    """The bytes an action's digest is taken of.

    Order counts in argv and between variables of the same name (``getenv`` finds the first);
    it does not in the environment otherwise, in network rules or in limits. What is None is left
    out. ``first_pid`` is no part: it is known only after the step began, and an approval binds to
    the action before that.

    Raises:
        ValueError: the time-out is not a finite number, or a text is not valid Unicode.
    """
    fields: dict[str, Bencodable | _Encoded] = {
        "type": "substrate.action",
        "v": ENCODING_VERSION,
        **_fields(action),
        "env": _encoded_env(action.env),
    }
    out: list[bytes] = [b"d"]
    for key in sorted(fields):
        _bencode(key, out)
        value = fields[key]
        if isinstance(value, _Encoded):
            out.append(value.data)
        else:
            _bencode(value, out)
    out.append(b"e")
    return b"".join(out)


@dataclass(frozen=True, slots=True)
class _Encoded:
    """What is in bencode already."""

    data: bytes


# The larger part of an action, and the same for most steps of a world.
@functools.lru_cache(maxsize=256)
def _encoded_env(env: tuple[tuple[bytes, bytes], ...]) -> _Encoded:
    return _Encoded(bencode(_sorted_env(env)))


def action_digest(action: Action) -> str:
    """64 hex digits: BLAKE3 of :func:`canonical_action`."""
    return blake3.blake3(canonical_action(action)).hexdigest()


def describe_action_difference(recorded: Action, other: Action) -> tuple[str, ...]:
    """One line for each difference that makes the digests differ; empty when they are equal.

    Values are shortened and control characters escaped: the lines are for people.
    """
    before, after = _fields(recorded), _fields(other)
    # Compared name by name below; as one value the environment would drown what changed in it.
    for fields, action in ((before, recorded), (after, other)):
        del fields["env"]
        fields["umask"] = f"{action.umask:04o}"
    lines = [
        f"{key}: {_shown(before.get(key))} -> {_shown(after.get(key))}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    ]
    return (*lines, *_env_difference(recorded.env, other.env))


def bencode(value: Bencodable) -> bytes:
    """``value`` in bencode; text is encoded as UTF-8, truth values as 0 and 1."""
    out: list[bytes] = []
    _bencode(value, out)
    return b"".join(out)


def _bencode(value: Bencodable, out: list[bytes]) -> None:
    if isinstance(value, str):
        value = value.encode()
    if isinstance(value, bytes):
        out.append(b"%d:" % len(value))
        out.append(value)
    elif isinstance(value, int):
        out.append(b"i%de" % value)
    elif isinstance(value, Mapping):
        out.append(b"d")
        # UTF-8 keeps the order of code points, so sorting text sorts the raw keys.
        for key in sorted(value):
            _bencode(key, out)
            _bencode(value[key], out)
        out.append(b"e")
    else:
        out.append(b"l")
        for item in value:
            _bencode(item, out)
        out.append(b"e")


def _fields(action: Action) -> dict[str, Bencodable]:
    fields: dict[str, Bencodable] = {
        "argv": list(action.command.argv),
        "cwd": action.cwd,
        "env": _sorted_env(action.env),
        "limits": dict(action.limits),
        "network": sorted(set(action.network)),
        "policy": action.policy_hash,
        "profile": action.profile,
        "pty": int(action.pty),
        "umask": action.umask,
        "user": action.user,
    }
    if action.command.shell is not None:
        fields["shell"] = action.command.shell
    if action.stdin_digest is not None:
        fields["stdin"] = action.stdin_digest
    if action.pty_size is not None:
        fields["pty_size"] = list(action.pty_size)
    if action.snapshot_id is not None:
        fields["snapshot"] = action.snapshot_id
    if action.timeout_s is not None:
        fields["timeout_us"] = _microseconds(action.timeout_s)
    return fields


def _sorted_env(env: Sequence[tuple[bytes, bytes]]) -> list[list[bytes]]:
    # Stable: the order of equal names stays.
    return [[name, value] for name, value in sorted(env, key=lambda pair: pair[0])]


def _microseconds(seconds: float) -> int:
    microseconds = seconds * 1_000_000
    if not math.isfinite(microseconds):
        raise ValueError(f"timeout_s is {seconds}; an action needs a finite number or none")
    return round(microseconds)


def _env_difference(
    recorded: Sequence[tuple[bytes, bytes]], other: Sequence[tuple[bytes, bytes]]
) -> list[str]:
    before, after = _by_name(recorded), _by_name(other)
    lines: list[str] = []
    for name in sorted(before.keys() | after.keys()):
        old, new = before.get(name, []), after.get(name, [])
        if old == new:
            continue
        where = f"env {_text(name)}"
        if not new:
            lines.append(f"{where}: was {_values(old)}, is not set")
        elif not old:
            lines.append(f"{where}: was not set, is {_values(new)}")
        else:
            lines.append(f"{where}: {_values(old)} -> {_values(new)}")
    return lines


def _by_name(env: Sequence[tuple[bytes, bytes]]) -> dict[bytes, list[bytes]]:
    found: dict[bytes, list[bytes]] = {}
    for name, value in env:
        found.setdefault(name, []).append(value)
    return found


def _values(values: list[bytes]) -> str:
    return _shown(values[0] if len(values) == 1 else values)


def _shown(value: Bencodable | None) -> str:
    if value is None:
        return "none"
    if isinstance(value, (bytes, str)):
        return f'"{_text(value)}"'
    if isinstance(value, Mapping):
        items = (f"{_text(key)}={_shown(item)}" for key, item in sorted(value.items()))
        return _cut("{" + ", ".join(items) + "}")
    if isinstance(value, Sequence):
        return _cut("[" + ", ".join(_shown(item) for item in value) + "]")
    return str(value)


def _text(value: bytes | str) -> str:
    text = value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else value
    return _cut(
        "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    )


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN_BYTES else text[: _SHOWN_BYTES - 1] + "…"
