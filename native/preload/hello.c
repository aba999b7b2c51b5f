/*
 * The first record of an image: who this process is.
 */
#define _GNU_SOURCE 1

#include <fcntl.h>
#include <sys/auxv.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "process.h"
#include "record.h"
#include "system.h"

char **sub_arguments;
int sub_argument_count;

/* What older headers lack: Linux 5.3, and PIDFD_GET_PID_NAMESPACE of 6.11. */
#ifndef SYS_pidfd_open
#define SYS_pidfd_open 434
#endif
#define GET_PID_NAMESPACE _IO(0xFF, 6)

#define FROM_PIDFS (1ULL << 62)
#define FROM_CLOCK (1ULL << 63)

static uint64_t inode_of(long descriptor) {
    struct stat status;
    return SYS2(SYS_fstat, descriptor, &status) == 0 ? (uint64_t)status.st_ino : 0;
}

/*
 * Since Linux 6.9 each process has an inode of its own in pidfs, of a number that no other process
 * has until the machine is booted again. Before, the pidfds of all processes shared one inode, and
 * fstat does not tell the two apart; that the descriptor also knows its pid namespace (6.11) does.
 * A child of a parent that learned so need not ask again: `parent` is then where it learned it.
 *
 * The first look of a process into /proc costs five times as much: the kernel makes a tree of
 * entries for it there, and throws it away at its end. The descriptors are there for an instant,
 * the first at the lowest free number, as those of the segment files are.
 */
static bool identify_by_pidfd(struct sub_identity *self, const struct sub_identity *parent) {
    if (parent != NULL && (parent->start_ticks & FROM_PIDFS) == 0)
        return false;
    long pidfd = SYS2(SYS_pidfd_open, self->pid, 0); /* close-on-exec, always */
    if (pidfd < 0)
        return false;
    if (parent != NULL) {
        self->pid_namespace = parent->pid_namespace;
    } else {
        long namespace = SYS3(SYS_ioctl, pidfd, GET_PID_NAMESPACE, 0);
        if (namespace >= 0) {
            self->pid_namespace = inode_of(namespace);
            SYS1(SYS_close, namespace);
        }
    }
    uint64_t inode = self->pid_namespace != 0 ? inode_of(pidfd) : 0;
    SYS1(SYS_close, pidfd);
    if (inode == 0)
        return false;
    self->start_ticks = inode | FROM_PIDFS;
    return true;
}

static uint64_t start_ticks_of_self(void) {
    /* The fields before the 22nd take some 200 bytes; the command, in brackets, at most 16 more. */
    char text[512];
    long fd = SYS4(SYS_openat, AT_FDCWD, "/proc/self/stat", O_RDONLY | O_CLOEXEC, 0);
    if (fd < 0)
        return 0;
    long length = SYS3(SYS_read, fd, text, sizeof(text) - 1);
    SYS1(SYS_close, fd);
    if (length <= 0)
        return 0;
    long at = length;
    while (at > 0 && text[at - 1] != ')')
        at--;
    /* After the bracket: " S ppid ...": the start time is the 20th word. */
    for (int words = 0; at < length && words < 20; at++)
        words += text[at] == ' ';
    uint64_t ticks = 0;
    for (; at < length && text[at] >= '0' && text[at] <= '9'; at++)
        ticks = ticks * 10 + (uint64_t)(text[at] - '0');
    return ticks;
}

/* The inode in "pid:[4026531836]"; reading the link is cheaper than asking for its status. */
static uint64_t pid_namespace_of_self(void) {
    char link[48];
    long length = SYS4(SYS_readlinkat, AT_FDCWD, "/proc/self/ns/pid", link, sizeof(link));
    uint64_t inode = 0;
    for (long i = 5; i < length && link[i] >= '0' && link[i] <= '9'; i++)
        inode = inode * 10 + (uint64_t)(link[i] - '0');
    return inode;
}

void sub_identify(struct sub_identity *self, const struct sub_identity *parent) {
    if (parent != NULL && SYS0(SYS_getppid) == 0)
        parent = NULL; /* a parent that cannot be seen is in another namespace */
    self->pid = (int32_t)SYS0(SYS_getpid);
    self->pid_namespace = 0;
    if (identify_by_pidfd(self, parent))
        return;
    self->start_ticks = start_ticks_of_self();
    if (self->start_ticks == 0)
        self->start_ticks = FROM_CLOCK | sub_now();
    self->pid_namespace = parent != NULL ? parent->pid_namespace : pid_namespace_of_self();
}

