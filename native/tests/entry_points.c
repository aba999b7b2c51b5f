/*
 * Calls the entry points that calls.c does not, by name, in the current directory, and prints what
 * each was passed and returned: "name<TAB>path or descriptor<TAB>result<TAB>errno<TAB>bytes".
 * Those that libc has not are left out.
 */
#define _GNU_SOURCE 1

#include <arpa/inet.h>
#include <arpa/nameser.h>
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

static void *find(const char *name) {
    return dlsym(RTLD_DEFAULT, name);
}

static void report(const char *name, const char *what, long result, long bytes) {
    int error = result < 0 ? errno : 0;
    printf("%s\t%s\t%ld\t%d\t%ld\n", name, what, result < 0 ? -1 : result, error, bytes);
    fflush(stdout);
}

#define REPORT_FD(name, fd, result)                                                                \
    do {                                                                                           \
        long got = (result);                                                                       \
        int error = errno;                                                                         \
        char number[16];                                                                           \
        snprintf(number, sizeof(number), "%d", fd);                                                \
        errno = error;                                                                             \
        report(name, number, got, got > 0 ? got : 0);                                              \
    } while (0)

/* WITH(name, type): `call` is the function of that name, if there is one. */
#define WITH(name, ...)                                                                            \
    for (__typeof__(__VA_ARGS__) call = (__typeof__(__VA_ARGS__))find(name); call != NULL;         \
         call = NULL)

static void look_up(void) {
    char status[512], text[4096];
    static const char *const two[] = {"stat",   "stat64",   "lstat",   "lstat64",
                                      "statfs", "statfs64", "statvfs", "statvfs64"};
    for (size_t i = 0; i < sizeof(two) / sizeof(two[0]); i++) {
        WITH(two[i], (int (*)(const char *, void *))0) {
            report(two[i], "file", call("file", status), 0);
            report(two[i], "absent", call("absent", status), 0);
            report(two[i], "EFAULT", call((const char *)8, status), 0);
        }
    }
    static const char *const at[] = {"fstatat", "fstatat64"};
    for (size_t i = 0; i < 2; i++) {
        WITH(at[i], (int (*)(int, const char *, void *, int))0) {
            report(at[i], "file", call(AT_FDCWD, "file", status, 0), 0);
            report(at[i], "absent", call(AT_FDCWD, "absent", status, 0), 0);
        }
    }
    static const char *const old[] = {"__xstat", "__xstat64", "__lxstat", "__lxstat64"};
    for (size_t i = 0; i < 4; i++) {
        WITH(old[i], (int (*)(int, const char *, void *))0) {
            report(old[i], "file", call(1, "file", status), 0);
            report(old[i], "absent", call(1, "absent", status), 0);
        }
    }
    static const char *const old_at[] = {"__fxstatat", "__fxstatat64"};
    for (size_t i = 0; i < 2; i++)
        WITH(old_at[i], (int (*)(int, int, const char *, void *, int))0)
    report(old_at[i], "file", call(1, AT_FDCWD, "file", status, 0), 0);
    WITH("statx", (int (*)(int, const char *, int, unsigned, void *))0)
    report("statx", "file", call(AT_FDCWD, "file", 0, 0x7ff, status), 0);
    static const char *const modes[] = {"access", "euidaccess", "eaccess"};
    for (size_t i = 0; i < 3; i++) {
        WITH(modes[i], (int (*)(const char *, int))0) {
            report(modes[i], "file", call("file", R_OK), 0);
            report(modes[i], "absent", call("absent", R_OK), 0);
        }
    }
    report("faccessat", "file", faccessat(AT_FDCWD, "file", R_OK, 0), 0);
    report("readlink", "link", readlink("link", text, sizeof(text)), 0);
    report("readlink", "file", readlink("file", text, sizeof(text)), 0);
    report("readlinkat", "link", readlinkat(AT_FDCWD, "link", text, sizeof(text)), 0);
    WITH("__readlink_chk", (long (*)(const char *, char *, size_t, size_t))0)
    report("__readlink_chk", "link", call("link", text, 100, sizeof(text)), 0);
    WITH("__readlinkat_chk", (long (*)(int, const char *, char *, size_t, size_t))0)
    report("__readlinkat_chk", "link", call(AT_FDCWD, "link", text, 100, sizeof(text)), 0);
    report("realpath", "link", realpath("link", text) != NULL ? 0 : -1, 0);
    report("realpath", "absent", realpath("absent", text) != NULL ? 0 : -1, 0);
    WITH("__realpath_chk", (char *(*)(const char *, char *, size_t))0)
    report("__realpath_chk", "link", call("link", text, sizeof(text)) != NULL ? 0 : -1, 0);
    WITH("canonicalize_file_name", (char *(*)(const char *))0) {
        char *name = call("link");
        report("canonicalize_file_name", "link", name != NULL ? 0 : -1, 0);
        free(name);
    }
    static const char *const get[] = {"getxattr", "lgetxattr"};
    for (size_t i = 0; i < 2; i++)
        WITH(get[i], (long (*)(const char *, const char *, void *, size_t))0)
    report(get[i], "file", call("file", "user.no", status, sizeof(status)), 0);
    static const char *const list[] = {"listxattr", "llistxattr"};
    for (size_t i = 0; i < 2; i++)
        WITH(list[i], (long (*)(const char *, char *, size_t))0)
    report(list[i], "file", call("file", NULL, 0), 0);
}

