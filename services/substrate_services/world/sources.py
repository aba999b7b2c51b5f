"""Which recorded tree a new world is to begin with, and what is known of it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from substrate_services.errors import ServiceError
from substrate_services.journal.reader import JournalReader
from substrate_services.journal.schema import SpanRecord
from substrate_services.objects.store import ObjectStore
from substrate_services.world.inputs import CHANGED_WHILE_READ, Inputs, get_inputs


@dataclass(frozen=True, slots=True)
class TreeSource:
    """A recorded tree.

    Attributes:
        snapshot_id: the tree.
        inputs: what is kept of the base, and what the step had read of it.
        as_of_ns: the moment that the tree is of, in ns since the epoch.
        words: "the tree before span …", for people.
        span_id: the step; empty for a snapshot by itself.
        goes_on: the new world continues the recorded one: the changes of that are told as its own.
    """

    snapshot_id: str
    inputs: Inputs
    as_of_ns: int
    words: str
    span_id: str = ""
    goes_on: bool = False


def find_record(reader: JournalReader, span_id: str) -> SpanRecord:
    """A recorded step. Raises ServiceError SPAN_NOT_FOUND."""
    record = reader.find_span(span_id)
    if record is None:
        raise ServiceError(
            "SPAN_NOT_FOUND",
            f"no span {span_id!r} is recorded here; `substrate trace ls` shows them",
        )
    return record


def before_span(reader: JournalReader, store: ObjectStore, span_id: str) -> TreeSource:
    """The tree before a step, as the step saw it.

    Raises:
        ServiceError: SPAN_NOT_FOUND, NOT_RESTORABLE.
        ObjectMissing, ObjectCorrupt: of what is kept of the base.
    """
    record = find_record(reader, span_id)
    words = f"the tree before span {span_id}"
    return TreeSource(
        snapshot_id=_required(record.action.snapshot_id, span_id),
        inputs=get_inputs(store, record.inputs_digest),
        as_of_ns=round(record.start_time * 1e9),
        words=words,
        span_id=record.span_id,
    )


def after_span(reader: JournalReader, store: ObjectStore, span_id: str) -> TreeSource:
    """The tree after a step. Raises as :func:`before_span` does."""
    record = find_record(reader, span_id)
    inputs = get_inputs(store, record.inputs_digest)
    project = record.project
    kept = tuple(
        entry
        for entry in inputs.read
        # What the step read elsewhere is the host's, as it is for a world that lives on; and of
        # two versions that the step may have read, the tree after it has the later one.
        if entry.ino != CHANGED_WHILE_READ
        and project is not None
        and entry.path.startswith(project.rstrip(b"/") + b"/")
    )
    return TreeSource(
        snapshot_id=snapshot_after(record),
        inputs=replace(inputs, read=kept),
        as_of_ns=round(record.start_time * 1e9 + record.duration_ms * 1e6),
        words=f"the tree after span {span_id}",
        span_id=record.span_id,
        goes_on=True,
    )


def of_snapshot(snapshot_id: str) -> TreeSource:
    """The tree of a snapshot by itself: nothing is known of what the base was like then."""
    return TreeSource(
        snapshot_id=snapshot_id,
        inputs=Inputs({}),
        as_of_ns=0,
        words=f"the tree of snapshot {snapshot_id}",
        goes_on=True,
    )


def snapshot_after(record: SpanRecord) -> str:
    """The tree after a step; of one that never ran, the tree before it."""
    return _required(record.snapshot_after or record.action.snapshot_id, record.span_id)


def _required(snapshot_id: str | None, span_id: str) -> str:
    if snapshot_id is None:
        raise ServiceError(
            "NOT_RESTORABLE", f"span {span_id} has no snapshot: it was denied and never ran"
        )
    return snapshot_id
