"""Running ``substrate-decode``: from a world's segments to events, processes and a summary.

The decoder reads what programs in a world wrote, so it is a process of its own that gives up all
rights first and has limits; nothing it says is believed to be well-formed. Whatever goes wrong with
it ends in the summary's ``failure``, from which coverage follows, never in an exception: a step has
happened whether or not its telemetry can be read.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from substrate_services.journal import bytesjson
from substrate_services.journal.jsontypes import Fields, JsonObject, JsonValue, LineError
from substrate_services.journal.parts import process_from_json
from substrate_services.journal.schema import Process
from substrate_services.native_paths import NativeMissingError, native_path
from substrate_services.telemetry.decoders import Decoders, Decoding, DecodingNotTaken

__all__ = [
    "ClockOffsets",
    "DecodeLimits",
    "DecodeSummary",
    "HostContact",
    "LedgerUse",
    "SegmentFile",
    "SpanIds",
    "decode_segments",
]

_CHUNK_BYTES = 1 << 18
_STDERR_BYTES = 4096


@dataclass(frozen=True, slots=True)
class SpanIds:
    """The step whose events these are."""

    session_id: str
    trace_id: str
    span_id: str
    world_id: str


@dataclass(frozen=True, slots=True)
class ClockOffsets:
    """What is added to CLOCK_MONOTONIC nanoseconds to get the other clocks."""

    utc_ns: int
    boot_ns: int

    @classmethod
    def now(cls) -> ClockOffsets:
        """The host's offsets at this moment; those to UTC drift, so take them near the step."""
        monotonic = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        return cls(
            utc_ns=time.clock_gettime_ns(time.CLOCK_REALTIME) - monotonic,
            boot_ns=time.clock_gettime_ns(time.CLOCK_BOOTTIME) - monotonic,
        )


@dataclass(frozen=True, slots=True)
class DecodeLimits:
    """How much the decoder may use, and how much of what it finds is listed."""

    timeout_s: float = 60.0
    memory_bytes: int = 1 << 30
    output_bytes: int = 4 << 30  # of event lines; those beyond are counted, not kept
    summary_bytes: int = 256 << 20
    reads: int = 65_536
    writes: int = 65_536
    hosts: int = 1_024
    processes: int = 4_096


@dataclass(frozen=True, slots=True)
class HostContact:
    """An address that was connected to, with its outcome."""

    family: str  # AF_INET | AF_INET6 | AF_UNIX
    address: bytes  # text of an IP address, or a socket's path
    port: int
    name: bytes | None  # the name a resolver gave this address for
    count: int
    failed: int
    error: str | None  # errno name of the last failure


@dataclass(frozen=True, slots=True)
class SegmentFile:
    """A file that was read."""

    name: str
    bytes: int
    pid: int
    start_ticks: int  # tells processes of one pid apart (events.h); says nothing about time
    open: bool  # its process is not known to have ended: leave it


@dataclass(frozen=True, slots=True)
class LedgerUse:
    """What the kernel's ledger was worth to a step."""

    given: bool = False
    used: bool = False
    why: str = ""  # it was given and not used
    source: str = ""  # bpf | proc_connector | other
    attested: bool = False  # the maker of every segment is known
    lost: int = 0  # records that the kernel's side had no room for, during the step
    nameless: int = 0  # processes whose pid in the world is not known
    processes: int = 0  # of the step
    uncovered: int = 0  # programs that ran and said no hello
    unknown_processes: int = 0  # that segments speak of, and the kernel does not
    forged_segments: int = 0  # not made by the process that they speak of; left out
    forged_events: int = 0  # in those
    late_segments: int = 0  # made after the ledger was last brought up to date; left out


