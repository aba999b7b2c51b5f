"""``python -m substrate_services.host``: run a host in the foreground.

The SDK starts one in the background when no endpoint is given; ``substrate up`` does the same.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.metadata
import logging
import os
import signal
import sys
from pathlib import Path

from substrate_sdk.config import home_from_env
from substrate_services.errors import ServiceError
from substrate_services.host.assemble import Host, HostConfig
from substrate_services.host.settings import Settings, read_settings
from substrate_services.journal.errors import JournalError

DEFAULT_IDLE_S = 300.0


def main() -> int:
    """Run a host until it is told to stop or has nothing to do; returns the exit code."""
    options = _arguments()
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    logging.Formatter.default_msec_format = "%s.%03d"
    # A host outlives what started it, and must not carry its working directory or its secrets'
    # file modes along.
    os.umask(0o077)
    report = _Report(options.ready_fd)
    try:
        asyncio.run(_run(_config(options, read_settings(options.home)), report))
    except (JournalError, ServiceError, OSError, ValueError) as error:
        text = " ".join(str(error).split())
        report.say(f"error: {text}")
        sys.stderr.write(f"substrate host: {text}\n")
        return 1
    return 0


def _config(options: argparse.Namespace, settings: Settings) -> HostConfig:
    return HostConfig(
        home=options.home,
        trace_path=Path(os.environ.get("SHIM_TRACE_LOG") or options.home / "trace.jsonl"),
        idle_s=options.idle_s if options.idle_s > 0 else None,
        development=options.development,
        version=_version(),
        warm_pool=settings.warm_pool,
    )


async def _run(config: HostConfig, report: _Report) -> None:
    host = Host(config)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, host.stop)
    await host.run(lambda: report.say("ready"))


class _Report:
    """Tells whoever started the host that it is ready, or why it is not; once."""

    def __init__(self, descriptor: int | None) -> None:
        self._descriptor = descriptor

    def say(self, text: str) -> None:
        if self._descriptor is None:
            return
        with contextlib.suppress(OSError):  # it has stopped waiting
            os.write(self._descriptor, f"{text}\n".encode())
        os.close(self._descriptor)
        self._descriptor = None


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m substrate_services.host")
    parser.add_argument("--home", type=Path, default=Path(home_from_env()))
    parser.add_argument(
        "--idle-s", type=float, default=DEFAULT_IDLE_S, help="end after this long idle; 0: never"
    )
    parser.add_argument("--ready-fd", type=int, help="write 'ready' or 'error: …' here")
    parser.add_argument("--development", action="store_true", help="serve reflection too")
    return parser.parse_args()


def _version() -> str:
    try:
        return importlib.metadata.version("substrate-recorder")
    except importlib.metadata.PackageNotFoundError:
        return "0+unknown"


if __name__ == "__main__":
    sys.exit(main())
