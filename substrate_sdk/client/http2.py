"""HTTP/2 (RFC 9113) over a Unix socket, as far as one gRPC call at a time needs it.

A connection carries one call after the other, from one thread at a time; calls that overlap use
connections of their own. That is no loss on a Unix socket, where connecting takes microseconds,
and it leaves out everything that is hard about HTTP/2: no multiplexing, no thread that reads, no
state that two threads or two processes share.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import time
from collections.abc import Iterator

from substrate_sdk.client.hpack import HpackDecoder, HpackError, encode_header

_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PUSH, _PING, _GOAWAY, _WINDOW_UPDATE, _CONTINUATION = (
    0, 1, 3, 4, 5, 6, 7, 8, 9,
)  # fmt: skip
_END_STREAM, _ACK, _END_HEADERS, _PADDED, _PRIORITY = 1, 1, 4, 8, 32
_SETTING_PUSH, _SETTING_WINDOW, _SETTING_FRAME = 2, 4, 5

#: How far ahead of a reader the host may send.
_WINDOW = 1 << 20
_MAX_FRAME = 1 << 20

_GREETING = (
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    + struct.pack(">I", 18 << 8 | _SETTINGS)
    + b"\0"
    + struct.pack(">I", 0)
    + struct.pack(">HIHIHI", _SETTING_PUSH, 0, _SETTING_WINDOW, _WINDOW, _SETTING_FRAME, _MAX_FRAME)
    + struct.pack(">I", 4 << 8 | _WINDOW_UPDATE)
    + b"\0"
    + struct.pack(">II", 0, _WINDOW - 65535)
)


class ConnectionLost(Exception):
    """The other side went away, or speaks something else; the message says which."""


class StreamReset(Exception):
    """The other side ended the call without a status."""

    def __init__(self, code: int) -> None:
        super().__init__(f"the host ended the call (HTTP/2 error {code})")
        self.code = code


class Http2Connection:
    """One connection. Not safe between threads, except :meth:`abort`."""

    def __init__(self, path: str) -> None:
        self._process = os.getpid()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.connect(path)
            self._socket.sendall(_GREETING)
        except OSError as error:
            self._socket.close()
            raise ConnectionLost(error.strerror or str(error)) from error
        self._buffer = bytearray()
        self._hpack = HpackDecoder()
        self._stream = -1
        self._peer_frame = 16384
        self._peer_window = 65535
        self._send_window = 65535  # of the connection
        self._stream_window = 65535
        self._unreported = 0  # bytes taken that the other side may send again
        self._deadline: float | None = None
        self._ended = False  # the other side's half of the stream
        self._going = False  # it said GOAWAY, or the connection is in no state for another call
        self._early: list[tuple[int, int, int, bytes]] = []  # of the answer, met while sending
        self.idle_since = time.monotonic()

    def reusable(self) -> bool:
        """Whether another call may start on it: what came meanwhile is looked at."""
        if self._going or not self._ended or self._process != os.getpid():
            return False
        self._socket.setblocking(False)
        try:
            while True:
                piece = self._socket.recv(65536)
                if not piece:
                    return False
                self._buffer += piece
        except BlockingIOError:
            pass
        except OSError:
            return False
        finally:
            self._socket.setblocking(True)
        try:
            while (frame := self._buffered_frame()) is not None:
                self._control(*frame)
        except (ConnectionLost, StreamReset):
            return False
        return not self._going

    def leave(self) -> None:
        """Wait no longer for the end of a call whose last message has come: another may start."""
        self._ended = True
        self._early.clear()
        self.idle_since = time.monotonic()

    def start(self, path: str, timeout_s: float | None) -> None:
        """Send the headers of a call."""
        self._stream += 2
        self._stream_window = self._peer_window
        self._ended = False
        self._deadline = None if timeout_s is None else time.monotonic() + timeout_s
        block = b"\x83\x86" + b"".join(  # :method POST, :scheme http
            (
                encode_header(b":path", path.encode("ascii")),
                encode_header(b":authority", b"localhost"),
                encode_header(b"te", b"trailers"),
                encode_header(b"content-type", b"application/grpc"),
                encode_header(b"user-agent", b"substrate-sdk-python"),
            )
        )
        if timeout_s is not None:
            milliseconds = min(99_999_999, max(1, round(timeout_s * 1000)))
            block += encode_header(b"grpc-timeout", b"%dm" % milliseconds)
        self._send(_frame(_HEADERS, _END_HEADERS, self._stream, block))

    def write(self, data: bytes, *, end: bool) -> None:
        """Send bytes of the request, within the other side's windows."""
        view = memoryview(data)
        while True:
            while view and min(self._send_window, self._stream_window) <= 0:
                self._control(*self._next_frame())
            if self._going and self._early:
                return  # it has answered in full without reading on
            size = min(len(view), self._send_window, self._stream_window, self._peer_frame)
            piece, view = view[:size], view[size:]
            last = end and not view
            self._send_window -= size
            self._stream_window -= size
            if size or last:
                self._send(_frame(_DATA, _END_STREAM if last else 0, self._stream, bytes(piece)))
            if not view:
                return

    def read(self) -> Iterator[bytes | list[tuple[bytes, bytes]]]:
        """What comes back: pieces of the body as bytes, header blocks as lists, to the end."""
        while not self._ended:
            frame = self._early.pop(0) if self._early else self._next_frame()
            kind, flags, stream, payload = frame
            if kind == _DATA and stream == self._stream:
                self._ended = bool(flags & _END_STREAM)
                self._took(len(payload))
                yield _without_padding(flags, payload)
            elif kind == _HEADERS and stream == self._stream:
                block = _without_padding(flags, payload)
                if flags & _PRIORITY:
                    block = block[5:]
                while not flags & _END_HEADERS:
                    frame = self._early.pop(0) if self._early else self._next_frame()
                    kind, more, _, payload = frame
                    if kind != _CONTINUATION:
                        raise ConnectionLost("a header block was interrupted")
                    block += payload
                    flags |= more & _END_HEADERS
                self._ended = bool(flags & _END_STREAM)
                try:
                    headers = self._hpack.decode(block)
                except HpackError as error:
                    raise ConnectionLost(str(error)) from error
                yield headers
            else:
                self._control(kind, flags, stream, payload)
        self.idle_since = time.monotonic()

    def close(self) -> None:
        """Close it. The other side ends the call that it carries, if any."""
        self._socket.close()

    def abort(self) -> None:
        """From any thread: whoever waits on it finds it lost."""
        if self._process != os.getpid():
            return  # it is the parent's call
        with contextlib.suppress(OSError):  # it is closed already
            self._socket.shutdown(socket.SHUT_RDWR)

    # --- frames -----------------------------------------------------------------------------

    def _control(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        """Take note of a frame that is not part of the answer."""
        if kind == _SETTINGS and not flags & _ACK:
            self._settings(payload)
            self._send(_frame(_SETTINGS, _ACK, 0, b""))
        elif kind == _PING and not flags & _ACK:
            self._send(_frame(_PING, _ACK, 0, payload))
        elif kind == _WINDOW_UPDATE:
            (more,) = struct.unpack(">I", payload)
            if stream == 0:
                self._send_window += more
            elif stream == self._stream:
                self._stream_window += more
        elif kind == _GOAWAY:
            self._going = True
            last, code = struct.unpack_from(">II", payload)
            if last < self._stream and not self._ended:
                raise ConnectionLost(f"the host is going down (HTTP/2 error {code})")
        elif kind == _RST_STREAM and stream == self._stream and not self._ended:
            self._ended = True
            raise StreamReset(struct.unpack(">I", payload)[0])
        elif kind in (_DATA, _HEADERS, _CONTINUATION) and (stream < self._stream or self._ended):
            self._of_left_call(kind, flags, payload)
        elif kind in (_DATA, _HEADERS, _CONTINUATION) and stream == self._stream:
            self._early.append((kind, flags, stream, payload))
            if flags & _END_STREAM:
                # Our half of the stream stays open: end it with the connection.
                self._going = True
                self._stream_window = self._send_window = 1  # whoever waits for a window may go on

    def _of_left_call(self, kind: int, flags: int, payload: bytes) -> None:
        """The rest of a call that was left: it counts, to the window and for later headers."""
        if kind == _DATA:
            self._took(len(payload))
        elif kind == _HEADERS and flags & _END_HEADERS:
            block = _without_padding(flags, payload)
            try:
                self._hpack.decode(block[5:] if flags & _PRIORITY else block)
            except HpackError as error:
                raise ConnectionLost(str(error)) from error
        else:
            raise ConnectionLost("the end of the call before came in pieces")

    def _settings(self, payload: bytes) -> None:
        for name, value in struct.iter_unpack(">HI", payload):
            if name == _SETTING_WINDOW:
                self._stream_window += value - self._peer_window
                self._peer_window = value
            elif name == _SETTING_FRAME:
                self._peer_frame = min(value, _MAX_FRAME)

    def _took(self, size: int) -> None:
        self._unreported += size
        if self._unreported >= _WINDOW // 2:
            update = struct.pack(">I", self._unreported)
            frames = _frame(_WINDOW_UPDATE, 0, 0, update)
            if not self._ended:
                frames += _frame(_WINDOW_UPDATE, 0, self._stream, update)
            self._unreported = 0
            self._send(frames)

    def _next_frame(self) -> tuple[int, int, int, bytes]:
        while True:
            frame = self._buffered_frame()
            if frame is not None:
                return frame
            self._arm()
            try:
                piece = self._socket.recv(262144)
            except TimeoutError:
                raise
            except OSError as error:
                raise ConnectionLost(error.strerror or str(error)) from error
            if not piece:
                raise ConnectionLost("the host closed the connection")
            self._buffer += piece

    def _buffered_frame(self) -> tuple[int, int, int, bytes] | None:
        if len(self._buffer) < 9:
            return None
        head, flags, stream = struct.unpack_from(">IBI", self._buffer)
        size, kind = head >> 8, head & 255
        if size > _MAX_FRAME:
            raise ConnectionLost("what answers there does not speak HTTP/2")
        if len(self._buffer) < 9 + size:
            return None
        payload = bytes(self._buffer[9 : 9 + size])
        del self._buffer[: 9 + size]
        return kind, flags, stream & 0x7FFFFFFF, payload

    def _send(self, data: bytes) -> None:
        self._arm()
        try:
            self._socket.sendall(data)
        except TimeoutError:
            raise
        except OSError as error:
            raise ConnectionLost(error.strerror or str(error)) from error

    def _arm(self) -> None:
        """Let the next wait end at the deadline, and a forked child keep off its parent's call."""
        if self._process != os.getpid():
            raise ConnectionLost("the call is that of the process that forked this one")
        if self._deadline is None:
            self._socket.settimeout(None)
            return
        left_s = self._deadline - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        self._socket.settimeout(left_s)


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">IBI", len(payload) << 8 | kind, flags, stream) + payload


def _without_padding(flags: int, payload: bytes) -> bytes:
    if not flags & _PADDED:
        return payload
    return payload[1 : len(payload) - payload[0]]
