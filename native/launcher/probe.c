/* What this host can do, tried out once when the launcher starts. */
#include "cgroup.h"

#include <dirent.h>
#include <linux/landlock.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/fsuid.h>
#include <sys/mount.h>
#include <sys/syscall.h>
#include <sys/wait.h>

/*
 * Sets of overlay options, the best first; name, value pairs. index and nfs_export let fanotify see
 * the overlay's own changes; redirect_dir makes renaming a lower directory work; userxattr is what
 * a user namespace may use; volatile leaves out the sync of the host's whole file system that
 * unmounting costs otherwise (docs/adr/0002-id-mapping.md has the figures).
 */
static const char *const ROOT_OPTIONS[][OVERLAY_OPTIONS_MAX + 1] = {
    {"index", "on", "nfs_export", "on", "redirect_dir", "on", "volatile", NULL, NULL},
    {"index", "on", "redirect_dir", "on", "volatile", NULL, NULL},
    {"redirect_dir", "on", NULL},
    {NULL},
};
static const char *const USER_OPTIONS[][OVERLAY_OPTIONS_MAX + 1] = {
    {"userxattr", NULL, "volatile", NULL, NULL}, {"userxattr", NULL, NULL}, {NULL}};

struct probe_result {
    struct fail fail;
    char options[512];
};

static void problem(const char *text) {
    size_t used = strlen(config.problems);
    snprintf(config.problems + used, sizeof config.problems - used, "problem=%s\n", text);
}

/* The options field of the newest overlay in our mount table, without the layers. */
static void read_back(char *out, size_t room) {
    FILE *mounts = fopen("/proc/self/mounts", "re");
    static char line[8192];
    out[0] = 0;
    while (mounts && fgets(line, sizeof line, mounts)) {
        char *save, *options;
        strtok_r(line, " ", &save);
        strtok_r(NULL, " ", &save);
        char *type = strtok_r(NULL, " ", &save);
        if (!type || strcmp(type, "overlay") != 0 || !(options = strtok_r(NULL, " ", &save)))
            continue;
        out[0] = 0;
        for (char *option = strtok_r(options, ",", &save); option;
             option = strtok_r(NULL, ",", &save)) {
            size_t used = strlen(out);
            if (!strncmp(option, "lowerdir", 8) || !strncmp(option, "upperdir=", 9) ||
                !strncmp(option, "workdir=", 8))
                continue;
            snprintf(out + used, room - used, "%s%s", used ? "," : "", option);
        }
    }
    if (mounts)
        fclose(mounts);
}

static int sleeper(int words) {
    char byte;
    return read(words, &byte, 1) < 0 ? 1 : 0; /* until the prober is gone */
}

static int mount_once(bool range, const char *directory, struct fail *fail) {
    SUB_AUTO_FD proc_fd = open("/proc", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (proc_fd < 0)
        return fail_set(fail, errno, "open /proc");
    if (!config.is_root &&
        write_id_maps(proc_fd, "self", config.uid, config.uid, config.gid, 1, fail))
        return -1;
    if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL))
        return fail_set(fail, errno, "making mounts private");
    struct tree tree = {.stage_dir = config.stage_dir,
                        .stage_fd = -1,
                        .root_fd = -1,
                        .userns_fd = -1,
                        .rootless = !config.is_root,
                        .fail = fail};
    int words[2];
    if (pipe2(words, O_CLOEXEC))
        return fail_set(fail, errno, "pipe");
    pid_t child = (pid_t)clone_process(CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC |
                                           CLONE_NEWUTS | CLONE_NEWCGROUP,
                                       NULL, -1);
    if (child < 0)
        return fail_set(fail, errno, "clone3(NEWUSER|NEWPID|NEWNET|NEWIPC|NEWUTS|NEWCGROUP)");
    if (child == 0) {
        close(words[1]);
        _exit(sleeper(words[0]));
    }
    char pid[16], path[32];
    snprintf(pid, sizeof pid, "%d", child);
    snprintf(path, sizeof path, "%d/ns/user", child);
    if (range) {
        tree.id_base = ID_RANGE_FIRST;
        if (write_id_maps(proc_fd, pid, 0, tree.id_base, tree.id_base, ID_RANGE_SIZE, fail))
            return -1;
        tree.userns_fd = openat(proc_fd, path, O_RDONLY | O_CLOEXEC);
        setfsgid(tree.id_base);
        setfsuid(tree.id_base);
        if (raise_all_capabilities())
            return fail_set(fail, errno, "capset");
    }
    char lower[4200], upper[4200], work[4200];
    snprintf(lower, sizeof lower, "%s/lower", directory);
    snprintf(upper, sizeof upper, "%s/upper", directory);
    snprintf(work, sizeof work, "%s/work", directory);
    char *strings[] = {"/", upper, work, lower};
    struct op op = {.kind = SUB_OP_OVERLAY, .string_count = 4, .strings = strings};
    return tree_begin(&tree) || tree_apply(&tree, &op) ? -1 : 0;
}

