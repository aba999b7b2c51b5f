"""Which directory a world is about (DESIGN §5): the git root around the cwd, or the cwd."""

from __future__ import annotations

import os
from dataclasses import dataclass

from substrate_services.journal import bytesjson
from substrate_services.journal.jsontypes import Fields, JsonObject
from substrate_services.journal.parts import byte_items, byte_list, opt_bytes
from substrate_services.world.base_mounts import is_below

# Directories of a home that hold keys and tokens.
CREDENTIALS = (b".ssh", b".aws", b".gnupg", b".kube", b".docker", b".config/gcloud", b".azure")


@dataclass(frozen=True, slots=True)
class Project:
    """The directory whose changes matter most, with the git directories it is linked to."""

    root: bytes
    linked: tuple[bytes, ...] = ()

    @property
    def roots(self) -> tuple[bytes, ...]:
        """All directories whose changes are the project's."""
        return (self.root, *self.linked)


class ProjectRefused(ValueError):
    """The directory asked for cannot be a project; the text says why and what to do."""


def find_project(cwd: bytes, homes: tuple[bytes, ...], hidden: bytes) -> Project | None:
    """The project around ``cwd``; None where ``cwd`` is a home, or a directory around one.

    Args:
        cwd: an absolute path on the host.
        homes: home directories; showing one as a project would show credentials.
        hidden: ``$SUBSTRATE_HOME``, which is never a project.

    Raises:
        ProjectRefused: ``cwd`` does not exist, or holds credentials.
    """
    cwd = os.path.realpath(cwd)
    if not os.path.isdir(cwd):
        raise ProjectRefused(
            f"the directory {os.fsdecode(cwd)} does not exist; run from one that does"
        )
    if is_below(cwd, (hidden,)):
        raise ProjectRefused(
            f"{os.fsdecode(cwd)} belongs to the recorder; run from the directory of your code"
        )
    for home in homes:
        for name in CREDENTIALS:
            if is_below(cwd, (os.path.join(home, name),)):
                raise ProjectRefused(
                    f"{os.fsdecode(cwd)} holds credentials and cannot be a project; "
                    "run from the directory of your code"
                )
    root = _git_root(cwd, homes) or cwd
    if any(is_below(home, (root,)) for home in homes):
        return None
    return Project(root, _linked_git_directories(root))


def _git_root(cwd: bytes, homes: tuple[bytes, ...]) -> bytes | None:
    directory = cwd
    while True:
        if any(is_below(home, (directory,)) for home in homes):
            return None  # a home kept in git is still a home
        if os.path.lexists(os.path.join(directory, b".git")):
            return directory
        parent = os.path.dirname(directory)
        if parent == directory:
            return None
        directory = parent


def _linked_git_directories(root: bytes) -> tuple[bytes, ...]:
    """Where a linked work tree or submodule keeps its repository (gitrepository-layout(5))."""
    pointer = os.path.join(root, b".git")
    if not os.path.isfile(pointer):
        return ()
    with open(pointer, "rb") as file:
        text = file.read(4096)
    if not text.startswith(b"gitdir:"):
        return ()
    git_dir = os.path.realpath(os.path.join(root, text[len(b"gitdir:") :].strip()))
    common = git_dir
    try:
        with open(os.path.join(git_dir, b"commondir"), "rb") as file:
            common = os.path.realpath(os.path.join(git_dir, file.read(4096).strip()))
    except OSError:
        pass  # a submodule has no commondir
    # Only what is a git directory: the pointer is the project's own text and may name anything.
    if not os.path.isfile(os.path.join(common, b"HEAD")):
        return ()
    return () if is_below(common, (root,)) else (common,)


def project_to_json(project: Project | None) -> JsonObject | None:
    """The JSON form of a project."""
    if project is None:
        return None
    return {"root": bytesjson.encode(project.root), "linked": byte_list(project.linked)}


def project_from_json(fields: Fields, key: str) -> Project | None:
    """The project in a field."""
    if not fields.has(key):
        return None
    project = fields.child(key)
    return Project(opt_bytes(project, "root") or b"/", byte_items(project, "linked"))
