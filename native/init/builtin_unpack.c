/*
 * A tar stream into a directory: files, directories, symbolic and hard links, and nothing else.
 * Everything is reached from the directory's descriptor, name by name and through no symbolic link,
 * so what the stream brings stays below it, whatever was there before and whoever moves it about.
 */
#include "builtin.h"
#include "builtin_tar.h"

struct entry {
    char path[PATH_MAX], link[PATH_MAX];
    char type;
    mode_t mode;
    long long size, mtime;
};

struct later {
    char *path;
    mode_t mode;
    long long mtime;
};

static struct later *directories; /* get their modes last: one may be read-only */
static size_t directory_count, directory_room;
static size_t begin, end; /* of what is read and not taken in builtin_buffer */

/* ---- the stream ------------------------------------------------------------------------------ */

/* Bytes at hand, at most `wanted`; 0 with *error 0: the stream has ended. */
static size_t take(size_t wanted, const uint8_t **data, int *error) {
    *error = 0;
    while (begin == end) {
        ssize_t got = read(STDIN_FILENO, builtin_buffer, BUFFER_SIZE);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0) {
            *error = got < 0 ? errno : 0;
            return 0;
        }
        begin = 0;
        end = (size_t)got;
    }
    size_t size = end - begin < wanted ? end - begin : wanted;
    *data = builtin_buffer + begin;
    begin += size;
    return size;
}

/* 0, an errno, or EBADMSG where the stream ends before. */
static int take_all(void *out, unsigned long long size) {
    for (uint8_t *to = out; size;) {
        const uint8_t *data;
        int error;
        size_t got = take(size < BUFFER_SIZE ? (size_t)size : BUFFER_SIZE, &data, &error);
        if (!got)
            return error ? error : EBADMSG;
        if (to) {
            memcpy(to, data, got);
            to += got;
        }
        size -= got;
    }
    return 0;
}

static int skip_padding(long long size) {
    return take_all(NULL, (unsigned long long)-size % TAR_BLOCK);
}

/* Octal digits, or where the first bit is set (GNU) a binary number; -1 where it is neither. */
static long long field_number(const char *field, size_t size) {
    long long value = 0;
    size_t i = 0;
    if ((uint8_t)field[0] == 0x80) {
        for (i = 1; i < size; i++) {
            if (value > INT64_MAX >> 8)
                return -1;
            value = value << 8 | (uint8_t)field[i];
        }
        return value;
    }
    while (i < size && field[i] == ' ')
        i++;
    for (; i < size && field[i] >= '0' && field[i] <= '7'; i++)
        value = value << 3 | (field[i] - '0'); /* at most eleven digits: it fits */
    return i == size || field[i] == 0 || field[i] == ' ' ? value : -1;
}

static bool checksum_is_right(const struct tar_header *header) {
    unsigned sum = 0;
    for (size_t i = 0; i < sizeof *header; i++)
        sum += i >= 148 && i < 156 ? ' ' : ((const uint8_t *)header)[i];
    return field_number(header->checksum, sizeof header->checksum) == (long long)sum;
}

static int set_path(char *out, const char *from, size_t length) {
    if (length >= PATH_MAX || memchr(from, 0, length))
        return EBADMSG;
    memcpy(out, from, length);
    out[length] = 0;
    return 0;
}

/* Records "<length> <key>=<value>\n" of an extended header; those of no meaning here are passed. */
static int read_extended(char *text, size_t length, struct entry *extended) {
    while (length) {
        char *after, *newline;
        unsigned long record = strtoul(text, &after, 10);
        if (*after != ' ' || record > length || record < (size_t)(after - text) + 4 ||
            text[record - 1] != '\n')
            return EBADMSG;
        newline = text + record - 1;
        char *key = after + 1, *equals = memchr(key, '=', (size_t)(newline - key));
        if (!equals)
            return EBADMSG;
        *equals = *newline = 0;
        size_t size = (size_t)(newline - equals - 1);
        int error = 0;
        if (!strcmp(key, "path"))
            error = set_path(extended->path, equals + 1, size);
        else if (!strcmp(key, "linkpath"))
            error = set_path(extended->link, equals + 1, size);
        else if (!strcmp(key, "size"))
            extended->size = strtoll(equals + 1, NULL, 10);
        else if (!strcmp(key, "mtime"))
            extended->mtime = strtoll(equals + 1, NULL, 10);
        if (error || extended->size < -1)
            return EBADMSG;
        text += record;
        length -= record;
    }
    return 0;
}

