"""The images of a host."""

from __future__ import annotations

import os
from collections.abc import Iterator

from substrate_sdk._images import Image
from substrate_sdk._pb.substrate.world.v1alpha1 import images_pb2
from substrate_sdk.client import methods
from substrate_sdk.client.connection import Connection
from substrate_sdk.client.requests import PathLike
from substrate_sdk.client.transport import drive

_PIECE_BYTES = 1 << 20


class AsyncImages:
    """The images of a host, asynchronous."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def add(self, archive: PathLike, *, name: str = "") -> Image:
        """Import an image; ``base="image:NAME"`` makes worlds of it.

        Args:
            archive: a file here: an OCI archive, what ``docker save`` writes, or a tar of a root
                file system; each plain or compressed with gzip or zstd.
            name: what to call it; what the archive calls it where empty.

        Raises:
            ImageInvalid: the archive is no image that the host takes; the message says why.
            TooLarge: it unpacks to too much.
            OSError: the file cannot be read.
        """
        path = os.fsencode(archive)
        _require_readable(path)

        def requests() -> Iterator[images_pb2.ImportImageRequest]:
            header = images_pb2.ImportImageHeader(name=name)
            yield images_pb2.ImportImageRequest(header=header)
            with open(path, "rb") as file:
                while piece := file.read(_PIECE_BYTES):
                    yield images_pb2.ImportImageRequest(archive=piece)

        answer = await self._connection.upload(methods.IMPORT_IMAGE, requests, timeout_s=None)
        return Image.from_proto(answer.image)

    async def list(self) -> list[Image]:
        """The images, oldest first."""
        found: list[Image] = []
        request = images_pb2.ListImagesRequest()
        while True:
            answer = await self._connection.unary(methods.LIST_IMAGES, request)
            found += [Image.from_proto(image) for image in answer.images]
            if not answer.next_page_token:
                return found
            request.page_token = answer.next_page_token

    async def remove(self, image: str) -> Image:
        """Remove an image, or one of its several names.

        Args:
            image: a name, a digest, or the unambiguous beginning of one.

        Raises:
            ImageNotFound: there is none.
            ImageInUse: a world is on it.
        """
        request = images_pb2.RemoveImageRequest(image=image)
        answer = await self._connection.unary(methods.REMOVE_IMAGE, request, timeout_s=None)
        return Image.from_proto(answer.image)


def _require_readable(path: bytes) -> None:
    """Find what is wrong with a file before anything is sent. Raises OSError."""
    with open(path, "rb") as file:
        file.read(1)


class Images:
    """The images of a host; each method runs its asynchronous twin, blocking."""

    def __init__(self, inner: AsyncImages) -> None:
        self._inner = inner

    def add(self, archive: PathLike, *, name: str = "") -> Image:
        """Import an image; see :meth:`AsyncImages.add`."""
        return drive(self._inner.add(archive, name=name))

    def list(self) -> list[Image]:
        """The images, oldest first."""
        return drive(self._inner.list())

    def remove(self, image: str) -> Image:
        """Remove an image, or one of its several names; see :meth:`AsyncImages.remove`."""
        return drive(self._inner.remove(image))
