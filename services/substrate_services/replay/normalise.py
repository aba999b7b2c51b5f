"""Sets aside what differs between any two runs of the same program: times, pids, names of chance.

The danger is not in missing such a value (a person sees it at once) but in hiding a difference
that is real. So every rule asks for evidence: a recorded fact, or a form that can hardly mean
anything else, in a place where it decorates a line. docs/REPLAY.md argues for each rule.

Everything works on bytes, line by line, in time linear in the line's length: no expression nests
one unbounded repetition in another, and a line longer than MAX_LINE_BYTES is not touched at all.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from substrate_services.replay.forms import (
    CONTROL_SEQUENCE,
    PLACEHOLDER,
    TEMP_NAME,
    TIME_FORMS,
    Scanner,
)
from substrate_services.replay.times import RunClock, Span

Rule: TypeAlias = Literal[
    "pid",
    "temp_name",
    "host_name",
    "world_root",
    "world_id",
    "session_id",
    "exec_id",
    "span_id",
    "time",
    "uuid",
    "address",
    "duration",
    "placeholder",
]

MAX_LINE_BYTES = 1 << 20
MAX_LITERALS = 64  # temporary names looked for; each costs time at every position
_MIN_LITERAL_BYTES = 4  # shorter names are found everywhere by chance
_MAX_IDENTITIES = 10_000  # pairs remembered for rules whose values must correspond

_IDENTITY_RULES: frozenset[Rule] = frozenset({"uuid", "temp_name"})

# A duration after one of these is what somebody set, not what was measured.
_SETTING = re.compile(
    rb"(?i:time-?_?out|limit|interval|delay|budget|deadline|sleep(?:ing)?|wait(?:ing)?|retry(?:ing)?"
    rb"|ttl|expir(?:es|y)|period|threshold|tolerance|back-?off|every|each|per|timed out after)"
    rb"[_a-z]{0,3}[\"']?[ \t]?[:=(<>~]{0,2}[ \t]?[\"']?(?:(?:of|to|is|in|for|at)[ \t])?\Z"
)
_SETTING_BYTES = 40
_DIGIT = re.compile(rb"\d")
_NUMBER = re.compile(rb"\d{1,7}")
_MARKUP = re.compile(PLACEHOLDER + rb"|" + CONTROL_SEQUENCE)
_SUBSTANCE = re.compile(rb"[0-9A-Za-z\x80-\xff]")
_BORDER = re.compile(rb"={2,}")
_TEMP_NAME = re.compile(rb"/tmp/(" + TEMP_NAME + rb"(?:\.[a-z]{1,4})?)(?:/|\Z)")


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What is known about one run and differs from run to run."""

    started_at: float | None = None  # seconds since the epoch; without it no time is set aside
    duration_s: float = 0.0
    pids: tuple[int, ...] = ()  # in order of their start
    temp_names: tuple[bytes, ...] = ()  # last components, as mkstemp(3) made them
    host_name: bytes = b""
    world_root: bytes = b""  # where the host mounts the world's tree
    world_id: str = ""
    session_id: str = ""
    exec_id: str = ""
    span_ids: tuple[str, ...] = ()  # trace, exec, parent, processes: the same order on both sides


@dataclass(frozen=True, slots=True)
class Token:
    """One value that a rule matched."""

    rule: Rule
    raw: bytes
    fact: bool = False  # known from the recording, not guessed from its form


@dataclass(frozen=True, slots=True)
class NormalisedLine:
    """A line with placeholders, and the values they stand for, in order."""

    text: bytes
    tokens: tuple[Token, ...] = ()


@dataclass(frozen=True, slots=True)
class SetAside:
    """An example of a value that differed and was not counted as a difference."""

    rule: Rule
    recorded: bytes
    replayed: bytes


@dataclass(slots=True)
class _Known:
    """The facts of one side that the other side does not share."""

    pids: dict[bytes, bytes] = field(default_factory=dict)  # digits → placeholder
    span_ids: dict[bytes, bytes] = field(default_factory=dict)  # hex → placeholder
    literals: dict[bytes, Rule] = field(default_factory=dict)


