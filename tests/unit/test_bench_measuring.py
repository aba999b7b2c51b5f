"""What the benchmarks share: turns, percentiles, history."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

_BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def measuring(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("measuring", _BENCHMARKS / "measuring.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "measuring", module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_a_quantile_lies_between_its_neighbours(measuring: ModuleType) -> None:
    values = [4.0, 1.0, 3.0, 2.0, 5.0]
    assert measuring.quantile(values, 0.5) == 3.0
    assert measuring.quantile(values, 0.95) == pytest.approx(4.8)
    assert measuring.quantile([7.0], 0.95) == 7.0


def test_cases_take_turns_and_the_warm_up_is_not_counted(measuring: ModuleType) -> None:
    seen: list[str] = []

    def once(name: str) -> float:
        seen.append(name)
        return float(len(seen))

    cases = [measuring.Case(name, lambda name=name: once(name)) for name in "abc"]
    measuring.take_turns(cases, rounds=4, warm_up=2)
    rounds = ["".join(seen[at : at + 3]) for at in range(0, len(seen), 3)]
    assert [sorted(turns) for turns in rounds] == [["a", "b", "c"]] * 6
    assert len(set(rounds)) > 1, "the order is drawn anew"
    assert all(len(case.times_s) == 4 for case in cases)
    assert min(min(case.times_s) for case in cases) > 6


def test_a_case_that_fails_gives_its_reason_and_the_others_go_on(measuring: ModuleType) -> None:
    def fails() -> float:
        raise RuntimeError("bwrap exited with 1\nand more")

    broken, sound = measuring.Case("broken", fails), measuring.Case("sound", lambda: 0.001)
    measuring.take_turns([broken, sound], rounds=3, warm_up=0)
    assert broken.unavailable == "bwrap exited with 1"
    assert not broken.times_s
    assert sound.p50_ms == 1


def test_a_program_that_fails_is_an_error(measuring: ModuleType) -> None:
    measuring.run_to_end(["/bin/true"])
    with pytest.raises(RuntimeError, match="/bin/false exited with 1"):
        measuring.run_to_end(["/bin/false"])


def test_the_history_gets_one_line_a_run_without_paths_of_this_machine(
    measuring: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    history = tmp_path / "history.jsonl"
    monkeypatch.setattr(measuring, "HISTORY", history)
    measuring.record("latency", {"rows": {}})
    measuring.record("latency", {"rows": {}})
    lines = history.read_text().splitlines()
    assert len(lines) == 2
    line = json.loads(lines[0])
    assert line["benchmark"] == "latency"
    assert line["machine"]["cpus"] >= 1
    assert str(_BENCHMARKS.parent) not in lines[0]
