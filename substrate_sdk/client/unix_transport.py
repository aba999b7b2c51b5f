"""gRPC over a Unix socket in plain Python, for ``Substrate`` and the command.

Why not grpcio here: docs/adr/0005-sdk-transport.md. In short, importing grpcio takes longer than
a command in a world, and its threads and locks do not survive a fork, while sockets do.
"""

from __future__ import annotations

import contextlib
import struct
import threading
import time
from collections.abc import AsyncIterator, Generator, Iterable, Iterator
from typing import TYPE_CHECKING, Generic, cast

from substrate_sdk.client.http2 import ConnectionLost, Http2Connection, StreamReset
from substrate_sdk.client.methods import Method, RequestT, ResponseT
from substrate_sdk.config import Endpoint
from substrate_sdk.errors import SubstrateError, from_rpc_error

if TYPE_CHECKING:
    import grpc

_MAX_MESSAGE = 64 << 20

#: Seconds after which an idle connection is not used again: the host pings after 30, and nobody
#: answers on a connection that carries no call.
_IDLE_S = 10.0
_IDLE_COUNT = 8

# https://grpc.github.io/grpc/core/md_doc_statuscodes.html, by number.
_CODES = (
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
)

#: HTTP/2 error codes of a reset stream that gRPC gives a meaning of their own.
_RESETS = {7: "UNAVAILABLE", 8: "CANCELLED", 11: "RESOURCE_EXHAUSTED", 12: "PERMISSION_DENIED"}


class _Code:
    """A status code; it has a name, as grpc.StatusCode has."""

    def __init__(self, name: str) -> None:
        self.name = name


class _Failure(Exception):
    """A call that failed, with the methods of grpc.RpcError that ``from_rpc_error`` asks."""

    def __init__(
        self, code: str, text: str, metadata: tuple[tuple[str, str | bytes], ...] = ()
    ) -> None:
        super().__init__(text)
        self._code = _Code(code)
        self._text = text
        self._metadata = metadata

    def code(self) -> _Code:
        return self._code

    def details(self) -> str:
        return self._text

    def trailing_metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        return self._metadata


class _Call(Generic[ResponseT]):
    """One call on a connection of its own: requests out, messages in, a status at the end."""

    def __init__(
        self,
        pool: UnixTransport,
        method: Method[RequestT, ResponseT],
        requests: Iterable[RequestT],
        timeout_s: float | None,
    ) -> None:
        self._pool = pool
        self._parse = method.response.FromString
        self._connection: Http2Connection | None = None
        self._done = False
        self._messages = self._run(method.path, requests, timeout_s)

    def __aiter__(self) -> AsyncIterator[ResponseT]:
        return self

    async def __anext__(self) -> ResponseT:
        try:
            return self._parse(next(self._messages))
        except StopIteration:
            raise StopAsyncIteration from None
        except _Failure as failure:
            raise self._pool.error(failure) from failure

    async def done(self) -> None:
        self._done = True
        self._messages.close()

    async def close(self) -> None:
        connection = self._connection
        if connection is not None:
            connection.abort()
        with contextlib.suppress(ValueError):  # another thread waits in it, and was just told
            self._messages.close()

    def _run(
        self, path: str, requests: Iterable[RequestT], timeout_s: float | None
    ) -> Generator[bytes, None, None]:
        """Do the call. The connection goes back to the pool only after a complete answer."""
        whole = False
        try:
            self._connection = connection = self._pool.take()
            connection.start(path, timeout_s)
            for message in requests:
                data = message.SerializeToString()
                connection.write(struct.pack(">BI", 0, len(data)) + data, end=False)
            connection.write(b"", end=True)
            yield from _answer(connection)
            whole = True
        except TimeoutError as error:
            raise _Failure("DEADLINE_EXCEEDED", "") from error
        except ConnectionLost as error:
            raise _Failure("UNAVAILABLE", str(error)) from error
        except StreamReset as error:
            raise _Failure(_RESETS.get(error.code, "INTERNAL"), str(error)) from error
        except _Failure:
            whole = True
            raise
        except GeneratorExit:
            if self._done and self._connection is not None:
                self._connection.leave()
                whole = True
            raise
        finally:
            connection_used, self._connection = self._connection, None
            if connection_used is not None:
                if whole:
                    self._pool.give_back(connection_used)
                else:
                    connection_used.close()


