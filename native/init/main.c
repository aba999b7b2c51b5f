/*
 * substrate-init CHANNEL CGROUP LAST_PID MEMORY PIDS: descriptor numbers, -1 for none. Started by
 * stage.c.
 */
#include "init.h"

#include <signal.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>

struct self self;
static int epoll_fd = -1;

static int control(int operation, int fd, enum watch_kind kind, uint32_t index, uint32_t events) {
    struct epoll_event event = {.events = events, .data.u64 = (uint64_t)kind << 32 | index};
    return epoll_ctl(epoll_fd, operation, fd, &event);
}

int loop_watch(int fd, enum watch_kind kind, uint32_t index, uint32_t events) {
    return control(EPOLL_CTL_ADD, fd, kind, index, events);
}

int loop_change(int fd, enum watch_kind kind, uint32_t index, uint32_t events) {
    return control(EPOLL_CTL_MOD, fd, kind, index, events);
}

void loop_unwatch(int fd) {
    epoll_ctl(epoll_fd, EPOLL_CTL_DEL, fd, NULL);
}

static int take_fd(const char *text) {
    int fd = atoi(text);
    if (fd >= 0)
        fcntl(fd, F_SETFD, FD_CLOEXEC);
    return fd;
}

static void learn_self(char **arguments) {
    self.channel = take_fd(arguments[1]);
    self.cgroup_fd = take_fd(arguments[2]);
    self.last_pid_fd = take_fd(arguments[3]);
    self.memory_fd = take_fd(arguments[4]);
    self.pids_fd = take_fd(arguments[5]);
    struct stat status;
    if (stat("/proc/self/ns/pid", &status) == 0)
        self.pid_namespace = status.st_ino;
    char word[8] = "";
    SUB_AUTO_FD setgroups = open("/proc/self/setgroups", O_RDONLY | O_CLOEXEC);
    if (setgroups >= 0 && read(setgroups, word, sizeof word - 1) > 0)
        self.single_id = strncmp(word, "deny", 4) == 0;
}

/* From the first instruction on nothing below may look into us, and we go with the launcher. */
static void shield(void) {
    prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
    prctl(PR_SET_NAME, "substrate-init", 0, 0, 0); /* executed from a memfd, it is named after it */
    prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
    struct rlimit none = {0, 0};
    setrlimit(RLIMIT_CORE, &none);
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    for (int fd = 0; null >= 0 && fd < 3; fd++)
        dup2(null, fd); /* the box's, not the host's that we came with */
    if (null > 2)
        close(null);
}

static void prepare_children(void) {
    struct rlimit files = {1024, 4096};
    getrlimit(RLIMIT_NOFILE, &files);
    child_prepare(&files);
    struct rlimit raised = {files.rlim_max, files.rlim_max}; /* some descriptors for each exec */
    setrlimit(RLIMIT_NOFILE, &raised);
    seccomp_prepare();
}

static int open_signals(void) {
    sigset_t handled;
    sigemptyset(&handled);
    sigaddset(&handled, SIGCHLD);
    sigprocmask(SIG_BLOCK, &handled, NULL);
    signal(SIGPIPE, SIG_IGN);
    return signalfd(-1, &handled, SFD_CLOEXEC | SFD_NONBLOCK);
}

static void read_signals(int signals) {
    struct signalfd_siginfo info;
    while (read(signals, &info, sizeof info) == sizeof info)
        ;
    execs_reap();
}

static void dispatch(const struct epoll_event *event, int signals) {
    enum watch_kind kind = (enum watch_kind)(event->data.u64 >> 32);
    if (kind == WATCH_CHANNEL) {
        if (event->events & (EPOLLIN | EPOLLHUP | EPOLLERR))
            channel_read();
        return;
    }
    if (kind == WATCH_SIGNALS) {
        read_signals(signals);
        return;
    }
    struct exec *exec = execs_at((uint32_t)event->data.u64);
    if (!exec)
        return; /* deleted earlier in this round */
    switch (kind) {
    case WATCH_OUT:
    case WATCH_ERR:
    case WATCH_PTY:
        output_read(exec, (int)(kind - WATCH_OUT));
        break;
    case WATCH_STDIN:
        if (event->events & (EPOLLERR | EPOLLHUP) && !exec->is_pty)
            input_close(exec); /* nobody has the other end open */
        else
            input_write(exec);
        break;
    case WATCH_STATUS:
        execs_read_status(exec);
        break;
    case WATCH_SUPERVISOR:
        execs_read_supervisor(exec);
        break;
    case WATCH_REPORT:
        if (exec->shell)
            shell_read_report(exec);
        break;
    default:
        break;
    }
}

int main(int count, char **arguments) {
    if (count != 6 || getpid() != 1) {
        fprintf(stderr, "substrate-init: started by substrate-launcher as pid 1 of a box only\n");
        return 2;
    }
    shield();
    learn_self(arguments);
    int signals = open_signals();
    prepare_children();
    if (landlock_enter())
        return 1;
    nursery_start();
    set_last_pid(1); /* pids 2.. were the launcher's helpers; the first exec gets 2, always */
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (epoll_fd < 0 || signals < 0 || loop_watch(signals, WATCH_SIGNALS, 0, EPOLLIN) ||
        loop_watch(self.channel, WATCH_CHANNEL, 0, EPOLLIN))
        return 1;
    for (int timeout = -1;;) {
        struct epoll_event events[64];
        int ready = epoll_wait(epoll_fd, events, 64, timeout);
        for (int i = 0; i < ready; i++)
            dispatch(&events[i], signals);
        timeout = execs_tick();
        int flush = channel_flush();
        if (flush >= 0 && (timeout < 0 || flush < timeout))
            timeout = flush;
    }
}
