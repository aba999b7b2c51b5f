"""The log that an apply is undone by is on the disk whole, or not at all."""

from __future__ import annotations

from pathlib import Path

from substrate_services.world.beneath import Caller
from substrate_services.world.undo_log import UndoLog, load_logs


def a_log(apply_id: str) -> UndoLog:
    return UndoLog(
        apply_id=apply_id,
        world_id="wld_1",
        exec_id="exe_1",
        caller=Caller(0, 0, (0,)),
        roots=(b"/project",),
        paths=(b"/project/\xff",),
    )


def test_a_log_is_read_as_it_was_saved(tmp_path: Path) -> None:
    log = a_log("apl_1")
    log.save(tmp_path)
    assert load_logs(tmp_path) == [log]


def test_a_log_whose_writing_was_cut_off_leaves_the_stage_before_it(tmp_path: Path) -> None:
    log = a_log("apl_1")
    log.save(tmp_path)
    (tmp_path / "apl_1.new").write_bytes(b'{"v": 1, "apply')
    (tmp_path / "apl_2.new").write_bytes(b"")
    assert load_logs(tmp_path) == [log]
    assert [path.name for path in tmp_path.iterdir()] == ["apl_1.json"]
