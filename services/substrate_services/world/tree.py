"""The tree of one living world: what its steps changed, and snapshots of it."""

from __future__ import annotations

import asyncio
import itertools
import os
import stat
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace

from substrate_services.errors import InvalidField
from substrate_services.journal.jsontypes import canonical_bytes
from substrate_services.journal.parts import change_to_json
from substrate_services.journal.schema import Change, FileFingerprint
from substrate_services.objects.store import ObjectStore, hash_file
from substrate_services.world.backends.base import Box
from substrate_services.world.base_mounts import is_below
from substrate_services.world.beneath import open_beneath
from substrate_services.world.changes import ChangeFinder, origin_of
from substrate_services.world.discard import set_back
from substrate_services.world.fingerprint import (
    PIN_FILE_LIMIT_BYTES,
    Pins,
    fingerprint_of,
    fingerprint_tree,
    lstat_or_none,
    same_entry,
)
from substrate_services.world.holders import have_writes_told, maps_files
from substrate_services.world.inputs import CHANGED_WHILE_READ, Inputs, put_inputs
from substrate_services.world.layer_walks import LayerWalks
from substrate_services.world.layers import LowerView, UpperNode
from substrate_services.world.layout import Layout, layer_of, what_is_hidden
from substrate_services.world.snapshots import (
    BaseRecord,
    get_snapshot,
    put_base,
    put_fingerprints,
    put_snapshot,
    read_walk,
)

# Base files read by one step whose fingerprints are kept.
INPUT_LIMIT = 20_000
# Files and directories without content that are named.
UNREAD_LIMIT = 8


@dataclass(frozen=True, slots=True)
class StepEffects:
    """What one step did to the tree."""

    changes: tuple[Change, ...]
    changes_digest: str
    snapshot_id: str
    inputs_digest: str | None
    unread: tuple[tuple[bytes, str], ...] = ()  # what could not be kept, and why; the first few


@dataclass(frozen=True, slots=True)
class ToApply:
    """What a world changed in its project.

    Attributes:
        changes: by path; what was renamed is deleted and created.
        nodes: the world's own entry at each changed path where it has one.
        fingerprints: the host's files as they were when the world was made, or last applied.
        redirects: directories whose content still comes from the host, under its old name there.
    """

    changes: tuple[Change, ...]
    nodes: dict[bytes, UpperNode]
    fingerprints: dict[bytes, FileFingerprint]
    redirects: dict[bytes, bytes]


