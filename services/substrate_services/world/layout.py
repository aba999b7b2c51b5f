"""From a profile and a base to layers and mounts: what a world's tree is made of (DESIGN §5).

The order matters: overlays of the base first, then what hides parts of it (an empty /tmp, the
allow-list home), then what is shown again on top of those, then the masks.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from substrate_services.network.addresses import ROUTER_V4
from substrate_services.world.backends.base import (
    Bind,
    Grab,
    MaskDir,
    MaskFile,
    MountOp,
    Overlay,
    Place,
    Symlink,
    Tmpfs,
)
from substrate_services.world.base_mounts import BaseMount, is_below, mount_points
from substrate_services.world.basis import Basis, directories_above, entry_at
from substrate_services.world.injection import (
    PLATFORM_DIR,
    PRELOAD_DIR,
    Injection,
    lay_out_platforms,
)
from substrate_services.world.layers import Layer
from substrate_services.world.profile import (
    HOME_GIT_CONFIG,
    Mask,
    clean_git_config,
    system_masks,
    toolchains,
)
from substrate_services.world.project import Project

TMP = b"/tmp"
RUNTIME = b"/run"
SEGMENTS = b"/run/substrate/seg"
_OWN_ROOTS = (b"/proc", b"/sys", b"/dev", RUNTIME)

# File systems without FS_ALLOW_IDMAP (mount_setattr(2)), by the first word of their type. A machine
# with containers has an overlay for each of them.
_NOT_ID_MAPPABLE = frozenset(
    b"overlay fuse fuseblk nfs nfs4 9p cifs smb3 ecryptfs iso9660 udf ramfs vboxsf aufs".split()
)


@dataclass(frozen=True, slots=True)
class Layout:
    """A world's layers and the mounts that make its tree."""

    layers: tuple[Layer, ...]
    mounts: tuple[MountOp, ...]
    masks: tuple[Mask, ...]
    home: bytes
    covers: tuple[bytes, ...]  # places where the base is hidden
    shown: tuple[bytes, ...]  # parts of the base that show through the covers
    project: Project | None


@dataclass(frozen=True, slots=True)
class LayoutRequest:
    """What to lay out.

    Attributes:
        directory: the world's own directory below ``$SUBSTRATE_HOME/worlds``.
        substrate_home: masked, wherever it is.
        home: the caller's home directory ($HOME).
        login_home: the home directory that the user database names for the caller.
        project: the directory whose changes matter most, or None where there is none.
        base: the host's mounts.
        per_directory: overlay each top-level directory by itself (rootless).
        id_mapped: layers are mounted with mapped ids, which not every file system can.
        preload_dir: host directory with the telemetry library.
        injection: how programs come to load it.
    """

    directory: Path
    substrate_home: bytes
    home: bytes
    login_home: bytes
    project: Project | None
    base: tuple[BaseMount, ...]
    per_directory: bool
    preload_dir: bytes
    injection: Injection
    id_mapped: bool = False


def make_layout(request: LayoutRequest) -> Layout:
    """Create the world's directories and say which mounts make its tree."""
    builder = _Builder(request)
    builder.base_overlays()
    builder.covers()
    return builder.finish()


def layout_basis(request: LayoutRequest) -> Basis:
    """Look at what :func:`make_layout` would go by, and make nothing."""
    return _Builder(request).basis()


