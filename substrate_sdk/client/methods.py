"""The remote procedures that the SDK calls, typed, without the generated stubs.

The generated ``*_pb2_grpc`` modules import grpc, which takes longer than everything else in the
start of a command together; messages and paths are all that a call needs. A test holds this
table against the service descriptors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

from substrate_sdk._pb.substrate.world.v1alpha1 import (
    commits_pb2,
    execs_pb2,
    files_pb2,
    images_pb2,
    ports_pb2,
    shells_pb2,
    worlds_pb2,
)

if TYPE_CHECKING:
    from google.protobuf.message import Message

    RequestT = TypeVar("RequestT", bound=Message)
    ResponseT = TypeVar("ResponseT", bound=Message)
else:  # the bounds are for the type checker alone
    RequestT = TypeVar("RequestT")
    ResponseT = TypeVar("ResponseT")


class Method(Generic[RequestT, ResponseT]):
    """One remote procedure.

    Attributes:
        path: ``/package.Service/Method``.
        request: the request's class.
        response: the response's class.
        repeatable: a lost call may be sent again: its comment in the proto says so.
    """

    __slots__ = ("path", "repeatable", "request", "response")

    def __init__(
        self,
        path: str,
        request: type[RequestT],
        response: type[ResponseT],
        *,
        repeatable: bool = True,
    ) -> None:
        self.path = path
        self.request = request
        self.response = response
        self.repeatable = repeatable


_WORLD = "/substrate.world.v1alpha1.WorldService/"

UPDATE_WORLD = Method(
    _WORLD + "UpdateWorld", worlds_pb2.UpdateWorldRequest, worlds_pb2.UpdateWorldResponse
)
PAUSE_WORLD = Method(
    _WORLD + "PauseWorld", worlds_pb2.PauseWorldRequest, worlds_pb2.PauseWorldResponse
)
RESUME_WORLD = Method(
    _WORLD + "ResumeWorld", worlds_pb2.ResumeWorldRequest, worlds_pb2.ResumeWorldResponse
)
CREATE_WORLD = Method(
    _WORLD + "CreateWorld", worlds_pb2.CreateWorldRequest, worlds_pb2.CreateWorldResponse
)
GET_WORLD = Method(_WORLD + "GetWorld", worlds_pb2.GetWorldRequest, worlds_pb2.GetWorldResponse)
LIST_WORLDS = Method(
    _WORLD + "ListWorlds", worlds_pb2.ListWorldsRequest, worlds_pb2.ListWorldsResponse
)
REMOVE_WORLD = Method(
    _WORLD + "RemoveWorld", worlds_pb2.RemoveWorldRequest, worlds_pb2.RemoveWorldResponse
)
GET_CAPABILITIES = Method(
    _WORLD + "GetCapabilities",
    worlds_pb2.GetCapabilitiesRequest,
    worlds_pb2.GetCapabilitiesResponse,
)
START_EXEC = Method(_WORLD + "StartExec", execs_pb2.StartExecRequest, execs_pb2.StartExecResponse)
STREAM_EXEC = Method(
    _WORLD + "StreamExec", execs_pb2.StreamExecRequest, execs_pb2.StreamExecResponse
)
WRITE_STDIN = Method(
    _WORLD + "WriteStdin", execs_pb2.WriteStdinRequest, execs_pb2.WriteStdinResponse
)
RESIZE_PTY = Method(_WORLD + "ResizePty", execs_pb2.ResizePtyRequest, execs_pb2.ResizePtyResponse)
SIGNAL_EXEC = Method(
    _WORLD + "SignalExec",
    execs_pb2.SignalExecRequest,
    execs_pb2.SignalExecResponse,
    repeatable=False,
)
GET_EXEC = Method(_WORLD + "GetExec", execs_pb2.GetExecRequest, execs_pb2.GetExecResponse)
READ_FILE = Method(_WORLD + "ReadFile", files_pb2.ReadFileRequest, files_pb2.ReadFileResponse)
WRITE_FILE = Method(_WORLD + "WriteFile", files_pb2.WriteFileRequest, files_pb2.WriteFileResponse)
EXPOSE_PORT = Method(
    _WORLD + "ExposePort", ports_pb2.ExposePortRequest, ports_pb2.ExposePortResponse
)
UNEXPOSE_PORT = Method(
    _WORLD + "UnexposePort", ports_pb2.UnexposePortRequest, ports_pb2.UnexposePortResponse
)
LIST_PORTS = Method(_WORLD + "ListPorts", ports_pb2.ListPortsRequest, ports_pb2.ListPortsResponse)
STAT_FILE = Method(_WORLD + "StatFile", files_pb2.StatFileRequest, files_pb2.StatFileResponse)
LIST_FILES = Method(_WORLD + "ListFiles", files_pb2.ListFilesRequest, files_pb2.ListFilesResponse)
REMOVE_FILE = Method(
    _WORLD + "RemoveFile", files_pb2.RemoveFileRequest, files_pb2.RemoveFileResponse
)
RENAME_FILE = Method(
    _WORLD + "RenameFile", files_pb2.RenameFileRequest, files_pb2.RenameFileResponse
)
MAKE_DIRECTORY = Method(
    _WORLD + "MakeDirectory", files_pb2.MakeDirectoryRequest, files_pb2.MakeDirectoryResponse
)
CHANGE_MODE = Method(
    _WORLD + "ChangeMode", files_pb2.ChangeModeRequest, files_pb2.ChangeModeResponse
)
MAKE_SYMLINK = Method(
    _WORLD + "MakeSymlink", files_pb2.MakeSymlinkRequest, files_pb2.MakeSymlinkResponse
)
WATCH_FILES = Method(
    _WORLD + "WatchFiles", files_pb2.WatchFilesRequest, files_pb2.WatchFilesResponse
)
UPLOAD_TREE = Method(
    _WORLD + "UploadTree", files_pb2.UploadTreeRequest, files_pb2.UploadTreeResponse
)
DOWNLOAD_TREE = Method(
    _WORLD + "DownloadTree", files_pb2.DownloadTreeRequest, files_pb2.DownloadTreeResponse
)
IMPORT_IMAGE = Method(
    _WORLD + "ImportImage", images_pb2.ImportImageRequest, images_pb2.ImportImageResponse
)
LIST_IMAGES = Method(
    _WORLD + "ListImages", images_pb2.ListImagesRequest, images_pb2.ListImagesResponse
)
REMOVE_IMAGE = Method(
    _WORLD + "RemoveImage",
    images_pb2.RemoveImageRequest,
    images_pb2.RemoveImageResponse,
    repeatable=False,
)
GET_DIFF = Method(_WORLD + "GetDiff", commits_pb2.GetDiffRequest, commits_pb2.GetDiffResponse)
APPLY = Method(_WORLD + "Apply", commits_pb2.ApplyRequest, commits_pb2.ApplyResponse)
SNAPSHOT = Method(_WORLD + "Snapshot", commits_pb2.SnapshotRequest, commits_pb2.SnapshotResponse)
FORK = Method(_WORLD + "Fork", commits_pb2.ForkRequest, commits_pb2.ForkResponse)
ROLLBACK = Method(_WORLD + "Rollback", commits_pb2.RollbackRequest, commits_pb2.RollbackResponse)
DISCARD = Method(_WORLD + "Discard", commits_pb2.DiscardRequest, commits_pb2.DiscardResponse)

OPEN_SHELL = Method(_WORLD + "OpenShell", shells_pb2.OpenShellRequest, shells_pb2.OpenShellResponse)
RUN_SHELL = Method(_WORLD + "RunShell", shells_pb2.RunShellRequest, shells_pb2.RunShellResponse)
INTERRUPT_SHELL = Method(
    _WORLD + "InterruptShell",
    shells_pb2.InterruptShellRequest,
    shells_pb2.InterruptShellResponse,
    repeatable=False,
)
CLOSE_SHELL = Method(
    _WORLD + "CloseShell", shells_pb2.CloseShellRequest, shells_pb2.CloseShellResponse
)
