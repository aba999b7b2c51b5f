"""What an archive holds: an OCI layout, what ``docker save`` writes, or a root file system.

Formats: OCI image specification 1.1 (image-layout.md, image-index.md, manifest.md, config.md), and
Docker's image specification 1.2. Every blob is held against the digest that names it.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import platform
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import IO, BinaryIO, cast

from substrate_services.journal.jsontypes import JsonObject, JsonValue
from substrate_services.world.images.bounded import DAMAGED, Bounded, Member, decompressed, each
from substrate_services.world.images.errors import ImageInvalid

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
_DOCUMENT_LIMIT_BYTES = 8 << 20
_MEMBERS_LIMIT = 100_000
_LAYERS_LIMIT = 512
_NESTING_LIMIT = 4
_INDEXES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
_REF = "org.opencontainers.image.ref.name"


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """What an image says of the commands that run in it; nothing of a plain root tar."""

    env: tuple[tuple[bytes, bytes], ...] = ()
    working_dir: bytes = b""
    user: str = ""
    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Source:
    """An image in an archive.

    Attributes:
        layers: give each layer's tar stream, lowest first; a layer is checked when it is read.
        config: what the image says of commands.
        digest: its identity, "sha256:…"; of a root tar, which has none, known once it is read.
        name: what the archive calls it; empty for nothing.
    """

    layers: tuple[Callable[[], contextlib.AbstractContextManager[IO[bytes]]], ...]
    config: ImageConfig = field(default_factory=ImageConfig)
    digest: str = ""
    name: str = ""


class _Files:
    """The regular files of an uncompressed archive, by name."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._found: dict[str, tuple[int, int]] = {}
        self._links: dict[str, str] = {}

    def read_index(self) -> None:
        """Find where each file is; not in an archive of too many, which is a root file system."""
        self._file.seek(0)
        try:
            with tarfile.open(fileobj=self._file, mode="r:", tarinfo=Member) as archive:
                for number, member in enumerate(each(archive)):
                    if number >= _MEMBERS_LIMIT:
                        return
                    name = os.path.normpath(member.name)
                    if member.isreg() and not member.sparse and member.size >= 0:
                        self._found[name] = (member.offset_data, member.size)
                    elif member.issym():
                        # docker save writes a layer that two images share once.
                        where = os.path.join(os.path.dirname(name), member.linkname)
                        self._links[name] = os.path.normpath(where)
        except DAMAGED as error:
            raise ImageInvalid(f"this is no tar archive: {error}") from error

    def __contains__(self, name: str) -> bool:
        return self._links.get(name, name) in self._found

    def stream(self, name: str) -> io.BufferedReader:
        """One file's content. Raises ImageInvalid where there is none."""
        place = self._found.get(self._links.get(name, name))
        if place is None:
            raise ImageInvalid(f"the archive has no {name}")
        return io.BufferedReader(_Part(self._file, *place))

    def document(self, name: str, digest: str = "") -> JsonValue:
        """A JSON document, held against its digest. Raises ImageInvalid."""
        with self.stream(name) as stream:
            text = stream.read(_DOCUMENT_LIMIT_BYTES + 1)
        if len(text) > _DOCUMENT_LIMIT_BYTES:
            raise ImageInvalid(f"{name} has more than {_DOCUMENT_LIMIT_BYTES} bytes")
        if digest and hashlib.sha256(text).hexdigest() != digest:
            raise ImageInvalid(f"{name} does not hold what its digest names")
        try:
            return cast("JsonValue", json.loads(text))
        except (ValueError, RecursionError) as error:
            raise ImageInvalid(f"{name} is no JSON: {error}") from error


class _Part(io.RawIOBase):
    """A part of a file, from its own position on."""

    def __init__(self, file: BinaryIO, offset: int, size: int) -> None:
        super().__init__()
        self._fd = file.fileno()
        self._at, self._end = offset, offset + size

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        assert whence == io.SEEK_CUR
        self._at += offset
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer)  # type: ignore[arg-type] # what io gives has the protocol
        data = os.pread(self._fd, min(len(view), self._end - self._at), self._at)
        view[: len(data)] = data
        self._at += len(data)
        return len(data)


