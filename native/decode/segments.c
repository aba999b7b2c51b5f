#define _GNU_SOURCE 1

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "decode.h"

static int compare_identities(const struct sub_identity *a, const struct sub_identity *b) {
#define COMPARE(field)                                                                             \
    if (a->field != b->field)                                                                      \
    return a->field < b->field ? -1 : 1
    COMPARE(pid_namespace);
    COMPARE(pid);
    COMPARE(start_ticks);
    COMPARE(exec_number);
    return 0;
}

static int compare_segments(const void *left, const void *right) {
    const struct segment *a = left, *b = right;
    int order = compare_identities(&a->self, &b->self);
    if (order != 0)
        return order;
    if (a->chain != b->chain)
        return a->chain < b->chain ? -1 : 1;
    if (a->index != b->index)
        return a->index < b->index ? -1 : 1;
    return strcmp(a->name, b->name);
}

/* Is this file a segment, and is its name the one that its header stands for? */
static bool read_header(struct segments *segments, int directory, const char *name,
                        struct segment *segment) {
    struct sub_segment header;
    struct stat status;
    char expected[128];
    int fd = openat(directory, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    if (fd < 0) {
        segments->unreadable += errno != ENOENT;
        return false;
    }
    bool whole = fstat(fd, &status) == 0 && S_ISREG(status.st_mode) &&
                 pread(fd, &header, sizeof(header), 0) == (ssize_t)sizeof(header);
    close(fd);
    if (!whole || header.magic != SUB_SEGMENT_MAGIC || header.version != SUB_SEGMENT_VERSION ||
        header.header_bytes < sizeof(header) || header.header_bytes % 8 != 0 ||
        status.st_size > SEGMENT_SIZE_MAX) {
        segments->foreign++;
        return false;
    }
    snprintf(expected, sizeof(expected), "%u-%llu-%u-%u-%u", (unsigned)header.self.pid,
             (unsigned long long)header.self.start_ticks, header.self.exec_number, header.chain,
             header.index);
    if (strcmp(expected, name) != 0) {
        segments->foreign++;
        return false;
    }
    snprintf(segment->name, sizeof(segment->name), "%s", name);
    segment->self = header.self;
    segment->chain = header.chain;
    segment->index = header.index;
    segment->state = header.state;
    segment->flags = header.flags;
    segment->header_bytes = header.header_bytes;
    segment->lost = header.lost < UINT64_MAX >> 16 ? header.lost : UINT64_MAX >> 16;
    segment->created_ns = header.created_ns;
    segment->bytes = (uint64_t)status.st_size;
    segment->owner = status.st_uid;
    segment->image = NONE;
    return true;
}

void read_segments(struct segments *segments, int directory) {
    int copy = openat(directory, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (copy < 0)
        die_errno("cannot list the segment directory");
    DIR *entries = fdopendir(copy);
    if (entries == NULL)
        die_errno("cannot list the segment directory");
    uint32_t size = 0;
    const struct dirent *entry;
    while ((entry = readdir(entries)) != NULL) {
        size_t length = strlen(entry->d_name);
        if (entry->d_name[0] == '.' && (length == 1 || (length == 2 && entry->d_name[1] == '.')))
            continue;
        if (length >= SEGMENT_NAME_MAX || segments->count == SEGMENTS_MAX) {
            segments->foreign++;
            continue;
        }
        if (segments->count == size) {
            size = size != 0 ? size * 2 : 256;
            segments->list = realloc(segments->list, size * sizeof(*segments->list));
            if (segments->list == NULL)
                die("out of memory: raise --memory-limit");
        }
        if (read_header(segments, directory, entry->d_name, &segments->list[segments->count]))
            segments->count++;
    }
    closedir(entries);
    if (segments->count != 0)
        qsort(segments->list, segments->count, sizeof(*segments->list), compare_segments);
}

/* --- records ---------------------------------------------------------------------------------- */

void reader_open(struct reader *reader, const struct segments *segments, int directory,
                 uint32_t first, uint32_t end) {
    memset(reader, 0, sizeof(*reader));
    reader->segments = segments;
    reader->directory = directory;
    reader->next = first;
    reader->end = end;
    reader->current = first;
    reader->fd = -1;
    reader->bytes = allocate(READER_BYTES);
}

void reader_close(struct reader *reader) {
    if (reader->fd >= 0)
        close(reader->fd);
    free(reader->bytes);
    reader->fd = -1;
    reader->bytes = NULL;
}

static bool next_file(struct reader *reader) {
    while (reader->next < reader->end) {
        reader->current = reader->next++;
        const struct segment *segment = &reader->segments->list[reader->current];
        reader->fd = openat(reader->directory, segment->name,
                            O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
        if (reader->fd < 0)
            continue;
        struct stat status;
        if (fstat(reader->fd, &status) == 0 && S_ISREG(status.st_mode)) {
            reader->offset = segment->header_bytes;
            reader->at = reader->filled = 0;
            return true;
        }
        close(reader->fd);
        reader->fd = -1;
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
        ssize_t got = pread(reader->fd, reader->bytes + reader->filled,
                            READER_BYTES - reader->filled, (off_t)reader->offset);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return false;
        reader->filled += (size_t)got;
        reader->offset += (uint64_t)got;
    }
    return reader->filled >= needed;
}

static void leave_file(struct reader *reader) {
    close(reader->fd);
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
            if (field.bytes == sizeof(struct sub_hello))
                fields->hello = (const struct sub_hello *)(const void *)at;
            break;
        case SUB_TAG_ENV_DIGEST:
            if (field.bytes == sizeof(uint64_t))
                fields->env_digest = (const uint64_t *)(const void *)at;
            break;
        case SUB_TAG_KEY:
            if (field.bytes == sizeof(uint64_t))
                fields->key = (const uint64_t *)(const void *)at;
            break;
        case SUB_TAG_DIRECTORY_ID:
            if (field.bytes == sizeof(uint64_t))
                fields->directory_id = (const uint64_t *)(const void *)at;
            break;
        case SUB_TAG_DIRECTORY2_ID:
            if (field.bytes == sizeof(uint64_t))
                fields->directory2_id = (const uint64_t *)(const void *)at;
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
