"""Writing a world's changes to the host's project (DESIGN §5).

All or nothing: new content is staged in the project's own file system, the operations are written
to a log, and each is a rename that can be told and taken back (``undo_log``, ``host_tree``). What
the host has done to a file since the world was made is a conflict, also while this runs.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from substrate_services.errors import InvalidField, ServiceError
from substrate_services.journal.schema import Change
from substrate_services.objects.store import ObjectStore
from substrate_services.world.apply_plan import ApplyPlan, make_plan, select, to_renew
from substrate_services.world.beneath import Caller
from substrate_services.world.ended import Ended
from substrate_services.world.execs import Execs
from substrate_services.world.host_tree import HostTree, Moved
from substrate_services.world.ids import EXEC_ID, new_id
from substrate_services.world.owner import as_its_owner
from substrate_services.world.renames import pair_renames
from substrate_services.world.rollback import Rollbacks
from substrate_services.world.staging import Staging
from substrate_services.world.steps import Exec, ExecRequest, is_denied, note_outcome
from substrate_services.world.tree import ToApply
from substrate_services.world.undo_log import UndoLog, load_logs
from substrate_services.world.worlds import World

log = logging.getLogger(__name__)

_NAMED = 16
_REMEMBERED = 256  # applies whose requests may come again


@dataclass(frozen=True, slots=True)
class ApplyRequest:
    """What a client asks for; see ApplyRequest in the contract. Paths are absolute."""

    exec_id: str
    paths: tuple[bytes, ...] = ()
    dry_run: bool = False
    consent: frozenset[bytes] = frozenset()


@dataclass(frozen=True, slots=True)
class Applied:
    """What was, or would be, written."""

    changes: tuple[Change, ...]
    conflicts: tuple[bytes, ...] = ()
    needs_consent: tuple[bytes, ...] = ()


class Applies:
    """Applies the worlds of one host.

    Args:
        home: ``$SUBSTRATE_HOME``.
        execs: records steps.
        store: the host's objects.
        rollbacks: puts worlds on other layers.
        caller: for whom files are written.
    """

    def __init__(
        self,
        *,
        home: Path,
        execs: Execs,
        store: ObjectStore,
        rollbacks: Rollbacks,
        caller: Caller,
    ) -> None:
        self._directory = home / "applies"
        self._execs = execs
        self._store = store
        self._rollbacks = rollbacks
        self._caller = caller
        self._turns: dict[tuple[bytes, ...], asyncio.Lock] = {}
        self._applied: dict[tuple[str, str], Applied] = {}

    async def apply(self, world: World, request: ApplyRequest) -> Applied:
        """Write changes to the host; the same exec_id does it once.

        Raises:
            InvalidField: a path that is not applied.
            ServiceError: CONFLICT, CONSENT_NEEDED, POLICY_DENIED, FILE_DENIED.
        """
        if EXEC_ID.fullmatch(request.exec_id) is None:
            raise InvalidField("request_id", request.exec_id, "expected 1 to 64 of [A-Za-z0-9_.-]")
        project = world.spec.project
        if project is None:
            raise InvalidField(
                "world_id", world.spec.world_id, "the world has no project to apply to"
            )
        if request.dry_run:
            to_apply = await asyncio.to_thread(world.tree.to_apply)
            return _told(await asyncio.to_thread(self._plan, to_apply, request, project.roots))
        # Two worlds of one project, or two requests for one apply, in turn.
        async with self._turns.setdefault(project.roots, asyncio.Lock()):
            # Not given up half-way because a client went away.
            work = self._apply(world, request, project.roots)
            return await asyncio.shield(asyncio.ensure_future(work))

    async def _apply(
        self, world: World, request: ApplyRequest, roots: tuple[bytes, ...]
    ) -> Applied:
        key = (world.spec.world_id, request.exec_id)
        known = self._execs.find(world, request.exec_id)
        if known is not None:
            record = await self._execs.wait(world, known)
            if record.exit_code != 0:
                raise ServiceError("CONFLICT", f"apply {request.exec_id} did not come to its end")
            # A host that has started since knows that it is done, and no longer all of what it was.
            return self._applied.get(key, Applied(()))
        to_apply = await asyncio.to_thread(world.tree.to_apply)
        to_apply = select(to_apply, request.paths, roots)
        if not to_apply.redirects:
            return await self._apply_chosen(world, request, to_apply, roots)
        async with world.exchanging, world.gate.alone():
            await self._rollbacks.refuse_if_held(world)
            return await self._apply_chosen(world, request, to_apply, roots)

    async def _apply_chosen(
        self, world: World, request: ApplyRequest, to_apply: ToApply, roots: tuple[bytes, ...]
    ) -> Applied:
        plan = await asyncio.to_thread(self._plan, to_apply, request, roots)
        _require_clear(plan)
        argv = (b"substrate-apply", *(request.paths or roots))
        step = ExecRequest(exec_id=request.exec_id, kind="apply", argv=argv)
        exec_ = await self._execs.begin_host_step(world, step, as_its_owner)
        decision = exec_.start.decision
        if is_denied(decision):
            raise ServiceError("POLICY_DENIED", f"{decision.reason} (rule {decision.rule_id})")
        try:
            undo_log = await asyncio.to_thread(self._write, world, exec_, plan, to_apply, roots)
        except BaseException as error:
            ended = Ended("EXITED", 1, duration_ns=0, message=f"{error}\n".encode())
            await self._execs.end_host_step(world, exec_, ended)
            raise
        applied = self._applied[world.spec.world_id, request.exec_id] = _told(plan)
        while len(self._applied) > _REMEMBERED:
            self._applied.pop(next(iter(self._applied)))
        await self._end(world, exec_, undo_log)
        return applied

    async def _end(self, world: World, exec_: Exec, undo_log: UndoLog) -> None:
        if undo_log.renew:
            await self._rollbacks.renew(world, undo_log.exec_id, undo_log.renew)
        digest = await asyncio.to_thread(world.tree.move_baseline, undo_log.paths)
        await asyncio.to_thread(world.keep_baseline, digest)
        await self._execs.end_host_step(world, exec_, note_outcome(exec_))
        await asyncio.to_thread(undo_log.forget, self._directory)

    def _plan(
        self, to_apply: ToApply, request: ApplyRequest, roots: tuple[bytes, ...]
    ) -> ApplyPlan:
        chosen = select(to_apply, request.paths, roots)
        with _open_host(roots, self._caller) as host:
            return make_plan(chosen, host, self._store, request.consent)

    def _write(
        self,
        world: World,
        exec_: Exec,
        plan: ApplyPlan,
        to_apply: ToApply,
        roots: tuple[bytes, ...],
    ) -> UndoLog:
        """Do it; blocks. On failure everything is as it was."""
        undo_log = UndoLog(
            apply_id=new_id("apl"),
            world_id=world.spec.world_id,
            exec_id=exec_.exec_id,
            caller=self._caller,
            roots=roots,
            paths=tuple(change.path for change in plan.changes),
            renew=to_renew(to_apply),
        )
        made = tuple(
            change.path
            for change in plan.put
            if change.after is not None and change.after.kind == "dir"
        )
        world.tree.hide_below(made)
        with _open_host(roots, self._caller) as host:
            undo_log.save(self._directory)
            try:
                host.make_staging(undo_log)
                staging = Staging(host, undo_log, self._store, to_apply)
                undo_log = undo_log.at("prepared", staging.prepare(plan))
                host.sync()
                undo_log.save(self._directory)
                for operation in undo_log.operations:
                    host.do(undo_log, operation)
                host.sync()
                undo_log = undo_log.at("committed")
                undo_log.save(self._directory)
            except BaseException as error:
                _take_back(host, undo_log)
                if undo_log.stage == "prepared":
                    world.keep_baseline(world.tree.take_touched(undo_log.paths))
                undo_log.forget(self._directory)
                _raise_for(error)
                raise
            host.remove_staging(undo_log)
        return undo_log

    # -- finding again -------------------------------------------------------------------------

    async def recover(self, worlds: Iterable[World]) -> None:
        """Finish, or undo, what an earlier host process was about; before execs are recovered."""
        known = {world.spec.world_id: world for world in worlds}
        for undo_log in await asyncio.to_thread(load_logs, self._directory):
            try:
                await asyncio.to_thread(_settle, undo_log)
            except OSError:
                # The project is not there, or is not ours any more: the next start tries again.
                log.exception("cannot settle an apply to %s", os.fsdecode(undo_log.roots[0]))
                continue
            world = known.get(undo_log.world_id)
            if undo_log.stage == "prepared" and world is not None:
                digest = await asyncio.to_thread(world.tree.take_touched, undo_log.paths)
                await asyncio.to_thread(world.keep_baseline, digest)
            if undo_log.stage == "committed" and world is not None:
                if undo_log.renew and not world.lost:
                    await self._rollbacks.renew(world, undo_log.exec_id, undo_log.renew)
                digest = await asyncio.to_thread(world.tree.move_baseline, undo_log.paths)
                await asyncio.to_thread(world.keep_baseline, digest)
                (world.directory / "execs" / undo_log.exec_id / "outcome").touch()
            undo_log.forget(self._directory)


def _open_host(roots: tuple[bytes, ...], caller: Caller) -> HostTree:
    """The project, open. Raises ServiceError CONFLICT where it is not there any more."""
    try:
        return HostTree(roots, caller)
    except OSError as error:
        raise _conflict([os.fsencode(error.filename or roots[0])]) from error


def _settle(undo_log: UndoLog) -> None:
    with HostTree(undo_log.roots, undo_log.caller) as host:
        if undo_log.stage == "committed":
            host.remove_staging(undo_log)
        else:
            _take_back(host, undo_log)


def _take_back(host: HostTree, undo_log: UndoLog) -> None:
    """Undo whatever was done of an apply; what the host has changed since stays as it is."""
    if undo_log.stage == "prepared":
        for operation in reversed(undo_log.operations):
            if not host.undo(undo_log, operation):
                path = host.absolute(operation.root, operation.path)
                log.warning("%s changed on the host, and is left as it is", os.fsdecode(path))
        host.sync()
    host.remove_staging(undo_log)


def _raise_for(error: BaseException) -> None:
    """Say what the host's refusals mean to whoever asked."""
    if isinstance(error, Moved):
        raise _conflict([error.path]) from error
    if isinstance(error, PermissionError):
        raise ServiceError(
            "FILE_DENIED", f"cannot write {error.filename or 'the project'}: {error.strerror}"
        ) from error


def _require_clear(plan: ApplyPlan) -> None:
    if plan.conflicts:
        raise _conflict(plan.conflicts)
    if plan.needs_consent:
        raise ServiceError(
            "CONSENT_NEEDED",
            f"{_named(plan.needs_consent)} would execute later on the host; look at "
            "what is in them, and name each to agree",
            {"paths": _named(plan.needs_consent)},
        )


def _conflict(paths: list[bytes]) -> ServiceError:
    return ServiceError(
        "CONFLICT",
        f"{_named(paths)}: the host's is not what the world was made from; nothing was written; "
        "name other paths, or begin anew from the host's tree",
        {"paths": _named(paths)},
    )


def _named(paths: list[bytes]) -> str:
    more = f" and {len(paths) - _NAMED} more" if len(paths) > _NAMED else ""
    return ", ".join(os.fsdecode(path) for path in paths[:_NAMED]) + more


def _told(plan: ApplyPlan) -> Applied:
    return Applied(
        tuple(pair_renames(plan.changes)), tuple(plan.conflicts), tuple(plan.needs_consent)
    )
