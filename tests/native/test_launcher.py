"""The launcher and the real kernel: boxes are made, named in errors, removed without a trace."""

from __future__ import annotations

import asyncio
import os
import select
import shutil
import signal
import socket
import stat
import struct
from pathlib import Path

import pytest

from substrate_services.world.backends.base import (
    BackendError,
    Bind,
    Box,
    BoxSpec,
    Grab,
    MaskDir,
    MaskFile,
    MountOp,
    Overlay,
    Place,
    Symlink,
    Tmpfs,
)
from substrate_services.world.wire import LauncherType
from tests.native.boxes import (
    box_spec,
    guest,
    launcher,
    layer_dirs,
    let_go,
    make_backend,
    root_overlay,
    talk,
)

pytestmark = pytest.mark.root


def _close(box: Box) -> None:
    os.close(box.channel_fd)
    box.close()


def test_a_world_is_made_runs_and_leaves_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with guest(tmp_path) as box:
            done = await box.sh("echo hello; echo wrong >&2; id -u; hostname; exit 3")
            assert (done.out, done.err, done.code) == (b"hello\n0\nbox\n", b"wrong\n", 3)
            await box.backend.remove("wld_test")
            with pytest.raises(ProcessLookupError):
                os.kill(box.box.init_pid, 0)

    asyncio.run(scenario())


def test_capabilities_name_what_was_tried(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with launcher(tmp_path) as backend:
            found = backend.capabilities()
            assert not found.rootless
            assert found.id_mapping in ("range", "weak")
            assert "rw" in found.overlay_options
            assert found.kill in ("cgroup.kill", "subreaper")

    asyncio.run(scenario())


def test_files_on_disk_belong_to_root_while_the_command_is_nobody_on_the_host(
    tmp_path: Path,
) -> None:
    async def scenario() -> None:
        async with guest(tmp_path) as box:
            if box.backend.capabilities().id_mapping != "range":
                pytest.skip("no id-mapped overlay layers on this kernel")
            done = await box.sh(
                "echo x > /made; chown 33:33 /made; echo y >> /etc/hostname; sleep 0"
            )
            assert done.code == 0, done.err
            running = await box.start(box.command("sleep", "60", exec_id="sleeper"))
            host_uid = os.stat(f"/proc/{box.box.init_pid}/root/proc/{running.pid}").st_uid
            assert host_uid == box.box.id_base >= 0x70000000
            upper = tmp_path / "wld_test" / "root" / "upper"
            assert (os.stat(upper / "made").st_uid, os.stat(upper / "etc/hostname").st_uid) == (
                33,
                0,
            )

    asyncio.run(scenario())


def test_the_host_is_not_changed(tmp_path: Path) -> None:
    async def scenario() -> None:
        (tmp_path / "shown").mkdir()
        (tmp_path / "shown" / "file").write_text("host")
        async with guest(tmp_path, Bind(b"/mnt", os.fsencode(tmp_path / "shown"))) as box:
            done = await box.sh(
                "cat /mnt/file; echo x > /mnt/file; echo x > /etc/passwd; rm -rf /etc/init.d"
            )
            assert done.out == b"host"
            assert b"Read-only file system" in done.err
        assert (tmp_path / "shown" / "file").read_text() == "host"
        assert os.listdir("/etc/init.d")

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("mounts", "told"),
    [
        ((Tmpfs(b"/tmp"),), "operation 0: the first operation must mount /"),
        ((Tmpfs(b"/"), Bind(b"/x", b"/nonexistent/file")), "operation 1: open_tree /nonexistent"),
        ((Tmpfs(b"/"), Place("kept", b"/x")), "operation 1: place /x: nothing was grabbed"),
        ((Tmpfs(b"/"), Grab("kept", b"/nowhere")), "operation 1: grab /nowhere"),
        (
            (Tmpfs(b"/"), Overlay(b"/a", (b"/usr",), b"/no/u", b"/no/w")),
            "operation 1: open_tree /no",
        ),
    ],
)
def test_an_impossible_mount_is_named(
    tmp_path: Path, mounts: tuple[MountOp, ...], told: str
) -> None:
    async def scenario() -> None:
        async with launcher(tmp_path) as backend:
            with pytest.raises(BackendError, match=told):
                await backend.create(BoxSpec("wld_bad", mounts, "box"))
            assert await backend.adopt() == []

    asyncio.run(scenario())


