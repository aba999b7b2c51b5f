/* The life of an exec: starting, running, ending (its tree dies), exited, forgotten. */
#include "init.h"

#include <signal.h>
#include <sys/wait.h>

#define ENDING_PATIENCE (5000 * MS)  /* for a killed tree to be gone; then it is reported as is */
#define TERMINAL_PATIENCE (100 * MS) /* for a terminal to deliver what was written before the end */
/*
 * For helpers that end when they notice that the command has: multiprocessing's resource tracker, the
 * reader of a pipe. They are not what "went on after the command ended" means to anybody.
 */
#define LINGERING_PATIENCE (50 * MS)
#define KILL_RESCAN (10 * MS)
#define TERMINAL_RELOOK (20 * MS)

static struct exec *table[EXECS_MAX];
uint32_t execs_high;
static uint32_t next_sequence;
static bool strays;        /* a supervisor was killed: what it was to hold together is among ours */
static bool look_at_trees; /* somebody died since the last look */

struct exec *execs_at(uint32_t index) {
    return index < execs_high ? table[index] : NULL;
}

size_t execs_count(void) {
    size_t count = 0;
    for (uint32_t i = 0; i < execs_high; i++)
        count += table[i] && !table[i]->forgotten;
    return count;
}

struct exec *execs_find(const char *id) {
    for (uint32_t i = 0; i < execs_high; i++)
        if (table[i] && !table[i]->forgotten && strncmp(table[i]->id, id, SUB_ID_MAX) == 0)
            return table[i];
    return NULL;
}

struct exec *exec_new(const struct start *start) {
    uint32_t index = 0;
    while (index < EXECS_MAX && table[index])
        index++;
    struct exec *exec = index < EXECS_MAX ? calloc(1, sizeof *exec) : NULL;
    if (!exec) {
        errno = index < EXECS_MAX ? ENOMEM : EAGAIN;
        return NULL;
    }
    if (index >= execs_high)
        execs_high = index + 1;
    table[index] = exec;
    exec->index = index;
    exec->sequence = next_sequence++;
    memcpy(exec->id, start->exec_id, sizeof exec->id);
    memcpy(exec->state.exec_id, start->head.exec_id, SUB_ID_MAX);
    exec->state.exit_code = -1;
    for (int i = 0; i < 3; i++)
        exec->outputs[i] = -1;
    exec->stdin_fd = exec->status_fd = exec->supervisor_fd = exec->log_fd = exec->cgroup_fd = -1;
    exec->memory_fd = -1;
    exec->pids_refused = limits_pids_refused();
    exec->output_limit = start->head.output_limit;
    return exec;
}

void exec_delete(struct exec *exec) {
    for (int i = 0; i < 3; i++)
        sub_close_fd(&exec->outputs[i]);
    sub_close_fd(&exec->stdin_fd);
    sub_close_fd(&exec->status_fd);
    sub_close_fd(&exec->supervisor_fd);
    sub_close_fd(&exec->log_fd);
    sub_close_fd(&exec->cgroup_fd);
    sub_close_fd(&exec->memory_fd);
    free(exec->input.data);
    shell_release(exec);
    table[exec->index] = NULL;
    while (execs_high && !table[execs_high - 1])
        execs_high--;
    free(exec);
}

/* ---- starting -------------------------------------------------------------------------------- */

void exec_reply_started(uint32_t request, const struct exec *exec, bool existing) {
    struct sub_started started = {.pid = exec->state.pid,
                                  .existing = existing,
                                  .start_mono_ns = exec->state.start_mono_ns,
                                  .start_boot_ns = exec->state.start_boot_ns,
                                  .start_ticks = exec->state.start_ticks};
    memcpy(started.exec_id, exec->state.exec_id, SUB_ID_MAX);
    channel_reply(SUB_I_STARTED, request, &started, sizeof started);
}

void exec_reply_failed(uint32_t request, const char *exec_id, int error, uint32_t stage) {
    struct sub_failed failed = {.error = error, .stage = stage};
    memcpy(failed.exec_id, exec_id, strnlen(exec_id, SUB_ID_MAX));
    channel_reply(SUB_I_FAILED, request, &failed, sizeof failed);
}

