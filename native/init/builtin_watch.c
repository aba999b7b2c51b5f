/*
 * What happens in a directory, told as it happens; inotify(7), by a process of the box.
 *
 * Each notice is five fields, each ended by NUL: what, "<kind> <mode> …" as of an entry, path, link
 * target, former path. What is one of
 *   .  all is watched from here on: the first notice, and the only one of its kind
 *   +  made      ~  content changed      m  mode, owner or time changed      -  gone
 *   >  came from the former path
 *   !  so many notices were not told (in the path's place), because they were not read in time
 * Paths are absolute. Where a path is gone, there is no entry.
 *
 * Nothing here waits for the reader: notices that find no room are counted.
 */
#include "builtin.h"

#include <poll.h>
#include <sys/inotify.h>

#define WATCHED                                                                                    \
    (IN_CREATE | IN_MODIFY | IN_ATTRIB | IN_DELETE | IN_MOVED_FROM | IN_MOVED_TO | IN_ONLYDIR |    \
     IN_DONT_FOLLOW | IN_EXCL_UNLINK)
#define DIRECTORIES_MAX 65536
#define DESCRIPTOR_MAX (1 << 22) /* they are given out in order, and not again for long */
#define PAIR_PATIENCE_MS 20      /* between the two halves of a rename */
#define NOTICE_MAX (ENTRY_HEAD_MAX + 3 * PATH_MAX + 16)
#define QUEUE_SIZE (1u << 20)

static int inotify;
static bool recursive;
static char **directories; /* by watch descriptor: absolute paths */
static int directory_room, directory_count;
static int root_descriptor;

static uint8_t *queue; /* notices that wait for the reader */
static size_t queue_begin, queue_end;
static unsigned long long lost;

static char moved_from[PATH_MAX]; /* the first half of a rename, "": none */
static uint32_t moved_cookie;
static bool moved_directory;

/* ---- telling --------------------------------------------------------------------------------- */

static size_t put_field(uint8_t *space, size_t at, const char *text) {
    size_t size = strlen(text) + 1;
    memcpy(space + at, text, size);
    return at + size;
}

static bool queue_notice(const char *what, const char *head, const char *path, const char *target,
                         const char *from) {
    if (queue_begin == queue_end)
        queue_begin = queue_end = 0;
    if (QUEUE_SIZE - queue_end < NOTICE_MAX && queue_begin) {
        memmove(queue, queue + queue_begin, queue_end - queue_begin);
        queue_end -= queue_begin;
        queue_begin = 0;
    }
    if (QUEUE_SIZE - queue_end < NOTICE_MAX)
        return false;
    const char *fields[] = {what, head, path, target, from};
    for (size_t i = 0; i < 5; i++)
        queue_end = put_field(queue, queue_end, fields[i]);
    return true;
}

static void tell(const char *what, const char *path, const char *from) {
    static char last[PATH_MAX];
    char head[ENTRY_HEAD_MAX] = "", target[PATH_MAX] = "", number[24];
    struct stat status;
    /* A program writes in many pieces; the reader hears it once as long as it has not read that. */
    bool again = *what == '~' && !strcmp(last, path) && queue_begin != queue_end;
    if (again)
        return;
    if (*what != '-' && lstat(path, &status) == 0) {
        entry_head(head, &status);
        entry_target(target, AT_FDCWD, path, &status);
    }
    if (lost) {
        snprintf(number, sizeof number, "%llu", lost);
        if (!queue_notice("!", "", number, "", "")) {
            lost++;
            return;
        }
        lost = 0;
    }
    if (!queue_notice(what, head, path, target, from))
        lost++;
    strcpy(last, *what == '~' ? path : "");
}

static void tell_lost(unsigned long long count) {
    char number[24];
    lost += count;
    snprintf(number, sizeof number, "%llu", lost);
    if (queue_notice("!", "", number, "", ""))
        lost = 0;
}

/* False when nobody reads any more. */
static bool flush(void) {
    while (queue_begin < queue_end) {
        ssize_t done = write(STDOUT_FILENO, queue + queue_begin, queue_end - queue_begin);
        if (done < 0 && errno == EINTR)
            continue;
        if (done < 0)
            return errno == EAGAIN;
        queue_begin += (size_t)done;
    }
    if (lost)
        tell_lost(0);
    return true;
}

