"""Words of the shell grammar: quoting, expansions, and what stays unknown until run time."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from typing import NoReturn, Self

from substrate_services.broker.shell_types import (
    MAX_DEPTH,
    MAX_SCRIPT_BYTES,
    Budget,
    RawCommand,
    Redirect,
    ShellSyntaxError,
    Word,
)

_BLANK = re.compile(rb"(?:[ \t]|\\\n)+")
_COMMENT = re.compile(rb"#[^\n]*")
_SIMPLE_WORD = re.compile(rb"[A-Za-z0-9_./:%,^\-]+(?=[ \t\n;|&)]|\Z)")
_PLAIN = re.compile(rb"[^ \t\n|&;()<>\\'\"`$*?\[{~=]+")
_NAME = re.compile(rb"[A-Za-z_][A-Za-z0-9_]*\Z")
_ASSIGN_TO = re.compile(rb"[A-Za-z_][A-Za-z0-9_]*\+?\Z")
_DQUOTE_PLAIN = re.compile(rb"[^\\\"`$]+")
_ANSI_C = re.compile(rb"(?:[^'\\]|\\.)*'", re.DOTALL)
_BACKTICK = re.compile(rb"(?:[^`\\]|\\.)*`", re.DOTALL)
_PARAMETER = re.compile(rb"[A-Za-z_][A-Za-z0-9_]*|[0-9@*#?$!\-]")
_TILDE = re.compile(rb"~[A-Za-z0-9_.+\-]*(?=[/ \t\n|&;()<>]|\Z)")
_MATCHED_PLAIN = re.compile(rb"[^\\'\"`$()\[\]{}<>]+")
_END_OF_WORD = frozenset(b" \t\n|&;()<>")


class WordBuilder:
    """Collects one word's value while it is read."""

    __slots__ = ("brace", "cur", "parts", "quoted", "tail_unknown", "text", "vanishes", "visible")

    def __init__(self) -> None:
        self.parts: list[bytes | None] = []
        self.cur = bytearray()
        self.text = bytearray()
        self.vanishes = False  # an unquoted expansion is in it
        self.visible = False  # something keeps the word from vanishing
        self.quoted = False
        self.tail_unknown = False
        self.brace: tuple[int, int] | None = None  # parts, bytes in cur before the first `{`

    def literal(self, data: bytes) -> None:
        """Add text that is what it says."""
        self.text += data
        self.visible = True
        if not self.tail_unknown:
            self.cur += data

    def unknown(self, source: bytes, *, vanishes: bool) -> None:
        """Add text whose value is only known when the shell runs."""
        self.text += source
        if vanishes:
            self.vanishes = True
        else:
            self.visible = True
        if not self.tail_unknown:
            self.cut()

    def cut(self) -> None:
        """End the literal piece before an unknown part."""
        if self.cur:
            self.parts.append(bytes(self.cur))
            self.cur.clear()
        if not self.parts or self.parts[-1] is not None:
            self.parts.append(None)

    def word(self) -> Word:
        """The finished word."""
        if self.brace is not None and self.braces_expand():
            keep, length = self.brace
            literal = self.parts[keep] if keep < len(self.parts) else bytes(self.cur)
            del self.parts[keep:]
            self.cur = bytearray((literal or b"")[:length])
            self.cut()
            self.vanishes, self.visible = True, False  # {,} makes empty words, which go away
            return Word(bytes(self.text), tuple(self.parts), True)
        if not self.parts:
            return Word(bytes(self.text))
        if self.cur:
            self.parts.append(bytes(self.cur))
        return Word(bytes(self.text), tuple(self.parts), self.vanishes and not self.visible)

    def braces_expand(self) -> bool:
        """True when ``{`` in the word may make several words."""
        return b"}" in self.text and (b"," in self.text or b".." in self.text)


