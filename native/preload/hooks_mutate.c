/*
 * Changing the tree: names, links, modes, owners, lengths; and the working directory.
 */
#define _GNU_SOURCE 1

#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

#include "change.h"
#include "hook.h"
#include "system.h"

void sub_record_change(enum sub_operation op, uint64_t start, long result, const char *path,
                       const char *path2, int dirfd, int flags, int mode, int dirfd2) {
    if (start == 0)
        return;
    struct sub_call call = {
        .type = SUB_MUTATE,
        .op = (uint16_t)op,
        .error = sub_error(result < 0),
        .start_ns = start,
        .result = result,
        .arg = {dirfd, flags, mode, dirfd2},
        .path = path,
        .path2 = path2,
    };
    sub_record_call(&call);
}

CHANGE_HOOK(unlink, (const char *path), (const char *), (path),
            SYS3(SYS_unlinkat, AT_FDCWD, path, 0), path, NO_PATH, AT_FDCWD, 0, 0, AT_FDCWD)
CHANGE_HOOK(unlinkat, (int dirfd, const char *path, int flags), (int, const char *, int),
            (dirfd, path, flags), SYS3(SYS_unlinkat, dirfd, path, flags), path, NO_PATH, dirfd,
            flags, 0, AT_FDCWD)
CHANGE_HOOK(remove, (const char *path), (const char *), (path), -ENOSYS, path, NO_PATH, AT_FDCWD, 0,
            0, AT_FDCWD)
CHANGE_HOOK(rmdir, (const char *path), (const char *), (path),
            SYS3(SYS_unlinkat, AT_FDCWD, path, AT_REMOVEDIR), path, NO_PATH, AT_FDCWD, 0, 0,
            AT_FDCWD)
CHANGE_HOOK(shm_unlink, (const char *name), (const char *), (name), -ENOSYS, name, NO_PATH,
            AT_FDCWD, 0, 0, AT_FDCWD)

CHANGE_HOOK(rename, (const char *path, const char *path2), (const char *, const char *),
            (path, path2), SYS5(SYS_renameat2, AT_FDCWD, path, AT_FDCWD, path2, 0), path, path2,
            AT_FDCWD, 0, 0, AT_FDCWD)
CHANGE_HOOK(renameat, (int dirfd, const char *path, int dirfd2, const char *path2),
            (int, const char *, int, const char *), (dirfd, path, dirfd2, path2),
            SYS5(SYS_renameat2, dirfd, path, dirfd2, path2, 0), path, path2, dirfd, 0, 0, dirfd2)
CHANGE_HOOK(renameat2, (int dirfd, const char *path, int dirfd2, const char *path2, unsigned flags),
            (int, const char *, int, const char *, unsigned), (dirfd, path, dirfd2, path2, flags),
            SYS5(SYS_renameat2, dirfd, path, dirfd2, path2, flags), path, path2, dirfd, flags, 0,
            dirfd2)

CHANGE_HOOK(mkdir, (const char *path, mode_t mode), (const char *, mode_t), (path, mode),
            SYS3(SYS_mkdirat, AT_FDCWD, path, mode), path, NO_PATH, AT_FDCWD, 0, mode, AT_FDCWD)
CHANGE_HOOK(mkdirat, (int dirfd, const char *path, mode_t mode), (int, const char *, mode_t),
            (dirfd, path, mode), SYS3(SYS_mkdirat, dirfd, path, mode), path, NO_PATH, dirfd, 0,
            mode, AT_FDCWD)

CHANGE_HOOK(link, (const char *path, const char *path2), (const char *, const char *),
            (path, path2), SYS5(SYS_linkat, AT_FDCWD, path, AT_FDCWD, path2, 0), path, path2,
            AT_FDCWD, 0, 0, AT_FDCWD)
CHANGE_HOOK(linkat, (int dirfd, const char *path, int dirfd2, const char *path2, int flags),
            (int, const char *, int, const char *, int), (dirfd, path, dirfd2, path2, flags),
            SYS5(SYS_linkat, dirfd, path, dirfd2, path2, flags), path, path2, dirfd, flags, 0,
            dirfd2)