static int read_special(char type, long long size, struct entry *extended) {
    static char text[TAR_EXTENDED_MAX + 1];
    if (size < 0 || size > (long long)TAR_EXTENDED_MAX)
        return EBADMSG;
    int error = take_all(text, (unsigned long long)size);
    if (!error)
        error = skip_padding(size);
    if (error)
        return error;
    text[size] = 0;
    if (type == 'x')
        return read_extended(text, (size_t)size, extended);
    if (type == 'L')
        return set_path(extended->path, text, strlen(text));
    if (type == 'K')
        return set_path(extended->link, text, strlen(text));
    return 0; /* 'g': what is said for all entries is nothing that is used here */
}

static int plain_path(char *out, const struct tar_header *header) {
    size_t name = strnlen(header->name, sizeof header->name), prefix = 0;
    if (!memcmp(header->magic, "ustar", 6))
        prefix = strnlen(header->prefix, sizeof header->prefix);
    memcpy(out, header->prefix, prefix);
    if (prefix)
        out[prefix++] = '/';
    memcpy(out + prefix, header->name, name);
    out[prefix + name] = 0;
    return 0;
}

/* 0 with `type` 0: the stream has ended as it should. */
static int next_entry(struct entry *entry) {
    static struct entry extended;
    struct tar_header header;
    extended = (struct entry){.size = -1, .mtime = -1};
    for (;;) {
        static const struct tar_header zeros;
        int error = take_all(&header, sizeof header);
        if (error)
            return error;
        if (!memcmp(&header, &zeros, sizeof header)) {
            entry->type = 0;
            return 0;
        }
        long long size = field_number(header.size, sizeof header.size);
        if (!checksum_is_right(&header) || size < 0)
            return EBADMSG;
        if (strchr("xgLK", header.type) && header.type) {
            if ((error = read_special(header.type, size, &extended)))
                return error;
            continue;
        }
        entry->type = header.type == 0 || header.type == '7' ? '0' : header.type;
        entry->mode = (mode_t)field_number(header.mode, sizeof header.mode) & 07777;
        entry->size = extended.size >= 0 ? extended.size : size;
        entry->mtime =
            extended.mtime >= 0 ? extended.mtime : field_number(header.mtime, sizeof header.mtime);
        plain_path(entry->path, &header);
        if (extended.path[0])
            strcpy(entry->path, extended.path);
        size_t link = strnlen(header.link, sizeof header.link);
        memcpy(entry->link, header.link, link);
        entry->link[link] = 0;
        if (extended.link[0])
            strcpy(entry->link, extended.link);
        return 0;
    }
}

/* ---- the tree -------------------------------------------------------------------------------- */

/*
 * The directory that `path` lies in, and its last name; NULL for the directory itself. Missing
 * directories are made. -1 with errno.
 */
