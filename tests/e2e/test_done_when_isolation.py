"""Issue 2, done when 5: what a command cannot reach, and that it is told why."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.users import PYTHON, Json, User, new_user

SECRET = "-----BEGIN OPENSSH PRIVATE KEY----- hunter2"


@pytest.fixture(scope="module")
def user() -> Iterator[User]:
    """A user with a key, whose host runs."""
    with new_user() as made:
        (made.home / ".ssh").mkdir(mode=0o700)
        (made.home / ".ssh" / "id_rsa").write_text(SECRET)
        (made.home / "notes.txt").write_text(SECRET)
        made.up()
        yield made


def blocked_by(result: Json, layer: str) -> list[Json]:
    found = [item for item in result["blocked"] if item["layer"] == layer]
    for item in found:
        assert item["what"], item
        assert item["rule"], item
        assert len(item["fix"]) > 20, item
    return found


def test_a_private_key_cannot_be_read_and_blocked_says_so(user: User, git_checkout: Path) -> None:
    key = str(user.home / ".ssh" / "id_rsa")
    done = user.run("run", "--json", "--", "cat", key, cwd=git_checkout)
    assert done.code == 1
    assert SECRET not in done.out
    (item,) = blocked_by(done.json, "profile")
    assert key in item["what"]
    assert item["rule"] == "home-allow-list"


def test_the_issues_line_with_a_tilde_is_blocked_too(user: User, git_checkout: Path) -> None:
    done = user.run("-c", "cat ~/.ssh/id_rsa", cwd=git_checkout)
    assert done.code == 1
    assert SECRET not in done.out + done.err
    assert blocked_by(user.spans()[-1], "profile")


def test_people_are_told_what_was_blocked_and_what_to_do(user: User, git_checkout: Path) -> None:
    done = user.run("run", "--", "cat", str(user.home / ".ssh/id_rsa"), cwd=git_checkout)
    assert "blocked" in done.err
    assert "home-allow-list" in done.err
    assert "copy the file into the project" in done.err


def test_every_other_file_of_the_home_is_hidden_as_well(user: User, git_checkout: Path) -> None:
    result = user.run_json("ls", "-A", str(user.home), cwd=git_checkout)
    assert "notes.txt" not in result["stdout"]
    assert ".ssh" not in result["stdout"]
    hidden = user.run_json("cat", str(user.home / "notes.txt"), cwd=git_checkout)
    assert hidden["exit_code"] == 1
    assert blocked_by(hidden, "profile")


def test_credentials_made_after_a_world_began_are_not_visible_in_it(
    user: User, git_checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(user.home))  # an SDK's world has the home of its process
    aws = user.home / ".aws"
    with user.client() as sub, sub.world(project=git_checkout, cwd=git_checkout) as world:
        assert world.run(["true"]).exit_code == 0
        aws.mkdir()
        (aws / "credentials").write_text(SECRET)
        result = world.run(["cat", str(aws / "credentials")])
    assert result.exit_code == 1
    assert SECRET not in result.stdout
    assert result.blocked


def test_the_recorders_home_cannot_be_reached(user: User, git_checkout: Path) -> None:
    for path in (user.trace, user.substrate_home / "host.log", user.substrate_home / "run"):
        result = user.run_json("sh", "-c", f"cat {path} || ls {path}/*", cwd=git_checkout)
        assert result["exit_code"] != 0
        assert result["stdout"] == ""
        (item, *_) = blocked_by(result, "profile")
        assert item["rule"] in ("substrate-home", "home-allow-list")
    listed = user.run_json("ls", "-A", str(user.substrate_home), cwd=git_checkout)
    assert listed["stdout"] == ""


def test_the_recorders_home_is_hidden_where_the_project_shows_what_is_around_it(
    git_checkout: Path,
) -> None:
    """The project is shown; a recorder's home inside of it is not."""
    with new_user() as other:
        inside = git_checkout / "recorder"
        env = {"SUBSTRATE_HOME": str(inside)}
        try:
            done = other.run(
                "run", "--json", "--", "ls", "-A", str(inside), cwd=git_checkout, env=env
            )
            assert (done.json["stdout"], done.json["exit_code"]) == ("", 0), done.json
        finally:
            assert other.run("down", "--worlds", cwd=git_checkout, env=env).code == 0


