/*
 * What the directory ids of an image stand for, as its records explained them.
 */
#define _GNU_SOURCE 1

#include <stdlib.h>
#include <string.h>

#include "decode.h"

#define PLACES_MAX (1u << 16)

struct place {
    uint64_t id; /* 0: free */
    struct slice path;
};

struct places {
    struct place *list;
    uint32_t used, size; /* a power of two */
};

struct places *places_new(void) {
    struct places *places = allocate(sizeof(*places));
    places->size = 64;
    places->list = allocate(places->size * sizeof(*places->list));
    return places;
}

void places_clear(struct places *places) {
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

static void grow(struct places *places) {
    struct places bigger = {.used = places->used, .size = places->size * 2};
    bigger.list = allocate(bigger.size * sizeof(*bigger.list));
    for (uint32_t i = 0; i < places->size; i++) {
        if (places->list[i].id != 0)
            *find(&bigger, places->list[i].id) = places->list[i];
    }
    free(places->list);
    *places = bigger;
}

/* The path that stands beside an id, or that it stood beside before. */
struct slice places_resolve(struct places *places, const uint64_t *id, struct slice path) {
    if (id == NULL || *id == 0)
        return path;
    struct place *place = find(places, *id);
    if (path.length == 0)
        return place->path;
    if (place->id == 0 && places->used == PLACES_MAX)
        return path;
    if (place->path.length == path.length &&
        memcmp(place->path.bytes, path.bytes, path.length) == 0)
        return path;
    char *copy = malloc(path.length);
    if (copy == NULL)
        die("out of memory: raise --memory-limit");
    memcpy(copy, path.bytes, path.length);
    free((void *)(uintptr_t)place->path.bytes);
    places->used += place->id == 0;
    place->id = *id;
    place->path = (struct slice){copy, path.length};
    if (places->used * 2 > places->size)
        grow(places);
    return path;
}
