"""A host in a network namespace of its own, and beyond its one link a made-up internet.

Nothing here touches the machine's network: both ends of the link are in namespaces that end with
the processes that keep them.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

V4, OTHER_V4, V6 = "93.184.216.34", "93.184.216.35", "2606:2800:220:1::1"
DNS, OTHER_DNS = "9.9.9.9", "8.8.8.8"
PRIVATE, METADATA = "10.99.0.5", "169.254.169.254"
HOST_V4 = "198.18.0.2"  # of the host, on its link
_SERVER = Path(__file__).with_name("internet_server.py")

#: Fetches what it is told and says what came: a status and a body, or the error.
FETCH = """
import sys, urllib.request
for url in sys.argv[1:]:
    try:
        with urllib.request.urlopen(url, timeout=5) as page:
            print(page.status, page.read()[:60].decode().strip(), flush=True)
    except OSError as error:
        print('error', getattr(error, 'reason', error), flush=True)
"""


@dataclass(frozen=True, slots=True)
class Internet:
    """The namespaces, and what the servers answer."""

    directory: Path
    host_pid: int
    internet_pid: int

    @property
    def as_host(self) -> tuple[str, ...]:
        """Words before a command that is to run on the host."""
        return ("nsenter", f"--net=/proc/{self.host_pid}/ns/net")

    def name(self, name: str, *values: str, ttl: int = 60) -> None:
        """Let a name resolve to these addresses from now on."""
        file = self.directory / "zone.json"
        zone = json.loads(file.read_text())
        zone[name] = {
            "A": [value for value in values if ":" not in value],
            "AAAA": [value for value in values if ":" in value],
            "ttl": ttl,
        }
        scratch = file.with_suffix(".new")
        scratch.write_text(json.dumps(zone))
        scratch.replace(file)

    def questions(self) -> list[str]:
        """What the name server was asked."""
        file = self.directory / "questions"
        return file.read_text().splitlines() if file.exists() else []


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


def _make_certificates(directory: Path) -> None:
    ca, key = str(directory / "ca.pem"), str(directory / "ca.key")
    new = ("openssl", "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    _run(*new, "-x509", "-days", "2", "-subj", "/CN=test CA", "-keyout", key, "-out", ca)
    request = str(directory / "server.csr")
    _run(*new, "-subj", "/CN=pypi.org", "-keyout", str(directory / "server.key"), "-out", request)
    names = directory / "names"
    names.write_text("subjectAltName=DNS:pypi.org,DNS:files.pythonhosted.org,DNS:site.example")
    sign = ("openssl", "x509", "-req", "-in", request, "-CA", ca, "-CAkey", key)
    out = str(directory / "server.pem")
    _run(*sign, "-CAcreateserial", "-days", "2", "-extfile", str(names), "-out", out)
    (directory / "ca.pem").chmod(0o644)


def _link(host: int, internet: int) -> None:
    def ip(pid: int, *words: str) -> None:
        _run("nsenter", f"--net=/proc/{pid}/ns/net", "ip", *words)

    make = ("ip", "link", "add", "up0", "netns", str(host), "type", "veth")
    _run(*make, "peer", "name", "in0", "netns", str(internet))
    for pid, link, v4, v6 in (
        (host, "up0", f"{HOST_V4}/24", "2001:2::2/64"),
        (internet, "in0", "198.18.0.1/24", "2001:2::1/64"),
    ):
        ip(pid, "link", "set", "lo", "up")
        ip(pid, "addr", "add", v4, "dev", link)
        ip(pid, "addr", "add", v6, "dev", link, "nodad")
        ip(pid, "link", "set", link, "up")
    ip(host, "route", "add", "default", "via", "198.18.0.1")
    ip(host, "-6", "route", "add", "default", "via", "2001:2::1")
    for address in (V4, OTHER_V4, DNS, OTHER_DNS, PRIVATE, METADATA):
        ip(internet, "addr", "add", f"{address}/32", "dev", "lo")
    ip(internet, "addr", "add", f"{V6}/128", "dev", "lo", "nodad")


@contextlib.contextmanager
def make_internet() -> Iterator[Internet]:
    """The host's namespace, the internet's, and the servers in it."""
    directory = Path(tempfile.mkdtemp(prefix="sbnet", dir="/tmp"))
    directory.chmod(0o755)
    _make_certificates(directory)
    (directory / "zone.json").write_text("{}")
    keep = ("unshare", "--net", "sh", "-c", "echo ready; exec cat")
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, directory)
        host, internet = (stack.enter_context(_standing(*keep)).pid for _ in range(2))
        _link(host, internet)
        enter = ("nsenter", f"--net=/proc/{internet}/ns/net")
        stack.enter_context(_standing(*enter, sys.executable, str(_SERVER), str(directory)))
        yield Internet(directory, host, internet)


@contextlib.contextmanager
def _standing(*command: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that says when it is ready, and ends when its input does."""
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, env=dict(os.environ)) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            yield process
        finally:
            process.kill()