def test_another_worlds_layers_cannot_be_reached(user: User, git_checkout: Path) -> None:
    with user.client() as sub, sub.world(project=git_checkout, cwd=git_checkout) as other:
        other.files.write(git_checkout / "private.txt", b"of the other world")
        uppers = list(user.substrate_home.glob("worlds/*/layers/*/upper"))
        assert any(path.name == "private.txt" for upper in uppers for path in upper.rglob("*"))
        script = "cat {0}/**/private.txt; find {0} / -xdev -name private.txt 2>/dev/null".format(
            user.substrate_home / "worlds"
        )
        result = user.run_json("bash", "-O", "globstar", "-c", script, cwd=git_checkout)
    assert "of the other world" not in result["stdout"]
    assert "private.txt" not in result["stdout"]


@pytest.mark.parametrize(
    "name", ["environ", "mem", "maps", "auxv", "cwd/README.md", "root/etc/passwd", "fd/3"]
)
def test_the_first_process_of_a_world_gives_nothing_away(
    user: User, git_checkout: Path, name: str
) -> None:
    result = user.run_json("cat", f"/proc/1/{name}", cwd=git_checkout)
    assert (result["exit_code"], result["stdout"]) == (1, ""), result
    (item,) = blocked_by(result, "kernel")
    assert item["rule"] == "init-protected"
    assert f"/proc/1/{name}" in item["what"]


def test_the_first_processs_links_lead_nowhere(user: User, git_checkout: Path) -> None:
    script = "readlink /proc/1/exe /proc/1/cwd /proc/1/root /proc/1/fd/*; ls /proc/1/root/"
    result = user.run_json("sh", "-c", script, cwd=git_checkout)
    assert result["stdout"] == ""


def test_the_first_process_cannot_be_traced_signalled_or_its_descriptors_taken(
    user: User, git_checkout: Path
) -> None:
    script = """
import ctypes, os, signal
libc = ctypes.CDLL(None, use_errno=True)
PTRACE_SEIZE, SYS_pidfd_getfd = 0x4206, 438
def told(name, value): print(name, "refused" if value == -1 else "DONE")
told("seize", libc.ptrace(PTRACE_SEIZE, 1, 0, 0))
told("pidfd_getfd", libc.syscall(SYS_pidfd_getfd, os.pidfd_open(1), 3, 0))
told("process_vm_readv", libc.process_vm_readv(1, 0, 0, 0, 0, 0) or -1)
for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP):
    try:
        os.kill(1, number)
    except PermissionError:
        pass
print("init lives", os.path.exists("/proc/1"))
"""
    result = user.run_json(PYTHON, "-c", script, cwd=git_checkout)
    assert result["exit_code"] == 0, result
    assert "DONE" not in result["stdout"]
    assert "init lives True" in result["stdout"]


def test_password_hashes_cannot_be_read(user: User, git_checkout: Path) -> None:
    done = user.run("run", "--json", "--", "cat", "/etc/shadow", cwd=git_checkout)
    with open("/etc/shadow") as file:
        assert file.readline().strip() not in done.out
    assert done.json["exit_code"] != 0 or done.json["stdout"] == ""
    (item,) = blocked_by(done.json, "profile")
    assert item["rule"] == "system-secrets"


def test_other_homes_cannot_be_read(user: User, git_checkout: Path) -> None:
    result = user.run_json("sh", "-c", "ls -A /root /home", cwd=git_checkout)
    assert not {"root", ".ssh", ".bash_history"} & set(result["stdout"].split())


def test_there_is_no_network_and_blocked_says_so(user: User, git_checkout: Path) -> None:
    script = "import socket; socket.create_connection(('192.0.2.1', 443), 5)"
    result = user.run_json(PYTHON, "-c", script, cwd=git_checkout)
    assert result["exit_code"] == 1
    (item,) = blocked_by(result, "network")
    assert item["what"] == "connect 192.0.2.1:443"
    assert item["rule"] == "network-none"


def test_names_cannot_be_resolved_and_blocked_says_so(user: User, git_checkout: Path) -> None:
    script = "import socket; socket.getaddrinfo('registry.npmjs.org', 443)"
    result = user.run_json(PYTHON, "-c", script, cwd=git_checkout)
    assert result["exit_code"] == 1
    assert any("registry.npmjs.org" in item["what"] for item in blocked_by(result, "network"))


def test_services_of_the_host_cannot_be_reached(user: User, git_checkout: Path) -> None:
    """Neither by address, nor by an abstract Unix socket."""
    name = f"\0substrate-test-{os.getpid()}"
    with socket.socket() as tcp, socket.socket(socket.AF_UNIX) as abstract:
        tcp.bind(("127.0.0.1", 0))
        tcp.listen()
        abstract.bind(name)
        abstract.listen()
        script = (
            "import socket\n"
            f"for family, address in ((2, ('127.0.0.1', {tcp.getsockname()[1]})), (1, {name!r})):\n"
            "    with socket.socket(family) as s: print(s.connect_ex(address) != 0)\n"
        )
        result = user.run_json(PYTHON, "-c", script, cwd=git_checkout)
    assert result["stdout"] == "True\nTrue\n", result


