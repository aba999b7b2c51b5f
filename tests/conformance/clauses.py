"""How a test says which sentence of the contract it holds."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from substrate_sdk import Result, Substrate, World
from substrate_sdk._pb.substrate.world.v1alpha1 import world_service_pb2_grpc
from substrate_sdk.types import Capability
from tests.conformance.modes import Mode
from tests.users import PYTHON, User


def clause(text: str, *, needs: tuple[str, ...] = ()) -> pytest.MarkDecorator:
    """Mark a test with its sentence.

    Args:
        text: "area: what holds"; one line of the table.
        needs: features by the names of Capabilities; where one is missing the test is skipped.
    """
    return pytest.mark.clause(text, needs=needs)


@dataclass(frozen=True, slots=True)
class Host:
    """A host in one mode.

    Attributes:
        mode: the mode.
        user: whose host it is.
        stub: its RPCs, for what the SDK does by itself.
        capabilities: what it says of itself, by feature.
        world_id: a world for clauses that leave it whole.
        project: of that world.
    """

    mode: Mode
    user: User
    stub: world_service_pb2_grpc.WorldServiceStub
    capabilities: Mapping[str, Capability]
    world_id: str
    project: Path

    def why_not(self, needs: tuple[str, ...]) -> str | None:
        """The host's own words on the first of these features that is missing."""
        for feature in needs:
            row = self.capabilities[feature]
            if row.state == "missing":
                words = (row.mode, row.consequence, row.fix)
                return f"{feature} is missing: {'; '.join(filter(None, words))}"
        return None


@dataclass(frozen=True, slots=True)
class Place:
    """A host, and a test's own client of it."""

    host: Host
    sub: Substrate

    @property
    def user(self) -> User:
        """Whose host it is."""
        return self.host.user

    @property
    def stub(self) -> world_service_pb2_grpc.WorldServiceStub:
        """The RPCs, for what the SDK does by itself."""
        return self.host.stub

    @property
    def capabilities(self) -> Mapping[str, Capability]:
        """What the host says of itself, by feature."""
        return self.host.capabilities

    @property
    def python(self) -> str:
        """A Python that worlds show."""
        return self.user.command[0] if self.user.prefix else PYTHON


@contextmanager
def new_project(user: User) -> Iterator[Path]:
    """A directory of the user's own, with a README.md."""
    project = Path(tempfile.mkdtemp(prefix="sbcf", dir="/tmp"))
    try:
        project.chmod(0o755)
        (project / "README.md").write_text("# A project\n")
        owner = user.home.stat()
        for path in (project, project / "README.md"):
            os.chown(path, owner.st_uid, owner.st_gid)
        yield project
    finally:
        shutil.rmtree(project)


def kinds(result: Result, project: Path) -> dict[str, str]:
    """What a step did to the project: relative path to kind."""
    found: dict[str, str] = {}
    for change in result.changes:
        path = Path(change.path)
        if path.is_relative_to(project):
            found[str(path.relative_to(project))] = change.kind
    return found


def said(world: World, script: str) -> str:
    """What a script prints that has to succeed."""
    result = world.run(script)
    assert result.ok, result
    return result.stdout


def rules(result: Result) -> set[str]:
    """The rules that kept something from a step."""
    return {entry.rule for entry in result.blocked}
