"""How the telemetry library comes into every program of a world (DESIGN §6).

Programs of glibc read ``/etc/ld.so.preload`` (ld.so(8)), whatever their environment, set-id ones
too. Musl ignores that file and knows LD_PRELOAD alone, so where the base's own libc is musl the
world's environment has it; its library fits a program of glibc as well.

What a loader cannot load it complains about, on the program's stderr: a 32-bit program would, of a
64-bit library. So the entry has a part that each loader replaces by its own platform, and under a
32-bit platform there is a library with nothing in it. ``$PLATFORM`` rather than ``$LIB``, because
the latter is "lib" in 64-bit programs of some distributions and in 32-bit ones of others.
"""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

__all__ = [
    "PLATFORM_DIR",
    "PRELOAD_DIR",
    "Injection",
    "base_libc",
    "choose_injection",
    "lay_out_platforms",
]

PRELOAD_DIR = b"/run/substrate/lib"
PLATFORM_DIR = b"/run/substrate/abi"

#: $PLATFORM as the kernel passes it (AT_PLATFORM; compat_elf_hwcap on arm64), and what glibc before
#: 2.37 makes of it on some processors (init_cpu_features in sysdeps/x86/cpu-features.c).
_WIDE = {"x86_64": ("x86_64", "haswell", "xeon_phi"), "aarch64": ("aarch64",)}
_NARROW = {"x86_64": ("i386", "i486", "i586", "i686"), "aarch64": ("v6l", "v7l", "v8l")}
_LIBRARY = "libsubstrate_preload.so"
_MUSL_LIBRARY = PRELOAD_DIR + b"/libsubstrate_preload-musl.so"

Libc = Literal["glibc", "musl"]


@dataclass(frozen=True, slots=True)
class Injection:
    """What a world needs so that its programs load the library."""

    preload_file: bytes  # a line of /etc/ld.so.preload; empty: none
    ld_preload: bytes  # an entry of LD_PRELOAD; empty: none

    def environment(self, given: bytes) -> dict[bytes, bytes]:
        """LD_PRELOAD, where it is needed, in front of what the caller asked for."""
        if not self.ld_preload:
            return {}
        return {b"LD_PRELOAD": b":".join(filter(None, (self.ld_preload, given)))}


def choose_injection(base: Path) -> Injection:
    """Choose by the libc of the tree at ``base``."""
    if base_libc(base) == "musl":
        return Injection(preload_file=b"", ld_preload=_MUSL_LIBRARY)
    entry = PLATFORM_DIR + b"/$PLATFORM/" + _LIBRARY.encode()
    return Injection(preload_file=entry, ld_preload=b"")


def base_libc(base: Path) -> Libc:
    """The libc that a tree's own programs use, by the loaders that lie in it.

    A tree may have both: musl is a package on Debian, and gcompat puts musl under the name of
    glibc's loader on Alpine. glibc's own loader, where it is, says that the tree is of glibc.
    """
    found: Libc = "glibc"
    for directory in ("lib64", "lib", "usr/lib64", "usr/lib"):
        # As it leads in the tree: its own links may be absolute.
        place = base / _resolve(base, base / directory)
        for loader in sorted(place.glob("ld-*.so.*")):
            target = _resolve(base, loader)
            if "musl" in target or "gcompat" in target:
                found = "musl"
            elif loader.name.startswith("ld-linux"):
                return "glibc"
    return found


def _resolve(base: Path, link: Path) -> str:
    """What a link in a tree leads to, in that tree, however its links are written."""
    for _ in range(8):
        if not link.is_symlink():
            break
        target = os.readlink(link)
        link = base / target.lstrip("/") if target.startswith("/") else link.parent / target
    return str(link.relative_to(base)) if link.is_relative_to(base) else str(link)


def lay_out_platforms(directory: Path) -> None:
    """Fill the directory that a world shows, read-only, as :data:`PLATFORM_DIR`."""
    directory.mkdir(parents=True, exist_ok=True)
    directory.chmod(0o755)
    machine = platform.machine()
    for names, target in ((_WIDE, "../lib"), (_NARROW, "../lib/narrow")):
        for name in names.get(machine, ()):
            link = directory / name
            if not link.is_symlink():
                link.symlink_to(target)
