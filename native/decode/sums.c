/*
 * What programs count instead of telling each: calls and bytes per file and peer, reads of what is
 * not the same the next time. Added up per image, and written as lines when all of it was read.
 */
#define _GNU_SOURCE 1

#include <stdlib.h>
#include <string.h>

#include "writing.h"

/* So many different things are added up at once; then what there is gets written, and it goes on. */
#define SUMS_MAX (1u << 16)

enum file_count {
    STAT_CALLS,
    STAT_FAILED,
    READ_CALLS,
    READ_BYTES,
    WRITE_CALLS,
    WRITE_BYTES,
    FILE_COUNTS
};
enum peer_count { SENT_BYTES, RECEIVED_BYTES, PEER_COUNTS };

struct sum {
    uint64_t counts[FILE_COUNTS];
    uint64_t last_ns;
};

/* Sums by what they are of. */
struct table {
    struct text_set keys;
    struct sum *list;
    uint32_t size;
};

struct sums {
    struct table files;   /* by path */
    struct table numbers; /* by number of a descriptor that leads nowhere we know */
    struct table peers;   /* by direction and address */
    bool have_sources;
    uint64_t sources[SUB_SOURCE_DIRECTORY_ORDER + 1];
    uint64_t sources_ns;
    char key[SUB_STRING_MAX + 1];
};

struct sums *sums_new(void) {
    return allocate(sizeof(struct sums));
}

static void free_table(struct table *table) {
    set_free(&table->keys);
    free(table->list);
}

void sums_free(struct sums *sums) {
    free_table(&sums->files);
    free_table(&sums->numbers);
    free_table(&sums->peers);
    free(sums);
}

/* Programs may write any number: nothing that is added up here goes round. */
static void add(uint64_t *to, uint64_t more) {
    *to = more > INT64_MAX - *to ? INT64_MAX : *to + more;
}

static struct sum *sum_of(struct writer *writer, const struct image *image, struct table *table,
                          struct slice key, uint64_t at_ns) {
    uint32_t number = set_add(&table->keys, key, SUMS_MAX);
    if (number == NONE) {
        sums_write(writer, image);
        number = set_add(&table->keys, key, SUMS_MAX);
    }
    if (number >= table->size) {
        uint32_t size = table->size != 0 ? table->size * 2 : 32;
        table->list = resize(table->list, size, sizeof(*table->list));
        memset(table->list + table->size, 0, (size - table->size) * sizeof(*table->list));
        table->size = size;
    }
    struct sum *sum = &table->list[number];
    if (at_ns > sum->last_ns)
        sum->last_ns = at_ns;
    return sum;
}

static struct sum *file_sum(struct writer *writer, const struct image *image,
                            const struct descriptor *descriptor, int32_t number, uint64_t at_ns) {
    if (descriptor->kind == DESCRIPTOR_FILE)
        return sum_of(writer, image, &writer->sums->files,
                      (struct slice){descriptor->bytes, descriptor->length}, at_ns);
    return sum_of(writer, image, &writer->sums->numbers,
                  (struct slice){(const char *)&number, sizeof(number)}, at_ns);
}

static struct sum *peer_sum(struct writer *writer, const struct image *image,
                            enum direction direction, struct slice address, uint64_t at_ns) {
    struct sums *sums = writer->sums;
    uint32_t length = address.length < SUB_STRING_MAX ? address.length : SUB_STRING_MAX;
    sums->key[0] = (char)direction;
    memcpy(sums->key + 1, address.bytes, length);
    return sum_of(writer, image, &sums->peers, (struct slice){sums->key, length + 1}, at_ns);
}

/* --- taking them up --------------------------------------------------------------------------- */

static struct descriptor lead(const struct writer *writer, const struct sub_record *record) {
    if ((record->flags & SUB_FLAG_UNNAMED) != 0)
        return (struct descriptor){.kind = DESCRIPTOR_UNKNOWN};
    return descriptors_find(writer->descriptors, record->arg[0]);
}

static void take_stat(struct writer *writer, const struct image *image,
                      const struct sub_record *record, const struct fields *fields,
                      struct slice path) {
    const struct sub_stat_counts *counts = fields->stat_counts;
    uint64_t at_ns = counts->last_ns != 0 ? counts->last_ns : record->start_ns;
    struct sum *sum;
    if (fields->path.bytes != NULL || path.length != 0) {
        sum = sum_of(writer, image, &writer->sums->files, path, at_ns);
    } else {
        struct descriptor descriptor = lead(writer, record);
        sum = file_sum(writer, image, &descriptor, record->arg[0], at_ns);
    }
    add(&sum->counts[STAT_CALLS], counts->calls);
    add(&sum->counts[STAT_FAILED], counts->failed);
    summary_total(writer->summary, TOTAL_STAT, counts->calls);
    summary_total(writer->summary, TOTAL_STAT_FAILED, counts->failed);
}

