/*
 * Sets of texts, open addressing, bounded by their user.
 */
#include <stdlib.h>
#include <string.h>

#include "decode.h"

static uint64_t hash_of(struct slice text) {
    uint64_t hash = 0xcbf29ce484222325ULL;
    const char *at = text.bytes;
    uint32_t left = text.length;
    for (; left >= 8; at += 8, left -= 8) {
        uint64_t word;
        memcpy(&word, at, 8);
        hash = (hash ^ word) * 0x9e3779b97f4a7c15ULL;
        hash ^= hash >> 32;
    }
    for (; left > 0; at++, left--)
        hash = (hash ^ (unsigned char)*at) * 0x100000001b3ULL;
    return hash ^ hash >> 29;
}

static void grow_slots(struct text_set *set) {
    free(set->slots);
    set->slot_count = set->slot_count != 0 ? set->slot_count * 2 : 64;
    set->slots = allocate(set->slot_count * sizeof(*set->slots));
    for (uint32_t i = 0; i < set->count; i++) {
        uint32_t at = (uint32_t)set->hashes[i] & (set->slot_count - 1);
        while (set->slots[at] != 0)
            at = (at + 1) & (set->slot_count - 1);
        set->slots[at] = i + 1;
    }
}

uint32_t set_add(struct text_set *set, struct slice text, uint32_t most) {
    if (set->count * 2 >= set->slot_count)
        grow_slots(set);
    uint64_t hash = hash_of(text);
    uint32_t at = (uint32_t)hash & (set->slot_count - 1);
    for (; set->slots[at] != 0; at = (at + 1) & (set->slot_count - 1)) {
        uint32_t number = set->slots[at] - 1;
        const struct slice *there = &set->texts[number];
        if (set->hashes[number] == hash && there->length == text.length &&
            (text.length == 0 || memcmp(there->bytes, text.bytes, text.length) == 0))
            return number;
    }
    if (set->count >= most)
        return NONE;
    if (set->count == set->size) {
        set->size = set->size != 0 ? set->size * 2 : 32;
        set->hashes = resize(set->hashes, set->size, sizeof(*set->hashes));
        set->texts = resize(set->texts, set->size, sizeof(*set->texts));
    }
    set->hashes[set->count] = hash;
    set->texts[set->count] = text_keep(&set->text, text, text.length);
    set->slots[at] = ++set->count;
    return set->count - 1;
}

void set_clear(struct text_set *set) {
    if (set->count == 0)
        return;
    memset(set->slots, 0, set->slot_count * sizeof(*set->slots));
    set->count = 0;
    text_free(&set->text);
}

void set_free(struct text_set *set) {
    free(set->slots);
    free(set->hashes);
    free(set->texts);
    text_free(&set->text);
    memset(set, 0, sizeof(*set));
}
