"""The hostile programs: what each tries, which layer stops it, and what it does where nothing does.

A case is a row here and a function in ``programs/``. Words may name places: ``{shadow}`` and the
like, see ``places.py``; they differ between a world and the control outside where they have to.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Layer = Literal[
    "mask",  # mounts over what is secret
    "mount namespace",  # what is not in the tree does not exist
    "pid namespace",
    "ipc namespace",
    "network namespace",
    "user namespace",  # no capability reaches the host
    "read-only mount",
    "no_new_privs",
    "seccomp",
    "landlock",
    "resource limit",
    "init's own guard",  # undumpable, an id and capabilities that no exec has
    "overlay",  # sockets and fifos of the lower layer are other inodes
]
Who = Literal["root", "1000", "rootless"]
EVERYBODY: tuple[Who, ...] = ("root", "1000", "rootless")
ROOT_HOST: tuple[Who, ...] = ("root", "1000")
NOT_ROOT: tuple[Who, ...] = ("1000", "rootless")


@dataclass(frozen=True, slots=True)
class Case:
    """A hostile program.

    Attributes:
        name: of the test.
        run: the attempt's name in ``programs/``, and its words.
        layer: what is meant to stop it; where two do, the one that is asked first.
        refused: the answers of that layer.
        control: what the same program answers outside, as root in a mount namespace: "GOT", or
            the error that comes from further behind and so shows that the layer was passed.
        who: whose worlds it is tried in.
        program: the file to execute.
        apart: namespaces that the control is put into (unshare(1)), where it would do harm.
        control_uid: who runs the control.
        control_run: the control's words, where the world's would reach somebody.
        only_x86: it speaks to x86 processors.
    """

    name: str
    run: tuple[str, ...]
    layer: Layer
    refused: tuple[str, ...] = ("EPERM",)
    control: tuple[str, ...] = ("GOT",)
    who: tuple[Who, ...] = EVERYBODY
    program: str = "{escape}"
    apart: tuple[str, ...] = ()
    control_uid: int = 0
    control_run: tuple[str, ...] = ()
    only_x86: bool = False


def _of_kernel() -> list[Case]:
    """Calls on the whole machine. Their controls use arguments that the kernel finds wrong."""
    refused_later = {
        "reboot_machine": ("EINVAL",),
        "load_module": ("ENOEXEC", "EFAULT", "EINVAL", "ENOSYS"),
        "load_module_file": ("EBADF", "ENOSYS"),
        "remove_module": ("ENOENT", "ENOSYS"),
        "load_kexec": ("EINVAL", "ENOSYS"),
        "set_clock": ("EINVAL",),
        "set_time_of_day": ("EINVAL",),
        "set_host_name": ("GOT",),
        "set_domain_name": ("GOT",),
        "swap_on": ("ENOENT",),
        "account_processes": ("GOT", "ENOSYS"),
        "read_kernel_log": ("GOT",),
        "set_quota": ("GOT", "ENOSYS", "ENOTBLK"),
        "use_bpf": ("GOT",),
        "use_perf": ("GOT", "ENOSYS", "ENOENT"),
        "use_io_uring": ("GOT", "ENOSYS"),
        "use_userfaultfd": ("GOT", "ENOSYS"),
        "use_keyring": ("GOT", "ENOKEY"),
        "add_key_to_keyring": ("GOT",),
        "set_personality": ("GOT",),
        "set_mempolicy": ("GOT", "ENOSYS"),
        "open_by_handle": ("GOT",),
        "watch_with_fanotify": ("GOT", "ENOSYS"),
    }
    cases = [
        Case(name, (name,), "seccomp", control=control) for name, control in refused_later.items()
    ]
    cases += [
        Case("request_key_of_host", ("request_key_of_host", "x"), "seccomp", control=("ENOKEY",)),
        Case("adjust_clock", ("adjust_clock",), "user namespace", control=("EINVAL",)),
        Case("use_ports", ("use_ports",), "seccomp", control=("GOT", "ENOSYS"), only_x86=True),
        Case(
            "raise_io_level",
            ("raise_io_level",),
            "seccomp",
            control=("GOT", "ENOSYS"),
            only_x86=True,
        ),
        Case("call_x32", ("call_x32",), "seccomp", ("ENOSYS",), ("GOT", "ENOSYS"), only_x86=True),
    ]
    by_i386 = {
        "vsock_by_socketcall": ("GOT", "EAFNOSUPPORT"),
        "alg_by_socketcall": ("GOT", "EAFNOSUPPORT"),
        "vsock_by_i386": ("GOT", "EAFNOSUPPORT"),
        "unshare_by_i386": ("GOT",),
        "chroot_by_i386": ("GOT",),
        "keyring_by_i386": ("GOT", "ENOKEY"),
        "set_clock_by_i386": ("EINVAL",),
        "io_level_by_i386": ("GOT", "ENOSYS"),
    }
    cases += [
        Case(name, (name,), "seccomp", control=control, only_x86=True)
        for name, control in by_i386.items()
    ]
    return cases


def _of_mounts() -> list[Case]:
    """Taking masks off, putting trees up, leaving the namespace."""
    calls: dict[str, tuple[str, ...]] = {
        "mount_tmpfs": (),
        "mount_proc_again": (),
        "mount_cgroups": (),
        "mount_bind": ("/etc",),
        "mount_overlay_of_mask": ("/root",),
        "open_file_system": (),
        "pick_file_system": (),
        "clone_tree": (),
        "leave_chroot": (),
        "unshare_user": (),
        "unshare_mounts": (),
        "unshare_network": (),
        "clone_user": (),
        "clone_cgroup": (),
        "clone_pids_and_mounts": (),
    }
    cases = [Case(name, (name, *words), "seccomp") for name, words in calls.items()]
    # Outside, the kernel looks at what the calls are about, and finds no mount there.
    cases += [
        Case("unmount_a_mask", ("unmount", "{shadow}"), "seccomp", control=("EINVAL",)),
        Case("move_a_mount", ("move_a_mount", "{shadow}"), "seccomp", control=("EINVAL",)),
        Case("change_mount", ("change_mount", "{shadow}"), "seccomp", control=("EINVAL",)),
        Case("make_writable", ("make_writable", "/proc/sys"), "seccomp", control=("EINVAL", "GOT")),
        Case("pivot_root", ("pivot_to_elsewhere",), "seccomp", control=("EINVAL", "EBUSY")),
        Case("clone3_user", ("clone3_user",), "seccomp", ("ENOSYS",)),
        Case(
            "enter_mounts_of_init",
            ("enter_namespace", "/proc/{pid1}/ns/mnt"),
            "init's own guard",
            ("EACCES", "EPERM"),
        ),
        Case(
            "enter_mounts_of_host",
            ("enter_namespace", "/proc/{host_pid}/ns/mnt"),
            "pid namespace",
            ("ENOENT",),
        ),
        Case("enter_namespaces_by_pidfd", ("enter_namespaces_of", "{pid1}"), "seccomp"),
    ]
    return cases


_SHADOW = "{shadow}"


def _of_files() -> list[Case]:
    """A mask by every name and handle, what is not there at all, and the kernel's own files."""
    cases = [
        Case(name, (name, *words), "mask", refused)
        for name, words, refused in (
            ("read_by_symlink", (_SHADOW,), ("EACCES",)),
            ("read_by_hard_link", (_SHADOW,), ("EXDEV", "EPERM")),
            ("read_by_path_descriptor", (_SHADOW,), ("EACCES",)),
            ("read_by_mapping", (_SHADOW,), ("EACCES",)),
            ("read_by_passed_descriptor", (_SHADOW,), ("EACCES",)),
            ("read_after_chmod", ("{shadow_copy}",), ("EPERM", "EROFS")),
            ("rename_away", ("{shadow_copy}", "moved"), ("EXDEV", "EBUSY", "EACCES")),
        )
    ]
    cases += [
        Case(f"read {path}", ("read_file", path), "mask", ("EACCES", "EPERM"))
        for path in (
            _SHADOW,
            "/proc/self/root{shadow}",
            "/proc/self/cwd/../../../../../../../..{shadow}",
            "/proc/thread-self/root{shadow}",
            "/dev/fd/../root{shadow}",
        )
    ]
    hidden = {
        "a key in the home": "{key}",
        "the recorder's own files": "{substrate}/secret",
        "another world's layer": "{other_world}/layers/secret",
        "the home of a host of another uid": "{other_uid}/secret",
        "shared memory of the host, by file": "/dev/shm/{posix_shm}",
        "a file in the host's /run": "/run/{in_run}",
        "a file in the host's /tmp": "/tmp/{in_tmp}",
    }
    cases += [
        Case(f"read {what}", ("read_file", path), "mount namespace", ("ENOENT", "EACCES"))
        for what, path in hidden.items()
    ]
    cases += [
        Case(
            f"read /proc/1/{name}",
            ("read_file", f"/proc/{{pid1}}/{name}"),
            "init's own guard",
            ("EACCES", "EPERM"),
            control,
        )
        for name, control in {
            "environ": ("GOT",),
            "mem": ("EIO",),
            "maps": ("GOT",),
            "auxv": ("GOT",),
            "root{shadow}": ("GOT",),
            "fd/{host_fd}": ("GOT",),
            "exe": ("GOT",),
        }.items()
    ]
    cases += [
        Case(f"read {path}", ("read_file", path), "mask", ("EACCES", "ENOENT", "ENODATA", "EPERM"))
        for path in ("/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/interrupts")
    ]
    cases += [
        Case(f"list {path}", ("list_directory", path), layer, ("ENODATA", "ENOENT", "EACCES"))
        for path, layer in _EMPTY_DIRECTORIES
    ]
    cases += [
        Case(f"open {path}", ("open_to_write", path), layer, ("ENOENT",))
        for path, layer in _NO_DEVICES
    ]
    cases += [
        Case(f"write {path}", ("open_to_write", path), "read-only mount", ("EROFS", "EACCES"))
        for path in (
            "/proc/sys/kernel/core_pattern",
            "/proc/sys/kernel/modprobe",
            "/proc/sys/kernel/hotplug",
            "/proc/sys/kernel/sysrq",
            "/proc/sys/vm/drop_caches",
            "/proc/sys/vm/overcommit_memory",
            "/proc/sys/fs/binfmt_misc/register",
            "/proc/sys/kernel/ns_last_pid",
            "/proc/sysrq-trigger",
            "/sys/kernel/uevent_helper",
            "/sys/kernel/mm/ksm/run",
            "/sys/power/state",
        )
    ]
    cases += [
        Case(
            "write /proc/1/oom_score_adj",
            ("open_to_write", "/proc/{pid1}/oom_score_adj"),
            "read-only mount",
            ("EROFS", "EACCES"),
        ),
        Case(
            "join another's cgroup",
            ("open_to_write", "{cgroup_procs}"),
            "mount namespace",
            ("ENOENT",),
        ),
        Case(
            "set a release agent",
            ("open_to_write", "{release_agent}"),
            "mount namespace",
            ("ENOENT",),
        ),
        Case(
            "redirect an overlay",
            ("set_overlay_mark", "{directory}"),
            "user namespace",
            ("EPERM", "ENOTSUP"),
        ),
        Case(
            "make_memory_device",
            ("make_memory_device",),
            "landlock",
            ("EACCES",),
            ("GOT", "ENXIO", "EPERM"),
        ),
        Case("make_disk_device", ("make_disk_device",), "landlock", ("EACCES",)),
        Case("make_whiteout_device", ("make_whiteout_device", "/dev/shm"), "landlock", ("EACCES",)),
        Case(
            "touch /dev/null", ("change_times_of_device", "{null}"), "read-only mount", ("EROFS",)
        ),
        Case(
            "chmod /dev/null",
            ("change_mode_of_device", "{null}"),
            "read-only mount",
            ("EROFS", "EPERM"),
        ),
        Case(
            "attach_shared_memory", ("attach_shared_memory", "{shm}"), "ipc namespace", ("EINVAL",)
        ),
    ]
    return cases


