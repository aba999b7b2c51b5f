"""Errors at the edge of a server: from what domain code raises to a status on the wire.

Every RPC of ours runs inside :class:`ErrorInterceptor`. It turns

* :class:`~substrate_services.errors.ServiceError` into the code of its reason,
  ``ErrorInfo{reason, domain="substrate"}`` and, for a field, ``BadRequest``;
* errors of the journal and the object store, and a full disk, into theirs;
* an error of a service that was called on the way into itself: what the World says, the Agent's
  caller hears;
* anything else into INTERNAL: the traceback goes to the log, one line to the client.

An RPC that a servicer does not override never reaches it: the interceptor answers NOT_BUILT.
"""

from __future__ import annotations

import asyncio
import errno
import inspect
import logging
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from typing import NoReturn, Protocol, TypeAlias, TypeVar, cast
from urllib.parse import quote

import grpc
import grpc.aio
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2

from substrate_sdk._reasons import DOMAIN, REASONS, STATUS_DETAILS_KEY
from substrate_services.errors import InvalidField, ServiceError
from substrate_services.journal.errors import (
    JournalBroken,
    JournalBusy,
    JournalClosed,
    JournalFull,
)
from substrate_services.objects.errors import ObjectCorrupt, ObjectMissing, ObjectTooLarge

_log = logging.getLogger(__name__)

_OWN_PREFIX = "/substrate."
_FULL_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT})

# A status travels in HTTP/2 headers, for which gRPC's default limit is 8 KiB: the message
# percent-encoded (three bytes for one that is not ASCII), and once more in the details, in Base64.
_MESSAGE_BYTES, _MESSAGE_ENCODED_BYTES = 1000, 2000
_METADATA_BYTES = 2000
_FIELD_BYTES = 200
_DESCRIPTION_BYTES = 650

Context: TypeAlias = "grpc.aio.ServicerContext[object, object]"
_Request = TypeVar("_Request")
_Response = TypeVar("_Response")


class _Unary(Protocol):
    def __call__(self, request: object, context: Context, /) -> Awaitable[object]: ...


class _Streaming(Protocol):
    def __call__(
        self, request: object, context: Context, /
    ) -> AsyncIterator[object] | Awaitable[None]: ...


def to_service_error(error: BaseException) -> ServiceError | None:
    """What a caller is told of an error; None where it is a fault of ours."""
    match error:
        case ServiceError():
            return error
        case JournalFull():
            return ServiceError("DISK_FULL", str(error))
        case JournalBusy() | JournalBroken():
            return ServiceError("JOURNAL_BROKEN", str(error))
        case JournalClosed():
            return ServiceError("HOST_UNAVAILABLE", "the host is going down; try again")
        case ObjectMissing():
            return ServiceError("OBJECT_MISSING", str(error), {"digest": error.digest})
        case ObjectCorrupt():
            return ServiceError("OBJECT_CORRUPT", str(error), {"digest": error.digest})
        case ObjectTooLarge():
            return ServiceError("TOO_LARGE", str(error))
        case OSError(errno=number) if number in _FULL_ERRNOS:
            where = f" for {error.filename!r}" if error.filename else ""
            return ServiceError(
                "DISK_FULL", f"no space left{where}; free space on the host's file system"
            )
        case _:
            return None


def not_built(method: str) -> ServiceError:
    """The error of an RPC that no servicer implements; ``method`` is ``/package.Service/Name``."""
    service, _, name = method.removeprefix("/").partition("/")
    short = service.rpartition(".")[2]
    return ServiceError(
        "NOT_BUILT",
        f"{short}.{name} is not built yet in this version of Substrate",
        {"method": method.removeprefix("/")},
    )


