"""What docs/TRACE.md tells third parties to do works on a real journal."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from substrate_services.journal.writer import Journal

DOCS = Path(__file__).parents[2] / "docs" / "TRACE.md"


def verifier(tmp_path: Path) -> Path:
    (block,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    program = tmp_path / "verify.py"
    program.write_text(block)
    return program


def run(program: Path, journal: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(program), str(journal)],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_the_documented_program_verifies_a_journal_and_notices_a_change(tmp_path: Path) -> None:
    path = tmp_path / "home" / "trace.jsonl"
    with Journal(path, segment_limit_bytes=2000) as journal:
        for number in range(60):
            journal.append({"event_type": "x", "number": number, "nested": {"v": "ü\n"}})
            if number % 3 == 0:
                journal.flush_sync()
        journal.flush_sync()
        head = journal.head
    program = verifier(tmp_path)
    done = run(program, path)
    assert done.stdout == f"lines 1 to 60 are intact; head {head}\n", done.stderr

    data = path.read_bytes()
    path.write_bytes(data.replace(b'"number":59', b'"number":95'))
    done = run(program, path)
    assert done.returncode == 1
    assert "the batch up to line 60 is not what was recorded" in done.stderr
