"""Waiting in an event loop, for ``AsyncSubstrate``."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import TypeVar

from substrate_sdk.client.transport import Transport
from substrate_sdk.config import Endpoint

T = TypeVar("T")


class AioRuntime:
    """Waits in the running event loop."""

    def owner(self) -> object:
        """The process and the loop: a channel of grpc.aio belongs to both."""
        return os.getpid(), id(asyncio.get_running_loop())

    def lock(self) -> AbstractAsyncContextManager[None]:
        """A lock between tasks."""
        return asyncio.Lock()

    async def in_thread(self, function: Callable[[], T]) -> T:
        """Call it in a thread, so that the loop goes on."""
        return await asyncio.to_thread(function)

    async def sleep(self, seconds: float) -> None:
        """Let other tasks run."""
        await asyncio.sleep(seconds)

    def connect(self, endpoint: Endpoint) -> Transport:
        """A channel of grpc.aio."""
        from substrate_sdk.client.grpc_transport import AioGrpcTransport

        return AioGrpcTransport(endpoint)
