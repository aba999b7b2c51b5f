"""The images of one host: imported, listed, removed, and found by name or digest.

``$SUBSTRATE_HOME/images/<hex>/`` has each image: ``root``, its tree, and ``image.json``; beside
them ``names.json`` says what names lead to which. An image is there whole or not at all. The home
is one user's, and so are its images.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, cast

from substrate_services.errors import InvalidField
from substrate_services.journal import bytesjson
from substrate_services.journal.jsontypes import Fields, JsonObject, compact_bytes
from substrate_services.journal.parts import env_from_json, env_to_json, opt_bytes, texts
from substrate_services.world.beneath import sync_filesystem
from substrate_services.world.ids import new_id
from substrate_services.world.images.archives import ImageConfig, Source, read_archive
from substrate_services.world.images.bounded import Bounded, decompressed
from substrate_services.world.images.errors import ImageError, ImageNotFound
from substrate_services.world.images.unpack import Unpacker
from substrate_services.world.removal import remove_tree

#: What the layers of one image may unpack to, and how many entries they may have.
SIZE_LIMIT_BYTES = 64 << 30
ENTRIES_LIMIT = 4_000_000

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:@-]{0,254}")
_DIGEST = re.compile(r"(?:sha256:)?([0-9a-f]{8,64})")
_PREFIX = "sha256:"  # no name begins like this: nothing is to be taken for another image
_VERSION = 1


@dataclass(frozen=True, slots=True)
class Image:
    """An image of this host.

    Attributes:
        digest: its identity, "sha256:…": of its configuration, which names its layers; of a root
            tar, of that.
        names: what it is called here.
        root: its tree; nobody writes there.
        size_bytes: of its files.
        imported_at: seconds since the epoch.
        config: what it says of commands.
    """

    digest: str
    names: tuple[str, ...]
    root: Path
    size_bytes: int
    imported_at: float
    config: ImageConfig


class ImageStore:
    """Keeps images. Methods block; call them from a thread.

    Args:
        home: ``$SUBSTRATE_HOME``.
    """

    def __init__(self, home: Path) -> None:
        self._directory = home / "images"
        self._lock = threading.Lock()  # of what is there; unpacking goes on beside it
        for left in self._directory.glob("incoming-*"):  # by a host that was killed
            remove_tree(left)

    # -- finding ---------------------------------------------------------------------------------

    def all(self) -> list[Image]:
        """The images, oldest first."""
        with self._lock:
            names = self._names()
            found = [
                self._load(directory, names)
                for directory in self._directory.glob("?" * 64)
                if (directory / "image.json").exists()
            ]
        return sorted(found, key=lambda image: image.imported_at)

    def find(self, wanted: str) -> Image:
        """The image of a name, a digest, or the unambiguous beginning of one.

        Raises:
            ImageNotFound: there is none, or several.
        """
        found = self.all()
        for image in found:
            if wanted == image.digest or (wanted in image.names and not _is_digest(wanted)):
                return image
        digest = _DIGEST.fullmatch(wanted)
        if digest is not None:
            fitting = [i for i in found if i.digest.startswith(f"sha256:{digest.group(1)}")]
            if len(fitting) == 1:
                return fitting[0]
        raise ImageNotFound(
            f"there is no image {wanted!r} on this host; `substrate image ls` shows them, and "
            "`substrate image import` brings one"
        )

    # -- changing --------------------------------------------------------------------------------

    def incoming(self) -> Path:
        """A directory for one import; the caller removes it."""
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory = self._directory / f"incoming-{new_id('img')}"
        directory.mkdir(mode=0o700)
        return directory

    def add(self, archive: Path, name: str, workspace: Path) -> Image:
        """Unpack an archive and keep it as an image.

        Args:
            archive: an OCI archive, what ``docker save`` wrote, or a tar of a root file system;
                each may be compressed with gzip or zstd.
            name: what to call it; what the archive calls it, or its digest, where empty.
            workspace: of :meth:`incoming`.

        Raises:
            InvalidField: of the name.
            ImageInvalid, ImageTooLarge: of the archive; nothing is kept.
            OSError: of the file system.
        """
        if name and not _is_name(name):
            raise InvalidField(
                "name", name, "expected letters, digits and ._/:@-, at most 255, and no digest"
            )
        with archive.open("rb") as packed:
            source, digest, size_bytes = self._unpack(packed, workspace)
        called = name or (source.name if _is_name(source.name) else "")
        with self._lock:
            directory = self._directory / digest.removeprefix("sha256:")
            if not (directory / "image.json").exists():
                _write_record(workspace, source.config, size_bytes)
                self._settle(workspace, directory)
            names = self._names()
            if called:
                names[called] = digest
                self._write_names(names)
            return self._load(directory, names)

    def remove(self, wanted: str, in_use_by: Callable[[str], str]) -> Image:
        """Remove an image, or of an image with several names the one that is given.

        Args:
            wanted: as for :meth:`find`.
            in_use_by: the id of a world on an image of this digest; empty for none.

        Raises:
            ImageNotFound: there is none.
            ImageError: a world is on it.
        """
        image = self.find(wanted)
        with self._lock:
            if not image.root.exists():
                raise ImageNotFound(f"image {wanted!r} was removed a moment ago")
            names = self._names()
            if wanted in names and len(image.names) > 1:
                del names[wanted]
                self._write_names(names)
                return replace(image, names=tuple(n for n in image.names if n != wanted))
            world_id = in_use_by(image.digest)
            if world_id:
                raise ImageError(
                    f"image {wanted} is in use by world {world_id}; remove that first "
                    f"(substrate world rm {world_id})"
                )
            self._write_names({n: d for n, d in names.items() if d != image.digest})
            aside = self._directory / f"incoming-{new_id('old')}"
            image.root.parent.rename(aside)
        remove_tree(aside)
        return image

    # -- parts -----------------------------------------------------------------------------------

    def _unpack(self, packed: BinaryIO, workspace: Path) -> tuple[Source, str, int]:
        with _uncompressed(packed, workspace) as file:
            source = read_archive(file, limit_bytes=SIZE_LIMIT_BYTES)
            root = workspace / "root"
            root.mkdir(mode=0o755)
            root_fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                unpacker = Unpacker(
                    root_fd,
                    owners=os.geteuid() == 0,
                    entries_limit=ENTRIES_LIMIT,
                    size_limit_bytes=SIZE_LIMIT_BYTES,
                )
                digest = source.digest
                for layer in source.layers:
                    with layer() as stream:
                        unpacker.layer(stream)
                unpacker.finish()
                if not digest:
                    file.seek(0)
                    whole = Bounded(file, SIZE_LIMIT_BYTES)
                    digest = f"sha256:{whole.digest()}"
            finally:
                os.close(root_fd)
        return source, digest, unpacker.size_bytes

    def _settle(self, workspace: Path, directory: Path) -> None:
        """Bring what was unpacked to the disk, and then to its place."""
        fd = os.open(workspace, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            sync_filesystem(fd)
        finally:
            os.close(fd)
        if directory.exists():
            remove_tree(directory)
        kept = self._directory / f"incoming-{new_id('new')}"
        kept.mkdir(mode=0o700)
        for name in ("root", "image.json"):
            (workspace / name).rename(kept / name)
        kept.rename(directory)
        _sync_directory(self._directory)

    def _load(self, directory: Path, names: dict[str, str]) -> Image:
        fields = Fields(json.loads((directory / "image.json").read_bytes()), "image.json")
        if fields.integer("v") != _VERSION:
            raise fields.wrong("v", str(_VERSION))
        digest = f"sha256:{directory.name}"
        return Image(
            digest=digest,
            names=tuple(sorted(name for name, leads in names.items() if leads == digest)),
            root=directory / "root",
            size_bytes=fields.integer("size_bytes"),
            imported_at=fields.number("imported_at"),
            config=ImageConfig(
                env=env_from_json(fields, "env"),
                working_dir=opt_bytes(fields, "working_dir") or b"",
                user=fields.text("user"),
                entrypoint=texts(fields, "entrypoint"),
                command=texts(fields, "command"),
            ),
        )

    def _names(self) -> dict[str, str]:
        try:
            found = json.loads((self._directory / "names.json").read_bytes())
        except FileNotFoundError:
            return {}
        return {str(name): str(digest) for name, digest in found.items()}

    def _write_names(self, names: dict[str, str]) -> None:
        scratch = self._directory / "names.json.new"
        with scratch.open("wb") as file:
            file.write(compact_bytes(cast("JsonObject", dict(sorted(names.items())))) + b"\n")
            file.flush()
            os.fsync(file.fileno())  # or after a crash there may be a file of nothing
        scratch.replace(self._directory / "names.json")
        _sync_directory(self._directory)


def _is_digest(text: str) -> bool:
    return text.startswith(_PREFIX)


def _is_name(text: str) -> bool:
    return _NAME.fullmatch(text) is not None and not _is_digest(text)


def _sync_directory(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _write_record(directory: Path, config: ImageConfig, size_bytes: int) -> None:
    record: JsonObject = {
        "v": _VERSION,
        "size_bytes": size_bytes,
        "imported_at": time.time(),
        "env": env_to_json(config.env),
        "working_dir": bytesjson.encode(config.working_dir) if config.working_dir else None,
        "user": config.user,
        "entrypoint": list(config.entrypoint),
        "command": list(config.command),
    }
    (directory / "image.json").write_bytes(compact_bytes(record) + b"\n")


@contextlib.contextmanager
def _uncompressed(packed: BinaryIO, workspace: Path) -> Iterator[BinaryIO]:
    """An archive as a plain file: itself, or decompressed beside it where it was not."""
    stream = decompressed(packed)
    if stream is packed:
        yield packed
        return
    path = workspace / "plain.tar"
    with path.open("w+b") as plain:
        path.unlink()  # it goes with its descriptor, however this ends
        shutil.copyfileobj(cast("BinaryIO", Bounded(stream, SIZE_LIMIT_BYTES)), plain, 1 << 20)
        plain.seek(0)
        yield plain
