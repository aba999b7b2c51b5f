"""The servers of a made-up internet: ``python internet_server.py DIRECTORY``, in a namespace of it.

DNS (UDP and TCP, port 53) from DIRECTORY/zone.json, read anew for each question and noted in
DIRECTORY/questions; HTTP on 80 and 8080, HTTPS on 443, an echo over UDP on 9999.
"""

from __future__ import annotations

import http.server
import json
import socket
import socketserver
import ssl
import sys
import threading
from pathlib import Path

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset

DIRECTORY = Path(sys.argv[1])


def answer(data: bytes) -> bytes:
    query = dns.message.from_wire(data)
    question = query.question[0]
    name = question.name.to_text(omit_final_dot=True).lower()
    kind = dns.rdatatype.to_text(question.rdtype)
    with (DIRECTORY / "questions").open("a") as questions:
        questions.write(f"{name} {kind}\n")
    reply = dns.message.make_response(query)
    zone = json.loads((DIRECTORY / "zone.json").read_text())
    if name not in zone:
        reply.set_rcode(dns.rcode.NXDOMAIN)
        return reply.to_wire()
    values = zone[name].get(kind, [])
    if values:
        reply.answer.append(
            dns.rrset.from_text(question.name, zone[name].get("ttl", 60), "IN", kind, *values)
        )
    return reply.to_wire()


class Datagrams(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        data, sock = self.request
        sock.sendto(answer(data), self.client_address)


class Streams(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        length = int.from_bytes(self.request.recv(2, socket.MSG_WAITALL), "big")
        wire = answer(self.request.recv(length, socket.MSG_WAITALL))
        self.request.sendall(len(wire).to_bytes(2, "big") + wire)


class Echo(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        data, sock = self.request
        sock.sendto(data, self.client_address)


class Page(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        where = self.connection.getsockname()[0]
        body = f"{where} {self.path}\n".encode()
        if self.path.startswith("/size/"):
            body = b"x" * int(self.path.rpartition("/")[2])
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        del arguments


class Datagram4(socketserver.ThreadingUDPServer):
    allow_reuse_address = True


class Stream4(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


class Http(http.server.ThreadingHTTPServer):
    daemon_threads = True


class Http6(Http):
    address_family = socket.AF_INET6

    def server_bind(self) -> None:
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        super().server_bind()


def main() -> None:
    servers: list[socketserver.BaseServer] = [
        Datagram4(("9.9.9.9", 53), Datagrams),
        Datagram4(("8.8.8.8", 53), Datagrams),
        Datagram4(("93.184.216.34", 9999), Echo),
        Stream4(("9.9.9.9", 53), Streams),
        Http(("0.0.0.0", 80), Page),
        Http(("0.0.0.0", 8080), Page),
        Http6(("::", 80), Page),
    ]
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(DIRECTORY / "server.pem", DIRECTORY / "server.key")
    for secure in (Http(("0.0.0.0", 443), Page), Http6(("::", 443), Page)):
        secure.socket = context.wrap_socket(secure.socket, server_side=True)
        servers.append(secure)
    for server in servers:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.read()  # until the test goes


main()
