"""The image RPCs of WorldService."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable
from typing import TYPE_CHECKING

from substrate_sdk._pb.substrate.common.v1alpha1 import types_pb2
from substrate_sdk._pb.substrate.world.v1alpha1 import images_pb2
from substrate_services.errors import InvalidField
from substrate_services.wire import validation
from substrate_services.wire.convert import timestamp_to_proto
from substrate_services.world.images.importing import Images
from substrate_services.world.images.store import Image

if TYPE_CHECKING:
    from substrate_services.wire.errors import Context


class ImageRpcs:
    """A part of :class:`~substrate_services.world.server.WorldServicer`."""

    _images: Images

    async def ImportImage(
        self, request_iterator: AsyncIterable[images_pb2.ImportImageRequest], context: Context
    ) -> images_pb2.ImportImageResponse:
        """See the contract."""
        parts = aiter(request_iterator)
        first = await anext(parts, None)
        if first is None or first.WhichOneof("part") != "header":
            raise InvalidField("header", "none", "send it before the archive")

        async def archive() -> AsyncIterable[bytes]:
            async for part in parts:
                if part.WhichOneof("part") == "header":
                    raise InvalidField("header", "a second one", "send it once, first")
                yield part.archive

        image = await self._images.add(first.header.name, archive())
        return images_pb2.ImportImageResponse(image=_to_proto(image))

    async def ListImages(
        self, request: images_pb2.ListImagesRequest, context: Context
    ) -> images_pb2.ListImagesResponse:
        """See the contract."""
        size = validation.page_size(request.page_size)
        start = validation.page_offset(request.page_token, {})
        found = await asyncio.to_thread(self._images.store.all)
        more = start + size < len(found)
        return images_pb2.ListImagesResponse(
            images=[_to_proto(image) for image in found[start : start + size]],
            next_page_token=validation.page_token(str(start + size), {}) if more else "",
        )

    async def RemoveImage(
        self, request: images_pb2.RemoveImageRequest, context: Context
    ) -> images_pb2.RemoveImageResponse:
        """See the contract."""
        wanted = validation.required_text("image", request.image)
        image = await self._images.remove(wanted)
        return images_pb2.RemoveImageResponse(image=_to_proto(image))


def _to_proto(image: Image) -> images_pb2.Image:
    config = image.config
    return images_pb2.Image(
        digest=image.digest,
        names=image.names,
        size_bytes=image.size_bytes,
        imported_at=timestamp_to_proto(image.imported_at),
        env=[types_pb2.EnvVar(name=name, value=value) for name, value in config.env],
        working_dir=config.working_dir,
        user=config.user,
        entrypoint=config.entrypoint,
        command=config.command,
    )