def read_archive(file: BinaryIO, *, limit_bytes: int) -> Source:
    """Find the image in an uncompressed archive.

    Args:
        file: a regular file, positioned anywhere.
        limit_bytes: what all layers together may unpack to.

    Raises:
        ImageInvalid: there is none, or several, or none for this machine.
    """
    files = _Files(file)
    files.read_index()
    layers = _Layers(files, limit_bytes)
    if "oci-layout" in files and "index.json" in files:
        return _from_oci(files, layers)
    if "manifest.json" in files:
        source = _from_docker(files, layers)
        if source is not None:
            return source

    @contextlib.contextmanager
    def whole() -> Iterator[IO[bytes]]:
        file.seek(0)
        yield file

    return Source(layers=(whole,))


class _Layers:
    """Opens layers; all of them together have one limit."""

    def __init__(self, files: _Files, limit_bytes: int) -> None:
        self._files = files
        self._limit_bytes = limit_bytes

    def opener(
        self, name: str, blob_digest: str, diff_id: str
    ) -> Callable[[], contextlib.AbstractContextManager[IO[bytes]]]:
        """What opens one layer, and when it has been read holds it against both digests."""

        @contextlib.contextmanager
        def opened() -> Iterator[IO[bytes]]:
            with self._files.stream(name) as blob:
                if blob_digest and _sha256(blob) != blob_digest:
                    raise ImageInvalid(f"{name} does not hold what its digest names")
            with self._files.stream(name) as blob:
                plain = Bounded(decompressed(cast("BinaryIO", blob)), self._limit_bytes)
                yield cast("IO[bytes]", io.BufferedReader(plain, 1 << 20))
                if diff_id and plain.digest() != diff_id:
                    raise ImageInvalid(f"layer {name} does not hold what its diff_id names")

        return opened


def _sha256(stream: IO[bytes]) -> str:
    found = hashlib.sha256()
    while data := stream.read(1 << 20):
        found.update(data)
    return found.hexdigest()


# -- OCI ------------------------------------------------------------------------------------------


def _from_oci(files: _Files, layers: _Layers) -> Source:
    index = _object(files.document("index.json"), "index.json")
    found = list(_manifests(files, index, 0, ""))
    ours = [(manifest, name) for manifest, config, name in found if _is_ours(config)]
    if not ours:
        raise ImageInvalid(f"the archive has no image for linux/{_architecture()}")
    if len(ours) > 1:
        names = ", ".join(sorted(name or "one without a name" for _manifest, name in ours))
        raise ImageInvalid(f"the archive has several images ({names}); export one of them")
    manifest, name = ours[0]
    digest = _digest(_object(manifest.get("config"), "config"))
    config = _object(files.document(_blob(digest), digest), "config")
    listed = [_object(entry, "layer") for entry in _list(manifest.get("layers"), "layers")]
    diff_ids = _diff_ids(config, len(listed))
    return Source(
        layers=tuple(
            layers.opener(_blob(_digest(entry)), _digest(entry), diff_id)
            for entry, diff_id in zip(listed, diff_ids, strict=True)
        ),
        config=_config(config),
        digest=f"sha256:{digest}",
        name=name,
    )


def _manifests(
    files: _Files, index: JsonObject, depth: int, name: str
) -> Iterator[tuple[JsonObject, JsonObject, str]]:
    """Each image manifest of an index, with its config and what it is called."""
    if depth > _NESTING_LIMIT:
        raise ImageInvalid("indexes in indexes in indexes")
    for item in _list(index.get("manifests"), "manifests")[:_LAYERS_LIMIT]:
        entry = _object(item, "manifest")
        system = _object(entry.get("platform") or {}, "platform")
        if not _is_ours(system):
            continue
        notes = _object(entry.get("annotations") or {}, "annotations")
        called = notes.get("io.containerd.image.name") or notes.get(_REF) or name
        digest = _digest(entry)
        if _blob(digest) not in files:
            continue  # of another architecture, left out of the archive
        document = _object(files.document(_blob(digest), digest), "manifest")
        if entry.get("mediaType") in _INDEXES or "manifests" in document:
            yield from _manifests(files, document, depth + 1, str(called))
            continue
        config_digest = _digest(_object(document.get("config"), "config"))
        config = _object(files.document(_blob(config_digest), config_digest), "config")
        if "rootfs" in config:  # an attestation has none
            yield document, config, str(called)


