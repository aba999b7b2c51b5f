"""One client's connection: found or started with the first call, made anew when it is lost."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Generic

from substrate_sdk.client.methods import Method, RequestT, ResponseT
from substrate_sdk.client.transport import Runtime, Stream, Transport
from substrate_sdk.config import Endpoint, HostPaths
from substrate_sdk.errors import CallCancelled, HostUnavailable

#: Seconds that a call may take unless it says otherwise: making a world walks the project.
CALL_TIMEOUT_S = 120.0

#: Seconds to let pass before each further attempt, once a host has answered before.
BACKOFF_S = (0.0, 0.1, 0.3, 1.0, 2.0)

#: How a connection ends under a call: the host died, or was asked to end and cancelled it.
LOST = (HostUnavailable, CallCancelled)


class Connection:
    """Calls to one host, which come back by themselves after it was lost.

    Args:
        runtime: how waiting is done.
        endpoint: of a host that somebody runs; None for the embedded one of ``paths``.
        paths: the embedded host's home.
    """

    def __init__(self, runtime: Runtime, endpoint: Endpoint | None, paths: HostPaths) -> None:
        self.runtime = runtime
        self.paths = paths
        self.embedded = endpoint is None
        self.endpoint = paths.endpoint if endpoint is None else endpoint
        self._lock = runtime.lock()
        self._owner: object = None
        self._transport: Transport | None = None
        self._answered = False

    async def transport(self) -> Transport:
        """The transport in use; where there is none, the host is found or started first."""
        owner = self.runtime.owner()
        if owner != self._owner:
            # After a fork, or in another loop. The old transport belongs to somebody else, and so
            # may the lock, which whoever held it at the fork will never release here.
            self._owner = owner
            self._transport = None
            self._lock = self.runtime.lock()
        if self._transport is not None:
            return self._transport
        async with self._lock:
            if self._transport is None:
                if self.embedded:
                    await self.runtime.in_thread(self._ensure_host)
                self._transport = self.runtime.connect(self.endpoint)
            return self._transport

    def _ensure_host(self) -> None:
        from substrate_sdk.client.embedded import ensure_host

        ensure_host(self.paths)

    async def lost(self, transport: Transport) -> None:
        """Say that a transport failed: the next call makes another."""
        if self._transport is transport:
            self._transport = None
            await transport.close()

    async def unary(
        self,
        method: Method[RequestT, ResponseT],
        request: RequestT,
        *,
        timeout_s: float | None = CALL_TIMEOUT_S,
    ) -> ResponseT:
        """One request, one answer; sent again after a loss where the contract allows that."""
        for attempt in range(len(BACKOFF_S) + 1):
            transport = await self.transport()
            try:
                answer = await transport.unary(method, request, timeout_s)
            except LOST as error:
                await self.lost(transport)
                if not method.repeatable or not await self.pause(attempt, error):
                    raise
            else:
                self._answered = True
                return answer
        raise AssertionError("pause ends the last attempt")

    async def upload(
        self,
        method: Method[RequestT, ResponseT],
        requests: Callable[[], Iterable[RequestT]],
        *,
        timeout_s: float | None = CALL_TIMEOUT_S,
    ) -> ResponseT:
        """Many requests, one answer; ``requests`` is called for each attempt."""
        for attempt in range(len(BACKOFF_S) + 1):
            transport = await self.transport()
            try:
                answer = await transport.upload(method, requests(), timeout_s)
            except LOST as error:
                await self.lost(transport)
                if not await self.pause(attempt, error):
                    raise
            else:
                self._answered = True
                return answer
        raise AssertionError("pause ends the last attempt")

    def stream(
        self,
        method: Method[RequestT, ResponseT],
        request: Callable[[], RequestT],
        *,
        resumable: bool = True,
        timeout_s: float | None = None,
    ) -> Answers[RequestT, ResponseT]:
        """One request, many answers.

        Args:
            method: the procedure.
            request: makes the request; after a loss it is called again, and has to ask for what
                did not come yet.
            resumable: False: a loss after the first answer is an error.
            timeout_s: seconds for all of it.
        """
        return Answers(self, method, request, resumable=resumable, timeout_s=timeout_s)

    async def pause(self, attempt: int, error: Exception) -> bool:
        """Wait before the attempt after number ``attempt``; False: it is over.

        A host that never answered is not tried again: the endpoint is wrong, and saying so at
        once serves better. An embedded one was just seen to listen, so it is ending: try again.
        """
        if attempt >= len(BACKOFF_S) or not (self._answered or self.embedded):
            return False
        del error
        await self.runtime.sleep(BACKOFF_S[attempt])
        return True

    def answered(self) -> None:
        """Say that a stream brought something: the host is there."""
        self._answered = True

    async def close(self) -> None:
        """Give the connection up. Idempotent; a later call makes another."""
        transport, self._transport = self._transport, None
        if transport is not None and self._owner == self.runtime.owner():
            await transport.close()


class Answers(Generic[RequestT, ResponseT]):
    """The answers of a streaming call, across losses of the connection."""

    def __init__(
        self,
        connection: Connection,
        method: Method[RequestT, ResponseT],
        request: Callable[[], RequestT],
        *,
        resumable: bool,
        timeout_s: float | None,
    ) -> None:
        self._connection = connection
        self._method = method
        self._request = request
        self._resumable = resumable
        self._deadline = None if timeout_s is None else time.monotonic() + timeout_s
        self._transport: Transport | None = None
        self._stream: Stream[ResponseT] | None = None
        self._attempt = 0  # since the last answer
        self._any = False
        self._closed = False

    def __aiter__(self) -> AsyncIterator[ResponseT]:
        return self

    async def __anext__(self) -> ResponseT:
        while True:
            if self._closed:
                raise StopAsyncIteration
            stream = self._stream
            try:
                if stream is None:
                    self._transport = await self._connection.transport()
                    self._stream = stream = self._transport.stream(
                        self._method, self._request(), self._left_s()
                    )
                answer = await anext(stream)
            except LOST as error:
                self._stream = None
                if self._transport is not None:
                    await self._connection.lost(self._transport)
                if self._closed:  # by another thread
                    raise StopAsyncIteration from None
                if self._any and not self._resumable:
                    raise
                if not await self._connection.pause(self._attempt, error):
                    raise
                self._attempt += 1
            else:
                if self._closed_meanwhile():
                    # By another thread, which could not end a call that this one was in.
                    await stream.close()
                    raise StopAsyncIteration
                self._connection.answered()
                self._attempt = 0
                self._any = True
                return answer

    def _closed_meanwhile(self) -> bool:
        return self._closed

    def _left_s(self) -> float | None:
        return None if self._deadline is None else max(0.001, self._deadline - time.monotonic())

    async def done(self) -> None:
        """Take no more: the last answer has come, and the connection serves the next call."""
        self._closed = True
        stream, self._stream = self._stream, None
        if stream is not None:
            await stream.done()

    async def close(self) -> None:
        """End the call, not what it is about. Idempotent."""
        self._closed = True
        stream, self._stream = self._stream, None
        if stream is not None:
            await stream.close()
