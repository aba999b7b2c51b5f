"""The tree before, or after, a recorded step, made again for a fresh world (DESIGN §9.3).

Upper layers come from the snapshot. What lies below them is the host's live tree, which may have
changed since: what differs in the project is put right in the upper layer too, from kept content,
before the snapshot's own entries go on top. What cannot be put right is named, and nothing runs on
a tree that is not the recorded one unless the caller insists.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from substrate_services.journal.schema import FileFingerprint
from substrate_services.objects.errors import ObjectMissing
from substrate_services.objects.store import ObjectStore
from substrate_services.objects.tree import TreeEntry, get_dir, walk
from substrate_services.world.base_mounts import BaseMount, is_below
from substrate_services.world.fingerprint import (
    BaseDifference,
    compare_with_live,
    fingerprint_of,
    fingerprint_tree,
    lstat_or_none,
    same_entry,
)
from substrate_services.world.inputs import CHANGED_WHILE_READ, Inputs
from substrate_services.world.layers import Layer, UpperNode
from substrate_services.world.layout import Layout, layer_of
from substrate_services.world.snapshots import (
    BaseRecord,
    Snapshot,
    SnapshotLayer,
    get_base,
    get_fingerprints,
    get_snapshot,
    is_unread,
    materialise,
    read_walk,
    write_object,
)

MISSING_LIMIT = 1_000


@dataclass(frozen=True, slots=True)
class Missing:
    """Something of the recorded tree that this host cannot give."""

    path: bytes
    reason: str


@dataclass(frozen=True, slots=True)
class RestorePlan:
    """What it takes to have a recorded tree again."""

    snapshot: Snapshot
    base: BaseRecord
    fingerprints: dict[bytes, FileFingerprint]
    difference: BaseDifference
    inputs: Inputs
    missing: tuple[Missing, ...]


def plan_restore(
    store: ObjectStore,
    snapshot_id: str,
    inputs: Inputs,
    mounts: tuple[BaseMount, ...],
    *,
    leave_out: tuple[bytes, ...],
    began_ns: int,
) -> RestorePlan:
    """Compare a recorded tree with this host and say what is missing; nothing is written.

    Args:
        store: where the snapshot is.
        snapshot_id: the tree.
        inputs: kept content, and fingerprints of base files that the step read.
        mounts: the host's mounts now.
        leave_out: host paths that worlds do not show.
        began_ns: when the step began, in ns since the epoch.

    Raises:
        ObjectMissing, ObjectCorrupt: of the snapshot itself.
    """
    snapshot = get_snapshot(store, snapshot_id)
    base = get_base(store, snapshot.base)
    roots = base.project.roots if base.project is not None else ()
    fingerprints: dict[bytes, FileFingerprint] = {}
    if base.fingerprints is not None:
        fingerprints = get_fingerprints(store, base.fingerprints)
    recorded = dict(fingerprints)
    seen = {entry.path: entry for entry in inputs.read if is_below(entry.path, roots)}
    fingerprints.update(seen)
    missing = _missing_mounts(store, base, snapshot, mounts)
    missing += _unread(store, snapshot)
    walks = {
        layer.mount_point: read_walk(store, layer.root)
        for layer in snapshot.layers
        if layer.layer_id not in ("home", "tmp")
    }
    renamed = tuple(path for point, node in walks.items() for path in _renamed(point, node))
    changed: list[FileFingerprint] = []
    added: list[bytes] = []
    for root in roots:
        part = {path: entry for path, entry in fingerprints.items() if is_below(path, (root,))}
        difference = compare_with_live(root, part, leave_out)
        difference = _after(difference, began_ns, seen, fingerprints, leave_out)
        missing += (
            Missing(path, "changed below a directory that the world renamed")
            for path in (*(entry.path for entry in difference.changed), *difference.added)
            if is_below(path, renamed)
        )
        # What the snapshot itself holds needs nothing of the host's.
        changed += (entry for entry in difference.changed if not _held(entry.path, walks))
        added += (path for path in difference.added if not _held(path, walks))
    _put_back(fingerprints, recorded, walks)
    for entry in changed:
        if entry.ino == CHANGED_WHILE_READ:
            missing.append(Missing(entry.path, "changed on the host while the step ran"))
        elif stat.S_ISREG(entry.mode):
            digest = inputs.content(entry.path)
            if digest is None:
                missing.append(Missing(entry.path, "changed on the host, and its content not kept"))
            elif not store.has(digest):
                missing.append(Missing(entry.path, f"its object {digest} is gone"))
        elif not (stat.S_ISDIR(entry.mode) or stat.S_ISLNK(entry.mode)):
            missing.append(Missing(entry.path, "a special file that changed on the host"))
    for entry in inputs.read:
        if entry.path not in seen and not same_entry(entry, lstat_or_none(entry.path)):
            missing.append(Missing(entry.path, "read by the step, and changed on the host since"))
    return RestorePlan(
        snapshot=snapshot,
        base=base,
        fingerprints=fingerprints,
        difference=BaseDifference(tuple(changed), tuple(added)),
        inputs=inputs,
        missing=tuple(missing[:MISSING_LIMIT]),
    )


def _put_back(
    fingerprints: dict[bytes, FileFingerprint],
    recorded: Mapping[bytes, FileFingerprint],
    walks: dict[bytes, UpperNode],
) -> None:
    """Keep the fingerprints that the world's own writing is told against.

    What the world has written says nothing of a newer file of the host's: it still stands for a
    change of the file that was there when the world was made.
    """
    for path in [path for path in recorded.keys() | fingerprints.keys() if _held(path, walks)]:
        if path in recorded:
            fingerprints[path] = recorded[path]
        else:
            del fingerprints[path]


def _after(
    difference: BaseDifference,
    began_ns: int,
    seen: Mapping[bytes, FileFingerprint],
    fingerprints: dict[bytes, FileFingerprint],
    leave_out: tuple[bytes, ...],
) -> BaseDifference:
    """The part of a difference that came after a step began.

    What had come before, while the world lived, the step saw as it is now: it is no difference,
    and goes into the fingerprints.
    """
    changed: list[FileFingerprint] = []
    for entry in difference.changed:
        status, since_ns = _live(entry.path)
        if entry.path in seen or since_ns >= began_ns:
            changed.append(entry)
        elif status is None:
            del fingerprints[entry.path]
        else:
            fingerprints[entry.path] = fingerprint_of(entry.path, status)
    added: list[bytes] = []
    for path in difference.added:
        status = lstat_or_none(path)
        if status is None:
            continue
        if status.st_ctime_ns >= began_ns:
            added.append(path)
            continue
        for below in fingerprint_tree(path, leave_out):
            if below.ctime_ns >= began_ns:
                added.append(below.path)
            else:
                fingerprints[below.path] = below
    return BaseDifference(tuple(changed), tuple(added))


def _live(path: bytes) -> tuple[os.stat_result | None, int]:
    """The entry at a path, no link followed on the way, and since when it, or its lack, is so."""
    status = os.lstat(b"/")
    here = b"/"
    for name in path.strip(b"/").split(b"/"):
        if not stat.S_ISDIR(status.st_mode):
            return None, status.st_ctime_ns
        here = os.path.join(here, name)
        below = lstat_or_none(here)
        if below is None:
            return None, status.st_ctime_ns
        status = below
    return status, status.st_ctime_ns


def correct(store: ObjectStore, plan: RestorePlan, layout: Layout) -> None:
    """Put the project right in the upper layers; they are not mounted yet.

    Files that changed come from kept content; what was added since is hidden by whiteouts.
    """
    missing = {entry.path for entry in plan.missing}
    touched: set[bytes] = set()
    for path in plan.difference.added:
        placed = _placed(path, layout)
        if placed is not None:
            target, layer = placed
            _parents(target, path, layer, touched)
            os.mknod(target, stat.S_IFCHR, 0)
    for entry in sorted(plan.difference.changed, key=lambda entry: entry.path):
        placed = _placed(entry.path, layout)
        if placed is not None and entry.path not in missing:
            target, layer = placed
            _parents(target, entry.path, layer, touched)
            _put_right(store, plan, entry, target, layer)
            touched.add(target)
    # Last, because making entries changes the times of the directories they are in.
    for entry in sorted(plan.fingerprints.values(), key=lambda entry: entry.path, reverse=True):
        placed = _placed(entry.path, layout)
        if placed is not None and placed[0] in touched:
            _dress(placed[0], entry)


def fill_uppers(store: ObjectStore, snapshot: Snapshot, layout: Layout) -> None:
    """Write the snapshot's upper layers into the new world's; they are not mounted yet."""
    kept = {_place(layer): layer.root for layer in snapshot.layers}
    for layer in layout.layers:
        root = kept.get(_place(layer))
        if root is not None:
            materialise(store, root, Path(os.fsdecode(layer.upper)), layer.xattr)


def _place(layer: Layer | SnapshotLayer) -> tuple[bytes, bool]:
    """What a layer is for. Its id is no help: it counts mounts, and those come and go."""
    return layer.mount_point, layer.layer_id in ("home", "tmp")


def fill_home(store: ObjectStore, base: BaseRecord, skeleton: Path) -> None:
    """Make the empty home begin with what the recorded one began with."""
    root = TreeEntry(b"home", "dir", mode=0o700, digest=base.home_skeleton)
    status = os.lstat(skeleton)
    for entry in os.scandir(skeleton):
        # Mount points are directories and are made again by the layout; files are recorded.
        if entry.is_file(follow_symlinks=False):
            os.unlink(entry.path)
    _fill_files(store, root, skeleton)
    os.utime(skeleton, ns=(status.st_mtime_ns, status.st_mtime_ns))


def _fill_files(store: ObjectStore, directory: TreeEntry, target: Path) -> None:
    if directory.digest is None:
        return
    for entry in get_dir(store, directory.digest):
        path = target / os.fsdecode(entry.name)
        if entry.kind == "dir":
            path.mkdir(exist_ok=True)
            _fill_files(store, entry, path)
        elif entry.kind == "file" and entry.digest is not None:
            path.unlink(missing_ok=True)
            write_object(store, entry.digest, os.fsencode(path))
            path.chmod(entry.mode)
        if os.geteuid() == 0:
            os.chown(path, entry.uid, entry.gid)
        os.utime(path, ns=(entry.mtime_ns, entry.mtime_ns))


def _held(path: bytes, walks: dict[bytes, UpperNode]) -> bool:
    """Whether an upper layer of the snapshot says what is at ``path``, whatever the base has."""
    points = [point for point in walks if is_below(path, (point,))]
    if not points:
        return False
    point = max(points, key=len)
    node: UpperNode | None = walks[point]
    for name in os.path.relpath(path, point).split(b"/"):
        node = node.children.get(name) if node is not None else None
        if node is None:
            return False
        if node.kind != "dir" or node.opaque:
            return True
    return False


def _renamed(mount_point: bytes, root: UpperNode) -> Iterator[bytes]:
    """Base directories that a snapshot shows under other names, by the names in the base."""
    pending = [(mount_point, root)]
    while pending:
        lower, node = pending.pop()
        for name, child in node.children.items():
            below = os.path.join(lower, name)
            if child.redirect is not None:
                # Absolute: from the layer's root. Relative: a name beside this one.
                below = os.path.join(lower, child.redirect)
                if child.redirect.startswith(b"/"):
                    below = os.path.join(mount_point, child.redirect.lstrip(b"/"))
                yield below
            pending.append((below, child))


def _unread(store: ObjectStore, snapshot: Snapshot) -> list[Missing]:
    return [
        Missing(os.path.join(layer.mount_point, path), "the recorder could not keep what was in it")
        for layer in snapshot.layers
        if layer.root.digest is not None
        for path, entry in walk(store, layer.root.digest)
        if is_unread(entry)
    ]


def _missing_mounts(
    store: ObjectStore, base: BaseRecord, snapshot: Snapshot, mounts: tuple[BaseMount, ...]
) -> list[Missing]:
    """Recorded mounts that matter to the tree, and are not there now.

    Those matter that have to do with the project, or in which the world had written. What else the
    step had from a mount it had by reading files, which are looked at one by one.
    """
    now = {mount.mount_point for mount in mounts}
    roots = base.project.roots if base.project is not None else ()
    written = {
        layer.mount_point
        for layer in snapshot.layers
        if layer.root.digest is not None and get_dir(store, layer.root.digest)
    }
    points = [point for point, _fs_type, _device in base.mounts]
    holders = {max((p for p in points if is_below(root, (p,))), key=len) for root in roots}
    return [
        Missing(point, f"the recorded mount ({fs_type}) is not there")
        for point, fs_type, _device in base.mounts
        if point not in now and (point in written or point in holders or is_below(point, roots))
    ]


def _placed(path: bytes, layout: Layout) -> tuple[bytes, Layer] | None:
    """Where in an upper layer a project path goes."""
    layer = layer_of(path, layout)
    if layer is None:
        return None
    return os.path.join(layer.upper, os.path.relpath(path, layer.mount_point)), layer


def _parents(target: bytes, path: bytes, layer: Layer, touched: set[bytes]) -> None:
    """Make the directories above ``target``, down from the upper's root, like the host's."""
    above: list[tuple[bytes, bytes]] = []
    here, real = os.path.dirname(target), os.path.dirname(path)
    while here != layer.upper and len(here) > len(layer.upper):
        above.append((here, real))
        here, real = os.path.dirname(here), os.path.dirname(real)
    for directory, original in reversed(above):
        if lstat_or_none(directory) is None:
            os.mkdir(directory)
            status = lstat_or_none(original)
            if status is not None and stat.S_ISDIR(status.st_mode):
                _set_status(
                    directory, status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns
                )
        touched.add(directory)


def _put_right(
    store: ObjectStore, plan: RestorePlan, entry: FileFingerprint, target: bytes, layer: Layer
) -> None:
    now = lstat_or_none(target)
    if stat.S_ISDIR(entry.mode):
        if now is not None and not stat.S_ISDIR(now.st_mode):
            os.unlink(target)
            now = None
        if now is None:
            os.mkdir(target)
            live = lstat_or_none(entry.path)
            if live is None or not stat.S_ISDIR(live.st_mode):
                os.setxattr(target, layer.xattr("opaque"), b"y")
        _dress(target, entry)
        return
    if now is not None and stat.S_ISDIR(now.st_mode):
        shutil.rmtree(target)
    elif now is not None:
        os.unlink(target)
    if stat.S_ISLNK(entry.mode):
        os.symlink(entry.target or b"", target)
    else:
        try:
            write_object(store, plan.inputs.content(entry.path) or "", target)
        except ObjectMissing:
            os.unlink(target)
            raise
    _dress(target, entry)


def _dress(target: bytes, entry: FileFingerprint) -> None:
    if lstat_or_none(target) is not None:
        _set_status(target, entry.mode, entry.uid, entry.gid, entry.mtime_ns)


def _set_status(path: bytes, mode: int, uid: int, gid: int, mtime_ns: int) -> None:
    if os.geteuid() == 0:
        os.chown(path, uid, gid, follow_symlinks=False)
    if not stat.S_ISLNK(mode):
        os.chmod(path, stat.S_IMODE(mode))
    os.utime(path, ns=(mtime_ns, mtime_ns), follow_symlinks=False)
