/*
 * The records of a chain, and the fields of a record.
 */
#define _GNU_SOURCE 1

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "decode.h"

void reader_open(struct reader *reader, struct segments *segments, int directory, uint32_t first,
                 uint32_t end) {
    memset(reader, 0, sizeof(*reader));
    reader->segments = segments;
    reader->directory = directory;
    reader->next = first;
    reader->end = end;
    reader->current = first;
    reader->fd = -1;
    reader->bytes = segments->spare != NULL ? segments->spare : allocate(READER_BYTES);
    segments->spare = NULL;
}

void reader_close(struct reader *reader) {
    if (reader->fd >= 0)
        file_close(reader->fd);
    if (reader->segments->spare == NULL)
        reader->segments->spare = reader->bytes;
    else
        free(reader->bytes);
    reader->fd = -1;
    reader->bytes = NULL;
}

static bool next_file(struct reader *reader) {
    while (reader->next < reader->end) {
        reader->current = reader->next++;
        const struct segment *segment = &reader->segments->list[reader->current];
        struct file_status status;
        reader->fd = file_open(reader->directory, segment->name, &status);
        if (reader->fd < 0)
            continue;
        reader->offset = segment->header_bytes;
        reader->at = reader->filled = 0;
        return true;
    }
    return false;
}

/* Makes `needed` bytes stand in the buffer, if the file has them. */
static bool fill(struct reader *reader, size_t needed) {
    if (reader->filled - reader->at >= needed)
        return true;
    memmove(reader->bytes, reader->bytes + reader->at, reader->filled - reader->at);
    reader->filled -= reader->at;
    reader->at = 0;
    while (reader->filled < needed && reader->offset < SEGMENT_SIZE_MAX) {
        ssize_t got = file_read(reader->fd, reader->bytes + reader->filled,
                                READER_BYTES - reader->filled, reader->offset);
        if (got <= 0)
            return false;
        reader->filled += (size_t)got;
        reader->offset += (uint64_t)got;
    }
    return reader->filled >= needed;
}

static void leave_file(struct reader *reader) {
    file_close(reader->fd);
    reader->fd = -1;
}

const struct sub_record *reader_next(struct reader *reader) {
    for (;;) {
        if (reader->fd < 0 && !next_file(reader))
            return NULL;
        uint32_t length;
        if (!fill(reader, sizeof(struct sub_record))) {
            leave_file(reader);
            continue;
        }
        memcpy(&length, reader->bytes + reader->at, sizeof(length));
        if (length == 0) {
            leave_file(reader);
            continue;
        }
        bool pending = (length & SUB_LENGTH_PENDING) != 0;
        length &= ~SUB_LENGTH_PENDING;
        if (length < sizeof(struct sub_record) || length % 8 != 0 ||
            length > SUB_RECORD_MAX + sizeof(struct sub_record) || !fill(reader, length)) {
            reader->corrupt = true;
            leave_file(reader);
            continue;
        }
        /* Records are multiples of eight bytes in a buffer that malloc aligned: at stays aligned. */
        const void *record = reader->bytes + reader->at;
        reader->at += length;
        if (pending) {
            reader->torn++;
            continue;
        }
        return record;
    }
}

/* A structure of that size, or none: records and fields are multiples of eight bytes. */
static const void *whole(struct slice value, size_t bytes) {
    return value.length == bytes ? value.bytes : NULL;
}

void parse_fields(const struct sub_record *record, struct fields *fields) {
    const char *at = (const char *)(record + 1);
    const char *end = (const char *)record + record->length;
    memset(fields, 0, offsetof(struct fields, addresses));
    fields->address_count = 0;
    fields->variable_count = 0;
    while ((size_t)(end - at) >= sizeof(struct sub_field)) {
        struct sub_field field;
        memcpy(&field, at, sizeof(field));
        at += sizeof(field);
        uint64_t padded = ((uint64_t)field.bytes + 7) & ~7ULL;
        if (padded > (uint64_t)(end - at))
            return;
        struct slice value = {at, field.bytes};
        switch (field.tag) {
        case SUB_TAG_PATH:
            fields->path = value;
            break;
        case SUB_TAG_PATH2:
            fields->path2 = value;
            break;
        case SUB_TAG_DIRECTORY:
            fields->directory = value;
            break;
        case SUB_TAG_DIRECTORY2:
            fields->directory2 = value;
            break;
        case SUB_TAG_CWD:
            fields->cwd = value;
            break;
        case SUB_TAG_ARGV:
            fields->argv = value;
            break;
        case SUB_TAG_EXE:
            fields->exe = value;
            break;
        case SUB_TAG_NAME:
            fields->name = value;
            break;
        case SUB_TAG_SERVICE:
            fields->service = value;
            break;
        case SUB_TAG_MODE:
            fields->mode = value;
            break;
        case SUB_TAG_HELLO:
            fields->hello = whole(value, sizeof(*fields->hello));
            break;
        case SUB_TAG_ENV_DIGEST:
            fields->env_digest = whole(value, sizeof(*fields->env_digest));
            break;
        case SUB_TAG_KEY:
            fields->key = whole(value, sizeof(*fields->key));
            break;
        case SUB_TAG_DIRECTORY_ID:
            fields->directory_id = whole(value, sizeof(*fields->directory_id));
            break;
        case SUB_TAG_DIRECTORY2_ID:
            fields->directory2_id = whole(value, sizeof(*fields->directory2_id));
            break;
        case SUB_TAG_LIBRARIES:
            fields->libraries = value;
            break;
        case SUB_TAG_STAT_COUNTS:
            fields->stat_counts = whole(value, sizeof(*fields->stat_counts));
            break;
        case SUB_TAG_TRANSFER_COUNTS:
            fields->transfer_counts = whole(value, sizeof(*fields->transfer_counts));
            break;
        case SUB_TAG_SOURCE_COUNTS:
            fields->source_counts = whole(value, sizeof(*fields->source_counts));
            break;
        case SUB_TAG_ADDRESS:
            if (fields->address_count < FIELDS_MAX)
                fields->addresses[fields->address_count++] = value;
            break;
        case SUB_TAG_VARIABLE:
            if (fields->variable_count < FIELDS_MAX)
                fields->variables[fields->variable_count++] = value;
            break;
        default:
            break;
        }
        at += padded;
    }
}
