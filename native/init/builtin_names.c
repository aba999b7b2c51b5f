/* The names in a directory, in order: what listing, packing and moving walk by. */
#include "builtin.h"

static int compare(const void *left, const void *right) {
    return strcmp(*(char *const *)left, *(char *const *)right);
}

static void cut(struct names *names, size_t limit) {
    if (names->count)
        qsort(names->items, names->count, sizeof *names->items, compare);
    while (names->count > limit)
        free(names->items[--names->count]);
}

static int keep(struct names *names, const char *name, size_t limit) {
    if (names->count == names->room) {
        /* No more than twice the limit is ever held: a directory may have millions of names. */
        if (names->room && limit < names->room)
            cut(names, limit);
        if (names->count == names->room) {
            size_t room = names->room ? names->room * 2 : 64;
            char **items = realloc(names->items, room * sizeof *items);
            if (!items)
                return ENOMEM;
            names->items = items;
            names->room = room;
        }
    }
    char *copy = strdup(name);
    if (!copy)
        return ENOMEM;
    names->items[names->count++] = copy;
    return 0;
}

int names_read(struct names *names, int fd, const char *from, size_t limit) {
    *names = (struct names){.dir = fdopendir(fd)};
    if (!names->dir) {
        int error = errno;
        close(fd);
        return error;
    }
    int error = 0;
    for (;;) {
        errno = 0;
        struct dirent *entry = readdir(names->dir);
        if (!entry) {
            error = errno;
            break;
        }
        const char *name = entry->d_name;
        if (!strcmp(name, ".") || !strcmp(name, "..") || (from && strcmp(name, from) < 0))
            continue;
        if ((error = keep(names, name, limit)))
            break;
    }
    cut(names, limit);
    if (error)
        names_release(names);
    return error;
}

void names_release(struct names *names) {
    cut(names, 0);
    free(names->items);
    if (names->dir)
        closedir(names->dir);
    *names = (struct names){0};
}

int names_fd(const struct names *names) {
    return dirfd(names->dir);
}
