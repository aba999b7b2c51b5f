"""Changes to files as steps: each an operation of the world's init, recorded and replayed so.

A step's action says all of it: the operation, absolute paths, and for content the object that the
operation reads. It runs in ``/`` with an empty umask, so neither a directory that is gone nor a
mask has a say in what comes of it.
"""

from __future__ import annotations

import os
from typing import Final

from substrate_sdk._pb.substrate.world.v1alpha1 import files_pb2
from substrate_services.errors import InvalidField
from substrate_services.wire import validation
from substrate_services.world.steps import FILES_PROGRAM, ExecRequest, StepKind

DEFAULT_FILE_MODE: Final = 0o644
DEFAULT_DIRECTORY_MODE: Final = 0o755
_PATH_LIMIT_BYTES = 4095  # PATH_MAX, without its NUL


def world_path(field: str, path: bytes, cwd: bytes) -> bytes:
    """A path of the Files RPCs as an absolute one; nothing is looked up, and ``..`` stays.

    Args:
        field: its name, for errors.
        path: absolute, or relative to ``cwd``.
        cwd: the world's.
    """
    if not path or b"\0" in path:
        raise InvalidField(field, path, "expected a path without NUL bytes")
    absolute = os.path.join(cwd, path).rstrip(b"/") or b"/"
    if len(absolute) > _PATH_LIMIT_BYTES:
        raise InvalidField(field, path[:80], f"expected at most {_PATH_LIMIT_BYTES} bytes")
    return absolute


def write_step(header: files_pb2.WriteFileHeader, cwd: bytes, digest: str) -> ExecRequest:
    """Writing a file; ``digest`` names its content."""
    mode = header.mode if header.HasField("mode") else DEFAULT_FILE_MODE
    options = b"create,truncate,parents" if header.make_parents else b"create,truncate"
    path = world_path("header.path", header.path, cwd)
    return _step(
        "files.write",
        validation.exec_id("header.exec_id", header.exec_id),
        b"write",
        path,
        _mode("header.mode", mode),
        options,
        stdin_digest=digest,
    )


def remove_step(request: files_pb2.RemoveFileRequest, cwd: bytes) -> ExecRequest:
    """Removing an entry."""
    path = world_path("path", request.path, cwd)
    if not os.path.normpath(path).strip(b"/"):
        raise InvalidField("path", request.path, "the root of a world cannot be removed")
    return _step("files.remove", request.exec_id, b"remove", path, _flag(request.recursive))


def rename_step(request: files_pb2.RenameFileRequest, cwd: bytes) -> ExecRequest:
    """Renaming an entry; what has the new name is replaced, as rename(2) does it."""
    # "from" is a keyword of Python's.
    before = world_path("from", getattr(request, "from"), cwd)
    after = world_path("to", request.to, cwd)
    return _step("files.rename", request.exec_id, b"rename", before, after, b"1")


def mkdir_step(request: files_pb2.MakeDirectoryRequest, cwd: bytes) -> ExecRequest:
    """Making a directory."""
    path = world_path("path", request.path, cwd)
    mode = _mode("mode", request.mode if request.HasField("mode") else DEFAULT_DIRECTORY_MODE)
    parents = b"2" if request.make_parents else b"0"
    return _step("files.mkdir", request.exec_id, b"mkdir", path, mode, parents)


def chmod_step(request: files_pb2.ChangeModeRequest, cwd: bytes) -> ExecRequest:
    """Setting permission bits."""
    path = world_path("path", request.path, cwd)
    return _step("files.chmod", request.exec_id, b"chmod", path, _mode("mode", request.mode))


def symlink_step(request: files_pb2.MakeSymlinkRequest, cwd: bytes) -> ExecRequest:
    """Making a symbolic link; where it points is not looked at."""
    path = world_path("path", request.path, cwd)
    target = request.target
    if not target or b"\0" in target or len(target) > _PATH_LIMIT_BYTES:
        raise InvalidField("target", target[:80], "expected 1 to 4095 bytes without NUL")
    return _step("files.symlink", request.exec_id, b"symlink", target, path)


def upload_step(header: files_pb2.UploadTreeHeader, cwd: bytes, digest: str) -> ExecRequest:
    """Bringing a tree into a directory; ``digest`` names the tar stream."""
    return _step(
        "files.upload",
        validation.exec_id("header.exec_id", header.exec_id),
        b"untar",
        world_path("header.path", header.path, cwd),
        stdin_digest=digest,
    )


def paths_of(argv: tuple[bytes, ...]) -> tuple[bytes, ...]:
    """The paths that a Files step changes, for policy; ``argv`` is of its action."""
    operation, arguments = argv[1], argv[2:]
    if operation == b"rename":
        return arguments[:2]
    return arguments[1:2] if operation == b"symlink" else arguments[:1]


def _step(
    kind: StepKind,
    exec_id: str,
    operation: bytes,
    *arguments: bytes,
    stdin_digest: str | None = None,
) -> ExecRequest:
    return ExecRequest(
        exec_id=validation.exec_id("exec_id", exec_id),
        kind=kind,
        argv=(FILES_PROGRAM, operation, *arguments),
        cwd=b"/",
        umask=0,
        stdin_digest=stdin_digest,
    )


def _mode(field: str, mode: int) -> bytes:
    if mode > 0o7777:
        raise InvalidField(field, oct(mode), "expected permission bits, at most 0o7777")
    return b"%o" % mode


def _flag(value: bool) -> bytes:
    return b"1" if value else b"0"
