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
