"""A persistent shell in a world, as this host process knows it and keeps it on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from substrate_services.journal import bytesjson, parts
from substrate_services.journal.jsontypes import Fields, JsonObject, compact_bytes

#: What begins the exec id under which the world's init knows a shell; no exec's id does.
SHELL_PREFIX = "substrate-shell_"


@dataclass(slots=True)
class Shell:
    """A shell.

    Attributes:
        shell_id: as the client chose it.
        path: its file.
        argv: what was started.
        env: it was opened with; what it exported since is its own.
        cwd: where it is.
        status: of its last command.
        number: of commands so far.
        pid: in the world.
        started_ns: CLOCK_MONOTONIC.
        running: the exec id of its command, while that is not recorded.
        ended: how it ended; empty while it lives.
    """

    shell_id: str
    path: Path
    argv: tuple[bytes, ...]
    env: Mapping[bytes, bytes]
    cwd: bytes
    status: int = 0
    number: int = 0
    pid: int = 0
    started_ns: int = 0
    running: str = ""
    ended: str = ""

    @property
    def init_id(self) -> str:
        """Its exec id for the world's init."""
        return SHELL_PREFIX + self.shell_id

    def save(self) -> None:
        """Keep it for a host that takes over."""
        line: JsonObject = {
            "shell_id": self.shell_id,
            "argv": parts.byte_list(self.argv),
            "env": parts.env_to_json(sorted(self.env.items())),
            "cwd": bytesjson.encode(self.cwd),
            "status": self.status,
            "number": self.number,
            "ended": self.ended,
        }
        scratch = self.path.with_suffix(".new")
        scratch.write_bytes(compact_bytes(line))
        scratch.replace(self.path)


def shells_directory(world: Path) -> Path:
    """Where the files of a world's shells are."""
    return world / "shells"


def load_shells(world: Path) -> list[Shell]:
    """The shells of a world that an earlier host process opened."""
    found = []
    directory = shells_directory(world)
    for path in sorted(directory.glob("*.json")) if directory.is_dir() else ():
        try:
            fields = Fields(json.loads(path.read_bytes()), "shell")
            found.append(
                Shell(
                    shell_id=fields.text("shell_id"),
                    path=path,
                    argv=parts.byte_items(fields, "argv"),
                    env=dict(parts.env_from_json(fields, "env")),
                    cwd=parts.opt_bytes(fields, "cwd") or b"/",
                    status=fields.integer("status"),
                    number=fields.integer("number"),
                    ended=fields.text("ended"),
                )
            )
        except (OSError, ValueError):
            continue  # it was being opened when the host died: nobody was told of it
    return found