static void look_up_descriptors(int fd) {
    char status[512];
    static const char *const plain[] = {"fstat", "fstat64"};
    for (size_t i = 0; i < 2; i++)
        WITH(plain[i], (int (*)(int, void *))0) {
            REPORT_FD(plain[i], fd, call(fd, status));
            REPORT_FD(plain[i], 900, call(900, status));
        }
    static const char *const old[] = {"__fxstat", "__fxstat64"};
    for (size_t i = 0; i < 2; i++)
        WITH(old[i], (int (*)(int, int, void *))0) REPORT_FD(old[i], fd, call(1, fd, status));
    WITH("statx", (int (*)(int, const char *, int, unsigned, void *))0)
    REPORT_FD("statx", fd, call(fd, "", AT_EMPTY_PATH, 0x7ff, status));
}

/* Everything moves a few bytes at the file's start. */
static void transfer_file(int fd) {
    char bytes[64] = "0123456789";
    struct iovec vector[2] = {{bytes, 3}, {bytes + 3, 4}};
    static const char *const writes[] = {"write", "__write"};
    for (size_t i = 0; i < 2; i++)
        WITH(writes[i], (long (*)(int, const void *, size_t))0)
    REPORT_FD(writes[i], fd, call(fd, bytes, 10));
    static const char *const pwrites[] = {"pwrite", "pwrite64", "__pwrite64"};
    for (size_t i = 0; i < 3; i++)
        WITH(pwrites[i], (long (*)(int, const void *, size_t, off_t))0)
    REPORT_FD(pwrites[i], fd, call(fd, bytes, 9, 0));
    REPORT_FD("writev", fd, writev(fd, vector, 2));
    static const char *const pwritevs[] = {"pwritev", "pwritev64"};
    for (size_t i = 0; i < 2; i++)
        WITH(pwritevs[i], (long (*)(int, const struct iovec *, int, off_t))0)
    REPORT_FD(pwritevs[i], fd, call(fd, vector, 2, 0));
    static const char *const pwritev2s[] = {"pwritev2", "pwritev64v2"};
    for (size_t i = 0; i < 2; i++)
        WITH(pwritev2s[i], (long (*)(int, const struct iovec *, int, off_t, int))0)
    REPORT_FD(pwritev2s[i], fd, call(fd, vector, 2, 0, 0));
    static const char *const reads[] = {"read", "__read"};
    for (size_t i = 0; i < 2; i++)
        WITH(reads[i], (long (*)(int, void *, size_t))0) {
            lseek(fd, 0, SEEK_SET);
            REPORT_FD(reads[i], fd, call(fd, bytes, 5));
            report(reads[i], "900", call(900, bytes, 5), 0);
            report(reads[i], "fault", call(fd, (void *)8, 5), 0);
        }
    WITH("__read_chk", (long (*)(int, void *, size_t, size_t))0)
    REPORT_FD("__read_chk", fd, call(fd, bytes, 2, sizeof(bytes)));
    static const char *const preads[] = {"pread", "pread64", "__pread64"};
    for (size_t i = 0; i < 3; i++)
        WITH(preads[i], (long (*)(int, void *, size_t, off_t))0)
    REPORT_FD(preads[i], fd, call(fd, bytes, 6, 0));
    static const char *const checked[] = {"__pread_chk", "__pread64_chk"};
    for (size_t i = 0; i < 2; i++)
        WITH(checked[i], (long (*)(int, void *, size_t, off_t, size_t))0)
    REPORT_FD(checked[i], fd, call(fd, bytes, 6, 0, sizeof(bytes)));
    lseek(fd, 0, SEEK_SET);
    REPORT_FD("readv", fd, readv(fd, vector, 2));
    static const char *const preadvs[] = {"preadv", "preadv64"};
    for (size_t i = 0; i < 2; i++)
        WITH(preadvs[i], (long (*)(int, const struct iovec *, int, off_t))0)
    REPORT_FD(preadvs[i], fd, call(fd, vector, 2, 0));
    static const char *const preadv2s[] = {"preadv2", "preadv64v2"};
    for (size_t i = 0; i < 2; i++)
        WITH(preadv2s[i], (long (*)(int, const struct iovec *, int, off_t, int))0)
    REPORT_FD(preadv2s[i], fd, call(fd, vector, 2, 0, 0));
}

