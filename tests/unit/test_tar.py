"""Tar streams from where nobody is trusted: what is read, what is refused, where it is written."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from substrate_sdk._tar import BadTar, TarEntry, TarReader, padding, tar_end, tar_header
from substrate_sdk.client.trees import TreeWriter, pack
from substrate_sdk.errors import TooLarge, UnsafeTree

LIMIT = 1 << 30
Entries = list[tuple[TarEntry, bytes]]


def stream(entries: Entries) -> bytes:
    return (
        b"".join(tar_header(entry) + content + padding(len(content)) for entry, content in entries)
        + tar_end()
    )


def forged(path: str, kind: bytes, *, link: str = "", mode: int = 0o644) -> bytes:
    """An entry as another program would write it, checked by nothing."""
    info = tarfile.TarInfo(path)
    info.type, info.linkname, info.mode = kind, link, mode
    return info.tobuf(tarfile.PAX_FORMAT) + tar_end()


def write(target: Path, data: bytes, *, piece: int = 1 << 20, limit_bytes: int = LIMIT) -> None:
    writer = TreeWriter(target, limit_bytes=limit_bytes)
    try:
        for at in range(0, len(data), piece):
            writer.feed(data[at : at + piece])
        writer.finish()
    finally:
        writer.close()


ORDINARY: Entries = [
    (TarEntry(b"d", "dir", 0o500, mtime=5), b""),
    (TarEntry(b"d/f", "file", 0o640, 5, 77), b"hello"),
    (TarEntry(b"d/" + b"x" * 200, "symlink", 0o777, target=b"t" * 300), b""),
    (TarEntry(b"\xff\xfe", "file", 0o600, 0, 1), b""),
    (TarEntry(b"hard", "hardlink", 0o640, target=b"d/f"), b""),
]


@pytest.mark.parametrize("piece", [1, 7, 512, 100_000])
def test_what_is_written_is_read_however_it_is_cut(piece: int) -> None:
    data = stream(ORDINARY)
    reader = TarReader()
    found: list[TarEntry | bytes] = []
    for at in range(0, len(data), piece):
        found += reader.feed(data[at : at + piece])
    reader.finish()
    assert [part for part in found if isinstance(part, TarEntry)] == [e for e, _ in ORDINARY]
    assert b"".join(part for part in found if isinstance(part, bytes)) == b"hello"


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_other_tools_streams_are_read(form: int) -> None:
    space = io.BytesIO()
    name = "a/" * 60 + "é" * 60
    with tarfile.open(fileobj=space, mode="w", format=form) as tar:
        info = tarfile.TarInfo(name)
        info.size = 3
        tar.addfile(info, io.BytesIO(b"abc"))
    reader = TarReader()
    entry, content = list(reader.feed(space.getvalue()))
    assert isinstance(entry, TarEntry)
    assert (entry.path, content) == (name.encode(), b"abc")
    with tarfile.open(fileobj=io.BytesIO(stream(ORDINARY))) as tar:
        assert [os.fsencode(member.name) for member in tar] == [e.path for e, _ in ORDINARY]


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: forged("/etc/passwd", tarfile.REGTYPE), "absolute"),
        (lambda: forged("a/../../b", tarfile.REGTYPE), "out of the tree"),
        (lambda: forged("x" * 256, tarfile.REGTYPE), "too long"),
        (lambda: forged("a/" * 3000 + "b", tarfile.REGTYPE), "too long"),
        (lambda: forged("null", tarfile.CHRTYPE), "device"),
        (lambda: forged("disk", tarfile.BLKTYPE), "device"),
        (lambda: forged("fifo", tarfile.FIFOTYPE), "fifo"),
        (lambda: forged("l", tarfile.LNKTYPE, link="../out"), "out of the tree"),
        (lambda: forged("l", tarfile.LNKTYPE, link="/etc/passwd"), "absolute"),
        (lambda: forged("l", tarfile.SYMTYPE), "no target"),
        (lambda: b"\1" * 1024, "checksum"),
        (lambda: tar_header(TarEntry(b"f", "file", size=9)) + b"short", "ends early"),
        (lambda: b"", "ends early"),
        (lambda: _extended(1 << 40), "too large"),
        (lambda: _record(b"99999 path=x\n"), "damaged"),
        (lambda: _record(b"13 path=a\0bc\n"), "NUL"),
        (lambda: _record(b"12 size=-x1\n"), "no number"),
        (lambda: _record(b"-5 path=x\n"), "damaged"),
    ],
)
def test_what_is_not_taken_is_refused(make: Callable[[], bytes], text: str) -> None:
    reader = TarReader()

    def read() -> None:
        for _ in reader.feed(make()):
            pass
        reader.finish()

    with pytest.raises(BadTar, match=text):
        read()


def _extended(size: int) -> bytes:
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, size
    return info.tobuf(tarfile.GNU_FORMAT)


def _record(record: bytes) -> bytes:
    return _extended(len(record)) + record + padding(len(record)) + stream(ORDINARY)


def test_a_stream_of_many_entries_is_bounded() -> None:
    reader = TarReader(limit_entries=2)
    with pytest.raises(BadTar, match="more than 2"):
        list(reader.feed(stream(ORDINARY)))


# -- writing ----------------------------------------------------------------------------------


def test_a_tree_is_written_and_packed_the_same(tmp_path: Path) -> None:
    write(tmp_path / "a", stream(ORDINARY), piece=100)
    made = tmp_path / "a"
    assert (made / "d" / "f").stat().st_ino == (made / "hard").stat().st_ino
    assert (made / "d").stat().st_mode & 0o777 == 0o500
    assert (made / "hard").stat().st_mtime == 77
    write(tmp_path / "b", b"".join(pack(made)))
    assert b"".join(pack(tmp_path / "b")) == b"".join(pack(made))
    assert not [name for name in os.listdir(made) if name.startswith(".substrate")]


def test_nothing_is_written_through_a_link_that_is_there(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("kept")
    target = tmp_path / "target"
    target.mkdir()
    (target / "out").symlink_to(outside)
    (target / "file").symlink_to(outside / "kept")
    with pytest.raises(UnsafeTree, match="out"):
        write(target, stream([(TarEntry(b"out/new", "file", size=1), b"x")]))
    with pytest.raises(UnsafeTree, match="out"):
        write(target, stream([(TarEntry(b"out", "dir", 0o777), b"")]))
    write(target, stream([(TarEntry(b"file", "file", size=1), b"x")]))
    assert (target / "file").read_bytes() == b"x"
    assert not (target / "file").is_symlink()
    (target / "hard").hardlink_to(outside / "kept")
    write(target, stream([(TarEntry(b"hard", "file", size=1), b"y")]))
    assert sorted(os.listdir(outside)) == ["kept"]
    assert (outside / "kept").read_text() == "kept"


def test_a_link_in_the_tree_leads_no_later_entry_out_of_it(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir(mode=0o755)
    link = (TarEntry(b"l", "symlink", target=os.fsencode(outside)), b"")
    through: list[Entries] = [
        [link, (TarEntry(b"l/x", "file", size=1), b"x")],
        [link, (TarEntry(b"l/d", "dir", 0o777), b"")],
        [link, (TarEntry(b"l", "dir", 0o777), b"")],
        [link, (TarEntry(b"l/h", "hardlink", target=b"l"), b"")],
        [link, (TarEntry(b"h", "hardlink", target=b"l/x"), b"")],
    ]
    (outside / "x").write_text("x")
    for number, entries in enumerate(through):
        with pytest.raises(UnsafeTree):
            write(tmp_path / str(number), stream(entries))
    assert os.listdir(outside) == ["x"]
    assert outside.stat().st_mode & 0o777 == 0o755
    # A directory that becomes a link before it gets its mode.
    swapped = [(TarEntry(b"d", "dir", 0o777), b""), (TarEntry(b"d", "symlink", target=b"/"), b"")]
    with pytest.raises((UnsafeTree, OSError)):
        write(tmp_path / "swapped", stream(swapped))


@pytest.mark.parametrize("mode", [0o4755, 0o2755])
def test_a_set_id_file_is_refused(tmp_path: Path, mode: int) -> None:
    with pytest.raises(UnsafeTree, match="set-id"):
        write(tmp_path, stream([(TarEntry(b"su", "file", mode), b"")]))
    assert os.listdir(tmp_path) == []


def test_a_tree_is_as_large_as_allowed_and_leaves_no_part_of_a_file(tmp_path: Path) -> None:
    with pytest.raises(TooLarge):
        write(tmp_path, stream([(TarEntry(b"f", "file", size=9), b"x" * 9)]), limit_bytes=8)
    with pytest.raises(UnsafeTree, match="ends early"):
        write(tmp_path, stream([(TarEntry(b"f", "file", size=900), b"x" * 900)])[:1000])
    assert os.listdir(tmp_path) == []


def test_sockets_fifos_and_devices_are_left_out(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "empty").mkdir()
    reader = TarReader()
    found = [part for piece in pack(tmp_path) for part in reader.feed(piece)]
    assert [part.path for part in found if isinstance(part, TarEntry)] == [b"empty"]
