/*
 * A part of the hierarchy that was handed to us (cgroups(7), "Cgroups delegation"): a scope or
 * service of systemd with Delegate=yes, the cgroup of a container. Whoever starts us there is in
 * it, so it can give no controllers to what is below: version 2 knows no cgroup with both.
 */
#include "cgroup.h"

#include <stdio.h>
#include <sys/stat.h>
#include <sys/xattr.h>

enum { MOVES_MAX = 64 };

/* Whether systemd says that it left the arranging below to somebody else. */
bool cgroup_is_marked(int dir) {
    static const char *const names[] = {"user.delegate", "trusted.delegate"};
    char value[8];
    for (size_t i = 0; i < 2; i++)
        if (fgetxattr(dir, names[i], value, sizeof value) == 1 && value[0] == '1')
            return true;
    return false;
}

bool cgroup_is_delegated(int dir, bool top) {
    struct stat status;
    if (faccessat(dir, "cgroup.subtree_control", W_OK, 0) || fstat(dir, &status))
        return false;
    /* The root of the hierarchy has no type: at the top of what a container sees it has. */
    if (top)
        return faccessat(dir, "cgroup.type", F_OK, 0) == 0;
    /* Nobody without privilege owns a cgroup that was not given to them. */
    return cgroup_is_marked(dir) || (status.st_uid == geteuid() && status.st_uid != 0);
}

/* Moves who is in a cgroup to another. Those that fork meanwhile need another look. */
static bool move_all(int from, int to) {
    for (int i = 0; i < MOVES_MAX; i++) {
        char text[1 << 16];
        SUB_AUTO_FD procs = openat(from, "cgroup.procs", O_RDONLY | O_CLOEXEC);
        ssize_t got = procs < 0 ? -1 : read(procs, text, sizeof text - 1);
        if (got <= 0)
            return got == 0;
        text[got] = 0;
        for (char *save, *pid = strtok_r(text, "\n", &save); pid; pid = strtok_r(NULL, "\n", &save))
            if (cgroup_write(to, "cgroup.procs", pid) && errno != ESRCH)
                return false; /* of another user, or of another pid namespace ("0") */
    }
    return false;
}

bool cgroup_vacate(int dir, const char *leaf) {
    if (mkdirat(dir, leaf, 0755) && errno != EEXIST)
        return false;
    SUB_AUTO_FD to = openat(dir, leaf, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (to < 0)
        return false;
    if (move_all(dir, to))
        return true;
    move_all(to, dir);
    unlinkat(dir, leaf, AT_REMOVEDIR);
    return false;
}
