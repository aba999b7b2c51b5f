"""What a replay found out: the data, its JSON (DESIGN §10) and a text for people."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from substrate_services.journal import bytesjson
from substrate_services.journal.jsontypes import JsonObject, JsonValue
from substrate_services.replay.classify import RunVerdict, Verdict, classify, classify_run
from substrate_services.replay.compare import Comparison
from substrate_services.replay.divergence import Dimension, Divergence, NotCompared
from substrate_services.replay.normalise import SetAside

__all__ = [
    "Divergence",
    "Line",
    "Missing",
    "NotCompared",
    "Report",
    "RunOutcome",
    "Subject",
    "make_report",
    "run_outcome",
    "to_json",
    "to_lines",
    "to_text",
]

SHOWN_DIVERGENCES = 10
_SHOWN_MISSING = 10
_VALUE_WIDTH = 160


@dataclass(frozen=True, slots=True)
class Subject:
    """What was replayed."""

    span_id: str
    action_digest: str
    command: bytes  # for people: the shell string, or the argv joined
    outcome: str  # how the recording ended: "exited 0"
    duration_ms: float
    session_id: str = ""


@dataclass(frozen=True, slots=True)
class Missing:
    """Something that the replay would have needed and that cannot be had."""

    what: bytes  # a path, or a name
    reason: str
    digest: str | None = None


@dataclass(frozen=True, slots=True)
class RunOutcome:
    """One run of a replay."""

    run: int  # from 1
    verdict: RunVerdict
    span_id: str | None = None  # of the replay's own record; None when it was not run
    outcome: str = ""  # how it ended: "exited 0"
    duration_ms: float | None = None
    reason: str = ""  # why it was not run
    comparison: Comparison | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """The answer to a replay.

    ``divergences``, ``compared``, ``not_compared`` and ``normalisation`` are those of the run
    that speaks for all: the first that diverged, else the first.
    """

    verdict: Verdict
    subject: Subject
    runs: tuple[RunOutcome, ...]
    divergences: tuple[Divergence, ...] = ()
    observations: tuple[Divergence, ...] = ()
    compared: tuple[Dimension, ...] = ()
    not_compared: tuple[NotCompared, ...] = ()
    missing: tuple[Missing, ...] = ()
    normalisation: Mapping[str, int] = field(default_factory=dict)
    set_aside: tuple[SetAside, ...] = ()
    divergences_omitted: int = 0

    @property
    def first(self) -> Divergence | None:
        """The divergence that matters most."""
        return self.divergences[0] if self.divergences else None


def run_outcome(
    run: int,
    comparison: Comparison | None,
    *,
    span_id: str | None = None,
    outcome: str = "",
    duration_ms: float | None = None,
    reason: str = "",
) -> RunOutcome:
    """A run with the verdict that its comparison gives."""
    verdict = classify_run(comparison)
    if verdict == "not_run" and comparison is not None and not reason:
        reason = "nothing could be compared"
    return RunOutcome(run, verdict, span_id, outcome, duration_ms, reason, comparison)


def make_report(
    subject: Subject, runs: tuple[RunOutcome, ...], missing: tuple[Missing, ...] = ()
) -> Report:
    """The report over all runs.

    Args:
        subject: what was replayed.
        runs: what each run showed; not empty: a replay that could not run has one ``not_run``.
        missing: what could not be restored.

    Raises:
        ValueError: there are no runs.
    """
    if not runs:
        raise ValueError("a report needs at least one run; give one with verdict not_run")
    speaker = next((run for run in runs if run.verdict == "diverged"), runs[0])
    verdict = classify(run.verdict for run in runs)
    found = speaker.comparison
    if found is None:
        return Report(verdict, subject, runs, missing=missing)
    return Report(
        verdict,
        subject,
        runs,
        divergences=found.divergences,
        observations=found.observations,
        compared=found.compared,
        not_compared=found.not_compared,
        missing=missing,
        normalisation=found.normalisation,
        set_aside=found.set_aside,
        divergences_omitted=found.omitted,
    )


# --- JSON ----------------------------------------------------------------------------------------


def to_json(report: Report) -> JsonObject:
    """The report as one JSON object with the documented names (docs/REPLAY.md)."""
    first = report.first
    return {
        "verdict": report.verdict,
        "span_id": report.subject.span_id,
        "session_id": report.subject.session_id,
        "action_digest": report.subject.action_digest,
        "command": bytesjson.encode(report.subject.command),
        "outcome": report.subject.outcome,
        "duration_ms": report.subject.duration_ms,
        "first": None if first is None else _divergence_json(first),
        "divergences": [_divergence_json(item) for item in report.divergences],
        "divergences_omitted": report.divergences_omitted,
        "observations": [_divergence_json(item) for item in report.observations],
        "compared": list(report.compared),
        "not_compared": [
            {"dimension": item.dimension, "reason": item.reason} for item in report.not_compared
        ],
        "missing": [
            {"what": bytesjson.encode(item.what), "reason": item.reason, "digest": item.digest}
            for item in report.missing
        ],
        "normalisation": {
            rule: report.normalisation[rule] for rule in sorted(report.normalisation)
        },
        "set_aside": [
            {
                "rule": item.rule,
                "recorded": bytesjson.encode(item.recorded),
                "replayed": bytesjson.encode(item.replayed),
            }
            for item in report.set_aside
        ],
        "runs": [_run_json(run) for run in report.runs],
    }


def _run_json(run: RunOutcome) -> JsonObject:
    return {
        "run": run.run,
        "verdict": run.verdict,
        "span_id": run.span_id,
        "outcome": run.outcome,
        "duration_ms": run.duration_ms,
        "reason": run.reason,
        "divergences": len(run.comparison.divergences) + run.comparison.omitted
        if run.comparison is not None
        else 0,
    }


def _divergence_json(item: Divergence) -> JsonObject:
    return {
        "dimension": item.dimension,
        "cause": item.cause,
        "place": item.place,
        "path": _optional_bytes(item.path),
        "line": item.line,
        "offset": item.offset,
        "expected": _optional_bytes(item.expected),
        "actual": _optional_bytes(item.actual),
        "detail": item.detail,
    }


def _optional_bytes(data: bytes | None) -> JsonValue:
    return None if data is None else bytesjson.encode(data)


# --- text ----------------------------------------------------------------------------------------

Role: TypeAlias = Literal["verdict", "heading", "expected", "actual", "plain"]


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the text; ``role`` is for who wants to colour it."""

    role: Role
    text: str