def status_of(error: ServiceError) -> status_pb2.Status:
    """The ``google.rpc.Status`` that an error is on the wire."""
    reason = REASONS.get(error.reason)
    if reason is None:
        raise ValueError(f"{error.reason} is not in substrate_sdk/_reasons.py; add it there")
    name = error.code or reason.code
    if name != reason.code and name not in reason.also:
        raise ValueError(f"{error.reason} does not go with {name}; see substrate_sdk/_reasons.py")
    message = _bounded_message(error.message)
    details: list[any_pb2.Any] = [
        _packed(
            error_details_pb2.ErrorInfo(
                reason=error.reason, domain=DOMAIN, metadata=_bounded_facts(error.metadata)
            )
        )
    ]
    if isinstance(error, InvalidField):
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=_bounded(error.field, _FIELD_BYTES),
            description=_bounded(error.description, _DESCRIPTION_BYTES),
        )
        details.append(_packed(error_details_pb2.BadRequest(field_violations=[violation])))
    return status_pb2.Status(code=grpc.StatusCode[name].value[0], message=message, details=details)


class ErrorInterceptor(grpc.aio.ServerInterceptor):
    """Turns what handlers raise into statuses; see the module.

    Args:
        not_built_methods: full names (``/package.Service/Name``) that are answered NOT_BUILT
            without asking a servicer.
    """

    def __init__(self, not_built_methods: Collection[str] = ()) -> None:
        self._not_built = frozenset(not_built_methods)
        self._guarded: dict[str, grpc.RpcMethodHandler[object, object]] = {}

    async def intercept_service(
        self,
        continuation: Callable[
            [grpc.HandlerCallDetails],
            Awaitable[grpc.RpcMethodHandler[_Request, _Response] | None],
        ],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[_Request, _Response] | None:
        """Wraps the handler of a method, once; gRPC calls this for each call."""
        method = handler_call_details.method
        known = self._guarded.get(method)
        if known is not None:
            return cast("grpc.RpcMethodHandler[_Request, _Response]", known)
        handler = await continuation(handler_call_details)
        # None: no such method; gRPC then answers UNIMPLEMENTED by itself.
        if handler is None or not method.startswith(_OWN_PREFIX):
            return handler
        if method in self._not_built:
            return _wrapped(handler, _refuse_unary(method), _refuse_streaming(method))
        behaviour = _behaviour(handler)
        guarded = _wrapped(
            handler,
            _guard_unary(cast("_Unary", behaviour), method),
            _guard_streaming(cast("_Streaming", behaviour), method),
        )
        self._guarded[method] = cast("grpc.RpcMethodHandler[object, object]", guarded)
        return guarded


def _behaviour(handler: grpc.RpcMethodHandler[_Request, _Response]) -> object:
    if handler.request_streaming:
        return handler.stream_stream if handler.response_streaming else handler.stream_unary
    return handler.unary_stream if handler.response_streaming else handler.unary_unary


def _wrapped(
    handler: grpc.RpcMethodHandler[_Request, _Response], unary: _Unary, streaming: _Streaming
) -> grpc.RpcMethodHandler[_Request, _Response]:
    kinds = {
        (False, False): (grpc.unary_unary_rpc_method_handler, unary),
        (True, False): (grpc.stream_unary_rpc_method_handler, unary),
        (False, True): (grpc.unary_stream_rpc_method_handler, streaming),
        (True, True): (grpc.stream_stream_rpc_method_handler, streaming),
    }
    make, behaviour = kinds[bool(handler.request_streaming), bool(handler.response_streaming)]
    return cast(
        "grpc.RpcMethodHandler[_Request, _Response]",
        make(
            behaviour,  # type: ignore[arg-type]  # the stubs know blocking behaviours only
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        ),
    )


def _refuse_unary(method: str) -> _Unary:
    async def refuse(request: object, context: Context) -> object:
        del request
        await _abort(context, status_of(not_built(method)))

    return refuse


def _refuse_streaming(method: str) -> _Streaming:
    async def refuse(request: object, context: Context) -> None:
        del request
        await _abort(context, status_of(not_built(method)))

    return refuse


def _guard_unary(behaviour: _Unary, method: str) -> _Unary:
    async def guarded(request: object, context: Context) -> object:
        try:
            return await behaviour(request, context)
        except grpc.aio.AbortError:
            raise  # a status is on its way already
        except Exception as error:  # noqa: BLE001 # the root of the call's task
            await _answer(error, method, context)

    return guarded


def _guard_streaming(behaviour: _Streaming, method: str) -> _Streaming:
    # A coroutine that writes, whatever the handler is: both kinds of handler fit in it, and the
    # handler's generator is closed before the call ends, not when it is collected.
    async def guarded(request: object, context: Context) -> None:
        try:
            answers = behaviour(request, context)
            if inspect.isawaitable(answers):
                await answers
                return
            try:
                async for answer in answers:
                    await context.write(answer)
            finally:
                if inspect.isasyncgen(answers):
                    await answers.aclose()
        except grpc.aio.AbortError:
            raise
        except Exception as error:  # noqa: BLE001 # the root of the call's task
            await _answer(error, method, context)

    return guarded


async def _answer(error: Exception, method: str, context: Context) -> NoReturn:
    """Ends a call with the status of an error. Cancellation is no Exception: it passes by."""
    if context.cancelled():
        raise asyncio.CancelledError from error  # nobody is there to be told
    if isinstance(error, grpc.aio.AioRpcError):
        await _relay(error, method, context)
    told = to_service_error(error)
    if told is None:
        _log.error("%s failed\n%s", method, _traceback(error))
        told = ServiceError(
            "INTERNAL", f"{_short(method)} failed inside the host; its log says why"
        )
    elif told is not error:
        _log.warning("%s: %s", method, str(error))
    try:
        status = status_of(told)
    except ValueError as fault:
        _log.error("%s failed: %s\n%s", method, str(fault), _traceback(error))
        status = status_of(
            ServiceError("INTERNAL", f"{_short(method)} failed inside the host; its log says why")
        )
    await _abort(context, status)


async def _relay(error: grpc.aio.AioRpcError, method: str, context: Context) -> NoReturn:
    """Passes on what a service answered that the handler had called."""
    details = [
        (key, value) for key, value in error.trailing_metadata() if key == STATUS_DETAILS_KEY
    ]
    if details:
        await context.abort(error.code(), error.details() or "", tuple(details))
    _log.error("%s: a service it calls failed: %s %s", method, error.code(), error.details())
    if error.code() is grpc.StatusCode.UNAVAILABLE:
        told = ServiceError(
            "HOST_UNAVAILABLE", f"{_short(method)} cannot reach a service of the host; try again"
        )
    else:
        told = ServiceError(
            "INTERNAL",
            f"{_short(method)}: a service of the host answered {error.code().name}; "
            "its log says why",
        )
    await _abort(context, status_of(told))


async def _abort(context: Context, status: status_pb2.Status) -> NoReturn:
    code = next(code for code in grpc.StatusCode if code.value[0] == status.code)
    await context.abort(code, status.message, ((STATUS_DETAILS_KEY, status.SerializeToString()),))


def _traceback(error: Exception) -> str:
    # As text: a handler that keeps records would keep the frames, and with them the call, its
    # request and its connection.
    return "".join(traceback.format_exception(error))


def _packed(
    message: error_details_pb2.ErrorInfo | error_details_pb2.BadRequest,
) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed


def _short(method: str) -> str:
    service, _, name = method.rpartition("/")
    return f"{service.rpartition('.')[2]}.{name}"


def _bounded(text: str, limit_bytes: int) -> str:
    encoded = text.encode(errors="backslashreplace")
    if len(encoded) <= limit_bytes:
        return encoded.decode()
    end = "…"
    return encoded[: max(limit_bytes - len(end.encode()), 0)].decode(errors="ignore") + end


def _bounded_message(text: str) -> str:
    line = _bounded(" ".join(text.split()), _MESSAGE_BYTES)
    if len(quote(line, safe="")) <= _MESSAGE_ENCODED_BYTES:
        return line
    return _bounded(line, _MESSAGE_ENCODED_BYTES // len("%00"))


def _bounded_facts(metadata: Mapping[str, str]) -> dict[str, str]:
    facts: dict[str, str] = {}
    left = _METADATA_BYTES
    for name, value in metadata.items():
        key = _bounded(name, _FIELD_BYTES)
        text = _bounded(value, max(left - len(key.encode()), 1))
        left -= len(key.encode()) + len(text.encode())
        if left <= 0 and facts:
            break
        facts[key] = text
    return facts