class WordReader(ABC):
    """Reads words, and through them whatever commands they substitute.

    The subclass reads lists of commands; the two call each other.
    """

    def __init__(self, src: bytes, budget: Budget, depth: int) -> None:
        self.src = src
        self.end = len(src)
        self.pos = 0
        self.budget = budget
        self.depth = depth
        self.commands: list[RawCommand] = []
        self.pending: list[tuple[Redirect, bool, bool]] = []  # here-doc, quoted, strip tabs
        self.not_arithmetic: set[int] = set()

    def start(self) -> None:
        """Check the bounds that hold before reading begins."""
        if self.end > MAX_SCRIPT_BYTES:
            raise ShellSyntaxError(
                f"longer than {MAX_SCRIPT_BYTES} bytes, which no exec accepts", MAX_SCRIPT_BYTES
            )
        if b"\0" in self.src:
            raise ShellSyntaxError("a NUL byte", self.src.index(b"\0"))
        self.budget.spend(self.end, 0)

    # -- lists and compound commands -----------------------------------------------------------

    @abstractmethod
    def read_list(self, *, closing: bool) -> None:
        """Read commands to the end of the text, or past the ``)`` of a substitution."""

    @abstractmethod
    def newline(self) -> None:
        """Read past a newline and the here-documents that it starts."""

    def word(self, *, command_position: bool) -> tuple[Word, bool, bool]:
        """Read a word: (word, no quoting in it, it is an assignment)."""
        match = _SIMPLE_WORD.match(self.src, self.pos)
        if match:
            self.pos = match.end()
            return Word(match[0]), True, False
        out = WordBuilder()
        start = self.pos
        assigns = False
        while self.pos < self.end:
            match = _PLAIN.match(self.src, self.pos)
            if match:
                out.literal(match[0])
                self.pos = match.end()
                continue
            char = self.src[self.pos]
            if char in b"<>" and self.src[self.pos + 1 : self.pos + 2] == b"(":
                self.process_substitution(out)
            elif char == 0x28:
                if not self.paren_in_word(out, start):
                    break
            elif char in _END_OF_WORD:
                break
            elif char == 0x3D:  # =
                if not (out.quoted or out.parts or assigns):
                    assigns = _ASSIGN_TO.match(out.cur) is not None
                out.literal(b"=")
                self.pos += 1
            elif char == 0x5B:  # [
                assigns = self.bracket(out, start, command_position) or assigns
            else:
                self.piece(out, char, start)
        if self.pos == start:
            self.fail("a word is missing")
        return out.word(), not out.quoted, assigns

    def piece(self, out: WordBuilder, char: int, start: int) -> None:
        """Read one quoted or expanding piece of the word that began at ``start``."""
        if char in b"*?{~":
            self.expanding(out, char, start)
        elif char == 0x24:
            self.dollar(out, quoted=False)
        elif char == 0x60:
            self.backtick(out, quoted=False)
        elif char == 0x5C:
            following = self.src[self.pos + 1 : self.pos + 2]
            self.pos += 2
            if following != b"\n":
                out.quoted = True
                out.literal(following or b"\\")
            self.pos = min(self.pos, self.end)
        elif char == 0x27:
            self.single_quote(out)
        else:
            self.double_quote(out)

    def expanding(self, out: WordBuilder, char: int, start: int) -> None:
        """``* ? { ~``: what the shell may turn into other text."""
        if char == 0x7E:
            match = _TILDE.match(self.src, self.pos) if self.pos == start else None
            if match:
                out.unknown(match[0], vanishes=False)
                self.pos = match.end()
            else:
                out.literal(b"~")
                self.pos += 1
            return
        self.pos += 1
        if char == 0x7B:
            if out.brace is None and self.peek() != 0x7D and not out.tail_unknown:
                out.brace = (len(out.parts), len(out.cur))
            out.literal(b"{")
        else:
            out.unknown(bytes([char]), vanishes=False)

    def bracket(self, out: WordBuilder, start: int, command_position: bool) -> bool:
        """``[``: a subscript of an assignment, a bracket pattern, or just the command ``[``."""
        if command_position and not (out.quoted or out.parts) and _NAME.match(out.cur):
            mark = self.pos
            self.pos += 1
            self.matched(0x5D, 0x5B)
            out.unknown(self.src[mark : self.pos], vanishes=False)
            return self.src[self.pos : self.pos + 1] == b"=" or (
                self.src[self.pos : self.pos + 2] == b"+="
            )
        rest = self.pos + 2 if self.src.startswith(b"[[", self.pos) else self.pos + 1
        if self.pos == start and self.ends_word(rest):
            out.literal(self.src[self.pos : rest])
            self.pos = rest
        else:
            out.unknown(b"[", vanishes=False)
            out.tail_unknown = True  # how long a bracket pattern is depends on the files there
            self.pos += 1
        return False

    def paren_in_word(self, out: WordBuilder, start: int) -> bool:
        """``(`` inside a word: an array's value or an extended pattern; else it ends the word."""
        before = self.src[self.pos - 1 : self.pos] if self.pos > start else b""
        if before == b"=" and not out.quoted:
            mark = self.pos
            self.pos += 1
            self.array()
            out.unknown(self.src[mark : self.pos], vanishes=False)
            return True
        if before in (b"?", b"*", b"+", b"@", b"!") and self.pos - start > (before == b"!"):
            mark = self.pos
            if self.src.startswith(b"()", mark):
                return False  # a function may be called a+
            self.pos += 1
            self.matched(0x29, 0x28)
            out.unknown(self.src[mark : self.pos], vanishes=False)
            return True
        return False

    def array(self) -> None:
        """Read an array's values past its ``)``."""
        self.enter()
        while True:
            self.blanks_and_newlines()
            char = self.peek()
            if char is None:
                self.fail("an array is not closed")
            elif char == 0x29:
                self.pos += 1
                break
            elif char in b"|&;(" or (
                char in b"<>" and self.src[self.pos + 1 : self.pos + 2] != b"("
            ):
                self.fail("unexpected operator in an array")
            self.word(command_position=False)
        self.depth -= 1

    def single_quote(self, out: WordBuilder) -> None:
        """Read ``'…'``."""
        close = self.src.find(b"'", self.pos + 1)
        if close < 0:
            self.fail("a single quote is not closed")
        out.quoted = True
        out.literal(self.src[self.pos + 1 : close])
        self.pos = close + 1

    def double_quote(self, out: WordBuilder) -> None:
        """Read ``"…"``."""
        self.enter()
        opened = self.pos
        out.quoted = True
        out.literal(b"")
        self.pos += 1
        while self.pos < self.end:
            match = _DQUOTE_PLAIN.match(self.src, self.pos)
            if match:
                out.literal(match[0])
                self.pos = match.end()
                continue
            char = self.src[self.pos]
            if char == 0x22:
                self.pos += 1
                self.depth -= 1
                return
            if char == 0x5C:
                following = self.src[self.pos + 1 : self.pos + 2]
                if following == b"\n":
                    pass
                elif following in (b"$", b"`", b'"', b"\\"):
                    out.literal(following)
                else:
                    out.literal(b"\\" + following)
                self.pos += 2
            elif char == 0x24:
                self.dollar(out, quoted=True)
            else:
                self.backtick(out, quoted=True)
        self.pos = min(opened, self.end)
        self.fail("a double quote is not closed")

    # -- expansions ----------------------------------------------------------------------------

    def dollar(self, out: WordBuilder, *, quoted: bool) -> None:
        """Read what ``$`` begins. ``quoted``: inside double quotes or a here-document."""
        self.enter()
        start = self.pos
        self.pos += 1
        while self.src.startswith(b"\\\n", self.pos):
            self.pos += 2
        following = self.src[self.pos : self.pos + 1]
        vanishes = not quoted
        if following == b"(":
            arithmetic = self.src.startswith(b"((", self.pos) and self.try_arithmetic(2)
            if not arithmetic:
                self.pos += 1
                self.substitution()
        elif following == b"{":
            self.pos += 1
            self.parameter(quoted=quoted)
            vanishes = vanishes or b"@" in self.src[start : self.pos]
        elif following == b"[":
            self.pos += 1
            self.matched(0x5D, 0x5B)
        elif following == b"'" and not quoted:
            self.ansi_c(out)
            self.depth -= 1
            return
        elif following == b'"' and not quoted:
            self.double_quote(out)
            self.depth -= 1
            return
        else:
            match = _PARAMETER.match(self.src, self.pos)
            self.depth -= 1
            if match is None:
                out.literal(b"$")
                return
            self.pos = match.end()
            out.unknown(self.src[start : self.pos], vanishes=vanishes or following == b"@")
            return
        self.depth -= 1
        out.unknown(self.src[start : self.pos], vanishes=vanishes)

    def substitution(self) -> None:
        """Read the commands of ``$(…)``, ``<(…)``; the cursor is past the opening."""
        outer, self.pending = self.pending, []
        self.read_list(closing=True)
        if self.pending:
            self.fail("a here-document is not closed inside a substitution")
        self.pending = outer

    def process_substitution(self, out: WordBuilder) -> None:
        """Read ``<(…)`` or ``>(…)``."""
        self.enter()
        start = self.pos
        self.pos += 2
        self.substitution()
        self.depth -= 1
        out.unknown(self.src[start : self.pos], vanishes=False)

    def parameter(self, *, quoted: bool) -> None:
        """Read ``${…}`` past its ``{``."""
        following = self.src[self.pos : self.pos + 1]
        if following in (b" ", b"\t", b"\n", b"|", b"("):
            self.fail("a command inside `${ }`")  # bash 5.3's function substitution
        if following in (b"#", b"!") and self.src[self.pos + 1 : self.pos + 2] != b"}":
            self.pos += 1
        match = _PARAMETER.match(self.src, self.pos)
        if match:
            self.pos = match.end()
            while re.match(rb"[0-9]", self.src[self.pos : self.pos + 1]):
                self.pos += 1
        if self.peek() == 0x5B:
            self.pos += 1
            self.matched(0x5D, 0x5B)
        # Inside double quotes a single quote quotes only in a pattern (parse.y dolbrace_state).
        pattern = self.src[self.pos : self.pos + 1] in (b"#", b"%", b"/", b"^", b",")
        self.matched(0x7D, None, single_quotes=pattern or not quoted, parameter=True)

    def matched(
        self,
        close: int,
        opening: int | None,
        *,
        single_quotes: bool = True,
        parameter: bool = False,
    ) -> None:
        """Read past the ``close`` that balances an ``opening`` already read."""
        self.enter()
        depth = 0
        while self.pos < self.end:
            match = _MATCHED_PLAIN.match(self.src, self.pos)
            if match:
                self.pos = match.end()
                continue
            char = self.src[self.pos]
            if char == close:
                self.pos += 1
                if depth == 0:
                    self.depth -= 1
                    return
                depth -= 1
            elif char == opening:
                depth += 1
                self.pos += 1
            else:
                self.inside(char, single_quotes=single_quotes, parameter=parameter)
        self.pos = self.end
        self.fail(f"`{chr(close)}` is missing")

    def inside(self, char: int, *, single_quotes: bool, parameter: bool) -> None:
        """Read one piece between matching delimiters, for the commands it may substitute."""
        scratch = WordBuilder()
        if char == 0x5C:
            self.pos += 2
        elif char == 0x27 and single_quotes:
            self.single_quote(scratch)
        elif char == 0x22:
            self.double_quote(scratch)
        elif char == 0x24:
            self.dollar(scratch, quoted=not single_quotes)
        elif char == 0x60:
            self.backtick(scratch, quoted=not single_quotes)
        elif parameter and char in b"<>" and self.src[self.pos + 1 : self.pos + 2] == b"(":
            self.process_substitution(scratch)
        else:
            self.pos += 1

    def backtick(self, out: WordBuilder, *, quoted: bool) -> None:
        """Read a backtick substitution, whose text is unescaped before it is read."""
        match = _BACKTICK.match(self.src, self.pos + 1)
        if match is None:
            self.fail("a backtick is not closed")
        escapes = rb'\\([$`\\"])' if quoted else rb"\\([$`\\])"
        inner = self.nested(re.sub(escapes, rb"\1", match[0][:-1]))
        inner.start()
        inner.read_list(closing=False)
        self.commands += inner.commands
        out.unknown(self.src[self.pos : match.end()], vanishes=not quoted)
        self.pos = match.end()

    def ansi_c(self, out: WordBuilder) -> None:
        """Read ``$'…'``."""
        match = _ANSI_C.match(self.src, self.pos + 1)
        if match is None:
            self.fail("a single quote is not closed")
        out.quoted = True
        out.literal(decode_ansi_c(match[0][:-1]))
        self.pos = match.end()

    # -- small things --------------------------------------------------------------------------

    def blanks(self, *, comments: bool = True) -> None:
        """Skip blanks, continued lines and a comment."""
        if self.pos >= self.end:
            return
        if self.src[self.pos] in b" \t\\":
            match = _BLANK.match(self.src, self.pos)
            if match is None:
                return
            self.pos = match.end()
        if comments and self.src.startswith(b"#", self.pos):
            before = self.src[self.pos - 1 : self.pos]
            if before in (b"", b" ", b"\t", b"\n", b";", b"&", b"|", b"(", b")"):
                found = _COMMENT.match(self.src, self.pos)
                if found:
                    self.pos = found.end()

    def blanks_and_newlines(self) -> None:
        """Skip blanks and newlines."""
        self.blanks()
        while self.peek() == 0x0A:
            self.newline()
            self.blanks()

    def take_keyword(self, keyword: bytes) -> bool:
        """Read ``keyword`` when it is the next word."""
        stop = self.pos + len(keyword)
        if self.src.startswith(keyword, self.pos) and self.ends_word(stop):
            self.pos = stop
            return True
        return False

    def expect_close_paren(self) -> None:
        """Read blanks and ``)``."""
        self.blanks()
        if self.peek() != 0x29:
            self.fail("unexpected `(`")
        self.pos += 1

    def peek(self) -> int | None:
        """The byte at the cursor; None at the end."""
        return self.src[self.pos] if self.pos < self.end else None

    def ends_word(self, pos: int) -> bool:
        """True when no word goes on at ``pos``."""
        return pos >= self.end or self.src[pos] in _END_OF_WORD

    def nested(self, text: bytes) -> Self:
        """A parser of the same kind for text made from this one."""
        if self.depth >= MAX_DEPTH:
            self.fail(f"nested deeper than {MAX_DEPTH}")
        return type(self)(text, self.budget, self.depth + 1)

    def enter(self) -> None:
        """Go one level deeper, within bounds."""
        self.depth += 1
        if self.depth > MAX_DEPTH:
            self.fail(f"nested deeper than {MAX_DEPTH}")

    def fail(self, reason: str) -> NoReturn:
        """Give up on the text."""
        raise ShellSyntaxError(reason, min(self.pos, self.end))

    def try_arithmetic(self, opening: int) -> bool:
        """Like bash: arithmetic when the matching parentheses end in ``))``, else commands."""
        mark, count, depth, pending = self.pos, len(self.commands), self.depth, self.pending
        announced = len(pending)
        if mark in self.not_arithmetic:
            return False
        self.pos += opening
        try:
            self.matched(0x29, 0x28)
            if self.peek() == 0x29:
                self.pos += 1
                return True
        except ShellSyntaxError:
            if self.budget.bytes_left < 0 or self.budget.commands_left <= 0:
                raise
        self.budget.spend(self.pos - mark, mark)
        self.not_arithmetic.add(mark)
        self.pos = mark
        self.depth, self.pending = depth, pending
        del self.commands[count:]
        del self.pending[announced:]
        return False

    # -- redirections and here-documents -------------------------------------------------------