static void start_new(uint32_t request, const struct start *start, int log_fd) {
    struct exec *exec = exec_new(start);
    if (!exec) {
        exec_reply_failed(request, start->exec_id, errno, SUB_STAGE_REQUEST);
        close(log_fd);
        return;
    }
    struct stat status;
    exec->log_fd = log_fd;
    if (fstat(log_fd, &status) == 0)
        exec->state.log_bytes = (uint64_t)status.st_size;
    exec->start_requests[exec->start_askers++] = request;
    if (spawn(exec, start)) {
        int error = errno;
        exec_reply_failed(request, exec->id, error, SUB_STAGE_REQUEST);
        /* A child that was made nevertheless has been killed and is reaped as a stranger. */
        exec->forgotten = true;
        tree_remove(exec);
        exec_delete(exec);
        return;
    }
    if (start->head.timeout_ms)
        exec->deadline_ns = exec->state.start_mono_ns + start->head.timeout_ms * MS;
}

void execs_start(uint32_t request, struct sub_packet *packet) {
    struct start start;
    bool good = start_parse(&start, packet->payload, packet->header.length);
    SUB_AUTO_FD log_fd = sub_packet_take_fd(packet, 0);
    if (good && start.head.flags & SUB_START_OUTPUT)
        good = (start.output_fd = sub_packet_take_fd(packet, 1)) >= 0;
    struct exec *existing = good ? execs_find(start.exec_id) : NULL;
    if (!good || log_fd < 0) {
        exec_reply_failed(request, good ? start.exec_id : "", EINVAL, SUB_STAGE_REQUEST);
    } else if (existing && existing->state.phase == SUB_PHASE_STARTING) {
        if (existing->start_askers < START_ASKERS_MAX)
            existing->start_requests[existing->start_askers++] = request;
        else
            exec_reply_failed(request, existing->id, EAGAIN, SUB_STAGE_REQUEST);
    } else if (existing) {
        exec_reply_started(request, existing, true);
    } else if (start.head.flags & SUB_START_BUILTIN && !builtin_exists(start.argv[0])) {
        exec_reply_failed(request, start.exec_id, ENOSYS, SUB_STAGE_REQUEST);
    } else {
        int log = log_fd;
        log_fd = -1;
        start_new(request, &start, log);
    }
    start_release(&start);
}

static void note_lost(struct exec *exec);

