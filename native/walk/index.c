#include "index.h"

#include <string.h>

#include "walk.h"

#define FIRST_ROOM 1024u

static uint32_t hash_name(const struct index *index, uint32_t parent, const char *name,
                          size_t length) {
    uint64_t hash = index->seed ^ parent; /* FNV-1a, but for where it begins */
    for (size_t i = 0; i < length; i++)
        hash = (hash ^ (uint8_t)name[i]) * 1099511628211u;
    return (uint32_t)(hash ^ hash >> 32) & (index->buckets - 1);
}

static uint32_t hash_inode(const struct index *index, uint64_t inode) {
    return (uint32_t)((inode * 0x9e3779b97f4a7c15u) >> 32) & (index->buckets - 1);
}

static void link_name(struct index *index, uint32_t id) {
    struct entry *entry = &index->entries[id];
    uint32_t *head =
        &index->by_name[hash_name(index, entry->parent, entry->name, entry->name_length)];
    entry->next_named = *head;
    *head = id;
}

/* Whiteouts have none that counts (look, walk.c), and there may be many. */
static void link_inode(struct index *index, uint32_t id) {
    struct entry *entry = &index->entries[id];
    if (!entry->facts.inode)
        return;
    uint32_t *head = &index->by_inode[hash_inode(index, entry->facts.inode)];
    entry->next_inode = *head;
    *head = id;
}

static void unlink_name(struct index *index, uint32_t id) {
    struct entry *entry = &index->entries[id];
    uint32_t *at =
        &index->by_name[hash_name(index, entry->parent, entry->name, entry->name_length)];
    while (*at != id)
        at = &index->entries[*at].next_named;
    *at = entry->next_named;
}

static void unlink_inode(struct index *index, uint32_t id) {
    struct entry *entry = &index->entries[id];
    if (!entry->facts.inode)
        return;
    uint32_t *at = &index->by_inode[hash_inode(index, entry->facts.inode)];
    while (*at != id)
        at = &index->entries[*at].next_inode;
    *at = entry->next_inode;
}

static void grow(struct index *index) {
    uint32_t room = index->room ? index->room * 2 : FIRST_ROOM;
    if (room > ENTRIES_MAX)
        die("more entries than are kept");
    index->entries = grown(index->entries, room * sizeof *index->entries);
    for (uint32_t id = index->room; id < room; id++)
        index->entries[id] = (struct entry){.next_sibling = id + 1 < room ? id + 1 : NONE};
    index->free = index->room;
    index->room = room;
    index->buckets = room;
    index->by_name = grown(index->by_name, room * sizeof *index->by_name);
    index->by_inode = grown(index->by_inode, room * sizeof *index->by_inode);
    memset(index->by_name, 0xff, room * sizeof *index->by_name);
    memset(index->by_inode, 0xff, room * sizeof *index->by_inode);
    for (uint32_t id = 0; id < index->count; id++) {
        if (index->entries[id].name) {
            link_name(index, id);
            link_inode(index, id);
        }
    }
}

uint32_t index_add(struct index *index, uint32_t parent, const char *name, size_t length) {
    if (index->living == index->room)
        grow(index);
    uint32_t id = index->free;
    struct entry *entry = &index->entries[id];
    index->free = entry->next_sibling;
    bool listed = entry->listed; /* it may be on the list for whoever was here before */
    *entry = (struct entry){.parent = parent,
                            .first_child = NONE,
                            .next_sibling = NONE,
                            .previous_sibling = NONE,
                            .name_length = (uint16_t)length,
                            .serial = ++index->serials,
                            .listed = listed};
    entry->name = grown(NULL, length + 1);
    memcpy(entry->name, name, length);
    entry->name[length] = 0;
    if (parent != NONE) {
        uint32_t first = index->entries[parent].first_child;
        entry->next_sibling = first;
        if (first != NONE)
            index->entries[first].previous_sibling = id;
        index->entries[parent].first_child = id;
    }
    link_name(index, id);
    link_inode(index, id);
    index->living++;
    if (id >= index->count)
        index->count = id + 1;
    return id;
}

uint32_t index_find(const struct index *index, uint32_t parent, const char *name, size_t length) {
    uint32_t id = index->by_name[hash_name(index, parent, name, length)];
    while (id != NONE) {
        const struct entry *entry = &index->entries[id];
        if (entry->parent == parent && entry->name_length == length &&
            memcmp(entry->name, name, length) == 0)
            return id;
        id = entry->next_named;
    }
    return NONE;
}

void index_set(struct index *index, uint32_t id, const struct facts *facts) {
    bool moves = index->entries[id].facts.inode != facts->inode;
    if (moves)
        unlink_inode(index, id);
    index->entries[id].facts = *facts;
    if (moves)
        link_inode(index, id);
}

static void remove_leaf(struct index *index, uint32_t id) {
    struct entry *entry = &index->entries[id];
    unlink_name(index, id);
    unlink_inode(index, id);
    if (entry->previous_sibling != NONE)
        index->entries[entry->previous_sibling].next_sibling = entry->next_sibling;
    else if (entry->parent != NONE)
        index->entries[entry->parent].first_child = entry->next_sibling;
    if (entry->next_sibling != NONE)
        index->entries[entry->next_sibling].previous_sibling = entry->previous_sibling;
    free(entry->name);
    entry->name = NULL;
    entry->next_sibling = index->free;
    index->free = id;
    index->living--;
}

void index_empty(struct index *index, uint32_t id) {
    /* Down to a leaf and up again: trees may be deeper than calls may nest. */
    uint32_t at = id;
    for (;;) {
        uint32_t child = index->entries[at].first_child;
        if (child != NONE) {
            at = child;
        } else if (at == id) {
            return;
        } else {
            uint32_t above = index->entries[at].parent;
            remove_leaf(index, at);
            at = above;
        }
    }
}

void index_remove(struct index *index, uint32_t id) {
    index_empty(index, id);
    remove_leaf(index, id);
}

uint32_t index_next(const struct index *index, uint64_t inode, uint32_t after) {
    uint32_t id = after == NONE ? index->by_inode[hash_inode(index, inode)]
                                : index->entries[after].next_inode;
    while (id != NONE && index->entries[id].facts.inode != inode)
        id = index->entries[id].next_inode;
    return id;
}

int index_path(const struct index *index, uint32_t id, char *path, size_t room) {
    size_t length = 0;
    for (uint32_t at = id; index->entries[at].parent != NONE; at = index->entries[at].parent)
        length += index->entries[at].name_length + 1u;
    if (length > room)
        return -1;
    if (!length) {
        path[0] = 0;
        return 0;
    }
    char *end = path + length;
    *--end = 0;
    for (uint32_t at = id;; end--) {
        const struct entry *entry = &index->entries[at];
        end -= entry->name_length;
        memcpy(end, entry->name, entry->name_length);
        at = entry->parent;
        if (index->entries[at].parent == NONE)
            return (int)length - 1;
        end[-1] = '/';
    }
}

uint32_t index_depth(const struct index *index, uint32_t id) {
    uint32_t depth = 0;
    for (uint32_t at = id; index->entries[at].parent != NONE; at = index->entries[at].parent)
        depth++;
    return depth;
}
