"""What applying a world's changes to the host comes to: what to do, and what stands in the way."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection
from dataclasses import dataclass, field

import blake3

from substrate_services.errors import InvalidField
from substrate_services.journal.schema import Change, FileState
from substrate_services.objects.store import ObjectStore
from substrate_services.world.base_mounts import is_below
from substrate_services.world.consent import bare_repositories, executes_later, named_by_git
from substrate_services.world.fingerprint import same_entry
from substrate_services.world.host_tree import HostTree
from substrate_services.world.tree import ToApply

_CONFIGURATION_LIMIT_BYTES = 1 << 20
_APPLICABLE = ("file", "dir", "symlink")
_NAMED = 8


@dataclass(slots=True)
class ApplyPlan:
    """What is to be done, in no order yet.

    Attributes:
        changes: all that was selected.
        take: paths to take away.
        put: paths to put in place, over what is there if anything is.
        attributes: paths that get other attributes only.
        done: paths that are on the host already as they are to be.
        conflicts: paths whose entry on the host is not the one that the world was made from.
        needs_consent: paths that execute later on the host and were not agreed to.
    """

    changes: tuple[Change, ...]
    take: list[Change] = field(default_factory=list)
    put: list[Change] = field(default_factory=list)
    attributes: list[Change] = field(default_factory=list)
    done: list[Change] = field(default_factory=list)
    conflicts: list[bytes] = field(default_factory=list)
    needs_consent: list[bytes] = field(default_factory=list)


def select(to_apply: ToApply, paths: tuple[bytes, ...], roots: tuple[bytes, ...]) -> ToApply:
    """The part of a world's changes that some paths name, with the directories that they need.

    Raises:
        InvalidField: a path lies outside the project.
    """
    for path in paths:
        if not is_below(path, roots):
            raise InvalidField(
                "paths",
                os.fsdecode(path),
                "it is not in the project, and nothing else of the host is written; copy it there",
            )
    if not paths:
        return to_apply
    made = {
        change.path: change
        for change in to_apply.changes
        if change.after is not None and change.after.kind == "dir"
    }
    chosen = {change.path for change in to_apply.changes if is_below(change.path, paths)}
    for path in tuple(chosen):
        above = os.path.dirname(path)
        while above in made and (made[above].before is None):
            chosen.add(above)
            above = os.path.dirname(above)
    kept = tuple(change for change in to_apply.changes if change.path in chosen)
    _require_whole_renames(to_apply, chosen)
    redirects = {new: old for new, old in to_apply.redirects.items() if new in chosen}
    return ToApply(kept, to_apply.nodes, to_apply.fingerprints, redirects)


def _require_whole_renames(to_apply: ToApply, chosen: set[bytes]) -> None:
    """Refuse what would take the content of a renamed directory away from the world."""
    for new, old in to_apply.redirects.items():
        goes = any(is_below(path, (old,)) for path in chosen)
        below = (top_of(new, to_apply), old)
        whole = all(
            change.path in chosen for change in to_apply.changes if is_below(change.path, below)
        )
        if goes and not whole:
            raise InvalidField(
                "paths",
                os.fsdecode(old),
                f"the world renamed it to {os.fsdecode(new)}; name both, whole",
            )


def top_of(path: bytes, to_apply: ToApply) -> bytes:
    """The topmost directory above a path that the world made, or the path itself."""
    made = {change.path for change in to_apply.changes if change.before is None}
    while os.path.dirname(path) in made:
        path = os.path.dirname(path)
    return path


def to_renew(to_apply: ToApply) -> tuple[bytes, ...]:
    """Paths that the world must not hold by itself once they are applied.

    A renamed directory of the base shows what the host has under its old name, where there will be
    nothing any more.
    """
    tops = {top_of(new, to_apply) for new in to_apply.redirects}
    return tuple(sorted(tops | set(to_apply.redirects.values())))


def make_plan(
    to_apply: ToApply, host: HostTree, store: ObjectStore, consent: Collection[bytes]
) -> ApplyPlan:
    """Hold a world's changes against the host's files.

    Raises:
        InvalidField: something can never be applied: a device, a set-id file, content not kept.
    """
    _refuse_what_cannot_be(to_apply, store)
    plan = ApplyPlan(to_apply.changes)
    deleted = {change.path for change in to_apply.changes if change.after is None}
    for change in to_apply.changes:
        _sort_in(plan, change, to_apply, host, deleted)
    plan.needs_consent = _needs_consent(plan, host, store, consent)
    return plan


def _refuse_what_cannot_be(to_apply: ToApply, store: ObjectStore) -> None:
    problems = []
    known = {change.before.digest for change in to_apply.changes if change.before is not None}
    for change in to_apply.changes:
        after = change.after
        if after is None:
            continue
        if after.kind not in _APPLICABLE:
            problems.append((change.path, f"a {after.kind} is not applied"))
        elif after.kind == "file" and after.mode & (stat.S_ISUID | stat.S_ISGID):
            problems.append((change.path, "a set-id file is not applied"))
        elif after.kind == "file" and change.kind != "metadata":
            if after.digest is None:
                problems.append((change.path, "its content could not be kept"))
            elif after.digest not in known and not store.has(after.digest):
                problems.append((change.path, "its content is not kept"))
        node = to_apply.nodes.get(change.path)
        if node is not None and node.kind == "dir" and node.unread:
            problems.append((change.path, node.unread))
    if problems:
        named = "; ".join(f"{os.fsdecode(path)}: {why}" for path, why in problems[:_NAMED])
        more = f"; and {len(problems) - _NAMED} more" if len(problems) > _NAMED else ""
        raise InvalidField(
            "paths", f"{named}{more}", "remove it in the world, or name other paths to apply"
        )


def _sort_in(
    plan: ApplyPlan, change: Change, to_apply: ToApply, host: HostTree, deleted: set[bytes]
) -> None:
    located = host.locate(change.path)
    if located is None:
        plan.conflicts.append(change.path)
        return
    root, relative = located
    recorded = to_apply.fingerprints.get(change.path)
    live = host.status(root, relative)
    if change.before is None:
        if live is None and recorded is None:
            plan.put.append(change)
        elif live is not None and _is_so_already(change.after, host, root, relative, live):
            plan.done.append(change)
        else:
            plan.conflicts.append(change.path)
        return
    if recorded is None or live is None or not same_entry(recorded, live):
        plan.conflicts.append(change.path)
        return
    if stat.S_ISLNK(live.st_mode) and recorded.target != host.link_target(root, relative):
        plan.conflicts.append(change.path)
        return
    goes = change.after is None or (change.before.kind == "dir" and change.after.kind != "dir")
    if goes and stat.S_ISDIR(live.st_mode):
        # What the host has added there since nobody has agreed to lose.
        for name in host.names(root, relative):
            path = os.path.join(change.path, name)
            if path not in deleted:
                plan.conflicts.append(path)
    if change.after is None:
        plan.take.append(change)
    elif change.kind == "metadata" or (change.before.kind == change.after.kind == "dir"):
        plan.attributes.append(change)
    else:
        plan.put.append(change)


def _is_so_already(
    after: FileState | None, host: HostTree, root: int, relative: bytes, live: os.stat_result
) -> bool:
    """Whether the host has made the same by itself."""
    if after is None:
        return False
    if after.kind == "dir":
        return stat.S_ISDIR(live.st_mode)
    if after.kind == "symlink":
        return stat.S_ISLNK(live.st_mode) and host.link_target(root, relative) == after.target
    if not stat.S_ISREG(live.st_mode) or live.st_size != after.size:
        return False
    if stat.S_IMODE(live.st_mode) != after.mode:
        return False
    with host.reading(root, relative) as descriptor:
        return digest_of(descriptor) == after.digest


def digest_of(descriptor: int) -> str:
    """The digest of an open file's content."""
    hasher = blake3.blake3()
    offset = 0
    while chunk := os.pread(descriptor, 1 << 20, offset):
        hasher.update(chunk)
        offset += len(chunk)
    return hasher.hexdigest()


