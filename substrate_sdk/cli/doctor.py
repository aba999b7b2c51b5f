"""``substrate doctor``: what this machine can and cannot do, and what to change."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable

from substrate_sdk.cli.arguments import Parser, open_substrate, print_json, print_text
from substrate_sdk.cli.text import Style
from substrate_sdk.errors import SubstrateError
from substrate_sdk.types import Capability

Check = Callable[[int], bool]
_COLOURS = {"works": "green", "degraded": "yellow", "missing": "red"}


def main(args: list[str]) -> int:
    """Run it. Exit code 1 where no host can be reached or started."""
    parser = Parser("doctor", "Say what this machine can and cannot do, and what to change.")
    options = parser.parse_args(args[1:])
    failure: str | None = None
    found = [_python(), _home()]
    try:
        with open_substrate(options) as sub:
            found.append(Capability("host", "works", str(sub.endpoint), "", ""))
            found += sub.capabilities()
    except SubstrateError as error:
        failure = str(error)
        found = [item for item in found if item.feature != "host"]
        found.append(Capability("host", "missing", "", "nothing can be run or replayed", failure))
        found += _kernel()
    if options.json:
        print_json({"capabilities": [item.to_json() for item in found], "error": failure})
    else:
        _print(found)
    return 0 if failure is None else 1


def _python() -> Capability:
    version = platform.python_version()
    return Capability("python", "works", f"{version}, {sys.executable}", "", "")


def _home() -> Capability:
    from substrate_sdk.config import HostPaths

    paths = HostPaths()
    where = paths.home
    while not os.path.exists(where):
        where = os.path.dirname(where)
    if os.access(where, os.W_OK | os.X_OK):
        return Capability("home", "works", paths.home, "", "")
    return Capability(
        "home",
        "missing",
        paths.home,
        "nothing can be recorded",
        "set SUBSTRATE_HOME to a directory that you can write",
    )


def _kernel() -> list[Capability]:
    """What can be told without a host, where there is none to ask."""
    return [
        _setting(
            "user_namespaces",
            "/proc/sys/user/max_user_namespaces",
            lambda value: value > 0,
            "sysctl user.max_user_namespaces=15000",
        ),
        _setting(
            "unprivileged_user_namespaces",
            "/proc/sys/kernel/unprivileged_userns_clone",
            lambda value: value == 1 or os.geteuid() == 0,
            "sysctl kernel.unprivileged_userns_clone=1, or run as root",
        ),
        _setting(
            "apparmor_user_namespaces",
            "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
            lambda value: value == 0 or os.geteuid() == 0,
            "sysctl kernel.apparmor_restrict_unprivileged_userns=0, or run as root",
        ),
        _overlay(),
    ]


def _setting(feature: str, path: str, good: Check, fix: str) -> Capability:
    try:
        with open(path, encoding="ascii") as file:
            value = int(file.read())
    except (OSError, ValueError):
        return Capability(feature, "works", "this kernel has no such switch", "", "")
    if good(value):
        return Capability(feature, "works", f"{path} is {value}", "", "")
    return Capability(feature, "missing", f"{path} is {value}", "no world can be made", fix)


def _overlay() -> Capability:
    try:
        with open("/proc/filesystems", encoding="ascii") as file:
            known = "overlay" in file.read().split()
    except OSError:
        known = False
    if known:
        return Capability("overlay", "works", "overlayfs", "", "")
    if _is_module("overlay"):
        return Capability("overlay", "works", "overlayfs, loaded with the first mount", "", "")
    return Capability("overlay", "missing", "", "no world can be made", "modprobe overlay")


def _is_module(name: str) -> bool:
    """Whether this kernel has it as a module that it can load."""
    try:
        with open(f"/lib/modules/{os.uname().release}/modules.dep", encoding="ascii") as file:
            return any(f"/{name}.ko" in line.partition(":")[0] for line in file)
    except (OSError, UnicodeDecodeError):
        return False


def _print(found: list[Capability]) -> None:
    style = Style(sys.stdout)
    width = max(len(item.feature) for item in found)
    for item in found:
        state = style.paint(item.state.ljust(8), _COLOURS.get(item.state, "cyan"))
        print_text(f"{item.feature.ljust(width)}  {state}  {item.mode}".rstrip())
        if item.state != "works":
            for name, text in (("so", item.consequence), ("fix", item.fix)):
                if text:
                    print_text(f"{'':{width}}  {style.paint(name.ljust(8), 'dim')}  {text}")
