/* What the kernel counted against an exec, and freezing: both through the execs' cgroups. */
#include "init.h"

#include <signal.h>
#include <stdio.h>

uint64_t read_count(int dir, const char *file, const char *word) {
    char text[1024];
    SUB_AUTO_FD fd = dir < 0 ? -1 : openat(dir, file, O_RDONLY | O_CLOEXEC);
    ssize_t got = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
    if (got <= 0)
        return 0;
    text[got] = 0;
    size_t length = strlen(word);
    for (char *save, *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save))
        if (strncmp(line, word, length) == 0 && line[length] == ' ')
            return strtoull(line + length, NULL, 10);
    return 0;
}

uint64_t limits_oom_kills(const struct exec *exec) {
    if (exec->born_shared)
        return nursery_oom_kills() - exec->oom_before;
    if (exec->memory_fd >= 0)
        return read_count(exec->memory_fd, "memory.oom_control", "oom_kill");
    return read_count(exec->cgroup_fd, "memory.events", "oom_kill");
}

uint64_t limits_pids_refused(void) {
    return read_count(self.pids_fd, "pids.events", "max");
}

/* ---- freezing -------------------------------------------------------------------------------- */

static uint64_t frozen_since_ns; /* 0: not frozen */

bool limits_frozen(void) {
    return frozen_since_ns != 0;
}

/* A frozen exec's time does not run. */
static void shift_deadlines(uint64_t by_ns) {
    for (uint32_t i = 0; i < execs_high; i++) {
        struct exec *exec = execs_at(i);
        if (exec && exec->deadline_ns)
            exec->deadline_ns += by_ns;
    }
}

static bool freeze_cgroup(const struct exec *exec, bool frozen) {
    SUB_AUTO_FD fd = openat(exec->cgroup_fd, "cgroup.freeze", O_WRONLY | O_CLOEXEC);
    if (fd < 0 || write(fd, frozen ? "1" : "0", 1) != 1)
        return errno == ENODEV || errno == ENOENT; /* it is being removed: nobody is in it */
    return read_count(exec->cgroup_fd, "cgroup.events", "frozen") == frozen ||
           read_count(exec->cgroup_fd, "cgroup.events", "populated") == 0;
}

/* Without cgroups: whoever had stopped by itself goes on too, and parents see their children stop. */
static bool stop_tree(struct exec *exec, bool frozen) {
    static uint32_t before;
    if (exec->supervisor_pid)
        tree_signal(exec, frozen ? SIGSTOP : SIGCONT);
    uint32_t now = tree_count(exec);
    bool settled = !frozen || now == before;
    before = now;
    return settled;
}

uint32_t limits_freeze(bool frozen) {
    uint64_t now = clock_ns(CLOCK_MONOTONIC);
    uint32_t pending = 0;
    if (!frozen && frozen_since_ns)
        shift_deadlines(now - frozen_since_ns);
    if (!frozen)
        frozen_since_ns = 0;
    else if (!frozen_since_ns)
        frozen_since_ns = now;
    for (uint32_t i = 0; i < execs_high; i++) {
        struct exec *exec = execs_at(i);
        if (!exec)
            continue;
        if (self.cgroup_fd >= 0)
            pending += exec->cgroup_fd >= 0 && !freeze_cgroup(exec, frozen);
        else
            pending += !stop_tree(exec, frozen);
    }
    return pending;
}
