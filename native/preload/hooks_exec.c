/*
 * Running programs: exec, posix_spawn, system, popen.
 *
 * An exec is recorded before it happens, because afterwards this program is gone; one that comes
 * back is followed by SUB_FAILED. What the caller passed has been read by nobody yet then, so it is
 * asked for page by page whether it can be (a bad pointer is EFAULT to the caller, not a fault of
 * ours). All of this may run in a vfork child, on its parent's memory: nothing is written there but
 * the parent thread's segment and this stack.
 */
#define _GNU_SOURCE 1

#include <fcntl.h>
#include <limits.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "descriptors.h"
#include "hook.h"
#include "process.h"
#include "system.h"

#ifndef AT_EMPTY_PATH
#define AT_EMPTY_PATH 0x1000
#endif

/* A vector of strings, measured. */
struct strings {
    char *const *vector;
    uint32_t bytes; /* as SUB_TAG_ARGV holds them */
    uint32_t kept;  /* strings that fit */
    uint32_t count; /* strings there are */
    uint32_t flags;
};

static char *entry_at(char *const *vector, uint32_t index, bool *readable) {
    /* One question a page: pointers do not straddle pages. */
    const void *slot = &vector[index];
    if (index == 0 || (uintptr_t)slot % 4096 == 0)
        *readable = sub_readable(slot, sizeof(char *));
    return *readable ? vector[index] : NULL;
}

static struct strings measure(char *const *vector) {
    struct strings strings = {.vector = vector};
    uintptr_t page = UINTPTR_MAX;
    bool readable = true;
    char *string;
    if (vector == NULL)
        return strings;
    while ((string = entry_at(vector, strings.count, &readable)) != NULL) {
        strings.count++;
        if ((strings.flags & (SUB_FLAG_TRUNCATED | SUB_FLAG_FAULT)) != 0)
            continue;
        uint32_t room = SUB_ARGV_MAX - strings.bytes;
        size_t length = sub_readable_string_near(string, room, &page);
        if (length == SIZE_MAX) {
            strings.flags |= SUB_FLAG_FAULT;
        } else if (length >= room) {
            strings.flags |= SUB_FLAG_TRUNCATED;
        } else {
            strings.bytes += (uint32_t)length + 1;
            strings.kept++;
        }
    }
    if (!readable)
        strings.flags |= SUB_FLAG_FAULT;
    return strings;
}

static unsigned char *put_strings(unsigned char *at, uint16_t tag, const struct strings *strings) {
    struct sub_field *field = (struct sub_field *)(void *)at;
    field->tag = tag;
    field->bytes = strings->bytes;
    char *to = (char *)(field + 1);
    char *end = to + strings->bytes;
    for (uint32_t i = 0; i < strings->kept && to < end; i++) {
        size_t length = strnlen(strings->vector[i], (size_t)(end - to) - 1);
        memcpy(to, strings->vector[i], length);
        to += length + 1;
    }
    return at + sub_field_size(strings->bytes);
}

static uint64_t digest_of(char *const *environment) {
    uint64_t digest = 0;
    uintptr_t page = UINTPTR_MAX;
    bool readable = true;
    char *variable;
    if (environment == NULL)
        return 0;
    for (uint32_t i = 0; (variable = entry_at(environment, i, &readable)) != NULL; i++) {
        size_t length = sub_readable_string_near(variable, 1u << 17, &page);
        if (length == SIZE_MAX)
            return 0;
        digest += sub_hash_variable(variable, length);
    }
    return digest;
}

/* Where a record of an exec stands, so that its failure can refer to it. */
struct pending {
    uint64_t start;
    uint32_t sequence;
    bool recorded;
};

