/*
 * What is below a directory, as a tar stream: files, directories, symbolic and hard links. Sockets,
 * fifos and devices are left out: they mean nothing elsewhere. Whoever reads it need not trust it.
 */
#include "builtin.h"
#include "builtin_tar.h"

#define LINKS_MAX 65536u /* files with several names that are known again; a power of two */

struct link {
    dev_t device;
    ino_t inode;
    char *path;
};

static struct link links[LINKS_MAX];
static size_t link_count;
static size_t used; /* bytes in builtin_buffer */
static bool torn;   /* a file became shorter while it was read */

static int flush(void) {
    int error = builtin_write_all(STDOUT_FILENO, builtin_buffer, used);
    used = 0;
    return error;
}

static int put(const void *data, size_t size) {
    for (const uint8_t *from = data; size;) {
        size_t room = BUFFER_SIZE - used, piece = size < room ? size : room;
        memcpy(builtin_buffer + used, from, piece);
        used += piece;
        from += piece;
        size -= piece;
        int error = used == BUFFER_SIZE ? flush() : 0;
        if (error)
            return error;
    }
    return 0;
}

static int put_zeros(unsigned long long size) {
    static const uint8_t zeros[4096];
    int error = 0;
    for (; size && !error; size -= size < sizeof zeros ? size : sizeof zeros)
        error = put(zeros, size < sizeof zeros ? (size_t)size : sizeof zeros);
    return error;
}

static int put_header(char type, const char *name, const char *link, mode_t mode, long long size,
                      long long mtime) {
    struct tar_header header;
    memset(&header, 0, sizeof header);
    memcpy(header.name, name, strnlen(name, sizeof header.name));
    memcpy(header.link, link, strnlen(link, sizeof header.link));
    snprintf(header.mode, sizeof header.mode, "%07o", mode & 07777u);
    snprintf(header.uid, sizeof header.uid, "%07o", 0u);
    snprintf(header.gid, sizeof header.gid, "%07o", 0u);
    snprintf(header.size, sizeof header.size, "%011llo",
             (unsigned long long)(size > TAR_SIZE_MAX ? 0 : size));
    snprintf(header.mtime, sizeof header.mtime, "%011llo",
             (unsigned long long)(mtime < 0 || mtime > TAR_SIZE_MAX ? 0 : mtime));
    header.type = type;
    memcpy(header.magic, "ustar", 6);
    memcpy(header.version, "00", 2);
    memset(header.checksum, ' ', sizeof header.checksum);
    unsigned sum = 0;
    for (size_t i = 0; i < sizeof header; i++)
        sum += ((const uint8_t *)&header)[i];
    snprintf(header.checksum, sizeof header.checksum, "%06o", sum);
    return put(&header, sizeof header);
}

/* "<length of all of it> <key>=<value>\n" */
static size_t add_record(char *space, size_t at, const char *key, const char *value) {
    size_t rest = strlen(key) + strlen(value) + 3, length = rest;
    for (size_t before = 0; before != length;) {
        before = length;
        length = rest + (size_t)snprintf(NULL, 0, "%zu", before);
    }
    return at + (size_t)sprintf(space + at, "%zu %s=%s\n", length, key, value);
}

static int put_entry(char type, const char *path, const char *link, const struct stat *status,
                     long long size) {
    static char extended[2 * PATH_MAX + 256];
    size_t length = 0;
    char number[24];
    if (strlen(path) > 100)
        length = add_record(extended, length, "path", path);
    if (strlen(link) > 100)
        length = add_record(extended, length, "linkpath", link);
    if (size > TAR_SIZE_MAX) {
        snprintf(number, sizeof number, "%lld", size);
        length = add_record(extended, length, "size", number);
    }
    if (length) {
        int error = put_header('x', "././@PaxHeader", "", 0644, (long long)length, 0);
        if (!error)
            error = put(extended, length);
        if (!error)
            error = put_zeros(-length % TAR_BLOCK);
        if (error)
            return error;
    }
    return put_header(type, path, link, status->st_mode, size, (long long)status->st_mtim.tv_sec);
}

