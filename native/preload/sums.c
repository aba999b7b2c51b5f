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
struct sub_record *sub_found_sum(unsigned char *base, const struct sub_sum *sum, uint16_t type) {
    struct sub_record *record =
        sub_found_bytes(base, sum, SUB_COUNTS_AT + sizeof(struct sub_transfer_counts));
    return record != NULL && likely(record->type == type) ? record : NULL;
}

void sub_count_first_source(enum sub_source source) {
    struct sub_source_counts counts = {{0}};
    counts.reads[source] = 1;
    sub_settle_vfork();
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
    sub_settle_vfork();
    struct sub_record *record = sub_found_sum(sub_hold(), &sum, SUB_TRANSFER);
    bool known = record != NULL && record->arg[0] == fd;
    if (known) {
        struct sub_transfer_counts *counts = sub_counts(record);
        uint64_t now = sub_coarse_now();
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
