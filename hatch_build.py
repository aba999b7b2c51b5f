"""Build what is not committed: the gRPC stubs and the native programs.

Two callers share this module:

* hatchling, as a build hook (wheels and editable installs);
* people and the Makefile: ``python hatch_build.py protos|native|all [component ...]``.

Everything is built in place, into git-ignored directories, and only when an input changed: a stamp
beside each product holds a digest of its sources, flags and tool versions. A clone, whose files all
have the same age, is therefore treated no differently from a tree that was edited.

The stubs are generated with the *oldest* protobuf that Substrate supports, because generated code
refuses runtimes older than its generator, while newer runtimes accept it
(https://protobuf.dev/support/cross-version-runtime-guarantee).

Environment: ``SUBSTRATE_PURE=1`` makes a wheel of the SDK and CLI alone; ``SUBSTRATE_WHEEL_ARCH``
picks the architecture of a platform wheel; ``ZIG_GLOBAL_CACHE_DIR`` moves the compiler's cache.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import struct
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ROOT = Path(__file__).resolve().parent
PROTOS = ROOT / "protos"
STUBS = ROOT / "substrate_sdk" / "_pb"
NATIVE_SOURCES = ROOT / "native"
SERVICES = ROOT / "services" / "substrate_services"
NATIVE_PRODUCTS = SERVICES / "_native"
BUILD = ROOT / "build"

#: The oldest supported generator; pyproject.toml's build requirements and runtime ranges follow it.
GRPCIO_TOOLS_VERSION = "1.76.0"
ARCHITECTURES = ("x86_64", "aarch64")

COMPILE_FLAGS = (
    "-std=gnu11",
    "-O2",
    "-g0",
    "-s",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-fvisibility=hidden",
    "-fstack-protector-strong",
    f"-ffile-prefix-map={ROOT}=.",
)
#: Shared objects: nothing may be left for the loader to resolve lazily inside somebody's program.
#: No RELRO, and one hash table: see native/preload/preload.ld.
SHARED_FLAGS = ("-shared", "-fPIC", "-Wl,-z,norelro", "-Wl,-z,now", "-Wl,--hash-style=gnu")


class BuildError(Exception):
    """A build step failed; the message is one line, then the tool's own output."""


class Component(NamedTuple):
    """One native product, built from every source file of one directory.

    Not a dataclass: hatchling runs this file without registering it as a module, which dataclasses
    with postponed annotations need.
    """

    name: str  #: what ``native [component ...]`` and messages call it
    directory: str  #: under native/
    product: str  #: file name under _native/<arch>/
    libc: str  #: "gnu" or "musl"
    shared: bool
    narrow: bool = False  #: for the 32-bit programs that a machine of the architecture runs

    @property
    def sources(self) -> list[Path]:
        """C sources, and assembly where the component has any."""
        directory = NATIVE_SOURCES / self.directory
        return sorted([*directory.glob("*.c"), *directory.glob("*.S")])


COMPONENTS = (
    Component("launcher", "launcher", "substrate-launcher", "musl", shared=False),
    Component("init", "init", "substrate-init", "musl", shared=False),
    Component("decode", "decode", "substrate-decode", "musl", shared=False),
    Component("walk", "walk", "substrate-walk", "musl", shared=False),
    Component("preload", "preload", "libsubstrate_preload.so", "gnu", shared=True),
    Component("preload-musl", "preload", "libsubstrate_preload-musl.so", "musl", shared=True),
    Component("narrow", "narrow", "narrow/libsubstrate_preload.so", "gnu", True, narrow=True),
)

