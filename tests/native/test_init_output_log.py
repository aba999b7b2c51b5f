"""Output logs: the end of any record is a place to go on from; torn tails are normal."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from substrate_services.world.output_log import (
    OutputFollower,
    OutputLogCorrupt,
    Stream,
    encode_frame,
    measure,
    read_frames,
    read_stream,
)

_RECORDS = [
    (1, Stream.STDOUT, b"one"),
    (2, Stream.STDERR, b""),
    (3, Stream.PTY, b"x" * 300_000),
    (4, Stream.STDOUT, b"four\xff"),
]


def _write(path: Path) -> bytes:
    data = b"".join(encode_frame(*record) for record in _RECORDS)
    path.write_bytes(data)
    return data


def test_every_end_is_an_offset_to_go_on_from(tmp_path: Path) -> None:
    path = tmp_path / "log"
    _write(path)
    whole = list(read_frames(path))
    assert [(f.mono_ns, f.stream, f.data) for f in whole] == _RECORDS
    for at, frame in enumerate(whole):
        assert list(read_frames(path, frame.end)) == whole[at + 1 :]


def test_a_torn_last_record_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "log"
    data = _write(path)
    whole = list(read_frames(path))
    for cut in (1, 4, len(_RECORDS[-1][2]) + 15, len(_RECORDS[-1][2]) + 16):
        path.write_bytes(data[:-cut])
        assert list(read_frames(path)) == whole[:-1]
        assert measure(path).end == whole[-2].end


def test_streams_are_split_and_measured(tmp_path: Path) -> None:
    path = tmp_path / "log"
    data = _write(path)
    assert read_stream(path, Stream.STDOUT) == b"onefour\xff"
    assert read_stream(path, Stream.STDOUT, limit_bytes=4) == b"onef"
    assert read_stream(path, Stream.STDERR) == b""
    sizes = measure(path)
    assert (sizes.stdout, sizes.stderr, sizes.pty, sizes.end) == (8, 0, 300_000, len(data))


def test_a_wrong_offset_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "log"
    _write(path)
    with pytest.raises(OutputLogCorrupt, match="offset 5"):
        list(read_frames(path, 5))


def test_followers_read_at_their_own_pace_until_the_end(tmp_path: Path) -> None:
    async def scenario() -> None:
        path = tmp_path / "log"
        path.touch()
        follower = OutputFollower(path)
        early = asyncio.create_task(_collect(follower, 0))
        with path.open("ab", buffering=0) as log:
            for record in _RECORDS:
                frame = encode_frame(*record)
                log.write(frame[:7])
                follower.grew()
                await asyncio.sleep(0)
                log.write(frame[7:])
                follower.grew()
                await asyncio.sleep(0)
        late = asyncio.create_task(_collect(follower, 19))
        follower.finish()
        assert await early == [data for _, _, data in _RECORDS]
        assert await late == [data for _, _, data in _RECORDS[1:]]

    asyncio.run(scenario())


async def _collect(follower: OutputFollower, offset: int) -> list[bytes]:
    return [frame.data async for frame in follower.frames(offset)]
