/* Namespaces and mounts: taking masks off, putting trees up, leaving. */
#include "attempt.h"

#include <linux/mount.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/wait.h>

ATTEMPT(mount_tmpfs) {
    return syscall(SYS_mount, "none", "/mnt", "tmpfs", 0UL, "");
}

ATTEMPT(mount_proc_again) {
    return syscall(SYS_mount, "none", "/proc", "proc", 0UL, "");
}

ATTEMPT(mount_cgroups) {
    return syscall(SYS_mount, "none", "/mnt", "cgroup2", 0UL, "");
}

ATTEMPT(mount_bind) {
    return syscall(SYS_mount, words[0], "/mnt", "", (unsigned long)MS_BIND, "");
}

ATTEMPT(mount_overlay_of_mask) {
    char options[512];
    snprintf(options, sizeof options, "lowerdir=%s:/usr", words[0]);
    return syscall(SYS_mount, "overlay", "/mnt", "overlay", 0UL, options);
}

ATTEMPT(make_writable) {
    return syscall(SYS_mount, "", words[0], "", (unsigned long)(MS_REMOUNT | MS_BIND), "");
}

ATTEMPT(unmount) {
    return syscall(SYS_umount2, words[0], MNT_DETACH);
}

ATTEMPT(pivot_to_elsewhere) {
    return syscall(SYS_pivot_root, ".", ".");
}

/* The classical way out: a root below the working directory, and up from there. */
ATTEMPT(leave_chroot) {
    if (mkdir("jail", 0700) && errno != EEXIST)
        return REFUSED;
    if (syscall(SYS_chroot, "jail"))
        return REFUSED;
    for (int i = 0; i < 64; i++)
        (void)!chdir("..");
    return syscall(SYS_chroot, ".");
}

ATTEMPT(clone_tree) {
    return syscall(SYS_open_tree, AT_FDCWD, "/", OPEN_TREE_CLONE);
}

ATTEMPT(move_a_mount) {
    return syscall(SYS_move_mount, AT_FDCWD, words[0], AT_FDCWD, "/mnt", 0);
}

ATTEMPT(open_file_system) {
    return syscall(SYS_fsopen, "tmpfs", 0);
}

ATTEMPT(pick_file_system) {
    return syscall(SYS_fspick, AT_FDCWD, "/", 0);
}

ATTEMPT(change_mount) {
    struct mount_attr attributes = {.attr_clr = MOUNT_ATTR_RDONLY};
    return syscall(SYS_mount_setattr, AT_FDCWD, words[0], 0, &attributes, sizeof attributes);
}

ATTEMPT(unshare_user) {
    return syscall(SYS_unshare, CLONE_NEWUSER);
}

ATTEMPT(unshare_mounts) {
    return syscall(SYS_unshare, CLONE_NEWNS);
}

ATTEMPT(unshare_network) {
    return syscall(SYS_unshare, CLONE_NEWNET);
}

static long clone_with(unsigned long flags) {
    long pid = syscall(SYS_clone, flags | SIGCHLD, 0UL, 0UL, 0UL, 0UL);
    if (pid == 0)
        _exit(0);
    if (pid > 0)
        waitpid((pid_t)pid, NULL, 0);
    return pid;
}

ATTEMPT(clone_user) {
    return clone_with(CLONE_NEWUSER);
}

ATTEMPT(clone_cgroup) {
    return clone_with(CLONE_NEWCGROUP);
}

ATTEMPT(clone_pids_and_mounts) {
    return clone_with(CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNS);
}

/* Its flags are behind a pointer, where no filter sees them. */
ATTEMPT(clone3_user) {
    struct {
        uint64_t flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls;
    } arguments = {.flags = CLONE_NEWUSER, .exit_signal = SIGCHLD};
    long pid = syscall(SYS_clone3, &arguments, sizeof arguments);
    if (pid == 0)
        _exit(0);
    if (pid > 0)
        waitpid((pid_t)pid, NULL, 0);
    return pid;
}

/* Into the namespace of a process, by /proc or by pidfd. */
ATTEMPT(enter_namespace) {
    int fd = open(words[0], O_RDONLY | O_CLOEXEC);
    return fd < 0 ? REFUSED : syscall(SYS_setns, fd, 0);
}

ATTEMPT(enter_namespaces_of) {
    int fd = (int)syscall(SYS_pidfd_open, atoi(words[0]), 0);
    return fd < 0 ? REFUSED : syscall(SYS_setns, fd, CLONE_NEWNS | CLONE_NEWPID);
}
