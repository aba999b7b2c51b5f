/*
 * substrate-launcher --socket PATH --state DIR [--init FILE] [--linger SECONDS]
 *                    [--ledger bpf|proc_connector|none]
 *
 * Returns (exit 0) once it listens, or at once where another launcher of this state directory does;
 * the launcher itself goes on in the background. Ends on SUB_L_SHUTDOWN or SIGTERM, or when it has
 * had neither a box nor a connection for the lingering time.
 */
#include "launcher.h"

#include <linux/capability.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/sendfile.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <sys/un.h>

struct config config = {.linger_s = 30, .init_fd = -1, .cgroup_fd = -1, .userns_fd = -1};

static _Noreturn void die(const char *what, const char *value) {
    fprintf(stderr, "substrate-launcher: %s %s: %s\n", what, value, strerror(errno));
    exit(1);
}

static _Noreturn void usage(void) {
    fprintf(stderr, "usage: substrate-launcher --socket PATH --state DIR [--init FILE] "
                    "[--linger SECONDS] [--ledger bpf|proc_connector|none]\n");
    exit(2);
}

static void parse_arguments(int count, char **arguments) {
    for (int i = 1; i + 1 < count; i += 2) {
        const char *name = arguments[i], *value = arguments[i + 1];
        if (strcmp(name, "--socket") == 0)
            config.socket_path = value;
        else if (strcmp(name, "--state") == 0)
            config.state_dir = value;
        else if (strcmp(name, "--init") == 0)
            config.init_path = value;
        else if (strcmp(name, "--linger") == 0)
            config.linger_s = atoi(value);
        else if (strcmp(name, "--ledger") == 0)
            config.ledger = value;
        else
            usage();
    }
    if (count % 2 == 0 || !config.socket_path || !config.state_dir || config.linger_s < 0 ||
        config.socket_path[0] != '/' || config.state_dir[0] != '/')
        usage();
}

/*
 * Boxes execute this sealed copy, never the file: /proc/1/exe gives no way to the host's binary,
 * and an upgrade of the package does not change the launcher under its worlds.
 */
static void load_init(void) {
    char beside[4096];
    if (!config.init_path) {
        ssize_t length = readlink("/proc/self/exe", beside, sizeof beside - 16);
        if (length <= 0)
            die("readlink", "/proc/self/exe");
        beside[length] = 0;
        char *slash = strrchr(beside, '/');
        if (!slash)
            die("readlink", beside);
        strcpy(slash + 1, "substrate-init");
        config.init_path = beside;
    }
    SUB_AUTO_FD file = open(config.init_path, O_RDONLY | O_CLOEXEC);
    struct stat status;
    if (file < 0 || fstat(file, &status))
        die("open", config.init_path);
    config.init_fd = memfd_create("substrate-init", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (config.init_fd < 0)
        die("memfd_create", "substrate-init");
    for (off_t at = 0; at < status.st_size;)
        if (sendfile(config.init_fd, file, &at, (size_t)(status.st_size - at)) <= 0)
            die("copy", config.init_path);
    if (fcntl(config.init_fd, F_ADD_SEALS,
              F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL))
        die("seal", config.init_path);
    config.init_path = NULL;
}

static void make_state(void) {
    if (mkdir(config.state_dir, 0700) && errno != EEXIST)
        die("mkdir", config.state_dir);
    snprintf(config.stage_dir, sizeof config.stage_dir, "%s/stage", config.state_dir);
    if (mkdir(config.stage_dir, 0700) && errno != EEXIST)
        die("mkdir", config.stage_dir);
}

/* Held for life; whoever cannot have it is not needed. */
static void lock_or_leave(void) {
    char path[4096];
    snprintf(path, sizeof path, "%s/launcher.lock", config.state_dir);
    int lock = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (lock < 0)
        die("open", path);
    if (flock(lock, LOCK_EX | LOCK_NB)) {
        if (errno == EWOULDBLOCK)
            exit(0);
        die("flock", path);
    }
}

static struct stat own_socket;

static int listen_here(void) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(config.socket_path) >= sizeof address.sun_path) {
        errno = ENAMETOOLONG;
        die("socket", config.socket_path);
    }
    strcpy(address.sun_path, config.socket_path);
    int listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    unlink(config.socket_path); /* ours: we hold the lock */
    umask(0177);
    if (listener < 0 || bind(listener, (struct sockaddr *)&address, sizeof address) ||
        listen(listener, 64))
        die("listen", config.socket_path);
    umask(022);
    if (lstat(config.socket_path, &own_socket))
        die("stat", config.socket_path);
    return listener;
}

/* The name may be another launcher's by now: our state directory, and our lock with it, may have
 * been removed and made again while we lingered. */
static void remove_own_socket(void) {
    struct stat now;
    if (!lstat(config.socket_path, &now) && now.st_dev == own_socket.st_dev &&
        now.st_ino == own_socket.st_ino)
        unlink(config.socket_path);
}

/* The parent waits for `ready` and leaves; the flock goes on with the child (flock(2)). */
static int into_background(void) {
    int ready[2];
    if (pipe2(ready, O_CLOEXEC))
        die("pipe", "ready");
    pid_t child = fork();
    if (child < 0)
        die("fork", "launcher");
    if (child > 0) {
        close(ready[1]);
        char byte;
        _exit(read(ready[0], &byte, 1) == 1 ? 0 : 1); /* the child has said why */
    }
    close(ready[0]);
    setsid();
    return ready[1];
}

static void detach_streams(void) {
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    for (int fd = 0; null >= 0 && fd < 3; fd++)
        dup2(null, fd);
    if (null > 2)
        close(null);
}

/*
 * uid 0 of a user namespace, or root without CAP_SYS_ADMIN (a container), is an ordinary caller: it
 * may make user namespaces and what they allow.
 */
static bool is_real_root(void) {
    unsigned inside = 1, outside = 1, count = 0;
    FILE *map = fopen("/proc/self/uid_map", "re");
    if (map) {
        if (fscanf(map, "%u %u %u", &inside, &outside, &count) != 3)
            count = 0;
        fclose(map);
    }
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct data[2] = {0};
    syscall(SYS_capget, &header, data);
    return config.uid == 0 && inside == 0 && outside == 0 && count == UINT32_MAX &&
           data[0].effective & 1u << CAP_SYS_ADMIN;
}

int main(int count, char **arguments) {
    parse_arguments(count, arguments);
    config.uid = geteuid();
    config.gid = getegid();
    config.is_root = is_real_root();
    umask(022);
    make_state();
    lock_or_leave();
    load_init();
    int ready = into_background();
    if (prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) || chdir("/"))
        die("prepare", "launcher");
    sigset_t handled;
    sigemptyset(&handled);
    sigaddset(&handled, SIGCHLD);
    sigaddset(&handled, SIGTERM);
    sigaddset(&handled, SIGINT);
    cgroup_find();
    probe_host();
    sigprocmask(SIG_BLOCK, &handled, NULL);
    signal(SIGPIPE, SIG_IGN);
    signal(SIGHUP, SIG_IGN);
    int signals = signalfd(-1, &handled, SFD_CLOEXEC | SFD_NONBLOCK);
    int listener = listen_here();
    if (signals < 0 || server_watch(listener, WATCH_LISTENER) ||
        server_watch(signals, WATCH_SIGNALS) || ledger_start())
        die("epoll", "launcher");
    if (write(ready, "x", 1) != 1)
        die("write", "ready");
    close(ready);
    detach_streams();
    server_run(listener, signals);
    remove_own_socket();
    cgroup_remove_all();
    return 0;
}
