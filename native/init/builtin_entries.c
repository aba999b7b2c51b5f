/* What there is: the state of a path, the entries of a directory. */
#include "builtin.h"

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

size_t entry_head(char head[ENTRY_HEAD_MAX], const struct stat *status) {
    return (size_t)snprintf(
        head, ENTRY_HEAD_MAX, "%c %o %u %u %lld %lld %llu %llu", kind_of(status->st_mode),
        status->st_mode & 07777u, status->st_uid, status->st_gid, (long long)status->st_size,
        (long long)status->st_mtim.tv_sec * 1000000000ll + status->st_mtim.tv_nsec,
        (unsigned long long)status->st_ino, (unsigned long long)status->st_nlink);
}

void entry_target(char *target, int dir, const char *name, const struct stat *status) {
    ssize_t length =
        S_ISLNK(status->st_mode) ? readlinkat(dir, name, target, PATH_MAX - 1) : (ssize_t)0;
    target[length > 0 ? length : 0] = 0;
}

static FILE *entries; /* stdout, buffered */

static void put_field(const char *text) {
    fputs(text, entries);
    fputc(0, entries);
}

static void put_entry(int dir, const char *name, const char *shown, const struct stat *status) {
    char head[ENTRY_HEAD_MAX], target[PATH_MAX];
    entry_head(head, status);
    entry_target(target, dir, name, status);
    put_field(head);
    put_field(shown);
    put_field(target);
}

static int begin_entries(void) {
    entries = fdopen(STDOUT_FILENO, "w");
    return entries ? 0 : errno;
}

static int flush_entries(void) {
    return fflush(entries) ? errno : 0;
}

int builtin_stat(char **argv) {
    struct stat status;
    int flags = builtin_number(argv[1]) ? 0 : AT_SYMLINK_NOFOLLOW;
    if (fstatat(AT_FDCWD, argv[0], &status, flags))
        return errno;
    int error = begin_entries();
    if (error)
        return error;
    put_entry(AT_FDCWD, argv[0], argv[0], &status);
    return flush_entries();
}

struct walk {
    char path[PATH_MAX]; /* of the entry at hand, relative to the directory asked for */
    size_t left;         /* entries still wanted */
};

/*
 * Entries in the order of their names, a directory before what is in it. `after` is what a page
 * before this one ended with, below this directory: a name and what is below that.
 */
static int list_below(struct walk *walk, int fd, size_t length, long long depth, char *after) {
    struct names names;
    char *rest = after ? strchr(after, '/') : NULL;
    if (rest)
        *rest++ = 0;
    int error = names_read(&names, fd, after, walk->left < SIZE_MAX ? walk->left + 1 : SIZE_MAX);
    if (error)
        return error;
    for (size_t i = 0; i < names.count && walk->left; i++) {
        struct stat status;
        const char *name = names.items[i];
        size_t size = strlen(name);
        bool told = after && !strcmp(name, after);
        if (length + size + 2 > PATH_MAX ||
            fstatat(names_fd(&names), name, &status, AT_SYMLINK_NOFOLLOW))
            continue; /* gone since it was listed, or nameless for anybody */
        memcpy(walk->path + length, name, size + 1);
        if (!told) {
            put_entry(names_fd(&names), name, walk->path, &status);
            walk->left -= walk->left < SIZE_MAX ? 1 : 0;
        }
        if (!S_ISDIR(status.st_mode) || depth == 1 || !walk->left)
            continue;
        int below = openat(names_fd(&names), name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        if (below < 0)
            continue; /* unreadable: its entry is there, what is in it is not ours to see */
        walk->path[length + size] = '/';
        list_below(walk, below, length + size + 1, depth - 1, told ? rest : NULL);
    }
    names_release(&names);
    return 0;
}

int builtin_list(char **argv) {
    static struct walk walk;
    long long limit = builtin_number(argv[3]);
    walk.left = limit < 0 ? SIZE_MAX : (size_t)limit;
    int fd = open(argv[0], O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return errno;
    int error = begin_entries();
    if (!error)
        error = list_below(&walk, fd, 0, builtin_number(argv[1]), argv[2][0] ? argv[2] : NULL);
    return error ? error : flush_entries();
}

int builtin_readlink(char **argv) {
    static char target[PATH_MAX];
    ssize_t length = readlink(argv[0], target, sizeof target);
    return length < 0 ? errno : builtin_write_all(STDOUT_FILENO, target, (size_t)length);
}
