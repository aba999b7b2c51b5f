"""What a world changed: told, applied, forgotten, kept, set back to, gone on from."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from substrate_sdk import World
from substrate_sdk.errors import Conflict, ConsentNeeded, SpanNotFound, TreeInUse, WorldNotFound
from tests.conformance.clauses import Place, clause, said
from tests.users import read_some

SEEN = "find . -printf '%P %y %#m %s %l\\n' | sort; cat made d/f 2>/dev/null"


@clause("commits: diff lists every change, and is a patch for text")
def test_diff(world: World, project: Path) -> None:
    said(world, "echo new > made; echo more >> README.md; ln -s made link; echo t > /tmp/outside")
    changes = {change.path: (change.kind, change.scope) for change in world.diff().changes}
    assert changes[str(project / "made")] == ("created", "project")
    assert changes[str(project / "README.md")] == ("modified", "project")
    assert changes["/tmp/outside"] == ("created", "outside")
    patch = world.diff().patch().decode()
    assert re.search(r"^\+more$", patch, re.MULTILINE)
    assert "+++ b/made" in patch


@clause("commits: apply shows first, then writes the project to the host, as the caller")
def test_apply(place: Place, world: World, project: Path) -> None:
    said(world, "echo new > made; rm README.md; mkdir -p d; ln made d/hard; echo t > /tmp/outside")
    planned = world.apply(dry_run=True)
    assert sorted(path.name for path in project.iterdir()) == ["README.md"]
    assert world.apply().changes == planned.changes
    assert sorted(path.name for path in project.iterdir()) == ["d", "made"]
    assert (project / "made").stat().st_uid == place.user.home.stat().st_uid
    assert (project / "d" / "hard").stat().st_nlink == 2
    assert not Path("/tmp/outside").exists()
    assert not [c for c in world.diff().changes if c.scope == "project"]


@clause("commits: apply never writes over newer work, nor what runs later without consent")
def test_apply_refuses(world: World, project: Path) -> None:
    said(world, "echo mine > README.md; echo 'echo hi' > .envrc")
    with pytest.raises(ConsentNeeded):
        world.apply()
    (project / "README.md").write_text("newer\n")
    with pytest.raises(Conflict):
        world.apply(consent=[".envrc"])
    assert (project / "README.md").read_text() == "newer\n"
    assert not (project / ".envrc").exists()


@clause("commits: discard forgets some changes, or all")
def test_discard(world: World) -> None:
    said(world, "echo x > one; echo y > two; rm README.md")
    world.discard("one", "README.md")
    assert said(world, "ls") == "README.md\ntwo\n"
    world.discard()
    assert said(world, "ls") == "README.md\n"


@clause("commits: rollback sets the tree to that after a step; generations count")
def test_rollback(world: World) -> None:
    first = world.run("echo one > made; mkdir d; echo f > d/f; chmod 711 d")
    seen = said(world, SEEN)
    said(world, "echo two > made; rm -r d; echo x > later")
    held = world.exec("exec 9>>held; echo up; sleep 1000")
    assert read_some(held) == b"up\n"
    with pytest.raises(TreeInUse, match=str(held.pid)):
        world.rollback(to=first)
    assert world.rollback(to=first, kill=True) == 1
    assert held.wait(20).termination_reason == "KILLED_BY_USER"
    assert said(world, SEEN) == seen
    assert world.refresh().generation == 1
    with pytest.raises(SpanNotFound):
        world.rollback(to="0" * 16)


@clause("commits: a snapshot names the tree now, and a world can be made of it")
def test_snapshot(place: Place, world: World, project: Path) -> None:
    step = world.run("echo one > made")
    kept = world.snapshot()
    assert (kept.snapshot_id, kept.unclean) == (step.snapshot_after, False)
    said(world, "echo two > made")
    base = f"snapshot:{kept.snapshot_id}"
    with place.sub.world(base=base, project=project, cwd=project) as other:
        assert said(other, "cat made") == "one\n"


@clause("commits: fork goes on from after any step, on its own")
def test_fork(world: World) -> None:
    first = world.run("echo one > made; mkdir d; echo f > d/f")
    seen = said(world, SEEN)
    said(world, "echo two > made")
    with world.fork(at=first) as other:
        assert other.session_id == world.session_id
        assert said(other, SEEN) == seen
        said(other, "echo fork > made")
        assert said(world, "cat made") == "two\n"


@clause("commits: diff, fork and apply work when the world is gone")
def test_after_removal(place: Place, project: Path) -> None:

    with place.sub.world(project=project, cwd=project) as world:
        step = world.run("echo kept > made")
    with pytest.raises(WorldNotFound):
        world.run("true")
    assert [c.path for c in place.sub.diff(step).changes] == [str(project / "made")]
    with place.sub.fork(step) as other:
        assert said(other, "cat made") == "kept\n"
    place.sub.apply(step)
    assert (project / "made").read_text() == "kept\n"


@clause("replay: a recorded step does the same in a fresh world")
def test_replay(place: Place, world: World) -> None:
    result = world.run("cat README.md; echo made > made; echo err >&2; exit 4")
    assert place.sub.replay(result).verdict == "identical"
