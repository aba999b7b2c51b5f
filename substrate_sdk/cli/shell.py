"""``substrate shell``: a shell in a world, on this terminal or fed from standard input.

On a terminal it is an interactive bash with the terminal as its own, recorded as one step. Without
one, each complete command that standard input brings is a step of its own, in one shell.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator

from substrate_sdk.cli import run
from substrate_sdk.cli.arguments import Parser, open_substrate, print_json
from substrate_sdk.cli.exit_codes import exit_code
from substrate_sdk.cli.failures import UsageError
from substrate_sdk.client.sync import World
from substrate_sdk.errors import ShellEnded
from substrate_sdk.types import Output

#: What bash -n says of text that goes on.
_UNFINISHED = (b"unexpected end of file", b"unexpected EOF", b"delimited by end-of-file")


def parser() -> Parser:
    """The options: those of ``run`` that are not about one command."""
    made = run.parser("shell")
    made.description = "A shell in an isolated world; without a terminal, commands from stdin."
    made.usage = "substrate shell [OPTIONS]"
    return made


def main(args: list[str]) -> int:
    """Run it."""
    options = parser().parse_args(args[1:])
    if options.shell is not None:
        raise UsageError("shell takes no -c; `substrate -c CMD` runs one command")
    inside = options.world or os.environ.get("SUBSTRATE_WORLD_ID", "")
    with open_substrate(options) as sub:
        world = run.open_world(sub, options, inside)
        try:
            if os.isatty(0) and os.isatty(1) and not options.json:
                result = run.run_in(world, [b"bash", b"-i"], options)
                run.report(world, result, options, quiet=options.quiet)
                return exit_code(result)
            environment = run.environment(options.env)
            return _feed(world, options.json, options.cwd, environment, options.timeout)
        finally:
            if not inside and not options.keep:
                world.remove()


def _feed(
    world: World,
    as_json: bool,
    cwd: str | None,
    env: dict[str, str],
    timeout_s: float | None,
) -> int:
    """Give a shell what standard input brings; the exit code of the last command."""
    code = 0
    with world.shell(cwd=cwd, env=env) as shell:
        for command in commands(sys.stdin.buffer):
            try:
                result = shell.run(
                    command, timeout_s=timeout_s, on_output=None if as_json else _write
                )
            except ShellEnded:
                break  # by the command before, whose exit code is the shell's
            if as_json:
                print_json(result.to_json())
            code = exit_code(result)
    return code


def commands(lines: Iterable[bytes]) -> Iterator[bytes]:
    """Lines, joined where a command goes on over several, as this machine's bash reads them."""
    bash = shutil.which("bash")
    held = b""
    for line in lines:
        held += line
        if held.strip() and not (bash and _goes_on(bash, held)):
            yield held
            held = b""
    if held.strip():
        yield held


def _goes_on(bash: str, text: bytes) -> bool:
    if text.endswith(b"\\\n"):
        return True
    checked = subprocess.run(
        [bash, "--norc", "--noprofile", "-n"],
        input=text,
        env={"LC_ALL": "C"},
        capture_output=True,
        check=False,
    )
    return any(words in checked.stderr for words in _UNFINISHED)


def _write(output: Output) -> None:
    ours = sys.stderr.buffer if output.stream == "stderr" else sys.stdout.buffer
    ours.write(output.data)
    ours.flush()
