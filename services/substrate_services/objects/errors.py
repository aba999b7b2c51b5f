"""What the object store raises.

::

    ObjectError
    ├── ObjectMissing     no such object here
    ├── ObjectCorrupt     the file is there and does not hold what its name says
    ├── ObjectTooLarge    more bytes than the caller allowed
    └── ObjectStoreFull   no space (also an OSError)
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar


class ObjectError(Exception):
    """Root of the object store's errors."""

    reason: ClassVar[str] = "OBJECT_ERROR"
    retryable: ClassVar[bool] = False


class ObjectMissing(ObjectError):
    """The store has no object with this digest."""

    reason: ClassVar[str] = "OBJECT_MISSING"

    def __init__(self, digest: str) -> None:
        self.digest = digest
        super().__init__(f"object {digest} is not in the store")


class ObjectCorrupt(ObjectError):
    """The object's file does not hold the bytes that its digest names."""

    reason: ClassVar[str] = "OBJECT_CORRUPT"

    def __init__(self, digest: str, detail: str = "") -> None:
        self.digest = digest
        super().__init__(f"object {digest} is damaged{': ' + detail if detail else ''}")


class ObjectTooLarge(ObjectError):
    """The content has more bytes than the caller allowed; nothing was stored."""

    reason: ClassVar[str] = "OBJECT_TOO_LARGE"

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        super().__init__(f"content is larger than {limit_bytes} bytes; not stored")


class ObjectStoreFull(ObjectError, OSError):
    """There is no space for the object; what is stored already is not touched."""

    reason: ClassVar[str] = "OBJECT_STORE_FULL"
    retryable: ClassVar[bool] = True

    def __init__(self, root: Path, error: OSError) -> None:
        self.root = root
        text = f"cannot store in {root}: {error.strerror}; free space on its file system"
        OSError.__init__(self, error.errno, text)

    def __str__(self) -> str:
        return str(self.strerror)
