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

from substrate_services.broker.shell_types import (
    MAX_BLOCKS,
    MAX_COMMANDS,
    Budget,
    RawCommand,
    Redirect,
    ShellSyntaxError,
    Word,
)
from substrate_services.broker.shell_words import WordBuilder, WordReader

_REDIRECT = re.compile(
    rb"(?:(?:[0-9]+|\{[A-Za-z_][A-Za-z0-9_]*\})?"
    rb"(?:<<<|<<-|<<|<>|<&|<(?!\()|>>|>&|>\||>(?!\())|&>>|&>)"
)
# Arguments without anything special in them, taken together: most are.
_PLAIN_ARGUMENTS = re.compile(rb"(?:[ \t]+[A-Za-z0-9_./:%,^\-]+(?=[ \t\n;|&)]|\Z))+")
_REDIRECT_STARTS = frozenset(b"<>&{0123456789")
_HEREDOC_PLAIN = re.compile(rb"[^\\`$]+")
_COPROC_NAME = re.compile(
    rb"[ \t]+[A-Za-z_][A-Za-z0-9_]*(?=[ \t]+(?:[({]|(?:if|while|until|for|case|select|\[\[)[ \t]))"
)
_OPERATORS = (b";;&", b";;", b";&", b"&&", b"||", b"|&", b";", b"&", b"|")
_BLOCK_END = {b"fi": b"if", b"done": b"do", b"}": b"{", b"esac": b"case"}
_BLOCK_START = {b"if": b"if", b"while": b"while", b"until": b"while"}
_INSIDE = {
    b"then": (b"if",),
    b"elif": (b"if",),
    b"else": (b"if",),
    b"do": (b"while", b"for"),
}
_RESERVED = frozenset(
    b"if then elif else fi while until do done for select case esac { } ! time function coproc [["
    .split()
)  # fmt: skip


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


class _Parser(WordReader):
    """Reads one text; nested texts that need unescaping first get a parser of their own."""

    # -- lists and compound commands -----------------------------------------------------------

    def read_list(self, *, closing: bool) -> None:
        stack: list[bytes] = []
        while True:
            self.blanks()
            char = self.peek()
            before = self.pos
            if char is None:
                self.at_end(stack, closing=closing)
                return
            if char == 0x0A:
                self.newline()
            elif char == 0x28:  # (
                if not self.try_arithmetic_command():
                    self.push(stack, b"(")
                    self.pos += 1
            elif char == 0x29:  # )
                self.pos += 1
                if not stack and closing:
                    return
                if not stack or stack.pop() != b"(":
                    self.fail("unexpected `)`")
            elif char in b";|&" and not self.src.startswith(b"&>", self.pos):
                self.operator(stack)
            else:
                self.command(stack)
                if self.pos == before:
                    self.fail("an unexpected character")

    def at_end(self, stack: list[bytes], *, closing: bool) -> None:
        if stack:
            self.fail(f"`{stack[-1].decode()}` is not closed")
        if closing:
            self.fail("a substitution is not closed")
        self.read_heredocs()

    def push(self, stack: list[bytes], block: bytes) -> None:
        if len(stack) >= MAX_BLOCKS:
            self.fail(f"more than {MAX_BLOCKS} nested blocks")
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
        assigned: list[bytes] = []
        while True:
            self.blanks()
            redirect = self.redirect()
            if redirect is not None:
                redirects.append(redirect)
                continue
            char = self.peek()
            if char is None or char in b"\n;|&)":
                break
            if char == 0x28:
                if len(words) != 1 or assigned or redirects:
                    self.fail("unexpected `(`")
                self.pos += 1
                self.expect_close_paren()  # name() defines a function: its body comes next
                return
            word, bare, assigns = self.word(command_position=not words)
            if not words and assigns:
                assigned.append(word.text.partition(b"=")[0])
                continue
            alone = bare and not (words or assigned or redirects or word.parts)
            if alone and word.text in _RESERVED:
                self.reserved(word.text, stack)
                return
            words.append(word)
            run = _PLAIN_ARGUMENTS.match(self.src, self.pos)
            if run:
                words += map(Word, run[0].split())
                self.pos = run.end()
        if words or redirects or assigned:
            self.add(start, words, redirects, assigned)

    def add(
        self,
        start: int,
        words: list[Word],
        redirects: list[Redirect],
        assigned: list[bytes],
    ) -> None:
        """Keep a command that has been read."""
        if self.budget.commands_left <= 0:
            self.fail(f"more than {MAX_COMMANDS} commands")
        self.budget.commands_left -= 1
        source = self.src[start : min(self.pos, start + 512)].strip()
        command = RawCommand(tuple(words), source, tuple(redirects), tuple(assigned))
        self.commands.append(command)

    def reserved(self, name: bytes, stack: list[bytes]) -> None:
        """Act on a reserved word in command position; what follows is read as commands again."""
        top = stack[-1] if stack else b""
        if name in _BLOCK_START:
            self.push(stack, _BLOCK_START[name])
        elif name in _INSIDE:
            if top not in _INSIDE[name]:
                self.fail(f"unexpected `{name.decode()}`")
            if name == b"do":
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
        else:
            self.header(name, stack)

    def header(self, name: bytes, stack: list[bytes]) -> None:
        """Reserved words with words of their own after them. `!` has none."""
        if name in (b"for", b"select"):
            self.for_header(stack)
        elif name == b"case":
            self.case_header(stack)
        elif name == b"function":
            self.function_header()
        elif name == b"[[":
            self.conditional()
        elif name == b"time":
            self.blanks()
            for option in (b"-p", b"--"):
                if self.take_keyword(option):
                    self.blanks()
        elif name == b"coproc":
            match = _COPROC_NAME.match(self.src, self.pos)
            if match:
                self.pos = match.end()

    def function_header(self) -> None:
        self.blanks()
        self.word(command_position=False)
        self.blanks()
        mark = self.pos
        if self.peek() == 0x28:
            self.pos += 1
            self.blanks()
            if self.peek() == 0x29:
                self.pos += 1
            else:
                self.pos = mark  # function f ( body )

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

    # -- redirections and here-documents -------------------------------------------------------

    def redirect(self) -> Redirect | None:
        if self.peek() not in _REDIRECT_STARTS:
            return None
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
                self.dollar(WordBuilder(), quoted=True)
            else:
                self.backtick(WordBuilder(), quoted=True)

    # -- words ---------------------------------------------------------------------------------