static void transfer_sockets(void) {
    char bytes[64] = "0123456789";
    int pair[2];
    struct iovec vector = {bytes, 8};
    struct mmsghdr message = {.msg_hdr = {.msg_iov = &vector, .msg_iovlen = 1}};
    if (socketpair(AF_UNIX, SOCK_DGRAM, 0, pair) != 0)
        return;
    int to = pair[0], from = pair[1];
    static const char *const sends[] = {"send", "__send"};
    for (size_t i = 0; i < 2; i++)
        WITH(sends[i], (long (*)(int, const void *, size_t, int))0)
    REPORT_FD(sends[i], to, call(to, bytes, 10, 0));
    REPORT_FD("sendto", to, sendto(to, bytes, 10, 0, NULL, 0));
    REPORT_FD("sendmsg", to, sendmsg(to, &message.msg_hdr, 0));
    static const char *const several[] = {"sendmmsg", "__sendmmsg"};
    for (size_t i = 0; i < 2; i++)
        WITH(several[i], (int (*)(int, struct mmsghdr *, unsigned, int))0)
    REPORT_FD(several[i], to, call(to, &message, 1, 0) == 1 ? message.msg_len : -1);
    static const char *const receives[] = {"recv", "__recv"};
    for (size_t i = 0; i < 2; i++)
        WITH(receives[i], (long (*)(int, void *, size_t, int))0)
    REPORT_FD(receives[i], from, call(from, bytes, 64, MSG_PEEK));
    WITH("__recv_chk", (long (*)(int, void *, size_t, size_t, int))0)
    REPORT_FD("__recv_chk", from, call(from, bytes, 32, sizeof(bytes), MSG_PEEK));
    REPORT_FD("recvfrom", from, recvfrom(from, bytes, 64, MSG_PEEK, NULL, NULL));
    WITH("__recvfrom_chk", (long (*)(int, void *, size_t, size_t, int, void *, void *))0)
    REPORT_FD("__recvfrom_chk", from, call(from, bytes, 32, sizeof(bytes), MSG_PEEK, NULL, NULL));
    REPORT_FD("recvmsg", from, recvmsg(from, &message.msg_hdr, MSG_PEEK));
    REPORT_FD("recvmmsg", from,
              recvmmsg(from, &message, 1, MSG_PEEK, NULL) == 1 ? message.msg_len : -1);
    close(to);
    close(from);
}

/* name, from, result, errno, to */
static void copy(int from, int to) {
    static const char *const files[] = {"sendfile", "sendfile64"};
    for (size_t i = 0; i < 2; i++)
        WITH(files[i], (long (*)(int, int, off_t *, size_t))0) {
            off_t at = 0;
            report(files[i], "from", call(to, from, &at, 4), to);
        }
    WITH("copy_file_range", (long (*)(int, off_t *, int, off_t *, size_t, unsigned))0) {
        off_t at = 0, end = 20;
        report("copy_file_range", "from", call(from, &at, to, &end, 5, 0), to);
    }
    int pipes[2];
    if (pipe(pipes) == 0) {
        off_t at = 0;
        report("splice", "from", splice(from, &at, pipes[1], NULL, 3, 0), pipes[1]);
        close(pipes[0]);
        close(pipes[1]);
    }
}