class _Builder:
    def __init__(self, request: LayoutRequest) -> None:
        self._request = request
        self._layers: list[Layer] = []
        self._ops: list[MountOp] = []
        self._left_out: list[bytes] = []
        self._fixtures = request.directory / "fixtures"
        home = request.home
        usable = home.startswith(b"/") and home != b"/" and not is_below(home, _OWN_ROOTS)
        self._home = home if usable else b"/home/agent"
        # Other homes that toolchains may come from are emptied, not masked as a whole.
        self._emptied = _emptied_homes(self._home, request.login_home)
        self._covers = (TMP, self._home, *self._emptied)
        self._shown = self._what_shows_through()
        self._points = mount_points() if request.per_directory else ()

    def _what_shows_through(self) -> tuple[bytes, ...]:
        project = self._request.project
        homes = dict.fromkeys((self._home, self._request.login_home))
        shown = [path for home in homes for path in toolchains(home)]
        if project is not None:
            shown += [root for root in project.roots if is_below(root, self._covers)]
        # What lies in a directory that is shown comes along with it.
        return tuple(
            path
            for path in sorted(set(shown))
            if not any(path != other and is_below(path, (other,)) for other in shown)
        )

    # -- the base ------------------------------------------------------------------------------

    def base_overlays(self) -> None:
        request = self._request
        if request.per_directory:
            self._overlay_below(b"/")
            return
        layer = self._add_overlay("root", b"/", b"/")
        upper = Path(os.fsdecode(layer.upper))
        for path in (TMP, RUNTIME, *self._covers):
            if not os.path.isdir(path) and not is_below(path, self._fillable(path)):
                self._make_mirrored(upper, path)
        self._write_ld_preload(upper / "etc")
        _copy_attributes(b"/", upper)
        for mount in request.base:
            path = mount.mount_point
            if path == b"/" or is_below(path, (request.substrate_home, *self._left_out)):
                continue
            if is_below(path, self._covers) and not is_below(path, self._shown):
                continue
            if request.id_mapped and self._cannot_be_mapped(mount):
                self._left_out.append(path)
            elif mount.is_dir:
                self._add_overlay(_layer_id("mount", path), path, path)
            elif os.path.isfile(path):
                self._ops.append(Bind(path, path))

    def _cannot_be_mapped(self, mount: BaseMount) -> bool:
        """Whether a mount would keep the world from being made, and the project can do without."""
        project = self._request.project
        roots = project.roots if project is not None else ()
        if any(is_below(root, (mount.mount_point,)) for root in roots):
            return False  # it fails, and says why
        fs_type = mount.fs_type.partition(b".")[0]
        return mount.is_dir and fs_type in _NOT_ID_MAPPABLE

    def _fillable(self, path: bytes) -> tuple[bytes, ...]:
        """Covers, other than ``path`` itself, in which a mount point can be made later."""
        return tuple(cover for cover in self._covers if cover != path)

    def _overlay_below(self, directory: bytes) -> None:
        """Overlay what is in ``directory``, going down where other mounts lie below.

        A user namespace gets its mounts locked together, and the kernel refuses a locked tree as
        a lower layer (EINVAL). So a directory with mounts below becomes a tmpfs, and what is in
        it is overlaid by itself.
        """
        self._ops.append(Tmpfs(directory, size_bytes=1 << 20))
        with os.scandir(directory) as entries:
            listed = sorted(entries, key=lambda entry: entry.name)
        for entry in listed:
            path = os.path.join(directory, entry.name)
            if self._is_not_wanted(path):
                continue
            if entry.is_symlink():
                self._ops.append(Symlink(path, os.readlink(path)))
            elif not entry.is_dir():
                # A socket or fifo that is bound is the host's own, with the host at its other end.
                if entry.is_file():
                    self._ops.append(Bind(path, path))
            elif not os.access(path, os.R_OK | os.X_OK):
                continue
            elif any(path != point and is_below(point, (path,)) for point in self._points):
                self._overlay_below(path)
            else:
                self._add_overlay(_layer_id("top", path), path, path)
        if directory == b"/":
            self._write_ld_preload_of_its_own()
            self._overlay_project()

    def _overlay_project(self) -> None:
        """Give the project a layer of its own.

        A write copies up the directories above it as far as the layer goes, and in a user
        namespace those that belong to others cannot be given their owners (EOVERFLOW).
        """
        project = self._request.project
        points = {layer.mount_point for layer in self._layers}
        for root in project.roots if project is not None else ():
            if root not in points:
                self._add_overlay(_layer_id("project", root), root, root)

    def _is_not_wanted(self, path: bytes) -> bool:
        if is_below(path, (*_OWN_ROOTS, b"/lost+found")):
            return True
        covered = is_below(path, self._covers)
        return covered and not any(
            is_below(shown, (path,)) or is_below(path, (shown,)) for shown in self._shown
        )

    def _write_ld_preload_of_its_own(self) -> None:
        etc = [layer for layer in self._layers if layer.mount_point == b"/etc"]
        if etc:
            self._write_ld_preload(Path(os.fsdecode(etc[0].upper)))
            return
        fixture = self._fixtures / "etc"
        fixture.mkdir(parents=True, exist_ok=True)
        self._write_ld_preload(fixture)
        self._ops.append(Bind(b"/etc/ld.so.preload", os.fsencode(fixture / "ld.so.preload")))

    def _write_ld_preload(self, etc: Path) -> None:
        """The loader of glibc reads /etc/ld.so.preload in every dynamic program (ld.so(8)).

        It goes into the upper layer before that is mounted, so the first walk of the layer has
        it and no step is charged with it. A lower layer of its own would be tidier, but the
        kernel refuses lower layers that lie in one another (ELOOP), and / holds them all.
        """
        entry = self._request.injection.preload_file
        etc.mkdir(exist_ok=True)
        try:
            existing = Path("/etc/ld.so.preload").read_bytes()
        except OSError:
            existing = b""
        file = etc / "ld.so.preload"
        file.write_bytes((entry + b"\n" if entry else b"") + existing)
        file.chmod(0o644)
        _copy_attributes(b"/etc", etc)

    # -- what hides the base, and what shows through -------------------------------------------

    def covers(self) -> None:
        self._ops += [Grab(f"shown-{index}", path) for index, path in enumerate(self._shown)]
        self._ops.append(Tmpfs(RUNTIME, size_bytes=16 << 20))
        self._ops.append(Bind(PRELOAD_DIR, self._request.preload_dir))
        self._name_the_resolver()
        platforms = self._fixtures / "abi"
        lay_out_platforms(platforms)
        self._ops.append(Bind(PLATFORM_DIR, os.fsencode(platforms)))
        skeletons = {
            TMP: self._skeleton("tmp", mode=0o1777),
            self._home: self._skeleton("home", mode=0o700),
        }
        for cover in self._covers:
            self._point_in_skeleton(cover, skeletons)
        for path in self._shown:
            self._point_in_skeleton(path, skeletons)
        self._fill_home(skeletons[self._home])
        for cover in sorted(self._covers, key=len):
            if cover in skeletons:
                name = "tmp" if cover == TMP else "home"
                self._add_overlay(name, cover, os.fsencode(skeletons[cover]))
            else:
                self._ops.append(Tmpfs(cover, size_bytes=1 << 20))
        self._ops += [Place(f"shown-{index}", path) for index, path in enumerate(self._shown)]

    def _name_the_resolver(self) -> None:
        """Show a resolv.conf(5) of the worlds' own.

        It names what answers where a world has a network, and nobody where it has none, so that
        the network can change while it lives.
        """
        target = os.path.realpath(b"/etc/resolv.conf")
        # Often a link into /run, which is the world's own and has no such file.
        if not os.path.isfile(target) and not is_below(target, (RUNTIME,)):
            return
        file = self._fixtures / "resolv.conf"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"nameserver {ROUTER_V4}\noptions edns0\n")
        file.chmod(0o644)
        self._ops.append(Bind(target, os.fsencode(file)))

    def _point_in_skeleton(self, path: bytes, skeletons: dict[bytes, Path]) -> None:
        holders = [cover for cover in self._covers if cover != path and is_below(path, (cover,))]
        if holders:
            cover = max(holders, key=len)
            if cover in skeletons:
                point = skeletons[cover] / os.fsdecode(os.path.relpath(path, cover))
                point.mkdir(parents=True, exist_ok=True)

    def _fill_home(self, skeleton: Path) -> None:
        for name in HOME_GIT_CONFIG:
            source = os.path.join(self._home, name)
            if os.path.isfile(source) and os.access(source, os.R_OK):
                text = clean_git_config(Path(os.fsdecode(source)).read_bytes())
                target = skeleton / os.fsdecode(name)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(text)
                _copy_attributes(source, target)
        if os.path.isdir(self._home):
            _copy_attributes(os.path.realpath(self._home), skeleton)

    def finish(self) -> Layout:
        masks = self._masks()
        for mask in masks:
            if is_below(mask.path, self._covers) and not is_below(mask.path, self._shown):
                continue  # hidden by a cover already; listed so that it can be explained
            self._ops.append(MaskDir(mask.path) if mask.is_dir else MaskFile(mask.path))
        return Layout(
            layers=tuple(self._layers),
            mounts=tuple(self._ops),
            masks=(*masks, *(_left_out(path) for path in self._left_out)),
            home=self._home,
            covers=self._covers,
            shown=self._shown,
            project=self._request.project,
        )

    def basis(self) -> Basis:
        request = self._request
        bases = [mount.mount_point for mount in request.base] + [
            above for point in self._points for above in directories_above(point)
        ]
        exact = {
            b"/",
            b"/etc",
            b"/etc/ld.so.preload",
            os.path.realpath(b"/etc/resolv.conf"),
            os.path.realpath(self._home),
            *(os.path.join(self._home, name) for name in HOME_GIT_CONFIG),
            *(path for path in bases if self._is_seen(path)),
        }
        project = request.project
        led_to = {
            above
            for path in (*self._shown, *self._covers, *(project.roots if project else ()))
            for above in (path, *directories_above(path))
        }
        return Basis(
            covers=self._covers,
            shown=self._shown,
            masks=self._masks(),
            entries=tuple(
                (path, entry_at(path, times=path in exact)) for path in sorted(exact | led_to)
            ),
        )

    def _is_seen(self, path: bytes) -> bool:
        return not is_below(path, self._covers) or is_below(path, self._shown)

    def _masks(self) -> tuple[Mask, ...]:
        masks = system_masks(self._request.substrate_home, self._emptied, self._home)
        homes = tuple(
            Mask(cover, True, "other-homes", "homes are never shown under a second name")
            for cover in self._covers
            if cover != TMP and os.path.isdir(cover)
        )
        project = self._request.project
        roots = project.roots if project is not None else ()
        return masks + tuple(
            alias
            for alias in _aliases((*masks, *homes), self._request.base)
            if not any(is_below(root, (alias.path,)) for root in roots)
        )

    # -- parts ---------------------------------------------------------------------------------

    def _add_overlay(self, layer_id: str, target: bytes, lower: bytes) -> Layer:
        directory = self._request.directory / "layers" / layer_id
        layer = Layer(
            layer_id, target, (lower,), directory, user_xattrs=self._request.per_directory
        )
        for made in (layer.upper, layer.work):
            os.makedirs(made, exist_ok=True)
        _copy_attributes(lower, Path(os.fsdecode(layer.upper)))
        self._layers.append(layer)
        self._ops.append(Overlay(target, layer.lowers, layer.upper, layer.work))
        return layer

    def _make_mirrored(self, upper: Path, path: bytes) -> None:
        """Make ``path`` in an upper layer, each directory looking like the host's, if there."""
        current, here = b"/", upper
        for name in path.strip(b"/").split(b"/"):
            current, here = os.path.join(current, name), here / os.fsdecode(name)
            here.mkdir(exist_ok=True)
            if os.path.isdir(current):
                _copy_attributes(current, here)

    def _skeleton(self, name: str, mode: int) -> Path:
        path = self._fixtures / name
        path.mkdir(parents=True, exist_ok=True)
        path.chmod(mode)
        return path


