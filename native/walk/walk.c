#define _GNU_SOURCE 1

#include "walk.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <time.h>
#include <unistd.h>

/* As the kernel has it (getdents(2)). */
struct listed {
    uint64_t inode;
    int64_t offset;
    uint16_t length;
    uint8_t type;
    char name[];
};

#define DIRECTORY (O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC)

void inodes_add(struct inodes *inodes, uint64_t inode) {
    if (inodes->count == inodes->room) {
        inodes->room = inodes->room ? inodes->room * 2 : 1024;
        inodes->at = grown(inodes->at, inodes->room * sizeof *inodes->at);
    }
    inodes->at[inodes->count++] = inode;
}

static void push(uint32_t **list, size_t *count, size_t *room, uint32_t id) {
    if (*count == *room) {
        *room = *room ? *room * 2 : 1024;
        *list = grown(*list, *room * sizeof **list);
    }
    (*list)[(*count)++] = id;
}

static void to_tell(struct walk *walk, uint32_t id, bool place) {
    struct entry *entry = &walk->index.entries[id];
    if (place)
        entry->place_changed = true;
    else
        entry->self_changed = true;
    if (!entry->listed)
        push(&walk->changed, &walk->changed_count, &walk->changed_room, id);
    entry->listed = true;
}

static void to_read(struct walk *walk, uint32_t id) {
    push(&walk->pending, &walk->pending_count, &walk->pending_room, id);
}

static int64_t ns(struct statx_timestamp time) {
    return time.tv_sec * 1000000000ll + time.tv_nsec;
}

static bool is_whiteout(uint32_t mode, uint64_t device) {
    return S_ISCHR(mode) && device == 0;
}

/* `name` may be "" for the directory itself. */
static bool look(int directory, const char *name, struct facts *facts) {
    struct statx found;
    struct timespec now; /* as inodes' times have it: inode_set_ctime_current() */
    clock_gettime(CLOCK_REALTIME_COARSE, &now);
    int flags = AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT | AT_STATX_DONT_SYNC | AT_EMPTY_PATH;
    if (syscall(SYS_statx, directory, name, flags, STATX_BASIC_STATS, &found))
        return false;
    *facts = (struct facts){.inode = found.stx_ino,
                            .size = found.stx_size,
                            .device = makedev(found.stx_rdev_major, found.stx_rdev_minor),
                            .modified_ns = ns(found.stx_mtime),
                            .changed_ns = ns(found.stx_ctime),
                            .mode = found.stx_mode,
                            .owner = found.stx_uid,
                            .group = found.stx_gid};
    facts->fresh = facts->changed_ns >= now.tv_sec * 1000000000ll + now.tv_nsec;
    /* The kernel makes all whiteouts links to one inode: each new one changes all. */
    if (is_whiteout(facts->mode, facts->device))
        *facts = (struct facts){.mode = S_IFCHR};
    return true;
}

static bool same(const struct facts *before, const struct facts *now) {
    return !before->fresh && before->inode == now->inode && before->size == now->size &&
           before->device == now->device && before->modified_ns == now->modified_ns &&
           before->changed_ns == now->changed_ns && before->mode == now->mode;
}

static int open_below(int root, const char *path) {
    if (!path[0])
        return openat(root, ".", DIRECTORY);
    struct open_how how = {.flags = DIRECTORY,
                           .resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS |
                                      RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV};
    return (int)syscall(SYS_openat2, root, path, &how, sizeof how);
}

static int open_entry(const struct walk *walk, uint32_t id) {
    char path[PATH_LIMIT + 1];
    uint32_t root = id;
    while (walk->index.entries[root].parent != NONE)
        root = walk->index.entries[root].parent;
    if (index_path(&walk->index, id, path, sizeof path) < 0) {
        errno = ENAMETOOLONG;
        return -1;
    }
    for (uint32_t i = 0; i < walk->root_count; i++)
        if (walk->root_ids[i] == root)
            return open_below(walk->roots[i], path);
    return -1;
}

