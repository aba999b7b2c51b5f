/*
 * Putting a box together. Two processes per box:
 *
 *   the stage, in a mount namespace of its own (rootless: in the launcher's user namespace) and in
 *   the box's network namespace, builds the tree and ends;
 *   the init-to-be, a child of the launcher (CLONE_PARENT) in the box's user and pid namespaces,
 *   gets its other namespaces meanwhile, then unshares the finished tree. Because its user
 *   namespace does not own the stage's mount namespace, every mount in its copy is locked
 *   (mount_namespaces(7), "restrictions"): nothing inside can take a mask off again.
 */
#include "launcher.h"

#include <grp.h>
#include <linux/capability.h>
#include <linux/sched.h>
#include <linux/securebits.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/fsuid.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>

/* Words between the stage and the init-to-be; each packet is one byte, plus a descriptor with GO. */
enum word { WORD_MAPPED = 'm', WORD_ENTERED = 'c', WORD_NAMESPACES = 'n', WORD_GO = 'g' };

int64_t clone_process(uint64_t flags, int *pidfd, int cgroup_fd) {
    struct clone_args arguments = {
        .flags = flags,
        .pidfd = (uint64_t)(uintptr_t)pidfd,
        /* With CLONE_PARENT the kernel takes the exit signal of the parent itself. */
        .exit_signal = flags & CLONE_PARENT ? 0 : SIGCHLD,
    };
    if (cgroup_fd >= 0) {
        arguments.flags |= CLONE_INTO_CGROUP;
        arguments.cgroup = (uint64_t)cgroup_fd;
    }
    return syscall(SYS_clone3, &arguments, sizeof arguments);
}

static int set_capabilities(uint64_t permitted, uint64_t inheritable) {
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct data[2];
    for (int i = 0; i < 2; i++) {
        data[i].effective = data[i].permitted = (uint32_t)(permitted >> (32 * i));
        data[i].inheritable = (uint32_t)(inheritable >> (32 * i));
    }
    return (int)syscall(SYS_capset, &header, data);
}

int raise_all_capabilities(void) {
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct data[2];
    if (syscall(SYS_capget, &header, data))
        return -1;
    data[0].effective = data[0].permitted;
    data[1].effective = data[1].permitted;
    return (int)syscall(SYS_capset, &header, data);
}