def _layer_id(kind: str, path: bytes) -> str:
    """A name for the layer at ``path``: the same on every host, and a file name."""
    name = path.strip(b"/").replace(b"/", b"-")
    if len(name) > 80 or not re.fullmatch(rb"[A-Za-z0-9_.+-]+", name):
        name = hashlib.blake2b(path, digest_size=8).hexdigest().encode()
    return f"{kind}-{name.decode()}"


def _emptied_homes(home: bytes, login_home: bytes) -> tuple[bytes, ...]:
    """Directories around or beside the home that a world shows empty."""
    emptied = []
    if os.path.dirname(home) == b"/home":
        emptied.append(b"/home")  # hides the neighbours' homes too, those made later included
    if login_home != home and os.path.isdir(login_home) and login_home != b"/":
        emptied.append(login_home)
    covers = (TMP, home, *emptied)
    emptied += [
        real
        for real in dict.fromkeys(os.path.realpath(path) for path in (home, login_home))
        if real != b"/" and os.path.isdir(real) and not is_below(real, covers)
        if any(_is_behind_hidden_link(path, real, covers) for path in (home, login_home))
    ]
    return tuple(emptied)


def _is_behind_hidden_link(path: bytes, real: bytes, covers: tuple[bytes, ...]) -> bool:
    """Whether ``path`` leads to ``real`` by a link that a cover hides.

    A cover is mounted where its name leads. Where a part of the name, below another cover, is a
    link, the cover replaces the link, and what the link names stays uncovered.
    """
    if os.path.realpath(path) != real:
        return False
    part = path
    while part != b"/":
        if os.path.islink(part) and any(
            part != cover and is_below(part, (cover,)) for cover in covers if cover != path
        ):
            return True
        part = os.path.dirname(part)
    return False


