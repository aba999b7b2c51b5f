"""The content-addressed store: bytes by their BLAKE3, compressed, each kept once.

An object is one file, ``objects/ab/cdef…``, holding one zstd frame; ``zstdcat`` reads it. It gets
its name by rename when it is complete, and is never changed afterwards. Reading verifies.

Durability is by group: ``put`` does not wait for the disk, ``sync`` makes everything put so far
durable. Who writes a journal line that names objects calls ``sync`` before the journal's
``flush``, so an acknowledged line never names an object that a power cut can take.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import io
import itertools
import math
import os
import re
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

import blake3
import zstandard

from substrate_services.objects.errors import (
    ObjectCorrupt,
    ObjectError,
    ObjectMissing,
    ObjectStoreFull,
    ObjectTooLarge,
)

_CHUNK_BYTES = 1 << 18
_ONE_SHOT_BYTES = 1 << 20  # files up to here are read whole: hashed first, written only if new
_LEVEL = 3
_KNOWN_LIMIT = 1 << 16
_HEADER_BYTES = 18  # the longest zstd frame header
_DIGEST = re.compile(r"[0-9a-f]{64}\Z")
_FULL_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})

# With this much dirty data on the machine, syncing the whole file system may take seconds; fsync
# of the objects alone is then the cheaper way, up to this many of them.
_DIRTY_LIMIT_KIB = 64 << 10
_FSYNC_LIMIT = 256
_DIRTY_FOR_S = 0.25  # asking the kernel costs as much as writing a small object

_libc = ctypes.CDLL(None, use_errno=True)
_scratch_numbers = itertools.count()
_per_thread = threading.local()


class ObjectStore:
    """Objects under one directory. Safe from any thread and for several processes.

    Args:
        root: the directory; made, with its parents, where it is missing.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Held open from the start: syncfs reports the write errors since the descriptor was made.
        self._root_fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._root = os.fsencode(root)
        self._lock = threading.Lock()
        self._pending: list[bytes] = []  # paths put and not yet synced
        self._known: set[str] = set()  # digests of objects known to be whole
        self._sync_lock = threading.Lock()
        self._dirty_asked, self._dirty_kib = -math.inf, 0
        # A host that was killed may have left objects that never reached the disk, and a put of
        # the same bytes now adds nothing to _pending: so the first sync always syncs.
        self._unsynced_before = True

    def close(self) -> None:
        """Gives up the store's descriptor. What was put and not synced may be lost."""
        os.close(self._root_fd)

    # --- writing ---------------------------------------------------------------------------

    def put(self, data: bytes) -> str:
        """Stores ``data``; returns its digest. Durable after :meth:`sync`.

        Raises ObjectStoreFull where there is no space.
        """
        digest = blake3.blake3(data).hexdigest()
        path = self._path(digest)
        if not self._holds(digest, path):
            frame = _compressor().compress(data)
            with self._scratch(digest) as (fd, scratch):
                view = memoryview(frame)
                while view:
                    view = view[os.write(fd, view) :]
                self._keep(scratch, digest, path)
        return digest

    def put_file(self, source: Path | str | bytes | int, *, limit_bytes: int | None = None) -> str:
        """Stores a file's content, or what a descriptor reads; returns its digest.

        Memory stays constant. A descriptor of a regular file is read from its beginning, and its
        own position is left alone; others (pipes) are read to their end. A path that is a
        symbolic link or not a regular file is refused.

        Raises:
            ObjectTooLarge: there are more than ``limit_bytes`` bytes; nothing is stored.
            ObjectStoreFull: there is no space.
            OSError: the file cannot be read.
        """
        if not isinstance(source, int):
            fd = _open_regular(source)
            try:
                return self.put_file(fd, limit_bytes=limit_bytes)
            finally:
                os.close(fd)
        status = os.fstat(source)
        regular = stat.S_ISREG(status.st_mode)
        if regular and limit_bytes is not None and status.st_size > limit_bytes:
            raise ObjectTooLarge(limit_bytes)
        if regular and status.st_size <= _ONE_SHOT_BYTES:
            data = b"".join(_chunks(source, regular, limit_bytes))
            if len(data) <= _ONE_SHOT_BYTES:
                return self.put(data)
        return self._put_stream(source, regular, limit_bytes)

    def _put_stream(self, source: int, regular: bool, limit_bytes: int | None) -> str:
        hasher = blake3.blake3()
        compressor = zstandard.ZstdCompressor(level=_LEVEL).compressobj()
        with self._scratch("stream") as (fd, scratch):
            # The size is not promised in the frame: a file may change while it is read.
            for chunk in _chunks(source, regular, limit_bytes):
                hasher.update(chunk)
                _write_all(fd, compressor.compress(chunk))
            _write_all(fd, compressor.flush())
            digest = hasher.hexdigest()
            path = self._path(digest)
            if not self._holds(digest, path):
                self._keep(scratch, digest, path)
        return digest

    def sync(self) -> None:
        """Makes everything put before the call durable. Blocks; run it off the event loop.

        Mostly one ``syncfs``, which costs less than an fsync per object from the second object
        on. It also writes out what others left dirty on the file system, so where that is much
        the objects are fsynced one by one.

        Raises ObjectStoreFull or OSError; the objects then stay pending for the next call.
        """
        with self._sync_lock:
            with self._lock:
                paths, self._pending = self._pending, []
            if not paths and not self._unsynced_before:
                return
            few = len(paths) <= _FSYNC_LIMIT and not self._unsynced_before
            try:
                if few and self._much_is_dirty():
                    _fsync_each(paths)
                else:
                    self._syncfs()
            except OSError as error:
                with self._lock:
                    self._pending = paths + self._pending
                self._raise_if_full(error)
                raise
            self._unsynced_before = False

    @property
    def pending(self) -> int:
        """How many objects :meth:`sync` would make durable."""
        with self._lock:
            return len(self._pending)

    # --- reading ---------------------------------------------------------------------------

    def get(self, digest: str) -> bytes:
        """The object's bytes, verified. Raises ObjectMissing or ObjectCorrupt."""
        with contextlib.closing(self.open(digest)) as reader:
            return reader.read()

    def open(self, digest: str) -> BinaryIO:
        """A stream over the object. Raises ObjectMissing here, ObjectCorrupt while reading.

        The digest is verified when the end is reached: until then, what was read may be wrong.
        """
        try:
            fd = os.open(self._path(digest), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise ObjectMissing(digest) from None
        return cast("BinaryIO", io.BufferedReader(_ObjectReader(fd, digest), _CHUNK_BYTES))

    def has(self, digest: str) -> bool:
        """Whether the object is there. It may still prove corrupt when it is read."""
        return os.path.exists(self._path(digest))

    def size(self, digest: str) -> int:
        """The object's size in bytes, uncompressed. Raises ObjectMissing or ObjectCorrupt.

        Read from the frame's header, except for large files, which are decompressed to count.
        """
        header = _header(self._path(digest))
        if header is None:
            raise ObjectMissing(digest)
        try:
            size = zstandard.frame_content_size(header)
        except zstandard.ZstdError as error:
            raise ObjectCorrupt(digest, str(error)) from error
        if size >= 0:
            return size
        total = 0
        with contextlib.closing(self.open(digest)) as reader:
            while chunk := reader.read(_CHUNK_BYTES):
                total += len(chunk)
        return total

    def digests(self) -> Iterator[str]:
        """Every object's digest, in no order; for garbage collection and checks."""
        for directory in sorted(os.listdir(self.root)):
            if re.fullmatch(r"[0-9a-f]{2}", directory) is None:
                continue
            for name in os.listdir(self.root / directory):
                if _DIGEST.match(directory + name):
                    yield directory + name

    def path(self, digest: str) -> Path:
        """Where the object is, or would be, for hard links and diagnostics."""
        return Path(os.fsdecode(self._path(digest)))

    # --- inside ----------------------------------------------------------------------------

    def _path(self, digest: str) -> bytes:
        # A digest comes from journals and requests; it must never name anything but an object.
        if _DIGEST.match(digest) is None:
            raise ValueError(f"{digest!r:.80} is not a digest; expected 64 lower-case hex digits")
        return b"%b/%b/%b" % (self._root, digest[:2].encode(), digest[2:].encode())

    @contextlib.contextmanager
    def _scratch(self, label: str) -> Iterator[tuple[int, bytes]]:
        """A file to write an object into; gone afterwards unless it was renamed."""
        name = b"%b/.tmp-%d-%d-%b" % (
            self._root,
            os.getpid(),
            next(_scratch_numbers),
            label[:8].encode(),
        )
        try:
            fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o400)
            try:
                yield fd, name
            finally:
                os.close(fd)
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(name)
        except OSError as error:
            self._raise_if_full(error)
            raise

    def _holds(self, digest: str, path: bytes) -> bool:
        """Whether the object is there, and whole.

        A power cut may leave the name of an unsynced object with a part of its data or none. So
        an object that this store has not written or read to its end itself is read before it is
        taken for good; one that is damaged gets written again.
        """
        if digest in self._known:
            return os.path.exists(path)
        try:
            with contextlib.closing(self.open(digest)) as reader:
                while reader.read(_CHUNK_BYTES):
                    pass
        except ObjectError:
            return False
        self._remember(digest)
        return True

    def _remember(self, digest: str) -> None:
        if len(self._known) >= _KNOWN_LIMIT:
            self._known.clear()
        self._known.add(digest)

    def _keep(self, scratch: bytes, digest: str, path: bytes) -> None:
        try:
            os.rename(scratch, path)
        except FileNotFoundError:
            with contextlib.suppress(FileExistsError):
                os.mkdir(os.path.dirname(path), 0o700)
            os.rename(scratch, path)
        with self._lock:
            self._pending.append(path)
            self._remember(digest)

    def _syncfs(self) -> None:
        if _libc.syncfs(self._root_fd) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), os.fspath(self.root))

    def _much_is_dirty(self) -> bool:
        now = time.monotonic()
        if now - self._dirty_asked > _DIRTY_FOR_S:
            self._dirty_asked, self._dirty_kib = now, _dirty_kib()
        return self._dirty_kib > _DIRTY_LIMIT_KIB

    def _raise_if_full(self, error: OSError) -> None:
        if error.errno in _FULL_ERRNOS and not isinstance(error, ObjectStoreFull):
            raise ObjectStoreFull(self.root, error) from error


