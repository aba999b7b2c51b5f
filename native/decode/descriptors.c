/*
 * What the descriptors of an image lead to, as far as its records tell: those it inherited, pipes
 * and the like are not known, and closing is not recorded.
 */
#define _GNU_SOURCE 1

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "decode.h"

#define DESCRIPTORS_MAX 65536
#define TEXT_MAX SUB_STRING_MAX

struct descriptors {
    struct descriptor *list;
    uint32_t count;
    uint32_t used; /* beyond the last that was ever set since the last clearing */
};

struct descriptors *descriptors_new(void) {
    return allocate(sizeof(struct descriptors));
}

void descriptors_clear(struct descriptors *descriptors) {
    for (uint32_t i = 0; i < descriptors->used; i++) /* their room is used again */
        descriptors->list[i].kind = DESCRIPTOR_UNKNOWN;
    descriptors->used = 0;
}

void descriptors_free(struct descriptors *descriptors) {
    for (uint32_t i = 0; i < descriptors->count; i++)
        free(descriptors->list[i].bytes);
    free(descriptors->list);
    free(descriptors);
}

static void set(struct descriptors *descriptors, int64_t number, enum descriptor_kind kind,
                enum direction direction, const char *bytes, uint32_t length) {
    if (number < 0 || number >= DESCRIPTORS_MAX || length > TEXT_MAX)
        return;
    uint32_t at = (uint32_t)number;
    if (at >= descriptors->count) {
        uint32_t count = at < 64 ? 128 : at * 2;
        descriptors->list = resize(descriptors->list, count, sizeof(*descriptors->list));
        memset(descriptors->list + descriptors->count, 0,
               (count - descriptors->count) * sizeof(*descriptors->list));
        descriptors->count = count;
    }
    if (at >= descriptors->used)
        descriptors->used = at + 1;
    struct descriptor *descriptor = &descriptors->list[at];
    if (descriptor->size < length) {
        descriptor->size = length < 128 ? 128 : length;
        descriptor->bytes = resize(descriptor->bytes, descriptor->size, 1);
    }
    descriptor->kind = length != 0 ? kind : DESCRIPTOR_UNKNOWN;
    descriptor->direction = direction;
    descriptor->length = length;
    if (length != 0)
        memmove(descriptor->bytes, bytes, length);
}

struct descriptor descriptors_find(const struct descriptors *descriptors, int32_t number) {
    struct descriptor none = {.kind = DESCRIPTOR_UNKNOWN};
    if (number < 0 || (uint32_t)number >= descriptors->used)
        return none;
    return descriptors->list[number];
}

static void copy(struct descriptors *descriptors, int32_t from, int64_t to) {
    struct descriptor source = descriptors_find(descriptors, from);
    if (from == to)
        return;
    set(descriptors, to, source.kind, source.direction, source.bytes,
        source.kind != DESCRIPTOR_UNKNOWN ? source.length : 0);
}

/* Of some calls on paths the result is another number, or says success only. */
static bool opens_descriptor(const struct sub_record *record) {
    switch (record->op) {
    case SUB_OP_sem_open:
    case SUB_OP_scandir:
    case SUB_OP_scandir64:
    case SUB_OP_scandirat:
    case SUB_OP_scandirat64:
    case SUB_OP_ftw:
    case SUB_OP_ftw64:
    case SUB_OP_nftw:
    case SUB_OP_nftw64:
    case SUB_OP_fts_open:
    case SUB_OP_fts64_open:
    case SUB_OP_glob:
    case SUB_OP_glob64:
        return false;
    default:
        return record->error == 0;
    }
}

void descriptors_follow(struct descriptors *descriptors, const struct sub_record *record,
                        const struct fields *fields, struct slice path) {
    struct slice address = {NULL, 0};
    if (fields->address_count > 0)
        address = fields->addresses[0];
    switch (record->type) {
    case SUB_OPEN:
        if (opens_descriptor(record))
            set(descriptors, record->result, DESCRIPTOR_FILE, DIRECTION_BOUND, path.bytes,
                path.length);
        break;
    case SUB_CONNECT:
        if (record->error == 0 || record->error == EINPROGRESS)
            set(descriptors, record->arg[0], DESCRIPTOR_SOCKET, DIRECTION_OUTBOUND, address.bytes,
                address.length);
        break;
    case SUB_BIND:
        if (record->error == 0)
            set(descriptors, record->arg[0], DESCRIPTOR_SOCKET, DIRECTION_BOUND, address.bytes,
                address.length);
        break;
    case SUB_ACCEPT:
        if (record->error == 0)
            set(descriptors, record->result, DESCRIPTOR_SOCKET, DIRECTION_INBOUND, address.bytes,
                address.length);
        break;
    case SUB_DUP:
        if (record->error == 0)
            copy(descriptors, record->arg[0], record->result);
        break;
    default:
        break;
    }
}