/* The path under which a file was packed before; NULL: it is packed now, under this one. */
static const char *known_as(const struct stat *status, const char *path) {
    size_t at = ((size_t)status->st_ino * 0x9e3779b97f4a7c15ull >> 20) % LINKS_MAX;
    while (links[at].path) {
        if (links[at].device == status->st_dev && links[at].inode == status->st_ino)
            return links[at].path;
        at = (at + 1) % LINKS_MAX;
    }
    if (link_count < LINKS_MAX / 2 && (links[at].path = strdup(path))) {
        links[at].device = status->st_dev;
        links[at].inode = status->st_ino;
        link_count++;
    }
    return NULL;
}

static int pack_file(int dir, const char *name, const char *path) {
    struct stat status;
    SUB_AUTO_FD fd = openat(dir, name, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &status))
        return errno;
    if (!S_ISREG(status.st_mode))
        return ENOENT; /* it was one a moment ago */
    const char *known = status.st_nlink > 1 ? known_as(&status, path) : NULL;
    if (known)
        return put_entry('1', path, known, &status, 0);
    int error = put_entry('0', path, "", &status, (long long)status.st_size);
    long long left = status.st_size;
    while (left && !error) {
        size_t room = BUFFER_SIZE - used;
        ssize_t got = read(fd, builtin_buffer + used, left < (long long)room ? (size_t)left : room);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0) {
            /* The size is promised. That the rest of it is none of the file's is told at the end. */
            torn = true;
            error = put_zeros((unsigned long long)left);
            break;
        }
        used += (size_t)got;
        left -= got;
        error = used == BUFFER_SIZE ? flush() : 0;
    }
    return error ? error : put_zeros((unsigned long long)-status.st_size % TAR_BLOCK);
}

static int pack_below(int fd, char *path, size_t length);

static int pack_one(int dir, const char *name, char *path, size_t length) {
    struct stat status;
    char target[PATH_MAX];
    if (fstatat(dir, name, &status, AT_SYMLINK_NOFOLLOW))
        return errno;
    switch (status.st_mode & S_IFMT) {
    case S_IFREG:
        return pack_file(dir, name, path);
    case S_IFLNK:
        entry_target(target, dir, name, &status);
        return put_entry('2', path, target, &status, 0);
    case S_IFDIR:
        break;
    default:
        return 0;
    }
    int below = openat(dir, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (below < 0)
        return errno;
    path[length] = '/';
    path[length + 1] = 0;
    int error = put_entry('5', path, "", &status, 0);
    if (!error)
        return pack_below(below, path, length + 1);
    close(below);
    return error;
}

static int pack_below(int fd, char *path, size_t length) {
    struct names names;
    int error = names_read(&names, fd, NULL, SIZE_MAX);
    if (error)
        return error;
    for (size_t i = 0; i < names.count && !error; i++) {
        size_t size = strlen(names.items[i]);
        if (length + size + 2 > PATH_MAX) {
            error = ENAMETOOLONG; /* never left out in silence */
            break;
        }
        memcpy(path + length, names.items[i], size + 1);
        error = pack_one(names_fd(&names), names.items[i], path, length + size);
        if (error == ENOENT || error == ELOOP || error == ENOTDIR)
            error = 0; /* gone, or another, since it was listed */
    }
    names_release(&names);
    return error;
}

int builtin_pack(char **argv) {
    static char path[PATH_MAX];
    int fd = open(argv[0], O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return errno;
    int error = pack_below(fd, path, 0);
    if (!error)
        error = put_zeros(2 * (unsigned long long)TAR_BLOCK);
    if (!error)
        error = flush();
    return error ? error : torn ? ESTALE : 0;
}
