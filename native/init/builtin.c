/*
 * File operations inside the box, as one of its users, without a program of the box's in between:
 * what the Files API of the world service runs. Everything is resolved in the box by a process of
 * the box, so no symbolic link, ".." or race leads anywhere else.
 *
 *   read PATH OFFSET LENGTH      bytes to stdout; LENGTH -1: to the end
 *   write PATH MODE OPTIONS      stdin to the file. OPTIONS, by commas: create, excl, truncate,
 *                                append, parents, sync, offset=N
 *   stat PATH FOLLOW             one entry to stdout; FOLLOW 0 or 1
 *   list PATH DEPTH AFTER LIMIT  entries below a directory; DEPTH 1: its children; -1: everything.
 *                                Those that come after the entry AFTER ("": all), at most LIMIT
 *   mkdir PATH MODE PARENTS      PARENTS 1: missing parents too, and no error where it is there;
 *                                2: missing parents too
 *   remove PATH RECURSIVE        RECURSIVE 1: with what is below
 *   rename FROM TO REPLACE       REPLACE 0: fails with EEXIST
 *   chmod PATH MODE              symlink TARGET PATH             readlink PATH
 *   tar PATH                     what is below a directory, as a tar stream to stdout
 *   untar PATH                   a tar stream from stdin into a directory, which is made
 *   watch PATH RECURSIVE         what happens in a directory, to stdout; see builtin_watch.c
 *
 * An entry is text, three fields each ended by NUL:
 *   "<kind> <mode, octal> <uid> <gid> <size> <mtime, ns> <inode> <links>", path, link target
 * where kind is one of f d l p s c b and the path is relative to PATH for `list`.
 *
 * The exit status is the errno (0: success); stderr says in words what failed.
 */
#include "builtin.h"

uint8_t builtin_buffer[BUFFER_SIZE];

_Noreturn void builtin_finish(int error, const char *operation, const char *path) {
    if (error)
        dprintf(STDERR_FILENO, "%s %s: %s\n", operation, path, strerror(error));
    _exit(error < 256 ? error : EIO);
}

int builtin_write_all(int fd, const void *data, size_t size) {
    for (const uint8_t *at = data; size;) {
        ssize_t done = write(fd, at, size);
        if (done < 0 && errno == EINTR)
            continue;
        if (done < 0)
            return errno;
        at += done;
        size -= (size_t)done;
    }
    return 0;
}

long long builtin_number(const char *text) {
    char *end;
    errno = 0;
    long long value = strtoll(text, &end, 10);
    if (errno || *end || end == text)
        builtin_finish(EINVAL, "number", text);
    return value;
}

mode_t builtin_mode(const char *text) {
    char *end;
    unsigned long value = strtoul(text, &end, 8);
    if (*end || end == text || value > 07777)
        builtin_finish(EINVAL, "mode", text);
    return (mode_t)value;
}

static const struct operation {
    const char *name;
    int arguments;
    int path; /* which argument an error message names */
    int (*run)(char **argv);
} OPERATIONS[] = {
    {"read", 3, 0, builtin_read},       {"write", 3, 0, builtin_write},
    {"stat", 2, 0, builtin_stat},       {"list", 4, 0, builtin_list},
    {"mkdir", 3, 0, builtin_mkdir},     {"remove", 2, 0, builtin_remove},
    {"rename", 3, 0, builtin_rename},   {"chmod", 2, 0, builtin_chmod},
    {"symlink", 2, 1, builtin_symlink}, {"readlink", 1, 0, builtin_readlink},
    {"tar", 1, 0, builtin_pack},        {"untar", 1, 0, builtin_unpack},
    {"watch", 2, 0, builtin_watch},
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
        builtin_finish(EINVAL, argv[0], "arguments");
    struct rlimit files;
    if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
        files.rlim_cur = files.rlim_max; /* one descriptor for each level of a deep tree */
        setrlimit(RLIMIT_NOFILE, &files);
    }
    builtin_finish(operation->run(argv + 1), argv[0], argv[1 + operation->path]);
}