def _is_ours(config: JsonObject) -> bool:
    return config.get("os", "linux") == "linux" and (
        config.get("architecture", _architecture()) == _architecture()
    )


# -- docker save ----------------------------------------------------------------------------------


def _from_docker(files: _Files, layers: _Layers) -> Source | None:
    """The image; None where manifest.json is some file of a root file system."""
    try:
        listed = files.document("manifest.json")
        images = [_object(item, "manifest.json") for item in _list(listed, "manifest.json")]
        names = [_list(image.get("Layers"), "Layers") for image in images]
    except ImageInvalid:
        return None
    if len(images) != 1:
        raise ImageInvalid(f"the archive has {len(images)} images; save one of them")
    (image,), (paths,) = images, names
    where = os.path.normpath(str(image.get("Config")))
    digest = os.path.basename(where).removesuffix(".json")
    config = _object(files.document(where, digest), where)
    if not _is_ours(config):
        raise ImageInvalid(
            f"the image is for {config.get('architecture')}, and this machine is {_architecture()}"
        )
    diff_ids = _diff_ids(config, len(paths))
    tags = _list(image.get("RepoTags") or [], "RepoTags")
    return Source(
        layers=tuple(
            layers.opener(os.path.normpath(str(path)), "", diff_id)
            for path, diff_id in zip(paths, diff_ids, strict=True)
        ),
        config=_config(config),
        digest=f"sha256:{digest}",
        name=str(tags[0]) if tags else "",
    )


# -- parts ----------------------------------------------------------------------------------------


def _config(document: JsonObject) -> ImageConfig:
    config = _object(document.get("config") or {}, "config")
    env = []
    for item in _list(config.get("Env") or [], "Env"):
        name, equals, value = os.fsencode(_text(item, "Env")).partition(b"=")
        if not name or not equals:
            raise ImageInvalid(f"Env has {item!r}, which is no variable")
        env.append((name, value))
    working_dir = os.fsencode(_text(config.get("WorkingDir") or "", "WorkingDir"))
    return ImageConfig(
        env=tuple(env),
        working_dir=os.path.normpath(b"/" + working_dir.lstrip(b"/")) if working_dir else b"",
        user=_text(config.get("User") or "", "User"),
        entrypoint=_texts(config.get("Entrypoint") or [], "Entrypoint"),
        command=_texts(config.get("Cmd") or [], "Cmd"),
    )


def _diff_ids(config: JsonObject, count: int) -> list[str]:
    rootfs = _object(config.get("rootfs"), "rootfs")
    found = [_hex(item) for item in _list(rootfs.get("diff_ids"), "diff_ids")]
    if len(found) != count or count > _LAYERS_LIMIT:
        raise ImageInvalid(f"the image has {count} layers and {len(found)} diff_ids")
    return found


def _digest(descriptor: JsonObject) -> str:
    return _hex(descriptor.get("digest"))


def _hex(value: JsonValue) -> str:
    algorithm, _, found = str(value).partition(":")
    if algorithm != "sha256" or len(found) != 64 or set(found) - set("0123456789abcdef"):
        raise ImageInvalid(f"{value!r} is no digest that can be checked here (sha256)")
    return found


def _blob(digest: str) -> str:
    return f"blobs/sha256/{digest}"


def _text(value: JsonValue, what: str) -> str:
    text = str(value)
    # JSON can say halves of characters, which neither a message nor a system call can.
    if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
        raise ImageInvalid(f"{what} has {text!r}, which is no text")
    return text


def _texts(value: JsonValue, what: str) -> tuple[str, ...]:
    return tuple(_text(item, what) for item in _list(value, what))


def _object(value: JsonValue, what: str) -> JsonObject:
    if not isinstance(value, dict):
        raise ImageInvalid(f"{what} is not what an image has there")
    return value


def _list(value: JsonValue, what: str) -> list[JsonValue]:
    if not isinstance(value, list):
        raise ImageInvalid(f"{what} is not what an image has there")
    return value


def _architecture() -> str:
    return _ARCHITECTURES.get(platform.machine(), platform.machine())
