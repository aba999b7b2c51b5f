"""The options that bound a world: ``--memory 512M --cpus 1.5 --pids 200 --disk 2G …``."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from substrate_sdk.cli.arguments import count, seconds

if TYPE_CHECKING:
    from substrate_sdk.types import Limits

_UNITS = {"": 1, "k": 10, "m": 20, "g": 30, "t": 40}
_NAMES = ("memory", "cpus", "pids", "disk", "inodes", "output", "runtime")


def size(text: str) -> int:
    """Bytes: a number with K, M, G or T for powers of 1,024 (``512M``, ``1.5G``, ``2GiB``)."""
    number = text.strip().lower().removesuffix("b").removesuffix("i")
    unit = number[-1:] if number[-1:] in "kmgt" else ""
    try:
        value = float(number.removesuffix(unit))
    except ValueError:
        value = 0.0
    if unit:
        value *= 1 << _UNITS[unit]
    if not 1 <= value < 2**63:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size, such as 512M or 2G")
    return round(value)


def processors(text: str) -> float:
    """A positive number of processors."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of processors, such as 1.5")
    return value


def add_limits(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    add = parser.add_argument
    add("--memory", metavar="SIZE", type=size, help="of all its processes together: 512M, 2G")
    add("--cpus", metavar="N", type=processors, help="processors: 1.5 is one and a half")
    add("--pids", metavar="N", type=count, help="processes and threads (4096)")
    add("--disk", metavar="SIZE", type=size, help="what it may write")
    add("--inodes", metavar="N", type=count, help="files and directories it may make")
    add("--output", metavar="SIZE", type=size, help="kept of one command's output (256M)")
    add("--runtime", metavar="S", type=seconds, help="the longest that a command may run")


def limits_of(options: argparse.Namespace) -> Limits | None:
    """The limits that the options ask for; None where they ask for none."""
    if all(getattr(options, name) is None for name in _NAMES):
        return None
    from substrate_sdk.types import Limits

    return Limits(
        memory_bytes=options.memory,
        cpus=options.cpus,
        pids=options.pids,
        disk_bytes=options.disk,
        inodes=options.inodes,
        output_bytes=options.output,
        runtime_s=options.runtime,
    )