/* The status pipe ends at execve; before that it brings at most one failure. */
void execs_read_status(struct exec *exec) {
    struct spawn_failure failure;
    if (exec->status_fd < 0)
        return;
    ssize_t got = read(exec->status_fd, &failure, sizeof failure);
    if (got < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    sub_close_fd(&exec->status_fd);
    if (exec->supervisor_fd >= 0)
        execs_read_supervisor(exec); /* the pid, which was written first */
    if (got == (ssize_t)sizeof failure) {
        for (uint32_t i = 0; i < exec->start_askers; i++)
            exec_reply_failed(exec->start_requests[i], exec->id, failure.error, failure.stage);
        /* It never was an exec: its process goes as a stranger. */
        tree_signal(exec, SIGKILL);
        exec->forgotten = true;
        input_close(exec);
        return;
    }
    exec->state.phase = SUB_PHASE_RUNNING;
    for (uint32_t i = 0; i < exec->start_askers; i++)
        exec_reply_started(exec->start_requests[i], exec, i > 0);
    note_lost(exec);
}

/* ---- ending ---------------------------------------------------------------------------------- */

static void take_usage(struct sub_state *state, const struct rusage *usage) {
    state->user_us =
        (uint64_t)usage->ru_utime.tv_sec * 1000000u + (uint64_t)usage->ru_utime.tv_usec;
    state->system_us =
        (uint64_t)usage->ru_stime.tv_sec * 1000000u + (uint64_t)usage->ru_stime.tv_usec;
    state->max_rss_bytes = (uint64_t)usage->ru_maxrss * 1024u;
    state->minor_faults = (uint64_t)usage->ru_minflt;
    state->major_faults = (uint64_t)usage->ru_majflt;
    state->in_blocks = (uint64_t)usage->ru_inblock;
    state->out_blocks = (uint64_t)usage->ru_oublock;
    state->voluntary_switches = (uint64_t)usage->ru_nvcsw;
    state->involuntary_switches = (uint64_t)usage->ru_nivcsw;
}

static void main_ended(struct exec *exec, int status, const struct rusage *usage) {
    struct sub_state *state = &exec->state;
    /* Before the next line, which reads on where the supervisor reports: its end is no loss now. */
    exec->main_exited = true;
    execs_read_status(exec); /* may still hold the answer to START */
    exec->main_pid = 0;
    exec->deadline_ns = 0;
    state->end_mono_ns = exec->ending_since_ns = clock_ns(CLOCK_MONOTONIC);
    state->end_boot_ns = clock_ns(CLOCK_BOOTTIME);
    take_usage(state, usage);
    if (WIFEXITED(status)) {
        state->reason = SUB_REASON_EXITED;
        state->exit_code = WEXITSTATUS(status);
    } else {
        state->reason = SUB_REASON_SIGNALED;
        state->signo = WTERMSIG(status);
    }
    if (exec->timed_out)
        state->reason = SUB_REASON_TIMEOUT;
    if (exec->killed)
        state->flags |= SUB_STATE_KILLED;
    input_close(exec);
    if (exec->shell)
        shell_gone(exec);
}

/* Somebody in the box killed the supervisor. START is answered first, in whichever order we hear. */
static void note_lost(struct exec *exec) {
    struct rusage none = {0};
    if (!exec->supervisor_lost || exec->main_exited || exec->state.phase == SUB_PHASE_STARTING)
        return;
    exec->state.flags |= SUB_STATE_LOST;
    main_ended(exec, SIGKILL, &none);
}

/* Whether there is nothing to wait for any more, or waiting has taken too long. */
static bool may_finish(struct exec *exec, uint64_t now) {
    uint64_t waited = now - exec->ending_since_ns;
    if ((exec->timed_out || exec->killed) && waited < ENDING_PATIENCE && tree_count(exec))
        return false;
    if (exec->is_pty && exec->outputs[2] >= 0 && waited < TERMINAL_PATIENCE)
        return false;
    /* Each death wakes us. What is in the background to stay makes the end that much later, once. */
    return !(waited < LINGERING_PATIENCE && tree_count(exec));
}

static void try_finish(struct exec *exec, uint64_t now) {
    if (!exec->main_exited || exec->state.phase == SUB_PHASE_EXITED || exec->forgotten)
        return;
    if (exec->is_pty)
        output_drain(exec);
    if (!may_finish(exec, now))
        return;
    output_drain(exec);
    exec->state.remaining = tree_count(exec);
    exec->state.stdin_received = exec->input.received;
    exec->state.stdin_written = exec->input.written;
    if (!exec->trailer) /* a shell's command has no cgroup of its own */
        exec->state.oom_kills = limits_oom_kills(exec);
    exec->state.pids_refused = limits_pids_refused() - exec->pids_refused;
    exec->state.phase = SUB_PHASE_EXITED;
    look_at_trees = true;
    exec->dirty = (uint8_t)((exec->dirty | DIRTY_EXITED) & ~DIRTY_OUTPUT);
}

static void kill_tree(struct exec *exec, uint64_t now) {
    tree_signal(exec, SIGKILL);
    exec->kill_scan_ns = now;
    if (exec->ending_since_ns == 0)
        exec->ending_since_ns = now;
}

int execs_signal(struct exec *exec, int signo, uint32_t scope) {
    if (signo < 1 || signo > 64)
        return EINVAL;
    uint64_t now = clock_ns(CLOCK_MONOTONIC);
    if (exec->of_shell || exec->trailer)
        return shell_signal(exec, signo);
    if (scope == SUB_SCOPE_TREE) {
        if (signo == SIGKILL) {
            exec->killed = !exec->main_exited;
            kill_tree(exec, now);
            return 0;
        }
        return tree_signal(exec, signo);
    }
    if (!exec->state.pid || exec->main_exited)
        return ESRCH;
    /* The child is the leader of its own session and group: both have its pid. */
    return kill(scope == SUB_SCOPE_GROUP ? -exec->state.pid : exec->state.pid, signo) ? errno : 0;
}

void execs_read_supervisor(struct exec *exec) {
    struct supervisor_report report;
    while (exec->supervisor_fd >= 0) {
        ssize_t got = read(exec->supervisor_fd, &report, sizeof report);
        if (got < 0 && (errno == EAGAIN || errno == EINTR))
            return;
        if (got != (ssize_t)sizeof report) {
            sub_close_fd(&exec->supervisor_fd);
            exec->supervisor_lost = !exec->main_exited;
            note_lost(exec);
            return;
        }
        if (report.kind == 1) {
            exec->main_pid = exec->state.pid = report.pid;
            exec->state.start_ticks = process_start_ticks(report.pid);
        } else if (report.kind == 2) {
            main_ended(exec, report.wait_status, &report.usage);
        }
    }
}

/* Root of the box may stop a supervisor, who could then not tell that its exec has ended. */
static void go_on(pid_t stopped) {
    for (uint32_t i = 0; i < execs_high; i++)
        if (table[i] && table[i]->supervisor_pid == stopped)
            kill(stopped, SIGCONT);
}

void execs_reap(void) {
    int status;
    struct rusage usage;
    for (pid_t pid; (pid = wait4(-1, &status, WNOHANG | WUNTRACED, &usage)) > 0;) {
        if (WIFSTOPPED(status)) {
            go_on(pid);
            continue;
        }
        look_at_trees = true;
        for (uint32_t i = 0; i < execs_high; i++) {
            struct exec *exec = table[i];
            if (!exec)
                continue;
            if (exec->supervisor_pid == pid) {
                execs_read_supervisor(exec);
                exec->supervisor_pid = 0;
                strays = strays || WIFSIGNALED(status); /* its children are ours now */
            } else if (exec->supervisor_pid == 0 && exec->main_pid == pid && self.cgroup_fd >= 0) {
                main_ended(exec, status, &usage);
            }
        }
    }
    /* Again at every death, because the children of a stray come to us when it dies. */
    strays = strays && tree_kill_strays() > 0;
}

void execs_forget(struct exec *exec) {
    exec->forgotten = true;
    exec->dirty = 0;
    sub_close_fd(&exec->log_fd);
    input_close(exec);
}

/* Whether anything of a forgotten exec is left that needs us: readers of its pipes, its cgroup. */
static bool is_over(struct exec *exec) {
    return exec->forgotten && !exec->main_pid && !exec->supervisor_pid && !output_is_open(exec) &&
           exec->cgroup_fd < 0 && exec->memory_fd < 0;
}

int execs_tick(void) {
    uint64_t now = clock_ns(CLOCK_MONOTONIC), next = UINT64_MAX;
    for (uint32_t i = 0; i < execs_high; i++) {
        struct exec *exec = table[i];
        if (!exec)
            continue;
        if (exec->trailer && !exec->main_exited) {
            uint64_t again = limits_frozen() ? UINT64_MAX : shell_tick(exec, now);
            if (again < next)
                next = again;
            continue;
        }
        if (exec->deadline_ns && exec->deadline_ns <= now && !limits_frozen()) {
            exec->deadline_ns = 0;
            exec->timed_out = true;
            kill_tree(exec, now);
        }
        bool quiet = exec->pty_quiet && !exec->main_exited;
        if (quiet && now - exec->pty_quiet_since_ns >= TERMINAL_RELOOK) {
            output_look_again(exec);
            quiet = false;
        }
        /* cgroup.kill is final; a scan may have missed somebody. The supervisor ends with the last. */
        bool killing = exec->kill_scan_ns &&
                       (self.cgroup_fd < 0 ? exec->supervisor_pid != 0 : !exec->main_exited);
        if (killing && self.cgroup_fd < 0 && now - exec->kill_scan_ns >= KILL_RESCAN)
            kill_tree(exec, now);
        try_finish(exec, now);
        if (look_at_trees && (exec->main_exited || exec->forgotten))
            tree_remove(exec);
        if (is_over(exec)) {
            exec_delete(exec);
            continue;
        }
        uint64_t wake = exec->deadline_ns && !limits_frozen() ? exec->deadline_ns : UINT64_MAX;
        bool ending = exec->main_exited && exec->state.phase != SUB_PHASE_EXITED;
        if ((killing || ending) && now + KILL_RESCAN < wake)
            wake = now + KILL_RESCAN;
        if (quiet && now + TERMINAL_RELOOK < wake)
            wake = now + TERMINAL_RELOOK;
        if (wake < next)
            next = wake;
    }
    look_at_trees = false;
    if (next == UINT64_MAX)
        return -1;
    return next <= now ? 0 : (int)((next - now + MS - 1) / MS);
}
