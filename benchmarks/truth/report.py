"""The table, and what stands below it."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from benchmarks.truth.compare import Comparison, Count
from benchmarks.truth.operations import MEASURED, OpClass
from benchmarks.truth.traced import TracedCall

#: The least share that is to be captured, in each class.
BAR = 0.995
_EXAMPLES = 12


@dataclass(slots=True)
class Row:
    """A workload's outcome: a comparison, or why there is none."""

    name: str
    comparison: Comparison | None = None
    unavailable: str = ""
    operations_alone: int = 0  # in a further run, under strace without the library
    distorted: int = 0  # how many operations only one of the two had


@dataclass(slots=True)
class Totals:
    """Over all workloads."""

    classes: dict[OpClass, Count]
    failed: Count

    def met(self) -> bool:
        """Whether the bar is met in each class."""
        return all(count.ratio >= BAR for count in (*self.classes.values(), self.failed))


def totals(rows: Iterable[Row]) -> Totals:
    """Sum up."""
    sums = Totals({op_class: Count() for op_class in MEASURED}, Count())
    for comparison in _compared(rows):
        for op_class, count in comparison.classes.items():
            sums.classes[op_class].add(count)
        sums.failed.add(comparison.failed)
    return sums


def markdown(rows: Sequence[Row]) -> str:
    """All of it."""
    parts = [_captured(rows), _outside(rows), _uncovered(rows), _notes(rows), _differences(rows)]
    return "\n\n".join(part for part in parts if part) + "\n"


def as_json(rows: Sequence[Row]) -> dict[str, object]:
    """The same for programs."""
    return {
        "bar": BAR,
        "met": totals(rows).met(),
        "total": _classes_json(totals(rows).classes, totals(rows).failed),
        "workloads": {row.name: _row_json(row) for row in rows},
    }


def _compared(rows: Iterable[Row]) -> list[Comparison]:
    return [row.comparison for row in rows if row.comparison is not None]


def _row_json(row: Row) -> dict[str, object]:
    found = row.comparison
    if found is None:
        return {"unavailable": row.unavailable}
    return {
        **_classes_json(found.classes, found.failed),
        "operations_alone": row.operations_alone,
        "distorted": row.distorted,
        "surplus": len(found.surplus),
        "libc": dict(found.libc),
        "attributed": dict(found.attributed),
        "files_looked_at": _pair_json(found.looks.files),
        "looks": _pair_json(found.looks.looks),
        "looks_of_libc": dict(found.looks.libc),
        "library_calls": found.own,
        "unreturned": found.unreturned,
        "processes": found.processes,
        "uncovered": [
            {"program": program, "reason": reason, **counts}
            for (program, reason), counts in sorted(found.uncovered.items())
        ],
    }


def _pair_json(pair: Sequence[int]) -> dict[str, int]:
    return {"truth": pair[0], "captured": pair[1]}


def _classes_json(classes: dict[OpClass, Count], failed: Count) -> dict[str, object]:
    named = {str(op_class): count for op_class, count in classes.items()} | {"failed": failed}
    return {name: dataclasses.asdict(count) for name, count in named.items()}


# --- tables ---------------------------------------------------------------------------------------


def _table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rows = [
        f"| {' | '.join(head)} |",
        f"|{'|'.join(['---', *['---:'] * (len(head) - 1)])}|",
        *(f"| {' | '.join(line)} |" for line in lines),
    ]
    return "\n".join(rows)


def _cell(count: Count) -> str:
    if count.truth == 0:
        return "-"
    text = f"{count.captured:,}/{count.truth:,}"
    return text if count.captured == count.truth else f"{text} = {_percent(count)}"


def _percent(count: Count) -> str:
    # Rounded down: 99.4996 % does not meet a bar of 99.5 %.
    return f"{int(count.ratio * 100_000) / 1_000:.2f} %" if count.truth else "-"


def _captured(rows: Sequence[Row]) -> str:
    head = [
        "captured/truth",
        *(str(op_class) for op_class in MEASURED),
        "failed calls",
    ]
    sums = totals(rows)
    lines = []
    for row in rows:
        if row.comparison is None:
            lines.append([row.name, f"not run: {row.unavailable}", *[""] * (len(head) - 2)])
            continue
        counts = [*row.comparison.classes.values(), row.comparison.failed]
        lines.append([row.name, *(_cell(count) for count in counts)])
    every = [*sums.classes.values(), sums.failed]
    lines.append(["**all**", *(_cell(count) for count in every)])
    lines.append(["**share captured**", *(f"**{_percent(count)}**" for count in every)])
    return _table(head, lines)


