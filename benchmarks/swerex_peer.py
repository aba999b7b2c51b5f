"""SWE-ReX on the other side of a pipe: runs in a virtual environment with swe-rex in it.

It starts ``swerex-remote`` on 127.0.0.1 and speaks to it with SWE-ReX's own client. Each line on
standard input names one call, ``execute`` or ``session``; each line on standard output is how long
that call took, in seconds, measured here: the pipe is not part of it.

Run by bench_latency.py: VENV/bin/python benchmarks/swerex_peer.py
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
import subprocess
import sys
import time
from pathlib import Path

from swerex.runtime.abstract import BashAction, Command, CreateBashSessionRequest
from swerex.runtime.remote import RemoteRuntime

_START_S = 30.0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def _execute(runtime: RemoteRuntime) -> None:
    response = await runtime.execute(Command(command=["true"]))
    assert response.exit_code == 0, response


async def _session(runtime: RemoteRuntime) -> None:
    observation = await runtime.run_in_session(BashAction(command="true"))
    assert observation.exit_code == 0, observation


async def _serve(port: int, token: str) -> None:
    runtime = RemoteRuntime(
        logger=logging.getLogger("quiet"),
        host="http://127.0.0.1",
        port=port,
        auth_token=token,
    )
    await runtime.wait_until_alive(timeout=_START_S)
    await runtime.create_session(CreateBashSessionRequest())
    calls = {"execute": _execute, "session": _session}
    print("ready", flush=True)
    for line in sys.stdin:
        call = calls[line.strip()]
        start = time.perf_counter()
        await call(runtime)
        print(time.perf_counter() - start, flush=True)


def main() -> None:
    """Serve until standard input ends."""
    logging.disable(logging.CRITICAL)
    port, token = _free_port(), secrets.token_hex(16)
    server = subprocess.Popen(
        [
            Path(sys.executable).with_name("swerex-remote"),
            "--host=127.0.0.1",
            f"--port={port}",
            f"--auth-token={token}",
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        asyncio.run(_serve(port, token))
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