def test_a_loopback_of_its_own_works(user: User, git_checkout: Path) -> None:
    script = (
        "import socket\n"
        "s = socket.create_server(('127.0.0.1', 0))\n"
        "c = socket.create_connection(s.getsockname())\n"
        "s.accept()[0].sendall(b'hello'); print(c.recv(5).decode())"
    )
    result = user.run_json(PYTHON, "-c", script, cwd=git_checkout)
    assert result["stdout"] == "hello\n", result["stderr"]


def test_a_command_is_not_root_on_the_host(user: User, git_checkout: Path) -> None:
    script = """
import os
print(sorted(os.readlink(f"/proc/self/ns/{n}") == os.environ[n] for n in
      ("user", "mnt", "pid", "ipc", "uts", "net")))
print(open("/proc/self/status").read())
"""
    names = ("user", "mnt", "pid", "ipc", "uts", "net")
    options = [
        word for n in names for word in ("--env", f"{n}={os.readlink(f'/proc/self/ns/{n}')}")
    ]
    result = user.run_json(PYTHON, "-c", script, cwd=git_checkout, options=options)
    first, _, status = result["stdout"].partition("\n")
    assert first == str([False] * 6)
    assert "NoNewPrivs:\t1" in status
    assert "Seccomp:\t2" in status
    (bounding,) = [line.split()[1] for line in status.splitlines() if line.startswith("CapBnd")]
    for capability in (13, 21, 27, 16, 25):  # NET_RAW, SYS_ADMIN, MKNOD, SYS_MODULE, SYS_TIME
        assert not int(bounding, 16) >> capability & 1, capability


@pytest.mark.parametrize(
    "command",
    [
        ("mount", "-t", "tmpfs", "none", "/mnt"),
        ("umount", "/tmp"),
        ("mknod", "/tmp/disk", "b", "254", "0"),
        ("unshare", "-Urm", "true"),
        ("chroot", "/", "true"),
        ("sh", "-c", "echo 1 > /proc/sys/kernel/core_pattern"),
        ("sh", "-c", "echo b > /proc/sysrq-trigger"),
    ],
    ids=lambda command: " ".join(command)[:30],
)
def test_what_would_break_out_is_refused(
    user: User, git_checkout: Path, command: tuple[str, ...]
) -> None:
    result = user.run_json(*command, cwd=git_checkout)
    assert result["exit_code"] != 0, result


def test_a_command_cannot_write_the_library_that_records_it(user: User, git_checkout: Path) -> None:
    library = "/run/substrate/lib"
    script = f"cd {library}; for f in *; do echo x > $f && echo WROTE; done; rm -rf {library}; ls"
    result = user.run_json("sh", "-c", script, cwd=git_checkout)
    assert "WROTE" not in result["stdout"]
    assert "libsubstrate_preload.so" in result["stdout"]


def test_a_git_credential_does_not_come_along_with_the_configuration(
    user: User, git_checkout: Path
) -> None:
    (user.home / ".gitconfig").write_text(
        "[user]\n\tname = Somebody\n[credential]\n\thelper = store\n"
        '[url "https://hunter2@github.com"]\n\tinsteadOf = gh:\n'
    )
    result = user.run_json("git", "config", "--global", "--list", cwd=git_checkout)
    assert "user.name=Somebody" in result["stdout"]
    assert "hunter2" not in result["stdout"]
    assert "credential" not in result["stdout"]


def test_a_directory_of_credentials_is_refused_as_a_project(user: User) -> None:
    done = user.run("run", "--", "ls", cwd=user.home / ".ssh")
    assert done.code == 125
    assert "credentials" in done.error_line


def test_a_home_as_working_directory_shows_the_allow_list_only(user: User) -> None:
    result = user.run_json("ls", "-A", cwd=user.home)
    assert "notes.txt" not in result["stdout"]
    assert ".ssh" not in result["stdout"]


def test_a_world_cannot_see_the_processes_of_the_host(user: User, git_checkout: Path) -> None:
    result = user.run_json("sh", "-c", "echo /proc/[0-9]*", cwd=git_checkout)
    assert len(result["stdout"].split()) <= 3