@dataclass(frozen=True, slots=True)
class DecodeSummary:
    """What all events of a step come to. ``failure`` is empty when decoding went well."""

    failure: str = ""
    processes: tuple[Process, ...] = ()
    processes_total: int = 0
    processes_covered: int = 0
    root_seen: bool = False
    unattributed: int = 0  # processes in the world that are not known to descend from the root
    counts: tuple[tuple[str, int], ...] = ()
    lost: int = 0  # events that programs had no room for
    torn: int = 0  # records whose writer was stopped half-way
    corrupt_segments: int = 0
    foreign_files: int = 0  # no segments, or not where they say they belong
    unreadable_files: int = 0
    links_dropped: int = 0
    ledger: LedgerUse = LedgerUse()
    events: tuple[JsonObject, ...] = field(default=())  # the lines that matter most, by time
    events_not_kept: int = 0
    reads: tuple[bytes, ...] = ()  # absolute paths opened for reading
    reads_beyond: int = 0
    #: Absolute paths that were changed, by any call that may, or opened for writing; of a renaming
    #: both ends, and not what lies below. All of them where the two counts below are 0.
    writes: tuple[bytes, ...] = ()
    writes_beyond: int = 0  # calls on paths that found no room here
    writes_unknown: int = 0  # calls on what no absolute path is known of
    hosts: tuple[HostContact, ...] = ()
    hosts_beyond: int = 0
    segments: tuple[SegmentFile, ...] = ()
    output_bytes: int = 0  # of event lines
    output_beyond: int = 0  # of them, bytes that were more than the limit: not given to the sink

    @property
    def events_total(self) -> int:
        """All events, kept or not."""
        return dict(self.counts).get("events", 0)

    @property
    def writes_complete(self) -> bool:
        """Whether ``writes`` names all that covered programs said they may have changed."""
        return not self.failure and self.writes_beyond == 0 and self.writes_unknown == 0


async def decode_segments(
    *,
    segments_fd: int,
    ids: SpanIds,
    root_pid: int | None,
    sink: Callable[[bytes], None],
    watch: Sequence[bytes] = (),
    max_events: int = 256,
    offsets: ClockOffsets | None = None,
    root_after_ns: int = 0,
    since_ns: int | None = None,
    limits: DecodeLimits | None = None,
    ledger_fd: int | None = None,
    classes: int | None = None,
    decoders: Decoders | None = None,
) -> DecodeSummary:
    """Decode all segments in a directory.

    Args:
        segments_fd: descriptor of the segment directory; stays open.
        ids: written into every event; the span is the parent of the processes' spans.
        root_pid: the step's first process, in the world's pid namespace: only what descends from
            it is decoded. All processes when None.
        sink: gets the event lines, in chunks that do not respect line ends.
        watch: absolute paths; events on them or below come first among the kept lines.
        max_events: how many lines the summary keeps.
        offsets: of the host's clocks; without them each process's own are taken.
        root_after_ns: CLOCK_MONOTONIC before the root was started, to tell it from an earlier
            process of the same pid.
        since_ns: CLOCK_MONOTONIC; of the root only what it did since then, and of what descends
            from it only what began since then. All of it when None.
        limits: what the decoder may use.
        ledger_fd: descriptor of the world's ledger (ledger.h), brought up to date; stays open. With
            it, what programs say is held against what the kernel says.
        classes: mask of the classes (events.h, SUB_CLASS_*) that the world was to record; a process
            that recorded others is told. Not looked at when None.
        decoders: stand by for this; without, or where they do not take it, a program is started.

    Returns:
        The summary; with ``failure`` set when the decoder failed, and then without the rest.

    Raises:
        Whatever ``sink`` raises; nothing else.
    """
    limits = limits or DecodeLimits()
    try:
        summary_fd = os.memfd_create("substrate-summary", os.MFD_CLOEXEC)
    except OSError as error:
        return DecodeSummary(failure=str(error))
    try:
        options: list[str | bytes] = [*_options(ids, max_events, limits)]
        if root_pid is not None:
            options += ["--root-pid", str(root_pid), "--root-after", str(root_after_ns)]
            if since_ns is not None:
                options += ["--since", str(since_ns)]
        if offsets is not None:
            options += [f"--utc-offset={offsets.utc_ns}", f"--boot-offset={offsets.boot_ns}"]
        if classes is not None:
            options.append(f"--classes={classes}")
        for prefix in watch:
            options += ["--watch", prefix]
        decoding = Decoding(tuple(options), segments_fd, summary_fd, ledger_fd, limits.timeout_s)
        taker = _Taker(sink, limits.output_bytes)
        failure = await _run_by(decoders, decoding, taker)
        if failure:
            return DecodeSummary(failure=failure, output_bytes=taker.total)
        summary = _read_summary(summary_fd, limits, taker.total)
        return replace(summary, output_beyond=max(0, taker.total - limits.output_bytes))
    finally:
        os.close(summary_fd)


