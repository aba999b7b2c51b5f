"""What is not built yet says so; the list of it is recorded, so that it can be seen to shrink."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, cast

from google.protobuf.message_factory import GetMessageClass

from substrate_sdk import errors
from substrate_services.host.server import SERVICES, Service, Servicer
from tests.contract.harness import failure, serving

if TYPE_CHECKING:
    import grpc.aio

RECORDED = Path(__file__).with_name("not_built.txt")


def _not_built() -> Iterator[str]:
    for service in SERVICES:
        yield from service.not_built(service.servicer_class())


def _bare(service: Service) -> Servicer:
    # Without its parts: an RPC that is not built must be answered without asking the servicer.
    servicer_class = service.servicer_class()
    return cast("Servicer", servicer_class.__new__(servicer_class))


def test_the_list_of_what_is_not_built_is_the_recorded_one() -> None:
    found = [method.rpartition(".")[2] for method in _not_built()]
    recorded = RECORDED.read_text().split()
    total = sum(len(service.methods()) for service in SERVICES)
    print(f"{len(found)} of {total} RPCs are not built:")
    for method in found:
        print(f"  {method}")
    lost = sorted(set(found) - set(recorded))
    assert not lost, f"these RPCs were built, by {RECORDED.name}, and no longer are: {lost}"
    gained = sorted(set(recorded) - set(found))
    assert not gained, f"these are built now; take them out of {RECORDED}: {gained}"


def test_each_rpc_that_is_not_built_answers_so_over_the_wire(tmp_path: Path) -> None:
    missing = set(_not_built())

    async def scenario() -> dict[str, errors.SubstrateError]:
        servicers = [_bare(service) for service in SERVICES]
        async with serving(tmp_path / "run" / "host.sock", *servicers) as channel:
            return {
                f"/{service.full_name}/{method.name}": await _call(channel, service, method.name)
                for service in SERVICES
                for method in service.methods()
                if f"/{service.full_name}/{method.name}" in missing
            }

    heard = asyncio.run(scenario())
    assert set(heard) == missing
    for method, error in heard.items():
        assert isinstance(error, errors.NotBuilt), method
        assert error.code == "UNIMPLEMENTED"
        assert error.reason == "NOT_BUILT"
        short = method.rpartition(".")[2].replace("/", ".")
        assert str(error).startswith(f"{short} is not built yet")


async def _call(channel: grpc.aio.Channel, service: Service, name: str) -> errors.SubstrateError:
    method = service.descriptor.methods_by_name[name]
    path = f"/{service.full_name}/{name}"
    request = GetMessageClass(method.input_type)()
    codecs = (lambda message: message.SerializeToString(), lambda data: data)
    match method.client_streaming, method.server_streaming:
        case False, False:
            return await failure(channel.unary_unary(path, *codecs)(request))
        case False, True:
            return await failure(channel.unary_stream(path, *codecs)(request))
        case True, False:
            return await failure(channel.stream_unary(path, *codecs)(iter([request])))
        case _:
            return await failure(channel.stream_stream(path, *codecs)(iter([request])))
