/*
 * Which segments there are. Only headers are read here, and only files are segments whose names are
 * what their headers stand for.
 */
#define _GNU_SOURCE 1

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "decode.h"

/* Of one segment, so that no sum of what programs claim goes beyond what readers can hold. */
#define LOST_MAX (1ULL << 40)

bool same_process(const struct sub_identity *a, const struct sub_identity *b) {
    return a->pid_namespace == b->pid_namespace && a->pid == b->pid &&
           a->start_ticks == b->start_ticks;
}

int compare_identities(const struct sub_identity *a, const struct sub_identity *b) {
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

void segment_name(char name[SEGMENT_NAME_MAX], const struct sub_identity *self, uint32_t chain,
                  uint32_t index) {
    snprintf(name, SEGMENT_NAME_MAX, "%u-%llu-%u-%u-%u", (unsigned)self->pid,
             (unsigned long long)self->start_ticks, self->exec_number, chain, index);
}

/* Has the file a segment's name, and nothing in it? */
static bool take_unborn(struct segments *segments, const char *name,
                        const struct sub_segment *header, uint64_t bytes) {
    struct sub_identity self = {0};
    char expected[SEGMENT_NAME_MAX];
    unsigned pid, chain, index;
    unsigned long long start;
    if ((bytes != 0 && header->magic != 0) ||
        sscanf(name, "%u-%llu-%u-%u-%u", &pid, &start, &self.exec_number, &chain, &index) != 5)
        return false;
    self.pid = (int32_t)pid;
    self.start_ticks = start;
    segment_name(expected, &self, chain, index);
    if (strcmp(expected, name) != 0)
        return false;
    segments->unborn = grow(segments->unborn, segments->unborn_count, &segments->unborn_size,
                            sizeof(*segments->unborn));
    struct unborn *unborn = &segments->unborn[segments->unborn_count++];
    memcpy(unborn->name, expected, sizeof(expected));
    unborn->pid = self.pid;
    unborn->no_room = bytes == 0;
    return true;
}

/* Is this file a segment, and is its name the one that its header stands for? */
static bool read_header(struct segments *segments, int directory, const char *name,
                        struct segment *segment) {
    struct sub_segment header;
    struct file_status status;
    char expected[SEGMENT_NAME_MAX];
    int fd = file_open(directory, name, &status);
    if (fd < 0) {
        segments->unreadable += fd != -ENOENT && fd != -EINVAL;
        segments->foreign += fd == -EINVAL;
        return false;
    }
    bool whole = file_read(fd, &header, sizeof(header), 0) == (ssize_t)sizeof(header);
    file_close(fd);
    if ((whole || status.bytes == 0) && take_unborn(segments, name, &header, status.bytes))
        return false;
    if (!whole || header.magic != SUB_SEGMENT_MAGIC ||
        (header.version != SUB_SEGMENT_VERSION && header.version != SUB_SEGMENT_VERSION_BEFORE) ||
        header.header_bytes < sizeof(header) || header.header_bytes % 8 != 0 ||
        status.bytes > SEGMENT_SIZE_MAX) {
        segments->foreign++;
        return false;
    }
    segment_name(expected, &header.self, header.chain, header.index);
    if (strcmp(expected, name) != 0) {
        segments->foreign++;
        return false;
    }
    memcpy(segment->name, expected, sizeof(segment->name));
    segment->self = header.self;
    segment->chain = header.chain;
    segment->index = header.index;
    segment->version = header.version;
    segment->state = header.state;
    segment->flags = header.flags;
    segment->classes_off = header.classes_off;
    segment->first_sequence = segment->next_sequence = header.first_sequence;
    segment->header_bytes = header.header_bytes;
    segment->lost = header.lost < LOST_MAX ? header.lost : LOST_MAX;
    segment->created_ns = header.created_ns;
    segment->bytes = status.bytes;
    segment->owner = status.owner;
    segment->image = segment->kernel = NONE;
    return true;
}

static int compare_unborn(const void *left, const void *right) {
    const struct unborn *a = left, *b = right;
    return a->pid != b->pid ? (a->pid < b->pid ? -1 : 1) : strcmp(a->name, b->name);
}

struct listing {
    struct segments *segments;
    int directory;
    uint32_t size;
};

static void take_file(void *context, const char *name) {
    struct listing *listing = context;
    struct segments *segments = listing->segments;
    if (strcmp(name, SUB_FILTER_MARK) == 0)
        return;
    if (strlen(name) >= SEGMENT_NAME_MAX ||
        segments->count + segments->unborn_count == SEGMENTS_MAX) {
        segments->foreign++;
        return;
    }
    segments->list = grow(segments->list, segments->count, &listing->size, sizeof(*segments->list));
    if (read_header(segments, listing->directory, name, &segments->list[segments->count]))
        segments->count++;
}

void read_segments(struct segments *segments, int directory) {
    struct listing listing = {.segments = segments, .directory = directory};
    list_files(directory, take_file, &listing);
    if (segments->unborn_count != 0)
        qsort(segments->unborn, segments->unborn_count, sizeof(*segments->unborn), compare_unborn);
    if (segments->count != 0)
        qsort(segments->list, segments->count, sizeof(*segments->list), compare_segments);
}