def _answer(connection: Http2Connection) -> Iterator[bytes]:
    """The messages of an answer; raises _Failure unless its status is OK."""
    body = bytearray()
    trailers: dict[bytes, bytes] = {}
    for part in connection.read():
        if isinstance(part, list):
            trailers.update(part)
            continue
        body += part
        while len(body) >= 5:
            compressed, size = struct.unpack_from(">BI", body)
            if compressed or size > _MAX_MESSAGE:
                raise ConnectionLost(f"a message of {size} bytes, or compressed, was not asked for")
            if len(body) < 5 + size:
                break
            message = bytes(body[5 : 5 + size])
            del body[: 5 + size]
            yield message
    status = trailers.get(b"grpc-status", b"")
    if not status.isdigit():
        http = trailers.get(b":status", b"?").decode("ascii", errors="replace")
        raise ConnectionLost(
            f"the answer has no gRPC status (HTTP {http}): is it a Substrate host?"
        )
    if int(status) != 0:
        from urllib.parse import unquote

        raise _Failure(
            _CODES[int(status)] if int(status) < len(_CODES) else "UNKNOWN",
            unquote(trailers.get(b"grpc-message", b"").decode("ascii", errors="replace")),
            tuple(_metadata(name, value) for name, value in trailers.items()),
        )


def _metadata(name: bytes, value: bytes) -> tuple[str, str | bytes]:
    key = name.decode("ascii", errors="replace")
    if not key.endswith("-bin"):
        return key, value.decode("ascii", errors="replace")
    import binascii

    try:
        return key, binascii.a2b_base64(value + b"=" * (-len(value) % 4))
    except binascii.Error:
        return key, b""


class UnixTransport:
    """Blocks the calling thread; any number of threads may call at once."""

    def __init__(self, endpoint: Endpoint) -> None:
        assert endpoint.path is not None
        self._endpoint = endpoint
        self._path = endpoint.path
        self._idle: list[Http2Connection] = []
        self._lock = threading.Lock()
        self._closed = False

    def take(self) -> Http2Connection:
        """An idle connection, or a new one."""
        while True:
            with self._lock:
                connection = self._idle.pop() if self._idle else None
            if connection is None:
                return Http2Connection(self._path)
            if time.monotonic() - connection.idle_since < _IDLE_S and connection.reusable():
                return connection
            connection.close()

    def give_back(self, connection: Http2Connection) -> None:
        """Keep a connection whose call is over."""
        with self._lock:
            if not self._closed and len(self._idle) < _IDLE_COUNT:
                self._idle.append(connection)
                return
        connection.close()

    def error(self, failure: _Failure) -> SubstrateError:
        """What a failed call means."""
        return from_rpc_error(cast("grpc.RpcError", failure), endpoint=str(self._endpoint))

    async def unary(
        self, method: Method[RequestT, ResponseT], request: RequestT, timeout_s: float | None
    ) -> ResponseT:
        """One request, one answer."""
        return await self.upload(method, (request,), timeout_s)

    def stream(
        self, method: Method[RequestT, ResponseT], request: RequestT, timeout_s: float | None
    ) -> _Call[ResponseT]:
        """One request, many answers."""
        return _Call(self, method, (request,), timeout_s)

    async def upload(
        self,
        method: Method[RequestT, ResponseT],
        requests: Iterable[RequestT],
        timeout_s: float | None,
    ) -> ResponseT:
        """Many requests, one answer."""
        answers = [answer async for answer in _Call(self, method, requests, timeout_s)]
        if len(answers) != 1:
            raise self.error(_Failure("INTERNAL", f"{len(answers)} answers to one call"))
        return answers[0]

    async def close(self) -> None:
        """Close the connections that carry no call."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()
