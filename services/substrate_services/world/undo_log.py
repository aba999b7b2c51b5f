"""What an apply is about to do to the host's files, on disk before it does it.

One file for each apply, in ``$SUBSTRATE_HOME/applies``, replaced as a whole at each stage:

``staging``
    New content is being written into a directory of the project's own, ``.substrate-apply-ID``,
    which nobody else looks at. Undone by removing that.
``prepared``
    The operations, each a rename or a change of mode, with the inode numbers of what is put in
    place and of what was there. Whatever of them was done can be told by those, and undone: what
    was there is in the staging directory.
``committed``
    All is done; the staging directory is removed.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from substrate_services.journal import bytesjson
from substrate_services.journal.jsontypes import (
    Fields,
    JsonObject,
    JsonValue,
    LineError,
    compact_bytes,
)
from substrate_services.journal.parts import (
    byte_items,
    byte_list,
    choice,
    env_from_json,
    opt_bytes,
)
from substrate_services.world.beneath import Caller
from substrate_services.world.layers import Xattrs

Stage = Literal["staging", "prepared", "committed"]
OperationKind = Literal["put", "take", "attributes"]
_STAGES: tuple[Stage, ...] = get_args(Stage)
_KINDS: tuple[OperationKind, ...] = get_args(OperationKind)
_VERSION = 1
_SCRATCH = ".new"


@dataclass(frozen=True, slots=True)
class Entry:
    """What an lstat says of an entry of the host; times change with renames, so not the ctime."""

    ino: int
    mode: int  # with type bits
    uid: int
    gid: int
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> Entry:
        """From an lstat."""
        return cls(
            status.st_ino,
            status.st_mode,
            status.st_uid,
            status.st_gid,
            status.st_size,
            status.st_mtime_ns,
        )


@dataclass(frozen=True, slots=True)
class Operation:
    """One thing that is done to the host's files.

    Attributes:
        kind: put what is in the slot in place, in exchange for what was there, if anything was;
            take an entry away, into the slot; or give one other attributes.
        root: number of the project's directory that it is in.
        path: from there.
        slot: name in the staging directory.
        new_ino: of what is put.
        old: what was there; None where nothing was.
        mode: permission bits to set.
        owner: to set; None leaves it.
        xattrs: to set, and those that were there.
        old_xattrs: as they were.
    """

    kind: OperationKind
    root: int
    path: bytes
    slot: bytes = b""
    new_ino: int | None = None
    old: Entry | None = None
    mode: int = 0
    owner: tuple[int, int] | None = None
    xattrs: Xattrs = ()
    old_xattrs: Xattrs = ()


@dataclass(frozen=True, slots=True)
class UndoLog:
    """An apply that is under way, or was when a host died."""

    apply_id: str
    world_id: str
    exec_id: str
    caller: Caller
    roots: tuple[bytes, ...]
    paths: tuple[bytes, ...]  # everything that it is about, for what is fingerprinted afterwards
    stage: Stage = "staging"
    operations: tuple[Operation, ...] = ()
    renew: tuple[bytes, ...] = ()  # what the world is to have from the host alone afterwards

    @property
    def staging_name(self) -> bytes:
        """The name of the staging directory in each root."""
        return b".substrate-apply-" + self.apply_id.encode()

    def at(self, stage: Stage, operations: tuple[Operation, ...] | None = None) -> UndoLog:
        """The same at another stage."""
        return replace(
            self,
            stage=stage,
            operations=self.operations if operations is None else operations,
        )

    def save(self, directory: Path) -> None:
        """Write it to the disk, whole or not at all."""
        directory.mkdir(mode=0o700, exist_ok=True)
        path = directory / f"{self.apply_id}.json"
        scratch = path.with_suffix(_SCRATCH)
        with scratch.open("wb") as file:
            file.write(compact_bytes(_to_json(self)))
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
        _sync_directory(directory)

    def forget(self, directory: Path) -> None:
        """Remove it."""
        (directory / f"{self.apply_id}.json").unlink(missing_ok=True)


def load_logs(directory: Path) -> list[UndoLog]:
    """The logs that an earlier host process left; what it was still writing is removed.

    Raises ValueError where one is damaged.
    """
    if not directory.is_dir():
        return []
    for scratch in directory.glob(f"*{_SCRATCH}"):
        scratch.unlink()  # cut off while it was written: the stage that it tells of never began
    return [
        _from_json(Fields(json.loads(path.read_bytes()), path.name))
        for path in sorted(directory.glob("*.json"))
    ]


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _to_json(log: UndoLog) -> JsonObject:
    return {
        "v": _VERSION,
        "apply_id": log.apply_id,
        "world_id": log.world_id,
        "exec_id": log.exec_id,
        "caller": [log.caller.uid, log.caller.gid, list(log.caller.groups)],
        "roots": byte_list(log.roots),
        "paths": byte_list(log.paths),
        "renew": byte_list(log.renew),
        "stage": log.stage,
        "operations": [_operation_to_json(operation) for operation in log.operations],
    }


def _operation_to_json(operation: Operation) -> JsonObject:
    old = operation.old
    return {
        "kind": operation.kind,
        "root": operation.root,
        "path": bytesjson.encode(operation.path),
        "slot": bytesjson.encode(operation.slot),
        "new_ino": operation.new_ino,
        "old": None
        if old is None
        else [old.ino, old.mode, old.uid, old.gid, old.size, old.mtime_ns],
        "mode": operation.mode,
        "owner": None if operation.owner is None else list(operation.owner),
        "xattrs": _pairs(operation.xattrs),
        "old_xattrs": _pairs(operation.old_xattrs),
    }


def _pairs(xattrs: Xattrs) -> list[JsonValue]:
    return [[bytesjson.encode(name), bytesjson.encode(value)] for name, value in xattrs]


def _from_json(fields: Fields) -> UndoLog:
    if fields.integer("v") != _VERSION:
        raise fields.wrong("v", str(_VERSION))
    uid, gid, groups = fields.items("caller")
    assert isinstance(groups, list)
    return UndoLog(
        apply_id=fields.text("apply_id"),
        world_id=fields.text("world_id"),
        exec_id=fields.text("exec_id"),
        caller=Caller(_integer(uid), _integer(gid), tuple(_integer(group) for group in groups)),
        roots=byte_items(fields, "roots"),
        paths=byte_items(fields, "paths"),
        renew=byte_items(fields, "renew"),
        stage=choice(fields, "stage", _STAGES),
        operations=tuple(
            _operation_from_json(Fields(item, "operation")) for item in fields.items("operations")
        ),
    )


def _operation_from_json(fields: Fields) -> Operation:
    old = [_integer(item) for item in fields.items("old")] if fields.has("old") else None
    owner = [_integer(item) for item in fields.items("owner")] if fields.has("owner") else None
    return Operation(
        kind=choice(fields, "kind", _KINDS),
        root=fields.integer("root"),
        path=opt_bytes(fields, "path") or b"",
        slot=opt_bytes(fields, "slot") or b"",
        new_ino=fields.integer("new_ino") if fields.has("new_ino") else None,
        old=Entry(*old) if old is not None else None,
        mode=fields.integer("mode"),
        owner=(owner[0], owner[1]) if owner is not None else None,
        xattrs=env_from_json(fields, "xattrs"),
        old_xattrs=env_from_json(fields, "old_xattrs"),
    )


def _integer(value: JsonValue) -> int:
    if not isinstance(value, int):
        raise LineError(f"{value!r} is no number")
    return value
