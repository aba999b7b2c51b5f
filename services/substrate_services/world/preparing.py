"""From a request to a world on disk: everything that is decided before a box is made."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from substrate_services.errors import InvalidField, ServiceError
from substrate_services.journal.reader import JournalReader
from substrate_services.journal.schema import FileFingerprint
from substrate_services.objects.errors import ObjectCorrupt, ObjectMissing
from substrate_services.objects.store import ObjectStore
from substrate_services.world.backends.base import Backend
from substrate_services.world.base_layout import make_base_layout
from substrate_services.world.base_mounts import BaseMount, read_base_mounts
from substrate_services.world.bases import (
    Base,
    directory_base,
    image_base,
    image_digest,
    recorded_base,
)
from substrate_services.world.basis import Basis
from substrate_services.world.disk import make_disk, require_disk
from substrate_services.world.ids import new_id, new_trace_id
from substrate_services.world.images.store import ImageStore
from substrate_services.world.injection import Injection, choose_injection
from substrate_services.world.layout import Layout, LayoutRequest, layout_basis, make_layout
from substrate_services.world.layout_file import save_layout
from substrate_services.world.limits import NO_LIMITS, Limits
from substrate_services.world.networks import read_rules
from substrate_services.world.profile import DEFAULT_PATH, allowed_env
from substrate_services.world.project import Project, ProjectRefused, find_project
from substrate_services.world.removal import remove_tree
from substrate_services.world.restore import (
    Missing,
    RestorePlan,
    correct,
    fill_home,
    fill_uppers,
    plan_restore,
)
from substrate_services.world.snapshots import (
    BaseRecord,
    get_base,
    get_snapshot,
    put_directory,
)
from substrate_services.world.sources import (
    TreeSource,
    after_span,
    before_span,
    find_record,
    of_snapshot,
)
from substrate_services.world.spec import WorldSpec
from substrate_services.world.tree import WorldTree
from substrate_services.world.walks import walk_directory

DEFAULT_HOSTNAME = "substrate"
#: What of the caller's environment is not about places.
_WITH_ANY_BASE = frozenset(b"TERM COLORTERM NO_COLOR FORCE_COLOR CLICOLOR COLUMNS LINES TZ".split())
_MISSING_CHARS = 1_800  # what an error may carry over the wire


@dataclass(frozen=True, slots=True)
class WorldRequest:
    """What a client asks for; see CreateWorldRequest in the contract."""

    cwd: bytes
    request_id: str = ""
    session_id: str = ""
    trace_id: str = ""
    agent_id: str = ""
    profile: str = "workspace"
    caller_env: Mapping[bytes, bytes] = field(default_factory=dict)
    env: Mapping[bytes, bytes] = field(default_factory=dict)
    user: str = ""
    network: tuple[str, ...] = ()
    hostname: str = ""
    labels: tuple[tuple[str, str], ...] = ()
    keep: bool = False
    ttl_s: float | None = None
    idle_timeout_s: float | None = None
    policy_file: bytes | None = None
    before_span_id: str | None = None
    after_span_id: str | None = None
    snapshot_id: str | None = None
    use_host_base: bool = False
    telemetry: tuple[str, ...] = ()
    limits: Limits = NO_LIMITS
    directory: bytes | None = None  # of the host, as the root
    image: str | None = None  # as the root


class NotRestorable(ServiceError):
    """A recorded tree cannot be had on this host; ``missing`` says what of it."""

    def __init__(self, words: str, missing: tuple[Missing, ...]) -> None:
        first = missing[0]
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        named: list[dict[str, str]] = []
        for entry in missing:
            named.append({"path": os.fsdecode(entry.path), "reason": entry.reason})
            if len(json.dumps(named)) > _MISSING_CHARS:
                named.pop()
                break
        super().__init__(
            "NOT_RESTORABLE",
            f"{words} cannot be restored: {os.fsdecode(first.path)} "
            f"({first.reason}){more}; put it back, or use the host's base knowingly",
            {"missing": json.dumps(named, ensure_ascii=True), "count": str(len(missing))},
        )
        self.missing = missing


@dataclass(frozen=True, slots=True)
class Ground:
    """What decides a world's layers and its box: on the same ground two worlds are made alike."""

    home: bytes
    login_home: bytes
    project: Project | None
    limits: Limits
    hostname: str
    telemetry: tuple[str, ...]
    mounts: tuple[BaseMount, ...]
    basis: Basis

    def is_like(self, other: Ground) -> bool:
        """Whether the same was asked for, though the host may have changed."""
        return replace(self, mounts=other.mounts, basis=other.basis) == other