class WorldTree:
    """Walks, changes, pins and snapshots of one world. Methods block; call them from a thread.

    Args:
        layout: the world's layers.
        store: where content goes.
        base: what the layers lay on, without fingerprints; they are taken by :meth:`begin`.
        leave_out: host paths in the project that a world does not show.
    """

    def __init__(
        self, layout: Layout, store: ObjectStore, base: BaseRecord, leave_out: tuple[bytes, ...]
    ) -> None:
        self._layout = layout
        self._store = store
        self._base = base
        self._leave_out = leave_out
        self._lock = threading.Lock()
        #: Held by whoever records a step, from finding its effects to noting the new snapshot.
        self.recording = asyncio.Lock()
        self._walker = LayerWalks(layout.layers, self._keep_upper)
        self._host_wrote = False  # in a layer: the kernel names what the world's processes change
        self._init_pid = 0  # of the world, when it was last known to live
        self._mapped: bool | None = None  # whether it maps files, once a walk wants to know
        self._walks: dict[str, UpperNode] = {}
        self._first_walks: dict[str, UpperNode] = {}
        self._fingerprints: dict[bytes, FileFingerprint] = {}
        self._pins = Pins({})
        self._base_digest = ""
        self._hidden = what_is_hidden(layout)
        self._finder = ChangeFinder(layout.layers, layout.project, self._hash_lower, self._hidden)
        self.first_snapshot = ""  # what the world's changes are told against
        self.snapshot_id = ""

    # -- life ----------------------------------------------------------------------------------

    def mark_first(self) -> None:
        """Tell the world's changes against its layers as they are now, before :meth:`begin`.

        A fork has the changes of the world that it was forked from, and they are told as its own.
        """
        with self._lock:
            self._first_walks = self._walk_all()

    def begin(self, fingerprints: dict[bytes, FileFingerprint] | None = None) -> None:
        """Take the project's fingerprints and the first snapshot.

        Args:
            fingerprints: the recorded project's, when the world restores a recorded tree.
        """
        with self._lock:
            if fingerprints is None:
                fingerprints = self._take_fingerprints()
            self._fingerprints = fingerprints
            digest = None
            if self._layout.project is not None:
                digest = put_fingerprints(self._store, tuple(fingerprints.values()))
            self._base_digest = put_base(self._store, _with_fingerprints(self._base, digest))
            self._walks = self._walk_all()
            self._first_walks = self._first_walks or self._walks
            self.first_snapshot = self._put_snapshot(self._first_walks)
            self.snapshot_id = (
                self.first_snapshot
                if self._first_walks is self._walks
                else self._put_snapshot(self._walks)
            )

    def begin_again(self) -> None:
        """Begin, where :meth:`begin` was called in advance and nobody has used the tree since."""
        fingerprints = self._take_fingerprints()
        if fingerprints != self._fingerprints:  # the host has moved on
            self.begin(fingerprints)

    def resume(
        self,
        first_snapshot: str,
        snapshot_id: str,
        fingerprints: dict[bytes, FileFingerprint],
        pins: dict[bytes, str],
        *,
        moved: bool = False,
    ) -> None:
        """Go on where an earlier host process stopped, from what it kept."""
        with self._lock:
            first = get_snapshot(self._store, first_snapshot)
            last = get_snapshot(self._store, snapshot_id)
            self._base_digest = last.base
            self._fingerprints = fingerprints
            self._pins = Pins(dict(pins))
            if moved:  # after the last snapshot
                self._keep_fingerprints()
            self._first_walks = {
                layer.layer_id: read_walk(self._store, layer.root) for layer in first.layers
            }
            self._walks = {
                layer.layer_id: read_walk(self._store, layer.root) for layer in last.layers
            }
            self.first_snapshot = first_snapshot
            self.snapshot_id = snapshot_id

    def pin_project(self) -> bool:
        """Keep the whole project's content if it fits the budget, so that the host may move on."""
        return self._pins.pin_all(self._store, list(self._fingerprints.values()))

    # -- steps ---------------------------------------------------------------------------------

    def finish_step(
        self, reads: tuple[bytes, ...], began_ns: int, box: Box | None = None
    ) -> StepEffects:
        """Find what changed since the last step, and keep what a replay of it will need.

        Args:
            reads: absolute paths, in the world, that the step opened for reading.
            began_ns: when it began, in ns since the epoch.
            box: where the world lives, if it does: the kernel names what is changed from there.
        """
        with self._lock:
            self._init_pid = box.init_pid if box is not None else 0
            walks = self._walk_all(everything=self._host_wrote or box is None)
            changes = tuple(self._finder.changes(self._walks, walks))
            inputs = self._keep_inputs(reads, changes, began_ns)
            effects = StepEffects(
                changes=changes,
                changes_digest=self._store.put(
                    canonical_bytes([change_to_json(change) for change in changes])
                ),
                snapshot_id=self._put_snapshot(walks),
                inputs_digest=inputs,
                unread=tuple(itertools.islice(self._unread(walks), UNREAD_LIMIT)),
            )
            # Only now: where the disk was full before this line, the step can be finished again.
            self._walks = walks
            self._host_wrote = False
            self.snapshot_id = effects.snapshot_id
            if box is not None:
                self._walker.stand_by(walks, init_pid=box.init_pid, world_id=box.world_id)
            return effects

    def close(self) -> None:
        """Let go of the layers, which are to be taken away; what is walked after all is read."""
        with self._lock:
            self._walker.close()

    def keep_snapshot(self) -> str:
        """Keep the tree as it is now; returns the snapshot's id. No step is charged with it."""
        with self._lock:
            snapshot_id = self._put_snapshot(self._walk_all())
            self._store.sync()
            return snapshot_id

    def without_changes(self, paths: tuple[bytes, ...]) -> str:
        """Keep the tree as it would be with some paths as they were at first.

        Args:
            paths: absolute, in the world; each stands for all that is below it.

        Returns:
            The snapshot's id.

        Raises:
            InvalidField: a path that cannot be set back by itself.
        """
        with self._lock:
            walks = self._walk_all()
            for path in paths:
                layer = layer_of(path, self._layout)
                if layer is None or path == layer.mount_point:
                    raise InvalidField("paths", os.fsdecode(path), "no layer of the world has it")
                relative = os.path.relpath(path, layer.mount_point)
                walks[layer.layer_id] = set_back(
                    walks[layer.layer_id],
                    self._first_walks[layer.layer_id],
                    relative,
                    path,
                    in_base=LowerView.root(layer, self._hidden).lookup(relative) is not None,
                )
            return self._put_snapshot(walks)

    def all_changes(self) -> tuple[Change, ...]:
        """What the world changed since it was made, as of now."""
        with self._lock:
            return tuple(self._finder.changes(self._first_walks, self._walk_all()))

    def to_apply(self) -> ToApply:
        """What the world changed in its project, with all that it takes to do the same there."""
        with self._lock:
            walks = self._walk_all()
            changes = tuple(
                change
                for change in self._finder.changes(self._first_walks, walks, renames=False)
                if change.scope == "project"
            )
            nodes: dict[bytes, UpperNode] = {}
            redirects: dict[bytes, bytes] = {}
            for change in changes:
                layer = layer_of(change.path, self._layout)
                if layer is not None:
                    relative = os.path.relpath(change.path, layer.mount_point)
                    node = walks[layer.layer_id].find(relative)
                    if node is not None:
                        nodes[change.path] = node
                        if node.redirect is not None:
                            redirects[change.path] = origin_of(layer, change.path, node.redirect)
            return ToApply(changes, nodes, dict(self._fingerprints), redirects)

    def move_baseline(self, paths: tuple[bytes, ...]) -> str:
        """Take the host's files as they are now for what later changes are held against.

        Returns:
            The digest of all fingerprints, for the world's file.
        """
        with self._lock:
            for path in paths:
                self._pins.digests.pop(path, None)  # of the content that was there before
                status = lstat_or_none(path)
                if status is None:
                    self._fingerprints.pop(path, None)
                else:
                    self._fingerprints[path] = fingerprint_of(path, status)
            return self._keep_fingerprints()

    def take_touched(self, paths: tuple[bytes, ...]) -> str:
        """As :meth:`move_baseline`, of files that were moved and back: their ctime is new."""
        with self._lock:
            for path in paths:
                recorded, status = self._fingerprints.get(path), lstat_or_none(path)
                if recorded is None or status is None:
                    continue
                if same_entry(replace(recorded, ctime_ns=status.st_ctime_ns), status):
                    self._fingerprints[path] = fingerprint_of(path, status)
            return self._keep_fingerprints()

    def _keep_fingerprints(self) -> str:
        digest = put_fingerprints(self._store, tuple(self._fingerprints.values()))
        self._base_digest = put_base(self._store, _with_fingerprints(self._base, digest))
        return digest

    def hide_below(self, paths: tuple[bytes, ...]) -> None:
        """Have directories that the world made hide the host's of the same name.

        The kernel does so itself where it can expect no change below (ovl_create_upper); the
        attribute alone changes nothing of what a mounted layer shows now.
        """
        self._host_wrote = True
        for path in paths:
            layer = layer_of(path, self._layout)
            if layer is None:
                continue
            root = os.open(layer.upper, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                relative = os.path.relpath(path, layer.mount_point)
                fd = open_beneath(root, relative, os.O_RDONLY | os.O_DIRECTORY)
                try:
                    os.setxattr(fd, layer.xattr("opaque"), b"y")
                finally:
                    os.close(fd)
            except OSError:
                continue  # gone since, or closed to us: no worse than before
            finally:
                os.close(root)

    def moved_base(self) -> tuple[bytes, ...]:
        """Files of the project that are no longer what they were when the world was made."""
        return tuple(
            path
            for path, recorded in self._fingerprints.items()
            if not same_entry(recorded, lstat_or_none(path))
        )

    # -- parts ---------------------------------------------------------------------------------

    def _take_fingerprints(self) -> dict[bytes, FileFingerprint]:
        project = self._layout.project
        if project is None:
            return {}
        found: dict[bytes, FileFingerprint] = {}
        for root in project.roots:
            for entry in fingerprint_tree(root, self._leave_out):
                found[entry.path] = entry
        return found

    def _walk_all(self, *, everything: bool = True) -> dict[str, UpperNode]:
        self._mapped = None
        return self._walker.walk(self._walks, everything=everything)

    def _put_snapshot(self, walks: dict[str, UpperNode]) -> str:
        return put_snapshot(self._store, self._base_digest, self._layout.layers, walks)

    def _keep_upper(self, descriptor: int, status: os.stat_result) -> str:
        if self._mapped is None:
            self._mapped = self._init_pid != 0 and maps_files(self._init_pid)
        if self._mapped:
            have_writes_told(descriptor)
        # No more than it had: a file may grow faster than it can be read.
        return self._store.put_file(descriptor, limit_bytes=status.st_size)

    def _unread(self, walks: dict[str, UpperNode]) -> Iterator[tuple[bytes, str]]:
        for layer in self._layout.layers:
            for path, why in walks[layer.layer_id].all_unread():
                yield layer.path_in_world(path), why

    def _hash_lower(self, path: bytes, status: os.stat_result) -> str:
        """Digest of a base file that a step changed or removed; a patch will want to show it."""
        recorded = self._fingerprints.get(path)
        # Not one that was edited on the host since: a step changed what it found.
        unmoved = recorded is not None and same_entry(recorded, status)
        if recorded is not None and unmoved and self._pins.pin(self._store, recorded):
            return self._pins.digests[path]
        if status.st_size <= PIN_FILE_LIMIT_BYTES:
            return self._store.put_file(path)
        return hash_file(path)

    def _keep_inputs(
        self, reads: tuple[bytes, ...], changes: tuple[Change, ...], began_ns: int
    ) -> str | None:
        """Pin what the step read of the project, and remember what it read elsewhere."""
        read: dict[bytes, FileFingerprint] = {}
        moved: dict[bytes, str] = {}
        changed = {change.path for change in changes}
        roots = self._layout.project.roots if self._layout.project is not None else ()
        for path in _real_paths(reads[:INPUT_LIMIT]):
            recorded = self._fingerprints.get(path)
            if recorded is not None and same_entry(recorded, lstat_or_none(path)):
                self._pins.pin(self._store, recorded)
            elif is_below(path, roots):
                self._keep_moved(path, roots, began_ns, read, moved)
            elif path not in changed:
                lower = self._lower_file(path)
                if lower is not None:
                    read[path] = lower
        if not read and not self._pins.digests:
            return None
        unread = max(0, len(reads) - INPUT_LIMIT)
        return put_inputs(
            self._store, Inputs(self._pins.digests, tuple(read.values()), unread, moved)
        )

    def _keep_moved(
        self,
        path: bytes,
        roots: tuple[bytes, ...],
        began_ns: int,
        read: dict[bytes, FileFingerprint],
        moved: dict[bytes, str],
    ) -> None:
        """Keep a file of the project that the host has changed or added since the world began."""
        lower = self._lower_file(path)
        if lower is None:
            return  # the world's own
        if lower.ctime_ns >= began_ns:
            # While the step ran: nobody knows which of the two it read.
            read[path] = replace(lower, ino=CHANGED_WHILE_READ)
            return
        pins = Pins({})
        read[path] = lower
        if pins.pin(self._store, lower):
            moved[path] = pins.digests[path]
        above = os.path.dirname(path)
        while is_below(above, roots) and above not in self._fingerprints and above not in read:
            read[above] = fingerprint_of(above)
            above = os.path.dirname(above)

    def _lower_file(self, path: bytes) -> FileFingerprint | None:
        """The base file that the world showed at ``path``; None if it came from elsewhere."""
        layer = layer_of(path, self._layout)
        if layer is None or layer.layer_id in ("home", "tmp"):
            return None
        relative = os.path.relpath(path, layer.mount_point)
        if self._walks[layer.layer_id].find(relative) is not None:
            return None
        lower = LowerView.root(layer, self._hidden).lookup(relative)
        if lower is None or not stat.S_ISREG(lower.status.st_mode):
            return None
        if is_below(lower.host_path, self._leave_out):
            return None
        return fingerprint_of(lower.host_path, lower.status)


def _real_paths(paths: tuple[bytes, ...]) -> tuple[bytes, ...]:
    """The files that paths lead to on the host: a program names libraries and links, not files."""
    directories: dict[bytes, bytes] = {}
    found: dict[bytes, None] = {}
    for path in paths:
        above, name = os.path.split(path)
        if above not in directories:
            directories[above] = os.path.realpath(above)
        real = os.path.join(directories[above], name)
        if os.path.islink(real):
            found[real] = None  # a link of the project: it is in the fingerprints itself
            real = os.path.realpath(real)
        found[real] = None
    return tuple(found)


def _with_fingerprints(base: BaseRecord, digest: str | None) -> BaseRecord:
    return replace(base, fingerprints=digest)
