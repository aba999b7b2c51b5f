"""Transports over grpcio: blocking stubs for ``Substrate``, grpc.aio for ``AsyncSubstrate``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Generic, Protocol, TypeVar, cast

import grpc

from substrate_sdk.client.methods import Method, RequestT, ResponseT
from substrate_sdk.config import Endpoint
from substrate_sdk.errors import from_rpc_error

ItemT = TypeVar("ItemT")
ItemT_co = TypeVar("ItemT_co", covariant=True)

_OPTIONS: tuple[tuple[str, int], ...] = (
    # A step's result lists up to thousands of changes.
    ("grpc.max_receive_message_length", 64 << 20),
    # Channels would otherwise share one back-off: a new channel could not reach a new host.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
)


class _BlockingCall(Protocol[ItemT_co]):
    def __iter__(self) -> Iterator[ItemT_co]: ...

    def cancel(self) -> bool: ...


class _BlockingStream(Generic[ItemT]):
    def __init__(self, call: _BlockingCall[ItemT], endpoint: Endpoint) -> None:
        self._call = call
        self._items = iter(call)
        self._endpoint = endpoint

    def __aiter__(self) -> AsyncIterator[ItemT]:
        return self

    async def __anext__(self) -> ItemT:
        try:
            return next(self._items)
        except StopIteration:
            raise StopAsyncIteration from None
        except grpc.RpcError as error:
            raise from_rpc_error(error, endpoint=str(self._endpoint)) from error

    async def done(self) -> None:
        await self.close()

    async def close(self) -> None:
        self._call.cancel()


class BlockingGrpcTransport:
    """Blocks the calling thread; any number of threads may call at once."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._channel = grpc.insecure_channel(endpoint.target, options=_OPTIONS)

    async def unary(
        self, method: Method[RequestT, ResponseT], request: RequestT, timeout_s: float | None
    ) -> ResponseT:
        """One request, one answer."""
        call = self._channel.unary_unary(
            method.path,
            request_serializer=method.request.SerializeToString,
            response_deserializer=method.response.FromString,
        )
        try:
            return call(request, timeout=timeout_s)
        except grpc.RpcError as error:
            raise from_rpc_error(error, endpoint=str(self._endpoint)) from error

    def stream(
        self, method: Method[RequestT, ResponseT], request: RequestT, timeout_s: float | None
    ) -> _BlockingStream[ResponseT]:
        """One request, many answers."""
        call = self._channel.unary_stream(
            method.path,
            request_serializer=method.request.SerializeToString,
            response_deserializer=method.response.FromString,
        )
        return _BlockingStream(
            cast("_BlockingCall[ResponseT]", call(request, timeout=timeout_s)), self._endpoint
        )

    async def upload(
        self,
        method: Method[RequestT, ResponseT],
        requests: Iterable[RequestT],
        timeout_s: float | None,
    ) -> ResponseT:
        """Many requests, one answer."""
        call = self._channel.stream_unary(
            method.path,
            request_serializer=method.request.SerializeToString,
            response_deserializer=method.response.FromString,
        )
        try:
            return call(iter(requests), timeout=timeout_s)
        except grpc.RpcError as error:
            raise from_rpc_error(error, endpoint=str(self._endpoint)) from error

    async def close(self) -> None:
        """Close the channel."""
        self._channel.close()


class _AioStream(Generic[ItemT]):
    def __init__(self, call: grpc.aio.UnaryStreamCall[object, ItemT], endpoint: Endpoint) -> None:
        self._call = call
        self._items = aiter(call)
        self._endpoint = endpoint

    def __aiter__(self) -> AsyncIterator[ItemT]:
        return self

    async def __anext__(self) -> ItemT:
        try:
            return await anext(self._items)
        except grpc.RpcError as error:
            raise from_rpc_error(error, endpoint=str(self._endpoint)) from error

    async def done(self) -> None:
        await self.close()

    async def close(self) -> None:
        self._call.cancel()


class AioGrpcTransport:
    """Waits in the event loop in which it was made."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._channel = grpc.aio.insecure_channel(endpoint.target, options=_OPTIONS)

    async def unary(
        self, method: Method[RequestT, ResponseT], request: RequestT, timeout_s: float | None
    ) -> ResponseT:
        """One request, one answer."""
        call = self._channel.unary_unary(
            method.path,
            request_serializer=method.request.SerializeToString,
            response_deserializer=method.response.FromString,
        )
        try:
            return await call(request, timeout=timeout_s)
        except grpc.RpcError as error:
            raise from_rpc_error(error, endpoint=str(self._endpoint)) from error

    def stream(
        self, method: Method[RequestT, ResponseT], request: RequestT, timeout_s: float | None
    ) -> _AioStream[ResponseT]:
        """One request, many answers."""
        call = self._channel.unary_stream(
            method.path,
            request_serializer=method.request.SerializeToString,
            response_deserializer=method.response.FromString,
        )
        return _AioStream(
            cast("grpc.aio.UnaryStreamCall[object, ResponseT]", call(request, timeout=timeout_s)),
            self._endpoint,
        )

    async def upload(
        self,
        method: Method[RequestT, ResponseT],
        requests: Iterable[RequestT],
        timeout_s: float | None,
    ) -> ResponseT:
        """Many requests, one answer."""
        call = self._channel.stream_unary(
            method.path,
            request_serializer=method.request.SerializeToString,
            response_deserializer=method.response.FromString,
        )
        try:
            return await call(iter(requests), timeout=timeout_s)
        except grpc.RpcError as error:
            raise from_rpc_error(error, endpoint=str(self._endpoint)) from error

    async def close(self) -> None:
        """Close the channel; calls on it end."""
        await self._channel.close()
