"""Applies a made-up change of a project, and kills itself at the given point of the way.

Run as ``python apply_worker.py PROJECT STATE POINT``: STATE holds the objects and the logs, and
POINT counts what is done to the disk, log included. Prints how many points there are when it
comes to its end.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from substrate_services.journal.schema import Change, FileState
from substrate_services.objects.store import ObjectStore
from substrate_services.world.apply_plan import make_plan
from substrate_services.world.beneath import Caller
from substrate_services.world.fingerprint import fingerprint_tree
from substrate_services.world.host_tree import HostTree
from substrate_services.world.staging import Staging
from substrate_services.world.tree import ToApply
from substrate_services.world.undo_log import UndoLog


def main() -> None:
    project, state, point = os.fsencode(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    left = [point]

    def reached() -> None:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    store = ObjectStore(state / "objects")
    to_apply = made_up(project, store)
    log = UndoLog("test", "wld_x", "exe_x", Caller.own(), (project,), (project,))
    logs = state / "applies"
    with HostTree((project,), Caller.own()) as host:
        plan = make_plan(to_apply, host, store, frozenset())
        assert not plan.conflicts, plan.conflicts

        def step(work: Callable[[], None]) -> None:
            work()
            reached()

        step(lambda: log.save(logs))
        step(lambda: host.make_staging(log))
        operations = Staging(host, log, store, to_apply).prepare(plan)
        reached()
        log = log.at("prepared", operations)
        step(lambda: log.save(logs))
        for operation in operations:
            step(lambda operation=operation: host.do(log, operation))  # type: ignore[misc] # bound
        log = log.at("committed")
        step(lambda: log.save(logs))
        step(lambda: host.remove_staging(log))
        log.forget(logs)
    print(point - left[0])


def made_up(project: bytes, store: ObjectStore) -> ToApply:
    """Every kind of change, of the tree that the test makes."""
    recorded = {entry.path: entry for entry in fingerprint_tree(project, ())}

    def was(path: bytes) -> FileState:
        status = os.lstat(path)
        if os.path.islink(path):
            return FileState("symlink", 0o777, target=os.readlink(path))
        if os.path.isdir(path):
            return FileState("dir", status.st_mode & 0o7777)
        with open(path, "rb") as file:
            digest = store.put(file.read())
        return FileState("file", status.st_mode & 0o7777, status.st_size, digest)

    def file(text: bytes, mode: int = 0o640) -> FileState:
        return FileState("file", mode, len(text), store.put(text), mtime_ns=10**18)

    wanted: dict[bytes, FileState | None] = {
        b"changed": file(b"new\n"),
        b"gone": None,
        b"dir": None,
        b"dir/file": None,
        b"dir/sub": None,
        b"mode": FileState("file", 0o700, 5, was(project + b"/mode").digest),
        b"made": FileState("dir", 0o711, mtime_ns=10**18),
        b"made/below": FileState("dir", 0o500, mtime_ns=10**18),
        b"made/below/file": file(b"below\n"),
        b"link": FileState("symlink", 0o777, target=b"elsewhere"),
        b"kind": FileState("dir", 0o755),
        b"kind/file": file(b"kind\n"),
        b"other": file(b"was a directory\n"),
        b"other/file": None,
        b"top": FileState("file", 0o644, 4, store.put(b"top\n")),
    }
    changes = []
    for name, after in sorted(wanted.items()):
        path = os.path.join(project, name)
        before = was(path) if os.path.lexists(path) else None
        kind = "created" if before is None else "deleted" if after is None else "modified"
        if name == b"mode":
            kind = "metadata"
        changes.append(Change(path, kind, "project", before, after))  # type: ignore[arg-type] # one of them
    return ToApply(tuple(changes), {}, recorded, {})


if __name__ == "__main__":
    main()
