/*
 * A cgroup v2 directory per box, delegated to its init: cgroup.kill ends a process tree however it
 * forks, and needs no controller. Where no directory can be made, init falls back to a subreaper.
 */
#include "launcher.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>

/* Mount point of the cgroup2 file system: /sys/fs/cgroup, or .../unified on hybrid hosts. */
static bool find_mount(char *out, size_t room) {
    FILE *mounts = fopen("/proc/self/mounts", "re");
    char line[4096];
    bool found = false;
    while (mounts && !found && fgets(line, sizeof line, mounts)) {
        char *save, *where, *type;
        strtok_r(line, " ", &save);
        where = strtok_r(NULL, " ", &save);
        type = strtok_r(NULL, " ", &save);
        found = where && type && strcmp(type, "cgroup2") == 0 && strlen(where) < room;
        if (found)
            memcpy(out, where, strlen(where) + 1);
    }
    if (mounts)
        fclose(mounts);
    return found;
}

/* Our own place in the v2 hierarchy, from the "0::" line. */
static bool find_own(char *out, size_t room) {
    FILE *file = fopen("/proc/self/cgroup", "re");
    char line[4096];
    bool found = false;
    while (file && !found && fgets(line, sizeof line, file)) {
        line[strcspn(line, "\n")] = 0;
        found = strncmp(line, "0::", 3) == 0 && strlen(line + 3) < room;
        if (found)
            memcpy(out, line + 3, strlen(line + 3) + 1);
    }
    if (file)
        fclose(file);
    return found;
}

static uint32_t hash(const char *text) {
    uint32_t value = 2166136261u; /* FNV-1a */
    for (; *text; text++)
        value = (value ^ (uint8_t)*text) * 16777619u;
    return value;
}

/* Removes a directory of cgroups bottom-up; those with living processes stay. */
static void remove_below(int parent, const char *name) {
    int fd = openat(parent, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
    DIR *dir = fd < 0 ? NULL : fdopendir(fd);
    if (!dir) {
        if (fd >= 0)
            close(fd);
        return;
    }
    for (struct dirent *entry; (entry = readdir(dir));)
        if (entry->d_type == DT_DIR && entry->d_name[0] != '.')
            remove_below(dirfd(dir), entry->d_name);
    closedir(dir);
    unlinkat(parent, name, AT_REMOVEDIR);
}

void cgroup_find(void) {
    char mount[2048], own[1024];
    config.cgroup_fd = -1;
    if (!find_mount(mount, sizeof mount) || !find_own(own, sizeof own))
        return;
    int length = snprintf(config.cgroup_dir, sizeof config.cgroup_dir, "%s%s/substrate-%08x", mount,
                          strcmp(own, "/") == 0 ? "" : own, hash(config.state_dir));
    if (length < 0 || (size_t)length >= sizeof config.cgroup_dir) {
        config.cgroup_dir[0] = 0;
        return;
    }
    remove_below(AT_FDCWD, config.cgroup_dir); /* left by a launcher that was killed */
    if (mkdir(config.cgroup_dir, 0755) == 0 || errno == EEXIST) {
        config.cgroup_fd = open(config.cgroup_dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        /* Without write access to our own cgroup.procs, children cannot be put below it. */
        char procs[4200];
        snprintf(procs, sizeof procs, "%s%s/cgroup.procs", mount, own);
        if (config.cgroup_fd >= 0 &&
            (access(procs, W_OK) || faccessat(config.cgroup_fd, "cgroup.kill", W_OK, 0))) {
            rmdir(config.cgroup_dir);
            sub_close_fd(&config.cgroup_fd);
        }
    }
    if (config.cgroup_fd < 0)
        config.cgroup_dir[0] = 0;
}

int cgroup_make(const char *world_id, uint32_t owner) {
    static const char *const delegated[] = {"cgroup.procs", "cgroup.threads",
                                            "cgroup.subtree_control"};
    if (config.cgroup_fd < 0)
        return -1;
    int made = mkdirat(config.cgroup_fd, world_id, 0755);
    if (made && errno == ENOENT && (mkdir(config.cgroup_dir, 0755) == 0 || errno == EEXIST)) {
        /* Empty, it was swept away (cgroup managers do so); worlds would be watched less well. */
        int again = open(config.cgroup_dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (again < 0)
            return -1;
        close(config.cgroup_fd);
        config.cgroup_fd = again;
        made = mkdirat(config.cgroup_fd, world_id, 0755);
    }
    if (made && errno != EEXIST)
        return -1;
    int fd = openat(config.cgroup_fd, world_id, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd >= 0 && owner) {
        bool good = fchown(fd, owner, owner) == 0;
        for (size_t i = 0; i < sizeof delegated / sizeof delegated[0]; i++)
            good = good && fchownat(fd, delegated[i], owner, owner, 0) == 0;
        if (!good)
            sub_close_fd(&fd);
    }
    return fd;
}

void cgroup_remove(const char *world_id) {
    if (config.cgroup_fd >= 0)
        remove_below(config.cgroup_fd, world_id);
}

void cgroup_remove_all(void) {
    if (config.cgroup_dir[0])
        remove_below(AT_FDCWD, config.cgroup_dir);
}
