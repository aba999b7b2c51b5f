"""README.md names a test for each trap of the preload library; each of them is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

_HERE = Path(__file__).resolve().parent
_NAMED = sorted(set(re.findall(r"`([\w./]+\.py)::(\w+)`", (_HERE / "README.md").read_text())))


def test_the_list_names_a_test_for_each_trap() -> None:
    rows = [line for line in (_HERE / "README.md").read_text().splitlines() if line[:2] == "| "]
    assert len(rows) > 25
    for row in rows[1:]:
        cells = [cell.strip() for cell in row.strip("|").split(" | ")]
        assert len(cells) == 3
        assert cells[2] not in ("", "-"), f"nothing was taken away to see it fail: {row}"


@pytest.mark.parametrize(("file", "name"), _NAMED)
def test_a_test_that_is_named_is_there(file: str, name: str) -> None:
    assert f"\ndef {name}(" in (_HERE / file).read_text()
