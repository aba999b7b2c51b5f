"""The simple commands a step runs, looked at through wrappers.

``parse`` takes a shell string, ``from_argv`` an argv. Both give every simple command there is to
see: ``timeout 5 bash -c "cd /; rm -rf x"`` yields the ``timeout``, the ``bash``, the ``cd`` and
the ``rm``. What a program does with its own arguments or files stays opaque (``python -c``,
``make``, ``bash script.sh``): the world is the boundary, not this list.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from substrate_services.broker.shell import parse_script
from substrate_services.broker.shell_types import (
    MAX_SCRIPT_BYTES,
    UNKNOWN_WORD,
    Budget,
    RawCommand,
    Redirect,
    ShellSyntaxError,
    Word,
)

MAX_WRAPPERS = 16  # sudo env nice timeout …, nested
MAX_SCRIPTS = 8  # bash -c '… bash -c …', nested
_SOURCE_BYTES = 512


@dataclass(frozen=True, slots=True)
class SimpleCommand:
    """One command as policy sees it.

    Attributes:
        words: command and arguments; empty when ``problem`` is set, and for what only assigns or
            redirects.
        source: how it is written, cut to 512 bytes.
        via: what it was reached through, outermost first: ``("sudo", "bash -c")``.
        problem: when not empty, this part cannot be read, and why.
        offset: with ``problem``, the byte in the script where reading stopped.
        effects: what it does besides running its words: ``sets PATH``, ``writes out.txt``.
    """

    words: tuple[Word, ...]
    source: bytes
    via: tuple[str, ...] = ()
    problem: str = ""
    offset: int = 0
    effects: tuple[str, ...] = ()

    @property
    def unparsable(self) -> bool:
        """True when this stands for text that the shell grammar does not cover."""
        return bool(self.problem)

    @property
    def dynamic(self) -> bool:
        """True when some word is known only at run time."""
        return any(word.parts for word in self.words)

    @property
    def name(self) -> bytes | None:
        """The command's base name (``/bin/rm`` is ``rm``); None when it is not known."""
        return command_name(self.words[0]) if self.words else None


def command_name(word: Word) -> bytes | None:
    """Base name of a command word, or None when it depends on the run."""
    if not word.parts:
        return word.text.rsplit(b"/", 1)[-1]
    last = word.parts[-1]
    if last is not None and b"/" in last:
        return last.rsplit(b"/", 1)[-1]  # $HOME/bin/rm
    return None


def parse(shell: bytes) -> list[SimpleCommand]:
    """Every simple command in a shell string. Never raises; see ``SimpleCommand.problem``."""
    walk = _Walk()
    walk.script(shell, (), 0)
    return walk.out


def from_argv(argv: Sequence[bytes]) -> list[SimpleCommand]:
    """Every simple command that executing ``argv`` is known to run."""
    walk = _Walk()
    if argv:
        words = tuple(Word(bytes(argument)) for argument in argv)
        walk.unwrap(RawCommand(words, _source(words)), (), 0)
    return walk.out


def is_shell_call(argv: Sequence[bytes], shell: bytes) -> bool:
    """True when ``argv`` is just ``sh -c shell`` under any shell's name and usual options."""
    return (
        len(argv) >= 3
        and argv[-1] == shell
        and argv[0].rsplit(b"/", 1)[-1] in _SHELLS
        and argv[-2].startswith(b"-")
        and not argv[-2].startswith(b"--")
        and b"c" in argv[-2]
        and all(argument.startswith(b"-") for argument in argv[1:-1])
    )


@dataclass(frozen=True, slots=True)
class _Wrapper:
    """How to find the inner command of a program that runs another.

    Attributes:
        takes_value: short options followed by a value (``-u root``), one byte each.
        long_values: long options followed by a value in the next word.
        positionals: words between the options and the command (``timeout 5 cmd``).
        assignments: skips ``NAME=value`` words (sudo, env, doas).
        shell_option: an option whose value is a shell string (``su -c``).
        joins: all words are joined and given to a shell (``watch``).
    """

    takes_value: bytes = b""
    long_values: frozenset[bytes] = frozenset()
    positionals: int = 0
    assignments: bool = False
    shell_option: bytes = b""
    joins: bool = False


