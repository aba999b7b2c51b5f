"""The worlds of one host: made, found again, and taken down."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from substrate_services.errors import ServiceError
from substrate_services.journal.codec import lifecycle_line
from substrate_services.journal.jsontypes import JsonValue
from substrate_services.journal.reader import JournalReader
from substrate_services.journal.writer import Journal
from substrate_services.objects.errors import ObjectError
from substrate_services.objects.store import ObjectStore
from substrate_services.telemetry.classes import ALL as ALL_CLASSES
from substrate_services.telemetry.classes import CLASSES_LINK, classes_mask
from substrate_services.world.backends.base import Backend, BackendError, Box, BoxSpec, Symlink
from substrate_services.world.bases import image_digest
from substrate_services.world.disk import IMAGE, attach_disk, detach_disks
from substrate_services.world.gate import Gate
from substrate_services.world.ids import new_id
from substrate_services.world.images.store import ImageStore
from substrate_services.world.init_client import ExecState, InitClient, InitGone
from substrate_services.world.inputs import get_inputs
from substrate_services.world.layout import Layout
from substrate_services.world.layout_file import load_layout
from substrate_services.world.limits import Limits
from substrate_services.world.networks import Networks
from substrate_services.world.pool import Pool, Pooled
from substrate_services.world.preparing import Prepared, Preparer, WorldRequest
from substrate_services.world.removal import empty, move_to, remove_tree
from substrate_services.world.restore import (
    Missing,
)
from substrate_services.world.shell_state import Shell
from substrate_services.world.snapshots import (
    get_base,
    get_fingerprints,
    get_snapshot,
)
from substrate_services.world.spec import (
    WorldSpec,
    WorldState,
    has_state,
    layers_directory,
    load_state,
    save_state,
    world_directory,
)
from substrate_services.world.tree import WorldTree

log = logging.getLogger(__name__)

DEFAULT_IDLE_TIMEOUT_S = 600.0
_DAMAGED = ".damaged"  # what the directory of a world is called that cannot be taken over


@dataclass(slots=True)
class World:
    """A world that this host process knows."""

    state: WorldState
    directory: Path
    layout: Layout
    tree: WorldTree
    box: Box | None  # None: its init is gone
    client: InitClient | None
    missing: tuple[Missing, ...] = ()
    running: int = 0
    shells: dict[str, Shell] = field(default_factory=dict)  # by id; also those that have ended
    has_background: bool = False  # a command left processes behind when it ended
    exchanging: asyncio.Lock = field(default_factory=asyncio.Lock)  # its box is being exchanged
    gate: Gate = field(default_factory=Gate)  # commands start inside, and a rollback is alone
    lost: bool = False
    removing: bool = False
    last_used: float = field(default_factory=time.monotonic)

    @property
    def init(self) -> InitClient:
        """The world's init. Raises InitGone where there is none."""
        if self.client is None:
            raise InitGone(f"world {self.spec.world_id} has ended")
        return self.client

    @property
    def spec(self) -> WorldSpec:
        """What was asked for."""
        return self.state.spec

    def keep_baseline(self, fingerprints_digest: str) -> None:
        """Note what the world's changes are held against from now on; blocks."""
        self.state = replace(self.state, fingerprints_digest=fingerprints_digest)
        self.save()

    def require_running(self) -> None:
        """Raise ServiceError WORLD_PAUSED where nothing may begin in it."""
        if self.state.paused:
            raise ServiceError(
                "WORLD_PAUSED",
                f"world {self.spec.world_id} is paused; `substrate world resume` lets it go on",
            )

    def touch(self) -> None:
        """Note that somebody uses the world."""
        self.last_used = time.monotonic()

    def save(self) -> None:
        """Write the world's file."""
        save_state(self.directory, self.state)


class Listener(Protocol):
    """Hears what happens in worlds; calls come in the loop's thread and must not block."""

    def output_grew(self, world: World, exec_id: str) -> None:
        """An exec has written output."""
        ...

    def exec_exited(self, world: World, state: ExecState) -> None:
        """An exec's main process has ended."""
        ...

    def world_lost(self, world: World) -> None:
        """A world's init is gone unasked."""
        ...


