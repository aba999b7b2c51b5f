/*
 * Opening and making files.
 *
 * Every public entry point has a hook of its own, because libc's functions do not call one another
 * through the symbol table. What they open is recorded with the flags that reach the kernel.
 */
#define _GNU_SOURCE 1

#include <dirent.h>
#include <fcntl.h>
#include <mqueue.h>
#include <semaphore.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/types.h>

#include "descriptors.h"
#include "hook.h"
#include "system.h"

#ifndef O_TMPFILE
#define O_TMPFILE (020000000 | O_DIRECTORY)
#endif

/* O_TMPFILE carries a mode although it has no O_CREAT. */
static bool has_mode(int flags) {
    return (flags & O_CREAT) != 0 || (flags & O_TMPFILE) == O_TMPFILE;
}

/* Not recorded, or by its number alone: then nothing says any more what that leads to. */
static void name_descriptor(uint64_t start, int fd) {
    if (start != 0)
        sub_descriptor_named(fd);
    else
        sub_descriptor_unnamed(fd);
}

static void record_open(enum sub_operation op, uint64_t start, int dirfd, const char *path,
                        int flags, mode_t mode, int fd) {
    name_descriptor(start, fd);
    if (start == 0)
        return;
    struct sub_call call = {
        .type = SUB_OPEN,
        .op = (uint16_t)op,
        .error = sub_error(fd < 0),
        .start_ns = start,
        .result = fd,
        .arg = {dirfd, flags, has_mode(flags) ? (int)mode : 0, 0},
        .path = path,
    };
    sub_record_call(&call);
}

#define READ_MODE(flags, mode)                                                                     \
    do {                                                                                           \
        if (has_mode(flags)) {                                                                     \
            va_list arguments;                                                                     \
            va_start(arguments, flags);                                                            \
            mode = va_arg(arguments, mode_t);                                                      \
            va_end(arguments);                                                                     \
        }                                                                                          \
    } while (0)

typedef int open_function(const char *, int, ...);
typedef int openat_function(int, const char *, int, ...);

