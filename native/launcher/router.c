/*
 * The router: a process that does nothing but keep a network namespace, and for callers that are
 * not root the user namespace that owns it. All links of all boxes meet there
 * (services/substrate_services/network), and it goes with the launcher.
 *
 * The network namespaces of the boxes themselves (stage.c) have the same owner: no process of a box
 * has a capability over its own network, whatever user namespaces it makes, so that nothing inside
 * can open a packet socket, take a filter off, or give itself another address
 * (user_namespaces(7), network_namespaces(7)).
 */
#include "launcher.h"

#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

static void keep_namespaces(int launcher) {
    prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
    prctl(PR_SET_NAME, "substrate-net", 0, 0, 0);
    if (dup2(launcher, 3) < 0)
        _exit(1);
    syscall(SYS_close_range, 4, ~0u, 0);
    /* The launcher may have died before the signal was armed. */
    for (struct pollfd peer = {.fd = 3}; poll(&peer, 1, -1) < 0 && errno == EINTR;)
        ;
    _exit(0);
}

static int map_router(pid_t router, struct fail *fail) {
    char pid[16], path[48];
    snprintf(pid, sizeof pid, "%d", router);
    snprintf(path, sizeof path, "/proc/%d/ns/user", router);
    SUB_AUTO_FD proc_fd = open("/proc", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (proc_fd < 0)
        return fail_set(fail, errno, "open /proc");
    if (write_id_maps(proc_fd, pid, config.uid, config.uid, config.gid, 1, fail))
        return -1;
    config.userns_fd = open(path, O_RDONLY | O_CLOEXEC);
    return config.userns_fd < 0 ? fail_set(fail, errno, "open %s", path) : 0;
}

int router_start(struct fail *fail) {
    int life[2]; /* our end closes with us */
    if (pipe2(life, O_CLOEXEC))
        return fail_set(fail, errno, "pipe");
    pid_t router =
        (pid_t)clone_process(CLONE_NEWNET | (config.is_root ? 0 : CLONE_NEWUSER), NULL, -1);
    if (router == 0)
        keep_namespaces(life[0]);
    int error = errno;
    close(life[0]);
    if (router < 0) {
        close(life[1]);
        return fail_set(fail, error, "clone3(NEWNET%s)", config.is_root ? "" : "|NEWUSER");
    }
    if (!config.is_root && map_router(router, fail)) {
        kill(router, SIGKILL);
        return -1;
    }
    config.router = router;
    return 0;
}
