"""Where the native programs are.

They lie inside the package, one directory an architecture, put there by ``hatch_build.py`` (in a
checkout) or by the platform wheel.
"""

from __future__ import annotations

import platform
from pathlib import Path

__all__ = ["NativeMissingError", "native_directory", "native_path"]

_PRODUCTS = Path(__file__).resolve().parent / "_native"


class NativeMissingError(FileNotFoundError):
    """A native program of this installation is not there; the message says how to get it."""


def native_directory(arch: str | None = None) -> Path:
    """Directory of the native programs for one architecture, whether or not it exists.

    Args:
        arch: as ``uname -m`` prints it, "x86_64" or "aarch64"; this machine's when None.
    """
    return _PRODUCTS / (arch or platform.machine())


def native_path(name: str, *, arch: str | None = None) -> Path:
    """Path of a native program or shared object.

    Args:
        name: its file name, for example "substrate-init" or "libsubstrate_preload.so".
        arch: as ``uname -m`` prints it; this machine's when None.

    Raises:
        NativeMissingError: this installation has no such file for that architecture.
    """
    path = native_directory(arch) / name
    if not path.is_file():
        raise NativeMissingError(
            f"native program {name} is missing at {path}: install the platform wheel for "
            f"{path.parent.name} Linux, or run `python hatch_build.py native` in the checkout"
        )
    return path
