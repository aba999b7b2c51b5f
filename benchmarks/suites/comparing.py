"""Running a suite both ways, and telling a difference that the library makes from a flake."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path

from benchmarks.suites.kinds import TIMED_OUT, Cases, Suite

_AGAIN = 3
_KEPT_CHARS = 2000


@dataclass(slots=True)
class Difference:
    """A case that did not come out the same, with what it came to each time."""

    test: str
    case: str
    without: list[str]
    recorded: list[str]

    @property
    def flaky(self) -> bool:
        """Whether the library is not what makes it.

        What comes out in ever new ways without it tells nothing, nor what was not awaited. An
        effect shows each time, or nearly: what is usual without the library is not what comes of it
        with the library.
        """
        if TIMED_OUT in self.without:
            return True
        usual, count = Counter(self.without).most_common(1)[0]
        return count * 2 <= len(self.without) or self.recorded.count(usual) > 1


@dataclass(slots=True)
class Result:
    """What a suite, or a part of it, came to."""

    tests: int = 0
    cases: int = 0
    failing: int = 0  # the same both ways, and no success: this machine's or this setup's
    differences: list[Difference] = field(default_factory=list)
    unrecorded: list[str] = field(default_factory=list)  # the library left nothing: no comparison

    @property
    def different(self) -> list[Difference]:
        """The differences that the library makes."""
        return [difference for difference in self.differences if not difference.flaky]

    @property
    def flaky(self) -> list[Difference]:
        """The differences that it does not make."""
        return [difference for difference in self.differences if difference.flaky]

    def add(self, other: Result) -> None:
        """Count another part in."""
        self.tests += other.tests
        self.cases += other.cases
        self.failing += other.failing
        self.differences += other.differences
        self.unrecorded += other.unrecorded


def _brief(text: str) -> str:
    """An outcome as it is kept: the beginning of a long output, and what tells it from others."""
    if len(text) <= _KEPT_CHARS:
        return text
    return f"{text[:_KEPT_CHARS]}... {sha256(text.encode()).hexdigest()}"


def _cases_that_differ(without: Cases, recorded: Cases) -> list[str]:
    # The exit first: it says more than what follows from it.
    names = sorted(without.keys() | recorded.keys(), key=lambda name: (name != "exit", name))
    return [name for name in names if without.get(name) != recorded.get(name)]


def _again(suite: Suite, test: str, first: list[Difference]) -> None:
    """Run a test some more, both ways, and note down what its differing cases come to."""
    for _ in range(_AGAIN):
        for way in random.sample((False, True), 2):
            cases = suite.outcomes([test], way)[0][test]
            for difference in first:
                told = _brief(cases.get(difference.case, "absent"))
                (difference.recorded if way else difference.without).append(told)


def compare_batch(suite: Suite, tests: Sequence[str]) -> Result:
    """Run some tests without the library and with it; what differs, three times more each way."""
    ways = {}
    segments = 0
    for way in random.sample((False, True), 2):
        ways[way], count = suite.outcomes(tests, way)
        segments += count if way else 0
    # Who took too long was killed before the files could be counted.
    counted = all(TIMED_OUT not in ways[True][test].values() for test in tests)
    unrecorded = list(tests) if counted and segments == 0 else []
    result = Result(tests=len(tests), unrecorded=unrecorded)
    for test in tests:
        without, recorded = ways[False][test], ways[True][test]
        result.cases += len(without.keys() | recorded.keys())
        differing = [
            Difference(
                test,
                case,
                [_brief(without.get(case, "absent"))],
                [_brief(recorded.get(case, "absent"))],
            )
            for case in _cases_that_differ(without, recorded)
        ]
        if differing:
            _again(suite, test, differing)
            result.differences += differing
        elif "exit" in without:
            result.failing += without["exit"] != "0"
        else:
            result.failing += not set(without.values()) <= {"PASS", "SKIP", "XFAIL"}
    return result


def compare(
    suite: Suite, tests: Sequence[str], jobs: int, log: Path, told: Callable[[str], None]
) -> Iterator[Result]:
    """Compare so many batches at a time; each batch's result is kept in `log` and yielded."""
    batches = [tests[at : at + suite.batch] for at in range(0, len(tests), suite.batch)]
    with ThreadPoolExecutor(jobs) as pool, log.open("a") as file:
        for batch, result in zip(
            batches, pool.map(lambda b: compare_batch(suite, b), batches), strict=True
        ):
            json.dump({"names": list(batch), **asdict(result)}, file)
            file.write("\n")
            file.flush()
            for difference in result.differences:
                kind = "flaky" if difference.flaky else "DIFFERENT"
                told(f"  {kind}: {difference.test}, {difference.case}")
            yield result


def finished(log: Path) -> Iterator[tuple[list[str], Result]]:
    """The batches that an earlier, interrupted run has kept."""
    if not log.exists():
        return
    for line in log.read_text().splitlines():
        kept = json.loads(line)
        names = kept.pop("names")
        differences = [Difference(**difference) for difference in kept.pop("differences")]
        yield names, Result(**kept, differences=differences)
