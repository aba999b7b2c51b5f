"""Substrate: the flight recorder and sandbox for AI agents' commands.

::

    from substrate_sdk import Substrate

    with Substrate() as sub, sub.world() as world:
        result = world.run("pytest -q", timeout_s=600)
        print(result.exit_code, result.stdout, result.changes, result.span_id)
        report = sub.replay(result)

``AsyncSubstrate`` is the same, awaited. Errors are in :mod:`substrate_sdk.errors`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from substrate_sdk.client.execs import AsyncExec
    from substrate_sdk.client.requests import WorldOptions
    from substrate_sdk.client.substrate import AsyncSession, AsyncSubstrate
    from substrate_sdk.client.sync import Exec, Session, Substrate, World
    from substrate_sdk.client.worlds import AsyncWorld
    from substrate_sdk.config import Endpoint
    from substrate_sdk.errors import SubstrateError
    from substrate_sdk.records import Divergence, Explanation, Progress, Report, Span
    from substrate_sdk.types import (
        Applied,
        Blocked,
        Capability,
        Change,
        CommandFailed,
        Coverage,
        Decision,
        Download,
        FileEntry,
        FileEvent,
        FileState,
        Limits,
        Output,
        Process,
        Result,
        Snapshot,
        WorldInfo,
    )

__version__ = "0.1.0"

__all__ = [
    "Applied",
    "AsyncExec",
    "AsyncSession",
    "AsyncSubstrate",
    "AsyncWorld",
    "Blocked",
    "Capability",
    "Change",
    "CommandFailed",
    "Coverage",
    "Decision",
    "Divergence",
    "Download",
    "Endpoint",
    "Exec",
    "Explanation",
    "FileEntry",
    "FileEvent",
    "FileState",
    "Limits",
    "Output",
    "Process",
    "Progress",
    "Report",
    "Result",
    "Session",
    "Snapshot",
    "Span",
    "Substrate",
    "SubstrateError",
    "World",
    "WorldInfo",
    "WorldOptions",
    "__version__",
]

_MODULES = {
    "AsyncExec": "client.execs",
    "AsyncSession": "client.substrate",
    "AsyncSubstrate": "client.substrate",
    "AsyncWorld": "client.worlds",
    "Endpoint": "config",
    "Exec": "client.sync",
    "Session": "client.sync",
    "Substrate": "client.sync",
    "SubstrateError": "errors",
    "World": "client.sync",
    "WorldOptions": "client.requests",
    **dict.fromkeys(("Divergence", "Explanation", "Progress", "Report", "Span"), "records"),
}


def __getattr__(name: str) -> object:
    # Names are imported when they are first used (PEP 562): the command's start, which imports
    # this package, must not pay for all of it.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"{__name__}.{_MODULES.get(name, 'types')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
