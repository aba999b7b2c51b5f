/* Pipes, terminals and the clone itself. */
#include "init.h"

#include <linux/sched.h>
#include <signal.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <termios.h>

void set_last_pid(int64_t last_pid) {
    char text[24];
    if (last_pid < 0 || self.last_pid_fd < 0)
        return;
    int length = snprintf(text, sizeof text, "%lld", (long long)last_pid);
    (void)!pwrite(self.last_pid_fd, text, (size_t)length, 0);
}

/* A pipe whose `ours` end (0 or 1) does not block. */
static int make_pipe(int ours, int *our_end, int *their_end) {
    int ends[2];
    if (pipe2(ends, O_CLOEXEC))
        return -1;
    *our_end = ends[ours];
    *their_end = ends[!ours];
    return fcntl(*our_end, F_SETFL, O_NONBLOCK);
}

static int open_terminal(struct exec *exec, const struct sub_start *head, struct stdio *stdio) {
    int master = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_NONBLOCK | O_CLOEXEC);
    int unlock = 0;
    struct winsize size = {.ws_row = head->rows, .ws_col = head->cols};
    if (master < 0)
        return -1;
    exec->outputs[2] = stdio->pty_master = master;
    exec->is_pty = true;
    /* Writing has a life of its own (EPOLLOUT, close), so it gets a descriptor of its own. */
    exec->stdin_fd = fcntl(master, F_DUPFD_CLOEXEC, 3);
    if (exec->stdin_fd < 0 || ioctl(master, TIOCSPTLCK, &unlock) ||
        (size.ws_row && ioctl(master, TIOCSWINSZ, &size)))
        return -1;
    return 0;
}

static int open_pipes(struct exec *exec, const struct start *start, struct stdio *stdio) {
    if (start->head.flags & SUB_START_STDIN) {
        if (make_pipe(1, &exec->stdin_fd, &stdio->fds[0]))
            return -1;
    } else {
        stdio->fds[0] = open("/dev/null", O_RDONLY | O_CLOEXEC);
    }
    /*
     * A pipe of the host's, where the output is for one reader and may be endless: it waits for that
     * reader without us in between. Ours stays as it is; the child's end is a copy.
     */
    if (start->output_fd >= 0)
        stdio->fds[1] = fcntl(start->output_fd, F_DUPFD_CLOEXEC, 3);
    else if (make_pipe(0, &exec->outputs[0], &stdio->fds[1]))
        return -1;
    return stdio->fds[0] < 0 || stdio->fds[1] < 0 || make_pipe(0, &exec->outputs[1], &stdio->fds[2])
               ? -1
               : 0;
}

static int open_shell(struct exec *exec, const struct sub_start *head, struct stdio *stdio) {
    if (shell_prepare(exec) < 0 || make_pipe(1, &exec->stdin_fd, &stdio->fds[0]) ||
        make_pipe(0, &exec->shell->report_fd, &stdio->shell[0]) ||
        make_pipe(0, &exec->outputs[0], &stdio->shell[1]) ||
        make_pipe(0, &exec->outputs[1], &stdio->shell[2]))
        return -1;
    stdio->shell[3] = fcntl(exec->shell->object_fd, F_DUPFD_CLOEXEC, 3);
    stdio->fds[1] = open("/dev/null", O_WRONLY | O_CLOEXEC);
    stdio->fds[2] = open("/dev/null", O_WRONLY | O_CLOEXEC);
    stdio->shell_base = head->rows;
    return stdio->shell[3] < 0 || stdio->fds[1] < 0 || stdio->fds[2] < 0 ? -1 : 0;
}

static _Noreturn void begin_life(const struct birth *birth) {
    if (tree_enter(birth->exec)) {
        struct spawn_failure failure = {.error = errno, .stage = SUB_STAGE_SETUP};
        (void)!write(birth->status_end, &failure, sizeof failure);
        _exit(127);
    }
    if (birth->report_end >= 0)
        supervisor_run(birth->start, birth->stdio, birth->status_end, birth->report_end);
    child_run(birth->start, birth->stdio, birth->status_end);
}