/* Takes what was just seen at an entry's place. */
static void take(struct walk *walk, uint32_t id, const struct facts *facts, bool is_new) {
    const struct facts *before = &walk->index.entries[id].facts;
    if (!is_new && same(before, facts))
        return;
    bool was_directory = S_ISDIR(before->mode), is_directory = S_ISDIR(facts->mode);
    bool other = is_new || before->inode != facts->inode || was_directory != is_directory;
    if (other && was_directory)
        index_empty(&walk->index, id);
    index_set(&walk->index, id, facts);
    to_tell(walk, id, !is_directory || other);
    if (is_directory) {
        to_tell(walk, id, false);
        if (other)
            to_read(walk, id);
    }
}

static void forget_unseen(struct walk *walk, uint32_t directory) {
    struct index *index = &walk->index;
    for (uint32_t id = index->entries[directory].first_child, next; id != NONE; id = next) {
        struct entry *entry = &index->entries[id];
        next = entry->next_sibling;
        if (entry->seen == walk->listings)
            continue;
        if (walk->removal_count == walk->removal_room) {
            walk->removal_room = walk->removal_room ? walk->removal_room * 2 : 64;
            walk->removals = grown(walk->removals, walk->removal_room * sizeof *walk->removals);
        }
        struct removal *removal = &walk->removals[walk->removal_count++];
        *removal = (struct removal){.directory = directory,
                                    .serial = index->entries[directory].serial,
                                    .length = entry->name_length,
                                    .name = grown(NULL, entry->name_length + 1u)};
        memcpy(removal->name, entry->name, entry->name_length);
        to_tell(walk, directory, false);
        index_remove(index, id);
    }
}

/* Whether an entry's directory tells that it is what it was: of files written in place, nothing. */
static bool seems_same(const struct entry *entry, const struct listed *listed) {
    return entry->facts.inode == listed->inode && listed->type != DT_UNKNOWN &&
           listed->type == IFTODT(entry->facts.mode);
}

static void take_name(struct walk *walk, int fd, uint32_t directory, const struct listed *listed,
                      bool all) {
    size_t length = strlen(listed->name);
    uint32_t id = index_find(&walk->index, directory, listed->name, length);
    if (id != NONE && !all && seems_same(&walk->index.entries[id], listed)) {
        walk->index.entries[id].seen = walk->listings;
        return;
    }
    struct facts facts;
    if (!look(fd, listed->name, &facts))
        return; /* gone since it was listed */
    bool is_new = id == NONE;
    if (is_new)
        id = index_add(&walk->index, directory, listed->name, length);
    walk->index.entries[id].seen = walk->listings;
    uint64_t before = walk->index.entries[id].facts.inode;
    bool was_directory = !is_new && S_ISDIR(walk->index.entries[id].facts.mode);
    take(walk, id, &facts, is_new);
    if (all && was_directory && S_ISDIR(facts.mode) && before == facts.inode)
        to_read(walk, id);
}

/* Reads a directory. `all`: looks at every entry, and has all directories below read. */
static void read_directory(struct walk *walk, uint32_t id, bool all) {
    int fd = open_entry(walk, id);
    struct facts facts;
    if (fd < 0 || !look(fd, "", &facts)) {
        /* Gone, closed to us, or too deep: who asked will find out which. */
        index_empty(&walk->index, id);
        to_tell(walk, id, false);
        walk->index.entries[id].unread = true;
        push(&walk->unread, &walk->unread_count, &walk->unread_room, id);
        if (fd >= 0)
            close(fd);
        return;
    }
    if (walk->index.entries[id].facts.inode != facts.inode &&
        walk->index.entries[id].parent != NONE) {
        close(fd); /* its own directory will tell of what took its place */
        return;
    }
    if (walk->index.entries[id].unread) {
        walk->index.entries[id].unread = false;
        to_tell(walk, id, true); /* all that is in it will be told, as of a new one */
        to_tell(walk, id, false);
    }
    if (!same(&walk->index.entries[id].facts, &facts)) {
        index_set(&walk->index, id, &facts);
        to_tell(walk, id, false);
    }
    walk->listings++;
    _Alignas(struct listed) char buffer[32 << 10];
    for (long got; (got = syscall(SYS_getdents64, fd, buffer, sizeof buffer)) > 0;) {
        for (long at = 0; at < got;) {
            const struct listed *listed = (const void *)(buffer + at);
            at += listed->length;
            if (strcmp(listed->name, ".") != 0 && strcmp(listed->name, "..") != 0)
                take_name(walk, fd, id, listed, all);
        }
    }
    close(fd);
    forget_unseen(walk, id);
}

