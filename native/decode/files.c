/*
 * All that is asked of the system after the sandbox has closed.
 */
#define _GNU_SOURCE 1

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "decode.h"

int file_open(int directory, const char *name, struct file_status *status) {
    struct stat found;
    int fd = openat(directory, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    if (fstat(fd, &found) != 0 || !S_ISREG(found.st_mode)) {
        close(fd);
        return -EINVAL;
    }
    status->bytes = (uint64_t)found.st_size;
    status->owner = found.st_uid;
    return fd;
}

ssize_t file_read(int fd, void *to, size_t bytes, uint64_t at) {
    ssize_t got;
    do
        got = pread(fd, to, bytes, (off_t)at);
    while (got < 0 && errno == EINTR);
    return got;
}

void file_close(int fd) {
    close(fd);
}

void list_files(int directory, void (*take)(void *context, const char *name), void *context) {
    int copy = openat(directory, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *entries = copy >= 0 ? fdopendir(copy) : NULL;
    if (entries == NULL)
        die_errno("cannot list the segment directory");
    const struct dirent *entry;
    while ((entry = readdir(entries)) != NULL) {
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            take(context, entry->d_name);
    }
    closedir(entries);
}

void write_output(int fd, const char *bytes, size_t length, const char *what) {
    while (length > 0) {
        ssize_t written = write(fd, bytes, length);
        if (written < 0 && errno == EINTR)
            continue;
        if (written <= 0)
            die_errno(what);
        bytes += written;
        length -= (size_t)written;
    }
}