/* The link is the path that changes; the target is only text, and absolute or not as it stands. */
CHANGE_HOOK(symlink, (const char *target, const char *path), (const char *, const char *),
            (target, path), SYS3(SYS_symlinkat, target, AT_FDCWD, path), path, target, AT_FDCWD, 0,
            0, AT_FDCWD)
CHANGE_HOOK(symlinkat, (const char *target, int dirfd, const char *path),
            (const char *, int, const char *), (target, dirfd, path),
            SYS3(SYS_symlinkat, target, dirfd, path), path, target, dirfd, 0, 0, AT_FDCWD)

CHANGE_HOOK(mkfifo, (const char *path, mode_t mode), (const char *, mode_t), (path, mode),
            SYS4(SYS_mknodat, AT_FDCWD, path, mode | S_IFIFO, 0), path, NO_PATH, AT_FDCWD, 0, mode,
            AT_FDCWD)
CHANGE_HOOK(mkfifoat, (int dirfd, const char *path, mode_t mode), (int, const char *, mode_t),
            (dirfd, path, mode), SYS4(SYS_mknodat, dirfd, path, mode | S_IFIFO, 0), path, NO_PATH,
            dirfd, 0, mode, AT_FDCWD)
CHANGE_HOOK(mknod, (const char *path, mode_t mode, dev_t device), (const char *, mode_t, dev_t),
            (path, mode, device), SYS4(SYS_mknodat, AT_FDCWD, path, mode, device), path, NO_PATH,
            AT_FDCWD, 0, mode, AT_FDCWD)
CHANGE_HOOK(mknodat, (int dirfd, const char *path, mode_t mode, dev_t device),
            (int, const char *, mode_t, dev_t), (dirfd, path, mode, device),
            SYS4(SYS_mknodat, dirfd, path, mode, device), path, NO_PATH, dirfd, 0, mode, AT_FDCWD)

CHANGE_HOOK(chmod, (const char *path, mode_t mode), (const char *, mode_t), (path, mode),
            SYS3(SYS_fchmodat, AT_FDCWD, path, mode), path, NO_PATH, AT_FDCWD, 0, mode, AT_FDCWD)
CHANGE_HOOK(fchmod, (int fd, mode_t mode), (int, mode_t), (fd, mode), SYS2(SYS_fchmod, fd, mode),
            NO_PATH, NO_PATH, fd, 0, mode, AT_FDCWD)
CHANGE_HOOK(fchmodat, (int dirfd, const char *path, mode_t mode, int flags),
            (int, const char *, mode_t, int), (dirfd, path, mode, flags), -ENOSYS, path, NO_PATH,
            dirfd, flags, mode, AT_FDCWD)
CHANGE_HOOK(chown, (const char *path, uid_t uid, gid_t gid), (const char *, uid_t, gid_t),
            (path, uid, gid), SYS5(SYS_fchownat, AT_FDCWD, path, uid, gid, 0), path, NO_PATH,
            AT_FDCWD, uid, gid, AT_FDCWD)
CHANGE_HOOK(lchown, (const char *path, uid_t uid, gid_t gid), (const char *, uid_t, gid_t),
            (path, uid, gid), SYS5(SYS_fchownat, AT_FDCWD, path, uid, gid, AT_SYMLINK_NOFOLLOW),
            path, NO_PATH, AT_FDCWD, uid, gid, AT_FDCWD)
CHANGE_HOOK(fchown, (int fd, uid_t uid, gid_t gid), (int, uid_t, gid_t), (fd, uid, gid),
            SYS3(SYS_fchown, fd, uid, gid), NO_PATH, NO_PATH, fd, uid, gid, AT_FDCWD)
CHANGE_HOOK(fchownat, (int dirfd, const char *path, uid_t uid, gid_t gid, int flags),
            (int, const char *, uid_t, gid_t, int), (dirfd, path, uid, gid, flags),
            SYS5(SYS_fchownat, dirfd, path, uid, gid, flags), path, NO_PATH, dirfd, uid, gid,
            AT_FDCWD)

