"""ReplayService on the wire."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from substrate_sdk._pb.substrate.replay.v1alpha1 import replay_pb2, replay_pb2_grpc
from substrate_services.errors import InvalidField, ServiceError
from substrate_services.replay.classify import Verdict
from substrate_services.replay.divergence import Divergence
from substrate_services.replay.replays import Replay, Replays, ReplayState
from substrate_services.replay.report import Report, RunOutcome, to_text
from substrate_services.replay.runner import Progress, ReplayRequest
from substrate_services.wire.validation import page_offset, page_size, page_token
from substrate_services.world.ids import new_id

if TYPE_CHECKING:
    from substrate_services.wire.errors import Context

MAX_RUNS = 1_000
LISTED_DIVERGENCES = 200
_STATES: dict[ReplayState, replay_pb2.ReplayState.ValueType] = {
    "running": replay_pb2.REPLAY_STATE_RUNNING,
    "finished": replay_pb2.REPLAY_STATE_FINISHED,
    "cancelled": replay_pb2.REPLAY_STATE_CANCELLED,
    "failed": replay_pb2.REPLAY_STATE_FAILED,
}
_VERDICTS: dict[Verdict, replay_pb2.Verdict.ValueType] = {
    "identical": replay_pb2.VERDICT_IDENTICAL,
    "diverged": replay_pb2.VERDICT_DIVERGED,
    "not_run": replay_pb2.VERDICT_NOT_RUN,
}
# Ways of replaying that the contract has and this version does not, by field.
_NOT_BUILT = ("variations", "overrides", "against", "hosts")


class ReplayServicer(replay_pb2_grpc.ReplayServiceServicer):
    """Serves replays of one host.

    Args:
        replays: starts and remembers them.
    """

    def __init__(self, replays: Replays) -> None:
        self._replays = replays

    async def StartReplay(  # the name in the contract
        self, request: replay_pb2.StartReplayRequest, context: Context
    ) -> replay_pb2.StartReplayResponse:
        """See the contract."""
        replay = self._replays.start(_request(request))
        return replay_pb2.StartReplayResponse(replay=_replay(replay))

    async def WatchReplay(
        self, request: replay_pb2.WatchReplayRequest, context: Context
    ) -> AsyncIterator[replay_pb2.WatchReplayResponse]:
        """See the contract."""
        replay = self._replays.get(request.replay_id)
        async for progress in self._replays.watch(replay):
            yield replay_pb2.WatchReplayResponse(progress=_progress(progress))
        if replay.report is None:
            raise ServiceError("CANCELLED", f"replay {request.replay_id} was cancelled")
        yield replay_pb2.WatchReplayResponse(report=_report(replay, replay.report))

    async def GetReplay(
        self, request: replay_pb2.GetReplayRequest, context: Context
    ) -> replay_pb2.GetReplayResponse:
        """See the contract."""
        return replay_pb2.GetReplayResponse(replay=_replay(self._replays.get(request.replay_id)))

    async def ListReplays(
        self, request: replay_pb2.ListReplaysRequest, context: Context
    ) -> replay_pb2.ListReplaysResponse:
        """See the contract."""
        size = page_size(request.page_size)
        start = page_offset(request.page_token, {})
        replays = self._replays.all()
        more = start + size < len(replays)
        return replay_pb2.ListReplaysResponse(
            replays=[_replay(replay) for replay in replays[start : start + size]],
            next_page_token=page_token(str(start + size), {}) if more else "",
        )

    async def CancelReplay(
        self, request: replay_pb2.CancelReplayRequest, context: Context
    ) -> replay_pb2.CancelReplayResponse:
        """See the contract."""
        replay = self._replays.get(request.replay_id)
        await self._replays.cancel(replay)
        return replay_pb2.CancelReplayResponse(replay=_replay(replay))

    async def GetReport(
        self, request: replay_pb2.GetReportRequest, context: Context
    ) -> replay_pb2.GetReportResponse:
        """See the contract."""
        replay = self._replays.get(request.replay_id)
        if replay.error is not None:
            raise replay.error
        if replay.report is None:
            raise ServiceError(
                "REPLAY_RUNNING", f"replay {request.replay_id} has no report yet; watch it"
            )
        return replay_pb2.GetReportResponse(report=_report(replay, replay.report))


def _request(request: replay_pb2.StartReplayRequest) -> ReplayRequest:
    what = request.WhichOneof("what")
    if what is None:
        raise InvalidField(
            "span_id", "", "name the span to replay; `substrate trace ls` shows them"
        )
    if what != "span_id":
        raise ServiceError("NOT_BUILT", f"replaying by {what} is not built yet; replay by span")
    for name in _NOT_BUILT:
        if getattr(request, name):
            raise ServiceError("NOT_BUILT", f"replaying with {name} is not built yet")
    if request.runs > MAX_RUNS:
        raise InvalidField("runs", request.runs, f"expected at most {MAX_RUNS}")
    return ReplayRequest(
        replay_id=request.request_id or new_id("rep"),
        span_id=request.span_id,
        runs=request.runs or 1,
        use_host_base=request.use_host_base,
        keep_worlds=request.keep_worlds,
        compare_mtime=request.compare_mtime,
    )


def _replay(replay: Replay) -> replay_pb2.Replay:
    report = replay.report
    return replay_pb2.Replay(
        replay_id=replay.request.replay_id,
        state=_STATES[replay.state],
        created_at=_timestamp(replay.created_at),
        runs=replay.request.runs,
        runs_done=len(report.runs) if report is not None else 0,
        verdict=_VERDICTS[report.verdict] if report else replay_pb2.VERDICT_UNSPECIFIED,
        span_ids=[replay.request.span_id],
    )


def _progress(progress: Progress) -> replay_pb2.Progress:
    return replay_pb2.Progress(
        stage=progress.stage, run=progress.run, runs=progress.runs, text=progress.text
    )


def _report(replay: Replay, report: Report) -> replay_pb2.Report:
    subject = report.subject
    listed = report.divergences[:LISTED_DIVERGENCES]
    divergences = [_divergence(item) for item in listed]
    divergences += [
        _divergence(item, informative=True) for item in report.observations[:LISTED_DIVERGENCES]
    ]
    return replay_pb2.Report(
        replay_id=replay.request.replay_id,
        span_id=subject.span_id,
        verdict=_VERDICTS[report.verdict],
        divergences=divergences,
        divergences_truncated=report.divergences_omitted + len(report.divergences) - len(listed),
        first=_divergence(report.first) if report.first is not None else None,
        compared=report.compared,
        not_compared=[
            replay_pb2.NotCompared(dimension=item.dimension, reason=item.reason)
            for item in report.not_compared
        ],
        missing=[replay_pb2.Missing(path=item.what, reason=item.reason) for item in report.missing],
        runs=[_run(run) for run in report.runs],
        normalisation=dict(report.normalisation),
        recorded_duration=_duration(subject.duration_ms),
        text=to_text(report),
        action_digest=subject.action_digest,
        command=subject.command,
        outcome=subject.outcome,
        session_id=subject.session_id,
        set_aside=[
            replay_pb2.SetAside(rule=item.rule, recorded=item.recorded, replayed=item.replayed)
            for item in report.set_aside
        ],
    )


def _run(run: RunOutcome) -> replay_pb2.Run:
    found = run.comparison
    return replay_pb2.Run(
        number=run.run,
        span_id=run.span_id or "",
        verdict=_VERDICTS[run.verdict],
        duration=_duration(run.duration_ms) if run.duration_ms is not None else None,
        outcome=run.outcome,
        reason=run.reason,
        divergences=len(found.divergences) + found.omitted if found is not None else 0,
    )


def _divergence(item: Divergence, *, informative: bool = False) -> replay_pb2.Divergence:
    return replay_pb2.Divergence(
        dimension=item.dimension,
        cause=item.cause,
        path=item.path,
        place=item.place,
        expected=item.expected or b"",
        actual=item.actual or b"",
        detail=item.detail,
        informative=informative,
        line=item.line,
        offset=item.offset,
    )


def _duration(milliseconds: float) -> Duration:
    duration = Duration()
    duration.FromNanoseconds(round(milliseconds * 1e6))
    return duration


def _timestamp(seconds: float) -> Timestamp:
    timestamp = Timestamp()
    timestamp.FromNanoseconds(round(seconds * 1e9))
    return timestamp