static void change(int fd, int directory) {
    struct timeval times[2] = {{1, 0}, {2, 0}};
    struct timespec precise[2] = {{1, 0}, {2, 0}};
    static const char *const by_path[] = {"utime", "utimes", "lutimes"};
    for (size_t i = 0; i < 3; i++)
        WITH(by_path[i], (int (*)(const char *, const void *))0) {
            report(by_path[i], "file", call("file", i == 0 ? NULL : times), 0);
            report(by_path[i], "absent", call("absent", NULL), 0);
        }
    report("futimes", "file", futimes(fd, times), 0);
    report("futimesat", "file", futimesat(directory, "file", times), 0);
    report("futimens", "file", futimens(fd, precise), 0);
    report("utimensat", "file", utimensat(directory, "file", precise, 0), 0);
    static const char *const rooms[] = {"fallocate", "fallocate64"};
    for (size_t i = 0; i < 2; i++)
        WITH(rooms[i], (int (*)(int, int, off_t, off_t))0)
    report(rooms[i], "file", call(fd, 0, 0, 64), 0);
    static const char *const posix_rooms[] = {"posix_fallocate", "posix_fallocate64"};
    for (size_t i = 0; i < 2; i++)
        WITH(posix_rooms[i], (int (*)(int, off_t, off_t))0) {
            errno = call(fd, 0, 64);
            report(posix_rooms[i], "file", errno != 0 ? -1 : 0, 0);
        }
    static const char *const sets[] = {"setxattr", "lsetxattr"};
    for (size_t i = 0; i < 2; i++)
        WITH(sets[i], (int (*)(const char *, const char *, const void *, size_t, int))0)
    report(sets[i], "file", call("file", "user.x", "1", 1, 0), 0);
    WITH("fsetxattr", (int (*)(int, const char *, const void *, size_t, int))0)
    report("fsetxattr", "file", call(fd, "user.y", "1", 1, 0), 0);
    static const char *const removes[] = {"removexattr", "lremovexattr"};
    for (size_t i = 0; i < 2; i++)
        WITH(removes[i], (int (*)(const char *, const char *))0)
    report(removes[i], "file", call("file", "user.x"), 0);
    WITH("fremovexattr", (int (*)(int, const char *))0)
    report("fremovexattr", "file", call(fd, "user.y"), 0);
    report("lchmod", "file", lchmod("file", 0644), 0);
    WITH("__xmknod", (int (*)(int, const char *, mode_t, dev_t *))0) {
        dev_t none = 0;
        report("__xmknod", "node", call(0, "node", S_IFREG | 0600, &none), 0);
    }
    WITH("__xmknodat", (int (*)(int, int, const char *, mode_t, dev_t *))0) {
        dev_t none = 0;
        report("__xmknodat", "node2", call(0, directory, "node2", S_IFREG | 0600, &none), 0);
    }
    WITH("mount", (int (*)(const char *, const char *, const char *, unsigned long, void *))0)
    report("mount", "absent", call("none", "absent", "tmpfs", 0, NULL), 0);
    WITH("umount", (int (*)(const char *))0) report("umount", "absent", call("absent"), 0);
    WITH("umount2", (int (*)(const char *, int))0)
    report("umount2", "absent", call("absent", 0), 0);
}