/* Summed over the variables, so that their order does not matter. */
uint64_t sub_hash_variable(const char *bytes, size_t length) {
    const uint64_t factor = 0x9e3779b97f4a7c15ULL;
    uint64_t hash = length * factor;
    for (; length >= 8; bytes += 8, length -= 8) {
        uint64_t word;
        memcpy(&word, bytes, 8);
        hash = (hash ^ word) * factor;
        hash ^= hash >> 29;
    }
    for (; length > 0; bytes++, length--)
        hash = (hash ^ (unsigned char)*bytes) * factor;
    return hash ^ hash >> 32;
}

static bool is_identifier(const char *variable) {
    static const char *const names[] = {
        "TRACEPARENT=", "SUBSTRATE_SESSION_ID=", "SUBSTRATE_SPAN_ID=", "SUBSTRATE_PARENT_SPAN=",
        "SUBSTRATE_EXEC_ID="};
    if (variable[0] != 'S' && variable[0] != 'T')
        return false;
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        if (strncmp(variable, names[i], strlen(names[i])) == 0)
            return true;
    }
    return false;
}

#define IDENTIFIERS 8
#define PATH_USUAL 512 /* whose paths are longer gets a bigger frame */

/* The times and ids that every hello has. */
static struct sub_hello plain_hello(uint32_t umask) {
    struct sub_hello hello = {
        .ppid = (int32_t)SYS0(SYS_getppid),
        .umask = umask,
        .realtime_ns = sub_clock(CLOCK_REALTIME),
        .boottime_ns = sub_clock(CLOCK_BOOTTIME),
        .uid = (uint32_t)SYS0(SYS_geteuid),
    };
    return hello;
}

/* Arguments and program are the parent image's. Small stack: this may be a signal handler's. */
void sub_write_forked_hello(uint32_t umask, const struct sub_identity *parent) {
    struct sub_hello hello = plain_hello(umask);
    char cwd[1024];
    long cwd_length = SYS2(SYS_getcwd, cwd, sizeof(cwd)) - 1; /* ERANGE: the parent's is taken */
    uint32_t fields = sub_field_size(sizeof(hello));
    if (cwd_length > 0)
        fields += sub_field_size((size_t)cwd_length);
    hello.parent = *parent;
    struct sub_record *record = sub_begin(SUB_HELLO, SUB_OP_fork, sub_now(), fields);
    if (record == NULL)
        return;
    unsigned char *at =
        sub_put((unsigned char *)(record + 1), SUB_TAG_HELLO, &hello, sizeof(hello));
    if (cwd_length > 0)
        sub_put(at, SUB_TAG_CWD, cwd, (size_t)cwd_length);
    sub_commit(record);
}

/* Length of the arguments as SUB_TAG_ARGV holds them. */
static uint32_t measure_arguments(uint32_t *flags) {
    uint32_t total = 0;
    for (int i = 0; i < sub_argument_count && sub_arguments[i] != NULL; i++) {
        uint32_t length = (uint32_t)strnlen(sub_arguments[i], SUB_ARGV_MAX) + 1;
        if (total + length > SUB_ARGV_MAX) {
            *flags |= SUB_FLAG_TRUNCATED;
            break;
        }
        total += length;
    }
    return total;
}

static unsigned char *put_arguments(unsigned char *at, uint32_t total) {
    struct sub_field *field = (struct sub_field *)(void *)at;
    field->tag = SUB_TAG_ARGV;
    field->bytes = total;
    char *argument = (char *)(field + 1);
    char *end = argument + total;
    for (int i = 0; argument < end; i++) {
        size_t length = strnlen(sub_arguments[i], (size_t)(end - argument) - 1);
        memcpy(argument, sub_arguments[i], length);
        argument += length + 1;
    }
    return at + sub_field_size(total);
}

static bool is_argument(const char *name, int index) {
    return index < sub_argument_count && sub_arguments[index] != NULL &&
           strcmp(sub_arguments[index], name) == 0;
}

/*
 * The program of this image, as the kernel was asked for it: below the working directory, which
 * nobody has changed yet, and with symbolic links as they were written. /proc/self/exe has them
 * followed, but it would be the image's only look into /proc.
 *
 * Of a script the kernel passes the script's name, and makes the interpreter argv[0], followed by
 * at most one argument of its own and the script. An absolute argv[0] followed by the name of the
 * file that was run is taken for that; `/bin/cat /bin/cat` looks the same, and is.
 *
 * Whoever was run by descriptor (fexecve) is called /dev/fd/N/...: only the kernel knows the rest.
 *
 * Returns `size` where that may be too small.
 */
