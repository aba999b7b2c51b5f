"""What of git's index is compared, on indexes that git itself wrote."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from substrate_services.replay.git_index import is_git_index, without_status

pytestmark = pytest.mark.needs_git


def index_of(checkout: Path, *words: str) -> bytes:
    if words:
        subprocess.run(["git", *words], cwd=checkout, check=True)
    return (checkout / ".git" / "index").read_bytes()


@pytest.mark.parametrize("version", ["2", "4"])
def test_status_is_left_out_and_everything_else_counts(git_checkout: Path, version: str) -> None:
    for name in ("a", "a name that is longer", "dir/b"):
        (git_checkout / name).parent.mkdir(exist_ok=True)
        (git_checkout / name).write_text(name)
    index_of(git_checkout, "add", ".")
    before = index_of(git_checkout, "update-index", "--index-version", version)
    os.utime(git_checkout / "a", (1, 1))
    touched = index_of(git_checkout, "update-index", "--refresh")
    assert touched != before
    assert without_status(touched) == without_status(before) is not None
    changes = (
        ["update-index", "--chmod=+x", "a"],
        ["update-index", "--assume-unchanged", "a"],
        ["update-index", "--skip-worktree", "dir/b"],
        ["update-index", "--force-remove", "dir/b"],
    )
    seen = {without_status(touched)}
    for words in changes:
        seen.add(without_status(index_of(git_checkout, *words)))
    # Not "a": git takes it to be unchanged now, as it was told.
    (git_checkout / "README.md").write_text("other")
    seen.add(without_status(index_of(git_checkout, "add", "README.md")))
    assert len(seen) == len(changes) + 2
    assert None not in seen


def test_what_is_no_index_is_not_read(git_checkout: Path) -> None:
    whole = index_of(git_checkout)
    for broken in (b"", b"DIRC", whole[:-1], whole[:40], whole[:-21] + b"x" + whole[-20:]):
        assert without_status(broken) is None
    assert is_git_index(b"/p/.git/modules/m/index")
    assert not is_git_index(b"/p/index")