def _needs_consent(
    plan: ApplyPlan, host: HostTree, store: ObjectStore, consent: Collection[bytes]
) -> list[bytes]:
    roots = host.roots
    exists = {change.path: change.after is not None for change in plan.changes}
    git_directories = (*roots[1:], *bare_repositories(exists, exists))
    named: set[bytes] = set()
    for change in plan.changes:
        # The world's own configuration may name what the host's does not.
        after = change.after
        if os.path.basename(change.path) != b"config" or after is None or after.digest is None:
            continue
        if after.size <= _CONFIGURATION_LIMIT_BYTES and store.has(after.digest):
            text = store.get(after.digest)
            named |= named_by_git(text, os.path.dirname(change.path), roots)
    for directory in (os.path.join(roots[0], b".git"), *roots[1:]):
        named |= named_by_git(_configuration(host, directory), directory, roots)
    wanted = [
        change.path
        for change in (*plan.take, *plan.put, *plan.attributes)
        if change.path not in consent and executes_later(change, git_directories, named)
    ]
    return sorted(wanted)


def _configuration(host: HostTree, directory: bytes) -> bytes:
    located = host.locate(os.path.join(directory, b"config"))
    if located is None:
        return b""
    try:
        with host.reading(*located) as descriptor:
            return os.pread(descriptor, _CONFIGURATION_LIMIT_BYTES, 0)
    except OSError:
        return b""
