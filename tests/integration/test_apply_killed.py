"""An apply that is killed at every single point of its way, and settled by whoever comes next."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from substrate_services.journal.schema import Change, FileState
from substrate_services.objects.store import ObjectStore
from substrate_services.world.apply import _settle
from substrate_services.world.apply_plan import make_plan
from substrate_services.world.beneath import Caller, open_beneath
from substrate_services.world.fingerprint import fingerprint_tree
from substrate_services.world.host_tree import HostTree, Moved
from substrate_services.world.staging import Staging
from substrate_services.world.tree import ToApply
from substrate_services.world.undo_log import Operation, UndoLog, load_logs

WORKER = Path(__file__).with_name("apply_worker.py")


def fill(project: Path) -> None:
    project.mkdir()
    for name in ("changed", "gone", "mode", "kind"):
        (project / name).write_text(f"{name[:4]}\n")
    (project / "dir" / "sub").mkdir(parents=True)
    (project / "dir" / "file").write_text("file\n")
    (project / "other").mkdir()
    (project / "other" / "file").write_text("file\n")
    (project / "link").symlink_to("somewhere")


def listed(project: Path) -> dict[str, tuple[object, ...]]:
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(project.rglob("*")):
        status = path.lstat()
        content: object = None
        if path.is_symlink():
            content = os.readlink(path)
        elif path.is_file():
            content = path.read_bytes()
        found[str(path.relative_to(project))] = (oct(status.st_mode), content)
    return found


def run(project: Path, state: Path, point: int) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, str(WORKER), str(project), str(state), str(point)]
    return subprocess.run(command, check=False, capture_output=True, timeout=30)


@pytest.mark.timeout(120)
def test_killed_anywhere_it_is_all_or_nothing(tmp_path: Path) -> None:
    project, state = tmp_path / "project", tmp_path / "state"
    state.mkdir()
    fill(project)
    before = listed(project)
    whole = run(project, state, 10**6)
    assert whole.returncode == 0, whole.stderr.decode()
    after = listed(project)
    assert after != before
    assert "made/below/file" in after
    points = int(whole.stdout)
    assert points > 15
    outcomes = []
    for point in range(1, points + 1):
        shutil.rmtree(project)
        fill(project)
        assert run(project, state, point).returncode == -signal.SIGKILL
        for _again in range(2):  # whoever settles it may be killed as well, and comes again
            for log in load_logs(state / "applies"):
                _settle(log)
        for log in load_logs(state / "applies"):
            log.forget(state / "applies")
        now = listed(project)
        assert now in (before, after), point
        outcomes.append(now == after)
    # Nothing until it is committed, everything from then on.
    assert outcomes == sorted(outcomes)
    assert outcomes[0] is False
    assert outcomes[-1] is True


def one_change(project: Path, store: ObjectStore, name: str, text: bytes) -> ToApply:
    path = os.fsencode(project / name)
    after = FileState("file", 0o644, len(text), store.put(text))
    before = None
    if os.path.lexists(path):
        before = FileState("file", 0o644, os.stat(path).st_size)
    kind = "created" if before is None else "modified"
    recorded = {entry.path: entry for entry in fingerprint_tree(os.fsencode(project), ())}
    return ToApply((Change(path, kind, "project", before, after),), {}, recorded, {})  # type: ignore[arg-type] # one of them


def prepared(
    host: HostTree, project: Path, store: ObjectStore, name: str
) -> tuple[UndoLog, Operation]:
    to_apply = one_change(project, store, name, b"theirs\n")
    plan = make_plan(to_apply, host, store, frozenset())
    log = UndoLog("test", "w", "e", host.caller, host.roots, ())
    host.make_staging(log)
    (operation,) = Staging(host, log, store, to_apply).prepare(plan)
    return log, operation


@pytest.mark.parametrize("how", ["edited", "replaced", "appeared", "swapped"])
def test_the_host_may_change_while_it_runs(tmp_path: Path, how: str) -> None:
    project, outside = tmp_path / "project", tmp_path / "outside"
    fill(project)
    outside.mkdir()
    (outside / "file").write_text("outside\n")
    store = ObjectStore(tmp_path / "objects")
    name = {"appeared": "new", "swapped": "dir/file"}.get(how, "changed")
    with HostTree((os.fsencode(project),), Caller.own()) as host:
        log, operation = prepared(host, project, store, name)
        if how == "edited":
            (project / name).write_text("newer work\n")
        elif how == "replaced":
            (project / "scratch").write_text("newer work\n")
            (project / "scratch").rename(project / name)
        elif how == "appeared":
            (project / name).write_text("newer work\n")
        else:
            (project / "dir").rename(project / "away")
            (project / "dir").symlink_to(outside)
        seen = listed(project)
        with pytest.raises(Moved):
            host.do(log, operation)
        assert listed(project) == seen
        assert (outside / "file").read_text() == "outside\n"
        host.remove_staging(log)
    store.close()
    assert not [path for path in project.iterdir() if "substrate" in path.name]


@pytest.mark.skipif(os.geteuid() != 0, reason="acting for another user needs root")
def test_files_are_written_as_the_caller_and_only_where_they_may(tmp_path: Path) -> None:
    caller = Caller(12345, 12345)
    project = Path("/var/tmp") / f"substrate-apply-{os.getpid()}"
    fill(project)
    store = ObjectStore(tmp_path / "objects")
    (tmp_path / "objects").chmod(0o700)
    found: list[object] = []

    def as_caller() -> None:
        # In a thread, as the host does it: the others keep their own credentials.
        with HostTree((os.fsencode(project),), caller) as host:
            log, operation = prepared(host, project, store, "new")
            host.do(log, operation)
            host.remove_staging(log)
            with caller.acting():
                try:
                    os.close(os.open(tmp_path / "objects", os.O_RDONLY))
                except PermissionError:
                    found.append("refused")

    try:
        with pytest.raises(PermissionError), HostTree((os.fsencode(project),), caller) as host:
            prepared(host, project, store, "new")
        os.chown(project, 12345, 12345)
        thread = threading.Thread(target=as_caller)
        thread.start()
        thread.join()
        status = (project / "new").stat()
        assert (status.st_uid, status.st_gid) == (12345, 12345)
        assert (project / "new").read_bytes() == b"theirs\n"
        assert found == ["refused"]
        # And afterwards this process may do what it might before.
        assert (project / "mode").stat().st_uid == 0
        (project / "by-root").touch()
    finally:
        store.close()
        shutil.rmtree(project)


def test_no_way_leads_out(tmp_path: Path) -> None:
    (tmp_path / "in" / "sub").mkdir(parents=True)
    (tmp_path / "out").write_text("out\n")
    (tmp_path / "in" / "link").symlink_to("sub")
    (tmp_path / "in" / "up").symlink_to("../out")
    root = os.open(tmp_path / "in", os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.close(open_beneath(root, b"sub", os.O_RDONLY))
        for path in (b"../out", b"link", b"up", b"/etc/passwd", b"sub/../../out", b"link/x"):
            with pytest.raises(OSError, match=os.fsdecode(path)):
                open_beneath(root, path, os.O_RDONLY)
    finally:
        os.close(root)
