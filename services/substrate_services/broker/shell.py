"""The shell grammar: which simple commands a shell string holds.

A recursive-descent reader of the POSIX shell grammar with bash's extensions. It keeps what policy
needs, the simple commands and their words, and drops the rest (who pipes into whom, what is
conditional). It follows bash 5.2's lexer where the two could part ways, because a command that
bash runs and this reader misses is a rule that does not hold: tests run the same strings through
real bash and compare.

Why not tree-sitter-bash or bashlex: docs/adr/0004-shell-grammar.md. Every input costs time linear
in its length, nesting and work are bounded, and what is not understood raises
:class:`ShellSyntaxError` rather than being guessed at. Input and words are bytes; no encoding is
assumed.

References: POSIX.1-2024 XCU 2.10 (grammar); bash 5.2 parse.y (read_token, parse_matched_pair).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NoReturn

MAX_SCRIPT_BYTES = 131_072  # Linux MAX_ARG_STRLEN: no exec takes a longer `sh -c` argument
MAX_DEPTH = 40  # nested substitutions and quotes; about six Python frames each
MAX_COMMANDS = 10_000
_MAX_BLOCKS = 400  # nested if/while/( in one list


class ShellSyntaxError(Exception):
    """The text is not shell, or goes beyond the reader's bounds.

    Attributes:
        reason: one phrase, lower case, without the position.
        offset: byte offset in the text that was given to the parser.
    """

    def __init__(self, reason: str, offset: int) -> None:
        super().__init__(f"{reason} at byte {offset}")
        self.reason = reason
        self.offset = offset


@dataclass(frozen=True, slots=True)
class Word:
    """One word of a command after quote removal.

    Attributes:
        text: the value, with unknown parts (``$X``, ``*``, ``$(date)``) spelled as in the source.
        parts: empty when the value is known; else literal pieces and None for each unknown part.
        vanishes: the word may expand to no word at all (an unquoted ``$X``).
    """

    text: bytes
    parts: tuple[bytes | None, ...] = ()
    vanishes: bool = False

    @property
    def dynamic(self) -> bool:
        """True when part of the value is only known when the shell runs."""
        return bool(self.parts)


UNKNOWN_WORD = Word(b"{}", (None,), True)


@dataclass(slots=True)
class Redirect:
    """One redirection. ``body`` is the text of a here-document, once it has been read."""

    op: bytes
    target: Word
    body: bytes | None = None


@dataclass(frozen=True, slots=True)
class RawCommand:
    """A simple command as written: no wrapper is looked through yet."""

    words: tuple[Word, ...]
    source: bytes
    redirects: tuple[Redirect, ...] = ()


@dataclass(slots=True)
class Budget:
    """What one evaluation may still spend, shared by all nested parsers."""

    bytes_left: int = 8 * MAX_SCRIPT_BYTES
    commands_left: int = MAX_COMMANDS

    def spend(self, amount: int, offset: int) -> None:
        """Take ``amount`` bytes of reading, or raise ShellSyntaxError."""
        self.bytes_left -= amount
        if self.bytes_left < 0:
            raise ShellSyntaxError("too much nesting to read in bounded time", offset)


def parse_script(
    script: bytes, budget: Budget | None = None, depth: int = 0
) -> tuple[list[RawCommand], ShellSyntaxError | None]:
    """Read ``script``; return its simple commands in source order, and the error if it has one.

    Commands read before an error are returned with it. Never raises for any input.
    """
    parser = _Parser(script, budget or Budget(), depth)
    try:
        parser.start()
        parser.read_list(closing=False)
    except ShellSyntaxError as error:
        return parser.commands, error
    return parser.commands, None


_BLANK = re.compile(rb"(?:[ \t]|\\\n)+")
_COMMENT = re.compile(rb"#[^\n]*")
_SIMPLE_WORD = re.compile(rb"[A-Za-z0-9_./:%,^\-]+(?=[ \t\n;|&)]|\Z)")
_PLAIN = re.compile(rb"[^ \t\n|&;()<>\\'\"`$*?\[{~=]+")
_REDIRECT = re.compile(
    rb"(?:(?:[0-9]+|\{[A-Za-z_][A-Za-z0-9_]*\})?"
    rb"(?:<<<|<<-|<<|<>|<&|<(?!\()|>>|>&|>\||>(?!\())|&>>|&>)"
)
_NAME = re.compile(rb"[A-Za-z_][A-Za-z0-9_]*\Z")
_ASSIGN_TO = re.compile(rb"[A-Za-z_][A-Za-z0-9_]*\+?\Z")
_DQUOTE_PLAIN = re.compile(rb"[^\\\"`$]+")
_HEREDOC_PLAIN = re.compile(rb"[^\\`$]+")
_ANSI_C = re.compile(rb"(?:[^'\\]|\\.)*'", re.DOTALL)
_BACKTICK = re.compile(rb"(?:[^`\\]|\\.)*`", re.DOTALL)
_PARAMETER = re.compile(rb"[A-Za-z_][A-Za-z0-9_]*|[0-9@*#?$!\-]")
_TILDE = re.compile(rb"~[A-Za-z0-9_.+\-]*(?=[/ \t\n|&;()<>]|\Z)")
_MATCHED_PLAIN = re.compile(rb"[^\\'\"`$()\[\]{}<>]+")
_COPROC_NAME = re.compile(
    rb"[ \t]+[A-Za-z_][A-Za-z0-9_]*(?=[ \t]+(?:[({]|(?:if|while|until|for|case|select|\[\[)[ \t]))"
)
_END_OF_WORD = frozenset(b" \t\n|&;()<>")
_OPERATORS = (b";;&", b";;", b";&", b"&&", b"||", b"|&", b";", b"&", b"|")
_BLOCK_END = {b"fi": b"if", b"done": b"do", b"}": b"{", b"esac": b"case"}
_CONTINUES = {b"then": b"if", b"elif": b"if", b"else": b"if"}
_CLOSER = {b"if": b"fi", b"while": b"do", b"for": b"do", b"do": b"done", b"case": b"esac"}
_RESERVED = frozenset(
    b"if then elif else fi while until do done for select case esac { } ! time function coproc [["
    .split()
)  # fmt: skip


class _Builder:
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
        self.text += data
        self.visible = True
        if not self.tail_unknown:
            self.cur += data

    def unknown(self, source: bytes, *, vanishes: bool) -> None:
        self.text += source
        if vanishes:
            self.vanishes = True
        else:
            self.visible = True
        if not self.tail_unknown:
            self.cut()

    def cut(self) -> None:
        if self.cur:
            self.parts.append(bytes(self.cur))
            self.cur.clear()
        if not self.parts or self.parts[-1] is not None:
            self.parts.append(None)

    def word(self) -> Word:
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
        return b"}" in self.text and (b"," in self.text or b".." in self.text)


class _Parser:
    """Reads one text; nested texts that need unescaping first get a parser of their own."""

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

    def read_list(self, *, closing: bool) -> None:
        """Read commands to the end of the text, or past the ``)`` of a substitution."""
        stack: list[bytes] = []
        while True:
            self.blanks()
            if self.pos >= self.end:
                if stack:
                    self.fail(f"`{stack[-1].decode()}` is not closed")
                if closing:
                    self.fail("a substitution is not closed")
                self.read_heredocs()
                return
            char = self.src[self.pos]
            if char == 0x0A:
                self.newline()
            elif char == 0x28:  # (
                if not self.try_arithmetic_command():
                    self.push(stack, b"(")
                    self.pos += 1
            elif char == 0x29:  # )
                self.pos += 1
                if stack and stack[-1] == b"(":
                    stack.pop()
                elif not stack and closing:
                    return
                else:
                    self.fail("unexpected `)`")
            elif char in b";|&" and not self.src.startswith(b"&>", self.pos):
                self.operator(stack)
            else:
                before = self.pos
                self.command(stack)
                if self.pos == before:
                    self.fail("an unexpected character")

    def push(self, stack: list[bytes], block: bytes) -> None:
        if len(stack) >= _MAX_BLOCKS:
            self.fail(f"more than {_MAX_BLOCKS} nested blocks")
        stack.append(block)

    def operator(self, stack: list[bytes]) -> None:
        for op in _OPERATORS:
            if self.src.startswith(op, self.pos):
                self.pos += len(op)
                if op in (b";;&", b";;", b";&"):
                    if not stack or stack[-1] != b"case":
                        self.fail(f"unexpected `{op.decode()}`")
                    self.case_patterns(stack)
                return

    def newline(self) -> None:
        self.pos += 1
        self.read_heredocs()

    def command(self, stack: list[bytes]) -> None:
        """Read one simple command, or the reserved word that stands in its place."""
        start = self.pos
        words: list[Word] = []
        redirects: list[Redirect] = []
        assigned = False
        while True:
            self.blanks()
            if self.pos >= self.end:
                break
            char = self.src[self.pos]
            if char in b"<>&{0123456789":
                redirect = self.redirect()
                if redirect is not None:
                    redirects.append(redirect)
                    continue
            if char in b"\n;|&)":
                break
            if char == 0x28:
                if len(words) == 1 and not assigned and not redirects:
                    self.pos += 1
                    self.expect_close_paren()  # name() defines a function: its body comes next
                    return
                self.fail("unexpected `(`")
            word, bare, assigns = self.word(command_position=not words)
            if not words:
                first = not assigned and not redirects
                if first and bare and word.text in _RESERVED and not word.parts:
                    self.reserved(word.text, stack)
                    return
                if assigns:
                    assigned = True
                    continue
            words.append(word)
        if words:
            if self.budget.commands_left <= 0:
                self.fail(f"more than {MAX_COMMANDS} commands")
            self.budget.commands_left -= 1
            source = self.src[start : min(self.pos, start + 512)].strip()
            self.commands.append(RawCommand(tuple(words), source, tuple(redirects)))

    def reserved(self, name: bytes, stack: list[bytes]) -> None:
        top = stack[-1] if stack else b""
        if name in (b"if", b"while", b"until"):
            self.push(stack, b"if" if name == b"if" else b"while")
        elif name in _CONTINUES:
            if top != b"if":
                self.fail(f"unexpected `{name.decode()}`")
        elif name == b"do":
            if top not in (b"while", b"for"):
                self.fail("unexpected `do`")
            stack[-1] = b"do"
        elif name == b"{":
            if top == b"for":
                stack[-1] = b"{"  # for i in a b; { …; }
            else:
                self.push(stack, b"{")
        elif name in _BLOCK_END:
            if top != _BLOCK_END[name]:
                self.fail(f"unexpected `{name.decode()}`")
            stack.pop()
        elif name in (b"for", b"select"):
            self.for_header(stack)
        elif name == b"case":
            self.case_header(stack)
        elif name == b"function":
            self.blanks()
            self.word(command_position=False)
            self.blanks()
            if self.peek() == 0x28:
                mark = self.pos
                self.pos += 1
                self.blanks()
                if self.peek() == 0x29:
                    self.pos += 1
                else:
                    self.pos = mark  # function f ( body )
        elif name == b"time":
            self.blanks()
            for option in (b"-p", b"--"):
                if self.src.startswith(option, self.pos) and self.ends_word(self.pos + 2):
                    self.pos += 2
                    self.blanks()
        elif name == b"coproc":
            match = _COPROC_NAME.match(self.src, self.pos)
            if match:
                self.pos = match.end()
        elif name == b"[[":
            self.conditional()
        # `!` only negates what follows.

    def for_header(self, stack: list[bytes]) -> None:
        self.push(stack, b"for")
        self.blanks()
        if self.src.startswith(b"((", self.pos):
            if not self.try_arithmetic_command():
                self.fail("`for ((` is not closed")
            return
        self.word(command_position=False)
        self.blanks_and_newlines()
        if self.take_keyword(b"in"):
            while True:
                self.blanks()
                char = self.peek()
                if char is None or char in b"\n;":
                    return
                if char in b"|&()":
                    self.fail("unexpected operator in `for`")
                self.word(command_position=False)

    def case_header(self, stack: list[bytes]) -> None:
        self.blanks()
        self.word(command_position=False)
        self.blanks_and_newlines()
        if not self.take_keyword(b"in"):
            self.fail("`case` without `in`")
        self.push(stack, b"case")
        self.case_patterns(stack)

    def case_patterns(self, stack: list[bytes]) -> None:
        """Read up to the ``)`` that ends a clause's patterns, or ``esac``."""
        self.blanks_and_newlines()
        if self.take_keyword(b"esac"):
            stack.pop()
            return
        if self.peek() == 0x28:
            self.pos += 1
            self.blanks()
        while True:
            self.word(command_position=False)
            self.blanks()
            char = self.peek()
            if char == 0x29:
                self.pos += 1
                return
            if char != 0x7C:
                self.fail("a `case` pattern is not closed")
            self.pos += 1
            self.blanks()

    def conditional(self) -> None:
        """Read to ``]]``. Only the substitutions inside matter: it runs no command itself."""
        while True:
            self.blanks()
            char = self.peek()
            if char is None:
                self.fail("`[[` is not closed")
            elif char == 0x0A:
                self.newline()
            elif char in b"()|&<>" and self.src[self.pos : self.pos + 2] not in (b"<(", b">("):
                self.pos += 1
            elif char == 0x3B:
                self.fail("unexpected `;` in `[[`")
            else:
                word, bare, _ = self.word(command_position=False)
                if bare and word.text == b"]]":
                    return

    def try_arithmetic_command(self) -> bool:
        """Read ``((…))`` at the cursor; False when it is two subshells, cursor unmoved."""
        if not self.src.startswith(b"((", self.pos):
            return False
        return self.try_arithmetic(2)

    def try_arithmetic(self, opening: int) -> bool:
        """Like bash: arithmetic when the matching parentheses end in ``))``, else commands."""
        mark, count, pending = self.pos, len(self.commands), len(self.pending)
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
        del self.commands[count:]
        del self.pending[pending:]
        return False

    # -- redirections and here-documents -------------------------------------------------------

    def redirect(self) -> Redirect | None:
        match = _REDIRECT.match(self.src, self.pos)
        if match is None:
            return None
        op = match[0].lstrip(b"0123456789")
        op = op[op.find(b"}") + 1 :]
        self.pos = match.end()
        self.blanks(comments=False)
        if op in (b"<<", b"<<-"):
            delimiter, quoted = self.heredoc_delimiter()
            redirect = Redirect(op, Word(delimiter))
            self.pending.append((redirect, quoted, op == b"<<-"))
            return redirect
        if self.ends_word(self.pos) and self.src[self.pos : self.pos + 2] not in (b"<(", b">("):
            self.fail(f"`{op.decode()}` without a target")
        word, _, _ = self.word(command_position=False)
        redirect = Redirect(op, word)
        if op == b"<<<":
            redirect.body = word.text
        return redirect

    def heredoc_delimiter(self) -> tuple[bytes, bool]:
        out = bytearray()
        quoted = False
        start = self.pos
        while not self.ends_word(self.pos):
            char = self.src[self.pos]
            if char == 0x5C:  # backslash
                if self.src[self.pos + 1 : self.pos + 2] != b"\n":
                    quoted = True
                    out += self.src[self.pos + 1 : self.pos + 2]
                self.pos += 2
            elif char in b"'\"":
                quoted = True
                close = self.src.find(char, self.pos + 1)
                if close < 0:
                    self.fail("a quote is not closed")
                inner = self.src[self.pos + 1 : close]
                if char == 0x22 and b"\\" in inner:
                    self.fail("an escape in a here-document's delimiter")
                out += inner
                self.pos = close + 1
            elif char in b"$`":
                self.fail("an expansion in a here-document's delimiter")
            else:
                out.append(char)
                self.pos += 1
        if self.pos == start:
            self.fail("a here-document without a delimiter")
        return bytes(out), quoted

    def read_heredocs(self) -> None:
        """Read the bodies announced on the line that has just ended."""
        pending, self.pending = self.pending, []
        for redirect, quoted, strip_tabs in pending:
            lines: list[bytes] = []
            while self.pos < self.end:
                line = self.heredoc_line(joins=not quoted)
                if strip_tabs:
                    line = line.lstrip(b"\t")
                if line == redirect.target.text:
                    break
                lines.append(line)
            redirect.body = b"\n".join([*lines, b""])
            if not quoted and (b"$" in redirect.body or b"`" in redirect.body):
                inner = self.nested(redirect.body)
                inner.heredoc_body()
                self.commands += inner.commands

    def heredoc_line(self, *, joins: bool) -> bytes:
        """One line of a body; with ``joins``, a backslash before the newline continues it."""
        pieces: list[bytes] = []
        while True:
            stop = self.src.find(b"\n", self.pos)
            stop = self.end if stop < 0 else stop
            piece = self.src[self.pos : stop]
            self.pos = min(stop + 1, self.end)
            slashes = len(piece) - len(piece.rstrip(b"\\"))
            if not joins or slashes % 2 == 0 or stop == self.end:
                return b"".join([*pieces, piece])
            pieces.append(piece[:-1])

    def heredoc_body(self) -> None:
        """Find the substitutions in an unquoted body (this parser's whole text)."""
        self.start()
        while self.pos < self.end:
            match = _HEREDOC_PLAIN.match(self.src, self.pos)
            if match:
                self.pos = match.end()
                continue
            char = self.src[self.pos]
            if char == 0x5C:
                self.pos += 2
            elif char == 0x24:
                self.dollar(_Builder(), quoted=True)
            else:
                self.backtick(_Builder(), quoted=True)

    # -- words ---------------------------------------------------------------------------------

    def word(self, *, command_position: bool) -> tuple[Word, bool, bool]:
        """Read a word: (word, no quoting in it, it is an assignment)."""
        match = _SIMPLE_WORD.match(self.src, self.pos)
        if match:
            self.pos = match.end()
            return Word(match[0]), True, False
        out = _Builder()
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
            elif char in b"\\'\"`$":
                self.quoting(out, char)
            else:
                self.expanding(out, char, start)
        if self.pos == start:
            self.fail("a word is missing")
        return out.word(), not out.quoted, assigns

    def quoting(self, out: _Builder, char: int) -> None:
        if char == 0x24:
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

    def expanding(self, out: _Builder, char: int, start: int) -> None:
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

    def bracket(self, out: _Builder, start: int, command_position: bool) -> bool:
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

    def paren_in_word(self, out: _Builder, start: int) -> bool:
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

    def single_quote(self, out: _Builder) -> None:
        close = self.src.find(b"'", self.pos + 1)
        if close < 0:
            self.fail("a single quote is not closed")
        out.quoted = True
        out.literal(self.src[self.pos + 1 : close])
        self.pos = close + 1

    def double_quote(self, out: _Builder) -> None:
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

    def dollar(self, out: _Builder, *, quoted: bool) -> None:
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

    def process_substitution(self, out: _Builder) -> None:
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
        scratch = _Builder()
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
            elif char == 0x5C:
                self.pos += 2
            elif char == 0x27:
                if single_quotes:
                    self.single_quote(scratch)
                else:
                    self.pos += 1
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
        self.pos = self.end
        self.fail(f"`{chr(close)}` is missing")

    def backtick(self, out: _Builder, *, quoted: bool) -> None:
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

    def ansi_c(self, out: _Builder) -> None:
        match = _ANSI_C.match(self.src, self.pos + 1)
        if match is None:
            self.fail("a single quote is not closed")
        out.quoted = True
        out.literal(decode_ansi_c(match[0][:-1]))
        self.pos = match.end()

    # -- small things --------------------------------------------------------------------------

    def blanks(self, *, comments: bool = True) -> None:
        match = _BLANK.match(self.src, self.pos)
        if match:
            self.pos = match.end()
        if comments and self.pos < self.end and self.src[self.pos] == 0x23:
            before = self.src[self.pos - 1 : self.pos]
            if before in (b"", b" ", b"\t", b"\n", b";", b"&", b"|", b"(", b")"):
                found = _COMMENT.match(self.src, self.pos)
                if found:
                    self.pos = found.end()

    def blanks_and_newlines(self) -> None:
        self.blanks()
        while self.peek() == 0x0A:
            self.newline()
            self.blanks()

    def take_keyword(self, keyword: bytes) -> bool:
        stop = self.pos + len(keyword)
        if self.src.startswith(keyword, self.pos) and self.ends_word(stop):
            self.pos = stop
            return True
        return False

    def expect_close_paren(self) -> None:
        self.blanks()
        if self.peek() != 0x29:
            self.fail("unexpected `(`")
        self.pos += 1

    def peek(self) -> int | None:
        return self.src[self.pos] if self.pos < self.end else None

    def ends_word(self, pos: int) -> bool:
        return pos >= self.end or self.src[pos] in _END_OF_WORD

    def nested(self, text: bytes) -> _Parser:
        if self.depth >= MAX_DEPTH:
            self.fail(f"nested deeper than {MAX_DEPTH}")
        return _Parser(text, self.budget, self.depth + 1)

    def enter(self) -> None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            self.fail(f"nested deeper than {MAX_DEPTH}")

    def fail(self, reason: str) -> NoReturn:
        raise ShellSyntaxError(reason, min(self.pos, self.end))


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