CHANGE_HOOK(truncate, (const char *path, off_t length), (const char *, off_t), (path, length),
            SYS2(SYS_truncate, path, length), path, NO_PATH, AT_FDCWD, 0, 0, AT_FDCWD)
CHANGE_HOOK(truncate64, (const char *path, off_t length), (const char *, off_t), (path, length),
            SYS2(SYS_truncate, path, length), path, NO_PATH, AT_FDCWD, 0, 0, AT_FDCWD)
CHANGE_HOOK(ftruncate, (int fd, off_t length), (int, off_t), (fd, length),
            SYS2(SYS_ftruncate, fd, length), NO_PATH, NO_PATH, fd, 0, 0, AT_FDCWD)
CHANGE_HOOK(ftruncate64, (int fd, off_t length), (int, off_t), (fd, length),
            SYS2(SYS_ftruncate, fd, length), NO_PATH, NO_PATH, fd, 0, 0, AT_FDCWD)

HOOK(char *, mkdtemp, (char *path)) {
    uint64_t start = sub_enter_class(SUB_CLASS_MUTATE);
    char *(*next)(char *) = NEXT(mkdtemp, char *(*)(char *));
    if (next == NULL) {
        errno = ENOSYS;
        return NULL;
    }
    char *made = next(path);
    sub_record_change(SUB_OP_mkdtemp, start, made != NULL ? 0 : -1, path, NO_PATH, AT_FDCWD, 0,
                      0700, AT_FDCWD);
    return made;
}

/* --- the working directory -------------------------------------------------------------------- */

/* Relative paths in later records hang on this, so the kernel is asked where the call led. */
static void record_directory_change(enum sub_operation op, uint64_t start, int result,
                                    const char *path, int fd) {
    if (result == 0) /* relative paths mean others now */
        __atomic_fetch_add(&sub_directory_changes, 1, __ATOMIC_RELAXED);
    if (start == 0)
        return;
    char cwd[1024];
    int error = sub_error(result < 0);
    struct sub_text text = sub_text(path, error);
    long length = result == 0 && !sub_quiet ? SYS2(SYS_getcwd, cwd, sizeof(cwd)) - 1 : 0;
    uint32_t fields = sub_text_size(text) + (length > 0 ? sub_field_size((size_t)length) : 0);
    struct sub_record *record = sub_begin(SUB_CHDIR, (uint16_t)op, start, fields);
    if (record == NULL)
        return;
    record->result = result;
    record->error = error;
    record->flags |= text.flags;
    record->arg[0] = fd;
    unsigned char *at = sub_put_text((unsigned char *)(record + 1), SUB_TAG_PATH, text);
    if (length > 0)
        sub_put(at, SUB_TAG_CWD, cwd, (size_t)length);
    sub_commit(record);
}

HOOK(int, chdir, (const char *path)) {
    uint64_t start = sub_enter();
    int (*next)(const char *) = NEXT(chdir, int (*)(const char *));
    int result = next != NULL ? next(path) : (int)sub_libc_result(SYS1(SYS_chdir, path));
    record_directory_change(SUB_OP_chdir, start, result, path, AT_FDCWD);
    return result;
}

HOOK(int, fchdir, (int fd)) {
    uint64_t start = sub_enter();
    int (*next)(int) = NEXT(fchdir, int (*)(int));
    int result = next != NULL ? next(fd) : (int)sub_libc_result(SYS1(SYS_fchdir, fd));
    record_directory_change(SUB_OP_fchdir, start, result, NULL, fd);
    return result;
}

HOOK(int, chroot, (const char *path)) {
    uint64_t start = sub_enter();
    int (*next)(const char *) = NEXT(chroot, int (*)(const char *));
    int result = next != NULL ? next(path) : (int)sub_libc_result(SYS1(SYS_chroot, path));
    record_directory_change(SUB_OP_chroot, start, result, path, AT_FDCWD);
    return result;
}
