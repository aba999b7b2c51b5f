/*
 * Looking files up: status, access, links, attributes. Summed by path, because programs ask about
 * the same few paths over and over, and never timed.
 *
 * A look-up of a descriptor is summed by descriptor. That is cheap, but no look-up in the tree:
 * who counts questions about files leaves those out.
 */
#define _GNU_SOURCE 1

#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/vfs.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "hook.h"
#include "sums.h"
#include "system.h"

/*
 * LOOK_UP_HOOK(result type, symbol, parameters, types, arguments; what to do without libc;
 *              dirfd, path). Where `dirfd` is a descriptor and `path` NULL, it is of a descriptor.
 */
#define LOOK_UP_HOOK(type, symbol, parameters, types, arguments, fallback, dirfd, path)            \
    HOOK(type, symbol, parameters) {                                                               \
        type(*next) types = NEXT(symbol, type(*) types);                                           \
        type result = next != NULL ? next arguments : (type)sub_libc_result(fallback);             \
        if (sub_wants(SUB_CLASS_STAT))                                                             \
            sub_count_stat(SUB_OP_##symbol, dirfd, path, (int64_t)result, result < 0);             \
        return result;                                                                             \
    }

#define STAT_HOOK(symbol, how)                                                                     \
    LOOK_UP_HOOK(int, symbol, (const char *path, void *status), (const char *, void *),            \
                 (path, status), SYS4(SYS_newfstatat, AT_FDCWD, path, status, how), AT_FDCWD,      \
                 path)

/* On 64-bit machines both families have one layout, the kernel's. */
STAT_HOOK(stat, 0)
STAT_HOOK(stat64, 0)
STAT_HOOK(lstat, AT_SYMLINK_NOFOLLOW)
STAT_HOOK(lstat64, AT_SYMLINK_NOFOLLOW)

#define FSTAT_HOOK(symbol)                                                                         \
    LOOK_UP_HOOK(int, symbol, (int fd, void *status), (int, void *), (fd, status),                 \
                 SYS2(SYS_fstat, fd, status), fd, NULL)

FSTAT_HOOK(fstat)
FSTAT_HOOK(fstat64)

#define FSTATAT_HOOK(symbol)                                                                       \
    LOOK_UP_HOOK(int, symbol, (int dirfd, const char *path, void *status, int flags),              \
                 (int, const char *, void *, int), (dirfd, path, status, flags),                   \
                 SYS4(SYS_newfstatat, dirfd, path, status, flags), dirfd, path)

FSTATAT_HOOK(fstatat)
FSTATAT_HOOK(fstatat64)

LOOK_UP_HOOK(int, statx, (int dirfd, const char *path, int flags, unsigned mask, void *status),
             (int, const char *, int, unsigned, void *), (dirfd, path, flags, mask, status),
             SYS5(SYS_statx, dirfd, path, flags, mask, status), dirfd, path)

/* What programs built before glibc 2.33 call. The version is libc's to check. */
#define XSTAT_HOOK(symbol)                                                                         \
    LOOK_UP_HOOK(int, symbol, (int version, const char *path, void *status),                       \
                 (int, const char *, void *), (version, path, status), -ENOSYS, AT_FDCWD, path)

XSTAT_HOOK(__xstat)
XSTAT_HOOK(__xstat64)
XSTAT_HOOK(__lxstat)
XSTAT_HOOK(__lxstat64)

#define FXSTAT_HOOK(symbol)                                                                        \
    LOOK_UP_HOOK(int, symbol, (int version, int fd, void *status), (int, int, void *),             \
                 (version, fd, status), -ENOSYS, fd, NULL)

FXSTAT_HOOK(__fxstat)
FXSTAT_HOOK(__fxstat64)

#define FXSTATAT_HOOK(symbol)                                                                      \
    LOOK_UP_HOOK(int, symbol, (int version, int dirfd, const char *path, void *status, int flags), \
                 (int, int, const char *, void *, int), (version, dirfd, path, status, flags),     \
                 -ENOSYS, dirfd, path)

FXSTATAT_HOOK(__fxstatat)
FXSTATAT_HOOK(__fxstatat64)

/* --- access ----------------------------------------------------------------------------------- */

#define ACCESS_HOOK(symbol, fallback)                                                              \
    LOOK_UP_HOOK(int, symbol, (const char *path, int mode), (const char *, int), (path, mode),     \
                 fallback, AT_FDCWD, path)

ACCESS_HOOK(access, SYS3(SYS_faccessat, AT_FDCWD, path, mode))
ACCESS_HOOK(euidaccess, -ENOSYS)
ACCESS_HOOK(eaccess, -ENOSYS)
LOOK_UP_HOOK(int, faccessat, (int dirfd, const char *path, int mode, int flags),
             (int, const char *, int, int), (dirfd, path, mode, flags), -ENOSYS, dirfd, path)

/* --- links ------------------------------------------------------------------------------------ */

LOOK_UP_HOOK(ssize_t, readlink, (const char *path, char *buffer, size_t size),
             (const char *, char *, size_t), (path, buffer, size),
             SYS4(SYS_readlinkat, AT_FDCWD, path, buffer, size), AT_FDCWD, path)
LOOK_UP_HOOK(ssize_t, readlinkat, (int dirfd, const char *path, char *buffer, size_t size),
             (int, const char *, char *, size_t), (dirfd, path, buffer, size),
             SYS4(SYS_readlinkat, dirfd, path, buffer, size), dirfd, path)
LOOK_UP_HOOK(ssize_t, __readlink_chk, (const char *path, char *buffer, size_t size, size_t room),
             (const char *, char *, size_t, size_t), (path, buffer, size, room),
             SYS4(SYS_readlinkat, AT_FDCWD, path, buffer, size), AT_FDCWD, path)
LOOK_UP_HOOK(ssize_t, __readlinkat_chk,
             (int dirfd, const char *path, char *buffer, size_t size, size_t room),
             (int, const char *, char *, size_t, size_t), (dirfd, path, buffer, size, room),
             SYS4(SYS_readlinkat, dirfd, path, buffer, size), dirfd, path)

/* One question here is many of the kernel: each component is asked for inside libc. */
#define RESOLVE_PATH_HOOK(symbol, parameters, types, arguments)                                    \
    HOOK(char *, symbol, parameters) {                                                             \
        char *(*next)types = NEXT(symbol, char *(*)types);                                         \
        if (next == NULL) {                                                                        \
            errno = ENOSYS;                                                                        \
            return NULL;                                                                           \
        }                                                                                          \
        char *result = next arguments;                                                             \
        if (sub_wants(SUB_CLASS_STAT) && path != NULL)                                             \
            sub_count_stat(SUB_OP_##symbol, AT_FDCWD, path, result != NULL ? 0 : -1,               \
                           result == NULL);                                                        \
        return result;                                                                             \
    }

RESOLVE_PATH_HOOK(realpath, (const char *path, char *to), (const char *, char *), (path, to))
RESOLVE_PATH_HOOK(__realpath_chk, (const char *path, char *to, size_t room),
                  (const char *, char *, size_t), (path, to, room))
RESOLVE_PATH_HOOK(canonicalize_file_name, (const char *path), (const char *), (path))

/* --- file systems and attributes -------------------------------------------------------------- */

#define FILE_SYSTEM_HOOK(symbol, fallback)                                                         \
    LOOK_UP_HOOK(int, symbol, (const char *path, void *status), (const char *, void *),            \
                 (path, status), fallback, AT_FDCWD, path)

FILE_SYSTEM_HOOK(statfs, SYS2(SYS_statfs, path, status))
FILE_SYSTEM_HOOK(statfs64, SYS2(SYS_statfs, path, status))
FILE_SYSTEM_HOOK(statvfs, -ENOSYS)
FILE_SYSTEM_HOOK(statvfs64, -ENOSYS)

LOOK_UP_HOOK(ssize_t, getxattr, (const char *path, const char *name, void *value, size_t size),
             (const char *, const char *, void *, size_t), (path, name, value, size),
             SYS4(SYS_getxattr, path, name, value, size), AT_FDCWD, path)
LOOK_UP_HOOK(ssize_t, lgetxattr, (const char *path, const char *name, void *value, size_t size),
             (const char *, const char *, void *, size_t), (path, name, value, size),
             SYS4(SYS_lgetxattr, path, name, value, size), AT_FDCWD, path)
LOOK_UP_HOOK(ssize_t, listxattr, (const char *path, char *names, size_t size),
             (const char *, char *, size_t), (path, names, size),
             SYS3(SYS_listxattr, path, names, size), AT_FDCWD, path)
LOOK_UP_HOOK(ssize_t, llistxattr, (const char *path, char *names, size_t size),
             (const char *, char *, size_t), (path, names, size),
             SYS3(SYS_llistxattr, path, names, size), AT_FDCWD, path)
