/* What every box gets besides its own tree: /proc, /sys, /dev, /run and the segments. */
#include "launcher.h"

#include <linux/mount.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>

#define TMPFS_MAGIC 0x01021994
#define HARMLESS (MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC)

/* The sets of Docker and the OCI runtime's default configuration. */
static const char *const PROC_HIDDEN[] = {"/proc/acpi",
                                          "/proc/asound",
                                          "/proc/interrupts",
                                          "/proc/kcore",
                                          "/proc/keys",
                                          "/proc/latency_stats",
                                          "/proc/sched_debug",
                                          "/proc/scsi",
                                          "/proc/timer_list",
                                          "/proc/timer_stats",
                                          NULL};
/* An undumpable process's files belong to root of the box, who could offer the init to the kernel's
 * OOM killer (/proc/1/oom_score_adj). */
static const char *const PROC_READ_ONLY[] = {
    "/proc/1", "/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger", NULL};
static const char *const SYS_HIDDEN[] = {"/sys/firmware", "/sys/devices/virtual/powercap", NULL};
static const struct {
    const char *name;
    unsigned major, minor; /* Documentation/admin-guide/devices.txt */
} DEVICES[] = {{"null", 1, 3},   {"zero", 1, 5},    {"full", 1, 7},
               {"random", 1, 8}, {"urandom", 1, 9}, {"tty", 5, 0}};

/*
 * procfs shows the pid namespace of whoever opens the file system, so a child of ours inside the
 * box's pid namespace does it. CLONE_VM and CLONE_FILES hand the mount to us without a message;
 * CLONE_VFORK keeps us still meanwhile.
 */
struct proc_mounter {
    struct fail *fail;
    int mount_fd;
    int last_pid_fd;
};

static int mount_proc_inside(void *argument) {
    static const char *const none[] = {NULL};
    struct proc_mounter *mounter = argument;
    mounter->mount_fd = mount_fs("proc", none, HARMLESS, mounter->fail);
    return 0;
}

static int mount_proc(int init_pidfd, struct fail *fail, int *last_pid_fd) {
    static _Alignas(16) char stack[64 << 10];
    if (setns(init_pidfd, CLONE_NEWPID))
        return fail_set(fail, errno, "entering the pid namespace");
    struct proc_mounter mounter = {.fail = fail, .mount_fd = -1};
    pid_t child = clone(mount_proc_inside, stack + sizeof stack,
                        CLONE_VM | CLONE_FILES | CLONE_VFORK | SIGCHLD, &mounter);
    if (child < 0)
        return fail_set(fail, errno, "clone into the pid namespace");
    while (waitpid(child, NULL, 0) < 0 && errno == EINTR)
        ;
    if (mounter.mount_fd < 0)
        return fail_set(fail, EPERM, "mounting proc");
    /* Opened before /proc/sys becomes read-only; init sets the next pid with it (replay). */
    *last_pid_fd = openat(mounter.mount_fd, "sys/kernel/ns_last_pid", O_WRONLY | O_CLOEXEC);
    return mounter.mount_fd;
}

static int add_proc(struct tree *tree, int init_pidfd, int *last_pid_fd) {
    SUB_AUTO_FD fd = mount_proc(init_pidfd, tree->fail, last_pid_fd);
    if (fd < 0 || tree_attach(tree, fd, "/proc", true))
        return -1;
    for (const char *const *path = PROC_READ_ONLY; *path; path++)
        if (tree_make_read_only(tree, *path))
            return -1;
    for (const char *const *path = PROC_HIDDEN; *path; path++)
        if (tree_mask_file(tree, *path))
            return -1;
    return 0;
}

/* sysfs shows the devices of the network namespace of whoever opens it: the box's. */
static int add_sys(struct tree *tree, int init_pidfd) {
    static const char *const none[] = {NULL};
    if (setns(init_pidfd, CLONE_NEWNET))
        return fail_set(tree->fail, errno, "entering the network namespace");
    struct fail refused = {0};
    SUB_AUTO_FD fd = mount_fs("sysfs", none, HARMLESS | MOUNT_ATTR_RDONLY, &refused);
    if (fd < 0) {
        /* A user namespace may mount sysfs only where the host's is all visible (containers). */
        if (tree->rootless && refused.error == EPERM)
            return tree_tmpfs(tree, "/sys", 0555, 4096, true);
        *tree->fail = refused;
        return -1;
    }
    if (tree_attach(tree, fd, "/sys", true))
        return -1;
    for (const char *const *path = SYS_HIDDEN; *path; path++)
        if (tree_mask_dir(tree, *path))
            return -1;
    return 0;
}

