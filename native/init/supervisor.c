/*
 * Where no cgroup can be made: a parent for each exec that inherits its orphans
 * (PR_SET_CHILD_SUBREAPER), so that everything the exec ever started is below one pid, however it
 * daemonises. It ends when nothing is left below it.
 */
#include "init.h"

#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

static void report(int fd, const struct supervisor_report *report) {
    while (write(fd, report, sizeof *report) < 0 && errno == EINTR)
        ;
}

void supervisor_run(const struct start *start, const struct stdio *stdio, int status_fd,
                    int report_fd) {
    prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
    setsid(); /* a signal to a terminal or group of the exec does not reach us */
    set_last_pid(start->head.last_pid);
    pid_t main_pid = fork();
    if (main_pid == 0) {
        prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0);
        child_run(start, stdio, status_fd);
    }
    struct supervisor_report message = {.kind = 1, .pid = main_pid};
    if (main_pid < 0) {
        struct spawn_failure failure = {.error = errno, .stage = SUB_STAGE_SETUP};
        (void)!write(status_fd, &failure, sizeof failure);
        _exit(1);
    }
    report(report_fd, &message);
    /* Pipes and terminals of the exec must end when its own processes end, not when we do. */
    int kept = dup2(report_fd, 0);
    syscall(SYS_close_range, 1, ~0u, 0);
    for (;;) {
        int status;
        struct rusage usage;
        pid_t pid = wait4(-1, &status, 0, &usage);
        if (pid < 0 && errno == ECHILD)
            _exit(0);
        if (pid == main_pid) {
            message = (struct supervisor_report){
                .kind = 2, .pid = pid, .wait_status = status, .usage = usage};
            report(kept, &message);
        }
    }
}
