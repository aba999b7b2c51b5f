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

from substrate_services.world.changes import ChangeFinder
from substrate_services.world.layers import Layer, UpperNode, walk_upper
from substrate_services.world.project import Project

WORKER = Path(__file__).with_name("overlay_worker.py")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting an overlay needs root")

NAMES = ("a", "b", "d", "d/x", "d/e", "d/e/y", "n", "n/z")
PATHS = st.sampled_from(NAMES)
OPERATIONS = st.one_of(
    st.tuples(
        st.sampled_from(["write", "truncate", "remove", "mkdir", "symlink", "chmod", "touch"]),
        PATHS,
    ),
    st.tuples(st.just("rename"), PATHS, PATHS),
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
        elif before[name][1] != after[name][1]:
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
        assert overlay.changes(fresh, after_first) == expected(seen["before"], seen["after"])
        seen = overlay.run(second)
        after_second = overlay.walk(after_first)
        assert overlay.changes(after_first, after_second) == expected(seen["before"], seen["after"])
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
            "d": "deleted",
            "d/e": "deleted",
            "d/e/y": "deleted",
            "d/x": "deleted",
            "n": "created",
            "n/e": "created",
            "n/e/y": "created",
            "n/x": "created",
        }
    finally:
        overlay.remove()