_ANSI_ESCAPE = re.compile(
    rb"\\(?:([0-7]{1,3})|x([0-9A-Fa-f]{1,2})|u([0-9A-Fa-f]{1,4})|U([0-9A-Fa-f]{1,8})|c(.)|(.))",
    re.DOTALL,
)
_ANSI_SIMPLE = {
    b"a": b"\a", b"b": b"\b", b"e": b"\x1b", b"E": b"\x1b", b"f": b"\f", b"n": b"\n",
    b"r": b"\r", b"t": b"\t", b"v": b"\v", b"\\": b"\\", b"'": b"'", b'"': b'"', b"?": b"?",
}  # fmt: skip


def decode_ansi_c(text: bytes) -> bytes:
    """The value of ``$'text'`` (bash manual, ANSI-C quoting). A NUL ends it, as in bash."""

    def one(match: re.Match[bytes]) -> bytes:
        octal, hexa, short, long, control, simple = match.groups()
        if octal is not None:
            return bytes([int(octal, 8) & 0xFF])
        if hexa is not None:
            return bytes([int(hexa, 16)])
        if short is not None or long is not None:
            point = int(short or long, 16)
            if point > 0x10FFFF:
                return match[0]
            return chr(point).encode("utf-8", "surrogatepass")
        if control is not None:
            return bytes([ord(control) & 0x1F])
        return _ANSI_SIMPLE.get(simple, b"\\" + simple)

    return _ANSI_ESCAPE.sub(one, text).split(b"\0", 1)[0]
