"""Files of a world: asynchronous. A write is a step: decided, recorded, replayed in order."""

from __future__ import annotations

import os
from collections.abc import Iterator

from substrate_sdk._pb.substrate.world.v1alpha1 import files_pb2
from substrate_sdk.client import methods
from substrate_sdk.client.connection import Connection
from substrate_sdk.client.requests import PathLike, new_id
from substrate_sdk.types import Result

_PIECE = 256 << 10


class AsyncFiles:
    """Reads and writes files as the world's user may. Relative paths start at the world's cwd."""

    def __init__(self, connection: Connection, world_id: str) -> None:
        self._connection = connection
        self._world_id = world_id

    async def read(self, path: PathLike, *, offset: int = 0, length: int | None = None) -> bytes:
        """The content of a file, or a part of it.

        Args:
            path: absolute, or relative to the world's cwd.
            offset: of the first byte.
            length: bytes at most; None means to the end.

        Raises:
            WorldFileNotFound: there is no such file (a FileNotFoundError).
            WorldFileDenied: the world's user may not read it (a PermissionError).
        """
        if length == 0:
            return b""
        pieces: list[bytes] = []
        taken = 0

        def request() -> files_pb2.ReadFileRequest:
            return files_pb2.ReadFileRequest(
                world_id=self._world_id,
                path=os.fsencode(path),
                offset=offset + taken,
                length=0 if length is None else length - taken,
            )

        answers = self._connection.stream(methods.READ_FILE, request)
        try:
            async for answer in answers:
                pieces.append(answer.data)
                taken += len(answer.data)
                if length is not None and taken >= length:
                    break
        finally:
            await answers.close()
        return b"".join(pieces)

    async def read_text(self, path: PathLike) -> str:
        """The content of a file as UTF-8.

        Raises:
            UnicodeDecodeError: it is not.
        """
        return (await self.read(path)).decode("utf-8")

    async def write(
        self,
        path: PathLike,
        data: bytes | str,
        *,
        mode: int | None = None,
        make_parents: bool = False,
    ) -> Result:
        """Write a whole file: a step with a span of its own.

        Args:
            path: absolute, or relative to the world's cwd.
            data: the content; text is written as UTF-8.
            mode: permission bits of a new file; 0o644 when None.
            make_parents: make missing directories.

        Raises:
            WorldFileNotFound: a directory above it is missing.
            WorldFileDenied: the world's user may not write there.
        """
        content = data.encode("utf-8") if isinstance(data, str) else bytes(data)
        header = files_pb2.WriteFileHeader(
            world_id=self._world_id,
            exec_id=new_id("exe_"),
            path=os.fsencode(path),
            mode=mode,
            make_parents=make_parents,
        )

        def requests() -> Iterator[files_pb2.WriteFileRequest]:
            yield files_pb2.WriteFileRequest(header=header)
            for start in range(0, len(content), _PIECE):
                yield files_pb2.WriteFileRequest(data=content[start : start + _PIECE])

        answer = await self._connection.upload(methods.WRITE_FILE, requests)
        return Result.from_proto(answer.result)
