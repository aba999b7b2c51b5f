"""What flows from us to a running command: standard input, signals, the terminal's size."""

from __future__ import annotations

import os
import queue
import signal
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

from substrate_sdk.errors import SubstrateError

if TYPE_CHECKING:
    from substrate_sdk.client.sync import Exec

_PIECE = 64 << 10


def stdin_has_data() -> bool:
    """Whether standard input is something to forward: a file, a pipe or a socket."""
    try:
        state = os.fstat(0)
    except OSError:
        return False  # it is closed
    if not stat.S_ISCHR(state.st_mode):
        return True
    if os.isatty(0):
        # Reading from a terminal in the background would stop us (SIGTTIN).
        return os.tcgetpgrp(0) == os.getpgrp()
    return state.st_rdev != os.makedev(1, 3)  # /dev/null


def feed_stdin(proc: Exec) -> None:
    """Forward standard input from a thread, until its end or the command's.

    The thread is never waited for: it may sit in a read of a pipe that nobody ever closes.
    """

    def pump() -> None:
        try:
            while True:
                data = os.read(0, _PIECE)
                if not data:
                    proc.stdin.close()
                    return
                proc.stdin.write(data)
        except (SubstrateError, OSError):
            return  # the command has closed its end or is over; the main thread tells its outcome

    threading.Thread(target=pump, name="substrate-stdin", daemon=True).start()


_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


@contextmanager
def forwarding(proc: Exec, *, pty: bool) -> Iterator[None]:
    """Forward signals while the command runs: the first Ctrl-C interrupts, the second kills.

    With a terminal of its own, the command gets keys instead, and changes of the window's size.
    """
    # A handler only notes what came: calling the host from it could meet the call it interrupted.
    noted: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
    interrupts = 0

    def on_signal(number: int, frame: FrameType | None) -> None:
        nonlocal interrupts
        del frame
        if number == signal.SIGINT:
            interrupts += 1
        name = "KILL" if interrupts > 1 else signal.Signals(number).name
        noted.put(lambda: proc.signal(name))

    def on_resize(number: int, frame: FrameType | None) -> None:
        del number, frame
        noted.put(lambda: proc.resize(*terminal_size()))

    def deliver() -> None:
        while (action := noted.get()) is not None:
            try:
                action()
            except SubstrateError as error:
                if os.environ.get("SUBSTRATE_DEBUG"):
                    sys.stderr.write(f"substrate: {error}\n")

    before = {number: signal.signal(number, on_signal) for number in _FORWARDED}
    if pty:
        before[signal.SIGWINCH] = signal.signal(signal.SIGWINCH, on_resize)
    thread = threading.Thread(target=deliver, name="substrate-signals", daemon=True)
    thread.start()
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        noted.put(None)


def terminal_size() -> tuple[int, int]:
    """Rows and columns of the terminal."""
    try:
        size = os.get_terminal_size(1)
    except OSError:
        return 24, 80
    return size.lines or 24, size.columns or 80


@contextmanager
def raw_terminal() -> Iterator[None]:
    """The terminal in raw mode, and as it was afterwards, whatever happens."""
    import termios
    import tty

    before = termios.tcgetattr(0)
    try:
        # Not the default, which throws away what was typed ahead.
        tty.setraw(0, termios.TCSADRAIN)
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)