static struct pending record_exec(enum sub_operation op, int dirfd, const char *path,
                                  char *const *argv, char *const *environment, int flags) {
    struct pending pending = {.start = sub_enter()};
    if (pending.start == 0)
        return pending;
    char directory[512];
    size_t directory_length = 0;
    struct sub_text text = sub_text(path, EFAULT);
    if (dirfd != AT_FDCWD && (text.bytes == NULL || text.bytes[0] != '/'))
        directory_length = sub_descriptor_path(dirfd, directory, sizeof(directory));
    struct strings arguments = measure(argv);
    uint64_t digest = digest_of(environment);
    uint32_t fields =
        sub_text_size(text) + sub_field_size(arguments.bytes) + sub_field_size(sizeof(digest));
    if (directory_length > 0)
        fields += sub_field_size(directory_length);
    struct sub_record *record = sub_begin(SUB_EXEC, (uint16_t)op, pending.start, fields);
    if (record == NULL)
        return pending;
    record->elapsed_ns = 0;
    record->flags |= text.flags | arguments.flags;
    record->arg[0] = dirfd;
    record->arg[1] = flags;
    record->arg[2] = (int32_t)arguments.count;
    unsigned char *at = sub_put_text((unsigned char *)(record + 1), SUB_TAG_PATH, text);
    at = put_strings(at, SUB_TAG_ARGV, &arguments);
    at = sub_put(at, SUB_TAG_ENV_DIGEST, &digest, sizeof(digest));
    if (directory_length > 0)
        sub_put(at, SUB_TAG_DIRECTORY, directory, directory_length);
    pending.sequence = record->sequence;
    pending.recorded = true;
    sub_commit(record);
    return pending;
}

static void record_failure(enum sub_operation op, const struct pending *pending) {
    if (!pending->recorded)
        return;
    struct sub_record *record = sub_begin(SUB_FAILED, (uint16_t)op, pending->start, 0);
    if (record == NULL)
        return;
    record->result = -1;
    record->error = errno;
    record->arg[0] = (int32_t)pending->sequence;
    sub_commit(record);
}

/* --- handing the library on --------------------------------------------------------------------
 *
 * In a world the library comes from /etc/ld.so.preload, which no program can leave behind. Where it
 * came from LD_PRELOAD instead (the host without a world, musl), a program that gives its child
 * another environment would lose it: the two entries are put back.
 */

#define ENTRIES_MAX 4096u
#define PRELOAD_MAX 1024u

static bool starts_with(const char *text, const char *prefix) {
    return strncmp(text, prefix, strlen(prefix)) == 0;
}

/* How many entries the environment gets that stand on our stack; 0: it goes as it is. */
static size_t missing_entries(char *const *environment) {
    size_t count = 0;
    bool preload = false, directory = sub_directory_variable[0] == '\0', readable = true;
    uintptr_t page = UINTPTR_MAX;
    char *entry;
    if (sub_mode != SUB_ON || sub_preload_path[0] == '\0')
        return 0;
    if (environment != NULL) {
        while ((entry = entry_at(environment, (uint32_t)count, &readable)) != NULL) {
            if (sub_readable_string_near(entry, PRELOAD_MAX, &page) == SIZE_MAX)
                return 0;
            preload = preload || (starts_with(entry, "LD_PRELOAD=") &&
                                  strstr(entry, sub_preload_path) != NULL);
            directory = directory || starts_with(entry, SUB_SEGMENT_VARIABLE "=");
            if (++count > ENTRIES_MAX)
                return 0;
        }
    }
    return !readable || (preload && directory) ? 0 : count + 3;
}

static void add_entries(char **to, char *preload, char *const *environment) {
    size_t count = 0;
    bool directory = false;
    size_t length = strlen("LD_PRELOAD=");
    memcpy(preload, "LD_PRELOAD=", length + 1);
    for (size_t i = 0; environment != NULL && environment[i] != NULL; i++) {
        directory = directory || starts_with(environment[i], SUB_SEGMENT_VARIABLE "=");
        size_t theirs = strnlen(environment[i], PRELOAD_MAX);
        if (starts_with(environment[i], "LD_PRELOAD=") && theirs < PRELOAD_MAX) {
            memcpy(preload, environment[i], theirs + 1);
            length = theirs;
            continue;
        }
        to[count++] = environment[i];
    }
    if (strstr(preload, sub_preload_path) == NULL) {
        if (preload[length - 1] != '=')
            preload[length++] = ':';
        memcpy(preload + length, sub_preload_path, strlen(sub_preload_path) + 1);
    }
    to[count++] = preload;
    if (!directory && sub_directory_variable[0] != '\0')
        to[count++] = sub_directory_variable;
    to[count] = NULL;
}

