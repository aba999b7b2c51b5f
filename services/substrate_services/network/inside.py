"""The part of the helper that lives in the router: a process of its own, with rights over it.

It does what it is told over a socket pair, one thing at a time, and ends with the helper. Sockets
that it makes, here or in a world, stay where they were made when it passes them on (setns(2)).
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import json
import os
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from substrate_services.network import ruleset
from substrate_services.network.addresses import ROUTER_V4, SLOTS
from substrate_services.network.inits import Init, open_netns
from substrate_services.network.links import UPLINK, WORLD_LINK, Links
from substrate_services.network.netlink import (
    CREATE,
    NETLINK_NETFILTER,
    Netlink,
    attribute,
    nested,
    text,
)
from substrate_services.network.rules import NetworkRules, parse_rules

MESSAGE_LIMIT = 1 << 20
_NEWNET, _NEWUSER = 0x40000000, 0x10000000
_NFTABLES, _LOG = 10, 4
_CAP_NET_ADMIN, _PR_CAP_AMBIENT, _AMBIENT_RAISE = 12, 47, 2
_INET = 1
_SOL_NETLINK, _ADD_MEMBERSHIP = 270, 1
_CONNTRACK_GROUPS = (1, 3)  # new, destroyed
_Result = TypeVar("_Result")
_libc = ctypes.CDLL(None, use_errno=True)


class InsideError(Exception):
    """Something could not be done in the router; the text is one line."""


def _enter(descriptor: int, kind: int) -> None:
    if _libc.setns(descriptor, kind):
        number = ctypes.get_errno()
        raise OSError(number, f"setns: {os.strerror(number)}")


def _keep_rights_over_exec() -> None:
    """Let ``nft``, which a user that is not 0 executes, have CAP_NET_ADMIN (capabilities(7))."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable, of 32 each, twice
    if _libc.capget(header, sets) == 0:
        sets[2] |= 1 << _CAP_NET_ADMIN
        if (
            _libc.capset(header, sets) == 0
            and _libc.prctl(_PR_CAP_AMBIENT, _AMBIENT_RAISE, _CAP_NET_ADMIN, 0, 0) == 0
        ):
            return
    raise OSError(ctypes.get_errno(), "cannot keep CAP_NET_ADMIN for nft")