/* Old programs on 64-bit machines: O_LARGEFILE is nothing there, so one form serves all names. */
#define OPEN_HOOK(symbol)                                                                          \
    HOOK(int, symbol, (const char *path, int flags, ...)) {                                        \
        mode_t mode = 0;                                                                           \
        READ_MODE(flags, mode);                                                                    \
        uint64_t start = sub_enter_class(SUB_CLASS_OPEN);                                          \
        open_function *next = NEXT(symbol, open_function *);                                       \
        int fd = next != NULL                                                                      \
                     ? next(path, flags, mode)                                                     \
                     : (int)sub_libc_result(SYS4(SYS_openat, AT_FDCWD, path, flags, mode));        \
        record_open(SUB_OP_##symbol, start, AT_FDCWD, path, flags, mode, fd);                      \
        return fd;                                                                                 \
    }

OPEN_HOOK(open)
OPEN_HOOK(open64)
OPEN_HOOK(__open)
OPEN_HOOK(__open64)

#define OPENAT_HOOK(symbol)                                                                        \
    HOOK(int, symbol, (int dirfd, const char *path, int flags, ...)) {                             \
        mode_t mode = 0;                                                                           \
        READ_MODE(flags, mode);                                                                    \
        uint64_t start = sub_enter_class(SUB_CLASS_OPEN);                                          \
        openat_function *next = NEXT(symbol, openat_function *);                                   \
        int fd = next != NULL ? next(dirfd, path, flags, mode)                                     \
                              : (int)sub_libc_result(SYS4(SYS_openat, dirfd, path, flags, mode));  \
        record_open(SUB_OP_##symbol, start, dirfd, path, flags, mode, fd);                         \
        return fd;                                                                                 \
    }

OPENAT_HOOK(openat)
OPENAT_HOOK(openat64)

/* The FORTIFY variants, which check that no mode is missing. Only glibc has them. */
#define OPEN_2_HOOK(symbol)                                                                        \
    HOOK(int, symbol, (const char *path, int flags)) {                                             \
        uint64_t start = sub_enter_class(SUB_CLASS_OPEN);                                          \
        int (*next)(const char *, int) = NEXT(symbol, int (*)(const char *, int));                 \
        int fd = next != NULL ? next(path, flags)                                                  \
                              : (int)sub_libc_result(SYS4(SYS_openat, AT_FDCWD, path, flags, 0));  \
        record_open(SUB_OP_##symbol, start, AT_FDCWD, path, flags, 0, fd);                         \
        return fd;                                                                                 \
    }

OPEN_2_HOOK(__open_2)
OPEN_2_HOOK(__open64_2)

#define OPENAT_2_HOOK(symbol)                                                                      \
    HOOK(int, symbol, (int dirfd, const char *path, int flags)) {                                  \
        uint64_t start = sub_enter_class(SUB_CLASS_OPEN);                                          \
        int (*next)(int, const char *, int) = NEXT(symbol, int (*)(int, const char *, int));       \
        int fd = next != NULL ? next(dirfd, path, flags)                                           \
                              : (int)sub_libc_result(SYS4(SYS_openat, dirfd, path, flags, 0));     \
        record_open(SUB_OP_##symbol, start, dirfd, path, flags, 0, fd);                            \
        return fd;                                                                                 \
    }

OPENAT_2_HOOK(__openat_2)
OPENAT_2_HOOK(__openat64_2)

#define CREAT_HOOK(symbol)                                                                         \
    HOOK(int, symbol, (const char *path, mode_t mode)) {                                           \
        const int flags = O_CREAT | O_WRONLY | O_TRUNC;                                            \
        uint64_t start = sub_enter_class(SUB_CLASS_OPEN);                                          \
        int (*next)(const char *, mode_t) = NEXT(symbol, int (*)(const char *, mode_t));           \
        int fd = next != NULL                                                                      \
                     ? next(path, mode)                                                            \
                     : (int)sub_libc_result(SYS4(SYS_openat, AT_FDCWD, path, flags, mode));        \
        record_open(SUB_OP_##symbol, start, AT_FDCWD, path, flags, mode, fd);                      \
        return fd;                                                                                 \
    }

CREAT_HOOK(creat)
CREAT_HOOK(creat64)

/* --- streams ---------------------------------------------------------------------------------- */

static int flags_of_mode(const char *mode) {
    int flags;
    switch (mode[0]) {
    case 'r':
        flags = O_RDONLY;
        break;
    case 'w':
        flags = O_WRONLY | O_CREAT | O_TRUNC;
        break;
    case 'a':
        flags = O_WRONLY | O_CREAT | O_APPEND;
        break;
    default:
        return 0;
    }
    for (int i = 1; i < 8 && mode[i] != '\0' && mode[i] != ','; i++) {
        if (mode[i] == '+')
            flags = (flags & ~O_ACCMODE) | O_RDWR;
        else if (mode[i] == 'x')
            flags |= O_EXCL;
        else if (mode[i] == 'e')
            flags |= O_CLOEXEC;
    }
    return flags;
}

static void record_stream(enum sub_operation op, uint64_t start, const char *path, const char *mode,
                          FILE *stream) {
    int fd = stream != NULL ? fileno(stream) : -1;
    name_descriptor(start, fd);
    if (start == 0)
        return;
    int flags = flags_of_mode(mode);
    struct sub_call call = {
        .type = SUB_OPEN,
        .op = (uint16_t)op,
        .error = sub_error(stream == NULL),
        .start_ns = start,
        .result = fd,
        .arg = {AT_FDCWD, flags, (flags & O_CREAT) != 0 ? 0666 : 0, 0},
        .path = path,
        .mode = mode,
    };
    sub_record_call(&call);
}

#define FOPEN_HOOK(symbol)                                                                         \
    HOOK(FILE *, symbol, (const char *path, const char *mode)) {                                   \
        uint64_t start = sub_enter_class(SUB_CLASS_OPEN);                                          \
        FILE *(*next)(const char *, const char *) =                                                \
            NEXT(symbol, FILE * (*)(const char *, const char *));                                  \
        if (next == NULL) {                                                                        \
            errno = ENOSYS;                                                                        \
            return NULL;                                                                           \
        }                                                                                          \
        FILE *stream = next(path, mode);                                                           \
        record_stream(SUB_OP_##symbol, start, path, mode, stream);                                 \
        return stream;                                                                             \
    }

FOPEN_HOOK(fopen)
FOPEN_HOOK(fopen64)
FOPEN_HOOK(_IO_fopen)

/* Without a path it only changes the mode of what is open. */
#define FREOPEN_HOOK(symbol)                                                                       \
    HOOK(FILE *, symbol, (const char *path, const char *mode, FILE *old)) {                        \
        uint64_t start = sub_enter_class(SUB_CLASS_OPEN);                                          \
        FILE *(*next)(const char *, const char *, FILE *) =                                        \
            NEXT(symbol, FILE * (*)(const char *, const char *, FILE *));                          \
        if (next == NULL) {                                                                        \
            errno = ENOSYS;                                                                        \
            return NULL;                                                                           \
        }                                                                                          \
        FILE *stream = next(path, mode, old);                                                      \
        if (path != NULL)                                                                          \
            record_stream(SUB_OP_##symbol, start, path, mode, stream);                             \
        return stream;                                                                             \
    }

FREOPEN_HOOK(freopen)
FREOPEN_HOOK(freopen64)

/* --- directories ------------------------------------------------------------------------------ */

static void record_directory(enum sub_operation op, uint64_t start, int dirfd, const char *path,
                             int result, bool failed) {
    if (start == 0)
        return;
    struct sub_call call = {
        .type = SUB_OPEN,
        .op = (uint16_t)op,
        .error = sub_error(failed),
        .flags = SUB_FLAG_DIRECTORY,
        .start_ns = start,
        .result = result,
        .arg = {dirfd, O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0, 0},
        .path = path,
    };
    sub_record_call(&call);
}

HOOK(DIR *, opendir, (const char *path)) {
    uint64_t start = sub_enter_class(SUB_CLASS_OPEN);
    DIR *(*next)(const char *) = NEXT(opendir, DIR * (*)(const char *));
    if (next == NULL) {
        errno = ENOSYS;
        return NULL;
    }
    DIR *directory = next(path);
    int fd = directory != NULL ? dirfd(directory) : -1;
    name_descriptor(start, fd);
    record_directory(SUB_OP_opendir, start, AT_FDCWD, path, fd, directory == NULL);
    return directory;
}

typedef int select_function(const void *);
typedef int compare_function(const void *, const void *);

#define SCANDIR_HOOK(symbol)                                                                       \
    HOOK(int, symbol,                                                                              \
         (const char *path, void *entries, select_function *select, compare_function *compare)) {  \
        uint64_t start = sub_enter_class(SUB_CLASS_OPEN);                                          \
        int (*next)(const char *, void *, select_function *, compare_function *) =                 \
            NEXT(symbol, int (*)(const char *, void *, select_function *, compare_function *));    \
        if (next == NULL) {                                                                        \
            errno = ENOSYS;                                                                        \
            return -1;                                                                             \
        }                                                                                          \
        int count = next(path, entries, select, compare);                                          \
        record_directory(SUB_OP_##symbol, start, AT_FDCWD, path, count, count < 0);                \
        return count;                                                                              \
    }

SCANDIR_HOOK(scandir)
SCANDIR_HOOK(scandir64)

#define SCANDIRAT_HOOK(symbol)                                                                     \
    HOOK(int, symbol,                                                                              \
         (int dirfd, const char *path, void *entries, select_function *select,                     \
          compare_function *compare)) {                                                            \
        uint64_t start = sub_enter_class(SUB_CLASS_OPEN);                                          \
        int (*next)(int, const char *, void *, select_function *, compare_function *) = NEXT(      \
            symbol, int (*)(int, const char *, void *, select_function *, compare_function *));    \
        if (next == NULL) {                                                                        \
            errno = ENOSYS;                                                                        \
            return -1;                                                                             \
        }                                                                                          \
        int count = next(dirfd, path, entries, select, compare);                                   \
        record_directory(SUB_OP_##symbol, start, dirfd, path, count, count < 0);                   \
        return count;                                                                              \
    }

SCANDIRAT_HOOK(scandirat)
SCANDIRAT_HOOK(scandirat64)

/* --- temporary files: the template holds the name afterwards ---------------------------------- */

static void record_temporary(enum sub_operation op, uint64_t start, const char *path, int flags,
                             int fd) {
    record_open(op, start, AT_FDCWD, path, flags | O_RDWR | O_CREAT | O_EXCL, 0600, fd);
}

#define TEMPORARY_HOOK(symbol, parameters, types, arguments, flags)                                \
    HOOK(int, symbol, parameters) {                                                                \
        uint64_t start = sub_enter_class(SUB_CLASS_OPEN);                                          \
        int(*next) types = NEXT(symbol, int(*) types);                                             \
        if (next == NULL) {                                                                        \
            errno = ENOSYS;                                                                        \
            return -1;                                                                             \
        }                                                                                          \
        int fd = next arguments;                                                                   \
        record_temporary(SUB_OP_##symbol, start, path, flags, fd);                                 \
        return fd;                                                                                 \
    }

TEMPORARY_HOOK(mkstemp, (char *path), (char *), (path), 0)
TEMPORARY_HOOK(mkstemp64, (char *path), (char *), (path), 0)
TEMPORARY_HOOK(mkostemp, (char *path, int flags), (char *, int), (path, flags), flags)
TEMPORARY_HOOK(mkostemp64, (char *path, int flags), (char *, int), (path, flags), flags)
TEMPORARY_HOOK(mkstemps, (char *path, int suffix), (char *, int), (path, suffix), 0)
TEMPORARY_HOOK(mkstemps64, (char *path, int suffix), (char *, int), (path, suffix), 0)
TEMPORARY_HOOK(mkostemps, (char *path, int suffix, int flags), (char *, int, int),
               (path, suffix, flags), flags)
TEMPORARY_HOOK(mkostemps64, (char *path, int suffix, int flags), (char *, int, int),
               (path, suffix, flags), flags)

/* Unnamed: the kernel calls it /tmp/#<inode> (deleted). */
#define TMPFILE_HOOK(symbol)                                                                       \
    HOOK(FILE *, symbol, (void)) {                                                                 \
        uint64_t start = sub_enter_class(SUB_CLASS_OPEN);                                          \
        FILE *(*next)(void) = NEXT(symbol, FILE * (*)(void));                                      \
        if (next == NULL) {                                                                        \
            errno = ENOSYS;                                                                        \
            return NULL;                                                                           \
        }                                                                                          \
        FILE *stream = next();                                                                     \
        record_open(SUB_OP_##symbol, start, AT_FDCWD, "/tmp", O_RDWR | O_EXCL | O_TMPFILE, 0600,   \
                    stream != NULL ? fileno(stream) : -1);                                         \
        return stream;                                                                             \
    }

TMPFILE_HOOK(tmpfile)
TMPFILE_HOOK(tmpfile64)

/* --- shared memory ---------------------------------------------------------------------------- */

HOOK(int, shm_open, (const char *name, int flags, mode_t mode)) {
    uint64_t start = sub_enter_class(SUB_CLASS_OPEN);
    int (*next)(const char *, int, mode_t) = NEXT(shm_open, int (*)(const char *, int, mode_t));
    if (next == NULL) {
        errno = ENOSYS;
        return -1;
    }
    int fd = next(name, flags, mode);
    record_open(SUB_OP_shm_open, start, AT_FDCWD, name, flags, mode, fd);
    return fd;
}

HOOK(int, memfd_create, (const char *name, unsigned flags)) {
    uint64_t start = sub_enter_class(SUB_CLASS_OPEN);
    int (*next)(const char *, unsigned) = NEXT(memfd_create, int (*)(const char *, unsigned));
    int fd = next != NULL ? next(name, flags)
                          : (int)sub_libc_result(SYS2(SYS_memfd_create, name, flags));
    record_open(SUB_OP_memfd_create, start, AT_FDCWD, name, O_RDWR | O_CREAT, 0, fd);
    return fd;
}

/* --- message queues, semaphores, handles ------------------------------------------------------ */

/* The variadic part is of the caller's words: mode and attributes, or none. */
HOOK(mqd_t, mq_open, (const char *name, int flags, ...)) {
    mode_t mode = 0;
    struct mq_attr *attributes = NULL;
    if ((flags & O_CREAT) != 0) {
        va_list arguments;
        va_start(arguments, flags);
        mode = va_arg(arguments, mode_t);
        attributes = va_arg(arguments, struct mq_attr *);
        va_end(arguments);
    }
    uint64_t start = sub_enter_class(SUB_CLASS_OPEN);
    mqd_t (*next)(const char *, int, ...) = NEXT(mq_open, mqd_t (*)(const char *, int, ...));
    if (next == NULL) {
        errno = ENOSYS;
        return (mqd_t)-1;
    }
    mqd_t queue = next(name, flags, mode, attributes);
    record_open(SUB_OP_mq_open, start, AT_FDCWD, name, flags, mode, (int)queue);
    return queue;
}

HOOK(mqd_t, __mq_open_2, (const char *name, int flags)) {
    uint64_t start = sub_enter_class(SUB_CLASS_OPEN);
    mqd_t (*next)(const char *, int) = NEXT(__mq_open_2, mqd_t (*)(const char *, int));
    if (next == NULL) {
        errno = ENOSYS;
        return (mqd_t)-1;
    }
    mqd_t queue = next(name, flags);
    record_open(SUB_OP___mq_open_2, start, AT_FDCWD, name, flags, 0, (int)queue);
    return queue;
}

/* Its descriptor is closed again inside: the result tells success only. */
HOOK(sem_t *, sem_open, (const char *name, int flags, ...)) {
    mode_t mode = 0;
    unsigned value = 0;
    if ((flags & O_CREAT) != 0) {
        va_list arguments;
        va_start(arguments, flags);
        mode = va_arg(arguments, mode_t);
        value = va_arg(arguments, unsigned);
        va_end(arguments);
    }
    uint64_t start = sub_enter_class(SUB_CLASS_OPEN);
    sem_t *(*next)(const char *, int, ...) = NEXT(sem_open, sem_t * (*)(const char *, int, ...));
    if (next == NULL) {
        errno = ENOSYS;
        return SEM_FAILED;
    }
    sem_t *semaphore = next(name, flags, mode, value);
    if (start != 0) {
        struct sub_call call = {
            .type = SUB_OPEN,
            .op = SUB_OP_sem_open,
            .error = sub_error(semaphore == SEM_FAILED),
            .start_ns = start,
            .result = semaphore == SEM_FAILED ? -1 : 0,
            .arg = {AT_FDCWD, flags | O_RDWR, (int)mode, 0},
            .path = name,
        };
        sub_record_call(&call);
    }
    return semaphore;
}

/* A handle has no name: what it led to is asked of the kernel. */
HOOK(int, open_by_handle_at, (int mount, struct file_handle *handle, int flags)) {
    uint64_t start = sub_enter_class(SUB_CLASS_OPEN);
    int (*next)(int, struct file_handle *, int) =
        NEXT(open_by_handle_at, int (*)(int, struct file_handle *, int));
    int fd = next != NULL ? next(mount, handle, flags)
                          : (int)sub_libc_result(SYS3(SYS_open_by_handle_at, mount, handle, flags));
    char path[512];
    size_t length = start != 0 && fd >= 0 ? sub_descriptor_path(fd, path, sizeof(path) - 1) : 0;
    path[length] = '\0';
    record_open(SUB_OP_open_by_handle_at, start, AT_FDCWD, length > 0 ? path : NULL, flags, 0, fd);
    return fd;
}
