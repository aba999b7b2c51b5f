"""The command ``substrate``. Importing this costs next to nothing; each subcommand is a module."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

__all__ = ["main"]

#: Subcommand: its module here. Those that are not built yet are known by name, to say so.
_MODULES = {
    "run": "run",
    "shell": "shell",
    "world": "world",
    "image": "image",
    "diff": "diff",
    "apply": "commits",
    "fork": "commits",
    "rollback": "commits",
    "trace": "trace",
    "replay": "replay",
    "policy": "policy",
    "up": "host",
    "down": "host",
    "doctor": "doctor",
}
_NOT_BUILT = ("shim", "approvals", "serve")

_HELP = """\
usage: substrate COMMAND … | substrate -c "SHELL COMMAND"

Runs commands of agents in isolated worlds, records what they do, and replays it.

  run -- CMD…            run a command in a world; exits with its code
  -c "CMD"               the same, for the shell
  shell                  a shell in a world; without a terminal, commands from stdin
  world                  create, list, exec, rm: worlds that stay
  image                  import, ls, rm: roots for worlds
  diff @last|SPAN|WORLD  what it changed, as a patch
  fork @last|SPAN|WORLD  a new world with the tree after it
  rollback SPAN|WORLD    set a world's tree to that after a step, or to what it was at first
  apply @last|SPAN|WORLD write its changes to the project on the host
  trace                  ls, show, events, verify: what was recorded
  replay @last|SPAN      run it again in a fresh world: identical, or where it parted ways
  policy                 check, explain
  up, down               start or end the host of $SUBSTRATE_HOME (run starts it by itself)
  doctor                 what this machine can and cannot do

substrate COMMAND --help says more. --json everywhere prints one JSON object.
Exit codes: the command's own; 2 usage, 124 time-out, 125 Substrate failed, 126 denied,
127 not found, 128+N signal. SUBSTRATE_DEBUG=1 shows where an error comes from.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Args:
        argv: the arguments; those of the process when None, which is then ended right here, since
            taking an interpreter with gRPC in it down in order takes longer than most commands.
    """
    if argv is None:
        from substrate_sdk.cli.deferring import defer

        _open_standard_streams()
        defer()
    else:
        from substrate_sdk.cli import failures

        failures.answered = False  # by an earlier call in this process
    args = list(sys.argv[1:] if argv is None else argv)
    code = _guarded(args)
    if argv is None:
        code = _flushed(code)
        os._exit(code)
    return code


def _open_standard_streams() -> None:
    """Put /dev/null where a standard stream is closed.

    Otherwise the next thing opened, the connection to the host, takes its number: it would be
    read as standard input, or what is printed would be written into it.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number: this one
            if getattr(sys, name) is None:
                setattr(sys, name, os.fdopen(number, "r" if number == 0 else "w", closefd=False))


def _guarded(args: list[str]) -> int:
    """Dispatch, and turn whatever goes wrong into one line and an exit code."""
    debug = os.environ.get("SUBSTRATE_DEBUG", "") not in ("", "0")
    if args and args[0] == "--debug":
        debug = True
        del args[0]
    try:
        return _dispatch(args)
    except KeyboardInterrupt:
        return 130
    except BaseException as error:  # the root: nothing may reach the user as a traceback
        if debug or not isinstance(error, Exception):
            raise
        from substrate_sdk.cli.failures import report

        return report(error, args)


def _dispatch(args: list[str]) -> int:
    name = args[0] if args else "--help"
    if name in ("-h", "--help", "help"):
        sys.stdout.write(_HELP)
        return 0
    if name in ("-V", "--version", "version"):
        from substrate_sdk import __version__

        print(f"substrate {__version__}")
        return 0
    if name in _MODULES:
        from importlib import import_module

        module = import_module(f"substrate_sdk.cli.{_MODULES[name]}")
        code: int = module.main(args)
        return code
    if name.startswith("-"):
        # Options of run may come before -c, as in `substrate --json -c ls`.
        from substrate_sdk.cli import run

        return run.main(["-c", *args])
    from substrate_sdk.cli.failures import UsageError
    from substrate_sdk.errors import NotBuilt

    if name in _NOT_BUILT:
        raise NotBuilt(f"substrate {name} is not built yet; substrate --help lists what is")
    raise UsageError(f"there is no command {name!r}; substrate --help lists them")


def _flushed(code: int) -> int:
    """Write out what is buffered; whoever read it may be gone, which is no failure of ours."""
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except BrokenPipeError:
        return code or 141
    except OSError as error:
        os.write(2, f"substrate: cannot write the output: {error.strerror}\n".encode())
        return code or 125
    return code