def _w(
    takes: bytes = b"",
    longs: bytes = b"",
    positionals: int = 0,
    *,
    assignments: bool = False,
    script: bytes = b"",
    joins: bool = False,
) -> _Wrapper:
    names = frozenset(b"--" + name for name in longs.split())
    return _Wrapper(takes, names, positionals, assignments, script, joins)


_SHELLS = frozenset(b"sh bash rbash dash ash ksh mksh zsh".split())
_WRAPPERS: dict[bytes, _Wrapper] = {
    b"sudo": _w(
        b"CDghpRrTtUu",
        b"chdir chroot close-from command-timeout group host other-user prompt role type user",
        assignments=True,
    ),
    b"doas": _w(b"Cu", assignments=True),
    b"env": _w(b"uCa", b"unset chdir argv0", assignments=True),
    b"nice": _w(b"n", b"adjustment"),
    b"ionice": _w(b"cnpPu", b"class classdata"),
    b"chrt": _w(b"TPD", b"sched-runtime sched-period sched-deadline", 1),
    b"taskset": _w(positionals=1),
    b"nohup": _w(),
    b"setsid": _w(),
    b"stdbuf": _w(b"ioe", b"input output error"),
    b"timeout": _w(b"ks", b"kill-after signal", 1),
    b"time": _w(b"fo", b"format output"),
    b"command": _w(),
    b"builtin": _w(),
    b"exec": _w(b"a"),
    b"busybox": _w(),
    b"toybox": _w(),
    b"chroot": _w(longs=b"userspec groups", positionals=1),
    b"flock": _w(b"wE", b"timeout conflict-exit-code", 1, script=b"c"),
    b"unshare": _w(b"RSGw", b"root wd setuid setgid propagation"),
    b"nsenter": _w(b"tSG", b"target setuid setgid"),
    b"setpriv": _w(longs=b"reuid regid groups inh-caps ambient-caps bounding-set securebits"),
    b"prlimit": _w(b"p", b"pid"),
    b"strace": _w(b"aeoOpsuEPXIbS", b"output trace user env"),
    b"ltrace": _w(b"aeolnpsuxAF"),
    b"fakeroot": _w(b"lsibf", b"lib faked"),
    b"unbuffer": _w(),
    b"watch": _w(b"nq", b"interval equexit", joins=True),
    b"su": _w(b"gGsw", b"group supp-group shell whitelist-environment", script=b"c"),
    b"runuser": _w(b"ugGsw", b"user group supp-group shell", script=b"c"),
    b"script": _w(b"BEIOTmot", b"log-io log-out log-in log-timing logging-format", script=b"c"),
    b"xargs": _w(
        b"aEIdLnPs",
        b"arg-file delimiter replace max-lines max-args max-procs max-chars process-slot-var",
    ),
}
_FIND_EXEC = frozenset([b"-exec", b"-execdir", b"-ok", b"-okdir"])
_FD_EXEC = frozenset([b"-x", b"-X", b"--exec", b"--exec-batch"])
_ASSIGNMENT = re.compile(rb"[A-Za-z_][A-Za-z0-9_]*=")
_PLAIN = re.compile(rb"[A-Za-z0-9_./:=@%^+,{}\-]+\Z")
_OPAQUE = Word(b"...", (None,), True)


