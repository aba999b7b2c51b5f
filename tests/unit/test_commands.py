"""Which simple commands a shell string or argv is seen to run."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from substrate_services.broker.commands import SimpleCommand, from_argv, is_shell_call, parse
from substrate_services.broker.shell import parse_script
from substrate_services.broker.shell_types import MAX_SCRIPT_BYTES, Word
from substrate_services.broker.shell_words import decode_ansi_c


def texts(commands: list[SimpleCommand]) -> list[list[bytes]]:
    return [[word.text for word in command.words] for command in commands if command.words]


def finds_rm(commands: list[SimpleCommand]) -> bool:
    return any(
        command.name == b"rm" and [word.text for word in command.words[1:]] == [b"-rf", b"/x"]
        for command in commands
    )


SPELLINGS = [
    b"rm -rf /x",
    b"/bin/rm -rf /x",
    b"\\rm -rf /x",
    b"'r'm -rf /x",
    b'r""m "-rf" /x',
    b"$'\\x72m' -rf $'/\\170'",
    b"r\\\nm -rf /x",
    b"rm\t-rf \\\n /x",
    b"rm -rf /x 2>&1 >/dev/null",
    b">/dev/null rm -rf /x",
    b"rm >/dev/null -rf /x",
    b"A=1 B='2 3' rm -rf /x",
    b"a[1 + 2]=3 rm -rf /x",
    b"! rm -rf /x",
    b"time -p rm -rf /x",
    b"coproc rm -rf /x",
]
WRAPPED = [
    "sudo {}",
    "sudo -u root -E A=1 {}",
    "env {}",
    "env -i -u B A=1 {}",
    "nice -n 5 {}",
    "nohup {}",
    "timeout -k 5 10 {}",
    "/usr/bin/time -p {}",
    "command {}",
    "exec -a name {}",
    "busybox {}",
    "setsid {}",
    "stdbuf -oL {}",
    "sudo nice nohup timeout 5 {}",
    "xargs -n1 {}",
    "flock /tmp/l {}",
    "$SUDO {}",
]
COMPOUND = [
    "{}",
    "true; {}",
    "true && {}",
    "false || {}",
    "true | {}",
    "true |& {}",
    "true & {}",
    "true\n{}",
    "({})",
    "{{ {}; }}",
    "echo $({})",
    'echo "$({})"',
    "echo `{}`",
    'echo "${{A:-$({})}}"',
    "echo $(( $({}) + 1 ))",
    "(( a = $({}) ))",
    "cat <({})",
    "A=$({})",
    "a=(1 $({}))",
    "a[$({})]=1",
    "if {}; then :; fi",
    "if true; then {}; else :; fi",
    "while false; do {}; done",
    "until {}; do :; done",
    "for i in 1 2; do {}; done",
    "for i in $({}); do :; done",
    "for ((i=0; i<$({}); i++)); do :; done",
    "case $({}) in *) ;; esac",
    "case a in a|b) {} ;; (c) :;& *) :;;& esac",
    "select i in a; do {}; done",
    "f() {{ {}; }}; f",
    "function f {{ {}; }}",
    "f() ({})",
    "[[ -n $({}) && a =~ ^(a|b)$ ]]",
    "[ -n $({}) ]",
    "cat <<E\n$({})\nE\n",
    "cat <<-E\n\t`{}`\n\tE\n",
    "cat <<E | {}\nbody\nE\n",
    "cat <<'E'; {}\nbody\nE\n",
    "cat <<E\nbody\nE\n{}",
    "bash <<E\n{}\nE\n",
    "exec 3<>/dev/null; {}",
    "echo a#b; {} # comment",
    "# comment\n{}",
    "echo $[ 1 + $({}) ]",
    "declare -a A=(x $({}))",
    "echo $(case a in a) {} ;; esac)",
]


def filled(form: str, command: bytes) -> bytes:
    """The form with the command in it, and its doubled braces made single."""
    parts = form.replace("{{", "\1").replace("}}", "\2").split("{}")
    return command.join(part.replace("\1", "{").replace("\2", "}").encode() for part in parts)


# Tables are looped over inside tests: the leak check after each test takes longer than they do.
def test_a_command_is_found_however_it_is_spelled_and_wherever_it_stands() -> None:
    missed = [
        script
        for form in COMPOUND
        for script in (filled(form, spelling) for spelling in SPELLINGS)
        if not finds_rm(parse(script)) or any(command.problem for command in parse(script))
    ]
    assert missed == []


def test_wrappers_are_looked_through() -> None:
    wanted = [b"rm", b"-rf", b"/x"]
    for form in WRAPPED:
        script = form.format("rm -rf /x").encode()
        assert any(found[:3] == wanted for found in texts(parse(script))), form
        if not form.startswith("$"):
            found_in_argv = texts(from_argv(script.split()))
            assert any(found[:3] == wanted for found in found_in_argv), form


SHELL_STRINGS = [
    b'bash -c "rm -rf /x"',
    b"bash -lc 'cd /; rm -rf /x'",
    b"sh -e -o pipefail -c 'rm -rf /x' name arg",
    b'bash -c \'bash -c "sh -c \\"rm -rf /x\\""\'',
    b"sudo bash -c 'rm -rf /x'",
    b"su - bob -c 'rm -rf /x'",
    b"su --command='rm -rf /x'",
    b"flock /l -c 'rm -rf /x'",
    b"eval rm -rf /x",
    b"eval 'rm -rf' '/x'",
    b"trap 'rm -rf /x' EXIT",
    b"alias ls='rm -rf /x'",
    b"env -S 'rm -rf /x'",
    b"watch -n 1 rm -rf /x",
    b"bash <<< 'rm -rf /x'",
    b"sudo sh -s <<'E'\nrm -rf /x\nE\n",
    b"find . -name '*.o' -exec rm -rf /x \\;",
    b"find . -print -exec true {} + -execdir sh -c 'rm -rf /x' _ {} +",
    b"xargs -I% sh -c 'rm -rf /x'",
    b"script -q -c 'rm -rf /x' /dev/null",
]
NOT_RUN = [
    b'echo "rm -rf /x"',
    b"echo rm -rf /x",
    b"echo 'a; rm -rf /x'",
    b"cat <<'E'\n$(rm -rf /x)\nE\n",
    b"cat <<E\nrm -rf /x\nE\n",
    b"# rm -rf /x",
    b"echo a # ; rm -rf /x",
    b"command -v rm -rf /x",
    b"python -c 'import os; os.system(\"rm -rf /x\")'",
    b"echo '$(rm -rf /x)'",
    b"case rm in rm) :;; esac",
    b"for rm in a b; do :; done",
    b"grep 'rm -rf /x' log",
    b"git commit -m 'rm -rf /x'",
]


def test_shell_strings_given_to_other_programs_are_read() -> None:
    assert [script for script in SHELL_STRINGS if not finds_rm(parse(script))] == []


def test_text_that_is_not_run_is_not_a_command() -> None:
    for script in NOT_RUN:
        commands = parse(script)
        assert not any(command.problem for command in commands), script
        assert not finds_rm(commands), script


WORDS = [
    (b"rm $X", [Word(b"rm"), Word(b"$X", (None,), True)]),
    (b'rm "$X"', [Word(b"rm"), Word(b"$X", (None,))]),
    (b"rm a$X/b", [Word(b"rm"), Word(b"a$X/b", (b"a", None, b"/b"))]),
    (b"rm *.py", [Word(b"rm"), Word(b"*.py", (None, b".py"))]),
    (b"rm ~/a", [Word(b"rm"), Word(b"~/a", (None, b"/a"))]),
    (b"rm '$X' \\*", [Word(b"rm"), Word(b"$X"), Word(b"*")]),
    (b"rm a{b,c}", [Word(b"rm"), Word(b"a{b,c}", (b"a", None), True)]),
    (b"find . {} a{b}", [Word(b"find"), Word(b"."), Word(b"{}"), Word(b"a{b}")]),
    (b"rm \xff\xfe'\x80 '", [Word(b"rm"), Word(b"\xff\xfe\x80 ")]),
    (b"rm ''", [Word(b"rm"), Word(b"")]),
    (b"[ -f x ]", [Word(b"["), Word(b"-f"), Word(b"x"), Word(b"]")]),
]


def test_words_know_which_of_their_parts_are_known() -> None:
    for script, words in WORDS:
        assert list(parse(script)[0].words) == words


def test_what_is_reached_through_wrappers_says_so() -> None:
    commands = parse(b"sudo timeout 5 bash -c 'rm x'")
    assert commands[-1].via == ("sudo", "timeout", "bash -c")
    assert commands[-1].source == b"rm x"


def test_a_shell_string_with_an_unknown_part_may_hold_any_command() -> None:
    commands = parse(b'bash -c "ls $X"')
    assert any(command.words and command.words[0].parts == (None,) for command in commands)


def test_assignments_and_writing_redirections_are_effects() -> None:
    (command,) = parse(b"PATH=/tmp ls >out.txt 2>/dev/null 2>&1 <in")
    assert command.effects == ("sets PATH", "writes out.txt")
    (bare,) = parse(b"> /etc/passwd")
    assert (bare.words, bare.effects) == ((), ("writes /etc/passwd",))


NOT_SHELL = [
        b"echo 'a", b'echo "a', b"echo `a", b"echo $(a", b"echo ${a", b"if true; then", b"fi",
        b"{ a", b"( a", b"a )", b"case x in a) b", b"for i in a; do b", b"a\0b", b"[[ a", b"a (b",
        b"cat <<$(x)\n", b"echo ${ a; }", b"cat <",
]  # fmt: skip


def test_what_is_not_shell_is_unparsable() -> None:
    for script in NOT_SHELL:
        last = parse(script)[-1]
        assert last.unparsable, script
        assert not last.words


def test_commands_before_a_mistake_are_still_found() -> None:
    commands = parse(b"rm -rf /x; echo 'a")
    assert finds_rm(commands)
    assert commands[-1].unparsable


SHELL_CALLS = [
    ((b"/bin/sh", b"-c", b"ls"), b"ls", True),
    ((b"bash", b"-lc", b"ls"), b"ls", True),
    ((b"bash", b"-l", b"-c", b"ls"), b"ls", True),
    ((b"bash", b"-c", b"rm"), b"ls", False),
    ((b"python", b"-c", b"ls"), b"ls", False),
    ((b"bash", b"x", b"-c", b"ls"), b"ls", False),
]


def test_a_plain_shell_call_is_told_apart() -> None:
    for argv, shell, expected in SHELL_CALLS:
        assert is_shell_call(argv, shell) is expected, argv


UNITS = [
    b"a", b"(", b"$(", b"'", b"echo x;", b"{ ", b"`", b"${a:-", b"<<E\n", b'"$(', b"[[ ", b"((",
    b"if ", b"case x in a) ", b"f() ", b"a=(", b"!", b"<(", b"$((", b"a[", b"&&", b"\\", b"$",
    b"{a,", b"<<<a ", b")", b"sudo ", b"find -exec ", b"bash -c ", b"eval ", b"$X ", b"=",
    b"((1)) ", b"$((1)) ", b"\\`", b"a&>b ", b"xargs ", b"\n", b"${a[", b"$[", b"env -S ",
]  # fmt: skip


def test_hostile_input_costs_bounded_time_and_never_crashes() -> None:
    for unit in UNITS:
        largest = (unit * (MAX_SCRIPT_BYTES // len(unit) + 1))[:MAX_SCRIPT_BYTES]
        start = time.process_time()
        parse(largest)
        from_argv(largest.split()[:20_000] or [b"x"])
        # About half a second at worst; what is exponential would not end.
        assert time.process_time() - start < 10, unit


def test_a_megabyte_is_refused_at_once() -> None:
    (command,) = parse(b"x" * 1_000_000)
    assert "131072" in command.problem


@given(st.binary(max_size=300))
def test_any_bytes_can_be_parsed(script: bytes) -> None:
    for command in parse(script):
        assert command.words or command.problem or command.effects
    from_argv(script.split(b"\0"))


TOKENS = [
    "zap -rf x", "zap", "'z'ap", "\\zap", '"zap"', "{zap,-rf,x}", "-rf", " x", ";", "&&", "||", "|",
    "&", "(", ")", "{ ", "}", "; }", "$(", "`", '"', "'", "\n", "\\", "\\\n", "#", "<<E\n", "\nE\n",
    "<<-E\n", "<<'E'\n", "if", "then", "fi", "true", "echo", "case a in", "a)", "esac", ";;", ";&",
    "[[", "]]", "((", "))", "$((", "${x:-", "${x#", "$x", "x=", "x=(", "a[", "] ", "=", " ", "\t",
    "!", "time", "function f", "f()", " f", "eval", "bash -c", "for i in", "do", "done", "coproc",
    "<(", "2>&1", "<<<", "$'", '$"', "{", "~", "*", "@(", "=~", '"$(', ')"', "env", "xargs", "$[",
]  # fmt: skip


@pytest.fixture(scope="module")
def bash_with_stub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with `zap`, which leaves a mark when it runs, and nothing else to run."""
    root = tmp_path_factory.mktemp("bash")
    (root / "bin").mkdir()
    (root / "cwd").mkdir()
    stub = root / "bin" / "zap"
    stub.write_text(f'#!/bin/sh\n[ "$1" = -rf ] && [ $# -ge 2 ] && : > {root}/ran\nexit 0\n')
    stub.chmod(0o755)
    return root


