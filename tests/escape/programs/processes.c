/* Processes that are not ours: pid 1, which records, and the host's. */
#include "attempt.h"

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/uio.h>
#include <sys/wait.h>

static pid_t victim(void) {
    return atoi(words[0]);
}

ATTEMPT(trace_process) {
    return ptrace(PTRACE_SEIZE, victim(), NULL, NULL);
}

ATTEMPT(read_memory_of_process) {
    char here[8];
    struct iovec local = {here, sizeof here}, remote = {(void *)0x1000, sizeof here};
    return process_vm_readv(victim(), &local, 1, &remote, 1, 0);
}

ATTEMPT(write_memory_of_process) {
    char here[8] = "";
    struct iovec local = {here, sizeof here}, remote = {(void *)0x1000, sizeof here};
    return process_vm_writev(victim(), &local, 1, &remote, 1, 0);
}

ATTEMPT(take_descriptor_of_process) {
    int pidfd = (int)syscall(SYS_pidfd_open, victim(), 0);
    return pidfd < 0 ? REFUSED : syscall(SYS_pidfd_getfd, pidfd, atoi(words[1]), 0);
}

ATTEMPT(compare_with_process) {
    return syscall(SYS_kcmp, getpid(), victim(), 2 /* KCMP_FILES */, 0UL, 0UL);
}

/* Signal 0 asks whether we might. */
ATTEMPT(signal_process) {
    return kill(victim(), atoi(words[1]));
}

ATTEMPT(signal_by_pidfd) {
    int pidfd = (int)syscall(SYS_pidfd_open, victim(), 0);
    return pidfd < 0 ? REFUSED : syscall(SYS_pidfd_send_signal, pidfd, 0, NULL, 0);
}

ATTEMPT(limit_process) {
    struct rlimit limit = {0, 0};
    return prlimit(victim(), RLIMIT_FSIZE, &limit, NULL);
}

ATTEMPT(slow_process_down) {
    return setpriority(PRIO_PROCESS, (id_t)victim(), 19);
}

ATTEMPT(bind_process_to_processor) {
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(0, &one);
    return sched_setaffinity(victim(), sizeof one, &one);
}

ATTEMPT(release_memory_of_process) {
    int pidfd = (int)syscall(SYS_pidfd_open, victim(), 0);
    return pidfd < 0 ? REFUSED : syscall(SYS_process_madvise, pidfd, NULL, 0UL, 4, 0U);
}

ATTEMPT(become_uid) {
    uid_t uid = (uid_t)strtoul(words[0], NULL, 10);
    return setresuid(uid, uid, uid);
}

ATTEMPT(regain_capabilities) {
    uint32_t header[2] = {0x20080522, 0}, admin = 1u << 21 /* CAP_SYS_ADMIN */;
    uint32_t data[6] = {admin, admin, 0};
    return syscall(SYS_capset, header, data);
}

/* Given by the file that is executed, where nothing hinders (capabilities(7), "File capabilities"). */
ATTEMPT(have_capability) {
    uint32_t header[2] = {0x20080522, 0}, data[6] = {0};
    if (syscall(SYS_capget, header, data))
        return REFUSED;
    errno = EPERM;
    return data[0] & 1u << 21 ? 0 : REFUSED;
}

ATTEMPT(turn_filter_off) {
    struct sock_filter allow = BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    struct sock_fprog program = {1, &allow};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) ||
        syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program))
        return REFUSED;
    return syscall(SYS_unshare, CLONE_NEWUTS);
}

/* A filter of our own that lets our own supervisor answer unshare(2) with "go on". */
static int supervise(int *listener) {
    struct sock_filter ask[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_unshare, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {4, ask};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
        return -1;
    *listener = (int)syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER,
                             &program);
    return *listener < 0 ? -1 : 0;
}

ATTEMPT(answer_for_the_filter) {
    int listener;
    if (supervise(&listener))
        return REFUSED;
    pid_t child = fork();
    if (child == 0)
        _exit(unshare(CLONE_NEWUTS) ? errno : 0);
    /* The filter of the world comes first: it refuses, and nobody asks us. */
    struct seccomp_notif question = {0};
    struct seccomp_notif_resp answer = {.flags = SECCOMP_USER_NOTIF_FLAG_CONTINUE};
    struct pollfd asked = {.fd = listener, .events = POLLIN};
    int status = 0;
    while (waitpid(child, &status, WNOHANG) == 0) {
        if (poll(&asked, 1, 20) > 0 && ioctl(listener, SECCOMP_IOCTL_NOTIF_RECV, &question) == 0) {
            answer.id = question.id;
            ioctl(listener, SECCOMP_IOCTL_NOTIF_SEND, &answer);
        }
    }
    errno = WEXITSTATUS(status);
    return errno ? REFUSED : 0;
}

/* A core of ours where the kernel puts cores: beside us, or into a program on the host. */
ATTEMPT(dump_core) {
    struct rlimit all = {RLIM_INFINITY, RLIM_INFINITY};
    if (setrlimit(RLIMIT_CORE, &all))
        return REFUSED;
    pid_t child = fork();
    if (child == 0) {
        prctl(PR_SET_DUMPABLE, 1, 0, 0, 0);
        abort();
    }
    int status;
    waitpid(child, &status, 0);
    errno = EPERM;
    return WCOREDUMP(status) ? 0 : REFUSED;
}
