"""Which host this is, for records: stable across restarts, and not the machine's own secret id."""

from __future__ import annotations

import hashlib
import platform
from pathlib import Path


def host_id() -> str:
    """32 hex digits derived from the machine id.

    machine-id(5) asks that the id itself stay on the machine; a keyed digest of it may travel.
    """
    try:
        machine = Path("/etc/machine-id").read_bytes().strip()
    except OSError:
        machine = platform.node().encode()
    return hashlib.blake2b(machine, digest_size=16, person=b"substrate-host").hexdigest()
