"""Roots in which the preload library's other builds run: musl, and aarch64 under qemu-user.

Each run is in a root directory of its own, by chroot in a user and mount namespace, with nothing in
it but the target's libc, the programs under test and a stand-in for a shell. There aarch64 programs
are the kernel's to start, whichever way they are: qemu is registered with the binfmt_misc of that
user namespace (Linux 6.7), so the machine's own stays as it is.

What qemu-user does otherwise than a kernel, and the tests therefore do not ask of it:

* vfork is a fork: the child runs on a copy of its parent's memory, so what it writes about itself
  lands where its parent will write next (MADV_WIPEONFORK is accepted and ignored as well).
* fork in a program with several threads may leave the child waiting for a lock of qemu's own, with
  the library or without it.
* /proc/self/stat is made up: the start time is that of qemu, so every exec looks like a process of
  its own to whoever goes by it.
* execveat is unknown (7.2), and with it fexecve.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import platform
import shutil
import struct
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from substrate_services.native_paths import native_path
from substrate_services.telemetry.segments import prepare_directory
from tests.native.recording import ROOT, Recording, decode

FOREIGN = ROOT / "build" / "foreign"
SEGMENTS = "run/substrate/seg"
_QEMU = FOREIGN / "qemu-aarch64"
_REGISTRATION = (
    rb":aarch64:M::\x7f\x45\x4c\x46\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00"
    rb":\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff"
    rb":%s:FP"
)


@dataclass(frozen=True)
class Target:
    """One build of the library, and how programs for it are made and run."""

    arch: str
    libc: str  # "gnu" or "musl"

    @property
    def name(self) -> str:
        """As the compiler calls it."""
        return f"{self.arch}-linux-{self.libc}"

    @property
    def emulated(self) -> bool:
        """Whether another machine's programs have to be run."""
        return self.arch != platform.machine()

    def why_not(self) -> str:
        """Why it cannot run here; empty when it can."""
        if sys.platform != "linux" or platform.machine() != "x86_64":
            return "the targets are laid out for an x86_64 machine"
        if importlib.util.find_spec("ziglang") is None:
            return "ziglang is not installed"
        if self.emulated and not (FOREIGN / "complete").exists():
            return "no arm64 packages: run scripts/foreign-packages"
        if not self.emulated and not _musl_loader().exists():
            return "no musl loader: install musl-tools"
        return _no_namespaces(self.emulated)

    def compile(self, source: Path, output: Path, *flags: str) -> Path:
        """Compile a dynamic program of this target."""
        libc = "gnu.2.36" if self.libc == "gnu" else "musl"
        target = f"{self.arch}-linux-{libc}"
        command = [sys.executable, "-m", "ziglang", "cc", "-target", target, "-O1", "-w"]
        command += ["-fno-sanitize=undefined", *(["-dynamic"] if self.libc == "musl" else [])]
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        zig = os.environ.get("ZIG_GLOBAL_CACHE_DIR") or str(cache / "substrate-build" / "zig")
        subprocess.run(
            [*command, str(source), "-o", str(output), *flags],
            check=True,
            capture_output=True,
            env={**os.environ, "ZIG_GLOBAL_CACHE_DIR": zig, "ZIG_LOCAL_CACHE_DIR": zig},
        )
        return output


def _musl_loader() -> Path:
    return Path("/lib/ld-musl-x86_64.so.1")


@functools.cache
def _no_namespaces(emulated: bool) -> str:
    script = "mount --rbind /proc /proc"
    if emulated:
        script = "mount -t binfmt_misc none /proc/sys/fs/binfmt_misc"
    done = subprocess.run(
        ["unshare", "-Urm", "sh", "-c", script], check=False, capture_output=True, timeout=20
    )
    if done.returncode == 0:
        return ""
    what = "binfmt_misc of its own (Linux 6.7)" if emulated else "mounts of its own"
    return f"no user namespace with {what}: {done.stderr.decode(errors='replace').strip()}"


