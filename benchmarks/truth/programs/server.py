"""A threaded HTTP server on a TCP port and one on a Unix socket, and clients of both."""

from __future__ import annotations

import http.server
import socket
import socketserver
import subprocess
import threading
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

PAGE = Path("page.txt")
PAGE.write_text("page\n" * 1_000)


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves this directory and says nothing."""

    def log_message(self, *_arguments: object) -> None:
        """Nothing."""

    def address_string(self) -> str:
        """Unix sockets have no address."""
        return "client"


class UnixServer(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """As http.server's own, on a Unix socket."""

    daemon_threads = True

    def get_request(self) -> tuple[socket.socket, tuple[str, int]]:
        """The handler wants a pair for an address."""
        request, _ = super().get_request()
        return request, ("client", 0)


def curl(*arguments: str) -> None:
    """Fetch once, in a process of its own."""
    subprocess.run(["curl", "-sf", "-o", "/dev/null", *arguments], check=True)


tcp = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
unix = UnixServer("server.sock", Handler)
for server in (tcp, unix):
    threading.Thread(target=server.serve_forever).start()
url = f"http://127.0.0.1:{tcp.server_address[1]}/page.txt"
with ThreadPoolExecutor(8) as clients:
    fetched = [clients.submit(lambda: urllib.request.urlopen(url).read()) for _ in range(100)]
    for _ in range(5):
        clients.submit(curl, url).result()
        clients.submit(curl, "--unix-socket", "server.sock", "http://localhost/page.txt").result()
    clients.submit(curl, url.replace("127.0.0.1", "localhost")).result()
assert all(page.result() == PAGE.read_bytes() for page in fetched)
for server in (tcp, unix):
    server.shutdown()
    server.server_close()