def test_mount_points_are_made_on_tmpfs_only(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with launcher(tmp_path) as backend:
            with pytest.raises(BackendError, match=r"target /not-there/below"):
                await backend.create(box_spec(tmp_path, "wld_a", Tmpfs(b"/not-there/below")))
            assert not (tmp_path / "wld_a/root/upper/not-there").exists()
        async with guest(tmp_path, Tmpfs(b"/mnt"), Tmpfs(b"/mnt/a/b", mode=0o700)) as box:
            assert (await box.run("stat", "-c", "%a", "/mnt/a/b")).out == b"700\n"

    asyncio.run(scenario())


def test_links_left_in_a_layer_lead_nowhere_outside(tmp_path: Path) -> None:
    async def scenario() -> None:
        upper, work = layer_dirs(tmp_path, "evil")
        victim = tmp_path / "victim"
        victim.mkdir()
        os.symlink(victim, os.path.join(upper, b"trap"))
        os.symlink(b"../../../../../../../../.." + os.fsencode(victim), os.path.join(upper, b"up"))
        async with launcher(tmp_path) as backend:
            for target in (b"/trap/x", b"/up/x"):
                spec = BoxSpec(
                    "wld_evil", (Overlay(b"/", (b"/",), upper, work), Tmpfs(target)), "box"
                )
                with pytest.raises(BackendError):
                    await backend.create(spec)
                # A refused box may have mounted; overlayfs's mark must not stop the next.
                await backend.remove("wld_evil")
                shutil.rmtree(tmp_path / "evil/work/work/incompat", ignore_errors=True)
        assert list(victim.iterdir()) == []

    asyncio.run(scenario())


def test_grab_and_place_show_a_part_through_a_cover(tmp_path: Path) -> None:
    async def scenario() -> None:
        project = Path("/var/tmp") / f"substrate-grab-{os.getpid()}"
        project.mkdir()
        (project / "file").write_text("here")
        name = os.fsencode(project)
        try:
            ops = (Grab("p", name), Tmpfs(b"/var/tmp", mode=0o1777), Place("p", name))
            async with guest(tmp_path, *ops) as box:
                done = await box.sh(f"ls /var/tmp; cat {project}/file; echo new > {project}/new")
                assert done.out == os.fsencode(project.name) + b"\nhere"
                upper = tmp_path / "wld_test/root/upper"
                assert (upper / os.fsdecode(name[1:]) / "new").read_text() == "new\n"
            assert sorted(path.name for path in project.iterdir()) == ["file"]
        finally:
            (project / "file").unlink()
            project.rmdir()

    asyncio.run(scenario())


def test_symlinks_are_made_on_tmpfs(tmp_path: Path) -> None:
    async def scenario() -> None:
        ops = (Tmpfs(b"/mnt"), Symlink(b"/mnt/deep/link", b"../target"))
        async with guest(tmp_path, *ops) as box:
            assert (await box.run("readlink", "/mnt/deep/link")).out == b"../target\n"

    asyncio.run(scenario())


def test_masks_hide_from_root_and_cannot_be_taken_off(tmp_path: Path) -> None:
    async def scenario() -> None:
        hidden = tmp_path / "hidden"
        hidden.mkdir()
        (hidden / "secret").write_text("s3cret")
        path = str(hidden)
        masks = (MaskDir(os.fsencode(hidden)), MaskFile(b"/etc/shadow"), MaskDir(b"/not/there"))
        async with guest(tmp_path, *masks) as box:
            for attempt in (
                f"cat {path}/secret",
                "cat /etc/shadow",
                f"umount {path}; umount -l {path}; cat {path}/secret",
                f"mount -o remount,rw {path}",
                f"unshare -Urm sh -c 'umount {path}; cat {path}/secret'",
                f"mkdir /m && mount --bind / /m && cat /m{path}/secret",
                f"rmdir {path}; mv {path} {path}2 && cat {path}2/secret",
                "chmod 644 /etc/shadow && cat /etc/shadow",
                "rm -f /etc/shadow && cat /etc/shadow",
            ):
                done = await box.sh(attempt)
                assert done.code != 0, attempt
                assert b"s3cret" not in done.out, attempt
                assert b"root:" not in done.out, attempt

    asyncio.run(scenario())


def test_the_system_tree_is_private_and_masked(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with guest(tmp_path) as box:
            done = await box.sh("cat /proc/mounts")
            lines = [line.split() for line in done.out.decode().splitlines()]
            options = {fields[1]: fields[3].split(",") for fields in lines}
            assert all("nosuid" in given for given in options.values())
            devices = {"/dev/pts", *(f"/dev/{n}" for n in ("null", "zero", "full", "tty"))}
            devices |= {"/dev/random", "/dev/urandom"}
            for point, given in options.items():
                assert "nodev" in given or point in devices, point
            for read_only in ("/proc/sys", "/proc/bus", "/sys"):
                assert "ro" in options[read_only]
            assert str(tmp_path) not in done.out.decode(), "a host path shows in the mount table"
            for script in (
                "head -c 1 /proc/kcore",
                "cat /proc/keys",
                "echo b > /proc/sysrq-trigger",
                "echo x > /proc/sys/kernel/core_pattern",
                "ls /sys/firmware/acpi",
                "mknod /dev/sda b 8 0",
            ):
                assert (await box.sh(script)).code != 0, script
            done = await box.sh("ls /sys/class/net; ls /dev; cat /proc/self/cgroup | tail -1")
            assert done.out.startswith(b"lo\n")
            assert b"sda" not in done.out
            assert b"substrate" not in done.out

    asyncio.run(scenario())


def test_segments_are_shared_with_the_host_and_bounded(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with launcher(tmp_path) as backend:
            spec = BoxSpec("wld_seg", (root_overlay(tmp_path),), "box", segment_limit_bytes=1 << 20)
            box = talk(backend, await backend.create(spec), tmp_path)
            try:
                done = await box.sh(
                    "echo seen > /run/substrate/seg/s; "
                    "head -c 4000000 /dev/zero > /run/substrate/seg/big",
                    uid=65534,
                )
                assert b"No space left" in done.err
                fd = os.open("s", os.O_RDONLY, dir_fd=box.box.segments_fd)
                try:
                    assert os.read(fd, 100) == b"seen\n"
                finally:
                    os.close(fd)
            finally:
                let_go(box)

    asyncio.run(scenario())


def test_a_world_exists_once_and_removal_is_idempotent(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with guest(tmp_path) as box:
            with pytest.raises(BackendError, match=r"wld_test: File exists"):
                await box.backend.create(box_spec(tmp_path, "wld_test"))
            await asyncio.gather(*(box.backend.remove("wld_test") for _ in range(3)))
            await box.backend.remove("wld_test")
            await box.backend.remove("wld_never")

    asyncio.run(scenario())


def test_a_world_whose_maker_gave_up_is_removed(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with launcher(tmp_path) as backend:
            for step in range(8):
                making = asyncio.create_task(backend.create(box_spec(tmp_path, f"wld_{step}")))
                for _ in range(step):
                    await asyncio.sleep(0)
                making.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await making
                await backend.remove(f"wld_{step}")
            assert await backend.adopt() == []

    asyncio.run(scenario())


def test_many_worlds_at_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with launcher(tmp_path) as backend:
            names = [f"wld_{n}" for n in range(12)]
            made = await asyncio.gather(*(backend.create(box_spec(tmp_path, n)) for n in names))
            assert len({box.id_base for box in made}) == len(names)
            guests = [talk(backend, box, tmp_path / box.world_id) for box in made]
            ends = await asyncio.gather(*(box.sh("echo $$; exit 5") for box in guests))
            assert {(done.out, done.code) for done in ends} == {(b"2\n", 5)}
            for box in guests:
                let_go(box)
            await asyncio.gather(*(backend.remove(name) for name in names))
            assert await backend.adopt() == []

    asyncio.run(scenario())


def test_an_init_that_dies_is_reported(tmp_path: Path) -> None:
    async def scenario() -> None:
        gone: asyncio.Queue[tuple[str, int]] = asyncio.Queue()
        async with launcher(
            tmp_path, on_world_gone=lambda world, status: gone.put_nowait((world, status))
        ) as backend:
            box = await backend.create(box_spec(tmp_path))
            signal.pidfd_send_signal(box.pidfd, signal.SIGKILL)
            world, status = await gone.get()
            assert (world, os.WTERMSIG(status)) == ("wld_test", signal.SIGKILL)
            assert await backend.adopt() == []
            _close(box)

    asyncio.run(scenario())


def test_worlds_end_with_their_launcher(tmp_path: Path) -> None:
    async def scenario() -> None:
        gone: asyncio.Queue[str] = asyncio.Queue()
        async with launcher(
            tmp_path, on_world_gone=lambda world, _status: gone.put_nowait(world)
        ) as backend:
            box = await backend.create(box_spec(tmp_path))
            guest_ = talk(backend, box, tmp_path)
            await guest_.start(guest_.command("sh", "-c", "setsid sleep 600 & sleep 600"))
            os.kill(backend.launcher_pid, signal.SIGKILL)
            assert await gone.get() == "wld_test"
            ended = select.poll()
            ended.register(box.pidfd, select.POLLIN)
            assert await asyncio.to_thread(ended.poll, 10_000), "the init outlived its launcher"
            let_go(guest_)

    asyncio.run(scenario())


def test_one_launcher_serves_a_state_directory(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with launcher(tmp_path) as first:
            box = await first.create(box_spec(tmp_path))
            _close(box)
            second = make_backend(tmp_path)
            await second.start()
            assert second.launcher_pid == first.launcher_pid
            adopted = await second.adopt()
            assert [found.world_id for found in adopted] == ["wld_test"]
            assert adopted[0].init_pid == box.init_pid
            for found in adopted:
                _close(found)
            await second.close()

    asyncio.run(scenario())


def test_an_idle_launcher_ends(tmp_path: Path) -> None:
    async def scenario() -> None:
        backend = make_backend(tmp_path, linger_s=0)
        await backend.start()
        ended = select.poll()
        pidfd = os.pidfd_open(backend.launcher_pid)
        try:
            ended.register(pidfd, select.POLLIN)
            assert not ended.poll(0)
            await backend.close()
            assert await asyncio.to_thread(ended.poll, 10_000)
        finally:
            os.close(pidfd)
        assert not (tmp_path / "launcher.sock").exists()

    asyncio.run(scenario())


def test_an_ending_launcher_leaves_the_socket_of_its_successor(tmp_path: Path) -> None:
    async def scenario() -> None:
        first = make_backend(tmp_path, linger_s=60)
        await first.start()
        await first.close()
        # A user removed the home while its launcher lingered, and began anew.
        shutil.rmtree(tmp_path / "launcher")
        (tmp_path / "launcher.sock").unlink()
        second = make_backend(tmp_path, linger_s=60)
        await second.start()
        os.kill(first.launcher_pid, signal.SIGTERM)
        await asyncio.to_thread(_wait_gone, first.launcher_pid)
        again = make_backend(tmp_path)
        await again.start()
        assert again.launcher_pid == second.launcher_pid
        await again.shutdown()
        await second.close()
        await again.close()

    asyncio.run(scenario())


def _wait_gone(pid: int) -> None:
    """Return once a process that is not our child has ended."""
    try:
        watched = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        select.select([watched], [], [], 10)
    finally:
        os.close(watched)


def test_the_socket_is_the_owners_alone(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with launcher(tmp_path):
            assert stat.S_IMODE(os.stat(tmp_path / "launcher.sock").st_mode) == 0o600

    asyncio.run(scenario())


def test_nonsense_on_the_socket_harms_nobody(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with launcher(tmp_path) as backend:
            header = struct.Struct("<HHIII")
            packets = [
                b"",
                b"x",
                b"\xff" * 4096,
                header.pack(1, LauncherType.CREATE, 1, 0, 0),
                header.pack(1, LauncherType.CREATE, 1, 2**32 - 1, 1),
                header.pack(1, LauncherType.CREATE, 1, 40, 0) + b"\xff" * 40,
                header.pack(1, LauncherType.REMOVE, 1, 4, 0) + struct.pack("<I", 2**32 - 1),
                header.pack(1, LauncherType.ATTACH, 1, 7, 0) + struct.pack("<I", 3) + b"../",
                header.pack(9, LauncherType.HELLO, 1, 0, 0),
                header.pack(1, 0x7777, 1, 0, 0),
            ]
            for packet in packets:
                with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as stranger:
                    stranger.connect(str(tmp_path / "launcher.sock"))
                    stranger.send(packet)
                    assert (await backend.adopt()) == []
            box = await backend.create(box_spec(tmp_path))
            _close(box)

    asyncio.run(scenario())