static void read_pending(struct walk *walk) {
    while (walk->pending_count)
        read_directory(walk, walk->pending[--walk->pending_count], true);
}

/* Nobody tells of what changes below what we do not know. */
static void read_unread(struct walk *walk) {
    for (size_t i = 0; i < walk->unread_count; i++) {
        const struct entry *entry = &walk->index.entries[walk->unread[i]];
        if (entry->name && entry->unread)
            to_read(walk, walk->unread[i]);
    }
    walk->unread_count = 0; /* those that still cannot be read come again */
    read_pending(walk);
}

void walk_begin(struct walk *walk, const int *roots, uint32_t count) {
    if (getrandom(&walk->index.seed, sizeof walk->index.seed, 0) < 0)
        die("no random numbers");
    walk->root_count = count;
    for (uint32_t i = 0; i < count; i++) {
        walk->roots[i] = roots[i];
        walk->root_ids[i] = index_add(&walk->index, NONE, "", 0);
    }
}

void walk_all(struct walk *walk) {
    walk->unread_count = 0; /* they are met again, as all are */
    for (uint32_t i = 0; i < walk->root_count; i++)
        to_read(walk, walk->root_ids[i]);
    read_pending(walk);
}

struct target {
    uint32_t id, depth, parent;
    bool directory;
    uint64_t serial;
};

/* Directories first, those above before those below; then files, by directory. */
static int in_order(const void *left, const void *right) {
    const struct target *a = left, *b = right;
    if (a->directory != b->directory)
        return a->directory ? -1 : 1;
    if (a->directory)
        return a->depth < b->depth ? -1 : a->depth > b->depth;
    return a->parent < b->parent ? -1 : a->parent > b->parent;
}

static struct target *targets_of(const struct walk *walk, const struct inodes *inodes,
                                 size_t *count) {
    struct target *targets = NULL;
    size_t room = 0;
    for (size_t i = 0; i < inodes->count; i++) {
        for (uint32_t id = NONE; (id = index_next(&walk->index, inodes->at[i], id)) != NONE;) {
            const struct entry *entry = &walk->index.entries[id];
            if (*count == room) {
                room = room ? room * 2 : 256;
                targets = grown(targets, room * sizeof *targets);
            }
            bool directory = S_ISDIR(entry->facts.mode);
            targets[(*count)++] =
                (struct target){.id = id,
                                .depth = directory ? index_depth(&walk->index, id) : 0,
                                .parent = entry->parent,
                                .directory = directory,
                                .serial = entry->serial};
        }
    }
    if (*count)
        qsort(targets, *count, sizeof *targets, in_order);
    return targets;
}

void walk_some(struct walk *walk, const struct inodes *inodes) {
    size_t count = 0;
    struct target *targets = targets_of(walk, inodes, &count);
    uint32_t opened = NONE;
    uint64_t opened_serial = 0;
    int fd = -1;
    read_unread(walk);
    for (size_t i = 0; i < count; i++) {
        const struct target *target = &targets[i];
        const struct entry *entry = &walk->index.entries[target->id];
        if (!entry->name || entry->serial != target->serial)
            continue; /* gone since, with a directory above it */
        if (target->directory) {
            read_directory(walk, target->id, false);
            read_pending(walk);
            continue;
        }
        if (entry->parent != opened || walk->index.entries[opened].serial != opened_serial) {
            if (fd >= 0)
                close(fd);
            opened = entry->parent;
            opened_serial = walk->index.entries[opened].serial;
            fd = open_entry(walk, opened);
        }
        struct facts facts;
        if (fd >= 0 && look(fd, entry->name, &facts)) {
            take(walk, target->id, &facts, false);
            read_pending(walk);
        }
    }
    if (fd >= 0)
        close(fd);
    free(targets);
}

void walk_told(struct walk *walk) {
    for (size_t i = 0; i < walk->changed_count; i++) {
        struct entry *entry = &walk->index.entries[walk->changed[i]];
        entry->listed = entry->self_changed = entry->place_changed = false;
    }
    walk->changed_count = 0;
    for (size_t i = 0; i < walk->removal_count; i++)
        free(walk->removals[i].name);
    walk->removal_count = 0;
}