_EMPTY_DIRECTORIES: tuple[tuple[str, Layer], ...] = (
    ("{substrate}", "mask"),
    ("/sys/firmware", "mask"),
    ("/sys/kernel/debug", "mount namespace"),
    ("/sys/kernel/tracing", "mount namespace"),
    ("/sys/fs/bpf", "mount namespace"),
    ("/sys/fs/cgroup", "mount namespace"),
    ("/dev/mapper", "mount namespace"),
)
_NO_DEVICES: tuple[tuple[str, Layer], ...] = (
    ("/dev/mem", "mount namespace"),
    ("/dev/kmsg", "mount namespace"),
    ("/dev/loop-control", "mount namespace"),
    ("/dev/fuse", "mount namespace"),
    ("/dev/net/tun", "mount namespace"),
    ("/dev/kvm", "mount namespace"),
    ("{disk}", "mount namespace"),
)


def _of_processes() -> list[Case]:
    guard: tuple[str, ...] = ("EPERM", "EACCES")
    cases = [
        Case("trace pid 1", ("trace_process", "{pid1}"), "init's own guard", guard),
        Case(
            "read memory of pid 1",
            ("read_memory_of_process", "{pid1}"),
            "init's own guard",
            guard,
            ("EFAULT",),
        ),
        Case(
            "write memory of pid 1",
            ("write_memory_of_process", "{pid1}"),
            "init's own guard",
            guard,
            ("EFAULT",),
        ),
        Case(
            "take a descriptor of pid 1", ("take_descriptor_of_process", "{pid1}", "0"), "seccomp"
        ),
        Case("compare with pid 1", ("compare_with_process", "{pid1}"), "seccomp"),
        Case("limit pid 1", ("limit_process", "{pid1}"), "seccomp"),
        Case(
            "release memory of pid 1",
            ("release_memory_of_process", "{pid1}"),
            "seccomp",
            control=("GOT", "EINVAL"),
        ),
        Case(
            "slow pid 1 down",
            ("slow_process_down", "{pid1}"),
            "init's own guard",
            guard,
            who=ROOT_HOST,  # rootless there is one id only; it slows its own world down
        ),
        Case(
            "bind pid 1 to a processor",
            ("bind_process_to_processor", "{pid1}"),
            "init's own guard",
            guard,
            who=ROOT_HOST,
        ),
        Case("become init", ("become_uid", "65535"), "seccomp", ("EINVAL",)),
        Case(
            "become init by i386",
            ("become_init_by_i386",),
            "seccomp",
            ("EINVAL", "EPERM"),
            only_x86=True,
        ),
        Case(
            "become an id of the host",
            ("become_uid", "1879113728"),
            "user namespace",
            ("EINVAL", "EPERM"),
        ),
        Case("regain_capabilities", ("regain_capabilities",), "user namespace"),
        Case("turn_filter_off", ("turn_filter_off",), "seccomp"),
        Case("answer_for_the_filter", ("answer_for_the_filter",), "seccomp"),
        Case("dump_core", ("dump_core",), "resource limit"),
        Case(
            "be root by a set-id program",
            ("be_root",),
            "no_new_privs",
            who=NOT_ROOT,
            program="{set_id}",
            control_uid=12345,
        ),
        Case(
            "be capable by a file's capabilities",
            ("have_capability",),
            "no_new_privs",
            program="{capable}",
            control_uid=12345,
        ),
    ]
    cases += [
        Case(f"{what} a process of the host", run, "pid namespace", ("ESRCH",), control)
        for what, run, control in (
            ("trace", ("trace_process", "{host_pid}"), ("GOT",)),
            ("signal", ("signal_process", "{host_pid}", "0"), ("GOT",)),
            ("signal by pidfd", ("signal_by_pidfd", "{host_pid}"), ("GOT",)),
            ("read memory of", ("read_memory_of_process", "{host_pid}"), ("EFAULT",)),
        )
    ]
    cases.append(
        Case(
            "read the environment of a process of the host",
            ("read_file", "/proc/{host_pid}/environ"),
            "pid namespace",
            ("ENOENT",),
        )
    )
    return cases


