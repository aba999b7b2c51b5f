/*
 * Changing what files are like: times, room, extended attributes; and what is mounted.
 */
#define _GNU_SOURCE 1

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/types.h>

#include "change.h"
#include "system.h"

struct utimbuf;

/* --- times ------------------------------------------------------------------------------------ */

CHANGE_HOOK(utime, (const char *path, const struct utimbuf *times),
            (const char *, const struct utimbuf *), (path, times), -ENOSYS, path, NO_PATH, AT_FDCWD,
            0, 0, AT_FDCWD)
CHANGE_HOOK(utimes, (const char *path, const struct timeval *times),
            (const char *, const struct timeval *), (path, times), -ENOSYS, path, NO_PATH, AT_FDCWD,
            0, 0, AT_FDCWD)
CHANGE_HOOK(lutimes, (const char *path, const struct timeval *times),
            (const char *, const struct timeval *), (path, times), -ENOSYS, path, NO_PATH, AT_FDCWD,
            AT_SYMLINK_NOFOLLOW, 0, AT_FDCWD)
CHANGE_HOOK(futimes, (int fd, const struct timeval *times), (int, const struct timeval *),
            (fd, times), -ENOSYS, NO_PATH, NO_PATH, fd, 0, 0, AT_FDCWD)
CHANGE_HOOK(futimesat, (int dirfd, const char *path, const struct timeval *times),
            (int, const char *, const struct timeval *), (dirfd, path, times), -ENOSYS, path,
            NO_PATH, dirfd, 0, 0, AT_FDCWD)
CHANGE_HOOK(futimens, (int fd, const struct timespec *times), (int, const struct timespec *),
            (fd, times), SYS4(SYS_utimensat, fd, NULL, times, 0), NO_PATH, NO_PATH, fd, 0, 0,
            AT_FDCWD)
/* Without a path it is of the descriptor itself. */
CHANGE_HOOK(utimensat, (int dirfd, const char *path, const struct timespec *times, int flags),
            (int, const char *, const struct timespec *, int), (dirfd, path, times, flags),
            SYS4(SYS_utimensat, dirfd, path, times, flags), path, NO_PATH, dirfd, flags, 0,
            AT_FDCWD)

/* --- room ------------------------------------------------------------------------------------- */

#define FALLOCATE_HOOK(symbol)                                                                     \
    CHANGE_HOOK(symbol, (int fd, int mode, off_t at, off_t length), (int, int, off_t, off_t),      \
                (fd, mode, at, length), SYS4(SYS_fallocate, fd, mode, at, length), NO_PATH,        \
                NO_PATH, fd, mode, 0, AT_FDCWD)

FALLOCATE_HOOK(fallocate)
FALLOCATE_HOOK(fallocate64)

/* They return the error instead of setting it. */
#define POSIX_FALLOCATE_HOOK(symbol)                                                               \
    HOOK(int, symbol, (int fd, off_t at, off_t length)) {                                          \
        uint64_t start = sub_enter_class(SUB_CLASS_MUTATE);                                        \
        int (*next)(int, off_t, off_t) = NEXT(symbol, int (*)(int, off_t, off_t));                 \
        int error =                                                                                \
            next != NULL ? next(fd, at, length) : (int)-SYS4(SYS_fallocate, fd, 0, at, length);    \
        int kept = errno;                                                                          \
        errno = error;                                                                             \
        sub_record_change(SUB_OP_##symbol, start, error != 0 ? -1 : 0, NO_PATH, NO_PATH, fd, 0, 0, \
                          AT_FDCWD);                                                               \
        errno = kept;                                                                              \
        return error;                                                                              \
    }

POSIX_FALLOCATE_HOOK(posix_fallocate)
POSIX_FALLOCATE_HOOK(posix_fallocate64)

/* --- extended attributes ---------------------------------------------------------------------- */

