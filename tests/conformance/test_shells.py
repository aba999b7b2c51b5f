"""Persistent shells."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from substrate_sdk import World
from substrate_sdk.errors import ShellEnded
from tests.conformance.clauses import Place, clause, kinds


@clause("shell: directory, variables, functions and options stay between commands")
def test_keeps(shared: World) -> None:
    with shared.shell(cwd="/tmp", env={"GIVEN": "1"}) as shell:
        shell.run("mkdir -p kept && cd kept; X=2; greet() { echo hello $1; }; set -f")
        assert shell.run("pwd; echo $GIVEN $X *; greet you").stdout == (
            "/tmp/kept\n1 2 *\nhello you\n"
        )


@clause("shell: each command is a step with its own output, exit and changes")
def test_steps(place: Place, shared: World) -> None:
    with shared.shell() as shell:
        one = shell.run("echo one > shell-one; echo err >&2; false")
        two = shell.run("cat; echo two > shell-two", stdin="given")
    assert (one.exit_code, one.stderr, kinds(one, place.host.project)) == (
        1,
        "err\n",
        {"shell-one": "created"},
    )
    assert (two.stdout, kinds(two, place.host.project)) == ("given", {"shell-two": "created"})
    assert one.span_id != two.span_id


@clause("shell: output that looks like a prompt or a marker ends nothing")
def test_no_prompt(shared: World) -> None:
    with shared.shell() as shell:
        text = "$ \nbash-5.2# \n\x04\x00EOF\n"
        assert shell.run("cat", stdin=text).stdout == text
        assert shell.run("echo next").stdout == "next\n"


@clause("shell: an interrupt or a time-out ends the command, not the shell")
def test_interrupt(shared: World) -> None:
    with shared.shell() as shell, ThreadPoolExecutor(1) as pool:
        shell.run("kept=3")
        begun = threading.Event()
        running = pool.submit(
            shell.run, "echo up; sleep 1000", on_output=lambda _piece: begun.set()
        )
        assert begun.wait(20)
        shell.interrupt()
        assert running.result(20).exit_code == 130
        assert shell.run("sleep 1000", timeout_s=0.3).termination_reason == "TIMEOUT"
        assert shell.run("echo $kept").stdout == "3\n"


@clause("shell: one that ended says so, and can be opened anew")
def test_ended(shared: World) -> None:
    with shared.shell() as shell:
        assert shell.run("gone=1; exit 5").exit_code == 5
        with pytest.raises(ShellEnded, match="5"):
            shell.run("true")
        shell.restart()
        assert shell.run('echo "<$gone>"').stdout == "<>\n"


@clause("shell: many live at once in a world")
def test_many(shared: World) -> None:
    shells = [shared.shell() for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        for turn in range(2):
            outs = pool.map(
                lambda pair: pair[1].run(f"n=${{n:-{pair[0]}}}; echo $n").stdout,
                enumerate(shells, turn * 10),
            )
            assert list(outs) == [f"{number}\n" for number in range(4)]
    for shell in shells:
        shell.close()
