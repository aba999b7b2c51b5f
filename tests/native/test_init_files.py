"""Init's own file operations, as the box's users."""

from __future__ import annotations

import asyncio
import errno
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict, Unpack

import pytest

from tests.native.boxes import Ended, Guest, guest

pytestmark = pytest.mark.root


class _Options(TypedDict, total=False):
    uid: int


@dataclass(frozen=True)
class Entry:
    kind: str
    mode: int
    uid: int
    size: int
    path: bytes
    target: bytes


def _entries(data: bytes) -> list[Entry]:
    fields = data.split(b"\0")[:-1]
    found = []
    for head, path, target in zip(fields[0::3], fields[1::3], fields[2::3], strict=True):
        kind, mode, uid, _gid, size, *_ = head.decode().split()
        found.append(Entry(kind, int(mode, 8), int(uid), int(size), path, target))
    return found


async def _do(
    box: Guest, *argv: str | bytes, data: bytes | None = None, **options: Unpack[_Options]
) -> Ended:
    start = box.command(*argv, builtin=True, stdin=data is not None, **options)
    started = await box.start(start)
    if data is not None:
        await box.client.write_stdin(start.exec_id, data, eof=True)
    return await box.end(started)


def test_write_read_stat_list(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with guest(tmp_path) as box:
            content = os.urandom(1 << 20)
            done = await _do(box, "write", "/w/a/b.bin", "640", "create,parents", data=content)
            assert (done.code, done.err) == (0, b"")
            assert (await _do(box, "read", "/w/a/b.bin", "0", "-1")).out == content
            assert (await _do(box, "read", "/w/a/b.bin", "1000", "10")).out == content[1000:1010]
            await _do(box, "write", "/w/a/b.bin", "0", "offset=3", data=b"XYZ")
            assert (await _do(box, "read", "/w/a/b.bin", "0", "8")).out[3:6] == b"XYZ"
            await _do(box, "write", b"/w/\xff\n", "644", "create,truncate", data=b"odd")
            await _do(box, "symlink", "/etc/passwd", "/w/link")
            (entry,) = _entries((await _do(box, "stat", "/w/a/b.bin", "0")).out)
            # 0777 and 0640 through the umask 022
            assert (entry.kind, entry.mode, entry.size) == ("f", 0o640, 1 << 20)
            listed = {
                entry.path: entry
                for entry in _entries((await _do(box, "list", "/w", "-1", "", "-1")).out)
            }
            assert set(listed) == {b"a", b"a/b.bin", b"\xff\n", b"link"}
            assert listed[b"link"].target == b"/etc/passwd"
            shallow = _entries((await _do(box, "list", "/w", "1", "", "-1")).out)
            assert b"a/b.bin" not in {entry.path for entry in shallow}
            assert (await _do(box, "readlink", "/w/link")).out == b"/etc/passwd"

    asyncio.run(scenario())


def test_changes(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with guest(tmp_path) as box:
            for argv in (
                ("mkdir", "/d/e/f", "755", "1"),
                ("mkdir", "/d/e/f", "755", "1"),
                ("rename", "/d/e", "/d/g", "0"),
                ("chmod", "/d/g", "700"),
            ):
                assert (await _do(box, *argv)).code == 0, argv
            assert (await box.run("stat", "-c", "%a", "/d/g")).out == b"700\n"
            assert (await _do(box, "remove", "/d", "0")).code == errno.ENOTEMPTY
            deep = "/deep/" + "/".join("x" for _ in range(300))
            assert (await _do(box, "mkdir", deep, "755", "1")).code == 0
            assert (await _do(box, "remove", "/deep", "1")).code == 0
            assert (await _do(box, "remove", "/d", "1")).code == 0
            assert (await _do(box, "stat", "/d", "0")).code == errno.ENOENT

    asyncio.run(scenario())


def test_errors_have_a_number_and_words(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with guest(tmp_path) as box:
            await box.run("mkfifo", "/fifo")
            for argv, error in (
                (("read", "/nope", "0", "-1"), errno.ENOENT),
                (("read", "/etc", "0", "-1"), errno.EISDIR),
                (("read", "/fifo", "0", "-1"), errno.EINVAL),
                (("read", "/dev/zero", "0", "-1"), errno.EINVAL),
                (("read", "/etc/passwd", "x", "-1"), errno.EINVAL),
                (("read", "/etc/passwd"), errno.EINVAL),
                (("mkdir", "/etc", "755", "0"), errno.EEXIST),
                (("rename", "/etc", "/usr", "0"), errno.EEXIST),
                (("chmod", "/etc", "99999"), errno.EINVAL),
            ):
                done = await _do(box, *argv)
                assert done.code == error, (argv, done.err)
                assert done.err
            done = await _do(box, "write", "/etc/made", "644", "create", data=b"x", uid=1000)
            assert done.code == errno.EACCES
            done = await _do(box, "write", "/etc/passwd", "644", "excl", data=b"x")
            assert done.code == errno.EEXIST
            # The id 0 of the box writes the box's files, and only those.
            assert (await _do(box, "write", "/etc/passwd", "644", "truncate", data=b"")).code == 0
        assert os.stat("/etc/passwd").st_size > 0

    asyncio.run(scenario())