def to_text(report: Report, *, shown: int = SHOWN_DIVERGENCES) -> str:
    """The report for people; control characters of outputs are escaped, so it is safe to print.

    Args:
        report: the report.
        shown: how many divergences are listed before the rest is counted.
    """
    return "".join(line.text + "\n" for line in to_lines(report, shown=shown))


def to_lines(report: Report, *, shown: int = SHOWN_DIVERGENCES) -> tuple[Line, ...]:
    """As :func:`to_text`, line by line with roles."""
    subject = report.subject
    lines = [
        Line("verdict", f"{report.verdict}  {_printable(subject.command, 80)}"),
        Line("plain", f"  recorded  {_ran(subject.outcome, subject.duration_ms, subject.span_id)}"),
        *(_run_line(run, total=len(report.runs)) for run in report.runs),
    ]
    lines += _missing_lines(report.missing)
    if report.first is not None:
        lines += _first_lines(report.first)
        lines += _other_lines(report, shown)
    lines += _list_lines(report)
    # Reasons may quote what the world's programs chose: names of executables, paths.
    return tuple(Line(line.role, _escape(line.text)) for line in lines)


def _run_line(run: RunOutcome, *, total: int) -> Line:
    label = "replayed" if total == 1 else f"run {run.run:<5}"
    if run.verdict == "not_run" and run.duration_ms is None:
        return Line("plain", f"  {label}  not run: {run.reason or 'no reason given'}")
    ran = _ran(run.outcome, run.duration_ms, run.span_id)
    verdict = "" if total == 1 else f"  {run.verdict}"
    reason = f"  ({run.reason})" if run.reason else ""
    return Line("plain", f"  {label}  {ran}{verdict}{reason}")


