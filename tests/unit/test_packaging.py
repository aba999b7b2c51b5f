"""What the build makes, what the wheels hold, and how the build fails."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import struct
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from substrate_services.native_paths import NativeMissingError, native_directory, native_path

ROOT = Path(__file__).resolve().parents[2]
STUBS = ROOT / "substrate_sdk" / "_pb"
STATIC_PROGRAMS = ("substrate-launcher", "substrate-init", "substrate-decode")
SHARED_OBJECTS = ("libsubstrate_preload.so", "libsubstrate_preload-musl.so")

PROTO = """
syntax = "proto3";
package substrate.{area}.v1alpha1;
{imports}
// Says substrate.common.v1alpha1.Thing and "substrate/common/v1alpha1/thing.proto".
message {message} {{ {field} }}
"""


def requirement(name: str) -> str:
    """The lower bound that pyproject.toml sets for one of the base dependencies."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for line in project["dependencies"]:
        match = re.fullmatch(rf"{name}>=([\d.]+),.*", line)
        if match:
            return match.group(1)
    raise AssertionError(f"no lower bound for {name}")


# --- the build script, on a small tree of its own ------------------------------------------------


@pytest.fixture
def small_tree(tmp_path: Path) -> Path:
    """A tree with two protos and one program, and the real build script."""
    tree = tmp_path / "tree"
    (tree / "services" / "substrate_services").mkdir(parents=True)
    (tree / "substrate_sdk").mkdir()
    (tree / "native" / "decode").mkdir(parents=True)
    (tree / "native" / "include").mkdir()
    shutil.copy(ROOT / "hatch_build.py", tree)
    (tree / "native" / "include" / "answer.h").write_text("#define ANSWER 42\n")
    (tree / "native" / "decode" / "main.c").write_text(
        '#include "answer.h"\nint main(void) { return ANSWER; }\n'
    )
    common = tree / "protos" / "substrate" / "common" / "v1alpha1" / "thing.proto"
    world = tree / "protos" / "substrate" / "world" / "v1alpha1" / "world.proto"
    for path in (common, world):
        path.parent.mkdir(parents=True)
    common.write_text(
        PROTO.format(
            area="common",
            imports='import "google/rpc/status.proto";',
            message="Thing",
            field="google.rpc.Status status = 1;",
        )
    )
    world.write_text(
        PROTO.format(
            area="world",
            imports='import "substrate/common/v1alpha1/thing.proto";',
            message="World",
            field="repeated substrate.common.v1alpha1.Thing things = 1;",
        )
        + "// Makes.\nservice Worlds { rpc Make(World) returns (World); }\n"
    )
    return tree


