/*
 * The second wall behind the mount namespace: Landlock (landlock(7), Linux 5.19+).
 *
 * What is opened, executed, made or removed must lie beneath the box's root. So a descriptor of a
 * directory of the host's, a mount namespace entered, a chroot left: none of them leads to a file.
 * Device nodes cannot be made, and devices take ioctls below /dev only. With ABI 6 signals and
 * abstract sockets end at the box as well. The kernel also refuses every mount from here on.
 *
 * Landlock's rights add up on the way to the root and cannot be taken away below a directory, so
 * writing stays as the mounts have it: read-only where they are (docs/adr/0010).
 *
 * Init enters the domain itself, once, and every exec inherits it: with a domain each, execs of one
 * world could neither signal nor look at one another (fuser, lsof, strace -p).
 */
#include "init.h"

#include <linux/landlock.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#define OLDEST_ABI 2 /* before it no file could be moved to another directory at all */

/* Headers may be older than the kernel; the numbers are the ABI's. */
#define FS_ABI_1 0x1fffull
#define FS_REFER (1ull << 13)     /* ABI 2 */
#define FS_TRUNCATE (1ull << 14)  /* ABI 3 */
#define FS_IOCTL_DEV (1ull << 15) /* ABI 5 */
#define SCOPES_ABI_6 0x3ull       /* abstract unix sockets, signals */

#define FS_MAKE_DEVICES (LANDLOCK_ACCESS_FS_MAKE_CHAR | LANDLOCK_ACCESS_FS_MAKE_BLOCK)
#define CGROUP_RIGHTS                                                                              \
    (LANDLOCK_ACCESS_FS_READ_FILE | LANDLOCK_ACCESS_FS_WRITE_FILE | LANDLOCK_ACCESS_FS_READ_DIR |  \
     LANDLOCK_ACCESS_FS_MAKE_DIR | LANDLOCK_ACCESS_FS_REMOVE_DIR)

struct ruleset {
    uint64_t fs;
    uint64_t net;
    uint64_t scoped;
};

static uint64_t handled_rights(long abi) {
    return FS_ABI_1 | FS_REFER | (abi >= 3 ? FS_TRUNCATE : 0) | (abi >= 5 ? FS_IOCTL_DEV : 0);
}

static int allow(int ruleset, int directory, uint64_t rights) {
    struct landlock_path_beneath_attr rule = {.allowed_access = rights, .parent_fd = directory};
    return (int)syscall(SYS_landlock_add_rule, ruleset, LANDLOCK_RULE_PATH_BENEATH, &rule, 0);
}

static int allow_path(int ruleset, const char *path, uint64_t rights) {
    SUB_AUTO_FD fd = open(path, O_PATH | O_CLOEXEC);
    return fd < 0 ? -1 : allow(ruleset, fd, rights);
}

int landlock_enter(void) {
    long abi =
        syscall(SYS_landlock_create_ruleset, NULL, (size_t)0, LANDLOCK_CREATE_RULESET_VERSION);
    if (abi < OLDEST_ABI)
        return 0; /* the launcher's probe says so to people */
    struct ruleset attributes = {.fs = handled_rights(abi), .scoped = abi >= 6 ? SCOPES_ABI_6 : 0};
    size_t size = abi >= 6   ? sizeof attributes
                  : abi >= 4 ? offsetof(struct ruleset, scoped)
                             : offsetof(struct ruleset, net);
    SUB_AUTO_FD ruleset = (int)syscall(SYS_landlock_create_ruleset, &attributes, size, 0);
    if (ruleset < 0)
        return -1;
    if (allow_path(ruleset, "/", attributes.fs & ~(FS_MAKE_DEVICES | FS_IOCTL_DEV)) ||
        (abi >= 5 && allow_path(ruleset, "/dev", FS_IOCTL_DEV)))
        return -1;
    /* Ours, and on the host's side: how execs are killed. No exec has a descriptor of it. */
    const int cgroups[] = {self.cgroup_fd, self.memory_fd, self.pids_fd};
    for (size_t i = 0; i < sizeof cgroups / sizeof cgroups[0]; i++)
        if (cgroups[i] >= 0 && allow(ruleset, cgroups[i], CGROUP_RIGHTS))
            return -1;
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
        return -1;
    return (int)syscall(SYS_landlock_restrict_self, ruleset, 0);
}