/* One attempt, in a process and a mount namespace of its own. */
static struct probe_result attempt(bool range, const char *directory) {
    struct probe_result result = {.fail = {.op = -1}};
    int channel[2];
    if (pipe2(channel, O_CLOEXEC)) {
        fail_set(&result.fail, errno, "pipe");
        return result;
    }
    pid_t child =
        (pid_t)clone_process(CLONE_NEWNS | (config.is_root ? 0 : CLONE_NEWUSER), NULL, -1);
    if (child == 0) {
        if (mount_once(range, directory, &result.fail) == 0)
            read_back(result.options, sizeof result.options);
        _exit(write(channel[1], &result, sizeof result) == sizeof result ? 0 : 1);
    }
    int error = errno;
    close(channel[1]);
    if (child < 0)
        fail_set(&result.fail, error, "clone3(NEWNS%s)", config.is_root ? "" : "|NEWUSER");
    else if (read(channel[0], &result, sizeof result) != sizeof result)
        fail_set(&result.fail, 0, "the probe died");
    close(channel[0]);
    if (child > 0)
        while (waitpid(child, NULL, 0) < 0 && errno == EINTR)
            ;
    return result;
}

/* With everything overlayfs has put there: index, whiteouts, the mark of a volatile mount. */
static void remove_tree(int parent, const char *name) {
    if (unlinkat(parent, name, 0) == 0 || errno == ENOENT)
        return;
    fchmodat(parent, name, 0700, 0); /* overlayfs makes its directories mode 000 */
    int fd = openat(parent, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
    DIR *dir = fd < 0 ? NULL : fdopendir(fd);
    if (!dir) {
        if (fd >= 0)
            close(fd);
        return;
    }
    for (struct dirent *entry; (entry = readdir(dir));)
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            remove_tree(dirfd(dir), entry->d_name);
    closedir(dir);
    unlinkat(parent, name, AT_REMOVEDIR);
}

static void make_probe(const char *directory) {
    static const char *const names[] = {"", "/lower", "/upper", "/work"};
    char path[4400];
    remove_tree(AT_FDCWD, directory);
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        snprintf(path, sizeof path, "%s%s", directory, names[i]);
        mkdir(path, 0755);
    }
}

static bool try_mapping(bool range, const char *directory, struct fail *fail) {
    size_t sets = config.is_root ? sizeof ROOT_OPTIONS / sizeof ROOT_OPTIONS[0]
                                 : sizeof USER_OPTIONS / sizeof USER_OPTIONS[0];
    for (size_t i = 0; i < sets; i++) {
        memcpy(config.overlay_options, config.is_root ? ROOT_OPTIONS[i] : USER_OPTIONS[i],
               sizeof config.overlay_options);
        make_probe(directory); /* afresh: a volatile mount cannot be repeated */
        struct probe_result result = attempt(range, directory);
        if (!result.fail.text[0]) {
            snprintf(config.overlay_read_back, sizeof config.overlay_read_back, "%s",
                     result.options);
            return true;
        }
        if (i == 0)
            *fail = result.fail;
    }
    return false;
}

static void tell_unable(const struct fail *why) {
    char text[1200];
    snprintf(text, sizeof text, "worlds cannot be made: %s", why->text);
    problem(text);
    size_t used = strlen(config.problems);
    snprintf(config.problems + used, sizeof config.problems - used, "fix=%s\n", fail_hint(why));
}

void probe_host(void) {
    char directory[4096 + 16], text[1200];
    struct fail router = {0};
    if (router_start(&router)) {
        tell_unable(&router);
        return;
    }
    snprintf(directory, sizeof directory, "%s/probe", config.state_dir);
    struct fail range = {0}, plain = {0};
    config.range_works = config.is_root && try_mapping(true, directory, &range);
    if (!config.range_works) {
        if (config.is_root) {
            snprintf(text, sizeof text,
                     "overlays cannot be id-mapped here (%s): commands of root run with host uid 0 "
                     "in a user namespace; Linux 5.19+ with ext4, xfs or btrfs maps them",
                     range.text);
            problem(text);
        }
        if (!try_mapping(false, directory, &plain))
            tell_unable(&plain);
    }
    remove_tree(AT_FDCWD, directory);
    if (config.cgroup_fd < 0)
        problem("no cgroup v2 directory can be made: process trees are killed by scanning, which a "
                "fork bomb can outrun for a while; delegate a cgroup (systemd: Delegate=yes)");
}

/* 0: none. Init uses 2 and later (init/landlock.c). */
static long landlock_abi(void) {
    long abi =
        syscall(SYS_landlock_create_ruleset, NULL, (size_t)0, LANDLOCK_CREATE_RULESET_VERSION);
    return abi < 0 ? 0 : abi;
}

size_t probe_report(char *out, size_t room) {
    int length =
        snprintf(out, room,
                 "protocol=%d\npid=%d\nrouter=%d\nrootless=%d\nid_mapping=%s\noverlay=%s\noverlay_"
                 "options=%s\n"
                 "kill=%s\ncgroup=%s\nsections=limits\nlimits=memory:%s,cpu:%s,pids:%s\nledger=%"
                 "s\nledger_problem=%s\nsegments_attested=%d\nsegments_problem=%"
                 "s\nlandlock=%ld\n%s",
                 SUB_PROTOCOL_VERSION, getpid(), config.router, !config.is_root,
                 config.range_works ? "range"
                 : config.is_root   ? "weak"
                                    : "caller",
                 config.is_root ? "single" : "per-top-level-directory", config.overlay_read_back,
                 config.cgroup_fd >= 0 ? "cgroup.kill" : "subreaper", config.cgroup_dir,
                 cgroup_mechanism(CONTROLLER_MEMORY), cgroup_mechanism(CONTROLLER_CPU),
                 cgroup_mechanism(CONTROLLER_PIDS), ledger_source(), config.ledger_problem,
                 ledger_attests(), config.segments_problem, landlock_abi(), config.problems);
    return length < 0 ? 0 : (size_t)length < room ? (size_t)length : room - 1;
}