@dataclass(frozen=True, slots=True)
class Laid:
    """A world's layers on disk."""

    layout: Layout
    injection: Injection
    tree: WorldTree


@dataclass(frozen=True, slots=True)
class Prepared:
    """A world on disk, before anything is mounted."""

    spec: WorldSpec
    layout: Layout
    tree: WorldTree
    fingerprints: dict[bytes, FileFingerprint] | None
    missing: tuple[Missing, ...]


class Preparer:
    """Prepares the worlds of one host.

    Args:
        home: ``$SUBSTRATE_HOME``, by its real name.
        backend: says how overlays and ids are done here.
        store: the host's objects.
        reader: reads the host's journal.
        preload_dir: directory with the telemetry library, shown in every world.
        images: the host's images.
    """

    def __init__(
        self,
        *,
        home: Path,
        backend: Backend,
        store: ObjectStore,
        reader: JournalReader,
        preload_dir: Path,
        images: ImageStore,
    ) -> None:
        self._home = home
        self._backend = backend
        self._store = store
        self._reader = reader
        self._preload_dir = preload_dir
        self._images = images

    def prepare(self, request: WorldRequest, world_id: str, directory: Path) -> Prepared:
        """Resolve the request and lay the world out on disk; blocks.

        Raises:
            ServiceError: PROJECT_REFUSED, NOT_BUILT, NOT_RESTORABLE, SPAN_NOT_FOUND.
        """
        _refuse_what_is_not_built(request)
        limits = request.limits
        if request.before_span_id is not None and limits == NO_LIMITS:
            # A replay has the bounds that the recording had: they are a part of the action.
            limits = Limits.from_action(
                find_record(self._reader, request.before_span_id).action.limits
            )
        limits.require(self._backend.capabilities())
        require_disk(limits, self._backend.capabilities())
        directory.mkdir(mode=0o700, parents=True)
        (directory / "execs").mkdir()
        login_home = _login_home()
        mounts = read_base_mounts()
        plan: RestorePlan | None = None
        source: TreeSource | None = None
        home = request.caller_env.get(b"HOME", b"") or login_home
        with _not_restorable_without_objects("the recorded tree"):
            source = self._source(request)
        if source is not None:
            with _not_restorable_without_objects(source.words):
                plan = self._plan(source, mounts, use_host_base=request.use_host_base)
            project, home, login_home = plan.base.project, plan.base.home, plan.base.login_home
            cwd = request.cwd or b"/"
            base = self._recorded_base(plan.base, source.words)
        else:
            base = self._asked_base(request, home, login_home)
            cwd = os.path.realpath(request.cwd or b"/")
            project = self._project(cwd, home, login_home) if request.cwd or base is None else None
            if base is not None:
                cwd = cwd if request.cwd else base.config.working_dir or b"/"
                home = login_home = base.home_of(self._user(request, base), os.geteuid())
        if limits.needs_disk:
            make_disk(directory, limits)
        layout, injection = self.lay_out(
            directory,
            home=home,
            login_home=login_home,
            project=project,
            mounts=mounts,
            base=base,
        )
        if plan is not None and source is not None:
            with _not_restorable_without_objects(source.words):
                fill_home(self._store, plan.base, directory / "fixtures" / "home")
        laid = self._laid(
            directory, layout, injection, home=home, login_home=login_home, mounts=mounts, base=base
        )
        tree = laid.tree
        if plan is not None and source is not None:
            with _not_restorable_without_objects(source.words):
                correct(self._store, plan, layout)
                if source.goes_on:
                    tree.mark_first()
                fill_uppers(self._store, plan.snapshot, layout)
        spec = self._spec(
            request,
            world_id,
            laid,
            home=home,
            login_home=login_home,
            cwd=cwd,
            limits=limits,
            base=base,
        )
        if source is not None:
            spec = replace(spec, restored_from=source.span_id or source.snapshot_id)
        return Prepared(
            spec=spec,
            layout=layout,
            tree=tree,
            fingerprints=plan.fingerprints if plan is not None else None,
            missing=plan.missing if plan is not None else (),
        )

    def require_base(self, spec: WorldSpec) -> None:
        """Raise ServiceError IMAGE_NOT_FOUND where a world's image is no longer there; blocks."""
        if image_digest(spec.base):
            recorded_base(self._images, spec.base)

    # -- worlds on the host's own tree, which can be made before anybody asks for them ----------

    def ground(self, request: WorldRequest) -> Ground | None:
        """What decides the layers and the box of a world; blocks.

        None: of a recorded tree, or with a root or a disk of its own: made for one world only.
        """
        restored = (request.before_span_id, request.after_span_id, request.snapshot_id)
        limits = request.limits
        own_root = request.image is not None or request.directory is not None
        if own_root or any(name is not None for name in restored) or limits.needs_disk:
            return None
        _refuse_what_is_not_built(request)
        limits.require(self._backend.capabilities())
        login_home = _login_home()
        home = request.caller_env.get(b"HOME", b"") or login_home
        project = self._project(os.path.realpath(request.cwd or b"/"), home, login_home)
        mounts = read_base_mounts()
        return Ground(
            home=home,
            login_home=login_home,
            project=project,
            limits=limits,
            hostname=request.hostname or DEFAULT_HOSTNAME,
            telemetry=request.telemetry,
            mounts=mounts,
            basis=self._basis(home, login_home, project, mounts),
        )

    def look_again(self, ground: Ground) -> Ground:
        """The same with the host as it is now; blocks."""
        mounts = read_base_mounts()
        basis = self._basis(ground.home, ground.login_home, ground.project, mounts)
        return replace(ground, mounts=mounts, basis=basis)

    def lay_ground(self, ground: Ground, directory: Path) -> Laid:
        """Make a world's directory and layers; blocks."""
        directory.mkdir(mode=0o700, parents=True)
        (directory / "execs").mkdir()
        layout, injection = self.lay_out(
            directory,
            home=ground.home,
            login_home=ground.login_home,
            project=ground.project,
            mounts=ground.mounts,
        )
        return self._laid(
            directory,
            layout,
            injection,
            home=ground.home,
            login_home=ground.login_home,
            mounts=ground.mounts,
        )

    def on_ground(
        self, request: WorldRequest, world_id: str, ground: Ground, laid: Laid
    ) -> Prepared:
        """A world that is asked for, on layers that are there; blocks."""
        spec = self._spec(
            request,
            world_id,
            laid,
            home=ground.home,
            login_home=ground.login_home,
            cwd=os.path.realpath(request.cwd or b"/"),
            limits=ground.limits,
        )
        return Prepared(spec, laid.layout, laid.tree, fingerprints=None, missing=())

    def _basis(
        self, home: bytes, login_home: bytes, project: Project | None, mounts: tuple[BaseMount, ...]
    ) -> Basis:
        return layout_basis(
            self._layout_request(
                Path("/nonexistent"),
                home=home,
                login_home=login_home,
                project=project,
                mounts=mounts,
            )
        )

    # -- parts -----------------------------------------------------------------------------------

    def _project(self, cwd: bytes, home: bytes, login_home: bytes) -> Project | None:
        homes = tuple(dict.fromkeys((os.path.realpath(home), login_home)))
        try:
            return find_project(cwd, homes, os.fsencode(self._home))
        except ProjectRefused as error:
            raise ServiceError("PROJECT_REFUSED", str(error)) from error

    def _laid(
        self,
        directory: Path,
        layout: Layout,
        injection: Injection,
        *,
        home: bytes,
        login_home: bytes,
        mounts: tuple[BaseMount, ...],
        base: Base | None = None,
    ) -> Laid:
        skeleton = os.fsencode(directory / "fixtures" / "home")
        record = BaseRecord(
            mounts=tuple((m.mount_point, m.fs_type.decode(), m.device) for m in mounts),
            project=layout.project,
            home=home,
            login_home=login_home,
            home_skeleton=put_directory(self._store, walk_directory(skeleton, self._keep)),
            fingerprints=None,
            per_directory=self._per_directory,
            base=base.text if base is not None else b"",
        )
        tree = WorldTree(layout, self._store, record, (os.fsencode(self._home),))
        return Laid(layout, injection, tree)

    def _spec(
        self,
        request: WorldRequest,
        world_id: str,
        laid: Laid,
        *,
        home: bytes,
        login_home: bytes,
        cwd: bytes,
        limits: Limits,
        base: Base | None = None,
    ) -> WorldSpec:
        project, layout = laid.layout.project, laid.layout
        return WorldSpec(
            world_id=world_id,
            session_id=request.session_id or new_id("ses"),
            trace_id=request.trace_id or new_trace_id(),
            agent_id=request.agent_id,
            request_id=request.request_id,
            profile=request.profile,
            project=project,
            cwd=_cwd_in_world(cwd, project, layout),
            home=home,
            login_home=login_home,
            env=_world_env(request, layout, laid.injection, base),
            user=self._user(request, base),
            network=read_rules(request.network).texts,
            hostname=request.hostname or DEFAULT_HOSTNAME,
            labels=request.labels,
            keep=request.keep,
            created_at=time.time(),
            expires_at=time.time() + request.ttl_s if request.ttl_s is not None else None,
            idle_timeout_s=request.idle_timeout_s,
            policy_file=request.policy_file,
            restored_from=None,
            telemetry=request.telemetry,
            limits=limits,
            base=base.text if base is not None else b"",
            shell=base.shell if base is not None else b"",
        )

    def lay_out(
        self,
        directory: Path,
        *,
        home: bytes,
        login_home: bytes,
        project: Project | None,
        mounts: tuple[BaseMount, ...],
        base: Base | None = None,
    ) -> tuple[Layout, Injection]:
        """Make the layers of a world, or of a further generation of one, and say how to mount them.

        Args:
            directory: where they go; it exists.
            home: the caller's home directory.
            login_home: the home directory that the user database names.
            project: the directory whose changes matter most.
            mounts: the host's mounts now.
            base: the root, where it is not the host's own.
        """
        if base is not None:
            injection = choose_injection(Path(os.fsdecode(base.root)))
            layout = make_base_layout(
                directory,
                base,
                home=home,
                project=project,
                preload_dir=os.fsencode(self._preload_dir),
                injection=injection,
                user_xattrs=self._per_directory,
            )
            save_layout(directory, layout)
            return layout, injection
        request = self._layout_request(
            directory, home=home, login_home=login_home, project=project, mounts=mounts
        )
        layout = make_layout(request)
        save_layout(directory, layout)
        return layout, request.injection

    def _layout_request(
        self,
        directory: Path,
        *,
        home: bytes,
        login_home: bytes,
        project: Project | None,
        mounts: tuple[BaseMount, ...],
    ) -> LayoutRequest:
        return LayoutRequest(
            directory=directory,
            substrate_home=os.fsencode(self._home),
            home=home,
            login_home=login_home,
            project=project,
            base=mounts,
            per_directory=self._per_directory,
            preload_dir=os.fsencode(self._preload_dir),
            injection=choose_injection(Path("/")),
            id_mapped=self._backend.capabilities().id_mapping == "range",
        )

    @property
    def _per_directory(self) -> bool:
        return self._backend.capabilities().overlay == "per-top-level-directory"

    def next_generation(self, spec: WorldSpec, directory: Path, snapshot_id: str) -> Layout:
        """Make further layers for a world that is there, and fill them; blocks.

        What lies below the layers stays as it is: the world's own writing is what changes.

        Args:
            spec: the world.
            directory: where the layers go; what an earlier attempt left there is removed.
            snapshot_id: what the layers are to hold.

        Raises:
            ObjectMissing, ObjectCorrupt: the snapshot is not whole.
        """
        if directory.exists():
            remove_tree(directory)
        directory.mkdir(mode=0o700)
        if spec.limits.needs_disk:
            make_disk(directory, spec.limits)
        layout, _injection = self.lay_out(
            directory,
            home=spec.home,
            login_home=spec.login_home,
            project=spec.project,
            mounts=read_base_mounts(),
            base=recorded_base(self._images, spec.base) if spec.base else None,
        )
        snapshot = get_snapshot(self._store, snapshot_id)
        base = get_base(self._store, snapshot.base)
        fill_home(self._store, base, directory / "fixtures" / "home")
        fill_uppers(self._store, snapshot, layout)
        return layout

    def _asked_base(self, request: WorldRequest, home: bytes, login_home: bytes) -> Base | None:
        """The root that is asked for; None for the host's own. Raises ServiceError."""
        if request.image is not None:
            return image_base(self._images, request.image)
        if request.directory is not None:
            hidden = (os.fsencode(self._home), os.path.realpath(home), login_home)
            return directory_base(request.directory, hidden)
        return None

    def _recorded_base(self, record: BaseRecord, words: str) -> Base | None:
        """The root of a record. Raises NotRestorable where it is not here."""
        if not record.base:
            return None
        try:
            return recorded_base(self._images, record.base)
        except ServiceError as error:
            raise NotRestorable(words, (Missing(b"/", str(error)),)) from error

    def _user(self, request: WorldRequest, base: Base | None) -> str:
        """Who commands run as: an image's own user where the world can have several."""
        if base is None or self._backend.capabilities().id_mapping != "range":
            return request.user
        return request.user or base.config.user

    def _source(self, request: WorldRequest) -> TreeSource | None:
        """The recorded tree that is asked for; None for the host's own."""
        if request.before_span_id is not None:
            return before_span(self._reader, self._store, request.before_span_id)
        if request.after_span_id is not None:
            return after_span(self._reader, self._store, request.after_span_id)
        if request.snapshot_id is not None:
            return of_snapshot(request.snapshot_id)
        return None

    def _plan(
        self, source: TreeSource, mounts: tuple[BaseMount, ...], *, use_host_base: bool
    ) -> RestorePlan:
        plan = plan_restore(
            self._store,
            source.snapshot_id,
            source.inputs,
            mounts,
            leave_out=(os.fsencode(self._home),),
            began_ns=source.as_of_ns,
        )
        if plan.missing and not use_host_base:
            raise NotRestorable(source.words, plan.missing)
        return plan

    def _keep(self, descriptor: int, status: os.stat_result) -> str:
        return self._store.put_file(descriptor, limit_bytes=status.st_size)