static int add_dev_links(int dev) {
    static const char *const links[][2] = {{"/proc/self/fd", "fd"},
                                           {"/proc/self/fd/0", "stdin"},
                                           {"/proc/self/fd/1", "stdout"},
                                           {"/proc/self/fd/2", "stderr"},
                                           {"pts/ptmx", "ptmx"}};
    for (size_t i = 0; i < sizeof links / sizeof links[0]; i++)
        if (symlinkat(links[i][0], dev, links[i][1]))
            return -1;
    return 0;
}

/*
 * A node of the box's own. The host's /dev/null is one inode for everybody: inotify on it tells when
 * anybody on the host opens it, locks and times of it are shared. Read-only mounts keep the node as
 * it is and the device writable. 1: this host lets nobody make nodes (in a container, say).
 */
static int add_own_device(struct tree *tree, const char *name, dev_t device, const char *path) {
    if (mknodat(tree->stage_fd, name, S_IFCHR | 0666, device))
        return errno == EPERM ? 1 : fail_set(tree->fail, errno, "making %s", path);
    struct mount_attr attributes = {.attr_set =
                                        MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC,
                                    .attr_clr = MOUNT_ATTR_NODEV};
    SUB_AUTO_FD fd = (int)syscall(SYS_open_tree, tree->stage_fd, name,
                                  OPEN_TREE_CLONE | (unsigned)OPEN_TREE_CLOEXEC);
    if (fd < 0 || fchmodat(tree->stage_fd, name, 0666, 0) ||
        syscall(SYS_mount_setattr, fd, "", AT_EMPTY_PATH, &attributes, sizeof attributes))
        return fail_set(tree->fail, errno, "making %s", path);
    return tree_attach(tree, fd, path, false);
}

static int add_device(struct tree *tree, size_t index) {
    char path[32];
    snprintf(path, sizeof path, "/dev/%s", DEVICES[index].name);
    int made = 1;
    if (!tree->rootless)
        made = add_own_device(tree, DEVICES[index].name,
                              makedev(DEVICES[index].major, DEVICES[index].minor), path);
    return made > 0 ? tree_bind(tree, path, path, true, true) : made;
}

static int add_dev(struct tree *tree) {
    if (tree_tmpfs(tree, "/dev", 0755, 1 << 20, false))
        return -1;
    for (size_t i = 0; i < sizeof DEVICES / sizeof DEVICES[0]; i++)
        if (add_device(tree, i))
            return -1;
    SUB_AUTO_FD dev = tree_resolve(tree, "/dev");
    if (dev < 0 || add_dev_links(dev))
        return fail_set(tree->fail, errno, "filling /dev");
    char tty_group[16];
    snprintf(tty_group, sizeof tty_group, "%u", tree->id_base + 5);
    const char *options[] = {"mode", "0620", "ptmxmode", "0666", "newinstance",
                             NULL,   "gid",  tty_group,  NULL};
    if (tree->rootless)
        options[6] = NULL; /* the group is not mapped */
    SUB_AUTO_FD pts =
        mount_fs("devpts", options, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC, tree->fail);
    if (pts < 0 || tree_attach(tree, pts, "/dev/pts", true))
        return -1;
    return tree_tmpfs(tree, "/dev/shm", 01777, 64 << 20, false);
}

static int add_run(struct tree *tree, uint64_t segment_limit, int *segments_fd) {
    struct statfs status;
    SUB_AUTO_FD run = tree_resolve(tree, "/run");
    bool has_tmpfs = run >= 0 && fstatfs(run, &status) == 0 && status.f_type == TMPFS_MAGIC;
    if (!has_tmpfs && tree_tmpfs(tree, "/run", 0755, 16 << 20, false))
        return -1;
    if (tree_tmpfs(tree, "/run/substrate/seg", 01777, segment_limit, false))
        return -1;
    SUB_AUTO_FD place = tree_resolve(tree, "/run/substrate/seg");
    *segments_fd = place < 0 ? -1 : openat(place, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return *segments_fd < 0 ? fail_set(tree->fail, errno, "opening the segments") : 0;
}

int tree_system_mounts(struct tree *tree, int init_pidfd, uint64_t segment_limit, int *segments_fd,
                       int *last_pid_fd) {
    if (add_run(tree, segment_limit, segments_fd) || add_dev(tree) ||
        add_proc(tree, init_pidfd, last_pid_fd) || add_sys(tree, init_pidfd))
        return -1;
    return 0;
}
