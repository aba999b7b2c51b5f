/*
 * What is told: {u64 bytes} and records, all of them {u8 type, u8 of, u16 length} and a name.
 *
 *   D  a directory to look at: `of` is the root, the name its path from there. What follows is in it.
 *   U  the same of a directory that could not be read
 *   G  a name that is gone from it
 *   C  an entry that is new, or other than it was, and {u64 inode, u64 size, i64 mtime, i64 ctime,
 *      u32 mode, u32 uid, u32 gid}; a directory that is new has a D of its own later. Of whiteouts
 *      only the mode is told.
 *   E  the end: `of` tells how it was looked, then {u64 entries known}
 */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "walk.h"

struct item {
    uint32_t depth, directory;
    uint32_t child; /* NONE: the directory itself, or a removal */
    uint32_t removal;
};

struct text {
    uint8_t *at;
    size_t length, room;
};

static void put(struct text *text, const void *bytes, size_t size) {
    if (text->length + size > text->room) {
        text->room = (text->length + size) * 2;
        text->at = grown(text->at, text->room);
    }
    memcpy(text->at + text->length, bytes, size);
    text->length += size;
}

static void put_record(struct text *text, char type, uint32_t of, const char *name, size_t length) {
    uint8_t head[2] = {(uint8_t)type, (uint8_t)of};
    uint16_t size = (uint16_t)length;
    put(text, head, sizeof head);
    put(text, &size, sizeof size);
    put(text, name, length);
}

static void put_directory(struct text *text, const struct walk *walk, uint32_t id) {
    char path[PATH_LIMIT + 512]; /* directories that are too deep are told, and not read */
    uint32_t root = id, of = 0;
    while (walk->index.entries[root].parent != NONE)
        root = walk->index.entries[root].parent;
    while (walk->root_ids[of] != root)
        of++;
    int length = index_path(&walk->index, id, path, sizeof path);
    if (length < 0)
        die("a directory deeper than any that is read");
    put_record(text, walk->index.entries[id].unread ? 'U' : 'D', of, path, (size_t)length);
}

static void put_child(struct text *text, const struct entry *entry) {
    const struct facts *facts = &entry->facts;
    put_record(text, 'C', 0, entry->name, entry->name_length);
    put(text, &facts->inode, 8);
    put(text, &facts->size, 8);
    put(text, &facts->modified_ns, 8);
    put(text, &facts->changed_ns, 8);
    put(text, &facts->mode, 4);
    put(text, &facts->owner, 4);
    put(text, &facts->group, 4);
}

static int in_order(const void *left, const void *right) {
    const struct item *a = left, *b = right;
    if (a->depth != b->depth)
        return a->depth < b->depth ? -1 : 1;
    if (a->directory != b->directory)
        return a->directory < b->directory ? -1 : 1;
    /* What is gone before what has come: it may have the same name. */
    return a->child > b->child ? -1 : a->child < b->child;
}

static size_t items_of(const struct walk *walk, struct item *items) {
    const struct index *index = &walk->index;
    size_t count = 0;
    for (size_t i = 0; i < walk->changed_count; i++) {
        uint32_t id = walk->changed[i];
        const struct entry *entry = &index->entries[id];
        if (!entry->name)
            continue;
        if (entry->self_changed)
            items[count++] = (struct item){index_depth(index, id), id, NONE, NONE};
        if (entry->place_changed && entry->parent != NONE)
            items[count++] =
                (struct item){index_depth(index, entry->parent), entry->parent, id, NONE};
    }
    for (size_t i = 0; i < walk->removal_count; i++) {
        uint32_t id = walk->removals[i].directory;
        const struct entry *entry = &index->entries[id];
        if (entry->name && entry->serial == walk->removals[i].serial)
            items[count++] = (struct item){index_depth(index, id), id, NONE, (uint32_t)i};
    }
    qsort(items, count, sizeof *items, in_order);
    return count;
}

static void send_all(int out, const uint8_t *at, size_t left) {
    while (left) {
        ssize_t wrote = write(out, at, left);
        if (wrote < 0 && errno != EINTR)
            exit(0); /* nobody waits for it any more */
        if (wrote > 0) {
            at += wrote;
            left -= (size_t)wrote;
        }
    }
}

void answer(struct walk *walk, int out, uint32_t how) {
    struct item *items =
        grown(NULL, (2 * walk->changed_count + walk->removal_count + 1) * sizeof *items);
    size_t count = items_of(walk, items);
    struct text text = {0};
    uint64_t size = 0;
    put(&text, &size, sizeof size);
    for (size_t i = 0; i < count; i++) {
        if (i == 0 || items[i].directory != items[i - 1].directory)
            put_directory(&text, walk, items[i].directory);
        if (items[i].child != NONE)
            put_child(&text, &walk->index.entries[items[i].child]);
        else if (items[i].removal != NONE)
            put_record(&text, 'G', 0, walk->removals[items[i].removal].name,
                       walk->removals[items[i].removal].length);
    }
    put_record(&text, 'E', how, "", 0);
    uint64_t living = walk->index.living;
    put(&text, &living, sizeof living);
    size = text.length - sizeof size;
    memcpy(text.at, &size, sizeof size);
    send_all(out, text.at, text.length);
    free(text.at);
    free(items);
}