static long find_program(char *exe, size_t size, const char *cwd, long cwd_length) {
    static const char descriptors[] = "/dev/fd/";
    const char *name = (const char *)getauxval(AT_EXECFN);
    if (name == NULL || strncmp(name, descriptors, sizeof(descriptors) - 1) == 0)
        return SYS4(SYS_readlinkat, AT_FDCWD, "/proc/self/exe", exe, size);
    if ((is_argument(name, 1) || is_argument(name, 2)) && sub_arguments[0][0] == '/')
        name = sub_arguments[0];
    size_t length = strnlen(name, size);
    size_t below = 0;
    if (name[0] != '/') {
        for (; name[0] == '.' && name[1] == '/'; length -= 2)
            name += 2;
        if (cwd_length <= 0)
            return 0;
        if ((size_t)cwd_length + 1 + length > size)
            return (long)size;
        memcpy(exe, cwd, (size_t)cwd_length);
        below = (size_t)cwd_length;
        if (exe[below - 1] != '/')
            exe[below++] = '/';
    }
    memcpy(exe + below, name, length);
    return (long)(below + length);
}

/* False when one of the two buffers may have been too small; then nothing is written. */
static bool write_exec_hello(uint32_t umask, char *cwd, char *exe, size_t size) {
    struct sub_hello hello = plain_hello(umask);
    const char *variables[IDENTIFIERS];
    uint32_t lengths[IDENTIFIERS];
    uint32_t variable_count = 0;
    uint32_t flags = 0;
    uint64_t digest = 0;
    long cwd_length = SYS2(SYS_getcwd, cwd, size);
    if (cwd_length == -ERANGE && size < SUB_STRING_MAX)
        return false;
    cwd_length--; /* its NUL */
    long exe_length = find_program(exe, size, cwd, cwd_length);
    if (exe_length >= (long)size) {
        if (size < SUB_STRING_MAX)
            return false;
        exe_length = 0;
    }
    uint32_t argv_length = measure_arguments(&flags);
    uint32_t fields = sub_field_size(sizeof(hello)) + sub_field_size(argv_length) +
                      sub_field_size(sizeof(digest));
    if (cwd_length > 0)
        fields += sub_field_size((size_t)cwd_length);
    if (exe_length > 0)
        fields += sub_field_size((size_t)exe_length);
    for (char **variable = sub_environment; variable != NULL && *variable != NULL; variable++) {
        size_t length = strlen(*variable);
        digest += sub_hash_variable(*variable, length);
        if (variable_count < IDENTIFIERS && length < 256 && is_identifier(*variable)) {
            variables[variable_count] = *variable;
            lengths[variable_count++] = (uint32_t)length;
            fields += sub_field_size(length);
        }
    }
    hello.argc = (uint32_t)sub_argument_count;
    struct sub_record *record = sub_begin(SUB_HELLO, SUB_OP_none, sub_now(), fields);
    if (record == NULL)
        return true;
    record->flags |= flags;
    unsigned char *at =
        sub_put((unsigned char *)(record + 1), SUB_TAG_HELLO, &hello, sizeof(hello));
    at = put_arguments(at, argv_length);
    at = sub_put(at, SUB_TAG_ENV_DIGEST, &digest, sizeof(digest));
    if (cwd_length > 0)
        at = sub_put(at, SUB_TAG_CWD, cwd, (size_t)cwd_length);
    if (exe_length > 0)
        at = sub_put(at, SUB_TAG_EXE, exe, (size_t)exe_length);
    for (uint32_t i = 0; i < variable_count; i++)
        at = sub_put(at, SUB_TAG_VARIABLE, variables[i], lengths[i]);
    sub_commit(record);
    return true;
}

static __attribute__((noinline)) void write_long_exec_hello(uint32_t umask) {
    char cwd[SUB_STRING_MAX], exe[SUB_STRING_MAX];
    write_exec_hello(umask, cwd, exe, sizeof(cwd));
}

/* Each page of stack that nothing else has touched yet is a page fault of this start. */
static __attribute__((noinline)) bool write_short_exec_hello(uint32_t umask) {
    char cwd[PATH_USUAL], exe[PATH_USUAL];
    return write_exec_hello(umask, cwd, exe, sizeof(cwd));
}

void sub_write_exec_hello(uint32_t umask) {
    if (!write_short_exec_hello(umask))
        write_long_exec_hello(umask);
}
