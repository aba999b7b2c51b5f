"""A ``substrate-decode`` that stands by, for a host that decodes after every command.

Starting the program from here costs some three milliseconds, most of them spent in the kernel and
in making a subprocess of a large process; asking one that is there costs a fork of a small one. The
process that reads segments is the same in both cases: a child for one request, without rights, that
ends with its answer (native/decode/serve.c).
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import errno
import itertools
import logging
import os
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass

from substrate_services.native_paths import NativeMissingError, native_path

__all__ = ["Decoders", "Decoding", "DecodingNotTaken"]

log = logging.getLogger(__name__)

_REQUEST = struct.Struct("=I")
_ANSWER = struct.Struct("=Ii")
_REQUEST_MAX = 128 << 10  # of options; serve.c takes more, a socket's buffer perhaps not
_REFUSED = 126 << 8
_CHUNK_BYTES = 1 << 18
_STDERR_BYTES = 4096
_SOCKET_FD = 3
# Where serve.c puts what comes along with a request, in this order, after output and errors.
_SEGMENTS_FD, _SUMMARY_FD, _LEDGER_FD = 3, 4, 5


class DecodingNotTaken(Exception):
    """Nobody stands by, or not for this one: nothing has been done."""


@dataclass(frozen=True, slots=True)
class Decoding:
    """One run of the decoder.

    Attributes:
        options: of its command line, but for the descriptors.
        segments_fd, summary_fd, ledger_fd: what it reads, writes, and reads where there is one.
        timeout_s: when it is ended.
    """

    options: tuple[str | bytes, ...]
    segments_fd: int
    summary_fd: int
    ledger_fd: int | None
    timeout_s: float

    @property
    def fds(self) -> tuple[int, ...]:
        """All that it is handed."""
        given = (self.segments_fd, self.summary_fd)
        return given if self.ledger_fd is None else (*given, self.ledger_fd)

    def options_with(self, segments_fd: int, summary_fd: int, ledger_fd: int) -> list[str | bytes]:
        """The command line, where the descriptors have these numbers."""
        options = [f"--dirfd={segments_fd}", f"--summary-fd={summary_fd}"]
        if self.ledger_fd is not None:
            options.append(f"--ledger-fd={ledger_fd}")
        return [*options, *self.options]


class _Output:
    """Reads what one child writes, as it comes, and keeps what went wrong with taking it."""

    def __init__(self, fd: int, take: Callable[[bytes], None], failed: asyncio.Future[int]) -> None:
        self.fd = fd
        self.error: BaseException | None = None
        self._take = take
        self._failed = failed

    def read_some(self) -> bool:
        """Take one piece; False where there is none now, or there will be none."""
        try:
            chunk = os.read(self.fd, _CHUNK_BYTES)
        except BlockingIOError:
            return False
        if not chunk:
            asyncio.get_running_loop().remove_reader(self.fd)
            return False
        try:
            self._take(chunk)
        except BaseException as error:  # noqa: BLE001 - raised again where the output is waited for
            self.error = error
            asyncio.get_running_loop().remove_reader(self.fd)
            if not self._failed.done():
                self._failed.set_result(0)
            return False
        return True


class Decoders:
    """The decoder that stands by for one event loop; it is started when asked for at the latest."""

    def __init__(self) -> None:
        self._ids = itertools.count(1)
        self._socket: socket.socket | None = None
        self._pid = 0
        self._waiting: dict[int, asyncio.Future[int]] = {}
        self._ending: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Have it stand by from now on; where that fails, each step has a program started."""
        try:
            self._connected()
        except DecodingNotTaken as error:
            log.warning("no decoder stands by: %s", error)

    async def run(self, decoding: Decoding, take: Callable[[bytes], None]) -> tuple[int, str]:
        """Decode.

        Args:
            decoding: what.
            take: gets the output, in chunks.

        Returns:
            The exit code, negative for a signal, and the first of what it said on standard error.

        Raises:
            DecodingNotTaken: have it done in another way.
            ChildProcessError: the one that stood by has ended meanwhile.
            TimeoutError: it was ended for taking too long.
            Whatever ``take`` raises.
        """
        options = decoding.options_with(_SEGMENTS_FD, _SUMMARY_FD, _LEDGER_FD)
        text = b"".join(os.fsencode(option) + b"\0" for option in options)
        if len(text) > _REQUEST_MAX:
            raise DecodingNotTaken(f"{len(text)} bytes of options")
        connection = self._connected()
        number = next(self._ids) & 0xFFFFFFFF
        status: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        with contextlib.ExitStack() as stack:
            reader, writer = os.pipe()
            stack.callback(os.close, reader)
            os.set_blocking(reader, False)
            try:
                said = os.memfd_create("substrate-decode-errors", os.MFD_CLOEXEC)
                stack.callback(os.close, said)
                self._waiting[number] = status
                stack.callback(self._waiting.pop, number, None)
                fds = array.array("i", (writer, said, *decoding.fds))
                rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)]
                connection.sendmsg([_REQUEST.pack(number), text], rights, socket.MSG_NOSIGNAL)
            except OSError as error:  # its buffer is full, or it has just ended
                self._waiting.pop(number, None)
                if error.errno in (errno.EPIPE, errno.ECONNRESET):
                    self._lose()
                raise DecodingNotTaken(str(error)) from error
            finally:
                os.close(writer)
            output = _Output(reader, take, status)
            asyncio.get_running_loop().add_reader(reader, output.read_some)
            stack.callback(asyncio.get_running_loop().remove_reader, reader)
            ended = await self._end_of(number, status, output, decoding.timeout_s)
            if ended == _REFUSED:
                raise DecodingNotTaken("too many at once")
            while output.error is None and output.read_some():
                pass
            if output.error is not None:
                raise output.error
            words = os.pread(said, _STDERR_BYTES, 0) if ended else b""
            return os.waitstatus_to_exitcode(ended), words.decode("utf-8", "replace").strip()

    async def _end_of(
        self, number: int, status: asyncio.Future[int], output: _Output, timeout_s: float
    ) -> int:
        """Wait for a child's end; its wait status. It has ended, or is killed, in any case."""
        try:
            async with asyncio.timeout(timeout_s):
                ended = await status
        except BaseException:
            self._kill(number)
            raise
        if output.error is not None:
            self._kill(number)
        return ended

    def _kill(self, number: int) -> None:
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.send(_REQUEST.pack(number))

    def _connected(self) -> socket.socket:
        if self._socket is None:
            try:
                self._socket = self._start()
            except (NativeMissingError, OSError) as error:
                raise DecodingNotTaken(str(error)) from error
            asyncio.get_running_loop().add_reader(self._socket.fileno(), self._answers)
        return self._socket

    def _start(self) -> socket.socket:
        program = native_path("substrate-decode")
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        with theirs:
            try:
                # A group of its own: who interrupts the host waits for its last records.
                self._pid = os.posix_spawn(
                    program,
                    [os.fspath(program), "--serve", str(_SOCKET_FD)],
                    {},
                    file_actions=[
                        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                        (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
                        (os.POSIX_SPAWN_DUP2, theirs.fileno(), _SOCKET_FD),
                    ],
                    setpgroup=0,
                )
            except OSError:
                ours.close()
                raise
        return ours

    def _answers(self) -> None:
        assert self._socket is not None
        for _ in range(64):
            try:
                answer = self._socket.recv(_ANSWER.size)
            except BlockingIOError:
                return
            except OSError:
                answer = b""
            if len(answer) < _ANSWER.size:
                log.error("the decoder that stood by has ended; another will be started")
                self._lose()
                return
            number, ended = _ANSWER.unpack(answer)
            status = self._waiting.get(number)
            if status is not None and not status.done():
                status.set_result(ended)

    def _lose(self) -> None:
        connection, self._socket = self._socket, None
        if connection is not None:
            asyncio.get_running_loop().remove_reader(connection.fileno())
            connection.close()
        for status in self._waiting.values():
            if not status.done():
                status.set_exception(ChildProcessError("the decoder that stood by has ended"))
        pid, self._pid = self._pid, 0
        if pid:
            task = asyncio.create_task(_reap(pid))
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)

    async def close(self) -> None:
        """End it, and whatever it still does."""
        self._lose()
        await asyncio.gather(*self._ending)


async def _reap(pid: int) -> None:
    """Wait for one that has lost its socket, and so ends; others go on meanwhile."""
    with (
        contextlib.suppress(ChildProcessError, ProcessLookupError),
        contextlib.ExitStack() as stack,
    ):
        ended = asyncio.Event()
        pidfd = os.pidfd_open(pid)
        stack.callback(os.close, pidfd)
        asyncio.get_running_loop().add_reader(pidfd, ended.set)
        stack.callback(asyncio.get_running_loop().remove_reader, pidfd)
        await ended.wait()
        os.waitpid(pid, os.WNOHANG)  # noqa: ASYNC222 # it has ended
