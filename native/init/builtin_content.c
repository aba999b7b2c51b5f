/* The content of regular files, to stdout and from stdin. */
#include "builtin.h"

/*
 * Opens regular files only. Opening a fifo or a device does something (it wakes who waits at the
 * other end), and reading one may never end; so it is looked at before, and again after, because
 * it may have become another meanwhile.
 */
static int open_regular(const char *path, int flags, mode_t mode, int *error) {
    struct stat status;
    *error = 0;
    if (stat(path, &status) == 0 && !S_ISREG(status.st_mode)) {
        *error = S_ISDIR(status.st_mode) ? EISDIR : EINVAL;
        return -1;
    }
    int fd = open(path, flags | O_NONBLOCK | O_NOCTTY | O_CLOEXEC, mode);
    if (fd < 0 || fstat(fd, &status))
        *error = errno;
    else if (!S_ISREG(status.st_mode))
        *error = S_ISDIR(status.st_mode) ? EISDIR : EINVAL;
    return fd;
}

int builtin_read(char **argv) {
    long long offset = builtin_number(argv[1]), left = builtin_number(argv[2]);
    int error;
    SUB_AUTO_FD fd = open_regular(argv[0], O_RDONLY, 0, &error);
    if (error)
        return error;
    while (left) {
        size_t wanted = left > 0 && left < (long long)BUFFER_SIZE ? (size_t)left : BUFFER_SIZE;
        ssize_t got = pread(fd, builtin_buffer, wanted, offset);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return got < 0 ? errno : 0;
        if ((error = builtin_write_all(STDOUT_FILENO, builtin_buffer, (size_t)got)))
            return error;
        offset += got;
        left -= left > 0 ? got : 0;
    }
    return 0;
}

struct options {
    int flags;
    bool parents, sync;
    long long offset;
};

static int parse_options(char *text, struct options *options) {
    for (char *option; (option = strsep(&text, ","));) {
        if (!strcmp(option, "create"))
            options->flags |= O_CREAT;
        else if (!strcmp(option, "excl"))
            options->flags |= O_CREAT | O_EXCL;
        else if (!strcmp(option, "truncate"))
            options->flags |= O_TRUNC;
        else if (!strcmp(option, "append"))
            options->flags |= O_APPEND;
        else if (!strcmp(option, "parents"))
            options->parents = true;
        else if (!strcmp(option, "sync"))
            options->sync = true;
        else if (!strncmp(option, "offset=", 7))
            options->offset = builtin_number(option + 7);
        else if (*option)
            return EINVAL;
    }
    return 0;
}

int builtin_write(char **argv) {
    struct options options = {.flags = O_WRONLY};
    mode_t mode = builtin_mode(argv[1]);
    int error = parse_options(argv[2], &options);
    if (!error && options.parents)
        error = make_directories(argv[0], 0755, false);
    if (error)
        return error;
    SUB_AUTO_FD fd = open_regular(argv[0], options.flags, mode, &error);
    if (error)
        return error;
    if (options.offset && lseek(fd, options.offset, SEEK_SET) < 0)
        return errno;
    for (;;) {
        ssize_t got = read(STDIN_FILENO, builtin_buffer, BUFFER_SIZE);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return got < 0 || (options.sync && fsync(fd)) ? errno : 0;
        if ((error = builtin_write_all(fd, builtin_buffer, (size_t)got)))
            return error;
    }
}