class _Walk:
    """Collects the commands of one evaluation under one budget."""

    def __init__(self) -> None:
        self.out: list[SimpleCommand] = []
        self.budget = Budget()

    def script(self, text: bytes, via: tuple[str, ...], depth: int) -> None:
        if depth > MAX_SCRIPTS:
            self.problem(f"shells nested deeper than {MAX_SCRIPTS}", text, via)
            return
        commands, error = parse_script(text, self.budget)
        for command in commands:
            effects = _effects(command)
            if command.words:
                self.unwrap(command, via, depth, effects)
            elif effects:
                self.out.append(SimpleCommand((), command.source, via, effects=effects))
        if error is not None:
            near = text[max(0, error.offset - 20) : error.offset + 20]
            self.problem(error.reason, near, via, error.offset)

    def problem(self, why: str, source: bytes, via: tuple[str, ...], offset: int = 0) -> None:
        self.out.append(SimpleCommand((), source[:_SOURCE_BYTES], via, why, offset))

    def unwrap(
        self, command: RawCommand, via: tuple[str, ...], depth: int, effects: tuple[str, ...] = ()
    ) -> None:
        """Add the command, and what it is known to run in turn."""
        words, source = command.words, command.source
        for _ in range(MAX_WRAPPERS):
            self.out.append(SimpleCommand(words, source, via, effects=effects))
            first = words[0]
            if first.vanishes and len(words) > 1:
                words = words[1:]  # $SUDO rm x is rm x when SUDO is empty
                continue
            name = command_name(first)
            if name is None:
                return
            if name in _SHELLS:
                self.shell(words, via, depth, _stdin(command.redirects))
                return
            special = _SPECIAL.get(name)
            if special is not None:
                special(self, words, via, depth)
                return
            wrapper = _WRAPPERS.get(name)
            if wrapper is None:
                return
            inner = self.inner(name, wrapper, words, via, depth)
            if not inner:
                return
            words, via = inner, (*via, _text(name))
            source = _source(words)
        self.problem(f"more than {MAX_WRAPPERS} wrapped commands", source, via)

    def inner(
        self,
        name: bytes,
        wrapper: _Wrapper,
        words: tuple[Word, ...],
        via: tuple[str, ...],
        depth: int,
    ) -> tuple[Word, ...]:
        """The words of the wrapped command; () when there is none or it was a shell string."""
        if name == b"xargs":
            return _xargs(wrapper, words)
        if name == b"env" and self.env_split(words, via, depth):
            return ()
        if name == b"command" and len(words) > 1 and words[1].text in (b"-v", b"-V"):
            return ()
        if wrapper.shell_option and self.shell_option(wrapper, words, (*via, _text(name)), depth):
            return ()
        at = _command_index(wrapper, words)
        if wrapper.joins and at < len(words):
            self.script_words(words[at:], (*via, _text(name)), depth)
            return ()
        return words[at:]

    def shell_option(
        self, wrapper: _Wrapper, words: tuple[Word, ...], via: tuple[str, ...], depth: int
    ) -> bool:
        for index, word in enumerate(words[1:], 1):
            text = word.text
            if text.startswith(b"--command"):
                if text[9:10] == b"=":
                    self.script_words((Word(text[10:], word.parts),), via, depth)
                    return True
            elif not (text[:1] == b"-" and text[1:2] != b"-" and wrapper.shell_option in text[1:]):
                continue
            value = text.partition(wrapper.shell_option)[2] if text[:2] != b"--" else b""
            if value:
                self.script_words((Word(value, word.parts),), via, depth)
            elif index + 1 < len(words):
                self.script_words(words[index + 1 : index + 2], via, depth)
            return True
        return False

    def env_split(self, words: tuple[Word, ...], via: tuple[str, ...], depth: int) -> bool:
        """``env -S 'cmd args'``: the string is split like simple shell words."""
        for index, word in enumerate(words[1:], 1):
            text = word.text
            if text.startswith(b"--split-string"):
                value = text[15:]
            elif re.match(rb"-[iv0]*S", text):
                value = text.partition(b"S")[2]
            elif text.startswith(b"-") or _ASSIGNMENT.match(text):
                continue
            else:
                return False
            rest = words[index + 1 :]
            parts = (Word(value, word.parts), *rest) if value else rest
            self.script_words((Word(b"env"), *parts), (*via, "env -S"), depth)
            return True
        return False

    def script_words(self, words: Sequence[Word], via: tuple[str, ...], depth: int) -> None:
        """Words that are joined with spaces and read by a shell."""
        text = b" ".join(word.text for word in words)
        if any(word.parts for word in words):
            # The unknown part is read as shell text again, so it can hold any command.
            self.out.append(SimpleCommand((_OPAQUE,), text[:_SOURCE_BYTES], via))
        self.script(text, via, depth + 1)

    # -- programs with rules of their own --------------------------------------------------------

    def shell(
        self, words: tuple[Word, ...], via: tuple[str, ...], depth: int, stdin: bytes | None
    ) -> None:
        name = _text(command_name(words[0]) or b"sh")
        takes_script = reads_stdin = False
        index = 1
        while index < len(words):
            text = words[index].text
            if text[:1] not in (b"-", b"+") or len(text) == 1:
                break
            index += 1
            if text == b"--":
                break
            if text in (b"--rcfile", b"--init-file"):
                index += 1
            elif text[:2] != b"--":
                takes_script = takes_script or (text[:1] == b"-" and b"c" in text)
                reads_stdin = reads_stdin or b"s" in text
                index += sum(letter in b"oO" for letter in text[1:])
        if takes_script:
            if index < len(words):
                self.script_words(words[index : index + 1], (*via, f"{name} -c"), depth)
        elif (reads_stdin or index >= len(words)) and stdin is not None:
            self.script(stdin, (*via, f"{name} <<"), depth + 1)

    def eval(self, words: tuple[Word, ...], via: tuple[str, ...], depth: int) -> None:
        rest = words[2:] if len(words) > 1 and words[1].text == b"--" else words[1:]
        if rest:
            self.script_words(rest, (*via, "eval"), depth)

    def trap(self, words: tuple[Word, ...], via: tuple[str, ...], depth: int) -> None:
        rest = [word for word in words[1:] if word.text != b"--"]
        if len(rest) > 1 and rest[0].text not in (b"-", b"-l", b"-p", b""):
            self.script_words(rest[:1], (*via, "trap"), depth)

    def alias(self, words: tuple[Word, ...], via: tuple[str, ...], depth: int) -> None:
        for word in words[1:]:
            _, equals, value = word.text.partition(b"=")
            if equals:
                self.script_words((Word(value, word.parts),), (*via, "alias"), depth)

    def find(self, words: tuple[Word, ...], via: tuple[str, ...], depth: int) -> None:
        if depth > MAX_SCRIPTS:
            self.problem(f"commands nested deeper than {MAX_SCRIPTS}", b"find", via)
            return
        fd = (command_name(words[0]) or b"") != b"find"
        starts = _FD_EXEC if fd else _FIND_EXEC
        index = 1
        while index < len(words):
            option = words[index].text
            index += 1
            if option not in starts:
                continue
            inner: list[Word] = []
            while index < len(words):
                word = words[index]
                index += 1
                if word.text == b";" or (word.text == b"+" and inner and b"{}" in inner[-1].text):
                    break
                inner.append(_substituted(word, b"{}"))
            if fd and inner and not any(word.parts for word in inner):
                inner.append(UNKNOWN_WORD)  # fd appends the path when there is no placeholder
            if inner:
                name = f"{_text(words[0].text)} {_text(option)}"
                source = _source(inner)
                self.unwrap(RawCommand(tuple(inner), source), (*via, name), depth + 1)


