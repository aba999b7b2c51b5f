"""Reading what a host recorded, and asking its broker: asynchronous."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, cast

from substrate_sdk._jsonform import JsonObject
from substrate_sdk._pb.substrate.broker.v1alpha1 import broker_pb2
from substrate_sdk._pb.substrate.common.v1alpha1 import types_pb2
from substrate_sdk._pb.substrate.trace.v1alpha1 import trace_pb2
from substrate_sdk.client import record_methods, requests
from substrate_sdk.client.connection import Connection
from substrate_sdk.client.requests import CommandLike, PathLike
from substrate_sdk.errors import InvalidArgument
from substrate_sdk.records import Explanation, PolicyCheck, Span, Verification

if TYPE_CHECKING:
    from substrate_sdk.types import Result

_PAGE = 100


def span_id_of(span: str | Result | Span) -> str:
    """The id of a result or a span; an id, a prefix or ``@last`` as it is."""
    span_id = span if isinstance(span, str) else span.span_id
    if not span_id:
        raise InvalidArgument("span: it is empty; give an id, a prefix of one, or @last")
    return span_id


async def get_span(connection: Connection, span: str | Result | Span) -> Span:
    """One recorded step."""
    answer = await connection.unary(
        record_methods.GET_SPAN, trace_pb2.GetSpanRequest(span_id=span_id_of(span))
    )
    return Span.from_proto(answer.span)


async def list_spans(
    connection: Connection,
    limit: int | None,
    *,
    session_id: str,
    world_id: str,
    kind: str,
    text: str,
    exit_code: int | None,
    since: datetime | None,
    until: datetime | None,
    path: PathLike | None,
    host: str,
) -> AsyncIterator[Span]:
    """Recorded steps, newest first."""
    request = trace_pb2.ListSpansRequest(
        session_id=session_id,
        world_id=world_id,
        kind=kind,
        text=text,
        exit_code=exit_code,
        path=b"" if path is None else os.fsencode(path),
        host=host,
    )
    if since is not None:
        request.since.FromDatetime(since)
    if until is not None:
        request.until.FromDatetime(until)
    left = limit
    while left is None or left > 0:
        request.page_size = _PAGE if left is None else min(left, _PAGE)
        answer = await connection.unary(record_methods.LIST_SPANS, request)
        for span in answer.spans:
            yield Span.from_proto(span)
        if left is not None:
            left -= len(answer.spans)
        request.page_token = answer.next_page_token
        if not request.page_token:
            return


async def event_lines(
    connection: Connection, span: str | Result | Span, *, bounded: bool
) -> AsyncIterator[bytes]:
    """The events of a step, each a JSON line with its newline."""
    span_id = (await get_span(connection, span)).span_id
    request = trace_pb2.StreamEventsRequest(span_id=span_id, bounded=bounded)
    answers = connection.stream(record_methods.STREAM_EVENTS, lambda: request, resumable=False)
    try:
        async for answer in answers:
            for line in answer.json_lines.splitlines(keepends=True):
                yield line
    finally:
        await answers.close()


async def stream_events(
    connection: Connection, span: str | Result | Span, *, bounded: bool
) -> AsyncIterator[JsonObject]:
    """The events of a step."""
    async for line in event_lines(connection, span, bounded=bounded):
        yield cast("JsonObject", json.loads(line))


async def read_object(connection: Connection, digest: str) -> AsyncIterator[bytes]:
    """The bytes of an object, in pieces."""
    request = trace_pb2.GetObjectRequest(digest=digest)
    answers = connection.stream(record_methods.GET_OBJECT, lambda: request, resumable=False)
    try:
        async for answer in answers:
            yield answer.data
    finally:
        await answers.close()


async def verify(connection: Connection) -> Verification:
    """Check the journal's chain, as long as it takes."""
    answer = await connection.unary(
        record_methods.VERIFY, trace_pb2.VerifyRequest(), timeout_s=None
    )
    return Verification.from_proto(answer)


async def policy_check(connection: Connection, files: Sequence[PathLike]) -> PolicyCheck:
    """Look for mistakes in policy files."""
    paths = [requests.host_path(file) for file in files]
    answer = await connection.unary(record_methods.CHECK, broker_pb2.CheckRequest(files=paths))
    return PolicyCheck.from_proto(answer)


async def policy_explain(
    connection: Connection,
    command: CommandLike,
    *,
    project: PathLike | None,
    cwd: PathLike | None,
    profile: str,
    agent_id: str,
    policy: PathLike | None,
) -> Explanation:
    """Say what policy would answer about a command."""
    argv, shell = requests.argv_or_shell(command)
    step = broker_pb2.StepFacts(
        kind=broker_pb2.STEP_KIND_EXEC,
        command=types_pb2.Command(
            # A world makes a shell string into just this.
            argv=(b"/bin/bash", b"-c", shell or b"") if argv is None else argv.args,
            shell=shell,
        ),
        project=requests.host_path(project) or None,
        cwd=b"" if cwd is None else os.fsencode(cwd),
        profile=profile,
        agent_id=agent_id,
        policy_file=requests.host_path(policy),
    )
    answer = await connection.unary(record_methods.EXPLAIN, broker_pb2.ExplainRequest(step=step))
    return Explanation.from_proto(answer)
