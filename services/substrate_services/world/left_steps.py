"""The steps that an earlier host process left, as it noted them down."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from substrate_services.journal.codec import start_from_line
from substrate_services.journal.reader import JournalReader
from substrate_services.world.steps import EXEC_FILE, STDIN_FILE, Exec

log = logging.getLogger(__name__)


def read_execs(reader: JournalReader, directory: Path) -> list[Exec]:
    """The steps of a world, by exec id; those that are recorded are finished."""
    found = []
    try:
        listed = sorted((directory / "execs").iterdir())
    except FileNotFoundError:
        return []  # half removed: there is nothing left to record
    for exec_directory in listed:
        if not exec_directory.is_dir():
            continue  # what a look left behind
        try:
            line = json.loads((exec_directory / EXEC_FILE).read_bytes())
            exec_ = Exec(start_from_line(line), exec_directory)
        except (OSError, ValueError) as error:
            log.warning("exec %s was not started (%s)", exec_directory.name, error)
            continue
        exec_.record = reader.find_span(exec_.start.span_id)
        if exec_.record is not None:
            exec_.phase = "finished"
            exec_.output.finish()  # else who follows it would wait for more for ever
            exec_.done.set()
        stdin = exec_directory / STDIN_FILE
        if stdin.exists():
            exec_.stdin_pipe = True
            exec_.stdin_received = stdin.stat().st_size
        found.append(exec_)
    return found
