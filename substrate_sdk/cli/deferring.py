"""Modules that others import at their top and a plain command never uses.

``dataclasses`` imports ``inspect`` for classes without a docstring, and ``google.protobuf`` its
implementation in plain Python though the native one is used: together a quarter of what starting
the command costs. They are loaded when something looks into them (importlib.util.LazyLoader), so
whoever does use them only pays later.

For the command's own process only: what a program that uses the SDK imports is its own business.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import LazyLoader, find_spec, module_from_spec

_MODULES = ("inspect", "google.protobuf.internal.python_message")


def defer() -> None:
    """Let each load at its first use; one that is loaded, or cannot be found, stays as it is."""
    for name in _MODULES:
        if name not in sys.modules:
            _defer(name)


def _defer(name: str) -> None:
    package, _, last = name.rpartition(".")
    try:
        spec = find_spec(name)  # imports the packages above, which have next to nothing in them
    except ModuleNotFoundError:
        return
    if spec is None or spec.loader is None:
        return
    spec.loader = LazyLoader(spec.loader)
    module = module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    if package:
        # As a finished import leaves it: "from package import module" looks here first.
        setattr(import_module(package), last, module)
