"""What the SDK gives back: immutable values, each made from its message by ``from_proto``.

``to_json`` of each gives the object that the command's ``--json`` prints. Paths, arguments and
environment are bytes in a world; their JSON form is a string, or ``{"b64": …}`` where they are
not UTF-8. A name that a newer host sends and this SDK does not know reads as "unknown": reading a
record does not fail for it. Steps, replays and policies are in :mod:`substrate_sdk.records`.
"""

from __future__ import annotations

from substrate_sdk._commits import Applied, Snapshot
from substrate_sdk._facts import (
    Blocked,
    Change,
    ChangeKind,
    ChangeScope,
    Coverage,
    CoverageState,
    Decision,
    DecisionAction,
    FileKind,
    FileState,
    LedgerSource,
    Output,
    OutputStream,
    PolicyMode,
    Process,
    TerminationReason,
)
from substrate_sdk._files import Download, FileEntry, FileEvent
from substrate_sdk._images import Image
from substrate_sdk._results import CommandFailed, Result
from substrate_sdk._worlds import Capability, Limits, WorldInfo

__all__ = [
    "Applied",
    "Blocked",
    "Capability",
    "Change",
    "ChangeKind",
    "ChangeScope",
    "CommandFailed",
    "Coverage",
    "CoverageState",
    "Decision",
    "DecisionAction",
    "Download",
    "FileEntry",
    "FileEvent",
    "FileKind",
    "FileState",
    "Image",
    "LedgerSource",
    "Limits",
    "Output",
    "OutputStream",
    "PolicyMode",
    "Process",
    "Result",
    "Snapshot",
    "TerminationReason",
    "WorldInfo",
]
