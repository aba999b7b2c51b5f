/*
 * Making the records that sums.h adds to, and finding them again.
 */
#define _GNU_SOURCE 1

#include "sums.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <time.h>

#include "descriptors.h"
#include "process.h"

uint32_t sub_descriptors[SUB_DESCRIPTORS];

void sub_descriptors_unnamed_from(unsigned first, unsigned last) {
    if (!sub_descriptors_are_ours())
        return;
    for (unsigned fd = first; fd <= last && fd < SUB_DESCRIPTORS; fd++)
        sub_descriptors[fd] = (sub_descriptors[fd] + 2) | 1u;
}

/*
 * The segment that is current now need not be the one the record is in: a handler may have gone on
 * to the next in between. Then the record is not found again.
 */
void sub_remember(const struct sub_record *record, const struct sub_sum *sum) {
    unsigned char *base = sub_self.base;
    if (base == NULL || sub_self.check != 0)
        return;
    uint64_t at = (uint64_t)((const unsigned char *)record - base);
    if (at >= ((const struct sub_segment *)(const void *)base)->size)
        return;
    struct sub_slot *slot = sub_slot_at(base, sum->table, sum->index);
    slot->at = 0; /* a handler between these lines finds nothing */
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
    slot->key = sum->key;
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
    slot->at = (uint32_t)(at / 8);
}

/* The record that the slot leads to, if it is one of this kind; the segment is held. */
static struct sub_record *found(unsigned char *base, const struct sub_sum *sum, uint16_t type) {
    if (unlikely(base == NULL))
        return NULL;
    const struct sub_slot *slot = sub_slot_at(base, sum->table, sum->index);
    uint64_t at = (uint64_t)slot->at * 8;
    if (slot->key != sum->key || at == 0 ||
        unlikely(at + SUB_COUNTS_AT + sizeof(struct sub_transfer_counts) >
                 ((const struct sub_segment *)(const void *)base)->size))
        return NULL;
    struct sub_record *record = (struct sub_record *)(void *)(base + at);
    return likely(record->type == type) ? record : NULL;
}

/* The precise clock costs ten times what an addition does. */
static uint64_t coarse_now(void) {
    return sub_clock(CLOCK_MONOTONIC_COARSE);
}

/* A child that borrows the memory has come and gone without a hook noticing its end. */
static void settle_vfork(void) {
    if (unlikely(sub_self.check != 0))
        sub_vfork_child();
}

void sub_count_first_source(enum sub_source source) {
    struct sub_source_counts counts = {{0}};
    counts.reads[source] = 1;
    settle_vfork();
    uint64_t now = sub_now();
    struct sub_record *record =
        sub_begin_at(SUB_SOURCES, SUB_OP_none, now, now, sub_field_size(sizeof(counts)));
    if (record == NULL)
        return;
    sub_put((unsigned char *)(record + 1), SUB_TAG_SOURCE_COUNTS, &counts, sizeof(counts));
    unsigned char *base = sub_self.base;
    struct sub_segment *header = (struct sub_segment *)(void *)base;
    uint64_t at = (uint64_t)((unsigned char *)record - base);
    if (base != NULL && at < header->size && sub_self.check == 0)
        header->sources = at;
    sub_commit(record);
}

/* --- look-ups --------------------------------------------------------------------------------- */

static void add_stat(struct sub_record *record, bool failed) {
    struct sub_stat_counts *counts = sub_counts(record);
    uint64_t now = coarse_now();
    sub_add(&counts->calls, 1);
    if (failed)
        sub_add(&counts->failed, 1);
    if (likely(now > record->start_ns))
        counts->last_ns = now;
}

static bool same_path(const struct sub_record *record, struct sub_text path) {
    const struct sub_field *field =
        (const struct sub_field *)(const void *)((const unsigned char *)record + SUB_COUNTS_AT +
                                                 sizeof(struct sub_stat_counts));
    return field->tag == SUB_TAG_PATH && field->bytes == path.length &&
           memcmp(field + 1, path.bytes, path.length) == 0;
}

static void count_descriptor_stat(enum sub_operation op, int fd, int64_t result, int error) {
    uint32_t state = sub_descriptor_state(fd);
    uint64_t now = 0;
    struct sub_sum sum = {SUB_TABLE_PATHS,     (uint32_t)fd * 0x9e3779b1u >> 16, ~state,
                          SUB_TAG_STAT_COUNTS, sizeof(struct sub_stat_counts),   NULL};
    settle_vfork();
    struct sub_record *record = found(sub_hold(), &sum, SUB_STAT);
    bool known = record != NULL && record->arg[0] == fd &&
                 record->length == sizeof(*record) + sub_field_size(sum.bytes);
    if (known)
        add_stat(record, error != 0);
    sub_release();
    if (known)
        return;
    now = sub_now();
    struct sub_stat_counts counts = {1, error != 0, now};
    record = sub_begin_at(SUB_STAT, (uint16_t)op, now, now, sub_field_size(sizeof(counts)));
    if (record == NULL)
        return;
    record->result = result;
    record->error = error;
    record->arg[0] = fd;
    record->flags |= (state & 1u) != 0 ? SUB_FLAG_UNNAMED : 0;
    sub_put((unsigned char *)(record + 1), SUB_TAG_STAT_COUNTS, &counts, sizeof(counts));
    sub_remember(record, &sum);
    sub_commit(record);
}

