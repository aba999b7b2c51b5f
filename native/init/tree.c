/*
 * Everything an exec has started: its cgroup, or what is below its supervisor. Both views also
 * serve signals and counting.
 */
#include "init.h"

#include <dirent.h>
#include <signal.h>
#include <stdio.h>

static void cgroup_name(const struct exec *exec, char *out, size_t room) {
    snprintf(out, room, "e%u", exec->sequence);
}

static int make_in(int parent, const char *name, int *made) {
    if (parent < 0)
        return 0;
    if (mkdirat(parent, name, 0700) && errno != EEXIST)
        return -1;
    *made = openat(parent, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return *made < 0 ? -1 : 0;
}

/* Whether anything is left of an exec whose memory is counted in the nursery's cgroup. */
static bool somebody_shares(void) {
    for (uint32_t i = 0; i < execs_high; i++) {
        struct exec *exec = execs_at(i);
        if (exec && exec->born_shared &&
            (exec->main_pid || exec->supervisor_pid || exec->cgroup_fd >= 0))
            return true;
    }
    return false;
}

/*
 * Of two in one memory cgroup nobody could tell whose processes the kernel ended: the second gets one
 * of its own, and moves there, which takes its time (nursery.c).
 */
int tree_make(struct exec *exec, bool may_share) {
    char name[32];
    cgroup_name(exec, name, sizeof name);
    if (make_in(self.cgroup_fd, name, &exec->cgroup_fd))
        return -1;
    if (may_share && self.memory_fd >= 0 && !somebody_shares() && nursery_ready()) {
        exec->oom_before = nursery_oom_kills();
        exec->born_shared = true;
        return 0;
    }
    return make_in(self.memory_fd, name, &exec->memory_fd);
}

/* Version 2 has been entered by the clone itself. */
int tree_enter(const struct exec *exec) {
    if (exec->memory_fd < 0)
        return 0;
    SUB_AUTO_FD fd = openat(exec->memory_fd, "cgroup.procs", O_WRONLY | O_CLOEXEC);
    return fd < 0 || write(fd, "0", 1) != 1 ? -1 : 0;
}

static void remove_from(int parent, const char *name, int *made, bool *gone) {
    if (*made < 0 || *gone)
        return;
    if (unlinkat(parent, name, AT_REMOVEDIR) == 0 || errno == ENOENT) {
        *gone = true;
        sub_close_fd(made);
    }
}

/* Succeeds once nobody is left in it; tried again whenever somebody dies. */
void tree_remove(struct exec *exec) {
    char name[32];
    cgroup_name(exec, name, sizeof name);
    remove_from(self.cgroup_fd, name, &exec->cgroup_fd, &exec->cgroup_gone);
    /* Read at the exec's end what the kernel counted there, and no sooner gone. */
    if (exec->state.phase == SUB_PHASE_EXITED || exec->forgotten)
        remove_from(self.memory_fd, name, &exec->memory_fd, &exec->memory_gone);
}

/* ---- /proc ----------------------------------------------------------------------------------- */

struct process {
    pid_t pid, ppid;
    char state;
    uint64_t start_ticks;
    char comm[16];
};

static bool read_process(pid_t pid, struct process *out) {
    char path[32], text[1024];
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    SUB_AUTO_FD fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t got = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
    if (got <= 0)
        return false;
    text[got] = 0;
    char *name = strchr(text, '('), *end = strrchr(text, ')'); /* comm may hold anything */
    if (!name || !end || end < name)
        return false;
    memset(out, 0, sizeof *out);
    out->pid = pid;
    size_t length = (size_t)(end - name - 1);
    memcpy(out->comm, name + 1, length < sizeof out->comm ? length : sizeof out->comm - 1);
    unsigned long long ticks = 0;
    int fields = sscanf(end + 1,
                        " %c %d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d %*d "
                        "%*d %llu",
                        &out->state, &out->ppid, &ticks);
    out->start_ticks = ticks;
    return fields == 3;
}

pid_t process_parent(pid_t pid) {
    struct process process;
    return read_process(pid, &process) ? process.ppid : 0;
}

uint64_t process_start_ticks(pid_t pid) {
    struct process process;
    return read_process(pid, &process) ? process.start_ticks : 0;
}

static size_t scan(struct process *out, size_t room) {
    DIR *dir = opendir("/proc");
    size_t count = 0;
    for (struct dirent *entry; dir && count < room && (entry = readdir(dir));) {
        int pid = atoi(entry->d_name);
        if (pid > 0 && read_process(pid, &out[count]))
            count++;
    }
    if (dir)
        closedir(dir);
    return count;
}

#define SCAN_MAX 8192
static struct process table[SCAN_MAX];

static ptrdiff_t index_of(pid_t pid, size_t count) {
    size_t low = 0, high = count; /* /proc lists pids in ascending order */
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (table[middle].pid < pid)
            low = middle + 1;
        else
            high = middle;
    }
    return low < count && table[low].pid == pid ? (ptrdiff_t)low : -1;
}

