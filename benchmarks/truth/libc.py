"""What libc does by itself: rules that take a call out of the denominator, each with its name.

A rule is asked only about a call that no record of a symbol accounts for, and it wants more than a
path. So a missing hook cannot hide behind it: a program that opened one of these files through a
symbol has a record that the call is matched with first, and one that did so through a symbol
without a hook would have to open exactly these files, in exactly libc's way.
"""

from __future__ import annotations

import posixpath
import re

from benchmarks.truth.operations import OpClass
from benchmarks.truth.traced import TracedCall

#: How libc opens its own files (fopen "rce" is the same); a few old places leave O_CLOEXEC out.
_PLAIN = frozenset(("O_RDONLY|O_CLOEXEC", "O_RDONLY", "O_RDONLY|O_NOCTTY|O_CLOEXEC"))
_SHARED_OBJECT = re.compile(rb"\.so(\.[\w.+-]+)?$")
_LIBC_LOADS = re.compile(rb"/(libnss_\w+|libgcc_s|libresolv|[\w+-]+/gconv/[\w-]+)\.so(\.\d+)?$")

_PATHS: tuple[tuple[str, re.Pattern[bytes]], ...] = (
    (
        "locale",
        re.compile(
            rb"^/usr/(lib|share)/locale/|^/etc/locale\.alias$|/LC_MESSAGES/[\w.@+-]+\.mo$"
            rb"|^/usr/share/locale-langpack/"
        ),
    ),
    ("gconv", re.compile(rb"^/usr/lib/([\w-]+/)?gconv/gconv-modules")),
    (
        "NSS",
        re.compile(
            rb"^/etc/(nsswitch\.conf|passwd|group|shadow|gshadow|hosts|resolv\.conf|host\.conf"
            rb"|gai\.conf|services|protocols|networks|ethers|rpc)$"
        ),
    ),
    ("log-ins", re.compile(rb"^(/var)?/run/utmpx?$|^/var/log/wtmpx?$")),  # getutxent
    ("time zone", re.compile(rb"^/etc/localtime$|^/usr/share/zoneinfo/")),
    (
        "facts of the system",  # sysconf, get_nprocs, pthread_getattr_np, malloc's arenas
        re.compile(
            rb"^/sys/devices/system/cpu(/online|/possible)?$|^/proc/(stat|meminfo|cpuinfo)$"
            rb"|^/proc/self/maps$|^/proc/sys/(vm/overcommit_memory|kernel/(ngroups_max|rtsig-max))$"
            rb"|^/sys/kernel/mm/(transparent_hugepage/|hugepages)"
        ),
    ),
)
_NSCD = re.compile(rb"^fd \d+ /(var/)?run/nscd/socket$")
_NETLINK = re.compile(rb"^fd \d+ AF_NETLINK$")
_NAME_SERVER = re.compile(rb"^fd \d+ .*:53$")


def libc_itself(call: TracedCall, loaded: frozenset[bytes]) -> str:
    """The name of the rule that puts the call among libc's own; empty when none does.

    Args:
        call: that no record accounts for.
        loaded: base names of all files that the loader mapped into the call's process.
    """
    operation = call.at.operation
    if operation.op_class is OpClass.NETWORK:
        return _network(call)
    if operation.op_class is not OpClass.READ or call.flags not in _PLAIN:
        return ""
    if _is_loader(call, loaded):
        return "loader"
    for name, pattern in _PATHS:
        if pattern.search(operation.path):
            return name
    return ""


def libc_looks(path: bytes, *, nss: bool) -> str:
    """The name of the rule by which libc looks at a path by itself; empty when there is none.

    Args:
        path: that nothing was recorded of, or not as often as strace saw it.
        nss: the process looked at NSS's configuration, of which the root directory is a part: it
            tells whether the process changed its root since.
    """
    if path == b"/" and nss:
        return "NSS"
    return next((name for name, pattern in _PATHS if pattern.search(path)), "")


def may_be_search(call: TracedCall) -> bool:
    """Whether the call looked for a library in vain, as the loader does in place after place."""
    operation = call.at.operation
    return (
        call.flags == "O_RDONLY|O_CLOEXEC"
        and operation.error == "ENOENT"
        and _SHARED_OBJECT.search(operation.path) is not None
    )


def _is_loader(call: TracedCall, loaded: frozenset[bytes]) -> bool:
    path = call.at.operation.path
    if path in (b"/etc/ld.so.cache", b"/etc/ld.so.preload"):
        return True
    if call.mapped:
        return True
    if call.flags != "O_RDONLY|O_CLOEXEC" or not _SHARED_OBJECT.search(path):
        return False
    # What the loader looked for in vain: before the program ran, or a name that it found elsewhere.
    return (
        call.before_library
        or posixpath.basename(path) in loaded
        or _LIBC_LOADS.search(path) is not None
    )


def _network(call: TracedCall) -> str:
    operation = call.at.operation
    if operation.kind == "connect" and _NSCD.match(operation.path):
        return "NSS"
    if operation.kind == "connect" and _NAME_SERVER.match(operation.path):
        return "NSS"
    if operation.kind == "bind" and _NETLINK.match(operation.path):
        return "interfaces"  # getifaddrs, if_nameindex, getaddrinfo
    return ""


def _points(names: str, *kinds: str) -> dict[str, frozenset[str]]:
    return dict.fromkeys(names.split(), frozenset(kinds))


#: Entry points in whose recorded time, on the same thread, libc's own calls are part of them; each
#: with the kinds of operation that it is known to do.
ENTRY_POINTS: dict[str, frozenset[str]] = {
    **_points("glob glob64 wordexp ftw ftw64 nftw nftw64", "open"),
    **_points("fts_open fts_read fts_children fts64_open fts64_read fts64_children", "open"),
    **_points("scandir scandir64 scandirat scandirat64", "open"),
    **_points("mkstemp mkstemp64 mkostemp mkostemp64 mkstemps mkstemps64", "open"),
    **_points("mkostemps mkostemps64 tmpfile tmpfile64", "open", "remove"),
    **_points("shm_open sem_open", "open", "link", "remove"),
    **_points("mkdtemp", "mkdir"),
    **_points("remove", "remove"),
    **_points("fchmodat lchmod", "open", "chmod"),
    **_points("dlopen dlmopen", "open"),
    **_points("getaddrinfo getnameinfo gethostbyname gethostbyname2", "open", "connect", "bind"),
    **_points("gethostbyaddr gethostbyname_r gethostbyname2_r", "open", "connect", "bind"),
    **_points("gethostbyaddr_r res_search res_query", "open", "connect", "bind"),
    **_points("popen system posix_spawn posix_spawnp", "open"),
    **_points("daemon forkpty closefrom realpath", "open"),
}
