from __future__ import annotations

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from substrate_services.journal.action import (
    action_digest,
    bencode,
    canonical_action,
    describe_action_difference,
)
from substrate_services.journal.schema import Action, Command

ACTION = Action(
    command=Command((b"bash", b"-lc", b"exit 3"), shell=b"exit 3"),
    cwd=b"/work",
    env=((b"LANG", b"C.UTF-8"), (b"PATH", b"/usr/bin")),
    umask=0o22,
    user="1000",
    stdin_digest=None,
    snapshot_id="ab" * 32,
    timeout_s=1.5,
    network=("pypi.org:443", "@npm"),
    limits=(("pids", 64), ("memory_bytes", 1024)),
    policy_hash="cd" * 32,
)


def test_the_documented_vector_holds() -> None:
    # The vector of docs/REPLAY.md: another language's implementation is checked against it.
    assert canonical_action(ACTION) == (
        b"d"
        b"4:argvl4:bash3:-lc6:exit 3e"
        b"3:cwd5:/work"
        b"3:envll4:LANG7:C.UTF-8el4:PATH8:/usr/binee"
        b"6:limitsd12:memory_bytesi1024e4:pidsi64ee"
        b"7:networkl4:@npm12:pypi.org:443e"
        b"6:policy64:" + b"cd" * 32 + b"7:profile9:workspace"
        b"3:ptyi0e"
        b"5:shell6:exit 3"
        b"8:snapshot64:" + b"ab" * 32 + b"10:timeout_usi1500000e"
        b"4:type16:substrate.action"
        b"5:umaski18e"
        b"4:user4:1000"
        b"1:vi1e"
        b"e"
    )
    assert action_digest(ACTION) == (
        "d7b379bd2ad9aaecfd33fcc028ddb28507fee81a162b71dc4aa60a0eb3d7ff3c"
    )


def test_order_without_meaning_does_not_count() -> None:
    shuffled = dataclasses.replace(
        ACTION,
        env=ACTION.env[::-1],
        network=("@npm", "pypi.org:443", "@npm"),
        limits=ACTION.limits[::-1],
    )
    assert action_digest(shuffled) == action_digest(ACTION)
    assert describe_action_difference(ACTION, shuffled) == ()


def test_order_with_meaning_counts() -> None:
    argv = dataclasses.replace(ACTION, command=Command((b"bash", b"exit 3", b"-lc"), b"exit 3"))
    assert action_digest(argv) != action_digest(ACTION)
    twice = dataclasses.replace(ACTION, env=((b"A", b"1"), (b"A", b"2")))
    swapped = dataclasses.replace(ACTION, env=((b"A", b"2"), (b"A", b"1")))
    assert action_digest(twice) != action_digest(swapped)
    assert describe_action_difference(twice, swapped) == ('env A: ["1", "2"] -> ["2", "1"]',)


def test_arguments_are_not_joined_and_split() -> None:
    # The original's second fault: `bash -lc 'exit 3'` became `bash -lc exit 3`.
    joined = dataclasses.replace(
        ACTION, command=Command((b"bash", b"-lc", b"exit", b"3"), shell=b"exit 3")
    )
    assert action_digest(joined) != action_digest(ACTION)


def test_the_first_pid_is_a_recorded_fact_and_no_part_of_the_identity() -> None:
    assert action_digest(dataclasses.replace(ACTION, first_pid=7)) == action_digest(ACTION)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"cwd": b"/tmp"}, 'cwd: "/work" -> "/tmp"'),
        ({"umask": 0o77}, 'umask: "0022" -> "0077"'),
        ({"user": "root"}, 'user: "1000" -> "root"'),
        ({"stdin_digest": "ef"}, 'stdin: none -> "ef"'),
        ({"snapshot_id": None}, f'snapshot: "{"ab" * 29}a…" -> none'),
        ({"timeout_s": None}, "timeout_us: 1500000 -> none"),
        ({"pty": True}, "pty: 0 -> 1"),
        ({"profile": "bare"}, 'profile: "workspace" -> "bare"'),
        ({"network": ()}, 'network: ["@npm", "pypi.org:443"] -> []'),
        ({"limits": ()}, "limits: {memory_bytes=1024, pids=64} -> {}"),
        ({"policy_hash": ""}, f'policy: "{"cd" * 29}c…" -> ""'),
        ({"env": ((b"PATH", b"/bin\x1b\xff"),)}, None),
    ],
)
def test_each_field_counts_and_is_named(change: dict[str, object], line: str | None) -> None:
    other = dataclasses.replace(ACTION, **change)  # type: ignore[arg-type]
    assert action_digest(other) != action_digest(ACTION)
    difference = describe_action_difference(ACTION, other)
    if line is not None:
        assert difference == (line,)
    else:
        assert difference == (
            'env LANG: was "C.UTF-8", is not set',
            r'env PATH: "/usr/bin" -> "/bin\x1b\xff"',
        )


@pytest.mark.parametrize("timeout_s", [math.nan, math.inf])
def test_a_timeout_that_is_no_number_is_refused(timeout_s: float) -> None:
    with pytest.raises(ValueError, match="finite number"):
        canonical_action(dataclasses.replace(ACTION, timeout_s=timeout_s))


_bytes = st.binary(max_size=6)
_actions = st.builds(
    lambda argv, shell, env, cwd: dataclasses.replace(
        ACTION, command=Command(tuple(argv), shell), env=tuple(env), cwd=cwd
    ),
    st.lists(_bytes, max_size=3),
    st.none() | _bytes,
    st.lists(st.tuples(_bytes, _bytes), max_size=3, unique_by=lambda pair: pair[0]),
    _bytes,
)


@given(_actions, _actions)
def test_equal_encodings_mean_equal_actions(a: Action, b: Action) -> None:
    same = (a.command, sorted(a.env), a.cwd) == (b.command, sorted(b.env), b.cwd)
    assert (canonical_action(a) == canonical_action(b)) is same
    assert (describe_action_difference(a, b) == ()) is same


def test_bencode_is_that_of_bep_3() -> None:
    assert bencode({"spam": ["a", b"b\xff", 3], "cow": {}}) == b"d3:cowde4:spaml1:a2:b\xffi3eee"