#define SET_ATTRIBUTE_HOOK(symbol, number)                                                         \
    CHANGE_HOOK(                                                                                   \
        symbol, (const char *path, const char *name, const void *value, size_t size, int flags),   \
        (const char *, const char *, const void *, size_t, int), (path, name, value, size, flags), \
        SYS5(number, path, name, value, size, flags), path, NO_PATH, AT_FDCWD, flags, 0, AT_FDCWD)
#define REMOVE_ATTRIBUTE_HOOK(symbol, number)                                                      \
    CHANGE_HOOK(symbol, (const char *path, const char *name), (const char *, const char *),        \
                (path, name), SYS2(number, path, name), path, NO_PATH, AT_FDCWD, 0, 0, AT_FDCWD)

SET_ATTRIBUTE_HOOK(setxattr, SYS_setxattr)
SET_ATTRIBUTE_HOOK(lsetxattr, SYS_lsetxattr)
REMOVE_ATTRIBUTE_HOOK(removexattr, SYS_removexattr)
REMOVE_ATTRIBUTE_HOOK(lremovexattr, SYS_lremovexattr)
CHANGE_HOOK(fsetxattr, (int fd, const char *name, const void *value, size_t size, int flags),
            (int, const char *, const void *, size_t, int), (fd, name, value, size, flags),
            SYS5(SYS_fsetxattr, fd, name, value, size, flags), NO_PATH, NO_PATH, fd, flags, 0,
            AT_FDCWD)
CHANGE_HOOK(fremovexattr, (int fd, const char *name), (int, const char *), (fd, name),
            SYS2(SYS_fremovexattr, fd, name), NO_PATH, NO_PATH, fd, 0, 0, AT_FDCWD)

/* --- modes and nodes of old programs ---------------------------------------------------------- */

CHANGE_HOOK(lchmod, (const char *path, mode_t mode), (const char *, mode_t), (path, mode), -ENOSYS,
            path, NO_PATH, AT_FDCWD, AT_SYMLINK_NOFOLLOW, mode, AT_FDCWD)
CHANGE_HOOK(__xmknod, (int version, const char *path, mode_t mode, dev_t *device),
            (int, const char *, mode_t, dev_t *), (version, path, mode, device), -ENOSYS, path,
            NO_PATH, AT_FDCWD, 0, mode, AT_FDCWD)
CHANGE_HOOK(__xmknodat, (int version, int dirfd, const char *path, mode_t mode, dev_t *device),
            (int, int, const char *, mode_t, dev_t *), (version, dirfd, path, mode, device),
            -ENOSYS, path, NO_PATH, dirfd, 0, mode, AT_FDCWD)

/* --- names of shared things ------------------------------------------------------------------- */

CHANGE_HOOK(sem_unlink, (const char *name), (const char *), (name), -ENOSYS, name, NO_PATH,
            AT_FDCWD, 0, 0, AT_FDCWD)
CHANGE_HOOK(mq_unlink, (const char *name), (const char *), (name), -ENOSYS, name, NO_PATH, AT_FDCWD,
            0, 0, AT_FDCWD)

/* --- mounts: the place is what changes, the source stands beside it ---------------------------- */

CHANGE_HOOK(mount,
            (const char *source, const char *target, const char *type, unsigned long flags,
             const void *data),
            (const char *, const char *, const char *, unsigned long, const void *),
            (source, target, type, flags, data), SYS5(SYS_mount, source, target, type, flags, data),
            target, source, AT_FDCWD, flags, 0, AT_FDCWD)
CHANGE_HOOK(umount, (const char *target), (const char *), (target), SYS2(SYS_umount2, target, 0),
            target, NO_PATH, AT_FDCWD, 0, 0, AT_FDCWD)
CHANGE_HOOK(umount2, (const char *target, int flags), (const char *, int), (target, flags),
            SYS2(SYS_umount2, target, flags), target, NO_PATH, AT_FDCWD, flags, 0, AT_FDCWD)
