"""What the shell grammar's readers share: words, commands, bounds and the error."""

from __future__ import annotations

from dataclasses import dataclass

MAX_SCRIPT_BYTES = 131_072  # Linux MAX_ARG_STRLEN: no exec takes a longer `sh -c` argument
MAX_DEPTH = 40  # nested substitutions and quotes; about six Python frames each
MAX_COMMANDS = 10_000
MAX_BLOCKS = 400  # nested if/while/( in one list


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

    words: tuple[Word, ...]  # empty for what only assigns or redirects
    source: bytes
    redirects: tuple[Redirect, ...] = ()
    assigned: tuple[bytes, ...] = ()  # names given a value in front of it


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