static int open_parent(int root, char *path, char **leaf) {
    int at = fcntl(root, F_DUPFD_CLOEXEC, 3);
    *leaf = NULL;
    if (*path == '/') {
        sub_close_fd(&at);
        errno = EBADMSG;
    }
    for (char *name; at >= 0 && (name = strsep(&path, "/"));) {
        if (!*name || !strcmp(name, "."))
            continue;
        int below = -1;
        if (!strcmp(name, "..")) {
            errno = EBADMSG;
        } else if (!*leaf) {
            *leaf = name;
            continue;
        } else {
            if (mkdirat(at, *leaf, 0755) == 0 || errno == EEXIST)
                below = openat(at, *leaf, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
            *leaf = name;
        }
        int error = errno;
        close(at);
        errno = error;
        at = below;
    }
    return at;
}

static int remember(const struct entry *entry) {
    if (directory_count == directory_room) {
        size_t room = directory_room ? directory_room * 2 : 64;
        struct later *grown = realloc(directories, room * sizeof *grown);
        if (!grown)
            return ENOMEM;
        directories = grown;
        directory_room = room;
    }
    char *path = strdup(entry->path);
    if (!path)
        return ENOMEM;
    directories[directory_count++] = (struct later){path, entry->mode, entry->mtime};
    return 0;
}

static int make_directory(int parent, const char *name) {
    struct stat status;
    if (mkdirat(parent, name, 0700) == 0)
        return 0;
    if (errno != EEXIST)
        return errno;
    if (fstatat(parent, name, &status, AT_SYMLINK_NOFOLLOW))
        return errno;
    if (S_ISDIR(status.st_mode))
        return 0;
    return unlinkat(parent, name, 0) || mkdirat(parent, name, 0700) ? errno : 0;
}

static int make_file(int parent, const char *name, const struct entry *entry) {
    SUB_AUTO_FD fd =
        openat(parent, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (fd < 0)
        return errno;
    for (long long left = entry->size; left;) {
        const uint8_t *data;
        int error;
        size_t got =
            take(left < (long long)BUFFER_SIZE ? (size_t)left : BUFFER_SIZE, &data, &error);
        if (!got)
            return error ? error : EBADMSG;
        if ((error = builtin_write_all(fd, data, got)))
            return error;
        left -= (long long)got;
    }
    struct timespec times[2] = {{.tv_nsec = UTIME_NOW}, {.tv_sec = entry->mtime}};
    if (fchmod(fd, entry->mode) || (entry->mtime >= 0 && futimens(fd, times)))
        return errno;
    return skip_padding(entry->size);
}

static int make_hard_link(int root, int parent, const char *name, const struct entry *entry) {
    char path[PATH_MAX], *leaf;
    strcpy(path, entry->link);
    SUB_AUTO_FD from = open_parent(root, path, &leaf);
    if (from < 0)
        return errno;
    return !leaf ? EBADMSG : linkat(from, leaf, parent, name, 0) ? errno : 0;
}

static int unpack_entry(int root, const struct entry *entry) {
    char path[PATH_MAX], *leaf;
    strcpy(path, entry->path);
    SUB_AUTO_FD parent = open_parent(root, path, &leaf);
    if (parent < 0)
        return errno;
    if (entry->type == '5') {
        int error = leaf ? make_directory(parent, leaf) : 0;
        if (!error && leaf)
            error = remember(entry);
        return error ? error : take_all(NULL, (unsigned long long)entry->size);
    }
    if (!leaf)
        return EBADMSG;
    /* A new file each time: one with several names keeps its content under the others. */
    if (unlinkat(parent, leaf, 0) && errno != ENOENT)
        return errno;
    switch (entry->type) {
    case '0':
        return make_file(parent, leaf, entry);
    case '1':
        return make_hard_link(root, parent, leaf, entry);
    case '2':
        return symlinkat(entry->link, parent, leaf) ? errno : 0;
    default:
        return EBADMSG;
    }
}

/* The last first: what is in a directory is reached through it. */
static int finish_directories(int root) {
    while (directory_count) {
        struct later *last = &directories[--directory_count];
        struct timespec times[2] = {{.tv_nsec = UTIME_NOW}, {.tv_sec = last->mtime}};
        char *leaf;
        SUB_AUTO_FD parent = open_parent(root, last->path, &leaf);
        SUB_AUTO_FD fd = -1;
        if (parent < 0 || !leaf ||
            (fd = openat(parent, leaf, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC)) < 0 ||
            fchmod(fd, last->mode) || (last->mtime >= 0 && futimens(fd, times)))
            return errno;
        free(last->path);
    }
    return 0;
}

int builtin_unpack(char **argv) {
    static struct entry entry;
    int error = make_directories(argv[0], 0755, true);
    if (error)
        return error == EEXIST ? ENOTDIR : error;
    SUB_AUTO_FD root = open(argv[0], O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (root < 0)
        return errno;
    while (!(error = next_entry(&entry)) && entry.type)
        if ((error = unpack_entry(root, &entry)))
            break;
    return error ? error : finish_directories(root);
}
