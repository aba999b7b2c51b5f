"""What the walk of the upper layers says changed, against what the kernel's merged view shows."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from substrate_services.objects.store import ObjectStore
from substrate_services.world.changes import ChangeFinder
from substrate_services.world.layers import Layer, UpperNode
from substrate_services.world.project import Project
from substrate_services.world.snapshots import get_snapshot, materialise, put_snapshot
from substrate_services.world.walks import walk_upper

WORKER = Path(__file__).with_name("overlay_worker.py")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting an overlay needs root")

NAMES = ("a", "b", "d", "d/x", "d/e", "d/e/y", "n", "n/z")
PATHS = st.sampled_from(NAMES)
OPERATIONS = st.one_of(
    st.tuples(
        st.sampled_from(
            ["write", "truncate", "remove", "mkdir", "symlink", "chmod", "touch", "note", "hole"]
        ),
        PATHS,
    ),
    st.tuples(st.sampled_from(["rename", "rename", "link"]), PATHS, PATHS),
)


class Overlay:
    """A lower tree and an upper one on disk; mounted only inside the worker."""

    def __init__(self) -> None:
        # Not in /tmp proper: the upper must be on a file system that can hold one.
        self.root = Path(tempfile.mkdtemp(prefix="substrate-changes-"))
        for name in ("lower", "layer/upper", "layer/work", "merged"):
            (self.root / name).mkdir(parents=True)
        lower = self.root / "lower"
        (lower / "a").write_text("a\n")
        (lower / "d/e").mkdir(parents=True)
        (lower / "d/x").write_text("x\n")
        (lower / "d/e/y").write_text("y\n")
        (lower / "b").symlink_to("a")
        self.layer = Layer("root", b"/", (os.fsencode(lower),), self.root / "layer")

    def run(self, operations: list[tuple[str, ...]]) -> dict[str, dict[str, list[object]]]:
        layer = self.root / "layer"
        command = ["unshare", "--mount", "--propagation", "private", sys.executable, str(WORKER)]
        command += [str(self.root / "lower"), str(layer / "upper"), str(layer / "work")]
        command += [str(self.root / "merged")]
        done = subprocess.run(
            command, input=json.dumps(operations), capture_output=True, text=True, check=True
        )
        listings: dict[str, dict[str, list[object]]] = json.loads(done.stdout)
        return listings

    def walk(self, previous: UpperNode | None = None) -> UpperNode:
        return walk_upper(self.layer, _keep, previous)

    def changes(self, before: UpperNode, after: UpperNode) -> dict[str, str]:
        finder = ChangeFinder((self.layer,), Project(b"/"), _hash)
        found = finder.changes({"root": before}, {"root": after})
        return {
            os.fsdecode(change.path)[1:]: change.kind for change in found if change.path != b"/"
        }

    def told_apart(self, before: UpperNode, after: UpperNode) -> dict[str, str]:
        """Changes with each rename as what it is made of, which must be a pair of equals."""
        finder = ChangeFinder((self.layer,), Project(b"/"), _hash)
        kinds: dict[str, str] = {}
        apart = finder.changes({"root": before}, {"root": after}, renames=False)
        for change in finder.changes({"root": before}, {"root": after}):
            if change.kind == "renamed":
                assert change.renamed_from is not None
                assert change.before is not None
                assert change.after is not None
                assert change.before.kind == change.after.kind
                assert os.fsdecode(change.renamed_from)[1:] not in kinds
                kinds[os.fsdecode(change.renamed_from)[1:]] = "deleted"
            kinds[os.fsdecode(change.path)[1:]] = (
                "created" if change.kind == "renamed" else change.kind
            )
        assert kinds == {os.fsdecode(change.path)[1:]: change.kind for change in apart}
        kinds.pop("", None)
        return kinds

    def remove(self) -> None:
        shutil.rmtree(self.root)


def _keep(descriptor: int, status: os.stat_result) -> str:
    return hashlib.sha256(os.pread(descriptor, status.st_size, 0)).hexdigest()


def _hash(path: bytes, _status: os.stat_result) -> str:
    return hashlib.sha256(Path(os.fsdecode(path)).read_bytes()).hexdigest()


def expected(before: dict[str, list[object]], after: dict[str, list[object]]) -> dict[str, str]:
    kinds = {}
    for name in before.keys() | after.keys():
        if name not in before:
            kinds[name] = "created"
        elif name not in after:
            kinds[name] = "deleted"
        elif before[name][0] != after[name][0] or before[name][2] != after[name][2]:
            kinds[name] = "modified"
        elif before[name][1] != after[name][1] or before[name][3] != after[name][3]:
            kinds[name] = "metadata"
    return kinds


@needs_root
@settings(max_examples=60, deadline=None)
@given(st.lists(OPERATIONS, max_size=8), st.lists(OPERATIONS, max_size=6))
def test_two_steps_change_exactly_what_the_merged_view_shows(
    first: list[tuple[str, ...]], second: list[tuple[str, ...]]
) -> None:
    overlay = Overlay()
    try:
        fresh = overlay.walk()
        seen = overlay.run(first)
        after_first = overlay.walk(fresh)
        assert overlay.told_apart(fresh, after_first) == expected(seen["before"], seen["after"])
        seen = overlay.run(second)
        after_second = overlay.walk(after_first)
        assert overlay.told_apart(after_first, after_second) == expected(
            seen["before"], seen["after"]
        )
    finally:
        overlay.remove()


@needs_root
def test_a_renamed_base_directory_keeps_its_content_in_view() -> None:
    overlay = Overlay()
    try:
        fresh = overlay.walk()
        overlay.run([("rename", "d", "n")])
        moved = overlay.walk(fresh)
        assert overlay.changes(fresh, moved) == {
            "n": "renamed",
            "n/e": "renamed",
            "n/e/y": "renamed",
            "n/x": "renamed",
        }
    finally:
        overlay.remove()


@needs_root
@pytest.mark.parametrize(
    ("operations", "kinds"),
    [
        ([("rename", "a", "n")], {"n": "renamed"}),
        ([("rename", "b", "n")], {"n": "renamed"}),
        ([("rename", "d/e", "n")], {"n": "renamed", "n/y": "renamed"}),
        # What changed besides goes along with its directory, not by itself.
        ([("rename", "a", "n"), ("write", "n")], {"a": "deleted", "n": "created"}),
        (
            [("rename", "d/e", "n"), ("write", "n/y")],
            {"n": "renamed", "n/y": "renamed"},
        ),
        # Over what was there it is a change of that.
        ([("rename", "a", "d/x")], {"a": "deleted", "d/x": "modified"}),
        ([("note", "a")], {"a": "metadata"}),
        ([("note", "d")], {"d": "metadata"}),
        ([("hole", "a")], {"a": "modified"}),
    ],
)
def test_renames_and_attributes(operations: list[tuple[str, ...]], kinds: dict[str, str]) -> None:
    overlay = Overlay()
    try:
        fresh = overlay.walk()
        overlay.run(operations)
        assert overlay.changes(fresh, overlay.walk(fresh)) == kinds
    finally:
        overlay.remove()


@needs_root
@settings(max_examples=40, deadline=None)
@given(st.lists(OPERATIONS, max_size=10))
def test_a_materialised_layer_shows_the_same_tree(operations: list[tuple[str, ...]]) -> None:
    overlay = Overlay()
    try:
        seen = overlay.run(operations)
        walk = overlay.walk()
        store = ObjectStore(overlay.root / "objects")
        kept = walk_upper(overlay.layer, lambda fd, _status: store.put_file(fd))
        snapshot_id = put_snapshot(store, "0" * 64, (overlay.layer,), {"root": kept})
        upper = overlay.root / "layer" / "upper"
        shutil.rmtree(upper)
        shutil.rmtree(overlay.root / "layer" / "work")
        upper.mkdir()
        (overlay.root / "layer" / "work").mkdir()
        (layer,) = get_snapshot(store, snapshot_id).layers
        materialise(store, layer.root, upper, overlay.layer.xattr)
        store.close()
        assert overlay.run([])["after"] == seen["after"]
        # Once more the same objects: names, modes, times, links and attributes are all there.
        assert snapshot_without_objects(overlay) == _shape(walk)
    finally:
        overlay.remove()


def snapshot_without_objects(overlay: Overlay) -> object:
    return _shape(overlay.walk())


def _shape(node: UpperNode) -> object:
    return (
        node.state,
        node.opaque,
        node.redirect,
        node.xattrs,
        {name: _shape(child) for name, child in node.children.items()},
    )