def _aliases(masks: tuple[Mask, ...], base: tuple[BaseMount, ...]) -> tuple[Mask, ...]:
    """The same places once more, where a mount shows them under another name (bind mounts)."""
    found: dict[bytes, Mask] = {}
    for mask in masks:
        holders = [mount for mount in base if is_below(mask.path, (mount.mount_point,))]
        holder = max(holders, key=lambda mount: len(mount.mount_point))
        inside = os.path.normpath(
            os.path.join(holder.root, os.path.relpath(mask.path, holder.mount_point))
        )
        for mount in base:
            if mount.device != holder.device or not is_below(inside, (mount.root,)):
                continue
            below = os.path.relpath(inside, mount.root)
            path = os.path.normpath(os.path.join(mount.mount_point, below))
            if path != mask.path and os.path.lexists(path):
                found[path] = replace(mask, path=path)
    return tuple(found.values())


def _left_out(path: bytes) -> Mask:
    return Mask(
        path,
        is_dir=True,
        rule="mount-not-id-mappable",
        fix="a world of root shows its files under other ids, which this file system cannot; "
        "copy what the command needs into the project, or run as an ordinary user",
    )


def _copy_attributes(source: bytes, target: Path) -> None:
    """Owner, mode and times of ``source``; the owner only where this process may set it."""
    status = os.lstat(source)
    if os.geteuid() == 0:
        os.chown(target, status.st_uid, status.st_gid, follow_symlinks=False)
    os.chmod(target, stat.S_IMODE(status.st_mode))
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))


