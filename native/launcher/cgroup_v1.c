/* Version 1 hierarchies, for the controllers that live there: hybrid and older hosts. */
#include "cgroup.h"

#include <stdio.h>

static struct cgroup_base bases[CONTROLLERS] = {{.fd = -1}, {.fd = -1}, {.fd = -1}};

bool cgroup_v1_has(enum controller controller) {
    return bases[controller].fd >= 0;
}

/*
 * Whether a limit of memory holds for what is below it too, where the execs are. Before Linux 5.11
 * that had to be asked for, before there is anything below (cgroup-v1/memory.rst, 6.1); since then
 * it cannot be otherwise.
 */
static bool is_hierarchical(int dir) {
    static const char file[] = "memory.use_hierarchy";
    char text[2] = "";
    if (faccessat(dir, file, F_OK, 0))
        return true;
    (void)!cgroup_write(dir, file, "1");
    SUB_AUTO_FD fd = openat(dir, file, O_RDONLY | O_CLOEXEC);
    return fd >= 0 && read(fd, text, 1) == 1 && text[0] == '1';
}

void cgroup_v1_find(const char *name, bool needed[CONTROLLERS]) {
    for (int i = 0; i < CONTROLLERS; i++) {
        char mount[2048], own[1024];
        struct cgroup_base *base = &bases[i];
        if (!needed[i] || !cgroup_own_directory(controller_names[i], mount, own, sizeof own))
            continue;
        int length = snprintf(base->path, sizeof base->path, "%s%s/%s", mount, own, name);
        if (length < 0 || (size_t)length >= sizeof base->path) {
            base->path[0] = 0;
            continue;
        }
        cgroup_remove_below(AT_FDCWD, base->path); /* left by a launcher that was killed */
        if (cgroup_open_base(base) || faccessat(base->fd, "cgroup.procs", W_OK, 0)) {
            rmdir(base->path);
            sub_close_fd(&base->fd);
            base->path[0] = 0;
        }
    }
    struct cgroup_base *memory = &bases[CONTROLLER_MEMORY];
    if (memory->fd >= 0 && !is_hierarchical(memory->fd)) {
        rmdir(memory->path);
        sub_close_fd(&memory->fd);
        memory->path[0] = 0;
    }
    uint64_t ceiling = cgroup_ceiling();
    if (cgroup_v1_has(CONTROLLER_MEMORY) && ceiling) {
        char text[32];
        snprintf(text, sizeof text, "%llu", (unsigned long long)ceiling);
        cgroup_write(bases[CONTROLLER_MEMORY].fd, "memory.limit_in_bytes", text);
    }
}

int cgroup_v1_make(const char *world_id, uint32_t owner, struct box_cgroups *made,
                   struct fail *fail) {
    static const char *const delegated[] = {"cgroup.procs", "tasks", NULL};
    for (int i = 0; i < CONTROLLERS; i++) {
        if (!cgroup_v1_has(i))
            continue;
        SUB_AUTO_FD dir = cgroup_make_below(&bases[i], world_id);
        if (dir < 0)
            return fail_set(fail, errno, "making a cgroup in %s", bases[i].path);
        if (i != CONTROLLER_MEMORY) {
            made->attach[i] = openat(dir, "cgroup.procs", O_WRONLY | O_CLOEXEC);
            if (made->attach[i] < 0)
                return fail_set(fail, errno, "opening the cgroup in %s", bases[i].path);
        } else if (owner && cgroup_own(dir, delegated, owner)) {
            return fail_set(fail, errno, "handing over the cgroup in %s", bases[i].path);
        }
        if (i == CONTROLLER_MEMORY || i == CONTROLLER_PIDS) {
            *(i == CONTROLLER_MEMORY ? &made->memory : &made->pids) = dir;
            dir = -1;
        }
    }
    return 0;
}

/* memory + swap may never be below memory, on the way neither. */
static int limit_memory(int dir, uint64_t bytes) {
    static const char memory[] = "memory.limit_in_bytes", both[] = "memory.memsw.limit_in_bytes";
    char text[32] = "-1";
    if (bytes)
        snprintf(text, sizeof text, "%llu", (unsigned long long)bytes);
    bool swap = faccessat(dir, both, F_OK, 0) == 0;
    /* EINVAL: it is above memory + swap, which goes first then. EBUSY: so much is used. */
    if (cgroup_write(dir, memory, text) &&
        (errno != EINVAL || !swap || cgroup_write(dir, both, text) ||
         cgroup_write(dir, memory, text)))
        return -1;
    return swap ? cgroup_write(dir, both, text) : 0;
}

static int limit_cpu(int dir, uint64_t cpu_us) {
    char text[32] = "-1", period[16];
    if (cpu_us)
        snprintf(text, sizeof text, "%llu", (unsigned long long)cpu_us);
    snprintf(period, sizeof period, "%u", SUB_CPU_PERIOD_US);
    /* Kernels without CFS bandwidth control have neither file; no limit is what they do anyway. */
    if (!cpu_us && faccessat(dir, "cpu.cfs_quota_us", F_OK, 0))
        return 0;
    return cgroup_write(dir, "cpu.cfs_period_us", period) ||
                   cgroup_write(dir, "cpu.cfs_quota_us", text)
               ? -1
               : 0;
}

static int limit_pids(int dir, uint64_t pids) {
    char text[32] = "max";
    if (pids) /* the init is in there too, and its second thread (nursery.c) */
        snprintf(text, sizeof text, "%llu",
                 (unsigned long long)pids + 1 + cgroup_v1_has(CONTROLLER_MEMORY));
    return cgroup_write(dir, "pids.max", text);
}

int cgroup_v1_limit(const char *world_id, const struct sub_limits *limits, struct fail *fail) {
    for (int i = 0; i < CONTROLLERS; i++) {
        if (!cgroup_v1_has(i))
            continue;
        SUB_AUTO_FD dir = openat(bases[i].fd, world_id, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (dir < 0)
            return fail_set(fail, errno, "the %s cgroup of world %s", controller_names[i],
                            world_id);
        int result = i == CONTROLLER_MEMORY ? limit_memory(dir, limits->memory_bytes)
                     : i == CONTROLLER_CPU  ? limit_cpu(dir, limits->cpu_us)
                                            : limit_pids(dir, limits->pids);
        if (result && errno == EBUSY)
            return fail_set(fail, errno, "the world uses more than this limit of %s",
                            controller_names[i]);
        if (result)
            return fail_set(fail, errno, "setting the limit of %s", controller_names[i]);
    }
    return 0;
}

void cgroup_v1_remove(const char *world_id) {
    for (int i = 0; i < CONTROLLERS; i++)
        if (cgroup_v1_has(i))
            cgroup_remove_below(bases[i].fd, world_id);
}

void cgroup_v1_remove_all(void) {
    for (int i = 0; i < CONTROLLERS; i++)
        if (cgroup_v1_has(i))
            cgroup_remove_below(AT_FDCWD, bases[i].path);
}