static int write_file_at(int dir, const char *path, const char *text) {
    SUB_AUTO_FD fd = openat(dir, path, O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        return -1;
    return write(fd, text, strlen(text)) < 0 ? -1 : 0;
}

/* `inside_uid` 0 with count > 1 maps groups from 0 too; a single id maps the caller's group. */
int write_id_maps(int proc_fd, const char *pid, uint32_t inside, uint32_t outside_uid,
                  uint32_t outside_gid, uint32_t count, struct fail *fail) {
    char path[64], map[64];
    if (count == 1) { /* without CAP_SETGID the kernel asks for this (user_namespaces(7)) */
        snprintf(path, sizeof path, "%s/setgroups", pid);
        if (write_file_at(proc_fd, path, "deny"))
            return fail_set(fail, errno, "writing /proc/%s", path);
    }
    snprintf(path, sizeof path, "%s/uid_map", pid);
    snprintf(map, sizeof map, "%u %u %u\n", inside, outside_uid, count);
    if (write_file_at(proc_fd, path, map))
        return fail_set(fail, errno, "writing /proc/%s", path);
    snprintf(path, sizeof path, "%s/gid_map", pid);
    snprintf(map, sizeof map, "%u %u %u\n", count == 1 ? outside_gid : inside, outside_gid, count);
    if (write_file_at(proc_fd, path, map))
        return fail_set(fail, errno, "writing /proc/%s", path);
    return 0;
}

static void report(int fd, const struct stage_report *report, const int *fds, size_t fd_count) {
    (void)sub_send(fd, 0, 0, report, sizeof *report, fds, fd_count);
}

static void report_fail(int fd, const struct fail *fail) {
    struct stage_report message = {.kind = STAGE_FAILED, .fail = *fail};
    report(fd, &message, NULL, 0);
}

static void reset_signals(void) {
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    signal(SIGPIPE, SIG_DFL);
}

/* ---- the init-to-be -------------------------------------------------------------------------- */

/*
 * What init may keep. CHECKPOINT_RESTORE sets the next pid; SYS_PTRACE is there to be more than any
 * exec has, so that ptrace-guarded files of pid 1 stay shut (ptrace(2), "access mode checking").
 */
#define BIT(capability) (1ull << (capability))
#define INIT_CAPABILITIES                                                                          \
    (BIT(CAP_CHOWN) | BIT(CAP_DAC_OVERRIDE) | BIT(CAP_FOWNER) | BIT(CAP_FSETID) | BIT(CAP_KILL) |  \
     BIT(CAP_SETGID) | BIT(CAP_SETUID) | BIT(CAP_SETPCAP) | BIT(CAP_NET_BIND_SERVICE) |            \
     BIT(CAP_SYS_PTRACE) | BIT(CAP_SETFCAP) | BIT(CAP_CHECKPOINT_RESTORE))

static int become_init_user(bool range, struct fail *fail) {
    for (int capability = 0; capability <= 63; capability++)
        if (!(INIT_CAPABILITIES & BIT(capability)) && prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) &&
            errno != EINVAL)
            return fail_set(fail, errno, "dropping capability %d", capability);
    if (prctl(PR_SET_SECUREBITS, SECBIT_KEEP_CAPS | SECBIT_NO_SETUID_FIXUP, 0, 0, 0))
        return fail_set(fail, errno, "securebits");
    if (range && (setgroups(0, NULL) || setresgid(INIT_ID, INIT_ID, INIT_ID) ||
                  setresuid(INIT_ID, INIT_ID, INIT_ID)))
        return fail_set(fail, errno, "becoming id %u", INIT_ID);
    uint64_t kept = 0;
    for (int capability = 0; capability <= 63; capability++)
        if (INIT_CAPABILITIES & BIT(capability) && prctl(PR_CAPBSET_READ, capability, 0, 0, 0) == 1)
            kept |= BIT(capability);
    if (set_capabilities(kept, kept))
        return fail_set(fail, errno, "capset");
    for (int capability = 0; capability <= 63; capability++)
        if (kept & BIT(capability) && prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, capability, 0, 0))
            return fail_set(fail, errno, "ambient capability %d", capability);
    return 0;
}

static int await_word(int fd, char word, int *passed) {
    char byte = 0;
    struct iovec part = {&byte, 1};
    union {
        struct cmsghdr align;
        char space[CMSG_SPACE(sizeof(int))];
    } control;
    struct msghdr message = {.msg_iov = &part,
                             .msg_iovlen = 1,
                             .msg_control = &control,
                             .msg_controllen = sizeof control};
    ssize_t got;
    do
        got = recvmsg(fd, &message, MSG_CMSG_CLOEXEC);
    while (got < 0 && errno == EINTR);
    struct cmsghdr *cmsg = got > 0 ? CMSG_FIRSTHDR(&message) : NULL;
    if (cmsg && cmsg->cmsg_type == SCM_RIGHTS && passed)
        memcpy(passed, CMSG_DATA(cmsg), sizeof *passed);
    return got == 1 && byte == word ? 0 : -1;
}

static int say_word(int fd, char word, int passed) {
    struct iovec part = {&word, 1};
    union {
        struct cmsghdr align;
        char space[CMSG_SPACE(sizeof(int))];
    } control = {0};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    if (passed >= 0) {
        message.msg_control = &control;
        message.msg_controllen = sizeof control;
        struct cmsghdr *cmsg = CMSG_FIRSTHDR(&message);
        cmsg->cmsg_level = SOL_SOCKET;
        cmsg->cmsg_type = SCM_RIGHTS;
        cmsg->cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(cmsg), &passed, sizeof passed);
    }
    return sendmsg(fd, &message, MSG_NOSIGNAL) == 1 ? 0 : -1;
}