@contextlib.contextmanager
def _not_restorable_without_objects(words: str) -> Iterator[None]:
    """Say of a recorded tree whose objects are gone or damaged that it cannot be had."""
    try:
        yield
    except (ObjectMissing, ObjectCorrupt) as error:
        raise NotRestorable(words, (Missing(b"/", str(error)),)) from error


def _refuse_what_is_not_built(request: WorldRequest) -> None:
    if request.profile not in ("", "workspace"):
        raise InvalidField("profile", request.profile, 'expected "workspace"')


def _login_home() -> bytes:
    try:
        return os.fsencode(pwd.getpwuid(os.getuid()).pw_dir)
    except KeyError:  # a uid without an entry, as in many containers
        return b"/nonexistent"


def _cwd_in_world(cwd: bytes, project: Project | None, layout: Layout) -> bytes:
    if project is None and layout.home != cwd and os.path.realpath(layout.home) == cwd:
        return layout.home
    return cwd


def _world_env(
    request: WorldRequest, layout: Layout, injection: Injection, base: Base | None
) -> tuple[tuple[bytes, bytes], ...]:
    env = allowed_env(request.caller_env)
    if base is not None:
        # What names places of the host's means nothing there.
        env = {name: value for name, value in env.items() if name in _WITH_ANY_BASE}
        env.update(base.config.env)
    env.setdefault(b"PATH", DEFAULT_PATH)
    env.setdefault(b"LANG", b"C.UTF-8")
    env[b"HOME"] = layout.home
    env.update(request.env)
    env.update(injection.environment(env.get(b"LD_PRELOAD", b"")))
    return tuple(sorted(env.items()))