/* ---- what is watched ------------------------------------------------------------------------- */

static int watch_one(const char *path) {
    int descriptor = inotify_add_watch(inotify, path, WATCHED | IN_DELETE_SELF | IN_MOVE_SELF);
    if (descriptor < 0)
        return -errno;
    if (descriptor >= DESCRIPTOR_MAX || directory_count >= DIRECTORIES_MAX) {
        inotify_rm_watch(inotify, descriptor);
        return -ENOSPC;
    }
    if (descriptor >= directory_room) {
        int room = descriptor * 2 + 64;
        char **grown = realloc(directories, (size_t)room * sizeof *grown);
        if (!grown)
            return -ENOMEM;
        memset(grown + directory_room, 0, (size_t)(room - directory_room) * sizeof *grown);
        directories = grown;
        directory_room = room;
    }
    directory_count += directories[descriptor] == NULL;
    free(directories[descriptor]);
    directories[descriptor] = strdup(path);
    return directories[descriptor] ? descriptor : -ENOMEM;
}

/*
 * Watches what is below a directory that is watched already. What is there may have been made
 * before it was watched: with `telling` it is told as made, perhaps for the second time.
 */
static int watch_below(char *path, size_t length, bool telling) {
    DIR *dir = opendir(path);
    int error = 0;
    if (!dir)
        return errno == ENOENT || errno == ENOTDIR || errno == EACCES ? 0 : errno;
    for (struct dirent *entry; !error && (entry = readdir(dir));) {
        size_t size = strlen(entry->d_name);
        if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..") ||
            length + size + 2 > PATH_MAX)
            continue;
        path[length] = '/';
        memcpy(path + length + 1, entry->d_name, size + 1);
        if (telling)
            tell("+", path, "");
        struct stat status;
        if (entry->d_type == DT_DIR ||
            (entry->d_type == DT_UNKNOWN && !lstat(path, &status) && S_ISDIR(status.st_mode))) {
            int watched = watch_one(path);
            if (watched >= 0)
                error = watch_below(path, length + 1 + size, telling);
            else if (watched != -ENOENT && watched != -ENOTDIR && watched != -EACCES)
                error = -watched;
        }
    }
    path[length] = 0;
    closedir(dir);
    return error;
}

static void watch_new(const char *name, bool telling) {
    static char path[PATH_MAX];
    strcpy(path, name);
    int watched = watch_one(path);
    if (watched < 0 ? watched != -ENOENT && watched != -ENOTDIR && watched != -EACCES
                    : watch_below(path, strlen(path), telling) != 0)
        tell_lost(1); /* what happens in there cannot be told */
}

/* Directories below `from` are below `to` now, or with NULL: not below what is watched. */
static void move_watches(const char *from, const char *to) {
    size_t length = strlen(from);
    for (int i = 0; i < directory_room; i++) {
        char *path = directories[i];
        if (!path || strncmp(path, from, length) || (path[length] && path[length] != '/'))
            continue;
        char *changed = NULL;
        size_t size = to ? strlen(to) + strlen(path + length) + 1 : PATH_MAX + 1;
        if (size <= PATH_MAX && (changed = malloc(size)))
            snprintf(changed, size, "%s%s", to, path + length);
        if (!changed) {
            inotify_rm_watch(inotify, i);
            directory_count--;
        }
        free(path);
        directories[i] = changed;
    }
}

/* ---- what happened --------------------------------------------------------------------------- */

static void end_rename(void) {
    if (!*moved_from)
        return;
    if (moved_directory && recursive)
        move_watches(moved_from, NULL);
    tell("-", moved_from, "");
    *moved_from = 0;
}

static void take_moved_to(const struct inotify_event *event, const char *path) {
    bool directory = event->mask & IN_ISDIR;
    if (*moved_from && event->cookie == moved_cookie) {
        if (directory && recursive)
            move_watches(moved_from, path);
        tell(">", path, moved_from);
        *moved_from = 0;
        return;
    }
    end_rename();
    tell("+", path, "");
    if (directory && recursive)
        watch_new(path, true);
}

