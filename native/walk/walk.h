/*
 * substrate-walk: what is other than it was in the directories that a world wrote.
 *
 * Everything in these directories is hostile. Nothing is opened but directories, beneath the given
 * ones and through no link (openat2(2)); of all else only statx(2) is asked. What has changed is
 * named; who asked looks for itself, and reads.
 */
#ifndef SUBSTRATE_WALK_WALK_H
#define SUBSTRATE_WALK_WALK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include "index.h"

#define ENTRIES_MAX (4u << 20)
#define ROOTS_MAX 256u
/* As PATH_LIMIT_BYTES of world/layers.py: what lies deeper is not looked at. */
#define PATH_LIMIT 3584

_Noreturn void die(const char *why); /* with errno's words, where it is set */
void *grown(void *memory, size_t size);

/* Inodes, each once or more often. */
struct inodes {
    uint64_t *at;
    size_t count, room;
};
void inodes_add(struct inodes *inodes, uint64_t inode);

/* A name that is gone from a directory. */
struct removal {
    uint32_t directory;
    uint64_t serial; /* of the directory: it may be gone itself */
    uint16_t length;
    char *name;
};

struct walk {
    struct index index;
    int roots[ROOTS_MAX];
    uint32_t root_ids[ROOTS_MAX];
    uint32_t root_count;
    uint32_t listings; /* made so far */
    uint32_t *changed; /* entries that are to be told, and perhaps others */
    size_t changed_count, changed_room;
    struct removal *removals;
    size_t removal_count, removal_room;
    uint32_t *pending; /* directories that are to be read */
    size_t pending_count, pending_room;
    uint32_t *unread; /* directories that could not be, and perhaps others */
    size_t unread_count, unread_room;
};

void walk_begin(struct walk *walk, const int *roots, uint32_t count);
/* Looks at everything. */
void walk_all(struct walk *walk);
/* Looks at what has one of these inodes, and at what is new in directories among it. */
void walk_some(struct walk *walk, const struct inodes *inodes);
/* What was to be told has been heard. */
void walk_told(struct walk *walk);
/* Writes what is to be told (answer.c). */
void answer(struct walk *walk, int out, uint32_t how);

#endif
