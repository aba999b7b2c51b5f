"""Full-screen programs on a world's terminal, seen as a person sees them: on a screen."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

import pyte
import pytest

from substrate_sdk import Result
from substrate_sdk.client.sync import Exec, World

_PATIENCE_S = 60.0


class _Answering(pyte.Screen):
    """A screen that answers what a program asks its terminal: where the cursor is, say."""

    def __init__(self, columns: int, rows: int, proc: Exec) -> None:
        super().__init__(columns, rows)
        self._proc = proc

    def write_process_input(self, data: str) -> None:
        self._proc.stdin.write(data.encode())


class Program:
    """A program that runs on a terminal in a world."""

    def __init__(self, world: World, command: list[str] | str, rows: int, columns: int) -> None:
        self._proc = world.exec(
            command, pty=(rows, columns), env={"TERM": "linux"}, timeout_s=_PATIENCE_S
        )
        self._screen = _Answering(columns, rows, self._proc)
        self._stream = pyte.ByteStream(self._screen)
        self._output = self._proc.output()

    def shows(self, text: str) -> list[str]:
        """Wait until a text is on the screen; what is on it then."""
        while not any(text in line for line in self._screen.display):
            output = next(self._output, None)  # nobody writes any more when the time is out
            assert output is not None, f"no {text!r}; the screen:\n" + self.text
            self._stream.feed(output.data)
        return list(self._screen.display)

    @property
    def text(self) -> str:
        return "\n".join(line.rstrip() for line in self._screen.display)

    def type(self, keys: str) -> None:
        self._proc.stdin.write(keys.encode())

    def resize(self, rows: int, columns: int) -> None:
        self._screen.resize(rows, columns)
        self._proc.resize(rows, columns)

    def ended(self) -> Result:
        with contextlib.closing(self._output):
            for output in self._output:
                self._stream.feed(output.data)
        return self._proc.wait()


def _needs(command: str, package: str) -> None:
    if shutil.which(command) is None:
        pytest.skip(f"{command} is not installed (Debian: {package})")


def test_an_editor_edits_is_resized_and_saves(world: World) -> None:
    _needs("vi", "vim-tiny")
    editor = Program(world, ["vi", "-u", "NONE", "-N", "-i", "NONE", "-n", "draft"], 24, 80)
    editor.shows("draft")
    editor.type("ifirst line\rsecond\x1b")
    editor.shows("second")
    editor.type(":set columns?\r")
    editor.shows("columns=80")
    editor.resize(30, 100)
    editor.type(":set columns? lines?\r")
    editor.shows("columns=100")
    editor.type("\r:!stty size\r")
    editor.shows("30 100")
    editor.type("\r:wq\r")
    result = editor.ended()
    assert (result.termination_reason, result.exit_code) == ("EXITED", 0)
    assert [Path(change.path).name for change in result.changes] == ["draft"]
    assert world.files.read("draft") == b"first line\nsecond\n"


def test_a_pager_searches_and_fills_a_larger_window(world: World) -> None:
    _needs("less", "less")
    world.run("seq -f 'line %g.' 1 500 > long")
    pager = Program(world, ["less", "long"], 10, 40)
    assert pager.shows("line 9.")[0].startswith("line 1.")
    pager.type("/e 321\r")
    assert pager.shows("line 329.")[0].startswith("line 321.")
    pager.resize(20, 40)
    pager.shows("line 339.")
    pager.type("q")
    assert pager.ended().exit_code == 0


def test_a_picker_takes_keys_from_the_terminal_and_lines_from_a_pipe(world: World) -> None:
    _needs("fzf", "fzf")
    picker = Program(world, "printf 'apple\\nbanana\\ncherry\\n' | fzf > picked", 12, 60)
    picker.shows("3/3")
    picker.type("ban")
    picker.shows("1/3")
    picker.resize(8, 50)
    picker.type("\r")
    assert picker.ended().exit_code == 0
    assert world.files.read("picked") == b"banana\n"


def test_a_process_viewer_draws_again_and_ends(world: World) -> None:
    _needs("top", "procps")
    viewer = Program(world, ["top", "-d", "600"], 24, 80)
    viewer.shows("COMMAND")
    viewer.type("c")  # whole command lines: a screen that was not there before
    viewer.shows("top -d")
    viewer.resize(30, 120)
    viewer.shows("top -d 600")  # its window cut the line
    viewer.type("q")
    assert viewer.ended().exit_code == 0