/* False when the directory itself is gone: nothing more can happen in it. */
static bool take_event(const struct inotify_event *event) {
    static char path[PATH_MAX];
    if (event->mask & IN_Q_OVERFLOW) {
        tell_lost(1); /* how many, the kernel does not say */
        return true;
    }
    int descriptor = event->wd;
    if (descriptor < 0 || descriptor >= directory_room || !directories[descriptor])
        return true;
    if (event->mask & (IN_DELETE_SELF | IN_MOVE_SELF | IN_UNMOUNT) &&
        descriptor == root_descriptor) {
        end_rename();
        tell("-", directories[descriptor], "");
        return false;
    }
    if (event->mask & IN_IGNORED) {
        free(directories[descriptor]);
        directories[descriptor] = NULL;
        directory_count--;
        return true;
    }
    if (!event->len || (size_t)snprintf(path, sizeof path, "%s/%s",
                                        directories[descriptor][1] ? directories[descriptor] : "",
                                        event->name) >= sizeof path)
        return true; /* of the directory itself: its parent's watch tells it */
    if (event->mask & IN_MOVED_TO) {
        take_moved_to(event, path);
        return true;
    }
    end_rename();
    if (event->mask & IN_MOVED_FROM) {
        strcpy(moved_from, path);
        moved_cookie = event->cookie;
        moved_directory = event->mask & IN_ISDIR;
    } else if (event->mask & IN_CREATE) {
        tell("+", path, "");
        if (event->mask & IN_ISDIR && recursive)
            watch_new(path, true);
    } else if (event->mask & IN_DELETE) {
        tell("-", path, "");
    } else if (event->mask & IN_MODIFY) {
        tell("~", path, "");
    } else if (event->mask & IN_ATTRIB) {
        tell("m", path, "");
    }
    return true;
}

static bool take_events(void) {
    static union {
        struct inotify_event align;
        char bytes[64 << 10];
    } space;
    ssize_t got = read(inotify, space.bytes, sizeof space.bytes);
    for (ssize_t at = 0; at < got;) {
        const struct inotify_event *event = (const void *)(space.bytes + at);
        if (!take_event(event))
            return false;
        at += (ssize_t)(sizeof *event + event->len);
    }
    return true;
}

static int run(void) {
    for (;;) {
        struct pollfd polled[2] = {
            {.fd = inotify, .events = POLLIN},
            {.fd = STDOUT_FILENO, .events = queue_begin < queue_end ? POLLOUT : 0},
        };
        int ready = poll(polled, 2, *moved_from ? PAIR_PATIENCE_MS : -1);
        if (ready < 0 && errno != EINTR)
            return errno;
        if (ready == 0)
            end_rename();
        if (polled[1].revents & (POLLERR | POLLNVAL))
            return 0; /* nobody reads any more */
        bool more = ready > 0 && polled[0].revents & POLLIN ? take_events() : true;
        if (!flush() || !more)
            return 0;
    }
}

int builtin_watch(char **argv) {
    static char path[PATH_MAX];
    size_t length = strlen(argv[0]);
    recursive = builtin_number(argv[1]) != 0;
    if (length >= sizeof path)
        return ENAMETOOLONG;
    memcpy(path, argv[0], length + 1);
    queue = malloc(QUEUE_SIZE);
    inotify = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);
    if (!queue || inotify < 0)
        return errno;
    /* Asked for by name, it may be a link; what is below it is taken as it is. */
    struct stat status;
    if (stat(path, &status))
        return errno;
    char *resolved =
        lstat(path, &status) == 0 && S_ISLNK(status.st_mode) ? realpath(path, NULL) : NULL;
    if (resolved)
        strcpy(path, resolved);
    root_descriptor = watch_one(path);
    if (root_descriptor < 0)
        return -root_descriptor;
    /* "/" is the one path that ends in a slash: below it, names come right behind. */
    int error = recursive ? watch_below(path, path[1] ? strlen(path) : 0, false) : 0;
    if (error)
        return error;
    if (fcntl(STDOUT_FILENO, F_SETFL, O_NONBLOCK))
        return errno;
    queue_notice(".", "", directories[root_descriptor], "", "");
    return flush() ? run() : 0;
}
