"""New content for the host's project, made ready beside it, and the operations that place it."""

from __future__ import annotations

import contextlib
import os
import stat

from substrate_services.journal.schema import Change, FileState
from substrate_services.objects.errors import ObjectCorrupt, ObjectMissing
from substrate_services.objects.store import ObjectStore
from substrate_services.world.apply_plan import ApplyPlan, digest_of
from substrate_services.world.host_tree import HostTree, Moved
from substrate_services.world.layers import Xattrs
from substrate_services.world.snapshots import copy_sparse
from substrate_services.world.tree import ToApply
from substrate_services.world.undo_log import Entry, Operation, UndoLog

_SET_ID = stat.S_ISUID | stat.S_ISGID
_OWNER_MAY_ENTER = stat.S_IWUSR | stat.S_IXUSR


class Staging:
    """Fills the staging directory of one apply.

    Args:
        host: the project.
        log: names the staging directory, which is there and empty.
        store: where content is.
        to_apply: what the world changed.
    """

    def __init__(self, host: HostTree, log: UndoLog, store: ObjectStore, to_apply: ToApply) -> None:
        self._host = host
        self._log = log
        self._store = store
        self._to_apply = to_apply
        self._slots = 0
        self._linked: dict[tuple[int, int], bytes] = {}  # (root, inode of the world) → staged
        self._by_digest = {
            change.before.digest: change.path
            for change in to_apply.changes
            if change.before is not None and change.before.digest is not None
        }

    def prepare(self, plan: ApplyPlan) -> tuple[Operation, ...]:
        """Stage everything; returns what then is to be done, in order.

        Raises:
            Moved: the host's files are others by now.
            ObjectMissing, ObjectCorrupt: content is not there.
            OSError: the caller may not write there.
        """
        attributes = [self._attributes(change) for change in plan.attributes]
        # A directory that opens must open first, and one that closes must close last.
        first = [operation for operation in attributes if _opens(operation)]
        last = [operation for operation in attributes if not _opens(operation)]
        last.sort(key=lambda operation: operation.path, reverse=True)
        # Deepest first: a directory can go once it is empty. New ones come with what is in them.
        takes = [self._take(change) for change in reversed(plan.take)]
        return (*first, *takes, *self._puts(plan), *last)

    def _puts(self, plan: ApplyPlan) -> list[Operation]:
        staged: dict[bytes, bytes] = {}  # directory of the host → of the staging directory
        operations: list[Operation] = []
        dressed: list[tuple[int, bytes, Change]] = []
        for change in plan.put:
            root, relative = self._locate(change)
            above = staged.get(os.path.dirname(change.path))
            if above is not None:
                place = os.path.join(above, os.path.basename(change.path))
            else:
                place = self._slot()
            self._stage(root, place, change)
            assert change.after is not None
            if change.after.kind == "dir":
                staged[change.path] = place
                dressed.append((root, place, change))
            if above is None:
                operations.append(
                    Operation(
                        kind="put",
                        root=root,
                        path=relative,
                        slot=place,
                        new_ino=self._staged_ino(root, place),
                        old=self._old(change, root, relative),
                    )
                )
        # Deepest first, once nothing more is put into them.
        for root, place, change in reversed(dressed):
            with self._host.staged_parent(self._log, root, place) as parent:
                self._dress(parent, os.path.basename(place), change, None)
        return operations

    def _take(self, change: Change) -> Operation:
        root, relative = self._locate(change)
        return Operation(
            kind="take",
            root=root,
            path=relative,
            slot=self._slot(),
            old=self._old(change, root, relative),
        )

    def _attributes(self, change: Change) -> Operation:
        root, relative = self._locate(change)
        old = self._old(change, root, relative)
        assert old is not None
        assert change.after is not None
        return Operation(
            kind="attributes",
            root=root,
            path=relative,
            old=old,
            # Set-id bits of directories are the host's: they stay, and none are added.
            mode=(change.after.mode & ~_SET_ID) | (stat.S_IMODE(old.mode) & _SET_ID),
            owner=self._owner(change),
            xattrs=self._xattrs(change),
            old_xattrs=self._host.xattrs(root, relative),
        )

    # -- parts ---------------------------------------------------------------------------------

    def _slot(self) -> bytes:
        self._slots += 1
        return b"%d" % self._slots

    def _locate(self, change: Change) -> tuple[int, bytes]:
        located = self._host.locate(change.path)
        assert located is not None  # the plan has held it against the host
        return located

    def _old(self, change: Change, root: int, relative: bytes) -> Entry | None:
        """What is there now; the plan has looked at it, and every operation looks again."""
        if change.before is None:
            return None
        status = self._host.status(root, relative)
        recorded = self._to_apply.fingerprints.get(change.path)
        if status is None or recorded is None or status.st_ino != recorded.ino:
            raise Moved(change.path)
        if not stat.S_ISDIR(status.st_mode) and status.st_ctime_ns != recorded.ctime_ns:
            raise Moved(change.path)
        return Entry.of(status)

    def _xattrs(self, change: Change) -> Xattrs:
        node = self._to_apply.nodes.get(change.path)
        return node.xattrs if node is not None else ()

    def _owner(self, change: Change) -> tuple[int, int] | None:
        """The owner to set, where the world changed it and the caller may."""
        before, after = change.before, change.after
        if self._host.caller.uid != 0 or after is None:
            return None
        if before is not None and (before.uid, before.gid) == (after.uid, after.gid):
            return None
        return after.uid, after.gid

    def _staged_ino(self, root: int, place: bytes) -> int:
        with self._host.staged_parent(self._log, root, place) as parent:
            return os.lstat(os.path.basename(place), dir_fd=parent).st_ino

    def _stage(self, root: int, place: bytes, change: Change) -> None:
        after = change.after
        assert after is not None
        name = os.path.basename(place)
        if after.kind == "file":
            self._stage_file(root, place, change, after)
            return
        with self._host.staged_parent(self._log, root, place) as parent:
            if after.kind == "dir":
                os.mkdir(name, 0o700, dir_fd=parent)
            else:
                os.symlink(after.target or b"", name, dir_fd=parent)
                self._dress(parent, name, change, None)

    def _stage_file(self, root: int, place: bytes, change: Change, after: FileState) -> None:
        name = os.path.basename(place)
        node = self._to_apply.nodes.get(change.path)
        inode = node.identity[0] if node is not None and node.identity is not None else 0
        other = self._linked.get((root, inode)) if inode else None
        if other is not None:
            with (
                self._host.staged_parent(self._log, root, other) as source,
                self._host.staged_parent(self._log, root, place) as parent,
            ):
                os.link(os.path.basename(other), name, src_dir_fd=source, dst_dir_fd=parent)
            return
        self._linked[root, inode] = place
        with self._host.staged_parent(self._log, root, place) as parent:
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(name, flags, 0o600, dir_fd=parent)
        try:
            self._fill(descriptor, after)
            with self._host.staged_parent(self._log, root, place) as parent:
                self._dress(parent, name, change, descriptor)
        finally:
            os.close(descriptor)

    def _fill(self, descriptor: int, after: FileState) -> None:
        """Write a file's content, from the store or from the host's own file that it came from."""
        digest = after.digest or ""
        try:
            with self._store.open(digest) as source:
                copy_sparse(source, descriptor)
            return
        except ObjectMissing:
            origin = self._by_digest.get(digest)
            located = self._host.locate(origin) if origin is not None else None
            if located is None:
                raise
        with (
            self._host.reading(*located) as original,
            open(os.dup(original), "rb") as source,
        ):
            copy_sparse(source, descriptor)
        if digest_of(descriptor) != digest:
            raise ObjectCorrupt(digest, "the host's file that held it is another by now")

    def _dress(self, parent: int, name: bytes, change: Change, descriptor: int | None) -> None:
        """Give a staged entry its attributes."""
        after = change.after
        assert after is not None
        owner = self._owner(change)
        if owner is None and change.before is not None and self._host.caller.uid == 0:
            located = self._locate(change)
            live = self._host.status(*located)
            owner = (live.st_uid, live.st_gid) if live is not None else None
        if owner is not None:
            os.chown(name, *owner, dir_fd=parent, follow_symlinks=False)
        if after.kind != "symlink":
            opened = descriptor
            if opened is None:
                flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
                opened = os.open(name, flags, dir_fd=parent)
            try:
                for key, value in self._xattrs(change):
                    os.setxattr(opened, key, value)
                inherited = os.fstat(opened).st_mode & stat.S_ISGID if descriptor is None else 0
                os.fchmod(opened, (after.mode & ~_SET_ID) | inherited)
            finally:
                if descriptor is None:
                    os.close(opened)
        with contextlib.suppress(PermissionError):
            os.utime(
                name, ns=(after.mtime_ns, after.mtime_ns), dir_fd=parent, follow_symlinks=False
            )


def _opens(operation: Operation) -> bool:
    """Whether a directory is made one that its owner may write in."""
    old = operation.old
    if old is None or not stat.S_ISDIR(old.mode):
        return False
    return bool(operation.mode & ~old.mode & _OWNER_MAY_ENTER)
