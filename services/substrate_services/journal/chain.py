r"""The chain over commit batches: what makes a changed, missing or swapped line show.

A batch is a run of lines closed by a ``journal_commit`` line::

    {"seq":12,…}\n
    {"seq":13,…}\n
    {"seq":13,"v":"1.0","event_type":"journal_commit","ts":"…","first_seq":12,"lines":2,
     "prev":"<64 hex>","digest":"<64 hex>"}\\n                       (one line in the file)

    digest = BLAKE3(prev as 32 bytes ‖ every byte of the file from the end of the commit line
                    before (or the start of the segment) up to this commit line's last 78 bytes)

The last 78 bytes are ``,"digest":"``, 64 hex digits, ``"}`` and the newline, so the digest covers
the batch's raw bytes and everything else that its commit line says. ``prev`` is the digest of the
commit line before, also across segments; 32 zero bytes for the first of a journal.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

import blake3

from substrate_services.journal.codec import SCHEMA_VERSION
from substrate_services.journal.jsontypes import Fields, LineError, compact_bytes

GENESIS = bytes(32)
COMMIT_MARK = b'"event_type":"journal_commit"'
_DIGEST_TAIL = len(b',"digest":"' + b"0" * 64 + b'"}\n')
_HEAD = re.compile(rb'\{"seq":\d{1,19},"v":"[^"]{1,16}",' + COMMIT_MARK)


@dataclass(frozen=True, slots=True)
class Commit:
    """A commit line, parsed; nothing in it is verified yet."""

    seq: int  # of the last line it seals
    first_seq: int  # of the first line it seals; seq + 1 where it seals only the writer's own
    lines: int  # lines in the batch, the writer's own included
    prev: bytes
    digest: bytes


def seal(
    prev: bytes, batch: bytes, *, seq: int, first_seq: int, lines: int, ts: str
) -> tuple[bytes, bytes]:
    """Closes a batch: the commit line with its newline, and the new head of the chain."""
    head = compact_bytes(
        {
            "seq": seq,
            "v": SCHEMA_VERSION,
            "event_type": "journal_commit",
            "ts": ts,
            "first_seq": first_seq,
            "lines": lines,
            "prev": prev.hex(),
        }
    )[:-1]
    digest = batch_digest(prev, batch, head)
    return head + b',"digest":"' + digest.hex().encode() + b'"}\n', digest


def batch_digest(prev: bytes, *pieces: bytes) -> bytes:
    """The digest of a batch given in pieces, the commit line's head last."""
    hasher = blake3.blake3(prev)
    for piece in pieces:
        hasher.update(piece)
    return hasher.digest()


def covered_head(commit_line: bytes) -> bytes:
    """The part of a commit line (newline included) that its own digest covers."""
    return commit_line[:-_DIGEST_TAIL]


def parse_commit(line: bytes) -> Commit | None:
    """The commit in ``line`` (newline included); None where it is another kind of line.

    A commit line that is damaged is None too: its batch then runs on to the next commit, whose
    digest does not match, which is how the damage shows.
    """
    if _HEAD.match(line) is None:
        return None
    try:
        fields = Fields(json.loads(line), "journal_commit")
        commit = Commit(
            seq=fields.integer("seq"),
            first_seq=fields.integer("first_seq"),
            lines=fields.integer("lines"),
            prev=bytes.fromhex(fields.text("prev")),
            digest=bytes.fromhex(fields.text("digest")),
        )
    except (LineError, ValueError, RecursionError):
        return None
    canonical_tail = b',"digest":"' + commit.digest.hex().encode() + b'"}\n'
    if len(commit.prev) != 32 or len(commit.digest) != 32 or not line.endswith(canonical_tail):
        return None
    return commit
