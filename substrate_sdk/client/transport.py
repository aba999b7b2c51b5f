"""What a client needs of a connection, and the two ways of waiting for it.

All logic of the SDK is written once, as coroutines over :class:`Transport`. ``AsyncSubstrate``
runs them in the caller's event loop over ``grpc.aio``. ``Substrate`` runs them with
:func:`drive` over transports that block: such a coroutine never suspends, so it needs no event
loop, no thread of its own, and works inside a running loop and after a fork.
"""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, Protocol, TypeVar

from substrate_sdk.client.methods import Method, RequestT, ResponseT
from substrate_sdk.config import Endpoint

T = TypeVar("T")
ItemT_co = TypeVar("ItemT_co", covariant=True)


class Stream(Protocol[ItemT_co]):
    """The answers of one streaming call. Closing it ends the call, not what the call is about."""

    def __aiter__(self) -> AsyncIterator[ItemT_co]: ...

    async def __anext__(self) -> ItemT_co: ...

    async def done(self) -> None:
        """Take no more: what came is all that there is but the call's own end."""

    async def close(self) -> None:
        """End the call. Idempotent."""


class Transport(Protocol):
    """A connection to one host. Every failure is raised as a SubstrateError."""

    async def unary(
        self, method: Method[RequestT, ResponseT], request: RequestT, timeout_s: float | None
    ) -> ResponseT:
        """One request, one answer, within ``timeout_s`` seconds."""

    def stream(
        self, method: Method[RequestT, ResponseT], request: RequestT, timeout_s: float | None
    ) -> Stream[ResponseT]:
        """One request, many answers, all within ``timeout_s`` seconds."""

    async def upload(
        self,
        method: Method[RequestT, ResponseT],
        requests: Iterable[RequestT],
        timeout_s: float | None,
    ) -> ResponseT:
        """Many requests, one answer."""

    async def close(self) -> None:
        """Give the connection up; calls on it end."""


class Runtime(Protocol):
    """How waiting is done: by blocking, or in an event loop."""

    def owner(self) -> object:
        """What connections belong to; with another owner they are not usable (after a fork)."""

    def lock(self) -> AbstractAsyncContextManager[None]:
        """A new lock."""

    async def in_thread(self, function: Callable[[], T]) -> T:
        """Call a function that may block."""

    async def sleep(self, seconds: float) -> None:
        """Let time pass."""

    def connect(self, endpoint: Endpoint) -> Transport:
        """A transport to an endpoint; it connects with the first call."""


def drive(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that blocks instead of suspending, and give its result."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    coroutine.close()
    raise RuntimeError("a coroutine of the blocking client was suspended: a fault of the SDK")


class _BlockingLock:
    """A threading lock that coroutines of the blocking client can hold."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    async def __aenter__(self) -> None:
        self._lock.acquire()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._lock.release()


class BlockingRuntime:
    """Waits by blocking the calling thread."""

    def owner(self) -> object:
        """The process."""
        import os

        return os.getpid()

    def lock(self) -> AbstractAsyncContextManager[None]:
        """A lock between threads."""
        return _BlockingLock()

    async def in_thread(self, function: Callable[[], T]) -> T:
        """Call it right here: this thread may block."""
        return function()

    async def sleep(self, seconds: float) -> None:
        """Block."""
        time.sleep(seconds)  # noqa: ASYNC251 # this client blocks

    def connect(self, endpoint: Endpoint) -> Transport:
        """Sockets for a Unix socket, grpcio for another machine."""
        if endpoint.is_local:
            from substrate_sdk.client.unix_transport import UnixTransport

            return UnixTransport(endpoint)
        from substrate_sdk.client.grpc_transport import BlockingGrpcTransport

        return BlockingGrpcTransport(endpoint)
