"""Replays: asynchronous."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from substrate_sdk._pb.substrate.replay.v1alpha1 import replay_pb2
from substrate_sdk.client import record_methods, requests
from substrate_sdk.client.connection import Connection
from substrate_sdk.client.requests import PathLike
from substrate_sdk.errors import InternalError, InvalidArgument
from substrate_sdk.records import Progress, Report

OnProgress = Callable[[Progress], None]


async def replay(
    connection: Connection,
    *,
    span: str | None,
    session: str | None,
    runs: int,
    use_host_base: bool,
    keep_worlds: bool,
    compare_mtime: bool,
    against: PathLike | None,
    variations: Sequence[str],
    hosts: Sequence[str],
    agent_id: str,
    on_progress: OnProgress | None,
) -> Report:
    """Start a replay and wait for its report."""
    if (span is None) == (session is None):
        raise InvalidArgument("replay: name a span or a session, one of the two")
    if runs < 1:
        raise InvalidArgument(f"runs: {runs} is not a positive number")
    request = replay_pb2.StartReplayRequest(
        request_id=requests.new_id("req_"),
        runs=runs,
        use_host_base=use_host_base,
        keep_worlds=keep_worlds,
        compare_mtime=compare_mtime,
        against=requests.host_path(against),
        variations=variations,
        hosts=hosts,
        agent_id=agent_id,
    )
    if span is not None:
        request.span_id = span
    elif session is not None:
        request.session_id = session
    started = await connection.unary(record_methods.START_REPLAY, request)
    watch = replay_pb2.WatchReplayRequest(replay_id=started.replay.replay_id)
    answers = connection.stream(record_methods.WATCH_REPLAY, lambda: watch)
    try:
        async for answer in answers:
            if answer.WhichOneof("event") == "report":
                return Report.from_proto(answer.report)
            if on_progress is not None:
                on_progress(Progress.from_proto(answer.progress))
    finally:
        await answers.close()
    raise InternalError(
        f"replay {watch.replay_id} ended without a report; look into the host's log"
    )
