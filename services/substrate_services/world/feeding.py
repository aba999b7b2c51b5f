"""The standard input of steps: recorded, or as a client writes it."""

from __future__ import annotations

import asyncio

from substrate_services.errors import ServiceError
from substrate_services.objects.store import ObjectStore
from substrate_services.world.init_client import InitGone
from substrate_services.world.steps import STDIN_FILE, Exec
from substrate_services.world.worlds import World

_FEED_BYTES = 256 << 10


async def feed_object(
    store: ObjectStore, world: World, exec_: Exec, digest: str | None, *, taken: int = 0
) -> None:
    """Give a recorded standard input to a command; None is an empty one.

    ``taken`` bytes of it the world's init has already, from an earlier host process.
    """
    offset = 0
    if digest is not None:
        with await asyncio.to_thread(store.open, digest) as source:
            while chunk := await asyncio.to_thread(source.read, _FEED_BYTES):
                begin, offset = offset, offset + len(chunk)
                if offset <= taken:
                    continue
                sent = await world.init.write_stdin(exec_.exec_id, chunk, offset=begin)
                if sent < offset:
                    return  # closed by the command
    await world.init.write_stdin(exec_.exec_id, b"", offset=offset, eof=True)


async def write_stdin(world: World, exec_: Exec, offset: int, data: bytes, *, eof: bool) -> int:
    """Write to an exec's standard input; returns the bytes taken so far.

    Raises:
        ServiceError: STDIN_CLOSED, OFFSET_BEYOND_END.
    """
    if not exec_.stdin_pipe:
        raise ServiceError(
            "STDIN_CLOSED",
            f"exec {exec_.exec_id} was started without a standard input; ask for STDIN_MODE_PIPE",
        )
    if offset > exec_.stdin_received:
        raise ServiceError(
            "OFFSET_BEYOND_END",
            f"offset {offset} of standard input is beyond the {exec_.stdin_received} bytes "
            "received; send the bytes between first",
        )
    fresh = data[exec_.stdin_received - offset :]
    if exec_.phase != "running":
        if not fresh:
            return exec_.stdin_received  # closing what is closed changes nothing
        raise ServiceError("STDIN_CLOSED", f"exec {exec_.exec_id} has ended")
    if fresh:
        with (exec_.directory / STDIN_FILE).open("ab") as kept:
            kept.write(fresh)
    begin = exec_.stdin_received
    exec_.stdin_received += len(fresh)
    try:
        await world.init.write_stdin(exec_.exec_id, fresh, offset=begin, eof=eof)
    except InitGone as error:
        raise ServiceError("STDIN_CLOSED", f"exec {exec_.exec_id} has ended") from error
    return exec_.stdin_received
