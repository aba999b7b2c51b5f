"""The object store and its trees: exact, verified, deduplicated, safe to restore from."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import blake3
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from substrate_services.journal.schema import FileState
from substrate_services.objects.errors import (
    ObjectCorrupt,
    ObjectMissing,
    ObjectStoreFull,
    ObjectTooLarge,
)
from substrate_services.objects.store import ObjectStore, hash_file
from substrate_services.objects.tree import (
    EntryKind,
    TreeEntry,
    decode_dir,
    encode_dir,
    encode_entry,
    encode_state,
    entry_from_json,
    entry_to_json,
    get_dir,
    put_dir,
    walk,
)

MIB = 1 << 20


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ObjectStore]:
    with contextlib.closing(ObjectStore(tmp_path / "objects")) as made:
        yield made


# --- bytes -------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=3000))
def test_bytes_come_back_under_their_blake3(data: bytes) -> None:
    with (
        tempfile.TemporaryDirectory() as directory,
        contextlib.closing(ObjectStore(Path(directory))) as store,
    ):
        digest = store.put(data)
        assert digest == blake3.blake3(data).hexdigest()
        assert store.get(digest) == data
        assert store.size(digest) == len(data)
        assert store.has(digest)
        with store.open(digest) as reader:
            assert reader.read(10) == data[:10]
            assert reader.read() == data[10:]


def test_the_same_bytes_are_kept_once(store: ObjectStore, tmp_path: Path) -> None:
    digest = store.put(b"hello")
    inode = store.path(digest).stat().st_ino
    (tmp_path / "file").write_bytes(b"hello")
    assert store.put(b"hello") == store.put_file(tmp_path / "file") == digest
    assert store.path(digest).stat().st_ino == inode
    assert list(store.digests()) == [digest]
    assert store.path(digest).relative_to(store.root) == Path(digest[:2], digest[2:])
    assert zstandard.decompress(store.path(digest).read_bytes()) == b"hello"


@pytest.mark.parametrize("size", [0, 1, MIB - 1, MIB, MIB + 1, 5 * MIB])
def test_files_of_all_sizes_come_back(store: ObjectStore, tmp_path: Path, size: int) -> None:
    data = (b"line of text\n" * (size // 13 + 1))[:size]
    file = tmp_path / "file"
    file.write_bytes(data)
    digest = store.put_file(file)
    assert digest == hash_file(file) == hash_file(os.fsencode(file)) == store.put(data)
    assert store.get(digest) == data
    assert store.size(digest) == size
    assert not list(store.root.glob(".tmp*"))


def test_a_descriptor_is_read_from_the_start_and_its_position_stays(
    store: ObjectStore, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"0123456789")
    with open(tmp_path / "file", "rb") as file:
        file.seek(4)
        digest = store.put_file(file.fileno())
        assert hash_file(file.fileno()) == digest
        assert file.tell() == 4
    assert store.get(digest) == b"0123456789"


def test_a_pipe_is_read_to_its_end(store: ObjectStore) -> None:
    data = os.urandom(3 * MIB)
    reader, writer = os.pipe()

    def feed() -> None:
        with open(writer, "wb") as pipe:
            pipe.write(data)

    thread = threading.Thread(target=feed)
    thread.start()
    try:
        digest = store.put_file(reader)
    finally:
        thread.join()
        os.close(reader)
    assert store.get(digest) == data


@pytest.mark.parametrize("size", [100, 3 * MIB])
def test_a_file_above_the_limit_is_not_stored(
    store: ObjectStore, tmp_path: Path, size: int
) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(size))
    with pytest.raises(ObjectTooLarge, match=str(size - 1)):
        store.put_file(file, limit_bytes=size - 1)
    assert not list(store.digests())
    assert not list(store.root.glob(".tmp*"))
    store.put_file(file, limit_bytes=size)


def test_what_is_not_a_regular_file_is_refused_without_waiting(
    store: ObjectStore, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("/etc/passwd")
    for name in ("fifo", "link", "missing", "."):
        with pytest.raises(OSError, match=r"fifo|link|missing|directory|regular"):
            store.put_file(tmp_path / name)


def test_a_missing_object_is_named(store: ObjectStore) -> None:
    digest = "ab" * 32
    assert not store.has(digest)
    for read in (store.get, store.open, store.size):
        with pytest.raises(ObjectMissing, match=digest):
            read(digest)


@pytest.mark.parametrize("digest", ["", "../../etc/passwd", "AB" * 32, "ab" * 31, "ab" * 32 + "\n"])
def test_what_is_not_a_digest_never_becomes_a_path(store: ObjectStore, digest: str) -> None:
    for read in (store.get, store.open, store.size, store.has, store.path):
        with pytest.raises(ValueError, match="not a digest"):
            read(digest)


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "other", "garbage"])
@pytest.mark.parametrize("size", [500, 3 * MIB])
def test_a_damaged_object_is_never_returned(
    store: ObjectStore, tmp_path: Path, damage: str, size: int
) -> None:
    file = tmp_path / "file"
    file.write_bytes(os.urandom(size))
    digest = store.put_file(file)
    path = store.path(digest)
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(
        {
            "flipped": data[: len(data) // 2]
            + bytes([data[len(data) // 2] ^ 1])
            + data[len(data) // 2 + 1 :],
            "cut": data[: len(data) // 2],
            "empty": b"",
            "other": zstandard.compress(b"something else"),
            "garbage": b"garbage",
        }[damage]
    )
    with pytest.raises(ObjectCorrupt, match=digest):
        store.get(digest)
    with store.open(digest) as reader, pytest.raises(ObjectCorrupt):
        for _ in iter(lambda: reader.read(1000), b""):
            pass


@pytest.mark.parametrize("size", [5, 2 * MIB])
def test_an_object_that_a_power_cut_left_in_part_is_written_again(
    tmp_path: Path, size: int
) -> None:
    data = os.urandom(size)
    (tmp_path / "file").write_bytes(data)
    for part in (0, 9, size // 2):
        with contextlib.closing(ObjectStore(tmp_path / "objects")) as store:
            digest = store.put_file(tmp_path / "file")
            path = store.path(digest)
            left = path.read_bytes()[:part]
            path.unlink()
            path.write_bytes(left)
        with contextlib.closing(ObjectStore(tmp_path / "objects")) as store:
            assert store.put_file(tmp_path / "file") == digest
            assert store.get(digest) == data


def test_threads_put_the_same_objects_at_once(store: ObjectStore) -> None:
    contents = [b"object %d" % number for number in range(100)]
    errors: list[BaseException] = []

    def work() -> None:
        try:
            for data in contents:
                store.put(data)
                store.sync()
        except BaseException as error:  # noqa: BLE001 - shown by the assertion below
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert sorted(store.get(digest) for digest in store.digests()) == sorted(contents)
    assert not list(store.root.glob(".tmp*"))


@pytest.mark.parametrize("dirty_kib", [0, 10**9])
def test_sync_leaves_nothing_pending(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch, dirty_kib: int
) -> None:
    monkeypatch.setattr("substrate_services.objects.store._dirty_kib", lambda: dirty_kib)
    for round_number in range(3):
        store.put(b"%d" % round_number)
        assert store.pending == 1
        store.sync()
        assert store.pending == 0
    store.sync()


@pytest.mark.root
def test_a_full_disk_is_named_and_leaves_the_store_as_it_was(tmp_path: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    disk = tmp_path / "disk"
    disk.mkdir()
    if libc.mount(b"tmpfs", os.fsencode(disk), b"tmpfs", 0, b"size=4m") != 0:
        pytest.skip(f"cannot mount a tmpfs: {os.strerror(ctypes.get_errno())}")
    try:
        with contextlib.closing(ObjectStore(disk / "objects")) as store:
            kept = store.put(os.urandom(MIB))
            with pytest.raises(ObjectStoreFull, match="free space"):
                store.put(os.urandom(8 * MIB))
            (tmp_path / "file").write_bytes(os.urandom(8 * MIB))
            with pytest.raises(ObjectStoreFull):
                store.put_file(tmp_path / "file")
            assert list(store.digests()) == [kept]
            assert not list(store.root.glob(".tmp*"))
            assert len(store.get(store.put(os.urandom(MIB)))) == MIB
    finally:
        assert libc.umount2(os.fsencode(disk), 0) == 0


# --- trees -------------------------------------------------------------------------------------

names = st.binary(min_size=1, max_size=8).filter(
    lambda name: name not in {b".", b".."} and b"/" not in name and b"\0" not in name
)
digests = st.from_regex(r"[0-9a-f]{64}", fullmatch=True)
kinds: list[EntryKind] = [
    "file", "dir", "symlink", "whiteout", "fifo", "socket", "char", "block",
]  # fmt: skip
entries = st.builds(
    TreeEntry,
    name=names,
    kind=st.sampled_from(kinds),
    mode=st.integers(0, 0o7777),
    uid=st.integers(0, 2**32),
    gid=st.integers(0, 2**32),
    size=st.integers(0, 2**63),
    mtime_ns=st.integers(-(2**63), 2**63),
    digest=st.none() | digests,
    target=st.none() | st.binary(max_size=9),
    rdev=st.integers(0, 2**64),
    opaque=st.booleans(),
    redirect=st.none() | st.binary(max_size=9),
    xattrs=st.dictionaries(st.binary(max_size=5), st.binary(max_size=5), max_size=2).map(
        lambda found: tuple(sorted(found.items()))
    ),
)


@settings(max_examples=150, deadline=None)
@given(entries, st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1))
def test_a_file_is_encoded_at_once_as_it_is_in_steps(entry: TreeEntry, name: str) -> None:
    plain = TreeEntry(
        name=b"_" + name.encode(),
        kind="file",
        mode=entry.mode,
        uid=entry.uid,
        gid=entry.gid,
        size=entry.size,
        mtime_ns=entry.mtime_ns,
        digest=entry.digest,
    )
    state = FileState(
        kind="file",
        mode=entry.mode,
        size=entry.size,
        digest=entry.digest,
        uid=entry.uid,
        gid=entry.gid,
        mtime_ns=entry.mtime_ns,
    )
    assert encode_state(plain.name, state, entry.digest) == encode_entry(plain)
    assert encode_state(b"\xff", state, entry.digest) is None


@settings(max_examples=150, deadline=None)
@given(st.lists(entries, max_size=5, unique_by=lambda entry: entry.name), st.randoms())
def test_a_directory_comes_back_sorted_and_has_one_encoding(
    found: list[TreeEntry], choice: object
) -> None:
    data = encode_dir(found)
    assert decode_dir(data) == tuple(sorted(found, key=lambda entry: entry.name))
    shuffled = list(found)
    choice.shuffle(shuffled)  # type: ignore[attr-defined]
    assert encode_dir(shuffled) == data
    assert encode_dir(decode_dir(data)) == data
    for entry in found:
        assert entry_from_json(entry_to_json(entry)) == entry


def test_trees_are_walked_parents_first(store: ObjectStore) -> None:
    leaf = put_dir(store, [TreeEntry(b"z", "file", 0o644, size=1, digest=store.put(b"z"))])
    middle = put_dir(
        store,
        [
            TreeEntry(b"sub", "dir", 0o755, digest=leaf),
            TreeEntry(b"gone", "whiteout"),
            TreeEntry(b"\xff", "symlink", 0o777, target=b"../x\n"),
        ],
    )
    root = put_dir(
        store,
        [
            TreeEntry(b"b", "dir", 0o700, digest=middle, opaque=True),
            TreeEntry(b"a", "fifo", 0o600),
            TreeEntry(b"unread", "dir", 0o700),  # no digest: nothing of it is in this layer
        ],
    )
    assert [path for path, _ in walk(store, root)] == [
        b"a", b"b", b"b/gone", b"b/sub", b"b/sub/z", b"b/\xff", b"unread",
    ]  # fmt: skip
    (opaque,) = [entry for path, entry in walk(store, root) if path == b"b"]
    assert opaque.opaque


def test_a_changed_file_changes_the_directories_above_it_and_no_others(store: ObjectStore) -> None:
    def tree(content: bytes) -> tuple[str, str, str]:
        changed = put_dir(store, [TreeEntry(b"f", "file", digest=store.put(content))])
        same = put_dir(store, [TreeEntry(b"g", "file", digest=store.put(b"same"))])
        root = put_dir(
            store,
            [TreeEntry(b"c", "dir", digest=changed), TreeEntry(b"s", "dir", digest=same)],
        )
        return root, changed, same

    before, after = tree(b"1"), tree(b"2")
    assert [a == b for a, b in zip(before, after, strict=True)] == [False, False, True]


def test_a_deep_tree_is_walked_without_recursion(store: ObjectStore) -> None:
    digest = put_dir(store, [])
    for _ in range(2000):
        digest = put_dir(store, [TreeEntry(b"d", "dir", digest=digest)])
    assert sum(1 for _ in walk(store, digest)) == 2000


@pytest.mark.parametrize("name", [b"", b".", b"..", b"a/b", b"/etc", b"nul\0"])
def test_a_name_that_leads_elsewhere_is_refused_both_ways(store: ObjectStore, name: bytes) -> None:
    with pytest.raises(ValueError, match="cannot be a name"):
        put_dir(store, [TreeEntry(name, "file")])
    good = encode_dir([TreeEntry(b"NAME", "file")])
    if name != b"nul\0":
        digest = store.put(good.replace(b"NAME", name))
        with pytest.raises(ObjectCorrupt, match="cannot be a name"):
            get_dir(store, digest)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{}",
        b'{"entries":[],"format":"other"}',
        b'{"entries":[{}],"format":"substrate.dir.v1"}',
        b"[" * 100_000,
        encode_dir([TreeEntry(b"b", "file"), TreeEntry(b"a", "file")]).replace(b'"a"', b'"c"'),
    ],
)
def test_what_is_no_directory_is_corrupt_and_not_a_crash(store: ObjectStore, data: bytes) -> None:
    with pytest.raises(ObjectCorrupt, match="not a directory"):
        get_dir(store, store.put(data))


def test_a_name_twice_is_refused(store: ObjectStore) -> None:
    for first, second in itertools.product((b"a", b"\xff"), repeat=2):
        pair = [TreeEntry(first, "file"), TreeEntry(second, "dir")]
        if first == second:
            with pytest.raises(ValueError, match="twice"):
                put_dir(store, pair)
        else:
            put_dir(store, pair)