def exported_symbols(elf: bytes) -> set[str]:
    """Names that the dynamic symbol table of a 64-bit ELF file defines."""
    offset = struct.unpack_from("<Q", elf, 40)[0]
    count = struct.unpack_from("<H", elf, 60)[0]
    sections = [struct.unpack_from("<IIQQQQIIQQ", elf, offset + i * 64) for i in range(count)]
    table = next(section for section in sections if section[1] == 11)  # SHT_DYNSYM
    strings = sections[table[6]][4]
    names = set()
    for at in range(table[4], table[4] + table[5], 24):
        name, _, _, section = struct.unpack_from("<IBBH", elf, at)
        if section != 0 and name != 0:
            end = elf.index(b"\0", strings + name)
            names.add(elf[strings + name : end].decode())
    return names


class TargetRoot:
    """A root directory for one target, with its shell, and the library where a world has it."""

    def __init__(self, target: Target, directory: Path) -> None:
        self.target = target
        self.path = directory.resolve()
        for name in ("proc", "dev", "tmp", "bin", "etc", "work", "run/substrate"):
            (self.path / name).mkdir(parents=True)
        (self.path / "dev" / "null").touch()
        prepare_directory(self.path / SEGMENTS)
        self._libc()
        self._library()
        target.compile(ROOT / "native" / "tests" / "sh.c", self.path / "bin" / "sh")

    def _libc(self) -> None:
        if self.target.emulated:
            for name in ("lib", "usr"):
                source = FOREIGN / "arm64" / name
                if source.exists():
                    shutil.copytree(source, self.path / name, symlinks=True)
            return
        (self.path / "lib").mkdir()
        shutil.copy(_musl_loader(), self.path / "lib" / "ld-musl-x86_64.so.1")

    def _library(self) -> None:
        directory = self.path / "run" / "substrate" / "lib"
        directory.mkdir()
        musl = self.target.libc == "musl"
        name = "libsubstrate_preload-musl.so" if musl else "libsubstrate_preload.so"
        shutil.copy(native_path(name, arch=self.target.arch), directory / name)
        self._environment = [f"LD_PRELOAD=/run/substrate/lib/{name}"] if musl else []

    def program(self, name: str, *flags: str) -> str:
        """Compile native/tests/<name>.c into the root; returns its path there."""
        source = ROOT / "native" / "tests" / f"{name}.c"
        self.target.compile(source, self.path / "bin" / name, *flags)
        return f"/bin/{name}"

    def run(self, *command: str, recorded: bool = True, timeout_s: float = 60) -> Recording:
        """Run a program in the root and decode what it wrote."""
        segments = self.path / SEGMENTS
        for file in segments.iterdir():
            file.unlink()
        configured = self.path / "etc" / "ld.so.preload"
        configured.unlink(missing_ok=True)
        if recorded and self.target.libc == "gnu":
            configured.write_text("/run/substrate/lib/libsubstrate_preload.so\n")
        environment = self._environment if recorded else []
        script = f"""
set -e
if {"true" if self.target.emulated else "false"}; then
  mount -t binfmt_misc none /proc/sys/fs/binfmt_misc
  printf %s "$REGISTRATION" > /proc/sys/fs/binfmt_misc/register
fi
mount --rbind /proc "$ROOT/proc"
mount --bind /dev/null "$ROOT/dev/null"
exec chroot "$ROOT" /bin/sh run /work "$@"
"""
        done = subprocess.run(
            ["unshare", "-Urm", "sh", "-c", script, "sh", *environment, *command],
            check=False,
            capture_output=True,
            timeout=timeout_s,
            env={
                "PATH": os.environ["PATH"],
                "ROOT": str(self.path),
                "REGISTRATION": (_REGISTRATION % os.fsencode(_QEMU)).decode(),
            },
        )
        summary, events = decode(segments)
        assert summary.failure == ""
        return Recording(done.returncode, done.stdout, done.stderr, summary, events)
