"""Importing images: what is unpacked, what is refused, and that nothing leaves the directory."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import os
import stat
import tarfile
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from substrate_services.errors import InvalidField
from substrate_services.world.beneath import sync_filesystem
from substrate_services.world.images import store as store_module
from substrate_services.world.images.errors import (
    ImageError,
    ImageInvalid,
    ImageNotFound,
    ImageTooLarge,
)
from substrate_services.world.images.importing import Images
from substrate_services.world.images.store import Image, ImageStore
from substrate_services.world.removal import remove_tree
from tests.unit.image_archives import Members, config_of, docker, oci, sha256, tar
from tests.users import tree_of

FIRST = tar(
    [
        ("etc", None),
        ("etc/os", b"one\n"),
        ("usr/bin/tool", b"#!/bin/sh\n"),
        ("bin", "-> usr/bin"),
        ("gone", b"x"),
        ("dir/a", b"a"),
        ("dir/deep/b", b"b"),
    ]
)
SECOND = tar(
    [
        ("./.wh.gone", b""),
        ("dir/kept", b"kept"),
        ("dir/.wh..wh..opq", b""),
        ("bin/more", b"through the link\n"),
        ("etc/os", b"two\n"),
        ("etc/twin", "= etc/os"),
    ]
)
EXPECTED = {
    "etc": "directory",
    "etc/os": b"two\n",
    "etc/twin": b"two\n",
    "usr": "directory",
    "usr/bin": "directory",
    "usr/bin/tool": b"#!/bin/sh\n",
    "usr/bin/more": b"through the link\n",
    "bin": "usr/bin",
    "dir": "directory",
    "dir/kept": b"kept",
}
CONFIG = {"Env": ["A=1", "PATH=/bin"], "WorkingDir": "/work", "User": "1:2", "Cmd": ["sh"]}


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    (tmp_path / "home").mkdir()
    return ImageStore(tmp_path / "home")


def add(store: ImageStore, archive: Path, name: str = "") -> Image:
    workspace = store.incoming()
    try:
        return store.add(archive, name, workspace)
    finally:
        remove_tree(workspace)


def plain(tmp_path: Path, members: Members) -> Path:
    path = tmp_path / "root.tar"
    path.write_bytes(tar(members))
    return path


def test_layers_of_an_oci_archive_lie_on_one_another(store: ImageStore, tmp_path: Path) -> None:
    archive = oci(
        tmp_path / "a", [FIRST, SECOND], CONFIG, name="app:1", architectures=("s390x", "amd64")
        if os.uname().machine == "x86_64" else ("s390x", "arm64"),
    )  # fmt: skip
    image = add(store, archive)
    assert tree_of(image.root) == EXPECTED
    assert os.stat(image.root / "etc/twin").st_nlink == 2
    assert os.stat(image.root / "etc/os").st_mtime == 1_000_000_000
    assert os.stat(image.root / "etc").st_mtime == 1_000_000_000
    assert image.names == ("app:1",)
    assert image.config.env == ((b"A", b"1"), (b"PATH", b"/bin"))
    assert (image.config.working_dir, image.config.user) == (b"/work", "1:2")
    assert image.config.command == ("sh",)


def test_the_same_image_is_the_same_whoever_saved_it(store: ImageStore, tmp_path: Path) -> None:
    first = add(store, oci(tmp_path / "a", [FIRST, SECOND], CONFIG), "one")
    second = add(store, docker(tmp_path / "b", [FIRST, SECOND], CONFIG, "two:latest"))
    assert first.digest == second.digest == f"sha256:{_config_digest()}"
    assert second.names == ("one", "two:latest")
    packed = tmp_path / "c.gz"
    packed.write_bytes(gzip.compress((tmp_path / "b").read_bytes()))
    assert add(store, packed, "three").names == ("one", "three", "two:latest")
    assert [image.digest for image in store.all()] == [first.digest]
    for wanted in ("one", first.digest, first.digest[7:19]):
        assert store.find(wanted).digest == first.digest


def _config_digest() -> str:
    machine = {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine]
    return sha256(config_of([FIRST, SECOND], CONFIG, machine))


def test_a_root_tar_is_an_image_by_its_own_digest(store: ImageStore, tmp_path: Path) -> None:
    data = tar([("./", None), ("./etc/x", b"x"), ("manifest.json", b'{"name": "an app"}')])
    path = tmp_path / "root.tar.gz"
    path.write_bytes(gzip.compress(data))
    image = add(store, path, "base")
    assert image.digest == f"sha256:{sha256(data)}"
    assert tree_of(image.root)["etc/x"] == b"x"


def test_bits_and_devices_that_have_no_place_are_left_out(
    store: ImageStore, tmp_path: Path
) -> None:
    program, device = tarfile.TarInfo("su"), tarfile.TarInfo("dev/sda")
    program.mode = 0o6755
    device.type, device.devmajor, device.devminor = tarfile.BLKTYPE, 8, 0
    forged = tarfile.TarInfo("forged")
    forged.pax_headers = {
        "SCHILY.xattr.trusted.overlay.opaque": "y",
        "SCHILY.xattr.user.overlay.opaque": "y",
        "SCHILY.xattr.user.mine": "kept",
    }
    image = add(store, plain(tmp_path, [program, device, forged]))
    assert stat.S_IMODE((image.root / "su").stat().st_mode) == 0o755
    assert not (image.root / "dev" / "sda").exists()
    assert os.listxattr(image.root / "forged") in (["user.mine"], [])


@pytest.mark.parametrize(
    "members",
    [
        [("../out", b"x")],
        [("a/../../out", b"x")],
        [("out", "-> ../../../../out"), ("out/x", b"x")],
        [("up", "-> ../../.."), ("up/out", b"x")],
        [("abs", "-> /OUTSIDE"), ("abs/out", b"x")],
        [("one", "-> two"), ("two", "-> one"), ("one/x", b"x")],
        [("hard", "= ../../../etc/hostname")],
        [("hard", "= /etc/hostname")],
        [("link", "-> /etc"), ("hard", "= link/hostname")],
        [("link", "-> /OUTSIDE/kept"), ("link", b"x")],
        [("d", "-> /OUTSIDE"), (".wh.d", b"")],
        [("d", "-> /OUTSIDE"), ("d/.wh.kept", b"")],
        [("d", "-> /OUTSIDE"), ("d/.wh..wh..opq", b"")],
        [(".wh...", b"")],
        [("d/.wh..", b"")],
        [("a/" * 300 + "deep", b"")],
        [("n" * 300, b"")],
    ],
    ids=lambda members: members[-1][0][:20] + str(len(members)),
)
def test_nothing_leaves_the_directory(
    store: ImageStore, tmp_path: Path, members: list[tuple[str, bytes | str]]
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("kept")
    named = [
        (name, text.replace("/OUTSIDE", str(outside)) if isinstance(text, str) else text)
        for name, text in members
    ]
    with contextlib.suppress(ImageInvalid):  # or it went to a place inside
        add(store, plain(tmp_path, named))
    assert tree_of(outside) == {"kept": b"kept"}
    assert not (tmp_path / "out").exists()
    assert [p.name for p in (tmp_path / "home" / "images").glob("incoming-*")] == []


def _spoiled(kind: str) -> Callable[[Path], Path]:
    return lambda path: oci(path, [FIRST, SECOND], spoil=kind)


def _huge_header(path: Path) -> Path:
    header = tarfile.TarInfo("PaxHeader")
    header.type, header.size = tarfile.XHDTYPE, 3 << 30
    path.write_bytes(header.tobuf(tarfile.USTAR_FORMAT) + bytes(4096))
    return path


def _foreign_owner(path: Path) -> Path:
    member = tarfile.TarInfo("x")
    member.uid = 70_000
    path.write_bytes(tar([member]))
    return path


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (_spoiled("layer"), "digest"),
        (_spoiled("config"), "digest"),
        (_spoiled("manifest"), "digest"),
        (lambda path: oci(path, [FIRST], architectures=("s390x",)), "no image for linux/"),
        (lambda path: oci(path, [FIRST], {"Env": ["none"]}), "no variable"),
        (_huge_header, "header"),
        (lambda path: path.write_bytes(os.urandom(4096)) and path, "tar"),
        (lambda path: path.write_bytes(b"") or path, "tar"),
        (lambda path: path.write_bytes(b"\x1f\x8b" + bytes(100)) and path, "decompress"),
        (lambda path: path.write_bytes(b"\xfd7zXZ\0" + bytes(100)) and path, "xz"),
        (lambda path: path.write_bytes(FIRST[:1500]) and path, "tar|damaged"),
    ],
)
def test_what_is_no_image_is_refused_in_one_line(
    store: ImageStore, tmp_path: Path, make: Callable[[Path], Path], words: str
) -> None:
    with pytest.raises(ImageInvalid, match=words) as refused:
        add(store, make(tmp_path / "archive"))
    assert "\n" not in str(refused.value)
    assert store.all() == []


@pytest.mark.root
def test_owners_that_no_world_has_are_refused(store: ImageStore, tmp_path: Path) -> None:
    with pytest.raises(ImageInvalid, match="70000"):
        add(store, _foreign_owner(tmp_path / "archive"))


def test_what_unpacks_to_too_much_is_refused(
    store: ImageStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = oci(tmp_path / "a", [tar([("zeros", bytes(5 << 20))])])
    assert archive.stat().st_size < 100_000
    monkeypatch.setattr(store_module, "SIZE_LIMIT_BYTES", 1 << 20)
    with pytest.raises(ImageTooLarge):
        add(store, archive)
    monkeypatch.setattr(store_module, "SIZE_LIMIT_BYTES", 1 << 30)
    monkeypatch.setattr(store_module, "ENTRIES_LIMIT", 3)
    with pytest.raises(ImageTooLarge):
        add(store, plain(tmp_path, [(f"f{n}", b"") for n in range(5)]))
    assert store.all() == []


def test_an_image_in_use_stays_and_names_go_one_by_one(store: ImageStore, tmp_path: Path) -> None:
    image = add(store, plain(tmp_path, [("x", b"x")]), "one")
    add(store, tmp_path / "root.tar", "two")
    with pytest.raises(ImageError, match="world wld_1"):
        store.remove(image.digest, lambda _digest: "wld_1")
    assert store.remove("one", lambda _digest: "wld_1").names == ("two",)
    with pytest.raises(ImageNotFound, match="substrate image ls"):
        store.find("one")
    store.remove("two", lambda _digest: "")
    assert store.all() == []
    assert sorted(os.listdir(tmp_path / "home" / "images")) == ["names.json"]
    with pytest.raises(InvalidField, match="name"):
        add(store, tmp_path / "root.tar", "../x")


def test_an_import_that_was_cut_short_is_gone_with_the_next_host(tmp_path: Path) -> None:
    left = ImageStore(tmp_path).incoming()
    (left / "root").mkdir()
    ImageStore(tmp_path)
    assert not left.exists()


def _pax(kind: bytes, **said: bytes) -> bytes:
    text = b""
    for name, value in said.items():
        line = b" " + name.replace("__", ".").encode() + b"=" + value + b"\n"
        length = next(n for n in range(len(line), len(line) + 9) if n == len(line) + len(str(n)))
        text += b"%d" % length + line
    header = tarfile.TarInfo("pax")
    header.type, header.size = kind, len(text)
    return header.tobuf(tarfile.USTAR_FORMAT) + text + bytes(-len(text) % 512)


def _entry(name: str = "x", kind: bytes = tarfile.REGTYPE) -> bytes:
    member = tarfile.TarInfo(name)
    member.type = kind
    return member.tobuf(tarfile.USTAR_FORMAT)


def _sparse_without_end() -> bytes:
    header = bytearray(_entry(kind=tarfile.GNUTYPE_SPARSE))
    header[482:495] = b"\x01" + b"0" * 11 + b"\0"  # more of the map follows
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + (b"1\0".rjust(12, b"0") * 42).ljust(512, b"\1") * 10_000


@pytest.mark.parametrize(
    ("archive", "words"),
    [
        (_pax(tarfile.XHDTYPE, mtime=b"inf") + _entry(), "time"),
        (_pax(tarfile.XHDTYPE, SCHILY__xattr__user__x=b"v" * 70_000) + _entry(), "attributes"),
        (_pax(tarfile.XGLTYPE, x=b"v" * 60_000) * 3 + _entry(), "global"),
        (_pax(tarfile.XHDTYPE, path=b"x") * 2_000 + _entry(), "recursion"),
        (_sparse_without_end(), "headers of more"),
        (_entry(kind=tarfile.SYMTYPE), "No such file"),
    ],
    ids=["mtime", "attributes", "global", "nested", "sparse", "link"],
)
def test_what_tarfile_does_not_expect_is_refused_in_one_line(
    store: ImageStore, tmp_path: Path, archive: bytes, words: str
) -> None:
    path = tmp_path / "archive"
    path.write_bytes(archive + bytes(1024))
    with pytest.raises(ImageInvalid, match=words) as refused:
        add(store, path)
    assert "\n" not in str(refused.value)
    assert store.all() == []


@pytest.mark.parametrize(
    "config", [{"User": "\ud800"}, {"Cmd": ["a\0b"]}, {"Env": ["A\0=1"]}, {"WorkingDir": "/\udfff"}]
)
def test_configurations_that_no_system_call_can_carry_are_refused(
    store: ImageStore, tmp_path: Path, config: dict[str, object]
) -> None:
    with pytest.raises(ImageInvalid, match="no text"):
        add(store, oci(tmp_path / "archive", [FIRST], config))


def test_a_hole_that_is_larger_than_the_disk_is_refused_before_it_is_written(
    store: ImageStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "SIZE_LIMIT_BYTES", 1 << 60)
    archive = _pax(tarfile.XHDTYPE, GNU__sparse__map=b"0,0", GNU__sparse__size=b"%d" % (1 << 59))
    path = tmp_path / "archive"
    path.write_bytes(archive + _entry() + bytes(1024))
    with pytest.raises(OSError, match="No space left"):
        add(store, path)
    assert store.all() == []


def test_no_name_is_taken_for_the_digest_of_another_image(
    store: ImageStore, tmp_path: Path
) -> None:
    evil = "sha256:" + "0" * 64
    with pytest.raises(InvalidField, match="no digest"):
        add(store, plain(tmp_path, [("x", b"x")]), evil)
    image = add(store, docker(tmp_path / "saved", [FIRST], {}, evil))
    assert image.names == ()


def test_an_import_that_nobody_waits_for_any_more_is_kept_whole(
    store: ImageStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached, go_on = threading.Event(), threading.Event()

    def slow(descriptor: int) -> None:
        reached.set()
        assert go_on.wait(20)
        sync_filesystem(descriptor)

    async def archive() -> AsyncIterator[bytes]:
        yield FIRST

    async def scenario() -> None:
        task = asyncio.create_task(Images(store, lambda _digest: "").add("one", archive()))
        assert await asyncio.to_thread(reached.wait, 20)
        task.cancel()  # its client has gone
        await asyncio.wait([task])
        go_on.set()

    monkeypatch.setattr(store_module, "sync_filesystem", slow)
    asyncio.run(scenario())  # which waits for its threads
    assert tree_of(store.find("one").root)["dir/deep/b"] == b"b"
    assert not list((tmp_path / "home" / "images").glob("incoming-*"))
