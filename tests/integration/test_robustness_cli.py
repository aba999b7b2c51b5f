"""The command line in surroundings that nobody plans for."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.conftest import SUBSTRATE
from tests.users import User


@pytest.mark.parametrize(
    ("closed", "shown"), [("<&-", "exit 0"), (">&-", "exit 0"), ("2>&-", ""), ("<&- >&-", "exit 0")]
)
def test_closed_standard_streams_are_like_dev_null(
    user: User, git_checkout: Path, closed: str, shown: str
) -> None:
    # A connection that takes the number of a closed stream would be read as standard input.
    done = subprocess.run(
        ["sh", "-c", f'"$@" {closed}', "sh", *SUBSTRATE, "run", "--", "cat"],
        check=False,
        cwd=git_checkout,
        env=user.env(),
        capture_output=True,
        timeout=20,
    )
    assert done.returncode == 0, done.stderr
    assert shown in done.stderr.decode()


def test_a_signal_without_a_name_of_its_own_has_its_number(user: User, git_checkout: Path) -> None:
    done = user.run("run", "-q", "--", "sh", "-c", "kill -40 $$", cwd=git_checkout)
    assert done.code == 128 + 40, done.err
