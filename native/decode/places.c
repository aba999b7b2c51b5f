/*
 * What the directory ids of an image stand for, as its records explained them.
 *
 * What a directory's descriptor leads to was asked of the kernel, or follows from the open that made
 * it or the descriptor it was copied from (SUB_FLAG_PLACE).
 *
 * A path is written once and remembered, but the directory keeps its id when it gets another name.
 * Renamings by the image itself are followed; those by another image are not (its records would have
 * to be read at the same time), so a path below a directory that another program moved meanwhile is
 * told by the directory's old name, until a new segment explains it again.
 */
#define _GNU_SOURCE 1

#include <stdlib.h>
#include <string.h>

#include "decode.h"

#define PLACES_MAX (1u << 16)
/* Paths that are looked at for renamings, per image: who renames without end is not followed. */
#define RENAME_WORK (1u << 24)

struct place {
    uint64_t id; /* 0: free */
    struct slice path;
};

struct places {
    struct place *list;
    uint32_t used, size; /* a power of two */
    uint32_t work;
    char path[PATH_BYTES];
};

struct places *places_new(void) {
    struct places *places = allocate(sizeof(*places));
    places->size = 64;
    places->list = allocate(places->size * sizeof(*places->list));
    return places;
}

void places_free(struct places *places) {
    places_clear(places);
    free(places->list);
    free(places);
}

void places_clear(struct places *places) {
    places->work = 0;
    if (places->used == 0)
        return;
    for (uint32_t i = 0; i < places->size; i++)
        free((void *)(uintptr_t)places->list[i].path.bytes);
    memset(places->list, 0, places->size * sizeof(*places->list));
    places->used = 0;
}

static struct place *find(const struct places *places, uint64_t id) {
    uint32_t at = (uint32_t)(id ^ id >> 32) & (places->size - 1);
    while (places->list[at].id != 0 && places->list[at].id != id)
        at = (at + 1) & (places->size - 1);
    return &places->list[at];
}

static void make_bigger(struct places *places) {
    struct place *old = places->list;
    uint32_t size = places->size;
    places->size *= 2;
    places->list = allocate(places->size * sizeof(*places->list));
    for (uint32_t i = 0; i < size; i++) {
        if (old[i].id != 0)
            *find(places, old[i].id) = old[i];
    }
    free(old);
}

static struct slice copy(struct slice path) {
    return (struct slice){memcpy(resize(NULL, path.length, 1), path.bytes, path.length),
                          path.length};
}

/* Without a path nothing is known of it any more. */
static void set(struct places *places, uint64_t id, struct slice path) {
    struct place *place = find(places, id);
    if (place->id == 0 && (path.length == 0 || places->used == PLACES_MAX))
        return;
    if (place->path.length == path.length &&
        (path.length == 0 || memcmp(place->path.bytes, path.bytes, path.length) == 0))
        return;
    free((void *)(uintptr_t)place->path.bytes);
    places->used += place->id == 0;
    place->id = id;
    place->path = path.length != 0 ? copy(path) : (struct slice){NULL, 0};
    if (places->used * 2 > places->size)
        make_bigger(places);
}

void places_explain(struct places *places, const uint64_t *id, struct slice path) {
    if (id != NULL && *id != 0 && path.length != 0)
        set(places, *id, path);
}

struct slice places_resolve(const struct places *places, const uint64_t *id, struct slice path) {
    return id == NULL || *id == 0 || path.length != 0 ? path : find(places, *id)->path;
}

uint64_t place_of_descriptor(int64_t descriptor) {
    return (uint64_t)(uint32_t)descriptor + 1;
}

void places_follow(struct places *places, const struct sub_record *record, struct slice path) {
    if ((record->flags & SUB_FLAG_PLACE) == 0 || record->error != 0)
        return;
    if (record->type == SUB_OPEN)
        set(places, place_of_descriptor(record->result),
            is_absolute(path) ? path : (struct slice){NULL, 0});
    else if (record->type == SUB_DUP)
        set(places, place_of_descriptor(record->result),
            find(places, place_of_descriptor(record->arg[0]))->path);
}

void places_rename(struct places *places, const struct renaming *renaming) {
    if (places->used == 0 || places->work > RENAME_WORK)
        return;
    places->work += places->size;
    for (uint32_t i = 0; i < places->size; i++) {
        struct place *place = &places->list[i];
        struct slice path = renamed(places->path, place->path, renaming);
        if (path.length == 0)
            continue;
        free((void *)(uintptr_t)place->path.bytes);
        place->path = copy(path);
    }
}