/* Whether table[at] is below `root`: up the line of parents, which may have a hole (it died). */
static bool is_below(size_t at, pid_t root, size_t count) {
    for (size_t steps = 0; steps <= count; steps++) {
        if (table[at].ppid == root)
            return true;
        ptrdiff_t parent = index_of(table[at].ppid, count);
        if (parent < 0)
            return false;
        at = (size_t)parent;
    }
    return false;
}

/* ---- members --------------------------------------------------------------------------------- */

typedef void visit(pid_t pid, void *context);

static uint32_t visit_cgroup(struct exec *exec, visit *each, void *context) {
    if (exec->cgroup_fd < 0)
        return 0;
    int fd = openat(exec->cgroup_fd, "cgroup.procs", O_RDONLY | O_CLOEXEC);
    FILE *file = fd < 0 ? NULL : fdopen(fd, "r");
    uint32_t count = 0;
    char line[32];
    while (file && fgets(line, sizeof line, file)) {
        count++;
        if (each && atoi(line) > 1)
            each(atoi(line), context);
    }
    if (file)
        fclose(file);
    return count;
}

static uint32_t visit_descendants(struct exec *exec, visit *each, void *context) {
    uint32_t living = 0;
    if (!exec->supervisor_pid)
        return 0;
    size_t count = scan(table, SCAN_MAX);
    for (size_t i = 0; i < count; i++) {
        if (table[i].state == 'Z' || !is_below(i, exec->supervisor_pid, count))
            continue;
        living++;
        if (each)
            each(table[i].pid, context);
    }
    return living;
}

static uint32_t visit_members(struct exec *exec, visit *each, void *context) {
    return self.cgroup_fd >= 0 ? visit_cgroup(exec, each, context)
                               : visit_descendants(exec, each, context);
}

uint32_t tree_visit(struct exec *exec, tree_visitor *each, void *context) {
    return visit_members(exec, each, context);
}

uint32_t tree_count(struct exec *exec) {
    return visit_members(exec, NULL, NULL);
}

static void send_signal(pid_t pid, void *context) {
    kill(pid, *(int *)context);
}

/*
 * Without cgroup.kill: what is killed makes room for what forks. What is stopped makes none, so stop
 * until a look finds nobody running, then kill.
 */
static int kill_descendants(struct exec *exec) {
    int stop = SIGSTOP, end = SIGKILL;
    for (uint32_t before = 0, looks = 0; looks < 32; looks++) {
        uint32_t now = visit_descendants(exec, send_signal, &stop);
        if (now == before)
            break;
        before = now;
    }
    return visit_descendants(exec, send_signal, &end) ? 0 : ESRCH;
}

int tree_signal(struct exec *exec, int signo) {
    if (signo == SIGKILL && self.cgroup_fd < 0)
        return kill_descendants(exec);
    if (signo == SIGKILL && exec->cgroup_fd >= 0) {
        SUB_AUTO_FD fd = openat(exec->cgroup_fd, "cgroup.kill", O_WRONLY | O_CLOEXEC);
        if (fd >= 0 && write(fd, "1", 1) == 1)
            return 0;
    }
    return visit_members(exec, send_signal, &signo) ? 0 : ESRCH;
}

/* Orphans of a supervisor that was killed come to us; nobody else's children are ours. */
size_t tree_kill_strays(void) {
    size_t killed = 0;
    size_t count = scan(table, SCAN_MAX);
    for (size_t i = 0; i < count; i++) {
        bool known = table[i].ppid != 1;
        struct exec *exec;
        for (uint32_t at = 0; !known && at < execs_high; at++)
            known = (exec = execs_at(at)) && exec->supervisor_pid == table[i].pid;
        if (!known && table[i].pid > 1) {
            kill(table[i].pid, SIGKILL);
            killed++;
        }
    }
    return killed;
}

/* ---- listing --------------------------------------------------------------------------------- */

struct owner {
    struct sub_proc *list;
    size_t count;
    const char *id;
};

static void set_owner(pid_t pid, void *context) {
    struct owner *owner = context;
    for (size_t i = 0; i < owner->count; i++)
        if (owner->list[i].pid == pid)
            memcpy(owner->list[i].exec_id, owner->id, strnlen(owner->id, SUB_ID_MAX));
}

size_t tree_list(struct sub_proc *out, size_t room, bool *truncated) {
    size_t count = scan(table, SCAN_MAX);
    *truncated = count > room;
    if (count > room)
        count = room;
    memset(out, 0, count * sizeof *out);
    for (size_t i = 0; i < count; i++) {
        out[i].pid = table[i].pid;
        out[i].ppid = table[i].ppid;
        out[i].start_ticks = table[i].start_ticks;
        memcpy(out[i].comm, table[i].comm, sizeof out[i].comm);
    }
    for (uint32_t at = 0; at < execs_high; at++) {
        struct exec *exec = execs_at(at);
        struct owner owner = {out, count, exec ? exec->id : NULL};
        if (exec)
            visit_members(exec, set_owner, &owner);
    }
    return count;
}
