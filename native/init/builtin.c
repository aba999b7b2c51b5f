/*
 * File operations inside the box, as one of its users, without a program of the box's in between:
 * what the Files API of the world service runs. Everything is resolved in the box by a process of
 * the box, so no symbolic link, ".." or race leads anywhere else.
 *
 *   read PATH OFFSET LENGTH      bytes to stdout; LENGTH -1: to the end
 *   write PATH MODE OPTIONS      stdin to the file. OPTIONS, by commas: create, excl, truncate,
 *                                append, parents, sync, offset=N
 *   stat PATH FOLLOW             one entry to stdout; FOLLOW 0 or 1
 *   list PATH DEPTH              entries below a directory; DEPTH 1: its children; -1: everything
 *   mkdir PATH MODE PARENTS      PARENTS 1: missing parents too, and no error where it is there
 *   remove PATH RECURSIVE        RECURSIVE 1: with what is below
 *   rename FROM TO REPLACE       REPLACE 0: fails with EEXIST
 *   chmod PATH MODE              symlink TARGET PATH             readlink PATH
 *
 * An entry is text, three fields each ended by NUL:
 *   "<kind> <mode, octal> <uid> <gid> <size> <mtime, ns> <inode> <links>", path, link target
 * where kind is one of f d l p s c b and the path is relative to PATH for `list`.
 *
 * The exit status is the errno (0: success); stderr says in words what failed.
 */
#include "init.h"

#include <dirent.h>
#include <limits.h>
#include <stdio.h>
#include <sys/syscall.h>

#define RENAME_WITHOUT_REPLACING 1u /* RENAME_NOREPLACE, <linux/fs.h> */

static _Noreturn void finish(int error, const char *operation, const char *path) {
    if (error)
        dprintf(STDERR_FILENO, "%s %s: %s\n", operation, path, strerror(error));
    _exit(error < 256 ? error : EIO);
}

static void write_all(int fd, const void *data, size_t size) {
    for (const uint8_t *at = data; size;) {
        ssize_t done = write(fd, at, size);
        if (done < 0 && errno == EINTR)
            continue;
        if (done < 0)
            finish(errno, "write", "stream");
        at += done;
        size -= (size_t)done;
    }
}

static long long number(const char *text) {
    char *end;
    errno = 0;
    long long value = strtoll(text, &end, 10);
    if (errno || *end || end == text)
        finish(EINVAL, "number", text);
    return value;
}

static mode_t mode_of(const char *text) {
    char *end;
    unsigned long value = strtoul(text, &end, 8);
    if (*end || end == text || value > 07777)
        finish(EINVAL, "mode", text);
    return (mode_t)value;
}

static uint8_t buffer[256 << 10];

