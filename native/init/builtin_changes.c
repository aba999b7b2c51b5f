/* Changes to the tree: directories, links, names, modes. */
#include "builtin.h"

#include <sys/syscall.h>

#define RENAME_WITHOUT_REPLACING 1u /* RENAME_NOREPLACE, <linux/fs.h> */
#define MOVE_DEPTH_MAX 1000         /* a tree moved into itself over a mount would never end */

/* `mode` is the last one's; what is missing above it is made as mkdir(1) would. */
int make_directories(const char *path, mode_t mode, bool last_too) {
    char copy[PATH_MAX];
    size_t length = strlen(path);
    if (length >= sizeof copy)
        return ENAMETOOLONG;
    memcpy(copy, path, length + 1);
    while (length > 1 && copy[length - 1] == '/')
        copy[--length] = 0;
    for (char *at = copy + 1; *copy && at <= copy + length; at++) {
        if (*at != '/' && *at != 0)
            continue;
        if (*at == 0 && !last_too)
            break;
        char kept = *at;
        *at = 0;
        if (mkdir(copy, kept ? 0755 : mode) && errno != EEXIST)
            return errno;
        *at = kept;
    }
    struct stat status;
    return last_too && (stat(path, &status) || !S_ISDIR(status.st_mode)) ? EEXIST : 0;
}

int builtin_mkdir(char **argv) {
    mode_t mode = builtin_mode(argv[1]);
    long long parents = builtin_number(argv[2]);
    if (parents == 1)
        return make_directories(argv[0], mode, true);
    if (parents == 2) {
        size_t length = strlen(argv[0]);
        while (length > 1 && argv[0][length - 1] == '/')
            argv[0][--length] = 0; /* else it would be its own parent */
        int error = make_directories(argv[0], 0755, false);
        if (error)
            return error;
    }
    if (mkdir(argv[0], mode))
        return errno;
    /* mkdir(2) takes no set-id bits. */
    return mode & ~01777u && chmod(argv[0], mode) ? errno : 0;
}

