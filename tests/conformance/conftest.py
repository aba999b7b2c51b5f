"""Hosts in every mode, and the table of clauses at the end."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import grpc
import pytest

from substrate_sdk import World
from substrate_sdk._pb.substrate.world.v1alpha1 import world_service_pb2_grpc
from tests.conformance.clauses import Host, Place, new_project
from tests.conformance.modes import MODES, Mode

#: What became of each clause, by mode: "pass", "FAIL", or "skip: why".
_TABLE: dict[str, dict[str, str]] = {}


# -- hosts ------------------------------------------------------------------------------------


@pytest.fixture(scope="package", params=MODES, ids=lambda mode: mode.name)
def mode(request: pytest.FixtureRequest) -> Mode:
    """Each backend in each of its modes."""
    found: Mode = request.param
    return found


@pytest.fixture(scope="package")
def host(mode: Mode) -> Iterator[Host]:
    """A host for all clauses of a mode, with a world that they share; there before any test."""
    with (
        mode.opened() as user,
        user.client() as sub,
        grpc.insecure_channel(f"unix:{user.paths.host_socket}") as channel,
    ):
        grpc.channel_ready_future(channel).result(10)
        stub = world_service_pb2_grpc.WorldServiceStub(channel)
        rows = {row.feature: row for row in sub.capabilities()}
        with new_project(user) as project:
            world = sub.world(project=project, cwd=project, keep=True)
            sub.close()
            yield Host(mode, user, stub, rows, world.world_id, project)
            world.remove()


@pytest.fixture
def place(host: Host, request: pytest.FixtureRequest) -> Iterator[Place]:
    """The host, and a client of the test's own. Skips what the mode says is missing."""
    (marker,) = request.node.iter_markers("clause")
    why_not = host.why_not(marker.kwargs["needs"])
    if why_not is not None:
        pytest.skip(why_not)
    with host.user.client() as sub:
        yield Place(host, sub)


@pytest.fixture
def shared(place: Place) -> World:
    """A world for clauses that leave it whole: they use names of their own."""
    return place.sub.connect(place.host.world_id)


@pytest.fixture
def project(place: Place) -> Iterator[Path]:
    """A project of the test's own."""
    with new_project(place.user) as made:
        yield made


@pytest.fixture
def world(place: Place, project: Path) -> Iterator[World]:
    """A world of the test's own."""
    with place.sub.world(project=project, cwd=project) as made:
        yield made


@pytest.fixture
def mine(place: Place) -> Callable[[Path], None]:
    """Give a path on the host to the place's user."""
    owner = place.user.home.stat()
    return lambda path: os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)


# -- the table --------------------------------------------------------------------------------


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Function,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Note what became of a clause."""
    report = yield
    marker = item.get_closest_marker("clause")
    if marker is None or (report.passed and report.when != "call"):
        return report
    cell = "pass" if report.passed else "FAIL"
    if report.skipped and isinstance(report.longrepr, tuple):
        cell = f"skip: {report.longrepr[2].removeprefix('Skipped: ')}"
    row = _TABLE.setdefault(marker.args[0], {})
    found = item.callspec.params["mode"]
    assert isinstance(found, Mode)
    name = found.name
    if row.get(name) != "FAIL":  # several tests of one clause, or its teardown
        row[name] = cell
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print clause by mode, and why what was skipped was skipped."""
    if not _TABLE:
        return
    names = [mode.name for mode in MODES]
    terminalreporter.section("conformance: clause by backend and mode")
    width = max(len(text) for text in _TABLE)
    terminalreporter.line(f"{'':{width}}  {'  '.join(names)}")
    reasons: dict[str, int] = {}
    for text, row in sorted(_TABLE.items()):
        cells = []
        for name in names:
            cell = row.get(name, "-")
            if cell.startswith("skip: "):
                number = reasons.setdefault(f"{name}: {cell[6:]}", len(reasons) + 1)
                cell = f"skip ({number})"
            cells.append(cell.ljust(len(name)))
        terminalreporter.line(f"{text:{width}}  {'  '.join(cells)}".rstrip())
    for reason, number in reasons.items():
        terminalreporter.line(f"({number}) {reason}")