static void opens(void) {
    WITH("memfd_create", (int (*)(const char *, unsigned))0) {
        int fd = call("memory", 0);
        report("memfd_create", "memory", fd, 0);
        close(fd);
    }
    WITH("sem_open", (void *(*)(const char *, int, ...))0)
    report("sem_open", "/absent-semaphore", call("/absent-semaphore", 0) != NULL ? 0 : -1, 0);
    WITH("sem_unlink", (int (*)(const char *))0)
    report("sem_unlink", "/absent-semaphore", call("/absent-semaphore"), 0);
    WITH("mq_open", (int (*)(const char *, int, ...))0)
    report("mq_open", "/absent-queue", call("/absent-queue", O_RDONLY), 0);
    WITH("__mq_open_2", (int (*)(const char *, int))0)
    report("__mq_open_2", "/absent-queue", call("/absent-queue", O_RDONLY), 0);
    WITH("mq_unlink", (int (*)(const char *))0)
    report("mq_unlink", "/absent-queue", call("/absent-queue"), 0);
    struct {
        struct file_handle head;
        char bytes[128];
    } handle = {.head = {.handle_bytes = 128}};
    int mount;
    if (name_to_handle_at(AT_FDCWD, "file", &handle.head, &mount, 0) == 0) {
        int directory = open(".", O_RDONLY);
        int fd = open_by_handle_at(directory, &handle.head, O_RDONLY);
        report("open_by_handle_at", fd < 0 ? "" : "file", fd, 0);
        close(fd);
        close(directory);
    }
}

static int visit(const char *path, const struct stat *status, int kind) {
    return 0;
}

static void walk(void) {
    static const char *const walks[] = {"ftw", "ftw64"};
    for (size_t i = 0; i < 2; i++)
        WITH(walks[i], (int (*)(const char *, void *, int))0)
    report(walks[i], "sub", call("sub", (void *)visit, 4), 0);
    static const char *const longer[] = {"nftw", "nftw64"};
    for (size_t i = 0; i < 2; i++)
        WITH(longer[i], (int (*)(const char *, void *, int, int))0)
    report(longer[i], "sub", call("sub", (void *)visit, 4, 0), 0);
    static const char *const fts[] = {"fts_open", "fts64_open"};
    for (size_t i = 0; i < 2; i++)
        WITH(fts[i], (void *(*)(char *const *, int, void *))0) {
            char *roots[] = {"sub", NULL};
            report(fts[i], "sub", call(roots, 0x10, NULL) != NULL ? 0 : -1, 0);
        }
    static const char *const globs[] = {"glob", "glob64"};
    for (size_t i = 0; i < 2; i++)
        WITH(globs[i], (int (*)(const char *, int, void *, void *))0) {
            char matches[128] = {0};
            report(globs[i], "su?", call("su?", 0, NULL, matches), 0);
        }
    WITH("wordexp", (int (*)(const char *, void *, int))0) {
        char words[64] = {0};
        report("wordexp", "$(echo a) b", call("$(echo a) b", words, 0), 0);
    }
}

