/* Cgroups of boxes, version 2, and what both versions need; cgroup.h shows how they lie. */
#include "cgroup.h"

#include <dirent.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/sysinfo.h>

const char *const controller_names[CONTROLLERS] = {"memory", "cpu", "pids"};

static struct cgroup_base base = {.fd = -1};
static bool enabled[CONTROLLERS]; /* in the worlds' cgroups of version 2 */

/* ---- files and directories ------------------------------------------------------------------- */

int cgroup_write(int dir, const char *file, const char *text) {
    SUB_AUTO_FD fd = openat(dir, file, O_WRONLY | O_CLOEXEC);
    return fd < 0 || write(fd, text, strlen(text)) < 0 ? -1 : 0;
}

int cgroup_own(int dir, const char *const *files, uint32_t owner) {
    if (fchown(dir, owner, owner))
        return -1;
    for (; *files; files++)
        if (fchownat(dir, *files, owner, owner, 0))
            return -1;
    return 0;
}

/* Removes a directory of cgroups bottom-up; those with living processes stay. */
void cgroup_remove_below(int parent, const char *name) {
    int fd = openat(parent, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
    DIR *dir = fd < 0 ? NULL : fdopendir(fd);
    if (!dir) {
        if (fd >= 0)
            close(fd);
        return;
    }
    for (struct dirent *entry; (entry = readdir(dir));)
        if (entry->d_type == DT_DIR && entry->d_name[0] != '.')
            cgroup_remove_below(dirfd(dir), entry->d_name);
    closedir(dir);
    unlinkat(parent, name, AT_REMOVEDIR);
}

int cgroup_open_base(struct cgroup_base *at) {
    if (mkdir(at->path, 0755) && errno != EEXIST)
        return -1;
    int fd = open(at->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return -1;
    sub_close_fd(&at->fd);
    at->fd = fd;
    return 0;
}

int cgroup_make_below(struct cgroup_base *at, const char *name) {
    int made = mkdirat(at->fd, name, 0755);
    /* Empty, it was swept away (cgroup managers do so); worlds would be watched less well. */
    if (made && errno == ENOENT && cgroup_open_base(at) == 0)
        made = mkdirat(at->fd, name, 0755);
    if (made && errno != EEXIST)
        return -1;
    return openat(at->fd, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
}

uint64_t cgroup_ceiling(void) {
    struct sysinfo info;
    return sysinfo(&info) ? 0 : (uint64_t)info.totalram * info.mem_unit / 10 * 9;
}

/* ---- where we are ---------------------------------------------------------------------------- */

static bool has_word(const char *list, const char *word) {
    size_t length = strlen(word);
    for (const char *at = list; at && *at; at = strchr(at, ',') ? strchr(at, ',') + 1 : NULL)
        if (strncmp(at, word, length) == 0 && strchr(",\n", at[length]))
            return true; /* strchr finds the terminator too */
    return false;
}

/* Our own place in a hierarchy, from /proc/self/cgroup (cgroups(7)): "number:controllers:path". */
static bool find_place(const char *controller, char *out, size_t room) {
    FILE *file = fopen("/proc/self/cgroup", "re");
    char line[4096];
    bool found = false;
    while (file && !found && fgets(line, sizeof line, file)) {
        line[strcspn(line, "\n")] = 0;
        char *names = strchr(line, ':'), *path = names ? strchr(names + 1, ':') : NULL;
        if (!path)
            continue;
        *path++ = 0;
        found = controller ? has_word(names + 1, controller) : strcmp(line, "0:") == 0;
        found = found && strlen(path) < room;
        if (found)
            memcpy(out, path, strlen(path) + 1);
    }
    if (file)
        fclose(file);
    return found;
}

bool cgroup_own_directory(const char *controller, char *mount, char *own, size_t room) {
    char place[1024], line[4096];
    FILE *mounts = fopen("/proc/self/mountinfo", "re");
    bool found = false;
    while (mounts && !found && fgets(line, sizeof line, mounts)) {
        char root[1024], point[2048], type[32], options[1024];
        char *rest = strstr(line, " - ");
        if (!rest || sscanf(line, "%*d %*d %*s %1023s %2047s", root, point) != 2 ||
            sscanf(rest, " - %31s %*s %1023s", type, options) != 2)
            continue;
        found = controller ? strcmp(type, "cgroup") == 0 && has_word(options, controller)
                           : strcmp(type, "cgroup2") == 0;
        if (!found)
            continue;
        found = find_place(controller, place, sizeof place);
        /* What is mounted may be a part of the hierarchy, in a container. */
        size_t part = strcmp(root, "/") == 0 ? 0 : strlen(root);
        const char *below = place;
        if (part)
            below = strncmp(place, root, part) == 0 ? place + part : "";
        if (strcmp(below, "/") == 0)
            below = "";
        found = found && strlen(below) < room;
        if (found) {
            strcpy(mount, point);
            strcpy(own, below);
        }
    }
    if (mounts)
        fclose(mounts);
    return found;
}

/* ---- version 2: finding a place -------------------------------------------------------------- */

static uint32_t hash(const char *text) {
    uint32_t value = 2166136261u; /* FNV-1a */
    for (; *text; text++)
        value = (value ^ (uint8_t)*text) * 16777619u;
    return value;
}

static bool listed(int dir, const char *file, const char *name) {
    char text[512] = "";
    SUB_AUTO_FD fd = openat(dir, file, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || read(fd, text, sizeof text - 1) <= 0)
        return false;
    for (char *save, *word = strtok_r(text, " \n", &save); word;
         word = strtok_r(NULL, " \n", &save))
        if (strcmp(word, name) == 0)
            return true;
    return false;
}

static bool has_processes(int dir) {
    char first;
    SUB_AUTO_FD fd = openat(dir, "cgroup.procs", O_RDONLY | O_CLOEXEC);
    return fd < 0 || read(fd, &first, 1) != 0;
}

/*
 * How many controllers a directory gives to those below; `ask`: after asking it to. With processes
 * in it, only the root of the hierarchy may: cpu and pids could be enabled elsewhere, but turn a
 * cgroup into a threaded one, below which nothing can be started (EOPNOTSUPP).
 */
static int count_controllers(int dir, bool ask, bool found[CONTROLLERS]) {
    bool is_root = faccessat(dir, "cgroup.type", F_OK, 0) != 0;
    memset(found, 0, CONTROLLERS * sizeof *found);
    if (!is_root && has_processes(dir))
        return 0;
    int count = 0;
    for (int i = 0; i < CONTROLLERS; i++) {
        char enable[16];
        snprintf(enable, sizeof enable, "+%s", controller_names[i]);
        if (ask && listed(dir, "cgroup.controllers", controller_names[i]))
            (void)!cgroup_write(dir, "cgroup.subtree_control", enable);
        found[i] = listed(dir, "cgroup.subtree_control", controller_names[i]);
        count += found[i];
    }
    return count;
}

/*
 * Our own cgroup has us in it, so it gives its children no controllers; one above may do. Only ours
 * and the root of the hierarchy are asked to, and what we are a part of by delegation: those between
 * belong to whoever manages them. Returns how many controllers are given there, -1: nowhere.
 */
static int choose_place(const char *mount, char *own, bool vacated, char *chosen, size_t room) {
    int best = -1, up = 0;
    for (;; up++) {
        char path[4096], procs[4200];
        snprintf(path, sizeof path, "%s%s", mount, own);
        snprintf(procs, sizeof procs, "%s/cgroup.procs", path);
        SUB_AUTO_FD dir = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        /* Without write access to cgroup.procs, our children cannot be put below it. */
        if (dir < 0 || access(path, W_OK) || access(procs, W_OK))
            break;
        bool found[CONTROLLERS];
        bool ours = up == 1 && (vacated || cgroup_is_marked(dir));
        int count = count_controllers(dir, up == 0 || ours || !*own, found);
        if (count > best && strlen(path) < room) {
            best = count;
            strcpy(chosen, path);
            config.cgroup_up = up;
        }
        if (!*own)
            break;
        *strrchr(own, '/') = 0;
    }
    return best;
}

/* Where our own cgroup was handed to us, and has more than `given`: moves who is in it further down. */
static bool make_room(const char *mount, const char *own, int given) {
    char path[4096];
    int available = 0;
    snprintf(path, sizeof path, "%s%s", mount, own);
    SUB_AUTO_FD dir = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    for (int i = 0; dir >= 0 && i < CONTROLLERS; i++)
        available += listed(dir, "cgroup.controllers", controller_names[i]);
    return available > given && cgroup_is_delegated(dir, !*own) &&
           cgroup_vacate(dir, "substrate-host");
}

static bool find_place_v2(char *chosen, size_t room) {
    char mount[2048], own[1024], here[1024];
    if (!cgroup_own_directory(NULL, mount, own, sizeof own))
        return false;
    strcpy(here, own);
    int given = choose_place(mount, own, false, chosen, room);
    if (make_room(mount, here, given) && cgroup_own_directory(NULL, mount, own, sizeof own))
        given = choose_place(mount, own, true, chosen, room);
    return given >= 0;
}

static void find_v2(const char *name) {
    char chosen[2048 + 1024];
    if (!find_place_v2(chosen, sizeof chosen))
        return;
    snprintf(base.path, sizeof base.path, "%s/%s", chosen, name);
    cgroup_remove_below(AT_FDCWD, base.path); /* left by a launcher that was killed */
    if (cgroup_open_base(&base) || faccessat(base.fd, "cgroup.kill", W_OK, 0)) {
        rmdir(base.path);
        sub_close_fd(&base.fd);
        base.path[0] = 0;
        return;
    }
    uint64_t ceiling = cgroup_ceiling();
    if (count_controllers(base.fd, true, enabled) && enabled[CONTROLLER_MEMORY] && ceiling) {
        char text[32];
        snprintf(text, sizeof text, "%llu", (unsigned long long)ceiling);
        (void)!cgroup_write(base.fd, "memory.max", text);
    }
}

void cgroup_find(void) {
    char name[32];
    bool needed[CONTROLLERS];
    snprintf(name, sizeof name, "substrate-%08x", hash(config.state_dir));
    find_v2(name);
    config.cgroup_fd = base.fd;
    snprintf(config.cgroup_dir, sizeof config.cgroup_dir, "%s", base.path);
    for (int i = 0; i < CONTROLLERS; i++)
        needed[i] = !enabled[i];
    cgroup_v1_find(name, needed);
}

const char *cgroup_mechanism(int controller) {
    return enabled[controller] ? "v2" : cgroup_v1_has(controller) ? "v1" : "none";
}

/* ---- version 2: a box ------------------------------------------------------------------------ */

static bool has_controllers(void) {
    return enabled[CONTROLLER_MEMORY] || enabled[CONTROLLER_CPU] || enabled[CONTROLLER_PIDS];
}

static int make_v2(const char *world_id, uint32_t owner, struct box_cgroups *made) {
    static const char *const delegated[] = {"cgroup.procs", "cgroup.threads",
                                            "cgroup.subtree_control", NULL};
    static const char *const parts[] = {"init", "execs"};
    made->world = cgroup_make_below(&base, world_id);
    if (made->world < 0 || (owner && cgroup_own(made->world, delegated, owner)))
        return -1;
    if (!has_controllers()) {
        made->execs = fcntl(made->world, F_DUPFD_CLOEXEC, 3);
        return made->execs < 0 ? -1 : 0;
    }
    for (size_t i = 0; i < 2; i++) {
        if (mkdirat(made->world, parts[i], 0755) && errno != EEXIST)
            return -1;
        SUB_AUTO_FD part = openat(made->world, parts[i], O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (part < 0 || (owner && cgroup_own(part, delegated, owner)))
            return -1;
        if (i == 1) {
            made->execs = part;
            part = -1;
        }
    }
    if (enabled[CONTROLLER_PIDS])
        made->pids = fcntl(made->execs, F_DUPFD_CLOEXEC, 3);
    return 0;
}

static uint64_t memory_used(int execs) {
    char text[32] = "";
    SUB_AUTO_FD fd = openat(execs, "memory.current", O_RDONLY | O_CLOEXEC);
    return fd < 0 || read(fd, text, sizeof text - 1) <= 0 ? 0 : strtoull(text, NULL, 10);
}

/*
 * Writing memory.max ends processes until what is left fits, where version 1 refuses a limit that
 * cannot be reached. memory.high reclaims first, and ends nobody.
 */
static int refuse_what_is_used(int execs, const struct sub_limits *limits, struct fail *fail) {
    char text[32];
    if (!enabled[CONTROLLER_MEMORY] || !limits->memory_bytes ||
        memory_used(execs) <= limits->memory_bytes)
        return 0;
    snprintf(text, sizeof text, "%llu", (unsigned long long)limits->memory_bytes);
    (void)!cgroup_write(execs, "memory.high", text);
    uint64_t used = memory_used(execs);
    (void)!cgroup_write(execs, "memory.high", "max");
    if (used > limits->memory_bytes)
        return fail_set(fail, EBUSY, "the world uses more than this limit of memory");
    return 0;
}

static int limit_v2(int world, int execs, const struct sub_limits *limits, struct fail *fail) {
    char text[48];
    if (enabled[CONTROLLER_MEMORY]) {
        if (limits->memory_bytes)
            snprintf(text, sizeof text, "%llu", (unsigned long long)limits->memory_bytes);
        else
            strcpy(text, "max");
        if (cgroup_write(execs, "memory.max", text))
            return fail_set(fail, errno, "setting the limit of memory");
        /* What is swapped out would be memory on top of it. Not there without swap accounting. */
        if (cgroup_write(execs, "memory.swap.max", limits->memory_bytes ? "0" : "max") &&
            errno != ENOENT)
            return fail_set(fail, errno, "setting the limit of swap");
    }
    if (enabled[CONTROLLER_CPU]) {
        if (limits->cpu_us)
            snprintf(text, sizeof text, "%llu %u", (unsigned long long)limits->cpu_us,
                     SUB_CPU_PERIOD_US);
        else
            snprintf(text, sizeof text, "max %u", SUB_CPU_PERIOD_US);
        /* Kernels without CFS bandwidth control lack it; no limit is what they do anyway. */
        if (cgroup_write(world, "cpu.max", text) && (limits->cpu_us || errno != ENOENT))
            return fail_set(fail, errno, "setting the limit of cpu");
    }
    if (enabled[CONTROLLER_PIDS]) {
        if (limits->pids)
            snprintf(text, sizeof text, "%llu", (unsigned long long)limits->pids);
        else
            strcpy(text, "max");
        if (cgroup_write(execs, "pids.max", text))
            return fail_set(fail, errno, "setting the limit of pids");
    }
    return 0;
}

/* ---- a box ----------------------------------------------------------------------------------- */

static int refuse_what_is_not_there(const struct sub_limits *limits, struct fail *fail) {
    /* The number of processes has a second wall: RLIMIT_NPROC of the box's user namespace. */
    const bool asked[CONTROLLERS] = {limits->memory_bytes != 0, limits->cpu_us != 0, false};
    for (int i = 0; i < CONTROLLERS; i++)
        if (asked[i] && !enabled[i] && !cgroup_v1_has(i))
            return fail_set(fail, EOPNOTSUPP, "a limit of %s", controller_names[i]);
    return 0;
}

int cgroup_make(const char *world_id, uint32_t owner, const struct sub_limits *limits,
                struct box_cgroups *made, struct fail *fail) {
    *made = (struct box_cgroups){-1, -1, -1, -1, {-1, -1, -1}};
    if (refuse_what_is_not_there(limits, fail))
        return -1;
    if (base.fd >= 0 && make_v2(world_id, owner, made)) {
        if (has_controllers())
            return fail_set(fail, errno, "making a cgroup in %s", base.path);
        sub_close_fd(&made->world); /* only less well watched */
        sub_close_fd(&made->execs);
    }
    return cgroup_v1_make(world_id, owner, made, fail) || cgroup_v1_limit(world_id, limits, fail)
               ? -1
               : 0;
}

void cgroup_release(struct box_cgroups *made) {
    sub_close_fd(&made->world);
    sub_close_fd(&made->execs);
    sub_close_fd(&made->memory);
    sub_close_fd(&made->pids);
    for (int i = 0; i < CONTROLLERS; i++)
        sub_close_fd(&made->attach[i]);
}

/* Version 1 cannot clone into a cgroup. Before the init has any child. */
/*
 * A process that moves waits for an RCU grace period (cgroup_threadgroup_rwsem), some 10 ms. So
 * another does it while the caller goes on; its end of the socket tells what came of it.
 */
int cgroup_enter(const struct box_cgroups *cgroups, pid_t init, struct fail *fail) {
    int ends[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends))
        return fail_set(fail, errno, "socketpair");
    pid_t mover = (pid_t)clone_process(0, NULL, -1);
    if (mover == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
        struct fail found = {.op = -1};
        char pid[16];
        int length = snprintf(pid, sizeof pid, "%d", init);
        for (int i = 0; i < CONTROLLERS; i++)
            if (cgroups->attach[i] >= 0 && write(cgroups->attach[i], pid, (size_t)length) != length)
                fail_set(&found, errno, "entering the %s cgroup", controller_names[i]);
        _exit(send(ends[1], &found, sizeof found, MSG_NOSIGNAL) == sizeof found ? 0 : 1);
    }
    int error = errno;
    close(ends[1]);
    if (mover > 0)
        return ends[0];
    close(ends[0]);
    return fail_set(fail, error, "clone3");
}

int cgroup_entered(int entered, struct fail *fail) {
    struct fail found;
    ssize_t got;
    do
        got = recv(entered, &found, sizeof found, 0);
    while (got < 0 && errno == EINTR);
    if (got != sizeof found)
        return fail_set(fail, 0, "entering the cgroups ended early");
    if (found.text[0])
        *fail = found;
    return found.text[0] ? -1 : 0;
}

/*
 * Version 2 gives controllers only to the children of a cgroup without processes. The init is in
 * the world's own until it has its cgroup namespace, whose root that is to be (nsdelegate).
 */
int cgroup_settle(const struct box_cgroups *cgroups, pid_t init, const struct sub_limits *limits,
                  struct fail *fail) {
    if (cgroups->world < 0 || !has_controllers())
        return 0;
    char pid[16];
    snprintf(pid, sizeof pid, "%d", init);
    bool given[CONTROLLERS];
    if (cgroup_write(cgroups->world, "init/cgroup.procs", pid))
        return fail_set(fail, errno, "moving the init to its cgroup");
    count_controllers(cgroups->world, true, given);
    for (int i = 0; i < CONTROLLERS; i++)
        if (enabled[i] && !given[i])
            return fail_set(fail, 0, "cgroup of the world: controller %s cannot be enabled",
                            controller_names[i]);
    if (limit_v2(cgroups->world, cgroups->execs, limits, fail))
        return -1;
    /* Each exec's own count of processes that the kernel ended. */
    if (enabled[CONTROLLER_MEMORY] &&
        cgroup_write(cgroups->execs, "cgroup.subtree_control", "+memory"))
        return fail_set(fail, errno, "enabling memory for the execs");
    return 0;
}

int cgroup_limit(const char *world_id, const struct sub_limits *limits, struct fail *fail) {
    if (refuse_what_is_not_there(limits, fail))
        return -1;
    if (has_controllers()) {
        SUB_AUTO_FD world = openat(base.fd, world_id, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        SUB_AUTO_FD execs =
            world < 0 ? -1 : openat(world, "execs", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (execs < 0)
            return fail_set(fail, errno, "the cgroup of world %s", world_id);
        if (refuse_what_is_used(execs, limits, fail) || limit_v2(world, execs, limits, fail))
            return -1;
    }
    return cgroup_v1_limit(world_id, limits, fail);
}

void cgroup_remove(const char *world_id) {
    if (base.fd >= 0)
        cgroup_remove_below(base.fd, world_id);
    cgroup_v1_remove(world_id);
}

void cgroup_remove_all(void) {
    if (base.path[0])
        cgroup_remove_below(AT_FDCWD, base.path);
    cgroup_v1_remove_all();
}