def _options(ids: SpanIds, max_events: int, limits: DecodeLimits) -> list[str]:
    return [
        f"--session={ids.session_id}",
        f"--trace={ids.trace_id}",
        f"--span={ids.span_id}",
        f"--world={ids.world_id}",
        f"--max-events={max_events}",
        f"--max-reads={limits.reads}",
        f"--max-writes={limits.writes}",
        f"--max-hosts={limits.hosts}",
        f"--max-processes={limits.processes}",
        f"--memory-limit={limits.memory_bytes}",
        f"--cpu-limit={max(1, int(limits.timeout_s))}",
    ]


class _Taker:
    """Counts the decoder's output, and hands on what the limit allows."""

    def __init__(self, sink: Callable[[bytes], None], limit_bytes: int) -> None:
        self.total = 0
        self._sink = sink
        self._limit_bytes = limit_bytes

    def take(self, chunk: bytes) -> None:
        if self.total + len(chunk) <= self._limit_bytes:
            self._sink(chunk)
        elif self.total <= self._limit_bytes:
            self._sink(chunk[: chunk.find(b"\n") + 1])  # the line that was begun, no more
        self.total += len(chunk)


async def _run_by(decoders: Decoders | None, decoding: Decoding, taker: _Taker) -> str:
    """Have the decoder run; returns what went wrong, if anything."""
    try:
        if decoders is None:
            ended, said = await _run(decoding, taker.take)
        else:
            try:
                ended, said = await decoders.run(decoding, taker.take)
            except DecodingNotTaken:
                ended, said = await _run(decoding, taker.take)
    except TimeoutError:
        return f"the decoder was not done after {decoding.timeout_s:g} s"
    except (NativeMissingError, ChildProcessError) as error:
        return str(error)
    return f"the decoder ended with {ended}: {said or 'no message'}" if ended else ""


async def _run(decoding: Decoding, take: Callable[[bytes], None]) -> tuple[int, str]:
    """Run the decoder as a program of its own; returns its exit code and what it said."""
    program = native_path("substrate-decode")
    arguments = decoding.options_with(
        decoding.segments_fd, decoding.summary_fd, decoding.ledger_fd or 0
    )
    try:
        process = await asyncio.create_subprocess_exec(
            str(program),
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            pass_fds=decoding.fds,
            env={},
            limit=_CHUNK_BYTES,
        )
    except OSError as error:
        raise ChildProcessError(f"cannot run substrate-decode: {error}") from error
    assert process.stdout is not None
    assert process.stderr is not None
    complaint = asyncio.create_task(_first_bytes(process.stderr))
    try:
        async with asyncio.timeout(decoding.timeout_s):
            while chunk := await process.stdout.read(_CHUNK_BYTES):
                take(chunk)
            await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            # Reaped even when this task is being cancelled: a child must not outlive its reader.
            await asyncio.shield(process.wait())
        said = (await complaint).decode("utf-8", "replace").strip()
    return process.returncode or 0, said


async def _first_bytes(stream: asyncio.StreamReader) -> bytes:
    kept = b""
    while chunk := await stream.read(_STDERR_BYTES):
        kept = (kept + chunk)[:_STDERR_BYTES]
    return kept