/* name, number of the address family or what was looked up, result, errno */
static void network(void) {
    struct sockaddr_in in = {.sin_family = AF_INET};
    socklen_t length = sizeof(in);
    inet_pton(AF_INET, "127.0.0.1", &in.sin_addr);
    int server = socket(AF_INET, SOCK_STREAM, 0);
    report("bind", "127.0.0.1", bind(server, (struct sockaddr *)&in, sizeof(in)), 0);
    report("bind", "fault", bind(server, (struct sockaddr *)8, sizeof(in)), 0);
    report("listen", "", listen(server, 7), 0);
    getsockname(server, (struct sockaddr *)&in, &length);
    for (int i = 0; i < 2; i++) {
        int client = socket(AF_INET, SOCK_STREAM, 0);
        connect(client, (struct sockaddr *)&in, sizeof(in));
        int accepted = i == 0 ? accept(server, NULL, NULL) : accept4(server, NULL, NULL, 0);
        report(i == 0 ? "accept" : "accept4", "127.0.0.1", accepted, 0);
        REPORT_FD("write", accepted, write(accepted, "hello", 5));
        close(client);
        close(accepted);
    }
    close(server);
    server = socket(AF_INET, SOCK_STREAM, 0);
    report("accept", "", accept(server, NULL, NULL), 0);
    close(server);
    int datagram = socket(AF_INET, SOCK_DGRAM, 0);
    in.sin_port = htons(9);
    report("sendto", "127.0.0.1:9",
           sendto(datagram, "datagram", 8, 0, (struct sockaddr *)&in, sizeof(in)), 8);
    close(datagram);

    char host[256], buffer[4096], answer[512];
    struct hostent found, *result;
    int error;
    report("getnameinfo", "127.0.0.1",
           getnameinfo((struct sockaddr *)&in, sizeof(in), host, sizeof(host), NULL, 0,
                       NI_NUMERICHOST),
           0);
    report("gethostbyname", "127.0.0.1", gethostbyname("127.0.0.1") != NULL ? 0 : -1, 0);
    report("gethostbyname2", "127.0.0.1", gethostbyname2("127.0.0.1", AF_INET) != NULL ? 0 : -1, 0);
    gethostbyname_r("127.0.0.1", &found, buffer, sizeof(buffer), &result, &error);
    report("gethostbyname_r", "127.0.0.1", result != NULL ? 0 : -1, 0);
    gethostbyname2_r("127.0.0.1", AF_INET, &found, buffer, sizeof(buffer), &result, &error);
    report("gethostbyname2_r", "127.0.0.1", result != NULL ? 0 : -1, 0);
    struct hostent *by_address = gethostbyaddr(&in.sin_addr, 4, AF_INET);
    report("gethostbyaddr", by_address != NULL ? "127.0.0.1" : "", by_address != NULL ? 0 : -1, 0);
    gethostbyaddr_r(&in.sin_addr, 4, AF_INET, &found, buffer, sizeof(buffer), &result, &error);
    report("gethostbyaddr_r", result != NULL ? "127.0.0.1" : "", result != NULL ? 0 : -1, 0);
    WITH("getaddrinfo_a", (int (*)(int, struct gaicb **, int, struct sigevent *))0) {
        struct gaicb request = {.ar_name = "127.0.0.1"}, *list[] = {&request};
        report("getaddrinfo_a", "127.0.0.1", call(0 /* GAI_WAIT */, list, 1, NULL), 0);
    }
    /* No name server answers at this address; whether one does is not the question. */
    static const char *const queries[] = {"res_query", "__res_query", "res_search", "__res_search"};
    for (size_t i = 0; i < 4; i++)
        WITH(queries[i], (int (*)(const char *, int, int, void *, int))0)
    report(queries[i], "name.invalid", call("name.invalid", 1, 1, answer, 512), 0);
    static const char *const sends[] = {"res_send", "__res_send"};
    unsigned char message[] = {0,   1,   1, 0,   0,   1,   0,   0,   0,   0,   0, 0, 4, 'n', 'a',
                               'm', 'e', 7, 'i', 'n', 'v', 'a', 'l', 'i', 'd', 0, 0, 1, 0,   1};
    for (size_t i = 0; i < 2; i++)
        WITH(sends[i], (int (*)(const void *, int, void *, int))0)
    report(sends[i], "name.invalid", call(message, sizeof(message), answer, 512), 0);
}

static void *in_thread(void *unused) {
    return unused;
}

static void threads(void) {
    pthread_t thread;
    report("pthread_create", "", pthread_create(&thread, NULL, in_thread, NULL), 0);
    pthread_join(thread, NULL);
    WITH("thrd_create", (int (*)(pthread_t *, void *, void *))0) {
        report("thrd_create", "", call(&thread, (void *)in_thread, NULL), 0);
        pthread_join(thread, NULL);
    }
    WITH("unshare", (int (*)(int))0) report("unshare", "", call(0), 0);
    WITH("setns", (int (*)(int, int))0) report("setns", "", call(-1, 0), 0);
}

static void copies(int fd) {
    int made[8], count = 0;
    REPORT_FD("dup", fd, made[count++] = dup(fd));
    REPORT_FD("dup2", fd, made[count++] = dup2(fd, 100));
    REPORT_FD("dup2", fd, dup2(fd, fd));
    REPORT_FD("dup2", 900, dup2(900, 100));
    WITH("__dup2", (int (*)(int, int))0) REPORT_FD("__dup2", fd, made[count++] = call(fd, 101));
    REPORT_FD("dup3", fd, made[count++] = dup3(fd, 102, O_CLOEXEC));
    static const char *const controls[] = {"fcntl", "__fcntl", "fcntl64"};
    for (size_t i = 0; i < 3; i++)
        WITH(controls[i], (int (*)(int, int, ...))0)
    REPORT_FD(controls[i], fd, made[count++] = call(fd, F_DUPFD_CLOEXEC, 200));
    while (count > 0)
        close(made[--count]);
}