def runs_zap(root: Path, script: bytes) -> bool:
    """True when real bash, given the script, runs ``zap -rf something``."""
    mark = root / "ran"
    mark.unlink(missing_ok=True)
    subprocess.run(
        ["/bin/bash", "-c", script],
        env={"PATH": str(root / "bin"), "HOME": "/nonexistent", "LC_ALL": "C"},
        cwd=root / "cwd",
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=20,
        check=False,
    )
    return mark.exists()


def may_zap(script: bytes) -> bool:
    """What policy makes of it: a `zap -rf x`, something unknown, or something unreadable."""
    for command in parse(script):
        if command.problem:
            return True
        if not command.words:
            continue
        if command.name == b"zap" or command.words[0].dynamic:
            return True
    return False


def test_bash_agrees_that_each_form_is_shell(bash_with_stub: Path) -> None:
    scripts = [filled(form, b"zap -rf x") for form in COMPOUND if not form.startswith("select")]
    for script in scripts:
        checked = subprocess.run(
            ["/bin/bash", "-n", "-c", script], capture_output=True, timeout=20, check=False
        )
        assert checked.returncode == 0, script
    assert sum(runs_zap(bash_with_stub, script) for script in scripts) > len(scripts) // 2


@settings(
    max_examples=400,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
@given(
    before=st.lists(st.sampled_from(TOKENS), max_size=6),
    after=st.lists(st.sampled_from(TOKENS), max_size=6),
    space=st.sampled_from(["", " "]),
)
def test_whatever_real_bash_runs_is_found(
    before: list[str], after: list[str], space: str, bash_with_stub: Path
) -> None:
    script = space.join([*before, "zap -rf x", *after]).encode()
    if not may_zap(script):
        assert not runs_zap(bash_with_stub, script)


def test_the_comparison_with_bash_can_fail(bash_with_stub: Path) -> None:
    assert runs_zap(bash_with_stub, b"echo `zap -rf x`")
    assert not runs_zap(bash_with_stub, b"echo 'zap -rf x'")
    assert not may_zap(b"echo 'zap -rf x'")


def test_ansi_c_quoting_follows_the_manual() -> None:
    assert decode_ansi_c(rb"a\n\t\\\'\x41\101\u00e9\cA\q\0b") == b"a\n\t\\'AA\xc3\xa9\x01\\q"


def test_positions_of_mistakes_are_in_the_text() -> None:
    _, error = parse_script(b"ls; echo 'abc")
    assert error is not None
    assert (error.reason, error.offset) == ("a single quote is not closed", 9)