/* The launcher may have died before the signal was armed; its end of the report tells. */
static int follow_launcher(int report_fd, struct fail *fail) {
    if (prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0))
        return fail_set(fail, errno, "PR_SET_PDEATHSIG");
    struct pollfd peer = {.fd = report_fd};
    if (poll(&peer, 1, 0) > 0 && peer.revents & (POLLHUP | POLLERR))
        return fail_set(fail, 0, "the launcher ended");
    return 0;
}

static int keep_across_exec(int fd) {
    return fd < 0 ? 0 : fcntl(fd, F_SETFD, 0);
}

static int build_init(const struct stage_request *request, int words, struct fail *fail) {
    const struct spec *spec = request->spec;
    if (await_word(words, WORD_MAPPED, NULL))
        return fail_set(fail, 0, "the staging process ended early");
    /* Ids 0 of the box: what is made from here on belongs to its root, not to an unmapped id. */
    if (spec->range && (setgroups(0, NULL) || setresgid(0, 0, 0) || setresuid(0, 0, 0)))
        return fail_set(fail, errno, "becoming root of the box");
    if (unshare(CLONE_NEWIPC | CLONE_NEWUTS))
        return fail_set(fail, errno, "unshare(NEWIPC|NEWUTS)");
    if (sethostname(spec->hostname, strlen(spec->hostname)))
        return fail_set(fail, errno, "sethostname %s", spec->hostname);
    /* Its cgroups of now are the roots of what the namespace shows (cgroup_namespaces(7)). */
    if (await_word(words, WORD_ENTERED, NULL))
        return fail_set(fail, 0, "the staging process ended early");
    if (unshare(CLONE_NEWCGROUP))
        return fail_set(fail, errno, "unshare(NEWCGROUP)");
    int last_pid_fd = -1;
    if (say_word(words, WORD_NAMESPACES, -1) || await_word(words, WORD_GO, &last_pid_fd))
        return fail_set(fail, 0, "the staging process ended early");
    if (unshare(CLONE_NEWNS))
        return fail_set(fail, errno, "unshare(NEWNS)");
    if (chdir("/"))
        return fail_set(fail, errno, "chdir /");
    /* Changing ids cleared the death signal. */
    if (become_init_user(spec->range, fail) || follow_launcher(request->report, fail))
        return -1;
    const struct box_cgroups *cgroups = request->cgroups;
    const int kept[] = {request->channel_box, cgroups->execs, last_pid_fd, cgroups->memory,
                        cgroups->pids};
    char numbers[5][16];
    char *arguments[] = {"substrate-init", numbers[0], numbers[1], numbers[2],
                         numbers[3],       numbers[4], NULL};
    for (size_t i = 0; i < 5; i++) {
        if (keep_across_exec(kept[i]))
            return fail_set(fail, errno, "keeping descriptors");
        snprintf(numbers[i], sizeof numbers[i], "%d", kept[i]);
    }
    char *environment[] = {NULL};
    syscall(SYS_execveat, config.init_fd, "", arguments, environment, AT_EMPTY_PATH);
    return fail_set(fail, errno, "executing substrate-init");
}

static void run_init(const struct stage_request *request, int words) {
    struct fail fail = {.op = -1};
    prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
    setsid();
    (void)build_init(request, words, &fail);
    report_fail(request->report, &fail);
    _exit(1);
}

/* ---- the stage ------------------------------------------------------------------------------- */

static int set_loopback_up(void) {
    SUB_AUTO_FD socket_fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    struct ifreq request = {.ifr_flags = IFF_UP | IFF_RUNNING};
    memcpy(request.ifr_name, "lo", 3);
    return socket_fd < 0 ? -1 : ioctl(socket_fd, SIOCSIFFLAGS, &request);
}

/*
 * The init inherits this network namespace, which its user namespace does not own (router.c). So
 * its root cannot have NET_BIND_SERVICE there: low ports are for everybody instead. Where /proc/sys
 * cannot be written (some containers) they are for nobody.
 */
static int enter_own_network(int proc_fd, struct fail *fail) {
    if (unshare(CLONE_NEWNET))
        return fail_set(fail, errno, "unshare(NEWNET)");
    if (set_loopback_up())
        return fail_set(fail, errno, "setting the loopback interface up");
    (void)write_file_at(proc_fd, "sys/net/ipv4/ip_unprivileged_port_start", "0");
    return 0;
}

