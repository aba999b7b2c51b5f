/* What a walk knows of the trees that it looks at: every entry, by its place and by its inode. */
#ifndef SUBSTRATE_WALK_INDEX_H
#define SUBSTRATE_WALK_INDEX_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define NONE UINT32_MAX

/* What statx(2) tells of an entry: while all of it holds, so does what was read of the entry. */
struct facts {
    uint64_t inode, size, device; /* the device that a device node stands for */
    int64_t modified_ns, changed_ns;
    uint32_t mode, owner, group;
    bool fresh; /* changed in the very tick of the clock: what changes next may look the same */
};

struct entry {
    char *name; /* NULL: nobody's */
    uint64_t serial;
    struct facts facts;
    uint32_t parent, first_child, next_sibling, previous_sibling;
    uint32_t next_named, next_inode; /* in the chains of the two tables */
    uint32_t seen;                   /* the listing that had it last */
    uint16_t name_length;
    bool self_changed;  /* what it is itself, as its directory's listing does not tell */
    bool place_changed; /* it is new where it is, or another than was there */
    bool listed;        /* among those that are to be told */
    bool unread;        /* a directory that could not be read, when that was last tried */
};

struct index {
    struct entry *entries;
    uint32_t count, room, free; /* `free`: the first of those that are nobody's */
    uint32_t *by_name, *by_inode;
    uint32_t buckets, living;
    uint64_t serials;
    uint64_t seed; /* of names' hashes: who chooses names must not choose where they meet */
};

/* They end the program where memory is short: whoever asked looks for themselves then. */
uint32_t index_add(struct index *index, uint32_t parent, const char *name, size_t length);
uint32_t index_find(const struct index *index, uint32_t parent, const char *name, size_t length);
void index_set(struct index *index, uint32_t id, const struct facts *facts);
void index_remove(struct index *index, uint32_t id); /* and all that is below it */
void index_empty(struct index *index, uint32_t id);  /* all that is below it */
/* The entries with an inode: the first for NONE, then the one after. */
uint32_t index_next(const struct index *index, uint64_t inode, uint32_t after);
/* The path from the root of its tree, in `room` bytes; -1 where it is longer. */
int index_path(const struct index *index, uint32_t id, char *path, size_t room);
uint32_t index_depth(const struct index *index, uint32_t id);

#endif