void sub_count_stat(enum sub_operation op, int dirfd, const char *path, int64_t result,
                    bool failed) {
    int error = failed ? errno : 0;
    struct sub_text text = sub_text(path, error);
    if (text.length == 0 && (text.flags & SUB_FLAG_FAULT) == 0 && dirfd != AT_FDCWD) {
        count_descriptor_stat(op, dirfd, result, error);
        return;
    }
    /* A relative path is another one after a chdir, or below another directory. */
    uint64_t base = 0;
    if (text.bytes != NULL && text.bytes[0] != '/')
        base = dirfd == AT_FDCWD ? (uint64_t)sub_directory_changes << 1 | 1
                                 : (uint64_t)(uint32_t)dirfd << 32 | sub_descriptor_state(dirfd);
    uint64_t hash = sub_hash_variable(text.bytes, text.length) ^ base * 0x9e3779b97f4a7c15ULL;
    struct sub_sum sum = {SUB_TABLE_PATHS,
                          (uint32_t)hash,
                          (uint32_t)(hash >> 32),
                          SUB_TAG_STAT_COUNTS,
                          sizeof(struct sub_stat_counts),
                          NULL};
    settle_vfork();
    struct sub_record *record = text.bytes != NULL ? found(sub_hold(), &sum, SUB_STAT) : NULL;
    bool known = record != NULL && same_path(record, text);
    if (known)
        add_stat(record, failed);
    if (text.bytes != NULL)
        sub_release();
    if (known)
        return;
    uint64_t now = sub_now();
    struct sub_stat_counts counts = {1, failed, now};
    sum.counts = &counts;
    struct sub_call call = {
        .type = SUB_STAT,
        .op = (uint16_t)op,
        .error = error,
        .start_ns = now,
        .result = result,
        .arg = {dirfd, 0, 0, 0},
        .path = path,
        .sum = &sum,
    };
    sub_record_call(&call);
}

/* --- bytes ------------------------------------------------------------------------------------ */

void sub_count_transfer(enum sub_operation op, int fd, bool writes, uint64_t bytes,
                        const struct sockaddr *address, uint32_t address_bytes) {
    uint32_t state = sub_descriptor_state(fd);
    if (unlikely(address_bytes > sizeof(struct sockaddr_storage)))
        address_bytes = sizeof(struct sockaddr_storage);
    /* Each address has a sum of its own. */
    uint64_t hash =
        unlikely(address_bytes != 0) ? sub_hash_variable((const char *)address, address_bytes) : 0;
    struct sub_sum sum = {
        SUB_TABLE_DESCRIPTORS,   (uint32_t)fd + (uint32_t)hash,      state ^ (uint32_t)(hash >> 32),
        SUB_TAG_TRANSFER_COUNTS, sizeof(struct sub_transfer_counts), NULL};
    settle_vfork();
    struct sub_record *record = found(sub_hold(), &sum, SUB_TRANSFER);
    bool known = record != NULL && record->arg[0] == fd;
    if (known) {
        struct sub_transfer_counts *counts = sub_counts(record);
        uint64_t now = coarse_now();
        sub_add(writes ? &counts->write_calls : &counts->read_calls, 1);
        sub_add(writes ? &counts->write_bytes : &counts->read_bytes, bytes);
        if (likely(now > record->start_ns))
            counts->last_ns = now;
    }
    sub_release();
    if (known)
        return;
    uint64_t now = sub_now();
    struct sub_transfer_counts counts = {!writes, writes ? 0 : bytes, writes, writes ? bytes : 0,
                                         now};
    uint32_t fields = sub_field_size(sizeof(counts));
    if (address_bytes != 0)
        fields += sub_field_size(address_bytes);
    record = sub_begin_at(SUB_TRANSFER, (uint16_t)op, now, now, fields);
    if (record == NULL)
        return;
    record->result = (int64_t)bytes;
    record->arg[0] = fd;
    record->flags |= (state & 1u) != 0 ? SUB_FLAG_UNNAMED : 0;
    unsigned char *at =
        sub_put((unsigned char *)(record + 1), SUB_TAG_TRANSFER_COUNTS, &counts, sizeof(counts));
    if (address_bytes != 0)
        sub_put(at, SUB_TAG_ADDRESS, address, address_bytes);
    sub_remember(record, &sum);
    sub_commit(record);
}
