"""What docs/threat-model.md and docs/WORLD.md point to is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.escape.cases import CASES

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["threat-model.md", "WORLD.md"])
def test_every_file_that_is_named_exists(name: str) -> None:
    text = (ROOT / "docs" / name).read_text()
    named = set(re.findall(r"`(tests/[\w/]+\.py)`", text))
    linked = set(re.findall(r"\]\(([^)#]+)\)", text))
    assert named | linked
    missing = [path for path in named if not (ROOT / path).exists()]
    missing += [path for path in linked if not (ROOT / "docs" / path).exists()]
    assert missing == []


def test_every_case_that_the_threat_model_names_is_tried() -> None:
    text = (ROOT / "docs" / "threat-model.md").read_text()
    names = {case.name for case in CASES}
    quoted = [
        name
        for names_of_row in re.findall(r"((?:`[^`]+`(?:, | and )?)+) in cases\.py", text)
        for name in re.findall(r"`([^`]+)`", names_of_row)
        if not name.startswith(("tests/", "_of_"))
    ]
    assert len(quoted) > 5
    for name in quoted:
        pattern = ".*".join(map(re.escape, re.split(r"[*…]", name)))
        assert any(re.search(pattern, each) for each in names), name
