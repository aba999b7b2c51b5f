"""Archives as streams: decompressed, bounded, and read without trusting a word of them."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, BinaryIO, Self, cast

import zstandard

from substrate_services.world.images.errors import ImageInvalid, ImageTooLarge

_ZSTD_WINDOW_BYTES = 128 << 20
#: Of one extended header: names and attributes. tarfile reads each into memory whole.
_HEADER_LIMIT_BYTES = 1 << 20
#: Of all that tarfile reads to know one member, maps of holes too.
_MEMBER_LIMIT_BYTES = 4 << 20
#: Of all that is said for every member; tarfile keeps it, and gives each a copy.
_GLOBAL_LIMIT_BYTES = 64 << 10
_EXTENDED = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.GNUTYPE_SPARSE,
)
#: What hostile archives have tarfile raise, beside what it says it does.
DAMAGED = (tarfile.TarError, EOFError, UnicodeError, ValueError, OverflowError, RecursionError)


class _Counted:
    """A file of which no more than so much is read."""

    def __init__(self, inner: IO[bytes]) -> None:
        self._inner = inner
        self._left = _MEMBER_LIMIT_BYTES

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)

    def read(self, size: int) -> bytes:
        self._left -= size
        if self._left < 0:
            raise ImageInvalid(f"headers of more than {_MEMBER_LIMIT_BYTES} bytes for one entry")
        return self._inner.read(size)


class Member(tarfile.TarInfo):
    """A member of an archive; one whose headers would fill the memory is refused."""

    def _proc_member(self, archive: tarfile.TarFile) -> Self:
        if self.type not in _EXTENDED:
            return self._process(archive)
        if self.type != tarfile.GNUTYPE_SPARSE and self.size > _HEADER_LIMIT_BYTES:
            raise ImageInvalid(f"a header of {self.size} bytes in the archive")
        if self.type == tarfile.XGLTYPE:
            told = getattr(archive, "told_for_all_bytes", 0) + self.size
            if told > _GLOBAL_LIMIT_BYTES:
                raise ImageInvalid(f"more than {_GLOBAL_LIMIT_BYTES} bytes of global headers")
            archive.told_for_all_bytes = told  # type: ignore[attr-defined] # ours to keep there
        file = archive.fileobj
        assert file is not None  # it is being read
        archive.fileobj = cast("IO[bytes]", _Counted(cast("IO[bytes]", file)))
        try:
            return self._process(archive)
        finally:
            archive.fileobj = file

    def _process(self, archive: tarfile.TarFile) -> Self:
        # The entry point that tarfile leaves to subclasses.
        found: Self = super()._proc_member(archive)  # type: ignore[misc]
        return found


class Bounded(io.RawIOBase):
    """A stream that is counted, hashed, and cut where it is longer than it may be.

    Args:
        inner: what is read.
        limit_bytes: more is refused.
    """

    def __init__(self, inner: IO[bytes], limit_bytes: int) -> None:
        super().__init__()
        self._inner = inner
        self._left = limit_bytes
        self._limit_bytes = limit_bytes
        self._hash = hashlib.sha256()

    def readable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, buffer: object) -> int:
        """Read into a buffer. Raises ImageTooLarge, ImageInvalid."""
        view = memoryview(buffer)  # type: ignore[arg-type] # what io gives has the protocol
        try:
            data = self._inner.read(min(len(view), 1 << 20))
        except (OSError, EOFError, zstandard.ZstdError) as error:
            raise ImageInvalid(f"the archive cannot be decompressed: {error}") from error
        self._left -= len(data)
        if self._left < 0:
            raise ImageTooLarge(f"the archive unpacks to more than {self._limit_bytes} bytes")
        self._hash.update(data)
        view[: len(data)] = data
        return len(data)

    def digest(self) -> str:
        """SHA-256 of all, once what was not read yet is read too."""
        buffer = bytearray(1 << 20)
        while self.readinto(buffer):
            pass
        return self._hash.hexdigest()


def decompressed(file: BinaryIO) -> IO[bytes]:
    """The content of a file by its first bytes: gzip, zstd, or as it is."""
    magic = file.read(6)
    file.seek(-len(magic), io.SEEK_CUR)
    if magic.startswith(b"\x1f\x8b"):
        return cast("IO[bytes]", gzip.GzipFile(fileobj=file, mode="rb"))
    if magic.startswith(b"\x28\xb5\x2f\xfd"):
        unpacker = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES)
        return unpacker.stream_reader(file, read_across_frames=True, closefd=False)
    if magic.startswith((b"\xfd7zXZ", b"BZh")):
        raise ImageInvalid("archives of xz and bzip2 are not read; decompress it first")
    return file


@contextmanager
def members(stream: IO[bytes]) -> Iterator[tarfile.TarFile]:
    """The members of a tar stream, front to back. Raises ImageInvalid for what is none."""
    try:
        with tarfile.open(fileobj=stream, mode="r|", tarinfo=Member) as archive:
            yield archive
    except DAMAGED as error:
        raise ImageInvalid(f"the archive is damaged: {error}") from error


def each(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The members one after the other; none is remembered, however many they are."""
    for member in archive:
        archive.members = []  # type: ignore[attr-defined] # so says tarfile's manual
        yield member