def _of_sockets() -> list[Case]:
    maybe: tuple[str, ...] = ("GOT", "EAFNOSUPPORT")
    return [
        Case("open_raw", ("open_raw",), "user namespace"),
        Case("open_raw_v6", ("open_raw_v6",), "user namespace", control=maybe),
        Case("open_packet", ("open_packet",), "user namespace", control=maybe),
        Case("open_vsock", ("open_vsock",), "seccomp", control=maybe),
        Case("open_alg", ("open_alg",), "seccomp", control=maybe),
        Case("open_unknown_family", ("open_unknown_family",), "seccomp", control=("EAFNOSUPPORT",)),
        Case(
            "connect_to_abstract",
            ("connect_to_abstract", "{abstract}"),
            "network namespace",
            ("ECONNREFUSED",),
        ),
        Case("connect_to_path", ("connect_to_path", "{socket}"), "overlay", ("ECONNREFUSED",)),
        Case(
            "connect to the host's loopback",
            ("connect_to_address", "127.0.0.1", "{port}"),
            "network namespace",
            ("ECONNREFUSED",),
        ),
        Case(
            "connect to the cloud's metadata",
            ("connect_to_address", "169.254.169.254", "80"),
            "network namespace",
            ("ENETUNREACH",),
            control_run=("connect_to_address", "127.0.0.1", "{port}"),
        ),
        Case(
            "add_route",
            ("add_route",),
            "user namespace",
            control=("GOT", "ENETDOWN"),
            apart=("--net",),
        ),
        Case("take_interface_down", ("take_interface_down",), "user namespace", apart=("--net",)),
        Case("find_interface", ("find_interface",), "network namespace", ("ENODEV",)),
    ]


CASES: tuple[Case, ...] = (
    *_of_kernel(),
    *_of_mounts(),
    *_of_files(),
    *_of_processes(),
    *_of_sockets(),
)
