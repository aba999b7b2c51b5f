"""What clients send to be written: kept as an object before anything is decided about it.

It is spooled beside the objects, not in /tmp, which may be memory; and it is bounded, because it
comes before any policy or limit of the world has a say.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator
from typing import Final

from substrate_sdk._tar import BadTar, TarReader
from substrate_services.errors import InvalidField, ServiceError
from substrate_services.objects.store import ObjectStore

CONTENT_LIMIT_BYTES: Final = 64 << 30
_BATCH_BYTES = 1 << 20


async def keep_content(
    store: ObjectStore,
    pieces: AsyncIterator[bytes],
    *,
    limit_bytes: int = CONTENT_LIMIT_BYTES,
) -> str:
    """Keep what comes in as an object, in constant memory; returns its digest.

    Raises:
        ServiceError: TOO_LARGE.
        OSError, ObjectStoreFull: there is no space.
    """
    with tempfile.TemporaryFile(dir=store.root, buffering=0) as spool:
        size = waiting = 0
        batch: list[bytes] = []
        async for piece in pieces:
            size += len(piece)
            waiting += len(piece)
            if size > limit_bytes:
                raise ServiceError("TOO_LARGE", f"more than {limit_bytes} bytes to write at once")
            batch.append(piece)
            if waiting >= _BATCH_BYTES:
                await asyncio.to_thread(_write, spool.fileno(), b"".join(batch))
                batch, waiting = [], 0
        if size == waiting:  # as a rule: none of it is in the file
            return await asyncio.to_thread(store.put, b"".join(batch))
        await asyncio.to_thread(_write, spool.fileno(), b"".join(batch))
        return await asyncio.to_thread(store.put_file, spool.fileno())


async def checked_tar(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The pieces of a tar stream, each looked at before it is handed on.

    Raises:
        InvalidField: the stream is damaged, or brings what is not taken.
    """
    reader = TarReader()
    try:
        async for piece in pieces:
            for _ in reader.feed(piece):
                pass
            yield piece
        reader.finish()
    except BadTar as error:
        raise InvalidField("tar", b"", str(error)) from error


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
