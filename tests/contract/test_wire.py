"""What a caller hears when something goes wrong, over a real socket."""

from __future__ import annotations

import asyncio
import base64
import errno
import logging
import os
import stat
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from urllib.parse import quote

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from substrate_sdk import errors
from substrate_sdk._pb.substrate.trace.v1alpha1 import trace_pb2, trace_pb2_grpc
from substrate_sdk._reasons import DOMAIN, REASONS
from substrate_services.errors import InvalidField, ServiceError
from substrate_services.host.server import build_server
from substrate_services.journal.errors import JournalFull
from substrate_services.objects.errors import ObjectCorrupt, ObjectMissing
from substrate_services.wire import errors as wire
from tests.contract.harness import failure, serving

Stub = trace_pb2_grpc.TraceServiceStub


class Failing(trace_pb2_grpc.TraceServiceServicer):
    """Raises what it is given, from a unary RPC and from streams, before and after an answer."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    async def GetSpan(self, request: object, context: object) -> trace_pb2.GetSpanResponse:
        raise self.error

    async def StreamEvents(
        self, request: object, context: object
    ) -> AsyncIterator[trace_pb2.StreamEventsResponse]:
        yield trace_pb2.StreamEventsResponse(json_lines=b"{}\n")
        raise self.error

    async def GetObject(  # type: ignore[override] # the coroutine form of a streaming handler
        self, request: object, context: wire.Context
    ) -> None:
        await context.write(trace_pb2.GetObjectResponse(data=b"x"))
        raise self.error


def _heard(tmp_path: Path, error: Exception) -> list[errors.SubstrateError]:
    async def scenario() -> list[errors.SubstrateError]:
        async with serving(tmp_path / "run" / "host.sock", Failing(error)) as channel:
            stub = Stub(channel)
            return [
                await failure(stub.GetSpan(trace_pb2.GetSpanRequest())),
                await failure(stub.StreamEvents(trace_pb2.StreamEventsRequest())),
                await failure(stub.GetObject(trace_pb2.GetObjectRequest())),
            ]

    return asyncio.run(scenario())


def test_each_reason_arrives_with_its_code_and_its_class(tmp_path: Path) -> None:
    async def scenario() -> dict[str, errors.SubstrateError]:
        servicer = Failing(Exception())
        heard = {}
        async with serving(tmp_path / "run" / "host.sock", servicer) as channel:
            for reason in REASONS:
                servicer.error = ServiceError(reason, "cannot do 'x'; do this", {"key": "value"})
                heard[reason] = await failure(Stub(channel).GetSpan(trace_pb2.GetSpanRequest()))
        return heard

    for reason, error in asyncio.run(scenario()).items():
        assert error.reason == reason
        assert error.code == REASONS[reason].code
        assert error.retryable is REASONS[reason].retryable
        assert str(error) == "cannot do 'x'; do this"
        assert error.metadata == {"key": "value"}
        assert type(error) is errors.error_class(reason, error.code)


def test_each_class_of_the_sdk_is_reached_by_a_reason_or_a_code() -> None:
    public = {getattr(errors, name) for name in errors.__all__}
    classes = {cls for cls in public if isinstance(cls, type) and issubclass(cls, BaseException)}
    codes = [code.name for code in grpc.StatusCode]
    reached = {errors.error_class(reason, "") for reason in REASONS}
    reached |= {errors.error_class("SOMETHING_NEWER", code) for code in codes}
    assert classes - reached == set()
    for cls in classes - {errors.SubstrateError}:
        assert f" {cls.__name__}" in (errors.__doc__ or ""), "the tree in the docstring lacks it"


def test_a_field_is_named_with_its_value(tmp_path: Path) -> None:
    heard = _heard(tmp_path, InvalidField("limits.pids", -3, "expected 1 or more"))[0]
    assert isinstance(heard, errors.InvalidArgument)
    assert str(heard) == "limits.pids is -3; expected 1 or more"
    assert heard.violations == (errors.FieldViolation("limits.pids", "is -3; expected 1 or more"),)


# Made in the test: an error that was raised keeps its frames, and so its server, alive.
@pytest.mark.parametrize(
    ("make", "cls", "text"),
    [
        (lambda: OSError(errno.ENOSPC, "No space", "/x"), errors.DiskFull, "free space"),
        (lambda: OSError(errno.EDQUOT, "Disk quota"), errors.DiskFull, "free space"),
        (lambda: JournalFull(Path("/j/trace"), "no space"), errors.DiskFull, "/j/trace"),
        (lambda: ObjectMissing("ab" * 32), errors.ObjectMissing, "abab"),
        (lambda: ObjectCorrupt("cd" * 32), errors.ObjectCorrupt, "cdcd"),
    ],
)
def test_the_ground_floors_errors_have_a_place(
    tmp_path: Path, make: Callable[[], Exception], cls: type[errors.SubstrateError], text: str
) -> None:
    for heard in _heard(tmp_path, make()):
        assert type(heard) is cls
        assert text in str(heard)


def test_a_fault_of_the_host_leaks_nothing_and_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        heard = _heard(tmp_path, KeyError("secret of /home/me"))
    assert len(heard) == 3
    for error in heard:
        assert isinstance(error, errors.InternalError)
        wire_text = f"{error} {error.__cause__!r} {error.metadata}"
        for leak in ("secret", "Traceback", "KeyError", ".py"):
            assert leak not in wire_text
        assert "\n" not in str(error)
    assert "secret of /home/me" in caplog.text
    assert "Traceback" in caplog.text


def test_a_reason_outside_the_table_is_a_fault_of_the_host(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    heard = _heard(tmp_path, ServiceError("MADE_UP", "text"))[0]
    assert isinstance(heard, errors.InternalError)
    assert "MADE_UP" in caplog.text


def test_a_code_that_does_not_go_with_the_reason_is_refused() -> None:
    assert wire.status_of(ServiceError("OBJECT_MISSING", "x", code="DATA_LOSS")).code == 15
    with pytest.raises(ValueError, match="does not go with"):
        wire.status_of(ServiceError("OBJECT_MISSING", "x", code="ABORTED"))


def test_a_long_message_still_fits_into_the_headers(tmp_path: Path) -> None:
    facts = {f"missing.{number}": "ü" * 500 for number in range(100)}
    heard = _heard(tmp_path, ServiceError("NOT_RESTORABLE", "ü\n" * 100_000, facts))[0]
    assert isinstance(heard, errors.NotRestorable)
    assert "\n" not in str(heard)
    assert "missing.0" in heard.metadata


@pytest.mark.parametrize("letter", ["x", "ü", "😀", "\ud800", "\n"])
def test_whatever_an_error_says_its_headers_stay_below_the_limit(letter: str) -> None:
    long = letter * 20_000
    facts = {f"{number}{long}": long for number in range(100)}
    for error in (ServiceError("NOT_RESTORABLE", long, facts), InvalidField(long, long, long)):
        status = wire.status_of(error)
        message = quote(status.message.encode(), safe="")
        details = base64.b64encode(status.SerializeToString())
        assert len(message) + len(details) < 7800, (len(message), len(details))


def test_a_cancelled_call_is_not_swallowed(tmp_path: Path) -> None:
    events: list[str] = []

    class Slow(trace_pb2_grpc.TraceServiceServicer):
        def __init__(self) -> None:
            self.entered = asyncio.Event()
            self.left = asyncio.Event()

        async def StreamEvents(
            self, request: object, context: object
        ) -> AsyncIterator[trace_pb2.StreamEventsResponse]:
            try:
                yield trace_pb2.StreamEventsResponse(json_lines=b"{}\n")
                self.entered.set()
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                events.append("cancelled")
                raise
            finally:
                events.append("closed")
                self.left.set()

    async def scenario() -> None:
        servicer = Slow()
        async with serving(tmp_path / "run" / "host.sock", servicer) as channel:
            call = Stub(channel).StreamEvents(trace_pb2.StreamEventsRequest())
            await call.read()
            await servicer.entered.wait()
            call.cancel()
            await servicer.left.wait()

    asyncio.run(scenario())
    assert events == ["cancelled", "closed"]


def test_what_an_inner_service_answers_is_passed_on(tmp_path: Path) -> None:
    class Proxy(trace_pb2_grpc.TraceServiceServicer):
        def __init__(self, inner: grpc.aio.Channel) -> None:
            self.inner = Stub(inner)

        async def GetSpan(
            self, request: trace_pb2.GetSpanRequest, context: object
        ) -> trace_pb2.GetSpanResponse:
            return await self.inner.GetSpan(request)

    async def scenario() -> tuple[errors.SubstrateError, errors.SubstrateError]:
        inner_error = InvalidField("span_id", "zz", "expected 16 hex digits")
        async with (
            serving(tmp_path / "a" / "host.sock", Failing(inner_error)) as inner,
            serving(tmp_path / "b" / "host.sock", Proxy(inner)) as outer,
        ):
            passed = await failure(Stub(outer).GetSpan(trace_pb2.GetSpanRequest()))
        async with (
            grpc.aio.insecure_channel(f"unix:{tmp_path}/nothing") as nowhere,
            serving(tmp_path / "b" / "host.sock", Proxy(nowhere)) as outer,
        ):
            lost = await failure(Stub(outer).GetSpan(trace_pb2.GetSpanRequest()))
        return passed, lost

    passed, lost = asyncio.run(scenario())
    assert isinstance(passed, errors.InvalidArgument)
    assert passed.violations[0].field == "span_id"
    assert isinstance(lost, errors.HostUnavailable)
    assert str(tmp_path) not in str(lost)


def test_no_host_is_a_connection_error_that_says_what_to_do(tmp_path: Path) -> None:
    with grpc.insecure_channel(f"unix:{tmp_path}/nothing.sock") as channel:
        stub = trace_pb2_grpc.TraceServiceStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            stub.GetSpan(trace_pb2.GetSpanRequest())
    error = errors.from_rpc_error(caught.value, endpoint="unix:///x.sock")
    assert isinstance(error, errors.HostUnavailable)
    assert isinstance(error, ConnectionError)
    assert error.retryable
    assert "unix:///x.sock" in str(error)
    assert "substrate up" in str(error)


def test_a_deadline_is_a_timeout_error(tmp_path: Path) -> None:
    class Stuck(trace_pb2_grpc.TraceServiceServicer):
        async def GetSpan(self, request: object, context: object) -> trace_pb2.GetSpanResponse:
            await asyncio.Event().wait()
            raise AssertionError

    async def scenario() -> errors.SubstrateError:
        async with serving(tmp_path / "run" / "host.sock", Stuck()) as channel:
            return await failure(Stub(channel).GetSpan(trace_pb2.GetSpanRequest(), timeout=0.05))

    error = asyncio.run(scenario())
    assert isinstance(error, errors.CallTimeout)
    assert isinstance(error, TimeoutError)
    assert error.retryable


def test_the_socket_is_its_owners_alone(tmp_path: Path) -> None:
    async def scenario() -> tuple[int, int]:
        old = os.umask(0)
        try:
            path = tmp_path / "run %41 d" / "host.sock"  # not to be taken for an escape
            async with serving(path):
                return path.stat().st_mode, path.parent.stat().st_mode
        finally:
            os.umask(old)

    socket_mode, directory_mode = asyncio.run(scenario())
    assert stat.S_ISSOCK(socket_mode)
    assert stat.S_IMODE(socket_mode) == 0o600
    assert stat.S_IMODE(directory_mode) == 0o700


def test_an_open_directory_is_closed_first_and_a_link_is_refused(tmp_path: Path) -> None:
    opened = tmp_path / "open"
    opened.mkdir(mode=0o777)
    opened.chmod(0o777)
    (tmp_path / "link").symlink_to(opened)

    async def scenario() -> None:
        with pytest.raises(OSError, match="link"):
            await build_server([], socket_path=tmp_path / "link" / "host.sock")
        async with serving(opened / "host.sock"):
            assert stat.S_IMODE(opened.stat().st_mode) == 0o700

    asyncio.run(scenario())


@pytest.mark.root
def test_somebody_elses_directory_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "theirs"
    other.mkdir(mode=0o777)
    os.chown(other, 12345, 12345)
    with pytest.raises(PermissionError, match="12345"):
        asyncio.run(_bound(other / "host.sock"))


def test_a_socket_path_that_is_too_long_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="SUBSTRATE_HOME"):
        asyncio.run(_bound(tmp_path / ("x" * 100) / "host.sock"))


async def _bound(path: Path) -> None:
    await build_server([], socket_path=path)


def test_health_and_reflection_answer(tmp_path: Path) -> None:
    async def scenario() -> None:
        path = tmp_path / "run" / "host.sock"
        async with serving(path, Failing(ValueError()), development=True) as channel:
            check = channel.unary_unary(
                "/grpc.health.v1.Health/Check",
                request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
                response_deserializer=health_pb2.HealthCheckResponse.FromString,
            )
            for name in ("", "substrate.trace.v1alpha1.TraceService"):
                answer = await check(health_pb2.HealthCheckRequest(service=name))
                assert answer.status == health_pb2.HealthCheckResponse.SERVING
            unserved = health_pb2.HealthCheckRequest(
                service="substrate.world.v1alpha1.WorldService"
            )
            unknown = await failure(check(unserved))
            assert unknown.code == "NOT_FOUND"
            assert "substrate.trace.v1alpha1.TraceService" in await _reflected(channel)
        # Another path: gRPC keeps connections by address, also those that have just been ended.
        other = tmp_path / "other" / "host.sock"
        async with serving(other, Failing(ValueError())) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await _reflected(channel)
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED

    asyncio.run(scenario())


async def _reflected(channel: grpc.aio.Channel) -> list[str]:
    info = channel.stream_stream(
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    call = info(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
    return [
        service.name async for answer in call for service in answer.list_services_response.service
    ]


def test_importing_the_errors_is_light() -> None:
    # A start of the command line pays for it. Only a failed call needs google.rpc.
    import subprocess  # noqa: PLC0415 # what is tested is an interpreter of its own

    code = (
        "import sys; import importlib.util as u; "
        "spec = u.spec_from_file_location('e', sys.argv[1]); "
        "sys.path.insert(0, sys.argv[2]); "
        "m = u.module_from_spec(spec); sys.modules['e'] = m; spec.loader.exec_module(m); "
        "print([n for n in sys.modules if n.split('.')[0] in ('grpc', 'google')])"
    )
    root = Path(errors.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", code, errors.__file__, str(root)],
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "[]"


def test_the_domain_is_ours() -> None:
    assert DOMAIN == "substrate"
