"""The forms that volatile values have in text, as regular expressions over bytes.

Each is bounded, so that trying it at one position costs a bounded time, and each is tried only on
lines that can hold it: most lines of most outputs are looked at for digits alone.
"""

from __future__ import annotations

import re

from substrate_services.replay.times import PATTERNS

TIME_FORMS = frozenset(PATTERNS)

# What replaces a value. The forms below match none of these, nor parts of them.
PLACEHOLDER = (
    rb"<(?:temp_name|host_name|world_root|world_id|session_id|exec_id|time|uuid|address|duration|"
    rb"(?:pid|span_id):\d{1,6})>"
)
CONTROL_SEQUENCE = rb"\x1b\[[0-9;]{0,16}[A-Za-z]"  # ECMA-48: colours and cursor movements
TEMP_NAME = rb"(?:tmp[a-z0-9_]{8}|tmp\.[A-Za-z0-9]{10}|cc[A-Za-z0-9]{6}(?=\.[a-z]))"

_HEX = rb"[0-9a-fA-F]"
# Where a number may begin: not inside a word or a number, but right after a colour code.
_EDGE = (
    rb"(?:(?<![\w.])|(?<=\x1b\[\dm)|(?<=\x1b\[\d\dm)|(?<=\x1b\[\d;\d\dm)|(?<=\x1b\[\d;\d;\d\dm))"
)

# A pid is a small number: only where the text says that it is one.
_PID = (
    rb"(?:(?<!\w)(?i:pp?id|pgid|process)[\"']?[ \t]?[=:#]?[ \t]?|/proc/)\d{1,7}(?!\w)"
    rb"|(?<=\w)\[\d{1,7}\]:"
)
# By form and then by look-up, as a step may have thousands of process spans.
_SPAN_ID = rb"(?<!\w)[0-9a-f]{16}(?:[0-9a-f]{16})?(?!\w)"
# Random and time-based versions; 3, 5 and 8 are computed from a name, so theirs is a result.
_UUID = rb"(?<!\w)H{8}-H{4}-[1467]H{3}-[89abAB]H{3}-H{12}(?!\w)".replace(b"H", _HEX)
# User-space pointers of x86-64, aarch64 and Go; shorter ones only where Python's repr has them.
_ADDRESS = (
    rb"(?<!\w)0x(?:0000)?(?:[567]H{11}|(?:ffff|aaaa)H{8}|c0H{8})(?!\w)|(?<= at )0xH{5,16}(?!\w)"
).replace(b"H", _HEX)

_SECONDS = rb"(?:s|secs?|seconds?)"
_DURATION = (
    rb"(?:"
    rb"(?:\d{1,3}h[ ]?)?\d{1,4}m[ ]?\d{1,2}(?:\.\d{1,9})?s"  # bash's time, cargo
    rb"|\d{1,9}\.\d{1,9}[ ]?" + _SECONDS + rb"(?:[ ]\(\d{1,4}:\d\d:\d\d\))?"  # pytest, unittest, go
    rb"|\d{1,12}(?:\.\d{1,9})?[ ]?(?:ms|msecs?|milliseconds?|us|usecs?|\xc2\xb5s|\xce\xbcs"
    rb"|microseconds?|ns|nsecs?|nanoseconds?)(?:/op|/iter)?"
    # Whole seconds are as often a setting as a measurement; only after these words.
    rb"|(?:(?<=\Win )|(?<=\Ain )|(?<=took )|(?<=took: )|(?<=elapsed )|(?<=elapsed: )|(?<=elapsed=)"
    rb"|(?<=duration: )|(?<=duration=))\d{1,7}[ ]?"
    + _SECONDS
    + rb"|(?:(?<=\Areal )|(?<=\Auser )|(?<=\Asys ))\d{1,6}\.\d\d"  # time -p
    rb")(?!\w)"
)

# In the order they are tried at one position: the longest first.
_NUMERIC = {
    "iso": PATTERNS["iso"] + rb"(?![\w:])",
    "clf": PATTERNS["clf"] + rb"(?![\w:])",
    "compact": PATTERNS["compact"] + rb"(?!\w)",
    "clock": rb"(?<!:)" + PATTERNS["clock"] + rb"(?![\w:])",
    "day": PATTERNS["day"] + rb"(?![\w:-])",
    "epoch": PATTERNS["epoch"] + rb"(?!\w|\.\d)",
    "duration": _DURATION,
}
_WITH_COLON = frozenset({"iso", "clf", "clock"})


class Scanner:
    """Gives the expression to look for volatile values with, for a line.

    Args:
        literals: an expression for the recorded texts to look for; empty when there are none.
        pids: whether there are pids to look for.
        span_ids: whether there are span ids to look for.

    Each match's ``lastgroup`` names the form: ``literal``, ``placeholder``, ``control``, ``pid``,
    ``span_id``, ``uuid``, ``address``, ``duration``, ``temp_path`` or one of TIME_FORMS.
    """

    def __init__(self, literals: bytes, *, pids: bool, span_ids: bool) -> None:
        self._literals = literals
        self._pids = pids
        self._span_ids = span_ids
        self._compiled: dict[tuple[bool, ...], re.Pattern[bytes]] = {}

    def pattern(self, line: bytes) -> re.Pattern[bytes] | None:
        """The expression; None when the line can hold nothing volatile."""
        digits = _DIGIT.search(line) is not None
        if not digits and not self._literals and b"<" not in line:
            return None
        key = (
            b"<" in line,
            b"\x1b" in line,
            digits,
            b":" in line,
            line.count(b"-") >= 4,
            b"0x" in line,
            b"/tmp/" in line,
        )
        found = self._compiled.get(key)
        if found is None:
            found = self._compiled[key] = self._compile(*key)
        return found

    def _compile(self, *key: bool) -> re.Pattern[bytes]:
        angle, escape, digits, colon, dashes, hexadecimal, temp = key
        forms = {
            # First, so that what is normalised already passes through: twice does no harm.
            "placeholder": PLACEHOLDER if angle else b"",
            "control": CONTROL_SEQUENCE if escape else b"",
            "literal": self._literals,
            "span_id": _SPAN_ID if self._span_ids else b"",
            "pid": _PID if self._pids and digits else b"",
            "uuid": _UUID if dashes else b"",
            "address": _ADDRESS if hexadecimal else b"",
            "ctime": rb"(?<!\w)" + PATTERNS["ctime"] + rb"(?![\w:])" if colon and digits else b"",
            "temp_path": rb"/tmp/" + TEMP_NAME + rb"(?!\w)" if temp else b"",
        }
        named = [_named(name, body) for name, body in forms.items() if body]
        if digits:
            numeric = [
                _named(name, body)
                for name, body in _NUMERIC.items()
                if colon or name not in _WITH_COLON
            ]
            # The digit is asked for first: most positions end there.
            named.append(rb"(?=\d)" + _EDGE + rb"(?:" + b"|".join(numeric) + rb")")
        return re.compile(b"|".join(named))


def _named(name: str, body: bytes) -> bytes:
    return b"(?P<%s>%s)" % (name.encode(), body)


_DIGIT = re.compile(rb"\d")