def _outside(rows: Sequence[Row]) -> str:
    rules = sorted({rule for found in _compared(rows) for rule in found.libc})
    head = ["outside the denominator", "files looked at", "looks", "looks by libc"]
    head += [f"libc: {rule}" for rule in rules] + ["part of an entry point", "never returned"]
    lines = [
        [
            row.name,
            _cell(Count(*row.comparison.looks.files)),
            _cell(Count(*row.comparison.looks.looks)),
            f"{row.comparison.looks.libc.total():,}",
            *(f"{row.comparison.libc[rule]:,}" for rule in rules),
            f"{sum(row.comparison.attributed.values()):,}",
            f"{row.comparison.unreturned:,}",
        ]
        for row in rows
        if row.comparison is not None
    ]
    return _table(head, lines)


def _uncovered(rows: Sequence[Row]) -> str:
    lines = [
        [row.name, program, reason, f"{counts['processes']:,}", f"{counts['operations']:,}"]
        for row in rows
        if row.comparison is not None
        for (program, reason), counts in sorted(row.comparison.uncovered.items())
    ]
    head = ["uncovered in", "program", "reason", "processes", "operations unseen"]
    return _table(head, lines) if lines else "Every process was covered."


def _notes(rows: Sequence[Row]) -> str:
    found = _compared(rows)
    attributed: Counter[str] = Counter()
    by_libc: Counter[str] = Counter()
    for comparison in found:
        attributed.update(comparison.attributed)
        by_libc.update(comparison.looks.libc)
    inside = _listed(attributed)
    looks = _listed(by_libc)
    own = sum(comparison.own for comparison in found)
    surplus = sum(len(comparison.surplus) for comparison in found)
    checked = [row for row in rows if row.operations_alone]
    alone = sum(row.operations_alone for row in checked)
    distorted = sum(row.distorted for row in checked)
    again = ", ".join(row.name for row in checked) or "nothing"
    odd = sum(comparison.not_understood for comparison in found)
    return f"""Notes:

- Truth: `strace -ff` of the same processes in the same run. Matched one to one by process, exec
  number, operation, absolute path and errno, whatever the symbol.
- Failed calls are those of the five classes: look-ups in vain above all.
- The library's own calls are left out ({own:,}): paths below the segment directory, and what a
  hello reads of its process just before a segment is made there.
- Looks are stat, access, readlink and the like by path, compared as counts for each process and
  path. By libc: {looks}.
- libc's own: read-only opens that no record accounts for, and that were mapped with MAP_DENYWRITE
  or are the loader's search for a library; or libc's tables of locales, gconv modules, NSS, time
  zones and facts of the system, by fixed lists of paths (benchmarks/truth/libc.py).
- Part of an entry point: made on its thread within its recorded time, and of a kind that it is
  known to do:
  {inside}.
- Whether the library changes what strace sees: {again}
  ran again without it; of {alone:,} operations {distorted:,} were not the same.
- Recorded, and not seen by strace: {surplus:,}. Lines of strace not understood: {odd:,}."""


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.most_common()) or "none"


def _differences(rows: Sequence[Row]) -> str:
    parts = []
    for row in rows:
        found = row.comparison
        if found is None:
            continue
        missing = Counter(_told(call) for call in found.missing)
        surplus: Counter[str] = Counter(
            f"{at.name} ({at.operation.error or 'done'})" for _, at in found.surplus
        )
        example = {
            _told(call): call.at.operation.path.decode("utf-8", "replace") for call in found.missing
        }
        parts += [
            f"- {row.name}: missing {count:,} of {what}, such as {example[what]}"
            for what, count in missing.most_common(_EXAMPLES)
        ]
        parts += [
            f"- {row.name}: not seen to look at {path.decode('utf-8', 'replace')}"
            for _, path in found.looks.unseen[:_EXAMPLES]
        ]
        parts += [
            f"- {row.name}: recorded alone {count:,} of {what}"
            for what, count in surplus.most_common(_EXAMPLES)
        ]
    return "\n".join(["Differences:", "", *parts]) if parts else ""


def _told(call: TracedCall) -> str:
    outcome = call.at.operation.error or "done"
    return f"{call.at.name} ({outcome}) by {_program(call.program.path)}"


def _program(path: bytes) -> str:
    return path.rpartition(b"/")[2].decode("utf-8", "replace")
