/*
 * From a copy of init to the program: everything between clone and execve. The order matters, each
 * step says what it must come before.
 */
#include "init.h"

#include <grp.h>
#include <limits.h>
#include <linux/capability.h>
#include <linux/close_range.h>
#include <signal.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#define BIT(capability) (1ull << (capability))
/*
 * Docker's default set without what reaches beyond files and processes of the box: no NET_RAW (it
 * passes output filters), MKNOD, SYS_CHROOT, AUDIT_WRITE, SETPCAP.
 */
#define EXEC_CAPABILITIES                                                                          \
    (BIT(CAP_CHOWN) | BIT(CAP_DAC_OVERRIDE) | BIT(CAP_FOWNER) | BIT(CAP_FSETID) | BIT(CAP_KILL) |  \
     BIT(CAP_SETGID) | BIT(CAP_SETUID) | BIT(CAP_SETFCAP) | BIT(CAP_NET_BIND_SERVICE))

static int status;

static _Noreturn void fail(uint32_t stage, int error) {
    struct spawn_failure failure = {.error = error, .stage = stage};
    while (write(status, &failure, sizeof failure) < 0 && errno == EINTR)
        ;
    _exit(127);
}

static void check(int result, uint32_t stage) {
    if (result < 0)
        fail(stage, errno);
}

static uint64_t ignored_signals;      /* bit signo - 1: not at its default in init */
static uint64_t surplus_capabilities; /* in init's bounding set, and not for execs */
static uint64_t root_capabilities;    /* what uid 0 of an exec gets */
static struct rlimit file_limit;      /* as it was before init raised its own */

/* What every child would find out again; the same for all, since init changes none of it. */
void child_prepare(const struct rlimit *files) {
    file_limit = *files;
    for (int signo = 1; signo < 65; signo++) {
        uint64_t action[4]; /* struct kernel_sigaction; past libc, which keeps 32 to 34 to itself */
        if (syscall(SYS_rt_sigaction, signo, NULL, action, 8) == 0 && action[0])
            ignored_signals |= BIT(signo - 1);
    }
    for (int capability = 0; capability <= 63; capability++) {
        if (prctl(PR_CAPBSET_READ, capability, 0, 0, 0) != 1)
            continue;
        if (EXEC_CAPABILITIES & BIT(capability))
            root_capabilities |= BIT(capability);
        else
            surplus_capabilities |= BIT(capability);
    }
}

static void reset_signals(void) {
    uint64_t plain[4] = {0}; /* SIG_DFL */
    for (int signo = 1; signo < 65; signo++)
        if (ignored_signals & BIT(signo - 1))
            syscall(SYS_rt_sigaction, signo, plain, NULL, 8);
    sigset_t none;
    sigemptyset(&none);
    check(sigprocmask(SIG_SETMASK, &none, NULL), SUB_STAGE_SETUP);
}

static void take_stdio(const struct stdio *stdio, const struct identity *identity) {
    int fds[3];
    if (stdio->pty_master >= 0) {
        /* TIOCGPTPEER opens the other end without a path, which the box could have moved. */
        int terminal = ioctl(stdio->pty_master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
        check(terminal, SUB_STAGE_SETUP);
        check(ioctl(terminal, TIOCSCTTY, 0), SUB_STAGE_SETUP);
        fds[0] = fds[1] = fds[2] = terminal;
    } else {
        memcpy(fds, stdio->fds, sizeof fds);
    }
    for (int i = 0; i < 3; i++) {
        /* Its own, so that /dev/stdout can be opened again by a program that is not root. */
        if (!self.single_id)
            (void)!fchown(fds[i], identity->uid,
                          stdio->pty_master >= 0 ? (gid_t)-1 : identity->gid);
        check(dup2(fds[i], i), SUB_STAGE_SETUP); /* init keeps 0..2 open: never fds[i] == i */
    }
}

/*
 * Init's own descriptors may have the numbers that these are to get: first all out of the way. What
 * the shell passes on as a command's streams is the user's, as take_stdio() says.
 */
static void take_shell(const struct stdio *stdio, const struct identity *identity) {
    if (stdio->shell[0] < 0)
        return;
    int above = stdio->shell_base + SHELL_FDS, fds[SHELL_FDS];
    check(status = fcntl(status, F_DUPFD_CLOEXEC, above), SUB_STAGE_SETUP);
    for (int i = 0; i < SHELL_FDS; i++) {
        if (!self.single_id && (i == 1 || i == 2))
            (void)!fchown(stdio->shell[i], identity->uid, identity->gid);
        check(fds[i] = fcntl(stdio->shell[i], F_DUPFD_CLOEXEC, above), SUB_STAGE_SETUP);
    }
    for (int i = 0; i < SHELL_FDS; i++)
        check(dup2(fds[i], stdio->shell_base + i), SUB_STAGE_SETUP);
}

static void set_limits(const struct start *start) {
    /* No core files: init's own limit is 0, and so is everybody's below it. */
    check(setrlimit(RLIMIT_NOFILE, &file_limit), SUB_STAGE_SETUP);
    for (uint32_t i = 0; i < start->head.rlimit_count; i++) {
        const struct sub_rlimit *wanted = &start->rlimits[i];
        struct rlimit now, limit = {wanted->soft, wanted->hard};
        check(getrlimit((int)wanted->resource, &now), SUB_STAGE_SETUP);
        /* Raising a hard limit takes a capability over the host; the host's limit stays then. */
        if (limit.rlim_max > now.rlim_max)
            limit.rlim_max = now.rlim_max;
        if (limit.rlim_cur > limit.rlim_max)
            limit.rlim_cur = limit.rlim_max;
        check(setrlimit((int)wanted->resource, &limit), SUB_STAGE_SETUP);
    }
}

static int set_capabilities(uint64_t all) {
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct data[2] = {0};
    for (int i = 0; i < 2; i++)
        data[i].effective = data[i].permitted = (uint32_t)(all >> (32 * i));
    return (int)syscall(SYS_capset, &header, data);
}

/*
 * uid 0 gets its capabilities from the bounding set at execve, everybody else gets none; init's
 * ambient and inheritable sets must be empty by then.
 */
static void become(const struct identity *identity) {
    for (int capability = 0; capability <= 63; capability++)
        if (surplus_capabilities & BIT(capability))
            check(prctl(PR_CAPBSET_DROP, capability, 0, 0, 0), SUB_STAGE_SETUP);
    check(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0), SUB_STAGE_SETUP);
    check(prctl(PR_SET_SECUREBITS, 0, 0, 0, 0), SUB_STAGE_SETUP);
    if (self.single_id) {
        if (identity->uid != getuid() || identity->gid != getgid())
            fail(SUB_STAGE_USER, EPERM); /* nobody else exists in this box */
    } else {
        check(setgroups(identity->group_count, identity->groups), SUB_STAGE_USER);
        check(setresgid(identity->gid, identity->gid, identity->gid), SUB_STAGE_USER);
        check(setresuid(identity->uid, identity->uid, identity->uid), SUB_STAGE_USER);
    }
    check(set_capabilities(identity->uid == 0 ? root_capabilities : 0), SUB_STAGE_SETUP);
    check(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), SUB_STAGE_SETUP);
}