static int enter_private_mounts(bool rootless, struct fail *fail) {
    if (rootless && setns(config.userns_fd, CLONE_NEWUSER))
        return fail_set(fail, errno, "entering the launcher's user namespace");
    if (rootless && unshare(CLONE_NEWNS))
        return fail_set(fail, errno, "unshare(NEWNS)");
    if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL))
        return fail_set(fail, errno, "making mounts private");
    return 0;
}

static int map_init(const struct stage_request *request, int proc_fd, const char *pid,
                    bool rootless, struct fail *fail) {
    if (request->spec->range)
        return write_id_maps(proc_fd, pid, 0, request->id_base, request->id_base, ID_RANGE_SIZE,
                             fail);
    if (rootless)
        return write_id_maps(proc_fd, pid, config.uid, config.uid, config.gid, 1, fail);
    return write_id_maps(proc_fd, pid, 0, 0, 0, ID_RANGE_SIZE, fail);
}

/* Files made from here on, by us or by overlayfs in our name, belong to the box's root. */
static int act_as_box_root(uint32_t id_base, struct fail *fail) {
    setfsgid(id_base);
    setfsuid(id_base); /* takes the file capabilities out of the effective set */
    if (raise_all_capabilities())
        return fail_set(fail, errno, "capset");
    return 0;
}

static int build_tree(const struct stage_request *request, struct tree *tree) {
    const struct spec *spec = request->spec;
    if (tree_begin(tree))
        return -1;
    for (uint32_t i = 0; i < spec->op_count; i++) {
        if (tree_apply(tree, &spec->ops[i])) {
            tree->fail->op = (int32_t)i;
            return -1;
        }
    }
    return 0;
}

static int pivot(struct tree *tree) {
    if (fchdir(tree->root_fd) || syscall(SYS_pivot_root, ".", ".") || umount2(".", MNT_DETACH) ||
        chdir("/"))
        return fail_set(tree->fail, errno, "pivot_root");
    return 0;
}

/*
 * A user namespace remembers its maker's limit of processes, and counts all that run in it, whatever
 * their ids, as its maker's (kernel/ucount.c): a limit for the box that root of the box, who has
 * 65,536 ids to count for, cannot get around. So the maker is the box's own root for a moment; with
 * NO_SETUID_FIXUP our capabilities stay.
 */
static int clone_counted(const struct stage_request *request, uint64_t flags, int *pidfd,
                         pid_t *child, struct fail *fail) {
    uint32_t id = request->id_base;
    struct rlimit before, limit;
    if (getrlimit(RLIMIT_NPROC, &before))
        return fail_set(fail, errno, "getrlimit");
    limit = before;
    /* With a cgroup that counts, which can be told otherwise while the box lives, not here too. */
    if (request->cgroups->pids < 0 && limit.rlim_cur > request->spec->limits.pids)
        limit.rlim_cur = request->spec->limits.pids;
    if (setrlimit(RLIMIT_NPROC, &limit) ||
        prctl(PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP, 0, 0, 0) || setresuid(id, id, 0))
        return fail_set(fail, errno, "limiting processes");
    *child = (pid_t)clone_process(flags, pidfd, request->cgroups->world);
    int error = errno;
    if (*child != 0 && (setresuid(0, 0, 0) || prctl(PR_SET_SECUREBITS, 0, 0, 0, 0) ||
                        setrlimit(RLIMIT_NPROC, &before)))
        return fail_set(fail, errno, "limiting processes");
    errno = error;
    return 0;
}