class Worlds:
    """Makes, keeps and removes worlds.

    Args:
        home: ``$SUBSTRATE_HOME``.
        backend: puts inits into boxes.
        store: the host's objects.
        journal: the host's journal.
        reader: reads the same journal.
        preload_dir: directory with the telemetry library, shown in every world.
        images: the host's images.
        networks: gives worlds their networks.
        warm_pool: how many worlds to keep ready before they are asked for.
    """

    def __init__(
        self,
        *,
        home: Path,
        backend: Backend,
        store: ObjectStore,
        journal: Journal,
        reader: JournalReader,
        preload_dir: Path,
        images: ImageStore,
        networks: Networks,
        warm_pool: int = 0,
    ) -> None:
        # By its real name: a mask on a link that a cover hides would hide nothing.
        self._home = Path(os.path.realpath(home))
        self._directory = home / "worlds"
        self._trash = home / "trash"  # on the same file system: a rename away
        self._backend = backend
        self._store = store
        self._journal = journal
        self.networks = networks
        self.preparer = Preparer(
            home=self._home,
            backend=backend,
            store=store,
            reader=reader,
            preload_dir=preload_dir,
            images=images,
        )
        self.pool = Pool(
            size=warm_pool,
            directory=self._directory,
            backend=backend,
            preparer=self.preparer,
            box_spec=lambda world_id, ground, laid: self._box_spec(
                world_id, laid.layout, ground.hostname, ground.telemetry, ground.limits
            ),
            discard=self._discard,
        )
        self._worlds: dict[str, World] = {}
        self._being_made: dict[str, bytes] = {}  # on which base
        self._requests: dict[str, asyncio.Task[World]] = {}
        self._background: set[asyncio.Task[object]] = set()
        self.listeners: list[Listener] = []
        #: Told of a world that has a box again: after a rollback, and in a new host process.
        self.openers: list[Callable[[World], Awaitable[None]]] = []
        #: Told of a world that goes, when its steps are recorded and what it had is still known.
        self.closers: list[Callable[[World], Awaitable[None]]] = []
        #: Asked before a world has its network; one that raises keeps it from being made.
        self.admitters: list[Callable[[WorldSpec], Awaitable[None]]] = []

    # -- finding -------------------------------------------------------------------------------

    def get(self, world_id: str) -> World:
        """The world. Raises ServiceError WORLD_NOT_FOUND."""
        world = self._worlds.get(world_id)
        if world is None or world.removing:
            raise ServiceError(
                "WORLD_NOT_FOUND",
                f"there is no world {world_id!r} on this host; `substrate world list` shows them",
            )
        return world

    def all(self) -> list[World]:
        """The living worlds, oldest first."""
        return sorted(self._worlds.values(), key=lambda world: world.spec.created_at)

    def on_image(self, digest: str) -> str:
        """The id of a world whose root is this image; empty for none."""
        bases = {world_id: world.spec.base for world_id, world in list(self._worlds.items())}
        for world_id, base in (bases | self._being_made).items():
            if image_digest(base) == digest:
                return world_id
        return ""

    # -- making --------------------------------------------------------------------------------

    async def create(self, request: WorldRequest) -> World:
        """Make a world; the same request_id gives the same world.

        Raises:
            ServiceError: PROJECT_REFUSED, NOT_BUILT, NOT_RESTORABLE, SPAN_NOT_FOUND.
            BackendError: the box could not be made.
        """
        if not request.request_id:
            return await self._create(request)
        for world in self._worlds.values():
            if world.spec.request_id == request.request_id:
                return world
        task = self._requests.get(request.request_id)
        if task is None:
            task = asyncio.create_task(self._create(request))
            self._requests[request.request_id] = task
            task.add_done_callback(lambda _done: self._requests.pop(request.request_id, None))
        # One client going away must not take the world from another that asks for the same.
        return await asyncio.shield(task)

    async def _create(self, request: WorldRequest) -> World:
        pooled = await self._claim(request)
        world_id = pooled.world_id if pooled is not None else new_id("wld")
        directory = world_directory(self._directory, world_id)
        box = pooled.box if pooled is not None else None
        try:
            if pooled is not None:
                prepared = await asyncio.to_thread(self._begin_pooled, request, pooled)
                box = pooled.box
            else:
                prepared = await asyncio.to_thread(
                    self.preparer.prepare, request, world_id, directory
                )
                self._being_made[world_id] = prepared.spec.base
                # From here on its image stays; it may have been removed until now.
                await asyncio.to_thread(self.preparer.require_base, prepared.spec)
                box_made = asyncio.create_task(
                    self._backend.create(self._box_spec_of(prepared.spec, prepared.layout))
                )
                try:
                    # Fingerprints are taken while the kernel builds the box: neither needs the
                    # other.
                    await asyncio.to_thread(prepared.tree.begin, prepared.fingerprints)
                finally:
                    box = await box_made
            state = WorldState(
                spec=prepared.spec,
                first_snapshot=prepared.tree.first_snapshot,
                snapshot_id=prepared.tree.snapshot_id,
                inputs_digest=None,
            )
            world = World(state, directory, prepared.layout, prepared.tree, None, None)
            await self._attach(world, box)
            await self._admit(world)
            await self.networks.attach(world_id, box, prepared.spec.network)
            world.missing = prepared.missing
            await asyncio.to_thread(world.save)
            self._worlds[world_id] = world
        except BackendError as error:
            await asyncio.shield(self._discard(world_id, directory, box))
            raise ServiceError("WORLD_NOT_MADE", f"the world could not be made: {error}") from error
        except BaseException:
            await asyncio.shield(self._discard(world_id, directory, box))
            raise
        finally:
            self._being_made.pop(world_id, None)
        self._log("world_created", world, _created_detail(world))
        if request.before_span_id is None and request.snapshot_id is None:
            self._in_background(asyncio.to_thread(world.tree.pin_project))
        self.pool.refill()
        return world

    async def _claim(self, request: WorldRequest) -> Pooled | None:
        if self.pool.size == 0:
            return None
        ground = await asyncio.to_thread(self.preparer.ground, request)
        return self.pool.claim(ground) if ground is not None else None

    def _begin_pooled(self, request: WorldRequest, pooled: Pooled) -> Prepared:
        prepared = self.preparer.on_ground(request, pooled.world_id, pooled.ground, pooled.laid)
        prepared.tree.begin_again()  # with the project as it is now
        return prepared

    def _box_spec_of(self, spec: WorldSpec, layout: Layout) -> BoxSpec:
        return self._box_spec(spec.world_id, layout, spec.hostname, spec.telemetry, spec.limits)

    def _box_spec(
        self,
        world_id: str,
        layout: Layout,
        hostname: str,
        telemetry: tuple[str, ...],
        limits: Limits,
    ) -> BoxSpec:
        mapping = self._backend.capabilities().id_mapping
        return BoxSpec(
            world_id=world_id,
            mounts=(*layout.mounts, *_class_switches(telemetry)),
            hostname=hostname,
            id_mapping="range" if mapping == "range" else "caller",
            limits=limits.for_box,
        )

    async def _admit(self, world: World) -> None:
        try:
            for admit in self.admitters:
                await admit(world.spec)
        except BaseException:
            world.removing = True  # its end is no loss
            raise

    async def _attach(self, world: World, box: Box) -> None:
        """Give a world its box, once the init in it answers."""

        def tell(say: Callable[[Listener, World], None]) -> None:
            for listener in self.listeners if world.client is init else ():
                say(listener, world)

        def gone() -> None:
            if world.client is init and not world.removing:
                world.lost = True
                log.warning("world %s is lost: %s", world.spec.world_id, init.why_lost)
                tell(lambda listener, world: listener.world_lost(world))

        init = InitClient(
            box.channel_fd,
            on_output=lambda exec_id, _size: tell(
                lambda listener, world: listener.output_grew(world, exec_id)
            ),
            on_exited=lambda state: tell(
                lambda listener, world: listener.exec_exited(world, state)
            ),
            on_gone=gone,
        )
        await init.connect()
        world.box, world.client = box, init

    async def exchange_layers(
        self, world: World, layout: Layout, tree: WorldTree, generation: int
    ) -> None:
        """Let a world go on in a new box on other layers. Everything that runs in it ends.

        Args:
            world: the world; nobody else may use its init meanwhile.
            layout: the new layers, filled.
            tree: of these layers.
            generation: of the new layers.

        Raises:
            ServiceError: WORLD_NOT_MADE; the world is lost, its records are kept.
        """
        # The generation may be the world's already, where an earlier host was cut short.
        old = layers_directory(world.directory, min(world.state.generation, generation - 1))
        self._detach(world)
        await self._backend.remove(world.spec.world_id)
        await asyncio.to_thread(world.tree.close)
        world.layout, world.tree = layout, tree
        world.state = replace(world.state, generation=generation)
        # From here on the new layers are the world's, whatever becomes of this process.
        await asyncio.to_thread(world.save)
        await self._put_in_box(world)
        await self._remove_layers(old, world)

    async def _put_in_box(self, world: World) -> None:
        box: Box | None = None
        try:
            box = await self._backend.create(self._box_spec_of(world.spec, world.layout))
            await self._attach(world, box)
        except (BackendError, InitGone) as error:
            world.lost = True
            if box is not None:
                box.close()
            raise ServiceError(
                "WORLD_NOT_MADE", f"the world could not be made again: {error}"
            ) from error
        # Its tree is set back by now: without a network it is said to be, not to have failed.
        await self._reattach(world, box)
        world.has_background = False
        for opened in self.openers:
            await opened(world)

    async def _remove_layers(self, directory: Path, world: World) -> None:
        """Take the layers of an earlier generation away."""
        parts = [directory]
        if directory == world.directory:
            (directory / "layout.json").unlink(missing_ok=True)
            parts = [directory / "layers", directory / "fixtures", directory / IMAGE]
            parts = [part for part in parts if part.exists()]
        await asyncio.to_thread(detach_disks, directory / "layers")
        for part in parts:
            aside = self._trash / f"{world.spec.world_id}-{new_id('old')}"
            try:
                self._trash.mkdir(mode=0o700, exist_ok=True)
                part.rename(aside)
            except OSError:
                log.exception("cannot remove %s now", part)  # it goes with the world
            else:
                self._in_background(asyncio.to_thread(remove_tree, aside))

    def _detach(self, world: World) -> None:
        _let_go(world)
        world.box = world.client = None
        for shell in world.shells.values():
            shell.ended = shell.ended or "was ended with all that ran when the tree was set back"

    # -- finding again -------------------------------------------------------------------------

    async def recover(self) -> list[World]:
        """Take over what an earlier host process left.

        Returns:
            The worlds found; those whose init is gone are ``lost``, and are to be removed
            once their steps are recorded.
        """
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._in_background(asyncio.to_thread(empty, self._trash))
        boxes = {box.world_id: box for box in await self._backend.adopt()}
        found: list[World] = []
        for directory in sorted(self._directory.iterdir()):
            if directory.suffix == _DAMAGED:
                continue
            box = boxes.pop(directory.name, None)
            try:
                state, layout, tree = await asyncio.to_thread(self._reload, directory)
            except (OSError, ValueError, ObjectError) as error:
                if has_state(directory):
                    await self._set_aside(directory, box, error)
                else:
                    # Made, or removed, half-way when the host died: nobody counts on it.
                    log.warning("world %s was not finished; removing it", directory.name)
                    await self._discard(directory.name, directory, box)
                continue
            world = World(state, directory, layout, tree, None, None, lost=box is None)
            if box is not None:
                await self._attach(world, box)
                await self._reattach(world, box)
                for opened in self.openers:
                    await opened(world)
            self._worlds[state.spec.world_id] = world
            found.append(world)
        for world_id, box in boxes.items():
            await self._discard(world_id, world_directory(self._directory, world_id), box)
        return found

    async def _reattach(self, world: World, box: Box) -> None:
        try:
            await self.networks.attach(world.spec.world_id, box, world.spec.network, adopted=True)
        except ServiceError as error:  # behind its filter, or without a link
            log.warning("world %s stays without a network: %s", world.spec.world_id, error)

    def _reload(self, directory: Path) -> tuple[WorldState, Layout, WorldTree]:
        state = load_state(directory)
        # After a new start of the machine there are images, and no mounts.
        attach_disk(layers_directory(directory, state.generation))
        layout = load_layout(layers_directory(directory, state.generation))
        return state, layout, self._tree(state, layout)

    def _tree(self, state: WorldState, layout: Layout) -> WorldTree:
        base = get_base(self._store, get_snapshot(self._store, state.snapshot_id).base)
        tree = WorldTree(layout, self._store, base, (os.fsencode(self._home),))
        digest = state.fingerprints_digest or base.fingerprints
        fingerprints = get_fingerprints(self._store, digest) if digest else {}
        pins = dict(get_inputs(self._store, state.inputs_digest).pins)
        tree.resume(
            state.first_snapshot,
            state.snapshot_id,
            fingerprints,
            pins,
            moved=digest != base.fingerprints,
        )
        return tree

    def tree_on(self, world: World, layout: Layout) -> WorldTree:
        """The tree of a world on other layers; what differs is the next step's. Blocks."""
        return self._tree(world.state, layout)

    def forget_generation(self, world: World, generation: int) -> None:
        """Remove layers that a world does not go on with; blocks."""
        directory = layers_directory(world.directory, generation)
        if directory.exists():
            remove_tree(directory)

    async def forget_other_generations(self, world: World) -> None:
        """Remove all layers but those that a world is on, which a host that died has left."""
        current = world.state.generation
        left = {0} if (world.directory / "layers").exists() else set()
        for directory in world.directory.glob("generation-*"):
            left.add(int(directory.name.rpartition("-")[2]))
        for generation in left - {current}:
            await self._remove_layers(layers_directory(world.directory, generation), world)

    # -- taking down ---------------------------------------------------------------------------

    async def remove(self, world_id: str, finish: Callable[[World], Awaitable[None]]) -> None:
        """End everything in a world and take it down. Removing a removed world succeeds.

        Args:
            world_id: the world.
            finish: records the execs that this ends; called when nothing runs any more and the
                layers are still there.
        """
        world = self._worlds.get(world_id)
        if world is None or world.removing:
            return
        world.removing = True
        async with world.exchanging:  # of two boxes the second must be there before it can go
            await self._backend.remove(world_id)
        await finish(world)
        await asyncio.to_thread(world.tree.close)
        for close in self.closers:
            await close(world)
        await self.networks.forget(world_id)
        _let_go(world)
        self._worlds.pop(world_id, None)
        self._log("world_lost" if world.lost else "world_removed", world, {})
        await self._remove_directory(world.directory)

    async def _discard(self, world_id: str, directory: Path, box: Box | None) -> None:
        await self._backend.remove(world_id)
        await self.networks.forget(world_id)
        if box is not None:
            box.close()
        await self._remove_directory(directory)

    async def _remove_directory(self, directory: Path) -> None:
        """Take a directory out of sight; what is in it is deleted behind the caller's back."""
        try:
            if await asyncio.to_thread(move_to, directory, self._trash):
                self._in_background(asyncio.to_thread(remove_tree, self._trash / directory.name))
        except OSError:
            # No reason to fail, or not to start: without its state it is removed at the next start.
            log.exception("cannot remove %s now", directory)

    async def _set_aside(self, directory: Path, box: Box | None, error: Exception) -> None:
        """End a world whose records are damaged; its layers stay, as they are somebody's work."""
        world_id = directory.name
        await self._backend.remove(world_id)
        if box is not None:
            box.close()
        kept = directory.with_suffix(_DAMAGED)
        await asyncio.to_thread(detach_disks, directory)
        await asyncio.to_thread(directory.rename, kept)
        log.error("world %s cannot be taken over: %s; its files are in %s", world_id, error, kept)
        self._journal.append(
            lifecycle_line(
                "world_lost",
                session_id="",
                world_id=world_id,
                detail={"reason": str(error), "kept": os.fsdecode(kept)},
            )
        )

    async def close(self) -> None:
        """Let go of the worlds; they live on. What nobody has asked for does not."""
        await self.pool.close()
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        for world in self._worlds.values():
            _let_go(world)
        self._worlds.clear()

    # -- parts ---------------------------------------------------------------------------------

    def _log(self, event_type: str, world: World, detail: Mapping[str, JsonValue]) -> None:
        self._journal.append(
            lifecycle_line(
                event_type,
                session_id=world.spec.session_id,
                world_id=world.spec.world_id,
                agent_id=world.spec.agent_id,
                detail=detail,
            )
        )

    def _in_background(self, work: Awaitable[object]) -> None:
        task = asyncio.ensure_future(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        task.add_done_callback(_report)


def _created_detail(world: World) -> dict[str, JsonValue]:
    spec = world.spec
    return {
        "profile": spec.profile,
        "project": os.fsdecode(spec.project.root) if spec.project else None,
        "network": list(spec.network),
        "snapshot_id": world.state.snapshot_id,
        "restored_from": spec.restored_from,
        "keep": spec.keep,
        "limits": dict(spec.limits.to_action()),
    }


def _class_switches(telemetry: tuple[str, ...]) -> tuple[Symlink, ...]:
    mask = classes_mask(telemetry)
    # Absent means all: programs then look for it once, and no more.
    return () if mask == ALL_CLASSES else (Symlink(CLASSES_LINK, b"%x" % mask),)


def _let_go(world: World) -> None:
    if world.client is not None:
        world.client.close()
    if world.box is not None:
        world.box.close()


def _report(task: asyncio.Task[object]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("background work failed", exc_info=error)
