/*
 * The records of a chain, and the fields of a record.
 */
#define _GNU_SOURCE 1

#include <errno.h>
#include <fcntl.h>
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
    reader->expanded = segments->spare;
    if (reader->expanded == NULL)
        reader->expanded = allocate(EXPANDED_BYTES + READER_BYTES);
    reader->bytes = reader->expanded + EXPANDED_BYTES;
    segments->spare = NULL;
}

void reader_close(struct reader *reader) {
    if (reader->fd >= 0)
        file_close(reader->fd);
    if (reader->segments->spare == NULL)
        reader->segments->spare = reader->expanded;
    else
        free(reader->expanded);
    reader->fd = -1;
    reader->bytes = reader->expanded = NULL;
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
        reader->sequence = segment->first_sequence;
        if (reader->time_ns < segment->created_ns)
            reader->time_ns = segment->created_ns;
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

static bool has_short_records(const struct reader *reader) {
    return reader->segments->list[reader->current].version != SUB_SEGMENT_VERSION_BEFORE;
}

/* A look as the SUB_STAT that it stands for: nobody but the reader need know it. */
static const struct sub_record *expand(struct reader *reader, const struct sub_look *look) {
    const struct segment *segment = &reader->segments->list[reader->current];
    uint32_t path_bytes = (look->bytes + 7u) & ~7u;
    char *at = reader->expanded;
    struct sub_record record = {
        .length = (uint32_t)(sizeof(record) + 2 * sizeof(struct sub_field) +
                             sizeof(struct sub_stat_counts) + path_bytes),
        .type = SUB_STAT,
        .start_ns = reader->time_ns,
        .sequence = reader->sequence,
        .flags = look->dirfd != AT_FDCWD ? SUB_FLAG_BELOW : 0,
        .arg = {look->dirfd, 0, 0, 0},
    };
    struct sub_field counts_field = {SUB_TAG_STAT_COUNTS, 0, sizeof(struct sub_stat_counts)};
    struct sub_stat_counts counts = {look->calls, look->failed,
                                     segment->created_ns +
                                         ((uint64_t)look->last << SUB_LOOK_TICK_BITS)};
    struct sub_field path_field = {SUB_TAG_PATH, 0, look->bytes};
    memcpy(at, &record, sizeof(record));
    at += sizeof(record);
    memcpy(at, &counts_field, sizeof(counts_field));
    at += sizeof(counts_field);
    memcpy(at, &counts, sizeof(counts));
    at += sizeof(counts);
    memcpy(at, &path_field, sizeof(path_field));
    memcpy(at + sizeof(path_field), look + 1, path_bytes);
    return (const void *)reader->expanded;
}

/* Is this a length that a record of this type may have? That of a torn one is not there yet. */
static bool is_length(const struct reader *reader, const struct sub_look *head, uint32_t length,
                      bool pending) {
    if (length % 8 != 0 || length > SUB_RECORD_MAX + sizeof(struct sub_record))
        return false;
    if (!has_short_records(reader))
        return length >= sizeof(struct sub_record);
    if (pending)
        return length >= sizeof(struct sub_look);
    if (head->type == SUB_LOOK)
        return head->bytes <= SUB_STRING_MAX &&
               length == sizeof(struct sub_look) + ((head->bytes + 7u) & ~7u);
    return length >= sizeof(struct sub_record);
}

const struct sub_record *reader_next(struct reader *reader) {
    for (;;) {
        if (reader->fd < 0 && !next_file(reader))
            return NULL;
        struct sub_look head;
        if (!fill(reader, sizeof(head))) {
            leave_file(reader);
            continue;
        }
        memcpy(&head, reader->bytes + reader->at, sizeof(head));
        uint32_t length = head.length;
        if (length == 0) {
            leave_file(reader);
            continue;
        }
        bool pending = (length & SUB_LENGTH_PENDING) != 0;
        length &= ~SUB_LENGTH_PENDING;
        if (!is_length(reader, &head, length, pending) || !fill(reader, length)) {
            reader->corrupt = true;
            leave_file(reader);
            continue;
        }
        /* Records are multiples of eight bytes in a buffer that malloc aligned: at stays aligned. */
        const struct sub_record *record = (const void *)(reader->bytes + reader->at);
        reader->at += length;
        if (pending) {
            reader->torn++;
            reader->sequence++;
            continue;
        }
        if (head.type == SUB_LOOK && has_short_records(reader)) {
            record = expand(reader, (const void *)record);
        } else {
            reader->sequence = record->sequence;
            reader->time_ns = record->start_ns + record->elapsed_ns;
        }
        reader->sequence++;
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