static void take_transfer(struct writer *writer, const struct image *image,
                          const struct sub_record *record, const struct fields *fields) {
    const struct sub_transfer_counts *counts = fields->transfer_counts;
    uint64_t at_ns = counts->last_ns != 0 ? counts->last_ns : record->start_ns;
    struct descriptor descriptor = lead(writer, record);
    struct slice address = {descriptor.bytes, descriptor.length};
    bool sent_to = fields->address_count > 0 && fields->addresses[0].length != 0;
    if (sent_to || descriptor.kind == DESCRIPTOR_SOCKET) {
        struct sum *sum =
            sent_to ? peer_sum(writer, image, DIRECTION_OUTBOUND, fields->addresses[0], at_ns)
                    : peer_sum(writer, image, descriptor.direction, address, at_ns);
        add(&sum->counts[SENT_BYTES], counts->write_bytes);
        add(&sum->counts[RECEIVED_BYTES], counts->read_bytes);
        summary_total(writer->summary, TOTAL_SENT_BYTES, counts->write_bytes);
        summary_total(writer->summary, TOTAL_RECEIVED_BYTES, counts->read_bytes);
        return;
    }
    struct sum *sum = file_sum(writer, image, &descriptor, record->arg[0], at_ns);
    add(&sum->counts[READ_CALLS], counts->read_calls);
    add(&sum->counts[READ_BYTES], counts->read_bytes);
    add(&sum->counts[WRITE_CALLS], counts->write_calls);
    add(&sum->counts[WRITE_BYTES], counts->write_bytes);
    summary_total(writer->summary, TOTAL_READ_CALLS, counts->read_calls);
    summary_total(writer->summary, TOTAL_READ_BYTES, counts->read_bytes);
    summary_total(writer->summary, TOTAL_WRITE_CALLS, counts->write_calls);
    summary_total(writer->summary, TOTAL_WRITE_BYTES, counts->write_bytes);
}

static void take_sources(struct writer *writer, const struct sub_record *record,
                         const struct fields *fields) {
    struct sums *sums = writer->sums;
    sums->have_sources = true;
    if (record->start_ns > sums->sources_ns)
        sums->sources_ns = record->start_ns;
    for (int i = 0; i <= SUB_SOURCE_DIRECTORY_ORDER; i++) {
        add(&sums->sources[i], fields->source_counts->reads[i]);
        summary_total(writer->summary, (enum total)(TOTAL_SOURCES + i),
                      fields->source_counts->reads[i]);
    }
}

void sums_take(struct writer *writer, const struct image *image, const struct sub_record *record,
               const struct fields *fields, struct slice path) {
    if (record->type == SUB_STAT && fields->stat_counts != NULL)
        take_stat(writer, image, record, fields, path);
    else if (record->type == SUB_TRANSFER && fields->transfer_counts != NULL)
        take_transfer(writer, image, record, fields);
    else if (record->type == SUB_SOURCES && fields->source_counts != NULL)
        take_sources(writer, record, fields);
}

/* --- writing them ----------------------------------------------------------------------------- */

static void start_line(struct writer *writer, const struct image *image, uint64_t at_ns,
                       const char *type) {
    if (writer->out.used > FLUSH_BYTES)
        flush(writer);
    write_time(writer, &writer->out, image, at_ns);
    write_ids(writer, image, type, "preload");
}

static void number(struct buffer *out, const char *name, uint64_t value) {
    json_literal(out, ",\"");
    json_text(out, name);
    json_literal(out, "\":");
    json_unsigned(out, value);
}

static void write_file_counts(struct writer *writer, const struct sum *sum) {
    static const char *const names[FILE_COUNTS] = {"stat_calls", "stat_failed", "read_calls",
                                                   "read_bytes", "write_calls", "write_bytes"};
    for (int i = 0; i < FILE_COUNTS; i++)
        number(&writer->out, names[i], sum->counts[i]);
    write_source(writer, false);
}

static void write_peer(struct writer *writer, const struct image *image, struct slice key,
                       const struct sum *sum) {
    static const char *const directions[] = {"outbound", "inbound", "bound"};
    start_line(writer, image, sum->last_ns, "connection_summary");
    write_address(&writer->out, (struct slice){key.bytes + 1, key.length - 1});
    json_literal(&writer->out, ",\"direction\":");
    json_name(&writer->out, directions[(unsigned char)key.bytes[0]]);
    number(&writer->out, "sent_bytes", sum->counts[SENT_BYTES]);
    number(&writer->out, "received_bytes", sum->counts[RECEIVED_BYTES]);
    write_source(writer, false);
}

static void write_sources(struct writer *writer, const struct image *image) {
    static const char *const names[] = {"clock", "monotonic", "random", "process_id",
                                        "directory_order"}; /* "pid" is the process's own */
    struct sums *sums = writer->sums;
    start_line(writer, image, sums->sources_ns, "nondeterminism");
    for (int i = 0; i <= SUB_SOURCE_DIRECTORY_ORDER; i++)
        number(&writer->out, names[i], sums->sources[i]);
    write_source(writer, false);
}

static void clear(struct table *table) {
    if (table->keys.count != 0)
        memset(table->list, 0, table->keys.count * sizeof(*table->list));
    set_clear(&table->keys);
}

void sums_write(struct writer *writer, const struct image *image) {
    struct sums *sums = writer->sums;
    for (uint32_t i = 0; i < sums->files.keys.count; i++) {
        struct slice path = sums->files.keys.texts[i];
        start_line(writer, image, sums->files.list[i].last_ns, "file_summary");
        json_literal(&writer->out, ",\"path\":");
        json_bytes(&writer->out, path.bytes, path.length);
        write_file_counts(writer, &sums->files.list[i]);
    }
    for (uint32_t i = 0; i < sums->numbers.keys.count; i++) {
        int32_t descriptor;
        memcpy(&descriptor, sums->numbers.keys.texts[i].bytes, sizeof(descriptor));
        start_line(writer, image, sums->numbers.list[i].last_ns, "file_summary");
        json_literal(&writer->out, ",\"fd\":");
        json_signed(&writer->out, descriptor);
        write_file_counts(writer, &sums->numbers.list[i]);
    }
    for (uint32_t i = 0; i < sums->peers.keys.count; i++)
        write_peer(writer, image, sums->peers.keys.texts[i], &sums->peers.list[i]);
    if (sums->have_sources)
        write_sources(writer, image);
    clear(&sums->files);
    clear(&sums->numbers);
    clear(&sums->peers);
    sums->have_sources = false;
    sums->sources_ns = 0;
    memset(sums->sources, 0, sizeof(sums->sources));
}
