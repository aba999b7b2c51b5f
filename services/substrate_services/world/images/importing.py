"""Images as services use them: from a stream, and held while worlds are on them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Callable
from pathlib import Path

from substrate_services.errors import ServiceError
from substrate_services.world.images.errors import (
    ImageError,
    ImageInvalid,
    ImageNotFound,
    ImageTooLarge,
)
from substrate_services.world.images.store import SIZE_LIMIT_BYTES, Image, ImageStore
from substrate_services.world.removal import remove_tree


class Images:
    """Imports and removes the images of a host.

    Args:
        store: keeps them.
        in_use_by: the id of a world that is on an image of a digest; empty for none.
    """

    def __init__(self, store: ImageStore, in_use_by: Callable[[str], str]) -> None:
        self.store = store
        self._in_use_by = in_use_by

    async def add(self, name: str, archive: AsyncIterable[bytes]) -> Image:
        """Import an archive as it comes.

        Raises:
            ServiceError: INVALID_ARGUMENT, IMAGE_INVALID, TOO_LARGE.
            OSError: of the file system.
        """
        workspace = await asyncio.to_thread(self.store.incoming)
        try:
            received, path = 0, workspace / "archive"
            with path.open("wb") as file:
                async for piece in archive:
                    received += len(piece)
                    if received > SIZE_LIMIT_BYTES:
                        raise ServiceError(
                            "TOO_LARGE", f"the archive has more than {SIZE_LIMIT_BYTES} bytes"
                        )
                    await asyncio.to_thread(file.write, piece)
        except BaseException:
            await asyncio.shield(asyncio.to_thread(remove_tree, workspace))
            raise
        try:
            return await asyncio.to_thread(self._keep, path, name, workspace)
        except ImageInvalid as error:
            raise ServiceError("IMAGE_INVALID", str(error)) from error
        except ImageTooLarge as error:
            raise ServiceError("TOO_LARGE", str(error)) from error

    def _keep(self, archive: Path, name: str, workspace: Path) -> Image:
        # All in one thread: nobody can call it back, and were the workspace removed beside it
        # because a client has gone, half of an image could be kept for the whole of it.
        try:
            return self.store.add(archive, name, workspace)
        finally:
            remove_tree(workspace)

    async def remove(self, wanted: str) -> Image:
        """Remove an image. Raises ServiceError IMAGE_NOT_FOUND, IMAGE_IN_USE."""
        try:
            return await asyncio.to_thread(self.store.remove, wanted, self._in_use_by)
        except ImageNotFound as error:
            raise ServiceError("IMAGE_NOT_FOUND", str(error)) from error
        except ImageError as error:
            raise ServiceError("IMAGE_IN_USE", str(error)) from error
