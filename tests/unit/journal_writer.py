"""A process that writes a journal until it is killed: ``journal_writer.py PATH SEED``.

Prints the sequence number of every line the journal acknowledged, one a line.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

from substrate_services.journal.writer import Journal


def main() -> None:
    path, seed = Path(sys.argv[1]), int(sys.argv[2])
    choice = random.Random(seed)
    journal = Journal(path, commit_interval_s=0.001, segment_limit_bytes=60_000)
    print("ready", flush=True)
    while True:
        seq = 0
        for _ in range(choice.randrange(1, 40)):
            payload = "x" * choice.choice([0, 10, 300, 5000])
            seq = journal.append({"event_type": "syscall", "payload": payload})
        journal.flush_sync()
        print(seq, flush=True)


if __name__ == "__main__":
    main()