def _read_summary(summary_fd: int, limits: DecodeLimits, output_bytes: int) -> DecodeSummary:
    size = os.fstat(summary_fd).st_size
    if size > limits.summary_bytes:
        return DecodeSummary(
            failure=f"the decoder's summary has {size} bytes, more than {limits.summary_bytes}",
            output_bytes=output_bytes,
        )
    with os.fdopen(os.dup(summary_fd), "rb") as file:
        file.seek(0)
        data = file.read()
    try:
        return _summary(json.loads(data), output_bytes)
    except (ValueError, RecursionError) as error:  # LineError and JSONDecodeError are ValueErrors
        return DecodeSummary(
            failure=f"the decoder's summary makes no sense: {error}", output_bytes=output_bytes
        )


def _summary(value: JsonValue, output_bytes: int) -> DecodeSummary:
    fields = Fields(value, "summary")
    counts = fields.child("counts")
    return DecodeSummary(
        processes=tuple(
            process_from_json(item, f"summary.processes[{index}]")
            for index, item in enumerate(fields.items("processes"))
        ),
        processes_total=fields.integer("processes_total"),
        processes_covered=fields.integer("processes_covered"),
        root_seen=fields.flag("root_seen"),
        unattributed=fields.integer("unattributed"),
        counts=tuple((name, counts.integer(name)) for name in counts.value),
        lost=fields.integer("lost"),
        torn=fields.integer("torn"),
        corrupt_segments=fields.integer("corrupt_segments"),
        foreign_files=fields.integer("foreign_files"),
        unreadable_files=fields.integer("unreadable_files"),
        links_dropped=fields.integer("links_dropped"),
        ledger=_ledger(fields.child("ledger")),
        events=tuple(_object(item) for item in fields.items("events")),
        events_not_kept=fields.integer("events_not_kept"),
        reads=tuple(
            bytesjson.decode(item, f"summary.reads[{index}]")
            for index, item in enumerate(fields.items("reads"))
        ),
        reads_beyond=fields.integer("reads_beyond"),
        writes=tuple(
            bytesjson.decode(item, f"summary.writes[{index}]")
            for index, item in enumerate(fields.items("writes"))
        ),
        writes_beyond=fields.integer("writes_beyond"),
        writes_unknown=fields.integer("writes_unknown"),
        hosts=tuple(_host(item) for item in fields.items("hosts")),
        hosts_beyond=fields.integer("hosts_beyond"),
        segments=tuple(_segment(item) for item in fields.items("segments")),
        output_bytes=output_bytes,
    )


def _ledger(fields: Fields) -> LedgerUse:
    return LedgerUse(
        given=fields.flag("given"),
        used=fields.flag("used"),
        why=fields.text("why"),
        source=fields.text("source"),
        attested=fields.flag("attested"),
        lost=fields.integer("lost"),
        nameless=fields.integer("nameless"),
        processes=fields.integer("processes"),
        uncovered=fields.integer("uncovered"),
        unknown_processes=fields.integer("unknown_processes"),
        forged_segments=fields.integer("forged_segments"),
        forged_events=fields.integer("forged_events"),
        late_segments=fields.integer("late_segments"),
    )


def _object(value: JsonValue) -> JsonObject:
    if not isinstance(value, dict):
        raise LineError(f"an event is {value!r:.80}; expected an object")
    return value


def _host(value: JsonValue) -> HostContact:
    fields = Fields(value, "summary.hosts[]")
    return HostContact(
        family=fields.text("family"),
        address=bytesjson.decode(fields.value.get("address"), fields.where("address")),
        port=fields.integer("port"),
        name=bytesjson.decode(fields.value["name"]) if fields.has("name") else None,
        count=fields.integer("count"),
        failed=fields.integer("failed"),
        error=fields.opt_text("error"),
    )


def _segment(value: JsonValue) -> SegmentFile:
    fields = Fields(value, "summary.segments[]")
    return SegmentFile(
        name=fields.text("name"),
        bytes=fields.integer("bytes"),
        pid=fields.integer("pid"),
        start_ticks=fields.integer("start_ticks"),
        open=fields.flag("open"),
    )