/* Only this part reads anything of these; the last line says how often. */
static void sources(void) {
    struct timespec now;
    struct timeval day;
    char bytes[16];
    long clock = 0, monotonic = 0, random = 0, pid = 0, order = 0;
    time(NULL), clock++;
    gettimeofday(&day, NULL), clock++;
    static const char *const clocks[] = {"clock_gettime", "__clock_gettime"};
    for (size_t i = 0; i < 2; i++)
        WITH(clocks[i], (int (*)(clockid_t, struct timespec *))0) {
            call(CLOCK_REALTIME, &now), clock++;
            call(CLOCK_MONOTONIC, &now), monotonic++;
            if (call(999, &now) != -1 || errno != EINVAL)
                abort();
            monotonic++;
        }
    WITH("__gettimeofday", (int (*)(struct timeval *, void *))0)
    call(&day, NULL), clock++;
    WITH("timespec_get", (int (*)(struct timespec *, int))0) call(&now, 1), clock++;
    WITH("ftime", (int (*)(void *))0) call(bytes), clock++;
    WITH("getrandom", (long (*)(void *, size_t, unsigned))0) call(bytes, 16, 0), random++;
    WITH("getentropy", (int (*)(void *, size_t))0) call(bytes, 16), random++;
    WITH("arc4random", (uint32_t (*)(void))0) call(), random++;
    WITH("arc4random_buf", (void (*)(void *, size_t))0) call(bytes, 16), random++;
    WITH("arc4random_uniform", (uint32_t (*)(uint32_t))0) call(5), random++;
    getpid(), pid++;
    getppid(), pid++;
    WITH("__getpid", (int (*)(void))0) call(), pid++;
    WITH("gettid", (int (*)(void))0) call(), pid++;
    syscall(SYS_gettid), pid++;
    syscall(SYS_getrandom, bytes, 4, 0), random++;
    DIR *listing = opendir("sub");
    static const char *const reads[] = {"readdir", "readdir64"};
    for (size_t i = 0; i < 2; i++)
        WITH(reads[i], (void *(*)(DIR *))0) call(listing), order++;
    static const char *const again[] = {"readdir_r", "readdir64_r"};
    for (size_t i = 0; i < 2; i++)
        WITH(again[i], (int (*)(DIR *, void *, void **))0) {
            char entry[512];
            void *result;
            call(listing, entry, &result), order++;
        }
    closedir(listing);
    printf("sources\t%ld %ld %ld %ld %ld\n", clock, monotonic, random, pid, order);
    fflush(stdout);
}

/* What a program asks of the kernel by number. */
static void numbers(int directory) {
    uint64_t how[3] = {O_RDONLY, 0, 0};
    char status[512];
    long fd = syscall(SYS_openat2, directory, "file", how, sizeof(how));
    report("openat2", "file", fd, 0);
    close((int)fd);
    report("openat2", "absent", syscall(SYS_openat2, directory, "absent", how, sizeof(how)), 0);
    report("openat2", "fault", syscall(SYS_openat2, directory, "file", (void *)8, sizeof(how)), 0);
    fd = syscall(SYS_openat, AT_FDCWD, "file", O_RDONLY);
    report("openat", "file", fd, 0);
    close((int)fd);
    report("mkdirat", "numbered", syscall(SYS_mkdirat, directory, "numbered", 0700), 0);
    report("renameat2", "numbered",
           syscall(SYS_renameat2, directory, "numbered", directory, "numbered2", 0), 0);
    report("unlinkat", "numbered2", syscall(SYS_unlinkat, directory, "numbered2", AT_REMOVEDIR), 0);
    report("statx", "file", syscall(SYS_statx, AT_FDCWD, "file", 0, 0x7ff, status), 0);
    report("execveat", "absent", syscall(SYS_execveat, directory, "absent", NULL, NULL, 0), 0);
}

int main(int argc, char **argv) {
    mkdir("sub", 0755);
    symlink("file", "link");
    int directory = open(".", O_RDONLY | O_DIRECTORY);
    int fd = open("file", O_RDWR | O_CREAT, 0644);
    int other = open("other", O_RDWR | O_CREAT, 0644);
    sources();
    look_up();
    look_up_descriptors(fd);
    transfer_file(fd);
    transfer_sockets();
    copy(fd, other);
    change(fd, directory);
    opens();
    walk();
    threads();
    copies(fd);
    numbers(directory);
    if (argc > 1)
        network();
    return 3;
}