static int stage_box(const struct stage_request *request, bool rootless, struct fail *fail,
                     pid_t *init) {
    SUB_AUTO_FD proc_fd = open("/proc", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (proc_fd < 0)
        return fail_set(fail, errno, "open /proc");
    if (enter_private_mounts(rootless, fail) || enter_own_network(proc_fd, fail))
        return -1;
    int words[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, words))
        return fail_set(fail, errno, "socketpair");
    int pidfd = -1;
    uint64_t flags = CLONE_NEWUSER | CLONE_NEWPID | CLONE_PARENT | CLONE_PIDFD;
    if (!request->spec->range)
        *init = (pid_t)clone_process(flags, &pidfd, request->cgroups->world);
    else if (clone_counted(request, flags, &pidfd, init, fail))
        return -1;
    if (*init < 0)
        return fail_set(fail, errno, "clone3(NEWUSER|NEWPID)");
    if (*init == 0) {
        close(words[0]);
        run_init(request, words[1]);
    }
    close(words[1]);
    struct stage_report message = {.kind = STAGE_INIT_PID, .init_pid = *init};
    report(request->report, &message, NULL, 0);
    SUB_AUTO_FD entered = cgroup_enter(request->cgroups, *init, fail);
    if (entered < 0)
        return -1;

    char pid[16], path[32];
    snprintf(pid, sizeof pid, "%d", *init);
    snprintf(path, sizeof path, "%d/ns/user", *init);
    if (map_init(request, proc_fd, pid, rootless, fail))
        return -1;
    if (say_word(words[0], WORD_MAPPED, -1))
        return fail_set(fail, errno, "the init ended early");
    struct tree tree = {.stage_dir = config.stage_dir,
                        .stage_fd = -1,
                        .root_fd = -1,
                        .userns_fd = -1,
                        .id_base = request->id_base,
                        .rootless = rootless,
                        .fail = fail};
    if (request->spec->range) {
        tree.userns_fd = openat(proc_fd, path, O_RDONLY | O_CLOEXEC);
        if (tree.userns_fd < 0)
            return fail_set(fail, errno, "open /proc/%s", path);
        if (act_as_box_root(request->id_base, fail))
            return -1;
    }
    int segments = -1, last_pid = -1;
    if (build_tree(request, &tree))
        return -1;
    if (cgroup_entered(entered, fail))
        return -1;
    if (say_word(words[0], WORD_ENTERED, -1) || await_word(words[0], WORD_NAMESPACES, NULL))
        return fail_set(fail, 0, "the init ended early");
    if (cgroup_settle(request->cgroups, *init, &request->spec->limits, fail))
        return -1;
    if (tree_system_mounts(&tree, pidfd, request->spec->segment_limit, &segments, &last_pid) ||
        pivot(&tree))
        return -1;
    message.kind = STAGE_BOX;
    int passed[2] = {pidfd, segments};
    report(request->report, &message, passed, 2);
    if (say_word(words[0], WORD_GO, last_pid))
        return fail_set(fail, errno, "the init ended early");
    return 0;
}

static int compare_fds(const void *a, const void *b) {
    return *(const int *)a - *(const int *)b;
}

/* The launcher's descriptors (other boxes' channels among them) are none of this box's business. */
static void close_others(const struct stage_request *request) {
    const struct box_cgroups *cgroups = request->cgroups;
    int kept[] = {2,
                  request->report,
                  request->channel_box,
                  config.init_fd,
                  config.userns_fd,
                  cgroups->world,
                  cgroups->execs,
                  cgroups->memory,
                  cgroups->pids,
                  cgroups->attach[0],
                  cgroups->attach[1],
                  cgroups->attach[2]};
    size_t count = sizeof kept / sizeof kept[0];
    qsort(kept, count, sizeof kept[0], compare_fds);
    for (size_t i = 0; i < count; i++) {
        unsigned first = (unsigned)(kept[i] < 2 ? 2 : kept[i]) + 1;
        unsigned last = i + 1 < count ? (unsigned)kept[i + 1] - 1 : ~0u;
        if (kept[i] >= 2 && first <= last)
            syscall(SYS_close_range, first, last, 0);
    }
}

pid_t stage_start(const struct stage_request *request) {
    bool rootless = !config.is_root;
    pid_t stage = (pid_t)clone_process(rootless ? 0 : CLONE_NEWNS, NULL, -1);
    if (stage != 0)
        return stage;
    reset_signals();
    prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
    close_others(request);
    struct fail fail = {.op = -1};
    pid_t init = -1;
    if (stage_box(request, rootless, &fail, &init)) {
        report_fail(request->report, &fail);
        if (init > 0)
            kill(init, SIGKILL);
        _exit(1);
    }
    _exit(0);
}
