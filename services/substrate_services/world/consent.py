"""Paths of a project that execute later on the host, by themselves or by habit.

A command in a world that writes one of these would run on the host, outside every world, at the
next ``git commit``, ``cd``, open of an editor, or push. So they are applied only where they were
agreed to by name. What somebody has to run knowingly (Makefile, scripts, package.json) is none.

======================  ===================================================================
git                     .git where it is no directory; .git/hooks, .git/config and config.worktree,
                        also of submodules, linked work trees and bare repositories; what a
                        configuration includes, or names as hooks
the shell, at cd        .envrc, .mise.toml, mise.toml, .autoenv, .autoenv.zsh
editors                 tasks.json, settings.json and launch.json in .vscode; .idea,
                        .devcontainer, .devcontainer.json, .exrc, .nvimrc, .nvim.lua, .vimrc,
                        .dir-locals.el
agents                  .claude, .cursor, .mcp.json, .substrate
CI                      .github/workflows, .github/actions, .gitlab-ci.yml, .circleci, .travis.yml,
                        .drone.yml, .woodpecker, .woodpecker.yml, .buildkite, azure-pipelines.yml,
                        bitbucket-pipelines.yml, Jenkinsfile
managers of hooks       .pre-commit-config.yaml, .husky, lefthook.yml, .lefthook.yml,
                        .overcommit.yml
======================  ===================================================================
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence

from substrate_services.journal.schema import Change

# A path that ends in one of these, or lies below it, executes later.
_EXECUTING: tuple[tuple[bytes, ...], ...] = tuple(
    tuple(line.split(b"/"))
    for line in b"""
.git/hooks .git/config .git/config.worktree
.envrc .mise.toml mise.toml .autoenv .autoenv.zsh
.vscode/tasks.json .vscode/settings.json .vscode/launch.json .idea
.devcontainer .devcontainer.json .exrc .nvimrc .nvim.lua .vimrc .dir-locals.el
.claude .cursor .mcp.json .substrate
.github/workflows .github/actions .gitlab-ci.yml .circleci .travis.yml .drone.yml
.woodpecker .woodpecker.yml .buildkite azure-pipelines.yml bitbucket-pipelines.yml Jenkinsfile
.pre-commit-config.yaml .husky lefthook.yml .lefthook.yml .overcommit.yml
""".split()
)
# Below a git directory, wherever in it: submodules and work trees have their own of these.
_GIT_NAMES = frozenset({b"hooks", b"config", b"config.worktree"})
_REPOSITORY = (b"HEAD", b"objects", b"refs")
# Keys of git-config(1) whose values name files that git reads as configuration, or runs.
_NAMES_FILES = re.compile(
    rb"^\s*(?:path|hookspath|fsmonitor|attributesfile)\s*=\s*\"?([^\"#;\r\n]+?)\"?\s*$",
    re.IGNORECASE | re.MULTILINE,
)


def executes_later(
    change: Change, git_directories: Collection[bytes], named: Collection[bytes]
) -> bool:
    """Whether applying a change would have something run on the host later.

    Args:
        change: what is to be applied.
        git_directories: directories known to be git's, besides those called ``.git``.
        named: files and directories that git's configuration names.
    """
    is_link = change.after is not None and change.after.kind == "symlink"
    state = change.after or change.before
    is_dir = state is not None and state.kind == "dir"
    if _matches(change.path, is_link=is_link, is_dir=is_dir):
        return not is_dir or change.kind != "created"
    if os.path.basename(change.path).lower() == b".git" and not is_dir:
        return True  # a pointer to a repository of somebody's choice
    if any(_is_at_or_below(change.path, path) for path in named):
        return True
    for directory in git_directories:
        if change.path.startswith(directory + b"/"):
            names = change.path[len(directory) + 1 :].split(b"/")
            return not is_dir and not _GIT_NAMES.isdisjoint(names)
    return False


def _matches(path: bytes, *, is_link: bool, is_dir: bool) -> bool:
    names = [name.lower() for name in path.split(b"/")]  # some file systems fold case
    for start, name in enumerate(names):
        for pattern in _EXECUTING:
            if name != pattern[0].lower():
                continue
            rest = tuple(names[start : start + len(pattern)])
            wanted = tuple(part.lower() for part in pattern)
            if rest == wanted:
                return True
            # A link in the place of a directory brings along whatever it leads to.
            if is_link and len(rest) < len(wanted) and rest == wanted[: len(rest)]:
                return True
        if name == b".git" and not is_dir and not _GIT_NAMES.isdisjoint(names[start + 1 :]):
            return names[start + 1] in (b"modules", b"worktrees", *_GIT_NAMES)
    return False


def bare_repositories(paths: Iterable[bytes], exists: Mapping[bytes, bool]) -> tuple[bytes, ...]:
    """Directories that git would take for repositories, though none is called ``.git``.

    Args:
        paths: what is to be applied.
        exists: whether a path will be there afterwards, for those that are to be applied.
    """
    by_parent: dict[bytes, set[bytes]] = {}
    for path in paths:
        if exists.get(path, False):
            parent, name = os.path.split(path)
            by_parent.setdefault(parent, set()).add(name)
    return tuple(parent for parent, names in by_parent.items() if names.issuperset(_REPOSITORY))


def named_by_git(configuration: bytes, directory: bytes, roots: Sequence[bytes]) -> set[bytes]:
    """Files and directories below ``roots`` that a git configuration includes or runs.

    Args:
        configuration: the text of the file.
        directory: the git directory it is in; ``core.hooksPath`` starts at the work tree.
        roots: the project's directories.
    """
    found: set[bytes] = set()
    for match in _NAMES_FILES.finditer(configuration):
        value = os.path.expanduser(match[1].strip())
        for start in (directory, os.path.dirname(directory)):
            path = os.path.normpath(os.path.join(start, value))
            if any(_is_at_or_below(path, root) and path != root for root in roots):
                found.add(path)
    return found


def _is_at_or_below(path: bytes, root: bytes) -> bool:
    return path == root or path.startswith(root.rstrip(b"/") + b"/")
