"""A server of ours on a real Unix socket, and a channel to it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterable, AsyncIterator, Awaitable
from pathlib import Path

import grpc
import grpc.aio

from substrate_sdk.errors import SubstrateError, from_rpc_error
from substrate_services.host.server import Servicer, build_server


@contextlib.asynccontextmanager
async def serving(
    socket_path: Path, *servicers: Servicer, development: bool = False
) -> AsyncIterator[grpc.aio.Channel]:
    """Serve until the block ends; gives a channel that is closed with it."""
    server = await build_server(servicers, socket_path=socket_path, development=development)
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"unix:{socket_path}") as channel:
            yield channel
    finally:
        await server.stop(grace=None)


async def failure(call: Awaitable[object] | AsyncIterable[object]) -> SubstrateError:
    """The SDK's error for a call that has to fail; the wire failure is its cause."""
    try:
        if isinstance(call, AsyncIterable):
            async for _ in call:
                pass
        else:
            await call
    except grpc.RpcError as error:
        mapped = from_rpc_error(error)
        mapped.__cause__ = error
        return mapped
    raise AssertionError("the call succeeded")
