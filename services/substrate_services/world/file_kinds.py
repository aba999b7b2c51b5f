"""The kinds of steps that change files without a command."""

from __future__ import annotations

from typing import Final, Literal, get_args

FilesKind = Literal[
    "files.write",
    "files.remove",
    "files.rename",
    "files.mkdir",
    "files.chmod",
    "files.symlink",
    "files.upload",
]

#: Each by its name in a record. All are operations of the world's init.
FILES_KINDS: Final[dict[str, FilesKind]] = {kind: kind for kind in get_args(FilesKind)}
