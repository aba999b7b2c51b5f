"""Whether a text in an output is a clock that was read during the run.

A time stamp differs between a recording and its replay because a clock was read in between. A
date that a program works with (a release, an expiry) differs because the program did something
else. The two look alike; what tells them apart is that the first lies within the run. So a text
counts as a clock's reading only if it names a moment of the recording or of the replay.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

# What a run shows may have been stamped shortly before it (its world was made then) or after
# (clocks round up); files restored from a snapshot keep their times and need no tolerance.
BEFORE_S = 120.0
AFTER_S = 5.0
_ZONE_STEP_S = 900.0  # every offset in use is a multiple of 15 minutes
_ZONE_MAX_S = 14 * 3600.0
_DAY_S = 86400.0

_MONTHS = b"Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split()
_MONTH = rb"(?:" + b"|".join(_MONTHS) + rb")"
_WEEKDAY = rb"(?:(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun),?[ ]{1,2})"
# A closed list: a word of capitals after a time may well be the message (OK, FAILED, TEST).
_ZONE_NAME = (
    rb"(?:UTC|GMT|Z|EST|EDT|CST|CDT|MST|MDT|PST|PDT|CET|CEST|BST|WET|WEST|EET|EEST|MSK|IST|JST|"
    rb"KST|SGT|HKT|AEST|AEDT|ACST|AWST|NZST|NZDT)"
)
_HMS = rb"\d\d:\d\d:\d\d(?:[.,]\d{1,9})?"

# One expression for each way of writing; the caller puts boundaries around them.
PATTERNS = {
    # ISO 8601 and RFC 3339, `2024/11/22 12:43:00` of Go's log, `12:43` for ls --time-style.
    "iso": rb"\d{4}[-/]\d\d[-/]\d\d[T _]\d\d:\d\d(?::\d\d(?:[.,]\d{1,9})?)?"
    rb"(?:[ ]?(?:Z|UTC|GMT|[+-]\d\d:?\d\d))?",
    # Basic format, as in file names.
    "compact": rb"\d{8}[T_-]?\d{6}Z?",
    # ctime(3), date(1), RFC 5322, `ls -l`, syslog.
    "ctime": _WEEKDAY
    + rb"?(?:"
    + _MONTH
    + rb"[ ]{1,2}\d{1,2}|\d{1,2} "
    + _MONTH
    + rb")(?: \d{4})? (?:"
    + _HMS
    + rb"|\d\d:\d\d)(?: [AP]M)?(?: (?:"
    + _ZONE_NAME
    + rb"|[+-]\d{4})(?!\w))?(?: \d{4}(?!\w))?",
    # Common Log Format.
    "clf": rb"\d\d/" + _MONTH + rb"/\d{4}:\d\d:\d\d:\d\d(?: [+-]\d{4})?",
    "clock": rb"\d{1,2}:\d\d:\d\d(?:[.,]\d{1,9})?(?: ?[AaPp][Mm])?",
    "day": rb"\d{4}[-/]\d\d[-/]\d\d",
    # Seconds, with a fraction or as milliseconds. Micro- and nanoseconds are left alone: at
    # that length a number is as likely a counter or an identity.
    "epoch": rb"[12]\d{9}(?:\d{3}|\.\d{1,9})?",
}

_ISO = re.compile(
    rb"(\d{4})[-/](\d\d)[-/](\d\d)[T _](\d\d):(\d\d)(?::(\d\d))?(?:[.,]\d+)?[ ]?([ZUG+-].*)?"
)
_COMPACT = re.compile(rb"(\d{4})(\d\d)(\d\d)[T_-]?(\d\d)(\d\d)(\d\d)(Z)?")
_CTIME_PARTS = re.compile(
    rb"(?P<month>" + _MONTH + rb")|(?P<hms>\d\d:\d\d(?::\d\d)?)|(?P<year>(?<![+-])\b\d{4}\b)|"
    rb"(?P<day>\b\d{1,2}\b)|(?P<pm>PM)|(?P<am>AM)|(?P<zone>[+-]\d{4}|UTC|GMT)|(?P<skip>[.,]\d{1,9})"
)
_CLF = re.compile(rb"(\d\d)/([A-Z][a-z][a-z])/(\d{4}):(\d\d):(\d\d):(\d\d)(?: ([+-]\d{4}))?")
_CLOCK = re.compile(rb"(\d{1,2}):(\d\d):(\d\d)")


@dataclass(frozen=True, slots=True)
class Span:
    """When something ran, in seconds since the epoch."""

    start_s: float
    end_s: float


class RunClock:
    """Knows when the recording and its replay ran.

    Both sides are held against both spans: a replay whose clock is controlled shows the
    recording's time.
    """

    def __init__(self, spans: tuple[Span, ...]) -> None:
        self._windows = tuple((span.start_s - BEFORE_S, span.end_s + AFTER_S) for span in spans)
        self._years = sorted(
            {datetime.fromtimestamp(edge, UTC).year for window in self._windows for edge in window}
        )

    def read(self, kind: str, text: bytes) -> bool:
        """Whether ``text``, matched by ``PATTERNS[kind]``, names a moment of one of the runs."""
        if not self._windows:
            return False
        try:
            return self._read(kind, text)
        except ValueError:  # a 13th month: no date at all
            return False

    def _read(self, kind: str, text: bytes) -> bool:
        if kind == "epoch":
            value = int(text) / 1000 if len(text) == 13 and b"." not in text else float(text)
            return self._within(value, 1.0, zoned=True)
        if kind == "day":
            year, month, day = (int(part) for part in re.split(rb"[-/]", text))
            return self._within(_moment(year, month, day), _DAY_S, zoned=False)
        if kind == "clock":
            return self._clock(text)
        if kind == "ctime":
            return any(
                self._within(value, resolution_s, zoned=zoned)
                for value, resolution_s, zoned in _ctime(text, self._years)
            )
        if kind == "clf":
            found = _CLF.match(text)
            if found is None or found[2] not in _MONTHS:
                return False
            day, year, *rest = (int(found[i]) for i in (1, 3, 4, 5, 6))
            value = _moment(year, _MONTHS.index(found[2]) + 1, day, *rest)
            return self._zoned(value, 1.0, found[7])
        found = (_COMPACT if kind == "compact" else _ISO).match(text)
        if found is None:
            return False
        parts = [int(part) for part in found.groups()[:6] if part is not None]
        return self._zoned(_moment(*parts), 1.0 if len(parts) == 6 else 60.0, found[7])

    def _zoned(self, value: float, resolution_s: float, zone: bytes | None) -> bool:
        offset = _offset(zone)
        return self._within(value - (offset or 0.0), resolution_s, zoned=offset is not None)

    def _within(self, value: float, resolution_s: float, *, zoned: bool) -> bool:
        for low, high in self._windows:
            earliest = low - resolution_s
            if earliest <= value <= high:
                return True
            if zoned:
                continue
            # Some offset of 15 minutes k must bring it into the window: the smallest that
            # reaches the near edge is the only candidate.
            distance = earliest - value if value < earliest else high - value
            steps = -(-distance // _ZONE_STEP_S) if value < earliest else distance // _ZONE_STEP_S
            shift = steps * _ZONE_STEP_S
            if abs(shift) <= _ZONE_MAX_S and earliest <= value + shift <= high:
                return True
        return False

    def _clock(self, text: bytes) -> bool:
        found = _CLOCK.match(text)
        if found is None:
            return False
        hour, minute, second = (int(part) for part in found.groups())
        if hour > 23 or minute > 59 or second > 60:
            return False
        # Neither day nor zone is known; minutes and seconds are, up to a quarter of an hour.
        value = float(hour * 3600 + minute * 60 + second)
        return any(
            (value - (low - 1.0)) % _ZONE_STEP_S <= high - low + 1.0 for low, high in self._windows
        )


def _ctime(text: bytes, years: list[int]) -> Iterator[tuple[float, float, bool]]:
    """The moments that a date in words can mean: without a year, one for each of ``years``."""
    parts = {str(found.lastgroup): found.group() for found in _CTIME_PARTS.finditer(text)}
    if not {"month", "day", "hms"} <= parts.keys():
        return
    clock = [int(part) for part in parts["hms"].split(b":")]
    if "pm" in parts or "am" in parts:
        clock[0] = clock[0] % 12 + (12 if "pm" in parts else 0)
    offset = _offset(parts.get("zone"))
    month = _MONTHS.index(parts["month"]) + 1
    for year in [int(parts["year"])] if "year" in parts else years:
        value = _moment(year, month, int(parts["day"]), *clock)
        yield value - (offset or 0.0), 1.0 if len(clock) == 3 else 60.0, offset is not None


def _moment(year: int, month: int, day: int, *clock: int) -> float:
    # As if it were UTC; the caller deals with the zone.
    hour, minute, second = (*clock, 0, 0, 0)[:3]
    return datetime(year, month, day, hour, minute, second, tzinfo=UTC).timestamp()


def _offset(zone: bytes | None) -> float | None:
    """Seconds east of UTC; None when the zone is not known."""
    if zone is None:
        return None
    if zone in (b"Z", b"UTC", b"GMT"):
        return 0.0
    digits = zone[1:].replace(b":", b"")
    seconds = int(digits[:2]) * 3600 + int(digits[2:]) * 60
    return float(-seconds if zone.startswith(b"-") else seconds)