def serve(channel: socket.socket, router_pid: int, *, rootless: bool) -> None:
    """Enter the router and do what is asked until the helper is gone. Never returns normally."""
    if rootless:
        with open(f"/proc/{router_pid}/ns/user", "rb") as owner:
            _enter(owner.fileno(), _NEWUSER)
        _keep_rights_over_exec()
    router = os.open(f"/proc/{router_pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    _enter(router, _NEWNET)
    inside = _Inside(router)
    while True:
        data, _, _, _ = socket.recv_fds(channel, MESSAGE_LIMIT, 0)
        if not data:
            return
        descriptors: list[int] = []
        try:
            request = json.loads(data)
            answer = inside.do(request, descriptors)
        except (OSError, InsideError) as error:
            answer = {"error": str(error)}
        socket.send_fds(channel, [json.dumps(answer).encode()], descriptors)
        for descriptor in descriptors:
            os.close(descriptor)


class _Inside:
    def __init__(self, router: int) -> None:
        self._router = router
        self._links = Links()
        self._filter = Netlink(NETLINK_NETFILTER)

    def do(self, request: dict[str, object], descriptors: list[int]) -> dict[str, object]:
        """Do one thing; sockets to pass on go into ``descriptors``."""
        match request["op"]:
            case "prepare":
                self._prepare(descriptors)
                return {}
            case "host":
                self._nft(_text(request, "nft"))
                return {}
            case "uplink":
                return {
                    "there": self._links.index_of(UPLINK) is not None,
                    "v6": self._links.has_default_route(6),
                }
            case "attach":
                return {"slot": self._attach(request)}
            case "detach":
                self._links.disconnect(_number(request, "slot"))
                self._nft(ruleset.detach(_number(request, "slot")))
                return {}
            case "feed":
                self._feed(request)
                return {}
            case "listen":
                descriptors.append(_listener(str(request["address"]), _number(request, "port")))
                return {}
            case "connect":
                descriptors.append(self._socket_in(request))
                return {}
            case other:
                raise InsideError(f"no such request {other!r}")

    def _prepare(self, descriptors: list[int]) -> None:
        for name, value in (
            ("net/ipv4/ip_forward", "1"),
            ("net/ipv6/conf/all/forwarding", "1"),
            ("net/netfilter/nf_conntrack_acct", "1"),
            ("net/netfilter/nf_conntrack_timestamp", "1"),
            # The count of a world's flows leaves those out that only wait; they are to be few.
            ("net/netfilter/nf_conntrack_tcp_timeout_time_wait", "10"),
        ):
            try:
                Path("/proc/sys", name).write_text(value)
            except OSError as error:
                # IPv6 may be off, and accounting not ours to set; forwarding there must be.
                if name == "net/ipv4/ip_forward":
                    raise InsideError(f"cannot forward packets: {error}") from error
        self._nft(ruleset.base())
        self._links.prepare_router()
        descriptors.append(_dns_socket(str(ROUTER_V4)))
        descriptors.append(_listener(str(ROUTER_V4), 53))
        descriptors.append(_log_socket())
        descriptors.append(_conntrack_socket(listening=True))
        descriptors.append(_conntrack_socket(listening=False))

    def _attach(self, request: dict[str, object]) -> int:
        rules = parse_rules(_texts(request, "rules"))
        with _netns(request) as netns:
            slot = self._in_world(netns, Links.linked_slot)
            is_new = slot is None
            if slot is None:
                slot = _free_slot(set(_numbers(request, "taken")), _number(request, "first"))
            # The filter first: from its first packet on the world is under its rules.
            forget_names = is_new or not self._is_under(slot, rules)
            self._nft(ruleset.attach(slot, rules, forget_names=forget_names))
            if is_new:
                try:
                    self._link(slot, netns)
                except BaseException:
                    # All of it or nothing: a world that is refused its network has no link.
                    self._links.disconnect(slot)
                    self._nft(ruleset.detach(slot))
                    raise
        return slot

    def _is_under(self, slot: int, rules: NetworkRules) -> bool:
        """Whether a world has these rules. The kernel knows, also after a helper was killed."""
        listed = subprocess.run(
            ["nft", "list", "chain", "inet", ruleset.TABLE, ruleset.admitting(slot)],
            capture_output=True,
            text=True,
            check=False,
        )
        return ruleset.is_of(rules, listed.stdout)

    def _link(self, slot: int, netns: int) -> None:
        self._links.disconnect(slot)
        # A helper that was killed may have made it, and not come to its address.
        self._in_world(netns, lambda links: links.remove(WORLD_LINK))
        self._links.connect(slot, netns)
        with_v6 = self._links.has_default_route(6)
        self._in_world(netns, lambda links: links.configure_world(slot, with_v6=with_v6))

    def _in_world(self, netns: int, work: Callable[[Links], _Result]) -> _Result:
        _enter(netns, _NEWNET)
        try:
            links = Links()
            try:
                return work(links)
            finally:
                links.close()
        finally:
            _enter(self._router, _NEWNET)

    def _socket_in(self, request: dict[str, object]) -> int:
        with _netns(request) as netns:
            _enter(netns, _NEWNET)
            try:
                family = socket.AF_INET6 if request["v6"] else socket.AF_INET
                made = socket.socket(family, socket.SOCK_STREAM)
                return made.detach()
            finally:
                _enter(self._router, _NEWNET)

    def _feed(self, request: dict[str, object]) -> None:
        """Put addresses into sets: add, take out and add again, so that the time-out is new."""
        messages = []
        elements = request["elements"]
        if not isinstance(elements, list):
            raise InsideError("elements is no list")
        for name, key, timeout_s in elements:
            element = (
                nested(1, nested(1, attribute(1, bytes.fromhex(key)))),
                nested(1, nested(1, attribute(1, bytes.fromhex(key))), _long(4, timeout_s * 1000)),
            )
            for kind, what in ((12, element[1]), (14, element[0]), (12, element[1])):
                body = struct.pack("=BBH", _INET, 0, 0)
                body += text(1, ruleset.TABLE) + text(2, name) + nested(3, what)
                messages.append((_NFTABLES << 8 | kind, CREATE if kind == 12 else 0, body))
        self._filter.batch(messages, struct.pack("=BBH", 0, 0, socket.htons(_NFTABLES)))

    def _nft(self, script: str) -> None:
        done = subprocess.run(
            ["nft", "-f", "-"], input=script.encode(), capture_output=True, check=False
        )
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip().splitlines()
            raise InsideError(f"nft refused the filter: {' '.join(said[:2])}")


@contextlib.contextmanager
def _netns(request: dict[str, object]) -> Iterator[int]:
    """The network namespace of a request's world, and of no other process."""
    netns = open_netns(Init(_number(request, "pid"), _number(request, "started")))
    try:
        yield netns
    finally:
        os.close(netns)


def _free_slot(taken: set[int], first: int) -> int:
    for slot in itertools.chain(range(first, SLOTS.stop), range(SLOTS.start, first)):
        if slot not in taken:
            return slot
    raise InsideError(f"{len(SLOTS)} worlds with a network are there already")


def _long(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack(">Q", value))


def _dns_socket(address: str) -> int:
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind((address, 53))
    return made.detach()


def _listener(address: str, port: int) -> int:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind((address, port))
    made.listen(128)
    return made.detach()


def _log_socket() -> int:
    """What the filter refuses, a packet at a time (nfnetlink_log)."""
    netlink = Netlink(NETLINK_NETFILTER)
    netlink.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    head = struct.pack("=BBH", 0, 0, socket.htons(ruleset.LOG_GROUP))
    bind = head + attribute(1, b"\x01")
    netlink.request(_LOG << 8 | 1, 0, bind)
    netlink.request(_LOG << 8 | 1, 0, head + attribute(2, struct.pack(">IBB", 128, 2, 0)))
    netlink.request(_LOG << 8 | 1, 0, head + attribute(4, struct.pack(">I", 1)))
    netlink.request(_LOG << 8 | 1, 0, head + attribute(5, struct.pack(">I", 1)))
    return netlink.socket.detach()


def _conntrack_socket(*, listening: bool) -> int:
    """Flows that begin and end, with their bytes (nfnetlink_conntrack); or to ask for all."""
    netlink = Netlink(NETLINK_NETFILTER)
    netlink.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    for group in _CONNTRACK_GROUPS if listening else ():
        netlink.socket.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, group)
    return netlink.socket.detach()


def _text(request: dict[str, object], name: str) -> str:
    value = request[name]
    if not isinstance(value, str):
        raise InsideError(f"{name} is no text")
    return value


def _number(request: dict[str, object], name: str) -> int:
    value = request[name]
    if not isinstance(value, int):
        raise InsideError(f"{name} is no number")
    return value


def _numbers(request: dict[str, object], name: str) -> list[int]:
    value = request[name]
    return [one for one in value if isinstance(one, int)] if isinstance(value, list) else []


def _texts(request: dict[str, object], name: str) -> list[str]:
    value = request[name]
    return [one for one in value if isinstance(one, str)] if isinstance(value, list) else []