static int do_read(char **argv) {
    long long offset = number(argv[1]), left = number(argv[2]);
    SUB_AUTO_FD fd = open(argv[0], O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    struct stat status;
    if (fd < 0 || fstat(fd, &status))
        return errno;
    if (!S_ISREG(status.st_mode))
        return S_ISDIR(status.st_mode) ? EISDIR : EINVAL; /* a fifo or device may never end */
    while (left) {
        size_t wanted = left > 0 && left < (long long)sizeof buffer ? (size_t)left : sizeof buffer;
        ssize_t got = pread(fd, buffer, wanted, offset);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return errno;
        if (got == 0)
            return 0;
        write_all(STDOUT_FILENO, buffer, (size_t)got);
        offset += got;
        left -= left > 0 ? got : 0;
    }
    return 0;
}

static int make_directories(const char *path, mode_t mode, bool last_too) {
    char copy[PATH_MAX];
    size_t length = strlen(path);
    if (length >= sizeof copy)
        return ENAMETOOLONG;
    memcpy(copy, path, length + 1);
    for (char *at = copy + 1; *copy && at <= copy + length; at++) {
        if (*at != '/' && *at != 0)
            continue;
        if (*at == 0 && !last_too)
            break;
        char kept = *at;
        *at = 0;
        if (mkdir(copy, mode) && errno != EEXIST)
            return errno;
        *at = kept;
    }
    struct stat status;
    return last_too && (stat(path, &status) || !S_ISDIR(status.st_mode)) ? EEXIST : 0;
}

static int do_write(char **argv) {
    int flags = O_WRONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC;
    bool parents = false, sync = false;
    long long offset = 0;
    mode_t mode = mode_of(argv[1]);
    for (char *options = argv[2], *option; (option = strsep(&options, ","));) {
        if (!strcmp(option, "create"))
            flags |= O_CREAT;
        else if (!strcmp(option, "excl"))
            flags |= O_CREAT | O_EXCL;
        else if (!strcmp(option, "truncate"))
            flags |= O_TRUNC;
        else if (!strcmp(option, "append"))
            flags |= O_APPEND;
        else if (!strcmp(option, "parents"))
            parents = true;
        else if (!strcmp(option, "sync"))
            sync = true;
        else if (!strncmp(option, "offset=", 7))
            offset = number(option + 7);
        else if (*option)
            return EINVAL;
    }
    int error = parents ? make_directories(argv[0], 0777, false) : 0;
    if (error)
        return error;
    SUB_AUTO_FD fd = open(argv[0], flags, mode);
    struct stat status;
    if (fd < 0 || fstat(fd, &status))
        return errno;
    if (!S_ISREG(status.st_mode))
        return EINVAL;
    if (offset && lseek(fd, offset, SEEK_SET) < 0)
        return errno;
    for (;;) {
        ssize_t got = read(STDIN_FILENO, buffer, sizeof buffer);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return got < 0 || (sync && fsync(fd)) ? errno : 0;
        for (ssize_t at = 0; at < got;) {
            ssize_t done = write(fd, buffer + at, (size_t)(got - at));
            if (done < 0 && errno != EINTR)
                return errno;
            at += done > 0 ? done : 0;
        }
    }
}

/* ---- entries --------------------------------------------------------------------------------- */

static char kind_of(mode_t mode) {
    switch (mode & S_IFMT) {
    case S_IFREG:
        return 'f';
    case S_IFDIR:
        return 'd';
    case S_IFLNK:
        return 'l';
    case S_IFIFO:
        return 'p';
    case S_IFSOCK:
        return 's';
    case S_IFCHR:
        return 'c';
    default:
        return 'b';
    }
}

static FILE *entries; /* stdout, buffered */

static void put_entry(int dir, const char *name, const char *shown, const struct stat *status) {
    char target[PATH_MAX] = "";
    if (S_ISLNK(status->st_mode)) {
        ssize_t length = readlinkat(dir, name, target, sizeof target - 1);
        target[length > 0 ? length : 0] = 0;
    }
    fprintf(entries, "%c %o %u %u %lld %lld %llu %llu", kind_of(status->st_mode),
            status->st_mode & 07777u, status->st_uid, status->st_gid, (long long)status->st_size,
            (long long)status->st_mtim.tv_sec * 1000000000ll + status->st_mtim.tv_nsec,
            (unsigned long long)status->st_ino, (unsigned long long)status->st_nlink);
    fputc(0, entries);
    fputs(shown, entries);
    fputc(0, entries);
    fputs(target, entries);
    fputc(0, entries);
}

static int flush_entries(void) {
    return fflush(entries) ? errno : 0;
}

static int do_stat(char **argv) {
    struct stat status;
    int flags = number(argv[1]) ? 0 : AT_SYMLINK_NOFOLLOW;
    if (fstatat(AT_FDCWD, argv[0], &status, flags))
        return errno;
    put_entry(AT_FDCWD, argv[0], argv[0], &status);
    return flush_entries();
}

static bool is_dots(const char *name) {
    return !strcmp(name, ".") || !strcmp(name, "..");
}

static int list_below(int fd, char *path, size_t length, long long depth) {
    DIR *dir = fdopendir(fd);
    if (!dir)
        return errno;
    for (struct dirent *entry; (entry = readdir(dir));) {
        struct stat status;
        size_t name = strlen(entry->d_name);
        if (is_dots(entry->d_name) || length + name + 2 > PATH_MAX ||
            fstatat(dirfd(dir), entry->d_name, &status, AT_SYMLINK_NOFOLLOW))
            continue; /* gone since it was listed, or nameless for anybody */
        memcpy(path + length, entry->d_name, name + 1);
        put_entry(dirfd(dir), entry->d_name, path, &status);
        if (!S_ISDIR(status.st_mode) || depth == 1)
            continue;
        int below =
            openat(dirfd(dir), entry->d_name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        if (below < 0)
            continue; /* unreadable: its entry is there, what is in it is not ours to see */
        path[length + name] = '/';
        list_below(below, path, length + name + 1, depth - 1);
    }
    closedir(dir);
    return 0;
}

static int do_list(char **argv) {
    static char path[PATH_MAX];
    int fd = open(argv[0], O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return errno;
    int error = list_below(fd, path, 0, number(argv[1]));
    return error ? error : flush_entries();
}

/* ---- changes --------------------------------------------------------------------------------- */

static int do_mkdir(char **argv) {
    mode_t mode = mode_of(argv[1]);
    if (number(argv[2]))
        return make_directories(argv[0], mode, true);
    return mkdir(argv[0], mode) ? errno : 0;
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
        if (!is_dots(entry->d_name))
            error = remove_at(dirfd(below), entry->d_name, true);
    closedir(below);
    if (error)
        return error == ENOENT ? 0 : error;
    return unlinkat(dir, name, AT_REMOVEDIR) ? errno : 0;
}

static int do_remove(char **argv) {
    return remove_at(AT_FDCWD, argv[0], number(argv[1]) != 0);
}

static int do_rename(char **argv) {
    unsigned flags = number(argv[2]) ? 0 : RENAME_WITHOUT_REPLACING;
    return syscall(SYS_renameat2, AT_FDCWD, argv[0], AT_FDCWD, argv[1], flags) ? errno : 0;
}

static int do_chmod(char **argv) {
    return chmod(argv[0], mode_of(argv[1])) ? errno : 0;
}

static int do_symlink(char **argv) {
    return symlink(argv[0], argv[1]) ? errno : 0;
}

static int do_readlink(char **argv) {
    static char target[PATH_MAX];
    ssize_t length = readlink(argv[0], target, sizeof target);
    if (length < 0)
        return errno;
    write_all(STDOUT_FILENO, target, (size_t)length);
    return 0;
}

static const struct operation {
    const char *name;
    int arguments;
    int path; /* which argument an error message names */
    int (*run)(char **argv);
} OPERATIONS[] = {
    {"read", 3, 0, do_read},         {"write", 3, 0, do_write}, {"stat", 2, 0, do_stat},
    {"list", 2, 0, do_list},         {"mkdir", 3, 0, do_mkdir}, {"remove", 2, 0, do_remove},
    {"rename", 3, 0, do_rename},     {"chmod", 2, 0, do_chmod}, {"symlink", 2, 1, do_symlink},
    {"readlink", 1, 0, do_readlink},
};

static const struct operation *find_operation(const char *name) {
    for (size_t i = 0; i < sizeof OPERATIONS / sizeof OPERATIONS[0]; i++)
        if (!strcmp(OPERATIONS[i].name, name))
            return &OPERATIONS[i];
    return NULL;
}

bool builtin_exists(const char *name) {
    return find_operation(name) != NULL;
}

void builtin_run(char **argv) {
    const struct operation *operation = find_operation(argv[0]);
    int count = 0;
    while (argv[1 + count])
        count++;
    if (!operation || count != operation->arguments)
        finish(EINVAL, argv[0], "arguments");
    struct rlimit files;
    if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
        files.rlim_cur = files.rlim_max; /* one descriptor for each level of a deep tree */
        setrlimit(RLIMIT_NOFILE, &files);
    }
    entries = fdopen(STDOUT_FILENO, "w");
    if (!entries)
        finish(errno, argv[0], "stdout");
    finish(operation->run(argv + 1), argv[0], argv[1 + operation->path]);
}