_Special = Callable[[_Walk, tuple[Word, ...], tuple[str, ...], int], None]
_SPECIAL: dict[bytes, _Special] = {
    b"eval": _Walk.eval,
    b"trap": _Walk.trap,
    b"alias": _Walk.alias,
    b"find": _Walk.find,
    b"fd": _Walk.find,
    b"fdfind": _Walk.find,
}


def _command_index(wrapper: _Wrapper, words: tuple[Word, ...]) -> int:
    """Where the wrapped command's words begin; ``len(words)`` when there is none."""
    index, positionals = 1, wrapper.positionals
    options = True
    while index < len(words):
        text = words[index].text
        if options and text == b"--":
            options = False
            index += 1
        elif options and len(text) > 1 and text[:1] == b"-":
            index += 1
            if text[:2] == b"--":
                index += text in wrapper.long_values
            else:
                index += _short_takes_next(wrapper, text)
        elif wrapper.assignments and _ASSIGNMENT.match(text):
            index += 1
        elif positionals:
            positionals -= 1
            options = False
            index += 1
        else:
            return index
    return len(words)


def _short_takes_next(wrapper: _Wrapper, text: bytes) -> int:
    """1 when a cluster such as ``-iu`` ends in an option whose value is the next word."""
    for at, letter in enumerate(text[1:], 1):
        if letter in wrapper.takes_value:
            return int(at == len(text) - 1)
    return 0


