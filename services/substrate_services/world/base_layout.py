"""From a base of its own (an image, a directory) to a world's layers and mounts.

One overlay at ``/`` over the base, and one for the project, at its own path. Nothing of the host
shows but that, so there is nothing to cover or to mask. What a world needs to live is put into the
upper layer before it is mounted: mount points, ``/tmp``, the loader's list and the resolver's file.
Where the base has a link at such a place, the upper layer's entry replaces it.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from substrate_services.network.addresses import ROUTER_V4
from substrate_services.world.backends.base import Bind, MountOp, Overlay, Tmpfs
from substrate_services.world.bases import Base
from substrate_services.world.injection import (
    PLATFORM_DIR,
    PRELOAD_DIR,
    Injection,
    lay_out_platforms,
)
from substrate_services.world.layers import Layer
from substrate_services.world.layout import RUNTIME, Layout
from substrate_services.world.project import Project

_POINTS = (b"/proc", b"/sys", b"/dev", RUNTIME, b"/etc")
_HOSTS = "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n"


def make_base_layout(
    directory: Path,
    base: Base,
    *,
    home: bytes,
    project: Project | None,
    preload_dir: bytes,
    injection: Injection,
    user_xattrs: bool,
) -> Layout:
    """Create the world's directories and say which mounts make its tree.

    Args:
        directory: the world's own.
        base: its root.
        home: of the world's user.
        project: of the host, shown copy-on-write at its own path.
        preload_dir: host directory with the telemetry library.
        injection: how programs come to load it.
        user_xattrs: overlays are mounted without privilege.
    """
    root = Layer("root", b"/", (base.root,), directory / "layers" / "root", user_xattrs)
    layers, mounts = [root], [Overlay(b"/", root.lowers, root.upper, root.work)]
    for made in (root.upper, root.work):
        os.makedirs(made, exist_ok=True)
    _look_like(base.root, root.upper)
    roots = project.roots if project is not None else ()
    # The working directory is made where there is none, as for containers.
    for point in (*_POINTS, *roots, *filter(None, (base.config.working_dir,))):
        _make_place(base.root, root.upper, point)
    _make_tmp(base.root, root.upper)
    _fill_etc(base, Path(os.fsdecode(root.upper)) / "etc", injection)
    for index, path in enumerate(roots):
        layer = Layer(
            f"project-{index}",
            path,
            (path,),
            directory / "layers" / f"project-{index}",
            user_xattrs,
        )
        for made in (layer.upper, layer.work):
            os.makedirs(made, exist_ok=True)
        _look_like(path, layer.upper)
        layers.append(layer)
        mounts.append(Overlay(path, layer.lowers, layer.upper, layer.work))
    fixtures = directory / "fixtures"
    (fixtures / "home").mkdir(parents=True, exist_ok=True)  # a world on the host's tree has one
    lay_out_platforms(fixtures / "abi")
    system: tuple[MountOp, ...] = (
        Tmpfs(RUNTIME, size_bytes=16 << 20),
        Bind(PRELOAD_DIR, preload_dir),
        Bind(PLATFORM_DIR, os.fsencode(fixtures / "abi")),
    )
    return Layout(
        layers=tuple(layers),
        mounts=(*mounts, *system),
        masks=(),
        home=home,
        covers=(),
        shown=(),
        project=project,
    )


def _make_place(base: bytes, upper: bytes, path: bytes) -> None:
    """Make a directory in the upper layer, each on the way looking like the base's, if there."""
    theirs, ours = base, upper
    for name in path.strip(b"/").split(b"/"):
        theirs, ours = os.path.join(theirs, name), os.path.join(ours, name)
        try:
            os.mkdir(ours)
        except FileExistsError:
            continue
        os.chmod(ours, 0o755)  # noqa: S103 # whatever our umask is
        # By name only, so that a link of the base's leads nowhere.
        if theirs.startswith(base) and _is_directory(theirs):
            _look_like(theirs, ours)
        else:
            theirs = os.path.join(base, b"\xff/none")  # nothing below it is the base's either


def _is_directory(path: bytes) -> bool:
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except OSError:
        return False


def _make_tmp(base: bytes, upper: bytes) -> None:
    if not _is_directory(os.path.join(base, b"tmp")):
        tmp = os.path.join(upper, b"tmp")
        os.makedirs(tmp, exist_ok=True)
        os.chmod(tmp, 0o1777)  # noqa: S103 # as everywhere


def _fill_etc(base: Base, etc: Path, injection: Injection) -> None:
    """Files of the world's own; the first walk has them, and no step is charged with them."""
    files = {"resolv.conf": f"nameserver {ROUTER_V4}\noptions edns0\n".encode()}
    if not base.read(b"/etc/hosts").strip():
        files["hosts"] = _HOSTS.encode()
    if injection.preload_file:
        theirs = base.read(b"/etc/ld.so.preload")
        files["ld.so.preload"] = injection.preload_file + b"\n" + theirs
    for name, content in files.items():
        (etc / name).write_bytes(content)
        (etc / name).chmod(0o644)
    _look_like(os.path.join(base.root, b"etc"), os.fsencode(etc))


def _look_like(source: bytes, target: bytes) -> None:
    """Owner, mode and times of a directory; the owner only where this process may set it."""
    if not _is_directory(source):
        return
    status = os.lstat(source)
    if os.geteuid() == 0:
        os.chown(target, status.st_uid, status.st_gid)
    os.chmod(target, stat.S_IMODE(status.st_mode))
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))
