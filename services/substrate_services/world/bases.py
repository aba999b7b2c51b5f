"""What a world's root is where it is not the host's own: a directory of the host, or an image."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field

from substrate_services.errors import InvalidField, ServiceError
from substrate_services.world.base_mounts import is_below
from substrate_services.world.beneath import open_in_root
from substrate_services.world.images.archives import ImageConfig
from substrate_services.world.images.errors import ImageNotFound
from substrate_services.world.images.store import ImageStore

_IMAGE, _DIRECTORY = b"image:", b"directory:"
_DATABASE_LIMIT_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Base:
    """A root for worlds.

    Attributes:
        text: its identity, as records have it: ``image:sha256:…`` or ``directory:/…``.
        root: the directory; nobody writes there.
        config: what an image says of commands.
    """

    text: bytes
    root: bytes
    config: ImageConfig = field(default_factory=ImageConfig)

    @property
    def shell(self) -> bytes:
        """The shell for command strings: bash, or sh where there is none."""
        return b"/bin/bash" if self.holds(b"/bin/bash") else b"/bin/sh"

    def holds(self, path: bytes) -> bool:
        """Whether a path, as it leads inside the root, is a regular file."""
        root_fd = os.open(self.root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fd = open_in_root(root_fd, path, os.O_PATH)
        except OSError:
            return False
        else:
            is_file = stat.S_ISREG(os.fstat(fd).st_mode)
            os.close(fd)
            return is_file
        finally:
            os.close(root_fd)

    def read(self, path: bytes) -> bytes:
        """A small regular file, as the path leads inside the root; nothing where there is none."""
        if not self.holds(path):
            return b""
        root_fd = os.open(self.root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fd = open_in_root(root_fd, path, os.O_RDONLY | os.O_NONBLOCK)
        except OSError:
            return b""
        else:
            with os.fdopen(fd, "rb") as file:
                return file.read(_DATABASE_LIMIT_BYTES)
        finally:
            os.close(root_fd)

    def home_of(self, user: str, uid: int) -> bytes:
        """The home that the root's own user database names for a user; "/" for none."""
        name = user.partition(":")[0]
        for line in self.read(b"/etc/passwd").splitlines():
            fields = line.split(b":")
            if len(fields) < 7 or not fields[5].startswith(b"/"):
                continue
            if (fields[0] == os.fsencode(name)) if name else (fields[2] == b"%d" % uid):
                return os.path.normpath(fields[5])
            if name and fields[2] == os.fsencode(name):
                return os.path.normpath(fields[5])
        return b"/root" if not name and uid == 0 else b"/"


def image_base(store: ImageStore, wanted: str) -> Base:
    """An image as a root. Raises ServiceError IMAGE_NOT_FOUND."""
    try:
        image = store.find(wanted)
    except ImageNotFound as error:
        raise ServiceError("IMAGE_NOT_FOUND", str(error)) from error
    return Base(_IMAGE + image.digest.encode(), os.fsencode(image.root), image.config)


def directory_base(directory: bytes, hidden: tuple[bytes, ...]) -> Base:
    """A directory of the host as a root.

    Args:
        directory: an absolute path.
        hidden: homes and the recorder's own directory, which no root may show.

    Raises:
        InvalidField: it is no directory, or would show what worlds do not.
    """
    root = os.path.realpath(directory)
    if not os.path.isdir(root) or not os.access(root, os.R_OK | os.X_OK):
        raise InvalidField("source.directory", os.fsdecode(directory), "no directory to read")
    for path in hidden:
        if is_below(path, (root,)) or (path == hidden[0] and is_below(root, (path,))):
            raise InvalidField(
                "source.directory",
                os.fsdecode(directory),
                f"a root that would show {os.fsdecode(path)}; leave it out for the host's own "
                "tree, in which that is hidden",
            )
    return Base(_DIRECTORY + root, root)


def recorded_base(store: ImageStore, text: bytes) -> Base:
    """The base of a record. Raises ServiceError IMAGE_NOT_FOUND, or InvalidField."""
    if text.startswith(_IMAGE):
        return image_base(store, os.fsdecode(text.removeprefix(_IMAGE)))
    return directory_base(text.removeprefix(_DIRECTORY), ())


def image_digest(text: bytes) -> str:
    """The digest of an image's base; empty for another."""
    return os.fsdecode(text.removeprefix(_IMAGE)) if text.startswith(_IMAGE) else ""