static int remove_at(int dir, const char *name, bool recursive) {
    if (unlinkat(dir, name, 0) == 0)
        return 0;
    if (errno != EISDIR && errno != EPERM)
        return errno;
    if (unlinkat(dir, name, AT_REMOVEDIR) == 0)
        return 0;
    if (!recursive || (errno != ENOTEMPTY && errno != EEXIST))
        return errno;
    int fd = openat(dir, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    DIR *below = fd < 0 ? NULL : fdopendir(fd);
    if (!below)
        return errno;
    int error = 0;
    for (struct dirent *entry; !error && (entry = readdir(below));)
        if (strcmp(entry->d_name, ".") && strcmp(entry->d_name, ".."))
            error = remove_at(dirfd(below), entry->d_name, true);
    closedir(below);
    if (error)
        return error == ENOENT ? 0 : error;
    return unlinkat(dir, name, AT_REMOVEDIR) ? errno : 0;
}

int builtin_remove(char **argv) {
    return remove_at(AT_FDCWD, argv[0], builtin_number(argv[1]) != 0);
}

/* ---- renaming -------------------------------------------------------------------------------- */

static void keep_times(int dir, const char *name, const struct stat *status) {
    struct timespec times[2] = {status->st_atim, status->st_mtim};
    (void)utimensat(dir, name, times, AT_SYMLINK_NOFOLLOW);
}

static int copy_content(int from_dir, const char *from, int to_dir, const char *to,
                        const struct stat *status) {
    SUB_AUTO_FD in = openat(from_dir, from, O_RDONLY | O_NONBLOCK | O_NOFOLLOW | O_CLOEXEC);
    if (in < 0)
        return errno;
    SUB_AUTO_FD out =
        openat(to_dir, to, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (out < 0)
        return errno;
    for (ssize_t got; (got = read(in, builtin_buffer, BUFFER_SIZE));) {
        if (got < 0 && errno == EINTR)
            continue;
        int error = got < 0 ? errno : builtin_write_all(out, builtin_buffer, (size_t)got);
        if (error)
            return error;
    }
    (void)!fchown(out, status->st_uid, status->st_gid); /* as mv(1): where it may */
    return fchmod(out, status->st_mode & 07777) ? errno : 0;
}

static int copy_leaf(int from_dir, const char *from, int to_dir, const char *to,
                     const struct stat *status) {
    char target[PATH_MAX];
    switch (status->st_mode & S_IFMT) {
    case S_IFREG:
        return copy_content(from_dir, from, to_dir, to, status);
    case S_IFLNK:
        entry_target(target, from_dir, from, status);
        return symlinkat(target, to_dir, to) ? errno : 0;
    case S_IFIFO:
        return mkfifoat(to_dir, to, status->st_mode & 07777) ? errno : 0;
    default:
        return EXDEV; /* a socket or device is nothing without who made it */
    }
}

static int move_at(int from_dir, const char *from, int to_dir, const char *to, int depth);

static int move_directory(int from_dir, const char *from, int to_dir, const char *to,
                          const struct stat *status, int depth) {
    struct names names;
    if (unlinkat(to_dir, to, AT_REMOVEDIR) && errno != ENOENT)
        return errno; /* rename(2) replaces an empty directory, and nothing else */
    int below = openat(from_dir, from, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (below < 0)
        return errno;
    int error = names_read(&names, below, NULL, SIZE_MAX);
    if (error)
        return error;
    SUB_AUTO_FD made = -1;
    if (mkdirat(to_dir, to, 0700) ||
        (made = openat(to_dir, to, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC)) < 0)
        error = errno;
    for (size_t i = 0; i < names.count && !error; i++)
        error = move_at(names_fd(&names), names.items[i], made, names.items[i], depth + 1);
    names_release(&names);
    if (error)
        return error;
    (void)!fchown(made, status->st_uid, status->st_gid);
    if (fchmod(made, status->st_mode & 07777))
        return errno;
    keep_times(to_dir, to, status);
    return unlinkat(from_dir, from, AT_REMOVEDIR) ? errno : 0;
}

/*
 * As mv(1). A box is made of several file systems where a caller sees one (a project's overlay, a
 * fresh /tmp), and an overlay without redirect_dir renames no directory of its lower layer.
 */
static int move_at(int from_dir, const char *from, int to_dir, const char *to, int depth) {
    struct stat status, there;
    char scratch[64];
    if (renameat(from_dir, from, to_dir, to) == 0)
        return 0;
    if (errno != EXDEV)
        return errno;
    if (depth > MOVE_DEPTH_MAX)
        return ELOOP;
    if (fstatat(from_dir, from, &status, AT_SYMLINK_NOFOLLOW))
        return errno;
    if (S_ISDIR(status.st_mode))
        return move_directory(from_dir, from, to_dir, to, &status, depth);
    if (fstatat(to_dir, to, &there, AT_SYMLINK_NOFOLLOW) == 0 && S_ISDIR(there.st_mode))
        return EISDIR;
    /* Under another name first, so that what it replaces is there until it is whole. */
    const char *slash = to_dir == AT_FDCWD ? strrchr(to, '/') : NULL;
    SUB_AUTO_FD parent = -1;
    if (slash) {
        char directory[PATH_MAX];
        size_t length = (size_t)(slash - to) + (slash == to);
        if (length >= sizeof directory)
            return ENAMETOOLONG;
        memcpy(directory, to, length);
        directory[length] = 0;
        parent = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (parent < 0)
            return errno;
        to_dir = parent;
        to = slash + 1;
    }
    snprintf(scratch, sizeof scratch, ".substrate-move-%d", (int)getpid());
    int error = copy_leaf(from_dir, from, to_dir, scratch, &status);
    if (!error) {
        keep_times(to_dir, scratch, &status);
        if (renameat(to_dir, scratch, to_dir, to))
            error = errno;
    }
    if (error) {
        (void)unlinkat(to_dir, scratch, 0);
        return error;
    }
    return unlinkat(from_dir, from, 0) ? errno : 0;
}

int builtin_rename(char **argv) {
    struct stat status;
    bool replace = builtin_number(argv[2]) != 0;
    unsigned flags = replace ? 0 : RENAME_WITHOUT_REPLACING;
    if (syscall(SYS_renameat2, AT_FDCWD, argv[0], AT_FDCWD, argv[1], flags) == 0)
        return 0;
    if (errno != EXDEV)
        return errno;
    if (!replace && lstat(argv[1], &status) == 0)
        return EEXIST;
    return move_at(AT_FDCWD, argv[0], AT_FDCWD, argv[1], 0);
}

int builtin_chmod(char **argv) {
    return chmod(argv[0], builtin_mode(argv[1])) ? errno : 0;
}

int builtin_symlink(char **argv) {
    return symlink(argv[0], argv[1]) ? errno : 0;
}