#: What a machine calls its 32-bit programs, as a compiler's target.
NARROW_TARGETS = {"x86_64": "x86-linux-gnu.2.17", "aarch64": "arm-linux-gnueabihf.2.17"}


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _run(command: Sequence[str], what: str, env: dict[str, str] | None = None) -> None:
    """Run a tool silently; on failure raise with everything it said."""
    done = subprocess.run(
        command,
        check=False,
        cwd=ROOT,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    if done.returncode != 0:
        raise BuildError(f"{what} failed (exit {done.returncode}):\n{done.stdout.rstrip()}")


def _digest(files: Sequence[Path], *extra: str) -> str:
    """Digest of the files' names and contents and of whatever else determines the product."""
    total = hashlib.sha256()
    for text in extra:
        total.update(text.encode() + b"\0")
    for path in sorted(files):
        data = path.read_bytes()
        total.update(f"{path.relative_to(ROOT)}\0{len(data)}\0".encode() + data)
    return total.hexdigest()


def _is_fresh(product: Path, stamp: Path, digest: str) -> bool:
    return product.exists() and stamp.exists() and stamp.read_text() == digest


@contextlib.contextmanager
def _build_lock() -> Iterator[None]:
    """Keep two builds of one tree apart: they would replace each other's files half-way."""
    BUILD.mkdir(exist_ok=True)
    with (BUILD / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _cache_directory() -> Path:
    """A directory for tool caches that outlives the tree and is never inside it."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    directory = base / "substrate-build"
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError:
        directory = Path(tempfile.gettempdir()) / f"substrate-build-{os.getuid()}"
        directory.mkdir(mode=0o700, exist_ok=True)
    return directory


# --- stubs -------------------------------------------------------------------------------------


def _grpc_tools_environment() -> dict[str, str]:
    """An environment in which ``python -m grpc_tools.protoc`` is the pinned version.

    The development environment runs with the newest protobuf, which the pinned generator's metadata
    excludes, although its protoc never loads it. So the pinned version is kept in the cache, alone.
    """
    env = dict(os.environ)
    installed = _installed_version("grpcio-tools")
    if installed == GRPCIO_TOOLS_VERSION:
        return env
    tag = f"{sys.implementation.cache_tag}-{platform.machine()}"
    private = _cache_directory() / f"grpcio-tools-{GRPCIO_TOOLS_VERSION}-{tag}"
    if not (private / "grpc_tools").is_dir():
        _say(f"  fetching grpcio-tools {GRPCIO_TOOLS_VERSION} (the oldest supported generator)")
        partial = Path(tempfile.mkdtemp(dir=private.parent))
        pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(partial)]
        try:
            _run([*pip, f"grpcio-tools=={GRPCIO_TOOLS_VERSION}"], "fetching grpcio-tools")
            partial.rename(private)
        except (BuildError, OSError) as error:
            shutil.rmtree(partial, ignore_errors=True)
            if installed is None:
                raise BuildError(
                    f"no grpcio-tools: install grpcio-tools=={GRPCIO_TOOLS_VERSION}\n{error}"
                ) from error
            _say(f"  warning: generating with grpcio-tools {installed}; do not publish this build")
            return env
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(private), env.get("PYTHONPATH")]))
    return env


def _installed_version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _plugin(name: str) -> str:
    """Path of a protoc plugin that is installed beside this interpreter or on PATH."""
    found = shutil.which(name, path=sysconfig.get_path("scripts")) or shutil.which(name)
    if found is None:
        raise BuildError(f"{name} not found: pip install mypy-protobuf")
    return found


def _google_protos() -> Path:
    """Directory that holds google/rpc/*.proto, shipped by googleapis-common-protos."""
    spec = importlib.util.find_spec("google.rpc")
    if spec is None or not spec.submodule_search_locations:
        raise BuildError("google/rpc protos not found: pip install googleapis-common-protos")
    return Path(next(iter(spec.submodule_search_locations))).parent.parent


#: `from substrate.x import y_pb2`, `import substrate.x.y_pb2` and dotted uses of it in stubs.
_OWN_IMPORT = re.compile(r"^(\s*from )(substrate(?:\.\w+)*)( import \w+_pb2)", re.MULTILINE)
_OWN_NAME = re.compile(r"(?<![\w.\"'/])(substrate(?:\.\w+)*\.\w+_pb2(?:_grpc)?)\b")


def _relocate(source: str) -> str:
    """Rewrite references to our own generated modules to where they live in the package."""
    prefix = "substrate_sdk._pb."
    source = _OWN_IMPORT.sub(rf"\g<1>{prefix}\g<2>\g<3>", source)
    return _OWN_NAME.sub(rf"{prefix}\g<1>", source)


def build_protos() -> None:
    """Generate ``substrate_sdk/_pb`` from ``protos/``: modules, stubs, packages.

    Raises:
        BuildError: protoc refused a file, or a tool is missing.
    """
    files = sorted(PROTOS.rglob("*.proto"))
    if not files:
        _say("  no protos yet")
        return
    versions = f"{GRPCIO_TOOLS_VERSION} {_installed_version('mypy-protobuf')}"
    digest = _digest([*files, Path(__file__).resolve()], versions)
    with _build_lock():
        stamp = STUBS / ".stamp"
        if _is_fresh(STUBS / "__init__.py", stamp, digest):
            return
        with tempfile.TemporaryDirectory(dir=BUILD) as directory:
            out = Path(directory) / "_pb"
            out.mkdir()
            _generate(files, out)
            (out / ".stamp").write_text(digest)
            shutil.rmtree(STUBS, ignore_errors=True)
            out.rename(STUBS)
    _say(f"  stubs: {len(files)} protos")


def _generate(files: Sequence[Path], out: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "grpc_tools.protoc",
        f"-I{PROTOS}",
        f"-I{_google_protos()}",
        f"--plugin=protoc-gen-mypy={_plugin('protoc-gen-mypy')}",
        f"--plugin=protoc-gen-mypy_grpc={_plugin('protoc-gen-mypy_grpc')}",
        f"--python_out={out}",
        f"--grpc_python_out={out}",
        f"--mypy_out=quiet:{out}",
        # A servicer that lacks an RPC is fine: the host answers NOT_BUILT for it.
        f"--mypy_grpc_out=quiet,generate_concrete_servicer_stubs:{out}",
        *(str(path.relative_to(PROTOS)) for path in files),
    ]
    _run(command, "generating stubs from protos/", _grpc_tools_environment())
    for module in out.rglob("*.py*"):
        module.write_text(_relocate(module.read_text()))
    for directory in (out, *(path for path in out.rglob("*") if path.is_dir())):
        (directory / "__init__.py").write_text('"""Generated from protos/ by hatch_build.py."""\n')


# --- native ------------------------------------------------------------------------------------


def _compiler_environment() -> dict[str, str]:
    env = dict(os.environ)
    env.setdefault("ZIG_GLOBAL_CACHE_DIR", str(_cache_directory() / "zig"))
    env.setdefault("ZIG_LOCAL_CACHE_DIR", env["ZIG_GLOBAL_CACHE_DIR"])
    return env


def _compiler(component: Component, arch: str) -> list[str] | None:
    """The compiler command for a target, or None where this machine has none for it."""
    if importlib.util.find_spec("ziglang") is not None:
        libc = "gnu.2.17" if component.libc == "gnu" else "musl"
        # Zig instruments for undefined behaviour by default; the products carry no such runtime.
        name = NARROW_TARGETS[arch] if component.narrow else f"{arch}-linux-{libc}"
        target = ["-target", name, "-fno-sanitize=undefined"]
        return [sys.executable, "-m", "ziglang", "cc", *target]
    cc = os.environ.get("CC") or shutil.which("cc")
    if cc is None:
        raise BuildError("no C compiler: pip install ziglang, or install cc")
    # A host compiler has one architecture and one libc; static programs do not care which libc.
    foreign = component.narrow or (component.shared and component.libc == "musl")
    if arch != platform.machine() or foreign:
        return None
    return [cc]


def _exports(component: Component, exports: Path) -> Path:
    """The version script of a shared object: for musl, without what musl itself has not got."""
    absent = exports.with_name("absent-in-musl")
    if component.libc != "musl" or not absent.exists():
        return exports
    lines = absent.read_text().splitlines()
    names = [line for line in lines if line and not line.startswith("#")]
    chosen = BUILD / "native" / f"{component.name}-exports.map"
    chosen.parent.mkdir(parents=True, exist_ok=True)
    script = re.sub(rf"(?<![\w*])(?:{'|'.join(names)});", "", exports.read_text())
    # A pattern may still hold one of them; the exact name decides.
    script = script.replace("local: *;", f"local: {'; '.join(names)}; *;")
    if not chosen.exists() or chosen.read_text() != script:
        chosen.write_text(script)
    return chosen


def _need_nothing(library: Path) -> None:
    """Take the DT_NEEDED entries out of a shared object's dynamic section (elf(5)).

    Musl is in a musl program before anything else is. Where LD_PRELOAD brings the library into a
    program of another libc, its loader would look for musl's libc.so by name, find a text file
    (ld's, of libc6-dev) or nothing, and end the program. Without the entry the library finds its
    functions in whatever libc there is.
    """
    data = bytearray(library.read_bytes())
    table, count = struct.unpack_from("<Q", data, 32)[0], struct.unpack_from("<H", data, 56)[0]
    for header in range(table, table + 56 * count, 56):
        kind, _, offset, _, _, size = struct.unpack_from("<IIQQQQ", data, header)
        if kind != 2:  # PT_DYNAMIC
            continue
        entries = [struct.unpack_from("<qQ", data, at) for at in range(offset, offset + size, 16)]
        kept = [entry for entry in entries if entry[0] != 1]  # DT_NEEDED
        kept += [(0, 0)] * (len(entries) - len(kept))
        for index, entry in enumerate(kept):
            struct.pack_into("<qQ", data, offset + 16 * index, *entry)
    library.write_bytes(data)


def _compile(component: Component, arch: str) -> bool:
    """Build one product for one architecture.

    Returns:
        Whether anything had to be done.
    """
    sources = component.sources
    compiler = _compiler(component, arch)
    if not sources or compiler is None:
        return False
    directory = NATIVE_SOURCES / component.directory
    headers = [*directory.glob("*.h"), *(NATIVE_SOURCES / "include").rglob("*.h")]
    exports = directory / "exports.map"
    flags = [*COMPILE_FLAGS, "-I", "native/include"]
    flags += SHARED_FLAGS if component.shared else ("-static",)
    if component.narrow:
        flags.append("-nostdlib")
    if component.shared and exports.exists():
        chosen = _exports(component, exports)
        headers.append(chosen)
        flags.append(f"-Wl,--version-script={chosen.relative_to(ROOT)}")
    layout = directory / f"{component.directory}.ld"
    if component.shared and layout.exists():
        headers.append(layout)
        flags += ["-T", str(layout.relative_to(ROOT))]
    version = _installed_version("ziglang") or "cc"
    needs_nothing = component.shared and component.libc == "musl"
    digest = _digest([*sources, *headers], *compiler[1:], *flags, version, str(needs_nothing))

    product = NATIVE_PRODUCTS / arch / component.product
    stamp = BUILD / "native" / f"{arch}-{component.product}.stamp"
    if _is_fresh(product, stamp, digest):
        return False
    product.parent.mkdir(parents=True, exist_ok=True)
    stamp.parent.mkdir(parents=True, exist_ok=True)
    partial = product.with_name(f".{product.name}.partial")
    command = [*compiler, *flags, *(str(path.relative_to(ROOT)) for path in sources)]
    # dlopen and friends live in libdl and libpthread before glibc 2.34.
    libraries = ["-ldl", "-lpthread"] if component.libc == "gnu" else []
    try:
        _run(
            [*command, "-o", str(partial), *libraries],
            f"compiling {component.name} for {arch}",
            _compiler_environment(),
        )
        if needs_nothing:
            _need_nothing(partial)
        # Renamed into place: a running program keeps its old file, and no reader sees half of one.
        partial.replace(product)
    finally:
        partial.unlink(missing_ok=True)
    stamp.write_text(digest)
    return True


def build_native(names: Sequence[str] = (), architectures: Sequence[str] = ARCHITECTURES) -> None:
    """Compile the native components in place, under ``substrate_services/_native/<arch>``.

    Args:
        names: components to build; all of them when empty. Those without sources are passed over.
        architectures: targets; a compiler that cannot reach one passes it over.

    Raises:
        BuildError: at least one component failed; the others were still built.
    """
    known = {component.name: component for component in COMPONENTS}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise BuildError(f"no native component {unknown[0]!r}: there are {', '.join(known)}")
    failures = []
    with _build_lock():
        for component in [known[name] for name in names] or COMPONENTS:
            for arch in architectures:
                try:
                    if _compile(component, arch):
                        _say(f"  {component.product} ({arch})")
                except BuildError as error:
                    failures.append(str(error))
    if failures:
        raise BuildError("\n".join(failures))


# --- hatchling ---------------------------------------------------------------------------------


class SubstrateBuildHook(BuildHookInterface[Any]):
    """Builds stubs and native programs, and decides what a wheel holds and is tagged."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Prepare a wheel; ``version`` is hatchling's: "editable" or "standard"."""
        if self.target_name != "wheel":
            return
        try:
            build_protos()
            if version == "editable":
                build_native()
            elif os.environ.get("SUBSTRATE_PURE") != "1":
                self._add_services(build_data)
        except BuildError as error:
            self.app.abort(str(error))

    def _add_services(self, build_data: dict[str, Any]) -> None:
        arch = os.environ.get("SUBSTRATE_WHEEL_ARCH") or platform.machine()
        if arch not in ARCHITECTURES:
            self.app.abort(f"no platform wheel for {arch}: set SUBSTRATE_PURE=1 for SDK and CLI")
        build_native(architectures=(arch,))
        # Static musl programs and a shared object of glibc 2.17 are what manylinux2014 promises,
        # and the Python code asks for no particular interpreter's ABI.
        build_data["tag"] = f"py3-none-manylinux2014_{arch}"
        build_data["pure_python"] = False
        chosen = [NATIVE_PRODUCTS / arch / c.product for c in COMPONENTS]
        chosen += [
            path
            for path in SERVICES.rglob("*")
            if NATIVE_PRODUCTS not in path.parents and "__pycache__" not in path.parts
        ]
        for path in chosen:
            if path.is_file():
                target = Path("substrate_services") / path.relative_to(SERVICES)
                build_data["force_include"][str(path)] = str(target)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command-line entry point; returns the exit code."""
    parser = argparse.ArgumentParser(description="Build the stubs and native programs in place.")
    parser.add_argument("what", nargs="?", choices=("protos", "native", "all"), default="all")
    parser.add_argument("components", nargs="*", help="native components only (default: all)")
    options = parser.parse_args(arguments)
    try:
        if options.what != "native":
            build_protos()
        if options.what != "protos":
            build_native(options.components)
    except BuildError as error:
        _say(f"hatch_build: {error}")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