def build(tree: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the tree's build script; stderr is folded into stdout."""
    return subprocess.run(
        [sys.executable, "hatch_build.py", *arguments],
        check=False,
        cwd=tree,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_stubs_import_one_another_inside_the_package(small_tree: Path) -> None:
    done = build(small_tree, "protos")
    assert done.returncode == 0, done.stdout
    (small_tree / "substrate_sdk" / "__init__.py").touch()
    script = (
        "from substrate_sdk._pb.substrate.world.v1alpha1 import world_pb2, world_pb2_grpc\n"
        "world = world_pb2.World()\n"
        "world.things.add().status.code = 7\n"
        "assert world_pb2.World.FromString(world.SerializeToString()) == world\n"
        "assert world_pb2_grpc.WorldsStub and world.DESCRIPTOR.full_name\n"
        "import sys; assert 'substrate' not in sys.modules\n"
        "print(world.DESCRIPTOR.full_name)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, '.')\n{script}"],
        check=False,
        cwd=small_tree,
        capture_output=True,
        text=True,
    )
    assert (ran.returncode, ran.stdout.strip()) == (0, "substrate.world.v1alpha1.World"), ran.stderr


def test_stubs_satisfy_a_strict_user(small_tree: Path) -> None:
    thing = small_tree / "protos" / "substrate" / "common" / "v1alpha1" / "thing.proto"
    # Nobody publishes types of google.rpc that agree with those of grpc.
    text = thing.read_text().replace("google/rpc/status", "google/protobuf/timestamp")
    thing.write_text(text.replace("google.rpc.Status status", "google.protobuf.Timestamp at"))
    done = build(small_tree, "protos")
    assert done.returncode == 0, done.stdout
    (small_tree / "substrate_sdk" / "__init__.py").touch()
    (small_tree / "substrate_sdk" / "py.typed").touch()
    (small_tree / "user.py").write_text(
        "import grpc\n"
        "from substrate_sdk._pb.substrate.world.v1alpha1 import world_pb2, world_pb2_grpc\n"
        "def make(channel: grpc.Channel) -> world_pb2.World:\n"
        "    made = world_pb2_grpc.WorldsStub(channel).Make(world_pb2.World())\n"
        "    reveal_type(made)\n"
        "    return made\n"
        "async def make_async(channel: grpc.aio.Channel) -> int:\n"
        "    made = await world_pb2_grpc.WorldsStub(channel).Make(world_pb2.World())\n"
        "    return made.things[0].at.seconds\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--cache-dir=mypy-cache", "user.py"],
        check=False,
        cwd=small_tree,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    assert 'world_pb2.World"' in done.stdout


@pytest.mark.parametrize(
    ("what", "source", "edit"),
    [
        ("protos", "protos/substrate/common/v1alpha1/thing.proto", "// More.\n"),
        ("native", "native/include/answer.h", "#define MORE 1\n"),
    ],
)
def test_only_what_changed_is_built_again(
    small_tree: Path, what: str, source: str, edit: str
) -> None:
    assert build(small_tree, what).returncode == 0
    again = build(small_tree, what)
    assert (again.returncode, again.stdout) == (0, "")

    path = small_tree / source
    os.utime(path)  # a new time alone is no change
    assert build(small_tree, what).stdout == ""
    path.write_text(path.read_text() + edit)
    assert build(small_tree, what).stdout != ""


def test_a_compiler_error_is_one_line_and_the_compilers_words(small_tree: Path) -> None:
    (small_tree / "native" / "decode" / "main.c").write_text(
        "int main(void) { int unused; return 0; }\n"
    )
    done = build(small_tree, "native")
    assert done.returncode == 1
    assert done.stdout.splitlines()[0].startswith("hatch_build: compiling decode for x86_64 failed")
    assert "unused variable" in done.stdout
    assert "Traceback" not in done.stdout
    assert not list((small_tree / "services").rglob("*decode*"))


def test_a_proto_error_is_one_line_and_protocs_words(small_tree: Path) -> None:
    path = small_tree / "protos" / "substrate" / "world" / "v1alpha1" / "world.proto"
    path.write_text(path.read_text() + "message Broken {\n")
    done = build(small_tree, "protos")
    assert done.returncode == 1
    assert done.stdout.startswith("hatch_build: generating stubs from protos/ failed")
    assert "world.proto:" in done.stdout


def test_an_unknown_component_is_refused_with_those_there_are(small_tree: Path) -> None:
    done = build(small_tree, "native", "compiler")
    assert done.returncode == 1
    assert "no native component 'compiler': there are launcher, init" in done.stdout


def test_a_plain_compiler_serves_where_ziglang_is_missing(small_tree: Path) -> None:
    if shutil.which("cc") is None:
        pytest.skip("cc is not installed (Debian: gcc)")
    script = (
        "import importlib.util as u, sys; sys.path.insert(0, '.')\n"
        "find = u.find_spec\n"
        "u.find_spec = lambda name, *rest: None if name == 'ziglang' else find(name, *rest)\n"
        "import hatch_build; sys.exit(hatch_build.main(['native']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], check=False, cwd=small_tree, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    products = small_tree / "services" / "substrate_services" / "_native"
    assert [path.name for path in products.iterdir()] == [platform.machine()]
    program = products / platform.machine() / "substrate-decode"
    assert subprocess.run([program], check=False).returncode == 42


# --- what this tree was built into ---------------------------------------------------------------


def test_stubs_accept_the_oldest_runtime_that_we_declare() -> None:
    modules = sorted(STUBS.rglob("*_pb2.py"))
    assert modules, "no stubs: run make build"
    versions = {
        match.group(1)
        for module in modules
        if (match := re.search(r"Protobuf Python Version: ([\d.]+)", module.read_text()))
    }
    assert versions == {requirement("protobuf")}
    services = sorted(STUBS.rglob("*_pb2_grpc.py"))
    versions = set(
        re.findall(r"GRPC_GENERATED_VERSION = '([\d.]+)'", "".join(p.read_text() for p in services))
    )
    assert versions == {f"{requirement('grpcio')}.0"}


def program_header_types(elf: bytes) -> set[int]:
    """p_type of every program header of a 64-bit little-endian ELF file (elf(5))."""
    assert elf[:6] == b"\x7fELF\x02\x01"
    (offset,) = struct.unpack_from("<Q", elf, 32)
    size, count = struct.unpack_from("<HH", elf, 54)
    return {struct.unpack_from("<I", elf, offset + i * size)[0] for i in range(count)}


ARCHITECTURES = [
    arch
    for arch in ("x86_64", "aarch64")
    if arch == platform.machine() or importlib.util.find_spec("ziglang")
]


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("name", STATIC_PROGRAMS)
def test_programs_need_no_loader_and_no_library(arch: str, name: str) -> None:
    interp, dynamic = 3, 2
    assert not program_header_types(native_path(name, arch=arch).read_bytes()) & {interp, dynamic}


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_preload_runs_with_glibc_2_17(arch: str) -> None:
    elf = native_path("libsubstrate_preload.so", arch=arch).read_bytes()
    versions = {(int(a), int(b)) for a, b in re.findall(rb"GLIBC_(\d+)\.(\d+)", elf)}
    assert versions, "it names no glibc version: is it linked against glibc at all?"
    assert max(versions) <= (2, 17)


def test_a_missing_program_is_named_with_the_way_to_get_it() -> None:
    with pytest.raises(NativeMissingError, match=r"no-such-thing is missing at .*hatch_build\.py"):
        native_path("no-such-thing")
    assert native_directory("aarch64").name == "aarch64"


# --- wheels --------------------------------------------------------------------------------------


def build_wheel(directory: Path, *, pure: bool) -> Path:
    """Build a wheel of this tree with the tools at hand; returns its path."""
    env = {key: value for key, value in os.environ.items() if key != "SUBSTRATE_PURE"}
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(directory)],
        check=False,
        cwd=ROOT,
        env={**env, "SUBSTRATE_PURE": "1"} if pure else env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = directory.glob("*.whl")
    return wheel


def test_the_pure_wheel_holds_the_sdk_alone(tmp_path: Path) -> None:
    wheel = build_wheel(tmp_path, pure=True)
    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        tops = {name.split("/")[0] for name in names}
        metadata = next(name for name in names if name.endswith(".dist-info/METADATA"))
        text = archive.read(metadata).decode()
    assert {top for top in tops if not top.endswith(".dist-info")} == {"substrate_sdk"}
    assert "substrate_sdk/py.typed" in names
    assert any(name.endswith("world_service_pb2_grpc.pyi") for name in names)
    assert not [name for name in names if name.endswith((".so", ".stamp", ".pyc"))]
    assert "Provides-Extra: host" in text


def test_the_platform_wheel_holds_services_and_executable_programs(tmp_path: Path) -> None:
    wheel = build_wheel(tmp_path, pure=False)
    arch = platform.machine()
    assert wheel.name.endswith(f"-py3-none-manylinux2014_{arch}.whl")
    with zipfile.ZipFile(wheel) as archive:
        infos = {info.filename: info for info in archive.infolist()}
    native = f"substrate_services/_native/{arch}"
    for name in STATIC_PROGRAMS:
        assert infos[f"{native}/{name}"].external_attr >> 16 & 0o111 == 0o111
    for name in SHARED_OBJECTS:
        assert f"{native}/{name}" in infos
    assert "substrate_services/py.typed" in infos
    assert "substrate_services/journal/schema.py" in infos
    assert not [name for name in infos if name.startswith("services/") or "__pycache__" in name]
    assert {name.split("/")[2] for name in infos if "/_native/" in name} == {arch}