def _xargs(wrapper: _Wrapper, words: tuple[Word, ...]) -> tuple[Word, ...]:
    """What xargs runs: its words with the replaced string unknown, or unknown words appended."""
    at = _command_index(wrapper, words)
    if at >= len(words):
        return ()
    replace = b""
    for index, word in enumerate(words[1:at], 1):
        if word.text in (b"-I", b"--replace") and index + 1 < at:
            replace = words[index + 1].text
        elif word.text[:2] in (b"-I", b"-i"):
            replace = word.text[2:] or b"{}"
        elif word.text.startswith(b"--replace"):
            replace = word.text[10:] or b"{}"
    if replace:
        return tuple(_substituted(word, replace) for word in words[at:])
    return (*words[at:], UNKNOWN_WORD)


def _substituted(word: Word, placeholder: bytes) -> Word:
    """The word with each placeholder made an unknown part."""
    if word.parts or placeholder not in word.text:
        return word
    parts: list[bytes | None] = []
    for index, piece in enumerate(word.text.split(placeholder)):
        if index:
            parts.append(None)
        if piece:
            parts.append(piece)
    return Word(word.text, tuple(parts))


def _source(words: Sequence[Word]) -> bytes:
    """Words as a shell would take them, cut: for people, who must see where a word ends."""
    shown: list[bytes] = []
    left = _SOURCE_BYTES
    for word in words:
        text = word.text[:left]
        if not word.parts and not _PLAIN.match(text):
            text = b"'" + text.replace(b"'", b"'\\''") + b"'"
        shown.append(text)
        left -= len(text) + 1
        if left <= 0:
            break
    return b" ".join(shown)[:_SOURCE_BYTES]


def _stdin(redirects: Sequence[Redirect]) -> bytes | None:
    """The text a command reads, when a here-document or here-string gives it."""
    for redirect in reversed(redirects):
        if redirect.op in (b"<<", b"<<-", b"<<<"):
            return redirect.body
    return None


_HARMLESS_TARGETS = frozenset([b"/dev/null", b"/dev/stdout", b"/dev/stderr"])


def _effects(command: RawCommand) -> tuple[str, ...]:
    """What the command does to its surroundings before any program runs."""
    effects = [f"sets {_text(name)}" for name in command.assigned]
    for redirect in command.redirects:
        target = redirect.target
        if redirect.op[:1] == b"<" and redirect.op != b"<>":
            continue
        if not target.parts and (
            target.text in _HARMLESS_TARGETS
            or (redirect.op == b">&" and re.match(rb"[0-9]*-?\Z", target.text))
        ):
            continue
        effects.append(f"writes {_text(target.text)}")
    return tuple(effects)


def _text(data: bytes) -> str:
    return data[:64].decode("utf-8", "replace")


__all__ = [
    "MAX_SCRIPT_BYTES",
    "ShellSyntaxError",
    "SimpleCommand",
    "Word",
    "command_name",
    "from_argv",
    "is_shell_call",
    "parse",
]