/* ---- execve with the exec's own PATH, as execvp(3) does it ----------------------------------- */

static int try_execute(const char *path, const struct start *start) {
    execve(path, start->argv, start->env);
    if (errno != ENOEXEC)
        return errno;
    /* A script without #!: shells run it themselves. */
    char **arguments = calloc((size_t)start->head.argc + 2, sizeof *arguments);
    if (!arguments)
        return ENOMEM;
    arguments[0] = (char *)"/bin/sh";
    arguments[1] = (char *)path;
    memcpy(arguments + 2, start->argv + 1, start->head.argc * sizeof *arguments);
    execve("/bin/sh", arguments, start->env);
    free(arguments);
    return ENOEXEC;
}

static int execute(const struct start *start) {
    const char *name = start->argv[0], *path = "/usr/local/bin:/usr/bin:/bin";
    if (strchr(name, '/'))
        return try_execute(name, start);
    if (strlen(name) > NAME_MAX)
        return ENAMETOOLONG;
    for (char **variable = start->env; *variable; variable++)
        if (strncmp(*variable, "PATH=", 5) == 0)
            path = *variable + 5;
    bool refused = false;
    for (const char *at = path;; at++) {
        size_t length = strcspn(at, ":");
        char candidate[4096];
        int written = snprintf(candidate, sizeof candidate, "%.*s%s%s", (int)length, at,
                               length ? "/" : "./", name);
        if (written > 0 && (size_t)written < sizeof candidate) {
            int error = try_execute(candidate, start);
            if (error == EACCES)
                refused = true;
            else if (error != ENOENT && error != ENOTDIR && error != ENODEV && error != ESTALE)
                return error;
        }
        at += length;
        if (!*at)
            return refused ? EACCES : ENOENT;
    }
}

void child_run(const struct start *start, const struct stdio *stdio, int status_fd) {
    status = status_fd;
    struct identity identity;
    reset_signals();
    check(setsid(), SUB_STAGE_SETUP);
    int error = identity_find(start, &identity);
    if (error)
        fail(SUB_STAGE_USER, error);
    take_stdio(stdio, &identity); /* before the id changes: needs CAP_CHOWN */
    check((int)syscall(SYS_close_range, 3, ~0u, CLOSE_RANGE_CLOEXEC), SUB_STAGE_SETUP);
    take_shell(stdio, &identity);
    umask(start->head.umask & 0777);
    set_limits(start);
    if (start->head.flags & SUB_START_NO_ASLR)
        check(personality(ADDR_NO_RANDOMIZE), SUB_STAGE_SETUP); /* the filter refuses it later */
    become(&identity);
    check(chdir(start->cwd[0] ? start->cwd : "/"), SUB_STAGE_CWD); /* as the user */
    check(seccomp_apply(), SUB_STAGE_SETUP);
    if (start->head.flags & SUB_START_BUILTIN) {
        syscall(SYS_close_range, 3, ~0u, 0); /* ends `status` too: started */
        builtin_run(start->argv);
    }
    fail(SUB_STAGE_EXEC, execute(start));
}