void birth_clone(struct birth *birth) {
    struct clone_args arguments = {.exit_signal = SIGCHLD};
    if (birth->exec->cgroup_fd >= 0) {
        arguments.flags = CLONE_INTO_CGROUP;
        arguments.cgroup = (uint64_t)birth->exec->cgroup_fd;
    }
    birth->pid = (pid_t)syscall(SYS_clone3, &arguments, sizeof arguments);
    birth->error = errno;
    if (birth->pid == 0)
        begin_life(birth);
}

static int clone_exec(struct exec *exec, const struct start *start, const struct stdio *stdio) {
    SUB_AUTO_FD status_end = -1;
    SUB_AUTO_FD report_end = -1;
    if (make_pipe(0, &exec->status_fd, &status_end))
        return -1;
    bool supervised = self.cgroup_fd < 0;
    if (supervised && make_pipe(0, &exec->supervisor_fd, &report_end))
        return -1;
    if (!supervised)
        set_last_pid(start->head.last_pid);
    exec->state.start_mono_ns = clock_ns(CLOCK_MONOTONIC);
    exec->state.start_boot_ns = clock_ns(CLOCK_BOOTTIME);
    struct birth birth = {.exec = exec,
                          .start = start,
                          .stdio = stdio,
                          .status_end = status_end,
                          .report_end = report_end};
    if (exec->born_shared)
        nursery_clone(&birth);
    else
        birth_clone(&birth);
    if (birth.pid < 0) {
        errno = birth.error;
        return -1;
    }
    if (supervised) {
        exec->supervisor_pid = birth.pid;
    } else {
        exec->main_pid = exec->state.pid = birth.pid;
        exec->state.start_ticks =
            process_start_ticks(birth.pid); /* it cannot be reaped before us */
    }
    return 0;
}

static int watch(struct exec *exec) {
    static const enum watch_kind kinds[3] = {WATCH_OUT, WATCH_ERR, WATCH_PTY};
    for (int i = 0; i < 3; i++)
        if (exec->outputs[i] >= 0 && loop_watch(exec->outputs[i], kinds[i], exec->index, EPOLLIN))
            return -1;
    /* A terminal that nobody has open hangs up all the time: it is watched when there is need. */
    if (exec->stdin_fd >= 0 && !exec->is_pty &&
        loop_watch(exec->stdin_fd, WATCH_STDIN, exec->index, 0))
        return -1;
    if (exec->supervisor_fd >= 0 &&
        loop_watch(exec->supervisor_fd, WATCH_SUPERVISOR, exec->index, EPOLLIN))
        return -1;
    if (exec->shell && loop_watch(exec->shell->report_fd, WATCH_REPORT, exec->index, EPOLLIN))
        return -1;
    return loop_watch(exec->status_fd, WATCH_STATUS, exec->index, EPOLLIN);
}

int spawn(struct exec *exec, const struct start *start) {
    struct stdio stdio = {.fds = {-1, -1, -1}, .pty_master = -1, .shell = {-1, -1, -1, -1}};
    int result = start->head.flags & SUB_START_SHELL ? open_shell(exec, &start->head, &stdio)
                 : start->head.flags & SUB_START_PTY ? open_terminal(exec, &start->head, &stdio)
                                                     : open_pipes(exec, start, &stdio);
    if (result == 0)
        result = tree_make(exec, !(start->head.flags & SUB_START_SHELL)); /* a shell stays long */
    if (result == 0)
        result = clone_exec(exec, start, &stdio);
    int error = errno;
    for (int i = 0; i < 3; i++)
        sub_close_fd(&stdio.fds[i]);
    for (int i = 0; i < SHELL_FDS; i++)
        sub_close_fd(&stdio.shell[i]);
    /* The descriptors stay correct without epoll only if nothing runs: a failure here is ours. */
    if (result == 0 && watch(exec)) {
        error = errno;
        tree_signal(exec, SIGKILL);
        result = -1;
    }
    errno = error;
    return result;
}
