/*
 * Memory that is there, or the program ends: nothing here can be done with less of it.
 */
#include <stdlib.h>
#include <string.h>

#include "decode.h"

#ifndef CHUNK_BYTES /* the fuzzer wants each text in a block of its own */
#define CHUNK_BYTES (64u << 10)
#endif

static const char out_of_memory[] = "out of memory: raise --memory-limit";

void *allocate(size_t bytes) {
    void *memory = calloc(1, bytes != 0 ? bytes : 1);
    if (memory == NULL)
        die(out_of_memory);
    return memory;
}

void *resize(void *list, size_t count, size_t bytes_each) {
    void *bigger = reallocarray(list, count, bytes_each);
    if (bigger == NULL)
        die(out_of_memory);
    return bigger;
}

void *grow(void *list, uint32_t count, uint32_t *size, size_t bytes_each) {
    if (count < *size)
        return list;
    *size = *size != 0 ? *size * 2 : 16;
    return resize(list, *size, bytes_each);
}

/* --- text ------------------------------------------------------------------------------------- */

struct text_chunk {
    struct text_chunk *next;
    size_t size;
    char bytes[];
};

struct slice text_keep(struct text *text, struct slice from, uint32_t most) {
    struct slice to = {NULL, from.length < most ? from.length : most};
    if (to.length == 0)
        return to;
    if (text->left < to.length) {
        size_t size = to.length < CHUNK_BYTES / 4 ? CHUNK_BYTES : to.length;
        struct text_chunk *chunk = malloc(sizeof(*chunk) + size);
        if (chunk == NULL)
            die(out_of_memory);
        chunk->next = text->chunks;
        chunk->size = size;
        text->chunks = chunk;
        text->left = size;
    }
    char *bytes = text->chunks->bytes + (text->chunks->size - text->left);
    memcpy(bytes, from.bytes, to.length);
    text->left -= to.length;
    to.bytes = bytes;
    return to;
}

void text_free(struct text *text) {
    while (text->chunks != NULL) {
        struct text_chunk *chunk = text->chunks;
        text->chunks = chunk->next;
        free(chunk);
    }
    text->left = 0;
}