/* Defines `given`: the environment, or a copy on this stack that has our entries. */
#define WITH_ENTRIES(given, environment)                                                           \
    size_t given##_entries = missing_entries(environment);                                         \
    char *given##_copy[given##_entries + 1];                                                       \
    char given##_preload[given##_entries != 0 ? PRELOAD_MAX + 264 : 1];                            \
    char *const *given = environment;                                                              \
    if (given##_entries != 0) {                                                                    \
        add_entries(given##_copy, given##_preload, environment);                                   \
        given = given##_copy;                                                                      \
    }

typedef int exec_environment_function(const char *, char *const[], char *const[]);

int sub_execve(enum sub_operation op, const char *path, char *const argv[],
               char *const environment[]) {
    struct pending pending = record_exec(op, AT_FDCWD, path, argv, environment, 0);
    WITH_ENTRIES(given, environment)
    exec_environment_function *next = NEXT(execve, exec_environment_function *);
    int result = next != NULL ? next(path, argv, given)
                              : (int)sub_libc_result(SYS3(SYS_execve, path, argv, given));
    record_failure(op, &pending);
    return result;
}

static int call_execvpe(enum sub_operation op, const char *file, char *const argv[],
                        char *const environment[]) {
    struct pending pending = record_exec(op, AT_FDCWD, file, argv, environment, 0);
    WITH_ENTRIES(given, environment)
    exec_environment_function *next = NEXT(execvpe, exec_environment_function *);
    int result = -1;
    if (next != NULL)
        result = next(file, argv, given);
    else
        errno = ENOSYS;
    record_failure(op, &pending);
    return result;
}

HOOK(int, execve, (const char *path, char *const argv[], char *const environment[])) {
    return sub_execve(SUB_OP_execve, path, argv, environment);
}

HOOK(int, execv, (const char *path, char *const argv[])) {
    return sub_execve(SUB_OP_execv, path, argv, environ);
}

HOOK(int, execvp, (const char *file, char *const argv[])) {
    return call_execvpe(SUB_OP_execvp, file, argv, environ);
}

HOOK(int, execvpe, (const char *file, char *const argv[], char *const environment[])) {
    return call_execvpe(SUB_OP_execvpe, file, argv, environment);
}

/*
 * The variable forms collect their arguments on the stack, as libc itself does: in a vfork child
 * there is no other memory to take.
 */
#define COUNT_ARGUMENTS(count, last)                                                               \
    do {                                                                                           \
        va_list arguments;                                                                         \
        va_start(arguments, last);                                                                 \
        for (count = 1; count < INT_MAX && va_arg(arguments, const char *) != NULL; count++) {     \
        }                                                                                          \
        va_end(arguments);                                                                         \
    } while (0)

#define COLLECT_ARGUMENTS(arguments, argv, count, last)                                            \
    do {                                                                                           \
        va_start(arguments, last);                                                                 \
        argv[0] = (char *)(uintptr_t)last;                                                         \
        for (ptrdiff_t i = 1; i <= count; i++)                                                     \
            argv[i] = va_arg(arguments, char *);                                                   \
    } while (0)

HOOK(int, execl, (const char *path, const char *first, ...)) {
    ptrdiff_t count;
    COUNT_ARGUMENTS(count, first);
    char *argv[count + 1];
    va_list arguments;
    COLLECT_ARGUMENTS(arguments, argv, count, first);
    va_end(arguments);
    return sub_execve(SUB_OP_execl, path, argv, environ);
}

HOOK(int, execlp, (const char *file, const char *first, ...)) {
    ptrdiff_t count;
    COUNT_ARGUMENTS(count, first);
    char *argv[count + 1];
    va_list arguments;
    COLLECT_ARGUMENTS(arguments, argv, count, first);
    va_end(arguments);
    return call_execvpe(SUB_OP_execlp, file, argv, environ);
}

HOOK(int, execle, (const char *path, const char *first, ...)) {
    ptrdiff_t count;
    COUNT_ARGUMENTS(count, first);
    char *argv[count + 1];
    va_list arguments;
    COLLECT_ARGUMENTS(arguments, argv, count, first);
    char **environment = va_arg(arguments, char **);
    va_end(arguments);
    return sub_execve(SUB_OP_execle, path, argv, environment);
}

HOOK(int, fexecve, (int fd, char *const argv[], char *const environment[])) {
    struct pending pending =
        record_exec(SUB_OP_fexecve, fd, NULL, argv, environment, AT_EMPTY_PATH);
    WITH_ENTRIES(given, environment)
    typedef int fexecve_function(int, char *const[], char *const[]);
    fexecve_function *next = NEXT(fexecve, fexecve_function *);
    int result = next != NULL
                     ? next(fd, argv, given)
                     : (int)sub_libc_result(SYS5(SYS_execveat, fd, "", argv, given, AT_EMPTY_PATH));
    record_failure(SUB_OP_fexecve, &pending);
    return result;
}

int sub_execveat(int dirfd, const char *path, char *const argv[], char *const environment[],
                 int flags) {
    struct pending pending = record_exec(SUB_OP_execveat, dirfd, path, argv, environment, flags);
    WITH_ENTRIES(given, environment)
    typedef int execveat_function(int, const char *, char *const[], char *const[], int);
    execveat_function *next = NEXT(execveat, execveat_function *);
    int result = next != NULL
                     ? next(dirfd, path, argv, given, flags)
                     : (int)sub_libc_result(SYS5(SYS_execveat, dirfd, path, argv, given, flags));
    record_failure(SUB_OP_execveat, &pending);
    return result;
}

HOOK(int, execveat,
     (int dirfd, const char *path, char *const argv[], char *const environment[], int flags)) {
    return sub_execveat(dirfd, path, argv, environment, flags);
}

/* --- posix_spawn ------------------------------------------------------------------------------ */

static void record_spawn(enum sub_operation op, uint64_t start, const char *path, char *const *argv,
                         char *const *environment, const void *actions, int pid, int result) {
    struct sub_text text = sub_text(path, result != 0 ? EFAULT : 0);
    struct strings arguments = measure(argv);
    uint64_t digest = digest_of(environment);
    uint64_t key = (uint64_t)(uintptr_t)actions;
    uint32_t fields =
        sub_text_size(text) + sub_field_size(arguments.bytes) + sub_field_size(sizeof(digest));
    if (actions != NULL)
        fields += sub_field_size(sizeof(key));
    struct sub_record *record = sub_begin(SUB_SPAWN, (uint16_t)op, start, fields);
    if (record == NULL)
        return;
    record->result = result;
    record->error = result;
    record->flags |= text.flags | arguments.flags;
    record->arg[0] = pid;
    record->arg[2] = (int32_t)arguments.count;
    unsigned char *at = sub_put_text((unsigned char *)(record + 1), SUB_TAG_PATH, text);
    at = put_strings(at, SUB_TAG_ARGV, &arguments);
    at = sub_put(at, SUB_TAG_ENV_DIGEST, &digest, sizeof(digest));
    if (actions != NULL)
        sub_put(at, SUB_TAG_KEY, &key, sizeof(key));
    sub_commit(record);
}

typedef int spawn_function(pid_t *, const char *, const posix_spawn_file_actions_t *,
                           const posix_spawnattr_t *, char *const[], char *const[]);

/* The pid goes through a variable of ours: the caller may pass none. */
#define SPAWN_HOOK(symbol)                                                                         \
    HOOK(int, symbol,                                                                              \
         (pid_t * pid, const char *path, const posix_spawn_file_actions_t *actions,                \
          const posix_spawnattr_t *attributes, char *const argv[], char *const environment[])) {   \
        uint64_t start = sub_enter();                                                              \
        spawn_function *next = NEXT(symbol, spawn_function *);                                     \
        if (next == NULL)                                                                          \
            return ENOSYS;                                                                         \
        if (start == 0)                                                                            \
            return next(pid, path, actions, attributes, argv, environment);                        \
        pid_t child = 0;                                                                           \
        WITH_ENTRIES(given, environment)                                                           \
        int result = next(&child, path, actions, attributes, argv, given);                         \
        if (result == 0 && pid != NULL)                                                            \
            *pid = child;                                                                          \
        record_spawn(SUB_OP_##symbol, start, path, argv, environment, actions, child, result);     \
        return result;                                                                             \
    }

SPAWN_HOOK(posix_spawn)
SPAWN_HOOK(posix_spawnp)

/* These give a descriptor for the child, not its pid: its hello tells whose it is. */
#define PIDFD_SPAWN_HOOK(symbol)                                                                   \
    LATE_HOOK(int, symbol,                                                                         \
              (int *pidfd, const char *path, const posix_spawn_file_actions_t *actions,            \
               const posix_spawnattr_t *attributes, char *const argv[],                            \
               char *const environment[])) {                                                       \
        uint64_t start = sub_enter();                                                              \
        spawn_function *next = NEXT(symbol, spawn_function *);                                     \
        if (next == NULL)                                                                          \
            return ENOSYS;                                                                         \
        if (start == 0)                                                                            \
            return next(pidfd, path, actions, attributes, argv, environment);                      \
        WITH_ENTRIES(given, environment)                                                           \
        int result = next(pidfd, path, actions, attributes, argv, given);                          \
        if (result == 0)                                                                           \
            sub_descriptor_unnamed(*pidfd);                                                        \
        record_spawn(SUB_OP_##symbol, start, path, argv, environment, actions, 0, result);         \
        return result;                                                                             \
    }

PIDFD_SPAWN_HOOK(pidfd_spawn)
PIDFD_SPAWN_HOOK(pidfd_spawnp)

/*
 * What a spawn does in the child before it runs the program passes no symbol: it is taken down when
 * it is asked for, and joined to the spawn by the address of the object.
 */
static void record_action(enum sub_operation op, enum sub_spawn_action kind, const void *actions,
                          int fd, int other, int mode, const char *path, int result) {
    uint64_t start = sub_enter();
    if (start == 0 || result != 0)
        return;
    uint64_t key = (uint64_t)(uintptr_t)actions;
    struct sub_text text = sub_text(path, 0);
    struct sub_record *record = sub_begin(SUB_SPAWN_ACTION, (uint16_t)op, start,
                                          sub_field_size(sizeof(key)) + sub_text_size(text));
    if (record == NULL)
        return;
    record->elapsed_ns = 0;
    record->arg[0] = (int32_t)kind;
    record->arg[1] = fd;
    record->arg[2] = other;
    record->arg[3] = mode;
    unsigned char *at = sub_put((unsigned char *)(record + 1), SUB_TAG_KEY, &key, sizeof(key));
    sub_put_text(at, SUB_TAG_PATH, text);
    sub_commit(record);
}

#define ACTION_HOOK_OF(hook, symbol, parameters, types, arguments, kind, fd, other, mode, path)    \
    hook(int, symbol, parameters) {                                                                \
        int(*next) types = NEXT(symbol, int(*) types);                                             \
        if (next == NULL)                                                                          \
            return ENOSYS;                                                                         \
        int result = next arguments;                                                               \
        record_action(SUB_OP_##symbol, kind, actions, fd, other, mode, path, result);              \
        return result;                                                                             \
    }

#define ACTION_HOOK(...) ACTION_HOOK_OF(HOOK, __VA_ARGS__)
#define LATE_ACTION_HOOK(...) ACTION_HOOK_OF(LATE_HOOK, __VA_ARGS__)

typedef posix_spawn_file_actions_t actions_type;

ACTION_HOOK(posix_spawn_file_actions_init, (actions_type * actions), (actions_type *), (actions),
            SUB_ACTION_INIT, -1, 0, 0, NULL)
ACTION_HOOK(posix_spawn_file_actions_destroy, (actions_type * actions), (actions_type *), (actions),
            SUB_ACTION_DESTROY, -1, 0, 0, NULL)
ACTION_HOOK(posix_spawn_file_actions_addopen,
            (actions_type * actions, int fd, const char *path, int flags, mode_t mode),
            (actions_type *, int, const char *, int, mode_t), (actions, fd, path, flags, mode),
            SUB_ACTION_OPEN, fd, flags, (int)mode, path)
ACTION_HOOK(posix_spawn_file_actions_addclose, (actions_type * actions, int fd),
            (actions_type *, int), (actions, fd), SUB_ACTION_CLOSE, fd, 0, 0, NULL)
ACTION_HOOK(posix_spawn_file_actions_adddup2, (actions_type * actions, int fd, int other),
            (actions_type *, int, int), (actions, fd, other), SUB_ACTION_DUP2, fd, other, 0, NULL)
LATE_ACTION_HOOK(posix_spawn_file_actions_addchdir_np, (actions_type * actions, const char *path),
                 (actions_type *, const char *), (actions, path), SUB_ACTION_CHDIR, -1, 0, 0, path)
LATE_ACTION_HOOK(posix_spawn_file_actions_addfchdir_np, (actions_type * actions, int fd),
                 (actions_type *, int), (actions, fd), SUB_ACTION_FCHDIR, fd, 0, 0, NULL)
LATE_ACTION_HOOK(posix_spawn_file_actions_addclosefrom_np, (actions_type * actions, int fd),
                 (actions_type *, int), (actions, fd), SUB_ACTION_CLOSEFROM, fd, 0, 0, NULL)

/* --- the shell -------------------------------------------------------------------------------- */

static void record_shell(enum sub_operation op, uint64_t start, const char *command,
                         const char *mode, int64_t result, bool failed) {
    struct sub_text text = sub_text(command, 0);
    struct sub_text how = sub_text(mode, 0);
    struct sub_record *record =
        sub_begin(SUB_SPAWN, (uint16_t)op, start, sub_text_size(text) + sub_text_size(how));
    if (record == NULL)
        return;
    record->result = result;
    record->error = sub_error(failed);
    record->flags |= text.flags;
    unsigned char *at = sub_put_text((unsigned char *)(record + 1), SUB_TAG_NAME, text);
    sub_put_text(at, SUB_TAG_MODE, how);
    sub_commit(record);
}

HOOK(int, system, (const char *command)) {
    uint64_t start = sub_enter();
    int (*next)(const char *) = NEXT(system, int (*)(const char *));
    if (next == NULL) {
        errno = ENOSYS;
        return -1;
    }
    int status = next(command);
    if (start != 0 && command != NULL)
        record_shell(SUB_OP_system, start, command, NULL, status, status == -1);
    return status;
}

HOOK(FILE *, popen, (const char *command, const char *mode)) {
    uint64_t start = sub_enter();
    FILE *(*next)(const char *, const char *) = NEXT(popen, FILE * (*)(const char *, const char *));
    if (next == NULL) {
        errno = ENOSYS;
        return NULL;
    }
    FILE *stream = next(command, mode);
    if (start != 0)
        record_shell(SUB_OP_popen, start, command, mode, stream != NULL ? fileno(stream) : -1,
                     stream == NULL);
    return stream;
}
