"""How one rule's pattern is matched against one simple command.

Three forms, told apart by how they are written:

* ``git push:*``   prefix: these words, then anything.
* ``rm -rf *``     glob: ``* ? [abc] [!abc]`` over the words joined with single spaces.
* ``make test``    exact: these words and no others (also given as a list).

A command's words can be unknown until it runs (``rm $X``), so there are three questions:
``matches`` (as spelled: for rules that restrict), ``surely_matches`` (whatever the unknown parts
become: for rules that allow) and ``could_match`` (for some value of them).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from substrate_services.broker.commands import SimpleCommand, command_name
from substrate_services.broker.shell import parse_script
from substrate_services.broker.shell_types import Word

PatternForm = Literal["prefix", "glob", "exact"]
_UNKNOWN = b"\0"  # stands for an unknown part; no argv holds a NUL
_GLOB_CHARS = re.compile(rb"[*?\[]")
_TRUSTED_DIRS = (
    b"/bin/", b"/usr/bin/", b"/sbin/", b"/usr/sbin/", b"/usr/local/bin/", b"/usr/local/sbin/",
)  # fmt: skip
_Token = int | bytes  # a byte's value, or the set of bytes a class admits
_STAR = -1


class PatternError(ValueError):
    """The pattern is malformed or can never match; the message says which and what to write."""


class View:
    """A simple command in the shapes that matching needs, worked out once."""

    __slots__ = ("dynamic", "full", "known", "name", "segments", "sure", "text", "words")

    def __init__(self, command: SimpleCommand) -> None:
        first = command.words[0]
        self.name = command_name(first)
        self.dynamic = command.dynamic
        tail = tuple(word.text for word in command.words[1:])
        name = first.text.rsplit(b"/", 1)[-1] if self.name is None else self.name
        self.words: tuple[bytes, ...] = (name, *tail)
        self.text = b" ".join(self.words)
        path = first.text if b"/" in first.text else None
        self.full: tuple[bytes, ...] | None = (path, *tail) if path is not None else None
        trusted = path is None or path[: path.rfind(b"/") + 1] in _TRUSTED_DIRS
        if self.dynamic:
            self.sure = _joined(command.words, first if first.parts else Word(name))
            known = Word(name) if self.name is not None and not first.vanishes else None
            self.segments = _segments(_joined(command.words, known))
        else:
            self.sure = self.text
            self.segments = [self.text]
        if not trusted and not first.parts:
            self.sure = b" ".join(self.full or ())  # ./git is not git
        self.known = self._known(command.words, first.text if not trusted else name)

    @staticmethod
    def _known(words: tuple[Word, ...], name: bytes) -> tuple[bytes, ...]:
        """The words before the first unknown one, which are what they are whatever it becomes."""
        known: list[bytes] = []
        for word in words:
            if word.parts:
                break
            known.append(word.text if known else name)
        return tuple(known)


def _joined(words: Sequence[Word], first: Word | None) -> bytes:
    """Words with a NUL for each unknown part; ``first`` None makes the command wholly unknown."""
    out = bytearray(_UNKNOWN if first is None else _masked(first))
    for word in words[1:]:
        if not word.vanishes:
            out += b" "
        out += _masked(word)
    return bytes(out)


def _masked(word: Word) -> bytes:
    if not word.parts:
        return word.text
    return b"".join(_UNKNOWN if part is None else part for part in word.parts)


def _segments(masked: bytes) -> list[bytes]:
    return masked.split(_UNKNOWN)


@dataclass(frozen=True, slots=True)
class Pattern:
    """A compiled pattern. Build with ``compile_pattern`` or ``exact_pattern``.

    Attributes:
        spec: as written, for people.
        form: prefix, glob or exact.
        words: of a prefix or exact pattern.
        regex: of a glob.
        tokens: the pattern as byte values, byte sets and stars.
        first: the literal command name it needs; None when a glob leaves it open.
        by_path: it names the command by its path, which then counts instead of the base name.
        head, tail: the tokens before the first star, and those after the last one reversed.
    """

    spec: str
    form: PatternForm
    words: tuple[bytes, ...]
    regex: re.Pattern[bytes] | None
    tokens: tuple[_Token, ...]
    first: bytes | None
    head: tuple[_Token, ...] = ()
    tail: tuple[_Token, ...] = ()
    by_path: bool = False

    def matches(self, view: View) -> bool:
        """True when the command as spelled is one the pattern names."""
        if self.by_path and view.full is None:
            return False
        words = (view.full or view.words) if self.by_path else view.words
        if self.form == "prefix":
            return words[: len(self.words)] == self.words
        if self.form == "exact":
            return words == self.words
        text = b" ".join(words) if self.by_path else view.text
        return self.regex is not None and self.regex.match(text) is not None

    def surely_matches(self, view: View) -> bool:
        """True when the command matches whatever its unknown parts turn out to be."""
        if self.by_path and not view.dynamic:
            return self.matches(view)
        if self.form == "glob":
            return self.regex is not None and self.regex.match(view.sure) is not None
        known = view.known
        if self.form == "exact":
            return known == self.words and not view.dynamic
        return known[: len(self.words)] == self.words

    def could_match(self, view: View) -> bool:
        """True when some value of the unknown parts would make the command match."""
        segments = view.segments
        if self.by_path:
            segments = [b"", *segments[1:]] if len(segments) > 1 else segments
        if len(segments) < 2:
            return self.matches(view)
        if _STAR in self.tokens:
            return _agree(self.head, segments[0]) and _agree(self.tail, segments[-1][::-1])
        return _fits(self.tokens, segments)


def _ends(tokens: tuple[_Token, ...]) -> tuple[tuple[_Token, ...], tuple[_Token, ...]]:
    """The tokens before the first star and, reversed, those after the last."""
    if _STAR not in tokens:
        return (), ()
    backwards = tokens[::-1]
    return tokens[: tokens.index(_STAR)], backwards[: backwards.index(_STAR)]


def _admits(token: _Token, byte: int) -> bool:
    return byte in token if isinstance(token, bytes) else token == byte


def _agree(tokens: Sequence[_Token], text: bytes) -> bool:
    """One of the two can be the beginning of the other."""
    if not tokens or not text:
        return True
    return all(_admits(token, byte) for token, byte in zip(tokens, text, strict=False))


def _fits(tokens: tuple[_Token, ...], segments: Sequence[bytes]) -> bool:
    """The star-free tokens can be ``segments`` with anything in between."""

    def at(position: int, text: bytes) -> bool:
        return all(_admits(tokens[position + i], byte) for i, byte in enumerate(text))

    if sum(map(len, segments)) > len(tokens):
        return False
    last = len(tokens) - len(segments[-1])
    if not at(0, segments[0]) or not at(last, segments[-1]):
        return False
    position = len(segments[0])
    for segment in segments[1:-1]:
        while position + len(segment) <= last and not at(position, segment):
            position += 1
        if position + len(segment) > last:
            return False
        position += len(segment)
    return True


def compile_pattern(spec: str) -> Pattern:
    """Compile one pattern string.

    Raises:
        PatternError: it is empty, malformed, or can never match a simple command.
    """
    text = spec.strip().encode()
    if not text:
        raise PatternError(
            "an empty pattern never matches; write a command, for example `git push:*`"
        )
    if text == b":*":
        raise PatternError("`:*` names no command; write `*` to match every command")
    if text.endswith(b":*"):
        words = _pattern_words(text[:-2], spec)
        if any(word.parts for word in words):
            raise PatternError(
                f"`{spec}` mixes a prefix with wildcards; "
                f"write `{spec[:-2].rstrip()} *` for a glob, or plain words before `:*`"
            )
        return _from_words(spec, "prefix", tuple(word.text for word in words))
    if not _GLOB_CHARS.search(text):
        words = _pattern_words(text, spec)
        if any(word.parts for word in words):
            raise PatternError(
                f"`{spec}` holds a shell expansion, which never stands in a command's words as "
                "written; use `*` in its place"
            )
        return _from_words(spec, "exact", tuple(word.text for word in words))
    _pattern_words(text, spec)
    tokens, regex = _compile_glob(text, spec)
    head = re.match(rb"[^*?\[ ]+(?= )", text)
    by_path = b"/" in text.split(b" ", 1)[0]
    return Pattern(
        spec, "glob", (), regex, tokens, head[0] if head else None, *_ends(tokens), by_path
    )


def exact_pattern(words: Sequence[str]) -> Pattern:
    """The pattern of an exact argv.

    Raises:
        PatternError: there are no words, or the first is empty.
    """
    if not words or not words[0]:
        raise PatternError("an empty argv never matches; give the command and its arguments")
    if any("\0" in word for word in words):
        raise PatternError("an argv never holds a NUL byte")
    return _from_words(" ".join(words), "exact", tuple(word.encode() for word in words))


def _from_words(spec: str, form: PatternForm, words: tuple[bytes, ...]) -> Pattern:
    if not words or not words[0]:
        raise PatternError(f"`{spec}` names no command, so it never matches")
    tokens: list[_Token] = list(b" ".join(words))
    if form == "prefix":
        tokens.append(_STAR)
    return Pattern(
        spec, form, words, None, tuple(tokens), words[0], *_ends(tuple(tokens)), b"/" in words[0]
    )


def _pattern_words(text: bytes, spec: str) -> tuple[Word, ...]:
    """The pattern read as shell: it has to be one simple command and nothing else."""
    commands, error = parse_script(text)
    if error is not None:
        raise PatternError(f"`{spec}` is not a command: {error.reason}")
    if len(commands) != 1:
        raise PatternError(
            f"`{spec}` never matches: rules see one simple command at a time, without `;`, `|`, "
            "`&&`, assignments or redirections; write one rule for each command"
        )
    (command,) = commands
    # What is left out of a command's source is syntax around it: `! ls`, `(ls)`, `ls &`.
    bare = command.source == text[:512].strip()
    if command.redirects or command.assigned or not bare:
        raise PatternError(
            f"`{spec}` never matches: redirections, assignments and reserved words are not part "
            "of a command's words; write the command alone"
        )
    return command.words


def _compile_glob(text: bytes, spec: str) -> tuple[tuple[_Token, ...], re.Pattern[bytes]]:
    """Tokens and a regular expression without backtracking (atomic groups between stars)."""
    tokens: list[_Token] = []
    pieces: list[bytes] = [b""]
    index = 0
    while index < len(text):
        char = text[index : index + 1]
        index += 1
        if char == b"*":
            if not tokens or tokens[-1] != _STAR:
                tokens.append(_STAR)
                pieces.append(b"")
        elif char == b"?":
            tokens.append(bytes(range(1, 256)))
            pieces[-1] += rb"[^\x00]"
        elif char == b"[":
            close = text.find(b"]", index + (2 if text[index : index + 1] in (b"!", b"^") else 1))
            if close < 0:
                raise PatternError(f"`{spec}`: `[` is not closed; write `[[]` for a literal one")
            admitted = _byte_class(text[index:close], spec)
            tokens.append(admitted)
            pieces[-1] += b"[" + b"".join(b"\\x%02x" % byte for byte in admitted) + b"]"
            index = close + 1
        else:
            tokens.append(char[0])
            pieces[-1] += re.escape(char)
    if len(pieces) == 1:
        return tuple(tokens), re.compile(pieces[0] + rb"\Z", re.DOTALL)
    middle = b"".join(b"(?>.*?" + piece + b")" for piece in pieces[1:-1])
    return tuple(tokens), re.compile(pieces[0] + middle + b".*" + pieces[-1] + rb"\Z", re.DOTALL)


def _byte_class(body: bytes, spec: str) -> bytes:
    negated = body[:1] in (b"!", b"^")
    body = body[1:] if negated else body
    if not body.isascii():
        raise PatternError(f"`{spec}`: only ASCII can stand in `[]`; write `*` for other text")
    admitted: set[int] = set()
    index = 0
    while index < len(body):
        low = high = body[index]
        if body[index + 1 : index + 2] == b"-" and index + 2 < len(body):
            high = body[index + 2]
            index += 2
        index += 1
        if low > high:
            raise PatternError(
                f"`{spec}`: the range `{chr(low)}-{chr(high)}` is the wrong way round, "
                "so it never matches"
            )
        admitted.update(range(low, high + 1))
    if negated:
        admitted = set(range(1, 256)) - admitted
    if not admitted:
        raise PatternError(f"`{spec}`: an empty `[]` never matches")
    return bytes(sorted(admitted))