def what_is_hidden(layout: Layout) -> Callable[[bytes], bool]:
    """Says of a path of the base, below one that is not hidden, whether a world never shows it.

    Its masks and covers hide it wherever the world moves what is around them: they are mounts on
    the entry, not on the name.
    """
    masks = {mask.path for mask in layout.masks}
    # Directories of the base that a cover hides, but on the way to what shows through.
    on_the_way = {
        directory
        for path in layout.shown
        for cover in layout.covers
        if is_below(path, (cover,))
        for directory in _between(cover, path)
    }
    seen_through = on_the_way | set(layout.shown)
    covered = set(layout.covers) | on_the_way

    def is_hidden(path: bytes) -> bool:
        if path in masks:
            return True
        return os.path.dirname(path) in covered and path not in seen_through

    return is_hidden


def _between(cover: bytes, path: bytes) -> Iterator[bytes]:
    """``cover``, and the directories from there to ``path``, without it."""
    while path != cover:
        path = os.path.dirname(path)
        yield path


def layer_of(path: bytes, layout: Layout) -> Layer | None:
    """The layer that holds a path of the world; None where no layer does (/proc, /run, …).

    What shows through a cover (:class:`Place`) belongs to the layer it was taken from.
    """
    if is_below(path, _OWN_ROOTS):
        return None
    covers = [layer for layer in layout.layers if layer.layer_id in ("home", "tmp")]
    bases = [layer for layer in layout.layers if layer not in covers]
    if is_below(path, layout.shown):
        candidates = bases
    elif is_below(path, layout.covers):
        candidates = covers
    else:
        candidates = bases
    holders = [layer for layer in candidates if is_below(path, (layer.mount_point,))]
    return max(holders, key=lambda layer: len(layer.mount_point)) if holders else None
