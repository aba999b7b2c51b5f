"""On a terminal a command has one of its own: read from the screen of tmux, as a person would."""

from __future__ import annotations

import shlex
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import SUBSTRATE
from tests.users import PYTHON, User, eventually

pytestmark = pytest.mark.needs_tmux


class Terminal:
    """A tmux server of its own with one window in which a shell waits."""

    def __init__(self, user: User, cwd: Path) -> None:
        self._name = f"substrate-test-{uuid.uuid4().hex[:12]}"
        self._env = {**user.env(), "PS1": "$ ", "TERM": "xterm-256color"}
        self._tmux("-f", "/dev/null", "new-session", "-d", "-x", "100", "-y", "40",
                   "-c", str(cwd), "env PS1='$ ' sh")  # fmt: skip

    def _tmux(self, *words: str) -> str:
        done = subprocess.run(
            ["tmux", "-L", self._name, *words],
            check=True,
            env=self._env,
            capture_output=True,
            text=True,
            timeout=10,
        )
        return done.stdout

    def run(self, *words: str) -> None:
        self.type(shlex.join([*SUBSTRATE, *words]) + "; echo code=$?")

    def type(self, line: str) -> None:
        self._tmux("send-keys", "-l", line)
        self.key("Enter")

    def key(self, name: str) -> None:
        self._tmux("send-keys", name)

    def resize(self, columns: int, rows: int) -> None:
        self._tmux("resize-window", "-x", str(columns), "-y", str(rows))

    def screen(self, *, colours: bool = False) -> str:
        return self._tmux("capture-pane", "-p", "-J", *(["-e"] if colours else []))

    def wait_for(self, text: str) -> str:
        """The screen once a line of it is, or ends with, the text."""

        def look() -> str | None:
            shown = self.screen()
            return shown if any(x.rstrip().endswith(text) for x in shown.splitlines()) else None

        return eventually(look, f"{text!r} on the screen")

    def close(self) -> None:
        self._tmux("kill-server")


@pytest.fixture
def terminal(user: User, git_checkout: Path) -> Iterator[Terminal]:
    made = Terminal(user, git_checkout)
    try:
        yield made
    finally:
        made.close()


def test_output_is_live_and_the_summary_follows(terminal: Terminal) -> None:
    terminal.run("run", "--", "sh", "-c", "echo one; read x; echo got $x; rm README.md; exit 3")
    terminal.wait_for("one")  # while the command waits
    terminal.type("typed")
    terminal.wait_for("got typed")
    shown = terminal.wait_for("code=3")
    assert "exit 3" in shown
    assert "README.md" in shown
    assert "coverage" in shown
    assert "replay: substrate replay" in shown


def test_the_command_has_a_terminal_with_colours(terminal: Terminal) -> None:
    terminal.run("run", "-q", "--", "sh", "-c", "test -t 0 && test -t 1 && tty && "
                 "printf '\\033[31mred\\033[0m\\n'")  # fmt: skip
    shown = terminal.wait_for("code=0")
    assert "/dev/pts/" in shown
    assert "\x1b[31mred" in terminal.screen(colours=True)


def test_ctrl_c_interrupts_the_command_and_not_the_recorder(terminal: Terminal) -> None:
    terminal.run("run", "--", "sh", "-c", "echo ready; sleep 60")
    terminal.wait_for("ready")
    terminal.key("C-c")
    shown = terminal.wait_for("code=130")
    assert "Traceback" not in shown
    terminal.type("echo the terminal is sane")
    terminal.wait_for("the terminal is sane")


def test_the_windows_size_is_the_commands_and_follows(terminal: Terminal) -> None:
    script = (
        "import os, signal\n"
        "show = lambda *_: print('size', *os.get_terminal_size(), flush=True)\n"
        "signal.signal(signal.SIGWINCH, show); show()\n"
        "input()"
    )
    terminal.run("run", "-q", "--", PYTHON, "-c", script)
    terminal.wait_for("size 100 40")
    terminal.resize(90, 30)
    terminal.wait_for("size 90 30")
    terminal.key("Enter")
    terminal.wait_for("code=0")


def test_an_interactive_program_works(terminal: Terminal) -> None:
    terminal.run("run", "-q", "--", PYTHON, "-q")
    terminal.wait_for(">>>")
    terminal.type("6 * 7")
    terminal.wait_for("42")
    terminal.key("C-d")
    terminal.wait_for("code=0")


def test_a_run_on_a_terminal_replays(terminal: Terminal, user: User, git_checkout: Path) -> None:
    terminal.run("run", "-q", "--", "sh", "-c", "stty size; echo done")
    terminal.wait_for("code=0")
    code, report = user.replay(cwd=git_checkout)
    assert (code, report["verdict"]) == (0, "identical"), report
