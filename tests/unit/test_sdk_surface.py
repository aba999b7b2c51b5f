"""The public surface: importable, light, the same in both colours, true to the contract."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import substrate_sdk
from substrate_sdk._pb.substrate.agent.v1alpha1 import agent_pb2
from substrate_sdk._pb.substrate.broker.v1alpha1 import broker_pb2
from substrate_sdk._pb.substrate.replay.v1alpha1 import replay_pb2
from substrate_sdk._pb.substrate.trace.v1alpha1 import trace_pb2
from substrate_sdk._pb.substrate.world.v1alpha1 import world_service_pb2
from substrate_sdk.client import (
    execs,
    files,
    methods,
    record_methods,
    substrate,
    sync,
    sync_files,
    worlds,
)
from substrate_sdk.client.methods import Method
from substrate_sdk.client.requests import WorldOptions

if TYPE_CHECKING:
    from google.protobuf.descriptor import MethodDescriptor

TWINS = [
    (substrate.AsyncSubstrate, sync.Substrate),
    (substrate.AsyncSession, sync.Session),
    (worlds.AsyncWorld, sync.World),
    (worlds.AsyncDiff, sync.Diff),
    (files.AsyncFiles, sync_files.Files),
    (execs.AsyncExec, sync.Exec),
    (execs.AsyncStdin, sync.Stdin),
    (execs.AsyncByteStream, sync.ByteStream),
]

#: How the blocking client reaches them without Opening.
INTERNAL = {"over", "begin_session", "make_fork", "make_world"}


def public(cls: type) -> dict[str, object]:
    return {
        name: value
        for name, value in vars(cls).items()
        if not name.startswith("_") and name not in INTERNAL
    }


@pytest.mark.parametrize(("asynchronous", "blocking"), TWINS)
def test_both_colours_offer_the_same(asynchronous: type, blocking: type) -> None:
    ours, theirs = public(asynchronous), public(blocking)
    attributes = {name for name in theirs if name not in ours}
    # What is an attribute of the one may be a property of the other.
    assert all(isinstance(theirs[name], property) for name in attributes)
    assert {name for name in ours if name not in theirs} <= {"stdout", "stderr"}
    for name, value in ours.items():
        if inspect.isfunction(value) and name in theirs:
            twin = theirs[name]
            assert inspect.isfunction(twin)
            parameters = [str(p) for p in inspect.signature(value).parameters.values()]
            assert parameters == [str(p) for p in inspect.signature(twin).parameters.values()], name
            assert value.__doc__, name
            assert twin.__doc__, name


def all_methods() -> list[tuple[str, Method[object, object]]]:  # type: ignore[type-var]
    return [
        (name, value)
        for module in (methods, record_methods)
        for name, value in vars(module).items()
        if isinstance(value, Method)
    ]


def descriptors() -> dict[str, MethodDescriptor]:
    return {
        f"/{service.full_name}/{method.name}": method
        for module in (world_service_pb2, agent_pb2, broker_pb2, replay_pb2, trace_pb2)
        for service in module.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }


@pytest.mark.parametrize(("name", "method"), all_methods())
def test_calls_are_those_of_the_contract(name: str, method: Method[object, object]) -> None:  # type: ignore[type-var]
    descriptor = descriptors()[method.path]
    assert method.request.DESCRIPTOR is descriptor.input_type  # type: ignore[attr-defined]
    assert method.response.DESCRIPTOR is descriptor.output_type  # type: ignore[attr-defined]
    words = "".join(part.capitalize() for part in name.split("_"))
    assert method.path.endswith("/" + words)


@pytest.mark.parametrize("name", substrate_sdk.__all__)
def test_every_public_name_is_there_and_explained(name: str) -> None:
    value = getattr(substrate_sdk, name)
    assert name == "__version__" or value.__doc__
    documented = (Path(__file__).parents[2] / "docs" / "SDK.md").read_text()
    assert name in documented


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Sandbox'"):
        substrate_sdk.Sandbox  # noqa: B018 # it must not be there


def test_an_unknown_option_of_a_world_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="'imag'"):
        sync.Substrate("unix:///x").world(imag="x")  # type: ignore[call-arg] # the type checker says so too


def test_every_option_of_a_world_is_explained() -> None:
    text = Path(inspect.getfile(WorldOptions)).read_text()
    (cls,) = [
        node
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.ClassDef) and node.name == "WorldOptions"
    ]
    lines = text.splitlines()
    for node in cls.body:
        if isinstance(node, ast.AnnAssign):
            assert lines[node.lineno - 2].strip().startswith("#:"), ast.unparse(node)


def test_importing_the_package_imports_next_to_nothing() -> None:
    script = (
        "import sys, substrate_sdk\n"
        "print([n for n in ('grpc', 'google.protobuf', 'asyncio', 'opentelemetry') "
        "if n in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True
    )
    assert done.stdout.strip() == "[]"


def test_the_blocking_client_on_a_socket_needs_neither_grpc_nor_asyncio() -> None:
    script = (
        "import sys\n"
        "from substrate_sdk import Substrate, SubstrateError\n"
        "try: Substrate('unix:///nonexistent').worlds()\n"
        "except SubstrateError: pass\n"
        "print([n for n in ('grpc', 'asyncio', 'subprocess', 'ssl') if n in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True
    )
    assert done.stdout.strip() == "[]"
