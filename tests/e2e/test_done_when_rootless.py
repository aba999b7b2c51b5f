"""Issue 2, done when 2 and 5, for a user without any privilege."""

from __future__ import annotations

import os
from pathlib import Path

from tests.user_fixtures import UID
from tests.users import User


def test_effects_are_known_and_kept_off_the_host(rootless: User, own_checkout: Path) -> None:
    script = "echo hi > made.txt; rm README.md; id -u; exit 3"
    done = rootless.run("run", "--json", "--", "sh", "-c", script, cwd=own_checkout)
    assert done.code == 3, done
    assert done.json["stdout"] == f"{UID}\n"
    kinds = {Path(item["path"]).name: item["kind"] for item in done.json["changes"]}
    assert kinds == {"made.txt": "created", "README.md": "deleted"}
    assert (own_checkout / "README.md").exists()
    assert not (own_checkout / "made.txt").exists()


def test_a_step_replays_identical_after_the_host_has_moved_on(
    rootless: User, own_checkout: Path
) -> None:
    (own_checkout / "gone").write_text("gone\n")
    span = rootless.run_json("sh", "-c", "cat README.md; ls; rm gone", cwd=own_checkout)["span_id"]
    assert rootless.replay(span, cwd=own_checkout)[1]["verdict"] == "identical"
    (own_checkout / "README.md").write_text("edited\n")
    (own_checkout / "gone").unlink()
    (own_checkout / "new").write_text("new\n")
    code, report = rootless.replay(span, cwd=own_checkout)
    assert (code, report["verdict"]) == (0, "identical"), report


def test_a_project_below_a_directory_of_another_owner_can_be_changed(
    rootless: User, own_checkout: Path
) -> None:
    os.chown(own_checkout.parent, 0, 0)
    own_checkout.parent.chmod(0o755)
    done = rootless.run("run", "--json", "--", "touch", "made", cwd=own_checkout)
    assert done.code == 0, done.json["stderr"]


def test_secrets_and_the_recorder_cannot_be_reached(rootless: User, own_checkout: Path) -> None:
    key = rootless.home / ".ssh" / "id_rsa"
    key.parent.mkdir(exist_ok=True)
    key.write_text("hunter2")
    os.chown(key.parent, UID, UID)
    os.chown(key, UID, UID)
    for path in (key, rootless.trace, Path("/proc/1/environ")):
        result = rootless.run_json("cat", str(path), cwd=own_checkout)
        assert (result["exit_code"], result["stdout"]) == (1, "")
        assert result["blocked"], path


def test_there_is_no_network(rootless: User, own_checkout: Path) -> None:
    script = "import socket; socket.create_connection(('192.0.2.1', 443), 5)"
    result = rootless.run_json(rootless.command[0], "-c", script, cwd=own_checkout)
    assert result["exit_code"] == 1
    assert [item["rule"] for item in result["blocked"]] == ["network-none"]


def test_coverage_says_that_no_kernel_stands_behind_it(rootless: User, own_checkout: Path) -> None:
    result = rootless.run_json("sh", "-c", "ls >/dev/null; echo x >made", cwd=own_checkout)
    assert result["coverage"]["state"] == "full", result["coverage"]
    assert result["coverage"]["ledger"] == "none"
    shown = rootless.run("trace", "show", "@last", cwd=own_checkout)
    assert "full (no kernel ledger here)" in shown.out
    rows = rootless.run("doctor", "--json", cwd=own_checkout).json["capabilities"]
    (row,) = [row for row in rows if row["feature"] == "telemetry.ledger"]
    assert row["state"] == "missing"
    assert row["consequence"]
    assert "root" in row["fix"]
