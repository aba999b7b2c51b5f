"""Commits of worlds, asynchronous: snapshot, fork, rollback, discard, apply."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

from substrate_sdk._pb.substrate.world.v1alpha1 import commits_pb2, worlds_pb2
from substrate_sdk._results import Result
from substrate_sdk.client import methods
from substrate_sdk.client.connection import Connection
from substrate_sdk.client.requests import PathLike, new_id

if TYPE_CHECKING:
    from substrate_sdk.client.substrate import SpanLike
    from substrate_sdk.types import Applied, Snapshot

#: Making layers of a tree, or writing one to the host, takes as long as the tree is large.
_CALL_S = 600.0


async def resolve(connection: Connection, span: SpanLike) -> str:
    """The full id of a step: of a result or span as it is, of a prefix or ``@last`` as recorded."""
    if not isinstance(span, str):
        return span.span_id
    from substrate_sdk.client import records

    return (await records.get_span(connection, span)).span_id


async def snapshot(connection: Connection, world_id: str) -> Snapshot:
    """Keep a world's tree as it is now."""
    from substrate_sdk.types import Snapshot

    request = commits_pb2.SnapshotRequest(request_id=new_id("req_"), world_id=world_id)
    return Snapshot.from_proto(await connection.unary(methods.SNAPSHOT, request, timeout_s=_CALL_S))


async def fork(connection: Connection, span: SpanLike) -> worlds_pb2.World:
    """Make a world with the tree after a step."""
    span_id = await resolve(connection, span)
    request = commits_pb2.ForkRequest(request_id=new_id("req_"), span_id=span_id)
    made = await connection.unary(methods.FORK, request, timeout_s=_CALL_S)
    answer = await connection.unary(
        methods.GET_WORLD, worlds_pb2.GetWorldRequest(world_id=made.world_id)
    )
    return answer.world


async def rollback(connection: Connection, world_id: str, to: SpanLike, *, kill: bool) -> int:
    """Set a world's tree to that after a step; returns its new generation."""
    request = commits_pb2.RollbackRequest(
        exec_id=new_id("exe_"),
        world_id=world_id,
        span_id=await resolve(connection, to),
        kill=kill,
    )
    answer = await connection.unary(methods.ROLLBACK, request, timeout_s=_CALL_S)
    return answer.generation


async def discard(connection: Connection, world_id: str, paths: Iterable[PathLike]) -> Result:
    """Set a world's tree, or some of its paths, to what they were when it was made."""
    request = commits_pb2.DiscardRequest(
        exec_id=new_id("exe_"), world_id=world_id, paths=[os.fsencode(path) for path in paths]
    )
    answer = await connection.unary(methods.DISCARD, request, timeout_s=_CALL_S)
    return Result.from_proto(answer.result)


async def apply(
    connection: Connection,
    world_id: str,
    paths: Iterable[PathLike],
    *,
    dry_run: bool,
    consent: Iterable[PathLike],
) -> Applied:
    """Write changes of a world to the host."""
    request = commits_pb2.ApplyRequest(
        request_id=new_id("req_"),
        world_id=world_id,
        paths=[os.fsencode(path) for path in paths],
        dry_run=dry_run,
        consent=[os.fsencode(path) for path in consent],
    )
    from substrate_sdk.types import Applied

    return Applied.from_proto(await connection.unary(methods.APPLY, request, timeout_s=_CALL_S))