class Normaliser:
    """Puts placeholders for volatile values into the lines of one side of a comparison."""

    def __init__(self, known: _Known, clock: RunClock) -> None:
        self._known = known
        self._clock = clock
        self._scanner = Scanner(
            _literals(known.literals), pids=bool(known.pids), span_ids=bool(known.span_ids)
        )
        temp_names = {text: rule for text, rule in known.literals.items() if rule == "temp_name"}
        self._temp_names = re.compile(_literals(temp_names)) if temp_names else None

    def line(self, line: bytes) -> NormalisedLine:
        """``line`` with placeholders.

        A line that would be nothing but placeholders stays as it is, unless recorded facts
        explain it: a value that stands alone is what the program was asked for (``uuidgen``,
        ``date +%s``), not decoration. Lines above MAX_LINE_BYTES stay as they are too.
        """
        if len(line) > MAX_LINE_BYTES:
            return NormalisedLine(line)
        pattern = self._scanner.pattern(line)
        if pattern is None:
            return NormalisedLine(line)
        tokens: list[Token] = []
        text = pattern.sub(lambda found: self._replace(found, line, tokens), line)
        if all(token.rule == "placeholder" for token in tokens):
            return NormalisedLine(line, tuple(tokens))
        if (
            not any(token.fact for token in tokens)
            and _SUBSTANCE.search(_MARKUP.sub(b"", text)) is None
        ):
            return NormalisedLine(line)
        if b"==" in text and any(token.rule == "duration" for token in tokens):
            text = _even_border(text)
        return NormalisedLine(text, tuple(tokens))

    def path(self, path: bytes) -> bytes:
        """``path`` with placeholders for recorded temporary names, and for nothing else."""
        return path if self._temp_names is None else self._temp_names.sub(b"<temp_name>", path)

    def names_in(self, path: bytes) -> list[Token]:
        """The recorded temporary names in ``path``, in order."""
        found = [] if self._temp_names is None else self._temp_names.findall(path)
        return [Token("temp_name", name, fact=True) for name in found]

    def _replace(self, found: re.Match[bytes], line: bytes, tokens: list[Token]) -> bytes:
        name, raw = str(found.lastgroup), found.group()
        if name in TIME_FORMS:
            if not self._clock.read(name, raw):
                return raw
            tokens.append(Token("time", raw))
            return b"<time>"
        if name == "pid":
            return self._pid(raw, tokens)
        if name == "span_id":
            placeholder = self._known.span_ids.get(raw)
            if placeholder is None:
                return raw
            tokens.append(Token("span_id", raw, fact=True))
            return placeholder
        if name == "literal":
            rule = self._known.literals[raw]
            tokens.append(Token(rule, raw, fact=True))
            return b"<%s>" % rule.encode()
        if name == "temp_path":
            prefix, _, base = raw.rpartition(b"/")
            tokens.append(Token("temp_name", base, fact=base in self._known.literals))
            return prefix + b"/<temp_name>"
        if name == "duration":
            return _duration(
                raw, line[max(0, found.start() - _SETTING_BYTES) : found.start()], tokens
            )
        if name == "control":
            return raw
        if name == "placeholder":
            tokens.append(Token("placeholder", raw))
            return raw
        tokens.append(Token("uuid" if name == "uuid" else "address", raw))
        return b"<%s>" % name.encode()

    def _pid(self, raw: bytes, tokens: list[Token]) -> bytes:
        number = _NUMBER.search(raw)
        assert number is not None
        placeholder = self._known.pids.get(number.group())
        if placeholder is None:
            return raw
        tokens.append(Token("pid", number.group(), fact=True))
        return raw[: number.start()] + placeholder + raw[number.end() :]


class PairNormaliser:
    """Decides whether two lines are the same but for volatile values, and counts those.

    ``hits`` has, for each rule, how many values differed and were set aside; ``samples`` the
    first such pair of each rule. UUIDs and temporary names must correspond one to one through
    the whole comparison: one that came twice in the recording must come twice in the replay.
    """

    def __init__(self, recorded: RunFacts, replayed: RunFacts) -> None:
        clock = RunClock(tuple(_spans((recorded, replayed))))
        known = _unshared(recorded, replayed)
        self.recorded = Normaliser(known[0], clock)
        self.replayed = Normaliser(known[1], clock)
        self.hits: dict[str, int] = {}
        self.samples: list[SetAside] = []
        self._forth: dict[tuple[Rule, bytes], bytes] = {}
        self._back: dict[tuple[Rule, bytes], bytes] = {}

    def same(self, recorded: bytes, replayed: bytes) -> bool:
        """Whether two lines are equal after normalisation; equal bytes are equal at once."""
        if recorded == replayed:
            return True
        before, after = self.recorded.line(recorded), self.replayed.line(replayed)
        if before.text != after.text or len(before.tokens) != len(after.tokens):
            return False
        pairs = list(zip(before.tokens, after.tokens, strict=True))
        if any(old.rule != new.rule for old, new in pairs) or not self._correspond(pairs):
            return False
        self._count(pairs)
        return True

    def forms(self, recorded: bytes, replayed: bytes) -> tuple[bytes, bytes]:
        """Both lines with placeholders."""
        return self.recorded.line(recorded).text, self.replayed.line(replayed).text

    def same_path(self, recorded: bytes, replayed: bytes) -> bool:
        """Whether two paths differ in recorded temporary names only."""
        if recorded == replayed:
            return True
        if self.recorded.path(recorded) != self.replayed.path(replayed):
            return False
        names = self.recorded.names_in(recorded), self.replayed.names_in(replayed)
        if len(names[0]) != len(names[1]):  # one of them holds a literal placeholder
            return False
        pairs = list(zip(*names, strict=True))
        if not self._correspond(pairs):
            return False
        self._count(pairs)
        return True

    def _correspond(self, pairs: Sequence[tuple[Token, Token]]) -> bool:
        forth: dict[tuple[Rule, bytes], bytes] = {}
        back: dict[tuple[Rule, bytes], bytes] = {}
        for old, new in pairs:
            if old.rule not in _IDENTITY_RULES:
                continue
            there, here = (old.rule, old.raw), (old.rule, new.raw)
            if self._forth.get(there, forth.get(there, new.raw)) != new.raw:
                return False
            if self._back.get(here, back.get(here, old.raw)) != old.raw:
                return False
            forth[there], back[here] = new.raw, old.raw
        if len(self._forth) < _MAX_IDENTITIES:
            self._forth.update(forth)
            self._back.update(back)
        return True

    def _count(self, pairs: Iterable[tuple[Token, Token]]) -> None:
        for old, new in pairs:
            if old.raw == new.raw:
                continue
            if old.rule not in self.hits:
                self.samples.append(SetAside(old.rule, old.raw, new.raw))
            self.hits[old.rule] = self.hits.get(old.rule, 0) + 1