def hash_file(source: Path | str | bytes | int) -> str:
    """The digest that a file's content has as an object, without storing it.

    Reads as :meth:`ObjectStore.put_file` does. Raises OSError.
    """
    if not isinstance(source, int):
        fd = _open_regular(source)
        try:
            return hash_file(fd)
        finally:
            os.close(fd)
    hasher = blake3.blake3()
    for chunk in _chunks(source, stat.S_ISREG(os.fstat(source).st_mode), None):
        hasher.update(chunk)
    return hasher.hexdigest()


class _ObjectReader(io.RawIOBase):
    """Decompresses one object and checks its digest at the end."""

    def __init__(self, fd: int, digest: str) -> None:
        super().__init__()
        self._fd = fd
        self._digest = digest
        self._hasher = blake3.blake3()
        self._file = io.FileIO(fd, "rb", closefd=True)
        self._stream = zstandard.ZstdDecompressor().stream_reader(self._file, _CHUNK_BYTES)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        view = memoryview(buffer)
        try:
            count = self._stream.readinto(view)
        except zstandard.ZstdError as error:
            raise ObjectCorrupt(self._digest, str(error)) from error
        if count:
            self._hasher.update(view[:count])
        elif self._hasher.hexdigest() != self._digest:
            raise ObjectCorrupt(self._digest, f"its content has {self._hasher.hexdigest()}")
        return count

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


