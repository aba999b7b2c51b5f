"""Hosts with mounts that have nothing to do with the command."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.users import User

pytestmark = pytest.mark.root


def test_an_overlay_on_the_host_does_not_keep_worlds_from_being_made(
    user: User, git_checkout: Path
) -> None:
    # As every running container of Docker has one. Not below /tmp, which worlds do not show.
    top = Path(f"/var/tmp/sb-{os.getpid()}-overlay")
    parts = [top / name for name in ("lower", "upper", "work", "merged")]
    for part in parts:
        part.mkdir(parents=True)
    lower, upper, work, merged = parts
    (lower / "file").write_text("in it\n")
    options = f"lowerdir={lower},upperdir={upper},workdir={work}"
    subprocess.run(["mount", "-t", "overlay", "sb", "-o", options, str(merged)], check=True)
    try:
        result = user.run_json("cat", str(merged / "file"), cwd=git_checkout)
        assert (result["exit_code"], result["stdout"]) == (1, ""), result
        assert [item["rule"] for item in result["blocked"]] == ["mount-not-id-mappable"]
        assert user.run_json("cat", "README.md", cwd=git_checkout)["exit_code"] == 0
    finally:
        subprocess.run(["umount", str(merged)], check=True)
        shutil.rmtree(top)