def find_temp_names(paths: Iterable[bytes]) -> tuple[bytes, ...]:
    """The names below /tmp in ``paths`` that have the form of mkstemp(3)'s, in order, once each.

    Give it the paths that a run created or opened; its facts then rest on what was recorded.
    """
    found: dict[bytes, None] = {}
    for path in paths:
        match = _TEMP_NAME.search(path)
        if match is not None:
            found.setdefault(match[1])
    return tuple(found)


def _duration(raw: bytes, preceding: bytes, tokens: list[Token]) -> bytes:
    digit = _DIGIT.search(raw)
    assert digit is not None
    prefix = raw[: digit.start()]
    if _SETTING.search(preceding + prefix) is not None:
        return raw
    tokens.append(Token("duration", raw[digit.start() :]))
    return prefix + b"<duration>"


def _even_border(text: bytes) -> bytes:
    """Undo pytest's centring: it fills its last line up with ``=``, fewer for a longer time."""
    shown = _MARKUP.sub(lambda found: found.group() if found.group()[:1] == b"<" else b"", text)
    shown = shown.strip()
    if shown.startswith(b"=") and shown.endswith(b"="):
        return _BORDER.sub(b"=", text)
    return text


def _spans(runs: Iterable[RunFacts]) -> Iterable[Span]:
    for run in runs:
        if run.started_at is not None:
            yield Span(run.started_at, run.started_at + run.duration_s)


def _unshared(recorded: RunFacts, replayed: RunFacts) -> tuple[_Known, _Known]:
    """Each side's facts, without those that are equal on both: they need no placeholder."""
    sides = (_Known(), _Known())
    runs = (recorded, replayed)
    for index, pair in enumerate(zip(recorded.pids, replayed.pids, strict=False)):
        if pair[0] != pair[1]:
            for side, pid in zip(sides, pair, strict=True):
                side.pids[b"%d" % pid] = b"<pid:%d>" % index
    for index, spans in enumerate(zip(recorded.span_ids, replayed.span_ids, strict=False)):
        if spans[0] != spans[1]:
            for side, span_id in zip(sides, spans, strict=True):
                if len(span_id) in (16, 32):
                    side.span_ids[span_id.encode()] = b"<span_id:%d>" % index
    shared = set(recorded.temp_names) & set(replayed.temp_names)
    for side, run in zip(sides, runs, strict=True):
        names = [name for name in run.temp_names if name not in shared]
        for name in names[:MAX_LITERALS]:
            _add_literal(side, name, "temp_name")
    single: tuple[tuple[Rule, bytes, bytes], ...] = (
        ("host_name", recorded.host_name, replayed.host_name),
        ("world_root", recorded.world_root, replayed.world_root),
        ("world_id", recorded.world_id.encode(), replayed.world_id.encode()),
        ("session_id", recorded.session_id.encode(), replayed.session_id.encode()),
        ("exec_id", recorded.exec_id.encode(), replayed.exec_id.encode()),
    )
    for rule, old, new in single:
        if old != new:
            _add_literal(sides[0], old, rule)
            _add_literal(sides[1], new, rule)
    return sides


def _add_literal(side: _Known, text: bytes, rule: Rule) -> None:
    if len(text) >= _MIN_LITERAL_BYTES:
        side.literals[text] = rule


def _literals(literals: Mapping[bytes, Rule]) -> bytes:
    """One expression for all of them, the longest first; empty when there are none."""
    if not literals:
        return b""
    longest_first = sorted(literals, key=lambda text: (-len(text), text))
    return rb"(?<![\w-])(?:" + b"|".join(re.escape(text) for text in longest_first) + rb")(?![\w-])"
