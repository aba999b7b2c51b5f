"""Socket addresses as strace prints them and as the decoder does, in one form."""

from __future__ import annotations

import re

from benchmarks.truth.strace_log import unescaped

_FAMILY = re.compile(r"sa_family=(\w+)")
_INET = re.compile(r'sin_port=htons\((\d+)\), sin_addr=inet_addr\("([^"]*)"\)')
_INET6 = re.compile(r'sin6_port=htons\((\d+)\).*inet_pton\(AF_INET6, "([^"]*)"')
_UNIX = re.compile(r'sun_path=(@?)"((?:[^"\\]|\\.)*)"')


def traced_address(argument: str) -> bytes:
    """``127.0.0.1:80``, ``[::1]:80``, a Unix path, ``@`` and an abstract name; else the family."""
    family = _FAMILY.search(argument)
    if family is None:
        return b""
    inet = _INET.search(argument)
    if inet is not None:
        return f"{inet[2]}:{inet[1]}".encode()
    inet6 = _INET6.search(argument)
    if inet6 is not None:
        return f"[{inet6[2]}]:{inet6[1]}".encode()
    unix = _UNIX.search(argument)
    if unix is not None:
        return unix[1].encode() + unescaped(unix[2].encode("latin-1"))
    return family[1].encode()


def recorded_address(family: str, address: bytes, port: int | None) -> bytes:
    """The same from a decoder's line."""
    if family == "AF_INET":
        return address + b":%d" % (port or 0)
    if family == "AF_INET6":
        return b"[" + address + b"]:%d" % (port or 0)
    if family == "AF_UNIX":
        return b"@" + address[1:].rstrip(b"\0") if address.startswith(b"\0") else address
    return _FAMILIES.get(family, family.encode())


#: The decoder has names for those that it can print; of others it tells the number.
_FAMILIES = {"0": b"AF_UNSPEC", "16": b"AF_NETLINK", "17": b"AF_PACKET", "38": b"AF_ALG"}
