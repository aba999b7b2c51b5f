"""The plain gRPC client: whose last answer has come, that connection serves the next call."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue

from substrate_sdk.client.http2 import ConnectionLost, Http2Connection
from substrate_sdk.client.methods import Method
from substrate_sdk.client.transport import drive
from substrate_sdk.client.unix_transport import UnixTransport
from substrate_sdk.config import parse_endpoint

METHOD = Method("/test.Service/Stream", StringValue, StringValue)


class Server:
    """Answers once, and ends each call when it is told to, with trailers new and known."""

    def __init__(self) -> None:
        self.may_end = threading.Semaphore(0)
        self.ended = threading.Semaphore(0)

    def stream(self, request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        yield request
        self.may_end.acquire(timeout=10)
        context.set_trailing_metadata((("x-of", request.hex()),))
        self.ended.release()

    def handlers(self) -> grpc.GenericRpcHandler:
        return grpc.method_handlers_generic_handler(
            "test.Service", {"Stream": grpc.unary_stream_rpc_method_handler(self.stream)}
        )


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Server, UnixTransport]]:
    server = Server()
    path = tmp_path / "socket"
    grpc_server = grpc.server(ThreadPoolExecutor(4), handlers=[server.handlers()])
    grpc_server.add_insecure_port(f"unix:{path}")
    grpc_server.start()
    transport = UnixTransport(parse_endpoint(f"unix://{path}"))
    try:
        yield server, transport
    finally:
        drive(transport.close())
        server.may_end.release(8)
        grpc_server.stop(None).wait()


def ask(transport: UnixTransport, text: str) -> str:
    async def asked() -> str:
        call = transport.stream(METHOD, StringValue(value=text), 10)
        answer = await anext(call)
        await call.done()
        return answer.value

    return drive(asked())


def test_calls_whose_end_came_late_share_one_connection(
    served: tuple[Server, UnixTransport],
) -> None:
    server, transport = served
    assert ask(transport, "first") == "first"
    connection = transport.take()
    transport.give_back(connection)
    server.may_end.release()
    server.ended.acquire()
    for text in ("second", "third", "fourth"):  # the ends of calls before come in between
        assert ask(transport, text) == text
        server.may_end.release()
        server.ended.acquire()
    assert transport.take() is connection
    connection.close()


def test_a_call_may_begin_before_the_one_before_has_ended(
    served: tuple[Server, UnixTransport],
) -> None:
    server, transport = served
    assert ask(transport, "first") == "first"
    connection = transport.take()
    transport.give_back(connection)
    assert ask(transport, "second") == "second"  # the first still waits
    server.may_end.release(2)
    server.ended.acquire()
    server.ended.acquire()
    assert ask(transport, "third") == "third"
    assert transport.take() is connection
    connection.close()


def test_a_forked_child_neither_ends_nor_reads_its_parents_call(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(tmp_path / "socket"))
        listener.listen(1)
        connection = Http2Connection(str(tmp_path / "socket"))
        connection.start("/test.Service/Stream", 10)
        peer, _ = listener.accept()
        child = os.fork()
        if child == 0:
            try:
                connection.abort()
                connection.leave()
                reusable = connection.reusable()
                connection.start("/test.Service/Stream", 10)
            except ConnectionLost:
                os._exit(int(reusable))
            except BaseException:  # noqa: BLE001 # a child of the test must not go on as it
                os._exit(3)
            os._exit(4)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        with peer:
            assert peer.recv(1 << 16).startswith(b"PRI * HTTP/2.0")
            with pytest.raises(BlockingIOError):  # and not the end
                peer.recv(1, socket.MSG_DONTWAIT)
        connection.close()