def _ran(outcome: str, duration_ms: float | None, span_id: str | None) -> str:
    parts = [outcome]
    if duration_ms is not None:
        parts.append(f"in {_duration(duration_ms)}")
    if span_id:
        parts.append(f"(span {span_id})")
    return " ".join(part for part in parts if part)


def _duration(duration_ms: float) -> str:
    return f"{duration_ms:.0f} ms" if duration_ms < 1000 else f"{duration_ms / 1000:.2f} s"


def _missing_lines(missing: tuple[Missing, ...]) -> list[Line]:
    if not missing:
        return []
    lines = [Line("heading", "missing")]
    lines += [
        Line("plain", f"  {_printable(item.what)}: {item.reason}")
        for item in missing[:_SHOWN_MISSING]
    ]
    if len(missing) > _SHOWN_MISSING:
        lines.append(Line("plain", f"  and {len(missing) - _SHOWN_MISSING} more"))
    return lines


def _first_lines(first: Divergence) -> list[Line]:
    detail = f" ({first.detail})" if first.detail else ""
    lines = [Line("heading", f"first divergence: {_title(first)}{detail}")]
    if first.expected is not None:
        lines.append(Line("expected", f"  - {_printable(first.expected)}"))
    if first.actual is not None:
        lines.append(Line("actual", f"  + {_printable(first.actual)}"))
    return lines


def _other_lines(report: Report, shown: int) -> list[Line]:
    others = report.divergences[1:shown]
    left = len(report.divergences) - 1 - len(others) + report.divergences_omitted
    if not others and not left:
        return []
    lines = [Line("heading", "also")]
    lines += [Line("plain", f"  {_title(item)}{_change(item)}") for item in others]
    if left:
        lines.append(Line("plain", f"  and {left} more; all are in the JSON report"))
    return lines


def _list_lines(report: Report) -> list[Line]:
    lines: list[Line] = []
    if report.compared:
        lines.append(Line("plain", f"  compared      {', '.join(report.compared)}"))
    if report.normalisation:
        values = ", ".join(
            f"{count} {rule}" for rule, count in sorted(report.normalisation.items())
        )
        sample = report.set_aside[0] if report.set_aside else None
        example = (
            f" (such as {_printable(sample.recorded, 40)} / {_printable(sample.replayed, 40)})"
            if sample is not None
            else ""
        )
        lines.append(Line("plain", f"  set aside     {values}{example}"))
    label = "not compared"
    for dimensions, reason in _grouped(report.not_compared):
        lines.append(Line("plain", f"  {label:<12}  {', '.join(dimensions)}: {reason}"))
        label = ""
    lines += [
        Line("plain", f"  observed      {_title(item)}: {item.detail}")
        for item in report.observations[:SHOWN_DIVERGENCES]
    ]
    if len(report.observations) > SHOWN_DIVERGENCES:
        left = len(report.observations) - SHOWN_DIVERGENCES
        lines.append(Line("plain", f"  observed      and {left} more; all are in the JSON report"))
    return lines


def _grouped(items: tuple[NotCompared, ...]) -> list[tuple[list[Dimension], str]]:
    """Dimensions that share a reason, in one line."""
    groups: dict[str, list[Dimension]] = {}
    for item in items:
        groups.setdefault(item.reason, []).append(item.dimension)
    return [(dimensions, reason) for reason, dimensions in groups.items()]


def _title(item: Divergence) -> str:
    place = _printable(item.place.encode("utf-8", "surrogateescape"))
    if item.place.startswith(item.dimension):
        return f"{place}: {item.cause.replace('_', ' ')}"
    return f"{item.dimension}: {place}: {item.cause.replace('_', ' ')}"


def _change(item: Divergence) -> str:
    expected = "nothing" if item.expected is None else _printable(item.expected, 60)
    actual = "nothing" if item.actual is None else _printable(item.actual, 60)
    return f": {expected} -> {actual}"


def _printable(data: bytes, width: int = _VALUE_WIDTH) -> str:
    """``data`` with everything escaped that a terminal would act upon, cut to ``width``."""
    text = data.removesuffix(b"\n").decode("utf-8", "backslashreplace")
    shown = _escape(text)
    return shown if len(shown) <= width else shown[: width - 1] + "…"


def _escape(text: str) -> str:
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )
