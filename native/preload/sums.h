/*
 * Records that are added to: look-ups by path, bytes by descriptor, reads of clocks and the like.
 *
 * The first call of a kind makes a record, later ones add to the counts in it. Where a record is
 * stands in small tables right behind the header of the segment that the record is in, as an offset
 * into that segment. So nothing here can point to memory that is gone: a thread that goes on to the
 * next segment finds empty tables there, a forked child does not look at its parent's segment at all
 * (its generation differs), and a chain that another thread carries on brings its tables along.
 *
 * Only one thread at a time writes to a segment, and the handlers that interrupt it. `open` keeps
 * such a handler from unmapping the segment between a look into the tables and the addition.
 */
#ifndef SUBSTRATE_PRELOAD_SUMS_H
#define SUBSTRATE_PRELOAD_SUMS_H

#include <time.h>

#include "descriptors.h"
#include "process.h"
#include "record.h"

struct sub_slot {
    uint32_t key;
    uint32_t at; /* of the record, in units of eight bytes; 0: none */
};

/*
 * Other processes rename directories too. Nobody tells us, so what a descriptor leads to is asked
 * again after two of these, 134 ms at most: a path is never older than that.
 */
#define SUB_PLACE_AGE(ns) ((uint32_t)((ns) >> 26))

/* A descriptor whose path a record of this segment says. */
struct sub_place_slot {
    uint64_t id;    /* SUB_TAG_DIRECTORY_ID */
    uint32_t state; /* sub_descriptor_state: with another one it is another file */
    uint32_t asked; /* when the kernel said where that is, as SUB_PLACE_AGE */
};

#define SUB_PLACE_SLOTS 16u
/* The table of paths, then that of descriptors; a small segment has no room for large ones. */
enum { SUB_TABLE_PATHS = 0, SUB_TABLE_DESCRIPTORS = 1, SUB_TABLES = 2 };

static inline uint32_t sub_slots(uint64_t segment_size) {
    return segment_size >= 128u << 10 ? 1024 : segment_size >= 32u << 10 ? 256 : 32;
}

/* Where the first record of a segment of this size starts. */
static inline uint32_t sub_header_bytes(uint64_t segment_size) {
    return (uint32_t)(sizeof(struct sub_segment) + SUB_PLACE_SLOTS * sizeof(struct sub_place_slot) +
                      SUB_TABLES * sub_slots(segment_size) * sizeof(struct sub_slot));
}

static inline struct sub_place_slot *sub_place_slots(unsigned char *base) {
    return (struct sub_place_slot *)(void *)(base + sizeof(struct sub_segment));
}

/* Says the slot where the descriptor leads, and not since too long ago? */
static inline bool sub_is_explained(const struct sub_place_slot *slot, int descriptor,
                                    uint64_t now) {
    return slot->id == (uint32_t)descriptor + 1u &&
           slot->state == sub_descriptor_state(descriptor) &&
           (int32_t)(SUB_PLACE_AGE(now) - slot->asked) < 2; /* a coarse clock may be behind */
}

/* `index` is taken modulo the size of the table. */
static inline struct sub_slot *sub_slot_at(unsigned char *base, unsigned table, uint32_t index) {
    uint32_t slots = sub_slots(((const struct sub_segment *)(const void *)base)->size);
    return (struct sub_slot *)(void *)(sub_place_slots(base) + SUB_PLACE_SLOTS) + table * slots +
           (index & (slots - 1));
}

/*
 * Holds the calling thread's segment; NULL when it has none of this process, or when a vfork child
 * may be running on it: its calls get records of their own. sub_release in any case.
 */
static inline unsigned char *sub_hold(void) {
    sub_self.open++;
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
    if (likely(sub_self.generation == sub_process->generation && sub_self.check == 0))
        return sub_self.base;
    return NULL;
}

static inline void sub_release(void) {
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
    sub_self.open--;
}

/* The counts are the first field of every sum. */
#define SUB_COUNTS_AT (sizeof(struct sub_record) + sizeof(struct sub_field))

static inline void *sub_counts(struct sub_record *record) {
    return (unsigned char *)record + SUB_COUNTS_AT;
}

/*
 * Adds so that a handler of this thread that adds as well is not overwritten. Nobody else does, so
 * the bus need not be locked, which would cost more than all the rest.
 */
static inline void sub_add(uint64_t *sum, uint64_t more) {
#if defined(__x86_64__)
    __asm__ volatile("addq %1, %0" : "+m"(*sum) : "er"(more) : "cc");
#else
    __atomic_fetch_add(sum, more, __ATOMIC_RELAXED);
#endif
}

static inline void sub_add_short(uint32_t *sum, uint32_t more) {
#if defined(__x86_64__)
    __asm__ volatile("addl %1, %0" : "+m"(*sum) : "er"(more) : "cc");
#else
    __atomic_fetch_add(sum, more, __ATOMIC_RELAXED);
#endif
}

/* Where a new record is to be found again. */
struct sub_sum {
    unsigned table;
    uint32_t index, key;
    uint16_t tag; /* of the counts, and what they are at first */
    uint16_t bytes;
    const void *counts;
};

/* Lets later calls find a record that is not committed yet. */
void sub_remember(const struct sub_record *record, const struct sub_sum *sum);

/* What the slot leads to, if that has so many bytes; the segment is held. */
static inline void *sub_found_bytes(unsigned char *base, const struct sub_sum *sum,
                                    uint32_t bytes) {
    if (unlikely(base == NULL))
        return NULL;
    const struct sub_slot *slot = sub_slot_at(base, sum->table, sum->index);
    uint64_t at = (uint64_t)slot->at * 8;
    if (slot->key != sum->key || at == 0 ||
        unlikely(at + bytes > ((const struct sub_segment *)(const void *)base)->size))
        return NULL;
    return base + at;
}

struct sub_record *sub_found_sum(unsigned char *base, const struct sub_sum *sum, uint16_t type);

/* The precise clock costs ten times what an addition does. */
static inline uint64_t sub_coarse_now(void) {
    return sub_clock(CLOCK_MONOTONIC_COARSE);
}

/* A child that borrows the memory has come and gone without a hook noticing its end. */
static inline void sub_settle_vfork(void) {
    if (unlikely(sub_self.check != 0))
        sub_vfork_child();
}

/* --- sources ---------------------------------------------------------------------------------- */

void sub_count_first_source(enum sub_source source);

/* Counts one read of something that is not the same the next time; a few instructions. */
static inline void sub_count_source(enum sub_source source) {
    if (!sub_wants(SUB_CLASS_SOURCES))
        return;
    unsigned char *base = sub_hold();
    const struct sub_segment *header = (const struct sub_segment *)(const void *)base;
    if (likely(base != NULL && header->sources != 0)) {
        struct sub_source_counts *counts =
            (struct sub_source_counts *)(void *)(base + header->sources + SUB_COUNTS_AT);
        sub_add(&counts->reads[source], 1);
        sub_release();
        return;
    }
    sub_release();
    sub_count_first_source(source);
}

/* --- look-ups --------------------------------------------------------------------------------- */

/*
 * Counts a call that asked about a path, or, without one, about a descriptor. `failed`: errno says
 * how.
 */
void sub_count_stat(enum sub_operation op, int dirfd, const char *path, int64_t result,
                    bool failed);

/* --- bytes ------------------------------------------------------------------------------------ */

struct sockaddr;

void sub_count_transfer(enum sub_operation op, int fd, bool writes, uint64_t bytes,
                        const struct sockaddr *address, uint32_t address_bytes);

#endif