def _compressor() -> zstandard.ZstdCompressor:
    # Making one costs more than compressing a small object, and it must not be shared by threads.
    compressor: zstandard.ZstdCompressor | None = getattr(_per_thread, "compressor", None)
    if compressor is None:
        compressor = _per_thread.compressor = zstandard.ZstdCompressor(level=_LEVEL)
    return compressor


def _header(path: bytes) -> bytes | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        return os.pread(fd, _HEADER_BYTES, 0)
    finally:
        os.close(fd)


def _open_regular(path: Path | str | bytes) -> int:
    # Not blocking: a path that became a FIFO must not hold us up until somebody writes to it.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "not a regular file", os.fsdecode(path))
    return fd


def _chunks(fd: int, regular: bool, limit_bytes: int | None) -> Iterator[bytes]:
    size = 0
    while True:
        chunk = os.pread(fd, _CHUNK_BYTES, size) if regular else os.read(fd, _CHUNK_BYTES)
        if not chunk:
            return
        size += len(chunk)
        if limit_bytes is not None and size > limit_bytes:
            raise ObjectTooLarge(limit_bytes)
        yield chunk


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _fsync_each(paths: list[bytes]) -> None:
    for path in [*paths, *{os.path.dirname(path) for path in paths}]:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue  # collected as garbage since
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _dirty_kib() -> int:
    """How much dirty data waits to be written on the machine; 0 where the kernel does not say."""
    try:
        with open("/proc/meminfo", "rb") as meminfo:
            match = re.search(rb"^Dirty:\s+(\d+)", meminfo.read(4096), re.MULTILINE)
    except OSError:
        return 0
    return int(match[1]) if match else 0
