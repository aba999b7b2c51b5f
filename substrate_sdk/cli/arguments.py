"""Command lines: argparse with one-line errors, and what several subcommands share."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, NoReturn

from substrate_sdk.cli import failures
from substrate_sdk.cli.failures import UsageError
from substrate_sdk.errors import SubstrateError

if TYPE_CHECKING:
    from substrate_sdk._jsonform import JsonValue
    from substrate_sdk.client.sync import Substrate


class Parser(argparse.ArgumentParser):
    """argparse whose errors are a :class:`UsageError`."""

    def __init__(self, command: str, description: str) -> None:
        super().__init__(
            prog=f"substrate {command}",
            description=description,
            allow_abbrev=False,
            # With a width that is given, argparse does not import shutil to ask the terminal.
            formatter_class=lambda prog: argparse.HelpFormatter(prog, width=98),
        )
        self.add_argument(
            "--endpoint", metavar="E", help="unix:///path or host:port (SUBSTRATE_ENDPOINT)"
        )
        self.add_argument("--json", action="store_true", help="print one JSON object")
        self.add_argument("--debug", action="store_true", help=argparse.SUPPRESS)

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, in one line."""
        raise UsageError(f"{message}; {self.prog} --help says more")


def seconds(text: str) -> float:
    """A positive number of seconds."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e9:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a number of seconds above 0 and below 1e9"
        )
    return value


def count(text: str) -> int:
    """A positive number."""
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return int(text)


def readable_file(text: str) -> str:
    """A file that this process can read, so that a mistake is found before anything starts."""
    try:
        with open(text, "rb") as file:
            file.read(1)
    except OSError as error:
        raise SubstrateError(
            f"cannot read {text!r}: {error.strerror}; name a policy file that you can read"
        ) from error
    return text


def split_command(
    parser: argparse.ArgumentParser, args: Sequence[str]
) -> tuple[list[str], list[str]]:
    """Options, and the command that begins at ``--`` or at the first word that is no option."""
    with_value = {
        name
        for action in parser._option_string_actions.values()  # noqa: SLF001 # argparse tells nobody
        if action.nargs is None
        for name in action.option_strings
    }
    index = 0
    while index < len(args):
        word = args[index]
        if word == "--":
            return list(args[:index]), list(args[index + 1 :])
        if not word.startswith("-") or word == "-":
            break
        index += 2 if word in with_value else 1
    return list(args[:index]), list(args[index:])


def raw(words: Iterable[str]) -> list[bytes]:
    """Arguments as the bytes that they were (sys.argv is decoded with surrogateescape)."""
    return [os.fsencode(word) for word in words]


def open_substrate(options: argparse.Namespace) -> Substrate:
    """The client that the options and the environment ask for."""
    from substrate_sdk.client.sync import Substrate

    return Substrate(options.endpoint)


def print_json(value: JsonValue) -> None:
    """Print one JSON document. Text that is not Unicode is escaped, never refused."""
    import json

    failures.answered = True
    print(json.dumps(value, ensure_ascii=True))


def print_text(text: str) -> None:
    """Print text that may hold surrogates of file names that are not UTF-8."""
    sys.stdout.flush()
    sys.stdout.buffer.write(os.fsencode(text) + b"\n")


Handler = Callable[[argparse.Namespace], int]
